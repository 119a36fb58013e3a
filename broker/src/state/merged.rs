//! Rows of several tables as one: in the order of their keys, of each register the newest.
//!
//! They are put in order many at a time: all rows that are known, up to the key where one of the sources has to read on.
//! Sorting them costs less than asking after each row which source comes next, and who takes them sees where the next
//! ones are before it needs them.

use crate::state::{
    StateError,
    columns::{Columns, Key, Place},
    table::{Cursor, order},
};
use std::ops::Range;

#[derive(Debug)]
pub struct Merged {
    /// Newest first.
    sources: Vec<Cursor>,
    /// Rows of the pages that they have read, in order.
    rows: Vec<Place>,
    /// Which of them is current.
    at: usize,
    /// While they are put in order, those that are not of the oldest source: the first eight bytes of each key, then its
    /// source and row, four bytes each.
    keys: Vec<u128>,
}

impl Merged {
    /// Newest first, each with its rows in order.
    pub fn new(sources: Vec<Cursor>) -> Merged {
        Merged {
            sources,
            rows: Vec::new(),
            at: 0,
            keys: Vec::new(),
        }
    }

    /// Goes to the next register; says whether there is one.
    pub fn advance(&mut self) -> Result<bool, StateError> {
        self.at += 1;
        Ok(self.at < self.rows.len() || self.advance_many()?)
    }

    /// Where the current row is.
    pub fn row(&self) -> (&Columns, usize) {
        let row = self.rows[self.at];
        (self.page(row.page), row.row as usize)
    }

    /// Goes behind all rows that are known now; says whether there are more.
    pub fn advance_many(&mut self) -> Result<bool, StateError> {
        self.rows.clear();
        self.keys.clear();
        self.at = 0;
        for source in &mut self.sources {
            source.read_on()?;
        }
        // Whoever has rows of its page left has at least one that is not above this.
        let Some(known) = self.sources.iter().map(Cursor::known).min() else {
            return Ok(false);
        };
        let keys = &mut self.keys;
        let (oldest, newer) = self.sources.split_last_mut().expect("there is one");
        for (source, cursor) in newer.iter_mut().enumerate() {
            let rows = cursor.pass(known);
            for (key, row) in cursor.page().keys()[rows.clone()].iter().zip(rows) {
                let place = u128::from(source as u32) << 32 | row as u128;
                keys.push(u128::from(begins(key)) << 64 | place);
            }
        }
        let oldest = oldest.pass(known);
        self.put_in_order(oldest);
        // Whoever is not at its end has told nothing: it is not in order, and the rest must not be taken for nothing.
        let stuck = self.sources.iter().find(|source| !source.has_ended());
        match (self.rows.is_empty(), stuck) {
            (true, Some(source)) => Err(source.not_in_order()),
            (empty, _) => Ok(!empty),
        }
    }

    /// All rows that are known now.
    pub fn rows(&self) -> &[Place] {
        &self.rows
    }

    pub fn page(&self, page: u32) -> &Columns {
        self.sources[page as usize].page()
    }

    /// The oldest source has most of the rows, and they are in order.
    fn put_in_order(&mut self, oldest: Range<usize>) {
        self.keys.sort_unstable();
        let source = self.sources.len() - 1;
        let of_oldest = |row: usize| Place {
            page: source as u32,
            row: row as u32,
        };
        let mut next = oldest.start;
        let mut at = 0;
        while let Some(key) = self.keys.get(at) {
            let first = (*key >> 64) as u64;
            let page = self.sources[source].page().keys();
            let below = page[next..oldest.end].iter();
            let below = next + below.take_while(|key| begins(key) < first).count();
            self.rows.extend((next..below).map(of_oldest));
            let same = page[below..oldest.end].iter();
            next = below + same.take_while(|key| begins(key) == first).count();
            let rest = self.keys[at..].iter();
            let count = rest.take_while(|key| (**key >> 64) as u64 == first).count();
            let newer = place(self.keys[at]);
            let key = |row: Place| &self.page(row.page).keys()[row.row as usize];
            match (count, next - below) {
                (1, 0) => self.rows.push(newer),
                (1, 1) if key(newer) == key(of_oldest(below)) => self.rows.push(newer),
                _ => {
                    let newer = self.keys[at..at + count].iter().map(|key| place(*key));
                    let alike = newer.chain((below..next).map(of_oldest)).collect();
                    self.put_alike(alike);
                }
            }
            at += count;
        }
        self.rows.extend((next..oldest.end).map(of_oldest));
    }

    /// Those whose keys begin with the same bytes.
    fn put_alike(&mut self, mut alike: Vec<Place>) {
        let key = |row: &Place| order(&self.page(row.page).keys()[row.row as usize]);
        alike.sort_unstable_by_key(|row| (key(row), row.page));
        // Of each register the newest.
        alike.dedup_by_key(|row| key(row));
        self.rows.extend(alike);
    }
}

/// The first eight bytes, as a number with the same order.
fn begins(key: &Key) -> u64 {
    u64::from_be_bytes(key[..8].try_into().expect("8 of 20 bytes"))
}

fn place(key: u128) -> Place {
    Place {
        page: (key >> 32) as u32,
        row: key as u32,
    }
}
