//! Who has not applied what, since when: computed from the log and the subscriptions when asked.

use crate::{
    clock::Clock,
    fanout::registry::{Subscription, Subscriptions},
    log::Log,
    metrics::{LagSample, pairs::lower},
};
use hutong_proto::{Issuer, Lane, Micros, Offset, Partition, Shard, api};
use std::{collections::BTreeMap, sync::Arc};

/// What one subscription has not applied of one issuer, in one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lag {
    pub records: u64,
    /// Durable time of the oldest record not applied.
    pub oldest_at: Option<Micros>,
    /// Where that record is.
    pub oldest: Option<(Offset, Partition)>,
    pub seconds: f64,
}

impl Lag {
    fn add(&mut self, other: Lag) {
        self.records += other.records;
        self.seconds = self.seconds.max(other.seconds);
        self.oldest_at = lower(self.oldest_at, other.oldest_at);
        // Times rise with offsets, so the lowest offset is the oldest record.
        self.oldest = lower(self.oldest, other.oldest);
    }

    pub fn to_api(self) -> api::LaneLag {
        api::LaneLag {
            records: self.records,
            seconds: self.seconds,
            oldest_at_us: self.oldest_at.map_or(0, |at| at.0),
            oldest_offset: self.oldest.map_or(0, |(offset, _)| offset.0),
            oldest_issuer: self.oldest.map_or(0, |(_, p)| p.issuer.code()),
        }
    }
}

/// Lags of one subscription, by issuer and lane.
#[derive(Clone, Debug)]
pub struct SubscriptionLag {
    pub subscription: Arc<Subscription>,
    pub pairs: BTreeMap<Issuer, [Lag; 2]>,
}

impl SubscriptionLag {
    pub fn total(&self, lane: Lane) -> Lag {
        let mut total = Lag::default();
        for lags in self.pairs.values() {
            total.add(lags[lane.index()]);
        }
        total
    }

    fn sample(&self, issuer: Option<Issuer>, lane: Lane, lag: Lag) -> LagSample {
        let (platform, subscription) = &self.subscription.key;
        LagSample {
            platform: *platform,
            subscription: subscription.clone(),
            issuer,
            lane,
            records: lag.records,
            seconds: lag.seconds,
            oldest_at: lag.oldest_at,
            oldest: lag.oldest.map(|(offset, _)| offset),
        }
    }
}

/// As metrics have it: of each subscription and lane a sample over all issuers, and one for each issuer if it
/// wants the lane.
pub fn samples(lags: &[SubscriptionLag]) -> Vec<LagSample> {
    let mut samples = Vec::new();
    for lag in lags {
        let filter = lag.subscription.filter();
        for lane in Lane::DELIVERED {
            if filter.wants_lane(lane) {
                for (issuer, lanes) in &lag.pairs {
                    samples.push(lag.sample(Some(*issuer), lane, lanes[lane.index()]));
                }
            }
            samples.push(lag.sample(None, lane, lag.total(lane)));
        }
    }
    samples
}

/// Computes lags. Records of kinds that a filter leaves out count until the next bookmark.
#[derive(Clone)]
pub struct Lags {
    pub log: Arc<dyn Log>,
    pub subscriptions: Arc<Subscriptions>,
    pub platforms: Arc<Vec<(Issuer, u32)>>,
    pub clock: Clock,
}

impl std::fmt::Debug for Lags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lags").finish_non_exhaustive()
    }
}

impl Lags {
    pub fn all(&self) -> Vec<SubscriptionLag> {
        let now = (self.clock)();
        let list = self.subscriptions.list();
        list.into_iter()
            .map(|subscription| SubscriptionLag {
                pairs: self.pairs(&subscription, now),
                subscription,
            })
            .collect()
    }

    fn pairs(&self, subscription: &Subscription, now: Micros) -> BTreeMap<Issuer, [Lag; 2]> {
        let filter = subscription.filter();
        let mut pairs = BTreeMap::new();
        for (issuer, shards) in self.platforms.iter() {
            if !filter.wants_issuer(*issuer) {
                continue;
            }
            let mut lags = [Lag::default(); 2];
            for lane in Lane::DELIVERED
                .into_iter()
                .filter(|l| filter.wants_lane(*l))
            {
                let from = subscription.effective(lane);
                for shard in (0..*shards).map(Shard) {
                    let partition = Partition {
                        issuer: *issuer,
                        lane,
                        shard,
                    };
                    lags[lane.index()].add(self.partition(partition, from, now));
                }
            }
            pairs.insert(*issuer, lags);
        }
        pairs
    }

    fn partition(&self, partition: Partition, from: Offset, now: Micros) -> Lag {
        let Some(info) = self
            .log
            .partition(partition)
            .filter(|info| info.last >= from)
        else {
            return Lag::default();
        };
        match self.log.head_at(partition, from) {
            Ok(Some(head)) => Lag {
                records: (info.last_ordinal + 1).saturating_sub(head.ordinal),
                oldest_at: Some(head.durable_at),
                oldest: Some((head.offset, partition)),
                seconds: now.seconds_since(head.durable_at),
            },
            Ok(None) => Lag::default(),
            Err(error) => {
                tracing::error!(%partition, %error, "lag cannot be read");
                Lag::default()
            }
        }
    }
}
