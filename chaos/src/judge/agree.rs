//! INV-6: in the end everybody has what the log says. INV-8: at one place of the log all saw the same.

use crate::{
    history::{Item, Role, Row, Stream, Subscription},
    judge::{
        Facts, Findings, Invariant, Violation,
        facts::{View, difference, records},
    },
    text::Text,
};

pub fn check(facts: &Facts<'_>, findings: &mut Findings) {
    let history = facts.history;
    // Of a history that was cut off the end is not known.
    if history.done && !facts.audited {
        findings.violated(Invariant::Converged, &Violation::LogNotReadAgain {});
    }
    if history.done && !facts.snapshot_audited {
        findings.violated(Invariant::Converged, &Violation::NoSnapshotReadAgain {});
    }
    if history.done && history.converged.is_none() {
        findings.violated(Invariant::Converged, &Violation::DidNotConverge {});
    }
    for subscription in &history.subscriptions {
        same_places(facts, findings, subscription);
        match subscription.role {
            Role::Live => live(facts, findings, subscription),
            Role::Snapshot => snapshot(facts, findings, subscription),
            Role::Slow => slow(facts, findings, subscription),
            Role::Log => {}
        }
    }
}

fn who(subscription: &Subscription) -> String {
    format!("{}/{}", subscription.platform, subscription.name)
}

fn same_places(facts: &Facts<'_>, findings: &mut Findings, subscription: &Subscription) {
    for (_, record) in records(subscription) {
        findings.checked(Invariant::AllAgree, 1);
        let (who, offset) = (who(subscription), record.offset);
        let found = match facts.log.get(&offset) {
            Some(same) if *same == record => continue,
            Some(_) => Violation::OtherThanLog { who, offset },
            None => Violation::NotInLog { who, offset },
        };
        findings.violated(Invariant::AllAgree, &found);
    }
}

fn compare(findings: &mut Findings, who: &str, expected: &View, found: &View) {
    findings.checked(Invariant::Converged, expected.len() as u64);
    if let Some((count, first)) = difference(expected, found) {
        let who = Text::same(who);
        findings.violated(
            Invariant::Converged,
            &Violation::ViewDiffers { who, count, first },
        );
    }
}

/// It was there from the beginning, so it has everything but its own.
fn live(facts: &Facts<'_>, findings: &mut Findings, subscription: &Subscription) {
    let mut view = View::new();
    for (_, record) in records(subscription) {
        facts.apply(&mut view, record);
    }
    let expected = facts.fold(None, Some(subscription.platform));
    compare(findings, &who(subscription), &expected, &view);
}

/// Begun later: it must end where the log ends.
fn slow(facts: &Facts<'_>, findings: &mut Findings, subscription: &Subscription) {
    let last = |urgent: bool, offsets: &mut dyn Iterator<Item = &crate::history::Record>| {
        offsets
            .filter(|r| (r.stream == Stream::Urgent) == urgent)
            .map(|r| r.offset)
            .max()
    };
    for urgent in [true, false] {
        findings.checked(Invariant::Converged, 1);
        let all = last(urgent, &mut facts.log.values().copied());
        let own = last(urgent, &mut records(subscription).map(|(_, r)| r));
        if own < all {
            let place =
                |at: Option<u64>| at.map_or(Text::new("nothing", "无"), |offset| offset.into());
            let found = Violation::EndsEarly {
                who: who(subscription),
                lane: if urgent { Stream::Urgent } else { Stream::Bulk },
                got: place(own),
                log: place(all),
            };
            findings.violated(Invariant::Converged, &found);
        }
    }
}

/// Rows and what followed are the log up to where it was read.
fn snapshot(facts: &Facts<'_>, findings: &mut Findings, subscription: &Subscription) {
    let mut rows: Vec<Row> = Vec::new();
    let mut cursor = None;
    let mut tail = Vec::new();
    for (_, item) in &subscription.items {
        match item {
            Item::SnapshotBegin => {
                rows.clear();
                tail.clear();
                cursor = None;
            }
            Item::Rows(more, _) => rows.extend(more),
            Item::SnapshotEnd(at) => cursor = Some(*at),
            Item::Record(record) => tail.push(record),
            Item::Opened(_) | Item::Alien(..) => {}
        }
    }
    let who = who(subscription);
    if cursor.is_none() {
        findings.violated(Invariant::Converged, &Violation::SnapshotHasNoEnd { who });
        return;
    }
    match facts.view(&rows) {
        Ok(mut view) => {
            for record in tail {
                facts.apply(&mut view, record);
            }
            compare(findings, &who, &facts.fold(None, None), &view);
        }
        Err(register) => {
            let who = Text::same(who);
            findings.violated(
                Invariant::AppliedOnce,
                &Violation::RegisterTwice { who, register },
            );
        }
    }
}
