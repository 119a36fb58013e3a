//! From counters to OpenTelemetry instruments.

use super::{
    Counters, Histograms, LagSample, Observed, PlatformCounters, StoreGauges, label,
    names::{Kind, Name},
};
use hutong_proto::{Issuer, Lane, Reason};
use opentelemetry::{
    KeyValue,
    metrics::{Histogram, Meter},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

const SECONDS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
const RECORDS: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, 4096.0,
];
const BYTES: [f64; 9] = [
    1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0, 67108864.0,
];

/// Takes a value and its labels.
type Emit<'a> = &'a mut dyn FnMut(f64, &[KeyValue]);

/// Makes the instruments that read counters and observed figures. Their callbacks run at a scrape.
pub(super) fn register(counters: &Arc<Counters>, meter: &Meter) {
    for name in Name::ALL.iter().copied() {
        let definition = name.definition();
        let counters = Arc::clone(counters);
        match definition.kind {
            Kind::Counter => drop(
                meter
                    .f64_observable_counter(definition.name)
                    .with_unit(definition.unit)
                    .with_description(definition.help)
                    .with_callback(move |o| {
                        read(&counters, name, &mut |value, labels| {
                            o.observe(value, labels);
                        });
                    })
                    .build(),
            ),
            Kind::Gauge => drop(
                meter
                    .f64_observable_gauge(definition.name)
                    .with_unit(definition.unit)
                    .with_description(definition.help)
                    .with_callback(move |o| {
                        read(&counters, name, &mut |value, labels| {
                            o.observe(value, labels);
                        });
                    })
                    .build(),
            ),
            Kind::Histogram => {}
        }
    }
}

pub(super) fn histograms(meter: &Meter) -> Histograms {
    Histograms {
        ack: histogram(meter, Name::Ack, &SECONDS),
        commit_records: histogram(meter, Name::CommitRecords, &RECORDS),
        commit_bytes: histogram(meter, Name::CommitBytes, &BYTES),
        commit_write: histogram(meter, Name::CommitWrite, &SECONDS),
        commit_sync: histogram(meter, Name::CommitSync, &SECONDS),
        apply: histogram(meter, Name::Apply, &SECONDS),
        state_flush: histogram(meter, Name::StateFlush, &SECONDS),
    }
}

fn histogram(meter: &Meter, name: Name, boundaries: &[f64]) -> Histogram<f64> {
    let definition = name.definition();
    meter
        .f64_histogram(definition.name)
        .with_unit(definition.unit)
        .with_description(definition.help)
        .with_boundaries(boundaries.to_vec())
        .build()
}

/// Every metric but the histograms, in one match, so that none is forgotten.
fn read(counters: &Counters, name: Name, emit: Emit<'_>) {
    match name {
        Name::BuildInfo => {
            let version = KeyValue::new(label::VERSION, env!("CARGO_PKG_VERSION"));
            emit(1.0, &[version]);
        }
        Name::MemoryResident => {
            if let Some(bytes) = counters.observed().memory_resident_bytes {
                emit(bytes as f64, &[]);
            }
        }
        Name::Batches => platforms(counters, emit, |p| &p.batches),
        Name::BatchBytes => platforms(counters, emit, |p| &p.batch_bytes),
        Name::BatchesDuplicate => platforms(counters, emit, |p| &p.batches_duplicate),
        Name::DeltasAccepted => accepted(counters, emit),
        Name::DeltasRefused => refused(counters, emit),
        Name::RecordsDelivered => platforms(counters, emit, |p| &p.records_delivered),
        Name::DeliveredBytes => platforms(counters, emit, |p| &p.delivered_bytes),
        Name::FellBehind => platforms(counters, emit, |p| &p.fell_behind),
        Name::CreditExhausted => platforms(counters, emit, |p| &p.credit_exhausted),
        Name::SnapshotRows => platforms(counters, emit, |p| &p.snapshot_rows),
        Name::LogRecords => emit(load(&counters.log_records), &[]),
        Name::LogAppendedBytes => emit(load(&counters.log_bytes), &[]),
        Name::CommitFailures => emit(load(&counters.commit_failures), &[]),
        Name::ConfigReloads => {
            let result = |word: &'static str| [KeyValue::new(label::RESULT, word)];
            emit(load(&counters.reloads_taken), &result("taken"));
            emit(load(&counters.reloads_refused), &result("refused"));
        }
        Name::ConfigReloaded => emit(load(&counters.reloaded_us) / 1e6, &[]),
        Name::LogTrims => emit(load(&counters.log_trims), &[]),
        Name::RecordsApplied => emit(load(&counters.records_applied), &[]),
        Name::StateRows => emit(load(&counters.state_rows), &[]),
        Name::StateBytes => emit(load(&counters.state_bytes), &[]),
        Name::Ack
        | Name::CommitRecords
        | Name::CommitBytes
        | Name::CommitWrite
        | Name::CommitSync
        | Name::Apply
        | Name::StateFlush => {}
        observed => read_observed(counters, &counters.observed(), observed, emit),
    }
}

/// What an observer told at the start of this scrape.
fn read_observed(counters: &Counters, observed: &Observed, name: Name, emit: Emit<'_>) {
    match name {
        Name::SubscriptionLagRecords => return subscriptions(observed, emit, |l| l.records as f64),
        Name::SubscriptionLagSeconds => return subscriptions(observed, emit, |l| l.seconds),
        Name::PairOldestSeconds => return pairs(observed, emit),
        _ => {}
    }
    let Some(gauges) = &observed.gauges else {
        return;
    };
    let stores = &gauges.stores;
    match name {
        Name::LogNextOffset => emit(gauges.next_offset.0 as f64, &[]),
        Name::AppliedOffset => emit(gauges.applied.0 as f64, &[]),
        Name::StoredOffset => emit(gauges.stored.0 as f64, &[]),
        Name::LogBytes => emit(gauges.log_bytes as f64, &[]),
        Name::LogPoisoned => emit(f64::from(gauges.log_poisoned), &[]),
        Name::StateGatherBytes => emit(gauges.gather_bytes as f64, &[]),
        Name::SnapshotsRunning => emit(gauges.snapshots_running as f64, &[]),
        Name::SchedulingDelay => emit(gauges.scheduling_delay.as_secs_f64(), &[]),
        Name::OverloadLimit => {
            for (what, limit) in &gauges.overload_limits {
                let labels = [KeyValue::new(label::VALVE, what.name())];
                emit(limit.unwrap_or(0.0), &labels);
            }
        }
        Name::QueueBytes => lanes(&gauges.queue_bytes, emit),
        Name::TailBytes => lanes(&gauges.tail_bytes, emit),
        Name::ProducersConnected => connected(counters, &gauges.producers_connected, emit),
        Name::SubscribersConnected => connected(counters, &gauges.subscribers_connected, emit),
        Name::StoreWritesStopped => each(stores, emit, |s| u64::from(s.writes_stopped)),
        Name::StoreWriteRateLimit => each(stores, emit, |s| s.write_rate_limit_bytes_per_second),
        Name::StorePendingCompaction => each(stores, emit, |s| s.pending_compaction_bytes),
        Name::StoreRunningCompactions => each(stores, emit, |s| s.running_compactions),
        Name::StoreRunningFlushes => each(stores, emit, |s| s.running_flushes),
        Name::StoreLevel0Files => each(stores, emit, |s| s.level0_files),
        Name::StoreMemoryTables => each(stores, emit, |s| s.memory_tables_bytes),
        Name::StoreDisk => each(stores, emit, |s| s.disk_bytes),
        // A name that is in neither match would be found missing by the test over all names.
        _ => {}
    }
}

fn load(counter: &AtomicU64) -> f64 {
    counter.load(Relaxed) as f64
}

/// Zeros are shown for configured platforms, so that a rate has a start; not for nobody.
fn platforms(counters: &Counters, emit: Emit<'_>, of: impl Fn(&PlatformCounters) -> &AtomicU64) {
    for platform in &counters.platforms {
        let value = load(of(platform));
        if platform.issuer.is_some() || value > 0.0 {
            emit(value, &[KeyValue::new(label::PLATFORM, platform.label())]);
        }
    }
}

fn accepted(counters: &Counters, emit: Emit<'_>) {
    let configured = counters.platforms.iter().filter(|p| p.issuer.is_some());
    for platform in configured {
        for lane in Lane::DELIVERED {
            let labels = [
                KeyValue::new(label::LANE, lane.name()),
                KeyValue::new(label::PLATFORM, platform.label()),
            ];
            emit(load(&platform.accepted[lane.index()]), &labels);
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
                    KeyValue::new(label::PLATFORM, platform.label()),
                    KeyValue::new(label::REASON, reason.code()),
                ];
                emit(value, &labels);
            }
        }
    }
}

fn lanes(values: &[usize; 2], emit: Emit<'_>) {
    for lane in Lane::DELIVERED {
        let labels = [KeyValue::new(label::LANE, lane.name())];
        emit(values[lane.index()] as f64, &labels);
    }
}

fn connected(counters: &Counters, connected: &[(Issuer, usize)], emit: Emit<'_>) {
    for issuer in counters.platforms.iter().filter_map(|p| p.issuer) {
        let count = connected.iter().find(|(platform, _)| *platform == issuer);
        let labels = [KeyValue::new(label::PLATFORM, issuer.to_string())];
        emit(count.map_or(0.0, |(_, n)| *n as f64), &labels);
    }
}

fn each(stores: &[StoreGauges], emit: Emit<'_>, of: impl Fn(&StoreGauges) -> u64) {
    for store in stores {
        emit(of(store) as f64, &[KeyValue::new(label::STORE, store.name)]);
    }
}

fn subscriptions(observed: &Observed, emit: Emit<'_>, of: impl Fn(&LagSample) -> f64) {
    for sample in observed.lags.iter().filter(|s| s.issuer.is_none()) {
        let labels = [
            KeyValue::new(label::LANE, sample.lane.name()),
            KeyValue::new(label::PLATFORM, sample.platform.to_string()),
            KeyValue::new(label::SUBSCRIPTION, sample.subscription.clone()),
        ];
        emit(of(sample), &labels);
    }
}

/// The oldest over a receiver's subscriptions: a platform has applied what all of them have.
fn pairs(observed: &Observed, emit: Emit<'_>) {
    let mut oldest: BTreeMap<(Issuer, Lane, Issuer), f64> = BTreeMap::new();
    for sample in &observed.lags {
        if let Some(issuer) = sample.issuer {
            let pair = oldest.entry((issuer, sample.lane, sample.platform));
            let seconds = pair.or_default();
            *seconds = seconds.max(sample.seconds);
        }
    }
    for ((issuer, lane, receiver), seconds) in oldest {
        let labels = [
            KeyValue::new(label::ISSUER, issuer.to_string()),
            KeyValue::new(label::LANE, lane.name()),
            KeyValue::new(label::RECEIVER, receiver.to_string()),
        ];
        emit(seconds, &labels);
    }
}

/// From `/proc`; `None` where there is none.
pub(super) fn memory_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
