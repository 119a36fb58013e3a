//! What the broker counts and measures.
//!
//! Hot paths add to relaxed atomics of their platform's own cache lines; observable instruments read
//! them when someone scrapes. Histograms are recorded once a commit, a group or a batch, never once a
//! delta. What others know (lags, queues, databases) is asked of an [`Observe`] once a scrape.

mod export;
pub mod faults;
pub mod pairs;
mod process;
mod sampled;
mod skew;
pub mod spans;
mod totals;

use crate::overload::GiveWay;
use faults::Fault;
use hutong_proto::{Issuer, Lane, Micros, Offset, Reason, delta::Colour};
pub use hutong_telemetry::catalogue::Broker as Name;
use hutong_telemetry::{Allowance, Exporter, Traces, catalogue};
use opentelemetry::metrics::{BoundHistogram, Histogram};
use sampled::Chosen;
use skew::Skew;
use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
pub use totals::Totals;

/// Spans of what was slow or refused, of each platform in a second: so many of its batches, and of its deliveries.
/// Those of 64 platforms together still have room in the queue of spans between two pushes.
const KEPT_PER_SECOND: u16 = 2;

/// What a scrape asks the rest of the broker. May read from disk, must not wait for anyone.
pub trait Observe: Send + Sync {
    /// One sample a subscription and lane with `issuer: None`, and one for each issuer it receives in a lane.
    fn lags(&self) -> Vec<LagSample>;
    fn gauges(&self) -> Gauges;
}

/// What a subscription has not applied.
#[derive(Clone, Debug)]
pub struct LagSample {
    /// The receiver.
    pub platform: Issuer,
    pub subscription: String,
    /// Of this issuer alone; `None` over all of them.
    pub issuer: Option<Issuer>,
    pub lane: Lane,
    pub records: u64,
    /// Age of the oldest record not applied; 0 when there is none.
    pub seconds: f64,
    /// When that record became durable.
    pub oldest_at: Option<Micros>,
    /// Where it is.
    pub oldest: Option<Offset>,
}

/// Figures as they are now. Arrays are by lane: [`Lane::index`].
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// The broker's clock.
    pub now: Micros,
    pub next_offset: Offset,
    /// Everything below is applied.
    pub applied: Offset,
    /// Everything below is in the state on disk.
    pub stored: Offset,
    pub log_bytes: u64,
    pub log_poisoned: bool,
    /// Of the group commit under way.
    pub commit_running: Duration,
    /// So far, by a state that has little room.
    pub bulk_held: Duration,
    /// When each platform's newest record became durable; those without one are left out.
    pub last_records: Vec<(Issuer, Micros)>,
    pub disk: Option<Disk>,
    /// By file name, when each expires; zero for one that cannot be read.
    pub certificates: Vec<(String, Micros)>,
    pub queue_bytes: [usize; 2],
    pub tail_bytes: [usize; 2],
    pub gather_bytes: usize,
    pub state_merges: u64,
    pub snapshots_running: usize,
    pub scheduling_delay: Duration,
    /// In bytes a second, of what is slowed down.
    pub overload_limits: Vec<(GiveWay, Option<f64>)>,
    /// Open streams; platforms that are left out have none.
    pub producers_connected: Vec<(Issuer, usize)>,
    pub subscribers_connected: Vec<(Issuer, usize)>,
    pub stores: Vec<StoreGauges>,
}

/// The file system of the data folder, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// What the broker may still use.
    pub free: u64,
    pub size: u64,
}

/// Levels of a database: RocksDB has no more.
pub const LEVELS: usize = 7;

/// A database, as it describes itself.
#[derive(Clone, Debug, Default)]
pub struct StoreGauges {
    /// Such as `log` or `state`.
    pub name: &'static str,
    /// It takes no writes because compaction is behind.
    pub writes_stopped: bool,
    /// It slows writes down to this; 0 when it does not.
    pub write_rate_limit_bytes_per_second: u64,
    /// How long it has slowed down or stopped writers so far. What comes and goes between two looks is in this alone.
    pub stalled: Duration,
    pub pending_compaction_bytes: u64,
    pub running_compactions: u64,
    pub running_flushes: u64,
    pub level_files: [u64; LEVELS],
    pub background_errors: u64,
    pub memory_tables_bytes: u64,
    pub block_cache_bytes: u64,
    /// Indexes and filters outside the block cache.
    pub table_readers_bytes: u64,
    pub disk_bytes: u64,
}

/// A stretch of a record's way. All but the last one lie behind each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// From the commit at the source, by its clock, to the arrival of the batch.
    SourceToBroker,
    /// From there until it is synced.
    BrokerToDurable,
    /// Until it is applied to the state, and visible.
    DurableToApplied,
    /// Until it is on its way to a subscriber.
    AppliedToSent,
    /// Until the platform says that it has applied it.
    SentToPlatform,
    /// The whole way.
    SourceToPlatform,
}

impl Hop {
    pub const ALL: [Hop; 6] = [
        Hop::SourceToBroker,
        Hop::BrokerToDurable,
        Hop::DurableToApplied,
        Hop::AppliedToSent,
        Hop::SentToPlatform,
        Hop::SourceToPlatform,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Hop::SourceToBroker => "source_to_broker",
            Hop::BrokerToDurable => "broker_to_durable",
            Hop::DurableToApplied => "durable_to_applied",
            Hop::AppliedToSent => "applied_to_sent",
            Hop::SentToPlatform => "sent_to_platform",
            Hop::SourceToPlatform => "source_to_platform",
        }
    }
}

/// How what a platform says contradicts what the broker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// It claims to have what was never sent to it.
    CursorAhead,
    /// It lost what it had acknowledged: its data were restored from a backup, say.
    CursorBack,
    /// Its data come from another log.
    AnotherLog,
}

impl Conflict {
    pub const ALL: [Conflict; 3] = [
        Conflict::CursorAhead,
        Conflict::CursorBack,
        Conflict::AnotherLog,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Conflict::CursorAhead => "cursor_ahead",
            Conflict::CursorBack => "cursor_back",
            Conflict::AnotherLog => "another_log",
        }
    }
}

/// Which way credit was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToProducers,
    FromSubscribers,
}

impl Direction {
    pub const ALL: [Direction; 2] = [Direction::ToProducers, Direction::FromSubscribers];

    pub fn name(self) -> &'static str {
        match self {
            Direction::ToProducers => "to_producers",
            Direction::FromSubscribers => "from_subscribers",
        }
    }
}

/// Health codes in a group of records of one issuer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Colours {
    /// By colour, in the order of [`Colour::ALL`].
    pub applied: [u64; Colour::ALL.len()],
    pub flip_flops: u64,
}

impl Colours {
    pub fn add(&mut self, more: &Colours) {
        for (sum, count) in self.applied.iter_mut().zip(more.applied) {
            *sum += count;
        }
        self.flip_flops += more.flip_flops;
    }
}

/// The counters of one platform. Aligned so that platforms do not share a cache line.
#[derive(Debug)]
#[repr(align(128))]
struct PlatformCounters {
    issuer: Option<Issuer>,
    accepted: [AtomicU64; 2],
    batches: AtomicU64,
    batch_bytes: AtomicU64,
    batches_duplicate: AtomicU64,
    records_delivered: AtomicU64,
    delivered_bytes: AtomicU64,
    fell_behind: AtomicU64,
    credit_exhausted: AtomicU64,
    snapshot_rows: AtomicU64,
    colours: [AtomicU64; Colour::ALL.len()],
    flip_flops: AtomicU64,
    /// By [`Direction`].
    credit: [AtomicU64; 2],
    /// By [`Conflict`].
    conflicts: [AtomicU64; 3],
    skew: Skew,
    /// The last one, by [`faults::Side`].
    faults: [parking_lot::Mutex<Option<Fault>>; 2],
    batches_kept: Allowance,
    deliveries_kept: Allowance,
    /// Of deltas that were sampled at their source: of those that came, and of those that go to the platform.
    sampled_chosen: Allowance,
    deliveries_chosen: Allowance,
    spans_left_out: AtomicU64,
    /// By position in [`Reason::ALL`].
    refused: Box<[AtomicU64]>,
}

impl PlatformCounters {
    /// One of so many platforms.
    fn new(issuer: Option<Issuer>, platforms: usize) -> PlatformCounters {
        PlatformCounters {
            issuer,
            accepted: Default::default(),
            batches: AtomicU64::default(),
            batch_bytes: AtomicU64::default(),
            batches_duplicate: AtomicU64::default(),
            records_delivered: AtomicU64::default(),
            delivered_bytes: AtomicU64::default(),
            fell_behind: AtomicU64::default(),
            credit_exhausted: AtomicU64::default(),
            snapshot_rows: AtomicU64::default(),
            colours: Default::default(),
            flip_flops: AtomicU64::default(),
            credit: Default::default(),
            conflicts: Default::default(),
            skew: Skew::default(),
            faults: Default::default(),
            batches_kept: Allowance::new(KEPT_PER_SECOND),
            deliveries_kept: Allowance::new(KEPT_PER_SECOND),
            sampled_chosen: Allowance::new(sampled::chosen_per_second(platforms)),
            deliveries_chosen: Allowance::new(sampled::deliveries_per_second(platforms)),
            spans_left_out: AtomicU64::default(),
            refused: Reason::ALL.iter().map(|_| AtomicU64::default()).collect(),
        }
    }

    fn label(&self) -> String {
        match self.issuer {
            Some(issuer) => issuer.to_string(),
            None => "none".to_owned(),
        }
    }
}

/// The counters, and what the last scrape asked for. Read by the instruments.
#[derive(Debug)]
struct Counters {
    /// By code, then one for whoever is not configured.
    platforms: Vec<PlatformCounters>,
    log_records: AtomicU64,
    log_bytes: AtomicU64,
    commit_failures: AtomicU64,
    log_trims: AtomicU64,
    reloads_taken: AtomicU64,
    reloads_refused: AtomicU64,
    /// The last one was.
    reload_refused: AtomicBool,
    /// Of the last one that was taken, since the Unix epoch.
    reloaded_us: AtomicU64,
    records_applied: AtomicU64,
    state_rows: AtomicU64,
    state_bytes: AtomicU64,
    chosen: Chosen,
    observed: Mutex<Observed>,
}

#[derive(Debug, Default)]
struct Observed {
    lags: Vec<LagSample>,
    /// Made of them once a scrape, for the three metrics of the matrix.
    pairs: pairs::Pairs,
    /// `None` until there is someone to ask.
    gauges: Option<Gauges>,
    process: process::Process,
}

#[derive(Clone)]
struct Histograms {
    /// By hop and lane. Bound to their labels: they are recorded once a record, a delivery and an ack.
    hops: [[BoundHistogram<f64>; 2]; Hop::ALL.len()],
    ack: Histogram<f64>,
    commit_records: Histogram<f64>,
    commit_bytes: Histogram<f64>,
    commit_write: Histogram<f64>,
    commit_sync: Histogram<f64>,
    apply: Histogram<f64>,
    state_flush: Histogram<f64>,
}

impl fmt::Debug for Histograms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histograms").finish_non_exhaustive()
    }
}

/// Counts and measures. Cheap to clone, and holds on to nothing that it measures: log and state keep
/// one of these, never the [`Metrics`], whose observer keeps them.
#[derive(Clone, Debug)]
pub struct Recorder {
    traces: Traces,
    counters: Arc<Counters>,
    histograms: Histograms,
}

impl Recorder {
    /// Where spans go.
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// Whether a batch of the platform, slow or with something refused, is traced although nobody sampled it.
    pub fn keeps_batch(
        &self,
        platform: Issuer,
        took: Duration,
        refused: bool,
        now: Micros,
    ) -> bool {
        let allowance = &self.platform(platform).batches_kept;
        self.traces.keeps(allowance, took, refused, now.0)
    }

    /// The same of a delivery to the platform.
    pub fn keeps_delivery(&self, platform: Issuer, took: Duration, now: Micros) -> bool {
        if !self.traces.is_on() {
            return false;
        }
        let allowance = &self.platform(platform).deliveries_kept;
        self.traces.keeps(allowance, took, false, now.0)
    }

    /// Deltas that a producer was told are durable and applied.
    pub fn accepted(&self, platform: Issuer, lane: Lane, deltas: u64) {
        self.platform(platform).accepted[lane.index()].fetch_add(deltas, Relaxed);
    }

    /// Deltas, or one whole batch, refused. An unknown platform counts as `none`.
    pub fn refused(&self, platform: Issuer, reason: Reason, deltas: u64) {
        self.platform(platform).refused[reason as usize].fetch_add(deltas, Relaxed);
    }

    /// A batch arrived.
    pub fn batch(&self, platform: Issuer, bytes: usize) {
        let counters = self.platform(platform);
        counters.batches.fetch_add(1, Relaxed);
        counters.batch_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// A batch arrived that had been durable before.
    pub fn batch_duplicate(&self, platform: Issuer) {
        self.platform(platform)
            .batches_duplicate
            .fetch_add(1, Relaxed);
    }

    /// A batch was acknowledged, so long after it arrived.
    pub fn acknowledged(&self, took: Duration) {
        self.histograms.ack.record(took.as_secs_f64(), &[]);
    }

    /// A record's hop took so long.
    pub fn hop(&self, hop: Hop, lane: Lane, seconds: f64) {
        self.histograms.hops[hop as usize][lane.index()].record(seconds);
    }

    /// Health codes of an issuer were applied.
    pub fn colours(&self, issuer: Issuer, colours: &Colours) {
        let counters = self.platform(issuer);
        for (counter, count) in counters.colours.iter().zip(colours.applied) {
            counter.fetch_add(count, Relaxed);
        }
        counters.flip_flops.fetch_add(colours.flip_flops, Relaxed);
    }

    /// A client of the platform said what time it is, and it was so far ahead of ours.
    pub fn clock_said(&self, platform: Issuer, ahead_us: i64) {
        self.platform(platform).skew.said(ahead_us);
    }

    /// The newest delta of a batch was committed at `committed_at` and came at `now`.
    pub fn clock_seen(&self, platform: Issuer, committed_at: Micros, now: Micros) {
        if committed_at > now {
            let ahead = committed_at.0 - now.0;
            self.platform(platform).skew.ahead(ahead, now);
        }
    }

    pub fn credit(&self, platform: Issuer, direction: Direction, bytes: u64) {
        self.platform(platform).credit[direction as usize].fetch_add(bytes, Relaxed);
    }

    pub fn view_conflict(&self, platform: Issuer, conflict: Conflict) {
        self.platform(platform).conflicts[conflict as usize].fetch_add(1, Relaxed);
    }

    /// One group commit that is durable.
    pub fn commit(&self, records: usize, bytes: usize, write: Duration, sync: Duration) {
        self.counters.log_records.fetch_add(records as u64, Relaxed);
        self.counters.log_bytes.fetch_add(bytes as u64, Relaxed);
        let histograms = &self.histograms;
        histograms.commit_records.record(records as f64, &[]);
        histograms.commit_bytes.record(bytes as f64, &[]);
        histograms.commit_write.record(write.as_secs_f64(), &[]);
        histograms.commit_sync.record(sync.as_secs_f64(), &[]);
    }

    /// One group commit whose write or sync failed.
    pub fn commit_failed(&self) {
        self.counters.commit_failures.fetch_add(1, Relaxed);
    }

    /// One group of records was applied.
    pub fn applied(&self, records: usize, took: Duration) {
        self.counters
            .records_applied
            .fetch_add(records as u64, Relaxed);
        self.histograms.apply.record(took.as_secs_f64(), &[]);
    }

    /// One sorted run of state is on disk.
    pub fn state_flushed(&self, rows: usize, bytes: usize, took: Duration) {
        self.counters.state_rows.fetch_add(rows as u64, Relaxed);
        self.counters.state_bytes.fetch_add(bytes as u64, Relaxed);
        self.histograms.state_flush.record(took.as_secs_f64(), &[]);
    }

    /// Retention shortened so many partitions.
    pub fn trimmed(&self, partitions: usize) {
        self.counters
            .log_trims
            .fetch_add(partitions as u64, Relaxed);
    }

    /// The configuration that a broker starts with is taken at this time.
    pub fn configured(&self, at: Micros) {
        self.counters.reloaded_us.store(at.0, Relaxed);
        self.counters.reload_refused.store(false, Relaxed);
    }

    /// A configuration was read again and taken.
    pub fn reloaded(&self, at: Micros) {
        self.counters.reloads_taken.fetch_add(1, Relaxed);
        self.configured(at);
    }

    pub fn reload_refused(&self) {
        self.counters.reloads_refused.fetch_add(1, Relaxed);
        self.counters.reload_refused.store(true, Relaxed);
    }

    /// Records sent to a subscriber.
    pub fn delivered(&self, platform: Issuer, records: usize, bytes: usize) {
        let counters = self.platform(platform);
        counters
            .records_delivered
            .fetch_add(records as u64, Relaxed);
        counters.delivered_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// A subscriber was served from the log because the rings no longer had what it needs.
    pub fn fell_behind(&self, platform: Issuer) {
        self.platform(platform).fell_behind.fetch_add(1, Relaxed);
    }

    /// A subscriber had something to receive and had given no credit for it.
    pub fn credit_exhausted(&self, platform: Issuer) {
        self.platform(platform)
            .credit_exhausted
            .fetch_add(1, Relaxed);
    }

    /// Rows sent in a snapshot.
    pub fn snapshot_rows(&self, platform: Issuer, rows: usize) {
        self.platform(platform)
            .snapshot_rows
            .fetch_add(rows as u64, Relaxed);
    }

    /// Deltas accepted from a platform since the start of the process.
    pub fn accepted_total(&self, platform: Issuer) -> u64 {
        let accepted = &self.platform(platform).accepted;
        accepted.iter().map(|n| n.load(Relaxed)).sum()
    }

    /// Deltas and batches refused to a platform since the start of the process.
    pub fn refused_total(&self, platform: Issuer) -> u64 {
        let refused = &self.platform(platform).refused;
        refused.iter().map(|n| n.load(Relaxed)).sum()
    }

    fn platform(&self, platform: Issuer) -> &PlatformCounters {
        let (nobody, configured) = self
            .counters
            .platforms
            .split_last()
            .expect("there is always the place of nobody");
        configured
            .binary_search_by_key(&Some(platform), |counters| counters.issuer)
            .map_or(nobody, |i| &configured[i])
    }
}

/// The metrics of one broker: a [`Recorder`], and what scrapes need.
pub struct Metrics {
    recorder: Recorder,
    exporter: Exporter,
}

impl Metrics {
    /// Metrics with an exporter of their own; nothing is pushed or traced.
    pub fn new(platforms: impl IntoIterator<Item = Issuer>) -> Metrics {
        let exporter = Exporter::new(catalogue::series_max)
            .expect("an empty registry takes its one collector");
        Metrics::with(platforms, exporter, Traces::off())
    }

    pub fn with(
        platforms: impl IntoIterator<Item = Issuer>,
        exporter: Exporter,
        traces: Traces,
    ) -> Metrics {
        let mut platforms: Vec<Issuer> = platforms.into_iter().collect();
        platforms.sort_unstable();
        platforms.dedup();
        let count = platforms.len();
        let places = platforms.into_iter().map(Some).chain([None]);
        let counters = Arc::new(Counters {
            platforms: places
                .map(|place| PlatformCounters::new(place, count))
                .collect(),
            log_records: AtomicU64::default(),
            log_bytes: AtomicU64::default(),
            commit_failures: AtomicU64::default(),
            log_trims: AtomicU64::default(),
            reloads_taken: AtomicU64::default(),
            reloads_refused: AtomicU64::default(),
            reload_refused: AtomicBool::default(),
            reloaded_us: AtomicU64::default(),
            records_applied: AtomicU64::default(),
            state_rows: AtomicU64::default(),
            state_bytes: AtomicU64::default(),
            chosen: Chosen::new(traces.is_on()),
            observed: Mutex::default(),
        });
        let meter = exporter.meter("hutong-broker");
        export::register(&counters, &meter);
        let scraped = Arc::clone(&counters);
        exporter.before_scrape(move || {
            scraped.observed().process = process::Process::read();
        });
        Metrics {
            recorder: Recorder {
                traces,
                histograms: export::histograms(&meter),
                counters,
            },
            exporter,
        }
    }

    /// Asks `observer` at every scrape from now on. It lives as long as the metrics and their pages.
    pub fn observe(&self, observer: Arc<dyn Observe>) {
        let counters = Arc::clone(&self.recorder.counters);
        self.exporter.before_scrape(move || {
            // Before the lock: it may read from disk.
            let (lags, gauges) = (observer.lags(), observer.gauges());
            let pairs = pairs::of(&lags);
            let mut observed = counters.observed();
            observed.pairs = pairs;
            observed.lags = lags;
            observed.gauges = Some(gauges);
        });
    }

    /// What `/metrics` reads.
    pub fn registry(&self) -> Exporter {
        self.exporter.clone()
    }

    /// For those that the observer reaches: see [`Recorder`].
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }
}

impl Deref for Metrics {
    type Target = Recorder;

    fn deref(&self) -> &Recorder {
        &self.recorder
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Counters {
    fn observed(&self) -> std::sync::MutexGuard<'_, Observed> {
        // Whoever panicked while filling it left old figures or new ones, both whole.
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
