//! Client SDK, sources, sinks and mapping.
//!
//! A connector stands beside a platform's own system. On the way out it takes [`source`] rows, maps
//! them to deltas and publishes them; on the way in it subscribes and applies what others issued to
//! a [`sink`].

pub mod client;
pub mod sink;
pub mod sinks;
pub mod source;
pub mod sources;
