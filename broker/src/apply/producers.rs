//! Which batches of a producer are in the log: the part of apply that drops repeats. Pure.
//!
//! Every batch number becomes at least one record, so "complete through N" means that nothing at or
//! below N is missing, and a producer that connects again may go on with N + 1.

use hutong_proto::{Epoch, RecordHeader, Sequence};
use std::{cmp::Ordering, collections::BTreeMap};

/// What apply does with a record as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// First of its kind: its deltas are looked at.
    Fresh,
    /// Was applied before.
    Duplicate,
    /// Written by a session that a higher epoch had ended.
    Fenced,
}

/// A producer's batches as the log shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producer {
    pub epoch: Epoch,
    /// All parts of every batch up to here are applied.
    pub complete: Sequence,
    /// Batches above `complete` of which something is applied: partitions seen, and how many there are.
    ahead: BTreeMap<u64, (u32, Vec<u32>)>,
}

impl Producer {
    /// A producer opens: nothing of a lower epoch counts from here on.
    pub fn open(&mut self, epoch: Epoch) -> Fate {
        match epoch.cmp(&self.epoch) {
            Ordering::Less => Fate::Fenced,
            Ordering::Equal => Fate::Duplicate,
            Ordering::Greater => {
                // What the old epoch had half written will be sent again, perhaps in other batches:
                // revisions, not sequence numbers, tell those deltas apart.
                self.epoch = epoch;
                self.ahead.clear();
                Fate::Fresh
            }
        }
    }

    /// Takes the next record in the order of the log.
    pub fn observe(&mut self, header: &RecordHeader<'_>) -> Fate {
        match self.open(header.epoch) {
            Fate::Fenced => return Fate::Fenced,
            // Its opening is not in the log, as in one that only tests write.
            Fate::Fresh => self.complete = self.complete.max(header.epoch_base),
            Fate::Duplicate => {}
        }
        if header.sequence <= self.complete {
            return Fate::Duplicate;
        }
        let partition = header.partition.to_number();
        let (parts, seen) = self
            .ahead
            .entry(header.sequence.0)
            .or_insert((header.parts, Vec::new()));
        // Sent again, a batch of which a part landed may be split otherwise: what was refused as of the
        // future is not any more. The newest word counts, which of a part that is seen for the first time is
        // the larger one, as it may come late.
        let fate = if seen.contains(&partition) {
            *parts = header.parts;
            Fate::Duplicate
        } else {
            let repeat = planted!(DedupeBySequence) && !seen.is_empty();
            *parts = header.parts.max(*parts);
            seen.push(partition);
            match repeat {
                true => Fate::Duplicate,
                false => Fate::Fresh,
            }
        };
        while let Some(first) = self.ahead.first_entry() {
            let (parts, seen) = first.get();
            if *first.key() != self.complete.next().0 || seen.len() < *parts as usize {
                break;
            }
            self.complete = self.complete.next();
            first.remove();
        }
        if planted!(CompleteIsHighest) {
            self.complete = self.complete.max(header.sequence);
        }
        fate
    }

    /// Layout: epoch, complete, then for each batch ahead: sequence, parts, count and partitions; all
    /// u64 little-endian. Rarely more than a few entries.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        let mut put = |n: u64| out.extend_from_slice(&n.to_le_bytes());
        put(self.epoch.0);
        put(self.complete.0);
        for (sequence, (parts, seen)) in &self.ahead {
            put(*sequence);
            put(u64::from(*parts));
            put(seen.len() as u64);
            seen.iter().for_each(|p| put(u64::from(*p)));
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Producer> {
        let mut numbers = bytes
            .chunks(8)
            .map(|c| c.try_into().ok().map(u64::from_le_bytes));
        let mut next = || numbers.next().flatten();
        let mut producer = Producer {
            epoch: Epoch(next()?),
            complete: Sequence(next()?),
            ahead: BTreeMap::new(),
        };
        while let Some(sequence) = next() {
            let parts = u32::try_from(next()?).ok()?;
            let count = next()?;
            let seen: Option<Vec<u32>> = (0..count)
                .map(|_| next().and_then(|p| u32::try_from(p).ok()))
                .collect();
            producer.ahead.insert(sequence, (parts, seen?));
        }
        Some(producer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::{Issuer, Lane, Partition, Shard};
    use proptest::prelude::*;

    fn header(
        epoch: u64,
        base: u64,
        sequence: u64,
        lane: Lane,
        parts: u32,
    ) -> RecordHeader<'static> {
        RecordHeader {
            partition: Partition {
                issuer: Issuer::new(340_000).expect("a code"),
                lane,
                shard: Shard(0),
            },
            producer: "p",
            epoch: Epoch(epoch),
            sequence: Sequence(sequence),
            epoch_base: Sequence(base),
            parts,
        }
    }

    #[test]
    fn a_batch_is_complete_when_all_its_parts_and_all_before_it_are() {
        let mut p = Producer::default();
        assert_eq!(p.observe(&header(1, 0, 1, Lane::Urgent, 2)), Fate::Fresh);
        assert_eq!(p.observe(&header(1, 0, 2, Lane::Urgent, 1)), Fate::Fresh);
        assert_eq!(
            p.complete,
            Sequence(0),
            "the bulk part of batch 1 is missing"
        );
        assert_eq!(p.observe(&header(1, 0, 1, Lane::Bulk, 2)), Fate::Fresh);
        assert_eq!(p.complete, Sequence(2));
    }

    #[test]
    fn repeats_are_dropped_part_by_part() {
        let mut p = Producer::default();
        assert_eq!(p.observe(&header(1, 0, 1, Lane::Urgent, 2)), Fate::Fresh);
        assert_eq!(
            p.observe(&header(1, 0, 1, Lane::Urgent, 2)),
            Fate::Duplicate
        );
        assert_eq!(p.observe(&header(1, 0, 1, Lane::Bulk, 2)), Fate::Fresh);
        assert_eq!(p.observe(&header(1, 0, 1, Lane::Bulk, 2)), Fate::Duplicate);
    }

    #[test]
    fn a_batch_that_is_split_otherwise_when_it_comes_again_lands_whole() {
        let third = |parts| RecordHeader {
            partition: Partition {
                shard: Shard(1),
                ..header(1, 0, 1, Lane::Bulk, parts).partition
            },
            ..header(1, 0, 1, Lane::Bulk, parts)
        };
        let mut p = Producer::default();
        assert_eq!(p.observe(&header(1, 0, 1, Lane::Urgent, 2)), Fate::Fresh);
        // The connection broke; by now a delta is no longer of the future, and goes into a third part.
        let again = header(1, 0, 1, Lane::Urgent, 3);
        assert_eq!(p.observe(&again), Fate::Duplicate);
        assert_eq!(p.observe(&header(1, 0, 1, Lane::Bulk, 3)), Fate::Fresh);
        assert_eq!(p.complete, Sequence(0));
        assert_eq!(p.observe(&third(3)), Fate::Fresh);
        assert_eq!(p.complete, Sequence(1));
        // Or into fewer: nothing waits for a part that never comes.
        assert_eq!(p.observe(&header(1, 0, 2, Lane::Urgent, 2)), Fate::Fresh);
        assert_eq!(
            p.observe(&header(1, 0, 2, Lane::Urgent, 1)),
            Fate::Duplicate
        );
        assert_eq!(p.complete, Sequence(2));
    }

    #[test]
    fn a_new_epoch_sends_again_what_was_half_written_and_fences_the_old_one() {
        let mut p = Producer::default();
        p.observe(&header(1, 0, 1, Lane::Bulk, 1));
        // Of batch 2 only the urgent part landed before the process died.
        p.observe(&header(1, 0, 2, Lane::Urgent, 2));
        assert_eq!(p.complete, Sequence(1));
        // Its successor forms other batches from there on; none of them is a repeat.
        assert_eq!(p.observe(&header(9, 1, 2, Lane::Urgent, 1)), Fate::Fresh);
        assert_eq!(p.observe(&header(1, 0, 2, Lane::Bulk, 2)), Fate::Fenced);
        assert_eq!(p.complete, Sequence(2));
    }

    proptest! {
        #[test]
        fn any_order_of_lanes_with_repeats_applies_each_part_once(
            lanes in proptest::collection::vec(1..=3u8, 1..12),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 1..80),
        ) {
            let mut parts = Vec::new();
            for (i, mask) in lanes.iter().enumerate() {
                for (bit, lane) in [(1, Lane::Urgent), (2, Lane::Bulk)] {
                    if mask & bit != 0 {
                        parts.push(header(1, 0, i as u64 + 1, lane, mask.count_ones()));
                    }
                }
            }
            let mut p = Producer::default();
            let mut fresh = 0;
            for pick in &picks {
                let part = pick.get(&parts);
                fresh += usize::from(p.observe(part) == Fate::Fresh);
                prop_assert_eq!(Producer::decode(&p.encode()), Some(p.clone()));
            }
            for part in &parts {
                fresh += usize::from(p.observe(part) == Fate::Fresh);
            }
            prop_assert_eq!(fresh, parts.len());
            prop_assert_eq!(p.complete, Sequence(lanes.len() as u64));
        }
    }
}
