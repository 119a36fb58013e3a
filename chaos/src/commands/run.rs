//! `run`: plays some drills, one after the other.

use crate::{
    commands::{INVALID, Interrupts, Playing, all, play_and_judge},
    drill::{Drill, Overrides, What, find},
    error::ChaosError,
    out,
    play::Options,
    report,
    stage::{isolate, machine::Machine, trial},
};
use clap::Args;
use hutong_plants::{Failpoint, Plant};

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Names, as `list` shows them, or files.
    #[arg(required = true, value_name = "DRILL")]
    drills: Vec<String>,
    #[command(flatten)]
    playing: Playing,
    #[command(flatten)]
    trial: trial::Arguments,
    /// Plays it with this bug planted in broker and connectors, to see that the drill catches it: a pass is then
    /// a check that is missing. `hutong-chaos plants` names the bugs.
    #[arg(long, value_name = "BUG", value_parser = plant)]
    plant: Option<Plant>,
    /// Another edge of a commit for the drills that crash the broker at one, such as commit-synced: the first time
    /// that the broker comes there, unless --nth says otherwise.
    #[arg(long, value_parser = edge)]
    edge: Option<Failpoint>,
    /// The how-manieth time that it comes there.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    nth: Option<u32>,
}

/// An edge by its name; `sweep` takes them as well.
pub fn edge(name: &str) -> Result<Failpoint, String> {
    Failpoint::from_name(name).ok_or_else(|| {
        let known: Vec<_> = Failpoint::ALL.iter().map(|edge| edge.name()).collect();
        format!("no edge is called so; there are {}", known.join(", "))
    })
}

fn plant(name: &str) -> Result<Plant, String> {
    let known = || Plant::ALL.iter().map(|plant| plant.name());
    Plant::from_name(name).ok_or_else(|| {
        let known: Vec<_> = known().collect();
        format!("no bug is called so; there are {}", known.join(", "))
    })
}

impl Arguments {
    fn options(&self, drills: &[Drill]) -> Result<Options, ChaosError> {
        let mut options = self.playing.options()?;
        options.trial = self.trial.trial();
        options.overrides.edge = self.edge;
        options.overrides.nth = self.nth;
        for drill in drills {
            crash_fits(drill, &options.overrides)?;
        }
        Ok(options)
    }
}

/// Does the command line ask for a crash that this drill can have?
fn crash_fits(drill: &Drill, overrides: &Overrides) -> Result<(), ChaosError> {
    if overrides.edge.is_none() && overrides.nth.is_none() {
        return Ok(());
    }
    let drill = drill.clone().with(overrides);
    let edges = drill.faults.iter().filter_map(|fault| match fault.what {
        What::CrashAtEdge { edge, nth } => Some((edge, nth)),
        _ => None,
    });
    let edges: Vec<_> = edges.collect();
    let refused = |why: String| Err(ChaosError::Usage(format!("{}: {why}", drill.name)));
    if edges.is_empty() {
        return refused("--edge and --nth are for drills with crash-at-edge".to_owned());
    }
    let twice = edges.iter().find(|(e, nth)| e.is_of_a_start() && *nth > 1);
    match twice {
        None => Ok(()),
        Some((edge, _)) => refused(format!(
            "a broker comes to {} once, when it starts; leave --nth out",
            edge.name()
        )),
    }
}

pub async fn run(arguments: Arguments) -> Result<u8, ChaosError> {
    let mut drills = Vec::new();
    for name in &arguments.drills {
        drills.push(find(name)?);
    }
    let playing = &arguments.playing;
    let options = arguments.options(&drills)?;
    let machine = Machine::look().with_plant(arguments.plant);
    let mut interrupts = Interrupts::listen()?;
    if options.trial.is_some() && arguments.plant.is_some() {
        return Err(ChaosError::Usage(
            "--plant needs a broker of the drill's own, and not one of --trial".to_owned(),
        ));
    }
    if options.trial.is_some() {
        // Whose network is its own cannot reach anybody; and after one drill it is no longer empty.
        if drills.len() > 1 {
            return Err(ChaosError::Usage(
                "with --trial play one drill at a time: each begins with an empty deployment"
                    .to_owned(),
            ));
        }
    } else {
        let entered = isolate::enter(&machine, &mut interrupts).await;
        if let (Err(error), [drill], true) = (&entered, &drills[..], playing.json) {
            not_judged(drill, &options, error);
        }
        if let Some(code) = entered? {
            return Ok(code);
        }
    }
    if drills.len() > 1 {
        let turns = drills.into_iter().map(|drill| (drill, None)).collect();
        return all::play_all(turns, &machine, (playing, &options), &mut interrupts).await;
    }
    let page = playing.report.as_deref();
    let drill = &drills[0];
    let played = play_and_judge(drill, &machine, &options, page, &mut interrupts).await;
    if let (Err(error), true) = (&played, playing.json) {
        not_judged(drill, &options, error);
    }
    let (verdict, file) = played?;
    match playing.json {
        true => out::line(report::json(&verdict, Some(&file))),
        false => out::text(report::text(&verdict, &file, page)),
    }
    Ok(verdict.outcome.exit_code())
}

/// An object also where nothing was played: who reads it would find an empty answer.
fn not_judged(drill: &Drill, options: &Options, error: &ChaosError) {
    if error.exit_code() != INVALID {
        return;
    }
    let shown = drill.clone().with(&options.overrides);
    let row = all::Row::of(
        drill.name.clone(),
        &shown,
        all::Played::Broken(error.text()),
    );
    let mut rows = report::json_of_all(&[row]);
    out::line(rows[0].take());
}
