//! Load generators and reports. The broker runs as a process of its own, with real gRPC and real
//! fsyncs; the load shares the machine with it, and every report says what it took.

pub mod allowed;
pub mod broker;
pub mod compare;
pub mod file;
pub mod fill;
pub mod fleet;
pub mod load;
pub mod measure;
pub mod plot;
pub mod report;
pub mod scenarios;
pub mod systems;
pub mod waited;

/// What a run fails with.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
