//! The whole broker and its clients in one thread, under a seed.
//!
//! Sessions, admission, routing, apply, state, rings, fan-out, and the SDK's publisher and subscriber are
//! the real ones. Made up are the network, the disk below the log and the state, the clocks, and who runs
//! when. First everything breaks, while every step is judged; then it heals, and everyone must agree.

mod executor;
pub mod judge;
mod log;
mod net;
mod node;
mod page;
mod publisher;
mod scenario;
mod subscriber;
mod watch;
pub mod world;

use crate::{clock::Clock, commands::duration, interrupt, out, random::Random, report, text::Text};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use world::Violation;

/// In a checkout of the source.
const SEEDS: &str = "chaos/seeds";

/// Runs seeds.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// One seed, with its trace on standard error when it fails.
    #[arg(long, conflicts_with_all = ["seeds", "from", "duration", "minutes"])]
    pub seed: Option<u64>,
    /// How many seeds, at most.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 1)]
    pub from: u64,
    /// Begins no seed any more after so long, such as 90s or 2h, and says how many were run.
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// The same in minutes.
    #[arg(long, conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    pub minutes: Option<u64>,
    /// Runs each seed twice and compares the traces.
    #[arg(long)]
    pub twice: bool,
    /// Writes the trace of `--seed` to this file.
    #[arg(long)]
    pub trace: Option<PathBuf>,
    /// Keeps failing seeds in this folder, a file each; in a checkout of the source that is `chaos/seeds`
    /// unless something else is said.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Keeps none.
    #[arg(long, conflicts_with = "keep")]
    pub no_keep: bool,
    /// Plants a bug, to see it found.
    #[arg(long)]
    pub plant: Option<String>,
    /// One line of JSON instead of text.
    #[arg(long)]
    pub json: bool,
    /// A page with what was run and found, for people.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
}

/// What a seed did.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    pub violation: Option<Violation>,
    pub trace_hash: u64,
    pub trace_lines: u64,
    pub trace: Option<String>,
    pub simulated: Duration,
    pub acknowledged: u64,
    pub delivered: u64,
    pub faults: u64,
}

impl Outcome {
    /// Was it another one the second time?
    pub fn differs(&self) -> bool {
        let found = self.violation.as_ref();
        found.is_some_and(|violation| violation.invariant == SAME_TRACE)
    }
}

/// What many did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub seeds: u64,
    /// How many were to be run.
    pub asked: u64,
    /// The time was over before all of them were.
    pub out_of_time: bool,
    /// Somebody told it to end before.
    pub interrupted: bool,
    /// A bug was planted; it was caught if there are failures.
    pub plant: Option<String>,
    pub simulated_hours: f64,
    pub acknowledged: u64,
    pub delivered: u64,
    pub faults: u64,
    pub trace_lines: u64,
    /// Seeds that were run a second time, to see whether they are the same.
    pub run_twice: u64,
    pub seconds: f64,
    pub failures: Vec<String>,
}

impl Report {
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.simulated_hours += outcome.simulated.as_secs_f64() / 3600.0;
        self.acknowledged += outcome.acknowledged;
        self.delivered += outcome.delivered;
        self.faults += outcome.faults;
        self.trace_lines += outcome.trace_lines;
        if let Some(violation) = &outcome.violation {
            let seed = outcome.seed;
            self.failures.push(format!(
                "{violation}; again: hutong-chaos sim --seed {seed}"
            ));
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let done = Text::same(format!("{} of {}", self.seeds, self.asked));
        if let Some(left) = report::ended_early((self.interrupted, self.out_of_time), &done) {
            write!(f, "{}: ", left.en)?;
        }
        write!(
            f,
            "{} seeds ({} of them twice), {:.1} hours simulated, {} faults, {} deltas acknowledged, {} delivered, {} failures; {:.0} s",
            self.seeds,
            self.run_twice,
            self.simulated_hours,
            self.faults,
            self.acknowledged,
            self.delivered,
            self.failures.len(),
            self.seconds,
        )?;
        for failure in &self.failures {
            write!(f, "\n  {failure}")?;
        }
        match &self.plant {
            Some(plant) if self.failures.is_empty() => {
                write!(f, "\n  the planted bug {plant} was NOT caught")
            }
            _ => Ok(()),
        }
    }
}

/// How many of the first seeds are run twice before any is believed, and then one in how many.
const TWICE_FIRST: u64 = 100;
const TWICE_EVERY: u64 = 1000;
/// More say nothing new.
const FAILURES_MAX: usize = 10;
/// In the place of an invariant: what such a seed found, nobody can find again.
const SAME_TRACE: &str = "same seed, same trace";

/// Runs a seed twice. Two traces are what is wrong with it, whatever it found.
pub fn run_twice(seed: u64) -> Outcome {
    let mut outcome = run(seed, true);
    if let Some(what) = differs(&outcome) {
        outcome.violation = Some(Violation {
            invariant: SAME_TRACE,
            what,
        });
    }
    outcome
}

/// Runs a seed again, and says where it is not the same.
pub fn differs(first: &Outcome) -> Option<String> {
    let second = run(first.seed, first.trace.is_some());
    let seed = first.seed;
    let same = (first.trace_hash, first.trace_lines) == (second.trace_hash, second.trace_lines);
    if same && first.trace == second.trace {
        return None;
    }
    let text = |outcome: &Outcome| outcome.trace.clone().unwrap_or_default();
    let (first, second) = (text(first), text(&second));
    let mut lines = first.lines().zip(second.lines()).enumerate();
    let place = lines.find(|(_, (a, b))| a != b);
    Some(format!(
        "seed {seed} is not the same twice, first at {place:?}"
    ))
}

/// Runs one seed.
pub fn run(seed: u64, keep_trace: bool) -> Outcome {
    hutong_plants::restart();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without IO");
    let scenario = scenario::Scenario::new(seed, keep_trace);
    let random = Random::new(seed ^ 0xe8ec_0704);
    runtime.block_on(scenario.play(random))
}

/// Keeps a seed that failed as a file of this folder, with what it broke; nothing for one that passed.
pub fn keep(folder: &Path, outcome: &Outcome) -> std::io::Result<Option<PathBuf>> {
    let Some(violation) = &outcome.violation else {
        return Ok(None);
    };
    let file = folder.join(format!("{:04}.seed", outcome.seed));
    // What it found may have lines of its own, and only the seed stands without a mark.
    let found = violation.to_string().replace('\n', "\n# ");
    std::fs::write(&file, format!("# {found}\n{}\n", outcome.seed))?;
    Ok(Some(file))
}

impl Args {
    fn wants_trace(&self) -> bool {
        self.seed.is_some() || self.trace.is_some()
    }

    fn twice(&self, seed: u64) -> Outcome {
        let outcome = run_twice(seed);
        match self.wants_trace() {
            true => outcome,
            // Hundreds of them would fill the memory.
            false => Outcome {
                trace: None,
                ..outcome
            },
        }
    }

    pub fn run(&self) -> Result<bool, String> {
        if let Some(name) = &self.plant {
            let plant = hutong_plants::Plant::from_name(name);
            hutong_plants::plant(Some(
                plant.ok_or_else(|| format!("no plant is called {name}"))?,
            ));
        }
        let clock = Clock::start();
        let report = self.search()?;
        if let Some(page) = &self.report {
            let html = report::html_of_search(&page::of(self, &report), clock);
            std::fs::write(page, html).map_err(|e| format!("{}: {e}", page.display()))?;
        }
        match self.json {
            true => out::line(serde_json::to_string(&report).map_err(|e| e.to_string())?),
            false => out::line(&report),
        }
        match report.interrupted && report.failures.is_empty() {
            true => Err(interrupt::INTERRUPTED_HERE.to_owned()),
            false => Ok(report.failures.is_empty()),
        }
    }

    fn search(&self) -> Result<Report, String> {
        let started = Instant::now();
        let (from, count) = match self.seed {
            Some(seed) => (seed, 1),
            None => (self.from, self.seeds),
        };
        let mut report = Report {
            asked: count,
            plant: self.plant.clone(),
            ..Report::default()
        };
        let minutes = self.minutes.map(|m| Duration::from_secs(m * 60));
        let most = self.duration.or(minutes);
        let late = || interrupt::told() || most.is_some_and(|most| started.elapsed() > most);
        // No seed is believed before the first ones were the same twice.
        let mut first = Vec::new();
        for seed in (from..from + count).take(TWICE_FIRST as usize) {
            first.push(self.twice(seed));
            if late() {
                break;
            }
        }
        report.run_twice = first.len() as u64;
        let all_the_same = first.iter().all(|outcome| !outcome.differs());
        let shown = first.iter().filter(|o| all_the_same || o.differs());
        for outcome in shown {
            if report.failures.len() >= FAILURES_MAX {
                break;
            }
            report.add(outcome);
            self.show(outcome)?;
        }
        for seed in from + report.run_twice..from + count {
            if !all_the_same || late() || report.failures.len() >= FAILURES_MAX {
                break;
            }
            let again = self.twice || (seed - from).is_multiple_of(TWICE_EVERY);
            report.run_twice += u64::from(again);
            let outcome = match again {
                true => self.twice(seed),
                false => run(seed, self.wants_trace()),
            };
            report.add(&outcome);
            self.show(&outcome)?;
        }
        report.seconds = started.elapsed().as_secs_f64();
        let enough = !all_the_same || report.failures.len() >= FAILURES_MAX;
        report.interrupted = !enough && report.seeds < count && interrupt::told();
        report.out_of_time = !enough && report.seeds < count && !report.interrupted;
        Ok(report)
    }

    fn show(&self, outcome: &Outcome) -> Result<(), String> {
        let trace = outcome.trace.as_deref().unwrap_or_default();
        match &self.trace {
            Some(file) => std::fs::write(file, trace)
                .map_err(|e| format!("--trace {}: cannot write it: {e}", file.display()))?,
            None if outcome.violation.is_some() && self.seed.is_some() => eprint!("{trace}"),
            None => {}
        }
        if let Some(folder) = self.folder()
            && let Some(file) = keep(folder, outcome).map_err(|e| e.to_string())?
        {
            eprintln!("kept: {}", file.display());
        }
        Ok(())
    }

    /// Where failing seeds are kept. What a planted bug fails is no failure.
    fn folder(&self) -> Option<&Path> {
        let checkout = Path::new(SEEDS);
        match &self.keep {
            _ if self.no_keep || self.plant.is_some() => None,
            Some(folder) => Some(folder),
            None => checkout.is_dir().then_some(checkout),
        }
    }
}
