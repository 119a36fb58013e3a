//! The value of a register as it is stored.

use hutong_proto::{
    Micros, Offset, Revision,
    wire::{self, FieldValue, Reader},
};
use sha2::{Digest, Sha256};

/// First byte of every row; raised when the layout changes.
const VERSION: u8 = 1;
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

/// A stored value, borrowed. Layout after the version byte: protobuf fields 1 revision, 2 committed
/// at, 3 expires at, 4 offset, 5 provenance id, 6 evidence, 7 value.
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

impl<'a> Row<'a> {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        wire::put_number(out, 1, self.revision.0);
        wire::put_number(out, 2, self.committed_at.0);
        wire::put_number(out, 3, self.expires_at.0);
        wire::put_number(out, 4, self.offset.0);
        wire::put_bytes(out, 5, &self.provenance.0);
        if !self.evidence.is_empty() {
            wire::put_bytes(out, 6, self.evidence.as_bytes());
        }
        wire::put_bytes(out, 7, self.value);
    }

    pub fn decode(bytes: &'a [u8]) -> Option<Row<'a>> {
        let (version, fields) = bytes.split_first()?;
        if *version != VERSION {
            return None;
        }
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

/// Of an encoded row, without reading the rest; `None` if it does not decode so far.
pub fn expires_at(bytes: &[u8]) -> Option<Micros> {
    let (version, fields) = bytes.split_first()?;
    let mut reader = Reader::new(fields);
    while *version == VERSION
        && let Some(field) = reader.field().ok()?
    {
        match (field.number, field.value) {
            (3, FieldValue::Varint(n)) => return Some(Micros(n)),
            (1 | 2, _) => {}
            _ => return Some(Micros::ZERO),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            prop_assert_eq!(expires_at(&bytes), Some(row.expires_at));
            prop_assert_eq!(Row::decode(&bytes[..cut.index(bytes.len())]), None);
        }
    }
}
