//! What producers and subscribers rely on: durability, resuming, snapshots, and that nobody waits for
//! anybody else.

mod support;

use hutong_broker::Broker;
use hutong_proto::{
    Offset, Value, api,
    api::{publish_request, subscribe_open::Start},
    delta::{Colour, TestOutcome},
};
use std::collections::{BTreeMap, BTreeSet};
use support::{
    ANHUI, Consumer, PATIENCE, Producer, SHANGHAI, SICHUAN, Seen, batch, broker_knows, config,
    delta, entity, open, reason, start,
};

const GREEN: Value = Value::HealthCode(Colour::Green);
const RED: Value = Value::HealthCode(Colour::Red);

fn negative() -> Value {
    Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at: support::now(),
    }
}

fn from_now() -> Start {
    Start::Now(api::StartNow {})
}

fn with_snapshot() -> Start {
    Start::Snapshot(api::StartSnapshot {})
}

async fn registers(broker: &Broker, n: u64) -> Vec<(u32, u64)> {
    let mut query =
        api::query_service_client::QueryServiceClient::new(support::channel(broker).await);
    let request = api::GetEntityRequest {
        entity: entity(n).0.to_vec().into(),
    };
    let request = support::with_identity(request, "auditor/a");
    let response = query
        .get_entity(request)
        .await
        .expect("an answer")
        .into_inner();
    response
        .registers
        .iter()
        .map(|r| (r.issuer, r.delta.as_ref().expect("a delta").revision))
        .collect()
}

#[tokio::test]
async fn a_delta_reaches_every_other_platform_and_not_its_issuer() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut sichuan = Consumer::open(&broker, SICHUAN, open("s", from_now())).await;
    let mut shanghai = Consumer::open(&broker, SHANGHAI, open("s", from_now())).await;
    let mut anhui = Consumer::open(&broker, ANHUI, open("s", from_now())).await;
    // Each has begun when it has said so.
    for consumer in [&mut sichuan, &mut shanghai, &mut anhui] {
        assert!(matches!(
            consumer.next().await,
            Ok(Seen::Opened {
                snapshot: false,
                ..
            })
        ));
    }
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let ack = producer
        .publish(batch(ANHUI, 1, &[delta(1, 1, RED)]))
        .await
        .expect("ack");
    let offset = Offset(ack.positions[0].offset);
    for consumer in [&mut sichuan, &mut shanghai] {
        assert_eq!(consumer.deltas(1).await, [(offset, ANHUI, entity(1), 1)]);
    }
    assert_eq!(anhui.until(offset).await, [], "no echo of its own");
    broker.shutdown().await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart_and_the_producer_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, last) = Producer::open(&broker, ANHUI, "p", 7).await;
    assert_eq!(last, 0);
    for n in 1..=20 {
        let deltas = [delta(n, n, GREEN), delta(1000 + n, n, negative())];
        let ack = producer
            .publish(batch(ANHUI, n, &deltas))
            .await
            .expect("ack");
        assert_eq!(
            (ack.accepted, ack.positions.len()),
            (2, 2),
            "one record a lane"
        );
    }
    broker.shutdown().await;

    let broker = start(dir.path()).await;
    assert_eq!(registers(&broker, 20).await, [(ANHUI, 20)]);
    assert_eq!(registers(&broker, 1020).await, [(ANHUI, 20)]);
    let (mut producer, last) = Producer::open(&broker, ANHUI, "p", 7).await;
    assert_eq!(last, 20);
    let ack = producer
        .publish(batch(ANHUI, 20, &[delta(20, 20, GREEN)]))
        .await
        .expect("ack");
    assert!(ack.duplicate && ack.accepted == 0, "sent again: {ack:?}");
    let ack = producer
        .publish(batch(ANHUI, 21, &[delta(21, 21, GREEN)]))
        .await
        .expect("ack");
    assert_eq!(ack.accepted, 1);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_and_its_tail_are_everything_once_while_writes_go_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let total = 400u64;
    let mut acked = 0;
    let mut late = Vec::new();
    for n in 1..=total {
        let deltas: Vec<_> = (0..5).map(|i| delta(n * 10 + i, n, GREEN)).collect();
        producer
            .send(publish_request::Message::Batch(batch(ANHUI, n, &deltas)))
            .await;
        if n % 100 == 50 {
            // Subscribers come while batches are under way.
            let name = format!("late-{n}");
            let mut consumer = Consumer::open(&broker, SICHUAN, open(&name, with_snapshot())).await;
            late.push(tokio::spawn(async move {
                let snapshot = consumer.snapshot().await;
                (consumer, snapshot)
            }));
        }
        if n % 40 == 0 {
            while acked < n {
                acked = producer.ack().await.expect("ack").sequence;
            }
        }
    }
    let status = status(&broker).await;
    let end = Offset(status.applied_offset - 1);
    for consumer in late {
        let (mut consumer, (rows, cursor)) = consumer.await.expect("a snapshot");
        let mut seen: BTreeSet<_> = rows.iter().map(|r| (r.1, r.2)).collect();
        assert_eq!(seen.len(), rows.len(), "no row twice");
        for (offset, _, entity, revision) in consumer.until(end).await {
            assert!(offset >= cursor.urgent, "{offset} was in the snapshot");
            assert!(seen.insert((entity, revision)), "{entity} came twice");
        }
        assert_eq!(seen.len() as u64, total * 5);
    }
    broker.shutdown().await;
}

async fn status(broker: &Broker) -> api::GetStatusResponse {
    let mut admin =
        api::admin_service_client::AdminServiceClient::new(support::channel(broker).await);
    let request = support::with_identity(api::GetStatusRequest {}, "operator/o");
    admin
        .get_status(request)
        .await
        .expect("an answer")
        .into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_snapshot_may_be_acknowledged_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut anhui, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    // Often, because it is about which of two things comes first.
    for n in 1..=200 {
        let more = batch(ANHUI, n, &[delta(n, 1, GREEN)]);
        anhui.publish(more).await.expect("ack");
        let mut shanghai = Consumer::open(&broker, SHANGHAI, open("s", with_snapshot())).await;
        let (_, cursor) = shanghai.snapshot().await;
        shanghai.applied(cursor).await;
        broker_knows(&broker, cursor.urgent).await;
    }
}

#[tokio::test]
async fn a_stream_resumes_exactly_at_its_cursor() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut first = Consumer::open(&broker, SICHUAN, open("s", from_now())).await;
    let Ok(Seen::Opened { mut cursor, .. }) = first.next().await else {
        panic!("not opened");
    };
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let mut offsets = Vec::new();
    for n in 1..=10 {
        let ack = producer
            .publish(batch(ANHUI, n, &[delta(n, n, GREEN)]))
            .await
            .expect("ack");
        offsets.push(ack.positions[0].offset);
    }
    assert_eq!(first.deltas(10).await.len(), 10);
    drop(first);
    for (i, offset) in offsets.iter().enumerate() {
        cursor.urgent = Offset(offset + 1);
        let at = open("s", Start::Cursor(cursor.to_api()));
        let mut again = Consumer::open(&broker, SICHUAN, at).await;
        let end = Offset(*offsets.last().expect("ten"));
        let rest: Vec<_> = again.until(end).await.iter().map(|d| d.3).collect();
        let expected: Vec<_> = (i as u64 + 2..=10).collect();
        assert_eq!(rest, expected);
    }
    broker.shutdown().await;
}

#[tokio::test]
async fn the_broker_remembers_what_a_platform_applied_also_across_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let stored = || Start::Stored(api::StartStored {});
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    producer
        .publish(batch(ANHUI, 1, &[delta(1, 1, GREEN)]))
        .await
        .expect("ack");
    // It was never here, so it begins with a snapshot.
    let mut consumer = Consumer::open(&broker, SICHUAN, open("s", stored())).await;
    let (rows, cursor) = consumer.snapshot().await;
    assert_eq!(rows, [(ANHUI, entity(1), 1)]);
    consumer.applied(cursor).await;
    producer
        .publish(batch(ANHUI, 2, &[delta(2, 2, GREEN)]))
        .await
        .expect("ack");
    assert_eq!(consumer.deltas(1).await[0].3, 2);
    // Delivered, but not acknowledged: it comes again.
    drop(consumer);
    broker.shutdown().await;
    let broker = start(dir.path()).await;
    let mut consumer = Consumer::open(&broker, SICHUAN, open("s", stored())).await;
    assert_eq!(consumer.deltas(1).await[0].3, 2);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_cursor_older_than_retention_is_told_the_way_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    config.memory.tail_urgent = 1;
    let broker = Broker::start(config).await.expect("started");
    let mut consumer = Consumer::open(&broker, SICHUAN, open("s", from_now())).await;
    let Ok(Seen::Opened { cursor, .. }) = consumer.next().await else {
        panic!("not opened");
    };
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let mut last = 0;
    for n in 1..=5 {
        let ack = producer
            .publish(batch(ANHUI, n, &[delta(n, n, GREEN)]))
            .await
            .expect("ack");
        last = ack.positions[0].offset;
    }
    let mut admin =
        api::admin_service_client::AdminServiceClient::new(support::channel(&broker).await);
    let trim = |before_offset| {
        let request = api::TrimPartitionRequest {
            issuer: ANHUI,
            lane: 1,
            shard: 0,
            before_offset,
        };
        support::with_identity(request, "operator/o")
    };
    let status = admin
        .trim_partition(trim(last))
        .await
        .expect_err("would be replayed");
    assert_eq!(reason(&status), "TRIM_BEYOND_STORED");
    // A restart brings the state down, so the log may be trimmed.
    drop(consumer);
    broker.shutdown().await;
    let broker = start(dir.path()).await;
    let mut admin =
        api::admin_service_client::AdminServiceClient::new(support::channel(&broker).await);
    let trimmed = admin
        .trim_partition(trim(last))
        .await
        .expect("trimmed")
        .into_inner();
    assert_eq!(trimmed.trimmed_below, last);
    let at = open("s", Start::Cursor(cursor.to_api()));
    let mut again = Consumer::open(&broker, SICHUAN, at).await;
    let status = again.next().await.expect_err("compacted");
    assert_eq!(status.code(), tonic::Code::OutOfRange);
    assert_eq!(reason(&status), "CURSOR_COMPACTED");
    let mut fresh = Consumer::open(&broker, SICHUAN, open("s", with_snapshot())).await;
    assert_eq!(fresh.snapshot().await.0.len(), 5);
    broker.shutdown().await;
}

/// What was trimmed is in the state alone. A broker that replays what is left would take new batches for
/// repeats, and miss registers and cursors.
#[tokio::test]
async fn a_broker_does_not_start_without_the_state_of_what_was_trimmed() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let mut last = 0;
    for n in 1..=10 {
        let one = batch(ANHUI, n, &[delta(n, n, GREEN)]);
        last = producer.publish(one).await.expect("ack").positions[0].offset;
    }
    broker.shutdown().await;
    let state = dir.path().join("state");
    let aside = dir.path().join("aside");
    // As long as everything is in the log, state is made of it again.
    std::fs::rename(&state, &aside).expect("moved");
    let broker = start(dir.path()).await;
    assert_eq!(registers(&broker, 1).await, [(ANHUI, 1)]);
    broker.shutdown().await;
    let broker = start(dir.path()).await;
    let request = api::TrimPartitionRequest {
        issuer: ANHUI,
        lane: 1,
        shard: 0,
        before_offset: last,
    };
    let mut admin =
        api::admin_service_client::AdminServiceClient::new(support::channel(&broker).await);
    let request = support::with_identity(request, "operator/o");
    admin.trim_partition(request).await.expect("trimmed");
    broker.shutdown().await;
    std::fs::remove_dir_all(&state).expect("removed");
    let error = Broker::start(config(dir.path())).await.expect_err("a hole");
    let error = error.to_string();
    assert!(error.contains("behind the log"), "{error}");
    assert!(error.contains(&format!("{last} on")), "{error}");
    // With a state that knows it, it starts.
    std::fs::remove_dir_all(&state).ok();
    std::fs::rename(&aside, &state).expect("moved back");
    let broker = start(dir.path()).await;
    assert_eq!(registers(&broker, 1).await, [(ANHUI, 1)]);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_reader_that_fell_behind_the_ring_reads_the_log_and_comes_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    // Rings that hold next to nothing: everybody reads the log most of the time.
    config.memory.tail_urgent = 2000;
    config.memory.tail_bulk = 2000;
    let broker = Broker::start(config).await.expect("started");
    let mut slow = open("slow", from_now());
    slow.credit_bytes = 64 << 10;
    let mut slow = Consumer::open(&broker, SICHUAN, slow).await;
    let mut quick = Consumer::open(&broker, SHANGHAI, open("quick", from_now())).await;
    for consumer in [&mut slow, &mut quick] {
        assert!(matches!(consumer.next().await, Ok(Seen::Opened { .. })));
    }
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let batches = 300u64;
    for n in 1..=batches {
        // Every tenth batch repeats an old revision, which must not be delivered.
        let stale = delta(1, 1, GREEN);
        let mut deltas: Vec<_> = (0..10).map(|i| delta(n * 100 + i, n, negative())).collect();
        deltas.push(if n % 10 == 0 {
            stale
        } else {
            delta(1, n, GREEN)
        });
        producer
            .publish(batch(ANHUI, n, &deltas))
            .await
            .expect("ack");
        if n % 30 == 0 {
            // What it was sent, it gives back; then it lags again.
            slow.credit(64 << 10).await;
        }
    }
    slow.credit(64 << 20).await;
    let expected = (batches * 10 + batches - batches / 10) as usize;
    for (name, consumer) in [("slow", &mut slow), ("quick", &mut quick)] {
        let mut by_lane: BTreeMap<bool, Offset> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut credit = 0usize;
        while seen.len() < expected {
            for (offset, _, entity, revision) in consumer.deltas(1).await {
                let urgent = entity == support::entity(1);
                let last = by_lane.insert(urgent, offset).unwrap_or_default();
                assert!(offset >= last, "{name}: order within a lane");
                assert!(
                    seen.insert((entity, revision)),
                    "{name}: {entity} {revision} twice"
                );
            }
            credit += 1;
            if credit.is_multiple_of(10) {
                consumer.credit(64 << 10).await;
            }
        }
    }
    broker.shutdown().await;
}

#[tokio::test]
async fn urgent_overtakes_bulk_that_waits_for_the_same_subscriber() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let first = producer
        .publish(batch(ANHUI, 1, &[delta(1, 1, GREEN)]))
        .await
        .expect("ack");
    let log_id = status(&broker).await.log_id;
    for n in 2..=40 {
        let deltas: Vec<_> = (0..1000)
            .map(|i| delta(n * 10_000 + i, n, negative()))
            .collect();
        producer
            .publish(batch(ANHUI, n, &deltas))
            .await
            .expect("ack");
    }
    producer
        .publish(batch(ANHUI, 41, &[delta(2, 2, RED)]))
        .await
        .expect("ack");
    let at = first.positions[0].offset;
    let cursor = api::Cursor {
        log_id,
        urgent: at,
        bulk: at,
    };
    let mut consumer = Consumer::open(&broker, SICHUAN, open("s", Start::Cursor(cursor))).await;
    let seen = consumer.deltas(2).await;
    assert_eq!(
        (seen[0].2, seen[1].2),
        (entity(1), entity(2)),
        "both urgent deltas come first"
    );
    broker.shutdown().await;
}

#[tokio::test]
async fn an_idle_stream_carries_bookmarks() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut consumer = Consumer::open(&broker, SICHUAN, open("s", from_now())).await;
    let began = tokio::time::Instant::now();
    let mut bookmarks = 0;
    while bookmarks < 4 {
        if let Seen::Bookmark(_) = consumer.next().await.expect("the stream goes on") {
            bookmarks += 1;
        }
    }
    assert!(began.elapsed() < PATIENCE);
    broker.shutdown().await;
}

#[tokio::test]
async fn an_idle_subscriber_that_acknowledges_everything_writes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut shanghai = Consumer::open(&broker, SHANGHAI, open("s", with_snapshot())).await;
    let (_, cursor) = shanghai.snapshot().await;
    shanghai.applied(cursor).await;
    // Its cursor is stored once, as a record; that moves the bookmark, and so on, but not for ever.
    let mut last = cursor;
    let mut still = 0;
    while still < 6 {
        if let Seen::Bookmark(at) = shanghai.next().await.expect("the stream goes on") {
            still = if at == last { still + 1 } else { 0 };
            assert!(at.urgent.0 < cursor.urgent.0 + 4, "{at:?} after {cursor:?}");
            last = at;
            shanghai.applied(at).await;
        }
    }
    assert!(last.urgent > cursor.urgent, "the cursor was stored");
}

#[tokio::test]
async fn stopping_gives_every_ack_and_says_goodbye() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut consumer = Consumer::open(&broker, SICHUAN, open("s", from_now())).await;
    assert!(matches!(consumer.next().await, Ok(Seen::Opened { .. })));
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    producer
        .publish(batch(ANHUI, 1, &[delta(1, 1, RED)]))
        .await
        .expect("ack");
    let stopped = tokio::spawn(broker.shutdown());
    let goodbye = producer.next().await.expect("a goodbye");
    assert!(matches!(
        goodbye,
        api::publish_response::Message::Draining(_)
    ));
    assert_eq!(consumer.deltas(1).await[0].2, entity(1));
    loop {
        match consumer.next().await {
            Ok(Seen::Draining) => break,
            Ok(_) => {}
            Err(status) => panic!("no goodbye: {status:?}"),
        }
    }
    stopped.await.expect("stopped");
}

#[tokio::test]
async fn a_second_broker_on_the_same_folder_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let error = Broker::start(config(dir.path())).await.expect_err("in use");
    assert!(error.to_string().contains("another broker uses"), "{error}");
    broker.shutdown().await;
    let version = dir.path().join("data").join("VERSION");
    let version = if version.exists() {
        version
    } else {
        dir.path().join("VERSION")
    };
    std::fs::write(version, "4000000000\n").expect("written");
    let error = Broker::start(config(dir.path())).await.expect_err("newer");
    assert!(error.to_string().contains("newer broker"), "{error}");
}

/// The number of a refused batch becomes durable too. A process that takes over meanwhile must know of
/// it, or its own first batch would be taken for that one.
#[tokio::test]
async fn who_takes_over_while_a_batch_is_refused_loses_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    for round in 0..100 {
        let (mut old, durable) = Producer::open(&broker, ANHUI, "p", 2 * round + 1).await;
        let refused = batch(SICHUAN, durable + 1, &[delta(1, 1, GREEN)]);
        old.send(publish_request::Message::Batch(refused)).await;
        let (mut new, durable) = Producer::open(&broker, ANHUI, "p", 2 * round + 2).await;
        let good = batch(ANHUI, durable + 1, &[delta(round, round + 1, GREEN)]);
        let ack = new.publish(good).await.expect("an ack");
        assert_eq!((ack.accepted, ack.duplicate), (1, false), "round {round}");
    }
    broker.shutdown().await;
}
