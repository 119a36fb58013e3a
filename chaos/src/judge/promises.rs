//! The steady-state hypothesis against what was seen.

use crate::{
    history::{Phase, Reaction},
    judge::{Facts, FaultReport, Lags},
    text::Text,
};
use serde::Serialize;
use std::time::Duration;

/// Which part of a drill a promise is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// Without it a drill says nothing.
    Before,
    During,
    After,
    Always,
    /// What somebody had to do about a fault.
    Reaction,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Promise {
    pub when: When,
    pub what: Text,
    pub bound: Text,
    pub seen: Text,
    pub kept: bool,
    /// Of urgent deltas.
    #[serde(skip)]
    pub urgent: bool,
    /// Deltas or samples that it was seen on.
    pub checked: u64,
}

fn ms(us: u64) -> Text {
    Text::same(format!("{:.0} ms", us as f64 / 1000.0))
}

fn seconds(us: u64) -> Text {
    Text::same(format!("{:.1} s", us as f64 / 1e6))
}

fn us(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

pub fn of(facts: &Facts<'_>, lags: &Lags, faults: &[FaultReport]) -> Vec<Promise> {
    let hypothesis = &facts.history.drill.hypothesis;
    let mut promises = of_lags(facts, lags);
    for fault in faults.iter().filter(|fault| fault.healing_s.is_some()) {
        let seen = fault.recovery_s;
        let bound = hypothesis.recovery.as_secs_f64();
        promises.push(Promise {
            when: When::After,
            what: Text::new(
                format!("recovery to steady state ({})", fault.label.en),
                format!("恢复稳态用时（{}）", fault.label.zh),
            ),
            bound: seconds(us(hypothesis.recovery)),
            seen: seen.map_or(Text::new("never", "从未"), |s| {
                Text::same(format!("{s:.1} s"))
            }),
            kept: seen.is_some_and(|s| s <= bound),
            urgent: false,
            checked: 1,
        });
    }
    for seen in &facts.history.faults {
        promises.extend(seen.reactions().iter().map(reaction));
        let late = seen.phases.iter().find_map(|(_, phase)| match phase {
            Phase::NotBack { why } => Some(why),
            _ => None,
        });
        promises.extend(late.map(|why| not_back(facts, why.clone())));
    }
    // Of a broker that others run, nothing is seen from here.
    if facts.history.header.trial.is_none() {
        promises.push(memory(facts));
    }
    promises
}

fn of_lags(facts: &Facts<'_>, lags: &Lags) -> Vec<Promise> {
    let hypothesis = &facts.history.drill.hypothesis;
    let mut promises = Vec::new();
    let words = [
        (
            When::Before,
            "before the first fault",
            "首个故障之前",
            &lags.before,
        ),
        (
            When::During,
            "while a fault is there",
            "故障期间",
            &lags.during,
        ),
        (When::After, "after recovery", "恢复之后", &lags.after),
    ];
    for (when, en, zh, windows) in words {
        for urgent in [true, false] {
            let bound = match (when, urgent) {
                (When::During, true) => hypothesis.urgent_lag_during,
                (When::During, false) => None,
                (_, true) => Some(hypothesis.urgent_lag),
                (_, false) => Some(hypothesis.bulk_lag),
            };
            let Some(bound) = bound else { continue };
            let (p99, checked) = lags.p99(urgent, windows);
            let (lane, lane_zh) = match urgent {
                true => ("urgent", "紧急"),
                false => ("bulk", "批量"),
            };
            promises.push(Promise {
                when,
                what: Text::new(
                    format!("{lane} lag p99 {en}"),
                    format!("{zh}的{lane_zh}延迟 p99"),
                ),
                bound: ms(us(bound)),
                seen: match (p99, checked) {
                    (_, 0) => Text::new("nothing was due", "没有到期的变更"),
                    (None, _) => Text::new("some never arrived", "部分从未到达"),
                    (Some(p99), _) => ms(p99),
                },
                kept: p99.is_some_and(|p99| p99 <= us(bound)),
                urgent,
                checked,
            });
        }
    }
    promises
}

fn reaction(seen: &Reaction) -> Promise {
    Promise {
        when: When::Reaction,
        what: Text::new(&seen.what, &seen.what_zh),
        bound: seen.bound.clone(),
        seen: seen.seen.clone(),
        kept: seen.kept,
        urgent: false,
        checked: 1,
    }
}

fn not_back(facts: &Facts<'_>, why: Text) -> Promise {
    let within = facts.history.drill.rollback.timeout;
    Promise {
        when: When::Reaction,
        what: Text::new("it stands again after the fault", "故障解除后恢复运行"),
        bound: seconds(us(within)),
        seen: why,
        kept: false,
        urgent: false,
        checked: 1,
    }
}

fn memory(facts: &Facts<'_>) -> Promise {
    let bound = facts.history.drill.hypothesis.memory;
    let peak = facts
        .history
        .samples
        .iter()
        .map(|(_, memory, _)| *memory)
        .max();
    let mb = |bytes: u64| Text::same(format!("{} MiB", bytes >> 20));
    Promise {
        when: When::Always,
        what: Text::new("memory of the broker", "互通内存"),
        bound: mb(bound),
        seen: peak.map_or(Text::new("not seen", "未测得"), mb),
        kept: peak.is_some_and(|peak| peak <= bound),
        urgent: false,
        checked: facts.history.samples.len() as u64,
    }
}
