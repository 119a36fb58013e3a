//! Rows of several tables as one: in the order of their keys, of each register the newest.
//!
//! They are put in order many at a time: all rows that are known, up to the key where one of the sources has to read on.
//! Sorting them costs less than asking after each row which source comes next, and who takes them sees where the next
//! ones are before it needs them.

use crate::state::{
    StateError,
    columns::{Columns, Place},
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
    /// While they are put in order: the first eight bytes of each key, then its source and row, four bytes each.
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
        for (source, cursor) in self.sources.iter_mut().enumerate() {
            cursor.pass(known, |(first, _), row| {
                let place = (source as u128) << 32 | row as u128;
                keys.push(first >> 64 << 64 | place);
            });
        }
        self.put_in_order();
        Ok(!self.rows.is_empty())
    }

    /// All rows that are known now.
    pub fn rows(&self) -> &[Place] {
        &self.rows
    }

    pub fn page(&self, page: u32) -> &Columns {
        self.sources[page as usize].page()
    }

    fn put_in_order(&mut self) {
        self.keys.sort_unstable();
        let mut alike = 0..0;
        while alike.end < self.keys.len() {
            let first = self.keys[alike.end] >> 64;
            let rest = &self.keys[alike.end..];
            let count = rest.iter().take_while(|key| **key >> 64 == first).count();
            alike = alike.end..alike.end + count;
            match count {
                1 => self.rows.push(place(self.keys[alike.start])),
                _ => self.put_alike(alike.clone()),
            }
        }
    }

    /// Those whose keys begin with the same bytes.
    fn put_alike(&mut self, alike: Range<usize>) {
        let key = |row: Place| order(&self.page(row.page).keys()[row.row as usize]);
        let rows = self.keys[alike].iter().map(|key| place(*key));
        let mut rows: Vec<_> = rows.map(|row| (key(row), row)).collect();
        rows.sort_unstable_by_key(|(key, row)| (*key, row.page));
        // Of each register the newest.
        rows.dedup_by_key(|(key, _)| *key);
        self.rows.extend(rows.into_iter().map(|(_, row)| row));
    }
}

fn place(key: u128) -> Place {
    Place {
        page: (key >> 32) as u32,
        row: key as u32,
    }
}
