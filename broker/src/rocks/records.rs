//! The format in which RocksDB writes its log and its manifest, read to tell a torn end from damage.
//!
//! "Write Ahead Log File Format" in its wiki: blocks of 32 KiB; in them fragments with a masked CRC-32C, a
//! length and a kind; a record is one fragment, or a first, any middle ones and a last one.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Whole,
    /// Nothing but the one record that begins here is broken.
    Torn(u64),
    /// The record that begins here is broken, and there are others behind it.
    Damaged(u64),
}

/// Cuts a file off there, and brings that to the disk: RocksDB must not see what this process then takes for
/// gone. How many bytes were cut.
pub fn cut(path: &Path, at: u64) -> io::Result<u64> {
    let file = File::options().write(true).open(path)?;
    let bytes = file.metadata()?.len();
    file.set_len(at)?;
    file.sync_all()?;
    Ok(bytes.saturating_sub(at))
}

/// Reads from the beginning of a file.
pub fn end(mut file: impl Read) -> io::Result<End> {
    let mut scan = Scan::default();
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    loop {
        block.clear();
        file.by_ref()
            .take(BLOCK_BYTES as u64)
            .read_to_end(&mut block)?;
        scan.block(&block);
        if scan.others_behind || block.len() < BLOCK_BYTES {
            return Ok(scan.end());
        }
    }
}

#[derive(Debug, Default)]
struct Scan {
    /// Where the next block begins.
    at: u64,
    /// Everything below is whole records.
    whole: u64,
    /// A first fragment was read, and its last one not yet.
    begun: bool,
    /// The record at `whole` is broken.
    broken: bool,
    others_behind: bool,
}

impl Scan {
    fn block(&mut self, block: &[u8]) {
        let mut rest = block;
        while !self.broken && !is_end(rest, block) {
            let Some((kind, bytes)) = fragment(rest) else {
                self.broken = true;
                break;
            };
            let starts = matches!(kind, FULL | FIRST);
            let goes_on = matches!(kind, MIDDLE | LAST);
            if (self.begun && starts) || (!self.begun && goes_on) {
                self.broken = true;
                break;
            }
            rest = &rest[bytes..];
            self.begun = kind == FIRST || kind == MIDDLE;
            if !self.begun {
                self.whole = self.at + (block.len() - rest.len()) as u64;
            }
        }
        if !self.broken && !self.begun {
            self.whole = self.at + block.len() as u64;
        }
        if self.broken {
            // From any byte on, since lengths cannot be trusted any more.
            self.others_behind |= (0..rest.len()).any(|i| record_begins(&rest[i..], block));
        }
        self.at += block.len() as u64;
    }

    fn end(&self) -> End {
        match self.whole == self.at {
            _ if self.others_behind => End::Damaged(self.whole),
            true => End::Whole,
            false => End::Torn(self.whole),
        }
    }
}

/// Nothing more in this block: all of it was read, or what is left of a full one has no room for a header.
fn is_end(rest: &[u8], block: &[u8]) -> bool {
    rest.is_empty() || (rest.len() < HEADER_BYTES && block.len() == BLOCK_BYTES)
}

/// Kind and bytes of the fragment that begins here, header included; `None` if it is broken.
fn fragment(bytes: &[u8]) -> Option<(u8, usize)> {
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let [c0, c1, c2, c3, l0, l1, kind] = *header;
    let length = usize::from(u16::from_le_bytes([l0, l1]));
    // Zero is what was never written.
    if kind == 0 || length > body.len() {
        return None;
    }
    let crc = crc32c::crc32c(&bytes[HEADER_BYTES - 1..HEADER_BYTES + length]);
    let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
    (masked == u32::from_le_bytes([c0, c1, c2, c3])).then_some((kind, HEADER_BYTES + length))
}

/// Whether a record begins here, and all from it to the end of the block is whole. One fragment alone
/// proves nothing: somebody's data may look like it.
fn record_begins(bytes: &[u8], block: &[u8]) -> bool {
    let mut rest = bytes;
    let mut begins = false;
    while !is_end(rest, block) {
        match fragment(rest) {
            Some((kind, bytes)) if begins || matches!(kind, FULL | FIRST) => {
                begins = true;
                rest = &rest[bytes..];
            }
            _ => return false,
        }
    }
    begins
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut checked = vec![kind];
        checked.extend_from_slice(body);
        let crc = crc32c::crc32c(&checked);
        let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
        let mut bytes = masked.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(body.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&checked);
        bytes
    }

    /// A record that leaves so many bytes of its block.
    fn leaving(bytes: usize) -> Vec<u8> {
        framed(FULL, &vec![7; BLOCK_BYTES - HEADER_BYTES - bytes])
    }

    fn ends(parts: &[Vec<u8>]) -> End {
        end(parts.concat().as_slice()).expect("read")
    }

    #[test]
    fn what_is_left_of_a_block_and_has_no_room_for_a_header_is_no_damage() {
        let next = framed(FULL, b"next");
        for left in 0..HEADER_BYTES {
            let block = vec![leaving(left), vec![0; left]];
            assert_eq!(
                ends(&block),
                End::Whole,
                "{left} bytes at the end of the file"
            );
            let more = [block, vec![next.clone()]].concat();
            assert_eq!(ends(&more), End::Whole, "{left} bytes");
        }
        // Room for a header alone: a record begins there, and goes on in the next block.
        let begun = [
            leaving(HEADER_BYTES),
            framed(FIRST, b""),
            framed(LAST, b"rest"),
        ];
        assert_eq!(ends(&begun), End::Whole);
    }

    #[test]
    fn fragments_that_do_not_follow_each_other_are_broken() {
        let (first, last) = (framed(FIRST, b"a"), framed(LAST, b"b"));
        let (middle, full) = (framed(MIDDLE, b"m"), framed(FULL, b"f"));
        let at = full.len() as u64;
        let after = |parts: &[&Vec<u8>]| {
            let parts: Vec<Vec<u8>> = parts.iter().map(|part| (*part).clone()).collect();
            ends(&[vec![full.clone()], parts].concat())
        };
        assert_eq!(after(&[&first, &middle, &last]), End::Whole);
        assert_eq!(after(&[&first]), End::Torn(at), "it does not end");
        assert_eq!(
            after(&[&first, &full]),
            End::Damaged(at),
            "one begins within it"
        );
        assert_eq!(after(&[&first, &first, &last]), End::Damaged(at));
        assert_eq!(after(&[&last]), End::Torn(at), "it does not begin");
        assert_eq!(after(&[&middle]), End::Torn(at));
    }

    #[test]
    fn the_rest_of_a_broken_record_is_not_one_behind_it() {
        let mut begun = framed(FIRST, &vec![7; BLOCK_BYTES - HEADER_BYTES]);
        begun[HEADER_BYTES] ^= 1;
        let rest = framed(LAST, b"rest");
        assert_eq!(ends(&[begun.clone(), rest.clone()]), End::Torn(0));
        let behind = framed(FULL, b"behind");
        assert_eq!(ends(&[begun, rest, behind]), End::Damaged(0));
    }
}
