//! Shows that the checks can fail: plants one bug after the other and hunts it with the check that is
//! meant for it.

mod connector;
pub mod drills;

use crate::{
    interrupt, out, sim,
    sweep::{
        Sweep,
        plan::Plan,
        store::{OnAck, Store},
    },
};
use drills::{Caught, PREY};
use hutong_planted_broker::log::faults::{Faults, SyncFault};
use hutong_plants::Plant;
use serde::Serialize;
use std::{
    fmt::Display,
    path::Path,
    sync::{Arc, mpsc},
    time::Instant,
};

/// Which check a bug is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hunter {
    /// The simulation; counts seeds.
    Simulation,
    /// The crash sweep; counts crash points.
    Sweep,
    /// Syncs that fail on a real store; counts syncs.
    FailedSyncs,
    /// A source's runner that is killed on the way; counts runs.
    Source,
    /// The sink that writes lines, killed as well; counts runs.
    Lines,
}

impl Hunter {
    /// What it is, and what it counts.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Hunter::Simulation => ("simulation", "seeds"),
            Hunter::Sweep => ("crash sweep", "points"),
            Hunter::FailedSyncs => ("failed syncs", "syncs"),
            Hunter::Source => ("a source that is killed", "runs"),
            Hunter::Lines => ("a sink that is killed", "runs"),
        }
    }
}

/// Where on a delta's way the bug is.
pub fn stage(plant: Plant) -> &'static str {
    use Plant as P;
    match plant {
        P::MappingRevision => "mapping",
        P::DeadLetterDropped | P::CheckpointBeforeAck => "source",
        P::PublisherForgets => "publisher",
        P::AdmitsUnchecked => "admission",
        P::ByteFlipped | P::WrongPartition => "routing",
        P::AckBeforeCommit
        | P::AckOfHalf
        | P::WakeUpDropped
        | P::QueueUnbounded
        | P::ResumeAhead
        | P::EpochInMemory => "ingress",
        P::AckBeforeSync
        | P::SyncSkipped
        | P::SyncRetried
        | P::PoisonIgnored
        | P::OffsetReused
        | P::TornEndKept
        | P::CutsTooMuch
        | P::FolderNotSynced => "log",
        P::DedupeBySequence
        | P::CompleteIsHighest
        | P::RevisionIgnored
        | P::HighestForgotten
        | P::ExceptionForgotten => "apply",
        P::AppliedAhead
        | P::StateNotSynced
        | P::RunWithoutNewest
        | P::TableNotSynced
        | P::MergeKeepsOldest
        | P::ExpiryByWallClock => "state",
        P::SnapshotWithoutGathered | P::SnapshotCursorLate => "snapshot",
        P::RingFloorStuck => "ring",
        P::CursorOffByOne
        | P::RejoinSkips
        | P::CreditIgnored
        | P::SentIsApplied
        | P::EchoSent
        | P::KindsNotCut
        | P::OtherContent
        | P::BulkFirst => "fan-out",
        P::SubscriberRepeats => "subscriber",
        P::SinkCursorApart | P::LinesCursorApart => "sink",
    }
}

const SEEDS_MAX: u64 = 400;
const POINTS_MAX: usize = 1200;
/// Of one workload: small, because most bugs are soon found.
const OPERATIONS: usize = 120;
const POINTS_A_WORKLOAD: usize = 150;
const SYNCS_MAX: u64 = 20;

/// The check that is meant for a bug, and the invariants of which it may say that they are broken.
pub fn meant_for(plant: Plant) -> (Hunter, &'static [&'static str]) {
    use Hunter::{FailedSyncs, Lines, Simulation, Source, Sweep};
    match plant {
        Plant::AdmitsUnchecked => (Simulation, &["INV-2"]),
        Plant::ByteFlipped => (Simulation, &["INV-1", "INV-2", "INV-4", "INV-6"]),
        Plant::WrongPartition => (Simulation, &["INV-1", "INV-6", "INV-11"]),
        Plant::AckBeforeCommit => (Simulation, &["INV-1"]),
        Plant::AckOfHalf => (Simulation, &["INV-1", "INV-11"]),
        Plant::WakeUpDropped => (Simulation, &["INV-6"]),
        Plant::QueueUnbounded => (Simulation, &["INV-9"]),
        Plant::ResumeAhead | Plant::EpochInMemory => (Simulation, &["INV-1", "INV-6"]),
        Plant::AckBeforeSync | Plant::SyncSkipped => (Sweep, &["INV-1", "INV-3"]),
        Plant::SyncRetried | Plant::PoisonIgnored => (FailedSyncs, &["INV-11"]),
        Plant::OffsetReused => (Sweep, &["INV-1", "INV-3", "INV-5"]),
        Plant::TornEndKept => (Sweep, &["INV-1", "INV-3"]),
        Plant::CutsTooMuch => (Sweep, &["INV-1", "INV-3", "INV-5"]),
        Plant::FolderNotSynced => (Sweep, &["INV-1"]),
        Plant::DedupeBySequence | Plant::CompleteIsHighest => (Simulation, &["INV-1", "INV-7"]),
        Plant::RevisionIgnored => (Simulation, &["INV-4", "INV-5"]),
        Plant::HighestForgotten => (Simulation, &["INV-4", "INV-5"]),
        Plant::ExceptionForgotten => (Simulation, &["INV-4", "INV-5"]),
        Plant::AppliedAhead => (Simulation, &["INV-1", "INV-3", "INV-5"]),
        // What the log no longer has cannot be applied again; what it has, a later run hides.
        Plant::StateNotSynced => (Simulation, &["INV-1", "INV-3", "INV-5"]),
        Plant::RunWithoutNewest | Plant::MergeKeepsOldest => (Sweep, &["INV-4", "INV-5"]),
        // Either it does not open, or it has not what the log no longer has.
        Plant::TableNotSynced => (Sweep, &["INV-1", "INV-3", "INV-5"]),
        Plant::ExpiryByWallClock => (Simulation, &["INV-12"]),
        Plant::SnapshotWithoutGathered => (Simulation, &["INV-4", "INV-5", "INV-7", "INV-12"]),
        Plant::SnapshotCursorLate => (Simulation, &["INV-7"]),
        Plant::RingFloorStuck => (Simulation, &["INV-7"]),
        Plant::CursorOffByOne => (Simulation, &["INV-7"]),
        // What was skipped in one lane is missing before what comes in the other.
        Plant::RejoinSkips => (Simulation, &["INV-7", "INV-10"]),
        Plant::CreditIgnored => (Simulation, &["INV-9"]),
        Plant::SentIsApplied => (Simulation, &["INV-7"]),
        Plant::EchoSent => (Simulation, &["INV-2"]),
        Plant::KindsNotCut => (Simulation, &["INV-2"]),
        Plant::OtherContent => (Simulation, &["INV-8"]),
        Plant::BulkFirst => (Simulation, &["INV-10"]),
        Plant::PublisherForgets => (Simulation, &["INV-1", "INV-6"]),
        Plant::SubscriberRepeats => (Simulation, &["INV-5", "INV-7"]),
        Plant::SinkCursorApart => (Simulation, &["INV-6"]),
        Plant::LinesCursorApart => (Lines, &["INV-6"]),
        Plant::MappingRevision => (Source, &["INV-2"]),
        Plant::DeadLetterDropped | Plant::CheckpointBeforeAck => (Source, &["INV-1"]),
    }
}

/// What a hunt brought.
#[derive(Clone, Debug, Serialize)]
pub struct Hunt {
    pub plant: &'static str,
    pub stage: &'static str,
    pub about: &'static str,
    pub hunter: Hunter,
    /// Seeds, crash points or syncs until it was found, or all there were.
    pub tries: u64,
    pub found: Option<String>,
    /// It was found, and as what it is.
    pub caught: bool,
    pub seconds: f64,
}

/// Hunts one bug. `program` is a `hutong-chaos`.
pub fn hunt(plant: Plant, program: &Path) -> Result<Hunt, String> {
    let (hunter, invariants) = meant_for(plant);
    let started = Instant::now();
    hutong_plants::plant(Some(plant));
    let hunted = match hunter {
        Hunter::Simulation => simulate(),
        Hunter::Sweep => sweep(plant, program),
        Hunter::FailedSyncs => fail_syncs(),
        Hunter::Source => connector::source(),
        Hunter::Lines => connector::lines(),
    };
    hutong_plants::plant(None);
    let (tries, found) = hunted?;
    let names = |text: &String| {
        invariants
            .iter()
            .any(|name| text.contains(&format!("{name}: ")))
    };
    Ok(Hunt {
        plant: plant.name(),
        stage: stage(plant),
        about: plant.about(),
        hunter,
        tries,
        caught: found.as_ref().is_some_and(names),
        found,
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn simulate() -> Result<(u64, Option<String>), String> {
    for seed in 1..=SEEDS_MAX {
        interrupt::check()?;
        if let Some(violation) = sim::run(seed, false).violation {
            return Ok((seed, Some(violation.to_string())));
        }
    }
    Ok((SEEDS_MAX, None))
}

fn sweep(plant: Plant, program: &Path) -> Result<(u64, Option<String>), String> {
    let mut sweep = Sweep::new(program, None, Some(plant))?;
    let mut seed = 1;
    while sweep.report.points < POINTS_MAX {
        // Only a check that fails is a catch: a machine that cannot sweep has caught nothing.
        sweep.workload(seed, OPERATIONS, POINTS_A_WORKLOAD)?;
        if let Some(found) = sweep.found() {
            return Ok((sweep.report.points as u64, Some(found.to_owned())));
        }
        seed += 1;
    }
    Ok((sweep.report.points as u64, None))
}

/// The checks of this module, where no bug is planted: what they find.
pub fn without_bugs() -> Result<Option<String>, String> {
    for check in [fail_syncs, connector::source, connector::lines] {
        if let (_, Some(found)) = check()? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// INV-11: after a sync that failed nobody is told that anything is durable.
fn fail_syncs() -> Result<(u64, Option<String>), String> {
    for sync in 1..=SYNCS_MAX {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let faults = Faults::default();
        let store = Store::open(dir.path(), faults.clone())?;
        let plan = Plan::new(sync, 10);
        let on_ack: OnAck = Arc::new(|_, _| {});
        for number in 0..3 {
            let before = number == 0;
            if number == 1 {
                faults.fail_sync(SyncFault::Landed);
            }
            let (told, outcome) = mpsc::channel();
            store.append(0, &plan.records[0], &on_ack, told);
            let outcome = outcome.recv().map_err(|e| e.to_string())?;
            if outcome.is_ok() != before {
                let what = format!("INV-11: append {number} around a failed sync: {outcome:?}");
                return Ok((sync, Some(what)));
            }
        }
    }
    Ok((SYNCS_MAX, None))
}

/// Plants every bug in turn and shows that each is caught.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Only these.
    plants: Vec<String>,
    /// One line of JSON for each instead of text.
    #[arg(long, conflicts_with = "table")]
    json: bool,
    /// A table in Markdown.
    #[arg(long)]
    table: bool,
    /// Hunts with drills: broker and connector are processes with the bug in them. Of each bug that a drill of
    /// half a minute must catch.
    #[arg(long)]
    drills: bool,
}

impl Args {
    pub fn run(&self) -> Result<bool, String> {
        let unknown = self.plants.iter().find(|n| Plant::from_name(n).is_none());
        if let Some(name) = unknown {
            return Err(format!("no plant is called {name}"));
        }
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut all_caught = true;
        if self.table {
            out::line(if self.drills {
                Caught::TABLE
            } else {
                Hunt::TABLE
            });
        }
        if self.drills {
            let mut prey = PREY
                .iter()
                .filter(|prey| self.is_asked_for(prey.plant))
                .peekable();
            if prey.peek().is_none() {
                return Err("no drill hunts that; leave the names out to hunt all".to_owned());
            }
            for prey in prey {
                let caught = drills::hunt(prey, &program)?;
                all_caught &= caught.caught;
                self.show(&caught, || caught.row())?;
            }
            return Ok(all_caught);
        }
        for plant in Plant::ALL.iter().filter(|plant| self.is_asked_for(**plant)) {
            let hunt = hunt(*plant, &program)?;
            all_caught &= hunt.caught;
            self.show(&hunt, || hunt.row())?;
        }
        Ok(all_caught)
    }

    fn is_asked_for(&self, plant: Plant) -> bool {
        self.plants.is_empty() || self.plants.iter().any(|name| name == plant.name())
    }

    fn show(
        &self,
        hunt: &(impl Serialize + Display),
        row: impl FnOnce() -> String,
    ) -> Result<(), String> {
        match self.json {
            true => out::line(serde_json::to_string(hunt).map_err(|e| e.to_string())?),
            false if self.table => out::line(row()),
            false => out::line(hunt),
        }
        Ok(())
    }
}

impl Hunt {
    const TABLE: &'static str =
        "| stage | bug | what | caught by | as | after |\n|---|---|---|---|---|---|";

    /// Of the table.
    fn row(&self) -> String {
        let (hunter, unit) = self.hunter.words();
        let after = match self.caught {
            true => format!("{} {unit}", self.tries),
            false => "NOT CAUGHT".to_owned(),
        };
        // With its place before it, or at its beginning.
        let found = self.found.as_deref().unwrap_or_default();
        let invariant = found
            .split_once("INV-")
            .map_or("", |(_, rest)| rest.split(':').next().unwrap_or_default());
        let Hunt {
            plant,
            stage,
            about,
            ..
        } = self;
        format!("| {stage} | `{plant}` | {about} | {hunter} | INV-{invariant} | {after} |")
    }
}

impl std::fmt::Display for Hunt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (_, unit) = self.hunter.words();
        let verdict = match self.caught {
            true => "caught",
            false => "NOT CAUGHT",
        };
        let found = self.found.as_deref().unwrap_or("nothing");
        write!(
            f,
            "{:<26} {verdict} after {} {unit}, {:.1} s: {found}",
            self.plant, self.tries, self.seconds
        )
    }
}
