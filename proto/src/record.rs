//! The unit of the log, encoded once by the broker and delivered as the same bytes.

use crate::{
    batch::{DELTA_FIELD, DELTA_TAG, DeltaView, PROVENANCE_FIELD, ProvenanceView, inner},
    delta::DeltaParts,
    frame::Frame,
    ids::{Epoch, Issuer, Lane, Micros, Offset, Partition, Sequence, Shard},
    packing,
    reason::{Reason, Refusal},
    wire::{self, FieldValue, Reader},
};
use bytes::Bytes;
use std::{borrow::Cow, ops::Range};

/// What a record says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader<'a> {
    pub partition: Partition,
    pub producer: &'a str,
    pub epoch: Epoch,
    pub sequence: Sequence,
    /// The sequence number after which this epoch began.
    pub epoch_base: Sequence,
    /// How many records the batch became.
    pub parts: u32,
}

/// Writes records.
#[derive(Debug)]
pub struct RecordBuilder {
    out: Vec<u8>,
}

impl RecordBuilder {
    pub fn new(header: &RecordHeader<'_>, capacity: usize) -> RecordBuilder {
        let mut out = Vec::with_capacity(capacity + 64 + header.producer.len());
        wire::put_number(&mut out, 1, u64::from(header.partition.issuer.code()));
        wire::put_number(&mut out, 2, header.partition.lane as u64);
        wire::put_number(&mut out, 3, u64::from(header.partition.shard.0));
        wire::put_bytes(&mut out, 4, header.producer.as_bytes());
        wire::put_number(&mut out, 5, header.epoch.0);
        wire::put_number(&mut out, 6, header.sequence.0);
        wire::put_number(&mut out, 7, header.epoch_base.0);
        wire::put_number(&mut out, 8, u64::from(header.parts));
        RecordBuilder { out }
    }

    /// Appends provenance entries or deltas that are written with their tags, as they stand in a
    /// batch or in another record. All provenance comes before the first delta.
    pub fn fields(&mut self, tagged: &[u8]) {
        self.out.extend_from_slice(tagged);
    }

    /// Takes the place of a provenance entry that no delta of the record refers to, so that the
    /// indexes of the others hold.
    pub fn no_provenance(&mut self) {
        wire::put_len(&mut self.out, PROVENANCE_FIELD, 0);
    }

    pub fn finish(self) -> Bytes {
        self.out.into()
    }
}

/// A record whose outline is known; its deltas are read one by one.
#[derive(Clone, Debug)]
pub struct RecordView<'a> {
    pub bytes: &'a [u8],
    pub header: RecordHeader<'a>,
    /// Of each provenance entry, tag included.
    pub provenance: Vec<Range<usize>>,
    /// Of each delta, tag included.
    pub deltas: Vec<Range<usize>>,
}

impl<'a> RecordView<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<RecordView<'a>, Refusal> {
        let mut numbers = [0u64; 9];
        let mut producer = "";
        let mut provenance = Vec::new();
        let mut deltas = Vec::with_capacity(bytes.len() / 96);
        let mut reader = Reader::new(bytes);
        loop {
            while let Some(delta) = reader.short_field(DELTA_TAG) {
                deltas.push(delta);
            }
            let Some(field) = reader.field()? else { break };
            match (field.number, field.value) {
                (4, FieldValue::Len(b)) => {
                    producer = std::str::from_utf8(b)
                        .map_err(|_| Refusal::new(Reason::StringNotUtf8, "producer"))?;
                }
                (n @ (1..=3 | 5..=8), FieldValue::Varint(value)) => numbers[n as usize] = value,
                (PROVENANCE_FIELD, FieldValue::Len(_)) => provenance.push(field.start..field.end),
                (DELTA_FIELD, FieldValue::Len(_)) => deltas.push(field.start..field.end),
                (n, _) => {
                    return Err(Refusal::new(Reason::FieldUnknown, "record")
                        .detail(format!("field number {n}")));
                }
            }
        }
        let bad = |field: &str| Refusal::new(Reason::ValueOutOfRange, field);
        let small = |n: usize, field| u32::try_from(numbers[n]).map_err(|_| bad(field));
        let issuer = match small(1, "issuer")? {
            0 => Issuer::BROKER,
            code => Issuer::new(code).ok_or_else(|| bad("issuer"))?,
        };
        Ok(RecordView {
            bytes,
            header: RecordHeader {
                partition: Partition {
                    issuer,
                    lane: Lane::from_number(numbers[2]).ok_or_else(|| bad("lane"))?,
                    shard: Shard(small(3, "shard")?),
                },
                producer,
                epoch: Epoch(numbers[5]),
                sequence: Sequence(numbers[6]),
                epoch_base: Sequence(numbers[7]),
                parts: small(8, "parts")?,
            },
            provenance,
            deltas,
        })
    }

    pub fn provenance(&self, index: usize) -> Result<ProvenanceView<'a>, Refusal> {
        let range = self.provenance.get(index).ok_or_else(|| {
            Refusal::new(Reason::ProvenanceMissing, format!("provenance[{index}]"))
        })?;
        ProvenanceView::parse(inner(&self.bytes[range.clone()])?)
    }

    pub fn delta(&self, index: usize) -> Result<DeltaView<'a>, Refusal> {
        DeltaView::parse(inner(&self.bytes[self.deltas[index].clone()])?)
    }

    /// The same without looking into its value.
    #[inline]
    pub fn delta_parts(&self, index: usize) -> Result<DeltaParts<'a>, Refusal> {
        DeltaParts::read(inner(&self.bytes[self.deltas[index].clone()])?)
    }

    /// The same record with only the deltas that `keep` says yes to. The header and the provenance
    /// table stay, so the indexes of the deltas that are left hold.
    pub fn retain(&self, mut keep: impl FnMut(usize) -> bool) -> Bytes {
        let mut out = RecordBuilder::new(&self.header, self.bytes.len());
        for range in &self.provenance {
            out.fields(&self.bytes[range.clone()]);
        }
        for (i, range) in self.deltas.iter().enumerate() {
            if keep(i) {
                out.fields(&self.bytes[range.clone()]);
            }
        }
        out.finish()
    }
}

/// What stands before an encoded record in an entry of a `RecordBatch`, from the tag of the entry on: a
/// delivery is made by putting such entries one behind the other.
pub fn logged_head(offset: Offset, durable_at: Micros, record_bytes: usize) -> Bytes {
    let mut head = Vec::with_capacity(32);
    wire::put_number(&mut head, 1, offset.0);
    wire::put_number(&mut head, 2, durable_at.0);
    wire::put_len(&mut head, 3, record_bytes);
    entry(&head, record_bytes).into()
}

/// The whole entry with the record packed, for who takes LZ4; `None` if it would not become much smaller,
/// and is better sent plain.
pub fn encode_logged_lz4(offset: Offset, durable_at: Micros, record: &[u8]) -> Option<Bytes> {
    let packed = packing::pack(record)?;
    let mut head = Vec::with_capacity(32);
    wire::put_number(&mut head, 1, offset.0);
    wire::put_number(&mut head, 2, durable_at.0);
    wire::put_number(&mut head, 5, record.len() as u64);
    wire::put_len(&mut head, 4, packed.len());
    let mut out = entry(&head, packed.len());
    out.extend_from_slice(&packed);
    Some(out.into())
}

/// Tag and length of an entry and its head; room for what follows.
fn entry(head: &[u8], rest: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(head.len() + rest + 8);
    wire::put_len(&mut out, 1, head.len() + rest);
    out.extend_from_slice(head);
    out
}

/// Field of `RecordBatch` in a `SubscribeResponse`.
const RECORDS_FIELD: u32 = 5;

/// A `SubscribeResponse` with entries, each in one piece or in several.
pub fn delivery(entries: Vec<Bytes>) -> Frame {
    let mut head = Vec::with_capacity(8);
    wire::put_len(
        &mut head,
        RECORDS_FIELD,
        entries.iter().map(Bytes::len).sum(),
    );
    Frame::in_parts(head.into(), entries)
}

/// A record as a subscriber gets it, without copying.
#[derive(Clone, Debug)]
pub struct LoggedView<'a> {
    pub offset: Offset,
    pub durable_at: Micros,
    body: Body<'a>,
    /// Of a packed record.
    record_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Body<'a> {
    Plain(&'a [u8]),
    Lz4(&'a [u8]),
}

impl<'a> LoggedView<'a> {
    /// The encoded record, unpacked if it came packed.
    pub fn record(&self) -> Result<Cow<'a, [u8]>, Refusal> {
        match self.body {
            Body::Plain(record) => Ok(Cow::Borrowed(record)),
            Body::Lz4(packed) => packing::unpack(packed, self.record_bytes).map(Cow::Owned),
        }
    }
}

/// The records of a delivery, or `None` if this `SubscribeResponse` is something else.
pub fn read_delivery(message: &[u8]) -> Result<Option<Vec<LoggedView<'_>>>, Refusal> {
    let Some(field) = Reader::new(message).field()? else {
        return Ok(None);
    };
    let (RECORDS_FIELD, FieldValue::Len(batch)) = (field.number, field.value) else {
        return Ok(None);
    };
    let mut records = Vec::new();
    let mut reader = Reader::new(batch);
    while let Some(field) = reader.field()? {
        let (1, FieldValue::Len(entry)) = (field.number, field.value) else {
            continue;
        };
        let mut logged = LoggedView {
            offset: Offset::NONE,
            durable_at: Micros::ZERO,
            body: Body::Plain(&[]),
            record_bytes: 0,
        };
        let mut entry = Reader::new(entry);
        while let Some(field) = entry.field()? {
            match (field.number, field.value) {
                (1, FieldValue::Varint(n)) => logged.offset = Offset(n),
                (2, FieldValue::Varint(n)) => logged.durable_at = Micros(n),
                (3, FieldValue::Len(b)) => logged.body = Body::Plain(b),
                (4, FieldValue::Len(b)) => logged.body = Body::Lz4(b),
                (5, FieldValue::Varint(n)) => {
                    logged.record_bytes = usize::try_from(n).unwrap_or(usize::MAX);
                }
                _ => {}
            }
        }
        records.push(logged);
    }
    Ok(Some(records))
}
