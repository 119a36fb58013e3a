//! How gathered values go down: the registers of a run as one table, all else as rows beside it, taken in in one step.
//!
//! RocksDB syncs files that it takes in, and the manifest that names them, before it says so; a crash
//! in between leaves files that nobody knows, which are removed at the next opening.

use crate::{
    rocks::{self, manifest},
    state::{
        FAMILY, Flush, Frozen, Shared, StateError,
        keys::{self, KeyKind},
        row::Row,
        store::Store,
        table::{Table, Writer},
        tables::{Change, List, Tables},
    },
};
use crossbeam_channel::Receiver;
use hutong_proto::Offset;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionDecision, DB, DBCompressionType,
    Options,
};
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The file of rows that are about to be taken in.
pub(super) const TEMPORARY: &str = "run-rows.sst";
/// How such files began in layout 1.
const TEMPORARY_LAYOUT_1: &str = "run-";
const BLOCK_BYTES: usize = 4 << 10;
const BLOOM_BITS_PER_KEY: f64 = 10.0;
const OTHERS_MERGED: i32 = 8;
/// Runs that wait to be merged, at most: then the next one waits, and with it apply and bulk.
pub(super) const RUNS_MAX: usize = 116;
/// How often it is looked whether RocksDB has failed; it does not tell.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Opens the database in `dir`, with files of broken runs removed.
pub fn open(
    dir: &Path,
    block_cache_bytes: usize,
    log_start: &Arc<AtomicU64>,
) -> Result<Tables, String> {
    rocks::create_folder(dir).map_err(|e| e.to_string())?;
    for entry in fs::read_dir(dir).map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(TEMPORARY_LAYOUT_1)
        {
            fs::remove_file(entry.path()).map_err(|e| e.to_string())?;
        }
    }
    let mended = manifest::mend(dir, u64::MAX)?;
    // Looked at before it is opened for good: after that there is another manifest, and nothing to put back.
    let mended = match mended {
        Some(mended) => match looked_at(dir) {
            Ok(()) => Some(mended),
            Err(why) => return Err(mended.undo(&why)),
        },
        None => None,
    };
    let mut options = options(block_cache_bytes);
    options.create_if_missing(true);
    rocks::share_threads(&mut options).map_err(|e| e.to_string())?;
    let log_start = Arc::clone(log_start);
    options.set_compaction_filter("trimmed", move |_level, key, _value| {
        match key.first() == Some(&(KeyKind::Exception as u8)) {
            true => trimmed(key, Offset(log_start.load(Ordering::Acquire))),
            false => CompactionDecision::Keep,
        }
    });
    // By name, or nobody could ask for its properties.
    let family = ColumnFamilyDescriptor::new(FAMILY, options.clone());
    let opened = DB::open_cf_descriptors(&options, dir, [family]).map_err(|e| e.to_string());
    let opened = opened.and_then(|db| Tables::open(db, dir).map_err(|e| e.to_string()));
    match (opened, mended) {
        (Err(why), Some(mended)) => Err(mended.undo(&why)),
        // It says itself which offset it is of, and the log has the rest.
        (opened, _) => opened,
    }
}

/// Whether the database opens and all tables that it names are there.
fn looked_at(dir: &Path) -> Result<(), String> {
    let db = DB::open_cf_for_read_only(&options(0), dir, [FAMILY], false);
    let db = db.map_err(|e| e.to_string())?;
    let list = db.get(keys::tables()).map_err(|e| e.to_string())?;
    match list {
        Some(row) => List::decode(&row, |number| Table::load(dir, number))
            .map(drop)
            .map_err(|e| e.to_string()),
        None => Ok(()),
    }
}

/// An exception to a record that the log no longer keeps: nobody will read it again.
fn trimmed(key: &[u8], log_start: Offset) -> CompactionDecision {
    match keys::decode_exception(key) {
        Some(offset) if offset < log_start => CompactionDecision::Remove,
        _ => CompactionDecision::Keep,
    }
}

/// Of the database, and of files of rows that are no registers.
pub fn options(block_cache_bytes: usize) -> Options {
    let mut options = Options::default();
    options.set_paranoid_checks(true);
    options.set_max_background_jobs(2);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(16 << 20);
    // Of what is no register each run brings a little: soon one file again, since whoever reads must look into all.
    options.set_level_zero_file_num_compaction_trigger(OTHERS_MERGED);
    // Nobody waits for those; runs wait for registers (`wait_for_room`).
    options.set_level_zero_slowdown_writes_trigger(i32::MAX);
    options.set_level_zero_stop_writes_trigger(i32::MAX);
    // Nothing is written but files.
    options.set_write_buffer_size(1 << 20);
    let mut table = BlockBasedOptions::default();
    table.set_block_size(BLOCK_BYTES);
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    table.set_block_cache(&Cache::new_lru_cache(block_cache_bytes));
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    options.set_block_based_table_factory(&table);
    options
}

/// Brings frozen runs down, oldest first, until it is told to stop and nothing is left.
pub fn flush_loop(shared: &Shared, woken: &Receiver<()>, observer: &dyn Fn(Flush)) {
    loop {
        let next = shared.memory.read().frozen.first().cloned();
        let Some(run) = next else {
            if shared.signal.lock().stop || woken.recv().is_err() {
                return;
            }
            continue;
        };
        match flush(shared, &run) {
            Ok(flushed) => {
                let signal = shared.signal.lock();
                shared.changed.notify_all();
                drop(signal);
                observer(flushed);
            }
            Err(error) => {
                shared.fail(&error);
                return;
            }
        }
    }
}

pub fn flush(shared: &Shared, run: &Arc<Frozen>) -> Result<Flush, StateError> {
    let started = Instant::now();
    let written = match &shared.db {
        Store::Rocks(tables) => write(tables, run)?,
        #[cfg(plants)]
        Store::Memory(_) => None,
    };
    failpoint!(RunWritten);
    wait_for_room(shared)?;
    {
        let _ingest = shared.ingest.lock();
        let taken = take_in(&shared.db, written, run)?;
        failpoint!(RunTakenIn);
        let mut memory = shared.memory.write();
        if let Some(taken) = taken {
            taken.publish();
        }
        memory.frozen.remove(0);
        memory.stored = run.applied;
        shared.look_at_room(&memory);
        let log_time = run.applied.log_time.0;
        shared.log_time.store(log_time, Ordering::Release);
    }
    let mut stats = shared.stats.lock();
    stats.flushes += 1;
    stats.rows_ingested += run.gather.rows() as u64;
    stats.flush_seconds += started.elapsed().as_secs_f64();
    Ok(Flush {
        rows: run.gather.rows(),
        bytes: run.gather.bytes(),
        took: started.elapsed(),
    })
}

/// Runs are taken in however many wait, so it is up to us that disk and look-ups stay bounded. When the
/// broker stops nobody waits: little more comes, and merging may take longer than a drain.
fn wait_for_room(shared: &Shared) -> Result<(), StateError> {
    let Some(tables) = shared.db.tables() else {
        return Ok(());
    };
    let started = Instant::now();
    let mut signal = shared.signal.lock();
    loop {
        if let Some(why) = &signal.failure {
            return Err(StateError::Failed(why.clone()));
        }
        if shared.property("rocksdb.background-errors") > 0 {
            let why = "a read, a write or a sync failed; see LOG in the folder of the state";
            return Err(StateError::Failed(why.to_owned()));
        }
        if signal.closing || tables.list().runs.len() < RUNS_MAX {
            break;
        }
        shared.changed.wait_for(&mut signal, LOOK_EVERY);
    }
    let waited_ms = started.elapsed().as_millis() as u64;
    if waited_ms > 0 {
        tracing::debug!(waited_ms, "a run waited until others were merged");
    }
    Ok(())
}

fn take_in<'a>(
    store: &'a Store,
    written: Option<Table>,
    run: &Frozen,
) -> Result<Option<Change<'a>>, StateError> {
    match store {
        Store::Rocks(tables) => {
            let change = |list: &mut List, tables| list.runs.extend(tables);
            let others = run.gather.others();
            let taken = tables.take_in(written.into_iter().collect(), others, change);
            taken.map(Some)
        }
        #[cfg(plants)]
        Store::Memory(map) => {
            run.gather.for_each_sorted(|key, row| {
                let newest = key[0] == KeyKind::Register as u8;
                if !(newest && planted!(RunWithoutNewest, once in 16)) {
                    map.put(key, row);
                }
            });
            if !planted!(StateNotSynced) {
                map.sync();
            }
            Ok(None)
        }
    }
}

/// The run's registers as a table, if it has any.
fn write(tables: &Tables, run: &Frozen) -> Result<Option<Table>, StateError> {
    if run.gather.registers() == 0 {
        return Ok(None);
    }
    let number = tables.next_number();
    let mut file = Writer::create(&tables.dir, number, true)?;
    let mut written = Ok(());
    run.gather.for_each_register(|key, row| {
        if written.is_ok() && !planted!(RunWithoutNewest, once in 16) {
            written = match Row::decode(row) {
                Some(row) => file.push(key, &row),
                None => Err(StateError::damaged(
                    &[KeyKind::Register as u8],
                    "a gathered row does not decode",
                )),
            };
        }
    });
    written?;
    file.finish().map(Some)
}
