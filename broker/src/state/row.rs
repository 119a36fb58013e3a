//! The value of a register, and how it is kept in memory until it goes down.

use hutong_proto::{
    Micros, Offset, Revision,
    wire::{FieldValue, Reader},
};
use sha2::{Digest, Sha256};

/// An expired value is kept this much longer, so that an older revision that comes late is still
/// known to be older. Counted in the log's time, which is the same on every node.
pub const EXPIRED_KEPT_US: u64 = 7 * 24 * 3600 * 1_000_000;

/// First 16 bytes of SHA-256 of an encoded provenance entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProvenanceId(pub [u8; 16]);

impl ProvenanceId {
    pub fn of(entry: &[u8]) -> ProvenanceId {
        let mut id = [0; 16];
        id.copy_from_slice(&Sha256::digest(entry)[..16]);
        ProvenanceId(id)
    }
}

/// A stored value, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    pub revision: Revision,
    pub committed_at: Micros,
    /// Zero: never.
    pub expires_at: Micros,
    /// Where in the log it came from.
    pub offset: Offset,
    pub provenance: ProvenanceId,
    pub evidence: &'a str,
    /// The encoded value message.
    pub value: &'a [u8],
}

/// A stored value on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRow {
    pub revision: Revision,
    pub committed_at: Micros,
    pub expires_at: Micros,
    pub offset: Offset,
    pub provenance: ProvenanceId,
    pub evidence: String,
    pub value: Vec<u8>,
}

/// Of a row in memory, before evidence and value: revision, committed at, expires at, offset, u64 LE each; the
/// provenance id; bytes of the evidence and of the value, u16 LE each. One layout for all, so that each is read
/// without a look at the others.
const HEAD_BYTES: usize = 4 * 8 + 16 + 4;

impl<'a> Row<'a> {
    /// Appends it, as it is kept in memory.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut head = [0; HEAD_BYTES];
        let numbers = [
            self.revision.0,
            self.committed_at.0,
            self.expires_at.0,
            self.offset.0,
        ];
        for (place, n) in head.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&n.to_le_bytes());
        }
        head[32..48].copy_from_slice(&self.provenance.0);
        let lengths = [self.evidence.len(), self.value.len()];
        for (place, n) in head[48..].chunks_exact_mut(2).zip(lengths) {
            let n = u16::try_from(n).expect("a delta is bounded far below this");
            place.copy_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&head);
        out.extend_from_slice(self.evidence.as_bytes());
        out.extend_from_slice(self.value);
    }

    /// What [`Row::encode`] wrote.
    pub fn decode(bytes: &'a [u8]) -> Option<Row<'a>> {
        let (head, texts) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let number = |i: usize| {
            let eight = head[i * 8..i * 8 + 8].try_into();
            u64::from_le_bytes(eight.expect("8 bytes"))
        };
        let length = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
        let (evidence, value) = texts.split_at_checked(length(48))?;
        let row = Row {
            revision: Revision(number(0)),
            committed_at: Micros(number(1)),
            expires_at: Micros(number(2)),
            offset: Offset(number(3)),
            provenance: ProvenanceId(head[32..48].try_into().ok()?),
            evidence: std::str::from_utf8(evidence).ok()?,
            value,
        };
        (value.len() == length(50)).then_some(row)
    }

    /// A row as layout 1 of the data folder has it: a byte that is 1, and protobuf fields: 1 revision, 2 committed
    /// at, 3 expires at, 4 offset, 5 provenance id, 6 evidence, 7 value.
    pub fn decode_layout_1(bytes: &'a [u8]) -> Option<Row<'a>> {
        let (1, fields) = bytes.split_first()? else {
            return None;
        };
        let mut row = Row {
            revision: Revision(0),
            committed_at: Micros::ZERO,
            expires_at: Micros::ZERO,
            offset: Offset::NONE,
            provenance: ProvenanceId([0; 16]),
            evidence: "",
            value: &[],
        };
        // Always written, and last: a row without it was cut.
        let mut whole = false;
        let mut reader = Reader::new(fields);
        while let Some(field) = reader.field().ok()? {
            match (field.number, field.value) {
                (1, FieldValue::Varint(n)) => row.revision = Revision(n),
                (2, FieldValue::Varint(n)) => row.committed_at = Micros(n),
                (3, FieldValue::Varint(n)) => row.expires_at = Micros(n),
                (4, FieldValue::Varint(n)) => row.offset = Offset(n),
                (5, FieldValue::Len(b)) => row.provenance = ProvenanceId(b.try_into().ok()?),
                (6, FieldValue::Len(b)) => row.evidence = std::str::from_utf8(b).ok()?,
                (7, FieldValue::Len(b)) => {
                    row.value = b;
                    whole = true;
                }
                _ => return None,
            }
        }
        whole.then_some(row)
    }

    /// So long expired that it counts as never written.
    pub fn forgotten(&self, log_time: Micros) -> bool {
        forgotten(self.expires_at, log_time)
    }

    pub fn to_owned(&self) -> OwnedRow {
        OwnedRow {
            revision: self.revision,
            committed_at: self.committed_at,
            expires_at: self.expires_at,
            offset: self.offset,
            provenance: self.provenance,
            evidence: self.evidence.to_owned(),
            value: self.value.to_owned(),
        }
    }
}

/// As [`Row::forgotten`].
pub fn forgotten(expires_at: Micros, log_time: Micros) -> bool {
    expires_at != Micros::ZERO && expires_at.0.saturating_add(EXPIRED_KEPT_US) <= log_time.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::wire;
    use proptest::prelude::*;

    /// Of the brokers before, which stay readable.
    #[test]
    fn a_row_of_layout_1_is_read_field_by_field_and_one_that_was_cut_is_none() {
        let mut bytes = vec![1];
        for (field, number) in [(1, 11), (2, 22), (3, 33), (4, 44)] {
            wire::put_number(&mut bytes, field, number);
        }
        wire::put_bytes(&mut bytes, 5, &[5; 16]);
        wire::put_bytes(&mut bytes, 6, "why".as_bytes());
        let cut = bytes.clone();
        wire::put_bytes(&mut bytes, 7, b"value");
        let row = Row {
            revision: Revision(11),
            committed_at: Micros(22),
            expires_at: Micros(33),
            offset: Offset(44),
            provenance: ProvenanceId([5; 16]),
            evidence: "why",
            value: b"value",
        };
        assert_eq!(Row::decode_layout_1(&bytes), Some(row));
        assert_eq!(Row::decode_layout_1(&cut), None);
        let mut newer = bytes.clone();
        newer[0] = 2;
        assert_eq!(Row::decode_layout_1(&newer), None);
        wire::put_number(&mut bytes, 8, 1);
        assert_eq!(Row::decode_layout_1(&bytes), None);
    }

    proptest! {
        #[test]
        fn rows_are_read_back_and_damage_never_panics(
            numbers in any::<[u64; 4]>(),
            id in any::<[u8; 16]>(),
            evidence in ".{0,20}",
            value in proptest::collection::vec(any::<u8>(), 0..40),
            cut in any::<prop::sample::Index>(),
        ) {
            let row = Row {
                revision: Revision(numbers[0]),
                committed_at: Micros(numbers[1]),
                expires_at: Micros(numbers[2]),
                offset: Offset(numbers[3]),
                provenance: ProvenanceId(id),
                evidence: &evidence,
                value: &value,
            };
            let mut bytes = Vec::new();
            row.encode(&mut bytes);
            prop_assert_eq!(Row::decode(&bytes), Some(row));
            prop_assert_eq!(Row::decode(&bytes[..cut.index(bytes.len())]), None);
        }
    }
}
