//! The broker: ingress, admission, routing, commit, apply, tail and fan-out.
//!
//! `ARCHITECTURE.md` at the top of the repository draws how the stages hang together; [`node`] wires
//! them and owns every task.

#[macro_use]
mod plants;

pub mod access;
mod admin;
pub mod admission;
pub mod apply;
pub mod backup;
pub mod checkpoint;
pub mod clock;
pub mod config;
mod console;
pub mod control;
pub mod fanout;
pub mod filter;
mod history;
pub mod http;
pub mod ingress;
mod lag;
pub mod log;
pub mod metrics;
pub mod node;
pub mod overload;
mod query;
pub mod reload;
mod reports;
pub mod resolution;
mod rocks;
pub mod routing;
pub mod state;
pub mod tail;

pub use node::{Broker, StartError};
