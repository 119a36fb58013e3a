//! One platform stops applying. Console, command line, metrics and the platform itself must say the same: who, since
//! when, and which change. After it healed, all are clear.

mod scene;

use scene::{
    Healthy, PATIENCE, SUBSCRIPTION, Stalled, hutong, json, line, page, picture, publish, until,
};
use serde_json::Value;
use std::time::{Duration, Instant};

const ENTITY: &str = "000102030405060708090a0b0c0d0e0f";
/// What everybody must have noticed by then.
const NOTICED: Duration = Duration::from_secs(5);
/// Ages are taken one after the other.
const APART_SECONDS: f64 = 3.0;

/// Who, which change, since when, for how long.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    platform: u64,
    subscription: String,
    records: u64,
    offset: u64,
    issuer: u64,
    since_us: u64,
}

fn said(of: &Value, lane: &Value) -> Said {
    let number = |v: &Value| v.as_u64().unwrap_or_default();
    Said {
        platform: number(&of["platform"]),
        subscription: of["subscription"].as_str().unwrap_or_default().to_owned(),
        records: number(&lane["records"]),
        offset: number(&lane["oldest_offset"]),
        issuer: number(&lane["oldest_issuer"]),
        since_us: number(&lane["oldest_at_us"]),
    }
}

fn of_platform(list: &Value, code: u32) -> Value {
    let all = list.as_array().expect("a list");
    let found = all.iter().find(|s| s["platform"] == code);
    found
        .unwrap_or_else(|| panic!("{code} is not in {list}"))
        .clone()
}

/// A gauge of the subscription's urgent lane.
fn gauge(metrics: &str, name: &str, code: u32) -> f64 {
    let labels = [
        format!("platform=\"{code}\""),
        "lane=\"urgent\"".to_owned(),
        format!("subscription=\"{SUBSCRIPTION}\""),
    ];
    let lines = metrics.lines().filter(|l| l.starts_with(name));
    let mut found = lines.filter(|l| labels.iter().all(|label| l.contains(label)));
    let line = found.next().unwrap_or_else(|| panic!("{name} of {code}"));
    let value = line.rsplit(' ').next().expect("a value");
    value.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn all_sides_agree_on_who_has_not_applied_which_change_since_when() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = scene::broker(4).await;
    let codes = scene::codes(4);
    let (issuer, sick) = (codes[0], codes[3]);
    let _healthy = Healthy::start(&broker, &codes[..3]).await;
    let mut stalled = Stalled::start(&broker, sick).await;
    let red = line(ENTITY, r#""health_code":{"colour":"red"}"#);
    let output = publish(&broker, dir.path(), issuer, &[red]).await;
    assert!(output.status.success(), "{output:?}");
    let began = Instant::now();
    let own = stalled.oldest().await;
    let expected = Said {
        platform: sick.into(),
        subscription: SUBSCRIPTION.to_owned(),
        records: 1,
        offset: own.offset.0,
        issuer: own.issuer.code().into(),
        since_us: own.durable_at.0,
    };

    let (shown, first) = until("the console names it first", NOTICED, async || {
        let picture = picture(&broker).await;
        let first = picture["findings"][0].clone();
        match first["platform"] == sick && first["severity"] == "warning" {
            true => Ok((of_platform(&picture["subscriptions"], sick), first)),
            false => Err(first.to_string()),
        }
    })
    .await;
    assert_eq!(said(&shown, &shown["lag"][0]), expected);
    assert_eq!(first["why"], "not_applying", "{first}");
    assert_eq!(first["since_us"], expected.since_us);
    assert_eq!(first["offset"], expected.offset);
    let told = of_platform(&json(&broker, &["lag"]).await, sick);
    assert_eq!(said(&told, &told["urgent"]), expected);
    let metrics = page(&broker, "/metrics").await;
    assert_eq!(
        gauge(&metrics, "hutong_subscription_lag_records", sick),
        1.0
    );
    let checked = hutong(
        &broker,
        "operator/check",
        &["check", "--warn", "1s", "--crit", "60s"],
    )
    .await;
    assert!(began.elapsed() < NOTICED, "{:?}", began.elapsed());
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(
        text.starts_with(&format!(
            "HUTONG WARNING - {sick}/main has not applied 1 urgent"
        )),
        "{text}"
    );
    let checked = hutong(
        &broker,
        "operator/check",
        &["check", "--warn", "1ms", "--crit", "2ms"],
    )
    .await;
    assert_eq!(checked.status.code(), Some(2), "{checked:?}");
    let critical = String::from_utf8_lossy(&checked.stdout).into_owned();
    let says = format!("HUTONG CRITICAL - {sick}/main has not applied 1 urgent");
    assert!(critical.starts_with(&says), "{critical}");
    // Their ages are the same, but for the time between two questions.
    let ages = [
        shown["lag"][0]["seconds"].as_f64().expect("a number"),
        told["urgent"]["seconds"].as_f64().expect("a number"),
        gauge(&metrics, "hutong_subscription_lag_seconds", sick),
    ];
    let spread = ages
        .iter()
        .fold(0.0, |m: f64, a| m.max((a - ages[0]).abs()));
    assert!(spread < APART_SECONDS, "{ages:?}");
    let trace = json(
        &broker,
        &[
            "trace",
            ENTITY,
            "--issuer",
            &issuer.to_string(),
            "--kind",
            "health_code",
        ],
    )
    .await;
    let hop = of_platform(&trace["hops"], sick);
    assert_eq!(hop["state"], "sent", "{trace}");

    stalled.heal();
    until("the console is clear", PATIENCE, async || {
        let picture = picture(&broker).await;
        match picture["severity"] == "critical" || picture["severity"] == "warning" {
            true => Err(picture["findings"].to_string()),
            false => Ok(()),
        }
    })
    .await;
    let told = of_platform(&json(&broker, &["lag"]).await, sick);
    assert_eq!(told["urgent"]["records"], 0, "{told}");
    let metrics = page(&broker, "/metrics").await;
    assert_eq!(
        gauge(&metrics, "hutong_subscription_lag_records", sick),
        0.0
    );
    let checked = hutong(&broker, "operator/check", &["check"]).await;
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_knows_nothing_says_so_with_3() {
    let broker = scene::broker(2).await;
    let nobody = hutong(&broker, "operator/check", &["check"]).await;
    assert_eq!(nobody.status.code(), Some(3), "{nobody:?}");
    let wrong = hutong(&broker, "operator/check", &["check", "--warn", "soon"]).await;
    assert_eq!(wrong.status.code(), Some(3), "{wrong:?}");
    broker.stop().await;
    let gone = tokio::process::Command::new(env!("CARGO_BIN_EXE_hutong"))
        .args(["check", "--address", "http://127.0.0.1:1"])
        .output()
        .await
        .expect("the binary starts");
    assert_eq!(gone.status.code(), Some(3), "{gone:?}");
    assert!(String::from_utf8_lossy(&gone.stdout).starts_with("HUTONG UNKNOWN - "));
}
