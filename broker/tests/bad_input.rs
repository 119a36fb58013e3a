//! Wrong input gets a clear error that names the place, the rest goes on, and nothing is lost.

mod support;

use hutong_proto::{
    Cursor, LogId, Offset, Value, api,
    api::{publish_request, subscribe_open::Start},
    delta::{Colour, TestOutcome},
};
use prost::Message;
use support::{
    ANHUI, Consumer, Producer, SICHUAN, Seen, api_delta, api_provenance, batch, delta, field, now,
    open, reason, start,
};

const GREEN: Value = Value::HealthCode(Colour::Green);

/// One delta of a batch that is wrong in one way, and what is said about it.
fn wrong_deltas() -> Vec<(&'static str, api::Delta, &'static str, &'static str)> {
    let good = || api_delta(&delta(1, 1, GREEN));
    let with = |change: fn(&mut api::Delta)| {
        let mut delta = good();
        change(&mut delta);
        delta
    };
    use api::delta::Value as V;
    vec![
        (
            "no value",
            with(|d| d.value = None),
            "KIND_UNKNOWN",
            "value",
        ),
        (
            "colour zero",
            with(|d| d.value = Some(V::HealthCode(api::HealthCode { colour: 0 }))),
            "ENUM_UNSPECIFIED",
            "health_code.colour",
        ),
        (
            "a colour that is none",
            with(|d| d.value = Some(V::HealthCode(api::HealthCode { colour: 9 }))),
            "ENUM_UNKNOWN",
            "health_code.colour",
        ),
        (
            "no entity",
            with(|d| d.entity = Default::default()),
            "FIELD_MISSING",
            "entity",
        ),
        (
            "a short entity",
            with(|d| d.entity = vec![1; 15].into()),
            "ENTITY_INVALID",
            "entity",
        ),
        (
            "revision zero",
            with(|d| d.revision = 0),
            "REVISION_ZERO",
            "revision",
        ),
        (
            "a revision that no database can hold",
            with(|d| d.revision = 1 << 63),
            "VALUE_OUT_OF_RANGE",
            "revision",
        ),
        (
            "provenance outside the table",
            with(|d| d.provenance = 7),
            "PROVENANCE_MISSING",
            "provenance",
        ),
        (
            "a time in an hour",
            with(|d| d.committed_at_us += 3_600_000_000),
            "TIME_IN_FUTURE",
            "committed_at_us",
        ),
        (
            "seconds for microseconds",
            with(|d| d.committed_at_us /= 1_000_000),
            "TIME_IMPLAUSIBLE",
            "committed_at_us",
        ),
        (
            "expired before it began",
            with(|d| d.expires_at_us = d.committed_at_us - 1),
            "EXPIRY_BEFORE_COMMIT",
            "expires_at_us",
        ),
        (
            "long evidence",
            with(|d| d.evidence = "x".repeat(129)),
            "STRING_TOO_LONG",
            "evidence",
        ),
        (
            "a large delta",
            with(|d| {
                let path = vec!["x".repeat(1000); 5];
                d.value = Some(V::AreaRisk(api::AreaRisk { level: 1, path }));
            }),
            "DELTA_TOO_LARGE",
            "",
        ),
        (
            "doses out of range",
            with(|d| {
                d.value = Some(V::Vaccination(api::Vaccination {
                    doses: 99,
                    ..Default::default()
                }));
            }),
            "VALUE_OUT_OF_RANGE",
            "vaccination.doses",
        ),
        (
            "an area under another entity",
            with(|d| {
                let path = vec!["安徽省".to_owned(), "泗县".to_owned()];
                d.value = Some(V::AreaRisk(api::AreaRisk { level: 3, path }));
            }),
            "AREA_ENTITY_MISMATCH",
            "entity",
        ),
    ]
}

#[tokio::test]
async fn each_bad_delta_is_refused_by_name_and_the_others_of_its_batch_are_applied() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut consumer =
        Consumer::open(&broker, SICHUAN, open("s", Start::Now(api::StartNow {}))).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    for (i, (what, wrong, expected, field)) in wrong_deltas().into_iter().enumerate() {
        let n = i as u64;
        let mut batch = batch(ANHUI, n + 1, &[]);
        let (before, after) = (delta(100 + n, 1, GREEN), delta(200 + n, 1, GREEN));
        batch.deltas = vec![api_delta(&before), wrong, api_delta(&after)];
        let ack = producer.publish(batch).await.expect("the stream goes on");
        assert_eq!((ack.accepted, ack.refused.len()), (2, 1), "{what}: {ack:?}");
        let refusal = &ack.refused[0];
        let error = refusal.error.as_ref().expect("an error");
        assert_eq!(
            (refusal.index, error.reason.as_str()),
            (1, expected),
            "{what}"
        );
        let path = match field {
            "" => "deltas[1]".to_owned(),
            field => format!("deltas[1].{field}"),
        };
        assert_eq!(error.field, path, "{what}");
        assert!(!error.message.is_empty() && error.domain == "hutong");
        let seen = consumer.deltas(2).await;
        let entities: Vec<_> = seen.iter().map(|d| d.2).collect();
        assert_eq!(entities, [before.entity, after.entity], "{what}");
    }
    broker.shutdown().await;
}

#[tokio::test]
async fn a_revision_that_is_not_newer_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let red = Value::HealthCode(Colour::Red);
    let first = producer
        .publish(batch(ANHUI, 1, &[delta(1, 5, GREEN)]))
        .await
        .expect("ack");
    assert_eq!(first.accepted, 1);
    let deltas = [
        delta(1, 4, red.clone()),
        delta(1, 5, red),
        delta(2, 5, GREEN),
    ];
    let ack = producer
        .publish(batch(ANHUI, 2, &deltas))
        .await
        .expect("ack");
    assert_eq!(ack.accepted, 1);
    let refused: Vec<_> = ack
        .refused
        .iter()
        .map(|r| (r.index, r.error.as_ref().expect("an error").reason.as_str()))
        .collect();
    assert_eq!(
        refused,
        [(0, "REVISION_NOT_NEWER"), (1, "REVISION_NOT_NEWER")]
    );
    let mut query =
        api::query_service_client::QueryServiceClient::new(support::channel(&broker).await);
    let request = api::GetEntityRequest {
        entity: support::entity(1).0.to_vec().into(),
    };
    let request = support::with_identity(request, "auditor/a");
    let registers = query
        .get_entity(request)
        .await
        .expect("an answer")
        .into_inner()
        .registers;
    let kept = registers[0].delta.as_ref().expect("a delta");
    assert_eq!((registers.len(), kept.revision), (1, 5));
    broker.shutdown().await;
}

#[tokio::test]
async fn a_batch_that_is_wrong_as_a_whole_is_refused_and_the_stream_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let one = [delta(1, 1, GREEN)];
    let mut many = batch(ANHUI, 3, &[]);
    many.deltas = vec![api_delta(&one[0]); 20_001];
    let mut large = batch(ANHUI, 4, &[]);
    let evidence = Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at: now(),
    };
    let mut padded = delta(1, 1, evidence);
    padded.evidence = "e".repeat(120);
    large.deltas = vec![api_delta(&padded); 19_999];
    large.provenance = vec![
        api::Provenance {
            reason: "r".repeat(256),
            ..api_provenance()
        };
        4000
    ];
    let mut provenances = batch(ANHUI, 5, &one);
    provenances.provenance = vec![api_provenance(); 1025];
    let cases = [
        (batch(SICHUAN, 1, &one), "ISSUER_NOT_YOURS", "issuer"),
        (batch(ANHUI, 2, &[]), "BATCH_EMPTY", "deltas"),
        (many, "BATCH_TOO_MANY_DELTAS", "deltas"),
        (large, "BATCH_TOO_LARGE", "batch"),
        (provenances, "BATCH_TOO_MANY_PROVENANCES", "provenance"),
    ];
    for (batch, expected, field) in cases {
        let ack = producer.publish(batch).await.expect("the stream goes on");
        let error = ack.error.as_ref().expect("refused as a whole");
        assert_eq!(
            (error.reason.as_str(), error.field.as_str()),
            (expected, field)
        );
        assert_eq!(ack.accepted, 0);
    }
    let ack = producer.publish(batch(ANHUI, 6, &one)).await.expect("ack");
    assert_eq!(ack.accepted, 1, "what follows is not touched");
    broker.shutdown().await;
}

#[tokio::test]
async fn provenance_without_authority_rule_or_reason_refuses_the_deltas_that_name_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let mut batch = batch(ANHUI, 1, &[delta(1, 1, GREEN), delta(2, 1, GREEN)]);
    batch.provenance.push(api::Provenance {
        reason: String::new(),
        ..api_provenance()
    });
    batch.deltas[1].provenance = 1;
    let ack = producer.publish(batch).await.expect("ack");
    let error = ack.refused[0].error.as_ref().expect("an error");
    assert_eq!(ack.accepted, 1);
    assert_eq!(
        (error.reason.as_str(), error.field.as_str()),
        ("FIELD_MISSING", "provenance[1].reason")
    );
    broker.shutdown().await;
}

/// A first message or a batch that ends the stream, and why.
#[tokio::test]
async fn a_stream_that_breaks_the_protocol_ends_with_the_reason() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let good = batch(ANHUI, 1, &[delta(1, 1, GREEN)]);
    let encoded = api::PublishRequest {
        message: Some(publish_request::Message::Batch(good.clone())),
    }
    .encode_to_vec();
    let truncated = encoded[..encoded.len() - 3].to_vec();
    // A fixed sequence that looks random: valid by no stretch.
    let random: Vec<u8> = (0..200u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let gap = api::PublishRequest {
        message: Some(publish_request::Message::Batch(batch(
            ANHUI,
            5,
            &[delta(1, 1, GREEN)],
        ))),
    }
    .encode_to_vec();
    let reopened = api::PublishRequest {
        message: Some(publish_request::Message::Open(api::PublishOpen {
            producer: "p".to_owned(),
            epoch: 2,
        })),
    }
    .encode_to_vec();
    for (what, bytes, expected) in [
        ("truncated", truncated, "MESSAGE_MALFORMED"),
        ("random", random, "MESSAGE_MALFORMED"),
        ("empty", Vec::new(), "MESSAGE_MALFORMED"),
        ("a gap", gap, "SEQUENCE_OUT_OF_ORDER"),
        ("open again", reopened, "OPEN_REPEATED"),
    ] {
        let (mut producer, last) = Producer::open(&broker, ANHUI, "p", 1).await;
        assert_eq!(last, 0, "{what}");
        producer.send_bytes(bytes).await;
        let status = producer.ack().await.expect_err(what);
        let found = reason(&status);
        // A broken frame may also be caught as an unknown field: both name the defect.
        assert!(
            found == expected || (what == "random" && found == "FIELD_UNKNOWN"),
            "{what}: {status:?}"
        );
    }
    let mut producer = Producer::connect(&broker, ANHUI).await;
    producer.send_bytes(encoded).await;
    assert_eq!(
        reason(&producer.ack().await.expect_err("no open")),
        "OPEN_EXPECTED"
    );
    for (name, epoch, expected) in [
        ("", 1, "NAME_INVALID"),
        ("Ä", 1, "NAME_INVALID"),
        ("p", 0, "EPOCH_ZERO"),
        ("p", u64::MAX, "VALUE_OUT_OF_RANGE"),
    ] {
        let mut producer = Producer::connect(&broker, ANHUI).await;
        let status = producer.say_open(name, epoch).await.expect_err(expected);
        assert_eq!(reason(&status), expected);
    }
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let ack = producer.publish(good).await.expect("still served");
    assert_eq!(ack.accepted, 1);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_message_over_the_limit_of_the_transport_is_named_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    producer.send_bytes(vec![0x12; 9 << 20]).await;
    let status = producer.ack().await.expect_err("too large");
    assert_eq!(reason(&status), "BATCH_TOO_LARGE", "{status:?}");
    broker.shutdown().await;
}

#[tokio::test]
async fn a_higher_epoch_fences_the_older_session_for_good() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut old, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    old.publish(batch(ANHUI, 1, &[delta(1, 1, GREEN)]))
        .await
        .expect("ack");
    let (mut new, last) = Producer::open(&broker, ANHUI, "p", 2).await;
    assert_eq!(last, 1, "what the old one published is durable");
    let status = old
        .publish(batch(ANHUI, 2, &[delta(2, 1, GREEN)]))
        .await
        .expect_err("fenced");
    assert_eq!(reason(&status), "PRODUCER_FENCED");
    new.publish(batch(ANHUI, 2, &[delta(3, 1, GREEN)]))
        .await
        .expect("ack");
    let mut again = Producer::connect(&broker, ANHUI).await;
    let status = again.say_open("p", 1).await.expect_err("fenced");
    assert_eq!(
        (reason(&status).as_str(), field(&status).as_str()),
        ("PRODUCER_FENCED", "open.epoch")
    );
    broker.shutdown().await;
}

#[tokio::test]
async fn subscriptions_with_wrong_cursors_or_filters_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let ack = producer
        .publish(batch(ANHUI, 1, &[delta(1, 1, GREEN)]))
        .await
        .expect("ack");
    let at = Offset(ack.positions[0].offset);
    let mut first = Consumer::open(&broker, SICHUAN, open("a", Start::Now(api::StartNow {}))).await;
    let Ok(Seen::Opened { cursor, .. }) = first.next().await else {
        panic!("not opened");
    };
    let filtered = |change: fn(&mut api::Filter)| {
        let mut filter = api::Filter::default();
        change(&mut filter);
        let mut open = open("b", Start::Now(api::StartNow {}));
        open.filter = Some(filter);
        open
    };
    let cursor_open = |cursor: Cursor| open("b", Start::Cursor(cursor.to_api()));
    let other = LogId(cursor.log_id.0 ^ 1);
    let mut no_start = open("b", Start::Now(api::StartNow {}));
    no_start.start = None;
    let mut credit = open("b", Start::Now(api::StartNow {}));
    credit.credit_bytes = 1;
    for (what, open, expected, place) in [
        (
            "another log",
            cursor_open(Cursor::both(other, at)),
            "CURSOR_OF_ANOTHER_LOG",
            "open.cursor.log_id",
        ),
        (
            "the future",
            cursor_open(Cursor::both(cursor.log_id, Offset(99_999))),
            "CURSOR_AHEAD",
            "open.cursor.urgent",
        ),
        (
            "an unknown issuer",
            filtered(|f| f.issuers = vec![999_999]),
            "FILTER_INVALID",
            "filter.issuers[0]",
        ),
        (
            "kind zero",
            filtered(|f| f.kinds = vec![0]),
            "ENUM_UNSPECIFIED",
            "filter.kinds",
        ),
        (
            "lane zero",
            filtered(|f| f.lanes = vec![1, 0]),
            "ENUM_UNSPECIFIED",
            "filter.lanes",
        ),
        (
            "a kind that nobody knows",
            filtered(|f| f.kinds = vec![9]),
            "FILTER_INVALID",
            "filter.kinds[0]",
        ),
        (
            "the control lane",
            filtered(|f| f.lanes = vec![3]),
            "FILTER_INVALID",
            "filter.lanes[0]",
        ),
        ("no start", no_start, "FIELD_MISSING", "open.start"),
        (
            "little credit",
            credit,
            "CREDIT_INVALID",
            "open.credit_bytes",
        ),
    ] {
        let mut consumer = Consumer::open(&broker, SICHUAN, open).await;
        let status = consumer.next().await.expect_err(what);
        assert_eq!(
            (reason(&status).as_str(), field(&status).as_str()),
            (expected, place),
            "{what}"
        );
    }
    let mut admin =
        api::admin_service_client::AdminServiceClient::new(support::channel(&broker).await);
    let trim = |issuer, lane, shard| api::TrimPartitionRequest {
        issuer,
        lane,
        shard,
        before_offset: 1,
    };
    for (request, expected, place) in [
        (trim(999_999, 1, 0), "PARTITION_UNKNOWN", "issuer"),
        (trim(ANHUI, 0, 0), "ENUM_UNSPECIFIED", "lane"),
        (trim(ANHUI, 3, 0), "PARTITION_UNKNOWN", "lane"),
        (trim(ANHUI, 1, 5), "PARTITION_UNKNOWN", "shard"),
    ] {
        let request = support::with_identity(request, "operator/o");
        let status = admin.trim_partition(request).await.expect_err("unknown");
        assert_eq!(
            (reason(&status).as_str(), field(&status).as_str()),
            (expected, place)
        );
    }
    let mut query =
        api::query_service_client::QueryServiceClient::new(support::channel(&broker).await);
    for (kind, expected) in [(0, "ENUM_UNSPECIFIED"), (9, "ENUM_UNKNOWN")] {
        let request = api::TraceRequest {
            entity: vec![7; 16].into(),
            issuer: ANHUI,
            kind,
            revision: 0,
        };
        let request = support::with_identity(request, "operator/o");
        let status = query.trace(request).await.expect_err("no kind");
        assert_eq!(
            (reason(&status).as_str(), field(&status).as_str()),
            (expected, "kind")
        );
    }
    broker.shutdown().await;
}
