//! A log on a file system that breaks down: what was acknowledged is there when it was repaired.
//!
//! ext4 may tell a sync that it succeeded when its journal has just been given up (`broker/src/rocks/alive.rs`). Without
//! the broker's own look after each sync, one round in six to fifty loses the last acknowledged record.

use hutong_chaos::{drill::What, stage::disk::Disk, stage::machine::Machine};
use hutong_planted_broker::log::{
    Append, Log,
    embedded::{EmbeddedLog, EmbeddedOptions},
};
use hutong_proto::{Issuer, KindSet, Lane, Offset, Partition, Shard};
use std::{path::Path, sync::mpsc, thread};

const ROUNDS: usize = 40;
const DISK_BYTES: u64 = 256 << 20;
/// Acknowledged before anything breaks.
const BEFORE: usize = 20;

fn partition() -> Partition {
    Partition {
        issuer: Issuer::new(340_000).expect("a code"),
        lane: Lane::Urgent,
        shard: Shard(0),
    }
}

fn open(dir: &Path) -> EmbeddedLog {
    EmbeddedLog::open(&dir.join("log"), EmbeddedOptions::default()).expect("opens")
}

fn records(log: &EmbeddedLog) -> usize {
    let entries = log.read(partition(), Offset::FIRST, usize::MAX);
    entries.expect("reads").len()
}

/// Appends until the log takes nothing more, and says what was acknowledged.
fn append_until_it_fails(dir: &Path, under_way: &mpsc::Sender<()>) -> usize {
    let log = open(dir);
    let before = records(&log);
    for acknowledged in 0.. {
        let (told, outcome) = mpsc::channel();
        log.append(Append {
            partition: partition(),
            kinds: KindSet::ALL,
            deltas: 1,
            record: vec![acknowledged as u8; 3000].into(),
            done: Box::new(move |result| told.send(result).expect("awaited")),
        });
        if outcome.recv().expect("told").is_err() {
            return before + acknowledged;
        }
        if acknowledged == BEFORE {
            under_way.send(()).expect("awaited");
        }
    }
    unreachable!("it fails in the end")
}

#[tokio::test]
async fn what_was_acknowledged_before_a_file_system_broke_down_is_there_after_its_repair() {
    if let Err(why) = Machine::look().available(&What::ReadOnly) {
        eprintln!("not played: {why}");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let disk = Disk::make(dir.path(), DISK_BYTES).await.expect("a disk");
    for round in 0..ROUNDS {
        let (told, under_way) = mpsc::channel();
        let path = disk.path().to_owned();
        let writer = thread::spawn(move || append_until_it_fails(&path, &told));
        under_way.recv().expect("it appends");
        disk.break_down().await.expect("it breaks");
        let acknowledged = writer.join().expect("it ends");
        disk.unmount().await.expect("nobody uses it");
        disk.repair().await.expect("repaired");
        disk.mount().await.expect("mounted");
        let found = records(&open(disk.path()));
        assert!(
            found >= acknowledged,
            "round {round}: {acknowledged} records were acknowledged, {found} are there"
        );
    }
    disk.unmount().await.expect("nobody uses it");
}
