//! The log in memory behind a disk that takes its time: what is appended is written, then synced, and
//! only then there; a crash loses what is not synced, or keeps a beginning of it.

use crate::{random::Random, sim::world::World};
use hutong_planted_broker::log::{
    Append, AppendError, Entry, EntryHead, Log, LogError, Merged, PartitionInfo, ReadError, Tail,
    memory::MemoryLog,
};
use hutong_proto::{Lane, LogId, Offset, Partition};
use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::sync::Notify;

/// Bulk in one group.
const GROUP_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, Default)]
struct Queue {
    urgent: VecDeque<Append>,
    bulk: VecDeque<Append>,
    /// Written, not synced.
    writing: Vec<Append>,
    /// Bytes of each lane that are queued or written.
    bytes: [usize; 2],
    largest: usize,
    poison: Option<String>,
}

/// What a broker appends to; the memory log behind it outlives the broker.
#[derive(Debug)]
pub struct SimLog {
    disk: Arc<MemoryLog>,
    queue: Mutex<Queue>,
    queued: Notify,
    /// Told after each commit.
    pub committed: Arc<Notify>,
    world: World,
    /// Of one lane; a record larger than all of it goes alone.
    queue_bytes_max: usize,
}

/// Cursors that the broker keeps take no room in the queue: they are few and small.
const CONTROL_BYTES_MAX: usize = 1 << 10;

impl SimLog {
    pub fn new(disk: Arc<MemoryLog>, world: World, queue_bytes_max: usize) -> SimLog {
        SimLog {
            disk,
            world,
            queue_bytes_max,
            queue: Mutex::default(),
            queued: Notify::new(),
            committed: Arc::default(),
        }
    }

    /// Commits groups until the broker dies or a sync fails.
    pub async fn write(self: Arc<Self>, world: World, mut random: Random) {
        loop {
            if !self.take_group() {
                self.queued.notified().await;
                continue;
            }
            let took = world.sync_ms(&mut random);
            tokio::time::sleep(Duration::from_millis(took)).await;
            if world.sync_fails(&mut random) {
                world.trace(|| "log sync fails".to_owned());
                self.fail();
                world.broker_failed();
                return;
            }
            let group = std::mem::take(&mut self.queue.lock().writing);
            let count = group.len();
            for append in group {
                self.queue.lock().bytes[append.partition.lane.index()] -= append.record.len();
                self.disk.append(append);
            }
            world.trace(|| format!("log commit {count} next {}", self.disk.next_offset()));
            self.committed.notify_one();
        }
    }

    /// All urgent, then bulk as far as there is room, as the real writer does.
    fn take_group(&self) -> bool {
        let mut queue = self.queue.lock();
        let queue = &mut *queue;
        let mut bytes = 0;
        for lane in [&mut queue.urgent, &mut queue.bulk] {
            while bytes < GROUP_BYTES_MAX
                && let Some(append) = lane.pop_front()
            {
                bytes += append.record.len();
                queue.writing.push(append);
            }
        }
        !queue.writing.is_empty()
    }

    /// Nobody knows whether what was written is there.
    fn fail(&self) {
        let mut queue = self.queue.lock();
        queue.poison = Some("a sync failed".to_owned());
        let writing: Vec<Append> = queue
            .writing
            .iter_mut()
            .map(|append| Append {
                done: std::mem::replace(&mut append.done, Box::new(|_| {})),
                record: append.record.clone(),
                ..*append
            })
            .collect();
        let waiting: Vec<Append> = queue.urgent.drain(..).collect();
        let bulk: Vec<Append> = queue.bulk.drain(..).collect();
        drop(queue);
        for append in writing {
            (append.done)(Err(AppendError::Indefinite));
        }
        for append in waiting.into_iter().chain(bulk) {
            (append.done)(Err(AppendError::Poisoned));
        }
    }

    /// The broker is gone: of what was not synced a beginning may be there.
    pub fn power_cut(&self, random: &mut Random) -> usize {
        let mut queue = self.queue.lock();
        queue.poison = Some("the process is gone".to_owned());
        queue.urgent.clear();
        queue.bulk.clear();
        let writing = std::mem::take(&mut queue.writing);
        drop(queue);
        let kept = random.between(0, writing.len() as u64) as usize;
        for append in writing.into_iter().take(kept) {
            // Who waited for it is gone as well.
            self.disk.append(Append {
                done: Box::new(|_| {}),
                ..append
            });
        }
        kept
    }

    /// What is between ingress and log has a bound.
    fn check_bound(&self, queue: &Queue) {
        let max = self.queue_bytes_max.max(queue.largest) + CONTROL_BYTES_MAX;
        if queue.bytes.iter().any(|bytes| *bytes > max) {
            let what = format!("{:?} bytes are queued, at most {max} may be", queue.bytes);
            self.world.violated("INV-9", what);
        }
    }
}

impl Log for SimLog {
    fn id(&self) -> LogId {
        self.disk.id()
    }

    fn append(&self, append: Append) {
        let mut queue = self.queue.lock();
        if queue.poison.is_some() {
            drop(queue);
            return (append.done)(Err(AppendError::Poisoned));
        }
        queue.bytes[append.partition.lane.index()] += append.record.len();
        queue.largest = queue.largest.max(append.record.len());
        self.check_bound(&queue);
        match append.partition.lane {
            Lane::Urgent | Lane::Control => queue.urgent.push_back(append),
            Lane::Bulk => queue.bulk.push_back(append),
        }
        drop(queue);
        self.queued.notify_one();
    }

    fn read(
        &self,
        partition: Partition,
        from: Offset,
        bytes: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        self.disk.read(partition, from, bytes)
    }

    fn read_merged(
        &self,
        partitions: &[Partition],
        from: Offset,
        below: Offset,
        bytes_max: usize,
    ) -> Result<Merged, ReadError> {
        self.disk.read_merged(partitions, from, below, bytes_max)
    }

    fn head_at(&self, partition: Partition, from: Offset) -> Result<Option<EntryHead>, ReadError> {
        self.disk.head_at(partition, from)
    }

    fn tail(&self, _from: Offset) -> Result<Box<dyn Tail>, ReadError> {
        Err(ReadError::Io(
            "a simulation reads what is committed".to_owned(),
        ))
    }

    fn trim(&self, partition: Partition, before: Offset) -> Result<(), LogError> {
        self.disk.trim(partition, before)
    }

    fn partitions(&self) -> Vec<PartitionInfo> {
        self.disk.partitions()
    }

    fn partition(&self, partition: Partition) -> Option<PartitionInfo> {
        self.disk.partition(partition)
    }

    fn next_offset(&self) -> Offset {
        self.disk.next_offset()
    }

    fn poisoned(&self) -> Option<String> {
        self.queue.lock().poison.clone()
    }

    fn close(&self) {}
}
