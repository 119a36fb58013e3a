//! What the sink has, whenever somebody looked: its rows are what the log says up to its cursor, which
//! is INV-5 for sinks; they never go back (INV-4); and at the end they are everything (INV-6).

use crate::{
    history::Table,
    judge::{
        Facts, Findings, Invariant, Violation,
        facts::{View, difference},
    },
    text::Text,
};

pub fn check(facts: &Facts<'_>, findings: &mut Findings) {
    let mut before = View::new();
    for table in &facts.history.tables {
        let at = table.at as f64 / 1e6;
        let who = Text::new(
            format!("{} after {at:.1} s", table.sink),
            format!("{at:.1} 秒时的 {}", table.sink),
        );
        if table.bad > 0 {
            let (who, rows) = (who.clone(), table.bad);
            let found = Violation::TableContentDiffers { who, rows };
            findings.violated(Invariant::NothingInvented, &found);
        }
        let view = match facts.view(&table.rows) {
            Ok(view) => view,
            Err(register) => {
                let found = Violation::RegisterTwice { who, register };
                findings.violated(Invariant::AppliedOnce, &found);
                continue;
            }
        };
        rows_and_cursor(facts, findings, table, &who, &view);
        for (register, revision) in &before {
            findings.checked(Invariant::RevisionsRise, 1);
            // A row that is gone is of no revision at all.
            let now = view.get(register).copied().unwrap_or(0);
            if now < *revision {
                let found = Violation::WentBack {
                    who: who.clone(),
                    register: *register,
                    from: *revision,
                    to: now,
                };
                findings.violated(Invariant::RevisionsRise, &found);
            }
        }
        before = view;
    }
    if let Some(last) = facts.history.tables.last() {
        let expected = facts.fold(None, None);
        findings.checked(Invariant::Converged, expected.len() as u64);
        if let Some((count, first)) = difference(&expected, &before) {
            let who = Text::new(
                format!("{} at the end", last.sink),
                format!("结束时的 {}", last.sink),
            );
            let found = Violation::ViewDiffers { who, count, first };
            findings.violated(Invariant::Converged, &found);
        }
    } else if facts.history.drill.workload.sink && facts.history.done {
        findings.violated(Invariant::Converged, &Violation::TableNeverSeen {});
    }
    areas(facts, findings);
}

/// The published lists: in the end the table is the last of them.
fn areas(facts: &Facts<'_>, findings: &mut Findings) {
    let history = facts.history;
    match &history.areas {
        Some(seen) => {
            findings.checked(Invariant::Converged, seen.listed);
            for one in &seen.told {
                let found = Violation::AreaDiffers {
                    area: one.area.clone(),
                    listed: level(one.listed.as_deref()),
                    found: level(one.found.as_deref()),
                };
                findings.violated(Invariant::Converged, &found);
            }
            // An empty list is equal to everything that is empty.
            if seen.listed == 0 {
                findings.violated(Invariant::Converged, &Violation::LastListIsEmpty {});
            }
        }
        None if history.drill.workload.risk_levels && history.done => {
            findings.violated(Invariant::Converged, &Violation::AreasNeverCompared {});
        }
        None => {}
    }
}

/// Of an area, as the lists call it.
fn level(level: Option<&str>) -> Text {
    match level {
        None => Text::new("nothing", "无"),
        Some("high") => Text::new("high", "高风险"),
        Some("middle") => Text::new("middle", "中风险"),
        Some("low") => Text::new("low", "低风险"),
        Some(other) => Text::quoted(other),
    }
}

/// They change in one transaction, so they fit together at every moment.
fn rows_and_cursor(
    facts: &Facts<'_>,
    findings: &mut Findings,
    table: &Table,
    who: &Text,
    view: &View,
) {
    let expected = match table.cursor {
        Some(cursor) => facts.fold(Some(cursor), None),
        // Before the first snapshot has ended.
        None => return,
    };
    findings.checked(Invariant::AppliedOnce, expected.len() as u64);
    if let Some((count, first)) = difference(&expected, view) {
        let who = who.clone();
        findings.violated(
            Invariant::AppliedOnce,
            &Violation::RowsDoNotFitCursor { who, count, first },
        );
    }
}
