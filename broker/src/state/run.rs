//! How gathered values go down: one sorted file a run, which RocksDB takes in whole.
//!
//! RocksDB syncs a file that it takes in, and the manifest that names it, before it says so; a crash
//! in between leaves a file that nobody knows, which is removed at the next opening.

use crate::{
    rocks::{self, manifest},
    state::{
        FAMILY, Flush, Frozen, Shared, StateError,
        keys::{self, KeyKind},
        row,
        store::Store,
    },
};
use crossbeam_channel::Receiver;
use hutong_proto::{Micros, Offset};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionDecision, DB, DBCompressionType,
    IngestExternalFileOptions, Options, SstFileWriter,
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

/// Files of runs that are being written.
const TEMPORARY: &str = "run-";
const BLOCK_BYTES: usize = 16 << 10;
const BLOOM_BITS_PER_KEY: f64 = 10.0;
const RUNS_MERGED: i32 = 48;
/// Runs that wait to be merged, at most: then the next one waits, and with it apply and bulk.
pub(super) const RUNS_MAX: i32 = 96;
/// The same for a state that is large: it takes as long to merge, and what waits would take as much disk again.
const RUNS_MAX_LARGE: u64 = 56;
const LARGE_BYTES: u64 = 6 << 30;
/// How often it is looked whether there is room for a run; nobody tells.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Opens the database in `dir`, with files of broken runs removed.
pub fn open(
    dir: &Path,
    block_cache_bytes: usize,
    log_time: &Arc<AtomicU64>,
    log_start: &Arc<AtomicU64>,
) -> Result<DB, String> {
    rocks::create_folder(dir).map_err(|e| e.to_string())?;
    for entry in fs::read_dir(dir).map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            fs::remove_file(entry.path()).map_err(|e| e.to_string())?;
        }
    }
    let mended = manifest::mend(dir, u64::MAX)?;
    let mut options = options(block_cache_bytes);
    options.create_if_missing(true);
    rocks::share_threads(&mut options).map_err(|e| e.to_string())?;
    let (log_time, log_start) = (Arc::clone(log_time), Arc::clone(log_start));
    options.set_compaction_filter("expiry", move |_level, key, value| match key.first() {
        Some(kind) if *kind == KeyKind::Register as u8 => {
            expiry(value, Micros(log_time.load(Ordering::Acquire)))
        }
        Some(kind) if *kind == KeyKind::Exception as u8 => {
            trimmed(key, Offset(log_start.load(Ordering::Acquire)))
        }
        _ => CompactionDecision::Keep,
    });
    // By name, or nobody could ask for its properties.
    let family = ColumnFamilyDescriptor::new(FAMILY, options.clone());
    let opened = DB::open_cf_descriptors(&options, dir, [family]).map_err(|e| e.to_string());
    match (opened, mended) {
        (Err(why), Some(mended)) => Err(mended.undo(&why)),
        // It says itself which offset it is of, and the log has the rest.
        (opened, _) => opened,
    }
}

/// What is long expired goes at compaction, by the log's time. It counts as absent before that too,
/// so when it goes makes no difference.
fn expiry(value: &[u8], log_time: Micros) -> CompactionDecision {
    match row::expires_at(value) {
        Some(expires_at) if row::forgotten(expires_at, log_time) => CompactionDecision::Remove,
        _ => CompactionDecision::Keep,
    }
}

/// An exception to a record that the log no longer keeps: nobody will read it again.
fn trimmed(key: &[u8], log_start: Offset) -> CompactionDecision {
    match keys::decode_exception(key) {
        Some(offset) if offset < log_start => CompactionDecision::Remove,
        _ => CompactionDecision::Keep,
    }
}

fn options(block_cache_bytes: usize) -> Options {
    let mut options = Options::default();
    options.set_paranoid_checks(true);
    options.set_max_background_jobs(2);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(16 << 20);
    // Runs come large and sorted: many of them are merged at a time, since each time all of the next
    // level is written again.
    options.set_level_zero_file_num_compaction_trigger(RUNS_MERGED);
    options.set_level_zero_slowdown_writes_trigger(2 * RUNS_MAX);
    options.set_level_zero_stop_writes_trigger(2 * RUNS_MAX);
    options.set_target_file_size_base(128 << 20);
    // One level below the runs as long as it is not larger; several would be written one after the other.
    options.set_max_bytes_for_level_base(16 << 30);
    // Nothing is written but runs.
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
    let mut serial = 0u64;
    loop {
        let next = shared.memory.read().frozen.first().cloned();
        let Some(run) = next else {
            if shared.signal.lock().stop || woken.recv().is_err() {
                return;
            }
            continue;
        };
        serial += 1;
        let flushed = flush(shared, &run, serial);
        let mut signal = shared.signal.lock();
        match flushed {
            Ok(flushed) => {
                shared.changed.notify_all();
                drop(signal);
                observer(flushed);
            }
            Err(error) => {
                tracing::error!(%error, "state cannot go down: the broker must stop");
                signal.failure = Some(error.to_string());
                shared.changed.notify_all();
                return;
            }
        }
    }
}

pub fn flush(shared: &Shared, run: &Arc<Frozen>, serial: u64) -> Result<Flush, StateError> {
    let started = Instant::now();
    let failed = |what: &str, e: &dyn std::fmt::Display| StateError::Failed(format!("{what}: {e}"));
    let path = shared.dir.join(format!("{TEMPORARY}{serial}.sst"));
    if shared.db.database().is_some() {
        write(&path, run).map_err(|e| failed("a run cannot be written", &e))?;
        failpoint!(RunWritten);
    }
    wait_for_room(shared)?;
    {
        let _ingest = shared.ingest.lock();
        take_in(&shared.db, &path, run).map_err(|e| failed("a run cannot be taken in", &e))?;
        failpoint!(RunTakenIn);
        let mut memory = shared.memory.write();
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

/// RocksDB takes files in however many wait, so it is up to us that disk and look-ups stay bounded. When the
/// broker stops nobody waits: little more comes, and merging may take longer than a drain.
fn wait_for_room(shared: &Shared) -> Result<(), StateError> {
    let started = Instant::now();
    let room = || {
        let runs = shared.property("rocksdb.num-files-at-level0");
        let large = || shared.property("rocksdb.live-sst-files-size") > LARGE_BYTES;
        runs < RUNS_MAX_LARGE || runs < RUNS_MAX as u64 && !large()
    };
    loop {
        // Nothing is merged any more then, so there would never be room.
        if shared.property("rocksdb.background-errors") > 0 {
            let why = "runs cannot be merged: a read, a write or a sync failed; see LOG in the folder of the state";
            return Err(StateError::Failed(why.to_owned()));
        }
        if room() || shared.signal.lock().closing {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    if started.elapsed() >= LOOK_EVERY {
        let waited_ms = started.elapsed().as_millis() as u64;
        tracing::debug!(waited_ms, "a run waited until others were merged");
    }
    Ok(())
}

#[cfg_attr(
    not(plants),
    allow(unused_variables, reason = "a database finds the run in its file")
)]
fn take_in(store: &Store, path: &Path, run: &Frozen) -> Result<(), rocksdb::Error> {
    match store {
        Store::Rocks(db) => {
            let mut options = IngestExternalFileOptions::default();
            options.set_move_files(true);
            db.ingest_external_file_opts(&options, vec![path])
        }
        #[cfg(plants)]
        Store::Memory(map) => {
            run.gather.for_each_sorted(|key, row| {
                let newest = key[0] == KeyKind::Register as u8;
                if !(newest && planted!(RunWithoutNewest, once in 16)) {
                    map.put(key, row);
                }
                Ok::<_, rocksdb::Error>(())
            })?;
            if !planted!(StateNotSynced) {
                map.sync();
            }
            Ok(())
        }
    }
}

fn write(path: &Path, run: &Frozen) -> Result<(), rocksdb::Error> {
    let options = options(0);
    let mut file = SstFileWriter::create(&options);
    file.open(path)?;
    run.gather.for_each_sorted(|key, row| match row {
        Some(_) if key[0] == KeyKind::Register as u8 && planted!(RunWithoutNewest, once in 16) => {
            Ok(())
        }
        Some(row) => file.put(key, row),
        None => file.delete(key),
    })?;
    file.finish()
}
