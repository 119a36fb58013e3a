//! Data folders that earlier brokers wrote, as they lay when those were killed: each opens, and has what it had. There
//! is one for each layout. Run with `HUTONG_WRITE=1`, the test writes the one of its own layout if there is none.

mod support;

use hutong_proto::{
    Cursor, Micros, Offset, Value, api,
    api::subscribe_open::Start,
    delta::{Colour, Delta, TestOutcome},
};
use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use support::{
    ANHUI, Consumer, PATIENCE, Producer, SHANGHAI, SICHUAN, Seen, batch, delta, entity, open,
    process::{BrokerProcess, command, configuration},
};
use tempfile::TempDir;

const EPOCH: u64 = 7;
/// Of each half.
const BATCHES: u64 = 20;
const SUBSCRIPTION: &str = "kept";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn tar(what: &str, archive: &Path, arguments: &[&str]) {
    let mut tar = Command::new("tar");
    let status = tar.arg(what).arg(archive).args(arguments).status();
    assert!(status.expect("tar").success(), "{}", archive.display());
}

/// With a log that is kept however long ago it was written.
fn start(dir: &Path) -> BrokerProcess {
    let config = configuration(dir, &dir.join("data"), "127.0.0.1:0");
    let mut text = std::fs::read_to_string(&config).expect("a configuration");
    text += "[retention]\nage = \"3650d\"\n";
    std::fs::write(&config, text).expect("written");
    BrokerProcess::spawn(dir, &mut command(&config)).expect("it starts")
}

/// What is in a batch: both lanes.
fn deltas(n: u64) -> [Delta; 3] {
    let sampled_at = Micros(1_700_000_000_000_000);
    let negative = Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at,
    };
    let vaccination = Value::Vaccination {
        doses: 2,
        product: "CoronaVac".to_owned(),
        vaccinated_at: sampled_at,
    };
    [
        delta(n, n, Value::HealthCode(Colour::Red)),
        delta(1000 + n, n, negative),
        delta(2000 + n, n, vaccination),
    ]
}

/// Twenty batches that are in the state on disk, and that a subscriber has applied; twenty that only the log has.
async fn write(dir: &Path) {
    let broker = start(dir);
    let now = open(SUBSCRIPTION, Start::Now(api::StartNow {}));
    let mut consumer = Consumer::open(&broker, SICHUAN, now).await;
    let Ok(Seen::Opened { cursor, .. }) = consumer.next().await else {
        panic!("not opened");
    };
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", EPOCH).await;
    let last = publish(&mut producer, 1..=BATCHES).await;
    consumer.until(last).await;
    consumer
        .applied(Cursor::both(cursor.log_id, last.next()))
        .await;
    for lane in ["urgent", "bulk"] {
        until(&broker, lane);
    }
    broker.signal();
    assert_eq!(broker.wait().0, Some(0));
    let broker = start(dir);
    let (mut producer, last) = Producer::open(&broker, ANHUI, "p", EPOCH).await;
    assert_eq!(last, BATCHES);
    publish(&mut producer, BATCHES + 1..=2 * BATCHES).await;
    broker.kill();
}

/// The place of the last record.
async fn publish(producer: &mut Producer, batches: RangeInclusive<u64>) -> Offset {
    let mut last = Offset::NONE;
    for n in batches {
        let ack = producer.publish(batch(ANHUI, n, &deltas(n))).await;
        let ack = ack.expect("acknowledged");
        assert_eq!(ack.accepted, 3);
        last = ack
            .positions
            .iter()
            .map(|p| Offset(p.offset))
            .fold(last, Offset::max);
    }
    last
}

/// What the subscription applied has come to the broker.
fn until(broker: &BrokerProcess, lane: &str) {
    let series = format!(
        "hutong_subscription_lag_records{{lane=\"{lane}\",platform=\"{SICHUAN}\",subscription=\"{SUBSCRIPTION}\"}} 0"
    );
    let begun = Instant::now();
    loop {
        let page = broker.get("/metrics");
        if page.lines().any(|line| line == series) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "no {series} in {page}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Everything that was acknowledged is there, for who begins and for who goes on.
async fn has_what_it_had(dir: &Path) {
    let broker = start(dir);
    let all = open("new", Start::Snapshot(api::StartSnapshot {}));
    let (rows, _) = Consumer::open(&broker, SHANGHAI, all)
        .await
        .snapshot()
        .await;
    let rows: BTreeSet<_> = rows.into_iter().collect();
    let of = |n: u64| [n, 1000 + n, 2000 + n].map(|e| (ANHUI, entity(e), n));
    let expected: BTreeSet<_> = (1..=2 * BATCHES).flat_map(of).collect();
    assert_eq!(rows, expected, "the state");

    let stored = open(SUBSCRIPTION, Start::Stored(api::StartStored {}));
    let mut kept = Consumer::open(&broker, SICHUAN, stored).await;
    let missed = kept.deltas(3 * BATCHES as usize).await;
    let missed: BTreeSet<_> = missed
        .iter()
        .map(|(_, issuer, e, n)| (*issuer, *e, *n))
        .collect();
    let expected: BTreeSet<_> = (BATCHES + 1..=2 * BATCHES).flat_map(of).collect();
    assert_eq!(missed, expected, "the log, from the stored cursor on");

    let (mut producer, last) = Producer::open(&broker, ANHUI, "p", EPOCH).await;
    assert_eq!(last, 2 * BATCHES, "the producer");
    publish(&mut producer, last + 1..=last + 1).await;
    broker.signal();
    assert_eq!(broker.wait().0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_of_each_layout_that_there_was_opens_and_has_what_it_had() {
    let dir = TempDir::new().expect("a folder");
    BrokerProcess::start(dir.path()).kill();
    let newest = std::fs::read_to_string(dir.path().join("data/VERSION")).expect("a version");
    let newest: u32 = newest.trim().parse().expect("a number");
    for layout in 1..=newest {
        let archive = folder().join(format!("layout-{layout}.tar.gz"));
        let dir = TempDir::new().expect("a folder");
        if layout == newest && !archive.exists() && std::env::var_os("HUTONG_WRITE").is_some() {
            write(dir.path()).await;
            let path = dir.path().to_str().expect("plain");
            // What the database says about itself and this machine is no part of the layout.
            let without = ["--exclude=LOG", "--exclude=LOG.*", "--owner=0", "--group=0"];
            let what = ["-C", path, "data"];
            tar("-czf", &archive, &[&without[..], &what].concat());
            std::fs::remove_dir_all(dir.path().join("data")).expect("removed");
        }
        assert!(
            archive.exists(),
            "{} is not there: run this test with HUTONG_WRITE=1, before anything changes in layout {layout}",
            archive.display()
        );
        tar(
            "-xzf",
            &archive,
            &["-C", dir.path().to_str().expect("plain")],
        );
        has_what_it_had(dir.path()).await;
    }
}
