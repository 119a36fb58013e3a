//! Keys and values of the embedded log on disk. Never renumbered.

use crate::log::EntryHead;
use hutong_proto::{KindSet, Micros, Offset, Partition};

/// What is in the meta column family: the first byte of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MetaKind {
    /// No more key. Value: u64 BE, made at random when the log was created.
    LogId = 0x01,
    /// Then the partition, u32 BE. Value: last offset, last ordinal, last time, bytes of all its records
    /// so far; u64 BE. Written by the writer alone, with the entries.
    Partition = 0x10,
    /// Then the partition, u32 BE. Value: everything below this offset was trimmed; u64 BE.
    Trimmed = 0x11,
}

/// Written first in every entry; raised when its layout changes.
const ENTRY_VERSION: u8 = 1;
/// Version u8, time u64, ordinal u64, kinds u8, deltas u32, all BE; then the record.
pub const HEAD_BYTES: usize = 1 + 8 + 8 + 1 + 4;

pub fn entry(partition: Partition, offset: Offset) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&partition.to_number().to_be_bytes());
    key[4..].copy_from_slice(&offset.0.to_be_bytes());
    key
}

pub fn decode_entry(key: &[u8]) -> Option<(Partition, Offset)> {
    let (partition, offset) = key.split_at_checked(4)?;
    let partition = Partition::from_number(u32::from_be_bytes(partition.try_into().ok()?))?;
    Some((
        partition,
        Offset(u64::from_be_bytes(offset.try_into().ok()?)),
    ))
}

pub fn log_id() -> [u8; 1] {
    [MetaKind::LogId as u8]
}

pub fn partition(partition: Partition) -> [u8; 5] {
    let mut key = [MetaKind::Partition as u8; 5];
    key[1..].copy_from_slice(&partition.to_number().to_be_bytes());
    key
}

pub fn trimmed(partition: Partition) -> [u8; 5] {
    let mut key = self::partition(partition);
    key[0] = MetaKind::Trimmed as u8;
    key
}

pub fn decode_trimmed(value: &[u8]) -> Option<Offset> {
    Some(Offset(u64::from_be_bytes(value.try_into().ok()?)))
}

pub fn decode_partition(key: &[u8]) -> Option<Partition> {
    let (kind, number) = key.split_first()?;
    if *kind != MetaKind::Partition as u8 {
        return None;
    }
    Partition::from_number(u32::from_be_bytes(number.try_into().ok()?))
}

/// What is stored of a partition besides its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionRow {
    pub last: Offset,
    pub last_ordinal: u64,
    pub last_durable_at: Micros,
    /// Of all records that it ever had, trimmed ones included.
    pub bytes: u64,
}

impl PartitionRow {
    pub fn encode(&self) -> [u8; 32] {
        let mut out = [0; 32];
        let numbers = [
            self.last.0,
            self.last_ordinal,
            self.last_durable_at.0,
            self.bytes,
        ];
        for (chunk, n) in out.chunks_exact_mut(8).zip(numbers) {
            chunk.copy_from_slice(&n.to_be_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<PartitionRow> {
        let number = |i: usize| -> Option<u64> {
            let bytes = bytes.get(i * 8..i * 8 + 8)?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        };
        Some(PartitionRow {
            last: Offset(number(0)?),
            last_ordinal: number(1)?,
            last_durable_at: Micros(number(2)?),
            // Not in rows of the first brokers.
            bytes: number(3).unwrap_or(0),
        })
    }

    /// Of so many of its records, if they are like the others.
    pub fn bytes_of(&self, records: u64) -> u64 {
        let bytes = u128::from(self.bytes) * u128::from(records);
        (bytes / u128::from(self.last_ordinal.max(1))) as u64
    }
}

pub fn encode_value(head: &EntryHead, record: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + record.len());
    out.push(ENTRY_VERSION);
    out.extend_from_slice(&head.durable_at.0.to_be_bytes());
    out.extend_from_slice(&head.ordinal.to_be_bytes());
    out.push(head.kinds.0);
    out.extend_from_slice(&head.deltas.to_be_bytes());
    out.extend_from_slice(record);
    out
}

/// The head of an entry; the record is what follows [`HEAD_BYTES`].
pub fn decode_head(partition: Partition, offset: Offset, value: &[u8]) -> Option<EntryHead> {
    if value.len() < HEAD_BYTES || value[0] != ENTRY_VERSION {
        return None;
    }
    Some(EntryHead {
        offset,
        partition,
        durable_at: Micros(u64::from_be_bytes(value[1..9].try_into().ok()?)),
        ordinal: u64::from_be_bytes(value[9..17].try_into().ok()?),
        kinds: KindSet(value[17]),
        deltas: u32::from_be_bytes(value[18..22].try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::{Issuer, Lane, Shard};

    fn place() -> Partition {
        Partition {
            issuer: Issuer::new(340_000).expect("a code"),
            lane: Lane::Urgent,
            shard: Shard(2),
        }
    }

    /// What is on disk outlives this program.
    #[test]
    fn keys_are_what_they_always_were() {
        assert_eq!(log_id(), [0x01]);
        assert_eq!(partition(place()), [0x10, 0x53, 0x02, 0x01, 0x02]);
        assert_eq!(trimmed(place()), [0x11, 0x53, 0x02, 0x01, 0x02]);
        let key = entry(place(), Offset(0x0a0b));
        assert_eq!(key, [0x53, 0x02, 0x01, 0x02, 0, 0, 0, 0, 0, 0, 0x0a, 0x0b]);
        assert_eq!(decode_entry(&key), Some((place(), Offset(0x0a0b))));
    }

    #[test]
    fn an_entry_that_is_cut_off_or_of_another_version_is_none() {
        let head = EntryHead {
            offset: Offset(9),
            partition: place(),
            durable_at: Micros(7),
            ordinal: 5,
            kinds: KindSet::ALL,
            deltas: 3,
        };
        let value = encode_value(&head, b"");
        let decode = |value: &[u8]| decode_head(place(), Offset(9), value);
        assert_eq!(decode(&value), Some(head));
        assert_eq!(decode(&value[..HEAD_BYTES - 1]), None);
        assert_eq!(decode(b""), None);
        let mut other = value;
        other[0] += 1;
        assert_eq!(decode(&other), None);
    }
}
