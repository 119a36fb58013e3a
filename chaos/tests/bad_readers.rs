//! Those who read at the end, and what a verdict counts and tells: as `bad_histories.rs`, for the checkers that no
//! bug in the middle of a stream reaches.

mod support;

use hutong_chaos::{
    clients::{Deltas, OBSERVER},
    history::{Cursor, Event, How, Life, Record, Role, Row, Stream},
    judge::{Invariant, Outcome, Verdict},
    text::Text,
};
use std::collections::BTreeMap;
use support::{ANHUI, Made, SICHUAN, broken, caught_alone};

/// Between the last look and the end of the history.
const AT_THE_END: u64 = 12_100_008;

/// All that the log has, as the audit reads it.
fn log(made: &Made) -> Vec<Record> {
    let read = made.lines.iter().find_map(|line| match &line.e {
        Event::Got { sub: 2, records } => Some(records.clone()),
        _ => None,
    });
    read.expect("an audit")
}

/// A subscriber that begins when everything is over, and gets these.
fn with_late(records: Vec<Record>) -> Made {
    let (sub, name) = (4, "late".to_owned());
    let cursor = Cursor { urgent: 1, bulk: 1 };
    Made::sound()
        .add(
            AT_THE_END,
            Event::Subscription {
                sub,
                platform: OBSERVER,
                name,
                role: Role::Slow,
            },
        )
        .add(AT_THE_END, Event::Opened { sub, cursor })
        .add(AT_THE_END, Event::Got { sub, records })
}

#[test]
fn who_begins_late_must_end_where_the_log_ends_in_both_lanes() {
    let all = log(&Made::sound());
    let verdict = with_late(all.clone()).judged();
    assert_eq!(verdict.outcome, Outcome::Pass, "{:?}", verdict.reasons);
    for lane in [Stream::Urgent, Stream::Bulk] {
        let last = all.iter().rev().find(|record| record.stream == lane);
        let last = last.expect("in both").offset;
        let rest: Vec<_> = all.iter().filter(|r| r.offset != last).cloned().collect();
        let made = with_late(rest);
        caught_alone(&made, Invariant::Converged);
        let told = first_told(&made.judged(), Invariant::Converged);
        assert!(told.contains(&format!("{OBSERVER}/late")), "{told}");
    }
}

fn first_told(verdict: &Verdict, of: Invariant) -> String {
    verdict.findings.0[&of].told[0].en.clone()
}

/// As the clients of a made history have them.
fn deltas(wall_us: u64) -> Deltas {
    Deltas {
        seed: 11,
        people: 40,
        wall_us,
        areas: false,
    }
}

/// The snapshot of the audit has other rows, each of which was published.
fn with_snapshot(change: impl FnOnce(&mut Vec<Row>)) -> Made {
    let made = Made::sound();
    let mut due: BTreeMap<Row, u64> = BTreeMap::new();
    let mut wall_us = 0;
    for line in &made.lines {
        match &line.e {
            Event::Header(header) => wall_us = header.wall_us,
            Event::Publish {
                issuer,
                stream,
                first,
                count,
                due: at,
                ..
            } => {
                let revisions = *first..*first + u64::from(*count);
                due.extend(revisions.map(|revision| ((*issuer, *stream, revision), *at)));
            }
            _ => {}
        }
    }
    let deltas = deltas(wall_us);
    made.change(
        |event| matches!(event, Event::Rows { .. }),
        |event| {
            if let Event::Rows { rows, digest, .. } = event {
                change(rows);
                let of = |issuer, stream, revision| due.get(&(issuer, stream, revision)).copied();
                *digest = deltas.digest_of_rows(rows, of).expect("published");
            }
        },
    )
}

/// One has what the same register had before.
fn an_older_row(rows: &mut [Row]) {
    let deltas = deltas(0);
    let before = rows.iter_mut().find_map(|row| {
        let (issuer, stream, newest) = *row;
        let register = |revision| deltas.register(issuer, stream, revision);
        let earlier = (1..newest).find(|old| register(*old) == register(newest))?;
        Some((row, earlier))
    });
    let (row, earlier) = before.expect("some register changed twice");
    row.2 = earlier;
}

#[test]
fn a_snapshot_is_what_the_log_says_neither_less_nor_older() {
    let same = with_snapshot(|_| {}).judged();
    assert_eq!(same.outcome, Outcome::Pass, "{:?}", same.reasons);
    let less = with_snapshot(|rows| rows.truncate(rows.len() - 1));
    caught_alone(&less, Invariant::Converged);
    let told = first_told(&less.judged(), Invariant::Converged);
    assert!(told.contains("audit-snapshot"), "{told}");
    let older = with_snapshot(|rows| an_older_row(rows));
    caught_alone(&older, Invariant::Converged);
    let told = first_told(&older.judged(), Invariant::Converged);
    assert!(told.contains("in 1 registers: register "), "{told}");
    let endless = Made::sound().remove(|event| matches!(event, Event::SnapshotEnd { .. }));
    assert!(broken(&endless.judged()).contains(&Invariant::Converged));
}

/// As one is that has been away for longer than the log goes back: what it gets in place of records.
fn with_late_snapshot(rows: Event, more: Vec<Record>) -> Made {
    let made = with_late(log(&Made::sound()));
    let (sub, next) = (4, 48 * 4 + 1);
    let cursor = Cursor {
        urgent: next,
        bulk: next,
    };
    let Event::Rows { rows, digest, .. } = rows else {
        panic!("rows")
    };
    made.add(AT_THE_END, Event::SnapshotBegin { sub })
        .add(AT_THE_END, Event::Rows { sub, rows, digest })
        .add(AT_THE_END, Event::SnapshotEnd { sub, cursor })
        .add(AT_THE_END, Event::Got { sub, records: more })
}

#[test]
fn a_snapshot_in_the_middle_is_as_new_as_what_came_before_it() {
    let rows_of = |made: Made| {
        let mut events = made.lines.into_iter().map(|line| line.e);
        let rows = events.find(|event| matches!(event, Event::Rows { .. }));
        rows.expect("rows")
    };
    let same = || rows_of(Made::sound());
    let verdict = with_late_snapshot(same(), Vec::new()).judged();
    assert_eq!(verdict.outcome, Outcome::Pass, "{:?}", verdict.reasons);
    let older = rows_of(with_snapshot(|rows| an_older_row(rows)));
    let made = with_late_snapshot(older, Vec::new());
    caught_alone(&made, Invariant::RevisionsRise);
    let told = first_told(&made.judged(), Invariant::RevisionsRise);
    assert!(told.contains("/late: register "), "{told}");
    // What a snapshot has need not come again.
    let last = log(&Made::sound()).pop();
    let made = with_late_snapshot(same(), last.into_iter().collect());
    caught_alone(&made, Invariant::ResumesExactly);
}

#[test]
fn another_record_at_the_same_place_of_the_log() {
    let made = Made::sound().each_record(|sub, record| {
        if sub == 1 && record.offset == 101 {
            record.durable_at += 1;
        }
    });
    let verdict = made.judged();
    assert!(broken(&verdict).contains(&Invariant::AllAgree));
    let told = first_told(&verdict, Invariant::AllAgree);
    assert!(told.contains(&format!("{SICHUAN}/drill")), "{told}");
    assert_eq!(verdict.findings.violations(Invariant::AllAgree), 1);
}

#[test]
fn poison_that_was_refused_lost_or_sent_again_was_not_taken() {
    for (how, duplicate, refused) in [
        (How::Ok, false, 1),
        (How::Ok, true, 0),
        (How::Failed, false, 0),
        (How::Unknown, false, 0),
    ] {
        let verdict = with_poison(how, duplicate, refused).judged();
        assert_eq!(verdict.outcome, Outcome::Pass, "{:?}", verdict.reasons);
        let counted = u64::from(how != How::Unknown);
        assert_eq!(verdict.totals.poison_refused, counted, "{how:?}");
    }
    caught_alone(&with_poison(How::Ok, false, 0), Invariant::NothingInvented);
}

fn with_poison(how: How, duplicate: bool, refused: u32) -> Made {
    let poison = Event::Poison {
        op: 9999,
        issuer: ANHUI,
        what: "revision 0".to_owned(),
        bad: 1,
    };
    let end = Event::End {
        op: 9999,
        how,
        accepted: 0,
        duplicate,
        refused: (0..refused).map(|i| (i, "X".to_owned())).collect(),
        error: None,
    };
    Made::sound().add(8_000_000, poison).add(8_000_001, end)
}

#[test]
fn totals_are_what_happened() {
    let totals = Made::sound().judged().totals;
    // Twelve seconds, four batches of four a second, of two platforms, in two lanes.
    let all = 12 * 4 * 4 * 2 * 2;
    assert_eq!(totals.published, all);
    assert_eq!(totals.acknowledged, all);
    assert_eq!(totals.delivered, all, "each to the one other platform");
    assert_eq!([totals.refused, totals.unknown, totals.duplicates], [0; 3]);
    assert_eq!([totals.reconnects, totals.poison_refused], [0; 2]);
    assert_eq!(totals.broker_starts, 2, "the connector's do not count");
    assert_eq!(totals.tables_compared, 12);
    let near = |seen: f64, wanted: f64| (seen - wanted).abs() < 0.011;
    let megabytes = f64::from(50 << 20) / 1e6;
    assert!(near(totals.memory_peak_mb, megabytes), "{totals:?}");
    assert!(near(totals.worst_urgent_lag_s, 0.02), "{totals:?}");
    assert!(near(totals.worst_bulk_lag_s, 0.02), "{totals:?}");
}

#[test]
fn what_the_audit_reads_was_not_delivered() {
    let missed = |sub: u32, record: &Record| sub == 1 && record.offset == 101;
    let totals = Made::sound().without_records(missed).judged().totals;
    assert_eq!(totals.delivered, totals.published - 4);
}

#[test]
fn answers_are_counted_by_what_they_said() {
    let end = |op: u64, how: How, duplicate: bool, refused: usize| {
        move |made: Made| {
            made.change(
                |event| matches!(event, Event::End { op: this, .. } if *this == op),
                |event| {
                    if let Event::End {
                        how: was,
                        duplicate: again,
                        refused: list,
                        ..
                    } = event
                    {
                        (*was, *again) = (how, duplicate);
                        *list = (0..refused as u32).map(|i| (i, "X".to_owned())).collect();
                    }
                },
            )
        }
    };
    let made = end(8, How::Ok, false, 1)(Made::sound());
    let made = end(12, How::Ok, true, 0)(made);
    let made = end(16, How::Failed, false, 0)(made);
    let made = end(17, How::Failed, false, 0)(made);
    let made = end(20, How::Unknown, false, 0)(made);
    let unanswered = |event: &Event| matches!(event, Event::End { op: 24, .. });
    let connector = Event::Process {
        name: "hutong-connect".to_owned(),
        what: Life::Ready,
    };
    let made = made
        .remove(unanswered)
        .add(6_000_000, connector)
        .add(8_000_000, Event::Reconnected { sub: 0 })
        .add(8_000_001, Event::Reconnected { sub: 1 });
    let totals = made.judged().totals;
    assert_eq!(totals.refused, 1 + 4 + 4);
    assert_eq!(totals.unknown, 4 + 4);
    assert_eq!(totals.acknowledged, totals.published - 9 - 8);
    assert_eq!(totals.duplicates, 1);
    assert_eq!(totals.reconnects, 2);
    assert_eq!(totals.broker_starts, 2, "the connector's do not count");
}

#[test]
fn a_report_says_when_and_tells_some_of_many() {
    let stopped = Event::Stopped {
        why: Text::new("no room", "空间不足"),
    };
    let verdict = Made::sound().add(6_000_000, stopped).judged();
    assert!(
        verdict.reasons[0].en.contains("6.0 s"),
        "{:?}",
        verdict.reasons
    );
    let fault = &verdict.faults[0];
    let near = |seen: Option<f64>, wanted: f64| seen.is_some_and(|s| (s - wanted).abs() < 0.05);
    assert!(near(fault.begin_s, 5.0), "{fault:?}");
    assert!(near(fault.healing_s, 7.0), "{fault:?}");
    // Sixteen were lost, and ten of them are told.
    let lost = Made::sound().without_records(|_, record| record.offset > 188);
    let finding = lost.judged().findings.0[&Invariant::NothingLost].clone();
    assert_eq!((finding.violations, finding.told.len()), (16, 10));
}

#[test]
fn what_proves_a_fault_is_told_by_name() {
    use hutong_chaos::history::{Phase, Proof};
    let undone = |event: &Event| {
        matches!(
            event,
            Event::Fault {
                phase: Phase::Undone { .. },
                ..
            }
        )
    };
    let with = |proof: Vec<Proof>| {
        Made::sound().change(undone, |event| {
            let phase = Phase::Undone { proof };
            *event = Event::Fault { index: 0, phase };
        })
    };
    let held = Proof::new("it is gone", "它不在", ("seen", "所见"), true);
    let missing = Proof::new("packets dropped", "丢弃的数据包", 0, false);
    let verdict = with(vec![held, missing]).judged();
    assert_eq!(verdict.outcome, Outcome::Invalid);
    let reason = &verdict.reasons[0].en;
    assert!(reason.contains("packets dropped"), "{reason}");
    assert!(!reason.contains("it is gone"), "{reason}");
    // A drill that was stopped does not come to all of its faults, but what began must be shown all the same.
    let stopped = Event::Stopped {
        why: Text::new("no room", "空间不足"),
    };
    let missing = Proof::new("packets dropped", "丢弃的数据包", 0, false);
    let verdict = with(vec![missing]).add(6_000_000, stopped).judged();
    assert_eq!(verdict.outcome, Outcome::Invalid, "{:?}", verdict.reasons);
}
