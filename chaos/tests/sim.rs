//! The simulation: seeds pass, a seed is the same each time, and seeds that once failed stay.

use hutong_chaos::sim;
use std::path::Path;

const SEEDS: u64 = 1000;
const SEEDS_TWICE: u64 = 100;

#[test]
fn a_seed_is_the_same_each_time() {
    for seed in 1..=SEEDS_TWICE {
        assert_eq!(sim::differs(&sim::run(seed, true)), None);
    }
}

#[test]
fn whatever_breaks_promises_hold_and_everyone_agrees_in_the_end() {
    let mut report = sim::Report::default();
    for seed in 1..=SEEDS {
        report.add(&sim::run(seed, false));
    }
    println!("{report}");
    assert!(report.failures.is_empty(), "{report}");
    assert!(
        report.acknowledged > SEEDS * 100,
        "it hardly does anything: {report}"
    );
}

/// Each was a bug once.
#[test]
fn kept_seeds_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for file in std::fs::read_dir(folder).expect("chaos/seeds") {
        let path = file.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "seed") {
            let text = std::fs::read_to_string(&path).expect("UTF-8");
            for line in text.lines().filter(|line| !line.starts_with('#')) {
                let seed = line.trim().parse().expect("a seed");
                assert_eq!(sim::run(seed, false).violation, None, "{}", path.display());
            }
        }
    }
}
