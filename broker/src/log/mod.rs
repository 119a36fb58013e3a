//! The log: what is durable, in one order. The trait is a contract; every implementation passes
//! `conformance.rs`.
//!
//! - A record is appended to a partition and gets an offset. Offsets rise strictly over the whole log,
//!   so all records have one order; within a partition they have gaps. (In a replicated log they are
//!   the sequence numbers of one stream whose subjects are the partitions.)
//! - An append ends durable, failed or *indefinite*: it may or may not be in the log. `Done` is called
//!   exactly once, and `Ok` only after the record is on disk and synced.
//! - Others may append too: what is applied comes from the tail, never from the appender.
//! - After a failed write or sync the log is poisoned: it takes nothing until it was opened again.

pub mod embedded;
pub mod faults;
pub mod memory;

#[cfg(test)]
mod conformance;

use crate::metrics::StoreGauges;
use bytes::Bytes;
use hutong_proto::{Issuer, KindSet, Lane, LogId, Micros, Offset, Partition};
use std::{collections::BTreeMap, fmt, path::Path, time::Duration};

/// A durable record and what is known of it without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub head: EntryHead,
    /// Encoded `Record`; reaches subscribers as it is.
    pub record: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHead {
    pub offset: Offset,
    pub partition: Partition,
    /// The how-manieth record of its partition, from 1 without gaps.
    pub ordinal: u64,
    /// The log's clock when it was written. Never falls from one offset to the next.
    pub durable_at: Micros,
    /// Kinds of value in the record.
    pub kinds: KindSet,
    pub deltas: u32,
}

/// Called once, from a thread of the log; must not block.
pub type Done = Box<dyn FnOnce(Result<Offset, AppendError>) + Send>;

/// A record to append.
pub struct Append {
    pub partition: Partition,
    pub kinds: KindSet,
    pub deltas: u32,
    pub record: Bytes,
    pub done: Done,
}

impl fmt::Debug for Append {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Append")
            .field("partition", &self.partition)
            .field("bytes", &self.record.len())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Nothing was written.
    #[error("the append failed, nothing was written")]
    Failed,
    /// It may be in the log after the next opening, or not.
    #[error("the append may or may not be in the log")]
    Indefinite,
    /// An earlier write or sync failed; nothing was written.
    #[error("the log is poisoned by an earlier failure, nothing was written")]
    Poisoned,
    /// The log is closing; nothing was written.
    #[error("the log is closing, nothing was written")]
    Closed,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Records at or after the asked offset are no longer kept.
    #[error("{partition}: records below offset {trimmed_below} were trimmed")]
    Trimmed {
        partition: Partition,
        trimmed_below: Offset,
    },
    #[error("cannot read the log: {0}")]
    Io(String),
    /// What is stored is not what was written.
    #[error("the log is damaged at {partition} offset {offset}: {what}")]
    Damaged {
        partition: Partition,
        offset: Offset,
        what: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot open the log in {dir}: {why}")]
    Open { dir: String, why: String },
    #[error("the log is poisoned: {0}")]
    Poisoned(String),
    #[error("log: {0}")]
    Io(String),
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What is stored of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    pub partition: Partition,
    /// Of the oldest record kept; [`Offset::NONE`] when there is none.
    pub first: Offset,
    /// Of the newest record ever; [`Offset::NONE`] when there was none.
    pub last: Offset,
    /// Ordinal of the newest record ever.
    pub last_ordinal: u64,
    pub last_durable_at: Micros,
    /// Everything below was trimmed.
    pub trimmed_below: Offset,
    pub records: u64,
    pub bytes_estimate: u64,
}

/// Records of several partitions in the order of their offsets.
#[derive(Debug)]
pub struct Merged {
    pub entries: Vec<Entry>,
    /// Every record of these partitions below this offset is in `entries` (or below `from`).
    pub next: Offset,
}

/// One log. All methods may be called from any thread and block at most for local IO.
pub trait Log: Send + Sync + fmt::Debug + 'static {
    fn id(&self) -> LogId;

    /// Queues the record. Records that are queued for one partition get offsets in that order. Urgent
    /// and control partitions go before bulk in each group commit.
    fn append(&self, append: Append);

    /// Records of `partition` from `from` on, up to about `bytes_max` but at least one if there is one.
    fn read(
        &self,
        partition: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, ReadError>;

    /// The same over several partitions, in the order of offsets, for offsets below `below`.
    fn read_merged(
        &self,
        partitions: &[Partition],
        from: Offset,
        below: Offset,
        bytes_max: usize,
    ) -> Result<Merged, ReadError>;

    /// An error if records of these partitions at or after `from` were trimmed.
    fn check_kept(&self, partitions: &[Partition], from: Offset) -> Result<(), ReadError> {
        for partition in partitions {
            if let Some(info) = self.partition(*partition)
                && from < info.trimmed_below
            {
                return Err(ReadError::Trimmed {
                    partition: *partition,
                    trimmed_below: info.trimmed_below,
                });
            }
        }
        Ok(())
    }

    /// The first record of `partition` at or after `from`, without its bytes. Not an error when what
    /// is below it was trimmed: lag is measured from what is kept.
    fn head_at(&self, partition: Partition, from: Offset) -> Result<Option<EntryHead>, ReadError>;

    /// Durable records of all partitions in the order of offsets, from `from` on. One consumer at a
    /// time. An error if any record at or after `from` was trimmed: a hole is never given for the whole. A
    /// trim of what a tail has not given out yet ends it. A consumer that does not take what comes makes appends wait.
    fn tail(&self, from: Offset) -> Result<Box<dyn Tail>, ReadError>;

    /// Drops the records of `partition` below `before`.
    fn trim(&self, partition: Partition, before: Offset) -> Result<(), LogError>;

    /// Every partition that ever had a record.
    fn partitions(&self) -> Vec<PartitionInfo>;

    fn partition(&self, partition: Partition) -> Option<PartitionInfo>;

    /// The offset that the next record gets at least.
    fn next_offset(&self) -> Offset;

    /// Makes a copy in `dir`, which must not be there: everything that was durable when it was called, perhaps
    /// some of what came after, and never a hole. Appends go on meanwhile.
    fn checkpoint(&self, dir: &Path) -> Result<(), LogError> {
        let why = "this kind of log cannot be copied";
        Err(LogError::Io(format!("{}: {why}", dir.display())))
    }

    /// What its store says about itself, for metrics.
    fn store(&self) -> StoreGauges {
        StoreGauges::default()
    }

    /// How long the commit that is under way has taken so far, for metrics; zero when there is none.
    fn commit_running(&self) -> Duration {
        Duration::ZERO
    }

    /// Why the log takes nothing, if so.
    fn poisoned(&self) -> Option<String>;

    /// Takes no more appends, finishes those that are queued, and ends the tail.
    fn close(&self);
}

/// When the newest record of each platform became durable, over its lanes and shards. Kept by the log, so also
/// what was before a restart or was trimmed.
pub fn last_records(partitions: &[PartitionInfo]) -> BTreeMap<Issuer, Micros> {
    let mut last: BTreeMap<Issuer, Micros> = BTreeMap::new();
    let delivered = |p: &&PartitionInfo| p.partition.lane != Lane::Control;
    for info in partitions.iter().filter(delivered) {
        let at = last.entry(info.partition.issuer).or_default();
        *at = info.last_durable_at.max(*at);
    }
    last.retain(|_, at| *at != Micros::ZERO);
    last
}

/// The consuming end of a log.
pub trait Tail: Send {
    /// Blocks until something is durable. `None` once the log is closed, or poisoned, and everything
    /// durable was given out.
    fn next(&mut self) -> Option<Vec<Entry>>;
}
