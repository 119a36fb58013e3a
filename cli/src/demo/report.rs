//! What the demo says at the end, to people and to programs, and its live lines.

use super::fleet::{Quiet, Verdict};
use crate::{
    errors::CliError,
    output::{Grid, Screen, bytes_text, grouped, seconds_text},
};
use hdrhistogram::Histogram;
use serde::Serialize;

/// A thing of each lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Lanes<T> {
    pub urgent: T,
    pub bulk: T,
}

/// One line of the surge.
#[derive(Debug)]
pub struct LiveLine {
    pub second: u64,
    pub published: u64,
    pub acknowledged: u64,
    pub delivered: u64,
    /// Of what was delivered. A lane that stands still delivers nothing: `behind` shows it.
    pub p99_us: Lanes<Option<u64>>,
    /// Age of the oldest change that some platform has not applied, in seconds, as the broker says.
    pub behind: Option<Lanes<f64>>,
    pub slowest: Option<(&'static str, u64)>,
}

impl LiveLine {
    pub const HEADER: &'static str = "  second  published/s  acknowledged/s  deliveries/s  urgent p99 ms  bulk p99 ms  urgent behind  bulk behind  slowest platform";

    pub fn render(&self) -> String {
        let ms = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), ms_text);
        let behind = |lane: fn(Lanes<f64>) -> f64| {
            let seconds = self.behind.map(lane);
            seconds.map_or_else(|| "no answer".to_owned(), seconds_text)
        };
        let slowest = match self.slowest {
            Some((name, us)) => format!("{name}, {} ms", ms_text(us)),
            None => "-".to_owned(),
        };
        format!(
            "  {:>6}  {:>11}  {:>14}  {:>12}  {:>13}  {:>11}  {:>13}  {:>11}  {slowest}",
            self.second,
            grouped(self.published),
            grouped(self.acknowledged),
            grouped(self.delivered),
            ms(self.p99_us.urgent),
            ms(self.p99_us.bulk),
            behind(|lanes| lanes.urgent),
            behind(|lanes| lanes.bulk),
        )
    }
}

fn ms_text(us: u64) -> String {
    match us {
        0..100_000 => format!("{:.1}", us as f64 / 1e3),
        _ => format!("{:.0}", us as f64 / 1e3),
    }
}

/// Milliseconds from the commit at the source until applied, over all deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LatencyMs {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl LatencyMs {
    pub fn of(histogram: &Histogram<u64>) -> LatencyMs {
        if histogram.is_empty() {
            return LatencyMs::default();
        }
        let ms = |us: u64| us as f64 / 1e3;
        LatencyMs {
            p50: ms(histogram.value_at_quantile(0.5)),
            p99: ms(histogram.value_at_quantile(0.99)),
            max: ms(histogram.max()),
        }
    }
}

/// How a story went.
#[derive(Clone, Debug, Serialize)]
pub struct StoryReport {
    pub title: &'static str,
    pub steps: Vec<StepReport>,
}

/// How long one delta of a story took until each other platform had applied it. `null` when none has.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    pub what: &'static str,
    pub lane: &'static str,
    pub applied_on: usize,
    pub platforms: usize,
    pub min_ms: Option<f64>,
    pub median_ms: Option<f64>,
    pub max_ms: Option<f64>,
    pub slowest: Option<&'static str>,
}

/// How the replay of real snapshots went.
#[derive(Clone, Debug, Serialize)]
pub struct ReplayReport {
    pub files: usize,
    pub files_compared: usize,
    /// Comparisons of one view with one file that found a difference.
    pub unequal: u64,
}

/// The object on the last line of `--json`. Names and meanings are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub platforms: usize,
    /// Rows committed at the sources.
    pub published: u64,
    /// Durable at the broker and applied, and passed by their connector's checkpoint.
    pub acknowledged: u64,
    /// Not accepted, beside those that a newer value had overtaken.
    pub refused: u64,
    pub superseded: u64,
    /// Due in the surge but not handed over in time, because the broker gave no credit.
    pub held_back: u64,
    /// Fewest and most deltas applied by one platform.
    pub applied: MinMax,
    pub delivered: u64,
    /// Acknowledged, but not delivered to a platform that must have it; over all platforms.
    pub lost: u64,
    pub doubled: u64,
    pub went_back: u64,
    /// Delivered, but never published by anybody.
    pub unknown: u64,
    pub views_equal: bool,
    pub reconnects: u64,
    pub latency_ms: Lanes<LatencyMs>,
    /// Of the whole process: the broker and all platforms.
    pub memory_peak_mb: u64,
    pub disk_bytes: u64,
    pub stories: Vec<StoryReport>,
    pub risk_levels: Option<ReplayReport>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MinMax {
    pub min: u64,
    pub max: u64,
}

/// What is printed beside the summary.
#[derive(Debug)]
pub struct Details<'a> {
    pub quiet: &'a Quiet,
    pub verdict: &'a Verdict,
    pub first_refusal: Option<String>,
    pub cores: usize,
}

impl Summary {
    /// Whether nothing was lost, doubled or unequal, and everything was taken.
    pub fn is_good(&self) -> bool {
        self.lost == 0
            && self.doubled == 0
            && self.went_back == 0
            && self.unknown == 0
            && self.refused == 0
            && self.views_equal
            && self.risk_levels.as_ref().is_none_or(|r| r.unequal == 0)
    }

    /// The summary as a person reads it.
    pub fn print(&self, screen: &Screen, details: &Details<'_>) -> Result<(), CliError> {
        screen.heading("Summary")?;
        screen.grid(&self.counts_grid())?;
        screen.blank()?;
        screen.grid(&self.latency_grid())?;
        screen.blank()?;
        screen.line(format!(
            "  Memory at its peak: {} MB, for the whole process: broker and {} platforms, on {} cores.",
            grouped(self.memory_peak_mb),
            self.platforms,
            details.cores
        ))?;
        screen.line(format!("  On disk: {}.", bytes_text(self.disk_bytes)))?;
        self.print_findings(screen, details)
    }

    fn counts_grid(&self) -> Grid {
        let mut grid = Grid::new(&["", ">", ""]);
        let mut row = |name: &str, value: String, note: &str| {
            grid.row([name, value.as_str(), note]);
        };
        row(
            "published",
            grouped(self.published),
            "committed at the sources",
        );
        row(
            "acknowledged",
            grouped(self.acknowledged),
            "on disk at the broker, and so is the connector's checkpoint",
        );
        row(
            "delivered",
            grouped(self.delivered),
            "to all platforms together, each to all but its own",
        );
        row(
            "applied per platform",
            format!(
                "{} to {}",
                grouped(self.applied.min),
                grouped(self.applied.max)
            ),
            "the largest province receives least: its own changes are not sent back to it",
        );
        row(
            "lost",
            grouped(self.lost),
            "acknowledged, but missing on a platform",
        );
        row(
            "doubled",
            grouped(self.doubled),
            "delivered twice to one platform",
        );
        row(
            "views equal",
            if self.views_equal { "yes" } else { "NO" }.to_owned(),
            "each platform holds exactly what all others published",
        );
        for (name, value, note) in [
            ("refused", self.refused, "not accepted by the broker"),
            (
                "superseded",
                self.superseded,
                "the broker had it, or something newer, already",
            ),
            (
                "held back",
                self.held_back,
                "due, but the broker gave no credit in time",
            ),
            (
                "went back",
                self.went_back,
                "an older value after a newer one",
            ),
            ("unknown", self.unknown, "delivered, but never published"),
            ("reconnects", self.reconnects, "of sinks"),
        ] {
            if value > 0 {
                grid.row([name, grouped(value).as_str(), note]);
            }
        }
        grid
    }

    fn latency_grid(&self) -> Grid {
        let mut grid = Grid::new(&["from commit to applied", ">p50 ms", ">p99 ms", ">max ms"]);
        for (lane, l) in [
            ("urgent (colours, positives)", self.latency_ms.urgent),
            ("bulk (negatives, vaccinations)", self.latency_ms.bulk),
        ] {
            // A replay of lists has nothing in bulk; zeros would look like a latency.
            if l.max == 0.0 {
                continue;
            }
            grid.row([
                lane.to_owned(),
                format!("{:.1}", l.p50),
                format!("{:.1}", l.p99),
                format!("{:.1}", l.max),
            ]);
        }
        grid
    }

    fn print_findings(&self, screen: &Screen, details: &Details<'_>) -> Result<(), CliError> {
        for name in &details.quiet.late {
            screen.line(screen.bad(&format!("  {name} did not reach the end of the log.")))?;
        }
        for (name, registers) in &details.verdict.unequal {
            let text = format!("  {name} differs in {} registers.", grouped(*registers));
            screen.line(screen.bad(&text))?;
        }
        if let Some(refusal) = &details.first_refusal {
            screen.line(screen.bad(&format!("  The first refusal: {refusal}.")))?;
        }
        screen.blank()?;
        if self.is_good() {
            screen.line(screen.good("  Nothing lost, nothing doubled, all views equal."))
        } else {
            screen.line(screen.bad("  Not as it must be: see above."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            platforms: 4,
            published: 6000,
            acknowledged: 6000,
            refused: 0,
            superseded: 0,
            held_back: 0,
            applied: MinMax { min: 1, max: 2 },
            delivered: 18_000,
            lost: 0,
            doubled: 0,
            went_back: 0,
            unknown: 0,
            views_equal: true,
            reconnects: 0,
            latency_ms: Lanes::default(),
            memory_peak_mb: 100,
            disk_bytes: 1 << 20,
            stories: Vec::new(),
            risk_levels: None,
        }
    }

    #[test]
    fn a_lane_that_stands_still_shows_how_far_behind_it_is() {
        let mut line = LiveLine {
            second: 3,
            published: 20_000,
            acknowledged: 20_000,
            delivered: 300,
            p99_us: Lanes {
                urgent: Some(41_000),
                bulk: None,
            },
            behind: Some(Lanes {
                urgent: 0.02,
                bulk: 12.5,
            }),
            slowest: None,
        };
        let text = line.render();
        for column in ["41.0", "20 ms", "12.5 s"] {
            assert!(text.contains(column), "{column} is not in {text}");
        }
        // Numbers stand under the end of their headings.
        let end = |text: &str, word: &str| text.find(word).map(|at| at + word.len());
        assert_eq!(end(&text, "12.5 s"), end(LiveLine::HEADER, "bulk behind"));
        line.behind = None;
        assert!(line.render().contains("no answer"), "{}", line.render());
    }

    #[test]
    fn the_object_has_the_documented_names() {
        let json = serde_json::to_value(summary()).expect("json");
        for name in [
            "published",
            "acknowledged",
            "lost",
            "doubled",
            "views_equal",
            "memory_peak_mb",
            "platforms",
        ] {
            assert!(json.get(name).is_some(), "{name}");
        }
        for lane in ["urgent", "bulk"] {
            for figure in ["p50", "p99", "max"] {
                assert!(
                    json["latency_ms"][lane][figure].is_number(),
                    "{lane} {figure}"
                );
            }
        }
    }

    #[test]
    fn each_thing_that_must_not_happen_makes_the_run_bad() {
        assert!(summary().is_good());
        let bad: [fn(&mut Summary); 6] = [
            |s| s.lost = 1,
            |s| s.doubled = 1,
            |s| s.went_back = 1,
            |s| s.unknown = 1,
            |s| s.refused = 1,
            |s| s.views_equal = false,
        ];
        for spoil in bad {
            let mut s = summary();
            spoil(&mut s);
            assert!(!s.is_good(), "{s:?}");
        }
    }

    #[test]
    fn live_lines_stand_under_their_header() {
        let line = LiveLine {
            second: 7,
            published: 20_000,
            acknowledged: 19_999,
            delivered: 620_000,
            p99_us: Lanes {
                urgent: Some(12_345),
                bulk: None,
            },
            behind: None,
            slowest: Some(("Tibet", 130_000)),
        };
        let text = line.render();
        let end = |of: &str, part: &str| of.find(part).map(|at| at + part.len());
        assert_eq!(end(&text, "20,000"), end(LiveLine::HEADER, "published/s"));
        assert_eq!(end(&text, "620,000"), end(LiveLine::HEADER, "deliveries/s"));
        assert_eq!(end(&text, "12.3"), end(LiveLine::HEADER, "urgent p99 ms"));
        assert!(text.ends_with("Tibet, 130 ms"));
    }
}
