//! The default log: RocksDB in this process, its write-ahead log synced before every ack.
//!
//! A thread owns writing. It takes what is queued, urgent first, writes it as one batch, syncs, and
//! only then tells those who wait and the tail. Recovery drops a torn end, which nobody was told is
//! durable, and refuses to open when something before it is damaged: a prefix, never a hole (`wal.rs`).

mod keys;
mod read;
mod wal;
mod whole;
mod writer;

use crate::{
    clock::Clock,
    log::{
        Append, AppendError, Entry, EntryHead, Log, LogError, Merged, PartitionInfo, ReadError,
        Tail, faults::Faults,
    },
    metrics::StoreGauges,
    overload::BulkGate,
    rocks::{self, alive::Alive, manifest},
};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use hutong_proto::{Lane, LogId, Micros, Offset, Partition};
use keys::PartitionRow;
use parking_lot::{Mutex, RwLock};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    Options, WriteBatch, WriteOptions,
};
use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    path::Path,
    sync::Arc,
    thread::JoinHandle,
};

const ENTRIES: &str = "entries";
const META: &str = "meta";
/// Groups that wait for apply; then appends wait.
const TAIL_GROUPS_MAX: usize = 2;
const WRITE_BUFFER_BYTES: usize = 32 << 20;
const WAL_BYTES_MAX: u64 = 256 << 20;
const BLOCK_CACHE_BYTES: usize = 16 << 20;
/// What changes at one time takes less than this of the manifest: a few tables come, and some go.
const MANIFEST_WRITE_BYTES: u64 = 8 << 10;
/// Entries from here on stand in files of their own, where compaction leaves them.
const LARGE_BYTES: u64 = 1 << 10;

/// How to open an embedded log.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// Records of one commit.
    pub group_bytes_max: usize,
    pub clock: Clock,
    pub faults: Faults,
    /// Bulk is committed only while it is open.
    pub bulk_gate: Arc<BulkGate>,
    /// Told about each commit, and about the one that failed.
    pub observer: Arc<dyn Fn(Result<Commit, CommitFailed>) + Send + Sync>,
}

/// A write or a sync failed; the log is poisoned.
#[derive(Clone, Copy, Debug)]
pub struct CommitFailed;

/// One group commit.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    pub records: usize,
    pub bytes: usize,
    pub write: std::time::Duration,
    pub sync: std::time::Duration,
}

impl std::fmt::Debug for EmbeddedOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedOptions")
            .field("group_bytes_max", &self.group_bytes_max)
            .finish_non_exhaustive()
    }
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        EmbeddedOptions {
            group_bytes_max: 1 << 20,
            clock: crate::clock::system(),
            faults: Faults::default(),
            bulk_gate: Arc::default(),
            observer: Arc::new(|_| {}),
        }
    }
}

/// A partition as it is in memory.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    row: PartitionRow,
    trimmed_below: Offset,
    /// Of the oldest entry kept, and its ordinal.
    first: Offset,
    first_ordinal: u64,
    bytes: u64,
}

/// Where the next record goes. Owned by the writer, read by everybody.
#[derive(Debug)]
struct Positions {
    partitions: BTreeMap<Partition, Known>,
    /// The offset of the next record.
    next: Offset,
    /// Times never fall.
    durable_at: Micros,
    tail: Option<Sender<Vec<Entry>>>,
}

#[derive(Debug)]
struct Shared {
    db: DB,
    id: LogId,
    positions: Mutex<Positions>,
    alive: Alive,
    poison: Mutex<Option<String>>,
    /// Held from a write to the end of its sync: no record is written behind one that is not on disk,
    /// which is how `wal.rs` knows a torn end from damage.
    committing: Mutex<()>,
    /// When the commit that is under way began.
    commit_since: Mutex<Option<std::time::Instant>>,
    faults: Faults,
}

/// Unbounded by count: what is queued holds room that ingress took before, which bounds its bytes.
#[derive(Debug)]
struct Intake {
    urgent: Sender<Append>,
    bulk: Sender<Append>,
}

#[derive(Debug)]
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    intake: RwLock<Option<Intake>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedLog {
    /// Opens or creates the log in `dir`.
    pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<EmbeddedLog, LogError> {
        let failed = |why: String| LogError::Open {
            dir: dir.display().to_string(),
            why,
        };
        rocks::create_folder(dir).map_err(|e| failed(e.to_string()))?;
        let mended = manifest::mend(dir, MANIFEST_WRITE_BYTES).map_err(failed)?;
        wal::mend(dir).map_err(failed)?;
        if let Some(mended) = mended
            && let Err(why) = whole::check(dir)
        {
            return Err(failed(mended.undo(&why)));
        }
        failpoint!(RecoveryMended);
        let entries = ColumnFamilyDescriptor::new(ENTRIES, entry_options());
        let meta = ColumnFamilyDescriptor::new(META, Options::default());
        let mut options_of_db = database_options();
        rocks::share_threads(&mut options_of_db).map_err(|e| failed(e.to_string()))?;
        let db = DB::open_cf_descriptors(&options_of_db, dir, [entries, meta])
            .map_err(|e| failed(e.to_string()))?;
        let id = log_id(&db).map_err(failed)?;
        let positions = positions(&db).map_err(failed)?;
        let alive = Alive::open(dir).map_err(|e| failed(e.to_string()))?;
        let shared = Arc::new(Shared {
            db,
            id,
            positions: Mutex::new(positions),
            alive,
            poison: Mutex::new(None),
            committing: Mutex::new(()),
            commit_since: Mutex::new(None),
            faults: options.faults.clone(),
        });
        let (urgent, urgent_queue) = unbounded();
        let (bulk, bulk_queue) = unbounded();
        let writer = writer::Writer::new(Arc::clone(&shared), urgent_queue, bulk_queue, options);
        let writer = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| failed(e.to_string()))?;
        Ok(EmbeddedLog {
            shared,
            intake: RwLock::new(Some(Intake { urgent, bulk })),
            writer: Mutex::new(Some(writer)),
        })
    }
}

impl EmbeddedLog {
    /// The next record gets this offset at least. For a log that was restored: offsets that were given out
    /// after its backup must never mean something else. It lasts from the next record on.
    pub fn skip_to(&self, offset: Offset) {
        let mut positions = self.shared.positions.lock();
        positions.next = positions.next.max(offset);
    }
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(16 << 20);
    options
}

fn entry_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_target_file_size_base(64 << 20);
    options.set_max_bytes_for_level_base(512 << 20);
    options.set_level_zero_slowdown_writes_trigger(60);
    options.set_level_zero_stop_writes_trigger(120);
    // Records are written once more, beside the keys, and then stay where they are: compaction sorts keys
    // and places. A file of records goes when the last of its records was trimmed.
    options.set_enable_blob_files(true);
    options.set_min_blob_size(LARGE_BYTES);
    options.set_blob_compression_type(DBCompressionType::Lz4);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    table.set_block_size(64 << 10);
    table.set_cache_index_and_filter_blocks(true);
    options.set_block_based_table_factory(&table);
    options
}

fn log_id(db: &DB) -> Result<LogId, String> {
    let meta = db.cf_handle(META).ok_or("no meta column family")?;
    let stored = db.get_cf(meta, keys::log_id()).map_err(|e| e.to_string())?;
    if let Some(stored) = stored {
        let bytes = stored.try_into().map_err(|_| "the log id is damaged")?;
        return Ok(LogId(u64::from_be_bytes(bytes)));
    }
    // Randomly keyed by the operating system; never zero, which means "no log" on the wire.
    let id = RandomState::new().hash_one(std::process::id()).max(1);
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    db.put_cf_opt(meta, keys::log_id(), id.to_be_bytes(), &synced)
        .map_err(|e| e.to_string())?;
    Ok(LogId(id))
}

/// Reads what is known of each partition and checks it against the entries.
fn positions(db: &DB) -> Result<Positions, String> {
    let meta = db.cf_handle(META).ok_or("no meta column family")?;
    let mut positions = Positions {
        partitions: BTreeMap::new(),
        next: Offset::FIRST,
        durable_at: Micros::ZERO,
        tail: None,
    };
    for item in db.iterator_cf(meta, rocksdb::IteratorMode::Start) {
        let (key, value) = item.map_err(|e| e.to_string())?;
        let Some(partition) = keys::decode_partition(&key) else {
            continue;
        };
        let row = PartitionRow::decode(&value).ok_or("a partition's row is damaged")?;
        let first = read::head_at(db, partition, Offset::NONE).map_err(|e| e.to_string())?;
        let last = read::last(db, partition).map_err(|e| e.to_string())?;
        if let Some(last) = last
            && (last.offset, last.ordinal) != (row.last, row.last_ordinal)
        {
            return Err(format!(
                "{partition} ends at offset {} but should end at {}",
                last.offset, row.last
            ));
        }
        let trimmed = db
            .get_cf(meta, keys::trimmed(partition))
            .map_err(|e| e.to_string())?;
        let trimmed_below = match trimmed {
            Some(value) => keys::decode_trimmed(&value).ok_or("a trim mark is damaged")?,
            None => Offset::NONE,
        };
        if last.is_none() && row.last >= trimmed_below {
            return Err(format!("{partition} lost its records up to {}", row.last));
        }
        let known = Known {
            row,
            trimmed_below,
            first: first.map_or(Offset::NONE, |h| h.offset),
            first_ordinal: first.map_or(0, |h| h.ordinal),
            bytes: row.bytes_of(first.map_or(0, |h| row.last_ordinal + 1 - h.ordinal)),
        };
        let next = match planted!(OffsetReused) {
            true => row.last,
            false => row.last.next(),
        };
        positions.next = positions.next.max(next);
        positions.durable_at = positions.durable_at.max(row.last_durable_at);
        positions.partitions.insert(partition, known);
    }
    Ok(positions)
}

impl Positions {
    /// An error if a record at or after `from` was trimmed, of any partition.
    fn check_kept(&self, from: Offset) -> Result<(), ReadError> {
        // The one that misses most: who has what it misses has what the others miss.
        let most = self.partitions.iter();
        let most = most.max_by_key(|(_, known)| known.trimmed_below);
        match most.filter(|(_, known)| from < known.trimmed_below) {
            Some((partition, known)) => Err(ReadError::Trimmed {
                partition: *partition,
                trimmed_below: known.trimmed_below,
            }),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn check(&self) -> Result<(), LogError> {
        match self.poison.lock().as_ref() {
            Some(why) if !planted!(PoisonIgnored) => Err(LogError::Poisoned(why.clone())),
            _ => Ok(()),
        }
    }

    /// What was written is on disk when it returns; call it with `committing` held since the write. After a failed sync the kernel may have
    /// dropped the pages, and the next one would report success without them: an error poisons, and
    /// nobody tries again.
    fn sync(&self) -> Result<(), LogError> {
        if planted!(SyncSkipped, once in 4) {
            return Ok(());
        }
        let synced = match self.faults.take_sync() {
            Some(_) => Err("planted".to_owned()),
            None => self.db.flush_wal(true).map_err(|e| e.to_string()),
        };
        let synced = synced.and_then(|()| self.alive.check().map_err(|e| e.to_string()));
        if synced.is_err() && planted!(SyncRetried) && self.db.flush_wal(true).is_ok() {
            return Ok(());
        }
        synced.map_err(|error| {
            let why = format!("a sync failed: {error}");
            self.poison(&why);
            LogError::Poisoned(why)
        })
    }

    /// Marks what is below `before` as gone, and deletes it; not synced. Returns from where on records
    /// are kept, if that changes.
    fn trim(&self, partition: Partition, before: Offset) -> Result<Option<Offset>, LogError> {
        let mut positions = self.positions.lock();
        let Some(known) = positions.partitions.get_mut(&partition) else {
            return Ok(None);
        };
        let before = before.min(known.row.last.next());
        if before <= known.trimmed_below {
            return Ok(None);
        }
        let (entries, meta) = read::families(&self.db)?;
        let (from, to) = (
            keys::entry(partition, Offset::NONE),
            keys::entry(partition, before),
        );
        let mut batch = WriteBatch::default();
        batch.put_cf(meta, keys::trimmed(partition), before.0.to_be_bytes());
        batch.delete_range_cf(entries, from, to);
        if !self.faults.loses_write() {
            self.db
                .write(batch)
                .map_err(|error| LogError::Io(error.to_string()))?;
        }
        // Readers are refused from here on, whatever fails below.
        known.trimmed_below = before;
        let kept = read::head_at(&self.db, partition, before)?;
        let records = |first: u64| u128::from((known.row.last_ordinal + 1).saturating_sub(first));
        let (old, new) = (
            records(known.first_ordinal).max(1),
            kept.map_or(0, |h| records(h.ordinal)),
        );
        known.bytes = (u128::from(known.bytes) * new / old) as u64;
        known.first = kept.map_or(Offset::NONE, |h| h.offset);
        known.first_ordinal = kept.map_or(0, |h| h.ordinal);
        Ok(Some(before))
    }

    /// Takes nothing from now on, and ends the tail after what was given to it.
    fn poison(&self, why: &str) {
        self.poison.lock().get_or_insert_with(|| why.to_owned());
        self.positions.lock().tail = None;
        tracing::error!(
            why,
            "the log is poisoned: it takes nothing until it is opened again"
        );
    }
}

fn info(partition: Partition, known: &Known) -> PartitionInfo {
    let records = match known.first {
        Offset::NONE => 0,
        _ => known.row.last_ordinal + 1 - known.first_ordinal,
    };
    PartitionInfo {
        partition,
        first: known.first,
        last: known.row.last,
        last_ordinal: known.row.last_ordinal,
        last_durable_at: known.row.last_durable_at,
        trimmed_below: known.trimmed_below,
        records,
        bytes_estimate: known.bytes,
    }
}

impl Log for EmbeddedLog {
    fn id(&self) -> LogId {
        self.shared.id
    }

    fn append(&self, append: Append) {
        let refused = match &*self.intake.read() {
            Some(intake) => {
                let queue = match append.partition.lane {
                    Lane::Urgent | Lane::Control => &intake.urgent,
                    Lane::Bulk => &intake.bulk,
                };
                // The writer ends only after the queues are closed.
                queue.send(append).err().map(|e| e.0)
            }
            None => Some(append),
        };
        if let Some(append) = refused {
            (append.done)(Err(AppendError::Closed));
        }
    }

    fn read(
        &self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let below = self.next_offset();
        Ok(self
            .read_merged(&[partition], from, below, bytes_max)?
            .entries)
    }

    fn read_merged(
        &self,
        partitions: &[Partition],
        from: Offset,
        below: Offset,
        bytes_max: usize,
    ) -> Result<Merged, ReadError> {
        // What is written but not synced yet is not in the log.
        let below = below.min(self.next_offset());
        self.check_kept(partitions, from)?;
        let merged = read::merged(&self.shared.db, partitions, from, below, bytes_max)?;
        // What was trimmed in the meantime may be missing in it.
        self.check_kept(partitions, from)?;
        Ok(merged)
    }

    fn head_at(&self, partition: Partition, from: Offset) -> Result<Option<EntryHead>, ReadError> {
        let next = self.next_offset();
        Ok(read::head_at(&self.shared.db, partition, from)?.filter(|head| head.offset < next))
    }

    fn tail(&self, from: Offset) -> Result<Box<dyn Tail>, ReadError> {
        let (sender, live) = bounded(TAIL_GROUPS_MAX);
        let mut positions = self.shared.positions.lock();
        positions.check_kept(from)?;
        if self.shared.poison.lock().is_none() {
            positions.tail = Some(sender);
        }
        Ok(Box::new(EmbeddedTail {
            shared: Arc::clone(&self.shared),
            next: from,
            live_from: positions.next,
            live,
        }))
    }

    fn trim(&self, partition: Partition, before: Offset) -> Result<(), LogError> {
        let committing = self.shared.committing.lock();
        self.shared.check()?;
        let trimmed = self.shared.trim(partition, before);
        if let Err(error) = &trimmed {
            self.shared.poison(&format!("a trim failed: {error}"));
        }
        let Some(before) = trimmed? else {
            return Ok(());
        };
        failpoint!(TrimMarked);
        // The mark is on disk before a file goes: without it, after a power cut, a reader would take
        // the hole for all there is.
        self.shared.sync()?;
        drop(committing);
        failpoint!(TrimSynced);
        // Gives whole files back at once; the rest goes at compaction.
        let (entries, _) = read::families(&self.shared.db)?;
        let (from, to) = (
            keys::entry(partition, Offset::NONE),
            keys::entry(partition, before),
        );
        self.shared
            .db
            .delete_file_in_range_cf(entries, from, to)
            .map_err(|error| LogError::Io(error.to_string()))
    }

    fn partitions(&self) -> Vec<PartitionInfo> {
        let positions = self.shared.positions.lock();
        positions
            .partitions
            .iter()
            .map(|(p, known)| info(*p, known))
            .collect()
    }

    fn partition(&self, partition: Partition) -> Option<PartitionInfo> {
        let positions = self.shared.positions.lock();
        positions
            .partitions
            .get(&partition)
            .map(|known| info(partition, known))
    }

    fn next_offset(&self) -> Offset {
        self.shared.positions.lock().next
    }

    fn checkpoint(&self, dir: &Path) -> Result<(), LogError> {
        self.shared.check()?;
        rocks::checkpoint(&self.shared.db, dir).map_err(LogError::Io)
    }

    fn store(&self) -> StoreGauges {
        rocks::gauges(&self.shared.db, &[ENTRIES, META])
    }

    fn commit_running(&self) -> std::time::Duration {
        let since = *self.shared.commit_since.lock();
        since.map_or_else(Default::default, |since| since.elapsed())
    }

    fn poisoned(&self) -> Option<String> {
        self.shared.poison.lock().clone()
    }

    fn close(&self) {
        drop(self.intake.write().take());
        let writer = self.writer.lock().take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the log's writer panicked");
        }
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.close();
    }
}

/// Stored entries up to the moment it began, then what is committed.
struct EmbeddedTail {
    shared: Arc<Shared>,
    next: Offset,
    live_from: Offset,
    live: Receiver<Vec<Entry>>,
}

/// Read at once while catching up.
const REPLAY_BYTES: usize = 4 << 20;

impl Tail for EmbeddedTail {
    fn next(&mut self) -> Option<Vec<Entry>> {
        while self.next < self.live_from {
            let partitions: Vec<Partition> = self
                .shared
                .positions
                .lock()
                .partitions
                .keys()
                .copied()
                .collect();
            let read = read::merged(
                &self.shared.db,
                &partitions,
                self.next,
                self.live_from,
                REPLAY_BYTES,
            );
            // What was trimmed in the meantime may be missing in it.
            let kept = self.shared.positions.lock().check_kept(self.next);
            match kept.and(read) {
                Ok(merged) => {
                    self.next = merged.next;
                    if !merged.entries.is_empty() {
                        return Some(merged.entries);
                    }
                }
                Err(error) => {
                    self.shared.poison(&error.to_string());
                    return None;
                }
            }
        }
        self.live.recv().ok()
    }
}
