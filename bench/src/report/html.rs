//! A page with plots, in one file: no script, no fonts, nothing from elsewhere.

use crate::{
    plot::{Line, Plot},
    report::{Report, Spread},
};
use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 70.0;
const BOTTOM: f64 = 30.0;
const TOP: f64 = 12.0;
/// Names of lines beside each other, below a plot, and how far apart: the longest has some room.
const NAMES: usize = 4;
const NAME_WIDTH: f64 = 120.0;
const NAME_HEIGHT: f64 = 20.0;
const COLOURS: [&str; 6] = [
    "#1f6feb", "#d4731a", "#a32020", "#6e7781", "#2da44e", "#8250df",
];

pub fn page(report: &Report) -> String {
    let mut figures = String::new();
    for (i, run) in report.runs.iter().enumerate() {
        writeln!(figures, "<h2>Run {}</h2>", i + 1).expect("a text takes all");
        for plot in run.plots() {
            figures += &figure(&plot);
        }
    }
    let indent = |value| serde_json::to_string_pretty(&value).unwrap_or_default();
    let rest = [
        ("Options", indent(report.options.clone())),
        ("Machine", indent(report.environment.to_json())),
        ("JSON", indent(report.to_json())),
    ];
    document(report.scenario, &report.to_text(), &figures, &rest)
}

/// A whole page: what people read first, then what is drawn, then the rest.
pub fn document(name: &str, text: &str, figures: &str, rest: &[(&str, String)]) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title>\n\
         <style>body{{font:15px/1.5 system-ui,sans-serif;max-width:1340px;margin:2em auto;padding:0 1em}}\
         figure{{display:inline-block;margin:.5em 1em .5em 0}}figcaption{{font-weight:600}}\
         pre{{background:#f6f8fa;padding:1em;overflow:auto}}svg text{{font:12px system-ui,sans-serif}}\
         </style></head>\n<body><h1>{name}</h1>\n<pre>{}</pre>\n{figures}",
        escape(text),
        name = escape(name),
    );
    for (title, text) in rest {
        let text = escape(text);
        writeln!(out, "<h2>{title}</h2>\n<pre>{text}</pre>").expect("a text takes all");
    }
    out + "</body></html>\n"
}

/// A bar a system, as long as its median, with the range of its turns.
pub fn bars(title: &str, bars: &[(String, Spread)]) -> String {
    const HIGH: f64 = 34.0;
    let x_max = nice(bars.iter().map(|(_, s)| s.max).fold(1e-9, f64::max));
    let left = LEFT + 20.0;
    let x = |value: f64| left + value / x_max * (WIDTH - left - 90.0);
    let height = HIGH * bars.len() as f64 + 8.0;
    let mut out = format!(
        "<figure><figcaption>{title}</figcaption><svg role=\"img\" aria-label=\"{title}\" \
         width=\"{WIDTH}\" height=\"{height}\" xmlns=\"http://www.w3.org/2000/svg\">\n",
        title = escape(title),
    );
    for (i, (label, spread)) in bars.iter().enumerate() {
        let y = HIGH * i as f64 + 4.0;
        writeln!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{left}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"22\" fill=\"{}\"/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{mid:.1}\" y2=\"{mid:.1}\" stroke=\"#24292f\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left - 6.0,
            y + 15.0,
            escape(label),
            x(spread.median) - left,
            COLOURS[i % COLOURS.len()],
            x(spread.min),
            x(spread.max),
            x(spread.max) + 6.0,
            y + 15.0,
            number(spread.median),
            mid = y + 11.0,
        )
        .expect("a text takes all");
    }
    out + "</svg></figure>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

pub fn figure(plot: &Plot) -> String {
    let points = || plot.lines.iter().flat_map(|line| &line.points);
    let x_max = points().map(|p| p.0).fold(1.0, f64::max);
    let y_max = nice(points().map(|p| p.1).fold(1e-9, f64::max));
    let x = |value: f64| LEFT + value / x_max * (WIDTH - LEFT - 10.0);
    let y = |value: f64| TOP + (1.0 - value / y_max) * (HEIGHT - BOTTOM - TOP);
    let mut out = format!(
        "<figure><figcaption>{}, {}</figcaption><svg role=\"img\" aria-label=\"{}\" width=\"{WIDTH}\" \
         height=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">\n",
        escape(&plot.title),
        escape(plot.unit),
        escape(&plot.title),
        HEIGHT + NAME_HEIGHT * plot.lines.len().div_ceil(NAMES).max(1) as f64,
    );
    for step in 0..=4 {
        let (at_y, at_x) = (y_max * f64::from(step) / 4.0, x_max * f64::from(step) / 4.0);
        writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#d0d7de\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{} s</text>",
            LEFT - 6.0,
            y(at_y) + 4.0,
            number(at_y),
            x(at_x),
            HEIGHT - BOTTOM + 18.0,
            number(at_x),
            right = WIDTH - 10.0,
            at = y(at_y),
        )
        .expect("a text takes all");
    }
    for (i, line) in plot.lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        out += &path(line, colour, x, y);
        let at = LEFT + (i % NAMES) as f64 * NAME_WIDTH;
        writeln!(
            out,
            "<text x=\"{at}\" y=\"{}\" fill=\"{colour}\">■ {}</text>",
            HEIGHT + 10.0 + (i / NAMES) as f64 * NAME_HEIGHT,
            escape(&line.label)
        )
        .expect("a text takes all");
    }
    out + "</svg></figure>\n"
}

fn path(line: &Line, colour: &str, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    if let [only] = line.points[..] {
        // A line of one point is invisible.
        return format!(
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>\n",
            x(only.0),
            y(only.1)
        );
    }
    let points: Vec<String> = (line.points.iter())
        .map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1)))
        .collect();
    format!(
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\n",
        points.join(" ")
    )
}

/// The next of 1, 2, 4, 5 or 8 times a power of ten: an axis with round numbers.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 5.0, 8.0, 10.0];
    let fits = steps.iter().find(|step| *step * power >= value);
    fits.unwrap_or(&10.0) * power
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", round(v / 1e6)),
        v if v >= 1e4 => format!("{} k", round(v / 1e3)),
        v => round(v),
    }
}

fn round(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers() {
        for (value, top) in [(0.3, 0.4), (1.0, 1.0), (17.0, 20.0), (410_000.0, 500_000.0)] {
            assert!((nice(value) / top - 1.0).abs() < 1e-9, "{value}");
        }
        let written = [0.0, 2.5, 1500.0, 25_000.0, 1_500_000.0].map(number);
        assert_eq!(written, ["0", "2.5", "1500", "25 k", "1.5 M"]);
    }

    #[test]
    fn a_plot_draws_each_line_within_its_frame() {
        let line = Line {
            label: "p99 <".to_owned(),
            points: vec![(0.0, 1.0), (10.0, 4.0)],
        };
        let plot = Plot {
            title: "Latency".to_owned(),
            unit: "ms",
            lines: vec![line],
        };
        let drawn = figure(&plot);
        assert!(
            drawn.contains("points=\"70.0,160.5 630.0,12.0\""),
            "{drawn}"
        );
        assert!(drawn.contains("p99 &lt;"));
    }

    #[test]
    fn the_name_of_each_of_six_lines_stands_within_the_picture() {
        let line = |i: usize| Line {
            label: format!("system {i}"),
            points: vec![(0.0, 1.0), (1.0, 2.0)],
        };
        let drawn = figure(&Plot {
            title: "Six".to_owned(),
            unit: "ms",
            lines: (0..6).map(line).collect(),
        });
        let number = |text: &str, name: &str| -> f64 {
            let (_, rest) = text.split_once(&format!("{name}=\"")).expect("it is there");
            let (value, _) = rest.split_once('"').expect("it ends");
            value.parse().expect("a number")
        };
        let height = number(&drawn, " height");
        for i in 0..6 {
            let name = drawn.lines().find(|l| l.contains(&format!("system {i}<")));
            let name = name.expect("it is named");
            assert!(number(name, " x") + NAME_WIDTH <= WIDTH, "{name}");
            assert!(number(name, " y") < height, "{name} in {height}");
        }
    }
}
