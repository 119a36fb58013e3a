//! What one run of a scenario saw, and how it is watched while it goes: latency by second and lane,
//! and what both processes take, sampled once a second.

use crate::broker::{BrokerProcess, Usage, usage_of};
use hdrhistogram::Histogram;
use hutong_proto::{EntityId, Lane, Revision};
use serde_json::{Map, Value, json};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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

    pub fn into_all(self) -> Histogram<u64> {
        self.all
    }

    pub fn p99_ms(&self) -> f64 {
        ms(&self.all, 0.99)
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
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at_s: f64,
    acknowledged: u64,
    delivered: u64,
    waiting: u64,
    broker: Usage,
    load_cpu_s: f64,
}

/// Samples once a second until it is dropped.
#[derive(Debug)]
pub struct Sampler {
    samples: Arc<Mutex<Vec<Sample>>>,
    _task: AbortOnDropHandle<()>,
}

impl Sampler {
    pub fn start(broker: &BrokerProcess, counters: Arc<Counters>, begin: Instant) -> Sampler {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let (process, kept) = (broker.process(), Arc::clone(&samples));
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval_at(begin.into(), SAMPLE_EVERY);
            loop {
                ticks.tick().await;
                let sample = Sample {
                    at_s: begin.elapsed().as_secs_f64(),
                    acknowledged: counters.acknowledged.load(Ordering::Acquire),
                    delivered: counters.delivered.load(Ordering::Acquire),
                    waiting: counters.waiting.load(Ordering::Acquire),
                    broker: usage_of(&process),
                    load_cpu_s: usage_of("self").cpu_s,
                };
                lock(&kept).push(sample);
            }
        });
        Sampler {
            samples,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Name and points (second, value).
    pub fn series(&self) -> Vec<(&'static str, Vec<(f64, f64)>)> {
        let samples = lock(&self.samples).clone();
        let at = |f: &dyn Fn(&Sample) -> f64| samples.iter().map(|s| (s.at_s, f(s))).collect();
        let per_second = |f: &dyn Fn(&Sample) -> f64| {
            let pairs = samples.windows(2);
            let rate = |w: &[Sample]| (f(&w[1]) - f(&w[0])) / (w[1].at_s - w[0].at_s).max(1e-3);
            pairs.map(|w| (w[1].at_s, rate(w))).collect()
        };
        vec![
            ("deltas_per_s", per_second(&|s| s.acknowledged as f64)),
            ("deliveries_per_s", per_second(&|s| s.delivered as f64)),
            ("waiting_at_sources", at(&|s| s.waiting as f64)),
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
    pub series: Vec<(&'static str, Vec<(f64, f64)>)>,
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
            let all = &latencies.all;
            let at = |quantile: f64| (!all.is_empty()).then(|| ms(all, quantile));
            let value = json!({
                "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0),
                "count": all.len(),
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

    /// What is drawn: name, unit and lines of points (second, value).
    pub fn plots(&self) -> Vec<Plot> {
        let mut plots = Vec::new();
        for (name, latencies) in &self.latencies {
            let line = |label: &str, quantile: f64| Line {
                label: label.to_owned(),
                points: (latencies.seconds.iter().enumerate())
                    .filter(|(_, second)| !second.is_empty())
                    .map(|(at, second)| (at as f64, ms(second, quantile)))
                    .collect(),
            };
            plots.push(Plot {
                title: format!("Latency, {name}"),
                unit: "ms",
                lines: vec![
                    line("p50", 0.5),
                    line("p99", 0.99),
                    line("p99.9", 0.999),
                    line("max", 1.0),
                ],
            });
        }
        let shown = [
            ("Deltas acknowledged", "a second", &["deltas_per_s"][..]),
            ("Deliveries", "a second", &["deliveries_per_s"]),
            ("Waiting at the sources", "deltas", &["waiting_at_sources"]),
            ("Processor", "cores", &["broker_cores", "load_cores"]),
            ("Memory of the broker", "MB", &["broker_memory_mb"]),
        ];
        for (title, unit, names) in shown {
            let lines: Vec<Line> = (names.iter())
                .filter_map(|name| self.series.iter().find(|(n, _)| n == name))
                .filter(|(_, points)| points.iter().any(|(_, value)| *value > 0.0))
                .map(|(name, points)| Line {
                    label: name.replace('_', " "),
                    points: points.clone(),
                })
                .collect();
            if !lines.is_empty() {
                plots.push(Plot {
                    title: title.to_owned(),
                    unit,
                    lines,
                });
            }
        }
        plots
    }
}

#[derive(Clone, Debug)]
pub struct Plot {
    pub title: String,
    pub unit: &'static str,
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug)]
pub struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

/// CPU seconds between two looks, and memory at the second.
pub fn between(before: Usage, after: Usage) -> Usage {
    Usage {
        cpu_s: after.cpu_s - before.cpu_s,
        ..after
    }
}
