//! A short crash sweep of the real store, and a crash at each edge of a commit.

use hutong_chaos::sweep::{
    Sweep,
    check::{Checker, Said},
    plan::Plan,
};
use hutong_plants::Failpoint;
use std::{collections::BTreeMap, path::Path, process::Command};

const POINTS: usize = 300;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hutong-chaos"))
}

#[test]
fn after_a_crash_anywhere_what_was_acknowledged_is_there() {
    let mut sweep = Sweep::new(program(), None, None).expect("starts");
    sweep.workload(1, 200, POINTS).expect("is swept");
    println!("{}", sweep.report);
    assert!(sweep.report.failures.is_empty(), "{}", sweep.report);
    assert!(sweep.report.points >= POINTS * 9 / 10, "{}", sweep.report);
    assert!(sweep.report.recovery_points > 0, "{}", sweep.report);
}

/// Each of them is reached, and a process that dies there has kept its promises.
#[test]
fn a_process_that_dies_at_any_edge_of_a_commit_has_kept_its_promises() {
    const SEED: u64 = 3;
    const OPERATIONS: usize = 200;
    let plan = Plan::new(SEED, OPERATIONS);
    for point in Failpoint::ALL {
        for nth in [1, 3] {
            let folder = tempfile::tempdir().expect("a folder");
            let (dir, said) = (folder.path().join("data"), folder.path().join("said"));
            std::fs::create_dir(&dir).expect("a folder");
            let ended = Command::new(program())
                .args(["sweep-workload", "--seed", &SEED.to_string()])
                .args(["--operations", &OPERATIONS.to_string()])
                .args(["--crash-at", point.name(), "--nth", &nth.to_string()])
                .arg("--dir")
                .arg(&dir)
                .arg("--said")
                .arg(&said)
                .output()
                .expect("it runs");
            assert!(
                !ended.status.success(),
                "{} is not reached {nth} times",
                point.name()
            );
            let mut promised = Said::default();
            let text = std::fs::read_to_string(&said).expect("UTF-8");
            text.lines().for_each(|line| promised.take(line));
            let known = BTreeMap::new();
            let checker = Checker {
                plan: &plan,
                known: &known,
            };
            let checked = checker.check(&dir, &promised, 1);
            if let Err(violation) = checked {
                panic!("{} for the {nth}. time: {violation}", point.name());
            }
        }
    }
}
