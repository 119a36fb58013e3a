//! `all`: every drill that this machine can play, and a table at the end.

use crate::{
    commands::{FAIL, INVALID, PASS, Playing, play_and_judge},
    drill::{BUILT_IN, Drill, find},
    error::ChaosError,
    history,
    judge::{Outcome, Verdict},
    play::unavailable,
    report,
    stage::{isolate, machine::Machine},
};
use clap::Args;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    playing: Playing,
}

/// What became of one drill.
#[derive(Debug)]
pub enum Played {
    Judged(Box<Verdict>, PathBuf),
    /// This machine cannot play it.
    Left(String),
}

pub async fn run(arguments: Arguments) -> Result<u8, ChaosError> {
    let machine = Machine::look();
    arguments.playing.options()?;
    if let Some(code) = isolate::enter(&machine).await? {
        return Ok(code);
    }
    let mut drills = Vec::new();
    for (name, _) in BUILT_IN {
        drills.push(find(name)?);
    }
    play_all(&drills, &machine, &arguments.playing).await
}

pub async fn play_all(
    drills: &[Drill],
    machine: &Machine,
    playing: &Playing,
) -> Result<u8, ChaosError> {
    let options = playing.options()?;
    let mut all = Vec::new();
    for (i, drill) in drills.iter().enumerate() {
        let missing = unavailable(drill, machine, None);
        if !missing.is_empty() {
            let why = missing.join("; ");
            eprintln!(
                "{} of {}: {} is left out: {why}",
                i + 1,
                drills.len(),
                drill.name
            );
            all.push((drill, Played::Left(why)));
            continue;
        }
        eprintln!("{} of {}: {}", i + 1, drills.len(), drill.name);
        let played = match play_and_judge(drill, machine, &options, None).await {
            Ok((verdict, file)) => {
                for reason in &verdict.reasons {
                    eprintln!("    {}", reason.en);
                }
                Played::Judged(Box::new(verdict), file)
            }
            Err(ChaosError::Interrupted) => return Err(ChaosError::Interrupted),
            Err(error) => Played::Left(error.to_string()),
        };
        all.push((drill, played));
    }
    if let Some(page) = &playing.report {
        let mut pages = Vec::new();
        for (_, played) in &all {
            if let Played::Judged(verdict, file) = played {
                pages.push((history::read(file)?, verdict));
            }
        }
        let pages: Vec<_> = pages.iter().map(|(h, v)| (h, &***v)).collect();
        std::fs::write(page, report::html(&pages))
            .map_err(ChaosError::file("cannot write", page))?;
    }
    let rows: Vec<_> = all.iter().map(|(drill, played)| (*drill, played)).collect();
    match playing.json {
        true => println!("{}", report::json_of_all(&rows)),
        false => print!("{}", report::table(&rows)),
    }
    Ok(code(all.iter().map(|(_, played)| played)))
}

/// The worst of them; what was left out says nothing.
fn code<'a>(all: impl Iterator<Item = &'a Played>) -> u8 {
    let rank = |played: &Played| match played {
        Played::Judged(verdict, _) => match verdict.outcome {
            Outcome::Pass => PASS,
            Outcome::Fail => FAIL,
            Outcome::Invalid => INVALID,
        },
        Played::Left(_) => PASS,
    };
    let codes: Vec<u8> = all.map(rank).collect();
    match (codes.contains(&FAIL), codes.contains(&INVALID)) {
        (true, _) => FAIL,
        (false, true) => INVALID,
        (false, false) => PASS,
    }
}
