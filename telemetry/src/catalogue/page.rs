//! The reference page, made of the catalogue.

use super::{Broker, Connector, Definition, Kind, Label};
use std::fmt::Write as _;

const HEAD: &str = "\
# Metrics

Made from the catalogue in `telemetry/src/catalogue/`; a test holds that this page is current, and writes it anew when
it runs with `HUTONG_WRITE=1`. What is normal, and what to do: [operate](operate.md).

In Prometheus' text format on `/metrics` of the HTTP port, and pushed by OTLP where that is configured. Counters start
at 0 with the process. Times are in seconds, sizes in bytes. Nothing here names a person.
";

/// `docs/metrics.md`.
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    section(
        &mut page,
        "Of the broker",
        Broker::ALL.iter().map(|m| m.definition()),
    );
    let connector = Connector::ALL.iter().map(|m| m.definition());
    section(&mut page, "Of a connector", connector);
    page += "\n## Labels\n\n| label | values | at most |\n|---|---|---|\n";
    for label in Label::ALL {
        let (name, help, max) = (label.name(), label.help(), label.values_max());
        line(&mut page, format_args!("| `{name}` | {help} | {max} |"));
    }
    page += "\n## Histograms\n\nUpper bounds of the buckets; there is always one more without a bound.\n\n";
    for d in super::all() {
        if let Kind::Histogram(bounds) = d.kind {
            let bounds: Vec<_> = bounds.iter().map(f64::to_string).collect();
            line(
                &mut page,
                format_args!("- `{}`: {}", d.name, bounds.join(", ")),
            );
        }
    }
    page
}

fn section(page: &mut String, title: &str, metrics: impl Iterator<Item = Definition>) {
    let head = "| metric | kind | labels | series at most | what it says |\n|---|---|---|---|---|";
    line(page, format_args!("\n## {title}\n\n{head}"));
    for d in metrics {
        let labels: Vec<_> = d.labels.iter().map(|l| format!("`{}`", l.name())).collect();
        let (kind, labels, series) = (d.kind.name(), labels.join(", "), d.series_max());
        line(
            page,
            format_args!(
                "| `{}` | {kind} | {labels} | {series} | {} |",
                d.name, d.help
            ),
        );
    }
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(page, "{text}").expect("writing to a string does not fail");
}
