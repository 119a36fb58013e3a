//! What a run found: one JSON object, or a table for people.

use crate::broker::Usage;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

/// Latencies in microseconds, up to ten minutes, three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are valid")
}

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

    pub fn to_text(self, digits: usize) -> String {
        let Spread { median, min, max } = self;
        match min < max {
            true => format!("{median:.digits$} ({min:.digits$} to {max:.digits$})"),
            false => format!("{median:.digits$}"),
        }
    }
}

/// Where a figure was measured.
#[derive(Debug)]
pub struct Environment {
    cores: usize,
    processor: String,
    memory_mb: u64,
    kernel: String,
    commit: String,
}

impl Environment {
    pub fn read() -> Environment {
        let text = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let memory = value(&text("/proc/meminfo"), "MemTotal");
        let memory_kb: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        let git = std::process::Command::new("git")
            .args(["describe", "--always", "--dirty"])
            .output();
        Environment {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: value(&text("/proc/cpuinfo"), "model name"),
            memory_mb: memory_kb / 1024,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit: git.map_or(String::new(), |output| {
                String::from_utf8_lossy(&output.stdout).trim().to_owned()
            }),
        }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "cores": self.cores, "processor": self.processor, "memory_mb": self.memory_mb,
            "kernel": self.kernel, "commit": self.commit, "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

#[derive(Debug)]
pub struct Report {
    pub scenario: &'static str,
    pub options: Value,
    pub seconds: f64,
    pub published: u64,
    pub acknowledged: u64,
    pub delivered: u64,
    pub lost: u64,
    pub doubled: u64,
    /// Name and latencies: ack, urgent, bulk.
    pub latencies: Vec<(&'static str, Histogram<u64>)>,
    pub broker: Usage,
    pub load: Usage,
    pub disk_mb: f64,
    pub notes: Vec<String>,
}

impl Report {
    pub fn whole(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.acknowledged == self.published
    }

    /// Nothing when there was none.
    fn per_million(&self, of: u64) -> Option<f64> {
        (of > 0).then(|| self.broker.cpu_s / (of as f64 / 1e6))
    }

    pub fn to_json(&self) -> Value {
        let mut latency = Map::new();
        for (name, histogram) in &self.latencies {
            let ms = |q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
            latency.insert(
                (*name).to_owned(),
                json!({
                    "p50": ms(0.5), "p99": ms(0.99), "p999": ms(0.999),
                    "max": histogram.max() as f64 / 1000.0, "count": histogram.len(),
                }),
            );
        }
        json!({
            "scenario": self.scenario,
            "options": self.options,
            "seconds": self.seconds,
            "published": self.published,
            "acknowledged": self.acknowledged,
            "delivered": self.delivered,
            "lost": self.lost,
            "doubled": self.doubled,
            "deltas_per_s": self.acknowledged as f64 / self.seconds,
            "deliveries_per_s": self.delivered as f64 / self.seconds,
            "latency_ms": latency,
            "broker": {
                "cpu_s": self.broker.cpu_s,
                "cpu_s_per_million": self.per_million(self.acknowledged),
                "cpu_s_per_million_deliveries": self.per_million(self.delivered),
                "memory_peak_mb": self.broker.memory_peak_mb,
                "memory_mb": self.broker.memory_mb,
                "disk_mb": self.disk_mb,
            },
            "load": { "cpu_s": self.load.cpu_s, "memory_peak_mb": self.load.memory_peak_mb },
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "version": env!("CARGO_PKG_VERSION"),
            "notes": self.notes,
        })
    }

    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let mut line = |text: std::fmt::Arguments<'_>| {
            out += &format!("{text}\n");
        };
        line(format_args!("{}, {:.1} s", self.scenario, self.seconds));
        line(format_args!(
            "  acknowledged  {:>12}  {:>10.0} deltas/s",
            self.acknowledged,
            self.acknowledged as f64 / self.seconds
        ));
        if self.delivered > 0 {
            line(format_args!(
                "  delivered     {:>12}  {:>10.0} deliveries/s",
                self.delivered,
                self.delivered as f64 / self.seconds
            ));
        }
        line(format_args!(
            "  lost {}  doubled {}",
            self.lost, self.doubled
        ));
        for (name, histogram) in &self.latencies {
            let ms = |q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
            line(format_args!(
                "  {name:<8} p50 {:>9.2} ms  p99 {:>9.2} ms  p99.9 {:>9.2} ms  max {:>9.2} ms",
                ms(0.5),
                ms(0.99),
                ms(0.999),
                histogram.max() as f64 / 1000.0
            ));
        }
        line(format_args!(
            "  broker   {:.1} s of CPU ({:.2} s a million deltas), {:.0} MB at most, {:.0} MB on disk",
            self.broker.cpu_s,
            self.per_million(self.acknowledged).unwrap_or_default(),
            self.broker.memory_peak_mb,
            self.disk_mb
        ));
        line(format_args!(
            "  load     {:.1} s of CPU, {:.0} MB at most",
            self.load.cpu_s, self.load.memory_peak_mb
        ));
        for note in &self.notes {
            line(format_args!("  {note}"));
        }
        out
    }
}
