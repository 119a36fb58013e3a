//! Keys of the state on disk. The first byte says what a row is; never renumbered.

use hutong_proto::{EntityId, Issuer, Kind, Offset, Shard};

use crate::state::row::ProvenanceId;

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum KeyKind {
    /// No more key. How far the log is applied: next offset, log time, deltas; u64 BE.
    Applied = 0x01,
    /// Issuer u32 BE, name. What is known of a producer's batches.
    Producer = 0x02,
    /// 16 bytes, the hash of the entry. An encoded `Provenance`.
    Provenance = 0x03,
    /// Offset u64 BE. Which deltas of a record were not applied.
    Exception = 0x04,
    /// Platform u32 BE, name. An encoded `StoredSubscription`.
    Subscription = 0x05,
    /// Issuer u32 BE, kind u8, shard u8. The highest revision, u64 BE.
    Highest = 0x06,
    /// Issuer u32 BE. How many provenance entries it was the first to use, u64 BE.
    ProvenanceCount = 0x07,
    /// No more key. Which tables there are; see `tables.rs`.
    Tables = 0x08,
    /// Entity 16 bytes, kind u8, issuer u24 BE. The current value, in layout 1 of the data folder and in simulations. On
    /// disk registers are in tables since; see `table.rs`.
    Register = 0x10,
}

/// A register: what one issuer says of one entity in one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegisterKey {
    pub entity: EntityId,
    pub kind: Kind,
    pub issuer: Issuer,
}

/// Of an encoded register key, its kind byte left out.
pub const REGISTER_BYTES: usize = 20;

impl RegisterKey {
    /// Without the kind byte, as the gathered map keeps it.
    pub fn encode(&self) -> [u8; REGISTER_BYTES] {
        let mut key = [0; REGISTER_BYTES];
        key[..16].copy_from_slice(&self.entity.0);
        // As one number: it is read as one, and the processor hands over only what it wrote at once.
        let last = (self.kind as u32) << 24 | self.issuer.code();
        key[16..].copy_from_slice(&last.to_be_bytes());
        key
    }

    pub fn decode(key: &[u8]) -> Option<RegisterKey> {
        let key: &[u8; REGISTER_BYTES] = key.try_into().ok()?;
        Some(RegisterKey {
            entity: EntityId::from_slice(&key[..16])?,
            kind: Kind::from_number(u64::from(key[16]))?,
            issuer: Issuer::new(u32::from_be_bytes([0, key[17], key[18], key[19]]))?,
        })
    }

    /// As it is on disk.
    pub fn stored(&self) -> [u8; REGISTER_BYTES + 1] {
        stored_register(&self.encode())
    }
}

pub fn stored_register(key: &[u8; REGISTER_BYTES]) -> [u8; REGISTER_BYTES + 1] {
    let mut out = [KeyKind::Register as u8; REGISTER_BYTES + 1];
    out[1..].copy_from_slice(key);
    out
}

pub fn register_prefix() -> [u8; 1] {
    [KeyKind::Register as u8]
}

pub fn tables() -> [u8; 1] {
    [KeyKind::Tables as u8]
}

/// Of all registers of one entity.
pub fn entity_prefix(entity: EntityId) -> [u8; 17] {
    let mut out = [KeyKind::Register as u8; 17];
    out[1..].copy_from_slice(&entity.0);
    out
}

pub fn applied() -> [u8; 1] {
    [KeyKind::Applied as u8]
}

pub fn producer_prefix() -> [u8; 1] {
    [KeyKind::Producer as u8]
}

pub fn producer_prefix_of(issuer: Issuer) -> Vec<u8> {
    named(KeyKind::Producer, issuer, "")
}

pub fn producer(issuer: Issuer, name: &str) -> Vec<u8> {
    named(KeyKind::Producer, issuer, name)
}

pub fn decode_producer(key: &[u8]) -> Option<(Issuer, String)> {
    decode_named(KeyKind::Producer, key)
}

pub fn subscription_prefix() -> [u8; 1] {
    [KeyKind::Subscription as u8]
}

pub fn subscription(platform: Issuer, name: &str) -> Vec<u8> {
    named(KeyKind::Subscription, platform, name)
}

pub fn decode_subscription(key: &[u8]) -> Option<(Issuer, String)> {
    decode_named(KeyKind::Subscription, key)
}

fn named(kind: KeyKind, issuer: Issuer, name: &str) -> Vec<u8> {
    let mut out = vec![kind as u8];
    out.extend_from_slice(&issuer.code().to_be_bytes());
    out.extend_from_slice(name.as_bytes());
    out
}

fn decode_named(kind: KeyKind, key: &[u8]) -> Option<(Issuer, String)> {
    let (code, name) = key.strip_prefix(&[kind as u8])?.split_at_checked(4)?;
    let issuer = Issuer::new(u32::from_be_bytes(code.try_into().ok()?))?;
    Some((issuer, String::from_utf8(name.to_vec()).ok()?))
}

pub fn provenance(id: ProvenanceId) -> [u8; 17] {
    let mut out = [KeyKind::Provenance as u8; 17];
    out[1..].copy_from_slice(&id.0);
    out
}

pub fn provenance_count(issuer: Issuer) -> [u8; 5] {
    let mut out = [KeyKind::ProvenanceCount as u8; 5];
    out[1..].copy_from_slice(&issuer.code().to_be_bytes());
    out
}

pub fn provenance_count_prefix() -> [u8; 1] {
    [KeyKind::ProvenanceCount as u8]
}

pub fn decode_provenance_count(key: &[u8]) -> Option<Issuer> {
    let code: [u8; 4] = key.get(1..)?.try_into().ok()?;
    Issuer::new(u32::from_be_bytes(code))
}

pub fn exception(offset: Offset) -> [u8; 9] {
    let mut out = [KeyKind::Exception as u8; 9];
    out[1..].copy_from_slice(&offset.0.to_be_bytes());
    out
}

pub fn decode_exception(key: &[u8]) -> Option<Offset> {
    let offset = key.strip_prefix(&[KeyKind::Exception as u8])?;
    Some(Offset(u64::from_be_bytes(offset.try_into().ok()?)))
}

pub fn highest_prefix() -> [u8; 1] {
    [KeyKind::Highest as u8]
}

pub fn highest(issuer: Issuer, kind: Kind, shard: Shard) -> [u8; 7] {
    let mut out = [KeyKind::Highest as u8; 7];
    out[1..5].copy_from_slice(&issuer.code().to_be_bytes());
    out[5] = kind as u8;
    // There are at most 64 shards.
    out[6] = shard.0 as u8;
    out
}

pub fn decode_highest(key: &[u8]) -> Option<(Issuer, Kind, Shard)> {
    let key: &[u8; 6] = key.strip_prefix(&highest_prefix())?.try_into().ok()?;
    let issuer = Issuer::new(u32::from_be_bytes([key[0], key[1], key[2], key[3]]))?;
    let kind = Kind::from_number(u64::from(key[4]))?;
    Some((issuer, kind, Shard(u32::from(key[5]))))
}

/// The first key after all that begin with `prefix`; `None` when there is none.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
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
        fn keys_are_read_back(
            entity in any::<[u8; 16]>(),
            kind in 1..=4u64,
            code in 100_000..=999_999u32,
            shard in 0..64u32,
            name in "[a-z0-9._-]{1,64}",
        ) {
            let issuer = Issuer::new(code).expect("a code");
            let kind = Kind::from_number(kind).expect("a kind");
            let key = RegisterKey { entity: EntityId(entity), kind, issuer };
            prop_assert_eq!(RegisterKey::decode(&key.encode()), Some(key));
            prop_assert!(key.stored().starts_with(&entity_prefix(key.entity)));
            prop_assert_eq!(decode_producer(&producer(issuer, &name)), Some((issuer, name.clone())));
            prop_assert_eq!(decode_subscription(&subscription(issuer, &name)), Some((issuer, name)));
            let shard = Shard(shard);
            prop_assert_eq!(decode_highest(&highest(issuer, kind, shard)), Some((issuer, kind, shard)));
        }

        #[test]
        fn a_prefix_ends_before_the_next_one(prefix in proptest::collection::vec(any::<u8>(), 1..4), rest in any::<[u8; 3]>()) {
            let mut key = prefix.clone();
            key.extend_from_slice(&rest);
            if let Some(end) = after_prefix(&prefix) {
                prop_assert!(key < end && !end.starts_with(&prefix));
            }
        }
    }
}
