//! What a receiver relies on when it subscribes through the SDK: whatever happens to the line and
//! to the broker, each delta comes once and in order, and what cannot go on says why.

#[path = "sdk/subscriber_ends.rs"]
mod ends;
mod sdk;

use futures_util::FutureExt;
use hutong_connectors::client::{Backoff, Event, Publisher, Start, Subscriber, SubscriberOptions};
use hutong_proto::{
    Cursor, Delta, EntityId, Micros, Offset,
    api::{subscribe_open, subscribe_request},
    limits,
};
use sdk::{
    Random, entity,
    fake::{self, Call, FakeBroker, at, delivery},
    line::Line,
    node, now, publisher, red, reds, soon, subscriber, until,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

async fn next(subscriber: &mut Subscriber) -> Event {
    let event = soon("an event", subscriber.next()).await;
    event.expect("it goes on")
}

fn starting(addr: std::net::SocketAddr, start: Start) -> SubscriberOptions {
    SubscriberOptions {
        start,
        ..subscriber(addr)
    }
}

/// A subscriber and the broker's end of its stream, which begins at offset 1.
async fn connected(broker: &FakeBroker, options: SubscriberOptions) -> (Subscriber, Call) {
    let opening = tokio::spawn(Subscriber::open(options));
    let mut call = broker.accept().await;
    call.subscribe_open().await;
    call.begun(at(1), false).await;
    let subscriber = soon("opening", opening).await.expect("no panic");
    (subscriber.expect("accepted"), call)
}

fn entities(event: &Event) -> Vec<EntityId> {
    match event {
        Event::Rows(deltas) | Event::Records { deltas, .. } => {
            deltas.iter().map(|d| d.delta.entity).collect()
        }
        _ => Vec::new(),
    }
}

fn ids(deltas: &[Delta]) -> Vec<EntityId> {
    deltas.iter().map(|d| d.entity).collect()
}

#[tokio::test]
async fn whatever_is_cut_each_delta_comes_once_and_in_order() {
    const BATCHES: u64 = 200;
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let line = Line::to(broker.grpc_addr()).await;
    let mut receiver = Subscriber::open(starting(line.addr, Start::Now))
        .await
        .expect("accepted");
    let publisher = Publisher::connect(publisher(broker.grpc_addr(), 1))
        .await
        .expect("accepted");

    let mut random = Random(20_220_701);
    let mut arrived = Vec::new();
    let mut cuts = 0;
    let mut cursor = Cursor::both(receiver.cursor().log_id, Offset::NONE);
    for n in 0..BATCHES {
        // Also in the middle of a message, and of the opening of a stream.
        if !line.cut_is_due() {
            line.cut_after(random.below(2_000));
            cuts += 1;
        }
        let pending = publisher.publish(reds(n * 5, 5)).await.expect("sent");
        pending.await.expect("acknowledged");
        while arrived.len() < (n as usize + 1) * 5 {
            if let Event::Records {
                deltas,
                cursor: after,
            } = next(&mut receiver).await
            {
                assert!(after.urgent > cursor.urgent, "{after:?} after {cursor:?}");
                cursor = after;
                arrived.extend(deltas.into_iter().map(|d| d.delta.entity));
                receiver.applied(cursor).await.expect("heard");
            }
        }
    }
    let expected: Vec<_> = (0..BATCHES * 5).map(entity).collect();
    assert!(arrived == expected, "in order, each once");
    assert!(cuts > 10, "{cuts} cuts");
    assert!(receiver.reconnects() > 10, "{}", receiver.reconnects());
}

#[tokio::test]
async fn a_snapshot_that_is_cut_starts_over_and_one_that_ended_does_not() {
    let broker = FakeBroker::start().await;
    let options = starting(broker.addr, Start::Snapshot);
    let opening = tokio::spawn(Subscriber::open(options));
    let mut call = broker.accept().await;
    call.subscribe_open().await;
    call.begun(at(40), true).await;
    let mut subscriber = soon("opening", opening)
        .await
        .expect("no panic")
        .expect("accepted");
    for tries in 0..3 {
        call.snapshot_begin().await;
        call.bytes(fake::rows(&reds(0, 3))).await;
        assert_eq!(
            next(&mut subscriber).await,
            Event::SnapshotBegin { rows_estimate: 7 },
            "try {tries}"
        );
        assert_eq!(entities(&next(&mut subscriber).await), ids(&reds(0, 3)));
        drop(call);
        let (accepted, waited) = tokio::join!(broker.accept(), async {
            // Whoever waits for the rest connects again.
            tokio::time::timeout(sdk::GRACE, subscriber.next()).await
        });
        assert!(waited.is_err(), "nothing was sent");
        call = accepted;
        let open = call.subscribe_open().await;
        let from_the_start = Some(subscribe_open::Start::Snapshot(Default::default()));
        assert_eq!(open.start, from_the_start, "try {tries}");
        call.begun(at(50), true).await;
    }
    call.snapshot_begin().await;
    call.snapshot_end(at(50), 0).await;
    next(&mut subscriber).await;
    let end = next(&mut subscriber).await;
    let cursor = at(50);
    assert_eq!(end, Event::SnapshotEnd { cursor, rows: 0 });
    drop(call);
    let (mut call, event) = tokio::join!(
        async {
            let mut call = broker.accept().await;
            let open = call.subscribe_open().await;
            let resumed = Some(subscribe_open::Start::Cursor(at(50).to_api()));
            assert_eq!(open.start, resumed, "the rows are complete");
            call.begun(at(50), false).await;
            call.bytes(delivery(50, &reds(9, 1))).await;
            call
        },
        next(&mut subscriber)
    );
    assert_eq!(entities(&event), ids(&reds(9, 1)));
    call.hears_nothing().await;
}

#[tokio::test]
async fn a_new_stream_goes_on_after_what_was_given_out_not_after_what_was_sent() {
    let broker = FakeBroker::start().await;
    let (mut subscriber, call) = connected(&broker, subscriber(broker.addr)).await;
    call.bytes(delivery(1, &reds(0, 2))).await;
    let first = next(&mut subscriber).await;
    assert_eq!(entities(&first), ids(&reds(0, 2)));
    assert_eq!(subscriber.cursor().urgent.0, 2);
    assert_eq!(subscriber.cursor().bulk.0, 1, "another lane stays");
    drop(call);
    let (open, _) = tokio::join!(
        async {
            let mut call = broker.accept().await;
            let open = call.subscribe_open().await;
            call.begun(subscriber_cursor(2, 1), false).await;
            call.bookmark(subscriber_cursor(2, 1), now()).await;
            open
        },
        next(&mut subscriber)
    );
    let resumed = subscribe_open::Start::Cursor(subscriber_cursor(2, 1).to_api());
    assert_eq!(open.start, Some(resumed));
    assert_eq!(subscriber.reconnects(), 1);
}

fn subscriber_cursor(urgent: u64, bulk: u64) -> Cursor {
    let mut cursor = at(bulk);
    cursor.urgent = Offset(urgent);
    cursor
}

/// The credit that came back so far, and the cursors that were said.
async fn credit_until(call: &mut Call, bytes: u64) -> u64 {
    let mut credit = 0;
    while credit < bytes {
        if let subscribe_request::Message::Credit(more) = call.heard().await {
            credit += more.bytes;
        }
    }
    credit
}

#[tokio::test]
async fn credit_comes_back_for_what_was_taken_and_for_nothing_else() {
    const WINDOW: u64 = 8 << 10;
    let broker = FakeBroker::start().await;
    let mut options = subscriber(broker.addr);
    options.credit_bytes = WINDOW;
    let (mut subscriber, mut call) = connected(&broker, options).await;
    let mut taken = 0;
    let mut returned = 0;
    for offset in 1..=60 {
        let frame = delivery(offset, &reds(offset, 4));
        let len = frame.len() as u64;
        call.bytes(frame).await;
        // Bookmarks cost no credit, so they must bring none.
        call.bookmark(subscriber_cursor(offset + 1, 1), now()).await;
        next(&mut subscriber).await;
        next(&mut subscriber).await;
        taken += len;
        // It may keep an eighth of the window back, never more: the broker would starve.
        if taken - returned >= WINDOW / 8 {
            returned += credit_until(&mut call, taken - returned).await;
        }
        assert_eq!(
            returned.min(taken),
            returned,
            "credit for what was not sent"
        );
    }
    assert!(returned > WINDOW, "{returned} bytes came back");
    // What lies in the stream but was not taken brings no credit.
    call.bytes(delivery(61, &reds(0, 60))).await;
    call.hears_nothing().await;
}

#[tokio::test]
async fn a_refused_delta_leaves_nothing_in_the_record_that_could_stop_a_receiver() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let mut receiver = Subscriber::open(starting(broker.grpc_addr(), Start::Now))
        .await
        .expect("accepted");
    let publisher = Publisher::connect(publisher(broker.grpc_addr(), 1))
        .await
        .expect("accepted");
    let mut deltas = reds(0, 4);
    for (n, spoil) in [0, 2].into_iter().zip(["", "x"]) {
        let mut provenance = sdk::provenance();
        provenance.authority = spoil.repeat(limits::AUTHORITY_BYTES_MAX + 1);
        deltas[n].provenance = Arc::new(provenance);
    }
    let mut other = sdk::provenance();
    other.reason = "another".to_owned();
    deltas[3].provenance = Arc::new(other);
    let pending = publisher.publish(deltas.clone()).await.expect("sent");
    let receipt = pending.await.expect("acknowledged");
    assert_eq!((receipt.accepted, receipt.refused.len()), (2, 2));
    loop {
        let event = next(&mut receiver).await;
        if let Event::Records { deltas: came, .. } = event {
            let came: Vec<_> = came.into_iter().map(|d| d.delta).collect();
            assert_eq!(came, [deltas[1].clone(), deltas[3].clone()]);
            break;
        }
    }
}

#[tokio::test]
async fn the_smallest_window_goes_on_for_ever() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let mut options = starting(broker.grpc_addr(), Start::Now);
    options.credit_bytes = limits::SUBSCRIBE_CREDIT_BYTES_MIN;
    let mut receiver = Subscriber::open(options).await.expect("accepted");
    let publisher = Publisher::connect(publisher(broker.grpc_addr(), 1))
        .await
        .expect("accepted");
    // Records of several windows each, and many of them.
    for n in 0..10 {
        let pending = publisher.publish(reds(n * 4_000, 4_000)).await;
        pending.expect("sent").await.expect("acknowledged");
    }
    let mut arrived = Vec::new();
    while arrived.len() < 40_000 {
        arrived.extend(entities(&next(&mut receiver).await));
    }
    assert!(arrived == ids(&reds(0, 40_000)));
}

#[tokio::test]
async fn giving_up_a_wait_loses_nothing_and_begins_nothing_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let line = Line::to(broker.grpc_addr()).await;
    let mut receiver = Subscriber::open(starting(line.addr, Start::Now))
        .await
        .expect("accepted");
    let publisher = Publisher::connect(publisher(broker.grpc_addr(), 1))
        .await
        .expect("accepted");
    let mut arrived = Vec::new();
    let mut given_up = 0;
    let mut sent = 0;
    let deadline = Instant::now() + sdk::PATIENCE;
    while arrived.len() < 500 {
        assert!(Instant::now() < deadline, "{} arrived", arrived.len());
        if sent < 500 {
            // Dropped at once: nobody has to wait for the ack.
            drop(publisher.publish(reds(sent, 5)).await.expect("sent"));
            sent += 5;
        }
        if sent == 250 {
            line.cut();
        }
        // Polled once and dropped, in whatever it was doing.
        match receiver.next().now_or_never() {
            Some(event) => arrived.extend(entities(&event.expect("it goes on"))),
            None => {
                given_up += 1;
                tokio::task::yield_now().await;
            }
        }
    }
    assert!(arrived == ids(&reds(0, 500)), "in order, each once");
    assert!(given_up > 0);
    assert_eq!(line.connections(), 2, "one before the cut and one after it");
}

#[tokio::test]
async fn what_was_applied_while_the_line_was_down_is_said_when_it_is_up() {
    let broker = FakeBroker::start().await;
    let (mut subscriber, mut call) = connected(&broker, subscriber(broker.addr)).await;
    call.bytes(delivery(1, &reds(0, 1))).await;
    call.bytes(delivery(2, &reds(1, 1))).await;
    next(&mut subscriber).await;
    next(&mut subscriber).await;
    subscriber
        .applied(subscriber_cursor(2, 1))
        .await
        .expect("said");
    let applied = |message| match message {
        subscribe_request::Message::Applied(applied) => applied.cursor,
        other => panic!("expected applied, got {other:?}"),
    };
    let heard = applied(call.heard().await);
    assert_eq!(heard, Some(subscriber_cursor(2, 1).to_api()));
    drop(call);
    // Seen by whoever waits; then nothing is up.
    let (mut call, waited) = tokio::join!(broker.accept(), async {
        tokio::time::timeout(sdk::GRACE, subscriber.next()).await
    });
    assert!(waited.is_err());
    subscriber
        .applied(subscriber_cursor(3, 1))
        .await
        .expect("kept");
    call.subscribe_open().await;
    call.begun(subscriber_cursor(3, 1), false).await;
    call.bookmark(subscriber_cursor(3, 1), now()).await;
    next(&mut subscriber).await;
    let heard = applied(call.heard().await);
    assert_eq!(heard, Some(subscriber_cursor(3, 1).to_api()));
    call.hears_nothing().await;
}

#[tokio::test]
async fn a_line_that_is_silent_is_replaced_but_not_while_nobody_listens() {
    let broker = FakeBroker::start().await;
    let mut options = subscriber(broker.addr);
    options.silence_max = Duration::from_millis(300);
    let (mut subscriber, call) = connected(&broker, options).await;
    // Longer than the silence, but nobody waits for a message: it may be busy applying.
    call.bytes(delivery(1, &reds(0, 1))).await;
    next(&mut subscriber).await;
    broker.nobody_calls().await;
    broker.nobody_calls().await;
    broker.nobody_calls().await;
    broker.nobody_calls().await;
    call.bytes(delivery(2, &reds(1, 1))).await;
    assert_eq!(entities(&next(&mut subscriber).await), ids(&reds(1, 1)));
    assert_eq!(subscriber.reconnects(), 0);
    // Now someone waits, and nothing comes, not even a bookmark.
    let (open, event) = tokio::join!(
        async {
            let mut call = broker.accept().await;
            let open = call.subscribe_open().await;
            call.begun(subscriber_cursor(3, 1), false).await;
            call.bytes(delivery(3, &reds(2, 1))).await;
            open
        },
        next(&mut subscriber)
    );
    let resumed = subscribe_open::Start::Cursor(subscriber_cursor(3, 1).to_api());
    assert_eq!(open.start, Some(resumed));
    assert_eq!(entities(&event), ids(&reds(2, 1)));
    drop(call);
}

#[tokio::test]
async fn a_broker_that_drains_is_asked_less_and_less_often_and_goes_on_where_it_was() {
    let broker = FakeBroker::start().await;
    let mut options = subscriber(broker.addr);
    options.backoff = Backoff {
        first: Duration::from_millis(20),
        max: Duration::from_secs(2),
        jitter_seed: None,
    };
    let (mut subscriber, mut call) = connected(&broker, options).await;
    let waiting = tokio::spawn(async move { (next(&mut subscriber).await, subscriber) });
    for tries in 0..5 {
        let at_ = Instant::now();
        let draining = hutong_proto::api::Draining {
            reason: "the broker is stopping".to_owned(),
        };
        call.tell(hutong_proto::api::subscribe_response::Message::Draining(
            draining,
        ))
        .await;
        call = broker.accept().await;
        let waited = at_.elapsed();
        // The first message of a stream counts as news: so the first wait is the shortest each
        // time, and grows only when nothing but the end comes.
        let least = Duration::from_millis(20) / 2;
        assert!(waited >= least, "try {tries} after {waited:?}");
        call.subscribe_open().await;
        call.begun(at(1), false).await;
    }
    call.bytes(delivery(1, &reds(0, 1))).await;
    let (event, subscriber) = soon("the delta", waiting).await.expect("no panic");
    assert_eq!(entities(&event), ids(&reds(0, 1)));
    assert_eq!(subscriber.reconnects(), 5);
}

#[tokio::test]
async fn lag_is_the_age_of_the_newest_thing_seen() {
    let hour = 3_600_000_000;
    let broker = FakeBroker::start().await;
    let (mut subscriber, call) = connected(&broker, subscriber(broker.addr)).await;
    assert_eq!(subscriber.lag().seconds, 0.0, "nothing seen yet");
    call.bookmark(at(1), Micros(now().0 - hour)).await;
    next(&mut subscriber).await;
    let lag = subscriber.lag().seconds;
    assert!(
        (3600.0..3600.0 + sdk::PATIENCE.as_secs_f64()).contains(&lag),
        "{lag}"
    );
    call.bytes(delivery(1, &[red(0)])).await;
    next(&mut subscriber).await;
    let lag = subscriber.lag().seconds;
    assert!((0.0..sdk::PATIENCE.as_secs_f64()).contains(&lag), "{lag}");
    // A broker whose clock is ahead is not behind.
    call.bookmark(at(2), Micros(now().0 + hour)).await;
    next(&mut subscriber).await;
    assert_eq!(subscriber.lag().seconds, 0.0);
}

#[tokio::test]
async fn a_subscriber_that_is_dropped_ends_its_stream() {
    let broker = FakeBroker::start().await;
    let (subscriber, mut call) = connected(&broker, subscriber(broker.addr)).await;
    drop(subscriber);
    call.ended().await;
    broker.nobody_calls().await;
}

#[tokio::test]
async fn a_broker_that_is_not_there_yet_is_waited_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let mut line = Line::to(broker.grpc_addr()).await;
    line.down().await;
    let opening = tokio::spawn(Subscriber::open(starting(line.addr, Start::Now)));
    // Long enough for some tries that fail.
    tokio::time::sleep(sdk::GRACE).await;
    assert!(!opening.is_finished());
    line.up().await;
    let mut receiver = soon("opening", opening)
        .await
        .expect("no panic")
        .expect("accepted");
    let event = next(&mut receiver).await;
    assert!(matches!(event, Event::Bookmark { .. }), "{event:?}");
    until("one connection", || line.connections() == 1).await;
}
