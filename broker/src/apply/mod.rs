//! Stage 5: what the log says becomes state. A deterministic function of the log: repeats of a batch
//! are dropped, the highest revision of a register stays, and time is the log's, never the wall
//! clock's. One thread owns it.

pub mod exceptions;
mod flip_flops;
pub mod producers;
pub mod provenances;
#[cfg(test)]
mod tests;
pub mod waiters;
pub mod ways;

use crate::{
    log::{Entry, Tail},
    metrics::{Colours, Recorder},
    state::{
        Applied, Group, State, StateError,
        keys::{self, RegisterKey},
        row::{ProvenanceId, Row},
    },
    tail::{TailEntry, TailRings},
};
use exceptions::Dropped;
use flip_flops::FlipFlops;
use hutong_proto::{
    Epoch, Issuer, Kind, Lane, Micros, Reason, Refusal, Revision, Shard, TraceContext, api,
    delta::DeltaParts, record::RecordView,
};
use producers::{Fate, Producer};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};
use waiters::{BatchKey, PartOutcome, Waiters};

/// Provenance entries whose id is remembered; a platform uses a few hundred.
const PROVENANCE_CACHE_MAX: usize = 16_384;

/// Deltas of one record whose way to subscribers is traced.
const TRACES_PER_RECORD_MAX: usize = 8;

/// Why apply had to stop. The broker stops with it: an order of effects that cannot be continued
/// must not be guessed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the record at offset {offset} cannot be read, the log is damaged: {why}")]
    Damaged { offset: u64, why: String },
}

/// Everything apply needs to know between groups.
#[derive(Debug)]
pub struct Apply {
    state: Arc<State>,
    rings: Arc<TailRings>,
    waiters: Arc<Waiters>,
    metrics: Recorder,
    /// Highest revision seen of each kind of an issuer's shard: a revision above it is newer than
    /// anything stored and costs no look-up.
    highest: HashMap<(Issuer, Kind, Shard), Revision>,
    producers: HashMap<(Issuer, Arc<str>), Producer>,
    provenances: HashMap<(Issuer, Box<[u8]>), ProvenanceId>,
    /// Which entities changed colour last.
    flips: FlipFlops,
    /// Rows in the making.
    rows: Rows,
}

/// Rows that are made together and then put together. The places they go to are all over memory: one
/// after the other without anything in between, the processor waits for them at once.
#[derive(Debug, Default)]
struct Rows {
    bytes: Vec<u8>,
    /// Where each one ends.
    keys: Vec<(RegisterKey, usize)>,
}

impl Rows {
    const TOGETHER: usize = 64;

    fn add(&mut self, key: RegisterKey, row: &Row<'_>, group: &mut Group<'_>) {
        row.encode(&mut self.bytes);
        self.keys.push((key, self.bytes.len()));
        if self.keys.len() >= Rows::TOGETHER {
            self.put(group);
        }
    }

    fn put(&mut self, group: &mut Group<'_>) {
        let mut start = 0;
        for (key, end) in self.keys.drain(..) {
            group.put_register(&key, &self.bytes[start..end]);
            start = end;
        }
        self.bytes.clear();
    }
}

/// What a group changed, to be told after it is committed.
struct Effects {
    began: Instant,
    tail: Vec<TailEntry>,
    parts: Vec<(BatchKey, PartOutcome)>,
    /// In order, so that the same log gives the same writes.
    producers: BTreeSet<(Issuer, Arc<str>)>,
    highest: BTreeSet<(Issuer, Kind, Shard)>,
    deltas: u64,
    colours: HashMap<Issuer, Colours>,
}

impl Effects {
    fn part(&self, entry: &Entry, fate: Fate, stale: Vec<u32>) -> PartOutcome {
        PartOutcome {
            partition: entry.head.partition,
            offset: entry.head.offset,
            durable_at: entry.head.durable_at,
            // Not yet: set when the group is.
            applied_at: self.began,
            fate,
            stale,
        }
    }
}

impl Default for Effects {
    fn default() -> Effects {
        Effects {
            began: Instant::now(),
            tail: Vec::new(),
            parts: Vec::new(),
            producers: BTreeSet::new(),
            highest: BTreeSet::new(),
            deltas: 0,
            colours: HashMap::new(),
        }
    }
}

impl Apply {
    /// Loads what must be remembered from the stored state.
    pub fn open(
        state: Arc<State>,
        rings: Arc<TailRings>,
        waiters: Arc<Waiters>,
        metrics: Recorder,
    ) -> Result<Apply, ApplyError> {
        let mut apply = Apply {
            state,
            rings,
            waiters,
            metrics,
            highest: HashMap::new(),
            producers: HashMap::new(),
            provenances: HashMap::new(),
            flips: FlipFlops::default(),
            rows: Rows::default(),
        };
        let damaged = |key: &[u8]| StateError::damaged(key, "does not decode");
        for (key, value) in apply.state.scan(&keys::highest_prefix())? {
            let (issuer, kind, shard) = keys::decode_highest(&key).ok_or_else(|| damaged(&key))?;
            let revision = value.as_slice().try_into().map_err(|_| damaged(&key))?;
            let revision = Revision(u64::from_be_bytes(revision));
            if planted!(HighestForgotten) {
                continue;
            }
            apply.highest.insert((issuer, kind, shard), revision);
        }
        for (key, value) in apply.state.scan(&keys::producer_prefix())? {
            let (issuer, name) = keys::decode_producer(&key).ok_or_else(|| damaged(&key))?;
            let producer = Producer::decode(&value).ok_or_else(|| damaged(&key))?;
            apply.producers.insert((issuer, name.into()), producer);
        }
        for (key, value) in apply.state.scan(&keys::provenance_count_prefix())? {
            let issuer = keys::decode_provenance_count(&key).ok_or_else(|| damaged(&key))?;
            let count = value.as_slice().try_into().map_err(|_| damaged(&key))?;
            let provenances = &apply.waiters.provenances;
            provenances.set(issuer, u64::from_be_bytes(count));
        }
        Ok(apply)
    }

    /// Applies what the log gives until it closes.
    pub fn run(mut self, mut log: Box<dyn Tail>) -> Result<(), ApplyError> {
        while let Some(entries) = log.next() {
            let started = Instant::now();
            self.group(&entries)?;
            self.metrics.applied(entries.len(), started.elapsed());
        }
        Ok(())
    }

    /// Applies one group: state first, then readers and waiting producers.
    pub fn group(&mut self, entries: &[Entry]) -> Result<(), ApplyError> {
        let Some(last) = entries.last() else {
            return Ok(());
        };
        let state = Arc::clone(&self.state);
        let mut group = state.begin()?;
        let mut effects = Effects::default();
        for entry in entries {
            self.entry(entry, &mut group, &mut effects)
                .map_err(|error| match error {
                    EntryError::State(error) => ApplyError::State(error),
                    EntryError::Unreadable(why) => ApplyError::Damaged {
                        offset: entry.head.offset.0,
                        why: why.to_string(),
                    },
                })?;
        }
        for key in &effects.producers {
            let row = self.producers[key].encode();
            group.put(&keys::producer(key.0, &key.1), &row);
        }
        for key in &effects.highest {
            let row = self.highest[key].0.to_be_bytes();
            group.put(&keys::highest(key.0, key.1, key.2), &row);
        }
        failpoint!(ApplyCommitted);
        let before = group.applied();
        let next = last.head.offset.next();
        group.commit(Applied {
            next,
            log_time: last.head.durable_at,
            deltas: before.deltas + effects.deltas,
        });
        failpoint!(ApplyVisible);
        if let Some(ways) = self.waiters.ways() {
            ways.applied(entries.iter().map(|entry| &entry.head));
        }
        self.rings.push(effects.tail, next);
        for (issuer, colours) in &effects.colours {
            self.metrics.colours(*issuer, colours);
        }
        let applied_at = Instant::now();
        for (key, mut part) in effects.parts {
            part.applied_at = applied_at;
            self.waiters.applied(&key, part);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        entry: &Entry,
        group: &mut Group<'_>,
        effects: &mut Effects,
    ) -> Result<(), EntryError> {
        if entry.head.partition.lane == Lane::Control {
            return self.control(entry, group, effects);
        }
        let record = RecordView::parse(&entry.record)?;
        let producer: Arc<str> = record.header.producer.into();
        let producer_key = (record.header.partition.issuer, Arc::clone(&producer));
        let known = self.producers.entry(producer_key.clone()).or_default();
        let fate = known.observe(&record.header);
        effects.producers.insert(producer_key);
        let applied = match fate {
            Fate::Fresh => self.deltas(entry, &record, group, effects)?,
            Fate::Duplicate | Fate::Fenced => Deltas::default(),
        };
        let stale = applied.stale;
        let dropped = match fate {
            Fate::Fresh if stale.is_empty() => Dropped::Nothing,
            Fate::Fresh if stale.len() < record.deltas.len() => Dropped::Some(stale.clone()),
            _ => Dropped::All,
        };
        if let Some(row) = dropped.encode()
            && !planted!(ExceptionForgotten)
        {
            group.put(&keys::exception(entry.head.offset), &row);
        }
        if let Some(delivered) = dropped.cut(&entry.head, &entry.record, &record) {
            let tail = TailEntry::new(entry.head, delivered);
            effects
                .tail
                .push(tail.about(applied.committed_at, &applied.traces));
        }
        let key = BatchKey {
            issuer: record.header.partition.issuer,
            producer,
            epoch: record.header.epoch,
            sequence: record.header.sequence,
        };
        let part = effects.part(entry, fate, stale);
        effects.parts.push((key, part));
        Ok(())
    }

    /// Applies a record of the control partition.
    fn control(
        &mut self,
        entry: &Entry,
        group: &mut Group<'_>,
        effects: &mut Effects,
    ) -> Result<(), EntryError> {
        use api::control_record::Act;
        let record = api::ControlRecord::decode(entry.record.as_ref()).map_err(|error| {
            Refusal::new(Reason::MessageMalformed, "control record").detail(error.to_string())
        })?;
        let issuer = |code| {
            Issuer::new(code).ok_or_else(|| Refusal::new(Reason::ValueOutOfRange, "platform"))
        };
        match record.act {
            Some(Act::CursorsStored(stored)) => {
                for subscription in stored.subscriptions {
                    let platform = issuer(subscription.platform)?;
                    let key = keys::subscription(platform, &subscription.subscription);
                    group.put(&key, &subscription.encode_to_vec());
                }
            }
            Some(Act::SubscriptionDeleted(deleted)) => {
                let platform = issuer(deleted.platform)?;
                group.delete(&keys::subscription(platform, &deleted.subscription));
            }
            Some(Act::ProducerOpened(opened)) => {
                let (platform, epoch) = (issuer(opened.platform)?, Epoch(opened.epoch));
                let name: Arc<str> = opened.producer.into();
                let producer = (platform, Arc::clone(&name));
                let fate = self
                    .producers
                    .entry(producer.clone())
                    .or_default()
                    .open(epoch);
                effects.producers.insert(producer);
                let part = effects.part(entry, fate, Vec::new());
                effects
                    .parts
                    .push((BatchKey::opening(platform, name, epoch), part));
            }
            // It moved the offsets on, by being there.
            Some(Act::Restored(_)) | None => {}
        }
        Ok(())
    }

    /// Applies the deltas of a fresh record.
    fn deltas(
        &mut self,
        entry: &Entry,
        record: &RecordView<'_>,
        group: &mut Group<'_>,
        effects: &mut Effects,
    ) -> Result<Deltas, EntryError> {
        let issuer = entry.head.partition.issuer;
        let shard = entry.head.partition.shard;
        let mut applied = Deltas::default();
        let mut colours = Colours::default();
        // Issuer and shard are the record's, so there is one for each kind, looked up once.
        let mut highest = Kind::ALL.map(|kind| {
            let bucket = (issuer, kind, shard);
            (
                bucket,
                self.highest.get(&bucket).copied().unwrap_or_default(),
            )
        });
        // Most records use few entries of their table; ids are found when first used.
        let mut ids: BTreeMap<u32, ProvenanceId> = BTreeMap::new();
        for index in 0..record.deltas.len() {
            let delta = record.delta_parts(index)?;
            let key = RegisterKey {
                entity: delta.entity,
                kind: delta.kind,
                issuer,
            };
            let (_, highest) = &mut highest[delta.kind as usize - 1];
            if delta.revision > *highest {
                *highest = delta.revision;
            } else if self.is_stale(&key, delta.revision, entry.head.durable_at, group)? {
                applied.stale.push(index as u32);
                continue;
            }
            let provenance = match ids.get(&delta.provenance) {
                Some(id) => *id,
                None => {
                    let bytes = record.provenance(delta.provenance as usize)?.bytes;
                    let id = self.provenance(issuer, bytes, group)?;
                    ids.insert(delta.provenance, id);
                    id
                }
            };
            self.rows
                .add(key, &row_of(&delta, entry, provenance), group);
            effects.deltas += 1;
            applied.count(&delta);
            if delta.kind == Kind::HealthCode {
                self.flips
                    .count(&key, delta.value, entry.head.durable_at, &mut colours);
            }
        }
        self.rows.put(group);
        if colours != Colours::default() {
            effects.colours.entry(issuer).or_default().add(&colours);
        }
        for (bucket, revision) in highest {
            let known = self.highest.entry(bucket).or_default();
            if revision > *known {
                *known = revision;
                effects.highest.insert(bucket);
            }
        }
        Ok(applied)
    }

    /// Whether the register has a value that is as new.
    fn is_stale(
        &mut self,
        key: &RegisterKey,
        revision: Revision,
        at: Micros,
        group: &mut Group<'_>,
    ) -> Result<bool, StateError> {
        // The row may be one of them.
        self.rows.put(group);
        let row = group.get_register(key, at)?;
        Ok(row.is_some_and(|row| row.revision >= revision) && !planted!(RevisionIgnored))
    }

    /// The id of a provenance entry, storing the entry when it is new.
    fn provenance(
        &mut self,
        issuer: Issuer,
        bytes: &[u8],
        group: &mut Group<'_>,
    ) -> Result<ProvenanceId, StateError> {
        let cache_key = (issuer, Box::from(bytes));
        if let Some(id) = self.provenances.get(&cache_key) {
            return Ok(*id);
        }
        let id = ProvenanceId::of(bytes);
        let key = keys::provenance(id);
        if group.get(&key)?.is_none() {
            group.put(&key, bytes);
            let count = self.waiters.provenances.add(issuer);
            group.put(&keys::provenance_count(issuer), &count.to_be_bytes());
        }
        if self.provenances.len() >= PROVENANCE_CACHE_MAX {
            self.provenances.clear();
        }
        self.provenances.insert(cache_key, id);
        Ok(id)
    }
}

/// What came of the deltas of a record.
#[derive(Default)]
struct Deltas {
    /// Not newer than what is there: their indexes.
    stale: Vec<u32>,
    /// At its source, of the oldest one of the others.
    committed_at: Option<Micros>,
    /// Of the others.
    traces: Vec<TraceContext>,
}

impl Deltas {
    fn count(&mut self, delta: &DeltaParts<'_>) {
        let at = delta.committed_at;
        self.committed_at = Some(self.committed_at.map_or(at, |oldest| oldest.min(at)));
        if let Some(trace) = delta.trace
            && self.traces.len() < TRACES_PER_RECORD_MAX
        {
            self.traces.push(trace);
        }
    }
}

fn row_of<'a>(delta: &DeltaParts<'a>, entry: &Entry, provenance: ProvenanceId) -> Row<'a> {
    Row {
        revision: delta.revision,
        committed_at: delta.committed_at,
        expires_at: delta.expires_at,
        offset: entry.head.offset,
        provenance,
        evidence: delta.evidence,
        value: delta.value,
    }
}

#[derive(Debug)]
enum EntryError {
    State(StateError),
    Unreadable(Refusal),
}

impl From<StateError> for EntryError {
    fn from(error: StateError) -> Self {
        EntryError::State(error)
    }
}

impl From<Refusal> for EntryError {
    fn from(refusal: Refusal) -> Self {
        EntryError::Unreadable(refusal)
    }
}
