//! What the alert *ViewsDiffer* is made of: what a platform claims to have, and cannot.

mod support;

use hutong_proto::{Cursor, LogId, Offset, Value, api, api::subscribe_open::Start, delta::Colour};
use support::{
    ANHUI, Consumer, PATIENCE, Producer, SICHUAN, Seen, batch, delta, entity, open, reason, start,
};

#[tokio::test]
async fn a_cursor_that_contradicts_what_the_broker_knows_is_counted_by_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let from_now = Start::Now(api::StartNow {});
    let mut first = Consumer::open(&broker, SICHUAN, open("first", from_now)).await;
    let log_id = match first.next().await.expect("opened") {
        Seen::Opened { cursor, .. } => cursor.log_id.0,
        other => panic!("{other:?}"),
    };
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let change = batch(ANHUI, 1, &[delta(1, 1, Value::HealthCode(Colour::Green))]);
    let at = producer.publish(change).await.expect("ack").positions[0].offset;
    let begin = |log_id, offset| {
        let cursor = api::Cursor {
            log_id,
            urgent: offset,
            bulk: offset,
        };
        open("s", Start::Cursor(cursor))
    };
    let said = async |series: &str, value: &str| {
        let line = format!("{series} {value}");
        let known = async {
            while !support::metrics(&broker).await.lines().any(|l| l == line) {
                tokio::task::yield_now().await;
            }
        };
        let known = tokio::time::timeout(PATIENCE, known).await;
        known.unwrap_or_else(|_| panic!("nothing says {line}"));
    };
    let conflicts = async |ahead: u64, back: u64, another: u64| {
        for (conflict, count) in [
            ("cursor_ahead", ahead),
            ("cursor_back", back),
            ("another_log", another),
        ] {
            let series = format!(
                "hutong_view_conflicts_total{{conflict=\"{conflict}\",platform=\"510000\"}}"
            );
            said(&series, &count.to_string()).await;
        }
    };
    let mut consumer = Consumer::open(&broker, SICHUAN, begin(log_id, at)).await;
    consumer.deltas(1).await;
    let next = Offset(at).next();
    consumer.applied(Cursor::both(LogId(log_id), next)).await;
    let behind =
        "hutong_subscription_lag_records{lane=\"urgent\",platform=\"510000\",subscription=\"s\"}";
    said(behind, "0").await;
    conflicts(0, 0, 0).await;
    // It had it, and asks for it again.
    let mut again = Consumer::open(&broker, SICHUAN, begin(log_id, at)).await;
    assert_eq!(again.deltas(1).await[0].2, entity(1));
    conflicts(0, 1, 0).await;
    let mut ahead = Consumer::open(&broker, SICHUAN, begin(log_id, at + 1000)).await;
    let refused = ahead.next().await.expect_err("it is refused");
    assert_eq!(reason(&refused), "CURSOR_AHEAD");
    conflicts(1, 1, 0).await;
    let mut other = Consumer::open(&broker, SICHUAN, begin(log_id ^ 1, at)).await;
    let refused = other.next().await.expect_err("it is refused");
    assert_eq!(reason(&refused), "CURSOR_OF_ANOTHER_LOG");
    conflicts(1, 1, 1).await;
    broker.shutdown().await;
}
