//! A session without a connection, beside a log and an apply that go on only when the test says so.

use super::*;
use crate::{
    access::Access,
    apply::{
        Apply,
        waiters::Waiters,
        ways::{Way, Ways},
    },
    ingress::{
        outbox::{Frames, outbox},
        queue::{Queues, Room},
        registry::Producers,
    },
    log::{
        Log, Tail,
        faults::{Faults, SyncFault},
        memory::MemoryLog,
    },
    metrics::Metrics,
    overload::{Overload, Policy},
    state::{State, StateOptions},
    tail::TailRings,
};
use axum::body::Body;
use futures_util::{FutureExt, StreamExt};
use hutong_proto::{
    EntityId, LogId, Micros, Offset, Partition, Provenance, Revision, Shard, Value,
    delta::{Colour, Delta, TestOutcome},
    frame::FrameCodec,
};
use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

const NOW: Micros = Micros(1_700_000_000_000_000);
const QUEUE_BYTES: usize = 1 << 20;

struct Bench {
    ingress: Ingress,
    /// Microseconds since [`NOW`].
    passed: Arc<AtomicU64>,
    apply: Apply,
    tail: Box<dyn Tail>,
    faults: Faults,
    _dir: TempDir,
}

fn anhui() -> Issuer {
    Issuer::new(340_000).expect("a code")
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().expect("a folder");
        let state = State::open(dir.path(), StateOptions::default()).expect("opens");
        let state = Arc::new(state);
        let passed = Arc::new(AtomicU64::new(0));
        let clock: crate::clock::Clock = {
            let passed = Arc::clone(&passed);
            Arc::new(move || Micros(NOW.0 + passed.load(Ordering::Relaxed)))
        };
        let faults = Faults::default();
        let log = MemoryLog::new(LogId(7), Arc::clone(&clock), faults.clone());
        let tail = log.tail(Offset::FIRST).expect("a tail");
        let metrics = Arc::new(Metrics::new([anhui()]));
        let platforms = [anhui()].into_iter();
        let ways = Arc::new(Ways::new(platforms, Offset::FIRST, Arc::clone(&clock)));
        let waiters = Arc::new(Waiters::telling(ways));
        let apply = Apply::open(
            Arc::clone(&state),
            Arc::new(TailRings::new(Offset::FIRST, QUEUE_BYTES, QUEUE_BYTES)),
            Arc::clone(&waiters),
            metrics.recorder(),
        );
        let policy = Policy {
            give_way: Vec::new(),
            delay: Duration::from_secs(1),
            floor_bytes_per_s: 1 << 20,
        };
        let ingress = Ingress {
            access: Access::trial([anhui()]),
            log_id: log.id(),
            log: Arc::new(log),
            state,
            waiters,
            producers: Arc::new(Producers::default()),
            queues: Arc::new(Queues::new(QUEUE_BYTES, QUEUE_BYTES, &HashMap::new())),
            overload: Arc::new(Overload::new(policy)),
            shards: Arc::new(HashMap::new()),
            metrics,
            clock,
            stall: Duration::from_secs(30),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
        };
        Bench {
            ingress,
            passed,
            apply: apply.expect("opens"),
            tail,
            faults,
            _dir: dir,
        }
    }

    async fn session(&self) -> (Session, Opened, Frames) {
        let (out, frames) = outbox();
        let none = HashSet::new();
        let claim = self.ingress.producers.claim(anhui(), "p", Epoch(1), &none);
        let opened = Opened {
            producer: "p".into(),
            epoch: Epoch(1),
            base: Sequence::NONE,
            claim: claim.await.expect("free"),
        };
        (
            Session::new(self.ingress.clone(), anhui(), out),
            opened,
            frames,
        )
    }

    /// Applies what was appended since the last time.
    fn apply(&mut self) {
        let entries = self.tail.next().expect("something was appended");
        self.apply.group(&entries).expect("applies");
    }

    /// Bytes of room in use: urgent, bulk.
    fn room(&self) -> [usize; 2] {
        self.ingress.queues.bytes()
    }

    async fn all_bulk_room(&self) -> Room {
        let other = Issuer::new(510_000).expect("a code");
        self.ingress
            .queues
            .room(other, Lane::Bulk, QUEUE_BYTES)
            .await
    }
}

fn batch(sequence: u64, values: &[Value]) -> Bytes {
    let provenance = Provenance {
        authority: "CDC".to_owned(),
        rule_id: "R".to_owned(),
        rule_version: 1,
        reason: "contact".to_owned(),
    };
    let delta = |(n, value): (usize, &Value)| {
        let mut bytes = Vec::new();
        Delta {
            entity: EntityId([n as u8 + 1; 16]),
            revision: Revision(sequence),
            committed_at: NOW,
            expires_at: Micros::ZERO,
            evidence: String::new(),
            provenance: Arc::new(provenance.clone()),
            value: value.clone(),
        }
        .encode(0, &mut bytes);
        api::Delta::decode(bytes.as_slice()).expect("our own encoding")
    };
    let batch = api::PublishBatch {
        sequence,
        issuer: anhui().code(),
        provenance: vec![
            api::Provenance::decode(provenance.encode().as_slice()).expect("our own encoding"),
        ],
        deltas: values.iter().enumerate().map(delta).collect(),
    };
    batch.encode_to_vec().into()
}

fn mixed(sequence: u64) -> Bytes {
    let negative = Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at: NOW,
    };
    batch(sequence, &[Value::HealthCode(Colour::Red), negative])
}

#[tokio::test]
async fn a_platform_that_makes_up_a_reason_for_each_case_is_told_so_in_the_end() {
    let mut bench = Bench::new();
    let (session, opened, _frames) = bench.session().await;
    let known = session.take(mixed(1), Sequence(1), 1024, &opened).await;
    for _ in 0..2 {
        bench.apply();
    }
    session.ack(known.expect("taken")).await.expect("an ack");
    let provenances = &bench.ingress.waiters.provenances;
    assert_eq!(provenances.count(anhui()), 1, "both parts have the same");
    provenances.set(anhui(), limits::PROVENANCES_PER_PLATFORM_MAX - 1);
    let message = mixed(2);
    let mut batch = api::PublishBatch::decode(message.as_ref()).expect("our own encoding");
    for n in 1..=2u32 {
        let mut entry = batch.provenance[0].clone();
        entry.reason = format!("case {n}");
        batch.provenance.push(entry);
        let mut delta = batch.deltas[0].clone();
        delta.entity = vec![100 + n as u8; 16].into();
        delta.provenance = n;
        batch.deltas.push(delta);
    }
    let bytes = Bytes::from(batch.encode_to_vec());
    let owed = session.take(bytes, Sequence(2), 1024, &opened).await;
    let refused = owed.expect("taken").refused;
    // What is known goes on, there is room for one more, and the last is one too many.
    assert_eq!(refused.len(), 1, "{refused:?}");
    let (index, refusal) = &refused[0];
    assert_eq!((*index, refusal.reason), (3, Reason::TooManyProvenances));
    assert_eq!(refusal.field, "provenance[2]");
}

/// Room of the urgent lane is everybody's: it must not be held by who waits for bulk.
#[tokio::test]
async fn the_urgent_part_of_a_batch_gives_its_room_back_while_its_bulk_part_waits() {
    let mut bench = Bench::new();
    let (session, opened, _frames) = bench.session().await;
    let full = bench.all_bulk_room().await;
    let taken = session.take(mixed(1), Sequence(1), 1024, &opened);
    tokio::pin!(taken);
    assert!((&mut taken).now_or_never().is_none(), "bulk waits for room");
    assert!(bench.room()[0] > 0);
    bench.apply();
    assert_eq!(bench.room()[0], 0, "the urgent part is applied");
    drop(full);
    let owed = taken.await.expect("taken");
    assert!(bench.room()[1] > 0);
    bench.apply();
    assert_eq!(bench.room(), [0, 0], "nobody has asked for the ack yet");
    let ack = session.ack(owed).await.expect("an ack");
    let ack = api::PublishResponse::decode(ack.frame.0.as_ref()).expect("an ack");
    match ack.message {
        Some(api::publish_response::Message::Ack(ack)) => assert_eq!(ack.accepted, 2),
        other => panic!("{other:?}"),
    }
}

/// What it waits for at the broker is not its way to the broker.
#[tokio::test]
async fn a_batch_has_arrived_when_it_came_and_not_when_it_got_room() {
    const SECOND: u64 = 1_000_000;
    let mut bench = Bench::new();
    let passed = Arc::clone(&bench.passed);
    let later = |seconds: u64| {
        passed.fetch_add(seconds * SECOND, Ordering::Relaxed);
    };
    let (session, opened, _frames) = bench.session().await;
    let full = bench.all_bulk_room().await;
    let taken = session.take(mixed(1), Sequence(1), 1024, &opened);
    tokio::pin!(taken);
    assert!((&mut taken).now_or_never().is_none(), "bulk waits for room");
    let waiting = Instant::now();
    later(1);
    bench.apply();
    later(10);
    drop(full);
    let owed = taken.await.expect("taken");
    assert!(owed.arrived <= waiting, "its ack takes as long as it waits");
    later(2);
    bench.apply();
    let ways = bench.ingress.waiters.ways().expect("kept");
    for (lane, offset, durable, applied) in [(Lane::Urgent, 1, 0, 1), (Lane::Bulk, 2, 11, 13)] {
        let partition = Partition {
            issuer: anhui(),
            lane,
            shard: Shard(0),
        };
        let at = |seconds| Micros(NOW.0 + seconds * SECOND);
        let known = Way {
            arrived_at: Some(at(0)),
            applied_at: Some(at(applied)),
        };
        assert_eq!(ways.of(partition, Offset(offset), at(durable)), known);
    }
}

#[tokio::test]
async fn a_session_that_ends_between_two_parts_holds_room_until_what_it_appended_is_applied() {
    let mut bench = Bench::new();
    let (session, opened, _frames) = bench.session().await;
    let full = bench.all_bulk_room().await;
    {
        let taken = session.take(mixed(1), Sequence(1), 1024, &opened);
        tokio::pin!(taken);
        assert!((&mut taken).now_or_never().is_none());
    }
    assert!(bench.room()[0] > 0, "its urgent part is in the log's queue");
    assert_eq!(bench.ingress.waiters.len(), 1);
    bench.apply();
    assert_eq!(bench.room()[0], 0);
    assert!(bench.ingress.waiters.is_empty());
    drop(full);
    assert_eq!(bench.room()[1], 0);
}

#[tokio::test]
async fn credit_comes_back_when_the_ack_is_taken_and_refusals_wait_for_those_before() {
    let mut bench = Bench::new();
    let (session, opened, mut frames) = bench.session().await;
    let empty = |sequence| {
        let batch = api::PublishBatch {
            sequence,
            issuer: anhui().code(),
            provenance: Vec::new(),
            deltas: vec![api::Delta::default(); limits::BATCH_DELTAS_MAX],
        };
        Bytes::from(batch.encode_to_vec())
    };
    session.out.charge(40_000);
    let owed = session.take(empty(1), Sequence(1), 40_000, &opened).await;
    bench.apply();
    let ack = session.ack(owed.expect("taken")).await.expect("an ack");
    session.out.push(ack).await.expect("room");
    let next = session.take(empty(2), Sequence(2), 40_000, &opened);
    tokio::pin!(next);
    assert!(
        (&mut next).now_or_never().is_none(),
        "the first is not taken"
    );
    assert_eq!(session.out.charge(0), 40_000);
    assert_eq!(bench.room(), [0, 0], "it waits without any room");
    frames.next().await.expect("an ack").expect("no error");
    assert_eq!(session.out.charge(0), 0);
    next.await.expect("taken");
}

/// What a client sends, as the transport gives it.
fn input(body: Body) -> Streaming<Frame> {
    Streaming::new_request(FrameCodec, body, None, None)
}

fn framed(message: api::publish_request::Message) -> Vec<u8> {
    let message = api::PublishRequest {
        message: Some(message),
    };
    let message = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}

fn open_of(epoch: u64) -> Vec<u8> {
    framed(api::publish_request::Message::Open(api::PublishOpen {
        producer: "p".to_owned(),
        epoch,
    }))
}

fn open(epoch: u64) -> Body {
    Body::from(open_of(epoch))
}

/// A client that is told that it is wrong gives up for good; a line that stood still is not its mistake.
#[tokio::test(start_paused = true)]
async fn the_first_message_of_a_stream_that_comes_late_is_a_broken_line_and_not_open_expected() {
    let bench = Bench::new();
    let (session, ..) = bench.session().await;
    let silent = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let late = session.open(&mut input(Body::from_stream(silent))).await;
    let late = late.err().expect("it does not open");
    assert_eq!(late.reason, Reason::SessionTakenOver);
    assert!(late.reason.retryable(), "its client tries again");
    let broken = futures_util::stream::iter([Err::<Bytes, _>(std::io::Error::other("reset"))]);
    let broken = session.open(&mut input(Body::from_stream(broken))).await;
    let broken = broken.err().expect("it does not open");
    assert_eq!(broken.reason, Reason::SessionTakenOver);
    let ended = session.open(&mut input(Body::empty())).await;
    let ended = ended.err().expect("it does not open");
    assert_eq!(ended.reason, Reason::OpenExpected);
}

/// A batch whose sync failed may be there after the restart: until then nobody can say what is durable.
#[tokio::test]
async fn a_broker_whose_log_is_poisoned_opens_no_publish_session() {
    let bench = Bench::new();
    let (session, opened, _frames) = bench.session().await;
    bench.faults.fail_sync(SyncFault::Landed);
    let doubtful = session.take(mixed(1), Sequence(1), 1024, &opened).await;
    let doubtful = session.ack(doubtful.expect("taken")).await;
    assert!(doubtful.is_err(), "nobody knows whether it is durable");
    // The producer begins again, and asks what the broker has.
    drop(opened);
    let refused = session.open(&mut input(open(2))).await;
    let refused = refused.err().expect("it does not open");
    assert_eq!(refused.reason, Reason::LogPoisoned);
    assert!(refused.reason.retryable(), "and asks again");
}

/// What `open` is answered.
async fn answer(frames: &mut Frames) -> api::PublishOpened {
    let frame = frames.next().await.expect("an answer").expect("no error");
    let answer = api::PublishResponse::decode(frame.0.as_ref()).expect("an answer");
    match answer.message {
        Some(api::publish_response::Message::Opened(opened)) => opened,
        other => panic!("{other:?}"),
    }
}

/// A crash forgets who is connected. Whoever was told where its epoch stands must not find, when it comes
/// back, that the process before it was let in again and has taken the next number.
#[tokio::test]
async fn an_epoch_that_was_opened_fences_the_one_before_also_after_a_crash() {
    let mut bench = Bench::new();
    let begin = async |bench: &mut Bench, epoch| {
        let (out, mut frames) = outbox();
        let session = Session::new(bench.ingress.clone(), anhui(), out);
        let mut stream = input(open(epoch));
        let opening = session.open(&mut stream);
        tokio::pin!(opening);
        if let Some(done) = (&mut opening).now_or_never() {
            return done.map(|_| None);
        }
        assert!(
            frames.next().now_or_never().is_none(),
            "nothing is promised before it is durable and applied"
        );
        bench.apply();
        opening.await.expect("opens");
        Ok(Some(answer(&mut frames).await))
    };
    let opened = begin(&mut bench, 2).await.expect("opens");
    assert_eq!(opened.map(|o| o.last_durable_sequence), Some(0));
    // Nobody is connected any more, and the broker that starts next has only log and state.
    bench.ingress.producers = Arc::new(Producers::default());
    let before = begin(&mut bench, 1).await.expect_err("it is fenced");
    assert_eq!(before.reason, Reason::ProducerFenced);
    // The same process again: there is nothing to write.
    let again = begin(&mut bench, 2).await.expect("opens");
    assert!(again.is_none(), "at once");
}

#[tokio::test]
async fn names_that_have_just_begun_count_against_the_limit_beside_those_that_are_known() {
    let producers = Arc::new(Producers::default());
    let known: HashSet<String> = (0..limits::PRODUCERS_PER_PLATFORM_MAX - 2)
        .map(|n| format!("known-{n}"))
        .collect();
    let claim = |name: &'static str| {
        let (producers, known) = (Arc::clone(&producers), &known);
        async move { producers.claim(anhui(), name, Epoch(1), known).await }
    };
    let one = claim("new-1").await.expect("there is room");
    let _two = claim("new-2").await.expect("there is room");
    let _known = claim("known-7").await.expect("it counts already");
    let refused = claim("new-3").await.expect_err("the limit is reached");
    assert_eq!(refused.reason, Reason::TooManyProducers);
    drop(one);
    claim("new-3").await.expect("one that never began is gone");
}

/// A client that opens its session and sends a batch with an urgent and a bulk part.
fn opens_and_sends_mixed() -> Streaming<Frame> {
    let batch = api::PublishBatch::decode(mixed(1)).expect("our own encoding");
    let mut bytes = open_of(1);
    bytes.extend(framed(api::publish_request::Message::Batch(batch)));
    input(Body::from(bytes))
}

/// Bulk that gives way waits with room and is not in the log yet: nobody will ever answer for it.
#[tokio::test]
async fn a_session_that_is_cut_short_while_bulk_gives_way_ends_and_gives_its_room_back() {
    let mut bench = Bench::new();
    let overload = Arc::clone(&bench.ingress.overload);
    overload.set_limit(GiveWay::Bulk, 1.0);
    let first = overload.pass(GiveWay::Bulk, 1 << 20).now_or_never();
    first.expect("the first one passes, and the next ones wait for days");
    let (out, _frames) = outbox();
    let session = Session::new(bench.ingress.clone(), anhui(), out);
    let mut stream = opens_and_sends_mixed();
    let serving = session.serve(&mut stream);
    tokio::pin!(serving);
    assert!((&mut serving).now_or_never().is_none(), "it opens");
    bench.apply();
    assert!((&mut serving).now_or_never().is_none());
    bench.apply();
    assert_eq!(bench.room()[0], 0, "its urgent part is applied");
    assert!(bench.room()[1] > 0, "its bulk part waits");
    let producers = Arc::clone(&bench.ingress.producers);
    let known = HashSet::from(["p".to_owned()]);
    let next = producers.claim(anhui(), "p", Epoch(1), &known);
    tokio::pin!(next);
    assert!((&mut next).now_or_never().is_none());
    let ended = tokio::time::timeout(Duration::from_secs(30), serving).await;
    let ended = ended.expect("nothing to wait for");
    let ended = ended.expect_err("it was taken over");
    assert_eq!(ended.reason, Reason::SessionTakenOver);
    next.now_or_never().expect("at once").expect("free");
    assert_eq!(bench.room(), [0, 0]);
    assert!(bench.ingress.waiters.is_empty());
}

/// What the successor of a session sends may be split otherwise. A record of before must not answer for it.
#[tokio::test]
async fn a_session_that_is_cut_short_between_two_parts_ends_when_the_first_is_settled() {
    let mut bench = Bench::new();
    let full = bench.all_bulk_room().await;
    let (out, _frames) = outbox();
    let session = Session::new(bench.ingress.clone(), anhui(), out);
    let mut stream = opens_and_sends_mixed();
    let serving = session.serve(&mut stream);
    tokio::pin!(serving);
    assert!((&mut serving).now_or_never().is_none(), "it opens");
    bench.apply();
    assert!((&mut serving).now_or_never().is_none());
    assert!(bench.room()[0] > 0, "its urgent part is in the log's queue");
    let producers = Arc::clone(&bench.ingress.producers);
    let known = HashSet::from(["p".to_owned()]);
    let next = producers.claim(anhui(), "p", Epoch(1), &known);
    tokio::pin!(next);
    assert!((&mut next).now_or_never().is_none());
    assert!((&mut serving).now_or_never().is_none(), "it has to end");
    assert!((&mut next).now_or_never().is_none(), "and did not yet");
    bench.apply();
    let ended = serving.await.expect_err("it was taken over");
    assert_eq!(ended.reason, Reason::SessionTakenOver);
    next.await.expect("free");
    drop(full);
}
