//! Logs, metrics and health: the one place that sets them up.
//!
//! - [`logs`]: `tracing` to standard error, as text or JSON.
//! - [`Exporter`]: OpenTelemetry instruments, read in Prometheus' text format. No globals: whoever
//!   measures is handed a meter.
//! - [`Health`]: is the process alive, and is it ready to serve, and if not, why?
//! - [`http`]: `/metrics`, `/livez` and `/readyz`.
//! - [`recent`]: the last warnings and errors of the log, for who asks later.
//!
//! What goes into any of them names no person: pseudonyms are identifiers too.

mod exporter;
mod health;
pub mod http;
pub mod logs;
pub mod recent;

pub use exporter::{Exporter, ScrapeError};
pub use health::Health;
pub use logs::{LogFormat, LogsError};
