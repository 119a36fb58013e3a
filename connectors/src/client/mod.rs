//! The client SDK: publish, subscribe, ask. Everything that speaks to a broker uses it.
//!
//! A [`Publisher`] hides lost connections: it sends again what is not acknowledged, and the broker
//! drops what it has. A [`Subscriber`] goes on at its cursor. Both stop only for what cannot pass:
//! see [`ClientError::is_passing`].

mod backoff;
mod dial;
mod encode;
mod endpoint;
mod error;
mod publisher;
mod subscriber;

pub use backoff::Backoff;
pub use dial::{Dial, Dialer, Opening};
pub use encode::EncodedBatch;
pub use endpoint::{
    AdminClient, Endpoint, Identity, QueryClient, ReportClient, admin, query, report,
};
pub use error::{ClientError, RefusedInfo};
pub use publisher::{
    CreditWait, Pending, Position, Publisher, PublisherOptions, PublisherStatus, Receipt, Refused,
};
pub use subscriber::{Event, Filter, Lag, Start, Subscriber, SubscriberOptions};

use hutong_proto::{Delta, Issuer, Micros, Offset, TraceContext};
use std::sync::{Arc, Mutex, PoisonError};

/// Why the last try to connect failed, for whoever watches while a client tries again. Clones are the
/// same.
#[derive(Clone, Debug, Default)]
pub struct LastError(Arc<Mutex<Option<String>>>);

impl LastError {
    fn set(&self, error: &ClientError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    }

    pub fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A delta as a subscriber gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub issuer: Issuer,
    pub offset: Offset,
    /// Zero in a snapshot.
    pub durable_at: Micros,
    /// Of the few that are traced.
    pub trace: Option<TraceContext>,
    pub delta: Delta,
}
