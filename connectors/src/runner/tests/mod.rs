//! The runners against a broker, a source and sinks that fail on demand.

mod fakes;
mod lanes;
mod sinks;
mod sources;
