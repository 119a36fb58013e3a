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
fn every_scenario_runs_loses_nothing_and_reports_what_it_measured() {
    let output = Command::new(env!("CARGO_BIN_EXE_hutong-bench"))
        .arg("smoke")
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let reports: Vec<Value> = (text.lines())
        .map(|line| serde_json::from_str(line).expect("one JSON object a line"))
        .collect();
    let wanted = [
        (
            "ingest",
            &[
                "/deltas_per_s",
                "/latency_ms/ack/p99",
                "/broker/cpu_s_per_million",
            ][..],
        ),
        ("single", &["/deltas_per_s", "/latency_ms/ack/p999"]),
        (
            "fanout",
            &[
                "/deliveries_per_s",
                "/latency_ms/urgent/p99",
                "/latency_ms/bulk/max",
            ],
        ),
        (
            "surge",
            &[
                "/figures/fits_bulk_deltas_per_s",
                "/latency_ms/urgent/p99",
                "/figures/drained_in_s",
            ],
        ),
        (
            "catchup",
            &[
                "/figures/catchup_deltas_per_s",
                "/figures/urgent_p99_ms_alone",
            ],
        ),
        ("bootstrap", &["/figures/registers_per_s"]),
        (
            "scale",
            &[
                "/figures/cost_to_first_at_8000",
                "/figures/deltas_per_s_at_2000",
            ],
        ),
        ("idle", &["/broker/memory_peak_mb"]),
    ];
    assert_eq!(reports.len(), wanted.len(), "{text}");
    for (report, (scenario, paths)) in reports.iter().zip(wanted) {
        assert_eq!(report["scenario"], scenario);
        for path in paths {
            positive(report, path);
            positive(&report["repeats"], &format!("{path}/median"));
        }
        assert_eq!(
            (&report["lost"], &report["doubled"]),
            (&Value::from(0), &Value::from(0))
        );
        positive(report, "/environment/cores");
    }
    assert_eq!(reports[5]["figures"]["registers"], 20_000.0);
}

#[test]
fn a_page_has_plots_and_a_file_is_a_scenario() {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, page) = (dir.path().join("mine.toml"), dir.path().join("page.html"));
    std::fs::write(
        &file,
        "scenario = \"fanout\"\nseconds = 2\nwarmup = 0.1\nrate = 2000\nsubscribers = 3\nrepeats = 2\n",
    )
    .expect("written");
    let shown = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let report = run(&[
        "run",
        &shown(&file),
        "--rate",
        "1000",
        "--html",
        &shown(&page),
    ]);
    assert_eq!(
        (
            &report["configuration"]["rate"],
            &report["repeats"]["count"]
        ),
        (&1000.into(), &2.into())
    );
    let page = std::fs::read_to_string(page).expect("a page");
    for title in [
        "Latency, urgent",
        "Latency, bulk",
        "Deliveries",
        "Memory of the broker",
    ] {
        assert!(page.contains(&format!("<figcaption>{title}")), "{title}");
    }
    assert!(page.contains("<polyline"), "drawn, not only listed");
}

#[test]
fn the_comparison_runs_all_systems_counts_their_syncs_and_gives_ratios() {
    let dir = tempfile::tempdir().expect("a folder");
    let page = dir.path().join("page.html");
    let peers = ["jetstream", "redis", "postgres"];
    let report = run(&[
        "compare",
        "--seconds",
        "0.5",
        "--warmup",
        "0.1",
        "--repeats",
        "1",
        "--proof",
        "0.3",
        "--receivers",
        "4",
        "--producers",
        "2",
        "--rate",
        "2000",
        "--peers",
        &peers.join(","),
        "--html",
        page.to_str().expect("UTF-8"),
    ]);
    for system in ["hutong"].into_iter().chain(peers) {
        for row in ["ingest", "fanout", "single", "latency"] {
            let at = format!("/systems/{system}/{row}");
            positive(&report, &format!("{at}/deltas_per_s/median"));
            if system != "hutong" {
                positive(&report, &format!("/ratio/{system}/{row}"));
            }
        }
        let at = format!("/systems/{system}");
        positive(&report, &format!("{at}/fanout/deliveries_per_s/min"));
        positive(&report, &format!("{at}/latency/latency_ms/urgent/p99/max"));
        positive(&report, &format!("{at}/single/durability/syncs"));
        positive(&report, &format!("{at}/ingest/durability/deltas_per_sync"));
    }
    // A message is a batch there, and each is synced on its own.
    let jetstream = &report["systems"]["jetstream"]["ingest"]["durability"];
    assert_eq!(jetstream["deltas_per_sync"], 256.0, "{jetstream}");
    assert_eq!(report["configuration"]["repeats"], 1);
    positive(&report, "/environment/cores");
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("<rect") && page.contains("latency: urgent everywhere p99"));
}

#[test]
fn a_peer_that_cannot_start_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_hutong-bench"))
        .args([
            "compare",
            "--short",
            "--rows",
            "ingest",
            "--peers",
            "jetstream",
        ])
        .env("HUTONG_NATS_SERVER", "/nowhere/nats-server")
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("/nowhere/nats-server"), "{errors}");
    assert!(errors.contains("./dev bench"), "what to do: {errors}");
}
