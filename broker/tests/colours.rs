//! What operators are told of colours: how many of each an issuer set, and which of them went back and forth.

mod support;

use hutong_proto::{Value, delta::Colour};
use support::{ANHUI, Producer, batch, delta, start};

#[tokio::test]
async fn colours_are_counted_by_issuer_and_those_that_come_back_are_flip_flops() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    // Of two people: one goes back and forth twice, the other changes once.
    let said = [
        (1, Colour::Red),
        (1, Colour::Green),
        (2, Colour::Green),
        (1, Colour::Red),
        (1, Colour::Green),
        (2, Colour::Yellow),
    ];
    for (n, (person, colour)) in said.into_iter().enumerate() {
        let change = delta(person, n as u64 + 1, Value::HealthCode(colour));
        let batch = batch(ANHUI, n as u64 + 1, &[change]);
        let ack = producer.publish(batch).await.expect("acknowledged");
        assert_eq!(ack.accepted, 1);
    }
    // An ack means applied, and what is applied is counted.
    let page = support::metrics(&broker).await;
    for (series, count) in [
        (
            r#"hutong_colours_applied_total{colour="red",platform="340000"}"#,
            2,
        ),
        (
            r#"hutong_colours_applied_total{colour="green",platform="340000"}"#,
            3,
        ),
        (
            r#"hutong_colours_applied_total{colour="yellow",platform="340000"}"#,
            1,
        ),
        (r#"hutong_colour_flip_flops_total{platform="340000"}"#, 2),
        (r#"hutong_colour_flip_flops_total{platform="510000"}"#, 0),
    ] {
        let line = format!("{series} {count}");
        assert!(page.lines().any(|l| l == line), "no {line} in {page}");
    }
    broker.shutdown().await;
}
