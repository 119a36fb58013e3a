//! What a sink is: where the rows of other platforms go, together with the cursor.
//!
//! The module of a sink offers, besides its [`Sink`], a `Settings` type with
//! `fn read(table: &mut hutong_config::Table<'_>) -> Option<Settings>`: it reads its own keys of
//! `[sink]` (`type` is read already) and reports its own mistakes.

use crate::client::Delivered;
use hutong_proto::Cursor;
use std::future::Future;

/// Why a sink cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    /// May the same call succeed later, with nobody changing anything?
    pub passing: bool,
    /// With the place, and what to do about it. Names no person.
    pub message: String,
}

impl SinkError {
    /// Such as a lost connection: the runner starts the sink again after a while.
    pub fn passing(message: impl Into<String>) -> SinkError {
        SinkError {
            passing: true,
            message: message.into(),
        }
    }

    /// Someone has to change something: the connector stops.
    pub fn lasting(message: impl Into<String>) -> SinkError {
        SinkError {
            passing: false,
            message: message.into(),
        }
    }
}

/// Implementations may write `async fn` for these. Idempotent by revision: a row that is not newer
/// than what the sink has of its register changes nothing.
///
/// After an error, or when a call was dropped before it returned, the runner calls [`Sink::start`]
/// again, on the same value, and goes on from the cursor that it returns.
pub trait Sink: Send {
    /// Of the kind of sink: `postgres`, `json-lines`.
    fn name(&self) -> &'static str;

    /// Creates what the sink needs and is not there yet, such as its tables. Says in words what it
    /// did, one line each. Called without [`Sink::start`].
    fn init(&mut self) -> impl Future<Output = Result<Vec<String>, SinkError>> + Send {
        async { Ok(Vec::new()) }
    }

    /// Begins, or begins again: the stored cursor, `None` when a snapshot is needed. A snapshot that
    /// was not ended is forgotten.
    fn start(&mut self) -> impl Future<Output = Result<Option<Cursor>, SinkError>> + Send;

    /// A snapshot begins, or begins again: rows given to [`Sink::apply`] belong to it until
    /// [`Sink::end_snapshot`].
    fn begin_snapshot(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Rows and the cursor after them, in one transaction; returns when both are durable. `None` as
    /// cursor within a snapshot.
    fn apply(
        &mut self,
        deltas: &[Delivered],
        cursor: Option<Cursor>,
    ) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// The snapshot is complete: registers that it did not mention go, and the cursor is stored, all at
    /// once.
    fn end_snapshot(
        &mut self,
        cursor: Cursor,
    ) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Nothing happened up to this cursor. The sink may keep it at its own pace: after a restart it
    /// may get bookmarks again, never rows twice with another effect.
    fn bookmark(&mut self, cursor: Cursor) -> impl Future<Output = Result<(), SinkError>> + Send;
}
