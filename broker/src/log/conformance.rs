//! What every log must do. One suite, run against each.

use crate::{
    clock::Clock,
    log::{
        Append, AppendError, Entry, Log, ReadError,
        embedded::{EmbeddedLog, EmbeddedOptions},
        faults::{Faults, SyncFault, WriteFault},
        memory::MemoryLog,
    },
};
use bytes::Bytes;
use hutong_proto::{Issuer, KindSet, Lane, LogId, Micros, Offset, Partition, Shard};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A log that a test can close and open again.
trait Harness {
    fn log(&self) -> &dyn Log;
    fn faults(&self) -> &Faults;
    fn reopen(&mut self);

    /// For who appends beside the first one; of a log that nodes share, another node's.
    fn another(&self) -> &dyn Log {
        self.log()
    }
}

/// A clock that goes back now and then: order must not depend on it.
fn clock() -> Clock {
    let ticks = AtomicU64::new(1_000_000);
    Arc::new(move || {
        let n = ticks.fetch_add(10, Ordering::Relaxed);
        Micros(if n.is_multiple_of(70) { n - 500 } else { n })
    })
}

struct Embedded {
    log: Option<EmbeddedLog>,
    faults: Faults,
    dir: TempDir,
}

impl Embedded {
    fn new() -> Embedded {
        let mut harness = Embedded {
            log: None,
            faults: Faults::default(),
            dir: tempfile::tempdir().expect("a folder"),
        };
        harness.reopen();
        harness
    }
}

impl Harness for Embedded {
    fn log(&self) -> &dyn Log {
        self.log.as_ref().expect("open")
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn reopen(&mut self) {
        drop(self.log.take());
        let options = EmbeddedOptions {
            group_bytes_max: 4096,
            clock: clock(),
            faults: self.faults.clone(),
            ..EmbeddedOptions::default()
        };
        self.log = Some(EmbeddedLog::open(self.dir.path(), options).expect("opens"));
    }
}

struct Memory {
    log: Option<MemoryLog>,
    faults: Faults,
}

impl Memory {
    fn new() -> Memory {
        let faults = Faults::default();
        Memory {
            log: Some(MemoryLog::new(LogId(7), clock(), faults.clone())),
            faults,
        }
    }
}

impl Harness for Memory {
    fn log(&self) -> &dyn Log {
        self.log.as_ref().expect("open")
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn reopen(&mut self) {
        self.log = self.log.take().map(MemoryLog::reopen);
    }
}

fn partition(code: u32, lane: Lane) -> Partition {
    Partition {
        issuer: Issuer::new(code).expect("a code"),
        lane,
        shard: Shard(0),
    }
}

fn urgent() -> Partition {
    partition(340_000, Lane::Urgent)
}

fn bulk() -> Partition {
    partition(510_000, Lane::Bulk)
}

/// Appends and waits; counts how often it was told.
fn append(log: &dyn Log, partition: Partition, record: &str) -> Result<Offset, AppendError> {
    start(log, partition, record)
        .recv_timeout(PATIENCE)
        .expect("told once")
}

fn start(
    log: &dyn Log,
    partition: Partition,
    record: &str,
) -> mpsc::Receiver<Result<Offset, AppendError>> {
    let (told, outcome) = mpsc::channel();
    log.append(Append {
        partition,
        kinds: KindSet::ALL,
        deltas: 1,
        record: Bytes::copy_from_slice(record.as_bytes()),
        done: Box::new(move |result| {
            // Nobody listens when the test is about what happens without an answer.
            told.send(result).ok();
        }),
    });
    outcome
}

fn all(log: &dyn Log, partition: Partition) -> Vec<Entry> {
    let from = log
        .partition(partition)
        .map_or(Offset::NONE, |p| p.trimmed_below);
    log.read(partition, from, usize::MAX).expect("reads")
}

fn texts(entries: &[Entry]) -> Vec<String> {
    entries
        .iter()
        .map(|e| String::from_utf8_lossy(&e.record).into_owned())
        .collect()
}

fn records_keep_their_order_and_places(h: &mut dyn Harness) {
    let mut offsets = Vec::new();
    for n in 0..40 {
        let to = if n % 3 == 0 { urgent() } else { bulk() };
        offsets.push(append(h.log(), to, &format!("r{n}")).expect("durable"));
    }
    for round in 0..2 {
        let log = h.log();
        assert!(
            offsets.is_sorted_by(|a, b| a < b),
            "offsets rise over the whole log"
        );
        assert_eq!(log.next_offset(), offsets[39].next());
        for to in [urgent(), bulk()] {
            let entries = all(log, to);
            let ordinals: Vec<_> = entries.iter().map(|e| e.head.ordinal).collect();
            assert_eq!(ordinals, (1..=entries.len() as u64).collect::<Vec<_>>());
            assert!(
                entries.is_sorted_by_key(|e| e.head.durable_at),
                "times never fall"
            );
            let info = log.partition(to).expect("known");
            assert_eq!(
                (info.first, info.records),
                (entries[0].head.offset, entries.len() as u64)
            );
            let listed = log.partitions();
            let listed: Vec<_> = listed.iter().filter(|p| p.partition == to).collect();
            assert_eq!(format!("{listed:?}"), format!("{:?}", [info]));
        }
        assert_eq!(log.partitions().len(), 2);
        let merged = log
            .read_merged(
                &[bulk(), urgent()],
                Offset::FIRST,
                log.next_offset(),
                usize::MAX,
            )
            .expect("reads");
        assert_eq!(merged.next, log.next_offset());
        let expected: Vec<_> = (0..40).map(|n| format!("r{n}")).collect();
        assert_eq!(texts(&merged.entries), expected, "round {round}");
        h.reopen();
    }
}

fn reading_goes_on_where_it_stopped(h: &mut dyn Harness) {
    for n in 0..30 {
        let to = if n % 2 == 0 { urgent() } else { bulk() };
        append(h.log(), to, &format!("r{n}")).expect("durable");
    }
    let (log, mut from, mut seen) = (h.log(), Offset::FIRST, Vec::new());
    let below = Offset(25);
    while from < below {
        let merged = log
            .read_merged(&[urgent(), bulk()], from, below, 7)
            .expect("reads");
        assert!(merged.next > from);
        // As many as fit, and the one with which there are enough: each has two or three bytes.
        assert!(merged.entries.len() <= 4, "{}", merged.entries.len());
        seen.extend(texts(&merged.entries));
        from = merged.next;
    }
    assert_eq!(seen, (0..24).map(|n| format!("r{n}")).collect::<Vec<_>>());
    let head = log
        .head_at(bulk(), Offset(5))
        .expect("reads")
        .expect("is there");
    assert_eq!((head.offset, head.ordinal), (Offset(6), 3));
    assert!(log.head_at(bulk(), Offset(31)).expect("reads").is_none());
    assert!(
        log.read(partition(110_000, Lane::Bulk), Offset::FIRST, 10)
            .expect("reads")
            .is_empty()
    );
}

fn what_is_trimmed_is_told_and_stays_trimmed(h: &mut dyn Harness) {
    let offsets: Vec<_> = (0..10)
        .map(|n| append(h.log(), urgent(), &format!("r{n}")).expect("durable"))
        .collect();
    append(h.log(), bulk(), "other").expect("durable");
    h.log().trim(urgent(), offsets[4]).expect("trims");
    for _ in 0..2 {
        let log = h.log();
        match log.read(urgent(), offsets[3], 100) {
            Err(ReadError::Trimmed { trimmed_below, .. }) => assert_eq!(trimmed_below, offsets[4]),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            texts(&all(log, urgent())).first().map(String::as_str),
            Some("r4")
        );
        assert_eq!(all(log, bulk()).len(), 1, "the other partition is whole");
        let info = log.partition(urgent()).expect("known");
        assert_eq!(
            (info.first, info.records, info.last),
            (offsets[4], 6, offsets[9])
        );
        h.reopen();
    }
    h.log().trim(urgent(), Offset(u64::MAX)).expect("trims all");
    h.reopen();
    let next = append(h.log(), urgent(), "after").expect("durable");
    assert!(next > offsets[9], "offsets are never used again");
    assert_eq!(
        all(h.log(), urgent())[0].head.ordinal,
        11,
        "nor are ordinals"
    );
}

fn what_is_kept_is_counted_in_records_and_bytes(h: &mut dyn Harness) {
    let offsets: Vec<_> = (0..10)
        .map(|n| append(h.log(), urgent(), &format!("r{n}")).expect("durable"))
        .collect();
    let counted = |log: &dyn Log| {
        let info = log.partition(urgent()).expect("known");
        (info.records, info.bytes_estimate)
    };
    let (records, whole) = counted(h.log());
    assert!(records == 10 && whole >= 20, "{records}, {whole}");
    for (first, records) in [(4, 6), (7, 3)] {
        h.log().trim(urgent(), offsets[first]).expect("trims");
        for _ in 0..2 {
            let kept = (records, whole * records / 10);
            assert_eq!(counted(h.log()), kept, "from {first} on");
            h.reopen();
        }
    }
    h.log().trim(urgent(), Offset(u64::MAX)).expect("trims all");
    for _ in 0..2 {
        assert_eq!(counted(h.log()), (0, 0));
        h.reopen();
    }
    append(h.log(), urgent(), "r1").expect("durable");
    assert_eq!(counted(h.log()), (1, whole / 10));
}

/// Who makes good what it says misses nothing.
fn of_several_trimmed_partitions_the_one_that_misses_most_is_told(h: &mut dyn Harness) {
    let offsets: Vec<_> = (0..10)
        .map(|n| {
            let to = if n % 2 == 0 { urgent() } else { bulk() };
            append(h.log(), to, &format!("r{n}")).expect("durable")
        })
        .collect();
    for (low, high) in [
        ((urgent(), offsets[2]), (bulk(), offsets[5])),
        ((bulk(), offsets[5]), (urgent(), offsets[8])),
    ] {
        h.log().trim(low.0, low.1).expect("trims");
        h.log().trim(high.0, high.1).expect("trims");
        for _ in 0..2 {
            match h.log().tail(Offset::FIRST).err() {
                Some(ReadError::Trimmed {
                    partition,
                    trimmed_below,
                }) => assert_eq!((partition, trimmed_below), high),
                other => panic!("{other:?}"),
            }
            assert!(h.log().tail(high.1).is_ok(), "everything is kept");
            h.reopen();
        }
    }
}

fn a_tail_never_begins_in_what_was_trimmed(h: &mut dyn Harness) {
    let offsets: Vec<_> = (0..10)
        .map(|n| {
            let to = if n % 2 == 0 { urgent() } else { bulk() };
            append(h.log(), to, &format!("r{n}")).expect("durable")
        })
        .collect();
    h.log().trim(bulk(), offsets[6]).expect("trims");
    for _ in 0..2 {
        let log = h.log();
        for from in [Offset::FIRST, offsets[5]] {
            match log.tail(from).err() {
                Some(ReadError::Trimmed {
                    partition,
                    trimmed_below,
                }) => assert_eq!((partition, trimmed_below), (bulk(), offsets[6])),
                other => panic!("{from}: {other:?}"),
            }
        }
        let mut tail = log.tail(offsets[6]).expect("everything is kept");
        let mut seen = Vec::new();
        while seen.len() < 4 {
            seen.extend(texts(&tail.next().expect("goes on")));
        }
        assert_eq!(seen, ["r6", "r7", "r8", "r9"]);
        drop(tail);
        h.reopen();
    }
}

fn a_read_beside_a_trim_gives_everything_or_says_so(h: &mut dyn Harness) {
    let log = h.log();
    let last = (0..300)
        .map(|n| start(log, urgent(), &format!("r{n}")))
        .map(|told| told.recv_timeout(PATIENCE).expect("told").expect("durable"))
        .last()
        .expect("some");
    // It is read last, a while after the read began.
    let issuers = (110_000..=110_400).step_by(2);
    let mut partitions: Vec<_> = issuers.map(|code| partition(code, Lane::Bulk)).collect();
    partitions.push(urgent());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for before in 1..=last.0 {
                log.trim(urgent(), Offset(before)).expect("trims");
            }
        });
        let mut from = Offset::FIRST;
        while from < last {
            match log.read_merged(&partitions, from, last, 100) {
                Ok(merged) => assert_eq!(
                    merged.entries.first().map(|entry| entry.head.offset),
                    Some(from),
                    "a hole that nobody was told of"
                ),
                Err(ReadError::Trimmed { trimmed_below, .. }) => from = trimmed_below,
                Err(error) => panic!("{error}"),
            }
        }
    });
}

fn the_tail_gives_everything_once_also_while_others_append(h: &mut dyn Harness) {
    for n in 0..20 {
        append(h.log(), urgent(), &format!("old{n}")).expect("durable");
    }
    let log = h.log();
    for from in [1u64, 11, 21] {
        let mut tail = log.tail(Offset(from)).expect("a tail");
        let expected = (log.next_offset().0 - from) as usize + 200;
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    let to = if thread % 2 == 0 { urgent() } else { bulk() };
                    for n in 0..50 {
                        append(log, to, &format!("{thread}-{n}")).expect("durable");
                    }
                });
            }
            let mut entries: Vec<Entry> = Vec::new();
            while entries.len() < expected {
                entries.extend(tail.next().expect("goes on"));
            }
            assert_eq!(entries[0].head.offset, Offset(from));
            assert!(
                entries.is_sorted_by(|a, b| a.head.offset < b.head.offset),
                "once, in order"
            );
            let offsets: Vec<_> = entries.iter().map(|e| e.head.offset.0).collect();
            let expected: Vec<_> = (from..from + offsets.len() as u64).collect();
            assert_eq!(offsets, expected, "no gap");
        });
        drop(tail);
    }
}

fn a_failed_write_is_not_acknowledged_and_poisons(h: &mut dyn Harness) {
    append(h.log(), urgent(), "before").expect("durable");
    h.faults().fail_write(WriteFault::Nothing);
    assert_eq!(append(h.log(), urgent(), "lost"), Err(AppendError::Failed));
    assert_eq!(
        append(h.log(), urgent(), "later"),
        Err(AppendError::Poisoned)
    );
    assert!(h.log().poisoned().is_some());
    assert!(h.log().trim(urgent(), Offset(2)).is_err());
    // Who reads on has what is there, and is not kept waiting for more.
    let mut tail = h.log().tail(Offset::FIRST).expect("a tail");
    let stored: Vec<Entry> = std::iter::from_fn(|| tail.next()).flatten().collect();
    assert_eq!(texts(&stored), ["before"]);
    drop(tail);
    h.reopen();
    assert!(h.log().poisoned().is_none());
    assert_eq!(texts(&all(h.log(), urgent())), ["before"]);
    append(h.log(), urgent(), "again").expect("takes again");
}

/// An append of which nobody can say whether it landed; then both must be lived with.
fn indefinite(h: &mut dyn Harness, fail: impl Fn(&Faults), landed: bool) {
    let kept = texts(&all(h.log(), urgent()));
    let mut tail = h.log().tail(Offset::FIRST).expect("a tail");
    fail(h.faults());
    assert_eq!(
        append(h.log(), urgent(), "perhaps"),
        Err(AppendError::Indefinite)
    );
    assert_eq!(
        append(h.log(), urgent(), "later"),
        Err(AppendError::Poisoned)
    );
    assert!(h.log().poisoned().is_some());
    assert_eq!(texts(&all(h.log(), urgent())), kept, "not yet, for readers");
    assert_eq!(texts(&tail.next().expect("what was durable")), kept);
    assert!(
        tail.next().is_none(),
        "nothing that is not durable comes out"
    );
    drop(tail);
    h.reopen();
    // It is tried again, and may then be there twice. Never a hole.
    let next = h.log().next_offset();
    let told = append(h.log(), urgent(), "perhaps").expect("durable");
    assert!(told >= next);
    let mut expected = kept;
    expected.extend(vec!["perhaps".to_owned(); if landed { 2 } else { 1 }]);
    let entries = all(h.log(), urgent());
    assert_eq!(texts(&entries), expected);
    let ordinals: Vec<_> = entries.iter().map(|e| e.head.ordinal).collect();
    assert_eq!(ordinals, (1..=entries.len() as u64).collect::<Vec<_>>());
}

fn a_write_of_unknown_outcome_is_indefinite_and_poisons(h: &mut dyn Harness) {
    append(h.log(), urgent(), "before").expect("durable");
    indefinite(h, |f| f.fail_write(WriteFault::Lost), false);
    indefinite(h, |f| f.fail_write(WriteFault::Landed), true);
    indefinite(h, |f| f.fail_write(WriteFault::Lost), false);
}

fn a_failed_sync_is_indefinite_and_poisons(h: &mut dyn Harness) {
    append(h.log(), urgent(), "before").expect("durable");
    indefinite(h, |f| f.fail_sync(SyncFault::Lost), false);
    indefinite(h, |f| f.fail_sync(SyncFault::Landed), true);
    indefinite(h, |f| f.fail_sync(SyncFault::Lost), false);
}

fn a_failed_sync_of_a_trim_poisons(h: &mut dyn Harness) {
    let offsets: Vec<_> = (0..6)
        .map(|n| append(h.log(), urgent(), &format!("r{n}")).expect("durable"))
        .collect();
    for (fault, before, kept) in [
        (
            SyncFault::Lost,
            2,
            ["r0", "r1", "r2", "r3", "r4", "r5"].as_slice(),
        ),
        (SyncFault::Landed, 2, &["r2", "r3", "r4", "r5"]),
        (SyncFault::Lost, 4, &["r2", "r3", "r4", "r5"]),
    ] {
        h.faults().fail_sync(fault);
        assert!(h.log().trim(urgent(), offsets[before]).is_err());
        assert!(h.log().poisoned().is_some());
        assert_eq!(
            append(h.log(), urgent(), "later"),
            Err(AppendError::Poisoned)
        );
        h.reopen();
        // Trimmed or not, but told, and what was to be kept is whole.
        assert_eq!(texts(&all(h.log(), urgent())), kept, "{fault:?}");
    }
    h.log().trim(urgent(), offsets[4]).expect("trims");
    assert_eq!(texts(&all(h.log(), urgent())), ["r4", "r5"]);
}

/// Each is told the places of its own records, and the tail gives those of both in one order.
fn two_that_append_share_one_order(h: &mut dyn Harness) {
    const EACH: usize = 100;
    let mut tail = h.log().tail(Offset::FIRST).expect("a tail");
    let (first, second) = (h.log(), h.another());
    let append_all = |log: &dyn Log, name: &str| -> Vec<(Offset, String)> {
        let text = |n| format!("{name}{n}");
        let appended = (0..EACH).map(|n| (append(log, urgent(), &text(n)), text(n)));
        appended
            .map(|(told, text)| (told.expect("durable"), text))
            .collect()
    };
    let (mut told, mut seen) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let a = scope.spawn(|| append_all(first, "a"));
        let b = scope.spawn(|| append_all(second, "b"));
        // Meanwhile: appends wait for who does not take what comes.
        while seen.len() < 2 * EACH {
            let entries = tail.next().expect("goes on");
            let offsets = entries.iter().map(|e| e.head.offset);
            seen.extend(offsets.zip(texts(&entries)));
        }
        told.extend(a.join().expect("appends"));
        told.extend(b.join().expect("appends"));
    });
    told.sort();
    assert_eq!(seen, told);
    assert_eq!(first.next_offset(), second.next_offset());
    let (a, b) = (all(first, urgent()), all(second, urgent()));
    assert_eq!((a.len(), &a), (2 * EACH, &b), "both read the same");
}

fn closing_finishes_what_is_queued_and_ends_the_tail(h: &mut dyn Harness) {
    let log = h.log();
    let mut tail = log.tail(Offset::FIRST).expect("a tail");
    let waiting: Vec<_> = (0..3)
        .map(|n| start(log, urgent(), &format!("r{n}")))
        .collect();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| log.close());
        let mut seen = Vec::new();
        while let Some(entries) = tail.next() {
            seen.extend(texts(&entries));
        }
        closing.join().expect("closes");
        for outcome in waiting {
            outcome
                .recv_timeout(PATIENCE)
                .expect("told")
                .expect("durable");
        }
        assert_eq!(seen, ["r0", "r1", "r2"]);
    });
    assert_eq!(append(log, urgent(), "late"), Err(AppendError::Closed));
}

macro_rules! conformance {
    ($($check:ident)*) => {
        mod embedded_log {
            $(#[test] fn $check() { super::$check(&mut super::Embedded::new()); })*
        }
        mod memory_log {
            $(#[test] fn $check() { super::$check(&mut super::Memory::new()); })*
        }
    };
}

conformance! {
    records_keep_their_order_and_places
    reading_goes_on_where_it_stopped
    what_is_trimmed_is_told_and_stays_trimmed
    what_is_kept_is_counted_in_records_and_bytes
    of_several_trimmed_partitions_the_one_that_misses_most_is_told
    a_tail_never_begins_in_what_was_trimmed
    a_read_beside_a_trim_gives_everything_or_says_so
    the_tail_gives_everything_once_also_while_others_append
    a_failed_write_is_not_acknowledged_and_poisons
    a_write_of_unknown_outcome_is_indefinite_and_poisons
    a_failed_sync_is_indefinite_and_poisons
    a_failed_sync_of_a_trim_poisons
    two_that_append_share_one_order
    closing_finishes_what_is_queued_and_ends_the_tail
}
