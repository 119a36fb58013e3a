//! Each command against a running broker.

use hutong_cli::demo::{embedded::Embedded, platforms};
use hutong_connectors::client::{self, Endpoint, Identity};
use hutong_proto::{Issuer, api};
use serde_json::Value;
use std::process::Output;
use tokio::process::Command;

const PERSON: &str = "000102030405060708090a0b0c0d0e0f";

async fn hutong(broker: &Embedded, identity: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hutong"))
        .args(args)
        .args(["--address", broker.address(), "--identity", identity])
        .output()
        .await
        .expect("the binary starts")
}

/// The JSON of a command that must succeed.
async fn json(broker: &Embedded, args: &[&str]) -> Value {
    let mut args = args.to_vec();
    args.extend(["--output", "json"]);
    let output = hutong(broker, "operator/test", &args).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).expect("one JSON value")
}

fn line(entity: &str, value: &str) -> String {
    format!(
        r#"{{"entity":"{entity}","provenance":{{"authority":"安徽省卫生健康委员会","rule_id":"R1","rule_version":1,"reason":"contact"}},{value}}}"#
    )
}

/// Publishes lines as Anhui.
async fn publish(broker: &Embedded, lines: &[String], more: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("deltas.jsonl");
    std::fs::write(&file, lines.join("\n")).expect("a file");
    let mut args = vec!["publish", file.to_str().expect("a plain path")];
    args.extend(more);
    hutong(broker, "platform/340000", &args).await
}

async fn broker() -> Embedded {
    Embedded::start(platforms::first(4), None)
        .await
        .expect("a broker")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_is_found_explained_and_listed() {
    let broker = broker().await;
    let yellow = line(PERSON, r#""health_code":{"colour":"yellow"}"#);
    let output = publish(&broker, &[yellow], &[]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    let registers = json(&broker, &["get", PERSON]).await;
    assert_eq!(registers[0]["issuer"], 340_000);
    assert_eq!(registers[0]["kind"], "health_code");
    assert_eq!(registers[0]["delta"]["health_code"]["colour"], "yellow");
    assert_eq!(registers[0]["delta"]["provenance"]["rule_id"], "R1");

    let explained = json(&broker, &["explain", PERSON]).await;
    assert_eq!(explained["colour"], "yellow");
    assert_eq!(explained["contenders"][0]["verdict"], "won");

    let trace = [
        "trace",
        PERSON,
        "--issuer",
        "340000",
        "--kind",
        "health_code",
    ];
    let traced = json(&broker, &trace).await;
    assert_eq!(traced["lane"], "urgent");
    let points = ["committed", "arrived", "durable", "applied"];
    let points = points.map(|point| traced[format!("{point}_at_us")].as_u64());
    assert!(points.is_sorted() && points[0] > Some(0), "{traced}");

    let listed = json(&broker, &["platforms"]).await;
    let anhui = listed
        .as_array()
        .and_then(|all| all.iter().find(|p| p["code"] == 340_000))
        .expect("Anhui is configured");
    assert_eq!(anhui["deltas_accepted"], 1);

    assert_eq!(json(&broker, &["connectors"]).await, serde_json::json!([]));
    let anhui = Identity::Platform(Issuer::new(platforms::ANHUI).expect("a code"));
    let anhui = Endpoint::new(broker.address(), anhui);
    let report = Some(api::ConnectorReport {
        connector: "registry".to_owned(),
        role: api::ConnectorRole::Sink.into(),
        state: api::ConnectorState::Stopped.into(),
        since_us: 1_650_000_000_000_000,
        dead_letters: 3,
        ..Default::default()
    });
    let mut reports = client::report(&anhui).expect("an address");
    let said = reports.report(api::ReportRequest { report }).await;
    said.expect("taken");
    let said = json(&broker, &["connectors"]).await;
    assert_eq!(
        (&said[0]["platform"], &said[0]["connector"]),
        (&340_000.into(), &"registry".into())
    );
    assert_eq!(
        (&said[0]["role"], &said[0]["state"]),
        (&"sink".into(), &"stopped".into())
    );
    assert_eq!(
        (&said[0]["dead_letters"], &said[0]["silent"]),
        (&3.into(), &false.into())
    );

    let partitions = json(&broker, &["partitions"]).await;
    assert!(
        partitions.as_array().is_some_and(|all| all
            .iter()
            .any(|p| p["issuer"] == 340_000 && p["lane"] == "urgent")),
        "{partitions}"
    );
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_lines_are_named_and_the_rest_goes_on() {
    let broker = broker().await;
    let green = r#""health_code":{"colour":"green"}"#;
    let lines = [
        line(PERSON, green),
        "{broken".to_owned(),
        line(&"0".repeat(32), green),
        line(&"1".repeat(32), r#""health_code":{"colour":"blue"}"#),
        line(&"2".repeat(32), r#""test_result":{"outcome":"negative"}"#),
    ];
    let output = publish(&broker, &lines, &["--output", "json"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let summary: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(summary["accepted"], 2, "{summary}");
    assert_eq!(summary["refused"], 3, "{summary}");
    let refused: Vec<(u64, String)> = summary["refused_lines"]
        .as_array()
        .expect("lines")
        .iter()
        .map(|r| {
            (
                r["line"].as_u64().expect("a number"),
                r["reason"].as_str().expect("a reason").to_owned(),
            )
        })
        .collect();
    let reason = |of: u64| {
        refused
            .iter()
            .find(|(line, _)| *line == of)
            .map(|r| r.1.as_str())
    };
    assert_eq!(reason(2), Some("LINE_INVALID"));
    assert_eq!(reason(3), Some("ENTITY_INVALID"));
    assert_eq!(reason(4), Some("LINE_INVALID"));
    broker.stop().await;
}

/// Returns when the broker says that the subscription of `tail` is connected, or that it is not.
async fn until_connected(broker: &Embedded, connected: bool) {
    let told = async {
        loop {
            let all = json(broker, &["subscriptions", "--platform", "510000"]).await;
            if (all[0]["subscription"] == "cli-tail") && (all[0]["state"] != "away") == connected {
                return;
            }
        }
    };
    let patience = std::time::Duration::from_secs(20);
    tokio::time::timeout(patience, told).await.expect("told");
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_prints_what_publish_reads() {
    let broker = broker().await;
    let lines = [
        line(PERSON, r#""health_code":{"colour":"red"}"#),
        line(&"2".repeat(32), r#""test_result":{"outcome":"negative"}"#),
    ];
    publish(&broker, &lines, &[]).await;
    let args = [
        "tail", "--from", "snapshot", "--count", "2", "--output", "json",
    ];
    let output = hutong(&broker, "platform/510000", &args).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let tailed: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(tailed.len(), 2);
    assert!(tailed.iter().all(|d| d["issuer"] == 340_000));
    // The same lines again are known already, and refused as that.
    let again: Vec<String> = text.lines().map(str::to_owned).collect();
    let output = publish(&broker, &again, &["--output", "json"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let summary: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        summary["refused_lines"][0]["reason"], "REVISION_NOT_NEWER",
        "{summary}"
    );

    let now = ["tail", "--from", "now", "--count", "1"];
    let tail = hutong(&broker, "platform/510000", &now);
    let meanwhile = async {
        until_connected(&broker, true).await;
        let more = line(&"3".repeat(32), r#""health_code":{"colour":"green"}"#);
        publish(&broker, &[more], &[]).await
    };
    let (tailed, _) = tokio::join!(tail, meanwhile);
    assert_eq!(tailed.status.code(), Some(0), "{tailed:?}");
    until_connected(&broker, false).await;
    let lag = json(&broker, &["lag"]).await;
    assert_eq!(lag[0]["platform"], 510_000, "{lag}");
    json(&broker, &["lag", "--matrix"]).await;

    let forget = [
        "forget",
        "--platform",
        "510000",
        "--subscription",
        "cli-tail",
        "--yes",
    ];
    let forgotten = json(&broker, &forget).await;
    assert_eq!(forgotten["forgotten"], "cli-tail", "{forgotten}");
    let subscriptions = json(&broker, &["subscriptions"]).await;
    assert_eq!(subscriptions, Value::Array(Vec::new()));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_refuses_is_4_with_its_reason() {
    let broker = broker().await;
    for (identity, args, reason) in [
        ("platform/999999", vec!["get", PERSON], "IDENTITY_UNKNOWN"),
        (
            "platform/340000",
            vec![
                "trim", "--issuer", "340000", "--lane", "bulk", "--before", "7", "--yes",
            ],
            "ROLE_NOT_ALLOWED",
        ),
        (
            "operator/test",
            vec![
                "trace",
                PERSON,
                "--issuer",
                "340000",
                "--kind",
                "health_code",
            ],
            "DELTA_NOT_FOUND",
        ),
        (
            "operator/test",
            vec![
                "trim", "--issuer", "999999", "--lane", "bulk", "--before", "7", "--yes",
            ],
            "PARTITION_UNKNOWN",
        ),
        (
            "platform/340000",
            vec!["tail", "--from", "00000000000000ff:1/1"],
            "CURSOR_OF_ANOTHER_LOG",
        ),
    ] {
        let output = hutong(&broker, identity, &args).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{args:?}: {stderr}");
        assert!(stderr.contains(reason), "{args:?}: {stderr}");
    }
    broker.stop().await;
}
