//! Tells the broker how this connector is doing, so that it is seen where all platforms are looked at. Numbers and words
//! only: the reason of a state may quote a row, and stays here.

use crate::{
    client::{self, ClientError, Endpoint},
    state::{self, Board, State},
};
use hutong_proto::{Refusal, api, limits, reason::is_code};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// The broker calls a connector silent after a few of these.
const EVERY: Duration = Duration::from_secs(5);
/// A broker that is older and takes no reports may be replaced by one that does.
const EVERY_OLDER: Duration = Duration::from_secs(60);
const CALL_MAX: Duration = Duration::from_secs(2);
/// Of what has no room in a report, or is no name of a reason.
const OTHER_REASON: &str = "OTHER";

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
    let mut pause = Duration::ZERO;
    let mut told = None;
    let mut stopping = false;
    while !stopping {
        // Nothing is lost by dropping any of these.
        tokio::select! {
            () = stop.cancelled() => stopping = true,
            // The board lives as long as this task, so the channel does not close.
            _ = changed.changed() => {}
            () = sleep(pause) => {}
        }
        let report = Some(of(&board.status(), role, stopping));
        let said = timeout(CALL_MAX, client.report(api::ReportRequest { report }));
        let said = match stopping {
            true => said.await,
            // A report that is dropped on its way is followed by the last one.
            false => tokio::select! {
                () = stop.cancelled() => continue,
                said = said => said,
            },
        };
        let refused = said.ok().and_then(Result::err);
        pause = match is_older(refused.as_ref()) {
            true => EVERY_OLDER,
            false => EVERY,
        };
        note(refused, &mut told);
    }
    Ok(())
}

fn is_older(refused: Option<&Status>) -> bool {
    refused.is_some_and(|status| status.code() == Code::Unimplemented)
}

/// Says once why the broker takes no reports: nobody would see else that a connector is missing there.
fn note(refused: Option<Status>, told: &mut Option<String>) {
    let Some(status) = refused else { return };
    if matches!(
        status.code(),
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded
    ) {
        // The streams say when there is no broker.
        tracing::debug!(%status, "a report did not arrive");
        return;
    }
    let why = match Refusal::from_status(&status) {
        Some(refusal) => format!("{} {}", refusal.reason.code(), refusal.message()),
        None if is_older(Some(&status)) => "it is older, and takes none".to_owned(),
        None => status.message().to_owned(),
    };
    if told.as_ref() != Some(&why) {
        tracing::warn!(
            why,
            "the broker does not take what this connector reports of itself"
        );
        *told = Some(why);
    }
}

fn of(status: &state::Status, role: Role, stopping: bool) -> api::ConnectorReport {
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
        dead_letters_added: added(&counts.dead_letters_added),
    }
}

/// Reasons come from two catalogues, of which the broker's may be newer than this connector; whatever else they are, they are
/// names, and not too many.
fn added(counts: &BTreeMap<String, u64>) -> Vec<api::DeadLettersAdded> {
    let mut added: Vec<api::DeadLettersAdded> = Vec::new();
    let mut other = 0;
    for (reason, rows) in counts {
        let fits = added.len() + 1 < limits::REPORT_REASONS_MAX;
        match fits && is_code(reason) && reason != OTHER_REASON {
            true => added.push(api::DeadLettersAdded {
                reason: reason.clone(),
                rows: *rows,
            }),
            false => other += rows,
        }
    }
    if other > 0 {
        added.push(api::DeadLettersAdded {
            reason: OTHER_REASON.to_owned(),
            rows: other,
        });
    }
    added
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::Reason;

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

    #[test]
    fn what_is_no_name_of_a_reason_or_has_no_room_is_counted_as_other() {
        let mut counts: BTreeMap<String, u64> = (0..200).map(|n| (format!("R{n:03}"), 1)).collect();
        counts.insert("11010519491231002X".to_owned(), 5);
        counts.insert("OTHER".to_owned(), 7);
        let added = added(&counts);
        assert_eq!(added.len(), limits::REPORT_REASONS_MAX);
        assert!(added.iter().all(|a| is_code(&a.reason)));
        assert_eq!(added.iter().map(|a| a.rows).sum::<u64>(), 212);
        assert_eq!(added.last().map(|a| a.reason.as_str()), Some("OTHER"));
    }

    #[test]
    fn why_a_report_is_not_taken_is_remembered_and_that_there_is_no_broker_is_not() {
        let refused = |reason: Reason| Some(Refusal::from(reason).to_status());
        let mut told = None;
        note(Some(Status::unavailable("no broker")), &mut told);
        note(None, &mut told);
        assert_eq!(told, None, "the streams say that");
        note(refused(Reason::NameInvalid), &mut told);
        assert!(
            told.as_deref()
                .is_some_and(|why| why.starts_with("NAME_INVALID ")),
            "{told:?}"
        );
        note(Some(Status::unimplemented("")), &mut told);
        assert_eq!(told.as_deref(), Some("it is older, and takes none"));
    }
}
