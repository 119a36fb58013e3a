//! Logs: `tracing` to standard error.

use crate::recent::Recent;
use std::{env, io, io::IsTerminal};
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: coloured on a terminal, unless `NO_COLOR` is set.
    #[default]
    Text,
    /// For programs: one object a line.
    Json,
}

impl LogFormat {
    /// By the words that configuration and command lines use.
    pub const WORDS: [(&'static str, LogFormat); 2] =
        [("text", LogFormat::Text), ("json", LogFormat::Json)];
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    #[error("the log filter `{filter}` is wrong: {why}")]
    Filter { filter: String, why: String },
    #[error("logs were set up already in this process")]
    Twice,
}

/// Sets up the logs of this process; the first thing that `main` does after reading its
/// configuration. `filter` is as [`check_filter`] wants it.
pub fn init(format: LogFormat, filter: &str) -> Result<(), LogsError> {
    let filter = parse(filter)?;
    let colours =
        io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let registry = tracing_subscriber::registry().with(filter).with(Recent);
    let layer = fmt::layer().with_writer(io::stderr);
    match format {
        LogFormat::Text => registry.with(layer.with_ansi(colours)).try_init(),
        LogFormat::Json => registry
            .with(layer.json().flatten_event(true).with_ansi(false))
            .try_init(),
    }
    .map_err(|_| LogsError::Twice)
}

/// A filter is a level (`info`), or `target=level`, or several of them with commas between:
/// `info,hutong_broker::fanout=debug`.
pub fn check_filter(filter: &str) -> Result<(), LogsError> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, LogsError> {
    let wrong = |why: String| LogsError::Filter {
        filter: filter.to_owned(),
        why,
    };
    // A lone word that is no level is a target to the parser, and a typing mistake to everyone else:
    // `inof` would silence the whole log.
    for part in filter.split(',').map(str::trim) {
        let lone = !part.contains(['=', '[']);
        if lone && !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part)) {
            return Err(wrong(format!("`{part}` is none of {}", LEVELS.join(", "))));
        }
    }
    // The metrics library tells of its own comings and goings at level info.
    let quiet = match filter.contains("opentelemetry") {
        true => "",
        false => ",opentelemetry_sdk=warn",
    };
    EnvFilter::try_new(format!("{filter}{quiet}")).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_and_targets_and_nothing_else() {
        for good in ["info", "warn,hutong_broker=debug", "info,h2=off", "off"] {
            assert!(check_filter(good).is_ok(), "{good}");
        }
        for wrong in ["", "inof", "info,hutong_broker", "info,h2=loud", "info,"] {
            let error = check_filter(wrong).expect_err(wrong).to_string();
            assert!(error.contains("the log filter"), "{error}");
        }
    }
}
