//! From counters to OpenTelemetry instruments.

use super::{
    Colour, Conflict, Counters, Direction, Histograms, Hop, LagSample, Micros, Name, Observed,
    PlatformCounters, StoreGauges, pairs::Pair,
};
use hutong_proto::{Issuer, Lane, Reason};
use hutong_telemetry::catalogue::{Emit, Kind, Label};
use opentelemetry::{
    KeyValue, Value,
    metrics::{Histogram, Meter},
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Makes the instruments that read counters and observed figures. Their callbacks run at a scrape.
pub(super) fn register(counters: &Arc<Counters>, meter: &Meter) {
    for name in Name::ALL.iter().copied() {
        let counters = Arc::clone(counters);
        let definition = name.definition();
        definition.observe(meter, move |emit| read(&counters, name, emit));
    }
}

pub(super) fn histograms(meter: &Meter) -> Histograms {
    let hops = histogram(meter, Name::Hop);
    let bound = |hop: Hop, lane: Lane| {
        hops.bind(&[
            label(Label::Hop, hop.name()),
            label(Label::Lane, lane.name()),
        ])
    };
    Histograms {
        hops: Hop::ALL.map(|hop| Lane::DELIVERED.map(|lane| bound(hop, lane))),
        ack: histogram(meter, Name::Ack),
        commit_records: histogram(meter, Name::CommitRecords),
        commit_bytes: histogram(meter, Name::CommitBytes),
        commit_write: histogram(meter, Name::CommitWrite),
        commit_sync: histogram(meter, Name::CommitSync),
        apply: histogram(meter, Name::Apply),
        state_flush: histogram(meter, Name::StateFlush),
    }
}

fn histogram(meter: &Meter, name: Name) -> Histogram<f64> {
    let definition = name.definition();
    let Kind::Histogram(bounds) = definition.kind else {
        unreachable!("{} is made as a histogram and is none", definition.name)
    };
    meter
        .f64_histogram(definition.name)
        .with_unit(definition.unit)
        .with_description(definition.help)
        .with_boundaries(bounds.to_vec())
        .build()
}

fn label(label: Label, value: impl Into<Value>) -> KeyValue {
    KeyValue::new(label.name(), value)
}

/// Every metric but the histograms. A name that is in none of the matches would be found missing by the test
/// over all names.
fn read(counters: &Counters, name: Name, emit: Emit<'_>) {
    match name {
        Name::BuildInfo => emit(1.0, &[label(Label::Version, env!("CARGO_PKG_VERSION"))]),
        Name::Batches => platforms(counters, emit, |p| &p.batches),
        Name::BatchBytes => platforms(counters, emit, |p| &p.batch_bytes),
        Name::BatchesDuplicate => platforms(counters, emit, |p| &p.batches_duplicate),
        Name::DeltasAccepted => by(
            counters,
            emit,
            (Label::Lane, Lane::DELIVERED.map(Lane::name)),
            |p| &p.accepted,
        ),
        Name::DeltasRefused => refused(counters, emit),
        Name::Colours => {
            let colours = [Colour::Green, Colour::Yellow, Colour::Red].map(Colour::name);
            by(counters, emit, (Label::Colour, colours), |p| &p.colours);
        }
        Name::FlipFlops => platforms(counters, emit, |p| &p.flip_flops),
        Name::SpansLeftOut => platforms(counters, emit, |p| &p.spans_left_out),
        Name::Credit => {
            let directions = Direction::ALL.map(Direction::name);
            by(counters, emit, (Label::Direction, directions), |p| {
                &p.credit
            });
        }
        Name::ViewConflicts => {
            let conflicts = Conflict::ALL.map(Conflict::name);
            by(counters, emit, (Label::Conflict, conflicts), |p| {
                &p.conflicts
            });
        }
        Name::RecordsDelivered => platforms(counters, emit, |p| &p.records_delivered),
        Name::DeliveredBytes => platforms(counters, emit, |p| &p.delivered_bytes),
        Name::FellBehind => platforms(counters, emit, |p| &p.fell_behind),
        Name::CreditExhausted => platforms(counters, emit, |p| &p.credit_exhausted),
        Name::SnapshotRows => platforms(counters, emit, |p| &p.snapshot_rows),
        Name::LogRecords => emit(load(&counters.log_records), &[]),
        Name::LogAppendedBytes => emit(load(&counters.log_bytes), &[]),
        Name::CommitFailures => emit(load(&counters.commit_failures), &[]),
        Name::ConfigReloads => {
            let result = |word: &'static str| [label(Label::Result, word)];
            emit(load(&counters.reloads_taken), &result("taken"));
            emit(load(&counters.reloads_refused), &result("refused"));
        }
        Name::ConfigReloadOk => {
            let refused = counters.reload_refused.load(Relaxed);
            emit(f64::from(!refused), &[]);
        }
        Name::ConfigReloadAt => emit(load(&counters.reloaded_us) / 1e6, &[]),
        Name::LogTrims => emit(load(&counters.log_trims), &[]),
        Name::RecordsApplied => emit(load(&counters.records_applied), &[]),
        Name::StateRows => emit(load(&counters.state_rows), &[]),
        Name::StateBytes => emit(load(&counters.state_bytes), &[]),
        observed => read_observed(counters, &counters.observed(), observed, emit),
    }
}

/// What was looked at when this scrape began.
fn read_observed(counters: &Counters, observed: &Observed, name: Name, emit: Emit<'_>) {
    let process = &observed.process;
    let some = |value: Option<f64>, emit: Emit<'_>| {
        if let Some(value) = value {
            emit(value, &[]);
        }
    };
    match name {
        Name::MemoryResident => some(process.resident_bytes.map(|n| n as f64), emit),
        Name::ProcessCpu => some(process.cpu_seconds, emit),
        Name::ProcessOpenFiles => some(process.open_files.map(|n| n as f64), emit),
        Name::ProcessMaxFiles => some(process.max_files.map(|n| n as f64), emit),
        Name::ProcessStart => some(process.started_seconds, emit),
        Name::SubscriptionLagRecords => subscriptions(observed, emit, |l| l.records as f64),
        Name::SubscriptionLagSeconds => subscriptions(observed, emit, |l| l.seconds),
        Name::PairLagRecords => pairs(observed, emit, |p| Some(p.records as f64)),
        Name::PairOldestSeconds => pairs(observed, emit, |p| Some(p.seconds)),
        Name::PairOldestAt => pairs(observed, emit, |p| p.oldest_at.map(seconds)),
        Name::PairOldestOffset => pairs(observed, emit, |p| p.oldest.map(|at| at.0 as f64)),
        name if observed.gauges.is_some() => read_gauges(counters, observed, name, emit),
        _ => {}
    }
}

fn read_gauges(counters: &Counters, observed: &Observed, name: Name, emit: Emit<'_>) {
    let Some(gauges) = &observed.gauges else {
        return;
    };
    match name {
        Name::LogNextOffset => emit(gauges.next_offset.0 as f64, &[]),
        Name::AppliedOffset => emit(gauges.applied.0 as f64, &[]),
        Name::StoredOffset => emit(gauges.stored.0 as f64, &[]),
        Name::LogBytes => emit(gauges.log_bytes as f64, &[]),
        Name::LogPoisoned => emit(f64::from(gauges.log_poisoned), &[]),
        Name::CommitRunning => emit(gauges.commit_running.as_secs_f64(), &[]),
        Name::BulkHeld => emit(gauges.bulk_held.as_secs_f64(), &[]),
        Name::StateMerges => emit(gauges.state_merges as f64, &[]),
        Name::StateGatherBytes => emit(gauges.gather_bytes as f64, &[]),
        Name::SnapshotsRunning => emit(gauges.snapshots_running as f64, &[]),
        Name::SchedulingDelay => emit(gauges.scheduling_delay.as_secs_f64(), &[]),
        Name::DiskFree => gauges
            .disk
            .into_iter()
            .for_each(|d| emit(d.free as f64, &[])),
        Name::DiskSize => gauges
            .disk
            .into_iter()
            .for_each(|d| emit(d.size as f64, &[])),
        Name::CertificateExpiry => {
            for (file, at) in &gauges.certificates {
                emit(seconds(*at), &[label(Label::Certificate, file.clone())]);
            }
        }
        Name::OverloadLimit => {
            for (what, limit) in &gauges.overload_limits {
                emit(limit.unwrap_or(0.0), &[label(Label::Valve, what.name())]);
            }
        }
        Name::QueueBytes => lanes(&gauges.queue_bytes, emit),
        Name::TailBytes => lanes(&gauges.tail_bytes, emit),
        Name::ProducersConnected => connected(counters, &gauges.producers_connected, emit),
        Name::SubscribersConnected => connected(counters, &gauges.subscribers_connected, emit),
        Name::LastRecord => {
            for (issuer, at) in &gauges.last_records {
                emit(seconds(*at), &[label(Label::Platform, issuer.to_string())]);
            }
        }
        Name::ClockSkew => skews(counters, gauges.now, emit),
        Name::Memory => owners(observed, emit),
        name => stores(&gauges.stores, name, emit),
    }
}

fn stores(stores: &[StoreGauges], name: Name, emit: Emit<'_>) {
    match name {
        Name::StoreWritesStopped => each(stores, emit, |s| u64::from(s.writes_stopped)),
        Name::StoreWriteRateLimit => each(stores, emit, |s| s.write_rate_limit_bytes_per_second),
        Name::StoreStalled => {
            for store in stores {
                let labels = [label(Label::Store, store.name)];
                emit(store.stalled.as_secs_f64(), &labels);
            }
        }
        Name::StoreErrors => each(stores, emit, |s| s.background_errors),
        Name::StorePendingCompaction => each(stores, emit, |s| s.pending_compaction_bytes),
        Name::StoreRunningCompactions => each(stores, emit, |s| s.running_compactions),
        Name::StoreRunningFlushes => each(stores, emit, |s| s.running_flushes),
        Name::StoreMemoryTables => each(stores, emit, |s| s.memory_tables_bytes),
        Name::StoreDisk => each(stores, emit, |s| s.disk_bytes),
        Name::StoreLevelFiles => {
            for store in stores {
                for (level, files) in store.level_files.iter().enumerate() {
                    let labels = [
                        label(Label::Level, level.to_string()),
                        label(Label::Store, store.name),
                    ];
                    emit(*files as f64, &labels);
                }
            }
        }
        _ => {}
    }
}

/// What is in RAM, by who has it. The rest is code, stacks, connections, and what the allocator keeps.
fn owners(observed: &Observed, emit: Emit<'_>) {
    let Some(gauges) = &observed.gauges else {
        return;
    };
    let sum = |of: fn(&StoreGauges) -> u64| gauges.stores.iter().map(of).sum::<u64>();
    let owners = [
        ("queue_urgent", gauges.queue_bytes[0] as u64),
        ("queue_bulk", gauges.queue_bytes[1] as u64),
        ("tail_urgent", gauges.tail_bytes[0] as u64),
        ("tail_bulk", gauges.tail_bytes[1] as u64),
        ("gather", gauges.gather_bytes as u64),
        ("memory_tables", sum(|s| s.memory_tables_bytes)),
        ("block_cache", sum(|s| s.block_cache_bytes)),
        ("table_readers", sum(|s| s.table_readers_bytes)),
    ];
    let known: u64 = owners.iter().map(|(_, bytes)| bytes).sum();
    let resident = observed.process.resident_bytes.unwrap_or(0);
    let other = ("other", resident.saturating_sub(known));
    for (owner, bytes) in owners.into_iter().chain([other]) {
        emit(bytes as f64, &[label(Label::Owner, owner)]);
    }
}

fn skews(counters: &Counters, now: Micros, emit: Emit<'_>) {
    for platform in counters.platforms.iter().filter(|p| p.issuer.is_some()) {
        if let Some(seconds) = platform.skew.seconds(now) {
            emit(seconds, &[label(Label::Platform, platform.label())]);
        }
    }
}

/// As Prometheus has times.
fn seconds(at: Micros) -> f64 {
    at.0 as f64 / 1e6
}

fn load(counter: &AtomicU64) -> f64 {
    counter.load(Relaxed) as f64
}

/// Zeros are shown for configured platforms, so that a rate has a start; not for nobody.
fn platforms(counters: &Counters, emit: Emit<'_>, of: impl Fn(&PlatformCounters) -> &AtomicU64) {
    for platform in &counters.platforms {
        let value = load(of(platform));
        if platform.issuer.is_some() || value > 0.0 {
            emit(value, &[label(Label::Platform, platform.label())]);
        }
    }
}

/// By a second label, whose values are few.
fn by<const N: usize>(
    counters: &Counters,
    emit: Emit<'_>,
    (second, values): (Label, [&'static str; N]),
    of: impl Fn(&PlatformCounters) -> &[AtomicU64; N],
) {
    for platform in counters.platforms.iter().filter(|p| p.issuer.is_some()) {
        for (value, counter) in values.iter().zip(of(platform)) {
            let labels = [
                label(second, *value),
                label(Label::Platform, platform.label()),
            ];
            emit(load(counter), &labels);
        }
    }
}

/// Only what happened: zeros of every reason would be most of the page.
fn refused(counters: &Counters, emit: Emit<'_>) {
    for platform in &counters.platforms {
        for (reason, count) in Reason::ALL.iter().zip(&platform.refused) {
            let value = load(count);
            if value > 0.0 {
                let labels = [
                    label(Label::Platform, platform.label()),
                    label(Label::Reason, reason.code()),
                ];
                emit(value, &labels);
            }
        }
    }
}

fn lanes(values: &[usize; 2], emit: Emit<'_>) {
    for lane in Lane::DELIVERED {
        let labels = [label(Label::Lane, lane.name())];
        emit(values[lane.index()] as f64, &labels);
    }
}

fn connected(counters: &Counters, connected: &[(Issuer, usize)], emit: Emit<'_>) {
    for issuer in counters.platforms.iter().filter_map(|p| p.issuer) {
        let count = connected.iter().find(|(platform, _)| *platform == issuer);
        let labels = [label(Label::Platform, issuer.to_string())];
        emit(count.map_or(0.0, |(_, n)| *n as f64), &labels);
    }
}

fn each(stores: &[StoreGauges], emit: Emit<'_>, of: impl Fn(&StoreGauges) -> u64) {
    for store in stores {
        emit(of(store) as f64, &[label(Label::Store, store.name)]);
    }
}

fn subscriptions(observed: &Observed, emit: Emit<'_>, of: impl Fn(&LagSample) -> f64) {
    for sample in observed.lags.iter().filter(|s| s.issuer.is_none()) {
        let labels = [
            label(Label::Lane, sample.lane.name()),
            label(Label::Platform, sample.platform.to_string()),
            label(Label::Subscription, sample.subscription.clone()),
        ];
        emit(of(sample), &labels);
    }
}

fn pairs(observed: &Observed, emit: Emit<'_>, of: impl Fn(&Pair) -> Option<f64>) {
    for ((issuer, lane, receiver), pair) in &observed.pairs {
        let Some(value) = of(pair) else { continue };
        let labels = [
            label(Label::Issuer, issuer.to_string()),
            label(Label::Lane, lane.name()),
            label(Label::Receiver, receiver.to_string()),
        ];
        emit(value, &labels);
    }
}
