//! INV-9 and INV-10, from what was measured; INV-11, from how the broker's process ended.

use crate::{
    drill::What,
    history::{FaultTimes, Life, Phase},
    judge::{Facts, Findings, Invariant, Promise, When},
};

const BROKER: &str = "hutong-broker";
/// Of the broker: it stopped because it could no longer keep its promises.
const FAIL_STOP: i32 = 3;
const CANNOT_START: i32 = 1;
const KILLED: i32 = 9;

pub fn check(facts: &Facts<'_>, promises: &[Promise], findings: &mut Findings) {
    for promise in promises {
        let invariant = match promise.when {
            When::Always => Invariant::MemoryBounded,
            When::During | When::After if promise.urgent => Invariant::UrgentBounded,
            When::Before | When::During | When::After => continue,
        };
        findings.checked(invariant, promise.checked);
        if !promise.kept {
            let text = format!(
                "{}: {}, promised {}",
                promise.what.en, promise.seen, promise.bound
            );
            findings.violated(invariant, text);
        }
    }
    ends(facts, findings);
    let hypothesis = &facts.history.drill.hypothesis;
    for (fault, seen) in facts.history.drill.faults.iter().zip(&facts.history.faults) {
        let Some(times) = seen.times(facts.history.last) else {
            continue;
        };
        // A disk that was not seen to fail need not stop anybody; then there is no verdict at all.
        let proven = seen.phases.iter().any(|(_, phase)| match phase {
            Phase::Ended { proof } => proof.iter().all(|p| p.holds),
            _ => false,
        });
        if hypothesis.fail_stop && proven && breaks_the_disk(&fault.what) {
            fail_stop(facts, findings, &fault.what, times);
        }
        if hypothesis.refuses_to_start {
            refuses_to_start(facts, findings, &fault.what, times);
        }
    }
}

fn breaks_the_disk(what: &What) -> bool {
    matches!(
        what,
        What::SyncError | What::DiskFull | What::ReadOnly | What::PowerLoss
    )
}

/// How it may end: killed by the drill, stopped by a failing disk, refused to start on damage. All else
/// is an end that nobody asked for.
fn ends(facts: &Facts<'_>, findings: &mut Findings) {
    let history = facts.history;
    let during = |t: u64, is: fn(&What) -> bool| {
        let pairs = history.drill.faults.iter().zip(&history.faults);
        pairs
            .filter(|(fault, _)| is(&fault.what))
            .filter_map(|(_, seen)| seen.times(history.last))
            .any(|times| t >= times.begin && t <= times.ended)
    };
    for (t, name, life) in &history.processes {
        let Life::Exited { code, signal } = life else {
            continue;
        };
        if name != BROKER {
            continue;
        }
        findings.checked(Invariant::FailStop, 1);
        let asked_for = match (code, signal) {
            (_, Some(KILLED)) => during(*t, |_| true),
            (Some(FAIL_STOP), _) => during(*t, breaks_the_disk),
            (Some(CANNOT_START), _) => during(*t, |what| {
                breaks_the_disk(what) || *what == What::FlippedByte
            }),
            (Some(0), _) => true,
            _ => false,
        };
        if !asked_for {
            let at = *t as f64 / 1e6;
            let text = format!(
                "the broker ended after {at:.1} s with code {code:?} and signal {signal:?}, which no fault asked for"
            );
            findings.violated(Invariant::FailStop, text);
        }
    }
}

fn fail_stop(facts: &Facts<'_>, findings: &mut Findings, what: &What, times: FaultTimes) {
    // A power cut takes the process with it, before it can notice.
    if *what == What::PowerLoss {
        return;
    }
    findings.checked(Invariant::FailStop, 1);
    let stopped = facts.history.processes.iter().any(|(t, name, life)| {
        name == BROKER
            && (times.begin..=times.ended).contains(t)
            && matches!(
                life,
                Life::Exited {
                    code: Some(FAIL_STOP),
                    ..
                }
            )
    });
    if !stopped {
        let text = format!(
            "the broker did not stop by itself with code 3 ({})",
            what.name()
        );
        findings.violated(Invariant::FailStop, text);
    }
}

/// Damaged data are found, and not served.
fn refuses_to_start(facts: &Facts<'_>, findings: &mut Findings, what: &What, times: FaultTimes) {
    let within = |t: &u64| (times.active..times.healing).contains(t);
    let lives = |is: fn(&Life) -> bool| {
        let processes = facts.history.processes.iter();
        processes
            .filter(|(t, name, life)| name == BROKER && within(t) && is(life))
            .count()
    };
    findings.checked(Invariant::PrefixWithoutHole, 1);
    if lives(|life| *life == Life::Ready) > 0 {
        let text = format!("the broker serves damaged data ({})", what.name());
        findings.violated(Invariant::PrefixWithoutHole, text);
    }
    let refused = lives(|life| {
        matches!(
            life,
            Life::Exited {
                code: Some(CANNOT_START),
                ..
            }
        )
    });
    if refused == 0 {
        let text = format!("the broker did not refuse to start ({})", what.name());
        findings.violated(Invariant::PrefixWithoutHole, text);
    }
}
