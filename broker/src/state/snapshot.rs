//! All registers as of one moment, in the order of their keys, while writes go on.
//!
//! Why it is exact: it begins under the ingest lock, between two runs going down. What is gathered is
//! frozen first, or copied if it is little, so the moment is the end of a group. Every run that is still frozen is kept as it is;
//! every run that went down before is in the list of tables, and that is read under the same lock. Tables never change.

use crate::state::{
    Applied, FROZEN_MAX, Frozen, Shared, StateError,
    columns::{Columns, Key},
    keys::{self, RegisterKey},
    row::{Row, forgotten},
    store::Stored,
};
use std::sync::Arc;

/// Sorted registers of a frozen run. The rows stay in the run; only keys are copied.
#[derive(Debug)]
struct Sorted {
    run: Arc<Frozen>,
    keys: Vec<Key>,
    at: usize,
}

impl Sorted {
    fn new(run: Arc<Frozen>) -> Sorted {
        let keys = run.gather.sorted_registers().map(|(key, _)| key).collect();
        Sorted { run, keys, at: 0 }
    }

    fn peek(&self) -> Option<&Key> {
        self.keys.get(self.at)
    }
}

/// Gives out the registers one by one.
pub struct SnapshotRows {
    stored: Stored,
    /// Newest first: the first one that has a key has its value.
    runs: Vec<Sorted>,
    applied: Applied,
    /// There is one where `stored` is.
    more: bool,
    /// The one that is given out.
    row: Columns,
}

impl std::fmt::Debug for SnapshotRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotRows")
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

impl SnapshotRows {
    pub(super) fn begin(shared: &Shared) -> Result<(SnapshotRows, Applied), StateError> {
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
        let view = shared.db.view();
        drop(ingest);
        let mut stored = view.registers()?;
        let more = stored.advance()?;
        let rows = SnapshotRows {
            stored,
            runs: frozen.into_iter().rev().map(Sorted::new).collect(),
            applied,
            more,
            row: Columns::default(),
        };
        Ok((rows, applied))
    }

    /// The next register that is not forgotten.
    pub fn next_row(&mut self) -> Result<Option<(RegisterKey, Row<'_>)>, StateError> {
        loop {
            if !self.step()? {
                return Ok(None);
            }
            let now = match planted!(ExpiryByWallClock) {
                true => crate::clock::system()(),
                false => self.applied.log_time,
            };
            if !forgotten(self.row.expires_at(0), now) {
                break;
            }
        }
        let key = RegisterKey::decode(&self.row.keys()[0]);
        let key = key.ok_or_else(|| damaged("the key does not decode"))?;
        let row = (self.row.row(0)).ok_or_else(|| damaged("the row does not decode"))?;
        Ok(Some((key, row)))
    }

    /// Puts the row with the lowest key into `self.row`, from the newest place that has it.
    fn step(&mut self) -> Result<bool, StateError> {
        let stored = self.more.then(|| {
            let (columns, i) = self.stored.row();
            columns.keys()[i]
        });
        let gathered = self.runs.iter().filter_map(Sorted::peek).min();
        let Some(lowest) = gathered.copied().into_iter().chain(stored).min() else {
            return Ok(false);
        };
        self.row.clear();
        for run in &mut self.runs {
            if run.peek() != Some(&lowest) {
                continue;
            }
            if self.row.is_empty()
                && let Some(row) = run.run.gather.register(&lowest)
            {
                let row = Row::decode(row).ok_or_else(|| damaged("the row does not decode"))?;
                self.row.push(&lowest, &row);
            }
            run.at += 1;
        }
        if stored == Some(lowest) {
            if self.row.is_empty() {
                let (columns, i) = self.stored.row();
                self.row.push_from(columns, i);
            }
            self.more = self.stored.advance()?;
        }
        Ok(true)
    }
}

fn damaged(what: &str) -> StateError {
    StateError::damaged(&keys::register_prefix(), what)
}
