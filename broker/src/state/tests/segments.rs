//! Runs that are merged into segments, and tables that come and go.

use super::{Applied, register, row, snapshot, tables, with_runs};
use crate::state::{State, StateOptions, keys::RegisterKey, row::EXPIRED_KEPT_US, table};
use hutong_proto::{Micros, Offset};
use std::{collections::BTreeMap, sync::Arc};

/// Registers of many entities, in an order that has nothing to do with their keys.
fn spread(n: u64) -> RegisterKey {
    let mut key = register((n % 3) as u8);
    let person = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    key.entity.0[..8].copy_from_slice(&person.to_be_bytes());
    key
}

fn put(state: &State, rows: impl Iterator<Item = (u64, u64)>, revision: u64) {
    let mut group = state.begin().expect("begins");
    for (n, expires_at) in rows {
        group.put_register(&spread(n), &row(revision, expires_at));
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
        .chain([u64::MAX]);
    for (segment, below) in list.segments.iter().zip(below) {
        let Some(table) = &segment.table else {
            continue;
        };
        let only = vec![Arc::clone(table)];
        let mut rows = table::Cursor::open(only, 0..=u64::MAX).expect("reads");
        while let Some(key) = rows.key() {
            let first = table::first(key);
            assert!(segment.low <= first && first < below);
            rows.next().expect("reads");
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
    put(&state, (0..2000).map(|n| (n, 0)), 1);
    state.compact().expect("merges");
    let read = state.with_snapshot(|rows, _| {
        rows.next_row().expect("reads").expect("one");
        for revision in 2..5 {
            put(&state, (0..2000).map(|n| (n, 0)), revision);
            state.compact().expect("merges");
        }
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
