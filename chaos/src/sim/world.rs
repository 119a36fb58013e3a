//! What everything in a simulation shares: time, the trace, what was found, and what is broken just now.

use crate::{random::Random, sim::judge::Judge};
use hutong_planted_broker::clock::Clock;
use hutong_proto::Micros;
use parking_lot::Mutex;
use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};
use tokio::{sync::Notify, time::Instant};

/// When a simulation begins: 2022-11-01 in UTC. Long before the clock on the wall, so that whoever asks
/// that one is noticed.
pub const EPOCH_US: u64 = 1_667_260_800_000_000;

/// A promise of the design that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// What happened, line by line.
#[derive(Debug)]
struct Trace {
    /// FNV-1a over all lines.
    hash: u64,
    lines: u64,
    text: Option<String>,
}

/// Faults that are on.
#[derive(Debug, Default)]
struct Weather {
    /// The longest that a write and its sync take.
    sync_ms_max: AtomicU64,
    /// One sync in so many fails; 0 for none.
    sync_fails_one_in: AtomicU64,
    skew_us: AtomicI64,
    /// The lowest and the highest that it ever was.
    skew_us_min: AtomicI64,
    skew_us_max: AtomicI64,
    healed: AtomicBool,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    trace: Mutex<Trace>,
    found: Mutex<Option<Violation>>,
    judge: Mutex<Judge>,
    /// Its own, since the log's clock has it, and the judge has the log.
    weather: Arc<Weather>,
    broker_failed: Notify,
}

/// A handle; clones are the same world.
#[derive(Clone, Debug)]
pub struct World(Arc<Shared>);

impl World {
    pub fn new(judge: Judge, keep_text: bool) -> World {
        World(Arc::new(Shared {
            started: Instant::now(),
            trace: Mutex::new(Trace {
                hash: 0xcbf2_9ce4_8422_2325,
                lines: 0,
                text: keep_text.then(String::new),
            }),
            found: Mutex::new(None),
            judge: Mutex::new(judge),
            weather: Arc::default(),
            broker_failed: Notify::new(),
        }))
    }

    pub fn elapsed_ms(&self) -> u64 {
        self.0.started.elapsed().as_millis() as u64
    }

    /// Adds a line to the trace.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        let at = self.elapsed_ms();
        let mut trace = self.0.trace.lock();
        let line = format!("{at:>7} {}\n", line());
        trace.hash = fnv(trace.hash, line.as_bytes());
        trace.lines += 1;
        if let Some(text) = &mut trace.text {
            text.push_str(&line);
        }
    }

    pub fn trace_hash(&self) -> (u64, u64) {
        let trace = self.0.trace.lock();
        (trace.hash, trace.lines)
    }

    pub fn take_text(&self) -> Option<String> {
        self.0.trace.lock().text.take()
    }

    /// The first one counts.
    pub fn violated(&self, invariant: &'static str, what: impl Into<String>) {
        let mut found = self.0.found.lock();
        if found.is_none() {
            let violation = Violation {
                invariant,
                what: what.into(),
            };
            self.trace(|| format!("VIOLATION {violation}"));
            *found = Some(violation);
        }
    }

    pub fn found(&self) -> Option<Violation> {
        self.0.found.lock().clone()
    }

    pub fn judge<T>(&self, ask: impl FnOnce(&mut Judge) -> Result<T, Violation>) -> Option<T> {
        match ask(&mut self.0.judge.lock()) {
            Ok(answer) => Some(answer),
            Err(Violation { invariant, what }) => {
                self.violated(invariant, what);
                None
            }
        }
    }

    /// The clock of the broker, with its skew.
    pub fn broker_clock(&self) -> Clock {
        let (weather, started) = (Arc::clone(&self.0.weather), self.0.started);
        Arc::new(move || {
            let skew = weather.skew_us.load(Ordering::Relaxed);
            let now = EPOCH_US + started.elapsed().as_micros() as u64;
            Micros(now.saturating_add_signed(skew))
        })
    }

    pub fn skew(&self, seconds: i64) {
        let (us, weather) = (seconds * 1_000_000, &self.0.weather);
        weather.skew_us.store(us, Ordering::Relaxed);
        weather.skew_us_min.fetch_min(us, Ordering::Relaxed);
        weather.skew_us_max.fetch_max(us, Ordering::Relaxed);
    }

    /// Between what the broker's clock was at every moment since then.
    pub fn broker_clock_since(&self, elapsed_us: u64) -> (Micros, Micros) {
        let weather = &self.0.weather;
        let (low, high) = (&weather.skew_us_min, &weather.skew_us_max);
        let at = |elapsed: u64, skew: &AtomicI64| {
            Micros((EPOCH_US + elapsed).saturating_add_signed(skew.load(Ordering::Relaxed)))
        };
        (at(elapsed_us, low), at(self.elapsed_us(), high))
    }

    pub fn elapsed_us(&self) -> u64 {
        self.0.started.elapsed().as_micros() as u64
    }

    pub fn disk_weather(&self, sync_ms_max: u64, fails_one_in: u64) {
        let weather = &self.0.weather;
        weather.sync_ms_max.store(sync_ms_max, Ordering::Relaxed);
        weather
            .sync_fails_one_in
            .store(fails_one_in, Ordering::Relaxed);
    }

    pub fn sync_ms(&self, random: &mut Random) -> u64 {
        let max = self.0.weather.sync_ms_max.load(Ordering::Relaxed);
        random.between(0, max)
    }

    pub fn sync_fails(&self, random: &mut Random) -> bool {
        match self.0.weather.sync_fails_one_in.load(Ordering::Relaxed) {
            0 => false,
            n => random.one_in(n),
        }
    }

    /// The broker must stop: its log is poisoned.
    pub fn broker_failed(&self) {
        self.0.broker_failed.notify_one();
    }

    pub async fn until_broker_failed(&self) {
        self.0.broker_failed.notified().await;
    }

    /// From now on nothing breaks any more.
    pub fn heal(&self) {
        self.0.weather.healed.store(true, Ordering::Relaxed);
    }

    pub fn healed(&self) -> bool {
        self.0.weather.healed.load(Ordering::Relaxed)
    }
}

pub fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Bytes in a line of the trace.
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::new();
    // Writing into a text cannot fail.
    write!(
        text,
        "{}b {:016x}",
        bytes.len(),
        fnv(0xcbf2_9ce4_8422_2325, bytes)
    )
    .ok();
    text
}
