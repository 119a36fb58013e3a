//! Readers beside a log that holds up those of bulk until the test lets them go.

use super::*;
use crate::{
    access::Access,
    clock::Clock,
    control::ControlWriter,
    fanout::{Beside, Blocking, Snapshots, registry::Subscriptions},
    log::{
        Append, Entry, EntryHead, Log, LogError, Merged, PartitionInfo, Tail, faults::Faults,
        memory::MemoryLog,
    },
    metrics::Metrics,
    overload::{Overload, Policy},
    state::{State, StateOptions},
    tail::TailRings,
};
use bytes::Bytes;
use hutong_proto::{Issuer, KindSet, LogId, Micros, Shard};
use parking_lot::Condvar;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const PATIENCE: Duration = Duration::from_secs(20);

/// Who reads bulk waits before it.
#[derive(Debug, Default)]
struct Door {
    /// How many came, and whether it is open.
    state: Mutex<(usize, bool)>,
    opened: Condvar,
}

impl Door {
    fn pass(&self) {
        let mut state = self.state.lock();
        state.0 += 1;
        self.opened
            .wait_while_for(&mut state, |(_, open)| !*open, PATIENCE);
    }

    fn open(&self) {
        self.state.lock().1 = true;
        self.opened.notify_all();
    }

    fn came(&self) -> usize {
        self.state.lock().0
    }
}

#[derive(Debug)]
struct SlowLog {
    log: MemoryLog,
    door: Arc<Door>,
}

impl Log for SlowLog {
    fn id(&self) -> LogId {
        self.log.id()
    }

    fn append(&self, append: Append) {
        self.log.append(append);
    }

    fn read(
        &self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        self.log.read(partition, from, bytes_max)
    }

    fn read_merged(
        &self,
        partitions: &[Partition],
        from: Offset,
        below: Offset,
        bytes_max: usize,
    ) -> Result<Merged, ReadError> {
        if partitions.iter().any(|p| p.lane == Lane::Bulk) {
            self.door.pass();
        }
        self.log.read_merged(partitions, from, below, bytes_max)
    }

    fn head_at(&self, partition: Partition, from: Offset) -> Result<Option<EntryHead>, ReadError> {
        self.log.head_at(partition, from)
    }

    fn tail(&self, from: Offset) -> Result<Box<dyn Tail>, ReadError> {
        self.log.tail(from)
    }

    fn trim(&self, partition: Partition, before: Offset) -> Result<(), LogError> {
        self.log.trim(partition, before)
    }

    fn partitions(&self) -> Vec<PartitionInfo> {
        self.log.partitions()
    }

    fn partition(&self, partition: Partition) -> Option<PartitionInfo> {
        self.log.partition(partition)
    }

    fn next_offset(&self) -> Offset {
        self.log.next_offset()
    }

    fn poisoned(&self) -> Option<String> {
        self.log.poisoned()
    }

    fn close(&self) {
        self.log.close();
    }
}

fn platform(code: u32) -> Issuer {
    Issuer::new(code).expect("a code")
}

/// A log with one record a lane, and a subscriber that is behind the rings in both.
struct Bench {
    fanout: Fanout,
    filter: Arc<FilterSpec>,
    door: Arc<Door>,
    reads: JoinSet<Result<(Vec<TailEntry>, Offset), Refusal>>,
    _dir: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::open(dir.path(), StateOptions::default()).expect("opens");
        let state = Arc::new(state);
        let clock: Clock = Arc::new(|| Micros(1));
        let door = Arc::new(Door::default());
        let log: Arc<dyn Log> = Arc::new(SlowLog {
            log: MemoryLog::new(LogId(7), Arc::clone(&clock), Faults::default()),
            door: Arc::clone(&door),
        });
        for lane in Lane::DELIVERED {
            log.append(Append {
                partition: Partition {
                    issuer: platform(340_000),
                    lane,
                    shard: Shard(0),
                },
                kinds: KindSet::ALL,
                deltas: 1,
                record: Bytes::from_static(b"record"),
                done: Box::new(|result| assert!(result.is_ok())),
            });
        }
        let codes = [310_000, 340_000, 510_000].map(platform);
        let platforms: Arc<Vec<(Issuer, u32)>> = Arc::new(codes.map(|code| (code, 1)).to_vec());
        let filter = FilterSpec::from_api(None, platform(510_000), &platforms).expect("everything");
        let subscriptions = Subscriptions::load(&state, log.id(), &platforms).expect("loads");
        let overload = Overload::new(Policy {
            give_way: Vec::new(),
            delay: Duration::from_secs(1),
            floor_bytes_per_s: crate::overload::FLOOR_BYTES_PER_S,
        });
        let fanout = Fanout {
            access: Access::trial(codes),
            log_id: log.id(),
            control: ControlWriter::new(Arc::clone(&log)),
            rings: Arc::new(TailRings::new(log.next_offset(), 1 << 20, 1 << 20)),
            log,
            state,
            subscriptions: Arc::new(subscriptions),
            platforms,
            metrics: Arc::new(Metrics::new(codes)),
            clock,
            snapshots: Arc::new(Snapshots::new(1, codes)),
            stall: PATIENCE,
            overload: Arc::new(overload),
            log_readers: Arc::default(),
            blocking: Blocking::default(),
            beside: Beside::default(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
        };
        Bench {
            fanout,
            filter: Arc::new(filter),
            door,
            reads: JoinSet::new(),
            _dir: dir,
        }
    }

    fn read(&mut self, lane: Lane) {
        let (fanout, filter) = (self.fanout.clone(), Arc::clone(&self.filter));
        self.reads.spawn(async move {
            super::read(&fanout, &filter, lane, Offset::FIRST, usize::MAX).await
        });
    }

    /// What the next read that ends has got: the lane of its only record.
    async fn ended(&mut self) -> Lane {
        let ended = tokio::time::timeout(PATIENCE, self.reads.join_next()).await;
        let ended = ended.expect("a read goes on").expect("one is under way");
        let (entries, next) = ended.expect("no panic").expect("no refusal");
        assert_eq!((entries.len(), next), (1, self.fanout.rings.next()));
        entries[0].head.partition.lane
    }

    async fn all_readers_of_bulk_are_at_work(&self) {
        let came = async {
            while self.door.came() < READERS_MAX[Lane::Bulk.index()] {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, came)
            .await
            .expect("they read");
    }
}

/// The runtime's end would wait for those who stand at the door.
impl Drop for Bench {
    fn drop(&mut self) {
        self.door.open();
    }
}

#[tokio::test]
async fn urgent_is_read_while_all_readers_of_bulk_are_at_work_and_more_wait() {
    let mut bench = Bench::new();
    let bulk = READERS_MAX[Lane::Bulk.index()] + 2;
    for _ in 0..bulk {
        bench.read(Lane::Bulk);
    }
    bench.all_readers_of_bulk_are_at_work().await;
    bench.read(Lane::Urgent);
    let first = tokio::time::timeout(PATIENCE / 2, bench.ended()).await;
    assert_eq!(first, Ok(Lane::Urgent));
    bench.door.open();
    for _ in 0..bulk {
        assert_eq!(bench.ended().await, Lane::Bulk);
    }
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_any_more_has_its_place_until_it_ends() {
    let mut bench = Bench::new();
    for _ in 0..READERS_MAX[Lane::Bulk.index()] {
        bench.read(Lane::Bulk);
    }
    bench.all_readers_of_bulk_are_at_work().await;
    bench.reads.shutdown().await;
    let places = &bench.fanout.log_readers.places[Lane::Bulk.index()];
    assert_eq!(places.free(), 0, "its chunk is in memory");
    bench.read(Lane::Bulk);
    bench.door.open();
    assert_eq!(bench.ended().await, Lane::Bulk);
}
