//! The broker: ingress, admission, routing, commit, apply, tail and fan-out

pub mod config;
pub mod http;
pub mod metrics;
