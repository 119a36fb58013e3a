//! Where runs go down to: a RocksDB database. In the build for simulation it may be a map in memory, with
//! which a crash costs nothing and a run goes down when the simulation says so.

use rocksdb::{DB, DBPinnableSlice, DBRawIterator, Direction, IteratorMode, ReadOptions};
use std::ops::Deref;

#[cfg(plants)]
use parking_lot::RwLock;
#[cfg(plants)]
use std::{collections::BTreeMap, sync::Arc};

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// What is on disk.
#[derive(Debug)]
pub enum Store {
    Rocks(DB),
    #[cfg(plants)]
    Memory(MemoryStore),
}

/// Survives the state that uses it, as a disk would.
#[cfg(plants)]
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<RwLock<Disk>>);

#[cfg(plants)]
type Change = (Vec<u8>, Option<Vec<u8>>);

#[cfg(plants)]
#[derive(Debug, Default)]
struct Disk {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// What was there before each change that is not synced; the newest last.
    before: Vec<Change>,
    /// A run whose file is written. It counts once it is taken in; the power may go in between.
    written: Vec<Change>,
}

/// A value, if possible without copying it.
pub enum Pinned<'a> {
    Rocks(DBPinnableSlice<'a>),
    #[cfg(plants)]
    Memory(Vec<u8>, std::marker::PhantomData<&'a ()>),
}

impl Deref for Pinned<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Pinned::Rocks(value) => value,
            #[cfg(plants)]
            Pinned::Memory(value, _) => value,
        }
    }
}

/// Rows from one key on, as of the moment when it was made.
pub enum Stored<'a> {
    Rocks(DBRawIterator<'a>),
    #[cfg(plants)]
    Memory {
        rows: Rows,
        at: usize,
        life: std::marker::PhantomData<&'a ()>,
    },
}

impl Stored<'_> {
    pub fn key(&self) -> Option<&[u8]> {
        match self {
            Stored::Rocks(rows) => rows.key(),
            #[cfg(plants)]
            Stored::Memory { rows, at, .. } => rows.get(*at).map(|(key, _)| key.as_slice()),
        }
    }

    pub fn value(&self) -> Option<&[u8]> {
        match self {
            Stored::Rocks(rows) => rows.value(),
            #[cfg(plants)]
            Stored::Memory { rows, at, .. } => rows.get(*at).map(|(_, value)| value.as_slice()),
        }
    }

    pub fn next(&mut self) {
        match self {
            Stored::Rocks(rows) => rows.next(),
            #[cfg(plants)]
            Stored::Memory { at, .. } => *at += 1,
        }
    }

    pub fn status(&self) -> Result<(), rocksdb::Error> {
        match self {
            Stored::Rocks(rows) => rows.status(),
            #[cfg(plants)]
            Stored::Memory { .. } => Ok(()),
        }
    }
}

impl Store {
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, rocksdb::Error> {
        match self {
            Store::Rocks(db) => db.get(key),
            #[cfg(plants)]
            Store::Memory(map) => Ok(map.0.read().rows.get(key).cloned()),
        }
    }

    pub fn get_pinned(&self, key: &[u8]) -> Result<Option<Pinned<'_>>, rocksdb::Error> {
        match self {
            Store::Rocks(db) => Ok(db.get_pinned(key)?.map(Pinned::Rocks)),
            #[cfg(plants)]
            Store::Memory(map) => {
                let value = map.0.read().rows.get(key).cloned();
                Ok(value.map(|value| Pinned::Memory(value, std::marker::PhantomData)))
            }
        }
    }

    /// Rows with keys in this range, in order.
    pub fn range(&self, from: &[u8], below: &[u8]) -> Result<Rows, rocksdb::Error> {
        match self {
            Store::Rocks(db) => {
                let mut options = ReadOptions::default();
                options.set_iterate_upper_bound(below);
                db.iterator_opt(IteratorMode::From(from, Direction::Forward), options)
                    .map(|item| item.map(|(key, value)| (key.into_vec(), value.into_vec())))
                    .collect()
            }
            #[cfg(plants)]
            Store::Memory(map) => Ok(map.range(from, below)),
        }
    }

    /// All rows with this first byte.
    pub fn of_kind(&self, kind: u8) -> Stored<'_> {
        match self {
            Store::Rocks(db) => {
                let mut options = ReadOptions::default();
                options.set_iterate_upper_bound([kind + 1]);
                // Rows of a snapshot are read once; they must not push others out of the cache.
                options.fill_cache(false);
                options.set_readahead_size(2 << 20);
                let mut rows = db.raw_iterator_opt(options);
                rows.seek([kind]);
                Stored::Rocks(rows)
            }
            #[cfg(plants)]
            Store::Memory(map) => Stored::Memory {
                rows: map.range(&[kind], &[kind + 1]),
                at: 0,
                life: std::marker::PhantomData,
            },
        }
    }

    /// The database, if it is one.
    pub fn database(&self) -> Option<&DB> {
        match self {
            Store::Rocks(db) => Some(db),
            #[cfg(plants)]
            Store::Memory(_) => None,
        }
    }
}

#[cfg(plants)]
impl MemoryStore {
    fn range(&self, from: &[u8], below: &[u8]) -> Rows {
        let disk = self.0.read();
        let rows = disk.rows.range::<[u8], _>((
            std::ops::Bound::Included(from),
            std::ops::Bound::Excluded(below),
        ));
        rows.map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    pub fn put(&self, key: &[u8], value: Option<&[u8]>) {
        self.0.write().put(key, value);
    }

    /// A run is being written, and nobody reads it yet.
    pub fn write(&self, run: Vec<Change>) {
        self.0.write().written = run;
    }

    /// What was taken in so far stays, whatever happens.
    pub fn sync(&self) {
        let mut disk = self.0.write();
        disk.before.clear();
        disk.written.clear();
    }

    /// What is not synced is gone. Of a run that was written and not known to be taken in, the manifest
    /// has the name or not: all of it is there, or nothing.
    pub fn power_cut(&self, named: bool) {
        let mut disk = self.0.write();
        while let Some((key, value)) = disk.before.pop() {
            match value {
                Some(value) => disk.rows.insert(key, value),
                None => disk.rows.remove(&key),
            };
        }
        for (key, value) in std::mem::take(&mut disk.written) {
            if named {
                disk.put(&key, value.as_deref());
            }
        }
        disk.before.clear();
    }
}

#[cfg(plants)]
impl Disk {
    fn put(&mut self, key: &[u8], value: Option<&[u8]>) {
        let before = match value {
            Some(value) => self.rows.insert(key.to_vec(), value.to_vec()),
            None => self.rows.remove(key),
        };
        self.before.push((key.to_vec(), before));
    }
}
