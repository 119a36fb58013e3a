//! What the broker tells of the way of one delta: when it was where, and what it does not know.

mod support;

use hutong_broker::Broker;
use hutong_proto::{
    Cursor, LogId, Offset, Value, api,
    api::{publish_request, subscribe_open::Start},
    delta::{Colour, TestOutcome},
};
use support::{
    ANHUI, Consumer, PATIENCE, Producer, SICHUAN, Seen, batch, broker_knows, delta, entity, open,
    reason, start,
};

const GREEN: Value = Value::HealthCode(Colour::Green);
const RED: Value = Value::HealthCode(Colour::Red);

fn from_now() -> Start {
    Start::Now(api::StartNow {})
}

async fn ask(
    broker: &Broker,
    n: u64,
    kind: api::Kind,
    revision: u64,
) -> Result<api::TraceResponse, tonic::Status> {
    let mut query =
        api::query_service_client::QueryServiceClient::new(support::channel(broker).await);
    let request = api::TraceRequest {
        entity: entity(n).0.to_vec().into(),
        issuer: ANHUI,
        kind: kind.into(),
        revision,
    };
    let request = support::with_identity(request, "operator/o");
    Ok(query.trace(request).await?.into_inner())
}

async fn trace(
    broker: &Broker,
    n: u64,
    revision: u64,
) -> Result<api::TraceResponse, tonic::Status> {
    ask(broker, n, api::Kind::HealthCode, revision).await
}

/// A consumer from now on, and the log.
async fn consumer(broker: &Broker) -> (Consumer, LogId) {
    let mut consumer = Consumer::open(broker, SICHUAN, open("s", from_now())).await;
    match consumer.next().await.expect("opened") {
        Seen::Opened { cursor, .. } => (consumer, cursor.log_id),
        other => panic!("{other:?}"),
    }
}

/// All clocks are one clock here, so the order of the points is the order of what happened.
#[tokio::test]
async fn a_trace_tells_the_way_of_one_delta_in_the_order_in_which_it_went() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut consumer, log_id) = consumer(&broker).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let negative = Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at: support::now(),
    };
    let lanes = [
        (RED, api::Kind::HealthCode),
        (negative, api::Kind::TestResult),
    ];
    for (sequence, (value, kind)) in (1..).zip(lanes) {
        let before = support::now().0;
        let change = batch(ANHUI, sequence, &[delta(1, sequence, value)]);
        producer.publish(change).await.expect("acknowledged");
        let acknowledged = support::now().0;
        let offset = consumer.deltas(1).await[0].0;
        consumer.applied(Cursor::both(log_id, offset.next())).await;
        let told = async {
            loop {
                let trace = ask(&broker, 1, kind, 0).await.expect("an answer");
                assert_eq!(trace.offset, offset.0);
                // Of Sichuan: nobody else subscribes.
                if trace.hops[0].state() == api::TraceState::Applied {
                    return trace;
                }
            }
        };
        let trace = tokio::time::timeout(PATIENCE, told).await.expect("applied");
        let hop = &trace.hops[0];
        let points = [
            before,
            trace.committed_at_us,
            trace.arrived_at_us,
            trace.durable_at_us,
            trace.applied_at_us,
            hop.sent_at_us,
            hop.applied_at_us,
        ];
        assert!(points.is_sorted(), "{points:?} of {trace:?}");
        assert!(trace.applied_at_us <= acknowledged, "{trace:?}");
    }
    broker.shutdown().await;
}

/// A time that nobody remembers is not told, also when later ones are.
#[tokio::test]
async fn after_a_restart_no_time_is_guessed_for_what_was_durable_before() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let old = batch(ANHUI, 1, &[delta(1, 1, RED)]);
    producer.publish(old).await.expect("acknowledged");
    let known = trace(&broker, 1, 0).await.expect("found");
    assert!(known.arrived_at_us > 0 && known.applied_at_us > 0);
    broker.shutdown().await;

    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 2).await;
    let new = batch(ANHUI, 2, &[delta(2, 2, RED)]);
    producer.publish(new).await.expect("acknowledged");
    let old = trace(&broker, 1, 0).await.expect("found");
    assert_eq!((old.arrived_at_us, old.applied_at_us), (0, 0), "{old:?}");
    assert_eq!(old.durable_at_us, known.durable_at_us, "the log has it");
    let new = trace(&broker, 2, 0).await.expect("found");
    assert!(new.arrived_at_us > 0 && new.applied_at_us > 0, "{new:?}");
    broker.shutdown().await;
}

/// More of them than are remembered one by one.
#[tokio::test]
async fn of_very_many_each_has_bounds_in_the_right_order() {
    const BATCHES: u64 = 10_000;
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let begun = support::now().0;
    for from in (1..=BATCHES).step_by(500) {
        for n in from..from + 500 {
            let change = batch(ANHUI, n, &[delta(n, 1, RED)]);
            let change = publish_request::Message::Batch(change);
            producer.send(change).await;
        }
        for _ in 0..500 {
            producer.ack().await.expect("acknowledged");
        }
    }
    let ended = support::now().0;
    for n in (1..=BATCHES).step_by(250).chain([BATCHES]) {
        let trace = trace(&broker, n, 0).await.expect("found");
        let points = [
            trace.arrived_at_us,
            trace.durable_at_us,
            trace.applied_at_us,
        ];
        assert!(points.is_sorted(), "{n}: {points:?}");
        // None took longer than all of them together.
        let longest = ended - begun;
        let (waited, took) = (points[1] - points[0], points[2] - points[1]);
        assert!(waited <= longest && took <= longest, "{n}: {points:?}");
    }
    broker.shutdown().await;
}

#[tokio::test]
async fn a_trace_tells_what_was_refused_from_what_was_superseded() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut consumer = Consumer::open(&broker, SICHUAN, open("s", from_now())).await;
    assert!(matches!(consumer.next().await, Ok(Seen::Opened { .. })));
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let mut offsets = Vec::new();
    for (n, revision) in [3, 5, 4].into_iter().enumerate() {
        let value = if revision == 5 { RED } else { GREEN };
        // With another one, so that the record is delivered in part.
        let deltas = [delta(1, revision, value), delta(100 + n as u64, 1, GREEN)];
        let ack = producer.publish(batch(ANHUI, n as u64 + 1, &deltas)).await;
        offsets.push(ack.expect("ack").positions[0].offset);
    }
    let end = Offset(*offsets.last().expect("three"));
    let mut cursor = None;
    while cursor.is_none() {
        if let Seen::Bookmark(at) = consumer.next().await.expect("the stream goes on")
            && at.urgent > end
        {
            cursor = Some(at);
        }
    }
    consumer.applied(cursor.expect("a bookmark")).await;
    broker_knows(&broker, end.next()).await;
    for (revision, offset, superseded, refused, hops) in [
        (3, offsets[0], true, false, 1),
        (5, offsets[1], false, false, 1),
        (4, offsets[2], false, true, 0),
    ] {
        let trace = trace(&broker, 1, revision).await.expect("found");
        let found = (trace.offset, trace.superseded, trace.refused);
        assert_eq!(found, (offset, superseded, refused), "revision {revision}");
        assert_eq!(trace.hops.len(), hops, "{:?}", trace.hops);
        assert!(trace.arrived_at_us > 0, "it came, whatever became of it");
        assert_eq!(trace.applied_at_us > 0, !refused, "{trace:?}");
    }
    let status = trace(&broker, 1, 2).await.expect_err("never was");
    assert_eq!(reason(&status), "DELTA_NOT_FOUND");
    broker.shutdown().await;
}
