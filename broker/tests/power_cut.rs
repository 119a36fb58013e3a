//! Power goes away under load, and nothing acknowledged is lost. The broker's data is on a disk of its
//! own, an ext4 image, that is shut down in the middle of writing: what was synced stays, what was
//! only written is gone. A killed process proves nothing of the kind, because the page cache outlives
//! it. Needs root, for the mount.

mod support;

use hutong_broker::log::{
    Append, Log, ReadError,
    embedded::{EmbeddedLog, EmbeddedOptions},
};
use hutong_proto::{
    Cursor, EntityId, KindSet, Lane, Offset, Partition, Shard, Value,
    api::{self, publish_request, subscribe_open::Start},
    delta::{Colour, TestOutcome},
};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use support::{
    ANHUI, Consumer, Producer, SHANGHAI, SICHUAN, batch, delta, entity, open,
    process::{BrokerProcess, command, configuration},
};
use tempfile::TempDir;
use tokio::sync::{Mutex, watch};

/// `HUTONG_TEST_POWER_CUTS` makes it more.
const CUTS: u64 = 20;
/// Half of them have codes, which are urgent, and half test results, which are bulk: most batches have
/// both, and fall into four partitions.
const PEOPLE: u64 = 4000;
const SHARDS: u32 = 2;
const DELTAS: u64 = 32;
const IN_FLIGHT: u64 = 16;
/// Room for everything that is delivered, so that the check need not grant credit.
const CREDIT: u64 = 64 << 20;
/// What a library does that answers every sync at once and syncs nothing.
const NO_SYNC: &str = "libeatmydata.so";

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A disk whose power can be cut.
struct Disk {
    dir: TempDir,
    mounted: bool,
}

impl Disk {
    fn new() -> Disk {
        let dir = TempDir::new().expect("temp dir");
        let disk = Disk {
            dir,
            mounted: false,
        };
        let image = std::fs::File::create(disk.image()).expect("create");
        image.set_len(2 << 30).expect("a sparse file");
        run("mkfs.ext4", &["-q", "-F", text(&disk.image())]);
        std::fs::create_dir(disk.mount_point()).expect("create");
        disk
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// With a journal that is written every five minutes and not, as usual, every five seconds: what
    /// nobody synced does not reach the disk by chance.
    fn mount(&mut self) {
        let (image, point) = (self.image(), self.mount_point());
        run(
            "mount",
            &["-o", "loop,commit=300", text(&image), text(&point)],
        );
        self.mounted = true;
    }

    /// From here on nothing reaches the disk, the journal included. Calls `now` at the last moment.
    fn cut(&self, now: impl FnOnce()) {
        // FS_IOC_SHUTDOWN with "no flush of the journal". It stands ready first, so that hardly any
        // time lies between `now` and the cut.
        const SHUTDOWN: &str = "import fcntl, os, struct, sys\n\
            disk = os.open(sys.argv[1], os.O_RDONLY)\n\
            print('ready', flush=True)\n\
            sys.stdin.readline()\n\
            fcntl.ioctl(disk, 0x8004587d, struct.pack('I', 2))";
        let mut python = Command::new("python3")
            .args(["-c", SHUTDOWN, text(&self.mount_point())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut ready = String::new();
        let stdout = python.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut ready).expect("UTF-8");
        assert_eq!(ready, "ready\n");
        let mut stdin = python.stdin.take().expect("piped");
        now();
        stdin.write_all(b"\n").expect("it waits for this");
        assert!(python.wait().expect("wait").success(), "the disk is cut");
    }

    fn unmount(&mut self) {
        run("umount", &[text(&self.mount_point())]);
        self.mounted = false;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // After a failure something may still use it.
            drop(
                Command::new("umount")
                    .arg("-l")
                    .arg(self.mount_point())
                    .status(),
            );
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn start_broker(disk: &Disk, preload: Option<&str>) -> Result<BrokerProcess, String> {
    let data = disk.mount_point().join("data");
    let config = configuration(disk.dir.path(), &data, "127.0.0.1:0");
    let text = std::fs::read_to_string(&config).expect("written before");
    let text = text.replace(
        "[[platforms]]\n",
        &format!("[[platforms]]\nshards = {SHARDS}\n"),
    );
    std::fs::write(&config, text).expect("write");
    let mut command = command(&config);
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library);
    }
    BrokerProcess::spawn(disk.dir.path(), &mut command)
}

/// What one platform sent and was promised.
#[derive(Default)]
struct Promises {
    /// Highest sequence number that was acknowledged.
    sequence: u64,
    /// Of each person, the highest revision sent and the highest acknowledged.
    sent: BTreeMap<u64, u64>,
    acknowledged: BTreeMap<u64, u64>,
    /// Every revision acknowledged, by partition. Revisions count up over all people of a platform.
    revisions: BTreeMap<(Lane, Shard), Vec<u64>>,
    last_revision: u64,
    /// Sent and not acknowledged: (person, revision) of each batch.
    unsettled: BTreeMap<u64, Content>,
    /// Batches of which a part was there when they came again.
    halves: u64,
}

type Content = Vec<(u64, u64)>;

fn partition_of(person: u64) -> (Lane, Shard) {
    let lane = match person < PEOPLE / 2 {
        true => Lane::Urgent,
        false => Lane::Bulk,
    };
    (lane, entity(person).shard(SHARDS))
}

impl Promises {
    fn keep(&mut self, sequence: u64, content: Content) {
        self.sequence = sequence;
        for (person, revision) in content {
            self.acknowledged.insert(person, revision);
            let partition = self.revisions.entry(partition_of(person));
            partition.or_default().push(revision);
        }
    }

    /// The batch is formed when it is sent; what is not settled is formed again.
    fn batch(&mut self, code: u32, sequence: u64) -> api::PublishBatch {
        if !self.unsettled.contains_key(&sequence) {
            let mut content = Vec::new();
            for _ in 0..DELTAS {
                self.last_revision += 1;
                let revision = self.last_revision;
                let person = random(revision ^ u64::from(code)) % PEOPLE;
                self.sent.insert(person, revision);
                content.push((person, revision));
            }
            self.unsettled.insert(sequence, content);
        }
        let deltas: Vec<_> = self.unsettled[&sequence]
            .iter()
            .map(|(person, revision)| {
                let value = match partition_of(*person).0 {
                    Lane::Urgent => Value::HealthCode(Colour::Green),
                    _ => Value::TestResult {
                        outcome: TestOutcome::Negative,
                        sampled_at: support::now(),
                    },
                };
                delta(*person, *revision, value)
            })
            .collect();
        batch(code, sequence, &deltas)
    }
}

type Books = BTreeMap<u32, Arc<Mutex<Promises>>>;

fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Publishes until the broker is gone; counts acks. With the epoch of the round before it is a process that
/// lived on and sends again what was not settled; with a new one it has forgotten that.
async fn load(
    broker: &BrokerProcess,
    code: u32,
    epoch: u64,
    new_epoch: bool,
    book: Arc<Mutex<Promises>>,
    acks: watch::Sender<u64>,
    dark: Arc<AtomicBool>,
) -> Result<impl Future<Output = ()> + use<>, String> {
    let (mut producer, durable) = Producer::open(broker, code, "load", epoch).await;
    {
        let mut book = book.lock().await;
        let promised = book.sequence;
        if durable < promised {
            return Err(format!(
                "{code}: batch {promised} was acknowledged, but the broker has only {durable}"
            ));
        }
        // What the broker calls durable is as good as acknowledged.
        let rest = book.unsettled.split_off(&(durable + 1));
        for (sequence, content) in std::mem::replace(&mut book.unsettled, rest) {
            book.keep(sequence, content);
        }
        if new_epoch {
            book.unsettled.clear();
        }
    }
    Ok(async move {
        let mut next = durable + 1;
        let mut settled = durable;
        loop {
            while next - settled <= IN_FLIGHT {
                let batch = book.lock().await.batch(code, next);
                producer.send(publish_request::Message::Batch(batch)).await;
                next += 1;
            }
            let Ok(ack) = producer.ack().await else {
                return;
            };
            // With real power loss no ack comes after it. Here a sync that is under way while the
            // kernel shuts the file system down may still report success without its data; without
            // this line about one cut in ten shows that. What was acknowledged before must be there.
            if dark.load(Ordering::Acquire) {
                return;
            }
            assert!(ack.refused.is_empty() && ack.error.is_none(), "{ack:?}");
            settled = ack.sequence;
            let mut book = book.lock().await;
            book.halves += u64::from(ack.duplicate && ack.accepted > 0);
            let content = book.unsettled.remove(&settled).expect("one that waits");
            book.keep(settled, content);
            acks.send_modify(|n| *n += 1);
        }
    })
}

/// Every acknowledged register is there, with the acknowledged revision or one sent after it.
async fn check_registers(broker: &BrokerProcess, books: &Books) -> Result<Cursor, String> {
    let mut request = open(
        "check",
        Start::Snapshot(hutong_proto::api::StartSnapshot {}),
    );
    request.credit_bytes = CREDIT;
    let mut consumer = Consumer::open(broker, SICHUAN, request).await;
    let (rows, cursor) = consumer.snapshot().await;
    let rows: BTreeMap<_, _> = rows.into_iter().map(|(i, e, r)| ((i, e), r)).collect();
    for (code, book) in books {
        let book = book.lock().await;
        for (person, promised) in &book.acknowledged {
            let kept = rows.get(&(*code, entity(*person))).copied().unwrap_or(0);
            let sent = book.sent[person];
            if kept < *promised || kept > sent {
                return Err(format!(
                    "{code}: person {person} has revision {kept}; {promised} was acknowledged \
                     and {sent} sent"
                ));
            }
        }
    }
    Ok(cursor)
}

/// The log has every acknowledged delta once, in order.
async fn check_log(broker: &BrokerProcess, books: &Books, end: Cursor) -> Result<u64, String> {
    let start = Cursor {
        urgent: Offset(1),
        bulk: Offset(1),
        ..end
    };
    let mut request = open("check", Start::Cursor(start.to_api()));
    request.credit_bytes = CREDIT;
    let mut consumer = Consumer::open(broker, SICHUAN, request).await;
    let deltas = consumer.until(Offset(end.urgent.0 - 1)).await;
    let person = |of: EntityId| {
        let number = of.0[8..].try_into().expect("8 bytes");
        u64::from_be_bytes(number)
    };
    let mut checked = 0;
    for (code, book) in books {
        let book = book.lock().await;
        for (partition, revisions) in &book.revisions {
            let mut logged = deltas
                .iter()
                .filter(|d| d.1 == *code && partition_of(person(d.2)) == *partition)
                .map(|d| d.3);
            let mut last = 0;
            for promised in revisions {
                let found = logged.find(|revision| {
                    let in_order = *revision > last;
                    last = *revision;
                    !in_order || revision >= promised
                });
                if found != Some(*promised) {
                    return Err(format!(
                        "{code}: revision {promised} was acknowledged, the log of {partition:?} has {found:?}"
                    ));
                }
                checked += 1;
            }
        }
    }
    Ok(checked)
}

/// Cuts the power this often; what was acknowledged, or what was lost of it.
async fn cuts(count: u64, preload: Option<&str>) -> Result<u64, String> {
    let mut disk = Disk::new();
    let codes = [ANHUI, SHANGHAI];
    let books: Books = codes.map(|code| (code, Arc::default())).into();
    for round in 1..=count {
        disk.mount();
        let broker = start_broker(&disk, preload)?;
        check_registers(&broker, &books).await?;
        let (acks, mut seen) = watch::channel(0);
        let dark = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for (code, book) in &books {
            let load = load(
                &broker,
                *code,
                round.div_ceil(2),
                round % 2 == 1,
                Arc::clone(book),
                acks.clone(),
                Arc::clone(&dark),
            )
            .await?;
            tasks.push(tokio::spawn(load));
        }
        let enough = 20 + random(round) % 300;
        let enough = tokio::time::timeout(support::PATIENCE, seen.wait_for(|n| *n >= enough));
        enough.await.expect("acks in time").expect("the load runs");
        disk.cut(|| dark.store(true, Ordering::Release));
        broker.kill();
        for task in tasks {
            task.await.map_err(|error| error.to_string())?;
        }
        disk.unmount();
    }
    disk.mount();
    let broker = start_broker(&disk, preload)?;
    let end = check_registers(&broker, &books).await?;
    let checked = check_log(&broker, &books, end).await;
    for (code, book) in &books {
        let halves = book.lock().await.halves;
        println!("{code}: {halves} batches were there in part when they came again");
    }
    broker.kill();
    disk.unmount();
    checked
}

#[tokio::test(flavor = "multi_thread")]
async fn power_is_cut_and_nothing_acknowledged_is_lost() {
    let count = std::env::var("HUTONG_TEST_POWER_CUTS").map_or(CUTS, |n| {
        n.parse().expect("HUTONG_TEST_POWER_CUTS: a number")
    });
    let checked = cuts(count, None).await.expect("nothing lost");
    println!("{count} cuts, {checked} acknowledged deltas, all there");
    assert!(checked >= count * 20 * DELTAS);
}

/// The check can fail: with syncs that do nothing, it finds the loss at once.
#[tokio::test(flavor = "multi_thread")]
async fn without_sync_a_cut_loses_what_was_acknowledged_and_the_check_says_so() {
    let lost = cuts(3, Some(NO_SYNC)).await;
    let lost = lost.expect_err("syncs were left out, but nothing was lost");
    println!("found: {lost}");
    assert!(lost.contains("acknowledged"), "{lost}");
}

/// Its disk goes, the process lives: it must not go on as if nothing had happened.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_disk_fails_stops_by_itself_with_exit_code_3() {
    let mut disk = Disk::new();
    disk.mount();
    let broker = start_broker(&disk, None).expect("it starts");
    let (acks, mut seen) = watch::channel(0);
    let dark = Arc::new(AtomicBool::new(false));
    let load = load(&broker, ANHUI, 1, true, Arc::default(), acks, dark).await;
    let load = tokio::spawn(load.expect("nothing is promised yet"));
    let some = tokio::time::timeout(support::PATIENCE, seen.wait_for(|n| *n > 0));
    some.await.expect("acks in time").expect("the load runs");
    disk.cut(|| {});
    load.await.expect("it ends when the broker does");
    let (code, log) = broker.wait();
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("can no longer keep its promises"), "{log}");
}

/// Old records go as whole files. A reader that comes for them must be told, also when the power goes
/// right after: the mark is on disk before the files go.
#[test]
fn what_was_trimmed_is_known_after_a_power_cut() {
    let mut disk = Disk::new();
    disk.mount();
    let dir = disk.mount_point().join("log");
    let open = || EmbeddedLog::open(&dir, EmbeddedOptions::default()).expect("the log opens");
    let partition = Partition {
        issuer: support::issuer(ANHUI),
        lane: Lane::Urgent,
        shard: Shard(0),
    };
    let mut log = open();
    let mut number = 0u64;
    // Each opening makes a file of what was appended before it; some of them are merged into one that
    // can go as a whole.
    for _ in 0..8 {
        for _ in 0..16 {
            number += 1;
            let bytes = (0..4096).flat_map(|i| random(number << 20 | i).to_le_bytes());
            let (told, outcome) = std::sync::mpsc::channel();
            log.append(Append {
                partition,
                kinds: KindSet::ALL,
                deltas: 1,
                record: bytes.collect(),
                done: Box::new(move |result| told.send(result).expect("the test waits")),
            });
            outcome.recv().expect("told").expect("durable");
        }
        drop(log);
        log = open();
    }
    let begun = Instant::now();
    // Two families of columns, and with four files each one begins to merge.
    while log.store().level_files[0] > 6 {
        assert!(begun.elapsed() < support::PATIENCE, "{:?}", log.store());
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = log.store().disk_bytes;
    log.trim(partition, Offset(number)).expect("trimmed");
    let after = log.store().disk_bytes;
    assert!(after < before, "no file went: {before} and {after} bytes");
    disk.cut(|| {});
    drop(log);
    disk.unmount();

    disk.mount();
    let log = open();
    match log.read(partition, Offset::FIRST, 1) {
        Err(ReadError::Trimmed { trimmed_below, .. }) => assert_eq!(trimmed_below, Offset(number)),
        other => panic!("records are gone and nobody is told: {other:?}"),
    }
    drop(log);
    disk.unmount();
}
