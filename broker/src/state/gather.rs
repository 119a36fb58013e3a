//! The newest values, in memory, until they go down as one sorted run.

#[cfg(plants)]
use crate::state::keys::stored_register;
use crate::state::{columns::Key, keys::REGISTER_BYTES};
use foldhash::fast::RandomState;
use hashbrown::{HashTable, hash_table::Entry};
use hutong_proto::Issuer;
use std::{collections::BTreeMap, hash::BuildHasher, hint::black_box};

/// What a register costs beside its row: its head, and its place in the table and the room that the
/// table keeps free.
const REGISTER_OVERHEAD_BYTES: usize = HEAD_BYTES + 8;
const OTHER_OVERHEAD_BYTES: usize = 96;

/// Where a register is: its chunk in the upper bits, where it starts there in the lower ones.
type Place = u32;

/// Registers one after the other, in pieces that never move: a million cost some hundred allocations,
/// and go at once. Each is: room for the row, u16; bytes of the row, u16; key; row.
#[derive(Clone, Debug, Default)]
struct Rows {
    chunks: Vec<Vec<u8>>,
}

const CHUNK_BITS: u32 = 18;
const CHUNK_BYTES: usize = 1 << CHUNK_BITS;
const CHUNKS_MAX: usize = 1 << (Place::BITS - CHUNK_BITS);
const HEAD_BYTES: usize = 4 + REGISTER_BYTES;
/// Length of a row that was written again elsewhere.
const MOVED: u16 = u16::MAX;

const ROWS_AHEAD: usize = 32;

fn short(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

impl Rows {
    fn at(&self, place: Place) -> &[u8] {
        let start = place as usize & (CHUNK_BYTES - 1);
        &self.chunks[(place >> CHUNK_BITS) as usize][start..]
    }

    fn at_mut(&mut self, place: Place) -> &mut [u8] {
        let start = place as usize & (CHUNK_BYTES - 1);
        &mut self.chunks[(place >> CHUNK_BITS) as usize][start..]
    }

    fn key(&self, place: Place) -> &Key {
        let key = &self.at(place)[4..HEAD_BYTES];
        key.try_into().expect("as many bytes as a key has")
    }

    fn row(&self, place: Place) -> &[u8] {
        let at = self.at(place);
        &at[HEAD_BYTES..HEAD_BYTES + usize::from(short(at, 2))]
    }

    fn put(&mut self, key: &Key, row: &[u8]) -> Place {
        let bytes = HEAD_BYTES + row.len();
        assert!(bytes < CHUNK_BYTES / 4, "a delta is bounded far below this");
        if self
            .chunks
            .last()
            .is_none_or(|c| c.len() + bytes > CHUNK_BYTES)
        {
            assert!(self.chunks.len() < CHUNKS_MAX, "it goes down before that");
            self.chunks.push(Vec::with_capacity(CHUNK_BYTES));
        }
        let last = self.chunks.len() - 1;
        let chunk = &mut self.chunks[last];
        let place = (last << CHUNK_BITS | chunk.len()) as Place;
        let len = (row.len() as u16).to_le_bytes();
        chunk.extend_from_slice(&len);
        chunk.extend_from_slice(&len);
        chunk.extend_from_slice(key);
        chunk.extend_from_slice(row);
        place
    }

    /// Takes the place of an older row, or leaves it if it does not fit there.
    fn replace(&mut self, place: Place, row: &[u8]) -> bool {
        let at = self.at_mut(place);
        let fits = row.len() <= usize::from(short(at, 0));
        let len = if fits { row.len() as u16 } else { MOVED };
        at[2..4].copy_from_slice(&len.to_le_bytes());
        if fits {
            at[HEAD_BYTES..HEAD_BYTES + row.len()].copy_from_slice(row);
        }
        fits
    }

    /// Of everything that is valid, in the order in which it came.
    fn places(&self) -> impl Iterator<Item = Place> {
        self.chunks.iter().enumerate().flat_map(|(i, chunk)| {
            let mut start = 0;
            std::iter::from_fn(move || {
                while start < chunk.len() {
                    let here = start;
                    start += HEAD_BYTES + usize::from(short(chunk, here));
                    if short(chunk, here + 2) != MOVED {
                        return Some((i << CHUNK_BITS | here) as Place);
                    }
                }
                None
            })
        })
    }
}

/// A key as it was written: read otherwise right after that, it would have to wait for all writes before.
fn words(key: &Key) -> (u64, u64, u32) {
    let (entity, last) = key.split_at(16);
    let (first, second) = entity.split_at(8);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    let last = u32::from_le_bytes(last.try_into().expect("4 bytes"));
    (number(first), number(second), last)
}

fn hash(hasher: &RandomState, key: &Key) -> u64 {
    hasher.hash_one(words(key))
}

/// Registers are many and only looked up; everything else is small and also scanned.
#[derive(Clone, Debug, Default)]
pub struct Gather {
    registers: HashTable<Place>,
    hasher: RandomState,
    rows: Rows,
    /// Issuers of the registers, as in their keys; few.
    issuers: Vec<[u8; 3]>,
    /// `None` for a row that was deleted.
    others: BTreeMap<Vec<u8>, Option<Box<[u8]>>>,
    bytes: usize,
}

impl Gather {
    /// One that will probably hold as much as this one does.
    pub fn like(other: &Gather) -> Gather {
        Gather {
            registers: HashTable::with_capacity(other.registers.len()),
            ..Gather::default()
        }
    }

    pub fn is_empty(&self) -> bool {
        self.registers.is_empty() && self.others.is_empty()
    }

    /// Whether it must go down, however much it may hold.
    pub fn is_full(&self) -> bool {
        self.rows.chunks.len() > CHUNKS_MAX / 2
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn rows(&self) -> usize {
        self.registers.len() + self.others.len()
    }

    pub fn register(&self, key: &Key) -> Option<&[u8]> {
        let found = self.registers.find(hash(&self.hasher, key), |place| {
            self.rows.key(*place) == key
        });
        found.map(|place| self.rows.row(*place))
    }

    pub fn put_register(&mut self, key: Key, row: &[u8]) {
        let issuer = [key[17], key[18], key[19]];
        // Records come by issuer, so it is nearly always the last one.
        if self.issuers.last() != Some(&issuer) && !self.issuers.contains(&issuer) {
            self.issuers.push(issuer);
        }
        let (hasher, rows) = (&self.hasher, &mut self.rows);
        let entry = self.registers.entry(
            hash(hasher, &key),
            |place| words(rows.key(*place)) == words(&key),
            |place| hash(hasher, rows.key(*place)),
        );
        match entry {
            Entry::Occupied(mut old) => {
                if !rows.replace(*old.get(), row) {
                    *old.get_mut() = rows.put(&key, row);
                    self.bytes += row.len() + HEAD_BYTES;
                }
            }
            Entry::Vacant(new) => {
                new.insert(rows.put(&key, row));
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
        // Most keys differ in their first bytes: compared as numbers, above the places, so that a comparison touches
        // nothing else.
        let first = |key: &Key| u64::from_be_bytes(key[..8].try_into().expect("8 of 20 bytes"));
        let number = |place| u128::from(first(self.rows.key(place))) << 64 | u128::from(place);
        let place = |number: &u128| *number as Place;
        let mut places: Vec<u128> = Vec::with_capacity(self.registers.len());
        places.extend(self.rows.places().map(number));
        places.sort_unstable();
        for alike in places.chunk_by_mut(|a, b| a >> 64 == b >> 64) {
            if alike.len() > 1 {
                alike.sort_unstable_by_key(|number| self.rows.key(place(number)));
            }
        }
        (places.into_iter()).map(move |number| {
            let place = place(&number);
            (*self.rows.key(place), self.rows.row(place))
        })
    }

    pub fn registers(&self) -> usize {
        self.registers.len()
    }

    /// All that is no register, in order.
    pub fn others(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        (self.others.iter()).map(|(key, row)| (key.as_slice(), row.as_deref()))
    }

    /// Registers in the order of their keys.
    pub fn for_each_register(&self, mut row: impl FnMut(&Key, &[u8])) {
        // In the order of keys, each row is somewhere else in memory. Some of them are asked for at one
        // time, so that the processor waits for them together and not one after the other.
        let mut registers = self.sorted_registers();
        let mut ahead = Vec::with_capacity(ROWS_AHEAD);
        loop {
            ahead.extend(registers.by_ref().take(ROWS_AHEAD));
            if ahead.is_empty() {
                return;
            }
            let ends = ahead.iter().map(|(_, value)| {
                value.first().copied().unwrap_or(0) ^ value.last().copied().unwrap_or(0)
            });
            black_box(ends.fold(0, |a, b| a ^ b));
            for (key, value) in ahead.drain(..) {
                row(&key, value);
            }
        }
    }

    /// Everything in the order of the keys of layout 1: other kinds come before registers.
    #[cfg(plants)]
    pub fn for_each_sorted(&self, mut row: impl FnMut(&[u8], Option<&[u8]>)) {
        self.others().for_each(|(key, value)| row(key, value));
        self.for_each_register(|key, value| row(&stored_register(key), Some(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Against a map: what was put last is found, also in a copy, and everything comes once and in order.
        #[test]
        fn what_was_put_last_is_found_and_comes_in_order(
            puts in proptest::collection::vec((0..300u16, 1..200usize), 1..600),
        ) {
            let (mut gather, mut model) = (Gather::default(), BTreeMap::new());
            for (i, (n, len)) in puts.into_iter().enumerate() {
                let mut key = [7; REGISTER_BYTES];
                // Some keys differ in their last bytes only.
                let at = if n % 2 == 0 { 0 } else { 18 };
                key[at..at + 2].copy_from_slice(&n.to_be_bytes());
                let row = vec![i as u8; len];
                gather.put_register(key, &row);
                model.insert(key, row);
            }
            let copy = gather.clone();
            for gather in [&gather, &copy] {
                prop_assert_eq!(gather.rows(), model.len());
                for (key, row) in &model {
                    prop_assert_eq!(gather.register(key), Some(&row[..]));
                }
                let sorted: Vec<_> = gather.sorted_registers().collect();
                let wanted: Vec<_> = model.iter().map(|(k, r)| (*k, &r[..])).collect();
                prop_assert_eq!(sorted, wanted);
            }
        }
    }
}
