//! What the log and the state have in common as RocksDB databases: their folders, their threads, and
//! what they say about themselves.

pub mod alive;
pub mod manifest;
pub mod records;

use crate::metrics::{LEVELS, StoreGauges};
use rocksdb::{DB, Env, Options, checkpoint::Checkpoint};
use std::{
    fs::{self, File},
    io,
    path::Path,
    time::Duration,
};

/// Gives the databases of this process threads enough. They share them, so with one each, as RocksDB has it,
/// the log would wait for the state's long compactions, and slow down everybody who writes to it.
pub fn share_threads(options: &mut Options) -> Result<(), rocksdb::Error> {
    let mut env = Env::new()?;
    env.set_low_priority_background_threads(2);
    env.set_high_priority_background_threads(1);
    options.set_env(&env);
    Ok(())
}

/// Creates a folder, if it is not there, and brings its name to the disk: POSIX promises that of a folder
/// only after the one above it was synced, however often the files within were.
pub fn create_folder(dir: &Path) -> io::Result<()> {
    let missing = dir
        .ancestors()
        .take_while(|folder| !folder.exists())
        .count();
    fs::create_dir_all(dir)?;
    if planted!(FolderNotSynced) {
        return Ok(());
    }
    // Also when it was there: who created it may have been killed before this.
    for above in dir.ancestors().skip(1).take(missing.max(1)) {
        let above = match above.as_os_str().is_empty() {
            true => Path::new("."),
            false => above,
        };
        File::open(above)?.sync_all()?;
    }
    Ok(())
}

/// A copy as of one moment, in a folder that must not be there. Files that never change are linked, so it
/// takes hardly any room or time on the same file system.
pub fn checkpoint(db: &DB, dir: &Path) -> Result<(), String> {
    let made = Checkpoint::new(db).and_then(|checkpoint| checkpoint.create_checkpoint(dir));
    made.map_err(|error| format!("{}: {error}", dir.display()))
}

/// A property of these column families together; one that this version does not know counts as zero.
///
/// # Panics
///
/// If the database was opened without naming one of them: it would count as empty, and nobody would know.
pub fn property(db: &DB, families: &[&str], name: &str) -> u64 {
    families
        .iter()
        .map(|family| db.cf_handle(family).expect("named when it was opened"))
        .filter_map(|family| db.property_int_value_cf(family, name).ok().flatten())
        .sum()
}

/// How long writers were slowed down or stopped since the database was opened. RocksDB counts this in any case, and tells
/// it in a text alone; its statistics, which have it as a number, cost each write something.
fn stalled(db: &DB) -> Duration {
    let text = db.property_value("rocksdb.dbstats").ok().flatten();
    text.and_then(|text| stalled_of(&text)).unwrap_or_default()
}

/// From a line such as `Cumulative stall: 00:01:2.345 H:M:S, 0.3 percent`.
fn stalled_of(text: &str) -> Option<Duration> {
    let mut lines = text.lines();
    let said = lines.find_map(|line| line.strip_prefix("Cumulative stall: "))?;
    let (time, _) = said.split_once(" H:M:S")?;
    let parts: Result<Vec<f64>, _> = time.split(':').map(str::parse).collect();
    let [hours, minutes, seconds] = parts.ok()?[..] else {
        return None;
    };
    Duration::try_from_secs_f64((hours * 60.0 + minutes) * 60.0 + seconds).ok()
}

pub fn gauges(db: &DB, families: &[&str]) -> StoreGauges {
    let property = |name: &str| property(db, families, name);
    StoreGauges {
        name: "",
        writes_stopped: property("rocksdb.is-write-stopped") != 0,
        write_rate_limit_bytes_per_second: property("rocksdb.actual-delayed-write-rate"),
        stalled: stalled(db),
        pending_compaction_bytes: property("rocksdb.estimate-pending-compaction-bytes"),
        running_compactions: property("rocksdb.num-running-compactions"),
        running_flushes: property("rocksdb.num-running-flushes"),
        level_files: std::array::from_fn::<_, LEVELS, _>(|level| {
            property(&format!("rocksdb.num-files-at-level{level}"))
        }),
        background_errors: property("rocksdb.background-errors"),
        memory_tables_bytes: property("rocksdb.cur-size-all-mem-tables"),
        block_cache_bytes: property("rocksdb.block-cache-usage"),
        table_readers_bytes: property("rocksdb.estimate-table-readers-mem"),
        disk_bytes: property("rocksdb.total-sst-files-size")
            + property("rocksdb.total-blob-file-size"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_stalls_is_read_from_what_the_database_says() {
        let text = "Uptime(secs): 9.0 total\nCumulative stall: 02:01:2.345 H:M:S, 0.3 percent\n\
                    Interval stall: 00:00:9.000 H:M:S, 0.0 percent\n";
        assert_eq!(stalled_of(text), Some(Duration::from_millis(7_262_345)));
        assert_eq!(stalled_of("Cumulative stall: never"), None);
        assert_eq!(stalled_of(""), None);
    }

    /// Should another version of RocksDB say it otherwise, this notices.
    #[test]
    fn a_database_that_stalled_says_how_long() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut options = Options::default();
        options.create_if_missing(true);
        // Writers wait as soon as two of these are full and not on the disk.
        options.set_write_buffer_size(64 << 10);
        options.set_max_write_buffer_number(2);
        let db = DB::open(&options, dir.path()).expect("opens");
        let text = db.property_value("rocksdb.dbstats").expect("read");
        assert_eq!(
            stalled_of(&text.expect("known")),
            Some(Duration::ZERO),
            "nothing was written"
        );
        let value = vec![7; 16 << 10];
        let waited = (0u32..20_000).any(|n| {
            db.put(n.to_be_bytes(), &value).expect("written");
            stalled(&db) > Duration::ZERO
        });
        assert!(waited, "no write waited for the disk");
    }
}
