//! The reference page, made of the catalogue.

use super::{Broker, Connector, Definition, Kind, Label};
use std::fmt::Write as _;

const HEAD: &str = "\
# Metrics

Made from the catalogue in `telemetry/src/catalogue/` and from the recording rules; a test holds that this page is
current, and writes it anew when it runs with `HUTONG_WRITE=1`. What is normal, and what to do: [operate](operate.md).

In Prometheus' text format on `/metrics` of the HTTP port, and pushed by OTLP where that is configured. Counters start
at 0 with the process. Times are in seconds, sizes in bytes. Nothing here names a person.

Names follow the conventions of Prometheus: a metric has the same name on `/metrics`, by OTLP, in rules and on dashboards,
with its unit, and `_total` where it counts. `process_cpu_seconds_total`, `process_open_fds`, `process_max_fds` and
`process_start_time_seconds` are the names that the client libraries of Prometheus give to these, so dashboards and alerts
that an operator has already find them; they are not `process.cpu.time` and `process.unix.file_descriptor.count` of
OpenTelemetry's semantic conventions, by OTLP either. Memory in RAM is `hutong_memory_resident_bytes`, and not
`process_resident_memory_bytes`: it stands beside `hutong_memory_bytes`, which divides it by owner. Connectors have no
`process_*`.
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
