//! Backup while the broker runs and takes batches, and a new broker made from it whose subscribers resume.

mod support;

use hutong_proto::{Cursor, Offset, Value, api, api::subscribe_open::Start, delta::Colour};
use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output},
};
use support::{
    ANHUI, Consumer, Listening, Producer, SICHUAN, batch, delta, entity, open,
    process::{BrokerProcess, configuration},
};
use tempfile::TempDir;

fn broker(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hutong-broker"))
        .args(args)
        .output()
        .expect("the binary starts")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn backup(config: &Path, into: &Path, address: &str) -> Output {
    let args = [
        "backup",
        path(config),
        "--into",
        path(into),
        "--address",
        address,
    ];
    broker(&args)
}

fn restore(config: &Path, from: &Path) -> Output {
    broker(&["restore", path(config), "--from", path(from)])
}

/// A configuration in a folder of its own, for data that is not there yet.
fn elsewhere(dir: &Path, name: &str) -> std::path::PathBuf {
    let folder = dir.join(name);
    std::fs::create_dir(&folder).expect("a folder");
    configuration(&folder, &folder.join("data"), "127.0.0.1:0")
}

type Admin = api::admin_service_client::AdminServiceClient<tonic::transport::Channel>;

/// Offset of the newest record in which the broker keeps cursors.
async fn newest_control(admin: &mut Admin) -> u64 {
    let ask = support::with_identity(api::ListPartitionsRequest {}, "auditor/a");
    let all = admin.list_partitions(ask).await.expect("an answer");
    let all = all.into_inner().partitions;
    let control = all.iter().filter(|p| p.issuer == 0).map(|p| p.last_offset);
    control.max().unwrap_or(0)
}

/// Returns when the cursor of `stored` is in the log: the other one's is written with it, or after it.
async fn until_kept(broker: &impl Listening, own: &mut Consumer, cursor: Cursor) {
    let mut admin = Admin::new(support::channel(broker).await);
    let kept = async {
        loop {
            let ask = support::with_identity(
                api::ListSubscriptionsRequest { platform: SICHUAN },
                "auditor/a",
            );
            let all = admin
                .list_subscriptions(ask)
                .await
                .expect("an answer")
                .into_inner();
            let stored = all
                .subscriptions
                .iter()
                .find(|s| s.subscription == "stored");
            if stored
                .and_then(|s| s.applied)
                .is_some_and(|c| c.urgent >= cursor.urgent.0)
            {
                break;
            }
        }
        let before = newest_control(&mut admin).await;
        own.deltas(50).await;
        own.applied(cursor).await;
        while newest_control(&mut admin).await <= before {
            tokio::task::yield_now().await;
        }
    };
    let kept = tokio::time::timeout(support::PATIENCE, kept).await;
    kept.expect("cursors are kept every second");
}

const YELLOW: Value = Value::HealthCode(Colour::Yellow);

/// One new entity a batch, from this number on, until told to stop; returns the number after the last one that was
/// acknowledged.
async fn publish(
    producer: &mut Producer,
    from: u64,
    stop: &mut tokio::sync::watch::Receiver<bool>,
) -> u64 {
    let mut n = from;
    while !*stop.borrow_and_update() {
        let batch = batch(ANHUI, n, &[delta(n, 1, YELLOW)]);
        producer.publish(batch).await.expect("acknowledged");
        n += 1;
    }
    n
}

/// All that a new subscriber gets: revision by entity.
async fn snapshot(broker: &impl Listening, name: &str) -> (BTreeMap<[u8; 16], u64>, Cursor) {
    let start = Start::Snapshot(api::StartSnapshot {});
    let mut consumer = Consumer::open(broker, SICHUAN, open(name, start)).await;
    let (rows, cursor) = consumer.snapshot().await;
    (rows.into_iter().map(|(_, e, r)| (e.0, r)).collect(), cursor)
}

#[test]
fn a_broker_with_another_data_folder_is_not_backed_up_for_this_one() {
    let (ours, theirs) = (
        TempDir::new().expect("a folder"),
        TempDir::new().expect("a folder"),
    );
    let here = BrokerProcess::start(ours.path());
    let there = BrokerProcess::start(theirs.path());
    let config = ours.path().join("broker.toml");
    let into = ours.path().join("backup");
    let made = backup(&config, &into, &format!("http://{}", there.grpc()));
    assert!(!made.status.success(), "{made:?}");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(said.contains("has another data folder"), "{said}");
    let made = backup(&config, &into, &format!("http://{}", here.grpc()));
    assert!(made.status.success(), "{made:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_restores_into_a_broker_whose_subscribers_resume() {
    let dir = TempDir::new().expect("a folder");
    let first = BrokerProcess::start(dir.path());
    let address = format!("http://{}", first.grpc());
    // One that says what it applied, and one that keeps its own cursor and is ahead of the backup in the end.
    let now = || Start::Now(api::StartNow {});
    let mut stored = Consumer::open(&first, SICHUAN, open("stored", now())).await;
    let mut own = Consumer::open(&first, SICHUAN, open("own", now())).await;
    let (mut producer, _) = Producer::open(&first, ANHUI, "p", 1).await;
    for n in 1..=50 {
        let batch = batch(ANHUI, n, &[delta(n, 1, YELLOW)]);
        producer.publish(batch).await.expect("acknowledged");
    }
    let seen = stored.deltas(50).await;
    let applied = seen.last().expect("50").0.next();
    let log_id = snapshot(&first, "probe").await.1.log_id;
    let cursor = Cursor::both(log_id, applied);
    stored.applied(cursor).await;
    until_kept(&first, &mut own, cursor).await;

    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let load = tokio::spawn(async move {
        let end = publish(&mut producer, 51, &mut stopped).await;
        (producer, end)
    });
    // So that the first backup has something newer than what is flushed, in a write-ahead log that grows.
    // A message may bring several.
    let got = 50 + own.deltas(10).await.len();
    let (config, saved) = (dir.path().join("broker.toml"), dir.path().join("saved"));
    let made = {
        let (config, saved) = (config.clone(), saved.clone());
        tokio::task::spawn_blocking(move || backup(&config, &saved, &address))
    };
    let made = made.await.expect("no panic");
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(made.status.success(), "{made:?}");
    assert!(said.contains("while the broker ran"), "{said}");
    assert!(
        !dir.path().join("data/checkpoint").exists(),
        "it is carried away"
    );
    stop.send(true).expect("the load runs");
    let (_, end) = load.await.expect("no panic");
    own.deltas((end as usize - 1).saturating_sub(got)).await;
    let ahead = snapshot(&first, "probe").await.1;
    first.kill();

    let config = elsewhere(dir.path(), "new");
    let restored = restore(&config, &saved);
    assert!(restored.status.success(), "{restored:?}");
    let second = BrokerProcess::start(config.parent().expect("a folder"));
    let (rows, cursor) = snapshot(&second, "probe").await;
    assert_eq!(cursor.log_id, log_id, "the log is the same");
    assert!(
        cursor.urgent > ahead.urgent,
        "it goes on beyond its first life"
    );
    for n in 1..=50 {
        assert_eq!(
            rows.get(&entity(n).0),
            Some(&1),
            "acknowledged before the backup: {n}"
        );
    }
    // A prefix: what is there has no hole.
    let there = (1..end)
        .take_while(|n| rows.contains_key(&entity(*n).0))
        .count();
    assert_eq!(there, rows.len());

    // The one with a cursor at the broker gets exactly what it had not applied.
    let mut stored = Consumer::open(
        &second,
        SICHUAN,
        open("stored", Start::Stored(api::StartStored {})),
    )
    .await;
    let missed: Vec<_> = stored
        .deltas(there - 50)
        .await
        .iter()
        .map(|d| d.2)
        .collect();
    let expected: Vec<_> = (51..=there as u64).map(entity).collect();
    assert_eq!(missed, expected);
    // The one that is ahead of the backup gets what is new, and that it gets.
    let mut own =
        Consumer::open(&second, SICHUAN, open("own", Start::Cursor(ahead.to_api()))).await;
    let (mut producer, durable) = Producer::open(&second, ANHUI, "p", 2).await;
    let batch = batch(ANHUI, durable + 1, &[delta(1, 2, YELLOW)]);
    producer.publish(batch).await.expect("acknowledged");
    for consumer in [&mut own, &mut stored] {
        let new = consumer.deltas(1).await;
        assert_eq!((new[0].2, new[0].3), (entity(1), 2));
        assert!(new[0].0 > ahead.urgent, "no offset is given twice");
    }
    drop(second);
}

#[test]
fn a_broker_that_does_not_run_is_backed_up_and_what_is_damaged_is_not_restored() {
    let dir = TempDir::new().expect("a folder");
    BrokerProcess::start(dir.path()).kill();
    let config = dir.path().join("broker.toml");
    let saved = dir.path().join("saved");
    let made = broker(&["backup", path(&config), "--into", path(&saved)]);
    assert!(made.status.success(), "{made:?}");
    let again = broker(&["backup", path(&config), "--into", path(&saved)]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("is not empty"),
        "{again:?}"
    );
    // On the disk that it is to replace.
    let inside = dir.path().join("data/backups/today");
    let refused = broker(&["backup", path(&config), "--into", path(&inside)]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("is inside the data folder"), "{said}");
    assert!(!dir.path().join("data/backups").exists());

    // Into the folder of data that is there.
    let over = restore(&config, &saved);
    assert!(
        String::from_utf8_lossy(&over.stderr).contains("is not empty"),
        "{over:?}"
    );

    let current = saved.join("data/log/CURRENT");
    let good = std::fs::read(&current).expect("a file");
    let mut bad = good.clone();
    bad[3] ^= 1;
    std::fs::write(&current, &bad).expect("written");
    let refused = restore(&elsewhere(dir.path(), "damaged"), &saved);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("log/CURRENT is damaged"), "{said}");
    // And a broker does not take what came of it.
    let log = BrokerProcess::spawn(
        &dir.path().join("damaged"),
        &mut support::process::command(&dir.path().join("damaged/broker.toml")),
    );
    assert!(log.err().expect("refused").contains("is not empty"));

    std::fs::write(&current, &good).expect("written");
    std::fs::rename(saved.join("MANIFEST"), saved.join("MANIFEST.gone")).expect("renamed");
    let refused = restore(&elsewhere(dir.path(), "unfinished"), &saved);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("is no backup"), "{said}");
    std::fs::rename(saved.join("MANIFEST.gone"), saved.join("MANIFEST")).expect("renamed");
    let config = elsewhere(dir.path(), "whole");
    let restored = restore(&config, &saved);
    assert!(restored.status.success(), "{restored:?}");
    let broker = BrokerProcess::start(config.parent().expect("a folder"));
    assert!(broker.get("/readyz").starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_one_after_the_other_under_retention_all_belong_together() {
    let dir = TempDir::new().expect("a folder");
    let first = BrokerProcess::start(dir.path());
    let address = format!("http://{}", first.grpc());
    let (mut producer, _) = Producer::open(&first, ANHUI, "p", 1).await;
    let mut next = 1;
    for round in 0..3 {
        for _ in 0..30 {
            let batch = batch(ANHUI, next, &[delta(next, 1, YELLOW)]);
            producer.publish(batch).await.expect("acknowledged");
            next += 1;
        }
        let saved = dir.path().join(format!("saved-{round}"));
        let config = dir.path().join("broker.toml");
        let made = backup(&config, &saved, &address);
        assert!(made.status.success(), "{made:?}");
        let config = elsewhere(dir.path(), &format!("new-{round}"));
        let restored = restore(&config, &saved);
        assert!(restored.status.success(), "{restored:?}");
        let second = BrokerProcess::start(config.parent().expect("a folder"));
        let (rows, cursor) = snapshot(&second, "probe").await;
        assert_eq!(rows.len() as u64, next - 1);
        assert!(cursor.urgent > Offset(1 << 40));
    }
}
