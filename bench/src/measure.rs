//! What one run of a scenario saw, and how it is watched while it goes: latency by second and lane,
//! and what both processes take, sampled once a second.

use crate::{
    broker::{BrokerProcess, Usage, usage_of},
    plot::{Plot, Series, latency, sampled},
    waited::Busy,
};
use hdrhistogram::Histogram;
use hutong_proto::{EntityId, Lane, Revision};
use serde_json::{Map, Value, json};
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::task::AbortOnDropHandle;

/// Ten minutes in microseconds: more than any latency here.
const LATENCY_MAX_US: u64 = 600_000_000;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Latencies in microseconds, three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are valid")
}

/// For one second of a plot, two digits do.
fn coarse() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 2).expect("the bounds are valid")
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A histogram is whole after every call, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Latencies of one kind: all of them, and second by second of when they were due.
#[derive(Debug)]
pub struct Latencies {
    all: Histogram<u64>,
    seconds: Vec<Histogram<u64>>,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies {
            all: histogram(),
            seconds: Vec::new(),
        }
    }
}

impl Latencies {
    pub fn record(&mut self, second: usize, micros: u64, count: u64) {
        self.all.saturating_record_n(micros.max(1), count);
        if self.seconds.len() <= second {
            self.seconds.resize_with(second + 1, coarse);
        }
        self.seconds[second].saturating_record_n(micros.max(1), count);
    }

    pub fn add(&mut self, other: &Latencies) {
        // All have the same bounds, so none can be out of another's.
        self.all += &other.all;
        if self.seconds.len() < other.seconds.len() {
            self.seconds.resize_with(other.seconds.len(), coarse);
        }
        for (own, other) in self.seconds.iter_mut().zip(&other.seconds) {
            *own += other;
        }
    }

    /// In no second of a plot: nobody knows when they were due, or nobody draws them.
    pub fn record_undrawn(&mut self, micros: u64, count: u64) {
        self.all.saturating_record_n(micros.max(1), count);
    }

    /// Nothing when there were none.
    pub fn ms(&self, quantile: f64) -> Option<f64> {
        (!self.all.is_empty()).then(|| ms(&self.all, quantile))
    }

    pub fn p99_ms(&self) -> f64 {
        ms(&self.all, 0.99)
    }

    /// Seconds in which there were some, and milliseconds.
    pub fn by_second(&self, quantile: f64) -> Vec<(f64, f64)> {
        let seconds = self.seconds.iter().enumerate();
        let some = seconds.filter(|(_, second)| !second.is_empty());
        some.map(|(at, second)| (at as f64, ms(second, quantile)))
            .collect()
    }

    pub fn count(&self) -> u64 {
        self.all.len()
    }
}

fn ms(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1000.0
}

/// When the last receiver has a batch. A batch is known by its first delta, which waited longest.
#[derive(Debug, Default)]
pub struct Everywhere {
    /// Of batches that not everybody has yet.
    open: Mutex<HashMap<u64, Open>>,
    lanes: [Mutex<Latencies>; 2],
}

#[derive(Clone, Copy, Debug)]
struct Open {
    lane: Lane,
    due_us: u64,
    deltas: u64,
    left: usize,
    worst_us: u64,
}

/// What a batch's first delta is known by: entity and revision together are nobody else's.
pub fn key_of(entity: &EntityId, revision: Revision) -> u64 {
    let mut half = [0; 8];
    half.copy_from_slice(&entity.0[..8]);
    u64::from_be_bytes(half) ^ revision.0.rotate_left(20)
}

impl Everywhere {
    /// Before it is on its way: `receivers` must get it.
    pub fn sent(&self, key: u64, lane: Lane, due_us: u64, deltas: u64, receivers: usize) {
        if receivers > 0 {
            let open = Open {
                lane,
                due_us,
                deltas,
                left: receivers,
                worst_us: 0,
            };
            lock(&self.open).insert(key, open);
        }
    }

    /// One more has it. The second is counted from `begin_us`.
    pub fn came(&self, key: u64, now_us: u64, begin_us: u64) {
        let mut open = lock(&self.open);
        let Some(one) = open.get_mut(&key) else {
            return;
        };
        one.left -= 1;
        one.worst_us = one.worst_us.max(now_us.saturating_sub(one.due_us));
        if one.left == 0 {
            let one = *one;
            open.remove(&key);
            drop(open);
            self.record(one, begin_us);
        }
    }

    /// What has not come everywhere by now counts with the time that it has taken so far, at least.
    pub fn give_up(&self, now_us: u64, begin_us: u64) {
        let left: Vec<Open> = lock(&self.open).drain().map(|(_, one)| one).collect();
        for mut one in left {
            one.worst_us = one.worst_us.max(now_us.saturating_sub(one.due_us));
            self.record(one, begin_us);
        }
    }

    fn record(&self, one: Open, begin_us: u64) {
        let Some(after) = one.due_us.checked_sub(begin_us) else {
            return;
        };
        let second = (after / 1_000_000) as usize;
        let mut latencies = lock(&self.lanes[place(one.lane)]);
        latencies.record(second, one.worst_us, one.deltas);
    }

    pub fn take(&self, lane: Lane) -> Latencies {
        std::mem::take(&mut *lock(&self.lanes[place(lane)]))
    }
}

/// Of a lane, in pairs of urgent and bulk.
pub fn place(lane: Lane) -> usize {
    match lane {
        Lane::Urgent => 0,
        Lane::Bulk | Lane::Control => 1,
    }
}

/// A stretch of time whose deltas are measured, by when they were due at their source.
#[derive(Debug)]
pub struct Phase {
    pub begin: Instant,
    begin_us: u64,
    /// Not known before the phase has ended.
    end_us: AtomicU64,
    lanes: [Mutex<Latencies>; 2],
    pub everywhere: Everywhere,
    pub delivered: AtomicU64,
}

impl Phase {
    /// One that begins after `wait`.
    pub fn after(wait: Duration) -> Phase {
        Phase {
            begin: Instant::now() + wait,
            begin_us: crate::load::now().0 + wait.as_micros() as u64,
            end_us: AtomicU64::new(u64::MAX),
            lanes: Default::default(),
            everywhere: Everywhere::default(),
            delivered: AtomicU64::new(0),
        }
    }

    /// What has not come everywhere by now does not come any more.
    pub fn give_up(&self) {
        self.everywhere.give_up(crate::load::now().0, self.begin_us);
    }

    pub fn end(&self) {
        self.end_us.store(crate::load::now().0, Ordering::Release);
    }

    pub fn has(&self, due_us: u64) -> bool {
        due_us >= self.begin_us && due_us < self.end_us.load(Ordering::Acquire)
    }

    /// `deltas` that were due at `due_us` have come to a receiver.
    pub fn came(&self, key: u64, lane: Lane, due_us: u64, now_us: u64, deltas: u64) {
        self.delivered.fetch_add(deltas, Ordering::AcqRel);
        self.everywhere.came(key, now_us, self.begin_us);
        let second = due_us.saturating_sub(self.begin_us) / 1_000_000;
        let micros = now_us.saturating_sub(due_us);
        lock(&self.lanes[place(lane)]).record(second as usize, micros, deltas);
    }

    pub fn take(&self, lane: Lane) -> Latencies {
        std::mem::take(&mut *lock(&self.lanes[place(lane)]))
    }

    /// Of each kind that a reader asks for: a delivery, and the last delivery of a delta.
    pub fn latencies(&self) -> Vec<(&'static str, Latencies)> {
        vec![
            ("urgent", self.take(Lane::Urgent)),
            ("bulk", self.take(Lane::Bulk)),
            ("urgent_everywhere", self.everywhere.take(Lane::Urgent)),
            ("bulk_everywhere", self.everywhere.take(Lane::Bulk)),
        ]
    }
}

/// Counts that a sampler reads while a run goes on.
#[derive(Debug, Default)]
pub struct Counters {
    pub acknowledged: AtomicU64,
    pub delivered: AtomicU64,
    /// Due at the sources, but not taken by the broker yet.
    pub waiting: AtomicU64,
    /// Acknowledged deltas that each subscriber does not have yet. Below zero for a moment when one has them before
    /// their source knows.
    behind: OnceLock<Vec<AtomicI64>>,
    /// Of the subscribers.
    pub receiving: Busy,
}

impl Counters {
    /// There are so many subscribers.
    pub fn subscribers(&self, count: usize) {
        self.behind
            .get_or_init(|| (0..count).map(|_| AtomicI64::new(0)).collect());
    }

    /// Acknowledged, for all subscribers but the one whose platform has issued them.
    pub fn owed(&self, deltas: u64, issued_by: Option<usize>) {
        for (i, behind) in self.behind.get().into_iter().flatten().enumerate() {
            if issued_by != Some(i) {
                behind.fetch_add(deltas as i64, Ordering::AcqRel);
            }
        }
    }

    pub fn got(&self, subscriber: usize, deltas: u64) {
        if let Some(behind) = self.behind.get().and_then(|all| all.get(subscriber)) {
            behind.fetch_sub(deltas as i64, Ordering::AcqRel);
        }
    }

    /// The most that one of them is behind, and the mean; nothing without subscribers.
    pub fn lag(&self) -> Option<(u64, f64)> {
        let all = self.behind.get().filter(|all| !all.is_empty())?;
        let now = all
            .iter()
            .map(|one| one.load(Ordering::Acquire).max(0) as u64);
        let (most, sum) = now.fold((0, 0), |(most, sum): (u64, u64), one| {
            (most.max(one), sum + one)
        });
        Some((most, sum as f64 / all.len() as f64))
    }
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at_s: f64,
    acknowledged: u64,
    delivered: u64,
    waiting: u64,
    /// The most, and the mean.
    lag: Option<(u64, f64)>,
    broker: Usage,
    load_cpu_s: f64,
}

type Look = dyn Fn() -> Sample + Send + Sync;

/// Samples once a second until it is dropped.
pub struct Sampler {
    samples: Arc<Mutex<Vec<Sample>>>,
    look: Arc<Look>,
    _task: AbortOnDropHandle<()>,
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sampler").finish_non_exhaustive()
    }
}

impl Sampler {
    pub fn start(broker: &BrokerProcess, counters: Arc<Counters>, begin: Instant) -> Sampler {
        let process = broker.process();
        Sampler::of(move || usage_of(&process), counters, begin)
    }

    /// Of whatever has this usage.
    pub fn of(
        usage: impl Fn() -> Usage + Send + Sync + 'static,
        counters: Arc<Counters>,
        begin: Instant,
    ) -> Sampler {
        let look: Arc<Look> = Arc::new(move || Sample {
            at_s: begin.elapsed().as_secs_f64(),
            acknowledged: counters.acknowledged.load(Ordering::Acquire),
            delivered: counters.delivered.load(Ordering::Acquire),
            waiting: counters.waiting.load(Ordering::Acquire),
            lag: counters.lag(),
            broker: usage(),
            load_cpu_s: usage_of("self").cpu_s,
        });
        let samples = Arc::<Mutex<Vec<Sample>>>::default();
        let (kept, looking) = (Arc::clone(&samples), Arc::clone(&look));
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval_at(begin.into(), SAMPLE_EVERY);
            loop {
                ticks.tick().await;
                lock(&kept).push(looking());
            }
        });
        Sampler {
            samples,
            look,
            _task: AbortOnDropHandle::new(task),
        }
    }

    pub fn series(&self) -> Series {
        let mut samples = lock(&self.samples).clone();
        let now = (self.look)();
        // A rate over less than that says nothing, but a run that is over before its second sample has one too.
        let since = samples.last().map_or(0.0, |last| now.at_s - last.at_s);
        if samples.len() < 2 || since > SAMPLE_EVERY.as_secs_f64() / 2.0 {
            samples.push(now);
        }
        let at = |f: &dyn Fn(&Sample) -> f64| samples.iter().map(|s| (s.at_s, f(s))).collect();
        let lag = |f: &dyn Fn((u64, f64)) -> f64| {
            let some = samples.iter().filter_map(|s| Some((s.at_s, f(s.lag?))));
            some.collect()
        };
        let per_second = |f: &dyn Fn(&Sample) -> f64| {
            let pairs = samples.windows(2);
            let rate = |w: &[Sample]| (f(&w[1]) - f(&w[0])) / (w[1].at_s - w[0].at_s).max(1e-3);
            pairs.map(|w| (w[1].at_s, rate(w))).collect()
        };
        vec![
            ("deltas_per_s", per_second(&|s| s.acknowledged as f64)),
            ("deliveries_per_s", per_second(&|s| s.delivered as f64)),
            ("waiting_at_sources", at(&|s| s.waiting as f64)),
            ("lag_most", lag(&|(most, _)| most as f64)),
            ("lag_mean", lag(&|(_, mean)| mean)),
            ("broker_memory_mb", at(&|s| s.broker.memory_mb)),
            ("broker_cores", per_second(&|s| s.broker.cpu_s)),
            ("load_cores", per_second(&|s| s.load_cpu_s)),
        ]
    }

    pub fn memory_peak_mb(&self) -> f64 {
        let samples = lock(&self.samples);
        samples
            .iter()
            .map(|s| s.broker.memory_mb)
            .fold(0.0, f64::max)
    }
}

/// What one run found.
#[derive(Debug, Default)]
pub struct Run {
    pub seconds: f64,
    pub published: u64,
    pub acknowledged: u64,
    pub delivered: u64,
    pub lost: u64,
    pub doubled: u64,
    /// Name and latencies: ack, urgent, bulk.
    pub latencies: Vec<(&'static str, Latencies)>,
    /// What both took in the measured time.
    pub broker: Usage,
    pub load: Usage,
    pub disk_mb: f64,
    /// What only this scenario has, by name.
    pub figures: Vec<(String, f64)>,
    pub series: Series,
    /// Which part of a scenario this is, in the titles of plots; empty when there is only one.
    pub part: String,
    /// Parts before this one, for plots.
    pub earlier: Vec<Run>,
}

impl Run {
    pub fn whole(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.acknowledged == self.published
    }

    pub fn lost(&self) -> u64 {
        self.lost
    }

    pub fn doubled(&self) -> u64 {
        self.doubled
    }

    pub fn figure(&mut self, name: impl Into<String>, value: f64) {
        self.figures.push((name.into(), value));
    }

    pub fn to_json(&self) -> Value {
        // Nothing, when there was none: not zero, which would be read as free.
        let per_million = |of: u64| (of > 0).then(|| self.broker.cpu_s / (of as f64 / 1e6));
        let per_s = |of: u64| (self.seconds > 0.0).then(|| of as f64 / self.seconds);
        let mut latency = Map::new();
        for (name, latencies) in &self.latencies {
            let at = |quantile: f64| latencies.ms(quantile);
            let value = json!({
                "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0),
                "count": latencies.count(),
            });
            latency.insert((*name).to_owned(), value);
        }
        let figures: Map<String, Value> = (self.figures.iter())
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        json!({
            "seconds": self.seconds,
            "published": self.published,
            "acknowledged": self.acknowledged,
            "delivered": self.delivered,
            "lost": self.lost,
            "doubled": self.doubled,
            "deltas_per_s": per_s(self.acknowledged),
            "deliveries_per_s": per_s(self.delivered),
            "latency_ms": latency,
            "broker": {
                "cpu_s": self.broker.cpu_s,
                "cpu_s_per_million": per_million(self.acknowledged),
                "cpu_s_per_million_deliveries": per_million(self.delivered),
                "memory_peak_mb": self.broker.memory_peak_mb,
                "memory_mb": self.broker.memory_mb,
                "disk_mb": self.disk_mb,
            },
            "load": { "cpu_s": self.load.cpu_s, "memory_peak_mb": self.load.memory_peak_mb },
            "figures": figures,
        })
    }

    pub fn plots(&self) -> Vec<Plot> {
        let mut plots: Vec<Plot> = self.earlier.iter().flat_map(Run::plots).collect();
        let latencies = self.latencies.iter();
        plots.extend(latencies.filter_map(|(name, latencies)| {
            latency(format!("Latency, {name}{}", self.part), latencies)
        }));
        plots.extend(sampled(&self.series, &self.part));
        plots
    }
}

/// CPU seconds between two looks, and memory at the second.
pub fn between(before: Usage, after: Usage) -> Usage {
    Usage {
        cpu_s: after.cpu_s - before.cpu_s,
        ..after
    }
}
