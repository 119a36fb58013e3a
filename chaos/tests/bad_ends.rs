//! Histories in which something ended as it must not, was not undone, or was not shown to have happened: what
//! must be a failure, and what says nothing.

mod support;

use hutong_chaos::{
    history::{Cursor, Event, Life, Phase, Proof, Reaction},
    judge::{Invariant, Outcome},
    text::Text,
};
use support::{Made, broken, caught_alone, drill};

fn without_audit(made: Made) -> Made {
    made.remove(|event| matches!(event, Event::Audited { .. }))
}

#[test]
fn an_audit_that_was_not_read_to_its_end_is_none() {
    caught_alone(&without_audit(Made::sound()), Invariant::Converged);
    for sub in [2, 3] {
        let of = |event: &Event| matches!(event, Event::Audited { sub: s } if *s == sub);
        caught_alone(&Made::sound().remove(of), Invariant::Converged);
    }
}

#[test]
fn the_broker_goes_on_after_a_failed_sync() {
    let made = Made::of(&drill("fail_stop = true", "sync-error"));
    caught_alone(&made, Invariant::FailStop);
    // The same with an end by itself is what was promised.
    assert_eq!(ends_with(made, 3).judged().outcome, Outcome::Pass);
}

fn is_exit(event: &Event) -> bool {
    matches!(
        event,
        Event::Process {
            what: Life::Exited { .. },
            ..
        }
    )
}

/// The broker's process ended by itself, in place of being killed.
fn ends_with(made: Made, code: i32) -> Made {
    made.change(is_exit, |event| {
        if let Event::Process { what, .. } = event {
            *what = Life::Exited {
                code: Some(code),
                signal: None,
            };
        }
    })
}

/// It goes on: the same process answers from the first line to the last, whatever its disk says.
#[test]
fn the_broker_ignores_an_error_of_its_disk() {
    for fault in ["sync-error", "disk-full", "read-only"] {
        let goes_on = Made::of(&drill("fail_stop = true", fault))
            .remove(is_exit)
            .remove(|event| {
                matches!(
                    event,
                    Event::Process {
                        what: Life::Started { pid: 8 },
                        ..
                    }
                )
            });
        caught_alone(&goes_on, Invariant::FailStop);
        let unproven = goes_on.change(
            |event| {
                matches!(
                    event,
                    Event::Fault {
                        phase: Phase::Undone { .. },
                        ..
                    }
                )
            },
            |event| {
                *event = Event::Fault {
                    index: 0,
                    phase: Phase::Undone {
                        proof: vec![Proof::new("syncs that failed", "失败的落盘", 0, false)],
                    },
                };
            },
        );
        // What never happened stops nobody.
        assert_eq!(unproven.judged().outcome, Outcome::Invalid, "{fault}");
    }
}

#[test]
fn what_the_broker_had_to_do_and_did_not_is_a_broken_promise() {
    let made = Made::of(&drill("", "torn-tail")).change(
        |event| {
            matches!(
                event,
                Event::Fault {
                    phase: Phase::Ended { .. },
                    ..
                }
            )
        },
        |event| {
            let reactions = vec![Reaction::new(
                "it is found",
                "发现",
                ("found", "已发现"),
                ("not found", "未发现"),
                false,
            )];
            *event = Event::Fault {
                index: 0,
                phase: Phase::Ended { reactions },
            };
        },
    );
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Fail, "{:?}", verdict.reasons);
    assert!(verdict.reasons[0].en.contains("it is found: not found"));
}

#[test]
fn a_broker_that_takes_too_long_to_come_back_has_failed_although_the_drill_gave_up() {
    let late = Phase::NotBack {
        why: Text::quoted("hutong-broker was not ready within 60 s"),
    };
    let made = Made::sound().change(
        |event| {
            matches!(
                event,
                Event::Fault {
                    phase: Phase::Ended { .. },
                    ..
                }
            )
        },
        |event| {
            *event = Event::Fault {
                index: 0,
                phase: late,
            };
        },
    );
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Fail, "{:?}", verdict.reasons);
}

/// The disk could not be mounted again, so the broker was kept down to the end.
#[test]
fn a_drill_that_cannot_undo_what_it_did_says_nothing() {
    let stuck = Phase::Stuck {
        why: Text::quoted("mount: no such device"),
    };
    let made = without_audit(Made::of(&drill("", "power-loss"))).change(
        |event| {
            matches!(
                event,
                Event::Fault {
                    phase: Phase::Undone { .. },
                    ..
                }
            )
        },
        |event| {
            *event = Event::Fault {
                index: 0,
                phase: stuck,
            };
        },
    );
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Invalid, "{:?}", verdict.reasons);
    assert!(verdict.reasons[0].en.contains("no such device"));
}

#[test]
fn an_end_without_an_error_was_asked_for_by_nobody() {
    caught_alone(&ends_with(Made::sound(), 0), Invariant::FailStop);
}

#[test]
fn a_kill_during_a_fault_that_kills_nobody() {
    let paused = Made::of(&drill("", "pause-broker"));
    caught_alone(&paused, Invariant::FailStop);
    let squeezed = drill("", "memory-squeeze").replace(
        "kind = \"memory-squeeze\"",
        "kind = \"memory-squeeze\"\nlimit = \"64MiB\"",
    );
    assert_eq!(Made::of(&squeezed).judged().outcome, Outcome::Pass);
}

/// The fault that kills it lasts from 5 to 7.1 s.
#[test]
fn a_kill_before_or_after_the_fault_that_kills() {
    for (t, asked_for) in [
        (4_999_999, false),
        (5_000_000, true),
        (7_100_000, true),
        (7_100_001, false),
    ] {
        let killed = Event::Process {
            name: "hutong-broker".to_owned(),
            what: Life::Exited {
                code: None,
                signal: Some(9),
            },
        };
        let made = Made::sound().add(t, killed);
        match asked_for {
            true => assert_eq!(made.judged().outcome, Outcome::Pass, "{t}"),
            false => caught_alone(&made, Invariant::FailStop),
        }
    }
}

/// Its disk is broken from 5 to 7.1 s; who met an error just before the end of that ends when it has drained, and
/// takes nothing any more: what is sent at 7.25 s is acknowledged soon after.
#[test]
fn a_broker_that_stops_by_itself_when_its_disk_is_whole() {
    for (t, asked_for) in [(4_999_999, false), (7_200_000, true), (7_300_000, false)] {
        let stopped = Event::Process {
            name: "hutong-broker".to_owned(),
            what: Life::Exited {
                code: Some(3),
                signal: None,
            },
        };
        let made = ends_with(Made::of(&drill("fail_stop = true", "sync-error")), 3);
        let made = made.add(t, stopped);
        match asked_for {
            true => assert_eq!(made.judged().outcome, Outcome::Pass, "{t}"),
            false => caught_alone(&made, Invariant::FailStop),
        }
    }
}

#[test]
fn a_connector_crashes_where_nothing_killed_it() {
    for name in ["hutong-connect", "areas-110000"] {
        let ended = Event::Process {
            name: name.to_owned(),
            what: Life::Exited {
                code: Some(1),
                signal: None,
            },
        };
        caught_alone(&Made::sound().add(9_000_000, ended), Invariant::FailStop);
    }
}

/// It comes back at the second start, and nobody asked it to refuse the first one.
#[test]
fn the_broker_does_not_start_on_a_disk_that_is_whole() {
    let refuses = |made: Made| {
        let of_start = Event::Process {
            name: "hutong-broker".to_owned(),
            what: Life::Exited {
                code: Some(1),
                signal: None,
            },
        };
        made.add(7_015_000, of_start)
    };
    let cut = Made::of(&drill("", "power-loss"));
    caught_alone(&refuses(cut), Invariant::FailStop);
    let stopped = |fault: &str| ends_with(Made::of(&drill("fail_stop = true", fault)), 3);
    let verdict = stopped("sync-error").judged();
    assert_eq!(verdict.outcome, Outcome::Pass, "{:?}", verdict.reasons);
    caught_alone(&refuses(stopped("sync-error")), Invariant::FailStop);
    let verdict = refuses(stopped("disk-full")).judged();
    assert!(broken(&verdict).is_empty(), "{:?}", verdict.reasons);
}

#[test]
fn the_broker_panics_where_nothing_was_broken() {
    let ended = Event::Process {
        name: "hutong-broker".to_owned(),
        what: Life::Exited {
            code: Some(101),
            signal: None,
        },
    };
    caught_alone(&Made::sound().add(9_000_000, ended), Invariant::FailStop);
}

#[test]
fn the_broker_serves_damaged_data() {
    let made = Made::of(&drill("refuses_to_start = true", "flipped-byte"));
    let started = Event::Process {
        name: "hutong-broker".to_owned(),
        what: Life::Ready,
    };
    caught_alone(&made.add(6_000_000, started), Invariant::PrefixWithoutHole);
}

#[test]
fn the_broker_refuses_damaged_data_and_goes_on_when_they_are_mended() {
    let damaged = || Made::of(&drill("refuses_to_start = true", "flipped-byte"));
    let life = |name: &str, what: Life| Event::Process {
        name: name.to_owned(),
        what,
    };
    let exited = |code| Life::Exited {
        code: Some(code),
        signal: None,
    };
    let refuses = || damaged().add(6_000_000, life("hutong-broker", exited(1)));
    // Others may start meanwhile.
    let made = refuses().add(6_100_000, life("hutong-connect", Life::Ready));
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Pass, "{:?}", verdict.reasons);
    let broken = |made: &Made, count: u64, told: &str| {
        caught_alone(made, Invariant::PrefixWithoutHole);
        let finding = &made.judged().findings.0[&Invariant::PrefixWithoutHole];
        assert_eq!(finding.violations, count, "{:?}", finding.told);
        let first = &finding.told[0].en;
        assert!(first.starts_with(told), "{first}");
    };
    broken(&damaged(), 1, "the broker did not refuse to start");
    let serves = refuses().add(6_200_000, life("hutong-broker", Life::Ready));
    broken(&serves, 1, "the broker serves damaged data");
    // What it did before the damage, or once that was mended, is no refusal of it.
    for t in [5_001_500, 7_000_000] {
        let made = damaged().add(t, life("hutong-broker", exited(1)));
        broken(&made, 1, "the broker did not refuse to start");
    }
}

#[test]
fn without_proof_there_is_no_verdict() {
    let ended = |event: &Event| {
        matches!(
            event,
            Event::Fault {
                phase: Phase::Undone { .. },
                ..
            }
        )
    };
    for proof in [
        Vec::new(),
        vec![Proof::new("packets dropped", "丢弃的数据包", 0, false)],
    ] {
        let made = Made::sound().change(ended, |event| {
            *event = Event::Fault {
                index: 0,
                phase: Phase::Undone { proof },
            };
        });
        assert_eq!(made.judged().outcome, Outcome::Invalid);
    }
    assert_eq!(Made::without_fault().judged().outcome, Outcome::Invalid);
}

#[test]
fn without_a_steady_state_to_begin_with_there_is_no_verdict() {
    let mut made = Made::sound();
    // What is due in the first seconds comes just before the fourth, in order.
    for line in &mut made.lines {
        if matches!(line.e, Event::Got { sub: 0, .. }) && line.t < 3_900_000 {
            line.t = 3_990_000 + line.t / 1000;
        }
    }
    made.lines.sort_by_key(|line| line.t);
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Invalid, "{:?}", verdict.reasons);
    assert!(verdict.reasons[0].en.contains("no steady state"));
}

#[test]
fn a_stop_condition_before_anything_was_broken_is_about_the_machine() {
    let stopped = |t| {
        let why = Text::quoted("only 900 MiB are left on the disk");
        Made::sound().add(t, Event::Stopped { why })
    };
    let verdict = stopped(4_000_000).judged();
    assert_eq!(verdict.outcome, Outcome::Invalid, "{:?}", verdict.reasons);
    assert_eq!(stopped(6_000_000).judged().outcome, Outcome::Fail);
}

#[test]
fn a_bound_that_saw_nothing_is_none() {
    // The load was over before the recovery was.
    let mut made = Made::sound();
    let end = made
        .lines
        .iter_mut()
        .find(|line| line.e == Event::LoadEnded);
    end.expect("an end").t = 8_500_000;
    made.lines.sort_by_key(|line| line.t);
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Invalid, "{:?}", verdict.reasons);
    assert!(verdict.reasons[0].en.contains("saw nothing"));
}

#[test]
fn clients_that_stood_still_measure_nothing() {
    let mut made = Made::sound();
    for second in (0..12).filter(|second| !(8..11).contains(second)) {
        made = made.add(second * 1_000_000 + 1, Event::Beat);
    }
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Invalid, "{:?}", verdict.reasons);
    assert!(verdict.reasons[0].en.contains("stood still for 4.0 s"));
}

#[test]
fn a_loss_is_a_failure_also_without_proof() {
    let made = Made::sound()
        .remove(|event| matches!(event, Event::Fault { .. }))
        .without_records(|_, record| record.offset == 49);
    assert_eq!(made.judged().outcome, Outcome::Fail);
}

#[test]
fn a_recovery_that_takes_too_long_is_a_broken_promise() {
    let mut made = Made::sound();
    for line in &mut made.lines {
        if matches!(line.e, Event::Got { sub: 0 | 1, .. })
            && (5_000_000..10_500_000).contains(&line.t)
        {
            line.t = 10_500_000;
        }
    }
    made.lines.sort_by_key(|line| line.t);
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Fail);
    let recovery = verdict.faults[0].recovery_s.expect("it recovers");
    assert!((3.4..3.7).contains(&recovery), "{recovery}");
}

fn connector_killed() -> Made {
    Made::of(&drill("", "kill-connector")).change(is_exit, |event| {
        if let Event::Process { name, .. } = event {
            *name = "hutong-connect".to_owned();
        }
    })
}

/// The first look after the fault is at 7.5 s. By then it must have what others had at 7 s: all up to the urgent
/// record at 111 and the bulk one at 112.
#[test]
fn a_sink_without_the_last_record_that_it_must_have_is_not_well_again() {
    for (urgent, bulk, recovery) in [(112, 113, 0.5), (111, 113, 1.5), (113, 112, 1.5)] {
        let first = |event: &Event| matches!(event, Event::Table { cursor: Some(cursor), .. } if cursor.urgent == 113);
        let made = connector_killed().change(first, |event| {
            if let Event::Table { cursor, .. } = event {
                *cursor = Some(Cursor { urgent, bulk });
            }
        });
        let seen = made.judged().faults[0].recovery_s.expect("it recovers");
        assert!((seen - recovery).abs() < 0.001, "{urgent} {bulk}: {seen}");
    }
}

/// Its platform is none of those whose lag is measured, and in the end it has everything.
#[test]
fn a_sink_that_comes_back_too_late_is_a_broken_promise() {
    let soon = connector_killed().judged();
    assert_eq!(soon.outcome, Outcome::Pass, "{:?}", soon.reasons);
    let recovery = soon.faults[0].recovery_s.expect("it recovers");
    assert!(recovery < 1.0, "{recovery}");
    // From the fault on nobody sees its table, or it stays as it was.
    let mut made = connector_killed();
    let mut stands = None;
    for line in &mut made.lines {
        if let Event::Table { cursor, rows, .. } = &mut line.e
            && (4_000_000..10_000_000).contains(&line.t)
        {
            let (cursor_then, rows_then) = stands.get_or_insert((*cursor, rows.clone()));
            (*cursor, *rows) = (*cursor_then, rows_then.clone());
        }
    }
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Fail, "{:?}", verdict.reasons);
    let recovery = verdict.faults[0].recovery_s.expect("it recovers");
    assert!((3.0..4.0).contains(&recovery), "{recovery}");
    assert!(verdict.reasons[0].en.contains("recovery to steady state"));
    assert!(broken(&verdict).is_empty(), "no urgent delta was late");
    let never = connector_killed()
        .remove(|event| matches!(event, Event::Table { .. }))
        .judged();
    assert_eq!(never.faults[0].recovery_s, None);
}

#[test]
fn a_history_that_was_cut_short_says_nothing() {
    let whole = Made::sound().lines.len();
    // The first line says which drill it is, and the last one that it ended.
    for kept in (1..whole).step_by(7).chain([whole - 1]) {
        let mut made = Made::sound();
        made.lines.truncate(kept);
        let verdict = made.judged();
        let reasons = &verdict.reasons;
        assert_eq!(
            verdict.outcome,
            Outcome::Invalid,
            "{kept} of {whole}: {reasons:?}"
        );
    }
}
