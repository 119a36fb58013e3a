//! From a history to a verdict. Nothing here looks at anything but the history, so an old one can be
//! judged again, and a checker can be shown a history that it must not let pass.

mod agree;
mod content;
mod durable;
mod facts;
mod lag;
mod order;
mod promises;
mod runtime;
mod sink;
mod tables;
mod violation;

pub use facts::Facts;
pub use lag::{Lags, Window};
pub use promises::{Promise, When};
pub use violation::{Reason, Violation};

use crate::{
    history::{FaultSeen, History, How, Proof, Role},
    text::{Text, Told},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// Violations that are told one by one; the rest is counted.
const TOLD_MAX: usize = 10;

/// Clients that stand still for longer, as on a machine that does something else, measure themselves.
const STANDSTILL_MAX_US: u64 = 2_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Outcome {
    Pass,
    Fail,
    /// It says nothing: the fault did not happen, or there was no steady state to begin with.
    Invalid,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Pass => "PASS",
            Outcome::Fail => "FAIL",
            Outcome::Invalid => "INVALID",
        }
    }

    /// Its name, which stays, and what it is called in Chinese.
    pub fn text(self) -> Text {
        let zh = match self {
            Outcome::Pass => "通过",
            Outcome::Fail => "不通过",
            Outcome::Invalid => "无效",
        };
        Text::new(self.name(), zh)
    }

    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Pass => crate::commands::PASS,
            Outcome::Fail => crate::commands::FAIL,
            Outcome::Invalid => crate::commands::INVALID,
        }
    }
}

/// Invariants of the design that can be seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Invariant {
    #[serde(rename = "INV-1")]
    NothingLost,
    #[serde(rename = "INV-2")]
    NothingInvented,
    #[serde(rename = "INV-3")]
    PrefixWithoutHole,
    #[serde(rename = "INV-4")]
    RevisionsRise,
    #[serde(rename = "INV-5")]
    AppliedOnce,
    #[serde(rename = "INV-6")]
    Converged,
    #[serde(rename = "INV-7")]
    ResumesExactly,
    #[serde(rename = "INV-8")]
    AllAgree,
    #[serde(rename = "INV-9")]
    MemoryBounded,
    #[serde(rename = "INV-10")]
    UrgentBounded,
    #[serde(rename = "INV-11")]
    FailStop,
    #[serde(rename = "INV-12")]
    NoWallClock,
}

impl Invariant {
    pub const ALL: [Invariant; 12] = [
        Invariant::NothingLost,
        Invariant::NothingInvented,
        Invariant::PrefixWithoutHole,
        Invariant::RevisionsRise,
        Invariant::AppliedOnce,
        Invariant::Converged,
        Invariant::ResumesExactly,
        Invariant::AllAgree,
        Invariant::MemoryBounded,
        Invariant::UrgentBounded,
        Invariant::FailStop,
        Invariant::NoWallClock,
    ];

    pub fn number(self) -> usize {
        self as usize + 1
    }

    /// It is a bound on what was measured, and is told as a promise.
    fn is_measured(self) -> bool {
        matches!(self, Invariant::MemoryBounded | Invariant::UrgentBounded)
    }

    pub fn text(self) -> Text {
        let (en, zh) = match self {
            Invariant::NothingLost => ("no acknowledged delta is lost", "已确认的变更不丢失"),
            Invariant::NothingInvented => (
                "nothing is delivered that was not published and admitted",
                "不投递未发布或未准入的内容",
            ),
            Invariant::PrefixWithoutHole => (
                "recovery yields a prefix, never a hole",
                "恢复得到的是前缀，不留空洞",
            ),
            Invariant::RevisionsRise => (
                "per register, applied revisions never go back",
                "同一登记项的修订号从不回退",
            ),
            Invariant::AppliedOnce => (
                "an applied record is applied once, in state and in every sink",
                "每条记录在状态和各下游只应用一次",
            ),
            Invariant::Converged => (
                "after faults heal, every subscriber's view equals the model's",
                "故障恢复后，各订阅方视图与模型一致",
            ),
            Invariant::ResumesExactly => (
                "a resumed stream starts exactly at its cursor",
                "续传恰从游标处开始",
            ),
            Invariant::AllAgree => (
                "everyone has the same content at the same place of the log",
                "日志同一位置各方内容相同",
            ),
            Invariant::MemoryBounded => ("memory stays bounded", "内存保持有界"),
            Invariant::UrgentBounded => (
                "urgent lag stays bounded whatever bulk does",
                "无论批量负载如何，紧急延迟有界",
            ),
            Invariant::FailStop => ("fail-stop on an I/O error", "遇 I/O 错误即停"),
            Invariant::NoWallClock => (
                "durability and order never depend on the wall clock",
                "持久性与顺序不依赖墙上时钟",
            ),
        };
        Text::new(en, zh)
    }
}

/// What came of checking one invariant.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Finding {
    /// Things looked at. None is no pass: nothing was shown.
    pub checked: u64,
    pub violations: u64,
    pub told: Vec<Told>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Findings(pub BTreeMap<Invariant, Finding>);

impl Findings {
    pub fn checked(&mut self, invariant: Invariant, count: u64) {
        self.0.entry(invariant).or_default().checked += count;
    }

    pub fn violated(&mut self, invariant: Invariant, what: &Violation) {
        let finding = self.0.entry(invariant).or_default();
        finding.violations += 1;
        if finding.told.len() < TOLD_MAX {
            finding.told.push(what.told());
        }
    }

    pub fn violations(&self, invariant: Invariant) -> u64 {
        self.0
            .get(&invariant)
            .map_or(0, |finding| finding.violations)
    }
}

/// What one fault was, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct FaultReport {
    pub kind: &'static str,
    pub label: Text,
    /// Seconds since the load began.
    pub begin_s: Option<f64>,
    pub healing_s: Option<f64>,
    /// From the healing until both lags were within their bounds again, and a sink that was hit had what it must have.
    pub recovery_s: Option<f64>,
    pub proof: Vec<Proof>,
    pub failed: Option<Text>,
}

impl FaultReport {
    /// Is it shown that it happened?
    pub fn proven(&self) -> bool {
        self.failed.is_none() && !self.proof.is_empty() && self.proof.iter().all(|p| p.holds)
    }
}

/// Counts over the whole drill.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    pub published: u64,
    pub acknowledged: u64,
    pub duplicates: u64,
    pub refused: u64,
    pub unknown: u64,
    pub poison_refused: u64,
    pub delivered: u64,
    pub reconnects: u64,
    pub broker_starts: u64,
    pub tables_compared: u64,
    pub worst_urgent_lag_s: f64,
    pub worst_bulk_lag_s: f64,
    pub memory_peak_mb: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub drill: String,
    pub outcome: Outcome,
    /// Why not PASS.
    pub reasons: Vec<Told>,
    pub seed: u64,
    pub commit: String,
    pub findings: Findings,
    pub promises: Vec<Promise>,
    pub faults: Vec<FaultReport>,
    pub totals: Totals,
}

pub fn judge(history: &History) -> Verdict {
    let facts = Facts::of(history);
    let lags = Lags::of(&facts);
    let mut findings = Findings::default();
    content::check(&facts, &mut findings);
    durable::check(&facts, &mut findings);
    order::check(&facts, &mut findings);
    agree::check(&facts, &mut findings);
    tables::check(&facts, &mut findings);
    let faults = fault_reports(&facts, &lags);
    let promises = promises::of(&facts, &lags, &faults);
    runtime::check(&facts, &promises, &mut findings);
    let totals = totals(&facts, &lags);
    let mut verdict = Verdict {
        drill: history.drill.name.clone(),
        outcome: Outcome::Pass,
        reasons: Vec::new(),
        seed: history.header.seed,
        commit: history.header.commit.clone(),
        findings,
        promises,
        faults,
        totals,
    };
    decide(history, &mut verdict);
    verdict
}

/// A broken invariant is a failure whatever else is; without proof there is no verdict; and only then do
/// broken bounds count, those of INV-9 and INV-10 among them.
fn decide(history: &History, verdict: &mut Verdict) {
    let mut failed: Vec<Reason> = Vec::new();
    // A drill that could not put right what it had done keeps the broker down, and nobody can have anything; and of a
    // history that was cut off the end is not known.
    let stuck = history.faults.iter().any(FaultSeen::is_stuck);
    for (invariant, finding) in &verdict.findings.0 {
        let excused = (stuck || !history.done) && *invariant == Invariant::Converged;
        if finding.violations > 0 && !invariant.is_measured() && !excused {
            failed.push(Reason::InvariantBroken {
                number: invariant.number(),
                invariant: invariant.text(),
                count: finding.violations,
                first: finding.told[0].text(),
            });
        }
    }
    let invalid = why_invalid(history, verdict);
    let told = |reasons: &[Reason]| reasons.iter().map(Reason::told).collect();
    if !failed.is_empty() {
        verdict.outcome = Outcome::Fail;
        verdict.reasons = told(&failed);
        return;
    }
    if !invalid.is_empty() {
        verdict.outcome = Outcome::Invalid;
        verdict.reasons = told(&invalid);
        return;
    }
    if let Some((t, why)) = &history.stopped {
        failed.push(Reason::StopCondition {
            at: format!("{:.1}", *t as f64 / 1e6),
            why: why.clone(),
        });
    }
    for promise in verdict.promises.iter().filter(|p| !p.kept) {
        failed.push(Reason::PromiseBroken {
            what: promise.what.clone(),
            seen: promise.seen.clone(),
            bound: promise.bound.clone(),
        });
    }
    if !failed.is_empty() {
        verdict.outcome = Outcome::Fail;
        verdict.reasons = told(&failed);
    }
}

fn why_invalid(history: &History, verdict: &Verdict) -> Vec<Reason> {
    let mut why = Vec::new();
    if !history.done {
        why.push(Reason::HistoryIsCut {});
    }
    let still = history.stood_still();
    if still > STANDSTILL_MAX_US {
        let seconds = format!("{:.1}", still as f64 / 1e6);
        why.push(Reason::ClientsStoodStill { seconds });
    }
    if verdict.totals.acknowledged == 0 {
        why.push(Reason::NothingAcknowledged {});
    }
    // A drill that was stopped did not come to all of its faults.
    let stopped = history.stopped.is_some();
    let begun = history.faults.iter().filter_map(FaultSeen::begin).min();
    if let Some((t, text)) = &history.stopped
        && begun.is_none_or(|begun| *t < begun)
    {
        let text = text.clone();
        why.push(Reason::StoppedTooSoon { why: text });
    }
    for fault in verdict.faults.iter().filter(|f| !f.proven()) {
        if stopped && fault.begin_s.is_none() {
            continue;
        }
        why.push(unproven(fault));
    }
    let bounds = verdict.promises.iter().filter(|p| p.checked == 0);
    for promise in bounds.filter(|_| !stopped) {
        let (what, seen) = (promise.what.clone(), promise.seen.clone());
        why.push(Reason::BoundSawNothing { what, seen });
    }
    let before = verdict.promises.iter().filter(|p| p.when == When::Before);
    for promise in before.filter(|p| !p.kept) {
        why.push(Reason::NoSteadyState {
            what: promise.what.clone(),
            seen: promise.seen.clone(),
            bound: promise.bound.clone(),
        });
    }
    why
}

fn unproven(report: &FaultReport) -> Reason {
    // Whoever reads English knows its name from the drill's file.
    let fault = Text::new(report.kind, &report.label.zh);
    let missing = report.proof.iter().find(|p| !p.holds);
    match (&report.failed, report.begin_s, missing) {
        (Some(why), ..) => Reason::FaultFailed {
            fault,
            why: why.clone(),
        },
        (None, None, _) => Reason::FaultNeverBegan { fault },
        (None, Some(_), Some(proof)) => Reason::ProofIsMissing {
            fault,
            what: Text::new(&proof.what, &proof.what_zh),
            seen: proof.seen.clone(),
        },
        (None, Some(_), None) => Reason::FaultNotUndone { fault },
    }
}

fn fault_reports(facts: &Facts<'_>, lags: &Lags) -> Vec<FaultReport> {
    let history = facts.history;
    let pairs = history.drill.faults.iter().zip(&history.faults);
    let since = |t: u64| (t.saturating_sub(facts.load_begin)) as f64 / 1e6;
    pairs
        .map(|(fault, seen)| {
            let (en, zh) = fault.what.label();
            let healing = seen.healing();
            let recovered = healing.and_then(|at| {
                let clients = lags.recovered(at)?;
                // Whoever reads the log for a database is not among those whose lag is measured.
                match fault.what.needs_sink() {
                    true => Some(clients.max(sink::recovered(facts, at)?)),
                    false => Some(clients),
                }
            });
            FaultReport {
                kind: fault.what.name(),
                label: Text::new(en, zh),
                begin_s: seen.begin().map(since),
                healing_s: healing.map(since),
                recovery_s: recovered.map(|us| us as f64 / 1e6),
                proof: seen.proof().to_vec(),
                failed: seen.failed().cloned(),
            }
        })
        .collect()
}

fn totals(facts: &Facts<'_>, lags: &Lags) -> Totals {
    let history = facts.history;
    let mut totals = Totals {
        worst_urgent_lag_s: lags.worst(true) as f64 / 1e6,
        worst_bulk_lag_s: lags.worst(false) as f64 / 1e6,
        tables_compared: history.tables.len() as u64,
        ..Totals::default()
    };
    for op in history.ops.values().flatten() {
        let count = u64::from(op.count);
        totals.published += count;
        match &op.end {
            Some(end) if end.how == How::Ok => {
                totals.acknowledged += count - end.refused.len() as u64;
                totals.refused += end.refused.len() as u64;
                totals.duplicates += u64::from(end.duplicate);
            }
            Some(end) if end.how == How::Failed => totals.refused += count,
            Some(_) | None => totals.unknown += count,
        }
    }
    for poison in &history.poison {
        let refused = poison.end.as_ref();
        totals.poison_refused += u64::from(refused.is_some_and(|e| e.how != How::Unknown));
    }
    for subscription in &history.subscriptions {
        totals.reconnects += subscription.reconnects;
        if subscription.role == Role::Live || subscription.role == Role::Slow {
            totals.delivered += facts::deltas_of(subscription);
        }
    }
    let broker = |name: &str| name == "hutong-broker";
    totals.broker_starts = history
        .processes
        .iter()
        .filter(|(_, name, life)| broker(name) && *life == crate::history::Life::Ready)
        .count() as u64;
    let memory = history.samples.iter().map(|(_, memory, _)| *memory).max();
    totals.memory_peak_mb = memory.unwrap_or(0) as f64 / 1e6;
    totals
}
