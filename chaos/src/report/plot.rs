//! Drawing the course of a drill: several plots over one axis of time, with a band for each fault.

use crate::{
    history::{History, How, Role},
    judge::{Facts, Lags, Verdict},
    report::{put, words::both_in_picture},
};
use std::fmt::Write;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 34.0;
const PANEL: f64 = 118.0;
const GAP: f64 = 30.0;
const BIN_S: f64 = 0.5;
const MIB: f64 = (1u32 << 20) as f64;
/// Bands and lines tell apart in grey, too: a page may be printed so.
const BANDS: [&str; 4] = ["#f3c6c0", "#f6dfb4", "#cfdcf2", "#d8ead0"];

struct Curve {
    label: String,
    colour: &'static str,
    dashes: &'static str,
    points: Vec<(f64, f64)>,
}

struct Panel {
    title: String,
    curves: Vec<Curve>,
    /// A bound that was promised.
    bound: Option<f64>,
}

pub fn timeline(history: &History, verdict: &Verdict) -> String {
    let facts = Facts::of(history);
    let lags = Lags::of(&facts);
    let begin = facts.load_begin;
    let seconds = |t: u64| t.saturating_sub(begin) as f64 / 1e6;
    let end = seconds(history.load_end()).max(1.0) + 2.0;
    let panels = panels(history, &facts, &lags, end);
    let height = TOP + panels.len() as f64 * (PANEL + GAP) + 10.0;
    let mut out = format!(
        "<svg role=\"img\" aria-label=\"Timeline 时间线\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         xmlns=\"http://www.w3.org/2000/svg\">\n"
    );
    let x = |s: f64| LEFT + (s / end).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);
    for (i, fault) in verdict.faults.iter().enumerate() {
        let Some(from) = fault.begin_s else { continue };
        // One that was never undone is there until the end.
        let to = fault.healing_s.unwrap_or(end);
        let (from, to) = (x(from), x(to).max(x(from) + 2.0));
        put!(
            out,
            "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" class=\"mark\">{}</text>",
            TOP - 6.0,
            to - from,
            height - TOP - 18.0,
            BANDS[i % BANDS.len()],
            from + 2.0,
            TOP - 10.0 - 11.0 * (i % 2) as f64,
            i + 1
        );
        if let Some(recovery) = fault.recovery_s {
            let at = x(fault.healing_s.unwrap_or(0.0) + recovery);
            put!(
                out,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#2a7d3f\" \
                 stroke-dasharray=\"2 3\"/>",
                TOP - 6.0,
                height - 24.0
            );
        }
    }
    for (i, panel) in panels.iter().enumerate() {
        out += &draw(panel, TOP + i as f64 * (PANEL + GAP), end, &x);
    }
    out + "</svg>\n"
}

fn panels(history: &History, facts: &Facts<'_>, lags: &Lags, end: f64) -> Vec<Panel> {
    let begin = facts.load_begin;
    let seconds = |t: u64| t.saturating_sub(begin) as f64 / 1e6;
    // The title says what it is.
    let curve = |colour, points| {
        vec![Curve {
            label: String::new(),
            colour,
            dashes: "",
            points,
        }]
    };
    let bound = &history.drill.hypothesis;
    let memory = history.samples.iter();
    let memory = memory.map(|(t, bytes, _)| (seconds(*t), *bytes as f64 / MIB));
    let within = |points: Vec<(f64, f64)>| points.into_iter().filter(|p| p.0 <= end).collect();
    vec![
        rates(history, begin, end),
        Panel {
            title: both_in_picture(
                "Urgent lag, oldest not everywhere, s",
                "紧急延迟（尚未全部送达的最旧一条），s",
            ),
            curves: curve("#b3261e", within(lags.series(true, begin))),
            bound: Some(bound.urgent_lag.as_secs_f64()),
        },
        Panel {
            title: both_in_picture("Bulk lag, s", "批量延迟，s"),
            curves: curve("#6b4fa0", within(lags.series(false, begin))),
            bound: Some(bound.bulk_lag.as_secs_f64()),
        },
        Panel {
            title: both_in_picture("Memory of the broker, MiB", "互通内存，MiB"),
            curves: curve("#2a7d3f", within(memory.collect())),
            // Of a broker elsewhere nothing is seen, so nothing is promised.
            bound: (history.header.trial.is_none()).then_some(bound.memory as f64 / MIB),
        },
    ]
}

/// What was due, acknowledged and delivered.
fn rates(history: &History, begin: u64, end: f64) -> Panel {
    let seconds = |t: u64| t.saturating_sub(begin) as f64 / 1e6;
    let acknowledged = history.ops.values().flatten().filter_map(|op| {
        let done = op.end.as_ref().filter(|e| e.how == How::Ok)?;
        Some((seconds(done.at), f64::from(op.count)))
    });
    let offered = history.ops.values().flatten();
    let offered = offered.map(|op| (seconds(op.due), f64::from(op.count)));
    let live = history.with_role(Role::Live).count().max(1) as f64;
    let delivered = history.with_role(Role::Live).flat_map(|s| &s.items);
    let delivered = delivered.filter_map(|(t, item)| match item {
        crate::history::Item::Record(record) => {
            let deltas: u32 = record.runs.iter().map(|(_, count)| count).sum();
            Some((seconds(*t), f64::from(deltas) / live))
        }
        _ => None,
    });
    let curve = |en, zh, colour, dashes, points| Curve {
        label: both_in_picture(en, zh),
        colour,
        dashes,
        points,
    };
    let [due, durable, each] = [
        rate(offered, end),
        rate(acknowledged, end),
        rate(delivered, end),
    ];
    Panel {
        title: both_in_picture("Deltas a second", "每秒变更数"),
        curves: vec![
            curve("due", "应发", "#8a8f98", "5 3", due),
            curve("acknowledged", "已确认", "#1f5fbf", "", durable),
            curve("delivered to each", "每方投递", "#c26a12", "1 2", each),
        ],
        bound: None,
    }
}

/// Sums a second, in bins.
fn rate(points: impl Iterator<Item = (f64, f64)>, end: f64) -> Vec<(f64, f64)> {
    let mut bins = vec![0.0; (end / BIN_S).ceil() as usize];
    for (at, count) in points {
        if let Some(bin) = bins.get_mut((at / BIN_S) as usize) {
            *bin += count / BIN_S;
        }
    }
    let middle = |i: usize| (i as f64 + 0.5) * BIN_S;
    bins.into_iter()
        .enumerate()
        .map(|(i, value)| (middle(i), value))
        .collect()
}

fn draw(panel: &Panel, top: f64, end: f64, x: &impl Fn(f64) -> f64) -> String {
    let points = panel.curves.iter().flat_map(|curve| &curve.points);
    let most = points.map(|p| p.1).fold(0.0, f64::max);
    let y_max = nice(most.max(panel.bound.unwrap_or(0.0) * 1.05).max(1e-3));
    let y = |value: f64| top + (1.0 - (value / y_max).clamp(0.0, 1.0)) * PANEL;
    let mut out = frame(panel, top, y_max, &y);
    ticks(&mut out, top, end, x);
    curves(&mut out, panel, top, x, &y);
    out
}

/// What the curves are read against: values, the title, and what was promised.
fn frame(panel: &Panel, top: f64, y_max: f64, y: &impl Fn(f64) -> f64) -> String {
    let right = WIDTH - RIGHT;
    let mut out = String::new();
    for step in 0..=2 {
        let value = y_max * f64::from(step) / 2.0;
        let at = y(value);
        put!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"grid\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            number(value)
        );
    }
    put!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" class=\"title\">{}</text>",
        LEFT + 4.0,
        top + 12.0,
        panel.title
    );
    if let Some(bound) = panel.bound {
        let at = y(bound);
        put!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"bound\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            right - 2.0,
            at - 3.0,
            both_in_picture("promised", "承诺")
        );
    }
    out
}

/// Seconds under the panel, at most a dozen.
fn ticks(out: &mut String, top: f64, end: f64, x: &impl Fn(f64) -> f64) {
    let ticks = (end / 5.0).floor() as usize;
    let every = ticks.div_ceil(12).max(1);
    for tick in (0..=ticks).step_by(every) {
        let at = tick as f64 * 5.0;
        put!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at} s</text>",
            x(at),
            top + PANEL + 14.0
        );
    }
}

fn curves(
    out: &mut String,
    panel: &Panel,
    top: f64,
    x: &impl Fn(f64) -> f64,
    y: &impl Fn(f64) -> f64,
) {
    let mut label_at = WIDTH - RIGHT - 4.0;
    for curve in panel.curves.iter().rev() {
        let drawn: Vec<String> = curve
            .points
            .iter()
            .map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value)))
            .collect();
        put!(
            out,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\" stroke-dasharray=\"{}\" points=\"{}\"/>",
            curve.colour,
            curve.dashes,
            drawn.join(" ")
        );
        if !curve.label.is_empty() {
            put!(
                out,
                "<text x=\"{label_at:.1}\" y=\"{:.1}\" text-anchor=\"end\" style=\"fill:{}\">{}</text>",
                top + 12.0,
                curve.colour,
                curve.label
            );
            label_at -= 170.0;
        }
    }
}

/// The next of 1, 2, 4, 5 or 8 times a power of ten: an axis with round numbers.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 5.0, 8.0, 10.0];
    let fits = steps.iter().find(|step| *step * power >= value);
    fits.unwrap_or(&10.0) * power
}

fn number(value: f64) -> String {
    let text = match value {
        v if v >= 1e4 => return format!("{:.0} k", v / 1e3),
        v => format!("{v:.2}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_sums_a_second() {
        let points = [(0.1, 10.0), (0.4, 5.0), (0.9, 1.0), (7.0, 100.0)];
        let bins = rate(points.into_iter(), 1.0);
        assert_eq!(bins, [(0.25, 30.0), (0.75, 2.0)]);
    }

    #[test]
    fn axes_have_round_numbers() {
        for (value, top) in [(0.3, 0.4), (1.0, 1.0), (17.0, 20.0), (410.0, 500.0)] {
            assert!((nice(value) / top - 1.0).abs() < 1e-9, "{value}");
        }
        let written = [0.0, 2.5, 1500.0, 25_000.0].map(number);
        assert_eq!(written, ["0", "2.5", "1500", "25 k"]);
    }
}
