//! Reading the log for a subscriber that fell behind the rings: exactly what the rings would have
//! given it. Blocking.

use crate::{
    apply::exceptions::Dropped,
    fanout::{Fanout, session::cut_kinds},
    filter::FilterSpec,
    log::ReadError,
    state::keys,
};
use bytes::Bytes;
use hutong_proto::{Lane, Offset, Partition, Reason, Refusal, record};
use std::collections::BTreeMap;

/// Read from the log at one time.
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub struct LogChunk {
    pub entries: Vec<Bytes>,
    pub last: Option<Offset>,
    pub next: Offset,
}

/// What is wanted of a lane from `from` on. Only what is applied is read, so nothing is delivered
/// that apply might still drop.
pub fn read(
    shared: &Fanout,
    filter: &FilterSpec,
    lane: Lane,
    from: Offset,
) -> Result<LogChunk, Refusal> {
    let below = shared.rings.next();
    let partitions = filter.partitions(lane, &shared.platforms);
    if partitions.is_empty() || from >= below {
        return Ok(LogChunk {
            entries: Vec::new(),
            last: None,
            next: below.max(from),
        });
    }
    let refusal = |error| match error {
        ReadError::Trimmed {
            partition,
            trimmed_below,
        } => compacted(lane, partition, trimmed_below, from),
        ReadError::Io(_) | ReadError::Damaged { .. } => internal(&error),
    };
    let merged = shared
        .log
        .read_merged(&partitions, from, below, CHUNK_BYTES)
        .map_err(refusal)?;
    let exceptions: BTreeMap<Vec<u8>, Vec<u8>> = shared
        .state
        .scan_range(&keys::exception(from), &keys::exception(merged.next))
        .map_err(|error| internal(&error))?
        .into_iter()
        .collect();
    // An exception goes when its record does: of what was trimmed in the meantime one may be missing.
    shared.log.check_kept(&partitions, from).map_err(refusal)?;
    let mut chunk = LogChunk {
        entries: Vec::with_capacity(merged.entries.len()),
        last: None,
        next: merged.next,
    };
    for entry in merged.entries {
        let head = entry.head;
        if !filter.passes(&head) {
            continue;
        }
        let dropped = exceptions
            .get(keys::exception(head.offset).as_slice())
            .map_or(Dropped::Nothing, |row| Dropped::decode(row));
        let Some(mut delivered) = dropped.cut_unread(&head, &entry.record)? else {
            continue;
        };
        if !filter.passes_whole(&head) {
            delivered = cut_kinds(&delivered, filter)?;
        }
        let logged = record::encode_logged(head.offset, head.durable_at, &delivered);
        chunk.entries.push(logged);
        chunk.last = Some(head.offset);
    }
    Ok(chunk)
}

pub fn compacted(lane: Lane, partition: Partition, trimmed: Offset, at: Offset) -> Refusal {
    Refusal::new(Reason::CursorCompacted, format!("open.cursor.{lane}")).detail(format!(
        "offset {at}, partition {partition} is kept from {trimmed} on"
    ))
}

fn internal(error: &dyn std::error::Error) -> Refusal {
    tracing::error!(%error, "a subscriber's read failed");
    Reason::Internal.into()
}
