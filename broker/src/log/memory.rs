//! The log in memory: for simulation and tests. The same contract, without a disk; "durable" means
//! that it survives [`MemoryLog::reopen`], which keeps what was synced and loses the rest.

use crate::{
    clock::Clock,
    log::{
        Append, AppendError, Entry, EntryHead, Log, LogError, Merged, PartitionInfo, ReadError,
        Tail,
        faults::{Faults, SyncFault, WriteFault},
    },
};
use crossbeam_channel::{Receiver, Sender, unbounded};
use hutong_proto::{LogId, Micros, Offset, Partition};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Entries of one partition, by offset.
#[derive(Debug, Default)]
struct Stored {
    entries: BTreeMap<Offset, Entry>,
    last: Offset,
    last_ordinal: u64,
    last_durable_at: Micros,
    trimmed_below: Offset,
}

#[derive(Debug)]
struct Inner {
    partitions: BTreeMap<Partition, Stored>,
    next: Offset,
    durable_at: Micros,
    tail: Option<Sender<Vec<Entry>>>,
    poison: Option<String>,
    closed: bool,
    /// What nobody knows of until the next opening.
    unknown: Option<Unknown>,
}

#[derive(Debug)]
enum Unknown {
    Record(Entry),
    Trim(Partition, Offset),
}

/// Commits at once, in the caller's thread.
pub struct MemoryLog {
    id: LogId,
    clock: Clock,
    faults: Faults,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryLog")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl MemoryLog {
    pub fn new(id: LogId, clock: Clock, faults: Faults) -> MemoryLog {
        MemoryLog {
            id,
            clock,
            faults,
            inner: Mutex::new(Inner {
                partitions: BTreeMap::new(),
                next: Offset::FIRST,
                durable_at: Micros::ZERO,
                tail: None,
                poison: None,
                closed: false,
                unknown: None,
            }),
        }
    }

    /// As if the process had ended and begun again.
    #[must_use]
    pub fn reopen(self) -> MemoryLog {
        let mut inner = self.inner.into_inner();
        inner.tail = None;
        inner.poison = None;
        inner.closed = false;
        match inner.unknown.take() {
            Some(Unknown::Record(entry)) => inner.store(entry),
            Some(Unknown::Trim(partition, before)) => inner.trim(partition, before),
            None => {}
        }
        MemoryLog {
            inner: Mutex::new(inner),
            ..MemoryLog::new(self.id, self.clock, self.faults)
        }
    }

    fn commit(&self, append: &Append) -> Result<Offset, AppendError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(AppendError::Closed);
        }
        if inner.poison.is_some() {
            return Err(AppendError::Poisoned);
        }
        let last_ordinal = |inner: &Inner| {
            let stored = inner.partitions.get(&append.partition);
            stored.map_or(0, |stored| stored.last_ordinal)
        };
        let offset = inner.next;
        let entry = Entry {
            head: EntryHead {
                offset,
                partition: append.partition,
                ordinal: last_ordinal(&inner) + 1,
                durable_at: inner.durable_at.max((self.clock)()),
                kinds: append.kinds,
                deltas: append.deltas,
            },
            record: append.record.clone(),
        };
        let write = self.faults.take_write();
        if write == Some(WriteFault::Nothing) {
            inner.poison("a write failed: planted");
            return Err(AppendError::Failed);
        }
        let sync = match write {
            None => self.faults.take_sync(),
            Some(_) => None,
        };
        if write.is_some() || sync.is_some() {
            inner.poison("a write or a sync failed: planted");
            if write == Some(WriteFault::Landed) || sync == Some(SyncFault::Landed) {
                inner.unknown = Some(Unknown::Record(entry));
            }
            return Err(AppendError::Indefinite);
        }
        inner.store(entry.clone());
        if let Some(tail) = &inner.tail {
            // Nobody reads any more; the entry is stored all the same.
            drop(tail.send(vec![entry]));
        }
        Ok(offset)
    }
}

impl Inner {
    fn store(&mut self, entry: Entry) {
        let head = entry.head;
        self.next = head.offset.next();
        self.durable_at = head.durable_at;
        let stored = self.partitions.entry(head.partition).or_default();
        stored.last = head.offset;
        stored.last_ordinal = head.ordinal;
        stored.last_durable_at = head.durable_at;
        stored.entries.insert(head.offset, entry);
    }

    fn trim(&mut self, partition: Partition, before: Offset) {
        if let Some(stored) = self.partitions.get_mut(&partition) {
            stored.trimmed_below = before;
            stored.entries = stored.entries.split_off(&before);
        }
    }

    fn poison(&mut self, why: &str) {
        self.poison = Some(why.to_owned());
        self.tail = None;
    }
}

fn info(partition: Partition, stored: &Stored) -> PartitionInfo {
    PartitionInfo {
        partition,
        first: stored
            .entries
            .keys()
            .next()
            .copied()
            .unwrap_or(Offset::NONE),
        last: stored.last,
        last_ordinal: stored.last_ordinal,
        last_durable_at: stored.last_durable_at,
        trimmed_below: stored.trimmed_below,
        records: stored.entries.len() as u64,
        bytes_estimate: stored.entries.values().map(|e| e.record.len() as u64).sum(),
    }
}

impl Log for MemoryLog {
    fn id(&self) -> LogId {
        self.id
    }

    fn append(&self, append: Append) {
        let result = self.commit(&append);
        (append.done)(result);
    }

    fn read(
        &self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let below = self.next_offset();
        Ok(self
            .read_merged(&[partition], from, below, bytes_max)?
            .entries)
    }

    fn read_merged(
        &self,
        partitions: &[Partition],
        from: Offset,
        below: Offset,
        bytes_max: usize,
    ) -> Result<Merged, ReadError> {
        let inner = self.inner.lock();
        let below = below.min(inner.next);
        let mut found = BTreeMap::new();
        for partition in partitions {
            let Some(stored) = inner.partitions.get(partition) else {
                continue;
            };
            if from < stored.trimmed_below {
                return Err(ReadError::Trimmed {
                    partition: *partition,
                    trimmed_below: stored.trimmed_below,
                });
            }
            if from < below {
                found.extend(stored.entries.range(from..below));
            }
        }
        let mut merged = Merged {
            entries: Vec::new(),
            next: below.max(from),
        };
        let mut bytes = 0;
        for (offset, entry) in found {
            if bytes >= bytes_max {
                merged.next = *offset;
                break;
            }
            bytes += entry.record.len();
            merged.entries.push(entry.clone());
        }
        Ok(merged)
    }

    fn head_at(&self, partition: Partition, from: Offset) -> Result<Option<EntryHead>, ReadError> {
        let inner = self.inner.lock();
        let stored = inner.partitions.get(&partition);
        Ok(stored.and_then(|s| s.entries.range(from..).next().map(|(_, e)| e.head)))
    }

    fn tail(&self, from: Offset) -> Result<Box<dyn Tail>, ReadError> {
        // Unbounded is what "in memory" means here; tests take what they append.
        let (sender, live) = unbounded();
        let mut inner = self.inner.lock();
        let most = inner.partitions.iter().max_by_key(|(_, s)| s.trimmed_below);
        if let Some((partition, stored)) = most
            && from < stored.trimmed_below
        {
            return Err(ReadError::Trimmed {
                partition: *partition,
                trimmed_below: stored.trimmed_below,
            });
        }
        let stored: BTreeMap<_, _> = inner
            .partitions
            .values()
            .flat_map(|s| s.entries.range(from..))
            .collect();
        let stored: Vec<Entry> = stored.into_values().cloned().collect();
        if !inner.closed && inner.poison.is_none() {
            inner.tail = Some(sender);
        }
        Ok(Box::new(MemoryTail {
            stored: Some(stored),
            live,
        }))
    }

    fn trim(&self, partition: Partition, before: Offset) -> Result<(), LogError> {
        let mut inner = self.inner.lock();
        if let Some(why) = &inner.poison {
            return Err(LogError::Poisoned(why.clone()));
        }
        let Some(stored) = inner.partitions.get(&partition) else {
            return Ok(());
        };
        let before = before.min(stored.last.next());
        if before <= stored.trimmed_below {
            return Ok(());
        }
        if let Some(fault) = self.faults.take_sync() {
            let why = "a sync failed: planted";
            inner.poison(why);
            if fault == SyncFault::Landed {
                inner.unknown = Some(Unknown::Trim(partition, before));
            }
            return Err(LogError::Poisoned(why.to_owned()));
        }
        inner.trim(partition, before);
        Ok(())
    }

    fn partitions(&self) -> Vec<PartitionInfo> {
        let inner = self.inner.lock();
        inner
            .partitions
            .iter()
            .map(|(p, stored)| info(*p, stored))
            .collect()
    }

    fn partition(&self, partition: Partition) -> Option<PartitionInfo> {
        let inner = self.inner.lock();
        inner
            .partitions
            .get(&partition)
            .map(|stored| info(partition, stored))
    }

    fn next_offset(&self) -> Offset {
        self.inner.lock().next
    }

    fn poisoned(&self) -> Option<String> {
        self.inner.lock().poison.clone()
    }

    fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.tail = None;
    }
}

struct MemoryTail {
    stored: Option<Vec<Entry>>,
    live: Receiver<Vec<Entry>>,
}

impl Tail for MemoryTail {
    fn next(&mut self) -> Option<Vec<Entry>> {
        match self.stored.take().filter(|stored| !stored.is_empty()) {
            Some(stored) => Some(stored),
            None => self.live.recv().ok(),
        }
    }
}
