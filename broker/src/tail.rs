//! Stage 6: two rings of applied records, one a lane, for readers that keep up. Bounded in bytes; a
//! reader that falls behind the ring reads the log and comes back at exactly the offset it reached,
//! because positions in the ring are the offsets of the log.

use crate::{filter::FilterSpec, log::EntryHead};
use bytes::Bytes;
use hutong_proto::{Lane, Micros, Offset, TraceContext, record};
use parking_lot::RwLock;
use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
    time::Instant,
};
use tokio::sync::watch;

/// An applied record, ready to be put into a delivery.
#[derive(Clone, Debug)]
pub struct TailEntry {
    pub head: EntryHead,
    /// The log's bytes.
    pub record: Bytes,
    /// At the source, of the oldest delta; `None` for what was read from the log again.
    pub committed_at: Option<Micros>,
    /// Of its deltas that are traced: a few at most, mostly none.
    pub traces: Option<Arc<[TraceContext]>>,
    /// When it came into the ring; `None` for what was read from the log.
    pub applied_at: Option<Instant>,
    /// Packed by the first who sends it so, for all others too. Nothing for a record that stays plain.
    packed: Arc<OnceLock<Option<Bytes>>>,
}

/// How a subscriber takes records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Lz4,
}

impl TailEntry {
    pub fn new(head: EntryHead, record: Bytes) -> TailEntry {
        TailEntry {
            head,
            record,
            committed_at: None,
            traces: None,
            applied_at: None,
            packed: Arc::default(),
        }
    }

    /// Says when its oldest delta was committed at its source, and which of them are traced.
    #[must_use]
    pub fn about(self, committed_at: Option<Micros>, traces: &[TraceContext]) -> TailEntry {
        TailEntry {
            committed_at,
            traces: (!traces.is_empty()).then(|| traces.into()),
            ..self
        }
    }

    /// Puts it into a delivery, in one piece or two.
    pub fn put(&self, packing: Packing, pieces: &mut Vec<Bytes>) {
        let (offset, at) = (self.head.offset, self.head.durable_at);
        if packing == Packing::Lz4 {
            let pack = || record::encode_logged_lz4(offset, at, &self.record);
            if let Some(packed) = self.packed.get_or_init(pack) {
                return pieces.push(packed.clone());
            }
        }
        pieces.push(record::logged_head(offset, at, self.record.len()));
        pieces.push(self.record.clone());
    }

    /// What it may cost in memory: packed, it is half as large at most.
    pub fn bytes(&self) -> usize {
        self.record.len() + self.record.len() / 2 + ENTRY_OVERHEAD_BYTES
    }
}

/// What a reader gets.
#[derive(Debug)]
pub enum TailRead {
    /// The ring does not reach back that far.
    Behind,
    /// Entries that pass the filter; everything below `next` is covered.
    Entries {
        entries: Vec<TailEntry>,
        next: Offset,
    },
}

#[derive(Debug)]
struct Ring {
    entries: VecDeque<TailEntry>,
    bytes: usize,
    bytes_max: usize,
    /// Every record of the lane at or above this offset, and below `next`, is in `entries`.
    floor: Offset,
    next: Offset,
}

/// Both rings. Written by apply alone.
#[derive(Debug)]
pub struct TailRings {
    lanes: [RwLock<Ring>; 2],
    applied: watch::Sender<Offset>,
}

/// An entry costs this much beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 200;

impl TailRings {
    /// Empty rings of a log that is applied up to `next`.
    pub fn new(next: Offset, urgent_bytes_max: usize, bulk_bytes_max: usize) -> TailRings {
        let ring = |bytes_max| {
            RwLock::new(Ring {
                entries: VecDeque::new(),
                bytes: 0,
                bytes_max,
                floor: next,
                next,
            })
        };
        TailRings {
            lanes: [ring(urgent_bytes_max), ring(bulk_bytes_max)],
            applied: watch::Sender::new(next),
        }
    }

    /// Appends a group of applied records, in the order of their offsets, and wakes the readers.
    pub fn push(&self, group: Vec<TailEntry>, next: Offset) {
        let (urgent, bulk): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|e| e.head.partition.lane == Lane::Urgent);
        let now = Instant::now();
        for (lane, entries) in self.lanes.iter().zip([urgent, bulk]) {
            let mut ring = lane.write();
            for mut entry in entries {
                entry.applied_at = Some(now);
                assert!(entry.head.offset >= ring.next, "the tail goes forward only");
                ring.bytes += entry.bytes();
                ring.entries.push_back(entry);
            }
            while ring.bytes > ring.bytes_max && ring.entries.len() > 1 {
                if let Some(old) = ring.entries.pop_front() {
                    ring.bytes -= old.bytes();
                    if !planted!(RingFloorStuck) {
                        ring.floor = old.head.offset.next();
                    }
                }
            }
            ring.next = next;
        }
        self.applied.send_replace(next);
    }

    /// What a lane holds from `from` on, as far as it passes the filter, up to about `bytes_max`.
    pub fn read(
        &self,
        lane: Lane,
        from: Offset,
        filter: &FilterSpec,
        bytes_max: usize,
    ) -> TailRead {
        let ring = self.lanes[lane.index()].read();
        if from < ring.floor {
            return TailRead::Behind;
        }
        let start = ring.entries.partition_point(|e| e.head.offset < from);
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in ring.entries.range(start..) {
            if filter.passes(&entry.head) {
                if bytes > 0 && bytes + entry.record.len() > bytes_max {
                    let next = entry.head.offset;
                    return TailRead::Entries { entries, next };
                }
                bytes += entry.record.len();
                entries.push(entry.clone());
            }
        }
        TailRead::Entries {
            entries,
            next: ring.next.max(from),
        }
    }

    /// The next offset to be applied; changes wake its holder.
    pub fn applied(&self) -> watch::Receiver<Offset> {
        self.applied.subscribe()
    }

    pub fn next(&self) -> Offset {
        *self.applied.borrow()
    }

    /// Bytes held by each lane's ring.
    pub fn bytes(&self) -> [usize; 2] {
        [self.lanes[0].read().bytes, self.lanes[1].read().bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::{Issuer, KindSet, Partition, Shard};

    const RECORD_BYTES: usize = 100;
    /// With room for its packed form.
    const ENTRY_BYTES: usize = RECORD_BYTES * 3 / 2 + ENTRY_OVERHEAD_BYTES;

    fn issuer(code: u32) -> Issuer {
        Issuer::new(code).expect("a code")
    }

    fn entry(offset: u64, lane: Lane, bytes: usize) -> TailEntry {
        let head = EntryHead {
            offset: Offset(offset),
            partition: Partition {
                issuer: issuer(340_000),
                lane,
                shard: Shard(0),
            },
            ordinal: offset,
            durable_at: Micros(offset),
            kinds: KindSet::ALL,
            deltas: 1,
        };
        TailEntry::new(head, vec![7; bytes].into())
    }

    fn everything() -> FilterSpec {
        let platforms = [(issuer(340_000), 1), (issuer(510_000), 1)];
        FilterSpec::from_api(None, issuer(510_000), &platforms).expect("everything")
    }

    /// Bulk records from this offset on, one a group.
    fn rings(bytes_max: usize, offsets: std::ops::Range<u64>) -> TailRings {
        let rings = TailRings::new(Offset(offsets.start), bytes_max, bytes_max);
        for n in offsets {
            rings.push(vec![entry(n, Lane::Bulk, RECORD_BYTES)], Offset(n + 1));
        }
        rings
    }

    /// Offsets and where to go on; nothing for who is behind.
    fn read(rings: &TailRings, from: u64, bytes_max: usize) -> Option<(Vec<u64>, u64)> {
        match rings.read(Lane::Bulk, Offset(from), &everything(), bytes_max) {
            TailRead::Behind => None,
            TailRead::Entries { entries, next } => {
                let offsets = entries.iter().map(|e| e.head.offset.0).collect();
                Some((offsets, next.0))
            }
        }
    }

    #[test]
    fn a_ring_is_bounded_and_knows_what_it_forgot() {
        let full = rings(3 * ENTRY_BYTES, 5..8);
        assert_eq!(full.bytes(), [0, 3 * ENTRY_BYTES]);
        assert_eq!(read(&full, 5, usize::MAX), Some((vec![5, 6, 7], 8)));
        full.push(vec![entry(8, Lane::Bulk, RECORD_BYTES)], Offset(9));
        assert_eq!(full.bytes(), [0, 3 * ENTRY_BYTES]);
        assert_eq!(read(&full, 5, usize::MAX), None, "5 is forgotten");
        assert_eq!(read(&full, 6, usize::MAX), Some((vec![6, 7, 8], 9)));
        // What is larger than a ring stays until the next one comes: somebody has to get it.
        full.push(vec![entry(9, Lane::Bulk, 10 * ENTRY_BYTES)], Offset(10));
        assert_eq!(read(&full, 9, usize::MAX), Some((vec![9], 10)));
        assert_eq!(read(&full, 8, usize::MAX), None);
        assert_eq!(full.bytes()[1], 15 * ENTRY_BYTES + ENTRY_OVERHEAD_BYTES);
    }

    #[test]
    fn lanes_have_rings_of_their_own_and_both_know_how_far_it_is_applied() {
        let rings = rings(3 * ENTRY_BYTES, 5..8);
        let urgent = (8..20).map(|n| entry(n, Lane::Urgent, RECORD_BYTES));
        rings.push(urgent.collect(), Offset(20));
        assert_eq!(rings.next(), Offset(20));
        assert_eq!(rings.bytes(), [3 * ENTRY_BYTES; 2]);
        assert_eq!(read(&rings, 5, usize::MAX), Some((vec![5, 6, 7], 20)));
        assert_eq!(read(&rings, 20, usize::MAX), Some((vec![], 20)));
        // Who is ahead of what is applied here stays where it is.
        assert_eq!(read(&rings, 25, usize::MAX), Some((vec![], 25)));
    }

    #[test]
    fn a_read_stops_before_it_is_too_much_and_says_where() {
        let rings = rings(1 << 20, 5..10);
        assert_eq!(read(&rings, 5, 3 * RECORD_BYTES), Some((vec![5, 6, 7], 8)));
        assert_eq!(read(&rings, 6, 3 * RECORD_BYTES - 1), Some((vec![6, 7], 8)));
        assert_eq!(read(&rings, 8, 1), Some((vec![8], 9)), "one goes always");
        assert_eq!(
            read(&rings, 5, 5 * RECORD_BYTES),
            Some((vec![5, 6, 7, 8, 9], 10))
        );
    }

    #[test]
    fn what_a_filter_leaves_out_is_covered_and_costs_nothing() {
        let rings = rings(1 << 20, 5..10);
        let platforms = [(issuer(340_000), 1), (issuer(510_000), 1)];
        // A platform does not get its own.
        let own = FilterSpec::from_api(None, issuer(340_000), &platforms).expect("everything");
        match rings.read(Lane::Bulk, Offset(5), &own, 1) {
            TailRead::Entries { entries, next } => {
                assert_eq!((entries.len(), next), (0, Offset(10)));
            }
            TailRead::Behind => panic!("it is all there"),
        }
    }

    #[test]
    fn a_record_goes_out_as_it_is_or_packed_once_for_all() {
        let entry = entry(5, Lane::Bulk, 4_000);
        let put = |packing| {
            let mut pieces = Vec::new();
            entry.put(packing, &mut pieces);
            pieces
        };
        let plain = put(Packing::Plain);
        assert_eq!(plain.len(), 2);
        assert_eq!(plain[1].as_ptr(), entry.record.as_ptr(), "the log's bytes");
        let packed = [put(Packing::Lz4), put(Packing::Lz4)];
        assert_eq!(packed[0].len(), 1);
        assert!(packed[0][0].len() < 400, "{} bytes", packed[0][0].len());
        assert_eq!(packed[0][0].as_ptr(), packed[1][0].as_ptr());
    }

    #[test]
    fn only_what_is_traced_keeps_traces() {
        let plain = entry(1, Lane::Bulk, 1).about(Some(Micros(3)), &[]);
        assert_eq!((plain.committed_at, plain.traces), (Some(Micros(3)), None));
        let trace = TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
        };
        let traced = entry(1, Lane::Bulk, 1).about(None, &[trace]);
        assert_eq!(traced.traces.as_deref(), Some(&[trace][..]));
    }
}
