//! What a comparison found: one JSON object, a table for people, or a page with bars.

use super::{Comparison, Row, Turn};
use crate::{
    plot,
    report::{Environment, Spread, Won, foot, html},
    systems::Kind,
};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fmt::Write};

/// What is said of each turn: name in the JSON, label, digits, and the figure.
struct Figure {
    name: &'static str,
    label: &'static str,
    digits: usize,
    /// Nothing where the row has no such figure.
    of: fn(&Turn) -> Option<f64>,
}

/// Nothing where there was none: not zero, which would be read as free.
fn per_million(of: u64, cpu_s: f64) -> Option<f64> {
    (of > 0).then(|| cpu_s / (of as f64 / 1e6))
}

const FIGURES: [Figure; 27] = [
    Figure {
        name: "deltas_per_s",
        label: "deltas a second",
        digits: 0,
        of: |t| Some(t.deltas_per_s),
    },
    Figure {
        name: "deliveries_per_s",
        label: "deliveries a second",
        digits: 0,
        of: |t| Some(t.deliveries_per_s),
    },
    Figure {
        name: "ack_latency_ms.p50",
        label: "ack p50, ms",
        digits: 1,
        of: |t| t.ack.ms(0.5),
    },
    Figure {
        name: "ack_latency_ms.p99",
        label: "ack p99, ms",
        digits: 1,
        of: |t| t.ack.ms(0.99),
    },
    Figure {
        name: "ack_latency_ms.p999",
        label: "ack p99.9, ms",
        digits: 1,
        of: |t| t.ack.ms(0.999),
    },
    Figure {
        name: "ack_latency_ms.max",
        label: "ack max, ms",
        digits: 0,
        of: |t| t.ack.ms(1.0),
    },
    Figure {
        name: "latency_ms.urgent.p50",
        label: "urgent p50, ms",
        digits: 1,
        of: |t| t.came[0].ms(0.5),
    },
    Figure {
        name: "latency_ms.urgent.p99",
        label: "urgent p99, ms",
        digits: 1,
        of: |t| t.came[0].ms(0.99),
    },
    Figure {
        name: "latency_ms.urgent.p999",
        label: "urgent p99.9, ms",
        digits: 1,
        of: |t| t.came[0].ms(0.999),
    },
    Figure {
        name: "latency_ms.urgent_everywhere.p50",
        label: "urgent everywhere p50, ms",
        digits: 1,
        of: |t| t.everywhere.ms(0.5),
    },
    Figure {
        name: "latency_ms.urgent_everywhere.p99",
        label: "urgent everywhere p99, ms",
        digits: 1,
        of: |t| t.everywhere.ms(0.99),
    },
    Figure {
        name: "latency_ms.urgent.max",
        label: "urgent max, ms",
        digits: 0,
        of: |t| t.came[0].ms(1.0),
    },
    Figure {
        name: "latency_ms.bulk.p50",
        label: "bulk p50, ms",
        digits: 0,
        of: |t| t.came[1].ms(0.5),
    },
    Figure {
        name: "latency_ms.bulk.p99",
        label: "bulk p99, ms",
        digits: 0,
        of: |t| t.came[1].ms(0.99),
    },
    Figure {
        name: "latency_ms.bulk.p999",
        label: "bulk p99.9, ms",
        digits: 0,
        of: |t| t.came[1].ms(0.999),
    },
    Figure {
        name: "latency_ms.bulk.max",
        label: "bulk max, ms",
        digits: 0,
        of: |t| t.came[1].ms(1.0),
    },
    Figure {
        name: "missing",
        label: "given up",
        digits: 0,
        of: |t| (t.came[0].count() > 0).then_some(t.missing as f64),
    },
    Figure {
        name: "cpu_s_per_million",
        label: "CPU s a million",
        digits: 2,
        of: |t| per_million(t.acknowledged, t.system.cpu_s),
    },
    Figure {
        name: "cpu_s_per_million_deliveries",
        label: "CPU s a million deliveries",
        digits: 3,
        of: |t| per_million(t.delivered, t.system.cpu_s),
    },
    Figure {
        name: "memory_peak_mb",
        label: "memory, MB",
        digits: 0,
        of: |t| Some(t.system.memory_peak_mb),
    },
    Figure {
        name: "load_cpu_s_per_million",
        label: "CPU s of the load a million",
        digits: 2,
        of: |t| per_million(t.acknowledged, t.load_cpu_s),
    },
    Figure {
        name: "load_waited_share",
        label: "load waited",
        digits: 2,
        of: |t| Some(t.waited_share),
    },
    Figure {
        name: "load_receivers_waited_share",
        label: "receivers waited",
        digits: 2,
        of: |t| t.receivers_waited_share,
    },
    Figure {
        name: "system_cores",
        label: "cores",
        digits: 2,
        of: |t| (t.looked_s > 0.0).then(|| t.system.cpu_s / t.looked_s),
    },
    Figure {
        name: "load_cores",
        label: "cores of the load",
        digits: 2,
        of: |t| (t.looked_s > 0.0).then(|| t.load_cpu_s / t.looked_s),
    },
    Figure {
        name: "state_flushes",
        label: "runs of state",
        digits: 0,
        of: |t| t.state.map(|[flushes, _]| flushes),
    },
    Figure {
        name: "state_merges",
        label: "merges of runs",
        digits: 0,
        of: |t| t.state.map(|[_, merges]| merges),
    },
];

/// What a page draws a bar of for each system, below what the row is judged by.
const BARS: [&str; 9] = [
    "deliveries_per_s",
    "ack_latency_ms.p99",
    "latency_ms.urgent.p99",
    "latency_ms.bulk.p99",
    "missing",
    "cpu_s_per_million",
    "cpu_s_per_million_deliveries",
    "memory_peak_mb",
    "load_waited_share",
];

/// By peer and row.
type Ratios = BTreeMap<&'static str, Map<String, Value>>;

fn spread(turns: &[Turn], figure: &Figure) -> Option<Spread> {
    let values: Vec<f64> = turns.iter().filter_map(figure.of).collect();
    (!values.is_empty()).then(|| Spread::of(values))
}

/// What a row is judged by.
fn judged(row: Row) -> &'static Figure {
    let name = match row {
        Row::Ingest | Row::Fanout | Row::Single => "deltas_per_s",
        Row::Latency => "latency_ms.urgent_everywhere.p99",
    };
    figure(name)
}

fn figure(name: &str) -> &'static Figure {
    FIGURES
        .iter()
        .find(|figure| figure.name == name)
        .expect("it is in the list")
}

impl Comparison {
    /// How many times better one system is than another, in each repeat: its rate divided by the other's,
    /// or the other's latency divided by its own. Below one, the other wins.
    fn ratio(&self, row: Row, ours: &'static str, theirs: &'static str) -> Option<Spread> {
        let of = |system| Some(self.turns.get(&(row, system))?.iter().map(judged(row).of));
        let better = |(ours, theirs): (Option<f64>, Option<f64>)| {
            let (ours, theirs) = (ours?, theirs?);
            Some(match row {
                Row::Ingest | Row::Fanout | Row::Single => ours / theirs,
                Row::Latency => theirs / ours,
            })
        };
        let ratios: Vec<f64> = of(ours)?.zip(of(theirs)?).filter_map(better).collect();
        (!ratios.is_empty()).then(|| Spread::of(ratios))
    }

    pub fn to_json(&self) -> Value {
        let mut systems: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
        let mut ratios: [Ratios; 3] = Default::default();
        for ((row, system), turns) in &self.turns {
            let mut measured = json!({});
            for figure in &FIGURES {
                let value = spread(turns, figure).map_or(Value::Null, Spread::to_json);
                put(&mut measured, figure.name, value);
            }
            if let Some(proof) = self.proofs.get(&(*row, *system)) {
                measured["durability"] = json!({
                    "syncs": proof.syncs, "acknowledged": proof.acknowledged,
                    "deltas_per_sync": proof.deltas_per_sync(),
                    "under_way_max": proof.under_way, "synced_before_ack": true,
                });
            }
            let rows = systems.entry(system).or_default();
            rows.insert(row.name().to_owned(), measured);
            if *system != Kind::Hutong.name() {
                let ratio = self.ratio(*row, Kind::Hutong.name(), system);
                let plain = self.ratio(*row, Kind::HutongPlain.name(), system);
                let values = [
                    json!(ratio.as_ref().map(|r| r.median)),
                    ratio.map_or(Value::Null, Spread::to_json),
                    plain.map_or(Value::Null, Spread::to_json),
                ];
                for (ratios, value) in ratios.iter_mut().zip(values) {
                    let rows = ratios.entry(system).or_default();
                    rows.insert(row.name().to_owned(), value);
                }
            }
        }
        let [ratio, range, plain] = ratios;
        let mut environment = Environment::read(&std::env::temp_dir()).to_json();
        environment["peers"] = json!(self.versions);
        json!({
            "scenario": "compare",
            "configuration": self.options,
            "environment": environment,
            "repeats": { "count": self.options.repeats },
            "systems": systems,
            "ratio": ratio,
            "ratio_range": range,
            "ratio_plain": plain,
        })
    }

    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for row in &self.options.rows {
            let turns = || self.turns.iter().filter(|((r, _), _)| r == row);
            let shown = |figure: &&Figure| turns().any(|(_, t)| spread(t, figure).is_some());
            let figures: Vec<&Figure> = FIGURES.iter().filter(shown).collect();
            write!(out, "\n### {row}\n\n| system |").expect("a text takes all");
            for figure in &figures {
                write!(out, " {} |", figure.label).expect("a text takes all");
            }
            writeln!(out, " deltas a sync | this broker wins by |").expect("a text takes all");
            writeln!(out, "|---{}|---|---|", "|---".repeat(figures.len()))
                .expect("a text takes all");
            for ((_, system), turns) in turns() {
                write!(out, "| {system} |").expect("a text takes all");
                for figure in &figures {
                    let text = spread(turns, figure).map(|s| s.to_text(figure.digits));
                    write!(out, " {} |", text.unwrap_or_default()).expect("a text takes all");
                }
                let proof = self.proofs.get(&(*row, *system));
                let proof = proof.map(|proof| format!("{:.0}", proof.deltas_per_sync()));
                let ratio = match self.ratio(*row, Kind::Hutong.name(), system) {
                    Some(_) if *system == Kind::Hutong.name() => String::new(),
                    Some(ratio) => match ratio.won() {
                        Won::Ours => ratio.to_text(2),
                        Won::Theirs => format!("{}: {system} wins", ratio.to_text(2)),
                        Won::Nobody => format!("{}: nobody wins", ratio.to_text(2)),
                    },
                    None => String::new(),
                };
                writeln!(out, " {} | {ratio} |", proof.unwrap_or_default())
                    .expect("a text takes all");
            }
        }
        let environment = Environment::read(&std::env::temp_dir());
        out + "\n" + &foot(&environment, &json!(self.options))
    }

    pub fn to_html(&self) -> String {
        let mut figures = String::new();
        for row in &self.options.rows {
            let judged = judged(*row);
            figures += &self.bars(*row, judged);
            for name in BARS.into_iter().filter(|name| *name != judged.name) {
                figures += &self.bars(*row, figure(name));
            }
            figures += &self.over_time(*row);
        }
        let json = serde_json::to_string_pretty(&self.to_json()).unwrap_or_default();
        html::document("compare", &self.to_text(), &figures, &[("JSON", json)])
    }

    /// Nothing for a figure that the row does not have.
    fn bars(&self, row: Row, figure: &Figure) -> String {
        let bar = |((r, system), turns): (&(Row, &'static str), &Vec<Turn>)| {
            let spread = (*r == row).then(|| spread(turns, figure))??;
            Some(((*system).to_owned(), spread))
        };
        let bars: Vec<(String, Spread)> = self.turns.iter().filter_map(bar).collect();
        match bars.iter().any(|(_, spread)| spread.max > 0.0) {
            true => html::bars(&format!("{row}: {}", figure.label), &bars),
            false => String::new(),
        }
    }

    /// Of the last turn of each system.
    fn over_time(&self, row: Row) -> String {
        let turns = self.turns.iter().filter(|((r, _), _)| *r == row);
        let last: Vec<(&str, &Turn)> = turns
            .filter_map(|((_, system), turns)| Some((*system, turns.last()?)))
            .collect();
        let mut plots = Vec::new();
        for (system, turn) in &last {
            for (what, latencies) in [
                ("until the ack", &turn.ack),
                ("urgent", &turn.came[0]),
                ("bulk", &turn.came[1]),
                ("urgent everywhere", &turn.everywhere),
            ] {
                let title = format!("{row}: latency {what}, {system}");
                plots.extend(plot::latency(title, latencies));
            }
        }
        let series: Vec<_> = last.iter().map(|(s, turn)| (*s, &turn.series)).collect();
        plots.extend(plot::side_by_side(row.name(), &series));
        plots.iter().map(html::figure).collect()
    }
}

/// Puts a value at a place that is named with dots.
fn put(object: &mut Value, name: &str, value: Value) {
    let mut place = object;
    for part in name.split('.') {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[part];
    }
    *place = value;
}
