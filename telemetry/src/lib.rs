//! Logs, metrics and health: the one place that sets them up.
//!
//! - [`logs`]: `tracing` to standard error, as text or JSON.
//! - [`Exporter`]: OpenTelemetry instruments, read in Prometheus' text format. No globals: whoever
//!   measures is handed a meter.
//! - [`Traces`]: spans of few changes, and of what was slow or refused, pushed by OTLP.
//! - [`Health`]: is the process alive, and is it ready to serve, and if not, why?
//! - [`catalogue`]: every metric of every program, once.
//! - [`certificates`]: when they expire.
//! - [`http`]: `/metrics`, `/livez` and `/readyz`.
//! - [`recent`]: the last warnings and errors of the log, for who asks later.
//!
//! What goes into any of them names no person: pseudonyms are identifiers too.

pub mod catalogue;
pub mod certificates;
mod exporter;
mod health;
pub mod http;
pub mod logs;
pub mod recent;
mod traces;

pub use exporter::{Exporter, PUSH_EVERY, ScrapeError, Service};
pub use health::Health;
pub use logs::{LogFormat, LogsError};
pub use traces::{Allowance, LINKS_MAX, Span, SpanRef, TraceSettings, Traces, TracesError};
