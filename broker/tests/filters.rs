//! What a platform relies on when it takes only a part, and when it changes which.

mod support;

use hutong_proto::{
    Offset, Value, api,
    api::subscribe_open::Start,
    delta::{Colour, TestOutcome},
    limits,
};
use support::{
    ANHUI, Consumer, Producer, SHANGHAI, SICHUAN, Seen, batch, broker_knows, delta, entity, open,
    reason, start,
};

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

#[tokio::test]
async fn another_filter_needs_a_snapshot_and_half_a_snapshot_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut anhui, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let people: Vec<_> = (1..=2000).map(|n| delta(n, 1, RED)).collect();
    anhui.publish(batch(ANHUI, 1, &people)).await.expect("ack");
    let filtered = |kinds: &[api::Kind], start: Start| {
        let kinds = kinds.iter().map(|k| i32::from(*k)).collect();
        let filter = api::Filter {
            kinds,
            ..Default::default()
        };
        api::SubscribeOpen {
            filter: Some(filter),
            ..open("s", start)
        }
    };
    let narrow = [api::Kind::AreaRisk];
    let wide = [api::Kind::AreaRisk, api::Kind::HealthCode];
    let mut first = Consumer::open(&broker, SHANGHAI, filtered(&narrow, with_snapshot())).await;
    let (rows, cursor) = first.snapshot().await;
    assert!(rows.is_empty(), "there are no areas");
    first.applied(cursor).await;
    broker_knows(&broker, cursor.urgent).await;
    let at_cursor = || Start::Cursor(cursor.to_api());

    let refused = |open| async {
        let mut consumer = Consumer::open(&broker, SHANGHAI, open).await;
        reason(&consumer.next().await.expect_err("refused"))
    };
    assert_eq!(
        refused(filtered(&wide, at_cursor())).await,
        "FILTER_CHANGED"
    );
    // A snapshot with the other filter begins, but there is credit for its first messages only.
    let mut half = filtered(&wide, with_snapshot());
    half.credit_bytes = limits::SUBSCRIBE_CREDIT_BYTES_MIN;
    let mut consumer = Consumer::open(&broker, SHANGHAI, half).await;
    let begun = consumer.next().await.expect("it begins");
    assert!(matches!(begun, Seen::Opened { snapshot: true, .. }));
    // All its rows come in one message, which uses up the credit; only the end is missing.
    assert!(matches!(consumer.next().await, Ok(Seen::SnapshotBegin)));
    assert!(matches!(consumer.next().await, Ok(Seen::Rows(_))));
    drop(consumer);
    assert_eq!(
        refused(filtered(&wide, at_cursor())).await,
        "FILTER_CHANGED"
    );
    let mut same = Consumer::open(&broker, SHANGHAI, filtered(&narrow, at_cursor())).await;
    let opened = same.next().await;
    assert!(matches!(opened, Ok(Seen::Opened { .. })), "{opened:?}");

    let mut whole = Consumer::open(&broker, SHANGHAI, filtered(&wide, with_snapshot())).await;
    let (rows, after) = whole.snapshot().await;
    assert_eq!(rows.len(), 2000);
    // All was sent, but the platform may have died before it was stored there: at its old cursor it
    // would never get what the other filter left out.
    assert!(after.urgent > cursor.urgent && after.bulk > cursor.bulk);
    assert_eq!(
        refused(filtered(&wide, at_cursor())).await,
        "FILTER_CHANGED"
    );
    let stored = Start::Stored(api::StartStored {});
    assert_eq!(refused(filtered(&wide, stored)).await, "FILTER_CHANGED");
    let at_end = || Start::Cursor(after.to_api());
    let mut again = Consumer::open(&broker, SHANGHAI, filtered(&wide, at_end())).await;
    assert!(matches!(again.next().await, Ok(Seen::Opened { .. })));
    again.applied(after).await;
    broker_knows(&broker, after.urgent).await;
    // Also after a restart.
    broker.shutdown().await;
    let broker = start(dir.path()).await;
    let mut old = Consumer::open(&broker, SHANGHAI, filtered(&wide, at_cursor())).await;
    let error = old.next().await.expect_err("refused");
    assert_eq!(reason(&error), "FILTER_CHANGED");
    let mut again = Consumer::open(&broker, SHANGHAI, filtered(&wide, at_end())).await;
    assert!(matches!(again.next().await, Ok(Seen::Opened { .. })));
    broker.shutdown().await;
}

#[tokio::test]
async fn a_filter_by_kind_cuts_records_that_mix_kinds() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut filtered = open("s", from_now());
    filtered.filter = Some(api::Filter {
        kinds: vec![api::Kind::HealthCode.into()],
        ..Default::default()
    });
    let mut consumer = Consumer::open(&broker, SICHUAN, filtered).await;
    assert!(matches!(consumer.next().await, Ok(Seen::Opened { .. })));
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let positive = Value::TestResult {
        outcome: TestOutcome::Positive,
        sampled_at: support::now(),
    };
    let deltas = [
        delta(1, 1, positive),
        delta(2, 1, RED),
        delta(3, 1, negative()),
    ];
    let ack = producer
        .publish(batch(ANHUI, 1, &deltas))
        .await
        .expect("ack");
    assert_eq!(ack.positions.len(), 2);
    let end = ack
        .positions
        .iter()
        .map(|p| Offset(p.offset))
        .max()
        .expect("two");
    let seen: Vec<_> = consumer.until(end).await.iter().map(|d| d.2).collect();
    assert_eq!(seen, [entity(2)]);
    broker.shutdown().await;
}
