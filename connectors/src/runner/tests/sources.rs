//! Rows on their way to the broker: none is lost, whatever fails and whenever it dies.

use super::fakes::{FakeBroker, ListSource, Seen, row};
use crate::{
    checkpoint::{CheckpointFile, Stand, StateFolder},
    config::{Config, Work},
    dlq::DeadLetters,
    mapping::Mapper,
    runner::{Pauses, SourceRunner, SourceState, Trouble},
    source::{SourceError, SourceRow},
    state::{Board, State},
};
use hutong_proto::Revision;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const CONFIG: &str = r#"
name = "anhui"
identity = "platform/340000"
broker.address = "http://127.0.0.1:7400"
state.dir = "state"
source = { type = "snapshot-folder", dir = "in", format = "risk-levels" }
provenance = { authority = "a", rule_id = "r", rule_version = 1, reason = "because" }
[[mapping]]
kind = "test_result"
when = { field = "test", is = true }
entity = { pseudonym = "person" }
outcome = { field = "outcome", canonical = true }
sampled_at = { field = "at", format = "unix-us" }
[[mapping]]
kind = "health_code"
entity = { pseudonym = "person" }
colour = { field = "colour", canonical = true }
"#;

pub fn mapper() -> Mapper {
    let config = Config::parse("c.toml", CONFIG).unwrap_or_else(|e| panic!("{e}"));
    match config.work {
        Work::Source(work) => Mapper::new(work.mapping, None),
        Work::Sink(_) => panic!("a source was configured"),
    }
}

/// A runner at work, in a state folder.
pub struct Running {
    pub folder: StateFolder,
    _dir: Arc<TempDir>,
    pub board: Board,
    pub stop: CancellationToken,
    seen: Arc<Mutex<Seen>>,
    pub tasks: JoinSet<Result<(), Trouble>>,
}

impl Running {
    pub fn start(source: ListSource, broker: &FakeBroker) -> Running {
        let dir = Arc::new(tempfile::tempdir().expect("a folder"));
        Running::start_in(&dir, source, broker, 1 << 20)
    }

    pub fn start_in(
        dir: &Arc<TempDir>,
        source: ListSource,
        broker: &FakeBroker,
        dead_letters_bytes_max: u64,
    ) -> Running {
        Running::start_with(dir, source, broker, dead_letters_bytes_max, false)
    }

    fn start_with(
        dir: &Arc<TempDir>,
        source: ListSource,
        broker: &FakeBroker,
        dead_letters_bytes_max: u64,
        new_log: bool,
    ) -> Running {
        let folder = StateFolder::new(dir.path(), "anhui");
        let (board, stop) = (Board::new("anhui"), CancellationToken::new());
        let state = SourceState::open(&folder, "list", dead_letters_bytes_max).expect("opened");
        let seen = Arc::clone(&source.seen);
        let millis = Duration::from_millis(1);
        let runner = SourceRunner::new(
            source,
            broker.clone(),
            mapper(),
            state,
            board.clone(),
            stop.clone(),
        )
        .pauses(Pauses::new(millis, millis))
        .accept_new_log(new_log);
        let mut tasks = JoinSet::new();
        tasks.spawn(runner.run());
        Running {
            folder,
            _dir: Arc::clone(dir),
            board,
            stop,
            seen,
            tasks,
        }
    }

    pub fn checkpoint(&self) -> Option<Value> {
        CheckpointFile::new(&self.folder, "list")
            .load()
            .expect("sound")
            .map(|stand| stand.checkpoint)
    }

    pub fn dead_letters(&self) -> Vec<(String, String)> {
        let store = DeadLetters::open(&self.folder, 1 << 20).expect("opened");
        let letters = store.contents().expect("read").letters;
        letters.into_values().map(|l| (l.place, l.reason)).collect()
    }

    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Running) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !holds(self) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "not in time: {what}; {:?}",
                self.board.status()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn until_checkpoint(&self, rows: usize) {
        self.until("the checkpoint", |r| r.checkpoint() == Some(json!(rows)))
            .await;
    }

    async fn ended(&mut self) -> Result<(), Trouble> {
        self.tasks
            .join_next()
            .await
            .expect("a task")
            .expect("no panic")
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        assert_eq!(self.ended().await, Ok(()));
    }
}

fn rows(count: u64) -> Vec<SourceRow> {
    (0..count).map(|n| row(n, "green")).collect()
}

#[tokio::test]
async fn rows_arrive_in_order_and_the_checkpoint_follows() {
    let broker = FakeBroker::new();
    let running = Running::start(ListSource::new(rows(5000), 700), &broker);
    running.until_checkpoint(5000).await;
    assert_eq!(broker.kept().revisions(), (1..=5000).collect::<Vec<u64>>());
    assert!(broker.kept().batch_sizes.iter().all(|size| *size <= 2000));
    running
        .until("it runs", |r| r.board.state() == State::Running)
        .await;
    running
        .until("the source hears of it", |r| {
            r.seen.lock().expect("sound").acknowledged.last() == Some(&json!(5000))
        })
        .await;
    let status = running.board.status();
    assert_eq!(status.counts.rows_read, 5000);
    assert_eq!(status.counts.deltas_accepted, 5000);
    assert_eq!(status.barrier.as_deref(), Some("up to 5000"));
    running.stop().await;
}

#[tokio::test]
async fn a_checkpoint_waits_for_the_ack() {
    let broker = FakeBroker::holding();
    let running = Running::start(ListSource::new(rows(3), 1), &broker);
    running
        .until("the first is on its way", |_| {
            !broker.kept().batch_sizes.is_empty()
        })
        .await;
    assert_eq!(running.checkpoint(), None);
    assert_eq!(running.board.state(), State::Snapshotting);
    broker.release(1);
    running.until_checkpoint(1).await;
    broker.release(u64::MAX);
    running.until_checkpoint(3).await;
    running.stop().await;
}

#[tokio::test]
async fn a_lone_row_goes_at_once_and_many_go_together() {
    let broker = FakeBroker::holding();
    let running = Running::start(ListSource::new(rows(300), 1), &broker);
    running
        .until("all were read", |r| {
            r.board.status().counts.rows_read == 300
        })
        .await;
    broker.release(u64::MAX);
    running.until_checkpoint(300).await;
    let sizes = broker.kept().batch_sizes.clone();
    assert_eq!(sizes[..2], [1, 1]);
    assert!(sizes.len() < 10, "{sizes:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_source_that_is_held_back_says_so_until_it_is_not() {
    let broker = FakeBroker::new();
    let running = Running::start(ListSource::new(rows(3), 1), &broker);
    running.until_checkpoint(3).await;
    // More than has gone by: it was held back for all of the time.
    // Both lanes at the same time.
    broker.kept().held_back = [Duration::from_secs(3600); 2];
    let held_back = |r: &Running| r.board.status().reason.starts_with("held back");
    running.until("it says so", held_back).await;
    assert_eq!(running.board.state(), State::Running);
    let seconds = running.board.status().counts.held_back_seconds;
    assert!((3600.0..7200.0).contains(&seconds), "{seconds}");
    running.until("it is over", |r| !held_back(r)).await;
    assert_eq!(running.board.state(), State::Running);
    running.stop().await;
}

#[tokio::test]
async fn refused_rows_become_dead_letters_and_the_rest_goes_on() {
    let broker = FakeBroker::new();
    broker.kept().refuse = vec![row(4, "green").revision];
    let mut rows = rows(10);
    rows[2] = row(2, "purple");
    let running = Running::start(ListSource::new(rows, 4), &broker);
    running.until_checkpoint(10).await;
    let expected = [("row 2", "VALUE_UNMAPPED"), ("row 4", "KIND_UNKNOWN")];
    let expected = expected.map(|(p, r)| (p.to_owned(), r.to_owned()));
    assert_eq!(running.dead_letters(), expected);
    assert_eq!(broker.kept().revisions(), [1, 2, 4, 6, 7, 8, 9, 10]);
    running
        .until("the counts", |r| {
            let counts = r.board.status().counts;
            (counts.rows_refused, counts.dead_letters) == (2, 2)
        })
        .await;
    running.stop().await;
}

#[tokio::test]
async fn a_batch_of_only_refused_rows_moves_the_checkpoint() {
    let broker = FakeBroker::new();
    let rows = (0..5).map(|n| row(n, "purple")).collect();
    let running = Running::start(ListSource::new(rows, 5), &broker);
    running.until_checkpoint(5).await;
    assert_eq!(running.dead_letters().len(), 5);
    assert!(broker.kept().batch_sizes.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn repeats_after_a_restart_are_counted_and_harmless() {
    let broker = FakeBroker::new();
    let running = Running::start(ListSource::new(rows(10), 5), &broker);
    running.until_checkpoint(10).await;
    running.stop().await;
    // As if it had been killed before its checkpoint was written.
    let running = Running::start(ListSource::new(rows(10), 5), &broker);
    running.until_checkpoint(10).await;
    assert_eq!(broker.kept().revisions().len(), 10);
    assert_eq!(running.board.status().counts.deltas_not_newer, 10);
    assert_eq!(running.dead_letters(), []);
    running.stop().await;
}

#[tokio::test]
async fn a_source_in_trouble_begins_again_at_its_checkpoint() {
    let broker = FakeBroker::new();
    let mut source = ListSource::new(rows(10), 3);
    source
        .errors
        .insert(1, SourceError::passing("connection lost"));
    source
        .errors
        .insert(3, SourceError::passing("connection lost"));
    let running = Running::start(source, &broker);
    running.until_checkpoint(10).await;
    assert_eq!(broker.kept().revisions(), (1..=10).collect::<Vec<u64>>());
    let starts = running.seen.lock().expect("sound").starts.clone();
    // What was on its way when the trouble began was waited for, and does not come again.
    assert_eq!(starts, [None, Some(json!(3)), Some(json!(6))]);
    assert_eq!(running.board.status().counts.restarts, 2);
    assert_eq!(broker.kept().connects, 1);
    running
        .until("it runs", |r| r.board.state() == State::Running)
        .await;
    running.stop().await;
}

#[tokio::test]
async fn a_broken_connection_is_made_again_and_nothing_is_lost() {
    let broker = FakeBroker::new();
    broker.kept().break_after = Some(1);
    let running = Running::start(ListSource::new(rows(10), 2), &broker);
    running.until_checkpoint(10).await;
    let unique: BTreeSet<u64> = broker.kept().revisions().into_iter().collect();
    assert_eq!(unique.len(), 10);
    assert_eq!(broker.kept().connects, 2);
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_pass_stops_it_with_the_reason() {
    let broker = FakeBroker::new();
    let mut source = ListSource::new(rows(10), 3);
    source.errors.insert(
        1,
        SourceError::lasting("the table has no column `payload`; add it"),
    );
    let mut running = Running::start(source, &broker);
    let trouble = running.ended().await.expect_err("trouble");
    assert!(trouble.message.contains("no column `payload`"), "{trouble}");
    assert_eq!(running.board.state(), State::Failed);
    assert!(running.board.status().reason.contains("add it"));
    // What was before it is done.
    assert_eq!(running.checkpoint(), Some(json!(3)));
}

#[tokio::test]
async fn full_dead_letters_stop_it_before_a_row_is_lost() {
    let broker = FakeBroker::new();
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    let rows: Vec<SourceRow> = (0..100).map(|n| row(n, "purple")).collect();
    let source = ListSource::new(rows.clone(), 1);
    let mut running = Running::start_in(&dir, source, &broker, 4096);
    let trouble = running.ended().await.expect_err("trouble");
    assert!(
        trouble.message.contains("dead letters fill 4096 bytes"),
        "{trouble}"
    );
    assert_eq!(running.board.state(), State::Failed);
    let done = running
        .checkpoint()
        .and_then(|c| c.as_u64())
        .expect("some fit");
    assert_eq!(running.dead_letters().len() as u64, done);
    // With more room it goes on where it stopped.
    let running = Running::start_in(&dir, ListSource::new(rows, 1), &broker, 1 << 20);
    running.until_checkpoint(100).await;
    assert_eq!(running.dead_letters().len(), 100);
    running.stop().await;
}

#[tokio::test]
async fn no_later_checkpoint_goes_over_rows_that_found_no_room() {
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    let broker = FakeBroker::holding();
    broker.kept().refuse = vec![Revision(1)];
    // Two batches on their way: the row of the first is refused, the second is sound.
    let source = ListSource::new(rows(2), 1);
    let mut running = Running::start_in(&dir, source, &broker, 8);
    running
        .until("both batches are sent", |_| {
            broker.kept().batch_sizes.len() == 2
        })
        .await;
    broker.release(1);
    let ended = tokio::time::timeout(Duration::from_millis(200), running.ended()).await;
    // If it still waits for the second one, that one must not be settled either.
    broker.release(2);
    let ended = match ended {
        Ok(ended) => ended,
        Err(_) => running.ended().await,
    };
    let trouble = ended.expect_err("full");
    assert!(!trouble.passing, "{trouble:?}");
    assert_eq!(running.checkpoint(), None);
}

#[tokio::test]
async fn being_told_to_stop_it_waits_for_what_is_on_its_way() {
    let broker = FakeBroker::holding();
    let mut running = Running::start(ListSource::new(rows(10), 5), &broker);
    running
        .until("all were read", |r| r.board.status().counts.rows_read == 10)
        .await;
    running.stop.cancel();
    broker.release(u64::MAX);
    assert_eq!(running.ended().await, Ok(()));
    assert_eq!(running.checkpoint(), Some(json!(10)));
    assert_eq!(broker.kept().revisions().len(), 10);
}

#[tokio::test]
async fn a_broker_with_another_log_gets_everything_again_when_someone_says_so() {
    let broker = FakeBroker::new();
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    let start = |broker: &FakeBroker, count, new_log| {
        let source = ListSource::new(rows(count), 5);
        Running::start_with(&dir, source, broker, 1 << 20, new_log)
    };
    let running = start(&broker, 10, false);
    running.until_checkpoint(10).await;
    running.stop().await;
    // Its data are gone: what was acknowledged is not there.
    let empty = FakeBroker::new();
    empty.kept().log_id = 77;
    let mut running = start(&empty, 12, false);
    let trouble = running.ended().await.expect_err("another log");
    assert!(!trouble.passing);
    assert!(trouble.message.contains("--new-log"), "{trouble}");
    assert_eq!(running.board.state(), State::Failed);
    assert_eq!(running.checkpoint(), Some(json!(10)));
    assert_eq!(empty.kept().revisions().len(), 0);
    let running = start(&empty, 12, true);
    running.until_checkpoint(12).await;
    assert_eq!(empty.kept().revisions().len(), 12, "all of it");
    running.stop().await;
    // From now on it is the known one.
    let running = start(&empty, 13, false);
    running.until_checkpoint(13).await;
    running.stop().await;
}

#[tokio::test]
async fn a_stored_checkpoint_is_where_it_goes_on() {
    let broker = FakeBroker::new();
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    let folder = StateFolder::new(dir.path(), "anhui");
    folder.create().expect("created");
    CheckpointFile::new(&folder, "list")
        .store(&Stand {
            checkpoint: json!(7),
            barrier: Some("up to 7".to_owned()),
            log_id: None,
        })
        .expect("stored");
    // Nothing new: what was complete is still said.
    let running = Running::start_in(&dir, ListSource::new(rows(7), 5), &broker, 1 << 20);
    running
        .until("it says what is complete", |r| {
            r.board.status().barrier.as_deref() == Some("up to 7")
        })
        .await;
    running.stop().await;
    let running = Running::start_in(&dir, ListSource::new(rows(10), 5), &broker, 1 << 20);
    running.until_checkpoint(10).await;
    assert_eq!(broker.kept().revisions(), [8, 9, 10]);
    running.stop().await;
}

/// One life of the connector: what goes wrong in it, and how many acks it lives to see.
#[derive(Clone, Debug)]
pub struct Life {
    source_errors: Vec<usize>,
    break_after: Option<usize>,
    acks: u64,
}

pub fn life() -> impl Strategy<Value = Life> {
    let errors = proptest::collection::vec(0..20_usize, 0..3);
    let life = (errors, proptest::option::of(0..10_usize), 0..12_u64);
    life.prop_map(|(source_errors, break_after, acks)| Life {
        source_errors,
        break_after,
        acks,
    })
}

/// Runs a life until it saw its acks, or nothing moves any more, then kills it.
pub async fn live(
    life: &Life,
    dir: &Arc<TempDir>,
    rows: &[SourceRow],
    batch_rows: usize,
    broker: &FakeBroker,
) {
    let mut source = ListSource::new(rows.to_vec(), batch_rows);
    for call in &life.source_errors {
        source.errors.insert(*call, SourceError::passing("lost"));
    }
    let batches = broker.kept().batch_sizes.len() as u64;
    broker.kept().break_after = life.break_after;
    broker.release(batches + life.acks);
    let mut running = Running::start_in(dir, source, broker, 1 << 20);
    let deadline = tokio::time::Instant::now() + Duration::from_millis(20 + life.acks);
    while running.checkpoint() != Some(json!(rows.len())) && tokio::time::Instant::now() < deadline
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // As SIGKILL does: nothing runs on, wherever it was.
    running.tasks.abort_all();
    while running.tasks.join_next().await.is_some() {}
}

/// One for each life: when it goes, what it wrote on disk at that moment is written, as the system
/// does for a process that was killed in a call.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_row_is_accepted_or_a_dead_letter_after_any_series_of_deaths(
        lives in proptest::collection::vec(life(), 0..5),
        purple in proptest::collection::btree_set(0..60_u64, 0..6),
        refused in proptest::collection::btree_set(0..60_u64, 0..6),
        batch_rows in 1..9_usize,
    ) {
        let rows: Vec<SourceRow> = (0..60)
            .map(|n| row(n, if purple.contains(&n) { "purple" } else { "red" }))
            .collect();
        let broker = FakeBroker::holding();
        broker.kept().refuse = refused.iter().map(|n| row(*n, "red").revision).collect();
        let dir = Arc::new(tempfile::tempdir().expect("a folder"));
        for life in &lives {
            runtime().block_on(live(life, &dir, &rows, batch_rows, &broker));
        }
        runtime().block_on(async {
            broker.kept().break_after = None;
            broker.release(u64::MAX);
            let running = Running::start_in(&dir, ListSource::new(rows.clone(), batch_rows), &broker, 1 << 20);
            running.until_checkpoint(60).await;
            let accepted: BTreeSet<u64> = broker.kept().revisions().iter().map(|r| r - 1).collect();
            let dead: BTreeSet<String> = running.dead_letters().into_iter().map(|(place, _)| place).collect();
            assert_eq!(dead.len(), running.dead_letters().len(), "one letter a row");
            for n in 0..60 {
                let is_dead = purple.contains(&n) || refused.contains(&n);
                assert_eq!(accepted.contains(&n), !is_dead, "row {n}");
                assert_eq!(dead.contains(&format!("row {n}")), is_dead, "row {n}");
            }
            running.stop().await;
        });
    }
}
