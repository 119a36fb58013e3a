//! Subscribers that take nothing: what they hold comes back, and others are served meanwhile.

mod support;

use hutong_broker::Broker;
use hutong_proto::{
    Value, api,
    api::subscribe_open::Start,
    delta::{Colour, TestOutcome},
    limits,
};
use std::time::{Duration, Instant};
use support::{
    ANHUI, Consumer, Listening, PATIENCE, Producer, SHANGHAI, SICHUAN, Seen, batch, config, delta,
    open,
    process::{BrokerProcess, command, configuration},
    reason,
};
use tempfile::TempDir;

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

const STALLED: usize = 4;
const ROUNDS: u64 = 100;

/// A broker with little memory for what is on its way, one producer and one reader.
struct Side {
    _dir: TempDir,
    broker: BrokerProcess,
    producer: Producer,
    reader: Consumer,
    took: Vec<Duration>,
}

impl Side {
    async fn start() -> Side {
        let dir = tempfile::tempdir().expect("a folder");
        let config = configuration(dir.path(), &dir.path().join("data"), "127.0.0.1:0");
        let mut text = std::fs::read_to_string(&config).expect("written before");
        text += "[memory]\ntail_urgent = \"4MiB\"\ntail_bulk = \"4MiB\"\nqueue_urgent = \"4MiB\"\n\
                 queue_bulk = \"8MiB\"\ngather = \"8MiB\"\nblock_cache = \"4MiB\"\n";
        std::fs::write(&config, text).expect("write");
        let broker = BrokerProcess::spawn(dir.path(), &mut command(&config)).expect("it starts");
        let reader = api::SubscribeOpen {
            credit_bytes: limits::SUBSCRIBE_CREDIT_BYTES_MAX,
            ..open("reader", Start::Now(api::StartNow {}))
        };
        let mut reader = Consumer::open(&broker, SHANGHAI, reader).await;
        assert!(matches!(reader.next().await, Ok(Seen::Opened { .. })));
        let (producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
        Side {
            _dir: dir,
            broker,
            producer,
            reader,
            took: Vec::new(),
        }
    }

    async fn round(&mut self, sequence: u64) {
        let first = sequence * DELTAS;
        let negative = Value::TestResult {
            outcome: TestOutcome::Negative,
            sampled_at: support::now(),
        };
        let deltas: Vec<_> = (first..first + DELTAS)
            .map(|n| delta(n, 1, negative.clone()))
            .collect();
        let batch = batch(ANHUI, sequence, &deltas);
        let began = Instant::now();
        self.producer.publish(batch).await.expect("acks go on");
        let count = DELTAS as usize;
        assert_eq!(self.reader.deltas(count).await.len(), count);
        self.took.push(began.elapsed());
    }

    fn median(&mut self) -> Duration {
        self.took.sort_unstable();
        self.took[self.took.len() / 2]
    }

    fn memory_bytes(&self) -> f64 {
        let page = self.broker.get("/metrics");
        let series = "hutong_memory_resident_bytes ";
        let line = page.lines().find_map(|line| line.strip_prefix(series));
        line.expect("a metric").parse().expect("a number")
    }
}

/// Two brokers get the same by turns, so that whatever else the machine does hits both; one of them has
/// subscribers that stopped at their first message.
#[tokio::test(flavor = "multi_thread")]
async fn stalled_subscribers_cost_next_to_no_memory_and_delay_nobody() {
    let (mut alone, mut beside) = (Side::start().await, Side::start().await);
    let mut stalled = Vec::new();
    for i in 0..STALLED {
        let request = api::SubscribeOpen {
            credit_bytes: limits::SUBSCRIBE_CREDIT_BYTES_MIN,
            ..open(&format!("stalled-{i}"), Start::Now(api::StartNow {}))
        };
        let mut consumer = Consumer::open(&beside.broker, SICHUAN, request).await;
        assert!(matches!(consumer.next().await, Ok(Seen::Opened { .. })));
        stalled.push(consumer);
    }
    for sequence in 1..=ROUNDS {
        alone.round(sequence).await;
        beside.round(sequence).await;
    }
    let more = beside.memory_bytes() - alone.memory_bytes();
    // Each could be sent 30 MB by now.
    assert!(more < (16 << 20) as f64, "{more} bytes more");
    let (without, with) = (alone.median(), beside.median());
    assert!(
        with < 2 * without + Duration::from_millis(5),
        "{with:?} with stalled subscribers, {without:?} without"
    );
    for i in 0..STALLED {
        let lag = subscription(&beside.broker, &format!("stalled-{i}")).await;
        let lag = lag.bulk.expect("a lag");
        assert!(lag.records > ROUNDS - 10 && lag.oldest_at_us > 0, "{lag:?}");
    }
}

async fn subscription(broker: &impl Listening, name: &str) -> api::Subscription {
    let mut admin =
        api::admin_service_client::AdminServiceClient::new(support::channel(broker).await);
    let request = api::ListSubscriptionsRequest { platform: 0 };
    let request = support::with_identity(request, "operator/o");
    let list = admin
        .list_subscriptions(request)
        .await
        .expect("an answer")
        .into_inner();
    list.subscriptions
        .into_iter()
        .find(|s| s.subscription == name)
        .expect("the subscription")
}
