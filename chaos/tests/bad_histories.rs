//! Every checker is shown a history that it must not let pass: one bug, planted into a sound history. A
//! check that has never failed is not a check.

mod support;

use hutong_chaos::{
    history::{AreaDiffers, AreasCompared, Cursor, Event, How, Line, Record, Stream},
    judge::{Invariant, Outcome},
};
use support::{ANHUI, Made, SICHUAN, broken, caught, caught_alone, drill};

/// The record with this offset, in the log and wherever it was delivered.
fn is(offset: u64) -> impl Fn(u32, &Record) -> bool {
    move |_, record| record.offset == offset
}

/// The `n`-th urgent record of Anhui is at this offset.
fn urgent_of_anhui(n: u64) -> u64 {
    1 + n * 4
}

fn table_after(second: u64) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Table { cursor: Some(cursor), .. } if cursor.urgent == second * 16 + 1)
}

#[test]
fn a_sound_history_passes_and_everything_was_looked_at() {
    let verdict = Made::sound().judged();
    assert_eq!(verdict.outcome, Outcome::Pass, "{:?}", verdict.reasons);
    for invariant in Invariant::ALL {
        let checked = verdict.findings.0.get(&invariant).map_or(0, |f| f.checked);
        assert!(checked > 0, "{invariant:?} was not checked");
    }
}

#[test]
fn ack_before_sync_the_end_of_the_log_is_lost() {
    // Acknowledged, and after the restart neither in the log nor anywhere else.
    let last = 48 * 4;
    let made = Made::sound().without_records(move |_, record| record.offset > last - 4);
    caught(&made, Invariant::NothingLost);
    let verdict = made.judged();
    assert_eq!(verdict.findings.violations(Invariant::NothingLost), 16);
    assert_eq!(verdict.findings.violations(Invariant::PrefixWithoutHole), 0);
}

#[test]
fn a_delta_that_got_no_answer_may_be_missing_at_the_end() {
    let last = 48 * 4;
    let unknown = |event: &Event| matches!(event, Event::End { op, .. } if *op >= 188);
    let made = Made::sound()
        .without_records(move |_, record| record.offset > last - 4)
        .remove(unknown);
    let broken = broken(&made.judged());
    assert!(!broken.contains(&Invariant::NothingLost), "{broken:?}");
    assert!(
        !broken.contains(&Invariant::PrefixWithoutHole),
        "{broken:?}"
    );
}

#[test]
fn a_client_that_says_its_batches_were_forgotten() {
    let gave_up = Event::ClientEnded {
        who: "publisher 110000 urgent".to_owned(),
        error: "the broker forgot what it had acknowledged".to_owned(),
    };
    caught_alone(
        &Made::sound().add(8_000_000, gave_up),
        Invariant::NothingLost,
    );
}

#[test]
fn a_hole_in_the_middle_of_the_log() {
    let hole = urgent_of_anhui(20);
    let unanswered = |event: &Event| matches!(event, Event::End { op, .. } if *op == 80);
    let made = Made::sound().without_records(is(hole)).remove(unanswered);
    let verdict = made.judged();
    assert_eq!(verdict.findings.violations(Invariant::NothingLost), 0);
    caught(&made, Invariant::PrefixWithoutHole);
}

#[test]
fn a_payload_byte_is_flipped() {
    let offset = urgent_of_anhui(7);
    let made = Made::sound().each_record(|_, record| {
        if record.offset == offset {
            record.digest ^= 1;
        }
    });
    caught_alone(&made, Invariant::NothingInvented);
}

#[test]
fn what_was_refused_is_delivered() {
    let made = Made::sound().change(
        |event| matches!(event, Event::End { op: 40, .. }),
        |event| {
            if let Event::End { refused, .. } = event {
                refused.push((2, "ENTITY_INVALID".to_owned()));
            }
        },
    );
    caught_alone(&made, Invariant::NothingInvented);
    // The third of the batch that begins with 41; and it had no fault.
    let finding = &made.judged().findings.0[&Invariant::NothingInvented];
    let told = &finding.told.last().expect("told").en;
    assert_eq!(
        told,
        "revision 43 of 110000 (urgent) has no fault and was refused: ENTITY_INVALID"
    );
}

/// Nobody gets what was refused, and no acknowledgement is broken by that.
#[test]
fn what_has_no_fault_is_refused() {
    let refused = |made: Made, reason: &str| {
        let of = |event: &Event| matches!(event, Event::End { op: 40, .. });
        made.change(of, |event| {
            if let Event::End { refused, .. } = event {
                *refused = (0..4).map(|i| (i, reason.to_owned())).collect();
            }
        })
        .without_records(|_, record| record.offset == 41)
        .remove(|event| matches!(event, Event::Table { .. }))
    };
    let made = refused(Made::sound(), "TIME_IN_FUTURE");
    let verdict = made.judged();
    assert!(
        support::broken(&verdict).contains(&Invariant::NothingInvented),
        "{:?}",
        verdict.reasons
    );
    let clock = drill("", "clock-step").replace(
        "kind = \"clock-step\"",
        "kind = \"clock-step\"\nby = \"2m\"\nback = true",
    );
    for (reason, broken) in [("TIME_IN_FUTURE", false), ("ENTITY_INVALID", true)] {
        let verdict = refused(Made::of(&clock), reason).judged();
        let found = support::broken(&verdict);
        let found = found.contains(&Invariant::NothingInvented);
        assert_eq!(found, broken, "{reason}: {:?}", verdict.reasons);
    }
}

#[test]
fn what_nobody_published_is_delivered() {
    let alien = Event::Alien {
        sub: 0,
        offset: 77,
        what: "health_code of entity ff".to_owned(),
    };
    caught_alone(
        &Made::sound().add(8_000_000, alien),
        Invariant::NothingInvented,
    );
}

#[test]
fn poison_is_taken() {
    let poison = Event::Poison {
        op: 9999,
        issuer: ANHUI,
        what: "revision 0".to_owned(),
        bad: 1,
    };
    let taken = Event::End {
        op: 9999,
        how: How::Ok,
        accepted: 1,
        duplicate: false,
        refused: Vec::new(),
        error: None,
    };
    let made = Made::sound().add(8_000_000, poison).add(8_000_001, taken);
    caught_alone(&made, Invariant::NothingInvented);
}

#[test]
fn a_revision_goes_back() {
    // Two records of one producer change places, with most of its registers between them.
    let (early, late) = (urgent_of_anhui(8), urgent_of_anhui(40));
    let swap = |record: &mut Record| {
        record.offset = match record.offset {
            offset if offset == early => late,
            offset if offset == late => early,
            offset => offset,
        };
    };
    let made = Made::sound().each_record(|_, record| swap(record));
    caught(&made, Invariant::RevisionsRise);
}

#[test]
fn a_record_is_applied_twice() {
    let offset = urgent_of_anhui(10);
    let again = Event::Got {
        sub: 1,
        records: vec![record_at(&Made::sound(), offset)],
    };
    let made = Made::sound().add(8_000_000, again);
    caught(&made, Invariant::AppliedOnce);
    let findings = made.judged().findings;
    assert_eq!(findings.violations(Invariant::ResumesExactly), 1);
    let told = &findings.0[&Invariant::ResumesExactly].told[0].en;
    assert!(told.contains("41 came again"), "{told}");
}

fn record_at(made: &Made, offset: u64) -> Record {
    let got = made.lines.iter().filter_map(|line| match &line.e {
        Event::Got { records, .. } => Some(records),
        _ => None,
    });
    let found = got.flatten().find(|record| record.offset == offset);
    found.expect("such a record").clone()
}

#[test]
fn the_cursor_of_a_sink_is_committed_apart_from_its_rows() {
    let ahead = |event: &mut Event| {
        if let Event::Table {
            cursor: Some(cursor),
            ..
        } = event
        {
            cursor.urgent += 8;
        }
    };
    let made = Made::sound().change(table_after(4), ahead);
    caught_alone(&made, Invariant::AppliedOnce);
}

#[test]
fn a_row_of_a_sink_goes_back() {
    // From one look to the next the table is an older one, with the cursor of that time.
    let made = Made::sound();
    let older = made.lines.iter().find(|line| table_after(3)(&line.e));
    let older = older.expect("a table").e.clone();
    let made = made.change(table_after(6), |event| *event = older);
    caught_alone(&made, Invariant::RevisionsRise);
}

#[test]
fn a_subscriber_misses_the_last_record() {
    let last = 48 * 4;
    let made =
        Made::sound().without_records(move |sub, record| sub == 0 && record.offset > last - 4);
    caught(&made, Invariant::Converged);
}

#[test]
fn the_broker_does_not_come_back() {
    let made = Made::sound().remove(|event| {
        matches!(
            event,
            Event::Subscription { sub: 2.., .. }
                | Event::Audited { .. }
                | Event::Opened { sub: 2.., .. }
                | Event::Got { sub: 2.., .. }
                | Event::SnapshotBegin { .. }
                | Event::Rows { .. }
                | Event::SnapshotEnd { .. }
        )
    });
    caught(&made, Invariant::Converged);
}

/// One of two subscribers gets everything late; over both of them it would be hidden in the middle.
#[test]
fn the_slowest_subscriber_is_the_one_that_counts() {
    let mut made = Made::sound();
    let late = |line: &Line| {
        matches!(&line.e, Event::Got { sub: 0, .. }) && (10_000_000..10_500_000).contains(&line.t)
    };
    let mut moved = 0;
    for line in made.lines.iter_mut().filter(|line| late(line)) {
        line.t += 700_000;
        moved += 1;
    }
    assert!(moved > 0);
    made.lines.sort_by_key(|line| line.t);
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Fail, "{:?}", verdict.reasons);
    assert!(broken(&verdict).contains(&Invariant::UrgentBounded));
}

#[test]
fn a_cursor_is_off_by_one_after_a_reconnect() {
    // One record in the middle never comes, and what follows does.
    let offset = urgent_of_anhui(26);
    let made =
        Made::sound().without_records(move |sub, record| sub == 1 && record.offset == offset);
    caught(&made, Invariant::ResumesExactly);
    // It is told once, and what follows is where it must be again.
    let findings = made.judged().findings;
    assert_eq!(findings.violations(Invariant::ResumesExactly), 1);
    let told = &findings.0[&Invariant::ResumesExactly].told[0].en;
    assert!(
        told.contains("109 came where 105 was to come: something was left out"),
        "{told}"
    );
}

#[test]
fn places_of_the_log_are_renumbered() {
    // The live subscribers saw other places than the log has in the end.
    let made = Made::sound().each_record(|sub, record| {
        if sub == 1 && record.offset > 100 {
            record.offset += 1000;
        }
    });
    caught(&made, Invariant::AllAgree);
}

#[test]
fn a_queue_grows_without_bound() {
    let grown = Event::Sample {
        memory: 5 << 30,
        cpu_ms: 1,
    };
    caught_alone(
        &Made::sound().add(9_000_000, grown),
        Invariant::MemoryBounded,
    );
}

#[test]
fn urgent_deltas_wait_behind_bulk() {
    let mut made = Made::of(&drill("urgent_lag_during = \"500ms\"", "kill-broker"));
    // What is due while the fault is there comes when it is over.
    for line in &mut made.lines {
        let urgent = |records: &[Record]| records.iter().all(|r| r.stream == Stream::Urgent);
        if let Event::Got {
            sub: 0 | 1,
            records,
        } = &line.e
            && urgent(records)
            && (5_000_000..7_000_000).contains(&line.t)
        {
            line.t += 2_000_000;
        }
    }
    made.lines.sort_by_key(|line| line.t);
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Fail, "{:?}", verdict.reasons);
    assert!(broken(&verdict).contains(&Invariant::UrgentBounded));
}

#[test]
fn times_of_the_log_follow_the_clock_back() {
    let offset = urgent_of_anhui(30);
    let made = Made::sound().each_record(|_, record| {
        if record.offset == offset {
            record.durable_at -= 3_600_000_000;
        }
    });
    caught_alone(&made, Invariant::NoWallClock);
    // An hour, less the quarter of a second and the place that it is later than the one before it.
    let told = made.judged().findings.0[&Invariant::NoWallClock].told[0]
        .en
        .clone();
    assert!(told.contains("older by 3599749999 millionths"), "{told}");
}

#[test]
fn what_was_made_durable_together_may_have_one_time() {
    let verdict = Made::sound()
        .each_record(|_, record| record.durable_at -= record.offset)
        .judged();
    assert_eq!(verdict.outcome, Outcome::Pass, "{:?}", verdict.reasons);
}

#[test]
fn rows_of_another_platform_are_nobodys_own() {
    // Anhui gets what Anhui issued.
    let own = record_at(&Made::sound(), urgent_of_anhui(3));
    assert_eq!(own.issuer, ANHUI);
    let echo = Event::Got {
        sub: 0,
        records: vec![own],
    };
    caught(
        &Made::sound().add(8_000_000, echo),
        Invariant::NothingInvented,
    );
}

#[test]
fn a_snapshot_has_an_older_value_than_the_log() {
    let made = Made::sound().change(
        |event| matches!(event, Event::Rows { .. }),
        |event| {
            if let Event::Rows { rows, .. } = event {
                let row = rows.iter_mut().find(|row| row.0 == SICHUAN && row.2 > 150);
                row.expect("a late one").2 = 1;
            }
        },
    );
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Fail);
}

#[test]
fn rows_of_a_sink_do_not_say_what_was_published() {
    let made = Made::sound().change(table_after(6), |event| {
        if let Event::Table { bad, .. } = event {
            *bad = 2;
        }
    });
    caught_alone(&made, Invariant::NothingInvented);
    let told = made.judged().findings.0[&Invariant::NothingInvented].told[0]
        .en
        .clone();
    assert_eq!(told, "sink after 6.5 s: 2 rows are not what was published");
}

/// Nobody looked at it, or there is none.
#[test]
fn a_table_that_was_never_seen() {
    let unseen = |made: Made| made.remove(|event| matches!(event, Event::Table { .. }));
    caught_alone(&unseen(Made::sound()), Invariant::Converged);
    let none = drill("", "kill-broker").replace("sink = true", "sink = false");
    let verdict = unseen(Made::of(&none)).judged();
    assert_eq!(verdict.outcome, Outcome::Pass, "{:?}", verdict.reasons);
}

#[test]
fn a_sink_that_stays_behind_is_not_equal() {
    let last = |event: &Event| {
        matches!(
            event,
            Event::Table {
                cursor: Some(Cursor { urgent: 193, .. }),
                ..
            }
        )
    };
    caught_alone(&Made::sound().remove(last), Invariant::Converged);
}

/// With lists that were replayed beside the load.
fn with_areas(areas: Option<AreasCompared>) -> Made {
    let text = drill("", "kill-broker").replace("sink = true", "sink = true\nrisk_levels = true");
    let made = Made::of(&text);
    match areas {
        Some(areas) => made.add(12_100_008, Event::Areas(areas)),
        None => made,
    }
}

#[test]
fn a_table_that_is_not_the_last_list() {
    let equal = AreasCompared {
        lists: 561,
        listed: 1000,
        different: 0,
        told: Vec::new(),
    };
    let verdict = with_areas(Some(equal.clone())).judged();
    assert_eq!(verdict.outcome, Outcome::Pass, "{:?}", verdict.reasons);
    let different = AreasCompared {
        different: 1,
        told: vec![AreaDiffers {
            area: "p".to_owned(),
            listed: Some("high".to_owned()),
            found: Some("low".to_owned()),
        }],
        ..equal.clone()
    };
    let different = with_areas(Some(different));
    caught_alone(&different, Invariant::Converged);
    let told = &different.judged().findings.0[&Invariant::Converged].told[0];
    assert_eq!(told.en, "p: the list says high, the table low");
    assert!(told.zh.contains("高风险") && told.zh.contains("低风险"));
    let empty = AreasCompared { listed: 0, ..equal };
    caught_alone(&with_areas(Some(empty)), Invariant::Converged);
    caught_alone(&with_areas(None), Invariant::Converged);
}
