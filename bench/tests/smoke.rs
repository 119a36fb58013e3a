//! Every scenario runs, loses nothing and ends with one JSON object that has what its readers look
//! for. How fast it was is not asked here: other tests run beside it.

use serde_json::Value;
use std::process::{Command, Stdio};

fn run(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_hutong-bench"))
        .args(arguments)
        .arg("--json")
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let last = text.lines().last().expect("a line");
    serde_json::from_str(last).expect("one JSON object")
}

fn positive(report: &Value, path: &str) {
    let value = report.pointer(path).and_then(Value::as_f64);
    assert!(value.is_some_and(|v| v > 0.0), "{path} in {report}");
}

#[test]
fn ingest_and_fanout_report_what_they_measured() {
    let ingest = run(&["ingest", "--seconds", "0.5", "--warmup", "0.1"]);
    for path in [
        "/deltas_per_s",
        "/latency_ms/ack/p99",
        "/broker/memory_peak_mb",
    ] {
        positive(&ingest, path);
    }
    assert_eq!(ingest["lost"], 0);
    let fanout = run(&[
        "fanout",
        "--seconds",
        "0.5",
        "--warmup",
        "0.1",
        "--rate",
        "4000",
        "--subscribers",
        "4",
    ]);
    for path in [
        "/deliveries_per_s",
        "/latency_ms/urgent/p99",
        "/latency_ms/bulk/max",
    ] {
        positive(&fanout, path);
    }
    assert_eq!(
        (&fanout["lost"], &fanout["doubled"]),
        (&Value::from(0), &Value::from(0))
    );
}

#[test]
fn the_comparison_runs_both_systems_and_gives_their_ratio() {
    let report = run(&[
        "compare",
        "--seconds",
        "0.5",
        "--warmup",
        "0.1",
        "--repeats",
        "1",
        "--receivers",
        "4",
        "--producers",
        "2",
        "--peers",
        "jetstream",
    ]);
    for row in ["ingest", "fanout", "single"] {
        positive(&report, &format!("/ratio/jetstream/{row}"));
        for system in ["hutong", "jetstream"] {
            positive(
                &report,
                &format!("/systems/{system}/{row}/deltas_per_s/median"),
            );
        }
    }
    for system in ["hutong", "jetstream"] {
        positive(
            &report,
            &format!("/systems/{system}/fanout/deliveries_per_s/min"),
        );
    }
    assert_eq!(report["options"]["repeats"], 1);
    positive(&report, "/environment/cores");
}

#[test]
fn a_peer_that_cannot_start_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_hutong-bench"))
        .args(["compare", "--short", "--rows", "ingest"])
        .env("HUTONG_NATS_SERVER", "/nowhere/nats-server")
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("/nowhere/nats-server"), "{errors}");
    assert!(errors.contains("./dev bench"), "what to do: {errors}");
}
