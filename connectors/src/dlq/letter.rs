//! One dead letter, and the lines of the file.

use crate::source::SourceRow;
use hutong_proto::{Micros, Revision};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::fmt;

/// Counts up from 1; a number that was dropped does not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LetterId(pub u64);

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A row that goes to the dead letters, and why.
#[derive(Clone, Debug)]
pub struct NewLetter {
    pub row: SourceRow,
    pub reason: String,
    pub field: String,
    pub message: String,
}

/// `Debug` shows no raw input.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    pub id: LetterId,
    pub place: String,
    pub reason: String,
    /// May be empty.
    pub field: String,
    pub message: String,
    pub attempts: u32,
    pub first_at_us: u64,
    pub last_at_us: u64,
    pub revision: u64,
    pub committed_at_us: u64,
    /// As the source gave it.
    pub raw: Map<String, Value>,
}

impl fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("id", &self.id)
            .field("place", &self.place)
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

/// Tells whether a row that comes again is here already. Eight bytes are kept of each letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RowKey(u64);

impl RowKey {
    pub(super) fn new(place: &str, revision: u64, raw: &Map<String, Value>) -> RowKey {
        let mut hash = Sha256::new();
        hash.update(revision.to_le_bytes());
        hash.update(place.as_bytes());
        hash.update([0]);
        // Names in a JSON object have an order in memory, the same after it was stored.
        for (name, value) in raw {
            hash.update(name.as_bytes());
            hash.update([0]);
            hash.update(value.to_string().as_bytes());
            hash.update([0]);
        }
        let digest = hash.finalize();
        RowKey(u64::from_le_bytes(std::array::from_fn(|i| digest[i])))
    }
}

impl DeadLetter {
    pub(super) fn new(id: LetterId, new: NewLetter, now: Micros) -> DeadLetter {
        DeadLetter {
            id,
            place: new.row.place,
            reason: new.reason,
            field: new.field,
            message: new.message,
            attempts: 1,
            first_at_us: now.0,
            last_at_us: now.0,
            revision: new.row.revision.0,
            committed_at_us: new.row.committed_at.0,
            raw: new.row.fields,
        }
    }

    pub(super) fn key(&self) -> RowKey {
        RowKey::new(&self.place, self.revision, &self.raw)
    }

    /// The row as the source gave it, with its original revision.
    pub fn row(&self) -> SourceRow {
        SourceRow {
            fields: self.raw.clone(),
            place: self.place.clone(),
            revision: Revision(self.revision),
            committed_at: Micros(self.committed_at_us),
        }
    }

    pub(super) fn tried(&mut self, tried: Tried) {
        self.attempts = self.attempts.saturating_add(1);
        self.last_at_us = tried.at_us;
        self.reason = tried.reason;
        self.field = tried.field;
        self.message = tried.message;
    }
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// The first line of a file.
    Begin {
        version: u32,
        next_id: u64,
    },
    Add(DeadLetter),
    Tried(Tried),
    Drop {
        id: LetterId,
    },
}

/// One more attempt that failed.
#[derive(Serialize, Deserialize)]
pub(super) struct Tried {
    pub id: LetterId,
    pub at_us: u64,
    pub reason: String,
    pub field: String,
    pub message: String,
}
