//! All registers as of one moment, in the order of their keys, while writes go on.
//!
//! Why it is exact: it begins under the ingest lock, between two runs going down. What is gathered is
//! frozen first, or copied if it is little, so the moment is the end of a group. Every run that is still frozen is kept as it is;
//! every run that went down before is in the database, and the iterator, made under the same lock,
//! sees none that goes down later.

use crate::state::{
    Applied, FROZEN_MAX, Frozen, Shared, StateError, decode_register,
    keys::{self, REGISTER_BYTES, RegisterKey},
    row::Row,
    store::Stored,
};
use std::sync::Arc;

/// Sorted registers of a frozen run. The rows stay in the run; only keys are copied.
#[derive(Debug)]
struct Sorted {
    run: Arc<Frozen>,
    keys: Vec<[u8; REGISTER_BYTES]>,
    at: usize,
}

impl Sorted {
    fn new(run: Arc<Frozen>) -> Sorted {
        let keys = run.gather.sorted_registers().map(|(key, _)| key).collect();
        Sorted { run, keys, at: 0 }
    }

    fn peek(&self) -> Option<&[u8; REGISTER_BYTES]> {
        self.keys.get(self.at)
    }
}

/// Gives out the registers one by one.
pub struct SnapshotRows<'a> {
    stored: Stored<'a>,
    /// Newest first: the first one that has a key has its value.
    runs: Vec<Sorted>,
    applied: Applied,
    row: (Vec<u8>, Vec<u8>),
}

impl std::fmt::Debug for SnapshotRows<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotRows")
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

impl<'a> SnapshotRows<'a> {
    pub(super) fn begin(shared: &'a Shared) -> Result<(SnapshotRows<'a>, Applied), StateError> {
        let (ingest, mut frozen, applied) = loop {
            let ingest = shared.ingest.lock();
            let mut memory = shared.memory.write();
            let (applied, gathered) = (memory.applied, memory.active.bytes());
            if gathered <= shared.options.copied() {
                let gather = memory.active.clone();
                let mut runs = memory.frozen.clone();
                runs.push(Arc::new(Frozen { gather, applied }));
                break (ingest, runs, applied);
            }
            // The last run that may wait is for what is applied: urgent must not wait for a snapshot's sake.
            if memory.frozen.len() < FROZEN_MAX {
                shared.freeze(&mut memory);
                break (ingest, memory.frozen.clone(), applied);
            }
            drop((memory, ingest));
            shared.wait_for_runs(FROZEN_MAX - 1)?;
        };
        if planted!(SnapshotWithoutGathered) {
            frozen.clear();
        }
        let stored = shared.db.of_kind(keys::register_prefix()[0]);
        drop(ingest);
        let rows = SnapshotRows {
            stored,
            runs: frozen.into_iter().rev().map(Sorted::new).collect(),
            applied,
            row: (Vec::new(), Vec::new()),
        };
        Ok((rows, applied))
    }

    /// The next register that is not forgotten.
    pub fn next_row(&mut self) -> Result<Option<(RegisterKey, Row<'_>)>, StateError> {
        loop {
            if !self.step()? {
                return Ok(None);
            }
            let (key, row) = decode_register(&self.row.0, &self.row.1)?;
            let now = match planted!(ExpiryByWallClock) {
                true => crate::clock::system()(),
                false => self.applied.log_time,
            };
            if !row.forgotten(now) {
                // Decoded again for its lifetime: the borrow must not last around the loop.
                return Ok(Some((key, decode_register(&self.row.0, &self.row.1)?.1)));
            }
        }
    }

    /// Puts the row with the lowest key into `self.row`, from the newest place that has it.
    fn step(&mut self) -> Result<bool, StateError> {
        let stored = self.stored.key().map(|key| &key[1..]);
        if stored.is_none() {
            self.stored
                .status()
                .map_err(|e| StateError::Failed(e.to_string()))?;
        }
        let gathered = self
            .runs
            .iter()
            .filter_map(Sorted::peek)
            .map(|k| &k[..])
            .min();
        let Some(lowest) = gathered.into_iter().chain(stored).min() else {
            return Ok(false);
        };
        self.row.0.clear();
        self.row.0.extend_from_slice(lowest);
        let mut found = false;
        for run in &mut self.runs {
            let Some(key) = run.keys.get(run.at).filter(|key| key[..] == self.row.0[..]) else {
                continue;
            };
            if !found && let Some(row) = run.run.gather.register(key) {
                self.row.1.clear();
                self.row.1.extend_from_slice(row);
                found = true;
            }
            run.at += 1;
        }
        if self
            .stored
            .key()
            .is_some_and(|key| key[1..] == self.row.0[..])
        {
            if !found {
                self.row.1.clear();
                self.row
                    .1
                    .extend_from_slice(self.stored.value().unwrap_or_default());
            }
            self.stored.next();
        }
        Ok(true)
    }
}
