//! The few parts of the protobuf encoding that the data path reads and writes itself.
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

use crate::reason::{Reason, Refusal};
use std::ops::Range;

/// Wire types that are in use.
pub const VARINT: u8 = 0;
pub const FIXED64: u8 = 1;
pub const LEN: u8 = 2;
pub const FIXED32: u8 = 5;

/// Reads fields from the front of a message.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// One field: its number, its value, and where it stands, tag included.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    pub number: u32,
    pub value: FieldValue<'a>,
    pub start: usize,
    pub end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValue<'a> {
    Varint(u64),
    Len(&'a [u8]),
    /// A wire type that no field here has.
    Other,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    /// The next field, `None` at the end of the message.
    #[inline]
    pub fn field(&mut self) -> Result<Option<Field<'a>>, Refusal> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let start = self.at;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).unwrap_or(0);
        if number == 0 {
            return Err(self.malformed("a tag with field number 0"));
        }
        let value = match (tag & 7) as u8 {
            VARINT => FieldValue::Varint(self.varint()?),
            LEN => {
                let len = self.varint()?;
                FieldValue::Len(self.take(len)?)
            }
            FIXED64 => {
                self.take(8)?;
                FieldValue::Other
            }
            FIXED32 => {
                self.take(4)?;
                FieldValue::Other
            }
            other => return Err(self.malformed(&format!("wire type {other}"))),
        };
        Ok(Some(Field {
            number,
            value,
            start,
            end: self.at,
        }))
    }

    /// Where the next field stands, tag included, if it has this tag of one byte and a value of less than
    /// 16 KiB; as nearly all fields of a batch are. For any other nothing is read: [`Reader::field`] says
    /// what it is.
    #[inline]
    pub fn short_field(&mut self, tag: u8) -> Option<Range<usize>> {
        let rest = &self.bytes[self.at..];
        if rest.first() != Some(&tag) {
            return None;
        }
        let (head, value) = short_value(rest)?;
        let start = self.at;
        let end = start + head + value;
        if end > self.bytes.len() {
            return None;
        }
        self.at = end;
        Some(start..end)
    }

    #[inline]
    fn take(&mut self, len: u64) -> Result<&'a [u8], Refusal> {
        let left = (self.bytes.len() - self.at) as u64;
        if len > left {
            return Err(self.malformed(&format!("{len} bytes announced, {left} left")));
        }
        let part = &self.bytes[self.at..self.at + len as usize];
        self.at += len as usize;
        Ok(part)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Refusal> {
        match self.bytes.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Refusal> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(self.malformed("the message ends inside a number"));
            };
            self.at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number of more than 64 bits"))
    }

    #[cold]
    fn malformed(&self, what: &str) -> Refusal {
        Refusal::new(Reason::MessageMalformed, "").detail(format!("{what} at byte {}", self.at))
    }
}

/// A number from the front of `bytes`, and how many bytes it takes; nothing when it is longer than eight or
/// the message may end within eight. All groups of seven bits at once, since a byte at a time is what a
/// delta's times would be spent on.
#[inline]
pub fn short_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    const STOP: u64 = 0x8080_8080_8080_8080;
    let eight: [u8; 8] = bytes.first_chunk().copied()?;
    let word = u64::from_le_bytes(eight);
    let stop = !word & STOP;
    if stop == 0 {
        return None;
    }
    let bits = stop.trailing_zeros() + 1;
    let used = match bits {
        64 => word,
        bits => word & ((1 << bits) - 1),
    } & !STOP;
    let pairs = (used & 0x7f00_7f00_7f00_7f00) >> 1 | (used & 0x007f_007f_007f_007f);
    let fours = (pairs & 0x3fff_0000_3fff_0000) >> 2 | (pairs & 0x0000_3fff_0000_3fff);
    let value = (fours & 0x0fff_ffff_0000_0000) >> 4 | (fours & 0x0fff_ffff);
    Some((value, bits as usize / 8))
}

/// How many bytes stand before the value of this field, and how many it announces. Nothing when its
/// tag or its length are longer than nearly all are.
#[inline]
pub fn short_value(field: &[u8]) -> Option<(usize, usize)> {
    match *field {
        [0..0x80, len @ 0..0x80, ..] => Some((2, usize::from(len))),
        [0..0x80, low @ 0x80..=0xff, high @ 0..0x80, ..] => {
            Some((3, usize::from(low & 0x7f) | usize::from(high) << 7))
        }
        _ => None,
    }
}

/// Length of `value` as a varint.
#[inline]
pub fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A number field; left out when zero, as proto3 does.
#[inline]
pub fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        put_varint(out, u64::from(field << 3));
        put_varint(out, value);
    }
}

/// A string, bytes or message field; written also when empty.
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    put_len(out, field, value.len());
    out.extend_from_slice(value);
}

/// The tag and length of a field whose value the caller writes next.
#[inline]
pub fn put_len(out: &mut Vec<u8>, field: u32, len: usize) {
    put_varint(out, u64::from(field << 3 | u32::from(LEN)));
    put_varint(out, len as u64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_read_back_with_the_length_foretold(value in any::<u64>(), shift in 0..64u32) {
            let value = value >> shift;
            let mut out = vec![1 << 3];
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), 1 + varint_len(value));
            let field = Reader::new(&out).field().expect("valid").expect("a field");
            prop_assert_eq!(field.value, FieldValue::Varint(value));
            // As at the end of a message, and with something behind it.
            let number = &mut out[1..].to_vec();
            let short = |bytes: &[u8]| short_varint(bytes);
            prop_assert!(number.len() >= 8 || short(number).is_none());
            let len = number.len();
            number.extend([0xff; 8]);
            let expected = (len <= 8).then_some((value, len));
            prop_assert_eq!(short(number), expected);
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(&bytes);
            while let Ok(Some(field)) = reader.field() {
                prop_assert!(field.end <= bytes.len());
            }
        }
    }
}
