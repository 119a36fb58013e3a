//! The state against a model: whatever the order of writes, flushes and crashes.

use super::*;
use hutong_proto::{Issuer, Revision};
use proptest::prelude::*;
use row::ProvenanceId;
use std::collections::BTreeMap;

fn register(n: u8) -> RegisterKey {
    RegisterKey {
        entity: EntityId([n / 8 + 1; 16]),
        kind: Kind::ALL[usize::from(n % 2)],
        issuer: Issuer::new(if n.is_multiple_of(3) {
            340_000
        } else {
            510_000
        })
        .expect("a code"),
    }
}

fn row(revision: u64, expires_at: u64) -> Vec<u8> {
    let mut out = Vec::new();
    Row {
        revision: Revision(revision),
        committed_at: Micros(revision),
        expires_at: Micros(expires_at),
        offset: Offset(revision),
        provenance: ProvenanceId([1; 16]),
        evidence: "e",
        value: &[8, 1],
    }
    .encode(&mut out);
    out
}

fn open(dir: &Path) -> State {
    let options = StateOptions {
        gather_bytes_max: 2000,
        block_cache_bytes: 1 << 20,
        ..StateOptions::default()
    };
    State::open(dir, options).expect("opens")
}

fn snapshot(state: &State) -> (BTreeMap<RegisterKey, u64>, Applied) {
    state
        .with_snapshot(|rows, applied| {
            let mut all = BTreeMap::new();
            while let Some((key, row)) = rows.next_row().expect("reads") {
                assert!(
                    all.insert(key, row.revision.0).is_none(),
                    "a register came twice"
                );
            }
            (all, applied)
        })
        .expect("a snapshot")
}

fn applied(next: u64) -> Applied {
    Applied {
        next: Offset(next),
        log_time: Micros(next),
        deltas: next,
    }
}

#[derive(Clone, Debug)]
enum Action {
    Group(Vec<u8>),
    Other(u8, bool),
    Rotate,
    Flush,
    Crash,
    Check,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => proptest::collection::vec(0..64u8, 1..12).prop_map(Action::Group),
        3 => (0..8u8, any::<bool>()).prop_map(|(k, put)| Action::Other(k, put)),
        2 => Just(Action::Rotate),
        1 => Just(Action::Flush),
        1 => Just(Action::Crash),
        2 => Just(Action::Check),
    ]
}

/// What the state should hold after each group.
#[derive(Clone, Default, Debug)]
struct Model {
    registers: BTreeMap<RegisterKey, u64>,
    others: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn check(state: &State, model: &Model) {
    assert_eq!(snapshot(state).0, model.registers);
    let stored = state.scan(&[KeyKindForTests::COUNTER]).expect("scans");
    assert_eq!(stored.into_iter().collect::<BTreeMap<_, _>>(), model.others);
    for (key, revision) in &model.registers {
        let found = state.entity(key.entity).expect("reads");
        let row = found.iter().find(|(k, _)| k == key).expect("is there");
        assert_eq!(row.1.revision.0, *revision);
    }
}

/// A kind of key that only these tests use.
struct KeyKindForTests;

impl KeyKindForTests {
    const COUNTER: u8 = 0x0f;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn state_is_what_was_committed_and_after_a_crash_a_prefix_of_it(
        actions in proptest::collection::vec(action(), 1..60),
    ) {
        let dir = tempfile::tempdir().expect("a folder");
        let mut state = open(dir.path());
        // The model after each group, by the offset it ends at.
        let mut history = BTreeMap::from([(1u64, Model::default())]);
        let mut next = 1u64;
        for action in actions {
            let mut model = history[&next].clone();
            match action {
                Action::Group(keys) => {
                    let mut group = state.begin().expect("begins");
                    for n in keys {
                        next += 1;
                        group.put_register(&register(n), &row(next, 0));
                        model.registers.insert(register(n), next);
                        let read = group.get_register(&register(n), Micros(next)).expect("reads").expect("there");
                        prop_assert_eq!(read.revision.0, next);
                    }
                    next += 1;
                    group.commit(applied(next));
                    history.insert(next, model);
                }
                Action::Other(n, put) => {
                    let key = vec![KeyKindForTests::COUNTER, n];
                    let mut group = state.begin().expect("begins");
                    next += 1;
                    if put {
                        group.put(&key, &next.to_be_bytes());
                        model.others.insert(key, next.to_be_bytes().to_vec());
                    } else {
                        group.delete(&key);
                        model.others.remove(&key);
                    }
                    group.commit(applied(next));
                    history.insert(next, model);
                }
                Action::Rotate => state.rotate().expect("rotates"),
                Action::Flush => {
                    state.flush().expect("flushes");
                    prop_assert_eq!(state.stored(), state.applied());
                }
                Action::Crash => {
                    drop(state);
                    state = open(dir.path());
                    prop_assert_eq!(state.stored(), state.applied());
                    next = state.applied().next.0;
                    history.split_off(&(next + 1));
                    check(&state, &history[&next]);
                }
                Action::Check => check(&state, &model),
            }
        }
        check(&state, &history[&next]);
    }
}

#[test]
fn a_snapshot_is_one_moment_while_writes_go_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let state = open(dir.path());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 2..4000u64 {
                let mut group = state.begin().expect("begins");
                // All registers carry the offset of the last group.
                for k in 0..16 {
                    group.put_register(&register(k), &row(n, 0));
                }
                group.commit(applied(n));
            }
        });
        let mut seen = 0;
        while seen < 5 || !writer.is_finished() {
            let (rows, applied) = snapshot(&state);
            if applied == Applied::NOTHING {
                continue;
            }
            assert!(
                rows.values().all(|r| *r == applied.next.0),
                "{applied:?} {rows:?}"
            );
            seen += 1;
        }
    });
    state.flush().expect("flushes");
    assert_eq!(state.stored().next, Offset(3999));
}

#[test]
fn snapshots_of_little_that_is_new_make_no_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let state = State::open(dir.path(), StateOptions::default()).expect("opens");
    let mut known = std::collections::BTreeSet::new();
    for n in 1..=20 {
        let mut group = state.begin().expect("takes");
        group.put_register(&register(n), &row(u64::from(n), 0));
        known.insert(register(n));
        let end = applied(u64::from(n) + 1);
        group.commit(end);
        let (rows, at) = snapshot(&state);
        assert_eq!((rows.len(), at), (known.len(), end));
        let memory = state.shared.memory.read();
        let gathered = (memory.active.rows(), memory.frozen.len());
        assert_eq!(gathered, (known.len(), 0));
    }
    assert_eq!(state.stats().flushes, 0);
}

#[test]
fn long_expired_values_are_forgotten_by_the_logs_time_and_removed_at_compaction() {
    let dir = tempfile::tempdir().expect("a folder");
    let state = open(dir.path());
    let expires = 1_000;
    let mut group = state.begin().expect("begins");
    group.put_register(&register(1), &row(5, expires));
    group.put_register(&register(2), &row(5, 0));
    group.commit(applied(2));
    state.flush().expect("flushes");
    let later = |log_time: u64, next: u64| {
        let mut group = state.begin().expect("begins");
        group.put(&[KeyKindForTests::COUNTER], b"x");
        group.commit(Applied {
            next: Offset(next),
            log_time: Micros(log_time),
            deltas: 0,
        });
        let group = state.begin().expect("begins");
        let found = group.get_register(&register(1), Micros(log_time));
        found.expect("reads").is_some()
    };
    let stored = |n: u8| {
        let row = state.shared.db.get(&register(n).stored());
        row.expect("reads").is_some()
    };
    assert!(
        later(expires + row::EXPIRED_KEPT_US - 1, 3),
        "still needed to compare revisions"
    );
    assert!(
        !later(expires + row::EXPIRED_KEPT_US, 4),
        "absent before compaction too"
    );
    assert_eq!(snapshot(&state).0.len(), 1);
    state.compact();
    assert!(
        stored(1),
        "after a crash now, records of an earlier time are applied again"
    );
    state.flush().expect("flushes");
    state.compact();
    assert!(!stored(1));
    assert!(stored(2));
}

#[test]
fn a_run_that_was_cut_off_is_swept_away() {
    let dir = tempfile::tempdir().expect("a folder");
    drop(open(dir.path()));
    let left = dir.path().join("run-7.sst");
    std::fs::write(&left, b"half a file").expect("written");
    let state = open(dir.path());
    assert!(!left.exists());
    assert_eq!(state.applied(), Applied::NOTHING);
}

#[test]
fn exceptions_go_with_the_records_they_are_about() {
    let dir = tempfile::tempdir().expect("a folder");
    let state = open(dir.path());
    let mut group = state.begin().expect("begins");
    for offset in 1..=3 {
        group.put(&keys::exception(Offset(offset)), b"x");
    }
    group.commit(applied(4));
    state.flush().expect("flushes");
    state.log_starts_at(Offset(3));
    state.compact();
    let kept: Vec<_> = (1..=3)
        .filter(|n| {
            let row = state.get(&keys::exception(Offset(*n)));
            row.expect("reads").is_some()
        })
        .collect();
    assert_eq!(kept, [3]);
}
