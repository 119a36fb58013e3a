//! Tells the broker how this connector is doing, so that it is seen where all platforms are looked at. Numbers and words
//! only: the reason of a state may quote a row, and stays here.

use crate::{
    client::{self, ClientError, Endpoint},
    state::{Board, State, Status},
};
use hutong_proto::api;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// The broker calls a connector silent after a few of these.
const EVERY: Duration = Duration::from_secs(5);
const CALL_MAX: Duration = Duration::from_secs(2);

/// What a connector does, for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Source,
    Sink,
}

/// Reports until it is told to stop, and then once more. A report that does not arrive is lost: the next one says more.
pub async fn run(
    board: Board,
    endpoint: Endpoint,
    role: Role,
    stop: CancellationToken,
) -> Result<(), ClientError> {
    let mut client = client::report(&endpoint)?;
    let mut changed = board.watch();
    let mut every = interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopping = false;
    while !stopping {
        // Nothing is lost by dropping any of these.
        tokio::select! {
            () = stop.cancelled() => stopping = true,
            // The board lives as long as this task, so the channel does not close.
            _ = changed.changed() => {}
            _ = every.tick() => {}
        }
        let report = Some(of(&board.status(), role, stopping));
        let said = timeout(CALL_MAX, client.report(api::ReportRequest { report })).await;
        match said {
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
                tracing::info!("this broker is older, and takes no reports of connectors");
                return Ok(());
            }
            // The streams say when there is no broker.
            Ok(Err(status)) => tracing::debug!(%status, "a report did not arrive"),
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    Ok(())
}

fn of(status: &Status, role: Role, stopping: bool) -> api::ConnectorReport {
    let state = match status.state {
        State::Failed => api::ConnectorState::Failed,
        _ if stopping => api::ConnectorState::Stopped,
        State::Starting => api::ConnectorState::Starting,
        State::Snapshotting => api::ConnectorState::Snapshotting,
        State::Running => api::ConnectorState::Running,
        State::Degraded => api::ConnectorState::Degraded,
    };
    let role = match role {
        Role::Source => api::ConnectorRole::Source,
        Role::Sink => api::ConnectorRole::Sink,
    };
    let counts = &status.counts;
    let added = counts.dead_letters_added.iter();
    let added = added.map(|(reason, rows)| api::DeadLettersAdded {
        reason: reason.clone(),
        rows: *rows,
    });
    api::ConnectorReport {
        connector: status.connector.clone(),
        role: role.into(),
        state: state.into(),
        since_us: match stopping && status.state != State::Failed {
            true => status.updated_us,
            false => status.since_us,
        },
        dead_letters: counts.dead_letters,
        dead_letters_bytes: counts.dead_letters_bytes,
        dead_letters_added: added.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_state_and_the_counts_and_not_the_text_of_the_reason() {
        let board = Board::new("anhui");
        board.set(State::Degraded, "duplicate key (name)=(张三)");
        board.count(|counts| {
            counts.dead_letters = 2;
            counts.dead_letter("VALUE_UNMAPPED", 3);
        });
        let report = of(&board.status(), Role::Source, false);
        assert_eq!(report.state(), api::ConnectorState::Degraded);
        assert_eq!(report.role(), api::ConnectorRole::Source);
        assert_eq!(report.dead_letters, 2);
        assert_eq!(report.dead_letters_added[0].rows, 3);
        assert!(!format!("{report:?}").contains("张三"));
    }

    #[test]
    fn one_that_ends_says_whether_it_was_told_to() {
        let board = Board::new("anhui");
        let state = |board: &Board, stopping| of(&board.status(), Role::Sink, stopping).state();
        board.set(State::Running, "");
        assert_eq!(state(&board, false), api::ConnectorState::Running);
        assert_eq!(state(&board, true), api::ConnectorState::Stopped);
        board.set(State::Failed, "the disk is full");
        assert_eq!(state(&board, true), api::ConnectorState::Failed);
    }
}
