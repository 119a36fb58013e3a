//! INV-2: what is delivered was published and admitted, and says what was published; and what has no fault is admitted.

use crate::{
    history::{Item, Record, Subscription},
    judge::{
        Facts, Findings, Invariant, Violation,
        facts::{records, revisions},
    },
    text::Text,
};

const INVARIANT: Invariant = Invariant::NothingInvented;

pub fn check(facts: &Facts<'_>, findings: &mut Findings) {
    for subscription in &facts.history.subscriptions {
        let who = format!("{}/{}", subscription.platform, subscription.name);
        for (_, record) in records(subscription) {
            findings.checked(INVARIANT, 1);
            check_record(facts, findings, &who, record);
            if record.issuer == subscription.platform {
                let (who, offset) = (who.clone(), record.offset);
                findings.violated(INVARIANT, &Violation::OwnRecordCame { who, offset });
            }
        }
        check_rows(facts, findings, &who, subscription);
    }
    refused_without_a_fault(facts, findings);
    for poison in &facts.history.poison {
        let Some(end) = &poison.end else { continue };
        findings.checked(INVARIANT, 1);
        // A batch that came again is answered without the refusals, which stood in the lost ack.
        let taken = end.how == crate::history::How::Ok && !end.duplicate;
        if taken && (end.refused.len() as u32) < poison.bad {
            let what = Text::quoted(&poison.what);
            findings.violated(INVARIANT, &Violation::PoisonWasTaken { what });
        }
    }
}

/// Producers that are not poisoners say nothing that has a fault: what is refused of them reaches nobody, and no
/// acknowledgement says that it should have.
fn refused_without_a_fault(facts: &Facts<'_>, findings: &mut Findings) {
    let history = facts.history;
    let faults = &history.drill.faults;
    // A clock that jumps makes times wrong that were right.
    let clock = faults.iter().any(|fault| fault.what.needs_fake_clock());
    for ((issuer, stream), ops) in &history.ops {
        for op in ops {
            let Some(end) = &op.end else { continue };
            findings.checked(INVARIANT, 1);
            let excused = |reason: &str| clock && reason.starts_with("TIME_");
            let wrong = end.refused.iter().find(|(_, reason)| !excused(reason));
            if let Some((index, reason)) = wrong {
                let found = Violation::SoundRefused {
                    issuer: *issuer,
                    stream: *stream,
                    revision: op.first + u64::from(*index),
                    reason: reason.clone(),
                };
                findings.violated(INVARIANT, &found);
            }
        }
    }
}

fn check_record(facts: &Facts<'_>, findings: &mut Findings, who: &str, record: &Record) {
    let Record {
        offset,
        issuer,
        stream,
        ..
    } = record;
    for revision in revisions(record) {
        let Some(op) = facts.history.op_of(*issuer, *stream, revision) else {
            let found = Violation::NobodyPublished {
                who: who.to_owned(),
                revision,
                issuer: *issuer,
                stream: *stream,
                offset: *offset,
            };
            findings.violated(INVARIANT, &found);
            return;
        };
        if op.is_refused(revision) {
            let found = Violation::RefusedCame {
                who: who.to_owned(),
                revision,
                issuer: *issuer,
                stream: *stream,
                offset: *offset,
            };
            findings.violated(INVARIANT, &found);
        }
    }
    if facts.digest(record) != Some(record.digest) {
        let found = Violation::ContentDiffers {
            who: who.to_owned(),
            offset: *offset,
            issuer: *issuer,
        };
        findings.violated(INVARIANT, &found);
    }
}

fn check_rows(facts: &Facts<'_>, findings: &mut Findings, who: &str, subscription: &Subscription) {
    for (_, item) in &subscription.items {
        match item {
            Item::Rows(rows, digest) => {
                findings.checked(INVARIANT, rows.len() as u64);
                let due = |issuer, stream, revision| facts.due(issuer, stream, revision);
                if facts.deltas.digest_of_rows(rows, due) != Some(*digest) {
                    let who = who.to_owned();
                    findings.violated(INVARIANT, &Violation::SnapshotContentDiffers { who });
                }
            }
            Item::Alien(offset, what) => {
                let found = Violation::AlienCame {
                    who: who.to_owned(),
                    offset: *offset,
                    what: Text::quoted(what),
                };
                findings.violated(INVARIANT, &found);
            }
            Item::Opened(_) | Item::SnapshotBegin | Item::SnapshotEnd(_) | Item::Record(_) => {}
        }
    }
}
