//! INV-2: what is delivered was published and admitted, and says what was published.

use crate::{
    history::{Item, Record, Subscription},
    judge::{
        Facts, Findings, Invariant,
        facts::{records, revisions},
    },
};

const INVARIANT: Invariant = Invariant::NothingInvented;

pub fn check(facts: &Facts<'_>, findings: &mut Findings) {
    for subscription in &facts.history.subscriptions {
        let who = format!("{}/{}", subscription.platform, subscription.name);
        for (_, record) in records(subscription) {
            findings.checked(INVARIANT, 1);
            check_record(facts, findings, &who, record);
            if record.issuer == subscription.platform {
                let text = format!("{who} got its own record at {}", record.offset);
                findings.violated(INVARIANT, text);
            }
        }
        check_rows(facts, findings, &who, subscription);
    }
    for poison in &facts.history.poison {
        let Some(end) = &poison.end else { continue };
        findings.checked(INVARIANT, 1);
        // A batch that came again is answered without the refusals, which stood in the lost ack.
        let taken = end.how == crate::history::How::Ok && !end.duplicate;
        if taken && (end.refused.len() as u32) < poison.bad {
            let text = format!("a poison batch was taken: {}", poison.what);
            findings.violated(INVARIANT, text);
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
            let text = format!(
                "{who} got revision {revision} of {issuer} ({}) at {offset}, which nobody published",
                stream.name()
            );
            findings.violated(INVARIANT, text);
            return;
        };
        if op.is_refused(revision) {
            let text = format!(
                "{who} got revision {revision} of {issuer} ({}) at {offset}, which was refused",
                stream.name()
            );
            findings.violated(INVARIANT, text);
        }
    }
    if facts.digest(record) != Some(record.digest) {
        let text = format!("{who}: the record at {offset} does not say what {issuer} published");
        findings.violated(INVARIANT, text);
    }
}

fn check_rows(facts: &Facts<'_>, findings: &mut Findings, who: &str, subscription: &Subscription) {
    for (_, item) in &subscription.items {
        match item {
            Item::Rows(rows, digest) => {
                findings.checked(INVARIANT, rows.len() as u64);
                let due = |issuer, stream, revision| facts.due(issuer, stream, revision);
                if facts.deltas.digest_of_rows(rows, due) != Some(*digest) {
                    let text = format!("{who}: rows of a snapshot do not say what was published");
                    findings.violated(INVARIANT, text);
                }
            }
            Item::Alien(offset, what) => {
                let text = format!("{who} got at {offset} what no client made: {what}");
                findings.violated(INVARIANT, text);
            }
            Item::Opened(_) | Item::SnapshotBegin | Item::SnapshotEnd(_) | Item::Record(_) => {}
        }
    }
}
