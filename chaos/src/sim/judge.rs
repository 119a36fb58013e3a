//! Knows what is in the log, and says whether what clients see of it is right.

use crate::{
    model::{Model, Register},
    sim::world::Violation,
};
use hutong_planted_broker::log::{Log, memory::MemoryLog};
use hutong_planted_connectors::client::{Delivered, Event};
use hutong_proto::{Cursor, Delta, Issuer, Kind, Lane, Micros, Offset, Partition, Revision};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

#[cfg(test)]
mod tests;

/// What a subscription wants, said once more.
#[derive(Clone, Debug)]
pub struct Wants {
    pub own: Issuer,
    /// Empty: all.
    pub kinds: Vec<Kind>,
}

impl Wants {
    fn takes(&self, issuer: Issuer, kind: Kind) -> bool {
        issuer != self.own && (self.kinds.is_empty() || self.kinds.contains(&kind))
    }
}

/// Follows one subscription, as its platform sees it.
#[derive(Clone, Debug)]
pub struct View {
    pub wants: Wants,
    /// Everything below was delivered; none within a snapshot.
    cursor: Option<Cursor>,
    rows: BTreeMap<Register, (Revision, Arc<Delta>)>,
}

impl View {
    /// A stream begins here, or with a snapshot.
    pub fn new(wants: Wants, cursor: Option<Cursor>) -> View {
        View {
            wants,
            cursor,
            rows: BTreeMap::new(),
        }
    }
}

/// The model, the log that it is of, and what was promised.
#[derive(Debug)]
pub struct Judge {
    disk: Arc<MemoryLog>,
    partitions: Vec<Partition>,
    pub model: Model,
    /// Of each acknowledged revision of a register, where in the log it is.
    acked: BTreeMap<(Register, Revision), Offset>,
    pub acknowledged: u64,
    pub delivered: u64,
    /// With which group of records it could be delivered.
    visible: BTreeMap<Offset, u64>,
    groups: u64,
}

fn violation<T>(invariant: &'static str, what: String) -> Result<T, Violation> {
    Err(Violation { invariant, what })
}

/// In deltas that must be refused.
pub const BAD_EVIDENCE: &str = "bad";

impl Judge {
    pub fn new(disk: Arc<MemoryLog>, issuers: &[Issuer]) -> Judge {
        let mut partitions = vec![Partition::CONTROL];
        for issuer in issuers {
            partitions.extend(Lane::DELIVERED.map(|lane| Partition {
                issuer: *issuer,
                lane,
                shard: hutong_proto::Shard(0),
            }));
        }
        Judge {
            disk,
            partitions,
            model: Model::default(),
            acked: BTreeMap::new(),
            acknowledged: 0,
            delivered: 0,
            visible: BTreeMap::new(),
            groups: 0,
        }
    }

    /// Reads what the log has more by now.
    pub fn catch_up(&mut self) -> Result<(), Violation> {
        let from = self.model.next().max(Offset::FIRST);
        let read = self
            .disk
            .read_merged(&self.partitions, from, Offset(u64::MAX), usize::MAX);
        let read = match read {
            Ok(read) => read,
            Err(error) => return violation("INV-3", format!("the log cannot be read: {error}")),
        };
        let mut expected = from;
        for entry in &read.entries {
            if entry.head.offset != expected {
                return violation("INV-3", format!("no record at offset {expected}"));
            }
            if entry.head.durable_at < self.model.log_time() {
                return violation("INV-12", format!("time falls at offset {expected}"));
            }
            expected = expected.next();
            if let Err(refusal) = self.model.apply(entry) {
                let what = format!("offset {} cannot be read: {refusal}", entry.head.offset);
                return violation("INV-2", what);
            }
            let effect = self.model.effect(entry.head.offset);
            let bad = effect.is_some_and(|e| e.fresh.iter().any(|d| d.evidence == BAD_EVIDENCE));
            if bad {
                return violation(
                    "INV-2",
                    "a delta that had to be refused was admitted".to_owned(),
                );
            }
        }
        Ok(())
    }

    /// A producer was told that this delta is durable, or that it is not newer than what is.
    pub fn acked(&mut self, issuer: Issuer, delta: &Delta) -> Result<(), Violation> {
        self.catch_up()?;
        let register = (delta.entity, delta.value.kind(), issuer);
        let Some(offset) = self.model.place(issuer, delta) else {
            let what = format!(
                "revision {} of a register of {issuer} was acknowledged, and no record has it; the newest is {:?}",
                delta.revision,
                self.model.revision(&register)
            );
            return violation("INV-1", what);
        };
        self.acked.insert((register, delta.revision), offset);
        self.acknowledged += 1;
        Ok(())
    }

    /// The record of each revision that was ever acknowledged is in the log, unless it was trimmed: a later
    /// one of the same register is no substitute.
    pub fn promises_hold(&mut self) -> Result<(), Violation> {
        self.catch_up()?;
        let mut there = BTreeSet::new();
        let mut trimmed = BTreeMap::new();
        for info in self.disk.partitions() {
            let read = self
                .disk
                .read(info.partition, info.trimmed_below, usize::MAX);
            let read = match read {
                Ok(read) => read,
                Err(error) => {
                    return violation("INV-3", format!("the log cannot be read: {error}"));
                }
            };
            there.extend(read.iter().map(|entry| entry.head.offset));
            trimmed.insert(info.partition, info.trimmed_below);
        }
        for ((register, revision), offset) in &self.acked {
            let gone = self.model.effect(*offset).is_some_and(|effect| {
                let below = trimmed.get(&effect.partition);
                below.is_some_and(|below| offset < below)
            });
            if !gone && !there.contains(offset) {
                let what = format!(
                    "revision {revision} of a register of {} was acknowledged at offset {offset}, and is lost",
                    register.2
                );
                return violation("INV-1", what);
            }
        }
        Ok(())
    }

    /// Apply is through below this offset.
    pub fn visible(&mut self, next: Offset) -> Result<(), Violation> {
        self.catch_up()?;
        self.groups += 1;
        let from = self
            .visible
            .last_key_value()
            .map_or(Offset::FIRST, |(o, _)| o.next());
        for offset in from.0..next.0 {
            self.visible.insert(Offset(offset), self.groups);
        }
        Ok(())
    }

    /// A bulk record is sent to somebody who has all urgent ones below an offset: whatever is urgent and
    /// could be delivered as early had to go first.
    pub fn bulk_sent(
        &self,
        wants: &Wants,
        bulk: Offset,
        urgent_below: Offset,
    ) -> Result<(), Violation> {
        let Some(group) = self.visible.get(&bulk) else {
            return violation(
                "INV-2",
                format!("offset {bulk} is sent before it is applied"),
            );
        };
        let earlier = self
            .visible
            .range(urgent_below..)
            .take_while(|(_, of)| *of <= group);
        for (offset, _) in earlier {
            let Some(effect) = self.model.effect(*offset) else {
                continue;
            };
            let issuer = effect.partition.issuer;
            let wanted = effect
                .fresh
                .iter()
                .any(|d| wants.takes(issuer, d.value.kind()));
            if effect.partition.lane == Lane::Urgent && wanted {
                return violation(
                    "INV-10",
                    format!("bulk offset {bulk} goes before urgent offset {offset}"),
                );
            }
        }
        Ok(())
    }

    /// What a lane has for a subscription between two offsets.
    fn expected(
        &self,
        wants: &Wants,
        lane: Lane,
        from: Offset,
        below: Offset,
    ) -> Vec<(Offset, Issuer, Micros, Arc<Delta>)> {
        let mut expected = Vec::new();
        for (offset, effect) in self.model.effects(from, below) {
            if effect.partition.lane == lane {
                let issuer = effect.partition.issuer;
                let wanted = effect
                    .fresh
                    .iter()
                    .filter(|d| wants.takes(issuer, d.value.kind()));
                expected.extend(wanted.map(|d| (offset, issuer, effect.durable_at, Arc::clone(d))));
            }
        }
        expected
    }

    /// Whether this is what had to come next.
    pub fn event(&mut self, view: &mut View, event: &Event) -> Result<(), Violation> {
        self.catch_up()?;
        match event {
            Event::SnapshotBegin { .. } => {
                view.cursor = None;
                view.rows.clear();
                Ok(())
            }
            Event::Rows(rows) => {
                for row in rows {
                    let register = (row.delta.entity, row.delta.value.kind(), row.issuer);
                    let delta = Arc::new(row.delta.clone());
                    view.rows.insert(register, (row.delta.revision, delta));
                }
                Ok(())
            }
            Event::SnapshotEnd { cursor, .. } => self.snapshot(view, *cursor),
            Event::Records { deltas, cursor } => self.records(view, deltas, *cursor),
            Event::Bookmark { cursor, .. } => {
                let Some(at) = view.cursor else {
                    return violation("INV-7", "a bookmark within a snapshot".to_owned());
                };
                for lane in Lane::DELIVERED {
                    let (from, to) = (at.lane(lane), cursor.lane(lane));
                    if to < from {
                        return violation(
                            "INV-7",
                            format!("a bookmark goes back from {from} to {to} of {lane}"),
                        );
                    }
                    if let Some((offset, ..)) = self.expected(&view.wants, lane, from, to).first() {
                        let what =
                            format!("a bookmark at {to} of {lane}, but offset {offset} never came");
                        return violation("INV-7", what);
                    }
                }
                view.cursor = Some(*cursor);
                Ok(())
            }
        }
    }

    fn records(
        &mut self,
        view: &mut View,
        deltas: &[Delivered],
        cursor: Cursor,
    ) -> Result<(), Violation> {
        let Some(at) = view.cursor else {
            return violation("INV-7", "records within a snapshot".to_owned());
        };
        self.delivered += deltas.len() as u64;
        let mut expected = Vec::new();
        for lane in Lane::DELIVERED {
            expected.extend(self.expected(&view.wants, lane, at.lane(lane), cursor.lane(lane)));
        }
        let mut expected = expected.into_iter();
        for came in deltas {
            let next = expected.next();
            let right = next
                .as_ref()
                .is_some_and(|(offset, issuer, durable_at, delta)| {
                    (*offset, *issuer, *durable_at) == (came.offset, came.issuer, came.durable_at)
                        && **delta == came.delta
                });
            if !right {
                return self.wrong(view, at, came, next.map(|(offset, ..)| offset));
            }
        }
        if let Some((offset, ..)) = expected.next() {
            let what = format!("records up to {cursor:?} came without offset {offset}");
            return violation("INV-7", what);
        }
        view.cursor = Some(cursor);
        Ok(())
    }

    /// Says what is wrong about a delta that came.
    fn wrong(
        &self,
        view: &View,
        at: Cursor,
        came: &Delivered,
        expected: Option<Offset>,
    ) -> Result<(), Violation> {
        let (offset, issuer) = (came.offset, came.issuer);
        let Some(effect) = self.model.effect(offset) else {
            return violation(
                "INV-2",
                format!("there is no offset {offset}, but a delta of it came"),
            );
        };
        if !view.wants.takes(issuer, came.delta.value.kind()) {
            return violation(
                "INV-2",
                format!("offset {offset} of {issuer} is not wanted, but came"),
            );
        }
        let lane = effect.partition.lane;
        if offset < at.lane(lane) {
            return violation(
                "INV-5",
                format!("offset {offset} came again, {} had come", at.lane(lane)),
            );
        }
        let register = (came.delta.entity, came.delta.value.kind(), issuer);
        let same = |delta: &&Arc<Delta>| {
            (delta.entity, delta.value.kind(), delta.revision)
                == (register.0, register.1, came.delta.revision)
        };
        let mut said = effect.said.iter().filter(same).peekable();
        if said.peek().is_some() && !said.any(|delta| **delta == came.delta) {
            let what = format!(
                "offset {offset} has revision {} of a register of {issuer}; {} got it with other content",
                came.delta.revision, view.wants.own
            );
            return violation("INV-8", what);
        }
        if !effect.fresh.iter().any(|delta| **delta == came.delta) {
            let newest = self.model.revision(&register).unwrap_or_default();
            return match came.delta.revision < newest || effect.fresh.len() < effect.deltas {
                true => violation(
                    "INV-4",
                    format!(
                        "offset {offset} brought revision {}, which was not newer",
                        came.delta.revision
                    ),
                ),
                false => violation(
                    "INV-2",
                    format!("nobody published what came at offset {offset}"),
                ),
            };
        }
        violation(
            "INV-7",
            format!("offset {offset} came, expected {expected:?}"),
        )
    }

    fn snapshot(&mut self, view: &mut View, cursor: Cursor) -> Result<(), Violation> {
        let rows = std::mem::take(&mut view.rows);
        let log_time = self.model.log_time_below(cursor.urgent);
        let expected = self.model.registers_below(cursor.urgent, log_time);
        let wanted = |register: &Register| view.wants.takes(register.2, register.1);
        for (register, version) in expected.iter().filter(|(register, _)| wanted(register)) {
            let delta = &version.delta;
            match rows.get(register) {
                Some((_, row)) if **row == **delta => {}
                None if delta.expires_at != Micros::ZERO => {
                    return violation(
                        "INV-12",
                        "a snapshot left out what had not expired".to_owned(),
                    );
                }
                found => {
                    let what = format!(
                        "a snapshot at {} has {:?} of a register with revision {}",
                        cursor.urgent,
                        found.map(|(revision, _)| revision),
                        delta.revision
                    );
                    return violation("INV-7", what);
                }
            }
        }
        if let Some(register) = rows
            .keys()
            .find(|r| !wanted(r) || !expected.contains_key(*r))
        {
            return violation(
                "INV-2",
                format!("a snapshot has a row of {} that it must not", register.2),
            );
        }
        view.cursor = Some(cursor);
        Ok(())
    }
}
