//! Six drills, played for real: the broker's release binary, real gRPC, real faults; two that are stopped on the
//! way; two of a broker that dies at places in its own code; and one more of a broker with a bug in it, which must fail. One after the other, because each wants the machine for itself.

mod program;

use hutong_chaos::{
    drill::find,
    plants::drills::{PREY, hunt},
};
use hutong_plants::Plant;
use program::{Chaos, exit_code};
use serde_json::Value;
use std::path::Path;

/// Plays a drill; its verdict, which must be PASS, and its proof is that of every fault.
#[track_caller]
fn passes(name: &str, chaos: &Chaos) -> Value {
    let (code, json, log) = chaos.play(name, &["--seed", "7"]);
    assert_eq!(exit_code(code), Some(0), "{name}: {json:#}\n{log}");
    assert_eq!(json["outcome"], "PASS", "{json:#}");
    for fault in json["faults"].as_array().expect("faults") {
        let proof = fault["proof"].as_array().expect("proof");
        assert!(!proof.is_empty(), "{fault:#}");
        assert!(proof.iter().all(|p| p["holds"] == true), "{fault:#}");
    }
    let fail_stop = find(name).expect("built in").hypothesis.fail_stop;
    // Who has to stop by itself is looked at only where something asks for it.
    for n in (1..=12).filter(|n| *n != 11 || fail_stop) {
        held(&json, n);
    }
    json
}

/// It was looked at, and it held.
#[track_caller]
fn held(json: &Value, n: u32) {
    let finding = &json["findings"][format!("INV-{n}")];
    assert!(finding["checked"].as_u64() > Some(0), "INV-{n}: {json:#}");
    assert_eq!(finding["violations"], 0, "INV-{n}: {json:#}");
}

/// Drills that need something from the machine are played where it is there; elsewhere `list` says why not.
#[test]
fn six_drills_pass_each_with_proof_of_its_faults() {
    let chaos = Chaos::new();
    for name in [
        "kill-broker",
        "pause-broker",
        "partition",
        "power-loss",
        "sync-error",
        "kill-connector",
    ] {
        match chaos.why_not(name) {
            None => {
                let json = passes(name, &chaos);
                println!("{name}: {}", json["totals"]);
            }
            // The others need no more than a process and what `./dev` installs.
            Some(why) => {
                let needs = ["power-loss", "sync-error"].contains(&name);
                assert!(needs && !is_root(), "{name} is not played here: {why}");
                println!("{name} is not played here: {why}");
            }
        }
    }
}

/// The broker stands still for longer than the drill lets anybody wait.
const STOPS: &str = r#"# A broker that stands still, until it is enough.
name = "stops"
title = "t"
title_zh = "t"
why = "w"
why_zh = "w"
duration = "14s"

[hypothesis]
recovery = "4s"

[workload]
platforms = 2
rate = 200

[[faults]]
kind = "pause-broker"
at = "3s"
for = "6s"

[stop]
"#;

fn stops(condition: &str, chaos: &Chaos) -> (Option<i32>, Value, String) {
    let file = chaos.dir().join("stops.toml");
    std::fs::write(&file, format!("{STOPS}{condition}\n")).expect("written");
    let (status, json, log) = chaos.play("stops.toml", &[]);
    (exit_code(status), json, log)
}

#[test]
fn a_stop_condition_ends_a_drill_as_a_fail_and_undoes_its_fault() {
    let chaos = Chaos::new();
    let (code, json, log) = stops("urgent_lag = \"1s\"", &chaos);
    assert_eq!(code, Some(1), "{json:#}\n{log}");
    assert_eq!(json["reasons"][0]["kind"], "stop-condition", "{json:#}");
    // Long before its time, and the broker ran again: everybody came to have everything.
    let fault = &json["faults"][0];
    let at = |name: &str| fault[name].as_f64().unwrap_or_else(|| panic!("{json:#}"));
    assert!(at("healing_s") - at("begin_s") < 5.0, "{json:#}");
    for n in 1..=9 {
        if n != 5 {
            held(&json, n);
        }
    }
    let left: Vec<_> = std::fs::read_dir(chaos.tmp()).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// It says that this machine, or this load, is not one to drill on.
#[test]
fn a_stop_condition_that_is_met_before_the_first_fault_says_nothing() {
    let chaos = Chaos::new();
    let (code, json, log) = stops("memory = \"1MiB\"", &chaos);
    assert_eq!(code, Some(3), "{json:#}\n{log}");
    let reasons = json["reasons"].as_array().expect("reasons");
    let too_soon = |reason: &Value| reason["kind"] == "stopped-too-soon";
    assert!(reasons.iter().any(too_soon), "{json:#}");
    assert!(json["faults"][0]["begin_s"].is_null(), "{json:#}");
}

/// Of the broker that is built for drills; one that is built for people has no such place.
const AT_EDGES: &str = r#"# A broker that dies at an edge of a commit, and then in the recovery of a kill.
name = "at-edges"
title = "t"
title_zh = "t"
why = "w"
why_zh = "w"
duration = "16s"

[hypothesis]
recovery = "4s"

[workload]
platforms = 2
rate = 200

[[faults]]
kind = "crash-at-edge"
edge = "commit-synced"
nth = 5
at = "3s"
for = "1s"

[[faults]]
kind = "crash-at-edge"
edge = "recovery-mended"
at = "9s"
for = "1500ms"
"#;

#[test]
fn a_broker_dies_at_the_edges_that_a_drill_names_and_comes_back() {
    let chaos = Chaos::new();
    std::fs::write(chaos.dir().join("at-edges.toml"), AT_EDGES).expect("written");
    let (status, json, log) = chaos.play("at-edges.toml", &[]);
    assert_eq!(exit_code(status), Some(0), "{json:#}\n{log}");
    let seen = |fault: usize| {
        let proof = &json["faults"][fault]["proof"];
        assert_eq!(proof[1]["holds"], true, "{json:#}");
        proof[0]["seen"]["en"].as_str().expect("a text").to_owned()
    };
    assert!(seen(0).starts_with("5 of 5, process "), "{json:#}");
    assert!(seen(1).starts_with("1 of 1, process "), "{json:#}");
    // The first one, one after each crash, and none that the second crash let become ready.
    assert_eq!(json["totals"]["broker_starts"], 3, "{json:#}");
}

#[test]
fn an_edge_that_nobody_comes_to_proves_nothing() {
    let chaos = Chaos::new();
    std::fs::write(chaos.dir().join("at-edges.toml"), AT_EDGES).expect("written");
    let more = ["--edge", "commit-told", "--nth", "1000000"];
    let (status, json, log) = chaos.play("at-edges.toml", &more);
    assert_eq!(exit_code(status), Some(3), "{json:#}\n{log}");
    assert_eq!(json["reasons"][0]["kind"], "proof-is-missing", "{json:#}");
    assert_eq!(json["totals"]["broker_starts"], 1, "{json:#}");
}

/// Not only the simulation sees a bug: so does a drill, in processes, from what clients saw.
#[test]
fn a_drill_fails_on_a_broker_with_a_bug_in_it() {
    let program = Path::new(env!("CARGO_BIN_EXE_hutong-chaos"));
    let prey = PREY
        .iter()
        .find(|p| p.plant == Plant::SnapshotWithoutGathered);
    let caught = hunt(prey.expect("it is hunted"), program).expect("it is played");
    println!("{caught}");
    assert_eq!(caught.outcome, "FAIL", "{caught:?}");
    assert!(caught.caught, "{caught:?}");
}

/// Who is root can play all of them, with what `./dev` installs.
fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}
