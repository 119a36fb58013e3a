//! A short crash sweep of the real store, and a crash at each edge of a commit.

use hutong_chaos::sweep::Sweep;
use hutong_plants::{Failpoint, Plant};
use std::path::Path;

const POINTS: usize = 300;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hutong-chaos"))
}

#[test]
fn after_a_crash_anywhere_what_was_acknowledged_is_there() {
    let mut sweep = Sweep::new(program(), None, None).expect("starts");
    // The first writes few registers again and again, the second so many that state has several segments.
    for seed in [1, 2] {
        sweep.workload(seed, 200, POINTS / 2).expect("is swept");
    }
    println!("{}", sweep.report);
    assert!(sweep.report.failures.is_empty(), "{}", sweep.report);
    assert!(sweep.report.points >= POINTS * 9 / 10, "{}", sweep.report);
    assert!(sweep.report.recovery_points > 0, "{}", sweep.report);
}

/// Each of them is reached. The process is killed there, and then the power goes: what it had written and
/// not synced is lost, there in part, or torn.
#[test]
fn whoever_dies_at_any_edge_of_a_commit_has_kept_every_promise_on_the_disk() {
    const WORKLOAD: (u64, usize) = (4, 400);
    let mut sweep = Sweep::new(program(), None, None).expect("starts");
    for edge in Failpoint::ALL {
        for nth in [1, 2] {
            sweep.edge(WORKLOAD, *edge, nth).expect("is swept");
        }
    }
    println!("{}", sweep.report);
    assert!(sweep.report.failures.is_empty(), "{}", sweep.report);
    assert_eq!(sweep.report.points, Failpoint::ALL.len() * 2 * 4);
}

/// The same check, of a store that answers before it syncs. With the page cache left as it is, this
/// would pass.
#[test]
fn an_ack_before_its_sync_is_noticed_where_the_process_dies_between_them() {
    let mut sweep = Sweep::new(program(), None, Some(Plant::AckBeforeSync)).expect("starts");
    let found = (1..=12).any(|nth| {
        let swept = sweep.edge((3, 200), Failpoint::CommitTold, nth);
        swept.expect("is swept");
        sweep.found().is_some()
    });
    assert!(found, "{}", sweep.report);
}
