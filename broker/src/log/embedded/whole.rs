//! Whether a log is whole after its manifest was cut back.
//!
//! The manifest does not say what it misses. If more than a torn end was cut off, files that held records are
//! gone, and others that hold them would be removed as unknown when the log is opened. So it is opened to be
//! read first, which changes nothing, and counted: offsets and ordinals are given out without gaps.

use crate::log::embedded::{
    ENTRIES, META, database_options, entry_options, positions,
    read::{self, Count},
};
use hutong_proto::Offset;
use rocksdb::{ColumnFamilyDescriptor, DB, Options};
use std::{fs, path::Path};

/// An error says what is missing.
pub fn check(dir: &Path) -> Result<(), String> {
    let options = database_options();
    let families = DB::list_cf(&options, dir).map_err(|e| e.to_string())?;
    if !families.iter().any(|name| name == META) {
        return check_new(dir);
    }
    let entries = ColumnFamilyDescriptor::new(ENTRIES, entry_options());
    let meta = ColumnFamilyDescriptor::new(META, Options::default());
    let families = [entries, meta];
    let db = DB::open_cf_descriptors_read_only(&options, dir, families, false);
    let db = db.map_err(|e| e.to_string())?;
    let positions = positions(&db)?;
    let trimmed = positions.partitions.values().map(|p| p.trimmed_below);
    let from = trimmed.max().unwrap_or_default().max(Offset::FIRST);
    let mut kept = 0;
    for (partition, known) in &positions.partitions {
        let count = read::count(&db, *partition, from).map_err(|e| e.to_string())?;
        let Count { all, since } = count;
        let expected = match known.first_ordinal {
            0 => 0,
            first => known.row.last_ordinal + 1 - first,
        };
        if all != expected {
            return Err(format!(
                "{partition} has {all} records of {expected} up to offset {}",
                known.row.last
            ));
        }
        kept += since;
    }
    let expected = positions.next.0.saturating_sub(from.0);
    match kept == expected {
        true => Ok(()),
        // Also where a log was restored and goes on behind offsets that it never had.
        false => Err(format!(
            "there are {kept} records from offset {from} on, and there should be {expected}"
        )),
    }
}

/// Nothing can be in a log that has no place for it yet.
fn check_new(dir: &Path) -> Result<(), String> {
    for entry in fs::read_dir(dir).map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        let bytes = entry.metadata().map_err(|e| e.to_string())?.len();
        let path = entry.path();
        let extension = path.extension().and_then(|e| e.to_str());
        if matches!(extension, Some("sst" | "blob" | "log")) && bytes > 0 {
            return Err(format!("{} belongs to nothing", path.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{
        Append, Log,
        embedded::{EmbeddedLog, EmbeddedOptions, MANIFEST_WRITE_BYTES},
    };
    use crate::rocks::manifest;
    use hutong_proto::{Issuer, KindSet, Lane, Partition, Shard};
    use std::{path::PathBuf, sync::mpsc};
    use tempfile::TempDir;

    fn partition(shard: u32) -> Partition {
        Partition {
            issuer: Issuer::new(340_000).expect("a code"),
            lane: Lane::Urgent,
            shard: Shard(shard),
        }
    }

    fn append(log: &EmbeddedLog, shard: u32, n: u8) {
        let (told, outcome) = mpsc::channel();
        log.append(Append {
            partition: partition(shard),
            kinds: KindSet::ALL,
            deltas: 1,
            record: vec![n; 3000].into(),
            done: Box::new(move |result| told.send(result).expect("awaited")),
        });
        outcome.recv().expect("told").expect("durable");
    }

    fn flush(log: &EmbeddedLog) {
        let db = &log.shared.db;
        let (entries, meta) = read::families(db).expect("both");
        db.flush_cf(entries).expect("flushed");
        db.flush_cf(meta).expect("flushed");
    }

    fn copy(from: &Path) -> TempDir {
        let to = tempfile::tempdir().expect("a folder");
        for file in fs::read_dir(from).expect("lists") {
            let file = file.expect("reads");
            fs::copy(file.path(), to.path().join(file.file_name())).expect("copied");
        }
        to
    }

    fn manifest_of(dir: &Path) -> PathBuf {
        let current = fs::read_to_string(dir.join("CURRENT")).expect("reads");
        dir.join(current.trim_end())
    }

    fn length(dir: &Path) -> u64 {
        fs::metadata(manifest_of(dir)).expect("there").len()
    }

    /// Records in two partitions, and all of them moved from the write-ahead log to tables. The folder as it was on
    /// disk with those of the one partition moved; with all, and the write-ahead logs removed; and how long the
    /// manifest was between.
    fn flushed() -> (TempDir, u64, TempDir) {
        let live = tempfile::tempdir().expect("a folder");
        let log = EmbeddedLog::open(live.path(), EmbeddedOptions::default()).expect("opens");
        (1..=20).for_each(|n| append(&log, 0, n));
        flush(&log);
        (1..=20).for_each(|n| append(&log, 1, n));
        let before = copy(live.path());
        let between = length(live.path());
        flush(&log);
        (1..=3).for_each(|n| append(&log, 0, n));
        drop(log);
        (before, between, copy(live.path()))
    }

    /// With these bytes of the manifest never written.
    fn zeros(dir: &Path, from: u64, bytes: usize) {
        let mut all = fs::read(manifest_of(dir)).expect("reads");
        let from = from as usize;
        let upto = all.len().min(from + bytes);
        all[from..upto].fill(0);
        fs::write(manifest_of(dir), &all).expect("written");
    }

    fn records(dir: &Path) -> Result<usize, String> {
        let log = EmbeddedLog::open(dir, EmbeddedOptions::default()).map_err(|e| e.to_string())?;
        let counts = [0, 1].map(|shard| {
            let entries = log.read(partition(shard), Offset::FIRST, usize::MAX);
            entries.expect("reads").len()
        });
        Ok(counts.iter().sum())
    }

    #[test]
    fn a_change_that_was_torn_with_whole_records_behind_it_costs_nothing() {
        let (before, between, after) = flushed();
        // What a power cut leaves in the middle of the second flush: its manifest in pieces, and no file removed yet.
        let end = fs::read(manifest_of(after.path())).expect("reads");
        fs::write(manifest_of(before.path()), end).expect("written");
        for file in fs::read_dir(after.path()).expect("lists") {
            let file = file.expect("reads");
            let path = before.path().join(file.file_name());
            let table = path.extension().is_some_and(|e| e == "sst" || e == "blob");
            if table && !path.exists() {
                fs::copy(file.path(), path).expect("copied");
            }
        }
        zeros(before.path(), between, 20);
        assert_eq!(records(before.path()), Ok(40));
        assert_eq!(records(before.path()), Ok(40), "it opens again");
    }

    /// What is in a folder, but for what RocksDB says about itself.
    fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for file in fs::read_dir(dir).expect("lists") {
            let file = file.expect("reads");
            let name = file.file_name().to_string_lossy().into_owned();
            if !name.starts_with("LOG") {
                all.push((name, fs::read(file.path()).expect("reads")));
            }
        }
        all.sort();
        all
    }

    #[test]
    fn records_that_would_be_lost_with_what_is_cut_off_are_missed_and_nothing_is_changed() {
        let (_, between, after) = flushed();
        zeros(after.path(), between, 20);
        let found = contents(after.path());
        let error = records(after.path()).expect_err("twenty records are gone");
        assert!(error.contains("is damaged at byte"), "{error}");
        assert!(error.contains("there are 23 records"), "{error}");
        assert!(contents(after.path()) == found);
    }

    #[test]
    fn who_ends_between_the_cut_and_the_count_is_counted_at_the_next_start() {
        let (_, between, after) = flushed();
        zeros(after.path(), between, 20);
        let found = contents(after.path());
        let mended = manifest::mend(after.path(), MANIFEST_WRITE_BYTES);
        drop(mended.expect("reads").expect("it is cut"));
        assert_eq!(length(after.path()), between);
        let error = records(after.path()).expect_err("twenty records are gone");
        assert!(error.contains("there are 23 records"), "{error}");
        assert!(contents(after.path()) == found);
    }

    #[test]
    fn a_broken_record_with_many_behind_it_is_damage() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).expect("opens");
        append(&log, 0, 1);
        flush(&log);
        let at = length(dir.path());
        while length(dir.path()) < at + 2 * MANIFEST_WRITE_BYTES {
            append(&log, 0, 2);
            flush(&log);
        }
        drop(log);
        zeros(dir.path(), at, 20);
        let found = contents(dir.path());
        let error = records(dir.path()).expect_err("damaged");
        let place = format!("is damaged at byte {at}");
        assert!(error.contains(&place), "{error}");
        assert!(contents(dir.path()) == found);
    }

    #[test]
    fn one_that_has_no_place_for_a_log_yet_is_whole_unless_there_is_something() {
        let dir = tempfile::tempdir().expect("a folder");
        drop(DB::open_default(dir.path()).expect("a database"));
        check(dir.path()).expect("nothing can be in it");
        let file = dir.path().join("000099.sst");
        fs::write(&file, b"").expect("written");
        check(dir.path()).expect("nothing is in it");
        fs::write(&file, b"x").expect("written");
        let error = check(dir.path()).expect_err("something is");
        assert!(error.contains("000099.sst belongs to nothing"), "{error}");
    }
}
