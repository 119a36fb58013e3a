//! The judge of simulations, told what a broken broker would have said or sent.

use super::*;
use crate::sweep::plan::record;
use bytes::Bytes;
use hutong_planted_broker::log::{Append, faults::Faults};
use hutong_proto::{
    EntityId, KindSet, LogId, Provenance, Shard, Value,
    delta::{Colour, TestOutcome},
};
use std::sync::atomic::{AtomicU64, Ordering};

const A: u32 = 340_000;
const C: u32 = 110_000;
const B: u32 = 510_000;
const LATER: Micros = Micros(9_000_000_000_000_000);
/// After the records of the scene.
const END: Offset = Offset(6);

fn issuer(code: u32) -> Issuer {
    Issuer::new(code).expect("a code")
}

fn place(code: u32, lane: Lane) -> Partition {
    Partition {
        issuer: issuer(code),
        lane,
        shard: Shard(0),
    }
}

fn said(entity: u8, revision: u64, value: Value, expires_at: Micros) -> Delta {
    Delta {
        entity: EntityId([entity; 16]),
        revision: Revision(revision),
        committed_at: Micros(1_600_000_000_000_000),
        expires_at,
        evidence: String::new(),
        provenance: Arc::new(Provenance {
            authority: "CDC".to_owned(),
            rule_id: "R-1".to_owned(),
            rule_version: 1,
            reason: "contact".to_owned(),
        }),
        value,
    }
}

fn colour(entity: u8, revision: u64, colour: Colour) -> Delta {
    said(entity, revision, Value::HealthCode(colour), Micros::ZERO)
}

fn test(entity: u8, revision: u64) -> Delta {
    let value = Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at: Micros(1_600_000_000_000_000),
    };
    said(entity, revision, value, Micros::ZERO)
}

fn append(disk: &MemoryLog, partition: Partition, bytes: Bytes, deltas: u32) {
    disk.append(Append {
        partition,
        kinds: KindSet::ALL,
        deltas,
        record: bytes,
        done: Box::new(|told| assert!(told.is_ok(), "{told:?}")),
    });
}

fn log() -> Arc<MemoryLog> {
    let ticks = AtomicU64::new(1_650_000_000_000_000);
    let clock = move || Micros(ticks.fetch_add(1000, Ordering::Relaxed));
    Arc::new(MemoryLog::new(LogId(7), Arc::new(clock), Faults::default()))
}

/// What the scene publishes, from offset 1 on.
fn records() -> Vec<(u32, Lane, Vec<Delta>)> {
    let expiring = said(3, 6, Value::HealthCode(Colour::Yellow), LATER);
    vec![
        (
            A,
            Lane::Urgent,
            vec![colour(1, 5, Colour::Red), colour(2, 5, Colour::Green)],
        ),
        (A, Lane::Bulk, vec![test(1, 5)]),
        (C, Lane::Urgent, vec![colour(1, 7, Colour::Yellow)]),
        // The first of them is not newer.
        (A, Lane::Urgent, vec![colour(1, 4, Colour::Green), expiring]),
        (A, Lane::Bulk, vec![test(2, 6)]),
    ]
}

fn published(records: &[(u32, Lane, Vec<Delta>)]) -> Arc<MemoryLog> {
    let disk = log();
    for (number, (code, lane, deltas)) in records.iter().enumerate() {
        let partition = place(*code, *lane);
        // Each is a batch of its own.
        let planned = record(partition, "p", (1, number as u64 + 1, 1), deltas);
        append(&disk, partition, planned.record, planned.deltas);
    }
    disk
}

fn judge_of(disk: &Arc<MemoryLog>) -> Judge {
    Judge::new(Arc::clone(disk), &[A, B, C].map(issuer))
}

fn scene() -> Judge {
    let mut judge = judge_of(&published(&records()));
    judge.catch_up().expect("sound");
    judge
}

fn all() -> Wants {
    Wants {
        own: issuer(B),
        kinds: Vec::new(),
    }
}

fn at(urgent: u64, bulk: u64) -> Cursor {
    Cursor {
        log_id: LogId(7),
        urgent: Offset(urgent),
        bulk: Offset(bulk),
    }
}

fn broken<T: std::fmt::Debug>(found: Result<T, Violation>) -> (&'static str, String) {
    let found = found.expect_err("bent");
    (found.invariant, found.what)
}

fn breaks<T: std::fmt::Debug>(found: Result<T, Violation>, invariant: &str, words: &str) {
    let (seen, what) = broken(found);
    assert_eq!(seen, invariant, "{what}");
    assert!(what.contains(words), "{what}");
}

#[test]
fn what_is_acknowledged_is_in_a_record_word_by_word() {
    let mut judge = scene();
    let red = colour(1, 5, Colour::Red);
    judge.acked(issuer(A), &red).expect("it is there");
    // Not newer than what is there, and promised all the same.
    judge
        .acked(issuer(A), &colour(1, 4, Colour::Green))
        .expect("there");
    assert_eq!(judge.acknowledged, 2);
    let lost = "was acknowledged, and no record has it";
    breaks(
        judge.acked(issuer(A), &colour(1, 5, Colour::Green)),
        "INV-1",
        lost,
    );
    breaks(
        judge.acked(issuer(A), &colour(1, 6, Colour::Red)),
        "INV-1",
        lost,
    );
    breaks(judge.acked(issuer(C), &red), "INV-1", lost);
    assert_eq!(judge.acknowledged, 2);
}

#[test]
fn what_was_acknowledged_stays_unless_it_is_trimmed() {
    let mut judge = scene();
    judge
        .acked(issuer(A), &colour(1, 5, Colour::Red))
        .expect("there");
    judge.acked(issuer(A), &test(2, 6)).expect("there");
    judge.promises_hold().expect("all there");
    // The log of a broker that kept only a beginning.
    let mut less = judge_of(&published(&records()[..4]));
    less.model = judge.model.clone();
    less.acked = judge.acked.clone();
    breaks(
        less.promises_hold(),
        "INV-1",
        "acknowledged at offset 5, and is lost",
    );
    // The first record was trimmed, and so may go; what the other lane had may not.
    judge
        .disk
        .trim(place(A, Lane::Urgent), Offset(2))
        .expect("trims");
    judge.promises_hold().expect("trimmed");
    judge.disk = published(&records()[..1]);
    breaks(judge.promises_hold(), "INV-1", "acknowledged at offset 5");
    // What is trimmed goes up to an offset, and without it.
    let mut judge = scene();
    judge
        .acked(issuer(A), &colour(1, 4, Colour::Green))
        .expect("at offset 4");
    let urgent = |entity| (A, Lane::Urgent, vec![colour(entity, 5, Colour::Red)]);
    judge.disk = published(&[urgent(1), urgent(2), urgent(3)]);
    judge
        .disk
        .trim(place(A, Lane::Urgent), Offset(4))
        .expect("trims all");
    breaks(
        judge.promises_hold(),
        "INV-1",
        "acknowledged at offset 4, and is lost",
    );
}

#[test]
fn a_log_with_a_gap_with_nonsense_or_with_what_was_to_be_refused_is_found() {
    // The judge is not told of C, so its record is missing.
    let disk = published(&records());
    let mut judge = Judge::new(Arc::clone(&disk), &[issuer(A), issuer(B)]);
    breaks(judge.catch_up(), "INV-3", "no record at offset 3");
    disk.trim(place(A, Lane::Urgent), Offset(2)).expect("trims");
    breaks(judge_of(&disk).catch_up(), "INV-3", "cannot be read");
    append(
        &disk,
        place(A, Lane::Bulk),
        Bytes::from_static(b"\xff\xff"),
        1,
    );
    let mut judge = scene();
    judge.disk = disk;
    breaks(judge.catch_up(), "INV-2", "offset 6 cannot be read");

    let mut bad = test(9, 9);
    bad.evidence = BAD_EVIDENCE.to_owned();
    let disk = published(&[(A, Lane::Bulk, vec![bad])]);
    breaks(judge_of(&disk).catch_up(), "INV-2", "had to be refused");
}

#[test]
fn time_does_not_fall() {
    let disk = published(&records());
    let mut judge = judge_of(&disk);
    let all = disk
        .read(place(A, Lane::Urgent), Offset::FIRST, 1)
        .expect("reads");
    let mut early = all[0].clone();
    early.head.offset = Offset::NONE;
    // As late as the record that follows: that is no fall.
    judge.model.apply(&early).expect("applied");
    judge.catch_up().expect("time stands still");
    let mut judge = judge_of(&disk);
    early.head.durable_at.0 += 1;
    judge.model.apply(&early).expect("applied");
    breaks(judge.catch_up(), "INV-12", "time falls at offset 1");
}

#[test]
fn urgent_goes_before_the_bulk_that_it_could_be_sent_with() {
    let mut judge = scene();
    judge.visible(Offset(3)).expect("sound");
    judge.visible(END).expect("sound");
    let sent = |wants: &Wants, bulk, below| judge.bulk_sent(wants, Offset(bulk), Offset(below));
    breaks(sent(&all(), 2, 1), "INV-10", "before urgent offset 1");
    sent(&all(), 2, 2)
        .expect("all urgent of its group was sent, and the next group is another one");
    breaks(sent(&all(), 5, 2), "INV-10", "before urgent offset 3");
    breaks(sent(&all(), 5, 4), "INV-10", "before urgent offset 4");
    sent(&all(), 5, 5).expect("everything urgent was sent");
    breaks(sent(&all(), 7, 6), "INV-2", "before it is applied");
    let tests = Wants {
        kinds: vec![Kind::TestResult],
        ..all()
    };
    sent(&tests, 5, 1).expect("it wants nothing urgent");
    let own = |code| Wants {
        own: issuer(code),
        ..all()
    };
    breaks(sent(&own(C), 5, 2), "INV-10", "before urgent offset 4");
    breaks(sent(&own(A), 5, 1), "INV-10", "before urgent offset 3");
    sent(&own(A), 5, 4).expect("what is left is its own");
}

/// What the scene has at this offset, as it is delivered.
fn delivered(judge: &Judge, offset: u64, index: usize) -> Delivered {
    let effect = judge.model.effect(Offset(offset)).expect("a record");
    Delivered {
        issuer: effect.partition.issuer,
        offset: Offset(offset),
        durable_at: effect.durable_at,
        trace: None,
        delta: (*effect.said[index]).clone(),
    }
}

/// All that comes, in order: urgent, then bulk.
fn everything(judge: &Judge) -> Vec<Delivered> {
    let places = [(1, 0), (1, 1), (3, 0), (4, 1), (2, 0), (5, 0)];
    places
        .map(|(offset, index)| delivered(judge, offset, index))
        .into()
}

fn came(
    judge: &mut Judge,
    from: Cursor,
    deltas: Vec<Delivered>,
    cursor: Cursor,
) -> Result<View, Violation> {
    let mut view = View::new(all(), Some(from));
    let event = Event::Records { deltas, cursor };
    judge.event(&mut view, &event).map(|()| view)
}

#[test]
fn records_come_whole_once_in_order_and_as_they_were_published() {
    let mut judge = scene();
    let (begin, end) = (at(1, 1), at(6, 6));
    let sound = everything(&judge);
    let mut view = came(&mut judge, begin, sound.clone(), end).expect("sound");
    assert_eq!(judge.delivered, 6);
    // And then nothing more.
    let again = Event::Records {
        deltas: vec![sound[0].clone()],
        cursor: end,
    };
    breaks(
        judge.event(&mut view, &again),
        "INV-5",
        "offset 1 came again",
    );
    let again = Event::Records {
        deltas: vec![sound[5].clone()],
        cursor: end,
    };
    breaks(
        judge.event(&mut view, &again),
        "INV-5",
        "offset 5 came again",
    );

    let mut bent = |bend: &dyn Fn(&mut Vec<Delivered>), invariant, words| {
        let mut deltas = everything(&judge);
        bend(&mut deltas);
        breaks(came(&mut judge, begin, deltas, end), invariant, words);
    };
    bent(
        &|deltas| drop(deltas.pop()),
        "INV-7",
        "came without offset 5",
    );
    bent(
        &|deltas| drop(deltas.remove(2)),
        "INV-7",
        "offset 4 came, expected Some(Offset(3))",
    );
    bent(&|deltas| deltas.swap(0, 1), "INV-7", "offset 1 came");
    bent(
        &|deltas| deltas[0].durable_at.0 += 1,
        "INV-7",
        "offset 1 came",
    );
    bent(
        &|deltas| deltas[0].offset = Offset(77),
        "INV-2",
        "there is no offset 77",
    );
    bent(
        &|deltas| deltas[0].issuer = issuer(B),
        "INV-2",
        "is not wanted",
    );
    bent(
        &|deltas| deltas[0].delta = colour(1, 5, Colour::Green),
        "INV-8",
        "with other content",
    );
    bent(
        &|deltas| deltas[1].delta = colour(9, 9, Colour::Green),
        "INV-2",
        "nobody published",
    );
    bent(
        &|deltas| deltas[1].delta = colour(1, 4, Colour::Green),
        "INV-4",
        "which was not newer",
    );
    bent(
        &|deltas| deltas[5].delta = test(1, 5),
        "INV-2",
        "nobody published",
    );
    let stale = delivered(&scene(), 4, 0);
    bent(
        &|deltas| deltas.insert(3, stale.clone()),
        "INV-4",
        "which was not newer",
    );
    let unknown = |deltas: &mut Vec<Delivered>| deltas[3].delta = colour(8, 8, Colour::Green);
    bent(&unknown, "INV-4", "which was not newer");
}

#[test]
fn a_part_is_what_lies_between_two_cursors_and_what_the_filter_takes() {
    let mut judge = scene();
    let part = vec![delivered(&judge, 3, 0), delivered(&judge, 2, 0)];
    came(&mut judge, at(2, 1), part.clone(), at(4, 5)).expect("sound");
    breaks(
        came(&mut judge, at(2, 1), part.clone(), at(5, 5)),
        "INV-7",
        "offset 2 came, expected Some(Offset(4))",
    );
    breaks(
        came(&mut judge, at(2, 1), part, at(4, 6)),
        "INV-7",
        "without offset 5",
    );
    let mut tests = View::new(
        Wants {
            own: issuer(C),
            kinds: vec![Kind::TestResult],
        },
        Some(at(1, 1)),
    );
    let deltas = vec![delivered(&judge, 2, 0)];
    let event = Event::Records {
        deltas,
        cursor: at(6, 3),
    };
    judge.event(&mut tests, &event).expect("sound");
    let deltas = vec![delivered(&judge, 3, 0)];
    let event = Event::Records {
        deltas,
        cursor: at(6, 6),
    };
    breaks(judge.event(&mut tests, &event), "INV-2", "is not wanted");
}

#[test]
fn a_bookmark_goes_forward_over_nothing_that_was_wanted() {
    let mut judge = scene();
    let mut mark = |from: Option<Cursor>, cursor| {
        let mut view = View::new(all(), from);
        let event = Event::Bookmark {
            cursor,
            sent_at: Micros(1),
        };
        judge.event(&mut view, &event).map(|()| view.cursor)
    };
    assert_eq!(
        mark(Some(at(5, 6)), at(9, 9)).expect("sound"),
        Some(at(9, 9))
    );
    assert_eq!(
        mark(Some(at(2, 3)), at(3, 5)).expect("sound"),
        Some(at(3, 5))
    );
    breaks(
        mark(Some(at(2, 3)), at(4, 5)),
        "INV-7",
        "offset 3 never came",
    );
    breaks(
        mark(Some(at(2, 3)), at(3, 6)),
        "INV-7",
        "offset 5 never came",
    );
    breaks(
        mark(Some(at(9, 9)), at(8, 9)),
        "INV-7",
        "goes back from 9 to 8",
    );
    breaks(
        mark(Some(at(9, 9)), at(9, 8)),
        "INV-7",
        "goes back from 9 to 8",
    );
    breaks(mark(None, at(9, 9)), "INV-7", "within a snapshot");
}

/// A snapshot as of a cursor, with the rows that these are made of.
fn snapshot(
    judge: &mut Judge,
    wants: Wants,
    cursor: Cursor,
    bend: impl FnOnce(&mut Vec<Delivered>),
) -> Result<View, Violation> {
    let registers = judge.model.registers_below(cursor.urgent, Micros::ZERO);
    let takes = |register: &Register| wants.takes(register.2, register.1);
    let mut rows: Vec<Delivered> = (registers.iter())
        .filter(|(register, _)| takes(register))
        .map(|(register, version)| Delivered {
            issuer: register.2,
            offset: version.offset,
            durable_at: Micros::ZERO,
            trace: None,
            delta: (*version.delta).clone(),
        })
        .collect();
    bend(&mut rows);
    let mut view = View::new(wants, Some(at(1, 1)));
    let count = rows.len() as u64;
    judge.event(&mut view, &Event::SnapshotBegin { rows_estimate: 9 })?;
    let within = Event::Records {
        deltas: Vec::new(),
        cursor,
    };
    breaks(
        judge.event(&mut view.clone(), &within),
        "INV-7",
        "within a snapshot",
    );
    // In two pieces.
    let rest = rows.split_off(rows.len() / 2);
    judge.event(&mut view, &Event::Rows(rows))?;
    judge.event(&mut view, &Event::Rows(rest))?;
    let end = Event::SnapshotEnd {
        cursor,
        rows: count,
    };
    judge.event(&mut view, &end)?;
    Ok(view)
}

#[test]
fn a_snapshot_is_what_the_registers_had_at_its_cursor_and_nothing_else() {
    let mut judge = scene();
    let end = at(6, 6);
    let view = snapshot(&mut judge, all(), end, |rows| assert_eq!(rows.len(), 6)).expect("sound");
    assert_eq!(view.cursor, Some(end));
    snapshot(&mut judge, all(), at(3, 3), |rows| {
        assert_eq!(rows.len(), 3);
    })
    .expect("sound");

    let mut bent = |bend: &dyn Fn(&mut Vec<Delivered>), invariant, words| {
        breaks(snapshot(&mut judge, all(), end, bend), invariant, words);
    };
    let of = |rows: &mut Vec<Delivered>, entity: u8, kind: Kind| {
        let wanted =
            |row: &Delivered| row.delta.entity.0[0] == entity && row.delta.value.kind() == kind;
        rows.iter().position(wanted).expect("a row")
    };
    let without = move |entity, kind| {
        move |rows: &mut Vec<Delivered>| {
            let i = of(rows, entity, kind);
            drop(rows.remove(i));
        }
    };
    bent(
        &without(2, Kind::HealthCode),
        "INV-7",
        "has None of a register with revision 5",
    );
    bent(
        &without(3, Kind::HealthCode),
        "INV-12",
        "left out what had not expired",
    );
    let other = |rows: &mut Vec<Delivered>| {
        let i = of(rows, 2, Kind::HealthCode);
        rows[i].delta = colour(2, 4, Colour::Red);
    };
    bent(
        &other,
        "INV-7",
        "has Some(Revision(4)) of a register with revision 5",
    );
    let more = |rows: &mut Vec<Delivered>| {
        let mut row = rows[0].clone();
        row.delta = colour(9, 9, Colour::Red);
        rows.push(row);
    };
    bent(&more, "INV-2", "that it must not");
    let own = |rows: &mut Vec<Delivered>| {
        let mut row = rows[0].clone();
        row.issuer = issuer(B);
        rows.push(row);
    };
    bent(&own, "INV-2", "that it must not");

    // A row of a kind that nobody asked for, which is what the register has.
    let codes = Wants {
        kinds: vec![Kind::HealthCode],
        ..all()
    };
    snapshot(&mut judge, codes.clone(), end, |rows| {
        assert_eq!(rows.len(), 4);
    })
    .expect("sound");
    let test_row = {
        let mut row = delivered(&judge, 2, 0);
        row.durable_at = Micros::ZERO;
        row
    };
    let unwanted = snapshot(&mut judge, codes, end, |rows| rows.push(test_row));
    breaks(unwanted, "INV-2", "that it must not");
}

#[test]
fn what_has_expired_for_long_is_not_in_a_snapshot() {
    let disk = published(&records());
    // A record a week and a day after it expired: only then it is forgotten.
    let late = LATER.0 + 8 * 86_400 * 1_000_000;
    let ends = Arc::new(MemoryLog::new(
        LogId(7),
        Arc::new(move || Micros(late)),
        Faults::default(),
    ));
    let first = disk
        .read(place(A, Lane::Urgent), Offset(4), 1)
        .expect("reads");
    append(&ends, place(A, Lane::Urgent), first[0].record.clone(), 2);
    let mut judge = judge_of(&ends);
    judge.catch_up().expect("sound");
    // Entity 3 is what expired; the other one of that record stays.
    let without = |rows: &mut Vec<Delivered>| rows.retain(|row| row.delta.entity.0[0] != 3);
    snapshot(&mut judge, all(), at(2, 2), without).expect("it may be gone");
    let with = snapshot(&mut judge, all(), at(2, 2), |_| {});
    breaks(with, "INV-2", "that it must not");
}
