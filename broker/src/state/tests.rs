//! The state against a model: whatever the order of writes, flushes and crashes.

mod segments;

use super::*;
use hutong_proto::{Issuer, Revision};
use proptest::prelude::*;
use row::ProvenanceId;
use std::{collections::BTreeMap, path::PathBuf};

fn tables(state: &State) -> &tables::Tables {
    state.shared.db.tables().expect("it is on a disk")
}

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
        runs_merged: 2,
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

/// A copy of a state with so many runs as it is on disk, and how long its manifest was after each.
fn manifest_after_each(runs: usize) -> (tempfile::TempDir, PathBuf, Vec<usize>) {
    let live = tempfile::tempdir().expect("a folder");
    let state = open(live.path());
    let current = std::fs::read_to_string(live.path().join("CURRENT")).expect("reads");
    let manifest = live.path().join(current.trim_end());
    let bytes = || std::fs::metadata(&manifest).expect("there").len() as usize;
    let mut lengths = vec![bytes()];
    for n in 2..2 + runs as u64 {
        let mut group = state.begin().expect("begins");
        // The keys at both ends of a run stand in the manifest: long ones, so that a record has several sectors.
        for end in [0x10, 0x7f] {
            group.put(
                &[[KeyKindForTests::COUNTER, end].as_slice(), &[n as u8; 700]].concat(),
                &[1],
            );
        }
        group.commit(applied(n));
        state.flush().expect("flushes");
        lengths.push(bytes());
    }
    let copy = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(live.path()).expect("lists") {
        let file = file.expect("reads");
        std::fs::copy(file.path(), copy.path().join(file.file_name())).expect("copied");
    }
    let manifest = copy.path().join(manifest.file_name().expect("a name"));
    (copy, manifest, lengths)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// Of the last changes to the manifest any sectors reached the disk, and the file any length. Several may
    /// be written before one sync.
    #[test]
    fn a_state_whose_manifest_was_torn_is_one_that_it_was(
        runs in 1..5usize,
        torn_runs in 1..3usize,
        length in any::<prop::sample::Index>(),
        sectors in proptest::collection::vec(any::<bool>(), 64),
    ) {
        let (dir, manifest, lengths) = manifest_after_each(runs);
        let synced = lengths[runs.saturating_sub(torn_runs)];
        let whole = std::fs::read(&manifest).expect("reads");
        let mut torn = whole.clone();
        torn.truncate(synced + length.index(whole.len() - synced + 1));
        for (i, byte) in torn.iter_mut().enumerate().skip(synced) {
            if !sectors[i / 512 % sectors.len()] {
                *byte = 0;
            }
        }
        std::fs::write(&manifest, &torn).expect("written");
        // The last change of which all is there, and all before it.
        let kept = (0..=runs).rfind(|run| torn.get(..lengths[*run]) == whole.get(..lengths[*run]));
        let kept = kept.expect("what was synced is there");
        for _ in 0..2 {
            let state = open(dir.path());
            let expected = if kept == 0 { Applied::NOTHING } else { applied(1 + kept as u64) };
            prop_assert_eq!(state.stored(), expected);
            let rows = state.scan(&[KeyKindForTests::COUNTER]).expect("reads");
            prop_assert_eq!(rows.len(), 2 * kept);
        }
        // And it goes on.
        let state = open(dir.path());
        let mut group = state.begin().expect("begins");
        group.put(&[KeyKindForTests::COUNTER, 0x80], &[2]);
        group.commit(applied(100));
        state.flush().expect("flushes");
        drop(state);
        let state = open(dir.path());
        prop_assert_eq!(state.stored(), applied(100));
        let rows = state.scan(&[KeyKindForTests::COUNTER]).expect("reads");
        prop_assert_eq!(rows.len(), 2 * kept + 1);
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
        let row = state.shared.db.register(&register(n).encode());
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
    state.compact().expect("merges");
    assert!(
        stored(1),
        "after a crash now, records of an earlier time are applied again"
    );
    state.flush().expect("flushes");
    state.compact().expect("merges");
    assert!(!stored(1));
    assert!(stored(2));
}

#[test]
fn a_run_that_was_cut_off_is_swept_away() {
    let dir = tempfile::tempdir().expect("a folder");
    drop(open(dir.path()));
    let left = dir.path().join(run::TEMPORARY);
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
    state.compact().expect("merges");
    let kept: Vec<_> = (1..=3)
        .filter(|n| {
            let row = state.get(&keys::exception(Offset(*n)));
            row.expect("reads").is_some()
        })
        .collect();
    assert_eq!(kept, [3]);
}

/// Values that go down as a run of their own, over the same registers each time.
fn gather_run(state: &State) {
    let next = state.applied().next.0 + 1;
    let mut group = state.begin().expect("begins");
    for n in 0..8 {
        group.put_register(&register(n), &row(next, 0));
    }
    group.commit(applied(next));
}

fn runs(state: &State) -> usize {
    tables(state).list().runs.len()
}

/// So many runs.
fn with_runs(dir: &Path, count: usize, runs_merged: usize) -> Arc<State> {
    // Nothing is cached: what is read comes from the files.
    let options = StateOptions {
        block_cache_bytes: 0,
        runs_merged,
        ..StateOptions::default()
    };
    let state = State::open(dir, options).expect("opens");
    for _ in 0..count {
        gather_run(&state);
        state.flush().expect("flushes");
    }
    assert!(count == 0 || runs(&state) == count);
    Arc::new(state)
}

/// As many runs as may wait, and nobody who merges them.
fn full(dir: &Path) -> Arc<State> {
    with_runs(dir, run::RUNS_MAX, usize::MAX)
}

/// Writes the run after those of [`full`]; it is on disk, or the state failed, when the result comes.
fn one_more(state: &Arc<State>) -> std::sync::mpsc::Receiver<Result<(), StateError>> {
    gather_run(state);
    let (ended, end) = std::sync::mpsc::channel();
    let state = Arc::clone(state);
    // Nobody listens any more when the test has failed.
    std::thread::spawn(move || ended.send(state.flush()).ok());
    end
}

const PATIENCE: Duration = Duration::from_secs(20);
/// Some looks at whether there is room.
const A_WHILE: Duration = Duration::from_millis(200);

#[test]
fn what_is_on_disk_is_counted() {
    let dir = tempfile::tempdir().expect("a folder");
    let state = State::open(dir.path(), StateOptions::default()).expect("opens");
    let mut known = std::collections::BTreeSet::new();
    for n in 0..40 {
        let mut group = state.begin().expect("begins");
        group.put_register(&register(n), &row(1, 0));
        known.insert(register(n));
        group.commit(applied(u64::from(n) + 2));
    }
    let known = known.len() as u64;
    assert_eq!(state.registers_estimate(), known);
    state.flush().expect("flushes");
    assert_eq!(state.registers_estimate(), known);
    let files = std::fs::read_dir(dir.path()).expect("a folder");
    let bytes = files
        .map(|file| file.expect("an entry"))
        .filter(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            name.ends_with(".sst") || name.ends_with(".table")
        })
        .map(|file| file.metadata().expect("is there").len());
    let bytes: u64 = bytes.sum();
    assert!(bytes > 0);
    assert_eq!(
        (state.disk_bytes(), state.store().disk_bytes),
        (bytes, bytes)
    );
}

#[test]
fn the_options_are_those_of_the_family_that_is_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let _state = open(dir.path());
    let files = std::fs::read_dir(dir.path()).expect("a folder");
    let newest = files
        .map(|file| file.expect("an entry").path())
        .filter(|path| path.to_string_lossy().contains("OPTIONS-"))
        .max();
    let text = std::fs::read_to_string(newest.expect("written at opening")).expect("UTF-8");
    let (_, family) = text
        .split_once("[CFOptions \"default\"]")
        .expect("a family");
    for option in [
        "level0_file_num_compaction_trigger=8",
        "level0_slowdown_writes_trigger=2147483647",
        "level0_stop_writes_trigger=2147483647",
        "write_buffer_size=1048576",
        "compression=kLZ4Compression",
        "compaction_style=kCompactionStyleLevel",
        "block_size=4096",
        "cache_index_and_filter_blocks=true",
        "pin_l0_filter_and_index_blocks_in_cache=true",
    ] {
        let set = family.lines().any(|line| line.trim() == option);
        assert!(set, "{option} in {family}");
    }
}

#[test]
fn bulk_stops_while_there_is_still_room_for_what_is_urgent() {
    let dir = tempfile::tempdir().expect("a folder");
    let gate = Arc::<BulkGate>::default();
    let options = StateOptions {
        gather_bytes_max: 64 << 10,
        bulk_gate: Arc::clone(&gate),
        ..StateOptions::default()
    };
    let state = State::open(dir.path(), options).expect("opens");
    // No run goes down while this is held.
    let held = state.shared.ingest.lock();
    let group = || {
        let next = state.applied().next.0 + 1;
        let mut group = state.begin().expect("begins");
        for n in 0..50 {
            let mut key = register(1);
            key.entity.0[..8].copy_from_slice(&(next * 50 + n).to_be_bytes());
            group.put_register(&key, &row(1, 0));
        }
        group.commit(applied(next));
    };
    while gate.is_open() {
        group();
    }
    let waiting = |state: &State| state.shared.memory.read().frozen.len();
    assert_eq!(waiting(&state), FROZEN_MAX);
    // What comes now is urgent, and needs not wait.
    let full = state.shared.memory.read().active.bytes();
    for _ in 0..3 {
        group();
    }
    assert!(state.shared.memory.read().active.bytes() > full);
    assert_eq!(waiting(&state), FROZEN_MAX);
    assert!(!gate.is_open());
    drop(held);
    gate.opened()
        .recv_timeout(PATIENCE)
        .expect("a run goes down");
    assert!(gate.is_open());
}

#[test]
fn no_more_runs_wait_to_be_merged_than_may() {
    let dir = tempfile::tempdir().expect("a folder");
    let state = full(dir.path());
    let end = one_more(&state);
    assert!(end.recv_timeout(A_WHILE).is_err(), "there is no room");
    assert_eq!(runs(&state), run::RUNS_MAX);
    state.compact().expect("they are merged");
    let end = end.recv_timeout(PATIENCE).expect("there is room");
    end.expect("it goes down");
    assert_eq!(runs(&state), 1);
    assert_eq!(state.stored(), state.applied());
}

#[test]
fn a_run_does_not_wait_for_ever_for_others_that_cannot_be_merged() {
    let dir = tempfile::tempdir().expect("a folder");
    let before = run::RUNS_MAX - 1;
    let state = with_runs(dir.path(), before, before + 1);
    for file in std::fs::read_dir(dir.path()).expect("a folder") {
        let path = file.expect("an entry").path();
        if table::number_of(&path).is_some() {
            // In place: the state has it open.
            let file = std::fs::OpenOptions::new().write(true).open(path);
            let file = file.expect("is there");
            std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 64], 0).expect("writes");
        }
    }
    // This run may wait, and is the last one before all are merged.
    let end = one_more(&state).recv_timeout(PATIENCE);
    end.expect("there is room").ok();
    let mut signal = state.shared.signal.lock();
    while signal.failure.is_none() {
        let waited = state.shared.changed.wait_for(&mut signal, PATIENCE);
        assert!(!waited.timed_out(), "it gives up");
    }
    drop(signal);
    let begun = state.begin().map(drop);
    assert!(matches!(begun, Err(StateError::Failed(_))), "{begun:?}");
}

#[test]
fn closing_waits_for_no_room() {
    let dir = tempfile::tempdir().expect("a folder");
    let state = full(dir.path());
    let end = one_more(&state);
    assert!(end.recv_timeout(A_WHILE).is_err(), "there is no room");
    let (closed, close) = std::sync::mpsc::channel();
    let closing = Arc::clone(&state);
    std::thread::spawn(move || closed.send(closing.close()).ok());
    let closed = close.recv_timeout(PATIENCE).expect("nothing to wait for");
    closed.expect("everything is down");
    assert_eq!(state.stored(), state.applied());
}
