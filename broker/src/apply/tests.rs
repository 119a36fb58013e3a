//! State is a function of the log alone: how records are grouped, when values go down and are
//! compacted, and where it crashes, makes no difference.

use super::*;
use crate::{
    log::EntryHead,
    metrics::Metrics,
    state::{StateOptions, row::EXPIRED_KEPT_US},
};
use hutong_proto::{
    Epoch, KindSet, Lane, Micros, Offset, Partition, Provenance, RecordHeader, Sequence,
    batch::{DELTA_FIELD, PROVENANCE_FIELD},
    delta::{Colour, Delta, Value},
    record::RecordBuilder,
    wire,
};
use proptest::prelude::*;
use std::path::Path;

const EXPIRES: Micros = Micros(1_000);
const STEP_US: u64 = EXPIRED_KEPT_US / 4;

/// What one record says: of whom, which revision, whether it expires, and whether time went on.
type Said = (u8, u64, bool, bool);

fn entries(said: &[Said]) -> Vec<Entry> {
    let mut durable_at = Micros(EXPIRES.0 + 2 * STEP_US);
    let entry = |(i, (entity, revision, expires, later)): (usize, &Said)| {
        durable_at.0 += u64::from(*later) * STEP_US;
        entry(i as u64 + 1, durable_at, &[(*entity, *revision, *expires)])
    };
    said.iter().enumerate().map(entry).collect()
}

/// A record of these deltas: of whom, which revision, whether it expires.
fn entry(number: u64, durable_at: Micros, deltas: &[(u8, u64, bool)]) -> Entry {
    let partition = Partition {
        issuer: Issuer::new(340_000).expect("a code"),
        lane: Lane::Urgent,
        shard: Shard(0),
    };
    let provenance = Provenance {
        authority: "CDC".to_owned(),
        rule_id: "R".to_owned(),
        rule_version: 1,
        reason: "contact".to_owned(),
    };
    let header = RecordHeader {
        partition,
        producer: "p",
        epoch: Epoch(1),
        sequence: Sequence(number),
        epoch_base: Sequence::NONE,
        parts: 1,
    };
    let mut record = RecordBuilder::new(&header, 256);
    let mut fields = Vec::new();
    wire::put_bytes(&mut fields, PROVENANCE_FIELD, &provenance.encode());
    let provenance = Arc::new(provenance);
    for (entity, revision, expires) in deltas {
        let mut delta = Vec::new();
        Delta {
            entity: hutong_proto::EntityId([*entity + 1; 16]),
            revision: Revision(*revision),
            committed_at: Micros(number),
            expires_at: if *expires { EXPIRES } else { Micros::ZERO },
            evidence: String::new(),
            provenance: Arc::clone(&provenance),
            value: Value::HealthCode(Colour::Red),
        }
        .encode(0, &mut delta);
        wire::put_bytes(&mut fields, DELTA_FIELD, &delta);
    }
    record.fields(&fields);
    Entry {
        head: EntryHead {
            offset: Offset(number),
            partition,
            ordinal: number,
            durable_at,
            kinds: KindSet::ALL,
            deltas: deltas.len() as u32,
        },
        record: record.finish(),
    }
}

fn open(dir: &Path) -> (Arc<State>, Apply) {
    let state = State::open(dir, StateOptions::default()).expect("opens");
    let state = Arc::new(state);
    let rings = TailRings::new(state.stored().next, 1 << 20, 1 << 20);
    let metrics = Metrics::new([]).recorder();
    let waiters = Arc::default();
    let apply = Apply::open(Arc::clone(&state), Arc::new(rings), waiters, metrics);
    (state, apply.expect("opens"))
}

/// Everything that a reader of the state, or of the log beside it, can tell.
fn effect(state: &State) -> (Vec<(RegisterKey, Revision, Offset)>, Vec<u64>, Applied) {
    let registers = state.with_snapshot(|rows, _| {
        let mut all = Vec::new();
        while let Some((key, row)) = rows.next_row().expect("reads") {
            all.push((key, row.revision, row.offset));
        }
        all
    });
    let next = state.applied().next;
    let dropped = state
        .scan_range(&keys::exception(Offset::NONE), &keys::exception(next))
        .expect("scans")
        .iter()
        .map(|(key, _)| keys::decode_exception(key).expect("its key").0)
        .collect();
    (registers.expect("a snapshot"), dropped, state.applied())
}

#[derive(Clone, Copy, Debug)]
enum After {
    Nothing,
    Flush,
    Compact,
    Crash,
}

fn after() -> impl Strategy<Value = After> {
    prop_oneof![
        3 => Just(After::Nothing),
        1 => Just(After::Flush),
        1 => Just(After::Compact),
        1 => Just(After::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn within_a_record_the_highest_revision_stays_and_what_came_after_it_is_dropped(
        deltas in proptest::collection::vec((0..4u8, 1..40u64), 1..200),
    ) {
        let dir = tempfile::tempdir().expect("a folder");
        let (state, mut apply) = open(dir.path());
        let said: Vec<_> = deltas.iter().map(|(entity, revision)| (*entity, *revision, false)).collect();
        apply.group(&[entry(1, Micros(1), &said)]).expect("applied");
        let (mut highest, mut stale) = (BTreeMap::new(), Vec::new());
        for (i, (entity, revision)) in deltas.iter().enumerate() {
            let known = highest.entry(*entity).or_insert(0);
            match revision > known {
                true => *known = *revision,
                false => stale.push(i as u32),
            }
        }
        let registers = effect(&state).0;
        let kept: Vec<_> = registers.iter().map(|(key, r, _)| (key.entity.0[0] - 1, r.0)).collect();
        prop_assert_eq!(kept, highest.into_iter().collect::<Vec<_>>());
        let dropped = state.get(&keys::exception(Offset(1))).expect("reads");
        let dropped = dropped.map_or(Dropped::Nothing, |row| Dropped::decode(&row));
        let expected = if stale.is_empty() { Dropped::Nothing } else { Dropped::Some(stale) };
        prop_assert_eq!(dropped, expected);
    }

    #[test]
    fn groups_flushes_compactions_and_crashes_make_no_difference(
        said in proptest::collection::vec((0..2u8, 1..4u64, any::<bool>(), any::<bool>()), 1..24),
        groups in proptest::collection::vec((1..6usize, after()), 24),
    ) {
        let entries = entries(&said);
        let plain = tempfile::tempdir().expect("a folder");
        let (expected, mut apply) = open(plain.path());
        for entry in &entries {
            apply.group(std::slice::from_ref(entry)).expect("applied");
        }

        let dir = tempfile::tempdir().expect("a folder");
        let (mut state, mut apply) = open(dir.path());
        let mut groups = groups.into_iter();
        loop {
            let from = (state.applied().next.0 - 1) as usize;
            // Without ends everything at once, and no crash takes it back.
            let (size, after) = groups.next().unwrap_or((entries.len(), After::Nothing));
            let group = &entries[from..entries.len().min(from + size)];
            if group.is_empty() {
                break;
            }
            apply.group(group).expect("applied");
            match after {
                After::Nothing => {}
                After::Flush => state.flush().expect("flushes"),
                After::Compact => state.compact().expect("merges"),
                After::Crash => {
                    drop(apply);
                    drop(state);
                    (state, apply) = open(dir.path());
                }
            }
        }
        prop_assert_eq!(effect(&state), effect(&expected));
    }
}
