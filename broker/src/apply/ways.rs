//! When what is in the log arrived at the broker, and when it was applied: for tracing one delta. In memory
//! alone and bounded: of what was durable before the broker started nothing is known, and nothing is guessed.

use crate::{
    clock::Clock,
    history::{History, Longest},
    log::EntryHead,
};
use hutong_proto::{Issuer, Lane, Micros, Offset, Partition};
use std::collections::BTreeMap;

/// Bounds rather than times, because those that are remembered become fewer: how long anything like it took, around
/// then. A time by itself would soon be coarser than all that lies between arrival and apply.
pub struct Ways {
    clock: Clock,
    /// By platform, so that one whose batches wait makes nobody else's look late. From arrival until durable,
    /// batch by batch.
    arrived: BTreeMap<Issuer, History<Longest>>,
    /// From durable until applied, group by group.
    applied: History<Longest>,
}

/// What is known of a record; nothing of what is from before the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// At the earliest.
    pub arrived_at: Option<Micros>,
    /// At the latest.
    pub applied_at: Option<Micros>,
}

impl std::fmt::Debug for Ways {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ways").finish_non_exhaustive()
    }
}

impl Ways {
    /// For a log in which everything below `before` is from before the start.
    pub fn new(platforms: impl Iterator<Item = Issuer>, before: Offset, clock: Clock) -> Ways {
        let history = || History::new([before; 2]);
        Ways {
            clock,
            arrived: platforms.map(|issuer| (issuer, history())).collect(),
            applied: history(),
        }
    }

    /// A record of a batch that arrived then is in the log.
    pub fn arrived(&self, partition: Partition, offset: Offset, at: Micros, durable_at: Micros) {
        if partition.lane != Lane::Control
            && let Some(history) = self.arrived.get(&partition.issuer)
        {
            let took = Longest(Micros(durable_at.0.saturating_sub(at.0)));
            history.note(partition.lane, offset.next(), durable_at, took);
        }
    }

    /// Now a group is applied. Call before anybody can be sent it.
    pub fn applied<'a>(&self, group: impl Iterator<Item = &'a EntryHead>) {
        // By lane, what a group of the other one took says nothing: the first is the oldest.
        let mut lanes: [Option<(Micros, Offset)>; 2] = [None; 2];
        for head in group.filter(|head| head.partition.lane != Lane::Control) {
            let lane = &mut lanes[head.partition.lane.index()];
            let oldest = lane.map_or(head.durable_at, |(oldest, _)| oldest);
            *lane = Some((oldest, head.offset.next()));
        }
        let now = (self.clock)();
        for lane in Lane::DELIVERED {
            if let Some((oldest, below)) = lanes[lane.index()] {
                let took = Longest(Micros(now.0.saturating_sub(oldest.0)));
                self.applied.note(lane, below, now, took);
            }
        }
    }

    /// Of a record that became durable then.
    pub fn of(&self, partition: Partition, offset: Offset, durable_at: Micros) -> Way {
        let lane = partition.lane;
        let arrived = self.arrived.get(&partition.issuer);
        let arrived = arrived.and_then(|history| history.noted(lane, offset));
        let applied = self.applied.noted(lane, offset);
        Way {
            arrived_at: arrived.map(|(_, took)| Micros(durable_at.0.saturating_sub(took.0.0))),
            applied_at: applied.map(|(at, took)| at.min(Micros(durable_at.0 + took.0.0))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::{KindSet, Shard};
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    const SECOND: u64 = 1_000_000;

    fn partition(issuer: u32, lane: Lane) -> Partition {
        Partition {
            issuer: Issuer::new(issuer).expect("a code"),
            lane,
            shard: Shard(0),
        }
    }

    fn head(partition: Partition, offset: u64, durable_at: u64) -> EntryHead {
        EntryHead {
            offset: Offset(offset),
            partition,
            ordinal: offset,
            durable_at: Micros(durable_at),
            kinds: KindSet::ALL,
            deltas: 1,
        }
    }

    /// And its clock.
    fn ways(before: u64) -> (Ways, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(0));
        let clock: Clock = {
            let now = Arc::clone(&now);
            Arc::new(move || Micros(now.load(Ordering::Relaxed)))
        };
        let platforms = [340_000, 510_000].map(|code| Issuer::new(code).expect("a code"));
        (Ways::new(platforms.into_iter(), Offset(before), clock), now)
    }

    #[test]
    fn nothing_is_said_of_what_was_there_before_nor_of_what_is_not_there_yet() {
        let (ways, now) = ways(10);
        let partition = partition(340_000, Lane::Urgent);
        now.store(100, Ordering::Relaxed);
        for offset in [9, 10] {
            ways.arrived(partition, Offset(offset), Micros(70), Micros(80));
        }
        let unknown = Way::default();
        let applied_at = None;
        assert_eq!(ways.of(partition, Offset(9), Micros(80)), unknown);
        let arrived_at = Some(Micros(70));
        let arrived = Way {
            arrived_at,
            applied_at,
        };
        assert_eq!(ways.of(partition, Offset(10), Micros(80)), arrived);
        ways.applied([9, 10].map(|offset| head(partition, offset, 80)).iter());
        let applied_at = Some(Micros(100));
        let both = Way {
            arrived_at,
            applied_at,
        };
        assert_eq!(ways.of(partition, Offset(9), Micros(80)), unknown);
        assert_eq!(ways.of(partition, Offset(10), Micros(80)), both);
        assert_eq!(ways.of(partition, Offset(11), Micros(80)), unknown);
    }

    #[test]
    fn a_platform_whose_batches_wait_makes_nobody_elses_look_late_nor_its_other_lane() {
        let (ways, now) = ways(1);
        let slow = partition(340_000, Lane::Bulk);
        let others = [
            partition(340_000, Lane::Urgent),
            partition(510_000, Lane::Bulk),
        ];
        // Far more than are remembered one by one, two a second.
        for n in 0..20_000 {
            let durable_at = 60 * SECOND + n * SECOND / 2;
            let [slow_offset, other] = [1 + n * 2, 2 + n * 2].map(Offset);
            let of = others[n as usize % 2];
            ways.arrived(
                slow,
                slow_offset,
                Micros(durable_at - 60 * SECOND),
                Micros(durable_at),
            );
            ways.arrived(of, other, Micros(durable_at - 7), Micros(durable_at));
            now.store(durable_at + 5, Ordering::Relaxed);
            ways.applied(
                [
                    head(slow, slow_offset.0, durable_at),
                    head(of, other.0, durable_at),
                ]
                .iter(),
            );
        }
        for n in (0..20_000).step_by(999).chain([19_999]) {
            let durable_at = 60 * SECOND + n * SECOND / 2;
            let known = |partition, offset| {
                let way = ways.of(partition, Offset(offset), Micros(durable_at));
                let waited = durable_at - way.arrived_at.expect("known").0;
                (waited, way.applied_at.expect("known").0 - durable_at)
            };
            assert_eq!(known(slow, 1 + n * 2), (60 * SECOND, 5), "{n}");
            assert_eq!(known(others[n as usize % 2], 2 + n * 2), (7, 5), "{n}");
        }
    }

    #[test]
    fn of_a_group_that_waited_long_to_be_applied_each_has_that_time() {
        let (ways, now) = ways(1);
        let partition = partition(340_000, Lane::Urgent);
        now.store(9 * SECOND, Ordering::Relaxed);
        ways.applied([head(partition, 1, SECOND), head(partition, 2, 5 * SECOND)].iter());
        for (offset, durable_at) in [(1, SECOND), (2, 5 * SECOND)] {
            let way = ways.of(partition, Offset(offset), Micros(durable_at));
            assert_eq!(way.applied_at, Some(Micros(9 * SECOND)));
        }
    }
}
