//! The newest values, in memory, until they go down as one sorted run.

use crate::state::keys::{REGISTER_BYTES, stored_register};
use foldhash::fast::RandomState;
use hutong_proto::Issuer;
use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    hint::black_box,
};

/// What a map entry costs beside its row: key and place, and the room that a map keeps free.
const REGISTER_OVERHEAD_BYTES: usize = (REGISTER_BYTES + 12) * 3 / 2;
const OTHER_OVERHEAD_BYTES: usize = 96;

type Key = [u8; REGISTER_BYTES];

/// Where a row is.
#[derive(Clone, Copy, Debug)]
struct Place {
    chunk: u32,
    start: u32,
    len: u32,
}

/// Rows one after the other, in pieces that never move: a million rows cost some hundred allocations,
/// and go at once.
#[derive(Clone, Debug, Default)]
struct Rows {
    chunks: Vec<Vec<u8>>,
}

const CHUNK_BYTES: usize = 256 << 10;

const ROWS_AHEAD: usize = 32;

impl Rows {
    fn get(&self, place: Place) -> &[u8] {
        let start = place.start as usize;
        &self.chunks[place.chunk as usize][start..start + place.len as usize]
    }

    fn put(&mut self, row: &[u8]) -> Place {
        let room = |chunk: &Vec<u8>| chunk.capacity() - chunk.len();
        if self.chunks.last().is_none_or(|c| room(c) < row.len()) {
            self.chunks
                .push(Vec::with_capacity(CHUNK_BYTES.max(row.len())));
        }
        let last = self.chunks.len() - 1;
        let chunk = &mut self.chunks[last];
        let place = Place {
            chunk: last as u32,
            start: chunk.len() as u32,
            len: row.len() as u32,
        };
        chunk.extend_from_slice(row);
        place
    }

    /// Takes the place of an older row, if it fits there.
    fn replace(&mut self, place: Place, row: &[u8]) -> Option<Place> {
        if row.len() > place.len as usize {
            return None;
        }
        let start = place.start as usize;
        self.chunks[place.chunk as usize][start..start + row.len()].copy_from_slice(row);
        Some(Place {
            len: row.len() as u32,
            ..place
        })
    }
}

/// Registers are many and only looked up; everything else is small and also scanned.
#[derive(Clone, Debug, Default)]
pub struct Gather {
    registers: HashMap<Key, Place, RandomState>,
    rows: Rows,
    /// Issuers of the registers, as in their keys; few.
    issuers: Vec<[u8; 3]>,
    /// `None` for a row that was deleted.
    others: BTreeMap<Vec<u8>, Option<Box<[u8]>>>,
    bytes: usize,
}

impl Gather {
    pub fn is_empty(&self) -> bool {
        self.registers.is_empty() && self.others.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn rows(&self) -> usize {
        self.registers.len() + self.others.len()
    }

    pub fn register(&self, key: &Key) -> Option<&[u8]> {
        self.registers.get(key).map(|place| self.rows.get(*place))
    }

    pub fn put_register(&mut self, key: Key, row: &[u8]) {
        let issuer = [key[17], key[18], key[19]];
        // Records come by issuer, so it is nearly always the last one.
        if self.issuers.last() != Some(&issuer) && !self.issuers.contains(&issuer) {
            self.issuers.push(issuer);
        }
        match self.registers.entry(key) {
            Entry::Occupied(mut old) => {
                let place = self.rows.replace(*old.get(), row).unwrap_or_else(|| {
                    self.bytes += row.len();
                    self.rows.put(row)
                });
                old.insert(place);
            }
            Entry::Vacant(new) => {
                new.insert(self.rows.put(row));
                self.bytes += row.len() + REGISTER_OVERHEAD_BYTES;
            }
        }
    }

    /// `Some(None)` for a row that is known to be deleted.
    pub fn other(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.others.get(key).map(|row| row.as_deref())
    }

    pub fn put_other(&mut self, key: &[u8], row: Option<&[u8]>) {
        self.bytes += row.map_or(0, <[u8]>::len);
        match self.others.insert(key.to_vec(), row.map(Box::from)) {
            Some(old) => self.bytes -= old.map_or(0, |o| o.len()),
            None => self.bytes += key.len() + OTHER_OVERHEAD_BYTES,
        }
    }

    pub fn others_in(
        &self,
        from: &[u8],
        below: &[u8],
    ) -> impl Iterator<Item = (&Vec<u8>, Option<&[u8]>)> {
        self.others
            .range::<[u8], _>((
                std::ops::Bound::Included(from),
                std::ops::Bound::Excluded(below),
            ))
            .map(|(key, row)| (key, row.as_deref()))
    }

    /// Whoever has a register here: the map has no order, so a look-up by entity tries them all.
    pub fn issuers(&self) -> impl Iterator<Item = Issuer> {
        self.issuers
            .iter()
            .filter_map(|i| Issuer::new(u32::from_be_bytes([0, i[0], i[1], i[2]])))
    }

    pub fn sorted_registers(&self) -> impl ExactSizeIterator<Item = (Key, &[u8])> {
        // Keys and places themselves, not references: a comparison then touches nothing else.
        let mut rows: Vec<(Key, Place)> = Vec::with_capacity(self.registers.len());
        rows.extend(self.registers.iter().map(|(key, place)| (*key, *place)));
        // Nearly all keys differ in their first bytes: compared as numbers.
        let first = |key: &Key| u64::from_be_bytes(key[..8].try_into().expect("8 of 20 bytes"));
        rows.sort_unstable_by(|(a, _), (b, _)| first(a).cmp(&first(b)).then_with(|| a.cmp(b)));
        rows.into_iter()
            .map(|(key, place)| (key, self.rows.get(place)))
    }

    /// Everything in the order of the keys on disk: other kinds come before registers.
    pub fn for_each_sorted<E>(
        &self,
        mut row: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (key, value) in &self.others {
            row(key, value.as_deref())?;
        }
        // In the order of keys, each row is somewhere else in memory. Some of them are asked for at one
        // time, so that the processor waits for them together and not one after the other.
        let mut registers = self.sorted_registers();
        let mut ahead = Vec::with_capacity(ROWS_AHEAD);
        loop {
            ahead.extend(registers.by_ref().take(ROWS_AHEAD));
            if ahead.is_empty() {
                return Ok(());
            }
            let ends = ahead.iter().map(|(_, value)| {
                value.first().copied().unwrap_or(0) ^ value.last().copied().unwrap_or(0)
            });
            black_box(ends.fold(0, |a, b| a ^ b));
            for (key, value) in ahead.drain(..) {
                row(&stored_register(&key), Some(value))?;
            }
        }
    }
}
