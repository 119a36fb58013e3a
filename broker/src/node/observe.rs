//! What metrics read when they are scraped: lags from the log, gauges from everybody.

use crate::{
    fanout::{Snapshots, registry::Subscriptions},
    ingress::{queue::Queues, registry::Producers},
    lag::Lags,
    log::Log,
    metrics::{Gauges, LagSample, Observe, StoreGauges},
    node::Parts,
    overload::Overload,
    state::State,
    tail::TailRings,
};
use hutong_proto::Lane;
use std::sync::Arc;

#[derive(Debug)]
pub struct Observer {
    log: Arc<dyn Log>,
    state: Arc<State>,
    rings: Arc<TailRings>,
    queues: Arc<Queues>,
    producers: Arc<Producers>,
    subscriptions: Arc<Subscriptions>,
    lags: Lags,
    snapshots: Arc<Snapshots>,
    overload: Arc<Overload>,
}

impl Observer {
    pub fn new(parts: &Parts) -> Observer {
        Observer {
            log: Arc::clone(&parts.log),
            state: Arc::clone(&parts.state),
            rings: Arc::clone(&parts.rings),
            queues: Arc::clone(&parts.queues),
            producers: Arc::clone(&parts.producers),
            subscriptions: Arc::clone(&parts.subscriptions),
            lags: parts.lags.clone(),
            snapshots: Arc::clone(&parts.snapshots),
            overload: Arc::clone(&parts.overload),
        }
    }
}

impl Observe for Observer {
    fn lags(&self) -> Vec<LagSample> {
        let mut samples = Vec::new();
        for lag in self.lags.all() {
            let (platform, name) = &lag.subscription.key;
            for lane in Lane::DELIVERED {
                for (issuer, lags) in &lag.pairs {
                    let pair = lags[lane.index()];
                    samples.push(LagSample {
                        platform: *platform,
                        subscription: name.clone(),
                        issuer: Some(*issuer),
                        lane,
                        records: pair.records,
                        seconds: pair.seconds,
                    });
                }
                let total = lag.total(lane);
                samples.push(LagSample {
                    platform: *platform,
                    subscription: name.clone(),
                    issuer: None,
                    lane,
                    records: total.records,
                    seconds: total.seconds,
                });
            }
        }
        samples
    }

    fn gauges(&self) -> Gauges {
        let (state, log) = (self.state.store(), self.log.store());
        let partitions = self.log.partitions();
        Gauges {
            next_offset: self.log.next_offset(),
            applied: self.state.applied().next,
            stored: self.state.stored().next,
            log_bytes: partitions.iter().map(|p| p.bytes_estimate).sum(),
            log_poisoned: self.log.poisoned().is_some(),
            queue_bytes: self.queues.bytes(),
            tail_bytes: self.rings.bytes(),
            gather_bytes: self.state.memory_bytes(),
            snapshots_running: self.snapshots.running(),
            scheduling_delay: self.overload.delay(),
            overload_limits: self.overload.limits().to_vec(),
            producers_connected: self.producers.connected().into_iter().collect(),
            subscribers_connected: self.subscriptions.connected().into_iter().collect(),
            stores: vec![
                StoreGauges { name: "log", ..log },
                StoreGauges {
                    name: "state",
                    ..state
                },
            ],
        }
    }
}
