//! Stage 3: which partitions does a batch touch? Its deltas become one record for each, encoded here
//! and never again: the bytes of a delta move from the batch to the record as they are.

use crate::{
    admission::{Admitted, Place},
    log::{Append, Done},
};
use bytes::Bytes;
use hutong_proto::{
    Epoch, Issuer, KindSet, Lane, Micros, Partition, Refusal, Sequence, Shard,
    batch::BatchView,
    record::{RecordBuilder, RecordHeader},
};

/// The session that a batch came in on.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub producer: &'a str,
    pub epoch: Epoch,
    pub epoch_base: Sequence,
}

/// A batch as records. Only [`route`] and [`empty`] make one.
#[derive(Debug)]
pub struct Routed {
    pub sequence: Sequence,
    pub parts: Vec<Part>,
    pub refused: Vec<(u32, Refusal)>,
    _made_here: Made,
}

#[derive(Debug)]
struct Made;

/// One record of a batch, which only this module makes.
#[derive(Debug)]
pub struct Part {
    pub partition: Partition,
    pub kinds: KindSet,
    /// Index in the batch of each delta of the record.
    pub indexes: Vec<u32>,
    pub record: Bytes,
    /// At the source, of its oldest delta; `None` without deltas.
    pub committed_at: Option<Micros>,
    _made_here: Made,
}

impl Part {
    /// What goes into the log, and which deltas of the batch it has.
    pub fn into_append(self, done: Done) -> (Append, Vec<u32>) {
        let append = Append {
            partition: self.partition,
            kinds: self.kinds,
            deltas: self.indexes.len() as u32,
            record: self.record,
            done,
        };
        (append, self.indexes)
    }
}

/// Only what its deltas refer to: other entries may be what was refused, and nobody is to read that.
fn put_provenance(record: &mut RecordBuilder, batch: &BatchView<'_>, group: &[Place]) {
    let mut used = vec![false; batch.provenance.len()];
    for place in group {
        used[place.provenance as usize] = true;
    }
    let last = used.iter().rposition(|used| *used).unwrap_or(0);
    for (range, used) in batch.provenance.iter().zip(used).take(last + 1) {
        match used {
            true => record.fields(&batch.bytes[range.clone()]),
            false => record.no_provenance(),
        }
    }
}

/// For a plant.
fn flipped(delta: &[u8]) -> Vec<u8> {
    let mut bytes = delta.to_vec();
    bytes.last_mut().into_iter().for_each(|last| *last ^= 1);
    bytes
}

/// Splits a batch by partition, urgent first. A batch of which nothing was accepted becomes one
/// record without deltas: its sequence number is durable like that of any other.
pub fn route(admitted: Admitted<'_>, origin: &Origin<'_>) -> Routed {
    let Admitted {
        batch,
        issuer,
        mut accepted,
        refused,
        ..
    } = admitted;
    // Stable, so the deltas of a register keep their order.
    accepted.sort_by_key(|p| (p.lane, p.shard));
    let groups: Vec<&[Place]> = accepted
        .chunk_by(|a, b| (a.lane, a.shard) == (b.lane, b.shard))
        .collect();
    let header = |lane, shard| RecordHeader {
        partition: Partition {
            issuer,
            lane,
            shard,
        },
        producer: origin.producer,
        epoch: origin.epoch,
        sequence: batch.sequence,
        epoch_base: origin.epoch_base,
        parts: groups.len() as u32,
    };
    let mut parts = Vec::with_capacity(groups.len());
    for group in &groups {
        let first = match planted!(WrongPartition) {
            true => &groups[0][0],
            false => &group[0],
        };
        let header = header(first.lane, first.shard);
        let bytes = batch.bytes.len() * group.len() / batch.deltas.len() + 256;
        let mut record = RecordBuilder::new(&header, bytes);
        put_provenance(&mut record, &batch, group);
        let mut kinds = KindSet::default();
        for place in *group {
            kinds.0 |= place.kinds.0;
            let delta = &batch.bytes[batch.deltas[place.index as usize].clone()];
            match planted!(ByteFlipped, once in 16) {
                true => record.fields(&flipped(delta)),
                false => record.fields(delta),
            }
        }
        parts.push(Part {
            partition: header.partition,
            kinds,
            indexes: group.iter().map(|p| p.index).collect(),
            record: record.finish(),
            committed_at: group.iter().map(|p| p.committed_at).min(),
            _made_here: Made,
        });
    }
    if parts.is_empty() {
        let mut routed = empty(issuer, batch.sequence, origin);
        routed.refused = refused;
        return routed;
    }
    Routed {
        sequence: batch.sequence,
        parts,
        refused,
        _made_here: Made,
    }
}

/// The record of a batch that was refused as a whole.
pub fn empty(issuer: Issuer, sequence: Sequence, origin: &Origin<'_>) -> Routed {
    let partition = Partition {
        issuer,
        lane: Lane::Urgent,
        shard: Shard(0),
    };
    let header = RecordHeader {
        partition,
        producer: origin.producer,
        epoch: origin.epoch,
        sequence,
        epoch_base: origin.epoch_base,
        parts: 1,
    };
    Routed {
        sequence,
        parts: vec![Part {
            partition,
            kinds: KindSet::default(),
            indexes: Vec::new(),
            record: RecordBuilder::new(&header, 0).finish(),
            committed_at: None,
            _made_here: Made,
        }],
        refused: Vec::new(),
        _made_here: Made,
    }
}
