//! Runs a connector: a source towards the broker, or a sink from it, begun again with growing pauses
//! when something is wrong that can pass, stopped with a clear state when it cannot.

mod gather;
mod housekeeping;
mod lane;
mod link;
mod marks;
mod metrics;
mod outgoing;
mod report;
mod sdk;
mod sink;
mod source;
#[cfg(test)]
mod tests;
mod trace;

pub use housekeeping::{Housekeeping, HousekeepingError};
pub use link::{Connect, Heard, Inlet, LinkError, Outcome, Outlet, Pending, RefusedDelta};
pub use metrics::register;
pub use report::{Role, run as keep_reporting};
pub use sdk::{BrokerInlet, BrokerOutlet, BrokerSource, BrokerTarget};
pub use sink::SinkRunner;
pub use source::{SourceRunner, SourceState};

use crate::{
    checkpoint::StateError,
    dlq::DlqError,
    sink::SinkError,
    source::SourceError,
    state::{Board, State},
};
use hutong_proto::Cursor;
use std::{pin::pin, time::Duration};
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;

/// Why a connector stopped, or has to begin again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Trouble {
    /// May it work later, with nobody changing anything?
    pub passing: bool,
    pub message: String,
}

impl From<SourceError> for Trouble {
    fn from(error: SourceError) -> Trouble {
        Trouble {
            passing: error.passing,
            message: format!("source: {error}"),
        }
    }
}

impl From<SinkError> for Trouble {
    fn from(error: SinkError) -> Trouble {
        Trouble {
            passing: error.passing,
            message: format!("sink: {error}"),
        }
    }
}

impl From<LinkError> for Trouble {
    fn from(error: LinkError) -> Trouble {
        Trouble {
            passing: error.passing,
            message: format!("broker: {error}"),
        }
    }
}

/// After an error of the disk nothing is known about what is on it: it is not tried again.
impl From<StateError> for Trouble {
    fn from(error: StateError) -> Trouble {
        Trouble {
            passing: false,
            message: format!("state: {error}"),
        }
    }
}

impl From<DlqError> for Trouble {
    fn from(error: DlqError) -> Trouble {
        Trouble {
            passing: false,
            message: format!("dead letters: {error}"),
        }
    }
}

/// Pauses between attempts; doubled each time, from the first again after something worked.
#[derive(Clone, Debug)]
pub struct Pauses {
    pub first: Duration,
    pub longest: Duration,
    next: Duration,
}

impl Default for Pauses {
    fn default() -> Pauses {
        Pauses::new(Duration::from_millis(500), Duration::from_secs(30))
    }
}

impl Pauses {
    pub fn new(first: Duration, longest: Duration) -> Pauses {
        Pauses {
            first,
            longest,
            next: first,
        }
    }

    fn worked(&mut self) {
        self.next = self.first;
    }

    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }
}

/// What is between two attempts. `Err` ends the connector; `Ok(false)` says that it was told to stop.
async fn after_trouble(
    trouble: Trouble,
    pauses: &mut Pauses,
    board: &Board,
    stop: &CancellationToken,
) -> Result<bool, Trouble> {
    if !trouble.passing {
        board.set(State::Failed, &trouble.message);
        return Err(trouble);
    }
    board.set(State::Degraded, &trouble.message);
    board.count(|counts| counts.restarts += 1);
    let stopped = stop.cancelled();
    Ok(tokio::time::timeout(pauses.next(), stopped).await.is_err())
}

/// After so long without an answer it is no longer only starting.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// Opens a link, which may take as long as the broker is away, and says so meanwhile. `None`: told to
/// stop.
async fn open<C: Connect>(
    target: &mut C,
    cursor: Option<Cursor>,
    board: &Board,
    stop: &CancellationToken,
) -> Result<Option<C::Link>, LinkError> {
    let last_error = target.last_error();
    let mut connecting = pin!(target.connect(cursor));
    let mut patience = interval_at(Instant::now() + CONNECT_PATIENCE, CONNECT_PATIENCE);
    loop {
        tokio::select! {
            link = &mut connecting => return link.map(Some),
            () = stop.cancelled() => return Ok(None),
            _ = patience.tick() => {
                let why = last_error.get();
                let why = why.unwrap_or_else(|| "the broker does not answer yet".to_owned());
                board.set(State::Degraded, format!("{why}; trying again"));
            }
        }
    }
}

/// Runs blocking work on a file beside the tasks.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(Trouble {
            passing: false,
            message: format!("state: a defect while writing: {panic}"),
        }),
    }
}
