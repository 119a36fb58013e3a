//! The files of the write-ahead log, looked at before RocksDB reads them.
//!
//! A power cut may leave the record that was being written in pieces: pages reach the disk in any
//! order, and those that did not are zeros. RocksDB takes only a clean cut for the end of a file;
//! it refuses pieces as damage, and skips a block of zeros without a word. Here the two are told
//! apart. The log syncs each record before it writes the next one, so a record with another one
//! behind it was synced, and damage to it is damage. Without one behind it, it is the torn end, which
//! nobody was told is durable, and is cut off.

use crate::rocks::records::{self, End};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

const EXTENSION: &str = "log";

/// Cuts off a torn end of the newest file in `dir`. Damage anywhere is an error.
pub fn mend(dir: &Path) -> Result<(), String> {
    if planted!(TornEndKept) {
        return Ok(());
    }
    let files = files(dir).map_err(|error| error.to_string())?;
    for (i, (_, path)) in files.iter().enumerate() {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let newest = i + 1 == files.len();
        match File::open(path).and_then(records::end).map_err(failed)? {
            End::Whole => {}
            End::Torn(at) if newest => {
                let at = match planted!(CutsTooMuch) {
                    true => at.saturating_sub(64),
                    false => at,
                };
                let cut_bytes = records::cut(path, at).map_err(failed)?;
                tracing::warn!(
                    file = %path.display(),
                    kept_bytes = at,
                    cut_bytes,
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

    fn manifest(dir: &Path) -> PathBuf {
        let current = fs::read_to_string(dir.join("CURRENT")).expect("reads");
        dir.join(current.trim_end())
    }

    #[test]
    fn a_torn_end_of_the_manifest_costs_nothing() {
        let (dir, _, _) = written(&[100, 5_000]);
        let path = manifest(dir.path());
        let mut bytes = fs::read(&path).expect("reads");
        // A header of 600 bytes that reached the disk, and a body that did not.
        bytes.extend([1, 2, 3, 4, 88, 2, 1]);
        bytes.resize(bytes.len() + 600, 0);
        fs::write(&path, &bytes).expect("written");
        let expected = vec![record(0, 100), record(1, 5_000)];
        assert_eq!(opened(dir.path()).expect("torn, not damaged"), expected);
        assert_eq!(opened(dir.path()).expect("opens again"), expected);
    }

    #[test]
    fn only_the_newest_file_may_end_torn() {
        let (dir, wal, lengths) = written(&[100, 200]);
        let whole = fs::read(&wal).expect("reads");
        let torn = &whole[..lengths[1] - 10];
        fs::write(&wal, torn).expect("written");
        // Another one was begun, and before that all of this one was synced.
        let newer = dir.path().join("999999.log");
        fs::write(&newer, b"").expect("written");
        let error = mend(dir.path()).expect_err("damaged");
        assert!(
            error.contains(&format!("is damaged at byte {}", lengths[0])),
            "{error}"
        );
        assert!(fs::read(&wal).expect("reads") == torn, "nothing is cut off");
        fs::remove_file(newer).expect("removed");
        mend(dir.path()).expect("torn");
        assert!(fs::read(&wal).expect("reads") == whole[..lengths[0]]);
    }

    #[test]
    fn damage_within_the_manifest_is_told_with_its_place() {
        let (dir, _, _) = written(&[100]);
        let path = manifest(dir.path());
        let mut bytes = fs::read(&path).expect("reads");
        bytes[9] ^= 0x10;
        fs::write(&path, &bytes).expect("written");
        let error = opened(dir.path()).expect_err("damaged");
        assert!(error.contains("is damaged at byte 0"), "{error}");
        assert!(error.contains("MANIFEST-"), "{error}");
        assert!(
            bytes == fs::read(&path).expect("reads"),
            "nothing is cut off"
        );
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
