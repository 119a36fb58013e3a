//! Every scenario runs, loses nothing and ends with one JSON object that has what its readers look
//! for. How fast it was is not asked here: other tests run beside it.

use serde_json::Value;
use std::{
    path::Path,
    process::{Command, Stdio},
};

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

/// On a machine that others use it may be low, but who works is busy for some of the time: a load of which nobody
/// counts what it does would have waited for all of it.
fn share(report: &Value, path: &str) {
    let value = report.pointer(path).and_then(Value::as_f64);
    let is_one = value.is_some_and(|v| (0.0..1.0).contains(&v));
    assert!(is_one, "{path} in {report}");
}

/// What the reference names in backquotes, in its part about this program.
fn names() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference.md");
    let page = std::fs::read_to_string(page).expect("the reference");
    let (_, part) = page.split_once("### `hutong-bench`").expect("its part");
    let part = part.split("\n### ").next().unwrap_or(part);
    part.split('`').skip(1).step_by(2).flat_map(each).collect()
}

/// `a.{b,c}` is `a.b` and `a.c`.
fn each(name: &str) -> Vec<String> {
    let (Some(begin), Some(end)) = (name.find('{'), name.find('}')) else {
        return vec![name.to_owned()];
    };
    let all = name[begin + 1..end].split(',');
    let all = all.map(|one| format!("{}{one}{}", &name[..begin], &name[end + 1..]));
    all.flat_map(|one| each(&one)).collect()
}

/// Keys with dots, of all that is no object.
fn keys(value: &Value, before: &str, out: &mut Vec<String>) {
    match value.as_object() {
        Some(all) => {
            for (key, value) in all {
                keys(value, &format!("{before}{key}."), out);
            }
        }
        None => out.push(before.trim_end_matches('.').to_owned()),
    }
}

/// Whether a name of the reference stands for a key: `<x>` is any part, `*` all that comes, and N a number.
fn stands_for(name: &str, key: &str) -> bool {
    let (mut names, mut parts) = (name.split('.'), key.split('.'));
    loop {
        match (names.next(), parts.next()) {
            (None, None) | (Some("*"), Some(_)) => return true,
            (Some(name), Some(part)) => {
                let step = name.strip_suffix('N').and_then(|n| part.strip_prefix(n));
                let is_step = step.is_some_and(|n| n.parse::<u64>().is_ok());
                if name != part && !is_step && !(name.starts_with('<') && name.ends_with('>')) {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

/// Each key of a report is explained where readers look for it.
fn documented(report: &Value) {
    let names = names();
    let mut all = Vec::new();
    keys(report, "", &mut all);
    for key in all.iter().filter(|key| !key.starts_with("configuration.")) {
        // As the reference says: `repeats` has the same keys, with three numbers in the place of each.
        let key = match key.strip_prefix("repeats.") {
            Some(repeated) if repeated != "count" => repeated,
            _ => key,
        };
        let of_system = key.strip_prefix("systems.");
        let key = of_system.map_or(key, |key| key.splitn(3, '.').nth(2).unwrap_or(key));
        let mut groups = ["figures.", "environment."].into_iter();
        let key = groups
            .find_map(|group| key.strip_prefix(group))
            .unwrap_or(key);
        // Of peers there are those that were asked for.
        let key = if key.starts_with("peers.") {
            "peers"
        } else {
            key
        };
        let mut ends = [".median", ".min", ".max"].into_iter();
        let number = ends.find_map(|end| key.strip_suffix(end)).unwrap_or(key);
        let known = |name: &String| stands_for(name, key) || stands_for(name, number);
        let shown = "docs/reference.md";
        assert!(names.iter().any(known), "{key} is not in {shown}");
    }
}

/// Scenarios in their order, and what must be above zero.
const WANTED: [(&str, &[&str]); 8] = [
    (
        "ingest",
        &[
            "/deltas_per_s",
            "/latency_ms/ack/p99",
            "/broker/cpu_s_per_million",
        ],
    ),
    ("single", &["/deltas_per_s", "/latency_ms/ack/p999"]),
    (
        "fanout",
        &[
            "/deliveries_per_s",
            "/latency_ms/urgent/p99",
            "/latency_ms/bulk/max",
            "/figures/stalled_records_behind",
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
            "/deltas_per_s",
            "/broker/cpu_s_per_million_deliveries",
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
    assert_eq!(reports.len(), WANTED.len(), "{text}");
    for (report, (scenario, paths)) in reports.iter().zip(WANTED) {
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
        // Idle has nothing to do but to wait.
        if report["scenario"] != "idle" {
            share(report, "/figures/load_waited_share");
        }
        documented(report);
    }
    // Who has nothing to do waits, on a busy machine too.
    let idle = &reports[7]["figures"]["load_waited_share"];
    assert!(idle.as_f64().is_some_and(|v| v > 0.5), "{idle}");
    for scenario in [2, 3, 4] {
        share(&reports[scenario], "/figures/load_receivers_waited_share");
    }
    share(&reports[6], "/figures/load_waited_share_at_2000");
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
        "Lag of subscribers",
        "Processor",
        "Memory of the broker",
    ] {
        assert!(page.contains(&format!("<figcaption>{title}")), "{title}");
    }
    assert!(page.contains("<polyline"), "drawn, not only listed");
}

#[test]
fn a_page_draws_each_step_what_catches_up_and_what_is_behind() {
    let dir = tempfile::tempdir().expect("a folder");
    let drawn = |options: &str, titles: &[&str]| {
        let page = dir.path().join("page.html");
        let mut arguments: Vec<&str> = options.split(' ').collect();
        arguments.extend(["--repeats", "1", "--html"]);
        arguments.push(page.to_str().expect("UTF-8"));
        run(&arguments);
        let page = std::fs::read_to_string(page).expect("a page");
        for title in titles {
            let title = format!("<figcaption>{title}");
            assert!(page.contains(&title), "{options}: {title}");
        }
    };
    drawn(
        "scale --seconds 0.3 --warmup 0.1 --registers 2000,8000 --log 64MiB",
        &[
            "Latency, ack, 0.002 M registers",
            "Deltas acknowledged, 0.008 M registers",
            "Memory of the broker, 0.002 M registers",
        ],
    );
    drawn(
        "bootstrap --registers 20000",
        &[
            "Registers taken",
            "Lag of subscribers",
            "Memory of the broker",
        ],
    );
    drawn(
        "catchup --seconds 0.5 --warmup 0.1 --subscribers 4 --behind 20000 --rate 2000",
        &[
            "Latency, urgent_alone",
            "To who catches up",
            "Lag of subscribers",
        ],
    );
}

/// What the options say would not have been measured.
#[test]
fn stalled_subscribers_to_whom_nothing_is_offered_are_an_error() {
    let options =
        "fanout --seconds 0.3 --warmup 0 --rate 2000 --subscribers 1 --stalled 1 --repeats 1";
    let output = Command::new(env!("CARGO_BIN_EXE_hutong-bench"))
        .args(options.split(' '))
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("stalled-0 of 110000"), "{errors}");
    assert!(errors.contains("--subscribers"), "what to do: {errors}");
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
        // Few enough that a slow disk acknowledges what was sent before the measured time within it.
        "--in-flight",
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
        for row in ["fanout", "latency"] {
            for figure in ["cpu_s_per_million", "cpu_s_per_million_deliveries"] {
                // The kernel counts in hundredths of a second, of which so short a turn may take none.
                let path = format!("{at}/{row}/{figure}/median");
                let value = report.pointer(&path).and_then(Value::as_f64);
                assert!(value.is_some_and(|v| v >= 0.0), "{path} in {report}");
            }
            for figure in ["load_waited_share", "load_receivers_waited_share"] {
                share(&report, &format!("{at}/{row}/{figure}/median"));
            }
        }
        positive(&report, &format!("{at}/latency/latency_ms/urgent/p99/max"));
        positive(&report, &format!("{at}/single/durability/syncs"));
        positive(&report, &format!("{at}/ingest/durability/deltas_per_sync"));
    }
    documented(&report);
    for system in ["hutong"].into_iter().chain(peers) {
        // Whatever was behind after the warm-up came before the clock started, so each delivery is of a delta that counts.
        let fanout = &report["systems"][system]["fanout"];
        let [deltas, deliveries] = ["deltas_per_s", "deliveries_per_s"]
            .map(|name| fanout[name]["median"].as_f64().expect("a number"));
        let receivers = deliveries / deltas;
        assert!((receivers - 4.0).abs() < 0.01, "{system}: {receivers}");
    }
    // A message is a batch there, and each is synced on its own.
    let jetstream = &report["systems"]["jetstream"]["ingest"]["durability"];
    assert_eq!(jetstream["deltas_per_sync"], 256.0, "{jetstream}");
    assert_eq!(report["configuration"]["repeats"], 1);
    positive(&report, "/environment/cores");
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains("<rect") && page.contains("latency: urgent everywhere p99"));
    for title in [
        "ingest: latency until the ack, jetstream",
        "latency: latency urgent everywhere, hutong",
        "fanout: deliveries",
        "fanout: lag of the receiver that is furthest behind",
        "single: memory of the system",
        "latency: CPU s a million deliveries",
    ] {
        assert!(page.contains(&format!("<figcaption>{title}")), "{title}");
    }
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
