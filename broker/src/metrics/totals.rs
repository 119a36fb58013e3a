//! Sums of the counters, for who looks every second and wants no scrape.

use super::Recorder;
use hutong_proto::{Issuer, Lane, Reason};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Over all platforms, since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Deltas, by lane.
    pub accepted: [u64; 2],
    /// Deltas and batches.
    pub refused: u64,
    pub records_delivered: u64,
    pub delivered_bytes: u64,
    pub log_bytes: u64,
}

impl Recorder {
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            log_bytes: self.counters.log_bytes.load(Relaxed),
            ..Totals::default()
        };
        for platform in &self.counters.platforms {
            for lane in Lane::DELIVERED {
                totals.accepted[lane.index()] += platform.accepted[lane.index()].load(Relaxed);
            }
            totals.refused += sum(&platform.refused);
            totals.records_delivered += platform.records_delivered.load(Relaxed);
            totals.delivered_bytes += platform.delivered_bytes.load(Relaxed);
        }
        totals
    }

    /// What was refused, to whom and why; `None` is whoever is not configured.
    pub fn refusals(&self) -> Vec<(Option<Issuer>, Reason, u64)> {
        let mut all = Vec::new();
        for platform in &self.counters.platforms {
            for (reason, count) in Reason::ALL.iter().zip(&platform.refused) {
                let count = count.load(Relaxed);
                if count > 0 {
                    all.push((platform.issuer, *reason, count));
                }
            }
        }
        all
    }
}

fn sum(counters: &[AtomicU64]) -> u64 {
    counters.iter().map(|n| n.load(Relaxed)).sum()
}

#[cfg(test)]
mod tests {
    use crate::metrics::Metrics;
    use hutong_proto::{Issuer, Lane, Reason};

    #[test]
    fn sums_are_over_all_platforms_and_refusals_name_each() {
        let of = |code| Issuer::new(code).expect("six digits");
        let metrics = Metrics::new([of(340_000), of(510_000)]);
        metrics.accepted(of(340_000), Lane::Urgent, 3);
        metrics.accepted(of(510_000), Lane::Urgent, 4);
        metrics.accepted(of(510_000), Lane::Bulk, 5);
        metrics.delivered(of(510_000), 2, 100);
        metrics.refused(of(340_000), Reason::EntityInvalid, 2);
        metrics.refused(of(999_999), Reason::IdentityUnknown, 1);
        let totals = metrics.totals();
        assert_eq!(totals.accepted, [7, 5]);
        assert_eq!((totals.refused, totals.records_delivered), (3, 2));
        assert_eq!(totals.delivered_bytes, 100);
        assert_eq!(
            metrics.refusals(),
            [
                (Some(of(340_000)), Reason::EntityInvalid, 2),
                (None, Reason::IdentityUnknown, 1),
            ]
        );
    }
}
