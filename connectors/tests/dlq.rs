//! Dead letters survive everything: restarts, other processes, cut writes, a full store.

use hutong_connectors::{
    checkpoint::StateFolder,
    dlq::{DeadLetters, DlqError, LetterId, NewLetter},
    source::SourceRow,
};
use hutong_proto::{Micros, Revision};
use proptest::prelude::*;
use serde_json::json;
use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt};
use tempfile::TempDir;

const NOW: Micros = Micros(1_661_950_800_000_000);
const MIB: u64 = 1 << 20;

fn folder() -> (TempDir, StateFolder) {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = StateFolder::new(dir.path(), "anhui");
    (dir, folder)
}

fn letter(n: u64) -> NewLetter {
    let fields = json!({"zjhm": format!("1101051949123100{n:02}"), "colour": "紫码"});
    NewLetter {
        row: SourceRow {
            fields: serde_json::from_value(fields).expect("an object"),
            place: format!("table outbox, id {n}"),
            revision: Revision(n),
            committed_at: NOW,
        },
        reason: "VALUE_UNMAPPED".to_owned(),
        field: "colour".to_owned(),
        message: "\"紫码\" has no mapping".to_owned(),
    }
}

fn ids(store: &DeadLetters) -> Vec<u64> {
    let contents = store.contents().expect("read");
    contents.letters.keys().map(|id| id.0).collect()
}

fn later(seconds: u64) -> Micros {
    Micros(NOW.0 + seconds * 1_000_000)
}

#[test]
fn a_letter_keeps_all_that_a_retry_needs() {
    let (_dir, folder) = folder();
    let mut store = DeadLetters::open(&folder, MIB).expect("opened");
    store.add(vec![letter(7)], NOW).expect("added");
    let again = DeadLetters::open(&folder, MIB).expect("opened by another process");
    let kept = again.get(LetterId(1)).expect("there");
    assert_eq!(kept.row(), letter(7).row);
    assert_eq!((kept.attempts, kept.first_at_us), (1, NOW.0));
    assert_eq!(kept.reason, "VALUE_UNMAPPED");
    assert!(!format!("{kept:?}").contains("110105"));
    let mode = fs::metadata(folder.file("dead-letters.jsonl"))
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_row_that_comes_again_after_a_restart_is_one_letter() {
    let (_dir, folder) = folder();
    let mut store = DeadLetters::open(&folder, MIB).expect("opened");
    store.add(vec![letter(7), letter(8)], NOW).expect("added");
    drop(store);
    let mut store = DeadLetters::open(&folder, MIB).expect("opened");
    let mut other = letter(7);
    other.row.revision = Revision(9);
    store.add(vec![letter(7), other], later(60)).expect("added");
    assert_eq!(ids(&store), [1, 2, 3]);
    let first = store.get(LetterId(1)).expect("there");
    assert_eq!(
        (first.attempts, first.first_at_us, first.last_at_us),
        (2, NOW.0, later(60).0)
    );
    assert_eq!(store.size().0, 3);
}

#[test]
fn what_was_dropped_stays_dropped_and_its_number_is_not_used_again() {
    let (_dir, folder) = folder();
    let mut store = DeadLetters::open(&folder, MIB).expect("opened");
    store
        .add((1..=3).map(letter).collect(), NOW)
        .expect("added");
    assert_eq!(
        store
            .remove(&[LetterId(3), LetterId(1), LetterId(9)])
            .expect("removed"),
        2
    );
    assert!(matches!(
        store.get(LetterId(3)),
        Err(DlqError::Unknown(LetterId(3)))
    ));
    store.add(vec![letter(3)], NOW).expect("added");
    assert_eq!(ids(&store), [2, 4]);
    let why = || ("X".to_owned(), String::new(), "m".to_owned());
    store.tried(LetterId(2), why(), later(5)).expect("noted");
    let tried = store.get(LetterId(2)).expect("there");
    assert_eq!((tried.attempts, tried.reason.as_str()), (2, "X"));
    assert!(matches!(
        store.tried(LetterId(1), why(), NOW),
        Err(DlqError::Unknown(_))
    ));
}

#[test]
fn two_processes_see_each_others_changes() {
    let (_dir, folder) = folder();
    let mut connector = DeadLetters::open(&folder, MIB).expect("opened");
    let mut command = DeadLetters::open(&folder, MIB).expect("opened");
    connector
        .add(vec![letter(1), letter(2)], NOW)
        .expect("added");
    assert_eq!(command.remove(&[LetterId(1)]).expect("removed"), 1);
    connector
        .add(vec![letter(1), letter(2)], later(1))
        .expect("added");
    assert_eq!(ids(&command), [2, 3]);
    assert_eq!(command.get(LetterId(2)).expect("there").attempts, 2);
}

#[test]
fn a_full_store_refuses_everything_rather_than_lose_something() {
    let (_dir, folder) = folder();
    let mut store = DeadLetters::open(&folder, 4096).expect("opened");
    let mut kept = 0;
    let error = loop {
        match store.add(vec![letter(kept), letter(kept + 1)], NOW) {
            Ok(()) => kept += 2,
            Err(e) => break e,
        }
        assert!(kept < 100, "it is never full");
    };
    assert!(
        matches!(error, DlqError::Full { bytes_max: 4096 }),
        "{error}"
    );
    assert!(error.to_string().contains("dlq list"), "{error}");
    assert_eq!(ids(&store).len() as u64, kept);
    // Room that was made counts, though the file is append-only.
    let all: Vec<LetterId> = ids(&store).into_iter().map(LetterId).collect();
    store.remove(&all).expect("removed");
    store
        .add(vec![letter(50)], NOW)
        .expect("there is room again");
    assert_eq!(ids(&store).len(), 1);
}

#[test]
fn the_file_shrinks_when_most_of_it_is_about_letters_that_are_gone() {
    let (_dir, folder) = folder();
    let mut store = DeadLetters::open(&folder, 64 * MIB).expect("opened");
    store
        .add((0..1000).map(letter).collect(), NOW)
        .expect("added");
    let length = || {
        fs::metadata(folder.file("dead-letters.jsonl"))
            .expect("there")
            .len()
    };
    let before = length();
    let most: Vec<LetterId> = (2..=1000).map(LetterId).collect();
    assert_eq!(store.remove(&most).expect("removed"), 999);
    assert!(length() * 100 < before, "{} of {before}", length());
    store.add(vec![letter(1)], NOW).expect("added");
    assert_eq!(ids(&store), [1, 1001]);
}

#[test]
fn what_was_removed_can_be_made_to_leave_the_file() {
    let (_dir, folder) = folder();
    let mut store = DeadLetters::open(&folder, MIB).expect("opened");
    store
        .add((1..=3).map(letter).collect(), NOW)
        .expect("added");
    let text = || fs::read_to_string(folder.file("dead-letters.jsonl")).expect("read");
    assert!(text().contains("table outbox, id 1"));
    store.remove(&[LetterId(1), LetterId(3)]).expect("removed");
    store.forget_removed().expect("rewritten");
    assert!(!text().contains("table outbox, id 1") && !text().contains("table outbox, id 3"));
    assert_eq!(ids(&store), [2]);
    // Their numbers are not given out again.
    store.add(vec![letter(4)], NOW).expect("added");
    assert_eq!(ids(&store), [2, 4]);
    let before = text();
    store.forget_removed().expect("nothing to do");
    assert_eq!(text(), before);
}

#[test]
fn a_write_that_was_cut_loses_nothing_that_was_acknowledged() {
    let (_dir, folder) = folder();
    let mut store = DeadLetters::open(&folder, MIB).expect("opened");
    store.add(vec![letter(1)], NOW).expect("added");
    let path = folder.file("dead-letters.jsonl");
    let acknowledged = fs::metadata(&path).expect("there").len() as usize;
    store.add(vec![letter(2)], NOW).expect("added");
    let whole = fs::read(&path).expect("read");
    for length in acknowledged..whole.len() {
        fs::write(&path, &whole[..length]).expect("written");
        let mut store = DeadLetters::open(&folder, MIB).expect("opened");
        assert_eq!(ids(&store), [1], "cut at {length}");
        store
            .add(vec![letter(2), letter(3)], NOW)
            .expect("added after the cut");
        let places: Vec<String> = store
            .contents()
            .expect("read")
            .letters
            .into_values()
            .map(|l| l.place)
            .collect();
        assert_eq!(places, [1, 2, 3].map(|n| format!("table outbox, id {n}")));
    }
}

#[test]
fn damage_and_newer_layouts_are_said() {
    let (_dir, folder) = folder();
    let mut store = DeadLetters::open(&folder, MIB).expect("opened");
    store.add(vec![letter(1)], NOW).expect("added");
    let path = folder.file("dead-letters.jsonl");
    let mut text = fs::read_to_string(&path).expect("read");
    text.insert_str(0, "{\"add\":{\"id\":\n\u{0}\u{0}\n");
    fs::write(&path, &text).expect("written");
    let contents = store.contents().expect("read");
    assert_eq!((contents.damaged_lines, contents.letters.len()), (2, 1));
    fs::write(&path, "{\"begin\":{\"version\":2,\"next_id\":1}}\n").expect("written");
    assert!(matches!(
        DeadLetters::open(&folder, MIB),
        Err(DlqError::Newer(2))
    ));
}

#[derive(Clone, Debug)]
enum Act {
    Add(u64),
    Remove(u64),
    Tried(u64),
    Reopen,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..12_u64).prop_map(Act::Add),
        3 => (1..15_u64).prop_map(Act::Remove),
        1 => (1..15_u64).prop_map(Act::Tried),
        1 => Just(Act::Reopen),
    ];
    proptest::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn it_is_a_numbered_set_of_rows_whatever_is_done(acts in acts()) {
        let (_dir, folder) = folder();
        let mut store = DeadLetters::open(&folder, 64 * MIB).expect("opened");
        // By id: the row, and how often it was tried.
        let mut model: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
        let mut next_id = 1;
        for act in acts {
            match act {
                Act::Add(n) => {
                    store.add(vec![letter(n)], NOW).expect("added");
                    match model.values_mut().find(|(row, _)| *row == n) {
                        Some((_, attempts)) => *attempts += 1,
                        None => {
                            model.insert(next_id, (n, 1));
                            next_id += 1;
                        }
                    }
                }
                Act::Remove(id) => {
                    let removed = store.remove(&[LetterId(id)]).expect("removed");
                    prop_assert_eq!(removed, usize::from(model.remove(&id).is_some()));
                }
                Act::Tried(id) => {
                    let why = ("X".to_owned(), String::new(), String::new());
                    let known = store.tried(LetterId(id), why, NOW).is_ok();
                    prop_assert_eq!(known, model.contains_key(&id));
                    if let Some((_, attempts)) = model.get_mut(&id) {
                        *attempts += 1;
                    }
                }
                Act::Reopen => store = DeadLetters::open(&folder, 64 * MIB).expect("opened"),
            }
            let kept: BTreeMap<u64, (u64, u32)> = store.contents().expect("read").letters.into_values()
                .map(|l| (l.id.0, (l.revision, l.attempts))).collect();
            prop_assert_eq!(&kept, &model);
        }
    }
}
