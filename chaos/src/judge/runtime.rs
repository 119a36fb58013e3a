//! INV-9 and INV-10, from what was measured; INV-11, from how the broker's process ended.

use crate::{
    drill::What,
    history::{FaultTimes, How, Life},
    judge::{Facts, Findings, Invariant, Promise, Violation, When},
    text::Text,
};

const BROKER: &str = "hutong-broker";
const CONNECTOR: &str = "hutong-connect";
/// Of the broker: it stopped because it could no longer keep its promises.
const FAIL_STOP: i32 = 3;
/// As long as the broker of a drill may drain.
const DRAIN_US: u64 = 10_000_000;
const CANNOT_START: i32 = 1;
const KILLED: i32 = 9;

pub fn check(facts: &Facts<'_>, promises: &[Promise], findings: &mut Findings) {
    for promise in promises {
        let invariant = match promise.when {
            When::Always => Invariant::MemoryBounded,
            When::During | When::After if promise.urgent => Invariant::UrgentBounded,
            When::Before | When::During | When::After | When::Reaction => continue,
        };
        findings.checked(invariant, promise.checked);
        if !promise.kept {
            let found = Violation::BoundBroken {
                what: promise.what.clone(),
                seen: promise.seen.clone(),
                bound: promise.bound.clone(),
            };
            findings.violated(invariant, &found);
        }
    }
    ends(facts, findings);
    let hypothesis = &facts.history.drill.hypothesis;
    for (fault, seen) in facts.history.drill.faults.iter().zip(&facts.history.faults) {
        let Some(times) = seen.times(facts.history.last) else {
            continue;
        };
        // A disk that did not fail need not stop anybody. The proof is what the kernel said, and not what the
        // broker made of it: that it goes on is no way out of this.
        if hypothesis.fail_stop && seen.is_proven() && fault.what.breaks_the_disk() {
            fail_stop(facts, findings, &fault.what, times);
        }
        if hypothesis.refuses_to_start {
            refuses_to_start(facts, findings, &fault.what, times);
        }
    }
}

/// How a process may end: killed by the drill, the broker stopped by a failing disk or refusing to start on
/// damage. All else is an end that nobody asked for, an end without an error as well: nobody tells them to stop.
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
        findings.checked(Invariant::FailStop, 1);
        let asked_for = match (name.as_str(), code, signal) {
            (BROKER, _, Some(KILLED)) => during(*t, What::kills),
            (BROKER, Some(FAIL_STOP), _) => during(*t, What::breaks_the_disk) || drained(facts, *t),
            // A disk that is whole again after a power cut or a failed sync is one that it starts on.
            (BROKER, Some(CANNOT_START), _) => during(*t, |what| {
                matches!(what, What::DiskFull | What::ReadOnly | What::FlippedByte)
            }),
            (CONNECTOR, _, Some(KILLED)) => during(*t, |what| *what == What::KillConnector),
            _ => false,
        };
        if !asked_for {
            let number = |n: &Option<i32>| n.map_or(Text::new("none", "无"), Text::same);
            let found = Violation::EndedUnasked {
                name: name.clone(),
                at: format!("{:.1}", *t as f64 / 1e6),
                code: number(code),
                signal: number(signal),
            };
            findings.violated(Invariant::FailStop, &found);
        }
    }
}

/// A write that failed just before the disk was whole again ends the broker when it has drained. One that took
/// something since then has not met that error.
fn drained(facts: &Facts<'_>, t: u64) -> bool {
    let history = facts.history;
    let taken_since = |whole: u64| {
        let mut ops = history.ops.values().flatten();
        ops.any(|op| {
            let end = op.end.as_ref();
            op.at > whole && end.is_some_and(|end| end.at <= t && end.how == How::Ok)
        })
    };
    let pairs = history.drill.faults.iter().zip(&history.faults);
    pairs
        .filter(|(fault, _)| fault.what.breaks_the_disk())
        .filter_map(|(_, seen)| seen.times(history.last))
        .any(|times| {
            (times.ended..=times.ended + DRAIN_US).contains(&t) && !taken_since(times.ended)
        })
}

fn label(what: &What) -> Text {
    let (en, zh) = what.label();
    Text::new(en, zh)
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
        let fault = label(what);
        findings.violated(Invariant::FailStop, &Violation::DidNotStop { fault });
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
        let fault = label(what);
        findings.violated(
            Invariant::PrefixWithoutHole,
            &Violation::ServesDamage { fault },
        );
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
        let fault = label(what);
        findings.violated(
            Invariant::PrefixWithoutHole,
            &Violation::DidNotRefuse { fault },
        );
    }
}
