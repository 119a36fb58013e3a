//! The simulation: seeds pass, a seed is the same each time, and seeds that once failed stay.

use hutong_chaos::sim::{self, world::Violation};
use std::path::{Path, PathBuf};

const SEEDS: u64 = 1000;
const SEEDS_TWICE: u64 = 100;

/// Of seeds that failed once.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds")
}

/// A seed that fails here is kept as one of the command's is, so that it is in the change that mends it.
fn keep(outcome: &sim::Outcome) {
    if let Some(file) = sim::keep(&folder(), outcome).expect("chaos/seeds can be written to") {
        println!("kept: {}", file.display());
    }
}

/// None is believed before the first ones were the same twice.
#[test]
fn whatever_breaks_promises_hold_and_everyone_agrees_in_the_end() {
    let first: Vec<_> = (1..=SEEDS_TWICE).map(sim::run_twice).collect();
    let mut report = sim::Report::default();
    for outcome in first.iter().filter(|outcome| outcome.differs()) {
        keep(outcome);
        report.add(outcome);
    }
    assert!(report.failures.is_empty(), "{report}");
    let others = (SEEDS_TWICE + 1..=SEEDS).map(|seed| sim::run(seed, false));
    for outcome in first.into_iter().chain(others) {
        keep(&outcome);
        report.add(&outcome);
    }
    println!("{report}");
    assert!(report.failures.is_empty(), "{report}");
    assert!(
        report.acknowledged > SEEDS * 100,
        "it hardly does anything: {report}"
    );
}

/// The seeds of a file: what is no comment.
fn seeds(text: &str) -> Vec<u64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.trim().parse().expect("a seed"))
        .collect()
}

/// Each was a bug once.
#[test]
fn kept_seeds_pass() {
    for file in std::fs::read_dir(folder()).expect("chaos/seeds") {
        let path = file.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "seed") {
            let text = std::fs::read_to_string(&path).expect("UTF-8");
            for seed in seeds(&text) {
                assert_eq!(sim::run_twice(seed).violation, None, "{}", path.display());
            }
        }
    }
}

#[test]
fn a_seed_that_is_another_one_the_second_time_is_told_with_its_place() {
    let played = sim::run(1, true);
    assert_eq!(sim::differs(&played), None);
    let text = played.trace.clone().expect("a trace");
    let line = text.lines().nth(9).expect("ten lines");
    let other = sim::Outcome {
        trace: Some(text.replacen(line, "something else", 1)),
        ..played
    };
    let told = sim::differs(&other).expect("a difference");
    assert!(told.contains("seed 1") && told.contains("(9, "), "{told}");
}

#[test]
fn a_seed_that_fails_is_kept_and_can_be_read_again() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let passed = sim::run(1, false);
    assert_eq!(sim::keep(dir.path(), &passed).expect("nothing to do"), None);
    let failed = sim::Outcome {
        violation: Some(Violation {
            invariant: "INV-11",
            what: "a panic: one line\nand 17 more".to_owned(),
        }),
        ..passed
    };
    let file = sim::keep(dir.path(), &failed).expect("written");
    let text = std::fs::read_to_string(file.expect("kept")).expect("UTF-8");
    assert!(text.starts_with("# INV-11: a panic"), "{text}");
    assert_eq!(seeds(&text), [failed.seed]);
    // And the report says how it is played again.
    let mut report = sim::Report::default();
    report.add(&failed);
    let again = "hutong-chaos sim --seed 1";
    assert!(report.to_string().contains(again), "{report}");
}
