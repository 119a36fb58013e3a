//! Runs that are merged into segments, and tables that come and go.

use super::{Applied, applied, register, row, snapshot, tables, with_runs};
use crate::{
    rocks,
    state::{
        FAMILY, State, StateOptions,
        keys::{self, RegisterKey},
        merge,
        merged::Merged,
        row::EXPIRED_KEPT_US,
        table,
        tables::{List, Segment},
    },
};
use hutong_proto::{Micros, Offset, wire};
use std::{collections::BTreeMap, sync::Arc};

/// Registers of many entities, in an order that has nothing to do with their keys.
fn spread(n: u64) -> RegisterKey {
    let mut key = register((n % 3) as u8);
    let person = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key.entity.0[..8].copy_from_slice(&person.to_be_bytes());
    key
}

fn put(state: &State, rows: impl Iterator<Item = (u64, u64)>, revision: u64) {
    put_keys(
        state,
        rows.map(|(n, expires_at)| (spread(n), expires_at)),
        revision,
    );
}

fn put_keys(state: &State, rows: impl Iterator<Item = (RegisterKey, u64)>, revision: u64) {
    let mut group = state.begin().expect("begins");
    for (key, expires_at) in rows {
        group.put_register(&key, &row(revision, expires_at));
    }
    let next = group.applied().next.0 + 1;
    group.commit(Applied {
        next: Offset(next),
        log_time: Micros(revision),
        deltas: 0,
    });
    state.flush().expect("flushes");
}

/// Segments are told apart by their keys, in order, and each has only its own.
fn check_segments(state: &State) -> usize {
    let list = tables(state).list();
    let below = list
        .segments
        .iter()
        .skip(1)
        .map(|s| s.low)
        .chain([u128::MAX]);
    for (segment, below) in list.segments.iter().zip(below) {
        let Some(table) = &segment.table else {
            continue;
        };
        let only = vec![Arc::clone(table)];
        let rows = table::Cursor::open(only, 0..=u128::MAX).expect("reads");
        let mut rows = Merged::new(vec![rows]);
        while rows.advance().expect("reads") {
            let (page, i) = rows.row();
            let first = table::first(&page.keys()[i]);
            assert!(segment.low <= first && first < below);
        }
    }
    list.segments.len()
}

#[test]
fn segments_split_as_they_grow_and_join_as_they_empty_and_nothing_is_lost() {
    const PEOPLE: u64 = 6000;
    const WEEK: u64 = EXPIRED_KEPT_US;
    let dir = tempfile::tempdir().expect("a folder");
    let options = || StateOptions {
        runs_merged: usize::MAX,
        segment_bytes: 24 << 10,
        ..StateOptions::default()
    };
    let mut state = State::open(dir.path(), options()).expect("opens");
    let mut model = BTreeMap::new();
    let mut segments = Vec::new();
    for round in 1..=12u64 {
        // Growing, then changing, then nearly all expire.
        let some = (0..PEOPLE).filter(|n| (n * round) % 7 < 3 || round == 9);
        let expires = if round == 9 { 10 } else { 0 };
        let some: Vec<_> = some.filter(|n| round < 10 || n % 50 == 0).collect();
        let revision = if round < 10 { round } else { round + WEEK + 10 };
        put(&state, some.iter().map(|n| (*n, expires)), revision);
        model.extend(some.iter().map(|n| (spread(*n), (revision, expires))));
        if round == 10 {
            model.retain(|_, (_, expires)| *expires == 0);
        }
        if round % 3 != 1 {
            state.compact().expect("merges");
            segments.push(check_segments(&state));
        }
        if round % 4 == 0 {
            drop(state);
            state = State::open(dir.path(), options()).expect("opens");
        }
        let expected: BTreeMap<_, _> = model.iter().map(|(key, row)| (*key, row.0)).collect();
        assert_eq!(snapshot(&state).0, expected, "round {round}");
        for n in (0..PEOPLE).step_by(97) {
            let key = spread(n);
            let found = state.entity(key.entity).expect("reads");
            let found = found.iter().find(|(k, _)| *k == key);
            let found = found.map(|(_, row)| row.revision.0);
            assert_eq!(found, expected.get(&key).copied(), "{n} in round {round}");
            let group = state.begin().expect("begins");
            let row = group.get_register(&key, Micros(revision)).expect("reads");
            assert_eq!(row.map(|row| row.revision.0), found);
        }
    }
    let most = *segments.iter().max().expect("some");
    assert!(most > 4, "{segments:?}");
    assert!(
        segments.last().is_some_and(|last| *last < most),
        "{segments:?}"
    );
}

/// Waits until nothing is due any more.
fn settle(state: &State, least: usize) {
    let mut signal = state.shared.signal.lock();
    loop {
        assert_eq!(signal.failure, None);
        let due = merge::due(&tables(state).list(), least);
        if due.is_none() {
            return;
        }
        state.shared.changed.wait(&mut signal);
    }
}

/// Per cent of the segments that were written since.
fn written_since(before: &List, now: &List) -> usize {
    let number = |segment: &Segment| segment.table.as_ref().map(|t| t.number);
    let kept = |segment: &&Segment| {
        let same = |s: &Segment| number(s) == number(segment);
        before.segments.iter().any(same)
    };
    let kept = now.segments.iter().filter(kept).count();
    100 * (now.segments.len() - kept) / now.segments.len()
}

/// However they began, which is all at once here, and wherever their keys are.
#[test]
fn turns_of_segments_are_spread_and_nothing_is_lost_between_them() {
    const PEOPLE: u64 = 6000;
    const RUNS_MERGED: usize = 8;
    let alike = |n: u64| {
        let mut key = spread(n);
        key.entity.0 = u128::from(n + 1).to_be_bytes();
        key
    };
    for key in [spread, alike] {
        let dir = tempfile::tempdir().expect("a folder");
        let options = || StateOptions {
            runs_merged: RUNS_MERGED,
            segment_bytes: 8 << 10,
            ..StateOptions::default()
        };
        let mut state = State::open(dir.path(), options()).expect("opens");
        put_keys(&state, (0..PEOPLE).map(|n| (key(n), 0)), 1);
        state.compact().expect("merges");
        let mut model: BTreeMap<_, _> = (0..PEOPLE).map(|n| (key(n), 1)).collect();
        let mut unequal = 0;
        let mut most = Vec::new();
        for revision in 2..60 {
            let before = tables(&state).list();
            let some = (0..PEOPLE).filter(|n| (n + revision) % 4 != 0);
            let some: Vec<_> = some.map(key).collect();
            put_keys(&state, some.iter().map(|key| (*key, 0)), revision);
            model.extend(some.into_iter().map(|key| (key, revision)));
            settle(&state, RUNS_MERGED);
            let list = tables(&state).list();
            most.push(written_since(&before, &list));
            let through = list.segments.iter().map(|segment| segment.through);
            unequal += usize::from(through.clone().min() != through.max());
            if revision % 20 == 0 {
                drop((before, list, state));
                state = State::open(dir.path(), options()).expect("opens");
            }
            assert_eq!(snapshot(&state).0, model, "{revision}");
            for n in (0..PEOPLE).step_by(397) {
                let found = state.entity(key(n).entity).expect("reads");
                let found = found.iter().map(|(key, row)| (*key, row.revision.0));
                assert_eq!(found.collect::<Vec<_>>(), [(key(n), model[&key(n)])]);
            }
        }
        assert!(unequal > 20, "{unequal}");
        let settled = &most[3 * RUNS_MERGED..];
        let most = settled.iter().max().expect("some");
        assert!(*most < 50, "per cent after one run: {settled:?}");
    }
}

#[test]
fn what_a_snapshot_reads_stays_until_it_has_read_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = StateOptions {
        runs_merged: usize::MAX,
        segment_bytes: 8 << 10,
        ..StateOptions::default()
    };
    let state = State::open(dir.path(), options).expect("opens");
    let files = || {
        let files = std::fs::read_dir(dir.path()).expect("a folder");
        let names = files.map(|file| file.expect("an entry").file_name());
        names
            .filter(|name| name.to_string_lossy().ends_with(".table"))
            .count()
    };
    let bytes = || {
        let files = std::fs::read_dir(dir.path()).expect("a folder").flatten();
        let tables = files.filter(|file| file.file_name().to_string_lossy().ends_with(".table"));
        let sizes = tables.map(|table| table.metadata().expect("a file").len());
        sizes.sum::<u64>()
    };
    // Rows of other kinds are in files of RocksDB.
    let told = || {
        let others = rocks::property(
            &tables(&state).db,
            &[FAMILY],
            "rocksdb.total-sst-files-size",
        );
        state.disk_bytes() - others
    };
    put(&state, (0..2000).map(|n| (n, 0)), 1);
    state.compact().expect("merges");
    let read = state.with_snapshot(|rows, _| {
        rows.next_row().expect("reads").expect("one");
        for revision in 2..5 {
            put(&state, (0..2000).map(|n| (n, 0)), revision);
            state.compact().expect("merges");
        }
        assert_eq!(told(), bytes(), "what is held takes its place");
        let mut count = 1;
        while let Some((_, row)) = rows.next_row().expect("reads") {
            assert_eq!(row.revision.0, 1);
            count += 1;
        }
        count
    });
    assert_eq!(read.expect("a snapshot"), 2000);
    // And then its files go: only those of the last pass are left.
    let list = tables(&state).list();
    assert_eq!((list.runs.len(), files()), (0, list.segments.len()));
    assert_eq!(told(), bytes());
}

#[test]
fn tables_that_nobody_knows_are_forgotten_at_the_next_opening() {
    let dir = tempfile::tempdir().expect("a folder");
    let state = with_runs(dir.path(), 3, usize::MAX);
    let unknown = tables(&state).next_number();
    let path = table::path(&tables(&state).dir, unknown);
    std::fs::write(&path, b"half a table").expect("written");
    let before = snapshot(&state);
    drop(state);
    let state = with_runs(dir.path(), 0, usize::MAX);
    assert!(!path.exists());
    let next = tables(&state).next_number();
    assert!(next > unknown, "no number is given twice");
    assert_eq!(snapshot(&state), before);
}

/// As from a platform that fills its pseudonyms up with zeros: all keys begin alike.
#[test]
fn entities_that_begin_alike_are_found_in_pages_of_their_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = StateOptions {
        runs_merged: usize::MAX,
        segment_bytes: 8 << 10,
        ..StateOptions::default()
    };
    let state = State::open(dir.path(), options).expect("opens");
    let alike = |n: u64| {
        let mut key = register(1);
        key.entity.0 = u128::from(n + 1).to_be_bytes();
        key
    };
    // The second time all of it was forgotten, and no segment has anything that says how large it will be.
    for (round, expires_at) in [(1, 10), (2, 0)] {
        let now = if round == 1 { 1 } else { EXPIRED_KEPT_US + 20 };
        put_keys(&state, (0..4000).map(|n| (alike(n), expires_at)), now);
        state.compact().expect("merges");
        let segments = check_segments(&state);
        assert!((1..200).contains(&segments), "{segments}");
        put_keys(
            &state,
            [(spread(1), 0)].into_iter(),
            EXPIRED_KEPT_US + 10 + now,
        );
        state.compact().expect("merges");
        let kept = if round == 1 { 1 } else { 4001 };
        assert_eq!(snapshot(&state).0.len(), kept);
    }
    for n in (0..4000).step_by(131) {
        let found = state.entity(alike(n).entity).expect("reads");
        assert_eq!(found.len(), 1, "{n}");
    }
}

/// A state as layout 1 of the data folder has it: registers that are rows of RocksDB, in two files.
fn layout_1(dir: &std::path::Path) -> BTreeMap<RegisterKey, u64> {
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    let db = rocksdb::DB::open(&options, dir).expect("opens");
    let mut registers = BTreeMap::new();
    for half in 0..2u64 {
        for n in half * 1500..(half + 1) * 1500 {
            let mut row = vec![1];
            for (field, value) in [(1, n + 1), (2, n), (4, n)] {
                wire::put_number(&mut row, field, value);
            }
            wire::put_bytes(&mut row, 5, &[1; 16]);
            wire::put_bytes(&mut row, 7, &[8, 1]);
            let mut key = spread(n);
            key.entity.0[0] = half as u8;
            db.put(key.stored(), row).expect("written");
            registers.insert(key, n + 1);
        }
        db.flush().expect("flushed");
    }
    let end = applied(3000);
    db.put(keys::applied(), end.encode()).expect("written");
    registers
}

#[test]
fn registers_of_layout_1_are_brought_over_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let registers = layout_1(dir.path());
    for _ in 0..2 {
        let state = State::open(dir.path(), StateOptions::default()).expect("opens");
        assert_eq!(snapshot(&state), (registers.clone(), applied(3000)));
        let kind = keys::register_prefix()[0];
        let left = tables(&state).db.iterator(rocksdb::IteratorMode::From(
            &[kind],
            rocksdb::Direction::Forward,
        ));
        assert_eq!(left.count(), 0);
    }
}

/// Half of them cannot be read. They must not be taken for all, at the second opening either.
#[test]
fn what_cannot_be_brought_over_is_not_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    layout_1(dir.path());
    let files = || {
        let files = std::fs::read_dir(dir.path()).expect("a folder");
        let paths = files.map(|file| file.expect("an entry").path());
        let mut paths: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|e| e == "sst"))
            .collect();
        paths.sort();
        paths
    };
    let second = files().pop().expect("files");
    let bytes = std::fs::read(&second).expect("reads");
    let mut damaged = bytes.clone();
    damaged[3000] ^= 0xff;
    std::fs::write(&second, damaged).expect("written");
    for _ in 0..2 {
        let opened = State::open(dir.path(), StateOptions::default());
        let why = opened.expect_err("it cannot be read").to_string();
        assert!(why.contains("Corruption"), "{why}");
    }
    assert!(files().contains(&second));
    std::fs::write(&second, bytes).expect("written");
    let state = State::open(dir.path(), StateOptions::default()).expect("opens");
    assert_eq!(snapshot(&state).0.len(), 3000);
}
