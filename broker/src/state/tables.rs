//! Which tables make up the state on disk, and how that changes.
//!
//! Each run that goes down is a table. Merging takes what runs have of a part of the keys into the segment of that part, a
//! table too; a run that all segments have taken in is forgotten. A register's value is that of the newest run that
//! has it, or its segment's: so while a run is taken in part by part, nobody sees a difference.
//!
//! Which tables there are stands in one row, the list. RocksDB takes it in together with the rows of other kinds in one
//! step, once the tables that it names are synced; what is replaced is removed after that, and if a crash comes in
//! between, at the next opening.

use crate::{
    rocks,
    state::{
        FAMILY, StateError,
        columns::Key,
        keys,
        merged::Merged,
        run,
        table::{self, Cursor, Table},
    },
};
use hutong_proto::EntityId;
use parking_lot::{Mutex, MutexGuard, RwLock};
use rocksdb::{DB, IngestExternalFileOptions, SstFileWriter};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Raised when the list changes.
const VERSION: u8 = 1;
/// In the list: no table.
const NO_TABLE: u64 = 0;

/// Entities from `low` to the next segment's.
#[derive(Clone, Debug)]
pub struct Segment {
    pub low: u128,
    /// Runs up to this number are in it.
    pub through: u64,
    /// None as long as it has no row.
    pub table: Option<Arc<Table>>,
}

impl Segment {
    pub fn bytes(&self) -> u64 {
        self.table.as_ref().map_or(0, |table| table.bytes)
    }
}

/// What is on disk, at one moment.
#[derive(Clone, Debug)]
pub struct List {
    /// Oldest first.
    pub runs: Vec<Arc<Table>>,
    /// In the order of their keys, from the lowest key there may be.
    pub segments: Vec<Segment>,
}

impl List {
    fn empty() -> List {
        let all = Segment {
            low: 0,
            through: 0,
            table: None,
        };
        List {
            runs: Vec::new(),
            segments: vec![all],
        }
    }

    fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        let segments = self.segments.iter().filter_map(|s| s.table.as_ref());
        self.runs.iter().chain(segments)
    }

    pub fn rows(&self) -> u64 {
        self.tables().map(|table| table.rows).sum()
    }

    pub fn memory_bytes(&self) -> usize {
        self.tables().map(|table| table.memory_bytes()).sum()
    }

    pub fn run_bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.bytes).sum()
    }

    pub fn segment_bytes(&self) -> u64 {
        self.segments.iter().map(Segment::bytes).sum()
    }

    /// Those that may have this entity, oldest first.
    fn tables_of(&self, first: u128) -> impl DoubleEndedIterator<Item = &Arc<Table>> {
        let behind = self.segments.partition_point(|s| s.low <= first);
        // The first one begins with the lowest entity that there may be.
        let segment = &self.segments[behind - 1];
        (segment.table.iter()).chain(self.waiting(segment.through))
    }

    /// Runs that are not in a segment that has all up to this number, oldest first.
    pub fn waiting(&self, through: u64) -> &[Arc<Table>] {
        let merged = self.runs.partition_point(|run| run.number <= through);
        &self.runs[merged..]
    }

    /// What waits, in the mean over all that is in segments: how many runs, and their bytes.
    pub fn waiting_mean(&self) -> (f64, f64) {
        // One without rows counts a little, too.
        let weight = |segment: &Segment| 1.0 + segment.bytes() as f64;
        let all: f64 = self.segments.iter().map(weight).sum();
        let mut mean = (0.0, 0.0);
        for segment in &self.segments {
            let runs = self.waiting(segment.through);
            let bytes: u64 = runs.iter().map(|run| run.bytes).sum();
            let share = weight(segment) / all;
            mean.0 += share * runs.len() as f64;
            mean.1 += share * bytes as f64;
        }
        mean
    }

    /// Forgets runs that are in all segments.
    pub fn drop_merged(&mut self) {
        let through = self.segments.iter().map(|s| s.through).min().unwrap_or(0);
        self.runs.retain(|run| run.number > through);
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        let put = |out: &mut Vec<u8>, n: u64| out.extend_from_slice(&n.to_le_bytes());
        put(&mut out, self.runs.len() as u64);
        for run in &self.runs {
            put(&mut out, run.number);
        }
        for segment in &self.segments {
            let table = segment.table.as_ref().map_or(NO_TABLE, |t| t.number);
            let (upper, lower) = ((segment.low >> 64) as u64, segment.low as u64);
            for n in [upper, lower, segment.through, table] {
                put(&mut out, n);
            }
        }
        out
    }

    /// As encoded: version u8; how many runs, their numbers; of each segment where it begins in two halves, the upper one first,
    /// up to which run it is merged, and its table or 0. u64 LE each.
    pub fn decode(
        bytes: &[u8],
        mut load: impl FnMut(u64) -> Result<Table, StateError>,
    ) -> Result<List, StateError> {
        let damaged = || StateError::damaged(&keys::tables(), "the list of tables does not decode");
        let (version, numbers) = bytes.split_first().ok_or_else(damaged)?;
        let (numbers, odd) = numbers.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|n| u64::from_le_bytes(*n));
        let runs = numbers.next().ok_or_else(damaged)?;
        if *version != VERSION || !odd.is_empty() || runs > numbers.len() as u64 {
            return Err(damaged());
        }
        let mut list = List {
            runs: Vec::new(),
            segments: Vec::new(),
        };
        for number in numbers.by_ref().take(runs as usize) {
            list.runs.push(Arc::new(load(number)?));
        }
        while let Some(upper) = numbers.next() {
            let lower = numbers.next().ok_or_else(damaged)?;
            let low = u128::from(upper) << 64 | u128::from(lower);
            let through = numbers.next().ok_or_else(damaged)?;
            let table = match numbers.next().ok_or_else(damaged)? {
                NO_TABLE => None,
                number => Some(Arc::new(load(number)?)),
            };
            list.segments.push(Segment {
                low,
                through,
                table,
            });
        }
        let in_order = list.segments.is_sorted_by(|a, b| a.low < b.low)
            && list.runs.is_sorted_by(|a, b| a.number < b.number);
        match list.segments.first() {
            Some(first) if first.low == 0 && in_order => Ok(list),
            _ => Err(damaged()),
        }
    }
}

/// The database and its tables.
#[derive(Debug)]
pub struct Tables {
    pub db: DB,
    pub dir: PathBuf,
    list: RwLock<Arc<List>>,
    /// Held by whoever merges.
    pub merging: Mutex<()>,
    /// No longer in the list, and on disk for as long as somebody reads them.
    held: Mutex<Vec<Weak<Table>>>,
    /// Held from the making of a new list until it is known.
    changing: Mutex<()>,
    /// The last number that was given to a table.
    number: AtomicU64,
    /// RocksDB did not say that it took something in, and may have.
    unknown: AtomicBool,
}

/// What was taken in, and is not known yet.
#[must_use]
pub struct Change<'a> {
    tables: &'a Tables,
    list: Arc<List>,
    _changing: MutexGuard<'a, ()>,
}

impl Change<'_> {
    /// From now on the new list counts.
    pub fn publish(self) {
        let before = std::mem::replace(&mut *self.tables.list.write(), Arc::clone(&self.list));
        let kept = |table: &Arc<Table>| self.list.tables().any(|t| t.number == table.number);
        let gone = before.tables().filter(|table| !kept(table));
        let mut held = self.tables.held.lock();
        held.retain(|table| table.strong_count() > 0);
        for table in gone {
            // Who reads them has them open.
            table.set_listed(false);
            held.push(Arc::downgrade(table));
        }
    }
}

impl Tables {
    /// Removes tables that no list names.
    pub fn open(db: DB, dir: &Path) -> Result<Tables, StateError> {
        let stored = db.get(keys::tables()).map_err(failed)?;
        let list = match stored {
            Some(row) => List::decode(&row, |number| Table::load(dir, number))?,
            None => List::empty(),
        };
        let mut number = list.segments.iter().map(|s| s.through).max().unwrap_or(0);
        let failed = |error: io::Error| StateError::Failed(format!("{}: {error}", dir.display()));
        for entry in fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if let Some(found) = table::number_of(&path) {
                number = number.max(found);
                if !list.tables().any(|table| table.number == found) {
                    fs::remove_file(&path).map_err(failed)?;
                }
            }
        }
        Ok(Tables {
            db,
            dir: dir.to_owned(),
            list: RwLock::new(Arc::new(list)),
            merging: Mutex::new(()),
            held: Mutex::default(),
            changing: Mutex::new(()),
            number: AtomicU64::new(number),
            unknown: AtomicBool::new(false),
        })
    }

    pub fn list(&self) -> Arc<List> {
        Arc::clone(&self.list.read())
    }

    /// For a new table; higher than any that there is, and than all that were merged.
    pub fn next_number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Takes in tables that are written, with the list as `change` makes it of the one there is, and rows of other kinds,
    /// in order of their keys.
    pub fn take_in<'r>(
        &self,
        written: Vec<Table>,
        others: impl IntoIterator<Item = (&'r [u8], Option<&'r [u8]>)>,
        change: impl FnOnce(&mut List, Vec<Arc<Table>>),
    ) -> Result<Change<'_>, StateError> {
        let changing = self.changing.lock();
        if self.unknown.load(Ordering::Acquire) {
            let why = "what was taken in last may be on disk or not";
            return Err(StateError::Failed(why.to_owned()));
        }
        if !written.is_empty() {
            // Their names; what is in them is synced.
            let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
            synced.map_err(|e| StateError::Failed(format!("{}: {e}", self.dir.display())))?;
        }
        let tables: Vec<_> = written.into_iter().map(Arc::new).collect();
        tables.iter().for_each(|table| table.set_listed(true));
        let mut list = List::clone(&self.list());
        change(&mut list, tables);
        let rows = self.dir.join(run::TEMPORARY);
        // Never written over: should it be left from before, what RocksDB took in is the same file.
        match fs::remove_file(&rows) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StateError::Failed(format!("{}: {error}", rows.display())));
            }
            _ => {}
        }
        write_rows(&rows, &list.encode(), others).map_err(failed)?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let taken = self.db.ingest_external_file_opts(&options, vec![rows]);
        self.unknown.store(taken.is_err(), Ordering::Release);
        taken.map_err(failed)?;
        Ok(Change {
            tables: self,
            list: Arc::new(list),
            _changing: changing,
        })
    }

    /// A copy as of one moment, in a folder that must not be there. Tables never change, so they are linked.
    pub fn checkpoint(&self, dir: &Path) -> Result<(), String> {
        // Nothing is removed meanwhile.
        let _changing = self.changing.lock();
        rocks::checkpoint(&self.db, dir)?;
        let failed = |error: io::Error| format!("{}: {error}", dir.display());
        for table in self.list().tables() {
            let copy = table::path(dir, table.number);
            fs::hard_link(&table.path, copy).map_err(failed)?;
        }
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed)
    }

    /// All registers of an entity, with their newest rows as encoded.
    pub fn entity(&self, entity: EntityId) -> Result<BTreeMap<Key, Vec<u8>>, StateError> {
        let list = self.list();
        let mut found = BTreeMap::new();
        // Oldest first: what is newer takes its place.
        for table in list.tables_of(table::first(&entity.0)) {
            table.entity(entity, |key, row| {
                let encoded = found.entry(*key).or_insert_with(Vec::new);
                encoded.clear();
                row.encode(encoded);
            })?;
        }
        Ok(found)
    }

    /// The newest row of this register, as encoded.
    pub fn register(&self, key: &Key) -> Result<Option<Vec<u8>>, StateError> {
        let list = self.list();
        let entity = EntityId(key[..16].try_into().expect("16 of 20 bytes"));
        let mut found = None;
        for table in list.tables_of(table::first(key)).rev() {
            table.entity(entity, |other, row| {
                if other == key {
                    let mut encoded = Vec::new();
                    row.encode(&mut encoded);
                    found = Some(encoded);
                }
            })?;
            if found.is_some() {
                break;
            }
        }
        Ok(found)
    }

    /// All registers in these tables.
    pub fn registers(list: &List) -> Result<Merged, StateError> {
        let runs = list.runs.iter().rev().map(|run| vec![Arc::clone(run)]);
        let segments = list
            .segments
            .iter()
            .filter_map(|s| s.table.clone())
            .collect();
        let sources = runs.chain([segments]);
        let cursors = sources.map(|tables| Cursor::open(tables, 0..=u128::MAX));
        Ok(Merged::new(cursors.collect::<Result<_, _>>()?))
    }

    /// Of all files, with those that a slow snapshot still reads.
    pub fn disk_bytes(&self) -> u64 {
        let list = self.list();
        let tables: u64 = list.tables().map(|table| table.disk_bytes()).sum();
        // Dropped behind the lock: who has the last one removes a file.
        let held: Vec<Arc<Table>> = self.held.lock().iter().filter_map(Weak::upgrade).collect();
        let held: u64 = held.iter().map(|table| table.disk_bytes()).sum();
        tables + held + rocks::property(&self.db, &[FAMILY], "rocksdb.total-sst-files-size")
    }
}

fn failed(error: rocksdb::Error) -> StateError {
    StateError::Failed(error.to_string())
}

/// The list has its place among the other rows.
fn write_rows<'r>(
    path: &Path,
    list: &[u8],
    others: impl IntoIterator<Item = (&'r [u8], Option<&'r [u8]>)>,
) -> Result<(), rocksdb::Error> {
    let options = run::options(0);
    let mut file = SstFileWriter::create(&options);
    file.open(path)?;
    let at = keys::tables();
    let mut listed = false;
    for (key, row) in others {
        if !listed && key > &at[..] {
            file.put(at, list)?;
            listed = true;
        }
        match row {
            Some(row) => file.put(key, row)?,
            None => file.delete(key)?,
        }
    }
    if !listed {
        file.put(at, list)?;
    }
    file.finish()
}
