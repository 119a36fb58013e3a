//! What a log means, said a second time and as simply as it can be: the checkers compare the broker with
//! it. It shares the reading of records with the broker, and nothing of deciding.

use hutong_planted_broker::log::Entry;
use hutong_proto::{
    Delta, EntityId, Epoch, Issuer, Kind, Lane, Micros, Offset, Partition, Reason, RecordView,
    Refusal, Revision, Sequence, api, api::control_record::Act,
};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// `docs/decisions/0009-expiry-and-shards.md`: an expired value is remembered for seven days of the log's time, for it to be known that
/// an older revision is older; then it is as if it had never been.
const REMEMBERED_US: u128 = 7 * 86_400 * 1_000_000;

fn is_forgotten(expires_at: Micros, log_time: Micros) -> bool {
    let expires = expires_at != Micros::ZERO;
    expires && u128::from(log_time.0) >= u128::from(expires_at.0) + REMEMBERED_US
}

/// A register: whose, about whom, which.
pub type Register = (EntityId, Kind, Issuer);

/// A producer's batches in its present epoch.
#[derive(Clone, Debug, Default)]
struct Producer {
    epoch: Epoch,
    /// Everything up to here is there.
    base: Sequence,
    seen: BTreeMap<Sequence, (u32, BTreeSet<u32>)>,
}

impl Producer {
    fn open(&mut self, epoch: Epoch, base: Sequence) {
        if epoch > self.epoch {
            *self = Producer {
                epoch,
                base: self.complete().max(base),
                seen: BTreeMap::new(),
            };
        }
    }

    fn complete(&self) -> Sequence {
        let mut complete = self.base;
        while let Some((parts, seen)) = self.seen.get(&complete.next())
            && seen.len() as u32 >= *parts
        {
            complete = complete.next();
        }
        complete
    }
}

/// What one record changed.
#[derive(Clone, Debug)]
pub struct Effect {
    pub partition: Partition,
    pub durable_at: Micros,
    /// Those deltas that were newer, in order.
    pub fresh: Vec<Arc<Delta>>,
    /// All, also those of a record that counts for nothing; they say what was said.
    pub said: Vec<Arc<Delta>>,
    /// How many the record has.
    pub deltas: usize,
}

/// A value that a register had from an offset on.
#[derive(Clone, Debug)]
pub struct Version {
    pub offset: Offset,
    pub delta: Arc<Delta>,
}

/// The log, applied.
#[derive(Clone, Debug, Default)]
pub struct Model {
    producers: BTreeMap<(Issuer, String), Producer>,
    registers: BTreeMap<Register, Vec<Version>>,
    /// Where each revision of a register is that came in a record which counts, newer or not.
    revisions: BTreeMap<(Register, Revision), Vec<Version>>,
    effects: BTreeMap<Offset, Effect>,
    next: Offset,
    log_time: Micros,
    applied_deltas: u64,
}

impl Model {
    /// Takes the next record of the log.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), Refusal> {
        assert!(
            entry.head.offset >= self.next,
            "the log goes forward: {entry:?}"
        );
        self.next = entry.head.offset.next();
        self.log_time = entry.head.durable_at;
        let mut effect = Effect {
            partition: entry.head.partition,
            durable_at: entry.head.durable_at,
            fresh: Vec::new(),
            said: Vec::new(),
            deltas: 0,
        };
        if entry.head.partition.lane == Lane::Control {
            self.control(&entry.record)?;
        } else {
            let record = RecordView::parse(&entry.record)?;
            effect.deltas = record.deltas.len();
            for index in 0..record.deltas.len() {
                let delta = record.delta(index)?;
                let provenance = record.provenance(delta.provenance as usize)?.to_owned();
                effect
                    .said
                    .push(Arc::new(delta.to_owned(Arc::new(provenance))));
            }
            if self.is_fresh(&record) {
                for delta in effect.said.clone() {
                    self.delta(entry, delta, &mut effect);
                }
            }
        }
        self.effects.insert(entry.head.offset, effect);
        Ok(())
    }

    /// Of the broker's own records those count that end an epoch.
    fn control(&mut self, record: &[u8]) -> Result<(), Refusal> {
        let malformed = |_| Refusal::new(Reason::MessageMalformed, "control record");
        let record = api::ControlRecord::decode(record).map_err(malformed)?;
        if let Some(Act::ProducerOpened(opened)) = record.act {
            let platform = Issuer::new(opened.platform).ok_or(Reason::ValueOutOfRange)?;
            let producer = self.producers.entry((platform, opened.producer));
            producer
                .or_default()
                .open(Epoch(opened.epoch), Sequence::NONE);
        }
        Ok(())
    }

    fn is_fresh(&mut self, record: &RecordView<'_>) -> bool {
        let header = &record.header;
        let name = (header.partition.issuer, header.producer.to_owned());
        let producer = self.producers.entry(name).or_default();
        if header.epoch < producer.epoch {
            return false;
        }
        producer.open(header.epoch, header.epoch_base);
        if header.sequence <= producer.base {
            return false;
        }
        let (parts, seen) = producer
            .seen
            .entry(header.sequence)
            .or_insert((header.parts, BTreeSet::new()));
        let fresh = seen.insert(header.partition.to_number());
        // Sent again, it may be split otherwise.
        *parts = match fresh {
            true => header.parts.max(*parts),
            false => header.parts,
        };
        producer.base = producer.complete();
        producer.seen = producer.seen.split_off(&producer.base.next());
        fresh
    }

    fn delta(&mut self, entry: &Entry, delta: Arc<Delta>, effect: &mut Effect) {
        let issuer = entry.head.partition.issuer;
        let register = (delta.entity, delta.value.kind(), issuer);
        let version = Version {
            offset: entry.head.offset,
            delta: Arc::clone(&delta),
        };
        let said = self.revisions.entry((register, delta.revision));
        said.or_default().push(version.clone());
        let versions = self.registers.entry(register).or_default();
        let newest = versions
            .last()
            .filter(|v| !is_forgotten(v.delta.expires_at, entry.head.durable_at));
        if newest.is_none_or(|newest| newest.delta.revision < delta.revision) {
            versions.push(version);
            effect.fresh.push(delta);
            self.applied_deltas += 1;
        }
    }

    /// The offset after the last record.
    pub fn next(&self) -> Offset {
        self.next
    }

    pub fn log_time(&self) -> Micros {
        self.log_time
    }

    /// Deltas that changed something.
    pub fn applied_deltas(&self) -> u64 {
        self.applied_deltas
    }

    pub fn effect(&self, offset: Offset) -> Option<&Effect> {
        self.effects.get(&offset)
    }

    /// What a lane changed from one offset to another, at these issuers.
    pub fn effects(&self, from: Offset, below: Offset) -> impl Iterator<Item = (Offset, &Effect)> {
        let below = below.max(from);
        self.effects.range(from..below).map(|(o, e)| (*o, e))
    }

    /// All registers as the records below an offset left them, but for what is forgotten by then.
    pub fn registers_below(&self, below: Offset, log_time: Micros) -> BTreeMap<Register, Version> {
        let newest = self.registers.iter().filter_map(|(register, versions)| {
            let known = versions.partition_point(|v| v.offset < below);
            let newest = versions[..known].last()?;
            let forgotten = is_forgotten(newest.delta.expires_at, log_time);
            (!forgotten).then(|| (*register, newest.clone()))
        });
        newest.collect()
    }

    /// The log's time after the records below an offset.
    pub fn log_time_below(&self, below: Offset) -> Micros {
        let last = self.effects.range(..below).next_back();
        last.map_or(Micros::ZERO, |(_, effect)| effect.durable_at)
    }

    /// The newest revision that a register ever had.
    pub fn revision(&self, register: &Register) -> Option<Revision> {
        self.registers
            .get(register)?
            .iter()
            .map(|v| v.delta.revision)
            .max()
    }

    /// Where this very delta is, if it is in a record that counts.
    pub fn place(&self, issuer: Issuer, delta: &Delta) -> Option<Offset> {
        let register = (delta.entity, delta.value.kind(), issuer);
        let said = self.revisions.get(&(register, delta.revision))?;
        let found = said.iter().find(|version| *version.delta == *delta)?;
        Some(found.offset)
    }

    /// All batches of a producer up to this one are there.
    pub fn complete(&self, issuer: Issuer, producer: &str) -> Sequence {
        let producer = self.producers.get(&(issuer, producer.to_owned()));
        producer.map_or(Sequence::NONE, Producer::complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::plan::{people, record};
    use hutong_planted_broker::log::EntryHead;
    use hutong_proto::{KindSet, Shard};

    fn partition(lane: Lane) -> Partition {
        Partition {
            issuer: people(1, 1).partition.issuer,
            lane,
            shard: Shard(0),
        }
    }

    /// A log that is written as it is read.
    #[derive(Default)]
    struct Written(Model, u64);

    impl Written {
        fn append(&mut self, partition: Partition, bytes: bytes::Bytes) -> Effect {
            self.1 += 1;
            let head = EntryHead {
                offset: Offset(self.1),
                partition,
                ordinal: self.1,
                durable_at: Micros(self.1),
                kinds: KindSet::ALL,
                deltas: 1,
            };
            let entry = Entry {
                head,
                record: bytes,
            };
            self.0.apply(&entry).expect("sound");
            self.0.effect(Offset(self.1)).expect("an effect").clone()
        }

        /// Whether a batch of one delta, of which this is a part in this lane, counts. Each has a person of its own.
        fn counts(&mut self, lane: Lane, numbers: (u64, u64, u32)) -> bool {
            let planned = people(self.1 + 10, 1);
            let view = RecordView::parse(&planned.record).expect("sound");
            let delta = view.delta(0).expect("sound");
            let provenance = view.provenance(0).expect("sound").to_owned();
            let delta = delta.to_owned(Arc::new(provenance));
            let bytes = record(partition(lane), "p", numbers, &[delta]).record;
            self.append(partition(lane), bytes).fresh.len() == 1
        }

        fn complete(&self) -> u64 {
            self.0.complete(partition(Lane::Urgent).issuer, "p").0
        }
    }

    #[test]
    fn a_batch_counts_once_and_a_producer_is_complete_up_to_the_first_gap() {
        use Lane::{Bulk, Urgent};
        let mut log = Written::default();
        assert!(log.counts(Urgent, (1, 1, 1)));
        assert_eq!(log.complete(), 1);
        assert!(!log.counts(Urgent, (1, 1, 1)), "it was there");
        assert!(log.counts(Urgent, (1, 3, 1)));
        assert!(log.counts(Bulk, (1, 2, 2)));
        assert_eq!(log.complete(), 1, "a part of the second is missing");
        assert!(!log.counts(Bulk, (1, 2, 2)));
        assert!(log.counts(Urgent, (1, 2, 2)));
        assert_eq!(log.complete(), 3);
        assert_eq!(log.0.applied_deltas(), 4);
    }

    #[test]
    fn what_an_ended_epoch_wrote_counts_for_nothing() {
        let mut log = Written::default();
        assert!(log.counts(Lane::Urgent, (1, 1, 1)));
        assert!(log.counts(Lane::Bulk, (1, 2, 2)));
        // What was half written of the second is sent again by the next epoch, and counts then.
        assert!(log.counts(Lane::Bulk, (2, 2, 2)));
        assert!(!log.counts(Lane::Urgent, (1, 2, 2)), "its epoch has ended");
        assert_eq!(log.complete(), 1);
        assert!(log.counts(Lane::Urgent, (2, 2, 2)));
        assert_eq!(log.complete(), 2);
        // One can also be ended before anything of the next was written.
        let opened = api::ProducerOpened {
            platform: partition(Lane::Urgent).issuer.code(),
            producer: "p".to_owned(),
            epoch: 5,
        };
        let act = Some(Act::ProducerOpened(opened));
        let control = api::ControlRecord { act }.encode_to_vec();
        log.append(Partition::CONTROL, control.into());
        assert!(!log.counts(Lane::Urgent, (4, 3, 1)));
        assert!(log.counts(Lane::Urgent, (5, 3, 1)));
        assert_eq!(log.complete(), 3, "what was complete stays so");
    }
}
