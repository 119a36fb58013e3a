//! What a simulation says of itself on its page.

use crate::{
    judge::Invariant,
    report::{Searched, ended_early},
    sim::{Args, Report},
    text::Text,
};
use std::fmt::Write;

/// From outside, a process that stops is not seen here: INV-11 is for drills and for failed syncs.
fn looked_at(invariant: &Invariant) -> bool {
    *invariant != Invariant::FailStop
}

pub fn of(args: &Args, report: &Report) -> Searched {
    let row = |en: &str, zh: &str, value: String| (Text::new(en, zh), value);
    let (seeds, asked) = (report.seeds, report.asked);
    Searched {
        title: Text::new("Simulation", "模拟"),
        why: Text::new(
            "The real broker and its clients run in one thread under a seed. First everything breaks while every step \
             is judged; then it heals, and everyone must agree.",
            "真实的互通及其客户端在种子控制下于单线程中运行。先让一切出错并逐步检查，随后恢复，各方必须一致。",
        ),
        left: ended_early(
            (report.interrupted, report.out_of_time),
            &Text::new(
                format!("{seeds} of {asked} seeds"),
                format!("{asked} 个种子中运行了 {seeds} 个"),
            ),
        ),
        invariants: Invariant::ALL.into_iter().filter(looked_at).collect(),
        failures: report.failures.clone(),
        numbers: vec![
            row("Seeds", "种子数", seeds.to_string()),
            row(
                "Of them run twice, and the same both times",
                "其中运行两次且两次相同",
                report.run_twice.to_string(),
            ),
            row(
                "Hours simulated",
                "模拟小时数",
                format!("{:.1}", report.simulated_hours),
            ),
            row("Faults", "故障数", report.faults.to_string()),
            row(
                "Deltas acknowledged",
                "已确认的变更",
                report.acknowledged.to_string(),
            ),
            row(
                "Deltas delivered, over all subscribers",
                "投递总数",
                report.delivered.to_string(),
            ),
            row(
                "Seconds that it took",
                "用时秒数",
                format!("{:.0}", report.seconds),
            ),
        ],
        more: None,
        command: command(args),
        plant: args.plant.clone(),
    }
}

/// What was typed, as far as it decides what is run.
fn command(args: &Args) -> String {
    let mut command = match args.seed {
        Some(seed) => format!("hutong-chaos sim --seed {seed}"),
        None => format!(
            "hutong-chaos sim --seeds {} --from {}",
            args.seeds, args.from
        ),
    };
    let time = args.duration.map(|most| most.as_secs_f64());
    let minutes = args.minutes.map(|minutes| minutes as f64 * 60.0);
    if let Some(seconds) = time.or(minutes) {
        let us = (seconds * 1e6) as u64;
        write!(command, " --duration {us}us").expect("a text takes all");
    }
    if args.twice {
        command += " --twice";
    }
    if let Some(plant) = &args.plant {
        write!(command, " --plant {plant}").expect("a text takes all");
    }
    command
}
