//! A drill: what must hold, the load, what is broken and when, when to stop, and how to roll back. It
//! is a file that an SRE writes; [`read`](self) checks it with line and caret.

mod catalogue;
mod fault;
mod read;

pub use catalogue::{BUILT_IN, find};
pub use fault::{Claim, Clients, DISK_BYTES, Direction, Fault, What};

use hutong_config::{ConfigErrors, Document};
use hutong_plants::Failpoint;
use serde::{Deserialize, Serialize};
use std::{path::Path, time::Duration};

#[derive(Clone, Debug, PartialEq)]
pub struct Drill {
    pub name: String,
    pub title: String,
    pub title_zh: String,
    /// What a pass tells, in a sentence or two.
    pub why: String,
    pub why_zh: String,
    /// How long the load goes on; healing and checks come after it.
    pub duration: Duration,
    pub hypothesis: Hypothesis,
    pub workload: Workload,
    /// In the order of the file.
    pub faults: Vec<Fault>,
    pub stop: Stop,
    pub rollback: Rollback,
    pub file: String,
    pub text: String,
}

/// The steady state, as bounds that are measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Ninety-nine of a hundred urgent deltas are with every subscriber within this, before the first
    /// fault and after each recovery.
    pub urgent_lag: Duration,
    pub bulk_lag: Duration,
    /// The same while a fault is there; nothing, when a fault may hold everything up.
    pub urgent_lag_during: Option<Duration>,
    /// From the moment at which a fault is undone until both lags are within their bounds again.
    pub recovery: Duration,
    /// Memory of the broker, at every moment.
    pub memory: u64,
    /// The broker must stop by itself, with exit code 3, when its disk fails.
    pub fail_stop: bool,
    /// The broker must not start on what the fault left.
    pub refuses_to_start: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub platforms: usize,
    /// Deltas a second, over all platforms.
    pub rate: f64,
    /// The share of them that is urgent.
    pub urgent: f64,
    /// Registers of each platform and stream.
    pub people: u64,
    /// Bytes of each ring, from which the broker serves who keeps up; its own default where there is none.
    pub rings: Option<u64>,
    /// A PostgreSQL that `hutong-connect` keeps equal.
    pub sink: bool,
    /// The published lists of risk areas are replayed beside the load.
    pub risk_levels: bool,
    pub surge: Option<Surge>,
}

/// For a while `factor` times as many bulk deltas are due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Surge {
    pub at: Duration,
    pub lasting: Duration,
    pub factor: f64,
}

/// Ends a drill before its time, as a broken promise.
#[derive(Clone, Debug, PartialEq)]
pub struct Stop {
    /// An urgent delta that is not with every subscriber for so long.
    pub urgent_lag: Duration,
    pub memory: u64,
    /// Less than this is left on the disk with the drill's files.
    pub disk_free: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rollback {
    /// For undoing one fault, and for the broker to be ready after it.
    pub timeout: Duration,
}

/// What a command line may say in place of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overrides {
    pub duration: Option<Duration>,
    pub rate: Option<f64>,
    pub load: Option<Loading>,
    /// Of the faults that crash the broker at an edge.
    pub edge: Option<Failpoint>,
    pub nth: Option<u32>,
}

/// The load beside the faults, in place of what the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loading {
    /// No surge.
    Quiet,
    /// One that covers every fault.
    Surge,
}

/// How many times the bulk a surge of [`Loading::Surge`] is, unless the drill's rate is so high that a small
/// machine could not even make it.
const SURGE_FACTOR: f64 = 5.0;
const SURGE_FACTOR_MIN: f64 = 1.5;
const SURGE_RATE_MAX: f64 = 20_000.0;
/// From when on, at the earliest: there is a steady state without it too.
const SURGE_FROM: Duration = Duration::from_secs(1);
/// What must be left to look at after a recovery.
pub const STEADY_AFTER: Duration = Duration::from_secs(1);

impl Drill {
    /// `name` stands in the reports of mistakes.
    pub fn parse(name: &str, text: &str) -> Result<Drill, ConfigErrors> {
        let doc = Document::parse(name, text);
        let drill = read::drill(&doc);
        doc.finish(drill)
    }

    pub fn load(path: &Path) -> Result<Drill, ConfigErrors> {
        let doc = Document::load(path)?;
        let drill = read::drill(&doc);
        doc.finish(drill)
    }

    /// Another duration moves all times in proportion, so that the drill keeps its shape.
    #[must_use]
    pub fn with(mut self, overrides: &Overrides) -> Drill {
        if let Some(duration) = overrides.duration {
            let factor = duration.as_secs_f64() / self.duration.as_secs_f64();
            for fault in &mut self.faults {
                fault.at = fault.at.mul_f64(factor);
                fault.lasting = fault.lasting.mul_f64(factor);
            }
            if let Some(surge) = &mut self.workload.surge {
                surge.at = surge.at.mul_f64(factor);
                surge.lasting = surge.lasting.mul_f64(factor);
            }
            self.duration = duration;
        }
        if let Some(rate) = overrides.rate {
            self.workload.rate = rate;
        }
        match overrides.load {
            Some(Loading::Quiet) => self.workload.surge = None,
            Some(Loading::Surge) => self.workload.surge = Some(self.covering()),
            None => {}
        }
        for fault in &mut self.faults {
            if let What::CrashAtEdge { edge, nth } = &mut fault.what {
                if let Some(other) = overrides.edge {
                    // How often the file waits for its own edge says nothing of another one.
                    (*edge, *nth) = (other, 1);
                }
                *nth = overrides.nth.unwrap_or(*nth);
            }
        }
        self
    }

    /// A surge from before the first fault until the last is undone. So long before that what is due in it can
    /// break the bounds of a steady state, where there is time for that.
    fn covering(&self) -> Surge {
        let first = self.faults.iter().map(|fault| fault.at).min();
        let first = first.unwrap_or_default();
        let before = self.hypothesis.bulk_lag + STEADY_AFTER;
        let at = first.saturating_sub(before).max(SURGE_FROM.min(first / 2));
        let factor = SURGE_RATE_MAX / self.workload.rate;
        Surge {
            at,
            lasting: self.healed().saturating_sub(at),
            factor: factor.clamp(SURGE_FACTOR_MIN, SURGE_FACTOR),
        }
    }

    /// When its last fault is undone.
    pub fn healed(&self) -> Duration {
        let ends = self.faults.iter().map(|fault| fault.at + fault.lasting);
        ends.max().unwrap_or_default()
    }

    /// How long it must last so that its steady state is seen again after the last recovery.
    pub fn duration_min(&self) -> Duration {
        self.healed() + self.hypothesis.recovery + STEADY_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_written_as_they_are_read() {
        for (name, _) in BUILT_IN {
            let drill = find(name).expect("built in");
            for fault in &drill.faults {
                let text = format!(
                    "name = \"n\"\ntitle = \"t\"\ntitle_zh = \"t\"\nwhy = \"w\"\nwhy_zh = \"w\"\n\
                     duration = \"30s\"\n[workload]\nsink = true\n[[faults]]\nkind = \"{}\"\n\
                     at = \"5s\"\nfor = \"1s\"\n{}",
                    fault.what.name(),
                    fault.what.keys()
                );
                let read = Drill::parse("made.toml", &text).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(read.faults[0].what, fault.what);
            }
        }
    }

    fn mistakes(faults: &str) -> Vec<String> {
        let text = format!(
            "name = \"n\"\ntitle = \"t\"\ntitle_zh = \"t\"\nwhy = \"w\"\nwhy_zh = \"w\"\n\
             duration = \"20s\"\n[hypothesis]\nrecovery = \"5s\"\n{faults}"
        );
        match Drill::parse("made.toml", &text) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(|e| format!("{}: {e}", e.line)).collect(),
        }
    }

    #[test]
    fn something_is_left_to_measure_after_the_last_recovery() {
        let fault = |lasting: u32| {
            mistakes(&format!(
                "[[faults]]\nkind = \"poison\"\nat = \"5s\"\nfor = \"{lasting}s\"\n"
            ))
        };
        assert_eq!(fault(9), Vec::<String>::new());
        let found = fault(10);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("12: "), "{found:?}");
        assert!(
            found[0].contains("nothing would be left to measure"),
            "{found:?}"
        );
    }

    #[test]
    fn two_faults_that_need_the_same_thing_are_not_there_at_one_time() {
        let pair = |first: &str, second: &str, at: u32| {
            mistakes(&format!(
                "[[faults]]\nkind = \"{first}\"\nat = \"5s\"\nfor = \"3s\"\n\
                 [[faults]]\nkind = \"{second}\"\nat = \"{at}s\"\nfor = \"2s\"\n"
            ))
        };
        for (first, second) in [
            ("sync-error", "crash-at-sync"),
            ("disk-full", "power-loss"),
            ("torn-tail", "torn-tail"),
        ] {
            let found = pair(first, second, 7);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with("15: "), "{found:?}");
            assert!(found[0].contains("both need"), "{found:?}");
            assert_eq!(pair(first, second, 8), Vec::<String>::new());
        }
        assert_eq!(pair("sync-error", "poison", 7), Vec::<String>::new());
    }

    #[test]
    fn another_duration_keeps_the_shape() {
        let drill = find("kill-broker").expect("built in");
        let (at, lasting) = (drill.faults[0].at, drill.faults[0].lasting);
        let twice = drill.clone().with(&Overrides {
            duration: Some(drill.duration * 2),
            rate: Some(10.0),
            ..Overrides::default()
        });
        assert_eq!(twice.faults[0].at, at * 2);
        assert_eq!(twice.faults[0].lasting, lasting * 2);
        assert!((twice.workload.rate - 10.0).abs() < f64::EPSILON);
    }

    #[test]
    fn another_edge_counts_from_one_unless_something_else_is_said() {
        let with = |edge, nth| {
            let drill = find("crash-at-edge").expect("built in");
            let overrides = Overrides {
                edge,
                nth,
                ..Overrides::default()
            };
            drill.with(&overrides).faults[0].what.clone()
        };
        let crash = |edge, nth| What::CrashAtEdge { edge, nth };
        let (file, other) = (Failpoint::CommitWritten, Failpoint::ApplyVisible);
        assert_eq!(with(None, None), crash(file, 40));
        assert_eq!(with(None, Some(3)), crash(file, 3));
        assert_eq!(with(Some(other), None), crash(other, 1));
        assert_eq!(with(Some(other), Some(3)), crash(other, 3));
    }

    #[test]
    fn an_edge_that_is_reached_once_is_not_waited_for_twice() {
        let edge = |edge: &str, nth: u32| {
            mistakes(&format!(
                "[[faults]]\nkind = \"crash-at-edge\"\nedge = \"{edge}\"\nnth = {nth}\nat = \"5s\"\nfor = \"1s\"\n"
            ))
        };
        assert_eq!(edge("commit-told", 2), Vec::<String>::new());
        assert_eq!(edge("recovery-mended", 1), Vec::<String>::new());
        let found = edge("recovery-mended", 2);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("12: "), "{found:?}");
        let found = edge("commit-tolt", 1);
        assert!(found[0].contains("commit-told"), "{found:?}");
    }

    #[test]
    fn a_surge_covers_every_fault_and_a_quiet_drill_has_none() {
        let with = |name: &str, load| {
            let drill = find(name).expect("built in");
            drill.with(&Overrides {
                load: Some(load),
                ..Overrides::default()
            })
        };
        for (name, _) in BUILT_IN {
            let drill = with(name, Loading::Surge);
            let surge = drill.workload.surge.expect("a surge");
            for fault in &drill.faults {
                assert!(surge.at < fault.at, "{name}");
                assert!(
                    surge.at + surge.lasting >= fault.at + fault.lasting,
                    "{name}"
                );
            }
            assert!(surge.factor > 1.0, "{name}");
        }
        assert_eq!(with("surge-and-kill", Loading::Quiet).workload.surge, None);
    }
}
