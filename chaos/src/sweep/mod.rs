//! A crash at every write and every sync of a workload on the real store.
//!
//! A process of ours works on a real log and a real state while `strace` writes down what it does to
//! files. From that every moment can be rebuilt as a disk could hold it when the power goes: the store is
//! opened there and judged. Then recoveries are traced and cut the same way.

pub mod check;
pub mod disk;
mod page;
pub mod plan;
pub mod store;
pub mod timing;
pub mod trace;
pub mod workload;

use crate::{
    clock::Clock,
    commands::{duration, run::edge},
    interrupt, out,
    random::Random,
    report,
    text::Text,
};
use check::{Checker, Recovered, Said};
use disk::{Contents, Cut, Disk};
use hutong_plants::{Failpoint, Plant};
use plan::Plan;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use store::of_the_machine;
use timing::Timing;
use trace::{Ending, Step, TraceError, Traced};

/// Of one workload.
const POINTS_MIN: usize = 10 * RECOVERY_SHARE;
/// Of all points, one in so many is of a recovery.
const RECOVERY_SHARE: usize = 5;
/// Of one workload, where there is a time: few, so that a short one sees all of its length.
const POINTS_TIMED: usize = 200;
/// Points of one traced recovery.
const POINTS_A_RECOVERY: usize = 60;

/// Crashes the store at every write and every sync of a workload.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How many crash points, at least; workloads with further seeds follow until there are so many.
    #[arg(long, default_value_t = 10_000)]
    pub points: usize,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Of one workload.
    #[arg(long, default_value_t = 400)]
    pub operations: usize,
    /// Judges no point any more after so long, such as 90s or 2h, and says how many were; of each workload fewer
    /// then, spread over all of it.
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Kills the workload when it comes to this edge of a commit, such as commit-synced, and cuts the power there:
    /// four points.
    #[arg(long, value_parser = edge, conflicts_with_all = ["points", "duration", "large"])]
    pub edge: Option<Failpoint>,
    /// The how-manieth time that it comes there.
    #[arg(long, requires = "edge", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub nth: u64,
    /// Where folders are rebuilt; a file system in memory is faster.
    #[arg(long)]
    pub scratch: Option<PathBuf>,
    /// Records of one more store, of which only the time to recover is measured; 0 for none.
    #[arg(long, default_value_t = 2_000)]
    pub large: usize,
    /// One line of JSON instead of text.
    #[arg(long)]
    pub json: bool,
    /// A page with what was swept and found, for people.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
}

impl Args {
    pub fn run(&self) -> Result<bool, String> {
        let clock = Clock::start();
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut sweep = Sweep::new(&program, self.scratch.as_deref(), None)?;
        let swept = match self.edge {
            Some(edge) => sweep.edge((self.seed, self.operations), edge, self.nth),
            None => self.workloads(&mut sweep),
        };
        // What was found until then counts.
        sweep.report.interrupted = swept.is_err() && interrupt::told();
        if !sweep.report.interrupted {
            swept?;
        }
        let report = &sweep.report;
        if let Some(page) = &self.report {
            let html = report::html_of_search(&page::of(self, report), clock);
            std::fs::write(page, html).map_err(|e| format!("{}: {e}", page.display()))?;
        }
        match self.json {
            true => out::line(serde_json::to_string(report).map_err(|e| e.to_string())?),
            false => out::line(report),
        }
        match report.interrupted && report.failures.is_empty() {
            true => Err(interrupt::INTERRUPTED_HERE.to_owned()),
            false => Ok(report.failures.is_empty()),
        }
    }

    fn workloads(&self, sweep: &mut Sweep) -> Result<(), String> {
        sweep.report.asked = self.points;
        sweep.time_max = self.duration;
        let mut seed = self.seed;
        while sweep.report.points < self.points
            && sweep.report.failures.is_empty()
            && !sweep.is_late()
        {
            // A handful of points is no workload: rather some more than were asked for.
            let left = (self.points - sweep.report.points).max(POINTS_MIN);
            // In order they come from a workload's beginning: one of which there is no end shows little.
            let left = self.duration.map_or(left, |_| left.min(POINTS_TIMED));
            sweep.workload(seed, self.operations, left)?;
            if !self.json {
                eprintln!("seed {seed}: {}", sweep.report);
            }
            seed += 1;
        }
        let report = &mut sweep.report;
        report.out_of_time = report.failures.is_empty() && report.points < self.points;
        if self.large > 0 && !sweep.is_late() {
            sweep.time_large(self.large)?;
        }
        Ok(())
    }
}

/// What a sweep saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub workloads: u64,
    pub points: usize,
    /// How many were to be judged.
    pub asked: usize,
    /// The time was over before all of them were.
    pub out_of_time: bool,
    /// Somebody told it to end before.
    pub interrupted: bool,
    pub recovery_points: usize,
    /// By what became of that which was not synced.
    pub cuts: BTreeMap<&'static str, usize>,
    pub acknowledged_checked: u64,
    pub replayed: u64,
    /// By the size of what recovered; the last may be of a store made for that.
    pub recovery: Vec<Timing>,
    pub seconds: f64,
    pub failures: Vec<String>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let done = Text::same(format!("{} of {}", self.points, self.asked));
        if let Some(left) = report::ended_early((self.interrupted, self.out_of_time), &done) {
            write!(f, "{}: ", left.en)?;
        }
        write!(
            f,
            "{} crash points ({} of them during recovery; {}), {} acknowledged records looked for, {} failures; \
             {:.0} s",
            self.points,
            self.recovery_points,
            self.cuts
                .iter()
                .map(|(cut, n)| format!("{cut} {n}"))
                .collect::<Vec<_>>()
                .join(", "),
            self.acknowledged_checked,
            self.failures.len(),
            self.seconds,
        )?;
        write!(f, "\n{}", timing::table(&self.recovery))?;
        for failure in &self.failures {
            write!(f, "\n  {failure}")?;
        }
        Ok(())
    }
}

/// One kind of crash at one moment.
#[derive(Clone, Copy, Debug)]
struct Point {
    step: usize,
    cut: Cut,
}

/// A sweep under way.
#[derive(Debug)]
pub struct Sweep {
    program: PathBuf,
    scratch: tempfile::TempDir,
    plant: Option<Plant>,
    started: Instant,
    time_max: Option<Duration>,
    attempt: u64,
    recovered: Vec<Recovered>,
    pub report: Report,
}

/// A process and what it left.
struct Run {
    plan: Plan,
    root: PathBuf,
    traced: Traced,
    before: Contents,
    /// Said before this process.
    said: Said,
}

impl Sweep {
    /// `program` is a `hutong-chaos`; the plant is for the processes and for the checks.
    pub fn new(
        program: &Path,
        scratch: Option<&Path>,
        plant: Option<Plant>,
    ) -> Result<Sweep, String> {
        let memory = Path::new("/dev/shm");
        let scratch = match scratch {
            Some(scratch) => tempfile::tempdir_in(scratch),
            None if memory.is_dir() => tempfile::tempdir_in(memory),
            None => tempfile::tempdir(),
        };
        Ok(Sweep {
            program: program.to_owned(),
            scratch: scratch.map_err(|e| e.to_string())?,
            plant,
            started: Instant::now(),
            time_max: None,
            attempt: 1,
            recovered: Vec::new(),
            report: Report::default(),
        })
    }

    /// Not before something acknowledged was looked for: until then nothing is shown.
    fn is_late(&self) -> bool {
        let late = |most| self.started.elapsed() > most;
        self.time_max.is_some_and(late) && self.report.acknowledged_checked > 0
    }

    /// Sweeps one workload, and some recoveries of it, up to so many points.
    pub fn workload(
        &mut self,
        seed: u64,
        operations: usize,
        points_max: usize,
    ) -> Result<(), String> {
        interrupt::check()?;
        let plan = Plan::new(seed, operations);
        let root = self.scratch.path().join(format!("workload-{seed}"));
        std::fs::create_dir_all(&root).map_err(|e| e.to_string())?;
        let traced = match self.trace(&root, seed, operations, &[], Ending::Well) {
            Ok(traced) => traced,
            Err(TraceError::Broken(why)) => {
                self.report.points += 1;
                self.report
                    .failures
                    .push(format!("seed {seed}, of the workload itself: {why}"));
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        };
        let run = Run {
            plan,
            root,
            traced,
            before: Contents::default(),
            said: Said::default(),
        };
        self.report.workloads += 1;
        let mut random = Random::new(seed);
        let mut points = points(&run.traced.steps);
        let main = points_max - points_max / RECOVERY_SHARE;
        thin(&mut points, main, &mut random);
        // Of some of these the recovery is traced and cut as well.
        let recoveries = (points_max / RECOVERY_SHARE).div_ceil(POINTS_A_RECOVERY);
        let every = (points.len() / recoveries.max(1)).max(1);
        let mut disk = Disk::before(&run.root, &run.traced, &run.before);
        let (mut said, mut taken) = (run.said.clone(), 0);
        let known = known(&run.traced);
        for (number, point) in points.iter().enumerate() {
            while taken <= point.step {
                take(&mut disk, &mut said, &run.traced.steps[taken]);
                taken += 1;
            }
            let checker = Checker {
                plan: &run.plan,
                known: &known,
            };
            let place = format!("seed {seed}, step {}, {}", point.step, point.cut.name());
            let random = seed ^ number as u64;
            if number % every == every / 2 && self.report.points < points_max {
                let folder = self.rebuild(&disk, point.cut, random)?;
                self.recovery(&folder, &checker, &said, seed, &place)?;
            }
            let folder = self.rebuild(&disk, point.cut, random)?;
            self.check(&checker, &folder, &said, (&place, point.cut, false))?;
            if self.is_late() || !self.report.failures.is_empty() {
                break;
            }
        }
        // Of all of them, so not at each.
        self.report.recovery = timing::by_size(&self.recovered);
        std::fs::remove_dir_all(&run.root).map_err(|e| e.to_string())
    }

    /// Traces the recovery of a folder, and crashes that at every step.
    fn recovery(
        &mut self,
        folder: &Path,
        checker: &Checker<'_>,
        said: &Said,
        seed: u64,
        place: &str,
    ) -> Result<(), String> {
        let root = self.scratch.path().join("recovery");
        copy(folder, &root).map_err(|e| e.to_string())?;
        let before = Contents::read(&root).map_err(|e| e.to_string())?;
        let traced = match self.trace(&root, seed, 0, &["--recover"], Ending::Well) {
            Ok(traced) => traced,
            // It does not open; that is for the check of the folder itself to say.
            Err(TraceError::Broken(_)) => {
                return std::fs::remove_dir_all(&root).map_err(|e| e.to_string());
            }
            Err(error) => return Err(error.to_string()),
        };
        let mut random = Random::new(seed ^ 0x4ec0);
        let mut points = points(&traced.steps);
        thin(&mut points, POINTS_A_RECOVERY, &mut random);
        let mut disk = Disk::before(&root, &traced, &before);
        let (mut said, mut taken) = (said.clone(), 0);
        for (number, point) in points.iter().enumerate() {
            while taken <= point.step {
                take(&mut disk, &mut said, &traced.steps[taken]);
                taken += 1;
            }
            let folder = self.rebuild(&disk, point.cut, seed ^ number as u64)?;
            let place = format!(
                "{place}; of its recovery step {}, {}",
                point.step,
                point.cut.name()
            );
            self.check(checker, &folder, &said, (&place, point.cut, true))?;
            if self.is_late() || !self.report.failures.is_empty() {
                break;
            }
        }
        std::fs::remove_dir_all(&root).map_err(|e| e.to_string())
    }

    fn trace(
        &self,
        root: &Path,
        seed: u64,
        operations: usize,
        more: &[&str],
        ending: Ending,
    ) -> Result<Traced, TraceError> {
        let said = self.scratch.path().join("said");
        let mut command: Vec<OsString> = vec![
            self.program.clone().into(),
            "sweep-workload".into(),
            "--dir".into(),
            root.into(),
            "--said".into(),
            said.clone().into(),
            "--seed".into(),
            seed.to_string().into(),
            "--operations".into(),
            operations.to_string().into(),
        ];
        command.extend(more.iter().map(OsString::from));
        if let Some(plant) = self.plant {
            command.extend(["--plant".into(), plant.name().into()]);
        }
        let output = self.scratch.path().join("trace");
        trace::run(&command, root, (&said, &output), ending)
    }

    fn rebuild(&self, disk: &Disk, cut: Cut, seed: u64) -> Result<PathBuf, String> {
        let folder = self.scratch.path().join("rebuilt");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|e| e.to_string())?;
        }
        let mut random = Random::new(seed);
        disk.rebuild(cut, &mut random, &folder)
            .map_err(|e| e.to_string())?;
        Ok(folder)
    }

    fn check(
        &mut self,
        checker: &Checker<'_>,
        folder: &Path,
        said: &Said,
        (place, cut, of_recovery): (&str, Cut, bool),
    ) -> Result<(), String> {
        interrupt::check()?;
        self.attempt += 1;
        let report = &mut self.report;
        report.points += 1;
        report.recovery_points += usize::from(of_recovery);
        *report.cuts.entry(cut.name()).or_default() += 1;
        report.acknowledged_checked += said.acked.len() as u64;
        match checker.check(folder, said, self.attempt) {
            Ok(recovered) => {
                report.replayed += recovered.replayed;
                self.recovered.push(recovered);
            }
            Err(violation) if of_the_machine(&violation.what) => {
                return Err(violation.what);
            }
            Err(violation) => report.failures.push(format!("{place}: {violation}")),
        }
        report.seconds = self.started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Kills a workload when it reaches an edge for the `nth` time, and judges what a power cut at that
    /// moment leaves of it, in each way. Nothing that the process wrote and did not sync is safe.
    pub fn edge(
        &mut self,
        (seed, operations): (u64, usize),
        edge: Failpoint,
        nth: u64,
    ) -> Result<(), String> {
        let root = self.scratch.path().join("edge");
        std::fs::create_dir_all(&root).map_err(|e| e.to_string())?;
        let more = ["--crash-at", edge.name(), "--nth", &nth.to_string()];
        let traced = self.trace(&root, seed, operations, &more, Ending::Aborted);
        let traced = traced.map_err(|e| format!("{} for the {nth}. time: {e}", edge.name()))?;
        let plan = Plan::new(seed, operations);
        let known = known(&traced);
        let checker = Checker {
            plan: &plan,
            known: &known,
        };
        let mut disk = Disk::before(&root, &traced, &Contents::default());
        let mut said = Said::default();
        for step in &traced.steps {
            take(&mut disk, &mut said, step);
        }
        let place = format!("{} for the {nth}. time", edge.name());
        // As a process alone leaves it when it dies: all that it wrote is there.
        self.check(&checker, &root, &said, (&place, Cut::Kept, false))?;
        for cut in Cut::ALL {
            let folder = self.rebuild(&disk, cut, seed ^ nth)?;
            let place = format!("{place}, {}", cut.name());
            self.check(&checker, &folder, &said, (&place, cut, false))?;
        }
        std::fs::remove_dir_all(&root).map_err(|e| e.to_string())
    }

    /// How long a larger store takes to recover.
    pub fn time_large(&mut self, records: usize) -> Result<(), String> {
        interrupt::check()?;
        let dir = self.scratch.path().join("large");
        std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let timing = timing::large(&dir, records)?;
        self.report.recovery.push(timing);
        self.report.seconds = self.started.elapsed().as_secs_f64();
        std::fs::remove_dir_all(&dir).map_err(|e| e.to_string())
    }

    /// The first thing that was found, if any.
    pub fn found(&self) -> Option<&str> {
        self.report.failures.first().map(String::as_str)
    }
}

fn take(disk: &mut Disk, said: &mut Said, step: &Step) {
    disk.take(step);
    if let Step::Said(line) = step {
        said.take(line);
    }
}

/// Everything that was ever acknowledged in a trace.
fn known(traced: &Traced) -> BTreeMap<hutong_proto::Offset, usize> {
    let mut said = Said::default();
    for step in &traced.steps {
        if let Step::Said(line) = step {
            said.take(line);
        }
    }
    said.acked
}

/// Each step that changes the disk, with each kind of cut that can make a difference there.
fn points(steps: &[Step]) -> Vec<Point> {
    let mut found = Vec::new();
    for (step, what) in steps.iter().enumerate() {
        let cuts: &[Cut] = match what {
            // After a sync, too, other files have bytes that are not on disk, and folders names.
            Step::Write { .. }
            | Step::SetLen { .. }
            | Step::Sync { .. }
            | Step::SyncDir { .. }
            | Step::Create { .. }
            | Step::Rename { .. }
            | Step::Link { .. }
            | Step::Remove { .. } => &Cut::ALL,
            Step::MakeDir { .. } | Step::RemoveDir { .. } => &[Cut::Lost, Cut::Prefix],
            // A promise: the power may go right after it.
            Step::Said(_) => &[Cut::Lost],
        };
        found.extend(cuts.iter().map(|cut| Point { step, cut: *cut }));
    }
    found
}

/// Leaves at most so many, anywhere.
fn thin(points: &mut Vec<Point>, max: usize, random: &mut Random) {
    let mut left = max.min(points.len()) as u64;
    let mut among = points.len() as u64;
    points.retain(|_| {
        let kept = random.below(among) < left;
        among -= 1;
        left -= u64::from(kept);
        kept
    });
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &place)?,
            false => drop(std::fs::copy(entry.path(), place)?),
        }
    }
    Ok(())
}
