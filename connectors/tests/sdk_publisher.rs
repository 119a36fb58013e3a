//! What a producer relies on when it publishes through the SDK: whatever happens to the line and
//! to the broker, each batch is numbered once, sent until it is acknowledged, and answered once.

#[path = "sdk/publisher_ends.rs"]
mod ends;
mod sdk;

use futures_util::FutureExt;
use hutong_connectors::client::{
    Backoff, ClientError, EncodedBatch, Event, Pending, Publisher, PublisherOptions, Receipt,
    Start, Subscriber,
};
use hutong_proto::{
    Delta, Reason, Refusal, Revision, Sequence, Value,
    api::{self, publish_response},
    area,
    delta::RiskLevel,
    limits, wire,
};
use sdk::{
    ANHUI, Random, SICHUAN, endpoint, entity,
    fake::{Batch, Call, FakeBroker},
    line::Line,
    negative, node, publisher, red, reds, soon, subscriber, until,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tonic::Status;

const CREDIT: u64 = 1 << 20;

async fn connect(options: PublisherOptions) -> Publisher {
    let connected = soon("connecting", Publisher::connect(options)).await;
    connected.expect("accepted")
}

/// A publisher, and the fake's end of its stream.
async fn connected(broker: &FakeBroker, options: PublisherOptions) -> (Publisher, Call) {
    let (publisher, call) = tokio::join!(connect(options), broker.producer(0, CREDIT));
    (publisher, call)
}

async fn publish(publisher: &Publisher, deltas: Vec<Delta>) -> Pending {
    let handed_over = soon("publishing", publisher.publish(deltas)).await;
    handed_over.expect("handed over")
}

async fn receipt(pending: Pending) -> Receipt {
    soon("an ack", pending).await.expect("acknowledged")
}

async fn failure(pending: Pending) -> ClientError {
    soon("an answer", pending).await.expect_err("refused")
}

/// How a stream is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    StreamEnds,
    StreamFails,
    ConnectionIsReset,
    BrokerIsAway,
    BrokerDrains,
}

#[tokio::test]
async fn exactly_what_was_not_acknowledged_is_sent_again_in_order() {
    for loss in [
        Loss::StreamEnds,
        Loss::StreamFails,
        Loss::ConnectionIsReset,
        Loss::BrokerIsAway,
        Loss::BrokerDrains,
    ] {
        println!("{loss:?}");
        let broker = FakeBroker::start().await;
        let mut line = Line::to(broker.addr).await;
        let (publisher, mut call) = connected(&broker, publisher(line.addr, 7)).await;
        let mut pending = Vec::new();
        for n in 1..=5 {
            pending.push(publish(&publisher, reds(n * 10, n)).await);
        }
        let mut first = Vec::new();
        for sequence in 1..=5 {
            first.push(call.batch().await);
            assert_eq!(first.last().expect("one").sequence, sequence);
        }
        call.ack(&first[0]).await;
        call.ack(&first[1]).await;
        let mut pending = pending.into_iter();
        for sequence in 1..=2 {
            let receipt = receipt(pending.next().expect("five")).await;
            assert_eq!(receipt.sequence, Sequence(sequence));
            assert!(!receipt.duplicate);
        }
        match loss {
            Loss::StreamEnds => drop(call),
            Loss::StreamFails => call.fail(Status::unavailable("gone")).await,
            Loss::ConnectionIsReset => line.cut(),
            Loss::BrokerIsAway => {
                line.down().await;
                until("the loss is seen", || !publisher.status().connected).await;
                line.up().await;
            }
            Loss::BrokerDrains => call.draining().await,
        }

        // The third was durable, only its ack was lost.
        let mut call = broker.accept().await;
        let open = call.publish_open().await;
        assert_eq!((open.producer.as_str(), open.epoch), ("p", 7));
        assert_eq!(call.identity, format!("platform/{ANHUI}"));
        call.opened(3, CREDIT).await;
        for before in &first[3..] {
            let again = call.batch().await;
            assert_eq!(again.frame, before.frame, "the same bytes");
            call.ack(&again).await;
        }
        let third = receipt(pending.next().expect("five")).await;
        assert_eq!((third.sequence, third.duplicate), (Sequence(3), true));
        for sequence in 4..=5 {
            let receipt = receipt(pending.next().expect("five")).await;
            assert_eq!(receipt.sequence, Sequence(sequence));
            assert!(!receipt.duplicate);
        }
        // The numbers go on without a gap.
        let next = publish(&publisher, reds(900, 1)).await;
        let batch = call.batch().await;
        assert_eq!(batch.sequence, 6);
        call.ack(&batch).await;
        assert_eq!(receipt(next).await.sequence, Sequence(6));
        assert!(publisher.status().reconnects >= 1);
        soon("closing", publisher.close()).await.expect("all done");
    }
}

#[tokio::test]
async fn whatever_is_cut_each_batch_is_in_the_log_once_and_in_order() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let line = Line::to(broker.grpc_addr()).await;
    let mut options = subscriber(broker.grpc_addr());
    options.start = Start::Now;
    let mut receiver = Subscriber::open(options).await.expect("accepted");
    let publisher = connect(publisher(line.addr, 1)).await;
    let mut random = Random(20_220_831);

    const BATCHES: u64 = 400;
    let mut pending = Vec::new();
    let mut cuts = 0;
    for n in 0..BATCHES {
        // Also in the middle of the opening of a stream, and of an ack.
        if !line.cut_is_due() {
            line.cut_after(random.below(400));
            cuts += 1;
        }
        pending.push(publish(&publisher, reds(n * 5, 5)).await);
        if random.below(4) == 0 {
            let receipt = receipt(pending.pop().expect("one")).await;
            assert_eq!(receipt.sequence, Sequence(n + 1));
        }
    }
    for pending in pending {
        receipt(pending).await;
    }
    soon("closing", publisher.close()).await.expect("all done");
    assert!(cuts > 20, "{cuts} cuts");

    let mut arrived = Vec::new();
    while arrived.len() < BATCHES as usize * 5 {
        let event = soon("a record", receiver.next()).await.expect("it goes on");
        if let Event::Records { deltas, .. } = event {
            arrived.extend(deltas.into_iter().map(|d| d.delta.entity));
        }
    }
    let expected: Vec<_> = (0..BATCHES * 5).map(entity).collect();
    assert!(arrived == expected, "in the order of publishing, each once");
    // Nothing comes twice: what is sent next is the next to come.
    let last = connect(sdk::publisher(broker.grpc_addr(), 2)).await;
    let last = receipt(publish(&last, vec![red(1_000_000)]).await).await;
    assert_eq!(last.sequence, Sequence(BATCHES + 1), "without a gap");
    loop {
        let event = soon("a record", receiver.next()).await.expect("it goes on");
        if let Event::Records { deltas, .. } = event {
            assert_eq!(deltas[0].delta.entity, entity(1_000_000));
            break;
        }
    }
}

/// Takes batches as long as some come, checking what is under way.
async fn take_all(call: &mut Call, granted: u64, under_way: &mut Vec<Batch>) {
    loop {
        let next = tokio::time::timeout(sdk::GRACE, call.batch()).await;
        let Ok(batch) = next else { return };
        under_way.push(batch);
        let bytes: u64 = under_way.iter().map(|b| b.charge).sum();
        assert!(
            bytes <= granted || under_way.len() == 1,
            "{bytes} bytes under way, {granted} granted"
        );
    }
}

#[tokio::test]
async fn how_long_batches_wait_for_credit_is_known() {
    let broker = FakeBroker::start().await;
    let (publisher, mut call) = tokio::join!(
        connect(publisher(broker.addr, 1)),
        // Enough for one batch of those that count the least.
        broker.producer(0, 1_024)
    );
    let first = publish(&publisher, reds(0, 1)).await;
    let batch = call.batch().await;
    assert!(!publisher.status().credit_wait.is_waiting());
    assert_eq!(publisher.status().credit_wait.total(), Duration::ZERO);
    let second = publish(&publisher, reds(10, 1)).await;
    until("it waits", || publisher.status().credit_wait.is_waiting()).await;
    let before = publisher.status().credit_wait.total();
    until("the wait grows", || {
        publisher.status().credit_wait.total() > before
    })
    .await;
    call.ack(&batch).await;
    receipt(first).await;
    let batch = call.batch().await;
    until("it is over", || {
        !publisher.status().credit_wait.is_waiting()
    })
    .await;
    let waited = publisher.status().credit_wait.total();
    assert!(waited > before);
    call.ack(&batch).await;
    receipt(second).await;
    assert_eq!(publisher.status().credit_wait.total(), waited);
}

#[tokio::test]
async fn never_more_bytes_are_under_way_than_were_granted() {
    let broker = FakeBroker::start().await;
    let granted = 6_000;
    let (publisher, mut call) = tokio::join!(
        connect(publisher(broker.addr, 1)),
        broker.producer(0, granted)
    );
    let mut pending = Vec::new();
    for n in 0..12 {
        // From one that counts the least to about 5 kB.
        pending.push(publish(&publisher, reds(n * 100, 1 + n * 4)).await);
    }
    until("all were taken", || {
        publisher.status().batches_in_flight == 12
    })
    .await;
    let mut under_way = Vec::new();
    let mut acknowledged = 0;
    while acknowledged < 12 {
        take_all(&mut call, granted, &mut under_way).await;
        assert!(!under_way.is_empty(), "it has credit and sends nothing");
        let batch = under_way.remove(0);
        acknowledged += 1;
        assert_eq!(batch.sequence, acknowledged, "in order");
        call.ack(&batch).await;
    }
    for (i, pending) in pending.into_iter().enumerate() {
        assert_eq!(receipt(pending).await.sequence, Sequence(i as u64 + 1));
    }
}

#[tokio::test]
async fn a_batch_larger_than_all_credit_goes_alone() {
    let broker = FakeBroker::start().await;
    let granted = 2_000;
    let (publisher, mut call) = tokio::join!(
        connect(publisher(broker.addr, 1)),
        broker.producer(0, granted)
    );
    let small = publish(&publisher, reds(0, 1)).await;
    let large = publish(&publisher, reds(100, 100)).await;
    let last = publish(&publisher, reds(300, 1)).await;
    for (sequence, pending) in [(1, small), (2, large), (3, last)] {
        let batch = call.batch().await;
        assert_eq!(batch.sequence, sequence);
        call.hears_nothing().await;
        call.ack(&batch).await;
        assert_eq!(receipt(pending).await.sequence, Sequence(sequence));
    }
}

#[tokio::test]
async fn a_broker_that_gives_less_credit_back_slows_but_never_wedges() {
    let broker = FakeBroker::start().await;
    let (publisher, mut call) = tokio::join!(
        connect(publisher(broker.addr, 1)),
        broker.producer(0, 4_096)
    );
    let mut pending = Vec::new();
    for n in 0..6 {
        pending.push(publish(&publisher, reds(n * 100, 10)).await);
    }
    let mut acknowledged = 0;
    while acknowledged < 6 {
        let batch = call.batch().await;
        acknowledged += 1;
        let mut ack = batch.ack();
        // What is left is too little for a batch, but nothing is under way: so one goes. Then
        // nothing is left.
        ack.credit_bytes = if acknowledged == 5 { 4_096 } else { 1 };
        call.say(publish_response::Message::Ack(ack)).await;
    }
    for pending in pending {
        receipt(pending).await;
    }
}

#[tokio::test]
async fn a_broker_that_drains_again_and_again_is_asked_less_and_less_often() {
    let broker = FakeBroker::start().await;
    let mut options = publisher(broker.addr, 1);
    options.backoff = Backoff {
        first: Duration::from_millis(20),
        max: Duration::from_secs(2),
        jitter_seed: None,
    };
    let (publisher, mut call) = connected(&broker, options).await;
    let pending = publish(&publisher, reds(0, 1)).await;
    call.batch().await;
    for tries in 0..5 {
        let at = Instant::now();
        call.draining().await;
        call = broker.accept().await;
        let waited = at.elapsed();
        let least = Duration::from_millis(20) / 2 * (1 << tries);
        assert!(waited >= least, "try {tries} after {waited:?}");
        call.publish_open().await;
        call.opened(0, CREDIT).await;
        assert_eq!(call.batch().await.sequence, 1);
    }
    assert_eq!(publisher.status().reconnects, 5);
    let last = publisher.status().last_error.expect("one");
    assert!(last.contains("stopping"), "{last}");
    // What comes through ends the waiting.
    let done = api::PublishAck {
        sequence: 1,
        accepted: 1,
        credit_bytes: 1024,
        ..Default::default()
    };
    call.say(publish_response::Message::Ack(done)).await;
    receipt(pending).await;
}

#[tokio::test]
async fn a_new_process_goes_on_after_the_last_durable_batch() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    // Without an epoch each start has a higher one by itself.
    let start = || PublisherOptions::new(endpoint(broker.grpc_addr(), ANHUI), "p");
    let first = connect(start()).await;
    for n in 0..3 {
        receipt(publish(&first, reds(n * 10, 2)).await).await;
    }
    soon("closing", first.close()).await.expect("all done");
    let second = connect(start()).await;
    let receipt = receipt(publish(&second, reds(100, 2)).await).await;
    assert_eq!((receipt.sequence, receipt.accepted), (Sequence(4), 2));
    assert!(!receipt.duplicate);
}

#[tokio::test]
async fn refused_deltas_come_back_with_index_reason_and_field_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let publisher = connect(publisher(broker.grpc_addr(), 1)).await;
    let mut deltas = reds(0, 3);
    deltas.extend([negative(10), red(11), red(12)]);
    deltas[1].revision = Revision(0);
    // Each part is allowed, all together are more than a delta may have.
    deltas[4].value = Value::AreaRisk {
        level: RiskLevel::High,
        path: vec!["x".repeat(limits::PATH_PART_BYTES_MAX); 5],
    };
    let receipt = receipt(publish(&publisher, deltas).await).await;
    assert_eq!(receipt.accepted, 4);
    let refused: Vec<_> = receipt
        .refused
        .iter()
        .map(|r| (r.index, r.info.reason_known, r.info.field.as_str()))
        .collect();
    let expected = [
        (1, Some(Reason::RevisionZero), "deltas[1].revision"),
        (4, Some(Reason::DeltaTooLarge), "deltas[4]"),
    ];
    assert_eq!(refused, expected);
    assert!(receipt.refused.iter().all(|r| !r.info.message.is_empty()));
    assert_eq!(receipt.error, None);
    assert_eq!(receipt.positions.len(), 2, "urgent and bulk");
}

#[tokio::test]
async fn an_ack_that_refuses_each_delta_of_the_largest_batch_arrives() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let publisher = connect(publisher(broker.grpc_addr(), 1)).await;
    let count = limits::BATCH_DELTAS_MAX;
    let mut body = Vec::new();
    let mut encoded = Vec::new();
    for delta in reds(0, count as u64) {
        encoded.clear();
        // Of a table that is not there: the refusal with the longest text.
        delta.encode(u32::MAX, &mut encoded);
        wire::put_bytes(&mut body, 10, &encoded);
    }
    let batch = EncodedBatch {
        body: body.into(),
        deltas: count as u32,
    };
    let pending = publisher.publish_encoded(batch).await.expect("sent");
    let receipt = receipt(pending).await;
    assert_eq!((receipt.accepted, receipt.refused.len()), (0, count));
    assert_eq!(receipt.refused[count - 1].index as usize, count - 1);
    let next = self::receipt(publish(&publisher, reds(0, 1)).await).await;
    assert_eq!((next.sequence, next.accepted), (Sequence(2), 1));
}

#[tokio::test]
async fn a_batch_that_is_refused_as_a_whole_says_so() {
    let broker = FakeBroker::start().await;
    let (publisher, mut call) = connected(&broker, publisher(broker.addr, 1)).await;
    let pending = publish(&publisher, reds(0, 2)).await;
    let mut ack = call.batch().await.ack();
    ack.accepted = 0;
    ack.error = Some(Refusal::new(Reason::IssuerNotYours, "issuer").to_api());
    call.say(publish_response::Message::Ack(ack)).await;
    let receipt = receipt(pending).await;
    let error = receipt.error.expect("refused");
    assert_eq!(error.reason_known, Some(Reason::IssuerNotYours));
    assert_eq!((receipt.accepted, error.field.as_str()), (0, "issuer"));
}

#[tokio::test]
async fn publishing_waits_when_too_much_is_under_way() {
    let broker = FakeBroker::start().await;
    let max = 4;
    let mut options = publisher(broker.addr, 1);
    options.batches_in_flight_max = max;
    let (publisher, mut call) = connected(&broker, options).await;
    let (handed, mut over) = tokio::sync::mpsc::unbounded_channel();
    let producer = publisher.clone();
    let pump = tokio::spawn(async move {
        for n in 0..40 {
            let pending = producer.publish(reds(n * 10, 1)).await;
            handed.send(pending.expect("handed over")).expect("wanted");
        }
    });
    // As many as are under way, and as many again that wait for them.
    let mut pending = Vec::new();
    for _ in 0..2 * max {
        pending.push(soon("room", over.recv()).await.expect("it goes on"));
    }
    let more = tokio::time::timeout(sdk::GRACE, over.recv()).await;
    assert!(more.is_err(), "more than {} handed over", 2 * max);
    assert!(publisher.status().batches_in_flight <= max);
    // Each ack makes room for one.
    for pending in pending {
        let batch = call.batch().await;
        call.ack(&batch).await;
        receipt(pending).await;
        let next = soon("room", over.recv()).await.expect("it goes on");
        drop(next);
    }
    pump.abort();
}

#[tokio::test]
async fn a_window_of_no_batches_is_one_of_one_batch() {
    let broker = FakeBroker::start().await;
    let mut options = publisher(broker.addr, 1);
    options.batches_in_flight_max = 0;
    let (publisher, mut call) = connected(&broker, options).await;
    for sequence in 1..=2 {
        let pending = publish(&publisher, reds(sequence, 1)).await;
        let batch = call.batch().await;
        call.ack(&batch).await;
        assert_eq!(receipt(pending).await.sequence, Sequence(sequence));
    }
}

#[tokio::test]
async fn a_batch_over_a_limit_is_refused_before_it_is_sent() {
    let broker = FakeBroker::start().await;
    let (publisher, mut call) = connected(&broker, publisher(broker.addr, 1)).await;
    let many = reds(0, limits::BATCH_DELTAS_MAX as u64 + 1);
    let mut reasons = reds(0, limits::BATCH_PROVENANCES_MAX as u64 + 1);
    for (i, delta) in reasons.iter_mut().enumerate() {
        let mut provenance = sdk::provenance();
        provenance.reason = format!("reason {i}");
        delta.provenance = Arc::new(provenance);
    }
    let mut wide = reds(0, 15_000);
    for delta in &mut wide {
        delta.value = Value::AreaRisk {
            level: RiskLevel::Low,
            path: vec!["x".repeat(300)],
        };
    }
    for (deltas, what) in [
        (many, "20001 deltas"),
        (reasons, "1025 provenance"),
        (wide, "bytes"),
    ] {
        let error = publisher.publish(deltas).await.expect_err("too large");
        assert!(matches!(error, ClientError::TooLarge { .. }), "{error}");
        assert!(!error.is_passing());
        let text = error.to_string();
        assert!(text.contains(what) && text.contains("split it"), "{text}");
    }
    let encoded = EncodedBatch {
        body: vec![0; limits::BATCH_BYTES_MAX].into(),
        deltas: 1,
    };
    let refused = publisher.publish_encoded(encoded).await;
    assert!(matches!(refused, Err(ClientError::TooLarge { .. })));
    // None of them took a number.
    let pending = publish(&publisher, reds(0, 1)).await;
    let batch = call.batch().await;
    assert_eq!(batch.sequence, 1);
    call.ack(&batch).await;
    receipt(pending).await;
}

#[tokio::test]
async fn the_largest_batch_that_is_sent_is_accepted() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let publisher = connect(publisher(broker.grpc_addr(), 1)).await;
    // Areas with long names, up to the last bytes.
    let mut deltas = Vec::new();
    let mut bytes = 256;
    let mut encoded = Vec::new();
    loop {
        let mut delta = red(0);
        let path = vec![format!("{:0600}", deltas.len())];
        delta.entity = area::entity(path.iter().map(String::as_str));
        delta.value = Value::AreaRisk {
            level: RiskLevel::Low,
            path,
        };
        encoded.clear();
        delta.encode(0, &mut encoded);
        bytes += encoded.len() + 3;
        if bytes > limits::BATCH_BYTES_MAX {
            break;
        }
        deltas.push(delta);
    }
    let batch = EncodedBatch::from_deltas(&deltas).expect("within the limits");
    assert!(batch.body.len() > limits::BATCH_BYTES_MAX - 1024);
    let handed_over = publisher.publish_encoded(batch).await.expect("sent");
    let receipt = receipt(handed_over).await;
    assert_eq!(receipt.accepted as usize, deltas.len());
}

#[tokio::test]
async fn whoever_stops_waiting_loses_nothing_for_the_others() {
    let broker = FakeBroker::start().await;
    let mut options = publisher(broker.addr, 1);
    options.batches_in_flight_max = 2;
    let (publisher, mut call) = connected(&broker, options).await;
    // Batches whose ack nobody awaits, and futures given up while they wait for room.
    let mut kept = Vec::new();
    let mut handed_over = 0;
    let mut given_up = 0;
    while given_up < 20 {
        match publisher.publish(reds(handed_over * 10, 1)).now_or_never() {
            Some(pending) => {
                handed_over += 1;
                let pending = pending.expect("handed over");
                if handed_over % 2 == 0 {
                    kept.push((handed_over, pending));
                }
            }
            None => {
                given_up += 1;
                tokio::task::yield_now().await;
            }
        }
    }
    for sequence in 1..=handed_over {
        let batch = call.batch().await;
        assert_eq!(batch.sequence, sequence);
        call.ack(&batch).await;
    }
    for (sequence, pending) in kept {
        assert_eq!(receipt(pending).await.sequence, Sequence(sequence));
    }
    // What was given up was never sent, and the window is free again.
    for n in 1..=4 {
        let pending = publish(&publisher, reds(500 + n, 1)).await;
        let batch = call.batch().await;
        assert_eq!(batch.sequence, handed_over + n);
        call.ack(&batch).await;
        receipt(pending).await;
    }
}

#[tokio::test]
async fn a_broker_that_is_not_there_yet_is_waited_for() {
    let broker = FakeBroker::start().await;
    let mut line = Line::to(broker.addr).await;
    line.down().await;
    let connecting = tokio::spawn(Publisher::connect(publisher(line.addr, 1)));
    // Long enough for some tries that fail.
    tokio::time::sleep(sdk::GRACE).await;
    assert!(!connecting.is_finished());
    line.up().await;
    let mut call = broker.producer(0, CREDIT).await;
    let publisher = soon("connecting", connecting).await.expect("no panic");
    let publisher = publisher.expect("accepted");
    let pending = publish(&publisher, reds(0, 1)).await;
    let batch = call.batch().await;
    call.ack(&batch).await;
    receipt(pending).await;
}

#[tokio::test]
async fn closing_waits_for_every_ack_also_when_the_line_breaks_meanwhile() {
    let broker = FakeBroker::start().await;
    let (publisher, mut call) = connected(&broker, publisher(broker.addr, 1)).await;
    let pending = publish(&publisher, reds(0, 1)).await;
    call.batch().await;
    let closing = tokio::spawn(publisher.close());
    drop(call);
    let mut call = broker.producer(0, CREDIT).await;
    assert!(!closing.is_finished());
    let batch = call.batch().await;
    call.ack(&batch).await;
    receipt(pending).await;
    let closed = soon("closing", closing).await.expect("no panic");
    closed.expect("all done");
    call.ended().await;
}

#[tokio::test]
async fn closing_does_not_wait_for_a_broker_that_is_away_when_nothing_is_owed() {
    let broker = FakeBroker::start().await;
    let mut line = Line::to(broker.addr).await;
    let (publisher, _call) = connected(&broker, publisher(line.addr, 1)).await;
    line.down().await;
    until("the loss is seen", || !publisher.status().connected).await;
    soon("closing", publisher.close()).await.expect("all done");
}

#[tokio::test]
async fn a_publisher_that_is_dropped_ends_its_stream_and_tells_who_waits() {
    let broker = FakeBroker::start().await;
    let (publisher, mut call) = connected(&broker, publisher(broker.addr, 1)).await;
    let clone = publisher.clone();
    drop(publisher);
    let pending = publish(&clone, reds(0, 1)).await;
    call.batch().await;
    drop(clone);
    call.ended().await;
    assert_eq!(failure(pending).await, ClientError::Closed);
    broker.nobody_calls().await;
}

#[tokio::test]
async fn producers_of_two_platforms_with_one_name_do_not_meet() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let anhui = connect(publisher(broker.grpc_addr(), 1)).await;
    let sichuan = PublisherOptions {
        endpoint: endpoint(broker.grpc_addr(), SICHUAN),
        ..publisher(broker.grpc_addr(), 2)
    };
    let sichuan = connect(sichuan).await;
    for publisher in [&sichuan, &anhui] {
        let receipt = receipt(publish(publisher, reds(0, 1)).await).await;
        assert_eq!((receipt.sequence, receipt.accepted), (Sequence(1), 1));
    }
}
