//! `run`: plays some drills, one after the other.

use crate::{
    commands::{Interrupts, Playing, all, play_and_judge},
    drill::find,
    error::ChaosError,
    out,
    play::Options,
    report,
    stage::{isolate, machine::Machine, trial},
};
use clap::Args;
use hutong_plants::Plant;

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
}

fn plant(name: &str) -> Result<Plant, String> {
    let known = || Plant::ALL.iter().map(|plant| plant.name());
    Plant::from_name(name).ok_or_else(|| {
        let known: Vec<_> = known().collect();
        format!("no bug is called so; there are {}", known.join(", "))
    })
}

pub async fn run(arguments: Arguments) -> Result<u8, ChaosError> {
    let mut drills = Vec::new();
    for name in &arguments.drills {
        drills.push(find(name)?);
    }
    let playing = &arguments.playing;
    let options = Options {
        trial: arguments.trial.trial(),
        ..playing.options()?
    };
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
    } else if let Some(code) = isolate::enter(&machine, &mut interrupts).await? {
        return Ok(code);
    }
    if drills.len() > 1 {
        let turns = drills.into_iter().map(|drill| (drill, None)).collect();
        return all::play_all(turns, &machine, playing, &mut interrupts).await;
    }
    let page = playing.report.as_deref();
    let drill = &drills[0];
    let (verdict, file) = play_and_judge(drill, &machine, &options, page, &mut interrupts).await?;
    match playing.json {
        true => out::line(report::json(&verdict, Some(&file))),
        false => out::text(report::text(&verdict, &file, page)),
    }
    Ok(verdict.outcome.exit_code())
}
