//! `replay`: the published lists of risk areas go from 32 provinces through the broker into a PostgreSQL while
//! one random fault after the other is there. In the end the table must be the last list.

use crate::{
    clients::mix,
    commands::{Interrupts, Playing, chance, play_and_judge},
    drill::{Drill, STEADY_AFTER},
    error::ChaosError,
    out, report,
    stage::{isolate, machine::Machine},
};
use clap::Args;
use std::time::Duration;

/// Before the first fault.
const QUIET: Duration = Duration::from_secs(8);
const RECOVERY: Duration = Duration::from_secs(20);
/// From one fault to the next: they last 1 to 6 s, and what they did takes a while to heal.
const EVERY: Duration = Duration::from_secs(11);
/// Within this after its turn, a fault begins.
const JITTER: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// How many faults.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    faults: u32,
    #[command(flatten)]
    playing: Playing,
}

pub async fn run(arguments: Arguments) -> Result<u8, ChaosError> {
    let playing = &arguments.playing;
    let options = playing.options()?;
    let machine = Machine::look();
    let mut interrupts = Interrupts::listen()?;
    if let Some(code) = isolate::enter(&machine, &mut interrupts).await? {
        return Ok(code);
    }
    let known = short(chance::known(&machine)?);
    let drill = made(&known, options.seed, arguments.faults)?;
    let page = playing.report.as_deref();
    let (verdict, file) = play_and_judge(&drill, &machine, &options, page, &mut interrupts).await?;
    match playing.json {
        true => out::line(report::json(&verdict, Some(&file))),
        false => out::text(report::text(&verdict, &file, page)),
    }
    Ok(verdict.outcome.exit_code())
}

/// Those whose fault is over before the next one begins: one that takes 15 or 40 s to be felt would be beside others.
/// (So no subscriber stalls in a replay.)
fn short(known: Vec<Drill>) -> Vec<Drill> {
    let short = |drill: &Drill| {
        drill
            .faults
            .iter()
            .all(|fault| fault.lasting <= chance::LONG)
    };
    known.into_iter().filter(short).collect()
}

fn made(known: &[Drill], seed: u64, count: u32) -> Result<Drill, ChaosError> {
    let faults: Vec<_> = (0..count)
        .map(|i| {
            let seed = mix(seed ^ mix(u64::from(i)));
            let begin = QUIET + EVERY * i;
            chance::fault(
                &known[chance::below(seed, known.len())],
                seed,
                begin..begin + JITTER,
            )
        })
        .collect();
    let head = format!(
        "# Made by `replay`.\nname = \"replay\"\ntitle = \"Lists of risk areas through {count} faults\"\n\
         title_zh = \"风险区域名单回放，{count} 个故障\"\n\
         why = \"Whatever happens on the way, the table is the last published list.\"\n\
         why_zh = \"无论途中发生什么，最终的表与最后发布的名单一致。\"\n\
         duration = \"{}s\"\n[hypothesis]\nrecovery = \"{}s\"\nurgent_lag = \"2s\"\nbulk_lag = \"5s\"\n\
         [workload]\nplatforms = 32\nrate = 1000\nsink = true\nrisk_levels = true\n",
        // The last one may end as late as the next would begin; then comes its recovery.
        (QUIET + EVERY * count + RECOVERY + STEADY_AFTER).as_secs(),
        RECOVERY.as_secs(),
    );
    let text = chance::write(&head, &faults);
    Drill::parse("replay.toml", &text).map_err(ChaosError::Drill)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::{BUILT_IN, find};

    #[test]
    fn every_seed_makes_a_drill_without_a_mistake_in_which_one_fault_is_there_at_a_time() {
        let known: Vec<Drill> = (BUILT_IN.iter())
            .map(|(name, _)| find(name).expect("built in"))
            .filter(|drill| !drill.hypothesis.refuses_to_start)
            .collect();
        let all = known.len();
        let known = short(known);
        assert!(known.len() + 3 > all, "{} of {all}", known.len());
        for seed in 0..400 {
            let drill = made(&known, seed, 10).unwrap_or_else(|e| panic!("{seed}: {e}"));
            assert_eq!(drill.faults.len(), 10);
            for pair in drill.faults.windows(2) {
                let over = pair[0].at + pair[0].lasting;
                assert!(over <= pair[1].at, "{seed}: {pair:?}");
            }
        }
    }
}
