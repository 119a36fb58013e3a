//! INV-4: revisions of a register never go back. INV-5: nothing comes twice. INV-7: a stream goes on
//! exactly where it was. INV-12: times of the log never fall, whatever the clock does.

use crate::{
    clients::Register,
    history::{Item, Record, Row, Stream, Subscription},
    judge::{
        Facts, Findings, Invariant, Violation,
        facts::{View, is_below, is_urgent, revisions},
    },
    text::Text,
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
    let the_log = Text::new("the log", "日志");
    for record in facts.log.values() {
        findings.checked(Invariant::AppliedOnce, 1);
        for revision in revisions(record) {
            if !seen.insert((record.issuer, record.stream, revision)) {
                let found = Violation::TwiceInLog {
                    revision,
                    issuer: record.issuer,
                    stream: record.stream,
                    offset: record.offset,
                };
                findings.violated(Invariant::AppliedOnce, &found);
            }
        }
        rises(facts, findings, &mut view, record, &the_log);
        findings.checked(Invariant::NoWallClock, 1);
        if record.durable_at < time {
            let (offset, us) = (record.offset, time - record.durable_at);
            findings.violated(Invariant::NoWallClock, &Violation::TimeFell { offset, us });
        }
        time = time.max(record.durable_at);
    }
}

fn rises(facts: &Facts<'_>, findings: &mut Findings, view: &mut View, record: &Record, who: &Text) {
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
    who: &Text,
) {
    let newest = view.entry(register).or_default();
    if revision < *newest {
        let found = Violation::WentBack {
            who: who.clone(),
            register,
            from: *newest,
            to: revision,
        };
        findings.violated(Invariant::RevisionsRise, &found);
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
            let who = Text::same(&self.who);
            went_back(findings, &mut self.view, register, revision, &who);
        }
        // What a snapshot has need not come again, and must not.
        self.seen.clear();
    }

    fn record(&mut self, findings: &mut Findings, record: &Record) {
        for revision in revisions(record) {
            findings.checked(Invariant::AppliedOnce, 1);
            if !self.seen.insert((record.issuer, record.stream, revision)) {
                let found = Violation::CameTwice {
                    who: self.who.clone(),
                    revision,
                    issuer: record.issuer,
                    stream: record.stream,
                    offset: record.offset,
                };
                findings.violated(Invariant::AppliedOnce, &found);
            }
        }
        let who = Text::same(&self.who);
        rises(self.facts, findings, &mut self.view, record, &who);
        findings.checked(Invariant::ResumesExactly, 1);
        let Some(expected) = &mut self.expected else {
            let who = self.who.clone();
            let found = Violation::RecordWithinSnapshot { who };
            findings.violated(Invariant::ResumesExactly, &found);
            return;
        };
        let lane = &mut expected[usize::from(!is_urgent(record.stream))];
        let (who, came) = (self.who.clone(), record.offset);
        let found = match lane.first_key_value().map(|(offset, _)| *offset) {
            Some(next) if next == record.offset => {
                lane.pop_first();
                return;
            }
            Some(next) if next < record.offset => {
                lane.retain(|offset, _| *offset > record.offset);
                Violation::LeftOut { who, came, next }
            }
            Some(_) | None => Violation::CameAgain { who, came },
        };
        findings.violated(Invariant::ResumesExactly, &found);
    }
}
