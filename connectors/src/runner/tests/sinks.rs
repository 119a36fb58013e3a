//! What a sink is told, in which order, and what the broker is told after it.

use super::fakes::{FakeSink, NOW, Script, broken};
use crate::{
    client::Delivered,
    runner::{Heard, LinkError, Pauses, SinkRunner, Trouble},
    sink::SinkError,
    state::{Board, State},
};
use hutong_proto::{
    Cursor, Delta, EntityId, Issuer, LogId, Micros, Offset, Provenance, Reason, Revision, Value,
    delta::Colour,
};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

struct Running {
    sink: FakeSink,
    script: Script,
    board: Board,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), Trouble>>,
}

type Events = Vec<Result<Heard, LinkError>>;

impl Running {
    fn start(sink: &FakeSink, attempts: Vec<Events>) -> Running {
        Running::start_with(sink, attempts, false)
    }

    fn start_with(sink: &FakeSink, attempts: Vec<Events>, new_log: bool) -> Running {
        let script = Script::new(attempts);
        let (board, stop) = (Board::new("copy"), CancellationToken::new());
        let millis = Duration::from_millis(1);
        let runner = SinkRunner::new(sink.clone(), script.clone(), board.clone(), stop.clone())
            .pauses(Pauses::new(millis, millis))
            .accept_new_log(new_log);
        let mut tasks = JoinSet::new();
        tasks.spawn(runner.run());
        Running {
            sink: sink.clone(),
            script,
            board,
            stop,
            tasks,
        }
    }

    async fn until_applied(&self, offset: u64) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while self.script.state().applied.last() != Some(&cursor(offset)) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{:?}",
                self.board.status()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn ended(&mut self) -> Result<(), Trouble> {
        self.tasks
            .join_next()
            .await
            .expect("a task")
            .expect("no panic")
    }

    fn calls(&self) -> Vec<String> {
        self.sink.written().calls.clone()
    }

    async fn stop(mut self) {
        self.stop.cancel();
        assert_eq!(self.ended().await, Ok(()));
    }
}

fn cursor(offset: u64) -> Cursor {
    Cursor::both(LogId(7), Offset(offset))
}

fn delta(n: u64) -> Delivered {
    let provenance = Provenance {
        authority: "a".to_owned(),
        rule_id: "r".to_owned(),
        rule_version: 1,
        reason: "because".to_owned(),
    };
    Delivered {
        issuer: Issuer::new(310_000).expect("six digits"),
        offset: Offset(n),
        durable_at: NOW,
        trace: None,
        delta: Delta {
            entity: EntityId([9; 16]),
            revision: Revision(n),
            committed_at: NOW,
            expires_at: Micros::ZERO,
            evidence: String::new(),
            provenance: Arc::new(provenance),
            value: Value::HealthCode(Colour::Red),
        },
    }
}

fn records(revisions: &[u64], after: u64) -> Result<Heard, LinkError> {
    Ok(Heard::Records {
        deltas: revisions.iter().map(|n| delta(*n)).collect(),
        cursor: cursor(after),
    })
}

fn snapshot(revisions: &[u64], end: u64) -> Events {
    vec![
        Ok(Heard::SnapshotBegin { rows_estimate: 9 }),
        Ok(Heard::Rows(revisions.iter().map(|n| delta(*n)).collect())),
        Ok(Heard::SnapshotEnd {
            cursor: cursor(end),
        }),
    ]
}

fn bookmark(at: u64) -> Result<Heard, LinkError> {
    Ok(Heard::Bookmark { cursor: cursor(at) })
}

fn refused(reason: Reason) -> Result<Heard, LinkError> {
    Err(LinkError {
        passing: false,
        reason: Some(reason),
        message: reason.entry().text.to_owned(),
    })
}

#[tokio::test]
async fn a_new_sink_gets_a_snapshot_then_what_follows() {
    let mut events = snapshot(&[1, 2], 10);
    events.extend([records(&[11], 12), bookmark(15)]);
    let running = Running::start(&FakeSink::default(), vec![events]);
    running.until_applied(15).await;
    assert_eq!(running.script.state().opened, [None]);
    // The record and the bookmark that was waiting behind it are one transaction.
    let expected = [
        "start",
        "begin",
        "apply [1, 2] None",
        "end 10",
        "apply [11] Some(15)",
    ];
    assert_eq!(running.calls(), expected);
    assert_eq!(running.script.state().applied, [cursor(10), cursor(15)]);
    let status = running.board.status();
    assert_eq!(
        (status.state, status.counts.deltas_applied),
        (State::Running, 3)
    );
    assert!((status.counts.lag_seconds - 0.5).abs() < 1e-9);
    running.stop().await;
}

#[tokio::test]
async fn a_sink_with_a_cursor_goes_on_there() {
    let sink = FakeSink::default();
    sink.written().cursor = Some(cursor(20));
    let running = Running::start(&sink, vec![vec![bookmark(21)]]);
    running.until_applied(21).await;
    assert_eq!(running.script.state().opened, [Some(cursor(20))]);
    assert_eq!(running.calls(), ["start", "bookmark 21"]);
    running.stop().await;
}

#[tokio::test]
async fn what_waits_is_applied_together_and_what_cannot_be_comes_after() {
    let sink = FakeSink::default();
    sink.written().cursor = Some(cursor(1));
    let mut events = vec![
        records(&[1, 2], 3),
        records(&[3], 4),
        bookmark(5),
        records(&[6], 7),
    ];
    events.extend(snapshot(&[6], 8));
    let running = Running::start(&sink, vec![events]);
    running.until_applied(8).await;
    let expected = [
        "start",
        "apply [1, 2, 3, 6] Some(7)",
        "begin",
        "apply [6] None",
        "end 8",
    ];
    assert_eq!(running.calls(), expected);
    running.stop().await;
}

#[tokio::test]
async fn one_transaction_has_its_bound() {
    let sink = FakeSink::default();
    sink.written().cursor = Some(cursor(1));
    let many: Vec<u64> = (1..=4000).collect();
    let events = (1..=5).map(|n| records(&many, n * 10)).collect();
    let running = Running::start(&sink, vec![events]);
    running.until_applied(50).await;
    assert_eq!(running.calls().len(), 3, "12,000 and 8,000 rows");
    running.stop().await;
}

#[tokio::test]
async fn a_cursor_that_is_of_no_use_leads_to_a_snapshot() {
    for reason in [Reason::CursorCompacted, Reason::FilterChanged] {
        let sink = FakeSink::default();
        sink.written().cursor = Some(cursor(20));
        let attempts = vec![vec![refused(reason)], snapshot(&[1], 40)];
        let running = Running::start(&sink, attempts);
        running.until_applied(40).await;
        assert_eq!(running.script.state().opened, [Some(cursor(20)), None]);
        assert_eq!(running.board.status().counts.restarts, 0, "{reason}");
        running.stop().await;
    }
}

#[tokio::test]
async fn what_a_sink_has_is_not_replaced_by_another_log_unless_someone_says_so() {
    for reason in [Reason::CursorOfAnotherLog, Reason::CursorAhead] {
        let sink = FakeSink::default();
        sink.written().cursor = Some(cursor(20));
        let attempts = || vec![vec![refused(reason)], snapshot(&[1], 40)];
        let mut running = Running::start(&sink, attempts());
        let trouble = running.ended().await.expect_err("another log");
        assert!(!trouble.passing);
        let text = trouble.message;
        assert!(
            text.contains("--new-log") && text.contains(reason.code()),
            "{text}"
        );
        assert_eq!(running.board.state(), State::Failed);
        assert_eq!(running.calls(), ["start"], "nothing was touched");

        let running = Running::start_with(&sink, attempts(), true);
        running.until_applied(40).await;
        running.stop().await;
    }
}

#[tokio::test]
async fn while_a_snapshot_replaces_a_lost_cursor_the_state_says_why() {
    let sink = FakeSink::default();
    sink.written().cursor = Some(cursor(20));
    let unended = snapshot(&[1], 40).into_iter().take(2).collect();
    let running = Running::start(&sink, vec![vec![refused(Reason::CursorCompacted)], unended]);
    let mut watch = running.board.watch();
    watch
        .wait_for(|_| running.board.status().counts.deltas_applied == 1)
        .await
        .expect("alive");
    let status = running.board.status();
    assert_eq!(status.state, State::Snapshotting);
    assert!(
        status.reason.contains("CURSOR_COMPACTED"),
        "{}",
        status.reason
    );
    assert!(
        status.reason.contains("1 rows of about 9"),
        "{}",
        status.reason
    );
    running.stop().await;
}

#[tokio::test]
async fn a_refused_snapshot_is_no_way_out() {
    let sink = FakeSink::default();
    let twice = || vec![refused(Reason::FilterChanged)];
    let mut running = Running::start(&sink, vec![twice(), twice()]);
    let trouble = running.ended().await.expect_err("trouble");
    assert!(trouble.message.contains("also for a snapshot"), "{trouble}");
    assert_eq!(running.board.state(), State::Failed);
}

#[tokio::test]
async fn trouble_that_passes_begins_again_at_the_cursor_of_the_sink() {
    let sink = FakeSink::default();
    sink.written().cursor = Some(cursor(1));
    sink.written().error = Some(SinkError::passing("database is restarting"));
    let attempts = vec![
        vec![records(&[1], 2)],
        vec![records(&[1], 2), Err(broken())],
        vec![records(&[2], 3)],
    ];
    let running = Running::start(&sink, attempts);
    running.until_applied(3).await;
    assert_eq!(
        running.script.state().opened,
        [Some(cursor(1)), Some(cursor(1)), Some(cursor(2))]
    );
    // What was heard before the connection broke is applied.
    let expected = [
        "start",
        "start",
        "apply [1] Some(2)",
        "start",
        "apply [2] Some(3)",
    ];
    assert_eq!(running.calls(), expected);
    assert_eq!(running.board.status().counts.restarts, 2);
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_pass_stops_it_with_the_reason() {
    let sink = FakeSink::default();
    sink.written().cursor = Some(cursor(1));
    sink.written().error = Some(SinkError::lasting(
        "table hutong_registers is missing; run init",
    ));
    let mut running = Running::start(&sink, vec![vec![records(&[1], 2)]]);
    let trouble = running.ended().await.expect_err("trouble");
    assert!(trouble.message.contains("run init"), "{trouble}");
    assert_eq!(running.board.state(), State::Failed);
    assert_eq!(running.script.state().applied, []);
}
