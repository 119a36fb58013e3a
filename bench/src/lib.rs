//! Load generators and reports. The broker runs as a process of its own, with real gRPC and real
//! fsyncs; the load shares the machine with it, and every report says what it took.

pub mod broker;
pub mod compare;
pub mod fanout;
pub mod ingest;
pub mod load;
pub mod report;
mod systems;
