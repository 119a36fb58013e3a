//! The state: the newest value of every register, and what apply must remember.
//!
//! There is no write-ahead log here: the log is one. Values gather in memory and go down as sorted
//! runs, which RocksDB takes in at once, with the applied position among its rows. So what is on disk is always
//! the exact effect of all records below that position, and a restart applies the rest again.
//!
//! RocksDB keeps files, names them in one step, syncs and checks them. What is in the files of registers is ours, and so is
//! merging them (`columns.rs`, `table.rs`, `tables.rs`, `merge.rs`).

mod applied;
mod columns;
mod earlier;
mod evidence;
mod filter;
mod gather;
mod gauges;
pub mod keys;
mod merge;
mod merged;
pub mod row;
mod run;
#[cfg(plants)]
mod simulated;
mod snapshot;
mod store;
mod table;
mod tables;
#[cfg(test)]
mod tests;
mod texts;

use crate::{overload::BulkGate, rocks};
use gather::Gather;
use hutong_proto::{EntityId, Kind, Micros, Offset};
use keys::RegisterKey;
use parking_lot::{Condvar, Mutex, RwLock, RwLockUpgradableReadGuard, RwLockWriteGuard};
use row::{OwnedRow, Row};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

pub use applied::Applied;
pub use snapshot::SnapshotRows;
#[cfg(plants)]
pub use store::MemoryStore;
use store::Store;

/// The only column family.
const FAMILY: &str = rocksdb::DEFAULT_COLUMN_FAMILY_NAME;
/// Runs that wait to go down; then apply waits.
const FROZEN_MAX: usize = 2;
/// A snapshot makes a run of what is gathered only if that is at least this share of a full one: asked for
/// again and again, it would make as many tiny files.
const COPIED_SHARE: usize = 16;

#[derive(Clone)]
pub struct StateOptions {
    /// Gathered values beyond this go down.
    pub gather_bytes_max: usize,
    pub block_cache_bytes: usize,
    /// So many runs wait on disk for a segment, at least, before they are merged into it; half of that once segments take
    /// turns.
    pub runs_merged: usize,
    /// A segment of more becomes two.
    pub segment_bytes: u64,
    /// Shut while there is room for little more than what is urgent.
    pub bulk_gate: Arc<BulkGate>,
    /// Told about each run that went down.
    pub observer: Arc<dyn Fn(Flush) + Send + Sync>,
}

impl std::fmt::Debug for StateOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateOptions")
            .field("gather_bytes_max", &self.gather_bytes_max)
            .field("block_cache_bytes", &self.block_cache_bytes)
            .finish_non_exhaustive()
    }
}

impl StateOptions {
    /// Gathered values that a snapshot copies; more are frozen for it.
    fn copied(&self) -> usize {
        self.gather_bytes_max / COPIED_SHARE
    }

    /// Gathered values beyond this leave room only for what is urgent, while no more runs may wait.
    fn bulk_bytes_max(&self) -> usize {
        self.gather_bytes_max / 4 * 3
    }
}

impl Default for StateOptions {
    fn default() -> Self {
        StateOptions {
            gather_bytes_max: 64 << 20,
            block_cache_bytes: 32 << 20,
            runs_merged: 16,
            segment_bytes: 64 << 20,
            bulk_gate: Arc::default(),
            observer: Arc::new(|_| {}),
        }
    }
}

/// Keys and values, in order.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot open the state in {dir}: {why}")]
    Open { dir: String, why: String },
    #[error("the state failed and takes nothing until it is opened again: {0}")]
    Failed(String),
    #[error(
        "the state is damaged {key}: {what}; restore a backup of the state folder. Only if nothing was \
         ever trimmed from the log can it be rebuilt from there, by removing the folder; a start that would \
         miss something is refused"
    )]
    Damaged { key: String, what: String },
}

impl StateError {
    /// Keys of registers hold an entity, so only the kind of the key is told.
    pub fn damaged(key: &[u8], what: &str) -> StateError {
        let kind = key.first().copied().unwrap_or_default();
        StateError::Damaged {
            key: format!("at a key of kind {kind:#04x}"),
            what: what.to_owned(),
        }
    }
}

/// A gathered run on its way down.
#[derive(Debug)]
struct Frozen {
    gather: Gather,
    applied: Applied,
}

#[derive(Debug)]
struct Memory {
    active: Gather,
    /// Oldest first.
    frozen: Vec<Arc<Frozen>>,
    applied: Applied,
    stored: Applied,
}

/// What flushing did so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct StateStats {
    pub flushes: u64,
    /// Of runs into one segment.
    pub merges: u64,
    pub rows_ingested: u64,
    pub flush_seconds: f64,
}

/// One run that went down.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    pub rows: usize,
    pub bytes: usize,
    pub took: Duration,
}

#[derive(Debug)]
struct Shared {
    db: Store,
    memory: RwLock<Memory>,
    /// Held while a run is taken in and leaves the frozen ones, and while a snapshot begins: a
    /// snapshot then sees each run exactly once.
    ingest: Mutex<()>,
    signal: Mutex<Signal>,
    /// Told after each run that went down and each merge, with `signal`.
    changed: Condvar,
    /// Wakes the flush thread; one token is enough.
    wake: crossbeam_channel::Sender<()>,
    /// Of the last record whose effect is on disk, for compaction: what it forgets must be forgotten for
    /// every record that a restart applies again, too.
    log_time: Arc<AtomicU64>,
    /// Nothing below is in the log any more.
    log_start: Arc<AtomicU64>,
    options: StateOptions,
    stats: Mutex<StateStats>,
}

/// What the flush thread and those who wait for it tell each other.
#[derive(Debug, Default)]
struct Signal {
    /// Runs wait for nothing any more.
    closing: bool,
    /// The thread ends when nothing is left.
    stop: bool,
    failure: Option<String>,
}

#[derive(Debug)]
pub struct State {
    shared: Arc<Shared>,
    options: StateOptions,
    flusher: Mutex<Option<JoinHandle<()>>>,
    merger: Mutex<Option<JoinHandle<()>>>,
}

impl Signal {
    /// Nothing more is to be done.
    fn ends(&self) -> bool {
        self.stop || self.failure.is_some()
    }
}

impl State {
    pub fn open(dir: &Path, options: StateOptions) -> Result<State, StateError> {
        let failed = |why: String| StateError::Open {
            dir: dir.display().to_string(),
            why,
        };
        let log_time = Arc::new(AtomicU64::new(0));
        let log_start = Arc::new(AtomicU64::new(0));
        let cache = options.block_cache_bytes;
        let tables = run::open(dir, cache, &log_start).map_err(failed)?;
        earlier::bring_over(&tables)?;
        let db = Store::Rocks(tables);
        let stored = match db.get(&keys::applied())? {
            Some(row) => Applied::decode(&row)
                .ok_or_else(|| StateError::damaged(&keys::applied(), "does not decode"))?,
            None => Applied::NOTHING,
        };
        log_time.store(stored.log_time.0, Ordering::Release);
        let (wake, woken) = crossbeam_channel::bounded(1);
        let shared = Shared::new(db, stored, wake, log_time, log_start, options.clone());
        let shared = Arc::new(shared);
        let flusher = Arc::clone(&shared);
        let observer = Arc::clone(&options.observer);
        let flusher = std::thread::Builder::new()
            .name("state-flush".to_owned())
            .spawn(move || flusher.guard(|| run::flush_loop(&flusher, &woken, &*observer)))
            .map_err(|e| failed(e.to_string()))?;
        let merging = Arc::clone(&shared);
        let merger = std::thread::Builder::new()
            .name("state-merge".to_owned())
            .spawn(move || {
                if let Some(tables) = merging.db.tables() {
                    merging.guard(|| merge::merge_loop(&merging, tables));
                }
            })
            .map_err(|e| failed(e.to_string()))?;
        Ok(State {
            shared,
            options,
            flusher: Mutex::new(Some(flusher)),
            merger: Mutex::new(Some(merger)),
        })
    }

    /// As of the last committed group.
    pub fn applied(&self) -> Applied {
        self.shared.memory.read().applied
    }

    /// On disk: a restart applies the log from here.
    pub fn stored(&self) -> Applied {
        self.shared.memory.read().stored
    }

    /// Begins a group of changes; readers wait until it is committed. For apply alone. Waits while
    /// too much is on its way down.
    pub fn begin(&self) -> Result<Group<'_>, StateError> {
        self.shared.wait_for_room()?;
        Ok(Group {
            state: self,
            memory: self.shared.memory.write(),
        })
    }

    /// A row of any kind but registers.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.shared.get_other(&self.shared.memory.read(), key)
    }

    pub fn scan(&self, prefix: &[u8]) -> Result<Rows, StateError> {
        let below = keys::after_prefix(prefix).unwrap_or_else(|| vec![u8::MAX; 32]);
        self.scan_range(prefix, &below)
    }

    /// Rows with keys in this range, of any kind but registers, in order.
    pub fn scan_range(&self, from: &[u8], below: &[u8]) -> Result<Rows, StateError> {
        let memory = self.shared.memory.read();
        let stored = self.shared.db.range(from, below)?;
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = stored.into_iter().collect();
        let gathers = memory
            .frozen
            .iter()
            .map(|f| &f.gather)
            .chain([&memory.active]);
        for gather in gathers {
            for (key, row) in gather.others_in(from, below) {
                match row {
                    Some(row) => rows.insert(key.clone(), row.to_vec()),
                    None => rows.remove(key),
                };
            }
        }
        Ok(rows.into_iter().collect())
    }

    /// All registers of one entity that are not forgotten.
    pub fn entity(&self, entity: EntityId) -> Result<Vec<(RegisterKey, OwnedRow)>, StateError> {
        let memory = self.shared.memory.read();
        let mut rows = self.shared.db.entity(entity)?;
        // The gathered map has no order, but the possible keys of an entity are few.
        let gathers = || {
            memory
                .frozen
                .iter()
                .map(|f| &f.gather)
                .chain([&memory.active])
        };
        for gather in gathers() {
            for kind in Kind::ALL {
                for issuer in gather.issuers() {
                    let key = RegisterKey {
                        entity,
                        kind,
                        issuer,
                    }
                    .encode();
                    if let Some(row) = gather.register(&key) {
                        rows.insert(key, row.to_vec());
                    }
                }
            }
        }
        let log_time = memory.applied.log_time;
        let mut found = Vec::with_capacity(rows.len());
        for (key, value) in &rows {
            let (key, row) = decode_register(key, value)?;
            if !row.forgotten(log_time) {
                found.push((key, row.to_owned()));
            }
        }
        Ok(found)
    }

    /// Hands what is gathered to the flush thread, without waiting for it.
    pub fn rotate(&self) -> Result<(), StateError> {
        self.check()?;
        let memory = self.shared.memory.upgradable_read();
        // What waits is enough; nothing is urgent here.
        if memory.frozen.is_empty() && memory.applied.next > memory.stored.next {
            let mut memory = RwLockUpgradableReadGuard::upgrade(memory);
            self.shared.freeze(&mut memory);
        }
        Ok(())
    }

    /// Everything gathered goes down; returns when it is on disk.
    pub fn flush(&self) -> Result<(), StateError> {
        let target = {
            let mut memory = self.shared.memory.write();
            self.shared.freeze(&mut memory);
            memory.applied.next
        };
        let mut signal = self.shared.signal.lock();
        while self.shared.memory.read().stored.next < target {
            if let Some(why) = &signal.failure {
                return Err(StateError::Failed(why.clone()));
            }
            // The flush thread signals under the lock, so nothing is missed; the time-out only
            // covers a thread that died.
            self.shared
                .changed
                .wait_for(&mut signal, Duration::from_secs(1));
            if self
                .flusher
                .lock()
                .as_ref()
                .is_none_or(JoinHandle::is_finished)
                && self.shared.memory.read().stored.next < target
            {
                return Err(StateError::Failed("the flush thread ended".to_owned()));
            }
        }
        Ok(())
    }

    /// From now on runs go down however many wait to be merged: who calls this will not write for long.
    pub fn closing(&self) {
        self.shared.signal.lock().closing = true;
        self.shared.changed.notify_all();
    }

    /// Copies what is on disk into `dir`, which must not be there. Returns what is applied in the copy, at least:
    /// a run goes down whole, with its position, so what is more in it belongs to a later one.
    pub fn checkpoint(&self, dir: &Path) -> Result<Applied, StateError> {
        self.check()?;
        let stored = self.stored();
        let tables = self.shared.db.tables();
        let tables =
            tables.ok_or_else(|| StateError::Failed("it is in memory alone".to_owned()))?;
        tables.checkpoint(dir).map_err(StateError::Failed)?;
        Ok(stored)
    }

    /// Flushes and stops.
    pub fn close(&self) -> Result<(), StateError> {
        self.closing();
        let flushed = self.flush();
        self.stop();
        flushed
    }

    /// Blocks until the threads that bring runs down and merge them have ended; what is gathered stays in the log.
    pub fn stop(&self) {
        self.closing();
        {
            let mut signal = self.shared.signal.lock();
            signal.stop = true;
            self.shared.changed.notify_all();
        }
        self.shared.wake();
        for thread in [&self.flusher, &self.merger] {
            let thread = thread.lock().take();
            if thread.is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a thread of the state panicked");
            }
        }
    }

    fn check(&self) -> Result<(), StateError> {
        match &self.shared.signal.lock().failure {
            Some(why) => Err(StateError::Failed(why.clone())),
            None => Ok(()),
        }
    }

    /// Why the state takes nothing, if so.
    pub fn failure(&self) -> Option<String> {
        self.shared.signal.lock().failure.clone()
    }

    /// The log keeps nothing below: what the state knows of it alone goes at compaction.
    pub fn log_starts_at(&self, offset: Offset) {
        self.shared.log_start.fetch_max(offset.0, Ordering::AcqRel);
    }

    /// At once, what else happens in the background.
    #[cfg(test)]
    pub fn compact(&self) -> Result<(), StateError> {
        let tables = self.shared.db.tables().expect("a database");
        tables.db.compact_range(None::<&[u8]>, None::<&[u8]>);
        merge::pass(&self.shared, tables)
    }

    /// Runs `f` over all registers as of one moment, while writes go on. Blocks for as long.
    pub fn with_snapshot<R>(
        &self,
        f: impl FnOnce(&mut SnapshotRows, Applied) -> R,
    ) -> Result<R, StateError> {
        self.check()?;
        let (mut rows, applied) = SnapshotRows::begin(&self.shared)?;
        Ok(f(&mut rows, applied))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn new(
        db: Store,
        stored: Applied,
        wake: crossbeam_channel::Sender<()>,
        log_time: Arc<AtomicU64>,
        log_start: Arc<AtomicU64>,
        options: StateOptions,
    ) -> Shared {
        Shared {
            db,
            memory: RwLock::new(Memory {
                active: Gather::default(),
                frozen: Vec::new(),
                applied: stored,
                stored,
            }),
            ingest: Mutex::new(()),
            signal: Mutex::new(Signal::default()),
            changed: Condvar::new(),
            wake,
            log_time,
            log_start,
            options,
            stats: Mutex::new(StateStats::default()),
        }
    }

    fn property(&self, name: &str) -> u64 {
        self.db
            .database()
            .map_or(0, |db| rocks::property(db, &[FAMILY], name))
    }

    /// Whoever waits for a thread that panicked would wait for ever.
    fn guard(&self, thread: impl FnOnce()) {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(thread));
        if ended.is_err() {
            self.fail(&StateError::Failed(
                "a thread of the state panicked".to_owned(),
            ));
        }
    }

    /// From now on nothing is taken.
    fn fail(&self, error: &StateError) {
        tracing::error!(%error, "state cannot go down or be merged: the broker must stop");
        let mut signal = self.signal.lock();
        signal.failure.get_or_insert_with(|| error.to_string());
        self.changed.notify_all();
    }

    fn get_other(&self, memory: &Memory, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let gathers = [&memory.active]
            .into_iter()
            .chain(memory.frozen.iter().rev().map(|f| &f.gather));
        for gather in gathers {
            if let Some(row) = gather.other(key) {
                return Ok(row.map(<[u8]>::to_vec));
            }
        }
        self.db.get(key)
    }

    /// Waits while too much is on its way down.
    fn wait_for_room(&self) -> Result<(), StateError> {
        self.wait_for_runs(FROZEN_MAX)
    }

    /// Waits until no more than so many runs are on their way down.
    fn wait_for_runs(&self, max: usize) -> Result<(), StateError> {
        let mut signal = self.signal.lock();
        loop {
            if let Some(why) = &signal.failure {
                return Err(StateError::Failed(why.clone()));
            }
            if self.memory.read().frozen.len() <= max {
                return Ok(());
            }
            self.changed.wait(&mut signal);
        }
    }

    /// Bulk stops before apply has to wait.
    fn look_at_room(&self, memory: &Memory) {
        let last = memory.frozen.len() >= FROZEN_MAX;
        let full = last && memory.active.bytes() > self.options.bulk_bytes_max();
        self.options
            .bulk_gate
            .shut(full || memory.frozen.len() > FROZEN_MAX);
    }

    fn freeze(&self, memory: &mut Memory) {
        if memory.applied.next == memory.stored.next && memory.active.is_empty() {
            return;
        }
        let covered = memory.frozen.last().map(|f| f.applied.next);
        if memory.active.is_empty() && covered == Some(memory.applied.next) {
            return;
        }
        let next = Gather::like(&memory.active);
        let mut gather = std::mem::replace(&mut memory.active, next);
        let mut applied = memory.applied;
        if planted!(AppliedAhead) {
            applied.next = applied.next.next();
        }
        gather.put_other(&keys::applied(), Some(&applied.encode()));
        memory.frozen.push(Arc::new(Frozen {
            gather,
            applied: memory.applied,
        }));
        self.look_at_room(memory);
        self.wake();
    }

    fn wake(&self) {
        if self.wake.try_send(()).is_err() {
            tracing::trace!("a wake-up is on its way already");
        }
    }
}

fn decode_register<'a>(key: &[u8], value: &'a [u8]) -> Result<(RegisterKey, Row<'a>), StateError> {
    let damaged = |what| StateError::damaged(&[keys::KeyKind::Register as u8], what);
    let key = RegisterKey::decode(key).ok_or_else(|| damaged("the key does not decode"))?;
    let row = Row::decode(value).ok_or_else(|| damaged("the row does not decode"))?;
    Ok((key, row))
}

/// Changes of one group of records; nobody sees half of them.
#[derive(Debug)]
pub struct Group<'a> {
    state: &'a State,
    memory: RwLockWriteGuard<'a, Memory>,
}

impl Group<'_> {
    /// As of the group before.
    pub fn applied(&self) -> Applied {
        self.memory.applied
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.state.shared.get_other(&self.memory, key)
    }

    /// The register's row, unless it is forgotten at this time of the log.
    pub fn get_register(
        &self,
        key: &RegisterKey,
        log_time: Micros,
    ) -> Result<Option<OwnedRow>, StateError> {
        let encoded = key.encode();
        let frozen = self.memory.frozen.iter().rev().map(|f| &f.gather);
        let gathered = [&self.memory.active]
            .into_iter()
            .chain(frozen)
            .find_map(|gather| gather.register(&encoded));
        let stored;
        let bytes = match gathered {
            Some(bytes) => Some(bytes),
            None => {
                stored = self.state.shared.db.register(&encoded)?;
                stored.as_deref()
            }
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let (_, row) = decode_register(&encoded, bytes)?;
        Ok((!row.forgotten(log_time)).then(|| row.to_owned()))
    }

    pub fn put(&mut self, key: &[u8], row: &[u8]) {
        self.memory.active.put_other(key, Some(row));
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.memory.active.put_other(key, None);
    }

    pub fn put_register(&mut self, key: &RegisterKey, row: &[u8]) {
        self.memory.active.put_register(key.encode(), row);
    }

    /// Makes the group visible. Too much gathered goes down in the background.
    pub fn commit(mut self, applied: Applied) {
        assert!(
            applied.next > self.memory.applied.next,
            "the log is applied forward only"
        );
        self.memory.applied = applied;
        let active = &self.memory.active;
        if active.bytes() > self.state.options.gather_bytes_max || active.is_full() {
            self.state.shared.freeze(&mut self.memory);
        }
        self.state.shared.look_at_room(&self.memory);
    }
}
