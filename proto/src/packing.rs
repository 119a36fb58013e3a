//! Records packed as LZ4 blocks, for subscribers that take them so: what a mass test publishes becomes
//! three to four times smaller, which is what a line between two provinces is paid for.
//! Source of the format: <https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md>.

use crate::{
    limits,
    reason::{Reason, Refusal},
};

/// Smaller records have little that repeats.
const PACK_BYTES_MIN: usize = 512;

/// `None` unless it becomes half as large or less: who unpacks it must gain by it.
pub fn pack(record: &[u8]) -> Option<Vec<u8>> {
    if record.len() < PACK_BYTES_MIN {
        return None;
    }
    let packed = lz4_flex::block::compress(record);
    (packed.len() <= record.len() / 2).then_some(packed)
}

/// A record of `len` bytes.
pub fn unpack(packed: &[u8], len: usize) -> Result<Vec<u8>, Refusal> {
    let bad = |detail: String| Refusal::new(Reason::MessageMalformed, "record_lz4").detail(detail);
    if len > limits::MESSAGE_BYTES_MAX {
        return Err(bad(format!("{len} bytes announced")));
    }
    let record = lz4_flex::block::decompress(packed, len).map_err(|e| bad(e.to_string()))?;
    if record.len() != len {
        let unpacked = record.len();
        return Err(bad(format!("{len} bytes announced, {unpacked} unpacked")));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(piece in proptest::collection::vec(any::<u8>(), 1..200), times in 1..200usize) {
            let record = piece.repeat(times);
            if let Some(packed) = pack(&record) {
                prop_assert!(packed.len() * 2 <= record.len());
                prop_assert_eq!(unpack(&packed, record.len()).expect("valid"), record);
            }
        }

        #[test]
        fn damage_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200), len in 0..5000usize) {
            if let Ok(record) = unpack(&bytes, len) {
                prop_assert_eq!(record.len(), len);
            }
        }
    }

    #[test]
    fn nobody_announces_more_than_a_message_may_have() {
        let packed = lz4_flex::block::compress(&[7; 1000]);
        assert!(unpack(&packed, 1000).is_ok());
        assert!(unpack(&packed, 999).is_err());
        assert!(unpack(&packed, 1001).is_err());
        let refusal = unpack(&packed, usize::MAX).expect_err("too much");
        assert_eq!(refusal.field, "record_lz4");
    }

    #[test]
    fn what_would_hardly_become_smaller_is_left_alone() {
        assert_eq!(pack(&[7; 100]), None);
        let random: Vec<u8> = (0..2000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        assert_eq!(pack(&random), None);
    }
}
