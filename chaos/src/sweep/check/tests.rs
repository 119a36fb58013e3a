//! The checker, given stores and sayings that were bent: what a broken broker would leave.

use super::*;
use crate::sweep::workload::{Voice, work};
use bytes::Bytes;
use hutong_planted_broker::state::{Applied, row::Row};
use hutong_proto::{Kind, Lane};
use std::fs;
use tempfile::TempDir;

/// A workload that was done, and what it was promised.
struct Done {
    dir: TempDir,
    plan: Plan,
    said: Said,
}

impl Done {
    fn new() -> Done {
        let dir = tempfile::tempdir().expect("a folder");
        let (stores, path) = (dir.path().join("stores"), dir.path().join("said"));
        fs::create_dir(&stores).expect("created");
        let plan = Plan::new(5, 300);
        let voice = Voice::open(&path).expect("a file");
        work(&stores, &plan, &voice).expect("works");
        let mut said = Said::default();
        let lines = fs::read_to_string(path).expect("read");
        lines.lines().for_each(|line| said.take(line));
        assert!(said.acked.len() >= plan.records.len(), "all were promised");
        assert!(said.trims.values().any(|(_, done)| *done > Offset::FIRST));
        Done { dir, plan, said }
    }

    /// A copy: the checker goes on in what it is given.
    fn stores(&self) -> TempDir {
        let copy = tempfile::tempdir().expect("a folder");
        copied(&self.dir.path().join("stores"), copy.path());
        copy
    }

    fn checker(&self) -> Checker<'_> {
        Checker {
            plan: &self.plan,
            known: &self.said.acked,
        }
    }

    fn judge(&self, said: &Said) -> Result<Recovered, Violation> {
        self.checker().check(self.stores().path(), said, 1)
    }

    /// The invariant that is broken when something else had been said, and how that is told.
    fn bent(&self, bend: impl FnOnce(&mut Said)) -> (&'static str, String) {
        let mut said = self.said.clone();
        bend(&mut said);
        let found = self.judge(&said).expect_err("bent");
        (found.invariant, found.what)
    }

    /// What is still in the log, with the record that it was said to be.
    fn kept(&self, store: &Store) -> Vec<(Offset, usize)> {
        let entries = entries(store).expect("reads");
        let kept = |(offset, _): &(&Offset, &usize)| entries.contains_key(*offset);
        let kept = self.said.acked.iter().filter(kept);
        kept.map(|(offset, number)| (*offset, *number)).collect()
    }
}

fn copied(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => {
                fs::create_dir(&to).expect("created");
                copied(&entry.path(), &to);
            }
            false => drop(fs::copy(entry.path(), to).expect("copied")),
        }
    }
}

fn opened(dir: &Path) -> Store {
    let mut store = Store::open(dir, Faults::default()).expect("opens");
    store.apply_up_to(store.last()).expect("applied");
    store
}

#[test]
fn what_a_process_says_is_understood_word_by_word() {
    let mut said = Said::default();
    for line in [
        "acked 3 17",
        "acked 4 18",
        "trims 9 12",
        "trims 9 15",
        "trimmed 9 12",
    ] {
        said.take(line);
    }
    assert_eq!(
        said.acked,
        BTreeMap::from([(Offset(17), 3), (Offset(18), 4)])
    );
    assert_eq!(said.trims, BTreeMap::from([(9, (Offset(15), Offset(12)))]));
}

#[test]
fn what_was_done_well_passes_and_what_was_promised_and_is_not_there_does_not() {
    let done = Done::new();
    let recovered = done.judge(&done.said).expect("sound");
    let (kept, end) = {
        let dir = done.stores();
        let store = opened(dir.path());
        (done.kept(&store), store.log.next_offset())
    };
    assert!(kept.len() < done.said.acked.len(), "some were trimmed");
    assert_eq!(recovered.log_records, kept.len() as u64);
    assert!(recovered.registers > 0);

    let of = |number: usize| &done.plan.records[number];
    let (at, first) = kept[0];
    let same_place = |(_, other): &&(Offset, usize)| of(*other).partition == of(first).partition;
    let another = kept
        .iter()
        .filter(same_place)
        .find(|(_, n)| of(*n).record != of(first).record);
    let elsewhere = kept
        .iter()
        .find(|(_, n)| of(*n).partition != of(first).partition);
    for (_, number) in [
        another.expect("another record"),
        elsewhere.expect("another partition"),
    ] {
        let (invariant, what) = done.bent(|said| {
            said.acked.insert(at, *number);
        });
        assert_eq!(invariant, "INV-1", "{what}");
        assert!(what.contains("and holds another one"), "{what}");
    }
    let (invariant, what) = done.bent(|said| {
        said.acked.insert(Offset(end.0 + 5), 0);
    });
    assert_eq!(invariant, "INV-1", "{what}");
    assert!(what.contains("is lost"), "{what}");
}

#[test]
fn the_same_record_in_another_partition_is_another_one() {
    let mut done = Done::new();
    let dir = done.stores();
    let kept = done.kept(&opened(dir.path()));
    let (_, number) = kept[0];
    let from = done.plan.records[number].partition;
    let other = done
        .plan
        .records
        .iter()
        .map(|p| p.partition)
        .find(|p| *p != from);
    done.plan.records[number].partition = other.expect("there are several");
    let found = done.judge(&done.said).expect_err("bent");
    assert_eq!(found.invariant, "INV-1", "{found}");
    assert!(found.what.contains("and holds another one"), "{found}");
}

#[test]
fn what_nobody_published_and_what_is_missing_is_found() {
    let mut done = Done::new();
    let dir = done.stores();
    let kept = done.kept(&opened(dir.path()));
    // Nobody is promised it, so that nothing else is broken.
    let (_, number) = kept[0];
    let acked = done.said.acked.clone();
    let whole = done.plan.records[number].record.clone();
    done.plan.records[number].record = Bytes::from_static(b"another");
    done.said.acked.retain(|_, other| *other != number);
    let found = done.judge(&done.said).expect_err("bent");
    assert_eq!(found.invariant, "INV-2", "{found}");
    done.plan.records[number].record = whole;

    // Of what was trimmed nobody knows what it was.
    done.said.acked = kept.into_iter().collect();
    let found = done.judge(&done.said).expect_err("bent");
    assert_eq!(found.invariant, "INV-3", "{found}");
    assert!(
        found.what.contains("there is no record at offset"),
        "{found}"
    );
    // It is enough if it was said before or after the cut.
    let gone: Vec<_> = acked
        .keys()
        .filter(|at| !done.said.acked.contains_key(at))
        .collect();
    assert!(!gone.is_empty());
    let checker = Checker {
        plan: &done.plan,
        known: &acked,
    };
    checker
        .check(done.stores().path(), &done.said, 1)
        .expect("sound");
}

#[test]
fn a_trim_goes_as_far_as_was_said_and_no_further_than_was_asked_for() {
    let done = Done::new();
    let trimmed = done
        .said
        .trims
        .iter()
        .find(|(_, (_, done))| *done > Offset::FIRST);
    let (number, (begun, end)) = trimmed.map(|(n, trims)| (*n, *trims)).expect("trimmed");
    let sets = |begun, end| {
        done.bent(move |said| {
            said.trims.insert(number, (begun, end));
        })
    };
    let (invariant, what) = sets(Offset(end.0 - 1), Offset::FIRST);
    assert_eq!(invariant, "INV-1", "{what}");
    assert!(what.contains("was asked for"), "{what}");
    let (invariant, what) = sets(Offset(begun.0 + 1), Offset(end.0 + 1));
    assert_eq!(invariant, "INV-3", "{what}");
    assert!(what.contains("and is kept from"), "{what}");
    // In what was not trimmed nothing may be gone.
    let (invariant, what) = done.bent(|said| said.trims.clear());
    assert_eq!(invariant, "INV-1", "{what}");
}

/// What a state that was bent is found to break.
fn judged(bend: impl FnOnce(&Store, &Model, &mut Bend<'_>)) -> Result<(), Violation> {
    let done = Done::new();
    let dir = done.stores();
    let store = opened(dir.path());
    let entries = entries(&store).expect("reads");
    let model = done
        .checker()
        .judge_log(&store, &entries, &done.said, &done.plan.records);
    let model = model.expect("sound");
    let next = store.log.next_offset();
    judge_state(&store, &model, next).expect("sound");
    judge_exceptions(&store, &model).expect("sound");
    let ahead = judge_state(&store, &model, next.next()).expect_err("it is not as far");
    assert_eq!(ahead.invariant, "INV-5", "{ahead}");
    let mut bends = Bend(Vec::new(), Vec::new());
    bend(&store, &model, &mut bends);
    let mut group = store.state.begin().expect("room");
    for (key, row) in &bends.0 {
        let mut bytes = Vec::new();
        row.encode(&mut bytes);
        group.put_register(key, &bytes);
    }
    for (offset, there) in bends.1 {
        match there {
            true => group.put(&keys::exception(offset), &[]),
            false => group.delete(&keys::exception(offset)),
        }
    }
    let applied = group.applied();
    group.commit(Applied {
        next: next.next(),
        ..applied
    });
    judge_state(&store, &model, next.next())?;
    judge_exceptions(&store, &model)
}

/// Rows that state has in the place of its own, and exceptions that it has or has not.
struct Bend<'a>(Vec<(RegisterKey, Row<'a>)>, Vec<(Offset, bool)>);

/// A register of the model, and the row that state should have of it but for what is bent.
fn a_register(model: &Model) -> (RegisterKey, Offset, Arc<hutong_proto::Delta>) {
    let registers = model.registers_below(Offset(u64::MAX), Micros::ZERO);
    let ((entity, kind, issuer), version) = registers.into_iter().next().expect("some");
    let key = RegisterKey {
        entity,
        kind,
        issuer,
    };
    (key, version.offset, version.delta)
}

fn breaks(bend: impl FnOnce(&Store, &Model, &mut Bend<'_>)) -> &'static str {
    judged(bend).expect_err("bent").invariant
}

/// One row of it is written once more, as it is but for what is changed.
fn with_row(change: impl FnOnce(&mut RegisterKey, &mut Row<'_>)) -> Result<(), Violation> {
    judged(|_, model, bends| {
        let (mut key, offset, delta) = a_register(model);
        // Lives as long as the test.
        let value: &'static [u8] = Box::leak(delta.value.encode().into_boxed_slice());
        let evidence: &'static str = Box::leak(delta.evidence.clone().into_boxed_str());
        let mut row = Row {
            revision: delta.revision,
            committed_at: delta.committed_at,
            expires_at: delta.expires_at,
            offset,
            provenance: hutong_planted_broker::state::row::ProvenanceId([0; 16]),
            evidence,
            value,
        };
        change(&mut key, &mut row);
        bends.0.push((key, row));
    })
}

#[test]
fn a_state_that_is_not_what_the_log_makes_of_it_is_found() {
    judged(|_, _, _| {}).expect("nothing was bent");
    with_row(|_, _| {}).expect("the same once more");
    let broken =
        |change: fn(&mut RegisterKey, &mut Row<'_>)| with_row(change).expect_err("bent").invariant;
    assert_eq!(broken(|_, row| row.revision.0 -= 1), "INV-4");
    assert_eq!(broken(|_, row| row.revision.0 += 1), "INV-5");
    assert_eq!(broken(|_, row| row.offset = row.offset.next()), "INV-5");
    assert_eq!(broken(|_, row| row.value = &[]), "INV-5");
    assert_eq!(broken(|_, row| row.evidence = "bent"), "INV-5");
    assert_eq!(broken(|key, _| key.entity.0 = [0xee; 16]), "INV-2");
    assert_eq!(broken(|key, _| key.kind = Kind::AreaRisk), "INV-2");
}

#[test]
fn an_exception_too_many_or_too_few_is_found() {
    let of = |model: &Model, dropped: bool| {
        let mut effects = model.effects(Offset::FIRST, Offset(u64::MAX));
        let wanted = effects.find(|(_, effect)| {
            effect.partition.lane != Lane::Control
                && (effect.fresh.len() < effect.deltas) == dropped
        });
        wanted.expect("one").0
    };
    let too_few = breaks(|_, model, bends| bends.1.push((of(model, true), false)));
    assert_eq!(too_few, "INV-5");
    let too_many = breaks(|_, model, bends| bends.1.push((of(model, false), true)));
    assert_eq!(too_many, "INV-5");
}

#[test]
fn what_is_written_after_a_recovery_is_promised_like_all_else() {
    let done = Done::new();
    let dir = done.stores();
    let mut store = opened(dir.path());
    let (all, end) = (afterwards(1), store.log.next_offset());
    let acked = append(&mut store, &all, 0..all.len()).expect("taken");
    assert_eq!(acked, [(end, 0), (end.next(), 1)]);
}
