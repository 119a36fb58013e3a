//! Six drills, played for real: the broker's release binary, real gRPC, real faults; and one more of a broker with a
//! bug in it, which must fail. One after the other, because each wants the machine for itself.

mod program;

use hutong_chaos::plants::drills::{PREY, hunt};
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
    for n in 1..=10 {
        let finding = &json["findings"][format!("INV-{n}")];
        assert!(finding["checked"].as_u64() > Some(0), "INV-{n}: {json:#}");
        assert_eq!(finding["violations"], 0, "INV-{n}: {json:#}");
    }
    json
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
