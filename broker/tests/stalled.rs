//! Subscribers that take nothing: what they hold comes back, and others are served meanwhile.

mod support;

use hutong_broker::Broker;
use hutong_proto::{Value, api, api::subscribe_open::Start, delta::Colour};
use std::time::Duration;
use support::{
    ANHUI, Consumer, PATIENCE, Producer, SHANGHAI, SICHUAN, batch, config, delta, open, reason,
};

/// More than one message of a snapshot.
const BATCHES: u64 = 4;
const DELTAS: u64 = 4000;

fn snapshot(name: &str, credit_bytes: u64) -> api::SubscribeOpen {
    api::SubscribeOpen {
        credit_bytes,
        ..open(name, Start::Snapshot(api::StartSnapshot {}))
    }
}

async fn fill(broker: &Broker) {
    let (mut producer, _) = Producer::open(broker, ANHUI, "p", 1).await;
    for sequence in 1..=BATCHES {
        let first = sequence * DELTAS;
        let deltas: Vec<_> = (first..first + DELTAS)
            .map(|n| delta(n, 1, Value::HealthCode(Colour::Green)))
            .collect();
        let batch = batch(ANHUI, sequence, &deltas);
        producer.publish(batch).await.expect("ack");
    }
}

/// Asks again as long as it is told to come later.
async fn in_the_end(broker: &Broker, platform: u32) -> usize {
    let asking = async {
        loop {
            let mut consumer = Consumer::open(broker, platform, snapshot("s", 0)).await;
            match consumer.next().await {
                Ok(_) => return consumer.snapshot().await.0.len(),
                Err(status) => assert_eq!(reason(&status), "TOO_MANY_SNAPSHOTS"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .expect("it comes to its turn")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_taking_a_snapshot_gives_its_place_to_the_next() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    config.limits.snapshots = 1;
    config.limits.stall = Duration::from_secs(1);
    let broker = Broker::start(config).await.expect("the broker starts");
    fill(&broker).await;
    let mut stalled = Consumer::open(&broker, SICHUAN, snapshot("s", 64 << 10)).await;
    stalled.next().await.expect("it has begun");
    let mut second = Consumer::open(&broker, SHANGHAI, snapshot("s", 0)).await;
    let status = second.next().await.expect_err("the only place is taken");
    assert_eq!(reason(&status), "TOO_MANY_SNAPSHOTS");
    let rows = in_the_end(&broker, SHANGHAI).await;
    assert_eq!(rows as u64, BATCHES * DELTAS);
    let status = loop {
        if let Err(status) = stalled.next().await {
            break status;
        }
    };
    assert_eq!(reason(&status), "CLIENT_STALLED");
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_platform_never_has_all_the_places() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    config.limits.snapshots = 2;
    let broker = Broker::start(config).await.expect("the broker starts");
    fill(&broker).await;
    let mut first = Consumer::open(&broker, SICHUAN, snapshot("a", 64 << 10)).await;
    first.next().await.expect("it has begun");
    let mut second = Consumer::open(&broker, SICHUAN, snapshot("b", 64 << 10)).await;
    let status = second.next().await.expect_err("one at a time");
    assert_eq!(reason(&status), "TOO_MANY_SNAPSHOTS");
    let mut other = Consumer::open(&broker, SHANGHAI, snapshot("s", 0)).await;
    let (rows, _) = other.snapshot().await;
    assert_eq!(rows.len() as u64, BATCHES * DELTAS);
    // The same subscription again takes its own place over.
    let mut again = Consumer::open(&broker, SICHUAN, snapshot("a", 0)).await;
    assert_eq!(again.snapshot().await.0.len() as u64, BATCHES * DELTAS);
    broker.shutdown().await;
}
