//! When more bulk is offered than there is room for, each platform gets its share by its population, however
//! many producers it has. What is asserted is the order in the log, which every ack tells.

mod support;

use hutong_broker::{Broker, config::Config};
use hutong_proto::{Value, api::publish_request, delta::TestOutcome, limits};
use prost::Message;
use std::path::Path;
use support::{ANHUI, Producer, SHANGHAI, SICHUAN, batch, delta, issuer, metric, metrics};

/// Of one record, and room for one: all others wait, however fast the machine is.
const DELTAS: u64 = 400;
const ROOM_BYTES: u64 = 64 << 10;

fn config(dir: &Path) -> Config {
    let mut config = support::config(dir);
    config.memory.queue_bulk = ROOM_BYTES;
    config
}

/// A platform with several producers, each of which sends all it has before it looks at an ack.
struct Source {
    code: u32,
    producers: Vec<Producer>,
    sent: u64,
    sent_bytes: u64,
}

/// Where a batch came to stand in the log, and the credit that came back with its ack.
struct Acked {
    offset: u64,
    credit_bytes: u64,
}

impl Source {
    async fn open(broker: &Broker, code: u32, producers: usize) -> Source {
        let mut opened = Vec::new();
        for i in 0..producers {
            let (producer, _) = Producer::open(broker, code, &format!("p-{i}"), 1).await;
            opened.push(producer);
        }
        Source {
            code,
            producers: opened,
            sent: 0,
            sent_bytes: 0,
        }
    }

    /// So many batches from each producer.
    async fn send(&mut self, batches: u64) {
        let negative = Value::TestResult {
            outcome: TestOutcome::Negative,
            sampled_at: support::now(),
        };
        for producer in &mut self.producers {
            for sequence in 1..=batches {
                let first = self.sent * DELTAS;
                let deltas: Vec<_> = (first..first + DELTAS)
                    .map(|n| delta(n, 1, negative.clone()))
                    .collect();
                let batch = batch(self.code, sequence, &deltas);
                self.sent += 1;
                self.sent_bytes += batch.encoded_len() as u64;
                producer.send(publish_request::Message::Batch(batch)).await;
            }
        }
    }

    /// Of everything that was sent.
    async fn acked(&mut self) -> Vec<Acked> {
        let each = self.sent / self.producers.len() as u64;
        let mut all = Vec::new();
        for producer in &mut self.producers {
            for sequence in 1..=each {
                let ack = producer.ack().await.expect("an ack");
                assert_eq!((ack.sequence, u64::from(ack.accepted)), (sequence, DELTAS));
                all.push(Acked {
                    offset: ack.positions[0].offset,
                    credit_bytes: ack.credit_bytes,
                });
            }
        }
        let credit: u64 = all.iter().map(|ack| ack.credit_bytes).sum();
        assert_eq!(credit, self.sent_bytes, "all of the credit comes back");
        all
    }
}

fn first_and_last(acked: &[Acked]) -> (u64, u64) {
    let offsets = || acked.iter().map(|ack| ack.offset);
    let (first, last) = (offsets().min(), offsets().max());
    (first.expect("some"), last.expect("some"))
}

const FLOOD_PRODUCERS: usize = 18;
const FLOOD_BATCHES: u64 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_little_is_acknowledged_while_the_flood_of_another_waits() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = Broker::start(config(dir.path())).await;
    let broker = broker.expect("the broker starts");
    let mut little = [
        Source::open(&broker, SHANGHAI, 3).await,
        Source::open(&broker, SICHUAN, 3).await,
    ];
    let mut flood = Source::open(&broker, ANHUI, FLOOD_PRODUCERS).await;
    flood.send(FLOOD_BATCHES).await;
    assert!(flood.sent_bytes / FLOOD_PRODUCERS as u64 <= limits::PUBLISH_CREDIT_BYTES);
    for source in &mut little {
        source.send(10).await;
    }
    let mut theirs = Vec::new();
    for source in &mut little {
        theirs.extend(source.acked().await);
    }
    let page = metrics(&broker).await;
    let flooded = flood.acked().await;

    // Room for as many as the flood has producers comes between two of theirs when nothing is fair: 180.
    let (first, last) = first_and_last(&theirs);
    let between = flooded
        .iter()
        .filter(|ack| (first..last).contains(&ack.offset));
    let (between, theirs) = (between.count(), theirs.len());
    assert!(
        between < theirs * 3 / 2,
        "{between} of the flood, {theirs} of the others"
    );

    // What tells the source that it has to wait: the credit of all this had not come back.
    let waiting = flooded.iter().filter(|ack| ack.offset > last);
    let withheld: u64 = waiting.map(|ack| ack.credit_bytes).sum();
    assert!(withheld > ROOM_BYTES, "{withheld} bytes");
    // And what tells the operator: room is taken, and of this platform more came than is acknowledged.
    let queued = metric(&page, "hutong_queue_bytes{lane=\"bulk\"}");
    assert!((1.0..=ROOM_BYTES as f64).contains(&queued), "{queued}");
    let came = metric(&page, "hutong_batches_total{platform=\"340000\"}");
    let accepted = "hutong_deltas_accepted_total{lane=\"bulk\",platform=\"340000\"}";
    let accepted = metric(&page, accepted) / DELTAS as f64;
    assert!(
        came > accepted && accepted < flood.sent as f64,
        "{came}, {accepted}"
    );
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_of_room_follow_the_population() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    for platform in &mut config.platforms {
        if platform.issuer == issuer(SICHUAN) {
            platform.population = 30_000_000;
        } else {
            platform.population = 10_000_000;
        }
    }
    let broker = Broker::start(config).await.expect("the broker starts");
    let mut small = Source::open(&broker, SHANGHAI, 12).await;
    let mut large = Source::open(&broker, SICHUAN, 12).await;
    tokio::join!(small.send(30), large.send(30));
    let (small, large) = (small.acked().await, large.acked().await);
    // As long as both of them want room.
    let (small_range, large_range) = (first_and_last(&small), first_and_last(&large));
    let from = small_range.0.max(large_range.0);
    let to = small_range.1.min(large_range.1);
    let within = |acked: &[Acked]| {
        let within = acked.iter().filter(|ack| (from..to).contains(&ack.offset));
        within.count() as f64
    };
    let ratio = within(&large) / within(&small);
    assert!((2.0..4.0).contains(&ratio), "{ratio} instead of 3");
    broker.shutdown().await;
}
