//! `run`: plays some drills, one after the other.

use crate::{
    commands::{Interrupts, Playing, all, play_and_judge},
    drill::find,
    error::ChaosError,
    play::Options,
    report,
    stage::{isolate, machine::Machine, trial},
};
use clap::Args;

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Names, as `list` shows them, or files.
    #[arg(required = true, value_name = "DRILL")]
    drills: Vec<String>,
    #[command(flatten)]
    playing: Playing,
    #[command(flatten)]
    trial: trial::Arguments,
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
    let machine = Machine::look();
    let mut interrupts = Interrupts::listen()?;
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
        true => println!("{}", report::json(&verdict, Some(&file))),
        false => print!("{}", report::text(&verdict, &file, page)),
    }
    Ok(verdict.outcome.exit_code())
}
