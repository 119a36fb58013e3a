//! What a source is: rows out of a platform's own system, with a place to go on from.
//!
//! The module of a source offers, besides its [`Source`], a `Settings` type with
//! `fn read(table: &mut hutong_config::Table<'_>) -> Option<Settings>`: it reads its own keys of
//! `[source]` (`type` is read already) and reports its own mistakes.

use hutong_proto::{Micros, Revision};
use serde_json::{Map, Value};
use std::{fmt, future::Future};

/// A row with this field is one that its source could not read; it says why. No mapping takes it.
pub const UNREADABLE: &str = "@unreadable";

/// One raw row as the source gave it, before mapping. May hold ID numbers: `Debug` shows the place only.
#[derive(Clone, PartialEq)]
pub struct SourceRow {
    pub fields: Map<String, Value>,
    /// For people: `file X, highlist[3]`, or `table outbox, id 17`. Names no person.
    pub place: String,
    /// Increases strictly per register, also over restarts.
    pub revision: Revision,
    pub committed_at: Micros,
}

impl fmt::Debug for SourceRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceRow")
            .field("place", &self.place)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// Rows, and where the source goes on after them.
#[derive(Clone, Debug)]
pub struct SourceBatch {
    pub rows: Vec<SourceRow>,
    /// Handed back to [`Source::start`] once all rows up to here are durable or dead-lettered.
    /// Belongs to the source; nobody else looks inside.
    pub checkpoint: Value,
    /// The name of something that is complete with this batch, such as a file.
    pub barrier: Option<String>,
}

/// Why a source cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// May the same call succeed later, with nobody changing anything?
    pub passing: bool,
    /// With the place, and what to do about it. Names no person.
    pub message: String,
}

impl SourceError {
    /// Such as a lost connection: the runner starts the source again after a while.
    pub fn passing(message: impl Into<String>) -> SourceError {
        SourceError {
            passing: true,
            message: message.into(),
        }
    }

    /// Someone has to change something: the connector stops.
    pub fn lasting(message: impl Into<String>) -> SourceError {
        SourceError {
            passing: false,
            message: message.into(),
        }
    }
}

/// Implementations may write `async fn` for these. After an error the runner calls [`Source::start`]
/// again, on the same value, with the last checkpoint that is durable.
pub trait Source: Send {
    /// Of the kind of source: `snapshot-folder`, `postgres-outbox`.
    fn name(&self) -> &'static str;

    /// Creates what the source needs and is not there yet, such as an outbox table. Says in words
    /// what it did, one line each. Called without [`Source::start`].
    fn init(&mut self) -> impl Future<Output = Result<Vec<String>, SourceError>> + Send {
        async { Ok(Vec::new()) }
    }

    /// Begins, or begins again, after `checkpoint`; `None` is the very beginning.
    fn start(
        &mut self,
        checkpoint: Option<Value>,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Waits for the next rows. Cancel-safe: a call that is dropped has lost nothing, the next one
    /// gives the same rows. A batch without rows is allowed, to move the checkpoint.
    fn next(&mut self) -> impl Future<Output = Result<SourceBatch, SourceError>> + Send;

    /// Everything up to `checkpoint` is durable, and so is the checkpoint itself: what the source
    /// keeps for resending can go. May be called for some checkpoints only, always in order.
    fn acknowledged(
        &mut self,
        checkpoint: &Value,
    ) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// The first rows that are there, changing nothing. Called without [`Source::start`].
    fn sample(
        &mut self,
        rows: usize,
    ) -> impl Future<Output = Result<Vec<SourceRow>, SourceError>> + Send;
}
