//! Drops old records from the log, by age and by bytes. Never what a restart would replay, and never
//! because a subscriber is slow: one that falls behind retention starts again with a snapshot.

use crate::{
    clock::Clock,
    config::Retention,
    log::{Log, LogError, PartitionInfo, ReadError},
    metrics::Metrics,
    state::State,
};
use hutong_proto::{Lane, Micros, Offset};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(20);

pub async fn run(
    log: Arc<dyn Log>,
    state: Arc<State>,
    metrics: Arc<Metrics>,
    retention: watch::Receiver<Retention>,
    clock: Clock,
    stop: CancellationToken,
) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        // As the configuration says now: it may be loaded again.
        let retention = retention.borrow().clone();
        let (log, state) = (Arc::clone(&log), Arc::clone(&state));
        let now = clock();
        let done = tokio::task::spawn_blocking(move || {
            let trims = enforce(&*log, &retention, state.stored().next, now)?;
            state.log_starts_at(start_of(&*log));
            Ok::<_, LogError>(trims)
        })
        .await;
        match done {
            Ok(Ok(trims)) => metrics.trimmed(trims),
            Ok(Err(error)) => tracing::error!(%error, "retention failed"),
            Err(error) => tracing::error!(%error, "retention failed"),
        }
    }
}

/// Trims what is too old or too much, as far as `floor` allows. Returns how many partitions shrank.
pub fn enforce(
    log: &dyn Log,
    retention: &Retention,
    floor: Offset,
    now: Micros,
) -> Result<usize, LogError> {
    let partitions = log.partitions();
    let oldest = Micros(now.0.saturating_sub(retention.age.as_micros() as u64));
    let by_bytes = by_bytes(log, &partitions, retention.bytes)?;
    let mut trims = 0;
    for info in partitions.iter().filter(|p| p.records > 0) {
        let by_age = match info.partition.lane {
            // The broker's own records only matter until they are in the state.
            Lane::Control => floor,
            Lane::Urgent | Lane::Bulk => first_since(log, info, oldest)?,
        };
        let before = by_age.max(by_bytes).min(floor);
        if before > info.first {
            log.trim(info.partition, before)?;
            trims += 1;
        }
    }
    Ok(trims)
}

/// Nothing below is kept.
fn start_of(log: &dyn Log) -> Offset {
    let next = log.next_offset();
    let partitions = log.partitions();
    let firsts = partitions.iter().filter(|p| p.records > 0).map(|p| p.first);
    firsts.min().unwrap_or(next)
}

/// The first offset of a partition that is not older than `oldest`: times rise with offsets, so it is
/// found by halving.
fn first_since(log: &dyn Log, info: &PartitionInfo, oldest: Micros) -> Result<Offset, ReadError> {
    if info.last_durable_at < oldest {
        return Ok(info.last.next());
    }
    let (mut low, mut high) = (info.first.0, info.last.0);
    while low < high {
        let middle = low + (high - low) / 2;
        match log.head_at(info.partition, Offset(middle))? {
            Some(head) if head.durable_at < oldest => low = head.offset.0 + 1,
            _ => high = middle,
        }
    }
    Ok(Offset(low))
}

/// The lowest offset from which on all partitions together fit into `bytes_max`.
fn by_bytes(
    log: &dyn Log,
    partitions: &[PartitionInfo],
    bytes_max: u64,
) -> Result<Offset, ReadError> {
    let total: u64 = partitions.iter().map(|p| p.bytes_estimate).sum();
    if total <= bytes_max {
        return Ok(Offset::NONE);
    }
    let firsts = partitions
        .iter()
        .filter(|p| p.records > 0)
        .map(|p| p.first.0);
    let (mut low, mut high) = (firsts.min().unwrap_or(0), log.next_offset().0);
    while low < high {
        let middle = low + (high - low) / 2;
        if bytes_from(log, partitions, Offset(middle))? > bytes_max {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(Offset(low))
}

/// About how many bytes are at or above an offset, by the share of records.
fn bytes_from(log: &dyn Log, partitions: &[PartitionInfo], from: Offset) -> Result<u64, ReadError> {
    let mut bytes = 0;
    for info in partitions
        .iter()
        .filter(|p| p.records > 0 && p.last >= from)
    {
        if let Some(head) = log.head_at(info.partition, from)? {
            let kept = u128::from((info.last_ordinal + 1).saturating_sub(head.ordinal));
            let share = u128::from(info.bytes_estimate) * kept / u128::from(info.records);
            bytes += share as u64;
        }
    }
    Ok(bytes)
}
