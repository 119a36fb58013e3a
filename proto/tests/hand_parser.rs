//! The parser that reads in place against the generated one: what both understand they understand alike,
//! what ours writes the other reads, and no bytes whatever make it panic.

use hutong_proto::{
    EntityId, Epoch, Issuer, Kind, Lane, Micros, Offset, Partition, Provenance, Reason, Refusal,
    Revision, Sequence, Shard, api,
    batch::{BatchView, DeltaView, ProvenanceView},
    delta::{Colour, Delta, RiskLevel, TestOutcome, Value},
    limits,
    record::{self, RecordBuilder, RecordHeader, RecordView},
};
use proptest::{collection::vec, option, prelude::*, sample::Index};
use prost::Message;
use std::sync::Arc;

fn api_value() -> impl Strategy<Value = api::delta::Value> {
    use api::delta::Value;
    let time = any::<u64>();
    prop_oneof![
        (-1..6i32).prop_map(|colour| Value::HealthCode(api::HealthCode { colour })),
        (-1..6i32, time).prop_map(|(outcome, sampled_at_us)| {
            Value::TestResult(api::TestResult {
                outcome,
                sampled_at_us,
            })
        }),
        (0..25u32, ".{0,12}", time).prop_map(|(doses, product, vaccinated_at_us)| {
            Value::Vaccination(api::Vaccination {
                doses,
                product,
                vaccinated_at_us,
            })
        }),
        (-1..7i32, vec("[区a\u{7}]{0,6}", 0..8))
            .prop_map(|(level, path)| Value::AreaRisk(api::AreaRisk { level, path })),
    ]
}

fn api_provenance() -> impl Strategy<Value = api::Provenance> {
    ("[a-z]{0,70}", "[A-Z]{0,3}", 0..3u32, ".{0,20}").prop_map(
        |(authority, rule_id, rule_version, reason)| api::Provenance {
            authority,
            rule_id,
            rule_version,
            reason,
        },
    )
}

fn api_delta() -> impl Strategy<Value = api::Delta> {
    (
        prop_oneof![4 => vec(any::<u8>(), 16), 1 => vec(any::<u8>(), 0..20)],
        prop_oneof![8 => 1..=limits::REVISION_MAX, 1 => Just(0), 1 => any::<u64>()],
        any::<u64>(),
        any::<u64>(),
        any::<u32>(),
        ".{0,20}",
        option::weighted(0.9, api_value()),
    )
        .prop_map(
            |(entity, revision, committed_at_us, expires_at_us, provenance, evidence, value)| {
                api::Delta {
                    entity: entity.into(),
                    revision,
                    committed_at_us,
                    expires_at_us,
                    provenance,
                    evidence,
                    trace: Vec::new().into(),
                    value,
                }
            },
        )
}

fn api_batch() -> impl Strategy<Value = api::PublishBatch> {
    (
        any::<u64>(),
        any::<u32>(),
        vec(api_provenance(), 0..4),
        vec(api_delta(), 0..6),
    )
        .prop_map(|(sequence, issuer, provenance, deltas)| api::PublishBatch {
            sequence,
            issuer,
            provenance,
            deltas,
        })
}

/// Written anew, from the definition of the messages: is this delta well formed?
fn expected(delta: &api::Delta) -> Result<(), Reason> {
    use api::delta::Value;
    let known = |number: i32, max: i32| match number {
        0 => Err(Reason::EnumUnspecified),
        n if (1..=max).contains(&n) => Ok(()),
        _ => Err(Reason::EnumUnknown),
    };
    // In the order of the fields, as they are read.
    if !delta.entity.is_empty() && delta.entity.len() != 16 {
        return Err(Reason::EntityInvalid);
    }
    match &delta.value {
        None => {}
        Some(Value::HealthCode(v)) => known(v.colour, 3)?,
        Some(Value::TestResult(v)) => known(v.outcome, 3)?,
        Some(Value::Vaccination(v)) if v.doses == 0 || v.doses > limits::DOSES_MAX => {
            return Err(Reason::ValueOutOfRange);
        }
        Some(Value::Vaccination(_)) => {}
        Some(Value::AreaRisk(v)) => {
            let bad = |part: &String| part.is_empty() || part.contains('\u{7}');
            if v.path.is_empty() || v.path.len() > limits::PATH_PARTS_MAX || v.path.iter().any(bad)
            {
                return Err(Reason::PathInvalid);
            }
            known(v.level, 4)?;
        }
    }
    if delta.entity.is_empty() {
        return Err(Reason::FieldMissing);
    }
    if delta.entity.iter().all(|b| *b == 0) {
        return Err(Reason::EntityInvalid);
    }
    if delta.revision == 0 {
        return Err(Reason::RevisionZero);
    }
    if delta.revision > limits::REVISION_MAX {
        return Err(Reason::ValueOutOfRange);
    }
    if delta.value.is_none() {
        return Err(Reason::KindUnknown);
    }
    Ok(())
}

/// What was read, encoded again by our side and decoded by the other.
fn back(view: &DeltaView<'_>) -> api::Delta {
    let owned = view.to_owned(Arc::new(Provenance {
        authority: String::new(),
        rule_id: String::new(),
        rule_version: 0,
        reason: String::new(),
    }));
    let mut bytes = Vec::new();
    owned.encode(view.provenance, &mut bytes);
    api::Delta::decode(bytes.as_slice()).expect("our own encoding")
}

fn delta() -> impl Strategy<Value = Delta> {
    let value = prop_oneof![
        proptest::sample::select(Colour::ALL).prop_map(Value::HealthCode),
        (proptest::sample::select(TestOutcome::ALL), any::<u64>()).prop_map(|(outcome, at)| {
            Value::TestResult {
                outcome,
                sampled_at: Micros(at),
            }
        }),
        (1..=limits::DOSES_MAX, ".{0,12}", any::<u64>()).prop_map(|(doses, product, at)| {
            Value::Vaccination {
                doses,
                product,
                vaccinated_at: Micros(at),
            }
        }),
        (
            proptest::sample::select(RiskLevel::ALL),
            vec("[省市县]{1,9}", 1..=limits::PATH_PARTS_MAX)
        )
            .prop_map(|(level, path)| Value::AreaRisk { level, path }),
    ];
    (
        proptest::array::uniform16(1..255u8),
        1..=limits::REVISION_MAX,
        any::<[u64; 2]>(),
        ".{0,20}",
        value,
    )
        .prop_map(|(entity, revision, times, evidence, value)| Delta {
            entity: EntityId(entity),
            revision: Revision(revision),
            committed_at: Micros(times[0]),
            expires_at: Micros(times[1]),
            evidence,
            provenance: Arc::new(Provenance {
                authority: "CDC".to_owned(),
                rule_id: "R".to_owned(),
                rule_version: 1,
                reason: "r".to_owned(),
            }),
            value,
        })
}

/// Everything that can be asked of bytes that came from somewhere.
fn read_all(bytes: &[u8]) -> Result<usize, Refusal> {
    let mut read = 0;
    if let Ok(batch) = BatchView::parse(bytes) {
        for i in 0..batch.deltas.len() {
            read += usize::from(batch.delta(i).is_ok());
        }
        for i in 0..batch.provenance.len() {
            read += usize::from(batch.provenance(i).is_ok());
        }
    }
    if let Ok(record) = RecordView::parse(bytes) {
        for i in 0..record.deltas.len() {
            read += usize::from(record.delta(i).is_ok());
        }
        read += usize::from(record.provenance(0).is_ok());
        RecordView::parse(&record.retain(|i| i % 2 == 0))?;
    }
    read += usize::from(DeltaView::parse(bytes).is_ok());
    read += usize::from(ProvenanceView::parse(bytes).is_ok());
    read += record::read_delivery(bytes).map_or(0, |d| d.map_or(0, |d| d.len()));
    Ok(read)
}

/// A varint with so many bytes more than it needs.
fn number(mut n: u64, longer: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    for _ in 0..longer.min(10 - out.len()) {
        *out.last_mut().expect("a byte") |= 0x80;
        out.push(0);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_delta_means_the_same_to_both_or_is_refused_for_the_right_reason(delta in api_delta()) {
        let bytes = delta.encode_to_vec();
        match (DeltaView::parse(&bytes), expected(&delta)) {
            (Ok(view), Ok(())) => prop_assert_eq!(back(&view), delta),
            (Err(refusal), Err(reason)) => prop_assert_eq!(refusal.reason, reason),
            (ours, theirs) => prop_assert!(false, "{ours:?}, expected {theirs:?}"),
        }
    }

    #[test]
    fn a_batch_has_the_same_outline_for_both(batch in api_batch()) {
        let bytes = batch.encode_to_vec();
        match BatchView::parse(&bytes) {
            Ok(view) => {
                prop_assert_eq!(view.sequence, Sequence(batch.sequence));
                prop_assert_eq!(view.issuer, batch.issuer);
                prop_assert_eq!(view.deltas.len(), batch.deltas.len());
                prop_assert_eq!(view.provenance.len(), batch.provenance.len());
                for (i, delta) in batch.deltas.iter().enumerate() {
                    let ours = view.delta(i).map(|d| back(&d)).map_err(|r| r.reason);
                    prop_assert_eq!(ours, expected(delta).map(|()| delta.clone()));
                }
                for (i, entry) in batch.provenance.iter().enumerate() {
                    let ours = view.provenance(i).map(|p| p.to_owned());
                    let whole = !entry.authority.is_empty()
                        && entry.authority.len() <= limits::AUTHORITY_BYTES_MAX
                        && !entry.rule_id.is_empty()
                        && entry.rule_version > 0
                        && !entry.reason.is_empty();
                    prop_assert_eq!(ours.is_ok(), whole, "{:?}", entry);
                    if let Ok(ours) = ours {
                        prop_assert_eq!(ours.encode(), entry.encode_to_vec());
                    }
                }
            }
            Err(refusal) => {
                prop_assert_eq!(refusal.reason, Reason::BatchEmpty);
                prop_assert!(batch.deltas.is_empty());
            }
        }
        if batch.sequence != 0 {
            prop_assert_eq!(BatchView::sequence_of(&bytes), Some(Sequence(batch.sequence)));
        }
    }

    /// A number may be written with more bytes than it needs. It is the same number, wherever it stands.
    #[test]
    fn numbers_that_are_longer_than_needed_mean_the_same_to_both(
        delta in delta(),
        outcome in 1..=3u8,
        longer in proptest::array::uniform6(0..3usize),
    ) {
        let mut value = number(0x08, longer[0]);
        value.extend(number(u64::from(outcome), longer[1]));
        value.extend(number(0x10, longer[2]));
        value.extend(number(delta.committed_at.0, longer[3]));
        let mut bytes = Vec::new();
        delta.encode(0, &mut bytes);
        let value_bytes = delta.value.encode().len();
        bytes.truncate(bytes.len() - value_bytes - if value_bytes < 0x80 { 2 } else { 3 });
        bytes.push(11 << 3 | 2);
        bytes.extend(number(value.len() as u64, longer[4]));
        bytes.extend(value);
        let mut batch = number(10 << 3 | 2, longer[5]);
        batch.extend(number(bytes.len() as u64, longer[0]));
        batch.extend(bytes);
        let theirs = api::PublishBatch::decode(batch.as_slice()).expect("generated code reads it");
        let ours = BatchView::parse(&batch).expect("an outline");
        prop_assert_eq!(ours.deltas.len(), theirs.deltas.len());
        let ours = ours.delta(0).map(|view| back(&view)).map_err(|refusal| refusal.reason);
        prop_assert_eq!(ours, expected(&theirs.deltas[0]).map(|()| theirs.deltas[0].clone()));
        let record = RecordView::parse(&batch);
        prop_assert!(record.is_err(), "a record says where it belongs");
    }

    #[test]
    fn records_and_deliveries_are_read_by_both(
        deltas in vec(delta(), 1..5),
        numbers in any::<[u32; 4]>(),
        offset in any::<u64>(),
        keep in any::<u8>(),
    ) {
        let header = RecordHeader {
            partition: Partition {
                issuer: Issuer::new(340_000).expect("a code"),
                lane: Lane::Bulk,
                shard: Shard(numbers[0] % 64),
            },
            producer: "areas",
            epoch: Epoch(u64::from(numbers[1])),
            sequence: Sequence(u64::from(numbers[2])),
            epoch_base: Sequence(u64::from(numbers[3])),
            parts: 1,
        };
        let mut batch = api::PublishBatch::default();
        for delta in &deltas {
            let mut bytes = Vec::new();
            delta.encode(0, &mut bytes);
            batch.deltas.push(api::Delta::decode(bytes.as_slice()).expect("our own encoding"));
        }
        batch.provenance.push(
            api::Provenance::decode(deltas[0].provenance.encode().as_slice()).expect("ours"),
        );
        // The bytes move from the batch to the record as they are.
        let tagged = batch.encode_to_vec();
        let mut builder = RecordBuilder::new(&header, 0);
        builder.fields(&tagged);
        let bytes = builder.finish();
        let theirs = api::Record::decode(bytes.as_ref()).expect("generated code reads it");
        prop_assert_eq!(&theirs.deltas, &batch.deltas);
        prop_assert_eq!(&theirs.provenance, &batch.provenance);
        prop_assert_eq!((theirs.issuer, theirs.shard), (340_000, numbers[0] % 64));
        let ours = RecordView::parse(&bytes).expect("valid");
        prop_assert_eq!(ours.header, header);
        for (i, delta) in deltas.iter().enumerate() {
            let read = ours.delta(i).expect("valid");
            prop_assert_eq!(&read.to_owned(Arc::clone(&delta.provenance)), delta);
        }
        let cut = ours.retain(|i| keep & (1 << i) != 0);
        let cut = api::Record::decode(cut.as_ref()).expect("generated code reads it");
        let kept: Vec<_> = (0..deltas.len())
            .filter(|i| keep & (1 << i) != 0)
            .map(|i| batch.deltas[i].clone())
            .collect();
        prop_assert_eq!(cut.deltas, kept);

        let head = record::logged_head(Offset(offset), Micros(7), bytes.len());
        let pieces = vec![head.clone(), bytes.clone(), head, bytes.clone()];
        let message = record::delivery(pieces).to_bytes();
        let response = api::SubscribeResponse::decode(message.clone()).expect("generated code");
        let Some(api::subscribe_response::Message::Records(records)) = response.message else {
            return Err(TestCaseError::fail("records expected"));
        };
        prop_assert_eq!(records.records.len(), 2);
        prop_assert_eq!(records.records[1].record.as_ref(), Some(&theirs));
        prop_assert_eq!(records.records[1].offset, offset);
        let read = record::read_delivery(&message).expect("valid").expect("records");
        prop_assert_eq!(read[1].record().expect("plain"), bytes.as_ref());
        // Packed, if it becomes smaller by it.
        if let Some(packed) = record::encode_logged_lz4(Offset(offset), Micros(7), &bytes) {
            let message = record::delivery(vec![packed]).to_bytes();
            let read = record::read_delivery(&message).expect("valid").expect("records");
            prop_assert_eq!(read[0].record().expect("packed"), bytes.as_ref());
            prop_assert_eq!(read[0].offset, Offset(offset));
            let response = api::SubscribeResponse::decode(message).expect("generated code");
            let Some(api::subscribe_response::Message::Records(records)) = response.message else {
                return Err(TestCaseError::fail("records expected"));
            };
            prop_assert_eq!(records.records[0].record_bytes as usize, bytes.len());
            prop_assert!(records.records[0].record.is_none());
        }
    }

    #[test]
    fn damaged_bytes_never_panic(
        batch in api_batch(),
        cut in any::<Index>(),
        flips in vec((any::<Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = batch.encode_to_vec();
        bytes.truncate(cut.index(bytes.len() + 1));
        for (at, by) in flips {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= by;
            }
        }
        prop_assert!(read_all(&bytes).is_ok());
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(read_all(&bytes).is_ok());
    }
}

#[test]
fn a_number_that_stands_twice_is_refused_because_readers_would_differ() {
    let delta = api::Delta {
        entity: vec![1; 16].into(),
        revision: 1,
        ..Default::default()
    };
    let once = api::PublishBatch {
        sequence: 1,
        deltas: vec![delta],
        ..Default::default()
    };
    let again = api::PublishBatch {
        sequence: 2,
        ..Default::default()
    };
    let bytes = [once.encode_to_vec(), again.encode_to_vec()].concat();
    let refusal = BatchView::parse(&bytes).expect_err("refused");
    assert_eq!(
        (refusal.reason, refusal.field.as_str()),
        (Reason::FieldRepeated, "sequence")
    );
}

#[test]
fn every_kind_is_in_the_strategies_above() {
    // A new kind must be added to `api_value`, to `expected` and to `delta`.
    assert_eq!(Kind::ALL.len(), 4);
}
