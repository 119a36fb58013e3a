//! The wire: messages, domain types, limits and error codes; no IO.
//!
//! [`api`] holds the generated messages, for the edges that speak gRPC. Everything behind an edge
//! uses the domain types: [`ids`], [`delta`], [`batch`] (reading what a producer sent, without
//! copying), [`record`] (what the log and the subscribers get).

pub mod api;
pub mod area;
pub mod batch;
pub mod cursor;
pub mod delta;
pub mod frame;
pub mod ids;
pub mod limits;
pub mod metadata;
mod packing;
pub mod reason;
pub mod record;
mod trace;
pub mod wire;

pub use cursor::Cursor;
pub use delta::{Delta, Provenance, Value};
pub use ids::{
    EntityId, Epoch, Issuer, Kind, KindSet, Lane, LogId, Micros, Offset, Partition, Revision,
    Sequence, Shard,
};
pub use reason::{Reason, Refusal};
pub use record::{RecordHeader, RecordView};
pub use trace::TraceContext;
