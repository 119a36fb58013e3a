//! What ends a publisher for good, and that it then says why, to all who wait, and stays away.

use crate::{
    CREDIT, connect, connected, failure, publish, receipt,
    sdk::{
        self, ANHUI, PATIENCE,
        fake::{FakeBroker, refused},
        issuer,
        line::Line,
        node, publisher, reds, soon, until,
    },
};
use futures_util::FutureExt;
use hutong_connectors::client::{ClientError, Endpoint, Identity, Publisher, PublisherOptions};
use hutong_proto::{
    Reason, Refusal, Sequence,
    api::{self, publish_response},
};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// Waits until the publisher has ended, and says why.
async fn end(publisher: &Publisher) -> ClientError {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match publisher.publish(reds(900, 1)).now_or_never() {
            Some(Err(error)) => return error,
            Some(Ok(pending)) => drop(pending),
            None => {}
        }
        assert!(Instant::now() < deadline, "the publisher did not end");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_second_process_with_the_same_name_ends_the_first_one_for_good() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let line = Line::to(broker.grpc_addr()).await;
    let first = connect(publisher(line.addr, 1)).await;
    receipt(publish(&first, reds(0, 1)).await).await;
    let second = connect(publisher(broker.grpc_addr(), 2)).await;
    let error = end(&first).await;
    assert_eq!(error.reason(), Some(Reason::ProducerFenced), "{error}");
    assert!(!error.is_passing());
    assert!(error.to_string().contains("another process"), "{error}");
    assert!(!first.status().connected);
    // At most one more try, which says the same: no loop.
    assert!(line.connections() <= 2, "{} tries", line.connections());
    let closed = soon("closing", first.close()).await;
    assert_eq!(closed.expect_err("ended").reason(), error.reason());
    // The second one goes on.
    let receipt = receipt(publish(&second, reds(10, 1)).await).await;
    assert_eq!((receipt.sequence, receipt.accepted), (Sequence(2), 1));
}

#[tokio::test]
async fn what_waits_is_told_the_reason_when_the_publisher_is_fenced() {
    let broker = FakeBroker::start().await;
    let (publisher, mut call) = connected(&broker, publisher(broker.addr, 1)).await;
    let pending = [
        publish(&publisher, reds(0, 1)).await,
        publish(&publisher, reds(10, 1)).await,
    ];
    call.batch().await;
    call.fail(refused(Reason::ProducerFenced)).await;
    for pending in pending {
        let error = failure(pending).await;
        assert_eq!(error.reason(), Some(Reason::ProducerFenced));
    }
    broker.nobody_calls().await;
}

#[tokio::test]
async fn an_ack_out_of_turn_ends_the_publisher_and_answers_nobody_wrongly() {
    for wrong in [0, 2, 7] {
        let broker = FakeBroker::start().await;
        let (publisher, mut call) = connected(&broker, publisher(broker.addr, 1)).await;
        let first = publish(&publisher, reds(0, 1)).await;
        let second = publish(&publisher, reds(10, 1)).await;
        let mut ack = call.batch().await.ack();
        call.batch().await;
        ack.sequence = wrong;
        call.say(publish_response::Message::Ack(ack)).await;
        for pending in [first, second] {
            let error = failure(pending).await;
            assert!(matches!(error, ClientError::Malformed(_)), "{error}");
        }
        assert!(matches!(end(&publisher).await, ClientError::Malformed(_)));
        broker.nobody_calls().await;
    }
}

#[tokio::test]
async fn an_ack_of_what_was_not_sent_ends_the_publisher() {
    let broker = FakeBroker::start().await;
    let (publisher, call) = connected(&broker, publisher(broker.addr, 1)).await;
    let ack = api::PublishAck {
        sequence: 1,
        ..Default::default()
    };
    call.say(publish_response::Message::Ack(ack)).await;
    until("it ends", || !publisher.status().connected).await;
    assert!(matches!(end(&publisher).await, ClientError::Malformed(_)));
}

#[tokio::test]
async fn what_is_not_understood_ends_the_publisher_with_a_clear_error() {
    let broken: [&[u8]; 4] = [b"", b"\x12\xff", b"\xff\xff\xff", b"\x7a\x03abc"];
    for bytes in broken {
        let broker = FakeBroker::start().await;
        let (publisher, call) = connected(&broker, publisher(broker.addr, 1)).await;
        call.bytes(bytes.to_vec()).await;
        let error = end(&publisher).await;
        assert!(matches!(error, ClientError::Malformed(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains("does not understand"), "{text}");
        // The same instead of an opening.
        let mut options = sdk::publisher(broker.addr, 1);
        options.producer = "q".to_owned();
        let opening = async {
            let mut call = broker.accept().await;
            call.publish_open().await;
            call.bytes(bytes.to_vec()).await;
            call
        };
        let (refused, _call) =
            tokio::join!(soon("connecting", Publisher::connect(options)), opening);
        assert!(matches!(refused, Err(ClientError::Malformed(_))));
    }
}

#[tokio::test]
async fn a_number_that_cannot_be_is_an_error_and_no_panic() {
    let broker = FakeBroker::start().await;
    let connecting = Publisher::connect(publisher(broker.addr, 1));
    let (connected, _call) = tokio::join!(
        soon("connecting", connecting),
        broker.producer(u64::MAX, u64::MAX)
    );
    let error = connected.expect_err("there is no next number");
    assert!(matches!(error, ClientError::Malformed(_)), "{error}");
}

#[tokio::test]
async fn an_identity_that_may_not_publish_ends_it_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = node(dir.path()).await;
    let line = Line::to(broker.grpc_addr()).await;
    let address = format!("http://{}", line.addr);
    let stranger = Endpoint::new(address.clone(), Identity::Platform(issuer(650_000)));
    let operator = Endpoint::new(address.clone(), Identity::Operator("wang".to_owned()));
    let anhui = Endpoint::new(address, Identity::Platform(issuer(ANHUI)));
    let zero = PublisherOptions {
        epoch: Some(hutong_proto::Epoch(0)),
        ..PublisherOptions::new(anhui.clone(), "p")
    };
    for (options, reason) in [
        (
            PublisherOptions::new(stranger, "p"),
            Reason::IdentityUnknown,
        ),
        (PublisherOptions::new(operator, "p"), Reason::RoleNotAllowed),
        (
            PublisherOptions::new(anhui, "Not a name"),
            Reason::NameInvalid,
        ),
        (zero, Reason::EpochZero),
    ] {
        let before = line.connections();
        let refused = soon("an answer", Publisher::connect(options)).await;
        let error = refused.expect_err("refused");
        assert_eq!(error.reason(), Some(reason), "{error}");
        assert!(!error.is_passing());
        assert!(line.connections() <= before + 1, "asked again");
    }
    let nowhere = PublisherOptions::new(
        Endpoint::new("not an address", Identity::Platform(issuer(ANHUI))),
        "p",
    );
    let error = Publisher::connect(nowhere).await.expect_err("no address");
    assert!(matches!(error, ClientError::Address { .. }), "{error}");
}

#[tokio::test]
async fn what_cannot_pass_ends_the_publisher_and_what_can_does_not() {
    let final_ones = [
        refused(Reason::ProducerFenced),
        refused(Reason::IdentityUnknown),
        refused(Reason::IssuerNotYours),
        refused(Reason::BatchTooLarge),
        Status::unauthenticated("who are you"),
        Status::permission_denied("no"),
        Status::unimplemented("not a broker"),
    ];
    for status in final_ones {
        println!("{status:?}");
        let broker = FakeBroker::start().await;
        let (publisher, mut call) = connected(&broker, publisher(broker.addr, 1)).await;
        let pending = publish(&publisher, reds(0, 1)).await;
        call.batch().await;
        call.fail(status.clone()).await;
        let error = failure(pending).await;
        assert!(!error.is_passing(), "{error}");
        assert_eq!(end(&publisher).await, error, "the same for all");
        broker.nobody_calls().await;
    }
    let passing = [
        refused(Reason::SessionTakenOver),
        refused(Reason::CreditExceeded),
        refused(Reason::SequenceOutOfOrder),
        refused(Reason::LogPoisoned),
        refused(Reason::CommitIndefinite),
        refused(Reason::ShuttingDown),
        refused(Reason::Internal),
        Status::new(Code::Unavailable, "a proxy between us"),
        Status::new(Code::Unknown, "?"),
        Status::new(Code::Cancelled, "?"),
    ];
    let broker = FakeBroker::start().await;
    let (publisher, mut call) = connected(&broker, publisher(broker.addr, 1)).await;
    let pending = publish(&publisher, reds(0, 1)).await;
    for status in passing {
        println!("{status:?}");
        assert_eq!(call.batch().await.sequence, 1);
        call.fail(status.clone()).await;
        call = broker.producer(0, CREDIT).await;
        let last = publisher.status().last_error.expect("one");
        let known = Refusal::from_status(&status).is_none_or(|r| last.contains(r.reason.code()));
        assert!(known, "{last}");
    }
    let batch = call.batch().await;
    call.ack(&batch).await;
    receipt(pending).await;
}

#[tokio::test]
async fn a_broker_that_forgot_or_knows_too_much_is_not_believed() {
    // Two batches were sent, and one of them acknowledged.
    for (durable, what) in [
        (0, "forgot"),
        (3, "another process"),
        (9, "another process"),
    ] {
        let broker = FakeBroker::start().await;
        let (publisher, mut call) = connected(&broker, publisher(broker.addr, 1)).await;
        let first = publish(&publisher, reds(0, 1)).await;
        let second = publish(&publisher, reds(10, 1)).await;
        let batch = call.batch().await;
        call.batch().await;
        call.ack(&batch).await;
        receipt(first).await;
        drop(call);
        broker.producer(durable, CREDIT).await;
        let error = failure(second).await;
        assert!(!error.is_passing());
        assert!(error.to_string().contains(what), "{durable}: {error}");
        broker.nobody_calls().await;
    }
}
