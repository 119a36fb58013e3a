//! Where runs go down to: a RocksDB database. In the build for simulation it may be a map in memory, with
//! which a crash costs nothing and a run goes down when the simulation says so.

use crate::state::{
    StateError,
    columns::{Columns, Key},
    merged::Merged,
    tables::{List, Tables},
};
#[cfg(plants)]
use crate::state::{keys, row::Row};
use hutong_proto::EntityId;
use rocksdb::{DB, Direction, IteratorMode, ReadOptions};
use std::{collections::BTreeMap, sync::Arc};

#[cfg(plants)]
use parking_lot::RwLock;
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// What is on disk.
#[derive(Debug)]
pub enum Store {
    Rocks(Tables),
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

/// All registers, in the order of their keys, as of the moment when it was made.
pub enum Stored {
    Rocks(Merged),
    #[cfg(plants)]
    Memory {
        rows: Rows,
        columns: Box<Columns>,
        at: usize,
    },
}

/// What was on disk at one moment.
pub enum View {
    Rocks(Arc<List>),
    #[cfg(plants)]
    Memory(Rows),
}

impl View {
    pub fn registers(self) -> Result<Stored, StateError> {
        match self {
            View::Rocks(list) => Tables::registers(&list).map(Stored::Rocks),
            #[cfg(plants)]
            View::Memory(rows) => Ok(Stored::Memory {
                rows,
                columns: Box::default(),
                at: 0,
            }),
        }
    }
}

impl Stored {
    /// Goes to the next one; says whether there is one.
    pub fn advance(&mut self) -> Result<bool, StateError> {
        match self {
            Stored::Rocks(rows) => rows.advance(),
            #[cfg(plants)]
            Stored::Memory {
                rows, columns, at, ..
            } => {
                let Some((key, row)) = rows.get(*at) else {
                    return Ok(false);
                };
                *at += 1;
                columns.clear();
                let key = key[1..].try_into().ok();
                let (key, row) = key.zip(Row::decode(row)).expect("put by this process");
                columns.push(&key, &row);
                Ok(true)
            }
        }
    }

    /// Where it is.
    pub fn row(&self) -> (&Columns, usize) {
        match self {
            Stored::Rocks(rows) => rows.row(),
            #[cfg(plants)]
            Stored::Memory { columns, .. } => (columns, 0),
        }
    }
}

fn failed(error: rocksdb::Error) -> StateError {
    StateError::Failed(error.to_string())
}

impl Store {
    /// A row of any kind but registers.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        match self {
            Store::Rocks(tables) => tables.db.get(key).map_err(failed),
            #[cfg(plants)]
            Store::Memory(map) => Ok(map.0.read().rows.get(key).cloned()),
        }
    }

    /// The encoded row of a register.
    pub fn register(&self, key: &Key) -> Result<Option<Vec<u8>>, StateError> {
        match self {
            Store::Rocks(tables) => tables.register(key),
            #[cfg(plants)]
            Store::Memory(_) => self.get(&keys::stored_register(key)),
        }
    }

    /// All registers of an entity, with their encoded rows.
    pub fn entity(&self, entity: EntityId) -> Result<BTreeMap<Key, Vec<u8>>, StateError> {
        match self {
            Store::Rocks(tables) => tables.entity(entity),
            #[cfg(plants)]
            Store::Memory(map) => {
                let from = keys::entity_prefix(entity);
                let below = keys::after_prefix(&from).unwrap_or_else(|| vec![u8::MAX; 32]);
                let rows = map.range(&from, &below).into_iter();
                let key = |key: &[u8]| key[1..].try_into().expect("a register's");
                Ok(rows.map(|(stored, row)| (key(&stored), row)).collect())
            }
        }
    }

    /// Rows of any kind but registers, with keys in this range, in order.
    pub fn range(&self, from: &[u8], below: &[u8]) -> Result<Rows, StateError> {
        match self {
            Store::Rocks(tables) => {
                let mut options = ReadOptions::default();
                options.set_iterate_upper_bound(below);
                let rows = tables
                    .db
                    .iterator_opt(IteratorMode::From(from, Direction::Forward), options);
                rows.map(|item| item.map(|(key, value)| (key.into_vec(), value.into_vec())))
                    .collect::<Result<_, _>>()
                    .map_err(failed)
            }
            #[cfg(plants)]
            Store::Memory(map) => Ok(map.range(from, below)),
        }
    }

    /// What is on disk now, without reading it.
    pub fn view(&self) -> View {
        match self {
            Store::Rocks(tables) => View::Rocks(tables.list()),
            #[cfg(plants)]
            Store::Memory(map) => {
                let kind = keys::register_prefix()[0];
                View::Memory(map.range(&[kind], &[kind + 1]))
            }
        }
    }

    /// What is in a database, if it is.
    pub fn tables(&self) -> Option<&Tables> {
        match self {
            Store::Rocks(tables) => Some(tables),
            #[cfg(plants)]
            Store::Memory(_) => None,
        }
    }

    /// The database, if it is one.
    pub fn database(&self) -> Option<&DB> {
        self.tables().map(|tables| &tables.db)
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
