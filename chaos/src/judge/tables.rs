//! What the sink has, whenever somebody looked: its rows are what the log says up to its cursor, which
//! is INV-5 for sinks; they never go back (INV-4); and at the end they are everything (INV-6).

use crate::{
    history::Table,
    judge::{
        Facts, Findings, Invariant,
        facts::{View, describe, difference},
    },
};

pub fn check(facts: &Facts<'_>, findings: &mut Findings) {
    let mut before = View::new();
    for table in &facts.history.tables {
        let at = table.at as f64 / 1e6;
        let who = format!("{} after {at:.1} s", table.sink);
        if table.bad > 0 {
            let text = format!("{who}: {} rows are not what was published", table.bad);
            findings.violated(Invariant::NothingInvented, text);
        }
        let view = match facts.view(&table.rows) {
            Ok(view) => view,
            Err(twice) => {
                findings.violated(Invariant::AppliedOnce, format!("{who}: {twice}"));
                continue;
            }
        };
        rows_and_cursor(facts, findings, table, &who, &view);
        for (register, revision) in &before {
            findings.checked(Invariant::RevisionsRise, 1);
            if view.get(register).is_none_or(|now| now < revision) {
                let text = format!("{who}: {} went back", describe(*register));
                findings.violated(Invariant::RevisionsRise, text);
            }
        }
        before = view;
    }
    if let Some(last) = facts.history.tables.last() {
        let expected = facts.fold(None, None);
        findings.checked(Invariant::Converged, expected.len() as u64);
        if let Some((count, first)) = difference(&expected, &before) {
            let text = format!(
                "{} differs from the log in {count} registers at the end: {first}",
                last.sink
            );
            findings.violated(Invariant::Converged, text);
        }
    } else if facts.history.drill.workload.sink && facts.history.done {
        findings.violated(Invariant::Converged, "the sink's table was never seen");
    }
    areas(facts, findings);
}

/// The published lists: in the end the table is the last of them.
fn areas(facts: &Facts<'_>, findings: &mut Findings) {
    let history = facts.history;
    match &history.areas {
        Some(seen) => {
            findings.checked(Invariant::Converged, seen.listed);
            for told in &seen.told {
                findings.violated(Invariant::Converged, told.as_str());
            }
            // An empty list is equal to everything that is empty.
            if seen.listed == 0 {
                findings.violated(Invariant::Converged, "the last list has no area in it");
            }
        }
        None if history.drill.workload.risk_levels && history.done => {
            findings.violated(
                Invariant::Converged,
                "the areas of the sink's table were never compared with the lists",
            );
        }
        None => {}
    }
}

/// They change in one transaction, so they fit together at every moment.
fn rows_and_cursor(
    facts: &Facts<'_>,
    findings: &mut Findings,
    table: &Table,
    who: &str,
    view: &View,
) {
    let expected = match table.cursor {
        Some(cursor) => facts.fold(Some(cursor), None),
        // Before the first snapshot has ended.
        None => return,
    };
    findings.checked(Invariant::AppliedOnce, expected.len() as u64);
    if let Some((count, first)) = difference(&expected, view) {
        let text = format!("{who}: {count} rows do not fit its cursor: {first}");
        findings.violated(Invariant::AppliedOnce, text);
    }
}
