//! Rates and latencies of the last minutes, taken once a second from counters that are there anyway.
//!
//! Latency is measured on records that went through, without a word on the hot path: the last record of a
//! partition is remembered, and moments later the histories of the subscriptions say when each had it. Who
//! still has not counts with the age of the oldest remembered record that it has not, so that neither a stall
//! nor a long queue is invisible.

use crate::{
    fanout::registry::{Subscription, SubscriptionKey, Subscriptions},
    log::Log,
    metrics::{Metrics, Totals},
};
use hutong_proto::{Issuer, KindSet, Lane, Micros, Offset, Partition};
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// Ten minutes, one a second.
const POINTS_MAX: usize = 600;
/// Records looked at in one second, by lane. Each is asked of every subscription.
const PROBES_MAX: usize = 8;
/// A record gets so long before it is asked who has it.
const PROBE_AGE_US: u64 = 2_000_000;
/// Records that somebody did not have then, by lane: half a minute of them, and of longer times fewer.
const LATE_MAX: usize = 256;

/// One second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    pub at_us: u64,
    /// Deltas a second, by lane.
    pub accepted: [f64; 2],
    pub refused: f64,
    /// Records a second to all subscribers.
    pub delivered: f64,
    pub delivered_bytes: f64,
    pub log_bytes: f64,
    /// By lane; nothing when no record went through.
    pub latency: [Option<Latency>; 2],
}

/// From durable until sent and until applied, over records and subscriptions, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    pub samples: usize,
    /// Nothing where so many have all of it that there is no time to tell: nothing new went through.
    pub sent_ms_p50: Option<f64>,
    pub sent_ms_p99: Option<f64>,
    pub applied_ms_p50: Option<f64>,
    pub applied_ms_p99: Option<f64>,
    /// Of the samples, those that were not applied when it was looked.
    pub open: usize,
}

/// A record that was durable at a known time.
#[derive(Clone, Copy, Debug)]
struct Probe {
    lane: Lane,
    issuer: Issuer,
    offset: Offset,
    durable_at: Micros,
}

/// Where a subscription was when it last moved.
#[derive(Clone, Copy, Debug)]
struct Moved {
    cursors: [Offset; 2],
    /// By lane: when nothing is waiting in one, its cursor moves with the log.
    at: [Micros; 2],
}

/// As it was when it was last looked.
#[derive(Debug)]
pub struct Recent {
    pub last: Point,
    moved: BTreeMap<SubscriptionKey, Moved>,
}

impl Recent {
    /// When the applied cursor of a subscription was last seen to move, by lane.
    pub fn moved_at(&self, key: &SubscriptionKey) -> Option<[Micros; 2]> {
        self.moved.get(key).map(|moved| moved.at)
    }
}

#[derive(Debug)]
pub struct Sampler {
    log: Arc<dyn Log>,
    subscriptions: Arc<Subscriptions>,
    metrics: Arc<Metrics>,
    before: Option<(Micros, Totals)>,
    /// Of each partition, the newest record that was looked at.
    seen: BTreeMap<Partition, Offset>,
    probes: VecDeque<Probe>,
    /// By lane, oldest first: those that somebody did not have.
    late: [VecDeque<Probe>; 2],
    moved: BTreeMap<SubscriptionKey, Moved>,
    points: VecDeque<Point>,
}

impl Sampler {
    pub fn new(
        log: Arc<dyn Log>,
        subscriptions: Arc<Subscriptions>,
        metrics: Arc<Metrics>,
    ) -> Sampler {
        Sampler {
            log,
            subscriptions,
            metrics,
            before: None,
            seen: BTreeMap::new(),
            probes: VecDeque::new(),
            late: Default::default(),
            moved: BTreeMap::new(),
            points: VecDeque::new(),
        }
    }

    /// Takes one point. Reads memory alone.
    pub fn take(&mut self, now: Micros) {
        let subscriptions = self.subscriptions.list();
        self.note_moves(&subscriptions, now);
        let latency = self.latencies(&subscriptions, now);
        self.note_records();
        let totals = self.metrics.totals();
        if let Some((at, before)) = self.before.replace((now, totals)) {
            let mut point = rates(&before, &totals, now.seconds_since(at));
            point.at_us = now.0;
            point.latency = latency;
            if self.points.len() == POINTS_MAX {
                self.points.pop_front();
            }
            self.points.push_back(point);
        }
    }

    /// What a picture needs of it: nobody may hold the sampler while a picture reads the log.
    pub fn recent(&self) -> Recent {
        Recent {
            last: self.points.back().cloned().unwrap_or_default(),
            moved: self.moved.clone(),
        }
    }

    /// Oldest first.
    pub fn points(&self) -> Vec<Point> {
        self.points.iter().cloned().collect()
    }

    fn note_moves(&mut self, subscriptions: &[Arc<Subscription>], now: Micros) {
        let mut moved = BTreeMap::new();
        for s in subscriptions {
            let cursors = Lane::DELIVERED.map(|lane| s.effective(lane));
            let before = self.moved.remove(&s.key);
            let at = [0, 1].map(|i| {
                let same = before.filter(|before| before.cursors[i] == cursors[i]);
                same.map_or(now, |same| same.at[i])
            });
            moved.insert(s.key.clone(), Moved { cursors, at });
        }
        // Those that were forgotten go with the old map.
        self.moved = moved;
    }

    /// Remembers the newest record of some partitions that got one.
    fn note_records(&mut self) {
        let mut taken = [0; 2];
        for info in self.log.partitions() {
            let lane = info.partition.lane;
            let seen = self.seen.insert(info.partition, info.last);
            // What was there before the first look is old.
            let new = self.before.is_some() && seen.is_none_or(|seen| seen < info.last);
            if lane != Lane::Control && new && taken[lane.index()] < PROBES_MAX {
                taken[lane.index()] += 1;
                self.probes.push_back(Probe {
                    lane,
                    issuer: info.partition.issuer,
                    offset: info.last,
                    durable_at: info.last_durable_at,
                });
            }
        }
    }

    fn latencies(
        &mut self,
        subscriptions: &[Arc<Subscription>],
        now: Micros,
    ) -> [Option<Latency>; 2] {
        let mut lanes = [Samples::default(), Samples::default()];
        for lane in Lane::DELIVERED {
            self.late[lane.index()].retain(|probe| {
                let has_not = |s: &Subscription| s.effective(lane) <= probe.offset;
                subscriptions
                    .iter()
                    .any(|s| concerns(probe, s) && has_not(s))
            });
        }
        let mut asked = [false; 2];
        while let Some(probe) = self.probes.front().copied() {
            if now.0 < probe.durable_at.0 + PROBE_AGE_US {
                break;
            }
            self.probes.pop_front();
            let late = &mut self.late[probe.lane.index()];
            let samples = &mut lanes[probe.lane.index()];
            asked[probe.lane.index()] = true;
            let open = samples.open;
            for s in subscriptions.iter().filter(|s| concerns(&probe, s)) {
                samples.add(&probe, s, late, now);
            }
            if samples.open > open {
                remember(late, probe);
            }
        }
        for lane in Lane::DELIVERED {
            if !asked[lane.index()] {
                self.still_late(lane, subscriptions, now, &mut lanes[lane.index()]);
            }
        }
        lanes.map(Samples::finish)
    }

    /// Nothing new went through, which says nothing of what did before. As long as one is behind, those that have all
    /// of it count too, or what is shown would be of the late ones alone.
    fn still_late(
        &self,
        lane: Lane,
        subscriptions: &[Arc<Subscription>],
        now: Micros,
        samples: &mut Samples,
    ) {
        let late = &self.late[lane.index()];
        if late.is_empty() {
            return;
        }
        for s in subscriptions.iter().filter(|s| takes(lane, s)) {
            match oldest(late, s, Subscription::effective) {
                Some(probe) => samples.add(&probe, s, late, now),
                None => samples.settled += 1,
            }
        }
    }
}

/// The oldest of these that a subscription has not reached, by what it was sent or by what it applied.
fn oldest(
    late: &VecDeque<Probe>,
    s: &Subscription,
    reached: impl Fn(&Subscription, Lane) -> Offset,
) -> Option<Probe> {
    let has_not = |p: &&Probe| concerns(p, s) && reached(s, p.lane) <= p.offset;
    late.iter().find(has_not).copied()
}

/// With no room left every second one goes, and not the oldest or the newest.
fn remember(late: &mut VecDeque<Probe>, probe: Probe) {
    if late.len() == LATE_MAX {
        let mut at = 0;
        late.retain(|_| {
            at += 1;
            at % 2 == 1
        });
    }
    late.push_back(probe);
}

/// Whether a subscription was to get this record, and is there to take it.
fn concerns(probe: &Probe, s: &Subscription) -> bool {
    takes(probe.lane, s)
        && s.filter().wants_issuer(probe.issuer)
        && !s.began_after(probe.lane, probe.offset)
}

fn takes(lane: Lane, s: &Subscription) -> bool {
    let filter = s.filter();
    // Which kinds are in a record is not known here.
    s.connected() && filter.wants_lane(lane) && filter.kinds == KindSet::ALL
}

#[derive(Default)]
struct Samples {
    sent_ms: Vec<f64>,
    applied_ms: Vec<f64>,
    open: usize,
    /// Subscriptions that have all of it, when nothing new went through: they took no time, and not none of it.
    settled: usize,
}

impl Samples {
    /// How long it took one subscription to have this; if it has not, how long it has been taking, with what it
    /// has not of `late`.
    fn add(&mut self, probe: &Probe, s: &Subscription, late: &VecDeque<Probe>, now: Micros) {
        let waiting = |reached: fn(&Subscription, Lane) -> Offset| {
            let oldest = oldest(late, s, reached).unwrap_or(*probe);
            now.seconds_since(oldest.durable_at)
        };
        let took = |at: Micros| at.seconds_since(probe.durable_at);
        let sent = s.sent_history.when(probe.lane, probe.offset);
        let applied = s.applied_history.when(probe.lane, probe.offset);
        let sent_s = sent.map_or_else(|| waiting(Subscription::position), took);
        let applied_s = applied.map_or_else(|| waiting(Subscription::effective), took);
        self.sent_ms.push(sent_s * 1e3);
        self.applied_ms.push(applied_s * 1e3);
        self.open += usize::from(applied.is_none());
    }

    fn finish(mut self) -> Option<Latency> {
        if self.sent_ms.is_empty() {
            return None;
        }
        self.sent_ms.sort_by(f64::total_cmp);
        self.applied_ms.sort_by(f64::total_cmp);
        let of = |sorted: &[f64], share| quantile(self.settled, sorted, share);
        Some(Latency {
            samples: self.settled + self.sent_ms.len(),
            sent_ms_p50: of(&self.sent_ms, 0.5),
            sent_ms_p99: of(&self.sent_ms, 0.99),
            applied_ms_p50: of(&self.applied_ms, 0.5),
            applied_ms_p99: of(&self.applied_ms, 0.99),
            open: self.open,
        })
    }
}

/// The smallest value that this share of them does not exceed. Those that are settled have none, and stand before all
/// that have one.
fn quantile(settled: usize, sorted: &[f64], share: f64) -> Option<f64> {
    let all = settled + sorted.len();
    let rank = (all as f64 * share).ceil() as usize;
    let index = rank.clamp(1, all).checked_sub(settled + 1)?;
    Some(sorted[index])
}

fn rates(before: &Totals, now: &Totals, seconds: f64) -> Point {
    let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds.max(1e-3);
    Point {
        accepted: [0, 1].map(|i| rate(before.accepted[i], now.accepted[i])),
        refused: rate(before.refused, now.refused),
        delivered: rate(before.records_delivered, now.records_delivered),
        delivered_bytes: rate(before.delivered_bytes, now.delivered_bytes),
        log_bytes: rate(before.log_bytes, now.log_bytes),
        ..Point::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        fanout::registry::{Attached, Begin},
        filter::FilterSpec,
        log::{Append, faults::Faults, memory::MemoryLog},
        state::{State, StateOptions},
    };
    use hutong_proto::{Cursor, LogId, Shard};
    use std::sync::atomic::{AtomicU64, Ordering};

    const LOG: LogId = LogId(7);

    /// Three subscriptions of one platform to what another one publishes, and a clock.
    struct Scene {
        clock: Arc<AtomicU64>,
        log: Arc<MemoryLog>,
        sampler: Sampler,
        attached: Vec<Attached>,
        _dir: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Scene {
            let [from, to] = [340_000, 510_000].map(|code| Issuer::new(code).expect("a code"));
            let platforms = [(from, 1), (to, 1)];
            let time = Arc::new(AtomicU64::new(1));
            let clock: Clock = {
                let time = Arc::clone(&time);
                Arc::new(move || Micros(time.load(Ordering::Relaxed)))
            };
            let log = Arc::new(MemoryLog::new(LOG, clock, Faults::default()));
            let dir = tempfile::tempdir().expect("a folder");
            let state = State::open(dir.path(), StateOptions::default()).expect("opens");
            let subscriptions = Subscriptions::load(&state, LOG, &platforms).expect("loads");
            let attached = ["a", "b", "c"].map(|name| {
                let filter = FilterSpec::from_api(None, to, &platforms).expect("everything");
                let attached = subscriptions.attach((to, name.to_owned()), filter, true);
                let attached = attached.expect("allowed");
                let start = Cursor::both(LOG, Offset::FIRST);
                let begun = attached.lease.begin(start, Begin::AtCursor, Micros(1));
                begun.expect("held");
                attached
            });
            let metrics = Arc::new(Metrics::new([from, to]));
            let sampler = Sampler::new(log.clone(), Arc::new(subscriptions), metrics);
            Scene {
                clock: time,
                log,
                sampler,
                attached: attached.into(),
                _dir: dir,
            }
        }

        fn now(&self) -> Micros {
            Micros(self.clock.load(Ordering::Relaxed))
        }

        /// A second with one bulk record, after which those but `behind` have it.
        fn second(&mut self, behind: usize) -> Option<Latency> {
            self.clock.fetch_add(1_000_000, Ordering::Relaxed);
            self.log.append(Append {
                partition: Partition {
                    issuer: Issuer::new(340_000).expect("a code"),
                    lane: Lane::Bulk,
                    shard: Shard(0),
                },
                kinds: KindSet::ALL,
                deltas: 1,
                record: vec![1].into(),
                done: Box::new(drop),
            });
            self.take(behind)
        }

        fn take(&mut self, behind: usize) -> Option<Latency> {
            let below = self.log.next_offset();
            for attached in self.attached.iter().skip(behind) {
                for lane in Lane::DELIVERED {
                    let moved = attached.lease.handled(lane, below, None, self.now());
                    moved.expect("held");
                }
                let at = Cursor::both(LOG, below);
                let applied = attached.lease.acknowledge(at, self.now());
                applied.expect("as far as was sent");
            }
            self.sampler.take(self.now());
            self.sampler.points().last()?.latency[Lane::Bulk.index()]
        }
    }

    #[test]
    fn a_long_queue_counts_with_its_whole_age() {
        let mut scene = Scene::new();
        for _ in 0..5 {
            scene.second(0);
        }
        let mut last = None;
        for _ in 0..40 {
            last = scene.second(1);
        }
        let latency = last.expect("records went through");
        assert!(
            (Some(37_000.0)..=Some(41_000.0)).contains(&latency.applied_ms_p99),
            "one has nothing of 40 s: {latency:?}"
        );
        assert_eq!(latency.applied_ms_p50, Some(0.0), "two have it at once");
        // Nothing more is published, and it still stands.
        for _ in 0..5 {
            scene.clock.fetch_add(1_000_000, Ordering::Relaxed);
            last = scene.take(1);
        }
        let latency = last.expect("somebody is behind");
        assert!(latency.applied_ms_p99 >= Some(42_000.0), "{latency:?}");
        assert_eq!(
            (latency.applied_ms_p50, latency.sent_ms_p50),
            (None, None),
            "two have all of it, and nothing went through"
        );
        assert_eq!((latency.samples, latency.open), (3, 1));
        // It gets all of it: what is new counts alone.
        for _ in 0..4 {
            last = scene.second(0);
        }
        let latency = last.expect("records went through");
        let p99 = latency.applied_ms_p99.expect("records went through");
        assert!(p99 < 3_000.0, "{latency:?}");
        assert_eq!(latency.open, 0);
    }

    #[test]
    fn what_is_remembered_for_who_is_late_is_bounded_and_keeps_the_oldest() {
        let mut late = VecDeque::new();
        for n in 1..=10_000u64 {
            let probe = Probe {
                lane: Lane::Bulk,
                issuer: Issuer::new(340_000).expect("a code"),
                offset: Offset(n),
                durable_at: Micros(n),
            };
            remember(&mut late, probe);
            assert!(late.len() <= LATE_MAX);
        }
        assert_eq!(late.front().map(|p| p.offset), Some(Offset(1)));
        assert_eq!(late.back().map(|p| p.offset), Some(Offset(10_000)));
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(quantile(0, &values, 0.5), Some(100.0));
        assert_eq!(quantile(0, &values, 0.99), Some(198.0));
        assert_eq!(quantile(0, &[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(2, &[7.0], 0.5), None);
        assert_eq!(quantile(2, &[7.0], 0.99), Some(7.0));
    }

    #[test]
    fn rates_are_what_was_added_in_the_time_between() {
        let before = Totals::default();
        let now = Totals {
            accepted: [10, 100],
            refused: 4,
            records_delivered: 6,
            delivered_bytes: 2048,
            log_bytes: 512,
        };
        let point = rates(&before, &now, 2.0);
        assert_eq!(point.accepted, [5.0, 50.0]);
        assert_eq!((point.refused, point.delivered), (2.0, 3.0));
        assert_eq!((point.delivered_bytes, point.log_bytes), (1024.0, 256.0));
    }
}
