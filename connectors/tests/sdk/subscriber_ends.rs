//! What ends a subscription for good: it says why, and it says so again to whoever asks again.

use crate::{
    connected, next,
    sdk::{
        self, ANHUI, SICHUAN,
        fake::{self, FakeBroker, at, delivery, logged, refused},
        issuer, node, publisher, reds, soon, subscriber,
    },
    starting,
};
use hutong_connectors::client::{
    ClientError, Endpoint, Event, Identity, Publisher, Start, Subscriber,
};
use hutong_proto::{
    Cursor, Lane, LogId, Offset, Reason,
    api::{self, subscribe_response},
    record,
};
use tonic::{Code, Status};

async fn end(subscriber: &mut Subscriber) -> ClientError {
    let event = soon("the end", subscriber.next()).await;
    event.expect_err("it cannot go on")
}

#[tokio::test]
async fn a_cursor_that_was_compacted_names_the_way_out() {
    let broker = FakeBroker::start().await;
    let (mut subscriber, call) = connected(&broker, subscriber(broker.addr)).await;
    call.bytes(delivery(1, &reds(0, 1))).await;
    next(&mut subscriber).await;
    call.fail(refused(Reason::CursorCompacted)).await;
    let error = end(&mut subscriber).await;
    assert_eq!(error.reason(), Some(Reason::CursorCompacted), "{error}");
    assert!(!error.is_passing());
    assert!(error.to_string().contains("snapshot"), "{error}");
    broker.nobody_calls().await;
}

#[tokio::test]
async fn cursors_that_cannot_be_are_refused_by_a_real_broker() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let receiver = Subscriber::open(starting(broker.grpc_addr(), Start::Now)).await;
    let ours = receiver.expect("accepted").cursor();
    for (cursor, reason) in [
        (
            Cursor::both(LogId(ours.log_id.0 ^ 1), ours.urgent),
            Reason::CursorOfAnotherLog,
        ),
        (
            Cursor::both(ours.log_id, Offset(1 << 40)),
            Reason::CursorAhead,
        ),
    ] {
        let options = starting(broker.grpc_addr(), Start::Cursor(cursor));
        let opened = soon("an answer", Subscriber::open(options)).await;
        let error = opened.expect_err("refused");
        assert_eq!(error.reason(), Some(reason), "{error}");
        assert!(!error.is_passing());
    }
}

#[tokio::test]
async fn a_second_process_with_the_same_name_takes_the_subscription_over() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let mut first = Subscriber::open(starting(broker.grpc_addr(), Start::Now))
        .await
        .expect("accepted");
    let mut second = Subscriber::open(starting(broker.grpc_addr(), Start::Stored))
        .await
        .expect("accepted");
    let error = loop {
        match soon("the end", first.next()).await {
            Ok(Event::Bookmark { .. }) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(
        error.reason(),
        Some(Reason::SubscriptionTakenOver),
        "{error}"
    );
    assert!(
        !error.is_passing(),
        "or the two would take it from each other for ever"
    );
    let publisher = Publisher::connect(publisher(broker.grpc_addr(), 1))
        .await
        .expect("accepted");
    drop(publisher.publish(reds(0, 1)).await.expect("sent"));
    loop {
        if let Event::Records { deltas, .. } = next(&mut second).await {
            assert_eq!(deltas.len(), 1);
            break;
        }
    }
}

#[tokio::test]
async fn an_identity_that_may_not_subscribe_ends_it_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    for (identity, reason) in [
        (Identity::Platform(issuer(650_000)), Reason::IdentityUnknown),
        (
            Identity::Operator("duty".to_owned()),
            Reason::RoleNotAllowed,
        ),
    ] {
        let endpoint = Endpoint::new(format!("http://{}", broker.grpc_addr()), identity);
        let mut options = subscriber(broker.grpc_addr());
        options.endpoint = endpoint;
        let opened = soon("an answer", Subscriber::open(options)).await;
        let error = opened.expect_err("refused");
        assert_eq!(error.reason(), Some(reason), "{error}");
    }
}

#[tokio::test]
async fn what_can_pass_does_not_end_it_and_what_cannot_does() {
    let broker = FakeBroker::start().await;
    for (status, passes) in [
        (refused(Reason::ShuttingDown), true),
        (refused(Reason::TooManySnapshots), true),
        (Status::new(Code::Unavailable, "a proxy says so"), true),
        (Status::new(Code::Internal, "h2 protocol error"), true),
        (Status::new(Code::Unauthenticated, "no"), false),
        (Status::new(Code::Unimplemented, "no such method"), false),
        (refused(Reason::CursorAhead), false),
        (refused(Reason::FilterChanged), false),
    ] {
        let what = status.message().to_owned();
        let (mut subscriber, call) = connected(&broker, subscriber(broker.addr)).await;
        call.fail(status).await;
        if !passes {
            let error = end(&mut subscriber).await;
            assert!(!error.is_passing(), "{what}: {error}");
            continue;
        }
        let (_call, event) = tokio::join!(
            async {
                let mut call = broker.accept().await;
                call.subscribe_open().await;
                call.begun(at(1), false).await;
                call.bytes(delivery(1, &reds(0, 1))).await;
                call
            },
            next(&mut subscriber)
        );
        assert!(matches!(event, Event::Records { .. }), "{what}: {event:?}");
    }
}

/// A delivery with one byte changed in each place where that matters.
fn nonsense() -> Vec<(&'static str, Vec<u8>)> {
    let good = delivery(1, &reds(0, 2)).to_vec();
    let last =
        |offset| record::delivery(vec![logged(offset, Lane::Urgent, &reds(0, 1))]).to_bytes();
    let unknown = fake::response(subscribe_response::Message::Opened(
        api::SubscribeOpened::default(),
    ));
    let no_cursor = fake::response(subscribe_response::Message::Bookmark(
        api::Bookmark::default(),
    ));
    let end = fake::response(subscribe_response::Message::SnapshotEnd(api::SnapshotEnd {
        cursor: Some(at(9).to_api()),
        rows: 0,
    }));
    vec![
        ("nothing", Vec::new()),
        ("random bytes", vec![0xff; 40]),
        ("cut short", good[..good.len() - 7].to_vec()),
        ("the highest offset", last(u64::MAX).to_vec()),
        ("opened twice", unknown),
        ("a bookmark without cursor", no_cursor),
        ("rows outside a snapshot", fake::rows(&reds(0, 1))),
        ("an end without a begin", end),
    ]
}

#[tokio::test]
async fn what_is_not_understood_ends_it_with_a_clear_error_and_the_cursor_stays() {
    let broker = FakeBroker::start().await;
    for (what, bytes) in nonsense() {
        let (mut subscriber, call) = connected(&broker, subscriber(broker.addr)).await;
        call.bytes(bytes).await;
        let error = end(&mut subscriber).await;
        assert!(
            matches!(error, ClientError::Malformed(_)),
            "{what}: {error}"
        );
        assert!(error.to_string().contains("does not understand"), "{error}");
        assert_eq!(subscriber.cursor(), at(1), "{what}");
    }
}

#[tokio::test]
async fn records_and_bookmarks_within_a_snapshot_are_not_believed() {
    let broker = FakeBroker::start().await;
    let bookmark = fake::response(subscribe_response::Message::Bookmark(api::Bookmark {
        cursor: Some(at(50).to_api()),
        sent_at_us: sdk::now().0,
    }));
    for (what, bytes) in [
        ("a bookmark", bookmark),
        ("records", delivery(50, &reds(0, 1)).to_vec()),
    ] {
        let opening = tokio::spawn(Subscriber::open(starting(broker.addr, Start::Snapshot)));
        let mut call = broker.accept().await;
        call.subscribe_open().await;
        call.begun(at(40), true).await;
        let opened = soon("opening", opening).await.expect("no panic");
        let mut subscriber = opened.expect("accepted");
        call.snapshot_begin().await;
        next(&mut subscriber).await;
        call.bytes(bytes).await;
        // Its cursor would skip the rows that did not come.
        let error = end(&mut subscriber).await;
        assert!(
            matches!(error, ClientError::Malformed(_)),
            "{what}: {error}"
        );
    }
}

#[tokio::test]
async fn a_stream_carries_the_identity_and_the_filter() {
    let broker = FakeBroker::start().await;
    let mut options = subscriber(broker.addr);
    options.filter.issuers = vec![issuer(ANHUI)];
    options.filter.lanes = vec![Lane::Urgent];
    options.filter.include_own = true;
    let opening = tokio::spawn(Subscriber::open(options));
    let mut call = broker.accept().await;
    assert!(
        call.identity.contains(&SICHUAN.to_string()),
        "{}",
        call.identity
    );
    let open = call.subscribe_open().await;
    let filter = open.filter.expect("one");
    assert_eq!(filter.issuers, [ANHUI]);
    assert_eq!(filter.lanes, [i32::from(Lane::Urgent.to_api())]);
    assert!(filter.include_own && filter.kinds.is_empty());
    assert_eq!(open.subscription, "s");
    opening.abort();
}
