//! What metrics read when they are scraped: lags from the log, gauges from everybody.

use crate::{
    fanout::registry::Subscriptions,
    ingress::{queue::Queues, registry::Producers},
    lag::Lags,
    log::Log,
    metrics::{Gauges, LagSample, Observe},
    node::Parts,
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
    snapshots_max: usize,
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
            snapshots_max: parts.config.limits.snapshots as usize,
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
}
