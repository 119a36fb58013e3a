//! Client SDK, sources, sinks and mapping.
//!
//! A connector stands beside a platform's own system. On the way out it takes [`source`] rows, maps
//! them to deltas and publishes them; on the way in it subscribes and applies what others issued to
//! a [`sink`]. What could not be mapped or was refused waits among the dead letters ([`dlq`]).

#[macro_use]
mod plants;

pub mod checkpoint;
pub mod client;
pub mod commands;
pub mod config;
pub mod dlq;
pub mod mapping;
pub mod postgres;
pub mod pseudonym;
pub mod runner;
pub mod sink;
pub mod sinks;
pub mod source;
pub mod sources;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
