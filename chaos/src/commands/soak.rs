//! `soak`: random pairs of faults, for hours. Each round is a drill of its own with a seed of its own, so
//! a round that fails can be played again alone.

use crate::{
    clients::mix,
    commands::{FAIL, PASS, Playing, duration, play_and_judge},
    drill::{BUILT_IN, Drill, Fault, find},
    error::ChaosError,
    judge::Outcome,
    play::{Options, unavailable},
    stage::{isolate, machine::Machine},
};
use clap::Args;
use std::{
    fmt::Write,
    time::{Duration, Instant},
};

const ROUND: Duration = Duration::from_secs(30);
/// When the two faults of a round begin and how long they last, at least and at most, in seconds.
const AT_S: (u64, u64) = (5, 12);
const LASTING_S: (u64, u64) = (1, 6);

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
    let mut known = Vec::new();
    for (name, _) in BUILT_IN {
        let drill = find(name)?;
        // One that needs the broker to refuse a start cannot have a second fault beside it.
        if unavailable(&drill, &machine).is_empty() && !drill.hypothesis.refuses_to_start {
            known.push(drill);
        }
    }
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
    let few = || ChaosError::Usage("this machine can play no two drills".to_owned());
    let below = |salt: u64, n: usize| (mix(seed ^ salt) % n.max(1) as u64) as usize;
    let first = known.get(below(1, known.len())).ok_or_else(few)?;
    let others: Vec<&Drill> = known.iter().filter(|d| d.name != first.name).collect();
    let second = *others.get(below(2, others.len())).ok_or_else(few)?;
    let fault = |drill: &Drill, salt: u64| -> Fault {
        let within = |(low, high): (u64, u64), salt| {
            Duration::from_millis(low * 1000 + mix(seed ^ salt) % ((high - low) * 1000))
        };
        Fault {
            at: within(AT_S, salt),
            lasting: within(LASTING_S, salt + 1),
            what: drill.faults[below(salt + 2, drill.faults.len())]
                .what
                .clone(),
        }
    };
    let faults = [fault(first, 10), fault(second, 20)];
    // As a file, because a history is judged by the file in it.
    let text = write_down(first, second, &faults);
    Drill::parse("soak.toml", &text).map_err(ChaosError::Drill)
}

fn write_down(first: &Drill, second: &Drill, faults: &[Fault; 2]) -> String {
    let mut text = format!(
        "# Made by `soak`.\nname = \"soak\"\ntitle = \"{a} and {b}\"\ntitle_zh = \"{a} 与 {b}\"\n\
         why = \"Two faults at once lose nothing.\"\nwhy_zh = \"两个故障同时发生也不丢失数据。\"\n\
         duration = \"{}s\"\n[hypothesis]\nrecovery = \"20s\"\n[workload]\nsink = {}\n",
        ROUND.as_secs(),
        first.workload.sink || second.workload.sink,
        a = faults[0].what.name(),
        b = faults[1].what.name(),
    );
    for fault in faults {
        write!(
            text,
            "[[faults]]\nkind = \"{}\"\nat = \"{}ms\"\nfor = \"{}ms\"\n{}",
            fault.what.name(),
            fault.at.as_millis(),
            fault.lasting.as_millis(),
            fault.what.keys(),
        )
        .expect("a text takes all");
    }
    text
}
