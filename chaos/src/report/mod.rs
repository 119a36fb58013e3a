//! A verdict, for people and for programs.

mod html;
mod plot;
mod search;
mod words;

pub use html::{html, html_of_all};
pub use search::{More, Searched, ended_early, html_of_search};

use crate::{
    commands::all::{Played, Row},
    judge::{Invariant, Outcome, Verdict},
    text::Text,
};
use serde_json::{Value, json};
use std::{fmt::Write, path::Path};

/// A line more.
macro_rules! put {
    ($out:expr, $($text:tt)*) => {
        writeln!($out, $($text)*).expect("a text takes all")
    };
}
pub(crate) use put;

/// For a terminal.
pub fn text(verdict: &Verdict, history: &Path, page: Option<&Path>) -> String {
    let mut out = String::new();
    put!(out, "{}: {}", verdict.drill, verdict.outcome.name());
    for reason in &verdict.reasons {
        put!(out, "  {}", reason.en);
        put!(out, "  {}", reason.zh);
    }
    promises(&mut out, verdict);
    invariants(&mut out, verdict);
    faults(&mut out, verdict);
    totals(&mut out, verdict);
    put!(out, "seed {}, {}", verdict.seed, verdict.commit);
    put!(out, "history {}", history.display());
    if let Some(page) = page {
        put!(out, "report  {}", page.display());
    }
    out
}

fn promises(out: &mut String, verdict: &Verdict) {
    put!(out, "\npromised and seen / 承诺与实测");
    for promise in &verdict.promises {
        let mark = if promise.kept { "kept  " } else { "BROKEN" };
        put!(
            out,
            "  {mark}  {} / {}: {}, bound {}",
            promise.what.en,
            promise.what.zh,
            promise.seen,
            promise.bound
        );
    }
}

fn invariants(out: &mut String, verdict: &Verdict) {
    put!(out, "\ninvariants / 不变量");
    for invariant in Invariant::ALL {
        let (n, text) = (invariant.number(), invariant.text());
        match verdict.findings.0.get(&invariant) {
            Some(finding) if finding.violations > 0 => {
                put!(out, "  BROKEN  INV-{n} {}: {}", text.en, finding.violations);
                for told in &finding.told {
                    put!(out, "          {} / {}", told.en, told.zh);
                }
            }
            Some(finding) if finding.checked > 0 => {
                put!(
                    out,
                    "  held    INV-{n} {} ({} checks)",
                    text.en,
                    finding.checked
                );
            }
            Some(_) | None => put!(out, "  -       INV-{n} {}: not seen in this drill", text.en),
        }
    }
}

fn faults(out: &mut String, verdict: &Verdict) {
    put!(out, "\nfaults and proof / 故障与证据");
    for fault in &verdict.faults {
        let s = |value: Option<f64>| value.map_or("-".to_owned(), |s| format!("{s:.1}"));
        put!(
            out,
            "  {} s to {} s  {} / {}; steady again after {} s",
            s(fault.begin_s),
            s(fault.healing_s),
            fault.label.en,
            fault.label.zh,
            s(fault.recovery_s)
        );
        for proof in &fault.proof {
            let mark = if proof.holds { "proof" } else { "NO PROOF" };
            put!(out, "          {mark}: {}: {}", proof.what, proof.seen);
        }
        if let Some(failed) = &fault.failed {
            put!(out, "          FAILED: {failed}");
        }
    }
}

fn totals(out: &mut String, verdict: &Verdict) {
    let t = &verdict.totals;
    put!(
        out,
        "\n{} deltas published, {} acknowledged, {} refused, {} unknown, {} delivered; worst urgent lag {:.2} s, \
         bulk {:.2} s; memory {:.0} MB at most; {} reconnects, {} starts of the broker",
        t.published,
        t.acknowledged,
        t.refused,
        t.unknown,
        t.delivered,
        t.worst_urgent_lag_s,
        t.worst_bulk_lag_s,
        t.memory_peak_mb,
        t.reconnects,
        t.broker_starts
    );
}

pub fn json(verdict: &Verdict, history: Option<&Path>) -> Value {
    let mut value = json!(verdict);
    if let (Some(map), Some(history)) = (value.as_object_mut(), history) {
        map.insert("history".to_owned(), json!(history));
    }
    value
}

pub fn json_of_all(rows: &[Row]) -> Value {
    let of = |row: &Row| {
        let mut value = match &row.played {
            Played::Judged(verdict, history) => json(verdict, Some(history)),
            Played::Left(why) => not_judged(&row.name, None, why),
            Played::Broken(why) => not_judged(&row.name, Some(Outcome::Invalid), why),
        };
        if let Some(map) = value.as_object_mut() {
            map.insert("title".to_owned(), json!(row.name));
            map.insert("load".to_owned(), json!(load(row)));
            map.insert("recovery_s".to_owned(), json!(recovery_of(row)));
        }
        value
    };
    rows.iter().map(of).collect()
}

fn not_judged(drill: &str, outcome: Option<Outcome>, why: &Text) -> Value {
    json!({ "drill": drill, "outcome": outcome, "why_not": why.en, "why_not_zh": why.zh })
}

fn load(row: &Row) -> &'static str {
    if row.surge { "surge" } else { "quiet" }
}

fn recovery_of(row: &Row) -> Option<f64> {
    match &row.played {
        Played::Judged(verdict, _) => recovery(verdict),
        Played::Left(_) | Played::Broken(_) => None,
    }
}

/// The slowest of its faults.
fn recovery(verdict: &Verdict) -> Option<f64> {
    let each = verdict.faults.iter().map(|fault| fault.recovery_s);
    each.collect::<Option<Vec<_>>>()?
        .into_iter()
        .reduce(f64::max)
}

pub fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(5);
    put!(
        out,
        "{:width$}  {:6}{:8}{:>12}{:>16}{:>14}{:>11}{:>11}",
        "drill",
        "load",
        "verdict",
        "recovery s",
        "worst urgent s",
        "acknowledged",
        "delivered",
        "memory MB"
    );
    for row in rows {
        let (name, load) = (&row.name, load(row));
        match &row.played {
            Played::Judged(verdict, _) => {
                let t = &verdict.totals;
                put!(
                    out,
                    "{name:width$}  {load:6}{:8}{:>12}{:>16.2}{:>14}{:>11}{:>11.0}",
                    verdict.outcome.name(),
                    recovery(verdict).map_or("-".to_owned(), |s| format!("{s:.1}")),
                    t.worst_urgent_lag_s,
                    t.acknowledged,
                    t.delivered,
                    t.memory_peak_mb
                );
            }
            Played::Left(why) => put!(out, "{name:width$}  {load:6}not here  {why}"),
            Played::Broken(why) => put!(out, "{name:width$}  {load:6}INVALID   {why}"),
        }
    }
    put!(out, "{}", counts(rows));
    out
}

fn counts(rows: &[Row]) -> Text {
    let with = |outcome| {
        rows.iter()
            .filter(|r| r.played.outcome() == outcome)
            .count()
    };
    let acknowledged: u64 = (rows.iter())
        .filter_map(|row| match &row.played {
            Played::Judged(verdict, _) => Some(verdict.totals.acknowledged),
            Played::Left(_) | Played::Broken(_) => None,
        })
        .sum();
    let [passed, failed, invalid, left] = [
        with(Some(Outcome::Pass)),
        with(Some(Outcome::Fail)),
        with(Some(Outcome::Invalid)),
        with(None),
    ];
    Text::new(
        format!(
            "{passed} passed, {failed} failed, {invalid} invalid, {left} not played here; {acknowledged} deltas acknowledged"
        ),
        format!(
            "{passed} 次通过，{failed} 次不通过，{invalid} 次无效，{left} 个未在此演练；共确认 {acknowledged} 条变更"
        ),
    )
}
