//! What can keep a drill from running at all. A drill that ran has a verdict instead.

use hutong_config::{ConfigErrors, Look};
use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    #[error("{0}")]
    Usage(String),
    /// A drill's file has mistakes; each with its line.
    #[error("{}", .0.render(Look::of_stderr()).trim_end())]
    Drill(ConfigErrors),
    #[error("{doing} {}: {source}", .path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// A part of the stage does not stand: a process that does not start, a client that cannot connect.
    #[error("{0}")]
    Stage(String),
    #[error("interrupted")]
    Interrupted,
}

impl ChaosError {
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| ChaosError::File {
            doing,
            path,
            source,
        }
    }

    /// For `map_err`: what was being done, and what went wrong.
    pub fn stage<E: std::fmt::Display>(doing: &str) -> impl FnOnce(E) -> Self {
        move |error| ChaosError::Stage(format!("{doing}: {error}"))
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            ChaosError::Usage(_) | ChaosError::Drill(_) => crate::commands::USAGE,
            ChaosError::File { .. } | ChaosError::Stage(_) => crate::commands::INVALID,
            ChaosError::Interrupted => crate::commands::INTERRUPTED,
        }
    }
}
