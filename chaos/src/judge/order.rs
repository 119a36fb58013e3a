//! INV-4: revisions of a register never go back. INV-5: nothing comes twice. INV-7: a stream goes on
//! exactly where it was. INV-12: times of the log never fall, whatever the clock does.

use crate::{
    clients::Register,
    history::{Item, Record, Row, Stream, Subscription},
    judge::{
        Facts, Findings, Invariant,
        facts::{View, describe, is_below, is_urgent, revisions},
    },
};
use std::collections::{BTreeMap, HashSet};

pub fn check(facts: &Facts<'_>, findings: &mut Findings) {
    log(facts, findings);
    for subscription in &facts.history.subscriptions {
        Walk::new(facts, subscription).run(findings);
    }
}

fn log(facts: &Facts<'_>, findings: &mut Findings) {
    let mut seen: HashSet<(u32, Stream, u64)> = HashSet::new();
    let mut view = View::new();
    let mut time = 0;
    for record in facts.log.values() {
        findings.checked(Invariant::AppliedOnce, 1);
        for revision in revisions(record) {
            if !seen.insert((record.issuer, record.stream, revision)) {
                let text = format!(
                    "revision {revision} of {} ({}) is in the log twice, again at {}",
                    record.issuer,
                    record.stream.name(),
                    record.offset
                );
                findings.violated(Invariant::AppliedOnce, text);
            }
        }
        rises(facts, findings, &mut view, record, "the log");
        findings.checked(Invariant::NoWallClock, 1);
        if record.durable_at < time {
            let text = format!(
                "the record at {} is {} us older than one before it",
                record.offset,
                time - record.durable_at
            );
            findings.violated(Invariant::NoWallClock, text);
        }
        time = time.max(record.durable_at);
    }
}

fn rises(facts: &Facts<'_>, findings: &mut Findings, view: &mut View, record: &Record, who: &str) {
    for revision in revisions(record) {
        findings.checked(Invariant::RevisionsRise, 1);
        let register = facts.register(record, revision);
        went_back(findings, view, register, revision, who);
    }
}

fn went_back(
    findings: &mut Findings,
    view: &mut View,
    register: Register,
    revision: u64,
    who: &str,
) {
    let newest = view.entry(register).or_default();
    if revision < *newest {
        let text = format!(
            "{who}: {} went back from revision {newest} to {revision}",
            describe(register)
        );
        findings.violated(Invariant::RevisionsRise, text);
    }
    *newest = revision.max(*newest);
}

/// Goes through what one subscription got, beside the log.
struct Walk<'a> {
    facts: &'a Facts<'a>,
    subscription: &'a Subscription,
    who: String,
    view: View,
    seen: HashSet<(u32, Stream, u64)>,
    /// By lane, urgent first: offsets that must still come, in order.
    expected: Option<[BTreeMap<u64, &'a Record>; 2]>,
    rows: Vec<Row>,
}

impl<'a> Walk<'a> {
    fn new(facts: &'a Facts<'a>, subscription: &'a Subscription) -> Walk<'a> {
        Walk {
            facts,
            subscription,
            who: format!("{}/{}", subscription.platform, subscription.name),
            view: View::new(),
            seen: HashSet::new(),
            expected: None,
            rows: Vec::new(),
        }
    }

    fn run(mut self, findings: &mut Findings) {
        for (_, item) in &self.subscription.items {
            match item {
                Item::Opened(cursor) => self.expect_from(*cursor),
                Item::SnapshotBegin => {
                    self.rows.clear();
                    self.expected = None;
                }
                Item::Rows(rows, _) => self.rows.extend(rows),
                Item::SnapshotEnd(cursor) => {
                    self.snapshot(findings);
                    self.expect_from(*cursor);
                }
                Item::Record(record) => self.record(findings, record),
                Item::Alien(..) => {}
            }
        }
    }

    fn expect_from(&mut self, cursor: crate::history::Cursor) {
        let mut expected = [BTreeMap::new(), BTreeMap::new()];
        for (offset, record) in &self.facts.log {
            if record.issuer != self.subscription.platform && !is_below(record, cursor) {
                expected[usize::from(!is_urgent(record.stream))].insert(*offset, *record);
            }
        }
        self.expected = Some(expected);
    }

    /// Its rows replace what was there before; none of them may be older.
    fn snapshot(&mut self, findings: &mut Findings) {
        for (issuer, stream, revision) in std::mem::take(&mut self.rows) {
            findings.checked(Invariant::RevisionsRise, 1);
            let register = self.facts.deltas.register(issuer, stream, revision);
            went_back(findings, &mut self.view, register, revision, &self.who);
        }
        // What a snapshot has need not come again, and must not.
        self.seen.clear();
    }

    fn record(&mut self, findings: &mut Findings, record: &Record) {
        for revision in revisions(record) {
            findings.checked(Invariant::AppliedOnce, 1);
            if !self.seen.insert((record.issuer, record.stream, revision)) {
                let text = format!(
                    "{}: revision {revision} of {} ({}) came twice, again at {}",
                    self.who,
                    record.issuer,
                    record.stream.name(),
                    record.offset
                );
                findings.violated(Invariant::AppliedOnce, text);
            }
        }
        rises(self.facts, findings, &mut self.view, record, &self.who);
        findings.checked(Invariant::ResumesExactly, 1);
        let Some(expected) = &mut self.expected else {
            let text = format!("{}: a record within a snapshot", self.who);
            findings.violated(Invariant::ResumesExactly, text);
            return;
        };
        let lane = &mut expected[usize::from(!is_urgent(record.stream))];
        let text = match lane.first_key_value().map(|(offset, _)| *offset) {
            Some(next) if next == record.offset => {
                lane.pop_first();
                return;
            }
            Some(next) if next < record.offset => {
                lane.retain(|offset, _| *offset > record.offset);
                format!(
                    "{}: {} came where {next} was to come: something was left out",
                    self.who, record.offset
                )
            }
            Some(_) | None => format!(
                "{}: {} came again, or was not to come at all",
                self.who, record.offset
            ),
        };
        findings.violated(Invariant::ResumesExactly, text);
    }
}
