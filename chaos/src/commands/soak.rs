//! `soak`: random pairs of faults, for hours. Each round is a drill of its own with a seed of its own, so
//! a round that fails can be played again alone.

use crate::{
    clients::mix,
    commands::{FAIL, PASS, Playing, chance, duration, play_and_judge},
    drill::Drill,
    error::ChaosError,
    judge::Outcome,
    play::Options,
    stage::{isolate, machine::Machine},
};
use clap::Args;
use std::{
    ops::Range,
    time::{Duration, Instant},
};

const ROUND: Duration = Duration::from_secs(30);
/// When the two faults of a round begin.
const AT: Range<Duration> = Duration::from_secs(5)..Duration::from_secs(12);

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// How long, such as 2h.
    #[arg(long = "for", value_parser = duration, default_value = "2h")]
    lasting: Duration,
    #[command(flatten)]
    playing: Playing,
}

pub async fn run(arguments: Arguments) -> Result<u8, ChaosError> {
    let machine = Machine::look();
    let options = arguments.playing.options()?;
    if let Some(code) = isolate::enter(&machine).await? {
        return Ok(code);
    }
    let known = chance::known(&machine)?;
    let begun = Instant::now();
    let (mut rounds, mut failed, mut invalid, mut acknowledged) = (0u64, 0, 0, 0);
    while begun.elapsed() < arguments.lasting {
        let seed = mix(options.seed ^ mix(rounds));
        rounds += 1;
        let drill = pair(&known, seed)?;
        let round = Options {
            seed,
            ..options.clone()
        };
        let (verdict, file) = play_and_judge(&drill, &machine, &round, None).await?;
        acknowledged += verdict.totals.acknowledged;
        println!(
            "{rounds:>5}  {:7}  {}  {}",
            verdict.outcome.name(),
            drill.title,
            file.display()
        );
        for reason in &verdict.reasons {
            println!("       {}", reason.en);
        }
        match verdict.outcome {
            // Hours of histories would fill a disk; those that say something stay.
            Outcome::Pass => {
                std::fs::remove_file(&file).map_err(ChaosError::file("cannot remove", &file))?;
            }
            Outcome::Fail => failed += 1,
            Outcome::Invalid => invalid += 1,
        }
    }
    println!(
        "{rounds} rounds in {:.1} h: {failed} failed, {invalid} invalid, {acknowledged} deltas acknowledged",
        begun.elapsed().as_secs_f64() / 3600.0
    );
    Ok(if failed > 0 { FAIL } else { PASS })
}

/// Two faults of different drills, at moments of their own.
fn pair(known: &[Drill], seed: u64) -> Result<Drill, ChaosError> {
    let first = &known[chance::below(seed ^ 1, known.len())];
    let others: Vec<&Drill> = known.iter().filter(|d| d.name != first.name).collect();
    let second = others[chance::below(seed ^ 2, others.len())];
    let faults = [
        chance::fault(first, seed ^ 10, AT),
        chance::fault(second, seed ^ 20, AT),
    ];
    let head = format!(
        "# Made by `soak`.\nname = \"soak\"\ntitle = \"{a} and {b}\"\ntitle_zh = \"{a} 与 {b}\"\n\
         why = \"Two faults at once lose nothing.\"\nwhy_zh = \"两个故障同时发生也不丢失数据。\"\n\
         duration = \"{}s\"\n[hypothesis]\nrecovery = \"20s\"\n[workload]\nsink = {}\n",
        ROUND.as_secs(),
        first.workload.sink || second.workload.sink,
        a = faults[0].what.name(),
        b = faults[1].what.name(),
    );
    let text = chance::write(&head, &faults);
    Drill::parse("soak.toml", &text).map_err(ChaosError::Drill)
}
