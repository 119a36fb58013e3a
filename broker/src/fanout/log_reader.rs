//! Reading the log for subscribers that fell behind the rings: exactly what the rings would have given
//! them. In a surge all of them fall behind, and at about the same place: so what one reads is kept a
//! while for the others, bounded in bytes, and the log is read once instead of once for each.

use crate::{
    apply::exceptions::Dropped, fanout::Fanout, filter::FilterSpec, log::ReadError, state::keys,
    tail::TailEntry,
};
use hutong_proto::{Lane, Offset, Partition, Reason, Refusal};
use parking_lot::Mutex;
use places::{Places, Turn};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

mod places;
#[cfg(test)]
mod tests;

/// Read for one subscriber alone.
const CHUNK_BYTES: usize = 1 << 20;
/// Read for all: to read on, each partition's next record has to be found again, so more at one time.
const SHARED_CHUNK_BYTES: usize = 8 << 20;
const SHARED_BYTES_MAX: usize = 64 << 20;
/// Readers at one time, by lane: each holds about two chunks. Bulk chunks take long, and urgent must not wait
/// for one.
const READERS_MAX: [usize; 2] = [2, 2];

/// A stretch of one lane.
#[derive(Debug)]
struct Chunk {
    from: Offset,
    /// Every record of its partitions below this is in `entries`, unless it is below `from`.
    next: Offset,
    entries: Vec<TailEntry>,
    bytes: usize,
}

/// What was read last, the newest at the back.
#[derive(Debug)]
pub struct LogReaders {
    kept: Mutex<VecDeque<(Lane, Arc<Chunk>)>>,
    /// By lane.
    places: [Arc<Places>; 2],
}

impl Default for LogReaders {
    fn default() -> LogReaders {
        LogReaders {
            kept: Mutex::default(),
            places: READERS_MAX.map(|max| Arc::new(Places::new(max))),
        }
    }
}

impl LogReaders {
    fn get(&self, lane: Lane, from: Offset) -> Option<Arc<Chunk>> {
        let mut kept = self.kept.lock();
        let has = |(of, chunk): &(Lane, Arc<Chunk>)| {
            *of == lane && chunk.from <= from && from < chunk.next
        };
        let found = kept.iter().position(has)?;
        let used = kept.remove(found)?;
        let chunk = Arc::clone(&used.1);
        kept.push_back(used);
        Some(chunk)
    }

    fn put(&self, lane: Lane, chunk: &Arc<Chunk>) {
        let mut kept = self.kept.lock();
        kept.push_back((lane, Arc::clone(chunk)));
        let mut bytes: usize = kept.iter().map(|(_, chunk)| chunk.bytes).sum();
        while bytes > SHARED_BYTES_MAX
            && let Some((_, oldest)) = kept.pop_front()
        {
            bytes -= oldest.bytes;
        }
        drop(kept);
        self.places[lane.index()].has_read(chunk.from, chunk.next);
    }
}

/// What is wanted of a lane from `from` on, about one delivery of it, and where it goes on. Only what is
/// applied is read, so nothing is delivered that apply might still drop.
pub async fn read(
    shared: &Fanout,
    filter: &FilterSpec,
    lane: Lane,
    from: Offset,
    bytes_max: usize,
) -> Result<(Vec<TailEntry>, Offset), Refusal> {
    let below = shared.rings.next();
    let partitions = filter.partitions(lane, &shared.platforms);
    if partitions.is_empty() || from >= below {
        return Ok((Vec::new(), below.max(from)));
    }
    let chunk = shared_chunk(shared, lane, &partitions, from, below).await?;
    // Of what others read, the beginning may have been trimmed since.
    let kept = shared.log.check_kept(&partitions, from);
    kept.map_err(|error| refusal(error, lane, from))?;
    Ok(wanted(&chunk, filter, from, bytes_max))
}

/// What somebody else has read, or else a new one.
async fn shared_chunk(
    shared: &Fanout,
    lane: Lane,
    partitions: &[Partition],
    from: Offset,
    below: Offset,
) -> Result<Arc<Chunk>, Refusal> {
    let readers = &shared.log_readers;
    let all: usize = shared.platforms.iter().map(|(_, n)| *n as usize).sum();
    let shares = shares(partitions.len(), all);
    let place = loop {
        if let Some(chunk) = readers.get(lane, from) {
            return Ok(chunk);
        }
        let places = &readers.places[lane.index()];
        if let Turn::Read(place) = places.turn(from, shares).await {
            break place;
        }
    };
    // Whoever was before us may have read it.
    if let Some(chunk) = readers.get(lane, from) {
        return Ok(chunk);
    }
    let (shared, partitions) = (shared.clone(), partitions.to_vec());
    let blocking = shared.blocking;
    let read = move || {
        // Until it has read, also when nobody waits for it any more: it holds its chunks.
        let _place = place;
        read_for_all(&shared, lane, &partitions, from, below)
    };
    blocking.run(read).await?
}

fn wanted(
    chunk: &Chunk,
    filter: &FilterSpec,
    from: Offset,
    bytes_max: usize,
) -> (Vec<TailEntry>, Offset) {
    let start = chunk.entries.partition_point(|e| e.head.offset < from);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for entry in &chunk.entries[start..] {
        if !filter.passes(&entry.head) {
            continue;
        }
        if bytes > 0 && bytes + entry.record.len() > bytes_max {
            return (entries, entry.head.offset);
        }
        bytes += entry.record.len();
        entries.push(entry.clone());
    }
    match planted!(RejoinSkips) {
        true => (entries, chunk.next.next()),
        false => (entries, chunk.next),
    }
}

/// Whether who wants so many of all partitions reads the whole lane.
fn shares(wanted: usize, all: usize) -> bool {
    wanted * 2 > all
}

/// The whole lane, for others too, if this subscriber wants most of it anyway.
fn read_for_all(
    shared: &Fanout,
    lane: Lane,
    wanted: &[Partition],
    from: Offset,
    below: Offset,
) -> Result<Arc<Chunk>, Refusal> {
    let all = shared.platforms.iter().flat_map(|(issuer, shards)| {
        (0..*shards).map(|shard| Partition {
            issuer: *issuer,
            lane,
            shard: hutong_proto::Shard(shard),
        })
    });
    let all: Vec<Partition> = all.collect();
    if shares(wanted.len(), all.len()) {
        match read_chunk(shared, &all, from, below, SHARED_CHUNK_BYTES) {
            Ok(chunk) => {
                let chunk = Arc::new(chunk);
                shared.log_readers.put(lane, &chunk);
                return Ok(chunk);
            }
            // What this subscriber does not want may have been trimmed further.
            Err(ReadError::Trimmed { .. }) => {}
            Err(error) => return Err(refusal(error, lane, from)),
        }
    }
    let chunk = read_chunk(shared, wanted, from, below, CHUNK_BYTES);
    chunk
        .map(Arc::new)
        .map_err(|error| refusal(error, lane, from))
}

/// Blocking.
fn read_chunk(
    shared: &Fanout,
    partitions: &[Partition],
    from: Offset,
    below: Offset,
    bytes_max: usize,
) -> Result<Chunk, ReadError> {
    let log = &shared.log;
    let merged = log.read_merged(partitions, from, below, bytes_max)?;
    let exceptions: BTreeMap<Vec<u8>, Vec<u8>> = shared
        .state
        .scan_range(&keys::exception(from), &keys::exception(merged.next))
        .map_err(|error| ReadError::Io(error.to_string()))?
        .into_iter()
        .collect();
    // An exception goes when its record does: of what was trimmed in the meantime one may be missing.
    log.check_kept(partitions, from)?;
    let mut chunk = Chunk {
        from,
        next: merged.next,
        entries: Vec::with_capacity(merged.entries.len()),
        bytes: 0,
    };
    for entry in merged.entries {
        let head = entry.head;
        let dropped = exceptions
            .get(keys::exception(head.offset).as_slice())
            .map_or(Dropped::Nothing, |row| Dropped::decode(row));
        let damaged = |refusal: Refusal| ReadError::Damaged {
            partition: head.partition,
            offset: head.offset,
            what: refusal.to_string(),
        };
        let cut = dropped.cut_unread(&head, &entry.record).map_err(damaged)?;
        let Some(delivered) = cut else { continue };
        let entry = TailEntry::new(head, delivered);
        chunk.bytes += entry.bytes();
        chunk.entries.push(entry);
    }
    Ok(chunk)
}

fn refusal(error: ReadError, lane: Lane, from: Offset) -> Refusal {
    match error {
        ReadError::Trimmed {
            partition,
            trimmed_below,
        } => compacted(lane, partition, trimmed_below, from),
        ReadError::Io(_) | ReadError::Damaged { .. } => {
            tracing::error!(%error, "a subscriber's read failed");
            Reason::Internal.into()
        }
    }
}

pub fn compacted(lane: Lane, partition: Partition, trimmed: Offset, at: Offset) -> Refusal {
    Refusal::new(Reason::CursorCompacted, format!("open.cursor.{lane}")).detail(format!(
        "offset {at}, partition {partition} is kept from {trimmed} on"
    ))
}
