//! `soak`: random pairs of faults, for hours. Each round is a drill of its own with a seed of its own, so
//! a round that fails can be played again alone.

use crate::{
    clients::mix,
    commands::{
        Interrupts, Playing,
        all::{Played, Row, code, play_one, write_page},
        chance, duration,
    },
    drill::{Drill, Fault, STEADY_AFTER},
    error::ChaosError,
    judge::Outcome,
    out,
    play::Options,
    report,
    stage::{isolate, machine::Machine},
};
use clap::Args;
use std::{
    fmt::Write,
    ops::Range,
    time::{Duration, Instant},
};

/// When the two faults of a round begin.
const AT: Range<Duration> = Duration::from_secs(5)..Duration::from_secs(12);
const RECOVERY: Duration = Duration::from_secs(20);
/// Many more than a small machine plays well at the rate of most drills; a soak is for what is unlikely.
const PLATFORMS: [usize; 4] = [4, 8, 16, 32];
/// Rounds without any that can be played, after which it is of no use to go on.
const BROKEN_MAX: usize = 10;

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
    let mut interrupts = Interrupts::listen()?;
    if let Some(code) = isolate::enter(&machine, &mut interrupts).await? {
        return Ok(code);
    }
    let known = chance::known(&machine)?;
    let begun = Instant::now();
    let mut rows: Vec<Row> = Vec::new();
    let mut interrupted = false;
    while begun.elapsed() < arguments.lasting {
        let seed = mix(options.seed ^ mix(rows.len() as u64));
        let drill = pair(&known, seed)?;
        let round = Options {
            seed,
            ..options.clone()
        };
        match play_one(&drill, &machine, &round, &mut interrupts).await {
            Ok(played) => rows.push(Row::of(drill.title.clone(), &drill, played)),
            Err(ChaosError::Interrupted) => {
                interrupted = true;
                break;
            }
            Err(error) => return Err(error),
        }
        told(&rows)?;
        // Hours may be lost at any moment, and what was seen by then must not be.
        if let Some(page) = &arguments.playing.report {
            write_page(page, &rows)?;
        }
        let last = rows.iter().rev().take(BROKEN_MAX);
        let broken = last.filter(|row| matches!(row.played, Played::Broken(_)));
        if broken.count() == BROKEN_MAX {
            eprintln!("hutong-chaos: the last {BROKEN_MAX} rounds could not be played");
            break;
        }
    }
    match arguments.playing.json {
        true => out::line(report::json_of_all(&rows)),
        false => out::text(report::table(&rows)),
    }
    let hours = begun.elapsed().as_secs_f64() / 3600.0;
    eprintln!("{} rounds in {hours:.1} h", rows.len());
    match interrupted {
        true => Err(ChaosError::Interrupted),
        false => Ok(code(&rows)),
    }
}

/// How the last round went. Hours of histories would fill a disk; those that say something stay.
fn told(rows: &[Row]) -> Result<(), ChaosError> {
    let Some(row) = rows.last() else {
        return Ok(());
    };
    let outcome = row.played.outcome().map_or("-", Outcome::name);
    let surge = if row.surge { "surge" } else { "quiet" };
    match &row.played {
        Played::Judged(verdict, file) => {
            eprintln!(
                "{:>5}  {outcome:7}  {surge}  {}  {}",
                rows.len(),
                row.name,
                file.display()
            );
            if verdict.outcome == Outcome::Pass {
                std::fs::remove_file(file).map_err(ChaosError::file("cannot remove", file))?;
            }
        }
        Played::Left(_) | Played::Broken(_) => {
            eprintln!("{:>5}  {outcome:7}  {surge}  {}", rows.len(), row.name);
        }
    }
    Ok(())
}

/// Two faults of different drills, at moments of their own, beside a load of its own.
fn pair(known: &[Drill], seed: u64) -> Result<Drill, ChaosError> {
    let first = &known[chance::below(seed ^ 1, known.len())];
    let a = chance::fault(first, seed ^ 10, AT);
    let others: Vec<(&Drill, Fault)> = (known.iter())
        .filter(|drill| drill.name != first.name)
        .map(|drill| (drill, chance::fault(drill, seed ^ 20, AT)))
        .filter(|(_, b)| chance::go_together(&a, b))
        .collect();
    if others.is_empty() {
        return Err(ChaosError::Usage(format!(
            "this machine can play nothing beside {}",
            first.name
        )));
    }
    let (second, b) = &others[chance::below(seed ^ 2, others.len())];
    let drills = [first, *second];
    let mut faults = [a, b.clone()];
    chance::in_turn(&mut faults);
    let text = chance::write(&head(drills, &faults, seed), &faults);
    Drill::parse("soak.toml", &text).map_err(ChaosError::Drill)
}

fn head(drills: [&Drill; 2], faults: &[Fault; 2], seed: u64) -> String {
    let [a, b] = faults;
    let healed = (a.at + a.lasting).max(b.at + b.lasting);
    let seconds = (healed + RECOVERY + STEADY_AFTER * 2).as_secs();
    // A drill with a rate of its own needs it for its fault to be felt.
    let rate = drills.map(|drill| drill.workload.rate);
    let rate = rate.into_iter().fold(0.0, f64::max);
    let people = drills.map(|drill| drill.workload.people);
    let people = people.into_iter().max().unwrap_or(500);
    let rings = drills.iter().filter_map(|drill| drill.workload.rings).min();
    // Their rate is one that many platforms could not be fed at.
    let most = if rings.is_some() { 2 } else { PLATFORMS.len() };
    let platforms = PLATFORMS[chance::below(seed ^ 3, most)];
    let rings = rings.map_or_else(String::new, |bytes| format!("rings = {bytes}\n"));
    // Beside a fault that ends the process itself nobody can say which of the two was to end it.
    let fail_stop = [(drills[0], b), (drills[1], a)]
        .into_iter()
        .any(|(drill, other)| drill.hypothesis.fail_stop && !other.what.hits_the_process());
    let mut head = format!(
        "# Made by `soak`.\nname = \"soak\"\ntitle = \"{a} and {b}\"\ntitle_zh = \"{a} 与 {b}\"\n\
         why = \"Two faults at once lose nothing.\"\nwhy_zh = \"两个故障同时发生也不丢失数据。\"\n\
         duration = \"{seconds}s\"\n[hypothesis]\nrecovery = \"{}s\"\nfail_stop = {fail_stop}\n\
         [workload]\nplatforms = {}\nrate = {rate}\npeople = {people}\nsink = {}\n{rings}",
        RECOVERY.as_secs(),
        platforms,
        drills.iter().any(|drill| drill.workload.sink),
        a = a.what.name(),
        b = b.what.name(),
    );
    if chance::below(seed ^ 4, 2) == 0 {
        let from = a.at.min(b.at).as_millis();
        let lasting = healed.as_millis() - from;
        writeln!(
            head,
            "[workload.surge]\nat = \"{from}ms\"\nfor = \"{lasting}ms\"\nfactor = {}",
            if rate > 5000.0 { 1.5 } else { 4.0 }
        )
        .expect("a text takes all");
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::{BUILT_IN, What, find};

    #[test]
    fn every_round_is_a_drill_without_a_mistake_and_they_differ() {
        let known: Vec<Drill> = (BUILT_IN.iter())
            .map(|(name, _)| find(name).expect("built in"))
            .filter(|drill| !drill.hypothesis.refuses_to_start)
            .collect();
        let (mut surges, mut most, mut stops, mut lines, mut cuts) = (0, 0, 0, 0, 0);
        for seed in 0..400 {
            let drill = pair(&known, seed).unwrap_or_else(|e| panic!("{seed}: {e}"));
            assert!(drill.duration >= drill.duration_min(), "{seed}");
            surges += u32::from(drill.workload.surge.is_some());
            most = most.max(drill.workload.platforms);
            stops += u32::from(drill.hypothesis.fail_stop);
            let [a, b] = &drill.faults[..] else {
                panic!("{seed}: two");
            };
            let end = |fault: &Fault| fault.at + fault.lasting;
            for (line, stop) in [(a, b), (b, a)] {
                let stops_by_itself =
                    matches!(line.what, What::SyncError | What::DiskFull | What::ReadOnly);
                if stops_by_itself && !stop.what.hits_the_process() {
                    assert!(drill.hypothesis.fail_stop, "{seed}: {line:?} {stop:?}");
                }
                let stops = stop.what.hits_the_process() || stop.what.breaks_the_disk();
                let is_line = line.what.is_of_a_line()
                    || matches!(line.what, What::ReloadExpired | What::ClockStep { .. });
                if is_line && stops {
                    let felt = line.at + chance::FELT_AFTER <= stop.at;
                    assert!(felt, "{seed}: {line:?} {stop:?}");
                    lines += 1;
                }
                if line.what.cuts() && stop.what.waits_for_writes() {
                    let outlasts = end(line) + chance::SAID_AFTER <= end(stop);
                    assert!(outlasts, "{seed}: {line:?} {stop:?}");
                    cuts += 1;
                }
                if matches!(line.what, What::CpuSqueeze { .. }) && (stops || stop.what.cuts()) {
                    let watched = line.at + chance::FELT_AFTER <= stop.at;
                    assert!(watched, "{seed}: {line:?} {stop:?}");
                }
                if matches!(line.what, What::StalledSubscriber { .. }) {
                    assert!(drill.workload.rings.is_some() && line.lasting > chance::LONG);
                }
            }
        }
        assert!(cuts > 5, "{cuts}");
        assert!(lines > 20, "{lines}");
        assert!((100..300).contains(&surges), "{surges}");
        assert_eq!(most, 32);
        assert!(stops > 0);
    }
}
