//! Where the time of a change's way is said to have gone, hop by hop and lane by lane, against what the clients of both
//! ends know of it.

mod support;

use hutong_broker::Broker;
use hutong_proto::{
    Cursor, LogId, Micros, Value, api,
    api::subscribe_open::Start,
    delta::{Colour, TestOutcome},
};
use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};
use support::{ANHUI, Consumer, PATIENCE, Producer, SICHUAN, Seen, batch, delta, open, start};

/// A source's clock and the broker's are the same here, but a clock may be set while the test runs.
const SLACK: f64 = 0.5;

/// One change: how old it was when it was published, and how long its receiver had it before it said so.
struct Way {
    lane: &'static str,
    age: Duration,
    held: Duration,
}

/// In seconds: until it was received, and until the broker was seen to know that it is applied.
struct Took {
    received: f64,
    all: f64,
}

async fn hop(broker: &Broker, part: &str, hop: &str, lane: &str) -> Option<f64> {
    let page = support::metrics(broker).await;
    let series = format!("hutong_hop_seconds_{part}{{hop=\"{hop}\",lane=\"{lane}\"}}");
    let value = page.lines().find_map(|line| line.strip_prefix(&series))?;
    Some(value.trim().parse().expect("a number"))
}

async fn travel(
    broker: &Broker,
    (producer, consumer, log_id): (&mut Producer, &mut Consumer, LogId),
    (sequence, value): (u64, Value),
    way: &Way,
) -> Took {
    let begun = Instant::now();
    let mut change = delta(sequence, 1, value);
    change.committed_at = Micros(change.committed_at.0 - way.age.as_micros() as u64);
    let ack = producer.publish(batch(ANHUI, sequence, &[change])).await;
    assert_eq!(ack.expect("acknowledged").accepted, 1);
    let (offset, ..) = consumer.deltas(1).await[0];
    let received = begun.elapsed().as_secs_f64();
    // Not to wait for anything: this is what is measured.
    tokio::time::sleep(way.held).await;
    consumer.applied(Cursor::both(log_id, offset.next())).await;
    let known = async {
        while hop(broker, "count", "source_to_platform", way.lane).await != Some(1.0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, known)
        .await
        .expect("it is measured");
    let all = begun.elapsed().as_secs_f64();
    Took { received, all }
}

async fn check(broker: &Broker, way: &Way, took: &Took) {
    let (age, held) = (way.age.as_secs_f64(), way.held.as_secs_f64());
    // What lies before it was received has nothing of what it was held, and the other way round.
    let short = 0.0..=took.received + SLACK;
    let hops: [(&str, RangeInclusive<f64>); 6] = [
        (
            "source_to_broker",
            age - SLACK..=age + took.received + SLACK,
        ),
        ("broker_to_durable", short.clone()),
        ("durable_to_applied", short.clone()),
        ("applied_to_sent", short),
        ("sent_to_platform", held - SLACK..=took.all + SLACK),
        (
            "source_to_platform",
            age + held - SLACK..=age + took.all + SLACK,
        ),
    ];
    for (name, expected) in hops {
        let count = hop(broker, "count", name, way.lane).await;
        assert_eq!(count, Some(1.0), "{name} {}", way.lane);
        let sum = hop(broker, "sum", name, way.lane).await.expect("a sum");
        assert!(
            expected.contains(&sum),
            "{name} {}: {sum} s, and not {expected:?}",
            way.lane
        );
    }
}

#[tokio::test]
async fn each_hop_of_each_lane_has_the_time_that_was_spent_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let from_now = Start::Now(api::StartNow {});
    let mut consumer = Consumer::open(&broker, SICHUAN, open("main", from_now)).await;
    let log_id = match consumer.next().await.expect("opened") {
        Seen::Opened { cursor, .. } => cursor.log_id,
        other => panic!("{other:?}"),
    };
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let negative = Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at: support::now(),
    };
    // Minutes and hours, so that no slow machine makes one look like the other.
    let ways = [
        (
            Value::HealthCode(Colour::Red),
            Way {
                lane: "urgent",
                age: Duration::from_secs(600),
                held: Duration::from_secs(3),
            },
        ),
        (
            negative,
            Way {
                lane: "bulk",
                age: Duration::from_secs(36_000),
                held: Duration::from_secs(5),
            },
        ),
    ];
    let mut took = Vec::new();
    for (sequence, (value, way)) in (1..).zip(&ways) {
        let ends = (&mut producer, &mut consumer, log_id);
        took.push(travel(&broker, ends, (sequence, value.clone()), way).await);
    }
    // After both: neither lane has anything of the other.
    for ((_, way), took) in ways.iter().zip(&took) {
        check(&broker, way, took).await;
    }
    broker.shutdown().await;
}
