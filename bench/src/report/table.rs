//! The table of docs/benchmarks.md, from the JSON files that runs left: `surge.json`, and beside it
//! `surge-anything.json` for a run with other options. Nobody copies figures by hand.

use super::{Spread, Won, commits::Commits};
use crate::Failure;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
};

const BEGIN: &str = "<!-- figures: begin (written by `./dev bench`, not by hand) -->";
const END: &str = "<!-- figures: end -->";

/// What is shown, where that is in the JSON, and with how many digits.
type Row = (&'static str, &'static str, usize);

/// Near one, the load could have done more.
const LOAD_WAITED: Row = (
    "share of its time in which the load waited",
    "figures.load_waited_share",
    2,
);
const RECEIVERS_WAITED: Row = (
    "share of their time in which subscribers waited",
    "figures.load_receivers_waited_share",
    2,
);

/// What both took of the machine that they share.
const BROKER_CORES: Row = ("broker cores", "figures.broker_cores", 2);
const LOAD_CORES: Row = ("cores of the load", "figures.load_cores", 2);
/// That the figure is one of a broker that writes and merges its state, and not of one that has only begun to.
const STATE_FLUSHES: Row = ("runs of state that went down", "figures.state_flushes", 0);
const STATE_MERGES: Row = ("merges of runs", "figures.state_merges", 0);

const ROWS: &[(&str, &[Row])] = &[
    (
        "ingest",
        &[
            ("deltas a second, acknowledged", "deltas_per_s", 0),
            ("ack p50, ms", "latency_ms.ack.p50", 1),
            ("ack p99, ms", "latency_ms.ack.p99", 1),
            (
                "broker CPU seconds per million deltas",
                "broker.cpu_s_per_million",
                2,
            ),
            ("broker memory at its peak, MB", "broker.memory_peak_mb", 0),
            LOAD_WAITED,
            BROKER_CORES,
            LOAD_CORES,
            STATE_FLUSHES,
            STATE_MERGES,
        ],
    ),
    (
        "single",
        &[
            ("deltas a second, acknowledged", "deltas_per_s", 0),
            ("ack p99, ms", "latency_ms.ack.p99", 1),
            (
                "broker CPU seconds per million deltas",
                "broker.cpu_s_per_million",
                2,
            ),
            LOAD_WAITED,
            BROKER_CORES,
            LOAD_CORES,
            STATE_FLUSHES,
            STATE_MERGES,
        ],
    ),
    (
        "fanout",
        &[
            ("deltas a second", "deltas_per_s", 0),
            ("deliveries a second", "deliveries_per_s", 0),
            ("urgent p50, ms", "latency_ms.urgent.p50", 1),
            ("urgent p99, ms", "latency_ms.urgent.p99", 1),
            ("urgent max, ms", "latency_ms.urgent.max", 0),
            ("bulk p99, ms", "latency_ms.bulk.p99", 0),
            (
                "broker CPU seconds per million deliveries",
                "broker.cpu_s_per_million_deliveries",
                2,
            ),
            ("broker memory at its peak, MB", "broker.memory_peak_mb", 0),
            (
                "urgent, until everybody has it, p99, ms",
                "latency_ms.urgent_everywhere.p99",
                1,
            ),
            (
                "urgent deltas were handed over late by (p99), ms",
                "figures.load_late_urgent_p99_ms",
                1,
            ),
            LOAD_WAITED,
            RECEIVERS_WAITED,
            BROKER_CORES,
            LOAD_CORES,
            STATE_FLUSHES,
            STATE_MERGES,
        ],
    ),
    (
        "surge",
        &[
            (
                "bulk deltas a second that fit",
                "figures.fits_bulk_deltas_per_s",
                0,
            ),
            (
                "bulk deltas a second offered",
                "figures.offered_bulk_deltas_per_s",
                0,
            ),
            ("urgent p50, ms", "latency_ms.urgent.p50", 1),
            ("urgent p99, ms", "latency_ms.urgent.p99", 1),
            ("urgent max, ms", "latency_ms.urgent.max", 0),
            (
                "urgent, until everybody has it, p99, ms",
                "latency_ms.urgent_everywhere.p99",
                1,
            ),
            ("all acknowledged after, s", "figures.drained_in_s", 1),
            ("all delivered after, s", "figures.delivered_in_s", 1),
            ("broker memory at its peak, MB", "broker.memory_peak_mb", 0),
            LOAD_WAITED,
            RECEIVERS_WAITED,
            BROKER_CORES,
            LOAD_CORES,
            STATE_FLUSHES,
            STATE_MERGES,
        ],
    ),
    (
        "catchup",
        &[
            (
                "deltas a second to who catches up",
                "figures.catchup_deltas_per_s",
                0,
            ),
            (
                "urgent p99 of the others before, ms",
                "figures.urgent_p99_ms_alone",
                1,
            ),
            (
                "urgent p99 of the others meanwhile, ms",
                "figures.urgent_p99_ms_beside",
                1,
            ),
            ("live deltas a second meanwhile", "deltas_per_s", 0),
            LOAD_WAITED,
            RECEIVERS_WAITED,
            BROKER_CORES,
            LOAD_CORES,
            STATE_FLUSHES,
            STATE_MERGES,
        ],
    ),
    (
        "bootstrap",
        &[
            ("registers a second", "figures.registers_per_s", 0),
            LOAD_WAITED,
        ],
    ),
    (
        "idle",
        &[
            ("broker memory, MB", "broker.memory_peak_mb", 0),
            ("broker cores", "figures.broker_cores", 3),
            LOAD_WAITED,
        ],
    ),
];

/// Puts the table in its place in a page; without any report the page stays as it is. Says what was measured when.
pub fn put(results: &Path, page: &Path) -> Result<Commits, Failure> {
    let text = fs::read_to_string(page).map_err(|e| format!("{}: {e}", page.display()))?;
    let missing = || format!("{}: there is no line `{BEGIN}`", page.display());
    let (before, rest) = text.split_once(BEGIN).ok_or_else(missing)?;
    let missing = || format!("{}: there is no line `{END}`", page.display());
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    let commits = commits(results)?;
    let table = table(results, &commits)?;
    fs::write(page, format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
        .map_err(|e| format!("{}: {e}", page.display()))?;
    Ok(commits)
}

fn commits(results: &Path) -> Result<Commits, Failure> {
    let mut commits = Commits::default();
    let names = ROWS.iter().map(|(name, _)| *name);
    for name in names.chain(["scale", "compare"]) {
        for (name, report) in read(results, name)? {
            commits.add(&name, &report);
        }
    }
    match commits.is_empty() {
        false => Ok(commits),
        true => Err(format!("{}: there is no report", results.display()).into()),
    }
}

fn table(results: &Path, commits: &Commits) -> Result<String, Failure> {
    let mut out = String::from("| scenario | figure | median (range) |\n|---|---|---|\n");
    let mut machine = None;
    for (scenario, rows) in ROWS {
        for (name, report) in read(results, scenario)? {
            for (label, path, digits) in *rows {
                line(&mut out, &name, label, &report, path, *digits);
            }
            machine = machine.or_else(|| report.get("environment").cloned());
        }
    }
    for (scenario, report) in read(results, "scale")? {
        machine = machine.or_else(|| report.get("environment").cloned());
        for registers in report["configuration"]["registers"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let million = registers.as_f64().unwrap_or(0.0) / 1e6;
            for (label, name, digits) in [
                ("deltas a second", "deltas_per_s", 0),
                (
                    "broker CPU seconds per million deltas",
                    "cpu_s_per_million",
                    2,
                ),
                ("times the first", "cost_to_first", 2),
                (LOAD_WAITED.0, "load_waited_share", 2),
                (STATE_FLUSHES.0, "state_flushes", 0),
                (STATE_MERGES.0, "state_merges", 0),
                ("state on disk at rest, MB", "state_mb", 0),
                ("state on disk at most, MB", "state_peak_mb", 0),
                ("broker memory, MB", "memory_mb", 0),
            ] {
                let label = format!("{million} M registers: {label}");
                let path = format!("figures.{name}_at_{registers}");
                line(&mut out, &scenario, &label, &report, &path, digits);
            }
        }
    }
    let mut peers: BTreeSet<String> = BTreeSet::new();
    for (_, report) in read(results, "compare")? {
        out += &compared(&report)?;
        machine = machine.or_else(|| report.get("environment").cloned());
        let versions = report["environment"]["peers"].as_object();
        let versions = versions.into_iter().flat_map(|versions| versions.values());
        peers.extend(versions.filter_map(|version| version.as_str().map(str::to_owned)));
    }
    if let Some(machine) = machine {
        let text = |name: &str| machine[name].as_str().unwrap_or("?").to_owned();
        writeln!(
            out,
            "\nMeasured at {commits} on {} cores ({}), {} MB, Linux {}.",
            machine["cores"],
            text("processor"),
            machine["memory_mb"],
            text("kernel")
        )?;
        if !peers.is_empty() {
            let peers: Vec<String> = peers.into_iter().collect();
            writeln!(out, "Peers: {}.", peers.join("; "))?;
        }
    }
    Ok(out)
}

/// Label, place in the JSON of a system's row, digits.
const COMPARED: [Row; 16] = [
    ("deltas a second", "deltas_per_s", 0),
    ("deliveries a second", "deliveries_per_s", 0),
    ("ack p99, ms", "ack_latency_ms.p99", 1),
    ("urgent p99, ms", "latency_ms.urgent.p99", 1),
    (
        "urgent everywhere p99, ms",
        "latency_ms.urgent_everywhere.p99",
        1,
    ),
    ("given up", "missing", 0),
    ("CPU s a million", "cpu_s_per_million", 2),
    (
        "CPU s a million deliveries",
        "cpu_s_per_million_deliveries",
        3,
    ),
    ("load's CPU s a million", "load_cpu_s_per_million", 2),
    ("load waited", "load_waited_share", 2),
    ("receivers waited", "load_receivers_waited_share", 2),
    ("cores", "system_cores", 2),
    ("cores of the load", "load_cores", 2),
    ("memory, MB", "memory_peak_mb", 0),
    ("runs of state", "state_flushes", 0),
    ("merges of runs", "state_merges", 0),
];

/// A table a row of the comparison: a line a system, and by how much this broker wins.
fn compared(report: &Value) -> Result<String, Failure> {
    let mut out = String::new();
    for row in ["ingest", "fanout", "single", "latency"] {
        let systems = [
            "hutong",
            "hutong-plain",
            "hutong-watched",
            "jetstream",
            "redis",
            "postgres",
        ];
        let measured = |system: &str| report["systems"][system].get(row);
        if measured("hutong").is_none() {
            continue;
        }
        write!(
            out,
            "\nThe same load side by side, row `{row}`, turns of {} s:\n\n| system |",
            report["configuration"]["seconds"]
        )?;
        for (label, ..) in COMPARED {
            write!(out, " {label} |")?;
        }
        out += " deltas a sync | this broker wins by |\n";
        writeln!(out, "|---{}|---|---|", "|---".repeat(COMPARED.len()))?;
        for system in systems {
            let Some(measured) = measured(system) else {
                continue;
            };
            write!(out, "| {system} |")?;
            for (_, path, digits) in COMPARED {
                let value = measured.pointer(&format!("/{}", path.replace('.', "/")));
                let text = value.and_then(|value| spread(value, digits));
                write!(out, " {} |", text.unwrap_or_default())?;
            }
            let per_sync = measured["durability"]["deltas_per_sync"].as_f64();
            let per_sync = per_sync.map(|n| grouped(&format!("{n:.0}")));
            let ratio = won(report, system, row);
            writeln!(out, " {} | {ratio} |", per_sync.unwrap_or_default())?;
        }
    }
    Ok(out)
}

/// By how much this broker wins against a peer, or who else does; empty without a ratio.
fn won(report: &Value, system: &str, row: &str) -> String {
    let Some(median) = report["ratio"][system][row].as_f64() else {
        return String::new();
    };
    let ranges = &report["ratio_range"][system][row];
    let (ratio, range) = match (ranges["min"].as_f64(), ranges["max"].as_f64()) {
        (Some(min), Some(max)) => {
            let range = format!(" ({min:.2} to {max:.2})");
            (Spread { median, min, max }, range)
        }
        _ => (Spread::of([median]), String::new()),
    };
    match ratio.won() {
        Won::Ours => format!("{median:.2}{range}"),
        Won::Theirs => format!("**{median:.2}{range}: {system} wins**"),
        Won::Nobody => format!("{median:.2}{range}: nobody wins"),
    }
}

/// The reports of a scenario by the names of their files, `surge` before `surge-anything`.
fn read(results: &Path, scenario: &str) -> Result<BTreeMap<String, Value>, Failure> {
    let mut reports = BTreeMap::new();
    for file in fs::read_dir(results).map_err(|e| format!("{}: {e}", results.display()))? {
        let path = file?.path();
        let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else {
            continue;
        };
        let of = name.strip_prefix(scenario);
        let of = of.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
        if of && path.extension().is_some_and(|ext| ext == "json") {
            let text = fs::read_to_string(&path)?;
            let value = serde_json::from_str(&text);
            let value = value.map_err(|e| format!("{}: {e}", path.display()))?;
            reports.insert(name.to_owned(), value);
        }
    }
    Ok(reports)
}

fn line(out: &mut String, scenario: &str, label: &str, report: &Value, path: &str, digits: usize) {
    let pointer = format!("/repeats/{}", path.replace('.', "/"));
    let value = report.pointer(&pointer);
    if let Some(text) = value.and_then(|value| spread(value, digits)) {
        *out += &format!("| {scenario} | {label} | {text} |\n");
    }
}

/// Median and range; nothing where there is no number.
fn spread(value: &Value, digits: usize) -> Option<String> {
    let show = |name: &str| Some(grouped(&format!("{:.digits$}", value[name].as_f64()?)));
    let (median, min, max) = (show("median")?, show("min")?, show("max")?);
    Some(match min == max {
        true => median,
        false => format!("{median} ({min} to {max})"),
    })
}

/// 1234567 as 1,234,567.
fn grouped(number: &str) -> String {
    let (whole, rest) = match number.split_once('.') {
        Some((whole, rest)) => (whole, format!(".{rest}")),
        None => (number, String::new()),
    };
    let mut out = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + &rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_takes_its_figures_from_the_files_and_its_place_in_the_page() {
        let dir = tempfile::tempdir().expect("a folder");
        let spread = json!({ "median": 1_234_567.4, "min": 1.0, "max": 2_000_000.0 });
        let ingest = json!({
            "repeats": { "deltas_per_s": spread },
            "environment": { "commit": "abc", "cores": 2, "processor": "P", "memory_mb": 1, "kernel": "K" },
        });
        fs::write(dir.path().join("ingest.json"), ingest.to_string()).expect("written");
        let rate =
            |median: f64| json!({ "deltas_per_s": { "median": median, "min": 1.0, "max": 9.0 } });
        let compare = json!({
            "systems": {
                "hutong": { "ingest": rate(3.0), "fanout": rate(9.0) },
                "jetstream": { "ingest": rate(2.0), "fanout": rate(10.0) },
                "redis": { "ingest": rate(2.7) },
            },
            "configuration": { "seconds": 60.0 },
            "ratio": { "jetstream": { "ingest": 1.5, "fanout": 0.9 }, "redis": { "ingest": 1.11 } },
            "ratio_range": { "redis": { "ingest": { "median": 1.11, "min": 0.75, "max": 1.14 } } },
        });
        fs::write(dir.path().join("compare.json"), compare.to_string()).expect("written");
        let other = json!({ "repeats": { "deltas_per_s": rate(5.0)["deltas_per_s"] } });
        fs::write(dir.path().join("ingest-small.json"), other.to_string()).expect("written");
        let page = dir.path().join("page.md");
        fs::write(&page, format!("before\n{BEGIN}\nold\n{END}\nafter\n")).expect("written");
        put(dir.path(), &page).expect("it has a place");
        let text = fs::read_to_string(&page).expect("it is there");
        assert!(text.starts_with("before\n") && text.ends_with("after\n"));
        assert!(!text.contains("old"));
        let row = "| ingest | deltas a second, acknowledged | 1,234,567 (1 to 2,000,000) |";
        assert!(text.contains(row), "{text}");
        let row = "| ingest-small | deltas a second, acknowledged | 5 (1 to 9) |";
        assert!(text.contains(row), "{text}");
        assert!(text.contains("| jetstream | 2 (1 to 9) |"), "{text}");
        assert!(text.contains("| 1.50 |"), "{text}");
        assert!(text.contains("| **0.90: jetstream wins** |"), "{text}");
        let nobody = "| 1.11 (0.75 to 1.14): nobody wins |";
        assert!(text.contains(nobody), "{text}");
        fs::write(&page, "no place").expect("written");
        let error = put(dir.path(), &page).expect_err("nowhere to put it");
        assert!(error.to_string().contains("figures: begin"), "{error}");
    }

    #[test]
    fn rows_of_different_commits_are_told_apart() {
        let dir = tempfile::tempdir().expect("a folder");
        let page = dir.path().join("page.md");
        fs::write(&page, format!("{BEGIN}\n{END}\n")).expect("written");
        let measured = |scenario: &str, commit: &str| {
            let report = json!({ "environment": { "commit": commit } });
            let file = dir.path().join(scenario).with_extension("json");
            fs::write(file, report.to_string()).expect("written");
        };
        measured("scale", "b");
        let commits = put(dir.path(), &page).expect("a report");
        assert!(!commits.differ());
        let shown = || fs::read_to_string(&page).expect("it is there");
        assert!(shown().contains("Measured at commit b on"), "{}", shown());
        measured("surge", "a");
        measured("fanout", "a");
        let commits = put(dir.path(), &page).expect("reports");
        assert!(commits.differ());
        let expected = "Measured at commits a (fanout, surge), b (scale) on";
        assert!(shown().contains(expected), "{}", shown());
    }

    #[test]
    fn without_a_report_the_page_stays_as_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let page = dir.path().join("page.md");
        let text = format!("{BEGIN}\nold\n{END}\n");
        fs::write(&page, &text).expect("written");
        fs::write(dir.path().join("other.json"), "{}").expect("written");
        for folder in [dir.path().to_owned(), dir.path().join("nope")] {
            let error = put(&folder, &page).expect_err("nothing to show");
            let folder = folder.display().to_string();
            assert!(error.to_string().contains(&folder), "{error}");
            assert_eq!(fs::read_to_string(&page).expect("it is there"), text);
        }
    }
}
