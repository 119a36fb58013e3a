//! What a sweep says of itself on its page.

use crate::{
    judge::Invariant,
    report::{More, Searched, ended_early},
    sweep::{Args, Report},
    text::Text,
};
use std::fmt::Write;

const INVARIANTS: [Invariant; 5] = [
    Invariant::NothingLost,
    Invariant::NothingInvented,
    Invariant::PrefixWithoutHole,
    Invariant::RevisionsRise,
    Invariant::AppliedOnce,
];

pub fn of(args: &Args, report: &Report) -> Searched {
    let (points, asked) = (report.points, report.asked);
    Searched {
        title: Text::new("Crash sweep", "崩溃扫描"),
        why: Text::new(
            "A process works on the real store. At each write and each sync the power goes, and what was not synced is \
             lost, kept in part, or torn. Each such folder is opened and judged; recoveries are cut the same way.",
            "进程在真实存储上工作。在每次写入和每次落盘处断电，未落盘的内容丢失、部分保留或残缺。逐一打开这些目录并检查；\
             恢复过程也同样切断。",
        ),
        left: ended_early(
            (report.interrupted, report.out_of_time),
            &Text::new(
                format!("{points} of {asked} crash points"),
                format!("{asked} 个崩溃点中检查了 {points} 个"),
            ),
        ),
        invariants: INVARIANTS.to_vec(),
        failures: report.failures.clone(),
        numbers: numbers(report),
        more: timings(report),
        command: command(args),
        plant: None,
    }
}

fn numbers(report: &Report) -> Vec<(Text, String)> {
    let row = |en: &str, zh: &str, value: String| (Text::new(en, zh), value);
    let mut numbers = vec![
        row("Workloads", "工作负载数", report.workloads.to_string()),
        row("Crash points", "崩溃点", report.points.to_string()),
        row(
            "Of them in a recovery",
            "其中在恢复过程中",
            report.recovery_points.to_string(),
        ),
    ];
    for (cut, count) in &report.cuts {
        let (en, zh) = match *cut {
            "lost" => ("What was not synced is lost", "未落盘的内容丢失"),
            "prefix" => ("A beginning of it is kept", "保留其开头部分"),
            "torn" => ("It is torn by sectors", "按扇区残缺"),
            _ => ("All that was written is there", "已写入的内容全部保留"),
        };
        numbers.push(row(en, zh, count.to_string()));
    }
    numbers.extend([
        row(
            "Acknowledged records looked for",
            "查找的已确认记录",
            report.acknowledged_checked.to_string(),
        ),
        row(
            "Records applied again",
            "重放的记录",
            report.replayed.to_string(),
        ),
        row(
            "Seconds that it took",
            "用时秒数",
            format!("{:.0}", report.seconds),
        ),
    ]);
    numbers
}

/// How long recoveries took, by the size of what recovered.
fn timings(report: &Report) -> Option<More> {
    let columns = [
        ("Log records", "日志记录"),
        ("Registers", "登记项"),
        ("Applied again", "重放"),
        ("Recoveries", "恢复次数"),
        ("Median, ms", "中位数，ms"),
        ("Longest, ms", "最长，ms"),
    ];
    let rows = report.recovery.iter().map(|timing| {
        vec![
            timing.log_records.to_string(),
            timing.registers.to_string(),
            timing.replayed.to_string(),
            timing.recoveries.to_string(),
            format!("{:.1}", timing.ms_p50),
            format!("{:.1}", timing.ms_max),
        ]
    });
    let rows: Vec<_> = rows.collect();
    (!rows.is_empty()).then(|| More {
        title: Text::new("Time to recover", "恢复用时"),
        columns: columns.map(Text::from).to_vec(),
        rows,
    })
}

/// What was typed, as far as it decides what is swept.
fn command(args: &Args) -> String {
    let mut command = format!(
        "hutong-chaos sweep --seed {} --operations {}",
        args.seed, args.operations
    );
    let more = match args.edge {
        Some(edge) => format!(" --edge {} --nth {}", edge.name(), args.nth),
        None => format!(" --points {} --large {}", args.points, args.large),
    };
    command += &more;
    if let Some(most) = args.duration {
        write!(command, " --duration {}us", most.as_micros()).expect("a text takes all");
    }
    command
}
