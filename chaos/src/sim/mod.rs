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
mod publisher;
mod scenario;
mod subscriber;
mod watch;
pub mod world;

use crate::random::Random;
use serde::Serialize;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use world::Violation;

/// Runs seeds.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// One seed, with its trace on standard error when it fails.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    pub seed: Option<u64>,
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    pub seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 1)]
    pub from: u64,
    /// Stops after so long.
    #[arg(long)]
    pub minutes: Option<u64>,
    /// Runs each seed twice and compares the traces.
    #[arg(long)]
    pub twice: bool,
    /// Writes the trace of `--seed` to this file.
    #[arg(long)]
    pub trace: Option<PathBuf>,
    /// Keeps failing seeds in this folder, a file each.
    #[arg(long)]
    pub keep: Option<PathBuf>,
    /// Plants a bug, to see it found.
    #[arg(long)]
    pub plant: Option<String>,
    /// One line of JSON instead of text.
    #[arg(long)]
    pub json: bool,
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

/// What many did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub seeds: u64,
    pub simulated_hours: f64,
    pub acknowledged: u64,
    pub delivered: u64,
    pub faults: u64,
    pub trace_lines: u64,
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
        write!(
            f,
            "{} seeds, {:.1} hours simulated, {} faults, {} deltas acknowledged, {} delivered, {} failures; {:.0} s",
            self.seeds,
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
        Ok(())
    }
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

impl Args {
    pub fn run(&self) -> Result<bool, String> {
        if let Some(name) = &self.plant {
            let plant = hutong_plants::Plant::from_name(name);
            hutong_plants::plant(Some(
                plant.ok_or_else(|| format!("no plant is called {name}"))?,
            ));
        }
        let started = Instant::now();
        let (from, count) = match self.seed {
            Some(seed) => (seed, 1),
            None => (self.from, self.seeds),
        };
        let mut report = Report::default();
        for seed in from..from + count {
            let outcome = run(seed, self.twice || self.seed.is_some());
            report.add(&outcome);
            if self.twice && run(seed, true).trace != outcome.trace {
                report
                    .failures
                    .push(format!("seed {seed} is not the same twice"));
            }
            self.show(&outcome)?;
            let late = self
                .minutes
                .is_some_and(|m| started.elapsed() > Duration::from_secs(m * 60));
            if late || report.failures.len() >= 10 {
                break;
            }
        }
        report.seconds = started.elapsed().as_secs_f64();
        match self.json {
            true => println!(
                "{}",
                serde_json::to_string(&report).map_err(|e| e.to_string())?
            ),
            false => println!("{report}"),
        }
        Ok(report.failures.is_empty())
    }

    fn show(&self, outcome: &Outcome) -> Result<(), String> {
        let trace = outcome.trace.as_deref().unwrap_or_default();
        match &self.trace {
            Some(file) => std::fs::write(file, trace).map_err(|e| e.to_string())?,
            None if outcome.violation.is_some() && self.seed.is_some() => eprint!("{trace}"),
            None => {}
        }
        if let (Some(folder), Some(violation)) = (&self.keep, &outcome.violation) {
            let file = folder.join(format!("{}.seed", outcome.seed));
            let text = format!("# {violation}\n{}\n", outcome.seed);
            std::fs::write(file, text).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}
