//! Reading entries back.

use crate::log::{
    Entry, EntryHead, Merged, ReadError,
    embedded::{ENTRIES, META, keys},
};
use bytes::Bytes;
use hutong_proto::{Offset, Partition};
use rocksdb::{ColumnFamily, DB, DBRawIterator, ReadOptions};
use std::{cmp::Reverse, collections::BinaryHeap};

pub fn families(db: &DB) -> Result<(&ColumnFamily, &ColumnFamily), ReadError> {
    let missing = || ReadError::Io("a column family is missing".to_owned());
    let entries = db.cf_handle(ENTRIES).ok_or_else(missing)?;
    Ok((entries, db.cf_handle(META).ok_or_else(missing)?))
}

/// One past the last possible entry of a partition.
fn end(partition: Partition) -> [u8; 12] {
    keys::entry(partition, Offset(u64::MAX))
}

fn iterator<'a>(
    db: &'a DB,
    partition: Partition,
    below: Offset,
) -> Result<DBRawIterator<'a>, ReadError> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(keys::entry(partition, Offset::NONE));
    options.set_iterate_upper_bound(match below {
        Offset(u64::MAX) => end(partition),
        below => keys::entry(partition, below),
    });
    Ok(db.raw_iterator_cf_opt(families(db)?.0, options))
}

/// The head of the entry an iterator stands on, `None` at its end.
fn head(
    iterator: &DBRawIterator<'_>,
    partition: Partition,
) -> Result<Option<EntryHead>, ReadError> {
    let Some((key, value)) = iterator.item() else {
        return match iterator.status() {
            Ok(()) => Ok(None),
            Err(error) => Err(ReadError::Io(error.to_string())),
        };
    };
    let offset = keys::decode_entry(key).map_or(Offset::NONE, |(_, offset)| offset);
    match keys::decode_head(partition, offset, value) {
        Some(head) => Ok(Some(head)),
        None => Err(ReadError::Damaged {
            partition,
            offset,
            what: "its head does not decode".to_owned(),
        }),
    }
}

/// The first entry of a partition at or after `from`.
pub fn head_at(
    db: &DB,
    partition: Partition,
    from: Offset,
) -> Result<Option<EntryHead>, ReadError> {
    let mut iterator = iterator(db, partition, Offset(u64::MAX))?;
    iterator.seek(keys::entry(partition, from));
    head(&iterator, partition)
}

/// The last entry of a partition.
pub fn last(db: &DB, partition: Partition) -> Result<Option<EntryHead>, ReadError> {
    let mut iterator = iterator(db, partition, Offset(u64::MAX))?;
    iterator.seek_to_last();
    head(&iterator, partition)
}

/// Entries of a partition that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub all: u64,
    /// From the offset on that was asked for.
    pub since: u64,
}

/// Counts by looking at each.
pub fn count(db: &DB, partition: Partition, from: Offset) -> Result<Count, ReadError> {
    let mut iterator = iterator(db, partition, Offset(u64::MAX))?;
    iterator.seek_to_first();
    let mut count = Count::default();
    while let Some(head) = head(&iterator, partition)? {
        count.all += 1;
        count.since += u64::from(head.offset >= from);
        iterator.next();
    }
    Ok(count)
}

/// Entries of several partitions in the order of their offsets: a heap holds the next one of each.
pub fn merged(
    db: &DB,
    partitions: &[Partition],
    from: Offset,
    below: Offset,
    bytes_max: usize,
) -> Result<Merged, ReadError> {
    let mut merged = Merged {
        entries: Vec::new(),
        next: below.max(from),
    };
    if from >= below {
        return Ok(merged);
    }
    let mut iterators = Vec::with_capacity(partitions.len());
    let mut heap = BinaryHeap::new();
    for (i, partition) in partitions.iter().enumerate() {
        let mut iterator = iterator(db, *partition, below)?;
        iterator.seek(keys::entry(*partition, from));
        if let Some(head) = head(&iterator, *partition)? {
            heap.push(Reverse((head.offset, i)));
        }
        iterators.push(iterator);
    }
    let mut bytes = 0;
    while let Some(Reverse((offset, i))) = heap.pop() {
        if bytes >= bytes_max {
            merged.next = offset;
            break;
        }
        let (iterator, partition) = (&mut iterators[i], partitions[i]);
        let (Some(head_here), Some(value)) = (head(iterator, partition)?, iterator.value()) else {
            continue;
        };
        let record = Bytes::copy_from_slice(&value[keys::HEAD_BYTES..]);
        bytes += record.len();
        merged.entries.push(Entry {
            head: head_here,
            record,
        });
        iterator.next();
        if let Some(next) = head(iterator, partition)? {
            heap.push(Reverse((next.offset, i)));
        }
    }
    Ok(merged)
}
