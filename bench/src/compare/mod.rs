//! `compare`: this broker and its peers side by side, in turn, in one run: the same deltas from the same
//! number of producers, the same number of receivers, and an ack means synced everywhere, which is
//! counted. This broker also checks each delta, drops repeats and keeps the newest value of each
//! register; JetStream and Redis only store and send.

mod flat_out;
mod paced;
mod proof;
mod shown;

use crate::{
    Failure, allowed,
    broker::{StateWork, Usage, usage_of},
    load,
    measure::{Counters, Latencies, Sampler, between},
    plot::Series,
    report,
    systems::{Kind, System},
    waited,
};
use clap::{Args, ValueEnum};
use proof::Proof;
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc, time::Instant};

#[derive(Debug, Clone, Args, Serialize)]
pub struct Options {
    /// Whom to compare with.
    #[arg(long, value_delimiter = ',', default_values_t = [Kind::HutongPlain, Kind::Jetstream, Kind::Redis, Kind::Postgres])]
    peers: Vec<Kind>,
    #[arg(long, value_delimiter = ',', default_values_t = [Row::Ingest, Row::Fanout, Row::Single, Row::Latency])]
    rows: Vec<Row>,
    /// Of each row and system, after the warm-up.
    #[arg(long, default_value_t = 60.0, value_parser = allowed::measured)]
    seconds: f64,
    #[arg(long, default_value_t = 5.0, value_parser = allowed::seconds)]
    warmup: f64,
    /// How often each system has its turn.
    #[arg(long, default_value_t = 3, value_parser = allowed::repeats())]
    repeats: u64,
    /// One turn of 3 s: shows that it runs, not how fast it is.
    #[arg(long)]
    #[serde(skip)]
    short: bool,
    #[arg(long, default_value_t = 8, value_parser = allowed::platforms)]
    producers: usize,
    /// Receivers of the rows `fanout` and `latency`.
    #[arg(long, default_value_t = 32, value_parser = allowed::platforms)]
    receivers: usize,
    /// Deltas in a batch of the rows `ingest` and `fanout`.
    #[arg(long, default_value_t = 256, value_parser = allowed::batch())]
    batch: u32,
    /// Batches under way at each producer; of the row `single`, sixteen times as many.
    #[arg(long, default_value_t = 16, value_parser = allowed::in_flight)]
    in_flight: usize,
    /// Deltas a second of the row `latency`, over all platforms, of which there are as many as receivers.
    #[arg(long, default_value_t = 60_000, value_parser = allowed::rate())]
    rate: u64,
    /// Share of urgent deltas in the row `latency`.
    #[arg(long, default_value_t = 0.03, value_parser = allowed::share)]
    urgent: f64,
    /// People of each platform: registers that the deltas fall on.
    #[arg(long, default_value_t = 1_000_000, value_parser = allowed::people())]
    people: u64,
    /// Seconds, in an untimed run beside each row, in which the system's syncs are counted; 0 for none.
    #[arg(long, default_value_t = 3.0, value_parser = allowed::seconds)]
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
#[derive(Debug, Default)]
struct Turn {
    deltas_per_s: f64,
    deliveries_per_s: f64,
    ack: Latencies,
    /// Of the row `latency`: from when it was due until it came, urgent and bulk.
    came: [Latencies; 2],
    /// The same until the last receiver had it, urgent.
    everywhere: Latencies,
    /// Deliveries of that row that did not come before it was given up.
    missing: u64,
    system: Usage,
    load_cpu_s: f64,
    /// How long processors were looked at: until all is delivered, and in the row `latency` as long as is measured.
    looked_s: f64,
    /// Runs of state that went down meanwhile, and merges of them; of this broker.
    state: Option<[f64; 2]>,
    acknowledged: u64,
    delivered: u64,
    /// Share of their time in which producers had nothing to do, and receivers, if there were some.
    waited_share: f64,
    receivers_waited_share: Option<f64>,
    series: Series,
}

/// What a system and the load had used, and when.
struct Look {
    at: Instant,
    system: Usage,
    load: Usage,
    state: Option<StateWork>,
}

impl Look {
    async fn at(system: &dyn System) -> Result<Look, Failure> {
        // First what takes time.
        let state = system.state_work().await?;
        Ok(Look {
            at: Instant::now(),
            system: system.usage(),
            load: usage_of("self"),
            state,
        })
    }
}

impl Turn {
    /// From one look to the other.
    fn took(&mut self, before: &Look, after: &Look) {
        self.system = between(before.system, after.system);
        self.load_cpu_s = between(before.load, after.load).cpu_s;
        self.looked_s = after.at.duration_since(before.at).as_secs_f64();
        let state = after.state.zip(before.state);
        self.state = state.map(|(after, before)| after.since(before));
    }
}

/// Samples a system from `begin` on.
fn sampler(system: &dyn System, counters: &Arc<Counters>, begin: Instant) -> Sampler {
    let processes = system.processes();
    let usage = move || Usage::sampled(&processes);
    Sampler::of(usage, Arc::clone(counters), begin)
}

/// All turns, by row and system.
#[derive(Debug)]
pub struct Comparison {
    options: Options,
    turns: BTreeMap<(Row, &'static str), Vec<Turn>>,
    proofs: BTreeMap<(Row, &'static str), Proof>,
    /// What the peers' servers say of themselves.
    versions: BTreeMap<&'static str, String>,
}

pub async fn run(options: &Options) -> Result<Comparison, Failure> {
    let mut options = options.clone();
    if options.short {
        (options.seconds, options.warmup, options.repeats) = (3.0, 1.0, 1);
        options.proof = options.proof.min(1.0);
    }
    on_a_disk()?;
    let mut systems = vec![Kind::Hutong];
    systems.extend(options.peers.iter().filter(|p| **p != Kind::Hutong));
    let mut comparison = Comparison {
        options,
        turns: BTreeMap::new(),
        proofs: BTreeMap::new(),
        versions: BTreeMap::new(),
    };
    for system in &systems {
        if let Some(version) = system.version().await? {
            comparison.versions.insert(system.name(), version);
        }
    }
    let options = &comparison.options;
    for repeat in 1..=options.repeats {
        for row in &options.rows {
            // Who begins changes, so that what comes and goes on a machine does not always meet the same.
            let first = (repeat as usize - 1) % systems.len();
            for system in systems[first..].iter().chain(&systems[..first]) {
                if *system == Kind::HutongPlain && matches!(row, Row::Ingest | Row::Single) {
                    // Nobody receives.
                    continue;
                }
                eprintln!("{repeat} of {}: {row} of {system}", options.repeats);
                synced().await?;
                let turn = match row {
                    Row::Latency => paced::turn(options, *system).await,
                    _ => flat_out::turn(options, *row, *system).await,
                };
                let turn = turn.map_err(|error| format!("{row} of {system}: {error}"))?;
                if let Some(warning) =
                    waited::warning(&format!("{row} of {system}"), turn.waited_share)
                {
                    eprintln!("hutong-bench: {warning}");
                }
                let turns = &mut comparison.turns;
                turns.entry((*row, system.name())).or_default().push(turn);
            }
        }
    }
    // After all that is timed: who is watched is slow.
    let proven = |row: &&Row| matches!(row, Row::Ingest | Row::Single) && options.proof > 0.0;
    for row in options.rows.iter().filter(proven) {
        let other = |s: &&Kind| !matches!(**s, Kind::HutongPlain | Kind::HutongWatched);
        for system in systems.iter().filter(other) {
            eprintln!("counting the syncs: {row} of {system}");
            let proof = proof::of(options, *row, *system).await;
            let proof = proof.map_err(|error| format!("{row} of {system}: {error}"))?;
            comparison.proofs.insert((*row, system.name()), proof);
        }
    }
    Ok(comparison)
}

impl Comparison {
    /// Deliveries of this broker that had not come when their row was given up, over all turns. No median hides them.
    pub fn missing(&self) -> u64 {
        let ours =
            (self.turns.iter()).filter(|((_, system), _)| system.starts_with(Kind::Hutong.name()));
        ours.flat_map(|(_, turns)| turns)
            .map(|turn| turn.missing)
            .sum()
    }
}

/// A sync costs nothing in memory: there is nothing to compare then.
fn on_a_disk() -> Result<(), Failure> {
    let folder = std::env::temp_dir();
    match report::in_memory(&report::filesystem(&folder)) {
        true => Err(format!(
            "{} is in memory, where syncs cost nothing; set TMPDIR to a folder on a disk",
            folder.display()
        )
        .into()),
        false => Ok(()),
    }
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
