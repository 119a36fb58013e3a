//! The demo from outside: a short run of each kind, judged by its JSON.

use serde_json::Value;
use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn demo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hutong"))
        .arg("demo")
        .args(args)
        .output()
        .expect("the binary starts")
}

/// The object on the last line of a run that must be good.
fn good(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let last = stdout.lines().last().expect("a last line");
    let json: Value = serde_json::from_str(last).expect("JSON on the last line");
    for name in ["lost", "doubled", "went_back", "unknown", "refused"] {
        assert_eq!(json[name], 0, "{name} in {last}\n{stderr}");
    }
    assert_eq!(json["views_equal"], true, "{last}\n{stderr}");
    assert_eq!(json["published"], json["acknowledged"], "{last}\n{stderr}");
    json
}

#[test]
fn four_platforms_exchange_a_surge_without_a_loss() {
    let json = good(&demo(&[
        "--for",
        "3",
        "--rate",
        "2000",
        "--platforms",
        "4",
        "--json",
    ]));
    assert_eq!(json["platforms"], 4);
    // The surge, and what the stories publish.
    let published = json["published"].as_u64().expect("a number");
    assert!((6000..6100).contains(&published), "{published}");
    // Each delta goes to all platforms but its own.
    assert_eq!(json["delivered"], published * 3);
    for lane in ["urgent", "bulk"] {
        let latency = &json["latency_ms"][lane];
        let (p50, p99, max) = (&latency["p50"], &latency["p99"], &latency["max"]);
        assert!(p50.as_f64() > Some(0.0), "{latency}");
        assert!(
            p50.as_f64() <= p99.as_f64() && p99.as_f64() <= max.as_f64(),
            "{latency}"
        );
    }
    let stories = json["stories"].as_array().expect("stories");
    assert_eq!(stories.len(), 3);
    for step in stories
        .iter()
        .flat_map(|s| s["steps"].as_array().expect("steps"))
    {
        assert_eq!(step["applied_on"], 3, "{step}");
    }
    assert!(json["memory_peak_mb"].as_u64() > Some(0));
    assert!(json["disk_bytes"].as_u64() > Some(0));
}

#[test]
fn people_read_a_summary_and_the_data_is_kept_when_asked() {
    let parent = tempfile::tempdir().expect("a folder");
    let dir = parent.path().join("kept");
    let path = dir.to_str().expect("a plain path");
    let output = demo(&[
        "--for",
        "1",
        "--rate",
        "500",
        "--platforms",
        "2",
        "--keep",
        path,
    ]);
    let text = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{stderr}");
    for part in [
        "Story 1",
        "Story 3",
        "Not told",
        "Mass testing",
        "Summary",
        "views equal",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    assert!(!text.contains('\x1b'), "colour without a terminal:\n{text}");
    assert!(fs::read_dir(&dir).expect("kept").count() > 0);
}

/// Everything below a folder, without the folders themselves.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a folder").flatten();
    entries
        .flat_map(|entry| match entry.path() {
            path if path.is_dir() => files(&path),
            path => vec![path],
        })
        .collect()
}

#[test]
fn every_platform_has_connectors_that_keep_their_state_and_nothing_is_refused() {
    let parent = tempfile::tempdir().expect("a folder");
    let dir = parent.path().join("kept");
    let path = dir.to_str().expect("a plain path");
    let json = good(&demo(&[
        "--for",
        "1",
        "--rate",
        "400",
        "--platforms",
        "2",
        "--keep",
        path,
        "--json",
    ]));
    assert!(json["published"].as_u64() >= Some(400));
    for platform in ["340000", "510000"] {
        for connector in ["urgent", "bulk"] {
            let state = dir.join("state").join(platform).join(connector);
            let text = fs::read_to_string(state.join("checkpoint.json")).expect("a checkpoint");
            let stored: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(stored["source"], "demo-outbox", "{text}");
            assert!(stored["checkpoint"].as_u64() > Some(0), "{text}");
            let letters = state.join("dead-letters.jsonl");
            assert!(!letters.exists(), "{}", letters.display());
        }
    }
}

#[test]
fn an_interrupt_in_the_middle_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut demo = Command::new(env!("CARGO_BIN_EXE_hutong"))
        .args(["demo", "--for", "600", "--rate", "2000", "--platforms", "4"])
        .env("TMPDIR", temporary.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let stdout = demo.stdout.take().expect("a pipe");
    let mut lines = BufReader::new(stdout).lines();
    // A line of the load: connectors write their checkpoints now.
    let loaded = lines.by_ref().find(|line| {
        let line = line.as_deref().unwrap_or("");
        line.split_whitespace().next() == Some("1")
    });
    assert!(loaded.is_some(), "it ended before the load");
    assert!(!files(temporary.path()).is_empty());
    let killed = Command::new("kill")
        .args(["-INT", &demo.id().to_string()])
        .status()
        .expect("kill runs");
    assert!(killed.success());
    let status = demo.wait().expect("it ends");
    let mut stderr = String::new();
    let mut pipe = demo.stderr.take().expect("a pipe");
    pipe.read_to_string(&mut stderr).expect("text");
    assert_eq!(status.code(), Some(130), "{stderr}");
    let left: Vec<_> = fs::read_dir(temporary.path())
        .expect("the folder")
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_held_demo_keeps_its_console_up_until_it_is_interrupted() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_hutong"))
        .args(["demo", "--for", "1", "--rate", "200"])
        .args(["--platforms", "2", "--hold"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let stdout = demo.stdout.take().expect("a pipe");
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let held = lines.find(|line| line.trim_start().starts_with("Still up:"));
    let held = held.expect("it says where to look");
    let console = held.split_whitespace().nth(2).expect("an address");
    let address = console
        .strip_prefix("http://")
        .and_then(|rest| rest.strip_suffix("/console/"));
    let address = address.expect("the console's");
    let mut stream = TcpStream::connect(address).expect("it is up");
    write!(stream, "GET /console/ HTTP/1.0\r\nHost: {address}\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("a page");
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    let killed = Command::new("kill")
        .args(["-INT", &demo.id().to_string()])
        .status()
        .expect("kill runs");
    assert!(killed.success());
    assert_eq!(demo.wait().expect("it ends").code(), Some(0));
}

/// Its standard error is a terminal, as a person has it.
fn on_a_terminal(args: &[&str]) -> Output {
    let mut command = vec![env!("CARGO_BIN_EXE_hutong"), "demo"];
    command.extend(args);
    Command::new("script")
        .args(["--quiet", "--return", "--command", &command.join(" ")])
        .arg("/dev/null")
        .stdin(Stdio::null())
        .output()
        .expect("script runs")
}

#[test]
fn a_replay_shows_how_far_it_is() {
    let dir = tempfile::tempdir().expect("a folder");
    for hour in 10..16 {
        let area = serde_json::json!({"type": "2", "province": "安徽省", "city": "宿州市", "county": "泗县",
            "area_name": "n", "communitys": [format!("镇 {hour}")]});
        let list = serde_json::json!({"code": 0, "msg": "", "data": {
            "end_update_time": format!("2022-04-15 {hour}时"), "hcount": 1, "mcount": 0,
            "highlist": [area], "middlelist": []}});
        let name = format!("20220415{hour}-a.json");
        fs::write(dir.path().join(name), list.to_string()).expect("written");
    }
    let path = dir.path().to_str().expect("a plain path");
    let output = on_a_terminal(&["--risk-levels", path, "--platforms", "32"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("replaying"), "{text}");
    assert!(text.contains(" of 6 lists"), "{text}");
}

/// The published lists of risk areas, where somebody has put them; they are no part of the project.
fn risk_levels() -> Option<PathBuf> {
    let data = env::var_os("HUTONG_TEST_DATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data")),
        PathBuf::from,
    );
    Some(data.join("risk-levels")).filter(|dir| dir.is_dir())
}

#[test]
fn published_lists_arrive_on_every_platform_exactly() {
    let Some(source) = risk_levels() else {
        eprintln!("no published lists here: nothing to replay");
        return;
    };
    let mut files: Vec<PathBuf> = fs::read_dir(source)
        .expect("the folder")
        .flatten()
        .map(|e| e.path())
        .collect();
    files.sort();
    let dir = tempfile::tempdir().expect("a folder");
    // From before and after the lists began to have a third level.
    for file in files.iter().step_by(files.len() / 12) {
        let name = file.file_name().expect("a name");
        fs::copy(file, dir.path().join(name)).expect("a copy");
    }
    let path = dir.path().to_str().expect("a plain path");
    let json = good(&demo(&["--risk-levels", path, "--json"]));
    assert_eq!(json["platforms"], 32);
    assert_eq!(json["risk_levels"]["unequal"], 0);
    assert!(json["risk_levels"]["files_compared"].as_u64() >= Some(12));
}
