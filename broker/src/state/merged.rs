//! Rows of several tables as one: in the order of their keys, of each register the newest.

use crate::state::{
    StateError,
    columns::{Columns, Key},
    table::Cursor,
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
};

/// The key where a source is, as numbers with the same order, and which source: of equal keys the newest
/// comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    key: (u64, u64, u32),
    source: u32,
}

fn numbers(key: &Key) -> (u64, u64, u32) {
    let eight = |at: usize| u64::from_be_bytes(key[at..at + 8].try_into().expect("8 bytes"));
    let last = u32::from_be_bytes(key[16..].try_into().expect("4 bytes"));
    (eight(0), eight(8), last)
}

#[derive(Debug)]
pub struct Merged {
    /// Newest first. The last one is not in the heap: it has most of the rows, and they come in a row.
    sources: Vec<Cursor>,
    heap: BinaryHeap<Reverse<Head>>,
    oldest: Option<Head>,
    /// Of the row that is current; other sources may have older ones.
    key: Option<(u64, u64, u32)>,
    current: usize,
}

impl Merged {
    /// Newest first, each with its rows in order.
    pub fn new(sources: Vec<Cursor>) -> Merged {
        let last = sources.len().saturating_sub(1);
        let mut merged = Merged {
            heap: BinaryHeap::with_capacity(last),
            oldest: None,
            key: None,
            current: 0,
            sources,
        };
        for source in 0..last {
            merged.heap.extend(merged.head(source).map(Reverse));
        }
        merged.oldest = merged.head(last);
        merged
    }

    fn head(&self, source: usize) -> Option<Head> {
        let key = self.sources.get(source)?.key()?;
        Some(Head {
            key: numbers(key),
            source: source as u32,
        })
    }

    /// The lowest one.
    fn lowest(&self) -> Option<Head> {
        let newer = self.heap.peek().map(|head| head.0);
        match (newer, self.oldest) {
            (Some(newer), Some(oldest)) => Some(newer.min(oldest)),
            (newer, oldest) => newer.or(oldest),
        }
    }

    /// Goes to the next register; says whether there is one.
    pub fn advance(&mut self) -> Result<bool, StateError> {
        loop {
            let Some(lowest) = self.lowest() else {
                return Ok(false);
            };
            if self.key != Some(lowest.key) {
                self.key = Some(lowest.key);
                self.current = lowest.source as usize;
                return Ok(true);
            }
            self.pass(lowest.source as usize)?;
        }
    }

    /// This source goes on.
    fn pass(&mut self, source: usize) -> Result<(), StateError> {
        self.sources[source].next()?;
        let head = self.head(source);
        if source + 1 == self.sources.len() {
            self.oldest = head;
        } else if let Some(mut top) = self.heap.peek_mut() {
            match head {
                Some(head) => *top = Reverse(head),
                None => {
                    PeekMut::pop(top);
                }
            }
        }
        Ok(())
    }

    /// Where the current row is.
    pub fn row(&self) -> (&Columns, usize) {
        self.sources[self.current].row()
    }
}
