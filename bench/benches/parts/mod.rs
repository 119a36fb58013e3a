//! What of a delta's way is pure computing, one function for each part, over batches of 256 deltas as a
//! mass test makes them. Shared by the clock and by the counter of instructions.

use bytes::Bytes;
use hutong_bench::load::{self, Generator};
use hutong_broker::{
    admission::{self, Admitted, Rules},
    apply::Apply,
    log::{Entry, EntryHead},
    metrics::Metrics,
    routing::{self, Origin, Routed},
    state::{State, StateOptions},
    tail::{Packing, TailEntry, TailRings},
};
use hutong_connectors::client::EncodedBatch;
use hutong_proto::{
    Delta, Epoch, Issuer, Lane, Offset, Sequence, batch::BatchView, frame::Frame, record, wire,
};
use std::sync::Arc;
use tempfile::TempDir;

pub const DELTAS: u32 = 256;
/// How many subscribers a record is framed for.
const SUBSCRIBERS: usize = 32;
const RING_BYTES: usize = 1 << 20;

fn issuer() -> Issuer {
    load::issuers(1)[0]
}

/// Batches as a producer sends them, one after the other.
pub fn batches(count: u64) -> Vec<Bytes> {
    let mut generator = Generator::new(issuer(), 1_000_000, 7);
    let batch = |sequence| {
        let made = generator.batch(DELTAS, Lane::Bulk, |_| load::now());
        let mut batch = Vec::with_capacity(made.body.len() + 16);
        wire::put_number(&mut batch, 1, sequence);
        wire::put_number(&mut batch, 2, u64::from(issuer().code()));
        batch.extend_from_slice(&made.body);
        batch.into()
    };
    (1..=count).map(batch).collect()
}

pub fn batch() -> Bytes {
    batches(1).remove(0)
}

/// The deltas of a batch, as a connector has them.
pub fn deltas() -> Vec<Delta> {
    let bytes = batch();
    let batch = BatchView::parse(&bytes).expect("a good batch");
    let provenance = Arc::new(batch.provenance(0).expect("a good entry").to_owned());
    (0..batch.deltas.len())
        .map(|i| {
            let delta = batch.delta(i).expect("a good delta");
            delta.to_owned(Arc::clone(&provenance))
        })
        .collect()
}

/// Connector: the deltas as bytes.
#[inline(never)]
pub fn encode(deltas: &[Delta]) -> EncodedBatch {
    EncodedBatch::from_deltas(deltas).expect("small enough")
}

/// Ingress: is each delta good, and where does it belong?
#[inline(never)]
pub fn decode(batch: &Bytes) -> Admitted<'_> {
    let rules = Rules {
        issuer: issuer(),
        shards: 1,
        now: load::now(),
    };
    let admitted = admission::admit(batch, &rules).expect("a good batch");
    assert!(admitted.refused.is_empty(), "all of it is good");
    admitted
}

/// Ingress: the records that it becomes.
#[inline(never)]
pub fn route(admitted: Admitted<'_>) -> Routed {
    let origin = Origin {
        producer: "bench",
        epoch: Epoch(1),
        epoch_base: Sequence::NONE,
    };
    routing::route(admitted, &origin)
}

/// The records of batches that follow each other, as the log gives them to apply.
pub fn entries(count: u64) -> Vec<Entry> {
    let entry = |(i, batch): (usize, &Bytes)| {
        let part = route(decode(batch)).parts.remove(0);
        Entry {
            head: EntryHead {
                offset: Offset(Offset::FIRST.0 + i as u64),
                partition: part.partition,
                ordinal: i as u64 + 1,
                durable_at: load::now(),
                kinds: part.kinds,
                deltas: part.indexes.len() as u32,
            },
            record: part.record,
        }
    };
    batches(count).iter().enumerate().map(entry).collect()
}

/// Apply, with an empty state in memory behind it.
pub struct Applier {
    apply: Apply,
    _dir: TempDir,
}

pub fn applier() -> Applier {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let state = State::open(dir.path(), StateOptions::default()).expect("an empty state");
    let rings = TailRings::new(state.stored().next, RING_BYTES, RING_BYTES);
    let apply = Apply::open(
        Arc::new(state),
        Arc::new(rings),
        Arc::default(),
        Metrics::new([]).recorder(),
    );
    Applier {
        apply: apply.expect("an empty state"),
        _dir: dir,
    }
}

/// Apply: is the batch new, and which of its deltas are newer than what is known?
#[inline(never)]
pub fn dedupe(applier: &mut Applier, entries: &[Entry]) {
    applier.apply.group(entries).expect("in order");
}

/// Fan-out: the record, packed once, in a frame for each subscriber.
#[inline(never)]
pub fn frame(entry: &Entry) -> Vec<Frame> {
    let entry = TailEntry::new(entry.head, entry.record.clone());
    let frame = || {
        let mut pieces = Vec::new();
        entry.put(Packing::Lz4, &mut pieces);
        record::delivery(pieces)
    };
    (0..SUBSCRIBERS).map(|_| frame()).collect()
}
