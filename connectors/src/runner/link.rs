//! What the runners need of the broker's client, so that they can be tested without a broker.

use crate::client::{Delivered, LastError};
use hutong_proto::{Cursor, Delta, Lane, Reason};
use std::{future::Future, pin::Pin, time::Duration};
use tracing::Span;

/// What went wrong between here and the broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LinkError {
    pub passing: bool,
    pub reason: Option<Reason>,
    pub message: String,
}

/// What became of a batch, durably.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub accepted: u32,
    pub refused: Vec<RefusedDelta>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedDelta {
    /// In the batch, from 0.
    pub index: usize,
    pub reason: String,
    pub field: String,
    pub message: String,
}

/// A batch on its way. Waiting for it may be interrupted and begun again.
pub type Pending = Pin<Box<dyn Future<Output = Result<Outcome, LinkError>> + Send>>;

/// Publishes; hides reconnects. Outcomes come in the order of a lane's batches; lanes do not wait for each
/// other.
pub trait Outlet: Send {
    /// Hands over a batch, of deltas of this lane. Takes a few dozen that are under way without a
    /// wait, also while it has no connection. An error means that this outlet has ended.
    fn publish(
        &mut self,
        lane: Lane,
        deltas: Vec<Delta>,
    ) -> impl Future<Output = Result<Pending, LinkError>> + Send;

    /// Why it will never connect again, also when nobody publishes.
    fn ended(&self) -> Option<LinkError> {
        None
    }

    /// `Err` with the reason while it has no connection.
    fn connected(&self) -> Result<(), String>;

    fn reconnects(&self) -> u64;

    /// By lane, how long something waited since this was opened because the broker took no more.
    fn held_back(&self) -> [Duration; 2];

    /// Names the broker's log, where what is published becomes durable.
    fn log_id(&self) -> String;
}

/// Opens what it opens anew for each attempt.
pub trait Connect: Send {
    type Link: Send;

    /// Begins what the next [`Connect::connect`] opens. What is logged about it, until it ends, goes into this.
    fn begin(&mut self) -> Span {
        Span::none()
    }

    /// `None` of a cursor means a snapshot; outlets do not look at it.
    fn connect(
        &mut self,
        cursor: Option<Cursor>,
    ) -> impl Future<Output = Result<Self::Link, LinkError>> + Send;

    /// Says why [`Connect::connect`] takes so long.
    fn last_error(&self) -> LastError {
        LastError::default()
    }
}

/// What a subscription says.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    SnapshotBegin {
        rows_estimate: u64,
    },
    Rows(Vec<Delivered>),
    SnapshotEnd {
        cursor: Cursor,
    },
    /// With the cursor after them.
    Records {
        deltas: Vec<Delivered>,
        cursor: Cursor,
    },
    Bookmark {
        cursor: Cursor,
    },
}

/// Subscribes; hides reconnects.
pub trait Inlet: Send {
    /// Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Result<Heard, LinkError>> + Send;

    /// Everything below is durable here.
    fn applied(&mut self, cursor: Cursor) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// How old the newest thing seen is.
    fn lag_seconds(&self) -> f64;

    fn reconnects(&self) -> u64;
}
