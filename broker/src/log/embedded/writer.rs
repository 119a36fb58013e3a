//! Group commit.

use crate::log::{
    Append, AppendError, Entry, EntryHead,
    embedded::{Commit, CommitFailed, EmbeddedOptions, Shared, keys, keys::PartitionRow, read},
    faults::WriteFault,
};

use crossbeam_channel::{Receiver, never, select};
use hutong_proto::{Lane, Micros, Offset, Partition};
use rocksdb::WriteBatch;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Bulk in one group while urgent records come, at most: the next urgent one waits until this group
/// and those before it are written and applied.
const BULK_BESIDE_URGENT_BYTES: usize = 256 << 10;
/// Urgent records come as long as the last one is not older.
const URGENT_FOR: Duration = Duration::from_secs(1);

/// The one thread that writes.
pub struct Writer {
    shared: Arc<Shared>,
    urgent: Receiver<Append>,
    bulk: Receiver<Append>,
    options: EmbeddedOptions,
    urgent_at: Option<Instant>,
    /// Nothing comes any more: what is left is committed, whatever the gate says.
    closing: bool,
}

/// A group with its places, before it is written.
struct Placed {
    entries: Vec<Entry>,
    rows: BTreeMap<Partition, PartitionRow>,
    durable_at: Micros,
    next: Offset,
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        urgent: Receiver<Append>,
        bulk: Receiver<Append>,
        options: EmbeddedOptions,
    ) -> Writer {
        Writer {
            shared,
            urgent,
            bulk,
            options,
            urgent_at: None,
            closing: false,
        }
    }

    /// Commits until both queues are closed and empty, then ends the tail.
    pub fn run(mut self) {
        while let Some(group) = self.group() {
            *self.shared.commit_since.lock() = Some(Instant::now());
            self.commit(group);
            *self.shared.commit_since.lock() = None;
        }
        self.shared.positions.lock().tail = None;
    }

    /// What is ready: all urgent, then bulk as far as there is room. Waits only when there is nothing, or
    /// nothing but bulk before a shut gate.
    fn group(&mut self) -> Option<Vec<Append>> {
        let mut group = Vec::new();
        let mut bytes = 0;
        let max = self.options.group_bytes_max;
        loop {
            while bytes < max
                && let Ok(append) = self.urgent.try_recv()
            {
                bytes += append.record.len();
                self.note(&append);
                group.push(append);
            }
            let urgent = self.urgent_at.is_some_and(|at| at.elapsed() < URGENT_FOR);
            let bulk_max = match urgent {
                true => max.min(bytes + BULK_BESIDE_URGENT_BYTES),
                false => max,
            };
            let gate = Arc::clone(&self.options.bulk_gate);
            let takes_bulk = gate.is_open() || self.closing;
            while takes_bulk
                && bytes < bulk_max
                && let Ok(append) = self.bulk.try_recv()
            {
                bytes += append.record.len();
                group.push(append);
            }
            if !group.is_empty() {
                return Some(group);
            }
            let never = never();
            let bulk = if takes_bulk { &self.bulk } else { &never };
            let first = select! {
                recv(self.urgent) -> append => append,
                recv(bulk) -> append => append,
                recv(gate.opened()) -> _ => continue,
            };
            match first {
                Ok(append) => {
                    bytes += append.record.len();
                    self.note(&append);
                    group.push(append);
                }
                // Both are closed together; what the other one still holds is taken above.
                Err(_) if self.urgent.is_empty() && self.bulk.is_empty() => return None,
                Err(_) => self.closing = true,
            }
        }
    }

    /// Control records come in the same queue as what is urgent, each second.
    fn note(&mut self, append: &Append) {
        if append.partition.lane == Lane::Urgent {
            self.urgent_at = Some(Instant::now());
        }
    }

    fn commit(&self, group: Vec<Append>) {
        let committing = self.shared.committing.lock();
        if self.shared.check().is_err() {
            return finish(group, AppendError::Poisoned);
        }
        failpoint!(CommitTaken);
        let placed = self.place(&group);
        let bytes = group.iter().map(|a| a.record.len()).sum();
        let started = Instant::now();
        if let Err(error) = self.write(&placed) {
            // Whether the batch reached the write-ahead log cannot be known.
            self.shared.poison(&format!("a write failed: {error}"));
            (self.options.observer)(Err(CommitFailed));
            let outcome = match error {
                WriteError::Nothing(_) => AppendError::Failed,
                WriteError::Unknown(_) => AppendError::Indefinite,
            };
            return finish(group, outcome);
        }
        let written = Instant::now();
        failpoint!(CommitWritten);
        if planted!(AckBeforeSync) {
            self.publish(group, placed);
            return drop(self.shared.sync());
        }
        if self.shared.sync().is_err() {
            (self.options.observer)(Err(CommitFailed));
            return finish(group, AppendError::Indefinite);
        }
        drop(committing);
        failpoint!(CommitSynced);
        (self.options.observer)(Ok(Commit {
            records: group.len(),
            bytes,
            write: written - started,
            sync: written.elapsed(),
        }));
        self.publish(group, placed);
    }

    /// Gives each record its place. Nothing is visible yet.
    fn place(&self, group: &[Append]) -> Placed {
        let positions = self.shared.positions.lock();
        let mut placed = Placed {
            entries: Vec::with_capacity(group.len()),
            rows: BTreeMap::new(),
            durable_at: positions.durable_at.max((self.options.clock)()),
            next: positions.next,
        };
        for append in group {
            let row = placed.rows.entry(append.partition).or_insert_with(|| {
                let known = positions.partitions.get(&append.partition);
                known.map(|k| k.row).unwrap_or_default()
            });
            row.last = placed.next;
            row.last_ordinal += 1;
            row.last_durable_at = placed.durable_at;
            row.bytes += append.record.len() as u64;
            placed.entries.push(Entry {
                head: EntryHead {
                    offset: placed.next,
                    partition: append.partition,
                    ordinal: row.last_ordinal,
                    durable_at: placed.durable_at,
                    kinds: append.kinds,
                    deltas: append.deltas,
                },
                record: append.record.clone(),
            });
            placed.next = placed.next.next();
        }
        placed
    }

    fn write(&self, placed: &Placed) -> Result<(), WriteError> {
        let fault = self.shared.faults.take_write();
        let planted = || "planted".to_owned();
        match fault {
            Some(WriteFault::Nothing) => return Err(WriteError::Nothing(planted())),
            Some(WriteFault::Lost) => return Err(WriteError::Unknown(planted())),
            Some(WriteFault::Landed) | None => {}
        }
        if self.shared.faults.loses_write() {
            return Ok(());
        }
        let (entries, meta) =
            read::families(&self.shared.db).map_err(|e| WriteError::Nothing(e.to_string()))?;
        let mut batch = WriteBatch::default();
        for entry in &placed.entries {
            let key = keys::entry(entry.head.partition, entry.head.offset);
            batch.put_cf(entries, key, keys::encode_value(&entry.head, &entry.record));
        }
        for (partition, row) in &placed.rows {
            batch.put_cf(meta, keys::partition(*partition), row.encode());
        }
        self.shared
            .db
            .write(batch)
            .map_err(|e| WriteError::Unknown(e.to_string()))?;
        match fault {
            Some(_) => Err(WriteError::Unknown(planted())),
            None => Ok(()),
        }
    }

    /// The group is durable: it becomes visible, its appenders are told, and the tail gets it.
    fn publish(&self, group: Vec<Append>, placed: Placed) {
        let tail = {
            let mut positions = self.shared.positions.lock();
            positions.next = placed.next;
            positions.durable_at = placed.durable_at;
            for entry in &placed.entries {
                let known = positions
                    .partitions
                    .entry(entry.head.partition)
                    .or_default();
                if known.first == Offset::NONE {
                    known.first = entry.head.offset;
                    known.first_ordinal = entry.head.ordinal;
                }
                known.bytes += entry.record.len() as u64;
            }
            for (partition, row) in placed.rows {
                positions.partitions.entry(partition).or_default().row = row;
            }
            positions.tail.clone()
        };
        for (append, entry) in group.into_iter().zip(&placed.entries) {
            (append.done)(Ok(entry.head.offset));
        }
        failpoint!(CommitTold);
        if let Some(tail) = tail {
            // Waits while apply is behind; an error means that nobody reads any more.
            drop(tail.send(placed.entries));
        }
    }
}

fn finish(group: Vec<Append>, error: AppendError) {
    for append in group {
        (append.done)(Err(error));
    }
}

#[derive(Debug)]
enum WriteError {
    /// Certainly not in the log.
    Nothing(String),
    /// Perhaps in the log after the next opening.
    Unknown(String),
}

impl std::fmt::Display for WriteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WriteError::Nothing(why) | WriteError::Unknown(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        log::{Log, embedded::EmbeddedLog},
        overload::BulkGate,
    };
    use bytes::Bytes;
    use crossbeam_channel::{Sender, unbounded};
    use hutong_proto::{Issuer, KindSet, Shard};
    use std::sync::mpsc;

    const PATIENCE: Duration = Duration::from_secs(20);

    type Told = mpsc::Receiver<Result<Offset, AppendError>>;

    fn append(log: &EmbeddedLog, lane: Lane) -> Told {
        let (told, outcome) = mpsc::channel();
        log.append(Append {
            partition: Partition {
                issuer: Issuer::new(340_000).expect("a code"),
                lane,
                shard: Shard(0),
            },
            kinds: KindSet::ALL,
            deltas: 1,
            record: Bytes::from_static(b"record"),
            // Nobody listens when the test has failed.
            done: Box::new(move |result| {
                told.send(result).ok();
            }),
        });
        outcome
    }

    fn durable(told: &Told) -> Offset {
        let told = told.recv_timeout(PATIENCE).expect("it is told");
        told.expect("it is durable")
    }

    #[test]
    fn bulk_waits_before_a_shut_gate_and_urgent_passes_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let gate = Arc::<BulkGate>::default();
        let options = EmbeddedOptions {
            bulk_gate: Arc::clone(&gate),
            ..EmbeddedOptions::default()
        };
        // Before the writer looks: one that waits before an open gate takes what comes next, whatever the gate is by then.
        gate.shut(true);
        let log = EmbeddedLog::open(dir.path(), options).expect("opens");
        let bulk = append(&log, Lane::Bulk);
        let first = durable(&append(&log, Lane::Urgent));
        let second = durable(&append(&log, Lane::Urgent));
        assert_eq!(second, first.next(), "nothing came between them");
        assert!(bulk.try_recv().is_err());
        gate.shut(false);
        assert_eq!(durable(&bulk), second.next());
        // Who closes the log waits for what it has taken, also when nobody opens the gate again.
        gate.shut(true);
        let last = append(&log, Lane::Bulk);
        log.close();
        assert_eq!(durable(&last), second.next().next());
    }

    /// A writer that nobody runs, with the ends of its queues.
    fn writer(
        log: &EmbeddedLog,
        options: EmbeddedOptions,
    ) -> (Writer, Sender<Append>, Sender<Append>) {
        let (urgent, urgent_queue) = unbounded();
        let (bulk, bulk_queue) = unbounded();
        let shared = Arc::clone(&log.shared);
        let writer = Writer::new(shared, urgent_queue, bulk_queue, options);
        (writer, urgent, bulk)
    }

    fn put(queue: &Sender<Append>, lane: Lane, records: usize, bytes: usize) {
        for _ in 0..records {
            let partition = Partition {
                issuer: Issuer::new(340_000).expect("a code"),
                lane,
                shard: Shard(0),
            };
            let append = Append {
                partition,
                kinds: KindSet::ALL,
                deltas: 1,
                record: Bytes::from(vec![7; bytes]),
                done: Box::new(|_| {}),
            };
            queue.send(append).expect("somebody takes it");
        }
    }

    /// Urgent and other records of the next group.
    fn next(writer: &mut Writer) -> Option<(usize, usize)> {
        let group = writer.group()?;
        let urgent = |append: &&Append| append.partition.lane == Lane::Urgent;
        let urgent = group.iter().filter(urgent).count();
        Some((urgent, group.len() - urgent))
    }

    #[test]
    fn a_group_has_urgent_first_and_is_as_large_as_it_may_be() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).expect("opens");
        let options = EmbeddedOptions {
            group_bytes_max: 1000,
            ..EmbeddedOptions::default()
        };
        let (mut writer, urgent, bulk) = writer(&log, options);
        put(&bulk, Lane::Bulk, 7, 250);
        put(&urgent, Lane::Urgent, 5, 250);
        drop((urgent, bulk));
        let groups: Vec<_> = std::iter::from_fn(|| next(&mut writer)).collect();
        assert_eq!(groups, [(4, 0), (1, 3), (0, 4)]);
    }

    #[test]
    fn what_is_left_at_the_end_is_committed_also_before_a_shut_gate() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).expect("opens");
        let options = EmbeddedOptions::default();
        options.bulk_gate.shut(true);
        let (mut writer, urgent, bulk) = writer(&log, options);
        put(&bulk, Lane::Bulk, 2, 10);
        put(&urgent, Lane::Urgent, 1, 10);
        drop((urgent, bulk));
        let groups: Vec<_> = std::iter::from_fn(|| next(&mut writer)).collect();
        assert_eq!(groups, [(1, 0), (0, 2)]);
    }

    #[test]
    fn beside_urgent_records_little_bulk_is_taken_and_beside_control_records_all() {
        const RECORDS: usize = 10;
        let dir = tempfile::tempdir().expect("a folder");
        let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).expect("opens");
        for (lane, together) in [(Lane::Control, true), (Lane::Urgent, false)] {
            let options = EmbeddedOptions {
                group_bytes_max: usize::MAX,
                ..EmbeddedOptions::default()
            };
            let (mut writer, urgent, bulk) = writer(&log, options);
            put(&urgent, lane, 1, 10);
            writer.group().expect("one");
            assert_eq!(writer.urgent_at.is_none(), together, "{lane:?}");
            // On a slow machine, too, the next one comes soon after it.
            writer.urgent_at = writer.urgent_at.map(|at| at + Duration::from_secs(3600));
            put(&bulk, Lane::Bulk, RECORDS, BULK_BESIDE_URGENT_BYTES / 4);
            let taken = if together { RECORDS } else { 4 };
            assert_eq!(next(&mut writer), Some((0, taken)), "{lane:?}");
        }
    }
}
