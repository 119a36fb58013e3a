//! `all`: every drill that this machine can play, and a table at the end.

use crate::{
    commands::{FAIL, INVALID, Interrupts, PASS, Playing, play_and_judge},
    drill::{BUILT_IN, Drill, Loading, Overrides, find},
    error::ChaosError,
    history::{self, History},
    judge::{Outcome, Verdict},
    out,
    play::{Options, unavailable},
    report,
    stage::{isolate, machine::Machine},
    text::Text,
};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// The load beside the faults: quiet, with a surge that covers them, or each drill with both in turn. Left
    /// out, it is what each drill's file says.
    #[arg(long, value_enum)]
    load: Option<LoadWord>,
    #[command(flatten)]
    playing: Playing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LoadWord {
    Quiet,
    Surge,
    Both,
}

impl LoadWord {
    fn each(word: Option<LoadWord>) -> &'static [Option<Loading>] {
        match word {
            None => &[None],
            Some(LoadWord::Quiet) => &[Some(Loading::Quiet)],
            Some(LoadWord::Surge) => &[Some(Loading::Surge)],
            Some(LoadWord::Both) => &[Some(Loading::Quiet), Some(Loading::Surge)],
        }
    }
}

/// What became of one drill.
#[derive(Debug)]
pub enum Played {
    Judged(Box<Verdict>, PathBuf),
    /// This machine cannot play it.
    Left(Text),
    /// It did not get as far as a history that can be judged, so it says nothing.
    Broken(Text),
}

impl Played {
    /// Nothing, when it was not tried.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Played::Judged(verdict, _) => Some(verdict.outcome),
            Played::Left(_) => None,
            Played::Broken(_) => Some(Outcome::Invalid),
        }
    }
}

/// A drill, and the load that it is played with when that is not its own.
pub type Turn = (Drill, Option<Loading>);

/// One row of a table.
#[derive(Debug)]
pub struct Row {
    /// What it is called there.
    pub name: String,
    pub title: Text,
    pub surge: bool,
    pub played: Played,
}

impl Row {
    /// Of a drill, as it is played.
    pub fn of(name: String, drill: &Drill, played: Played) -> Row {
        Row {
            name,
            title: Text::new(&drill.title, &drill.title_zh),
            surge: drill.workload.surge.is_some(),
            played,
        }
    }
}

pub async fn run(arguments: Arguments) -> Result<u8, ChaosError> {
    let machine = Machine::look();
    let options = arguments.playing.options()?;
    let mut interrupts = Interrupts::listen()?;
    if let Some(code) = isolate::enter(&machine, &mut interrupts).await? {
        return Ok(code);
    }
    let mut turns = Vec::new();
    for (name, _) in BUILT_IN {
        for load in LoadWord::each(arguments.load) {
            turns.push((find(name)?, *load));
        }
    }
    let playing = (&arguments.playing, &options);
    play_all(turns, &machine, playing, &mut interrupts).await
}

/// What was played by then is shown also when it is interrupted.
pub async fn play_all(
    turns: Vec<Turn>,
    machine: &Machine,
    (playing, options): (&Playing, &Options),
    interrupts: &mut Interrupts,
) -> Result<u8, ChaosError> {
    let mut rows = Vec::new();
    let mut interrupted = false;
    for (i, (drill, load)) in turns.iter().enumerate() {
        let options = Options {
            overrides: Overrides {
                load: *load,
                ..options.overrides
            },
            ..options.clone()
        };
        let shown = drill.clone().with(&options.overrides);
        eprintln!("{} of {}: {}", i + 1, turns.len(), drill.name);
        match play_one(drill, machine, &options, interrupts).await {
            Ok(played) => rows.push(Row::of(drill.name.clone(), &shown, played)),
            Err(ChaosError::Interrupted) => {
                interrupted = true;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(page) = &playing.report {
        write_page(page, &rows)?;
    }
    match playing.json {
        true => out::line(report::json_of_all(&rows)),
        false => out::text(report::table(&rows)),
    }
    match interrupted {
        true => Err(ChaosError::Interrupted),
        false => Ok(code(&rows)),
    }
}

/// Only an interrupt is an error: whatever else keeps a drill from its end is its own row.
pub async fn play_one(
    drill: &Drill,
    machine: &Machine,
    options: &Options,
    interrupts: &mut Interrupts,
) -> Result<Played, ChaosError> {
    let missing = unavailable(drill, machine, None);
    if !missing.is_empty() {
        let why = Text::joined(&missing);
        eprintln!("    left out: {why}");
        return Ok(Played::Left(why));
    }
    match play_and_judge(drill, machine, options, None, interrupts).await {
        Ok((verdict, file)) => {
            for reason in &verdict.reasons {
                eprintln!("    {}", reason.en);
            }
            Ok(Played::Judged(Box::new(verdict), file))
        }
        Err(ChaosError::Interrupted) => Err(ChaosError::Interrupted),
        Err(error) => {
            eprintln!("    {error}");
            Ok(Played::Broken(error.text()))
        }
    }
}

/// The table, and a section for each whose history is still there.
pub fn write_page(page: &PathBuf, rows: &[Row]) -> Result<(), ChaosError> {
    let mut histories: Vec<(History, &Verdict)> = Vec::new();
    for row in rows {
        if let Played::Judged(verdict, file) = &row.played
            && file.exists()
        {
            histories.push((history::read(file)?, verdict));
        }
    }
    let sections: Vec<_> = histories.iter().map(|(h, v)| (h, *v)).collect();
    std::fs::write(page, report::html_of_all(rows, &sections))
        .map_err(ChaosError::file("cannot write", page))
}

/// The worst of them. What was left out says nothing, and if nothing else is there, nobody can say that it is
/// well.
pub fn code(rows: &[Row]) -> u8 {
    let outcomes: Vec<Outcome> = rows.iter().filter_map(|r| r.played.outcome()).collect();
    if outcomes.contains(&Outcome::Fail) {
        FAIL
    } else if outcomes.is_empty() || outcomes.contains(&Outcome::Invalid) {
        INVALID
    } else {
        PASS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_judged_is_no_pass() {
        let row = |played| Row {
            name: "kill-broker".to_owned(),
            title: Text::new("The broker is killed", "终止互通"),
            surge: false,
            played,
        };
        let broken = || row(Played::Broken(Text::quoted("the broker was not ready")));
        let left = || row(Played::Left(Text::new("needs root", "需要 root")));
        assert_eq!(code(&[]), INVALID);
        assert_eq!(code(&[left()]), INVALID);
        assert_eq!(code(&[left(), broken()]), INVALID);
        let table = report::table(&[left(), broken()]);
        assert!(table.contains("0 passed, 0 failed, 1 invalid, 1 not played here"));
        let json = report::json_of_all(&[left(), broken()]);
        assert_eq!(json[1]["outcome"], "INVALID");
        assert_eq!(json[1]["load"], "quiet");
    }
}
