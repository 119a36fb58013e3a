//! Hunts planted bugs with drills: real programs with the bug in them, a real fault, and the judge who sees no
//! more than what clients saw.

use crate::{interrupt, stage::shell::has};
use hutong_plants::Plant;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::Value;
use std::{
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Between two looks at whether a drill is over.
const POLL: Duration = Duration::from_millis(50);

/// A bug, the drill that must catch it, and the invariants of which it must say that one is broken.
#[derive(Clone, Copy, Debug)]
pub struct Prey {
    pub plant: Plant,
    pub drill: &'static str,
    pub invariants: &'static [&'static str],
}

const fn prey(plant: Plant, drill: &'static str, invariants: &'static [&'static str]) -> Prey {
    Prey {
        plant,
        drill,
        invariants,
    }
}

/// Drills for bugs alone: what they break is another order of what the others break, so that they are no part of
/// those that one plays.
const OWN: &[(&str, &str)] = &[(
    "narrow-in-surge",
    include_str!("../../planted/drills/narrow-in-surge.toml"),
)];

/// In the order of a delta's way; twenty seconds to a minute each.
pub const PREY: &[Prey] = &[
    prey(Plant::AdmitsUnchecked, "poison", &["INV-2"]),
    prey(Plant::AckBeforeCommit, "power-in-slow-sync", &["INV-1"]),
    prey(Plant::ResumeAhead, "kill-broker", &["INV-1"]),
    prey(Plant::AckBeforeSync, "power-in-slow-sync", &["INV-1"]),
    prey(Plant::CutsTooMuch, "torn-tail", &["INV-1"]),
    prey(Plant::SnapshotWithoutGathered, "kill-broker", &["INV-6"]),
    prey(Plant::CursorOffByOne, "reconnect-storm", &["INV-7"]),
    prey(Plant::EchoSent, "poison", &["INV-2"]),
    prey(Plant::OtherContent, "pause-broker", &["INV-8"]),
    prey(Plant::BulkFirst, "narrow-in-surge", &["INV-10"]),
    prey(
        Plant::SinkCursorApart,
        "kill-connector",
        &["INV-5", "INV-6"],
    ),
];

/// What a drill made of a bug.
#[derive(Clone, Debug, Serialize)]
pub struct Caught {
    pub plant: &'static str,
    pub stage: &'static str,
    pub about: &'static str,
    pub drill: &'static str,
    /// The verdict.
    pub outcome: String,
    /// Those that it says are broken.
    pub broken: Vec<String>,
    /// The first violation of one that the bug must break.
    pub found: Option<String>,
    /// It was found, and as what it is.
    pub caught: bool,
    pub seconds: f64,
}

/// Plays one. `program` is a `hutong-chaos`, beside which the planted programs stand.
pub fn hunt(prey: &Prey, program: &Path) -> Result<Caught, String> {
    let started = Instant::now();
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let drill = match OWN.iter().find(|(name, _)| *name == prey.drill) {
        None => prey.drill.to_owned(),
        Some((name, text)) => {
            let file = dir.path().join(name).with_extension("toml");
            std::fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
            file.display().to_string()
        }
    };
    let (verdict, said) = play(prey, &drill, program, dir.path())?;
    let verdict: Value = serde_json::from_slice(&verdict).map_err(|_| {
        let said = String::from_utf8_lossy(&said);
        format!("{} was not judged: {}", prey.drill, said.trim())
    })?;
    let outcome = verdict["outcome"].as_str().unwrap_or_default().to_owned();
    let broken = broken(&verdict);
    let meant = broken
        .iter()
        .find(|name| prey.invariants.contains(&name.as_str()));
    let found = meant.and_then(|name| {
        let told = &verdict["findings"][name]["told"][0];
        Some(format!("{name}: {}", told["en"].as_str()?))
    });
    Ok(Caught {
        plant: prey.plant.name(),
        stage: super::stage(prey.plant),
        about: prey.plant.about(),
        drill: prey.drill,
        caught: outcome == "FAIL" && found.is_some(),
        outcome,
        broken,
        found,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// A drill that runs; whoever is told to end ends it first.
struct Playing(Child);

impl Drop for Playing {
    /// It undoes what it did, which takes a moment; one that has ended is waited for already.
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
            // It may be ending just now.
            pid.map(|pid| kill_process(pid, Signal::TERM).ok());
            drop(self.0.wait());
        }
    }
}

/// What it wrote: the verdict, and what it said beside it.
fn play(
    prey: &Prey,
    drill: &str,
    program: &Path,
    dir: &Path,
) -> Result<(Vec<u8>, Vec<u8>), String> {
    // When this process dies without a chance to do anything, the drill is told to undo what it did.
    let mut command = match has("setpriv") {
        true => {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "TERM"]).arg(program);
            command
        }
        false => Command::new(program),
    };
    // Files, because a pipe that nobody reads would stop it when it is full.
    let file = |name: &str| {
        let path = dir.join(name);
        let made = File::create(&path).map_err(|e| format!("{}: {e}", path.display()));
        made.map(|file| (path, file))
    };
    let (verdict, stdout) = file("verdict.json")?;
    let (said, stderr) = file("said")?;
    command
        .args(["run", drill, "--plant", prey.plant.name(), "--json"])
        .arg("--out")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        // A terminal's Ctrl-C comes to this process, which passes it on.
        .process_group(0);
    let failed = |error: io::Error| format!("cannot run {}: {error}", program.display());
    let mut playing = Playing(command.spawn().map_err(failed)?);
    while playing.0.try_wait().map_err(failed)?.is_none() {
        interrupt::check()?;
        std::thread::sleep(POLL);
    }
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    Ok((read(&verdict)?, read(&said)?))
}

fn broken(verdict: &Value) -> Vec<String> {
    let findings = verdict["findings"].as_object().into_iter().flatten();
    findings
        .filter(|(_, finding)| finding["violations"].as_u64() > Some(0))
        .map(|(name, _)| name.clone())
        .collect()
}

impl Caught {
    pub const TABLE: &'static str =
        "| stage | bug | what | drill | broken | after |\n|---|---|---|---|---|---|";

    pub fn row(&self) -> String {
        let after = match self.caught {
            true => format!("{:.0} s", self.seconds),
            false => format!("NOT CAUGHT ({})", self.outcome),
        };
        let Caught {
            plant,
            stage,
            about,
            drill,
            ..
        } = self;
        let broken = self.broken.join(", ");
        format!("| {stage} | `{plant}` | {about} | `{drill}` | {broken} | {after} |")
    }
}

impl std::fmt::Display for Caught {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = match self.caught {
            true => "caught",
            false => "NOT CAUGHT",
        };
        let found = self.found.as_deref().unwrap_or("nothing of it");
        write!(
            f,
            "{:<26} {verdict} by the drill {} ({}), {:.0} s: {found}",
            self.plant, self.drill, self.outcome, self.seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::{Drill, find};
    use std::collections::BTreeSet;

    #[test]
    fn drills_that_are_there_hunt_bugs_of_many_stages() {
        let stages: BTreeSet<_> = PREY.iter().map(|p| super::super::stage(p.plant)).collect();
        assert!(stages.len() >= 5, "{stages:?}");
        for prey in PREY {
            match OWN.iter().find(|(name, _)| *name == prey.drill) {
                None => drop(find(prey.drill).unwrap_or_else(|e| panic!("{e}"))),
                Some((name, text)) => {
                    let drill = Drill::parse(&format!("{name}.toml"), text);
                    let drill = drill.unwrap_or_else(|e| panic!("{name}: {e:?}"));
                    assert_eq!(drill.name, *name);
                }
            }
        }
    }
}
