//! More than the broker can take: producers are slowed, nothing is dropped, nothing grows without
//! bound, and what is urgent does not wait behind what is not.

mod support;

use hutong_broker::Broker;
use hutong_proto::{
    Value, api,
    api::publish_request,
    delta::{Colour, TestOutcome},
    limits,
};
use support::{
    ANHUI, PATIENCE, Producer, SHANGHAI, SICHUAN, batch, config, delta, metric, metrics,
};

const BATCHES: u64 = 60;
const DELTAS: u64 = 4000;

fn negatives(issuer: u32, sequence: u64) -> api::PublishBatch {
    let first = sequence * DELTAS;
    let value = Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at: support::now(),
    };
    let deltas: Vec<_> = (first..first + DELTAS)
        .map(|n| delta(n, 1, value.clone()))
        .collect();
    batch(issuer, sequence, &deltas)
}

fn urgent(issuer: u32, sequence: u64) -> api::PublishBatch {
    let first = sequence * DELTAS;
    let deltas: Vec<_> = (first..first + DELTAS)
        .map(|n| delta(n, 1, Value::HealthCode(Colour::Red)))
        .collect();
    batch(issuer, sequence, &deltas)
}

/// Publishes everything as fast as credit allows; returns how many deltas were accepted.
async fn flood(broker: &Broker, issuer: u32) -> u64 {
    let (mut producer, _) = Producer::open(broker, issuer, "flood", 1).await;
    let mut credit = i64::try_from(limits::PUBLISH_CREDIT_BYTES).expect("fits");
    let (mut acknowledged, mut accepted) = (0, 0);
    for sequence in 1..=BATCHES {
        let batch = negatives(issuer, sequence);
        let bytes = prost::Message::encoded_len(&batch) as i64;
        while credit < bytes {
            let ack = producer.ack().await.expect("an ack");
            assert_eq!(ack.sequence, acknowledged + 1, "acks come in order");
            acknowledged = ack.sequence;
            accepted += u64::from(ack.accepted);
            credit += ack.credit_bytes as i64;
        }
        credit -= bytes;
        producer.send(publish_request::Message::Batch(batch)).await;
    }
    while acknowledged < BATCHES {
        let ack = producer.ack().await.expect("an ack");
        acknowledged = ack.sequence;
        accepted += u64::from(ack.accepted);
    }
    accepted
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_waits_for_its_turn_and_queues_stay_within_their_bound() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    let bound = limits::BATCH_BYTES_MAX as u64;
    config.memory.queue_bulk = bound;
    config.memory.queue_urgent = bound;
    let broker = Broker::start(config).await.expect("the broker starts");

    let watch = async {
        let mut highest: f64 = 0.0;
        loop {
            let page = metrics(&broker).await;
            let queued = metric(&page, "hutong_queue_bytes{lane=\"bulk\"}");
            assert!(queued <= bound as f64, "{queued} bytes of {bound}");
            highest = highest.max(queued);
            let taken = metric(
                &page,
                "hutong_deltas_accepted_total{lane=\"bulk\",platform=\"310000\"}",
            );
            if taken >= (BATCHES * DELTAS) as f64 {
                return highest;
            }
        }
    };
    let all = async { tokio::join!(flood(&broker, ANHUI), flood(&broker, SHANGHAI), watch) };
    let (anhui, shanghai, highest) = tokio::time::timeout(PATIENCE * 3, all)
        .await
        .expect("the flood drains");
    assert_eq!((anhui, shanghai), (BATCHES * DELTAS, BATCHES * DELTAS));
    assert!(highest > 0.0, "the queue was never seen in use");
    let page = metrics(&broker).await;
    assert!(metric(&page, "hutong_queue_bytes{lane=\"bulk\"}") <= 0.0);
    broker.shutdown().await;
}

const FLOODS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_urgent_overtakes_a_flood_that_waits() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    config.memory.queue_bulk = limits::BATCH_BYTES_MAX as u64;
    let broker = Broker::start(config).await.expect("the broker starts");
    let (mut urgent, _) = Producer::open(&broker, SICHUAN, "urgent", 1).await;
    // As much as the credit of several producers allows, all of it sent before anything urgent: far more
    // than goes through while one small message comes.
    let mut bytes = 0;
    let batches: Vec<_> = (1..)
        .map(|sequence| negatives(ANHUI, sequence))
        .take_while(|batch| {
            bytes += prost::Message::encoded_len(batch) as u64;
            bytes <= limits::PUBLISH_CREDIT_BYTES
        })
        .collect();
    let mut floods = Vec::new();
    for i in 0..FLOODS {
        floods.push(
            Producer::open(&broker, ANHUI, &format!("flood-{i}"), 1)
                .await
                .0,
        );
    }
    for flood in &mut floods {
        for batch in &batches {
            flood
                .send(publish_request::Message::Batch(batch.clone()))
                .await;
        }
    }
    let sent = FLOODS * batches.len();
    let red = [delta(1, 1, Value::HealthCode(Colour::Red))];
    let ack = urgent.publish(batch(SICHUAN, 1, &red)).await.expect("ack");
    let position = ack.positions[0].offset;
    let mut behind = 0;
    for mut flood in floods {
        for _ in &batches {
            let ack = flood.ack().await.expect("an ack");
            behind += u64::from(ack.positions.iter().all(|p| p.offset > position));
        }
    }
    assert!(
        behind > 0,
        "the urgent delta came after all {sent} bulk batches"
    );
    broker.shutdown().await;
}

const EMPTY: usize = 80;

/// As many refusals as fit into one ack, over and over: what it costs to say so must be bounded, and what
/// the client sends after that must not take the room of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_takes_no_acks_holds_up_nobody_and_is_sent_away() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    config.limits.stall = std::time::Duration::from_secs(1);
    let broker = Broker::start(config).await.expect("the broker starts");
    let before = metric(&metrics(&broker).await, "hutong_memory_resident_bytes");
    let mut silent = Vec::new();
    for i in 0..3 {
        let name = format!("silent-{i}");
        let (mut producer, _) = Producer::open(&broker, ANHUI, &name, 1).await;
        let mut credit = limits::PUBLISH_CREDIT_BYTES;
        for sequence in 1.. {
            let batch = match sequence <= EMPTY {
                true => api::PublishBatch {
                    sequence: sequence as u64,
                    issuer: ANHUI,
                    provenance: Vec::new(),
                    deltas: vec![api::Delta::default(); limits::BATCH_DELTAS_MAX],
                },
                false => urgent(ANHUI, sequence as u64),
            };
            match credit.checked_sub(prost::Message::encoded_len(&batch) as u64) {
                Some(left) => credit = left,
                None => break,
            }
            producer.send(publish_request::Message::Batch(batch)).await;
        }
        silent.push(producer);
    }
    let (mut other, _) = Producer::open(&broker, SICHUAN, "p", 1).await;
    // More than there is room for: what the silent ones hold would be missed.
    for sequence in 1..=20 {
        let ack = other.publish(urgent(SICHUAN, sequence)).await.expect("ack");
        assert_eq!(u64::from(ack.accepted), DELTAS);
    }
    let page = metrics(&broker).await;
    let grown = metric(&page, "hutong_memory_resident_bytes") - before;
    assert!(grown < (200 << 20) as f64, "{grown} bytes more");
    let connected = "hutong_producers_connected{platform=\"340000\"}";
    let gone = async { while metric(&metrics(&broker).await, connected) > 0.0 {} };
    let gone = tokio::time::timeout(PATIENCE, gone).await;
    gone.expect("they are sent away");
    for mut producer in silent {
        let status = loop {
            if let Err(status) = producer.next().await {
                break status;
            }
        };
        assert_eq!(support::reason(&status), "CLIENT_STALLED");
    }
    // It goes on as after any other break.
    let (mut again, durable) = Producer::open(&broker, ANHUI, "silent-0", 1).await;
    let batch = urgent(ANHUI, durable + 1);
    assert!(again.publish(batch).await.expect("ack").error.is_none());
    broker.shutdown().await;
}
