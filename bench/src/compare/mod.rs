//! `compare`: this broker and its peers side by side, in turn, in one run: the same deltas from the same
//! number of producers, the same number of receivers, and an ack means synced everywhere, which is
//! counted. This broker also checks each delta, drops repeats and keeps the newest value of each
//! register; JetStream and Redis only store and send.

mod flat_out;
mod paced;
mod proof;
mod shown;

use crate::{Failure, broker::Usage, load, measure::histogram, systems::Kind};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use proof::Proof;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Options {
    /// Whom to compare with.
    #[arg(long, value_delimiter = ',', default_values_t = [Kind::Jetstream, Kind::Redis, Kind::Postgres])]
    peers: Vec<Kind>,
    #[arg(long, value_delimiter = ',', default_values_t = [Row::Ingest, Row::Fanout, Row::Single, Row::Latency])]
    rows: Vec<Row>,
    /// Of each row and system, after the warm-up.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    #[arg(long, default_value_t = 5.0)]
    warmup: f64,
    /// How often each system has its turn.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// One turn of 3 s: shows that it runs, not how fast it is.
    #[arg(long)]
    #[serde(skip)]
    short: bool,
    #[arg(long, default_value_t = 8)]
    producers: usize,
    /// Receivers of the rows `fanout` and `latency`.
    #[arg(long, default_value_t = 32)]
    receivers: usize,
    /// Deltas in a batch of the rows `ingest` and `fanout`.
    #[arg(long, default_value_t = 256)]
    batch: u32,
    /// Batches under way at each producer; of the row `single`, sixteen times as many.
    #[arg(long, default_value_t = 16)]
    in_flight: usize,
    /// Deltas a second of the row `latency`, over all platforms, of which there are as many as receivers.
    #[arg(long, default_value_t = 60_000)]
    rate: u64,
    /// Share of urgent deltas in the row `latency`.
    #[arg(long, default_value_t = 0.03)]
    urgent: f64,
    /// People of each platform: registers that the deltas fall on.
    #[arg(long, default_value_t = 1_000_000)]
    people: u64,
    /// Receivers of this broker take records plain, not packed.
    #[arg(long)]
    plain: bool,
    /// Seconds, in an untimed run beside each row, in which the system's syncs are counted; 0 for none.
    #[arg(long, default_value_t = 3.0)]
    proof: f64,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What is measured of each system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Row {
    /// Batches, without receivers, as fast as it goes.
    Ingest,
    /// Batches, with receivers that take everything and look at nothing, as fast as it goes.
    Fanout,
    /// One delta a message, without receivers, as fast as it goes.
    Single,
    /// A fixed rate, open loop, and how long a delta takes until each receiver has it.
    Latency,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Row {
    fn name(self) -> &'static str {
        match self {
            Row::Ingest => "ingest",
            Row::Fanout => "fanout",
            Row::Single => "single",
            Row::Latency => "latency",
        }
    }

    /// Deltas in a batch, and batches under way at each producer.
    fn shape(self, options: &Options) -> (u32, usize) {
        match self {
            Row::Single => (1, options.in_flight * 16),
            Row::Ingest | Row::Fanout | Row::Latency => (options.batch, options.in_flight),
        }
    }
}

/// One turn of one system.
#[derive(Debug)]
struct Turn {
    deltas_per_s: f64,
    deliveries_per_s: f64,
    ack: Histogram<u64>,
    /// Of the row `latency`: from when it was due until it came, urgent and bulk.
    came: [Histogram<u64>; 2],
    /// Deliveries of that row that did not come before it was given up.
    missing: u64,
    system: Usage,
    load_cpu_s: f64,
    acknowledged: u64,
}

impl Default for Turn {
    fn default() -> Turn {
        Turn {
            deltas_per_s: 0.0,
            deliveries_per_s: 0.0,
            ack: histogram(),
            came: [histogram(), histogram()],
            missing: 0,
            system: Usage::default(),
            load_cpu_s: 0.0,
            acknowledged: 0,
        }
    }
}

/// All turns, by row and system.
#[derive(Debug)]
pub struct Comparison {
    options: Options,
    turns: BTreeMap<(Row, &'static str), Vec<Turn>>,
    proofs: BTreeMap<(Row, &'static str), Proof>,
}

pub async fn run(options: &Options) -> Result<Comparison, Failure> {
    let mut options = options.clone();
    if options.short {
        (options.seconds, options.warmup, options.repeats) = (3.0, 1.0, 1);
        options.proof = options.proof.min(1.0);
    }
    let mut systems = vec![Kind::Hutong];
    systems.extend(options.peers.iter().filter(|p| **p != Kind::Hutong));
    let mut comparison = Comparison {
        options,
        turns: BTreeMap::new(),
        proofs: BTreeMap::new(),
    };
    let options = &comparison.options;
    for repeat in 1..=options.repeats {
        for row in &options.rows {
            for system in &systems {
                eprintln!("{repeat} of {}: {row} of {system}", options.repeats);
                synced().await?;
                let turn = match row {
                    Row::Latency => paced::turn(options, *system).await,
                    _ => flat_out::turn(options, *row, *system).await,
                };
                let turn = turn.map_err(|error| format!("{row} of {system}: {error}"))?;
                let turns = &mut comparison.turns;
                turns.entry((*row, system.name())).or_default().push(turn);
            }
        }
    }
    // After all that is timed: who is watched is slow.
    let proven = |row: &&Row| matches!(row, Row::Ingest | Row::Single) && options.proof > 0.0;
    for row in options.rows.iter().filter(proven) {
        for system in &systems {
            eprintln!("counting the syncs: {row} of {system}");
            let proof = proof::of(options, *row, *system).await;
            let proof = proof.map_err(|error| format!("{row} of {system}: {error}"))?;
            comparison.proofs.insert((*row, system.name()), proof);
        }
    }
    Ok(comparison)
}

/// What an earlier turn left to write must not slow the next one.
async fn synced() -> Result<(), Failure> {
    let synced = tokio::process::Command::new("sync").status().await?;
    match synced.success() {
        true => Ok(()),
        false => Err("`sync` failed".into()),
    }
}

/// As many platforms as there are producers and receivers.
fn issuers(options: &Options) -> Vec<hutong_proto::Issuer> {
    load::issuers(options.receivers.max(options.producers))
}
