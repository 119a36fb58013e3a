//! A verdict, for people and for programs.

mod html;
mod plot;
mod words;

pub use html::html;

use crate::{
    commands::all::Played,
    drill::Drill,
    judge::{Invariant, Outcome, Verdict},
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
                    put!(out, "          {told}");
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

pub fn json_of_all(rows: &[(&Drill, &Played)]) -> Value {
    let of = |(drill, played): &(&Drill, &Played)| match played {
        Played::Judged(verdict, history) => json(verdict, Some(history)),
        Played::Left(why) => json!({ "drill": drill.name, "outcome": null, "why_not": why }),
    };
    rows.iter().map(of).collect()
}

/// The slowest of its faults.
fn recovery(verdict: &Verdict) -> Option<f64> {
    let each = verdict.faults.iter().map(|fault| fault.recovery_s);
    each.collect::<Option<Vec<_>>>()?
        .into_iter()
        .reduce(f64::max)
}

pub fn table(rows: &[(&Drill, &Played)]) -> String {
    let mut out = String::new();
    let width = rows
        .iter()
        .map(|(drill, _)| drill.name.len())
        .max()
        .unwrap_or(0);
    put!(
        out,
        "{:width$}  {:8}{:>12}{:>14}{:>14}{:>11}{:>11}",
        "drill",
        "verdict",
        "recovery s",
        "worst urgent s",
        "acknowledged",
        "delivered",
        "memory MB"
    );
    let (mut passed, mut failed, mut invalid, mut left) = (0, 0, 0, 0);
    for (drill, played) in rows {
        match played {
            Played::Judged(verdict, _) => {
                let t = &verdict.totals;
                put!(
                    out,
                    "{:width$}  {:8}{:>12}{:>14.2}{:>14}{:>11}{:>11.0}",
                    drill.name,
                    verdict.outcome.name(),
                    recovery(verdict).map_or("-".to_owned(), |s| format!("{s:.1}")),
                    t.worst_urgent_lag_s,
                    t.acknowledged,
                    t.delivered,
                    t.memory_peak_mb
                );
                match verdict.outcome {
                    Outcome::Pass => passed += 1,
                    Outcome::Fail => failed += 1,
                    Outcome::Invalid => invalid += 1,
                }
            }
            Played::Left(why) => {
                put!(out, "{:width$}  not here  {why}", drill.name);
                left += 1;
            }
        }
    }
    put!(
        out,
        "{passed} passed, {failed} failed, {invalid} invalid, {left} not played here"
    );
    out
}
