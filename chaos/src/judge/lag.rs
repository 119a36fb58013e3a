//! How late deltas were, and when a drill was steady. Lag counts from the moment at which a delta was due
//! until the slowest live subscriber has it; while one is under way its lag grows.

use crate::{
    history::{Role, Stream},
    judge::{
        Facts,
        facts::{is_urgent, records},
    },
};
use std::collections::{BTreeMap, BinaryHeap};

/// Of the plot, and of what is steady.
const STEP_US: u64 = 100_000;
/// Lags within their bounds for so long are a steady state again.
const HOLD_US: u64 = 1_000_000;
/// The first moments of a load are not yet steady: connections and caches are cold.
const WARM_UP_US: u64 = 1_000_000;

/// A lag that is longer than every other.
const NEVER: u64 = u64::MAX;

/// From and up to, since the drill began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub from: u64,
    pub to: u64,
    /// A fault begins at its end: what is under way then has waited so long as it has, and what the fault adds
    /// says nothing of the time before.
    pub cut: bool,
}

impl Window {
    fn has(&self, at: u64) -> bool {
        at >= self.from && at < self.to
    }
}

/// A batch on its way to everybody.
#[derive(Clone, Copy, Debug)]
struct Way {
    due: u64,
    /// The slowest; nothing when somebody never got it.
    arrived: Option<u64>,
    deltas: u32,
}

#[derive(Debug)]
pub struct Lags {
    urgent: Lane,
    bulk: Lane,
    urgent_max: u64,
    bulk_max: u64,
    /// Before the first fault; after recoveries; while a fault is there.
    pub before: Vec<Window>,
    pub after: Vec<Window>,
    pub during: Vec<Window>,
}

#[derive(Debug, Default)]
struct Lane {
    /// By the moment at which they were due.
    ways: Vec<Way>,
    /// Each [`STEP_US`] from the start on: how long the oldest delta that is not everywhere has waited.
    waiting: Vec<u64>,
    worst: u64,
}

impl Lags {
    pub fn of(facts: &Facts<'_>) -> Lags {
        let history = facts.history;
        let end = history.last;
        let (mut urgent, mut bulk) = (Lane::default(), Lane::default());
        let mut ways: BTreeMap<(u32, Stream, u64), Way> = BTreeMap::new();
        // What is in the log must get to everybody; what was refused, to nobody.
        for record in facts.log.values() {
            for (first, _) in &record.runs {
                if let Some(op) = history.op_of(record.issuer, record.stream, *first) {
                    let way = Way {
                        due: op.due,
                        arrived: Some(0),
                        deltas: op.count,
                    };
                    ways.insert((record.issuer, record.stream, op.first), way);
                }
            }
        }
        for subscription in history.with_role(Role::Live) {
            let mut missing: std::collections::BTreeSet<_> = ways
                .keys()
                .filter(|(issuer, ..)| *issuer != subscription.platform)
                .copied()
                .collect();
            for (t, record) in records(subscription) {
                for (first, _) in &record.runs {
                    let Some(op) = history.op_of(record.issuer, record.stream, *first) else {
                        continue;
                    };
                    let key = (record.issuer, record.stream, op.first);
                    missing.remove(&key);
                    if let Some(Way {
                        arrived: Some(at), ..
                    }) = ways.get_mut(&key)
                    {
                        *at = t.max(*at);
                    }
                }
            }
            for key in missing {
                if let Some(way) = ways.get_mut(&key) {
                    way.arrived = None;
                }
            }
        }
        for (is, lane) in [(true, &mut urgent), (false, &mut bulk)] {
            let of = ways
                .iter()
                .filter(|((_, stream, _), _)| is_urgent(*stream) == is);
            lane.fill(of.map(|(_, way)| *way).collect(), end);
        }
        let mut lags = Lags {
            urgent,
            bulk,
            urgent_max: history.drill.hypothesis.urgent_lag.as_micros() as u64,
            bulk_max: history.drill.hypothesis.bulk_lag.as_micros() as u64,
            before: Vec::new(),
            after: Vec::new(),
            during: Vec::new(),
        };
        lags.windows(facts);
        lags
    }

    fn windows(&mut self, facts: &Facts<'_>) {
        let history = facts.history;
        let recovery = history.drill.hypothesis.recovery.as_micros() as u64;
        let end = history.load_end();
        let mut faults: Vec<Window> = (history.faults.iter())
            .filter_map(|fault| {
                let from = fault.begin()?;
                Some(Window {
                    from,
                    to: fault.healing().unwrap_or(end).max(from),
                    cut: false,
                })
            })
            .collect();
        faults.sort_by_key(|window| window.from);
        (self.before, self.after) = steady(facts.load_begin, end, recovery, &faults);
        self.during = faults;
    }

    fn lane(&self, urgent: bool) -> &Lane {
        match urgent {
            true => &self.urgent,
            false => &self.bulk,
        }
    }

    /// Of what was due in these windows, after which time 99 of 100 deltas were with everybody, and how many
    /// there were. Nothing, when more than the hundredth never was, or none was due.
    pub fn p99(&self, urgent: bool, windows: &[Window]) -> (Option<u64>, u64) {
        let ways = self.lane(urgent).ways.iter();
        let mut found: Vec<(u64, u64)> = ways
            .filter_map(|way| {
                let window = windows.iter().find(|window| window.has(way.due))?;
                let arrived = match window.cut {
                    true => Some(way.arrived.map_or(window.to, |at| at.min(window.to))),
                    false => way.arrived,
                };
                let lag = arrived.map_or(NEVER, |at| at.saturating_sub(way.due));
                Some((lag, u64::from(way.deltas)))
            })
            .collect();
        found.sort_unstable();
        let all: u64 = found.iter().map(|(_, count)| count).sum();
        let rank = (all as f64 * 0.99).ceil() as u64;
        let mut passed = 0;
        let at = found.iter().find(|(_, count)| {
            passed += count;
            passed >= rank
        });
        (at.map(|(lag, _)| *lag).filter(|lag| *lag != NEVER), all)
    }

    /// From this moment until both lags are within their bounds, and stay there for a second; nothing when
    /// that never comes.
    pub fn recovered(&self, healing: u64) -> Option<u64> {
        let steps = self.urgent.waiting.len().min(self.bulk.waiting.len());
        let first = healing.div_ceil(STEP_US) as usize;
        let good = |i: usize| {
            self.urgent.waiting[i] <= self.urgent_max && self.bulk.waiting[i] <= self.bulk_max
        };
        let hold = (HOLD_US / STEP_US) as usize;
        (first..steps)
            .find(|from| (*from..(from + hold).min(steps)).all(good))
            .map(|i| (i as u64 * STEP_US).saturating_sub(healing))
    }

    /// Seconds since `from`, and the lag in seconds, for plots.
    pub fn series(&self, urgent: bool, from: u64) -> Vec<(f64, f64)> {
        let waiting = self.lane(urgent).waiting.iter().enumerate();
        waiting
            .map(|(i, lag)| (i as u64 * STEP_US, *lag))
            .filter(|(at, _)| *at >= from)
            .map(|(at, lag)| ((at - from) as f64 / 1e6, lag as f64 / 1e6))
            .collect()
    }

    pub fn worst(&self, urgent: bool) -> u64 {
        self.lane(urgent).worst
    }
}

/// Before the first of these faults, and after the recovery from each, until the next one begins.
fn steady(begin: u64, end: u64, recovery: u64, faults: &[Window]) -> (Vec<Window>, Vec<Window>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut steady_from = begin + WARM_UP_US;
    for (i, fault) in faults.iter().enumerate() {
        let window = Window {
            from: steady_from,
            to: fault.from.min(end),
            cut: fault.from <= end,
        };
        match i {
            0 => before.push(window),
            _ if window.from < window.to => after.push(window),
            _ => {}
        }
        steady_from = steady_from.max(fault.to + recovery);
    }
    let last = Window {
        from: steady_from,
        to: end,
        cut: false,
    };
    match faults.is_empty() {
        true => before.push(last),
        false if last.from < last.to => after.push(last),
        false => {}
    }
    (before, after)
}

impl Lane {
    fn fill(&mut self, mut ways: Vec<Way>, end: u64) {
        ways.sort_by_key(|way| way.due);
        let lag = |way: &Way| way.arrived.unwrap_or(end).saturating_sub(way.due);
        self.worst = ways
            .iter()
            .filter(|w| w.deltas > 0)
            .map(lag)
            .max()
            .unwrap_or(0);
        // The oldest first; what has arrived is taken off when it comes to the top.
        let mut under_way: BinaryHeap<std::cmp::Reverse<(u64, u64)>> = BinaryHeap::new();
        let mut next = ways.iter().peekable();
        for step in 0..=end / STEP_US {
            let now = step * STEP_US;
            while let Some(way) = next.next_if(|way| way.due <= now) {
                let arrived = way.arrived.unwrap_or(u64::MAX);
                under_way.push(std::cmp::Reverse((way.due, arrived)));
            }
            while under_way.peek().is_some_and(|top| top.0.1 <= now) {
                under_way.pop();
            }
            let oldest = under_way.peek().map(|top| top.0.0);
            self.waiting.push(oldest.map_or(0, |due| now - due));
        }
        self.ways = ways;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of urgent deltas and of bulk, with the bounds of each.
    fn lags([urgent, bulk]: [Lane; 2], [urgent_max, bulk_max]: [u64; 2]) -> Lags {
        Lags {
            urgent,
            bulk,
            urgent_max,
            bulk_max,
            before: Vec::new(),
            after: Vec::new(),
            during: Vec::new(),
        }
    }

    #[test]
    fn the_oldest_that_is_not_everywhere_makes_the_lag() {
        let way = |due, arrived| Way {
            due,
            arrived,
            deltas: 1,
        };
        let mut lane = Lane::default();
        let ways = vec![
            way(100_000, Some(450_000)),
            way(200_000, Some(250_000)),
            way(500_000, None),
        ];
        lane.fill(ways, 800_000);
        let ms: Vec<_> = lane.waiting.iter().map(|us| us / 1000).collect();
        assert_eq!(ms, [0, 0, 100, 200, 300, 0, 100, 200, 300]);
        assert_eq!(lane.worst, 350_000);
    }

    #[test]
    fn the_slowest_subscriber_makes_the_percentile() {
        let lane = |arrived: &[Option<u64>]| {
            let ways = arrived.iter().enumerate().map(|(i, at)| Way {
                due: i as u64,
                arrived: at.map(|at| i as u64 + at),
                deltas: 10,
            });
            let mut lane = Lane::default();
            lane.fill(ways.collect(), 1000);
            lags([lane, Lane::default()], [0, 0])
        };
        let window = |to, cut| [Window { from: 0, to, cut }];
        let all = window(1000, false);
        let mut arrived = vec![Some(5); 200];
        arrived[7] = Some(90);
        assert_eq!(lane(&arrived).p99(true, &all), (Some(5), 2000));
        arrived[8..11].fill(Some(80));
        assert_eq!(lane(&arrived).p99(true, &all), (Some(80), 2000));
        arrived[8..11].fill(None);
        assert_eq!(lane(&arrived).p99(true, &all), (None, 2000));
        assert_eq!(lane(&arrived).p99(false, &all), (None, 0));
        // What is due at the end of a window is no longer of it.
        assert_eq!(lane(&arrived).p99(true, &window(7, false)), (Some(5), 70));
        // A fault at 100: of what it held up counts how long that had waited until then.
        arrived[90..].fill(None);
        let (before, _) = lane(&arrived).p99(true, &window(100, true));
        assert_eq!(
            before,
            Some(91),
            "the second of those that waited from 8 on"
        );
        arrived[8..11].fill(Some(5));
        assert_eq!(lane(&arrived).p99(true, &window(100, true)).0, Some(10));
        assert_eq!(lane(&arrived).p99(true, &window(100, false)).0, None);
    }

    #[test]
    fn steady_is_what_lies_before_the_first_fault_and_between_recovery_and_the_next() {
        let second = 1_000_000;
        let window = |from: u64, to: u64, cut| Window {
            from: from * second,
            to: to * second,
            cut,
        };
        let fault = |from, to| window(from, to, false);
        let steady = |faults: &[Window]| steady(second, 60 * second, 5 * second, faults);
        let (before, after) = steady(&[]);
        assert_eq!((before, after), (vec![window(2, 60, false)], vec![]));
        let (before, after) = steady(&[fault(10, 15), fault(30, 32)]);
        assert_eq!(before, [window(2, 10, true)]);
        assert_eq!(after, [window(20, 30, true), window(37, 60, false)]);
        // One within the recovery from another, one within another, and one that lasts to the end.
        let (_, after) = steady(&[fault(10, 20), fault(12, 13), fault(22, 23)]);
        assert_eq!(after, [window(28, 60, false)]);
        let (_, after) = steady(&[fault(10, 15), fault(50, 60)]);
        assert_eq!(after, [window(20, 50, true)]);
        let (before, after) = steady(&[fault(70, 70)]);
        assert_eq!((before, after), (vec![window(2, 60, false)], vec![]));
    }

    #[test]
    fn recovered_is_when_both_lanes_are_within_their_bounds_for_a_second() {
        let lane = |ms: &[u64]| Lane {
            waiting: ms.iter().map(|ms| ms * 1000).collect(),
            ..Lane::default()
        };
        let lags = |urgent: Lane, bulk: Lane| lags([urgent, bulk], [100_000, 500_000]);
        let good = vec![0; 40];
        let mut slow = good.clone();
        // Too late at the third step, good for half a second, and too late once more.
        slow[3] = 101;
        slow[9] = 501;
        let urgent_slow = lags(lane(&slow), lane(&good));
        assert_eq!(urgent_slow.recovered(0), Some(1_000_000));
        assert_eq!(urgent_slow.recovered(250_000), Some(750_000));
        assert_eq!(urgent_slow.recovered(1_050_000), Some(50_000));
        let bulk_slow = lags(lane(&good), lane(&slow));
        assert_eq!(bulk_slow.recovered(300_000), Some(700_000));
        // What comes after that second is another story, as the next fault is.
        slow[25] = 101;
        assert_eq!(lags(lane(&slow), lane(&good)).recovered(0), Some(1_000_000));
        slow[3..].fill(101);
        assert_eq!(lags(lane(&slow), lane(&good)).recovered(0), None);
        slow[3..].fill(100);
        assert_eq!(lags(lane(&slow), lane(&good)).recovered(0), Some(0));
    }

    #[test]
    fn a_plot_has_the_lag_in_seconds_from_where_it_begins() {
        let urgent = Lane {
            waiting: vec![7_000_000, 0, 250_000, 500_000],
            worst: 600_000,
            ..Lane::default()
        };
        let lags = lags([urgent, Lane::default()], [0, 0]);
        assert_eq!(
            lags.series(true, 100_000),
            [(0.0, 0.0), (0.1, 0.25), (0.2, 0.5)]
        );
        assert_eq!(lags.series(false, 0), []);
        assert_eq!((lags.worst(true), lags.worst(false)), (600_000, 0));
    }
}
