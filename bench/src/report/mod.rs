//! What several runs of a scenario found: one JSON object, a table for people, or a page with plots.

pub mod commits;
pub mod html;
pub mod table;

use crate::measure::Run;
use serde_json::{Map, Value, json};
use std::{path::Path, process::Command};

/// The middle of several turns, and how far they lie apart.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        Spread {
            median: match values.len() % 2 {
                0 => f64::midpoint(at(middle.wrapping_sub(1)), at(middle)),
                _ => at(middle),
            },
            min: at(0),
            max: at(values.len().wrapping_sub(1)),
        }
    }

    pub fn to_json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }

    /// Of ratios, in which above one this broker is better. Who wins, wins in each repeat.
    pub fn won(self) -> Won {
        match self {
            Spread { min, .. } if min > 1.0 => Won::Ours,
            Spread { max, .. } if max < 1.0 => Won::Theirs,
            Spread { .. } => Won::Nobody,
        }
    }

    pub fn to_text(self, digits: usize) -> String {
        let Spread { median, min, max } = self;
        match min < max {
            true => format!("{median:.digits$} ({min:.digits$} to {max:.digits$})"),
            false => format!("{median:.digits$}"),
        }
    }
}

/// Which of two systems is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Won {
    Ours,
    Theirs,
    /// Now the one, now the other.
    Nobody,
}

/// Where a figure was measured.
#[derive(Clone, Debug)]
pub struct Environment {
    cores: usize,
    processor: String,
    memory_mb: u64,
    kernel: String,
    /// Of the broker's data.
    filesystem: String,
    commit: String,
}

/// That this was built from, with the broker that it starts. Marked when something was not committed then, or is
/// not now: cargo does not build it again for a file that it does not know.
fn commit() -> String {
    let built = env!("HUTONG_BENCH_COMMIT");
    let described = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let dirty =
        described.is_ok_and(|said| said.stdout.trim_ascii_end().ends_with(DIRTY.as_bytes()));
    match dirty && !built.ends_with(DIRTY) {
        true => format!("{built}{DIRTY}"),
        false => built.to_owned(),
    }
}

const DIRTY: &str = "-dirty";

/// Of the file system that a folder is on, the name. (`stat -f` does not tell ext4 from its elders.)
pub fn filesystem(folder: &Path) -> String {
    let mut findmnt = Command::new("findmnt");
    let said = findmnt.args(["-n", "-o", "FSTYPE", "--target"]).arg(folder);
    let said = said.output().ok().filter(|said| said.status.success());
    let said = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned());
    // Of several on one folder the last one is seen.
    let name = said.as_deref().and_then(|said| said.lines().next_back());
    name.map_or("unknown".to_owned(), |name| name.trim().to_owned())
}

/// There a sync costs nothing.
pub fn in_memory(filesystem: &str) -> bool {
    ["tmpfs", "ramfs"].contains(&filesystem)
}

/// The last line of a text: where that was measured, and with what.
pub fn foot(environment: &Environment, configuration: &Value) -> String {
    let Environment {
        cores,
        processor,
        memory_mb,
        kernel,
        filesystem,
        commit,
    } = environment;
    format!(
        "commit {commit}, {cores} cores ({processor}), {memory_mb} MB, Linux {kernel}, data on {filesystem}; \
         {configuration}\n"
    )
}

impl Environment {
    /// With the broker's data in this folder.
    pub fn read(data: &Path) -> Environment {
        let text = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let memory = value(&text("/proc/meminfo"), "MemTotal");
        let memory_kb: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        Environment {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: value(&text("/proc/cpuinfo"), "model name"),
            memory_mb: memory_kb / 1024,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            filesystem: filesystem(data),
            commit: commit(),
        }
    }

    pub fn in_memory(&self) -> bool {
        in_memory(&self.filesystem)
    }

    pub fn to_json(&self) -> Value {
        json!({
            "cores": self.cores, "processor": self.processor, "memory_mb": self.memory_mb,
            "kernel": self.kernel, "filesystem": self.filesystem, "commit": self.commit, "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

/// Runs of one scenario. Every figure is the median of its runs; `repeats` has how far they lie apart.
#[derive(Debug)]
pub struct Report {
    pub scenario: &'static str,
    pub options: Value,
    pub environment: Environment,
    pub runs: Vec<Run>,
}

impl Report {
    pub fn whole(&self) -> bool {
        self.runs.iter().all(Run::whole)
    }

    pub fn to_json(&self) -> Value {
        let runs: Vec<Value> = self.runs.iter().map(Run::to_json).collect();
        let mut report = over(&runs, &|spread| json!(spread.median));
        let all = report.as_object_mut().expect("a run is an object");
        let mut repeats = Map::new();
        repeats.insert("count".to_owned(), json!(runs.len()));
        if let Value::Object(spreads) = over(&runs, &Spread::to_json) {
            repeats.extend(spreads);
        }
        all.insert("repeats".to_owned(), Value::Object(repeats));
        all.insert("scenario".to_owned(), json!(self.scenario));
        all.insert("configuration".to_owned(), self.options.clone());
        all.insert("environment".to_owned(), self.environment.to_json());
        // What must not be hidden by a median.
        for (name, of) in [
            ("lost", Run::lost as fn(&Run) -> u64),
            ("doubled", Run::doubled),
        ] {
            let worst = self.runs.iter().map(of).max();
            all.insert(name.to_owned(), json!(worst.unwrap_or(0)));
        }
        report
    }

    pub fn to_text(&self) -> String {
        let mut out = format!(
            "{}: {} of {:.0} s\n",
            self.scenario,
            match self.runs.len() {
                1 => "one run".to_owned(),
                n => format!("medians of {n} runs (range)"),
            },
            self.runs.first().map_or(0.0, |run| run.seconds),
        );
        let runs: Vec<Value> = self.runs.iter().map(Run::to_json).collect();
        let mut rows = Vec::new();
        leaves(
            "",
            &over(&runs, &|spread| json!(spread.to_text(3))),
            &mut rows,
        );
        for (name, value) in rows {
            out += &format!("  {name:<42} {value}\n");
        }
        out + &foot(&self.environment, &self.options)
    }
}

/// One object of the shape of all of them, with what `of` makes of the numbers at each place.
fn over(runs: &[Value], of: &impl Fn(Spread) -> Value) -> Value {
    let Some(Value::Object(shape)) = runs.first() else {
        let numbers: Vec<f64> = runs.iter().filter_map(Value::as_f64).collect();
        return match numbers.is_empty() {
            true => Value::Null,
            false => of(Spread::of(numbers)),
        };
    };
    let place = |name: &String| {
        let values: Vec<Value> = (runs.iter().filter_map(|run| run.get(name)))
            .cloned()
            .collect();
        (name.clone(), over(&values, of))
    };
    Value::Object(shape.keys().map(place).collect())
}

/// Names with dots, and texts.
fn leaves(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(all) => {
            for (name, value) in all {
                let name = match prefix {
                    "" => name.clone(),
                    prefix => format!("{prefix}.{name}"),
                };
                leaves(&name, value, out);
            }
        }
        Value::String(text) => out.push((prefix.to_owned(), text.clone())),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_medians_and_what_was_lost_once_is_not_hidden() {
        let run = |acknowledged: u64, lost: u64| Run {
            seconds: 1.0,
            published: acknowledged + lost,
            acknowledged,
            lost,
            ..Run::default()
        };
        let report = Report {
            scenario: "ingest",
            options: json!({}),
            environment: Environment::read(&std::env::temp_dir()),
            runs: vec![run(30, 0), run(10, 7), run(20, 0)],
        };
        let value = report.to_json();
        assert_eq!(value["deltas_per_s"], 20.0);
        let spread = &value["repeats"]["deltas_per_s"];
        assert_eq!(*spread, json!({ "median": 20.0, "min": 10.0, "max": 30.0 }));
        assert_eq!(
            (&value["lost"], &value["repeats"]["count"]),
            (&json!(7), &json!(3))
        );
        assert!(!report.whole());
        // There were no deliveries, so what one costs is not known: that is not zero.
        assert_eq!(value["broker"]["cpu_s_per_million_deliveries"], Value::Null);
    }

    #[test]
    fn who_wins_wins_in_each_repeat() {
        for (ratios, won) in [
            ([1.1, 2.0, 1.5], Won::Ours),
            ([0.4, 0.9, 0.8], Won::Theirs),
            ([0.75, 1.14, 1.11], Won::Nobody),
            ([0.9, 1.0, 0.8], Won::Nobody),
        ] {
            assert_eq!(Spread::of(ratios).won(), won, "{ratios:?}");
        }
    }

    #[test]
    fn the_middle_of_an_even_number_lies_between() {
        assert_eq!(Spread::of([1.0, 4.0, 2.0, 9.0]).median, 3.0);
    }
}
