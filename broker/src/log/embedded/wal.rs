//! The files of the write-ahead log, looked at before RocksDB reads them.
//!
//! A power cut may leave the record that was being written in pieces: pages reach the disk in any
//! order, and those that did not are zeros. RocksDB takes only a clean cut for the end of a file;
//! it refuses pieces as damage, and skips a block of zeros without a word. Here the two are told
//! apart. The log syncs each record before it writes the next one, so a record with another one
//! behind it was synced, and damage to it is damage. Without one behind it, it is the torn end, which
//! nobody was told is durable, and is cut off.
//!
//! The format is RocksDB's ("Write Ahead Log File Format" in its wiki): blocks of 32 KiB; in them
//! fragments with a masked CRC-32C, a length and a kind; a record is one fragment, or a first, any
//! middle ones and a last one.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;
const EXTENSION: &str = "log";

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    /// Nothing but the one record that begins here is broken.
    Torn(u64),
    /// The record that begins here is broken, and there are others behind it.
    Damaged(u64),
}

/// Cuts off a torn end of the newest file in `dir`. Damage anywhere is an error.
pub fn mend(dir: &Path) -> Result<(), String> {
    if planted!(TornEndKept) {
        return Ok(());
    }
    let files = files(dir).map_err(|error| error.to_string())?;
    for (i, (_, path)) in files.iter().enumerate() {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let newest = i + 1 == files.len();
        match File::open(path).and_then(end).map_err(failed)? {
            End::Whole => {}
            End::Torn(at) if newest => {
                let file = File::options().write(true).open(path).map_err(failed)?;
                let bytes = file.metadata().map_err(failed)?.len();
                let at = match planted!(CutsTooMuch) {
                    true => at.saturating_sub(64),
                    false => at,
                };
                // RocksDB must not see what this process then takes for cut off.
                file.set_len(at)
                    .and_then(|()| file.sync_all())
                    .map_err(failed)?;
                tracing::warn!(
                    file = %path.display(),
                    kept_bytes = at,
                    cut_bytes = bytes - at,
                    "the last write to the log was torn, as by a power cut; nobody was told that it is durable"
                );
            }
            // Before a file follows another one, all of that is synced.
            End::Torn(at) | End::Damaged(at) => {
                return Err(format!(
                    "{} is damaged at byte {at}: the record there is broken, and whole ones follow, so a \
                     power cut did not do it; check the disk, and restore the data folder from a backup",
                    path.display()
                ));
            }
        }
    }
    Ok(())
}

/// Oldest first.
fn files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number
            && path.extension().is_some_and(|e| e == EXTENSION)
        {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn end(mut file: impl Read) -> io::Result<End> {
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
    use crate::log::{
        Append, Log,
        embedded::{EmbeddedLog, EmbeddedOptions},
    };
    use hutong_proto::{Issuer, KindSet, Lane, Offset, Partition, Shard};
    use proptest::prelude::*;
    use std::sync::mpsc;
    use tempfile::TempDir;

    const SECTOR_BYTES: usize = 512;

    fn partition() -> Partition {
        Partition {
            issuer: Issuer::new(340_000).expect("a code"),
            lane: Lane::Urgent,
            shard: Shard(0),
        }
    }

    /// Nothing that could be taken for zeros.
    fn record(number: usize, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| (i * 31 + number) as u8 | 1).collect()
    }

    /// A log with records of these sizes, each synced before the next one, as a running broker leaves
    /// it on disk; and how long its file was after each.
    fn written(sizes: &[usize]) -> (TempDir, PathBuf, Vec<usize>) {
        let live = tempfile::tempdir().expect("a folder");
        let log = EmbeddedLog::open(live.path(), EmbeddedOptions::default()).expect("opens");
        let (_, wal) = files(live.path()).expect("lists").pop().expect("one");
        let mut lengths = Vec::new();
        for (number, bytes) in sizes.iter().enumerate() {
            let (told, outcome) = mpsc::channel();
            log.append(Append {
                partition: partition(),
                kinds: KindSet::ALL,
                deltas: 1,
                record: record(number, *bytes).into(),
                done: Box::new(move |result| told.send(result).expect("awaited")),
            });
            outcome.recv().expect("told").expect("durable");
            lengths.push(fs::metadata(&wal).expect("there").len() as usize);
        }
        let copy = tempfile::tempdir().expect("a folder");
        for file in fs::read_dir(live.path()).expect("lists") {
            let file = file.expect("reads");
            fs::copy(file.path(), copy.path().join(file.file_name())).expect("copied");
        }
        let wal = copy.path().join(wal.file_name().expect("a name"));
        (copy, wal, lengths)
    }

    /// What a log has that is opened on this folder.
    fn opened(dir: &Path) -> Result<Vec<Vec<u8>>, String> {
        let log = EmbeddedLog::open(dir, EmbeddedOptions::default()).map_err(|e| e.to_string())?;
        let entries = log.read(partition(), Offset::FIRST, usize::MAX);
        let entries = entries.expect("reads");
        Ok(entries.into_iter().map(|e| e.record.to_vec()).collect())
    }

    fn sizes() -> impl Strategy<Value = Vec<usize>> {
        let size = prop_oneof![1..200usize, 1..5_000usize, 20_000..100_000usize];
        proptest::collection::vec(size, 1..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Of the last record any sectors reached the disk, and the file any length.
        #[test]
        fn a_torn_end_is_cut_off_and_the_rest_is_whole(
            sizes in sizes(),
            length in any::<prop::sample::Index>(),
            sectors in proptest::collection::vec(any::<bool>(), 256),
        ) {
            let (dir, wal, lengths) = written(&sizes);
            let synced = lengths.len().checked_sub(2).map_or(0, |i| lengths[i]);
            let end = lengths[sizes.len() - 1];
            let before = fs::read(&wal).expect("reads");
            let mut torn = before.clone();
            torn.truncate(synced + length.index(end - synced + 1));
            for (i, byte) in torn.iter_mut().enumerate().skip(synced) {
                if !sectors[i / SECTOR_BYTES % sectors.len()] {
                    *byte = 0;
                }
            }
            fs::write(&wal, &torn).expect("written");
            let kept = if torn == before { sizes.len() } else { sizes.len() - 1 };
            let found = match kept {
                // Also the row that says that the partition is there.
                0 => opened(dir.path()).unwrap_or_default(),
                _ => opened(dir.path()).expect("a torn end is no damage"),
            };
            let expected: Vec<_> = (0..kept).map(|i| record(i, sizes[i])).collect();
            prop_assert!(found == expected, "{} records of {kept}", found.len());
            // And it goes on, and stays as it is.
            prop_assert!(opened(dir.path()).expect("opens again") == expected);
        }

        /// With whole records behind it, damage is damage.
        #[test]
        fn damage_before_the_end_is_told_with_its_place(
            sizes in sizes(),
            at in any::<prop::sample::Index>(),
            zeros in prop_oneof![Just(0usize), 1..40_000usize],
        ) {
            prop_assume!(sizes.len() > 1);
            let (dir, wal, lengths) = written(&sizes);
            let mut bytes = fs::read(&wal).expect("reads");
            // The last record stays as it is.
            let end = lengths[sizes.len() - 2];
            let at = at.index(end);
            if zeros == 0 {
                bytes[at] ^= 0x10;
            } else {
                bytes[at..end.min(at + zeros)].fill(0);
            }
            prop_assume!(bytes != fs::read(&wal).expect("reads"));
            fs::write(&wal, &bytes).expect("written");
            let error = opened(dir.path()).expect_err("damaged");
            prop_assert!(error.contains("is damaged at byte"), "{}", error);
            let name = wal.file_name().and_then(|n| n.to_str()).expect("a name");
            prop_assert!(error.contains(name), "{}", error);
            prop_assert!(bytes == fs::read(&wal).expect("reads"), "nothing is cut off");
        }
    }
}
