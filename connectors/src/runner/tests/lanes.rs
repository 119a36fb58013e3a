//! Both lanes of one source: urgent does not wait for bulk, and no register goes back.

use super::{
    fakes::{FakeBroker, FakeOutlet, ListSource, NOW, row, test},
    sources::{Life, Running, life, live, mapper, runtime},
};
use crate::{
    checkpoint::{CheckpointFile, StateFolder},
    dlq::DeadLetters,
    runner::outgoing::Outgoing,
    source::SourceRow,
    state::Board,
};
use hutong_proto::{Lane, Value};
use proptest::prelude::*;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

const NEGATIVE: &str = "negative";
const POSITIVE: &str = "positive";

/// Negative tests of as many persons.
fn negatives(count: u64) -> Vec<SourceRow> {
    (0..count).map(|n| test(n, n, NEGATIVE)).collect()
}

#[tokio::test]
async fn what_is_urgent_does_not_wait_for_the_acks_of_bulk_before_it() {
    // Few, which gather into one batch; and more than may be under way.
    for bulk in [5, 70_000] {
        let broker = FakeBroker::new();
        broker.hold(Some(Lane::Bulk));
        let mut rows = negatives(bulk);
        rows.push(test(bulk, bulk, POSITIVE));
        rows.push(row(bulk + 1, "red"));
        let source = ListSource::new(rows, if bulk == 5 { 1 } else { 1_999 });
        let running = Running::start(source, &broker);
        let urgent = [bulk + 1, bulk + 2];
        running
            .until("what is urgent is there", |_| {
                let kept = broker.kept();
                let is_there = |n| kept.accepted.iter().rev().any(|d| d.revision.0 == n);
                urgent.into_iter().all(is_there)
            })
            .await;
        assert!(
            (broker.kept().accepted.len() as u64) < bulk + 2,
            "bulk is held"
        );
        assert_eq!(running.checkpoint(), None, "of the slower lane");
        broker.hold(None);
        running.until_checkpoint(bulk as usize + 2).await;
        assert_eq!(broker.kept().accepted.len() as u64, bulk + 2);
        assert_eq!(broker.kept().not_newer, 0);
        running.stop().await;
    }
}

#[tokio::test]
async fn bulk_waits_for_what_is_urgent_before_it_in_the_same_register() {
    let broker = FakeBroker::new();
    broker.hold(Some(Lane::Urgent));
    let rows = vec![
        test(0, 0, NEGATIVE),
        test(1, 0, POSITIVE),
        test(2, 0, NEGATIVE),
        test(3, 1, POSITIVE),
    ];
    let running = Running::start(ListSource::new(rows, 1), &broker);
    running
        .until("the other person's is there", |_| {
            broker.kept().revisions().contains(&4)
        })
        .await;
    // The positive result is not decided yet: a later one would take its place.
    assert_eq!(broker.kept().revisions(), [1, 2, 4]);
    broker.hold(None);
    running.until_checkpoint(4).await;
    assert_eq!(broker.kept().revisions(), [1, 2, 4, 3]);
    assert_eq!(broker.kept().not_newer, 0);
    running.stop().await;
}

#[tokio::test]
async fn the_checkpoint_waits_for_both_lanes_and_what_is_after_it_comes_again() {
    let broker = FakeBroker::new();
    broker.hold(Some(Lane::Bulk));
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    let rows = vec![
        row(0, "red"),
        test(1, 1, NEGATIVE),
        test(2, 2, POSITIVE),
        test(3, 3, POSITIVE),
    ];
    let source = || ListSource::new(rows.clone(), 1);
    let mut running = Running::start_in(&dir, source(), &broker, 1 << 20);
    running.until_checkpoint(1).await;
    running
        .until("all that is urgent is done", |r| {
            r.board.status().counts.deltas_accepted == 3
        })
        .await;
    assert_eq!(running.checkpoint(), Some(json!(1)));
    running.tasks.abort_all();
    while running.tasks.join_next().await.is_some() {}
    broker.hold(None);
    let running = Running::start_in(&dir, source(), &broker, 1 << 20);
    running.until_checkpoint(4).await;
    assert_eq!(broker.kept().revisions().len(), 4);
    assert_eq!(running.board.status().counts.deltas_not_newer, 3);
    running.stop().await;
}

#[tokio::test]
async fn being_told_to_stop_it_does_not_wait_for_bulk_that_was_read_ahead() {
    let broker = FakeBroker::new();
    broker.hold(Some(Lane::Bulk));
    let dir = Arc::new(tempfile::tempdir().expect("a folder"));
    let rows = negatives(80_000);
    let running = Running::start_in(&dir, ListSource::new(rows.clone(), 2_000), &broker, 1 << 20);
    running
        .until("more is read than may be under way", |r| {
            r.board.status().counts.rows_read == 80_000
        })
        .await;
    let sent = broker.kept().accepted.len();
    assert!(sent < 80_000);
    running.stop.cancel();
    broker.hold(None);
    running.stop().await;
    assert_eq!(broker.kept().accepted.len(), sent);
    // The rest comes with the next start.
    let running = Running::start_in(&dir, ListSource::new(rows, 2_000), &broker, 1 << 20);
    running.until_checkpoint(80_000).await;
    assert_eq!(broker.kept().accepted.len(), 80_000);
    assert_eq!(broker.kept().not_newer, 0);
    running.stop().await;
}

/// Between a source and a broker that acknowledges nothing of bulk.
fn outgoing(
    broker: &FakeBroker,
    read_ahead_max: usize,
) -> (tempfile::TempDir, Outgoing, FakeOutlet) {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = StateFolder::new(dir.path(), "anhui");
    broker.hold(Some(Lane::Bulk));
    let outgoing = Outgoing::new(
        CheckpointFile::new(&folder, "list"),
        Arc::new(Mutex::new(
            DeadLetters::open(&folder, 1 << 20).expect("opened"),
        )),
        Board::new("anhui"),
        String::new(),
        read_ahead_max,
    );
    (dir, outgoing, FakeOutlet::new(broker))
}

#[tokio::test]
async fn what_is_read_ahead_of_bulk_is_bounded_in_bytes() {
    let mut taken = BTreeMap::new();
    for read_ahead_max in [0, 1 << 20, 8 << 20] {
        let broker = FakeBroker::new();
        let (_dir, mut outgoing, mut outlet) = outgoing(&broker, read_ahead_max);
        let mut mapper = mapper();
        let mut rows = 0_u64;
        while outgoing.has_room() {
            assert!(rows < 1_000_000, "there is no bound");
            outgoing.take(test(rows, rows, NEGATIVE), &mut mapper);
            rows += 1;
            outgoing.send(&mut outlet).await.expect("taken");
        }
        let under_way: usize = broker.kept().batch_sizes.iter().sum();
        taken.insert(read_ahead_max, rows - under_way as u64);
    }
    // A row counts with all that it has in memory: not less than the text that it is.
    let one = test(0, 0, NEGATIVE);
    let fields = one.fields.iter();
    let text = fields.map(|(name, value)| name.len() + value.to_string().len());
    let row_bytes = text.sum::<usize>() as u64;
    assert!(taken[&0] <= 2_000, "one batch: {taken:?}");
    for (max, rows) in taken {
        assert!(
            rows * row_bytes <= max as u64 + 2_000 * row_bytes,
            "{rows} of {max}"
        );
        assert!(rows * 1_024 * 2 >= max as u64, "{rows} of {max}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever dies and whichever lane stands still: each urgent row is accepted, and a bulk row is
    /// unless something urgent and newer is there in its register.
    #[test]
    fn no_urgent_row_is_overtaken_after_any_series_of_deaths(
        lives in proptest::collection::vec((life(), proptest::option::of(any::<bool>())), 0..5),
        tests in proptest::collection::vec((0..5_u64, proptest::bool::weighted(0.4)), 60),
        batch_rows in 1..9_usize,
    ) {
        let rows: Vec<SourceRow> = (0..)
            .zip(&tests)
            .map(|(n, (person, positive))| test(n, *person, if *positive { POSITIVE } else { NEGATIVE }))
            .collect();
        let broker = FakeBroker::holding();
        let dir = Arc::new(tempfile::tempdir().expect("a folder"));
        for (life, urgent_held) in &lives {
            let held = urgent_held.map(|urgent| if urgent { Lane::Urgent } else { Lane::Bulk });
            broker.hold(held);
            let life: &Life = life;
            runtime().block_on(live(life, &dir, &rows, batch_rows, &broker));
        }
        runtime().block_on(async {
            broker.kept().break_after = None;
            broker.release(u64::MAX);
            broker.hold(None);
            let source = ListSource::new(rows.clone(), batch_rows);
            let running = Running::start_in(&dir, source, &broker, 1 << 20);
            running.until_checkpoint(60).await;
            assert_eq!(running.dead_letters(), []);
            running.stop().await;
        });
        let kept = broker.kept();
        let accepted: BTreeSet<u64> = kept.revisions().into_iter().collect();
        for (n, (person, positive)) in (1..).zip(&tests) {
            let newer = kept.accepted.iter().any(|d| {
                let urgent = matches!(&d.value, Value::TestResult { outcome, .. } if outcome.lane() == Lane::Urgent);
                d.entity.0[15] == *person as u8 + 1 && urgent && d.revision.0 > n
            });
            let is_there = accepted.contains(&n);
            prop_assert!(is_there || (!positive && newer), "row {} of person {}", n, person);
        }
        prop_assert!(kept.accepted.iter().all(|d| d.committed_at == NOW));
    }
}
