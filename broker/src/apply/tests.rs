//! State is a function of the log alone: how records are grouped, when values go down and are
//! compacted, and where it crashes, makes no difference.

use super::*;
use crate::{
    filter::FilterSpec,
    log::EntryHead,
    metrics::Metrics,
    state::{StateOptions, row::EXPIRED_KEPT_US},
    tail::TailRead,
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

fn anhui() -> Issuer {
    Issuer::new(340_000).expect("a code")
}

/// Apply on its own, with all that sees what it does.
struct Stage {
    state: Arc<State>,
    rings: Arc<TailRings>,
    waiters: Arc<Waiters>,
    metrics: Metrics,
    apply: Apply,
}

impl Stage {
    fn open(dir: &Path) -> Stage {
        let state = State::open(dir, StateOptions::default()).expect("opens");
        let state = Arc::new(state);
        let rings = Arc::new(TailRings::new(state.stored().next, 1 << 20, 1 << 20));
        let metrics = Metrics::new([anhui()]);
        let waiters = Arc::<Waiters>::default();
        let apply = Apply::open(
            Arc::clone(&state),
            Arc::clone(&rings),
            Arc::clone(&waiters),
            metrics.recorder(),
        );
        Stage {
            state,
            rings,
            waiters,
            metrics,
            apply: apply.expect("opens"),
        }
    }

    /// What another platform is sent of what is urgent.
    fn sent(&self) -> Vec<TailEntry> {
        let other = Issuer::new(510_000).expect("a code");
        let all = FilterSpec::from_api(None, other, &[(anhui(), 1), (other, 1)]);
        let all = all.expect("everything");
        match self
            .rings
            .read(Lane::Urgent, Offset::FIRST, &all, usize::MAX)
        {
            TailRead::Entries { entries, .. } => entries,
            TailRead::Behind => panic!("the rings hold all of it"),
        }
    }

    fn dropped(&self, offset: u64) -> Option<Dropped> {
        let row = self.state.get(&keys::exception(Offset(offset)));
        row.expect("reads").map(|row| Dropped::decode(&row))
    }
}

fn open(dir: &Path) -> (Arc<State>, Apply) {
    let Stage { state, apply, .. } = Stage::open(dir);
    (state, apply)
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

#[test]
fn what_is_new_is_sent_counted_and_remembered_and_what_is_not_is_dropped() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut stage = Stage::open(dir.path());
    let group = [
        entry(1, Micros(1), &[(0, 5, false), (1, 5, false)]),
        entry(2, Micros(1), &[(0, 5, false), (1, 4, false)]),
        entry(3, Micros(1), &[]),
        entry(4, Micros(1), &[(0, 6, false), (1, 5, false)]),
    ];
    stage.apply.group(&group).expect("applied");
    let sent = stage.sent();
    let offsets: Vec<u64> = sent.iter().map(|e| e.head.offset.0).collect();
    assert_eq!(offsets, [1, 4], "one has nothing new, and one nothing");
    let committed: Vec<_> = sent.iter().map(|e| e.committed_at).collect();
    assert_eq!(committed, [Some(Micros(1)), Some(Micros(4))]);
    let dropped = [1, 2, 3, 4].map(|offset| stage.dropped(offset));
    assert_eq!(
        dropped,
        [None, Some(Dropped::All), None, Some(Dropped::Some(vec![1]))]
    );
    // A reader of the log is given what a reader of the rings is.
    for (entry, dropped) in group.iter().zip(dropped) {
        let dropped = dropped.unwrap_or(Dropped::Nothing);
        let cut = dropped
            .cut_unread(&entry.head, &entry.record)
            .expect("sound");
        let tail = sent.iter().find(|e| e.head.offset == entry.head.offset);
        assert_eq!(cut, tail.map(|e| e.record.clone()), "{}", entry.head.offset);
    }
    assert_eq!(stage.state.applied().deltas, 3);
    let bucket = keys::highest(anhui(), Kind::HealthCode, Shard(0));
    let highest = stage.state.get(&bucket).expect("reads");
    assert_eq!(highest, Some(6u64.to_be_bytes().to_vec()));
    let said = stage.metrics.registry().scrape().expect("scrape");
    let red = r#"hutong_colours_applied_total{colour="red",platform="340000"} 3"#;
    assert!(said.contains(red), "{said}");
}

#[test]
fn how_many_provenances_a_platform_has_is_known_again_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut stage = Stage::open(dir.path());
    assert_eq!(stage.waiters.provenances.count(anhui()), 0);
    for number in 1..=3 {
        let entry = entry(number, Micros(1), &[(0, number, false)]);
        stage.apply.group(&[entry]).expect("applied");
        let count = stage.waiters.provenances.count(anhui());
        assert_eq!(count, 1, "each brings the same");
    }
    stage.waiters.provenances.add(anhui());
    assert_eq!(stage.waiters.provenances.count(anhui()), 2);
    stage.state.flush().expect("flushes");
    drop(stage);
    let stage = Stage::open(dir.path());
    assert_eq!(stage.waiters.provenances.count(anhui()), 1);
    let left = hutong_proto::limits::PROVENANCES_PER_PLATFORM_MAX - 1;
    assert_eq!(stage.waiters.provenances.left(anhui()), left);
}

#[test]
fn of_a_record_a_few_traces_are_kept_and_the_oldest_commit() {
    let delta = |at, trace| DeltaParts {
        entity: hutong_proto::EntityId([1; 16]),
        revision: Revision(1),
        committed_at: Micros(at),
        expires_at: Micros::ZERO,
        provenance: 0,
        evidence: "",
        trace,
        kind: Kind::HealthCode,
        value: &[],
    };
    let mut applied = Deltas::default();
    applied.count(&delta(50, None));
    assert_eq!(
        (applied.traces.len(), applied.committed_at),
        (0, Some(Micros(50)))
    );
    for (number, at) in (1..=20).zip([70, 60, 40, 80].into_iter().cycle()) {
        let trace = TraceContext::from_slice(&[number; TraceContext::BYTES]);
        applied.count(&delta(at, trace));
    }
    assert_eq!(applied.committed_at, Some(Micros(40)));
    assert_eq!(applied.traces.len(), TRACES_PER_RECORD_MAX);
    assert_eq!(applied.traces[0].trace_id, [1; 16]);
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
