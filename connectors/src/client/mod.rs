//! Client SDK: publish, subscribe, query.

use hutong_proto::{Delta, Issuer, Micros, Offset};

/// A delta as a subscriber gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub issuer: Issuer,
    pub offset: Offset,
    /// Zero in a snapshot.
    pub durable_at: Micros,
    pub delta: Delta,
}
