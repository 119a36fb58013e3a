//! What the pages draw over time, for a scenario and for the turns of a comparison alike.

use crate::measure::Latencies;
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct Plot {
    pub title: String,
    pub unit: &'static str,
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug)]
pub struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

/// Name and points (second, value).
pub type Series = Vec<(&'static str, Vec<(f64, f64)>)>;

/// Title, unit, and the series that are its lines.
type Shown = (&'static str, &'static str, &'static [&'static str]);

const SHOWN: [Shown; 8] = [
    ("Deltas acknowledged", "a second", &["deltas_per_s"]),
    ("Deliveries", "a second", &["deliveries_per_s"]),
    (
        "To who catches up",
        "deltas a second",
        &["catchup_deltas_per_s"],
    ),
    ("Registers taken", "a second", &["registers_per_s"]),
    (
        "Lag of subscribers",
        "deltas",
        &["lag_most", "lag_mean", "lag_late"],
    ),
    ("Waiting at the sources", "deltas", &["waiting_at_sources"]),
    ("Processor", "cores", &["broker_cores", "load_cores"]),
    ("Memory of the broker", "MB", &["broker_memory_mb"]),
];

/// Percentiles by the second in which deltas were due; nothing when there were none.
pub fn latency(title: String, latencies: &Latencies) -> Option<Plot> {
    let line = |label: &str, quantile: f64| Line {
        label: label.to_owned(),
        points: latencies.by_second(quantile),
    };
    (latencies.count() > 0).then(|| Plot {
        title,
        unit: "ms",
        lines: vec![
            line("p50", 0.5),
            line("p99", 0.99),
            line("p99.9", 0.999),
            line("max", 1.0),
        ],
    })
}

/// Not what there is none of; but that nobody was behind is worth a line.
fn is_drawn(name: &str, points: &[(f64, f64)]) -> bool {
    let some = points.iter().any(|(_, value)| *value > 0.0);
    some || (name.starts_with("lag_") && !points.is_empty())
}

/// What was sampled in one run; a title goes on with `of`.
pub fn sampled(series: &Series, of: &str) -> Vec<Plot> {
    let plot = |(title, unit, names): Shown| {
        let named = |name: &&'static str| series.iter().find(|(n, _)| n == name);
        let lines: Vec<Line> = (names.iter().filter_map(named))
            .filter(|(name, points)| is_drawn(name, points))
            .map(|(name, points)| Line {
                label: name.replace('_', " "),
                points: points.clone(),
            })
            .collect();
        (!lines.is_empty()).then(|| Plot {
            title: format!("{title}{of}"),
            unit,
            lines,
        })
    };
    SHOWN.into_iter().filter_map(plot).collect()
}

/// The same of several systems: a plot a series, in which each has its line. `row` begins the titles.
pub fn side_by_side(row: &str, systems: &[(&str, &Series)]) -> Vec<Plot> {
    let plot = |title: &str, unit: &'static str, name: &'static str| {
        let of = |(system, series): &(&str, &Series)| {
            let (_, points) = series.iter().find(|(n, _)| *n == name)?;
            is_drawn(name, points).then(|| Line {
                label: (*system).to_owned(),
                points: points.clone(),
            })
        };
        let lines: Vec<Line> = systems.iter().filter_map(of).collect();
        (!lines.is_empty()).then(|| Plot {
            title: format!("{row}: {title}"),
            unit,
            lines,
        })
    };
    [
        ("deltas acknowledged", "a second", "deltas_per_s"),
        ("deliveries", "a second", "deliveries_per_s"),
        (
            "lag of the receiver that is furthest behind",
            "deltas",
            "lag_most",
        ),
        ("processor, of the system", "cores", "broker_cores"),
        ("processor, of the load", "cores", "load_cores"),
        ("memory of the system", "MB", "broker_memory_mb"),
    ]
    .into_iter()
    .filter_map(|(title, unit, name)| plot(title, unit, name))
    .collect()
}

/// How far something has come that may be over before the next sample is due.
#[derive(Debug)]
pub struct Progress {
    begin: Instant,
    points: Vec<(f64, u64)>,
}

const POINTS_EVERY: Duration = Duration::from_millis(50);

impl Progress {
    /// Seconds count from `begin`.
    pub fn since(begin: Instant) -> Progress {
        Progress {
            begin,
            points: Vec::new(),
        }
    }

    /// Now; too soon after the last look it is left out, but for the last one.
    pub fn reached(&mut self, done: u64, last: bool) {
        let now = self.begin.elapsed().as_secs_f64();
        let before = self.points.last().map(|(at, _)| *at);
        if last || before.is_none_or(|at| now - at >= POINTS_EVERY.as_secs_f64()) {
            self.points.push((now, done));
        }
    }

    /// Of a count that only rises.
    pub fn per_second(&self) -> Vec<(f64, f64)> {
        let rate = |w: &[(f64, u64)]| {
            let ((from, before), (to, after)) = (w[0], w[1]);
            let per_s = after.saturating_sub(before) as f64 / (to - from).max(1e-3);
            (to, per_s)
        };
        self.points.windows(2).map(rate).collect()
    }

    /// How much of `all` is left.
    pub fn left(&self, all: u64) -> Vec<(f64, f64)> {
        let left = |(at, done): &(f64, u64)| (*at, all.saturating_sub(*done) as f64);
        self.points.iter().map(left).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_was_above_zero_is_not_drawn_unless_it_is_lag() {
        let series: Series = vec![
            ("deltas_per_s", vec![(1.0, 5.0)]),
            ("deliveries_per_s", vec![(1.0, 0.0)]),
            ("lag_most", vec![(1.0, 0.0), (2.0, 0.0)]),
        ];
        let titles = |plots: Vec<Plot>| plots.into_iter().map(|p| p.title).collect::<Vec<_>>();
        assert_eq!(
            titles(sampled(&series, " of it")),
            ["Deltas acknowledged of it", "Lag of subscribers of it"]
        );
        let both = side_by_side("ingest", &[("a", &series), ("b", &series)]);
        assert_eq!(both[0].lines.len(), 2);
        assert_eq!(both.len(), 2);
    }

    #[test]
    fn progress_says_rate_and_what_is_left() {
        let progress = Progress {
            begin: Instant::now(),
            points: vec![(0.0, 0), (0.5, 100), (1.0, 300)],
        };
        assert_eq!(progress.per_second(), [(0.5, 200.0), (1.0, 400.0)]);
        assert_eq!(progress.left(250), [(0.0, 250.0), (0.5, 150.0), (1.0, 0.0)]);
    }
}
