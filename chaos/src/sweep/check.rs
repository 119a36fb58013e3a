//! Opens what a power cut left, and judges it: INV-1 to INV-5, then goes on writing and judges again.

use crate::{
    model::Model,
    sweep::{
        plan::{Plan, Planned, afterwards},
        store::{OnAck, PATIENCE, Store},
    },
};
use hutong_planted_broker::{
    log::{Entry, EntryHead, Log, faults::Faults},
    state::{keys, keys::RegisterKey},
};
use hutong_proto::{Micros, Offset, Partition};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

#[cfg(test)]
mod tests;

/// What a process said up to some moment.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// Records that the log acknowledged, by where they are.
    pub acked: BTreeMap<Offset, usize>,
    /// Where the highest trim of a partition may have come to, and where it was said to be done.
    pub trims: BTreeMap<u32, (Offset, Offset)>,
}

impl Said {
    pub fn take(&mut self, line: &str) {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default();
        let mut number = || -> u64 {
            let word = words.next().and_then(|word| word.parse().ok());
            word.unwrap_or_else(|| panic!("a word that is not understood: {line}"))
        };
        let (first, second) = (number(), Offset(number()));
        match what {
            "acked" => drop(self.acked.insert(second, first as usize)),
            "trims" => self.trims.entry(first as u32).or_default().0 = second,
            "trimmed" => self.trims.entry(first as u32).or_default().1 = second,
            _ => panic!("a word that is not understood: {line}"),
        }
    }
}

/// What is broken, with the invariant that it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

fn violation(invariant: &'static str, what: impl Into<String>) -> Violation {
    Violation {
        invariant,
        what: what.into(),
    }
}

/// A recovery that was right.
#[derive(Clone, Copy, Debug)]
pub struct Recovered {
    pub took: Duration,
    pub log_records: u64,
    pub replayed: u64,
    pub registers: usize,
}

/// What a checker knows of a store.
#[derive(Debug)]
pub struct Checker<'a> {
    pub plan: &'a Plan,
    /// Everything that was ever acknowledged, also after the moment of the cut: names what was trimmed.
    pub known: &'a BTreeMap<Offset, usize>,
}

impl Checker<'_> {
    /// Judges a folder, goes on in it, and judges it once more.
    pub fn check(&self, dir: &Path, said: &Said, attempt: u64) -> Result<Recovered, Violation> {
        let mut all: Vec<Planned> = self.plan.records.clone();
        let (recovered, mut store) = self.open(dir, said, &all)?;
        let mut said = said.clone();
        let first = all.len();
        all.extend(afterwards(attempt));
        let end = store.log.next_offset();
        let acked = append(&mut store, &all, first..all.len())?;
        for (offset, number) in acked {
            if offset < end {
                let what = format!("offset {offset} was given out again, the log ended at {end}");
                return Err(violation("INV-3", what));
            }
            said.acked.insert(offset, number);
        }
        store.close().map_err(|e| violation("INV-11", e))?;
        let (_, store) = self.open(dir, &said, &all)?;
        store.close().map_err(|e| violation("INV-11", e))?;
        Ok(recovered)
    }

    fn open(
        &self,
        dir: &Path,
        said: &Said,
        all: &[Planned],
    ) -> Result<(Recovered, Store), Violation> {
        let refused = |why: String| match why.strip_prefix("INV-5: ") {
            Some(why) => violation("INV-5", why),
            None => violation("INV-3", format!("it does not recover: {why}")),
        };
        let started = Instant::now();
        let mut store = Store::open(dir, Faults::default()).map_err(refused)?;
        let opened = started.elapsed();
        let entries = entries(&store)?;
        let model = self.judge_log(&store, &entries, said, all)?;
        let stored = store.state.stored();
        judge_state(&store, &model, stored.next)?;
        let replaying = Instant::now();
        store
            .apply_up_to(store.last())
            .map_err(|e| violation("INV-3", format!("the log cannot be applied: {e}")))?;
        let took = opened + replaying.elapsed();
        judge_state(&store, &model, store.log.next_offset())?;
        judge_exceptions(&store, &model)?;
        let recovered = Recovered {
            took,
            log_records: entries.len() as u64,
            replayed: store.log.next_offset().0.saturating_sub(stored.next.0),
            registers: model.registers_below(Offset(u64::MAX), Micros::ZERO).len(),
        };
        Ok((recovered, store))
    }

    /// Every offset has its record, or was trimmed; what was acknowledged is there; nothing else is.
    fn judge_log(
        &self,
        store: &Store,
        entries: &BTreeMap<Offset, Entry>,
        said: &Said,
        all: &[Planned],
    ) -> Result<Model, Violation> {
        let trimmed = judge_trims(store, said)?;
        let gone = |partition: &Partition, offset| {
            trimmed.get(partition).is_some_and(|below| offset < *below)
        };
        for (offset, number) in &said.acked {
            let planned = &all[*number];
            match entries.get(offset) {
                Some(entry)
                    if entry.head.partition == planned.partition
                        && entry.record == planned.record => {}
                Some(_) => {
                    let what = format!(
                        "offset {offset} was acknowledged for record {number}, and holds another one"
                    );
                    return Err(violation("INV-1", what));
                }
                None if gone(&planned.partition, *offset) => {}
                None => {
                    let what =
                        format!("record {number} was acknowledged at offset {offset}, and is lost");
                    return Err(violation("INV-1", what));
                }
            }
        }
        let published: BTreeSet<&[u8]> = all.iter().map(|p| p.record.as_ref()).collect();
        let mut model = Model::default();
        let mut ordinals: BTreeMap<Partition, u64> = BTreeMap::new();
        for offset in 1..store.log.next_offset().0 {
            let offset = Offset(offset);
            if let Some(entry) = entries.get(&offset) {
                if !published.contains(entry.record.as_ref()) {
                    let what = format!("nobody published what is at offset {offset}");
                    return Err(violation("INV-2", what));
                }
                let before = ordinals.insert(entry.head.partition, entry.head.ordinal);
                if before.is_some_and(|before| entry.head.ordinal != before + 1) {
                    let what = format!(
                        "{} goes from ordinal {before:?} to {}",
                        entry.head.partition, entry.head.ordinal
                    );
                    return Err(violation("INV-3", what));
                }
                apply(&mut model, entry)?;
                continue;
            }
            let known = said.acked.get(&offset).or_else(|| self.known.get(&offset));
            let known = known.map(|number| &all[*number]);
            match known.filter(|planned| gone(&planned.partition, offset)) {
                // Its effect stays.
                Some(planned) => apply(&mut model, &trimmed_entry(offset, planned))?,
                None => {
                    let what =
                        format!("there is no record at offset {offset}, and others behind it");
                    return Err(violation("INV-3", what));
                }
            }
        }
        Ok(model)
    }
}

/// Below what each partition was trimmed: as far as was asked, and as was said.
fn judge_trims(store: &Store, said: &Said) -> Result<BTreeMap<Partition, Offset>, Violation> {
    let mut trimmed = BTreeMap::new();
    for info in store.log.partitions() {
        let number = info.partition.to_number();
        let (begun, done) = said.trims.get(&number).copied().unwrap_or_default();
        let below = info.trimmed_below;
        if below > begun {
            let what = format!(
                "{} is trimmed below {below}, only {begun} was asked for",
                info.partition
            );
            return Err(violation("INV-1", what));
        }
        if below < done {
            let what = format!(
                "{} was trimmed below {done}, and is kept from {below} on",
                info.partition
            );
            return Err(violation("INV-3", what));
        }
        trimmed.insert(info.partition, below);
    }
    Ok(trimmed)
}

fn apply(model: &mut Model, entry: &Entry) -> Result<(), Violation> {
    model.apply(entry).map_err(|refusal| {
        let what = format!(
            "the record at offset {} cannot be read: {refusal}",
            entry.head.offset
        );
        violation("INV-3", what)
    })
}

/// Nothing in a plan expires, so its time does not matter.
fn trimmed_entry(offset: Offset, planned: &Planned) -> Entry {
    Entry {
        head: EntryHead {
            offset,
            partition: planned.partition,
            ordinal: 0,
            durable_at: Micros::ZERO,
            kinds: planned.kinds,
            deltas: planned.deltas,
        },
        record: planned.record.clone(),
    }
}

fn entries(store: &Store) -> Result<BTreeMap<Offset, Entry>, Violation> {
    let mut found = BTreeMap::new();
    for info in store.log.partitions() {
        let read = store
            .log
            .read(info.partition, info.trimmed_below, usize::MAX);
        let read = read.map_err(|e| violation("INV-3", format!("the log cannot be read: {e}")))?;
        found.extend(read.into_iter().map(|entry| (entry.head.offset, entry)));
    }
    Ok(found)
}

/// State is exactly the effect of the records below `next`.
fn judge_state(store: &Store, model: &Model, next: Offset) -> Result<(), Violation> {
    if store.state.applied().next != next {
        let what = format!(
            "state is applied below {}, expected {next}",
            store.state.applied().next
        );
        return Err(violation("INV-5", what));
    }
    let expected = model.registers_below(next, Micros::ZERO);
    let failed = |e| violation("INV-3", format!("state cannot be read: {e}"));
    let rows = store.state.with_snapshot(|rows, _| {
        let mut found = BTreeMap::new();
        while let Some((
            RegisterKey {
                entity,
                kind,
                issuer,
            },
            row,
        )) = rows.next_row()?
        {
            let row = (
                row.offset,
                row.revision,
                row.value.to_vec(),
                row.evidence.to_owned(),
            );
            found.insert((entity, kind, issuer), row);
        }
        Ok(found)
    });
    let rows = rows.and_then(|rows| rows).map_err(failed)?;
    for (register, version) in &expected {
        let delta = &version.delta;
        let row = (
            version.offset,
            delta.revision,
            delta.value.encode(),
            delta.evidence.clone(),
        );
        let found = rows.get(register);
        if found != Some(&row) {
            let invariant = match found {
                Some((_, revision, ..)) if *revision < delta.revision => "INV-4",
                _ => "INV-5",
            };
            let found = found.map(|(offset, revision, ..)| (offset, revision));
            let what = format!(
                "below {next} a register has revision {} of offset {}; state has {found:?}",
                delta.revision, version.offset
            );
            return Err(violation(invariant, what));
        }
    }
    if let Some(register) = rows
        .keys()
        .find(|register| !expected.contains_key(*register))
    {
        let what = format!(
            "state below {next} has a register that no record wrote: {:?}",
            register.1
        );
        return Err(violation("INV-2", what));
    }
    Ok(())
}

/// Readers of the log leave out exactly what was not applied.
fn judge_exceptions(store: &Store, model: &Model) -> Result<(), Violation> {
    let next = store.log.next_offset();
    let rows = store
        .state
        .scan_range(&keys::exception(Offset::NONE), &keys::exception(next));
    let rows = rows.map_err(|e| violation("INV-3", e.to_string()))?;
    let found: BTreeSet<Offset> = rows
        .iter()
        .filter_map(|(key, _)| keys::decode_exception(key))
        .collect();
    for (offset, effect) in model.effects(Offset::FIRST, next) {
        let dropped = effect.fresh.len() < effect.deltas;
        if dropped != found.contains(&offset) {
            let what = format!(
                "of offset {offset} something was dropped: {dropped}; state says the opposite"
            );
            return Err(violation("INV-5", what));
        }
    }
    Ok(())
}

/// Appends and waits until it is acknowledged and applied.
fn append(
    store: &mut Store,
    all: &[Planned],
    numbers: std::ops::Range<usize>,
) -> Result<Vec<(Offset, usize)>, Violation> {
    let acked = Arc::new(Mutex::new(Vec::new()));
    let on_ack: OnAck = {
        let acked = Arc::clone(&acked);
        Arc::new(move |number, offset| acked.lock().push((offset, number)))
    };
    let mut last = Offset::NONE;
    for number in numbers {
        let (told, outcome) = mpsc::channel();
        store.append(number, &all[number], &on_ack, told);
        let told = outcome
            .recv_timeout(PATIENCE)
            .map_err(|e| violation("INV-3", format!("a record is not answered: {e}")))?;
        let told = told.map_err(|e| violation("INV-3", format!("it does not go on: {e}")))?;
        last = last.max(told);
    }
    store.apply_up_to(last).map_err(|e| violation("INV-3", e))?;
    let acked = std::mem::take(&mut *acked.lock());
    Ok(acked)
}
