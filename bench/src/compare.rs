//! `compare`: this broker and its peers side by side, in turn, in one run: the same batches from the
//! same number of producers, the same number of receivers, and an ack means synced everywhere. As fast
//! as it goes: a bounded number of batches is under way all the time. This broker also checks each
//! delta, drops repeats and keeps the newest value of each register; the peers only store and send.

use crate::{
    Failure,
    broker::{Usage, usage_of},
    load::{self, Generator},
    measure::histogram,
    report::{Environment, Spread},
    systems::{Ack, Kind, Receiver, Sender, System},
};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use hutong_proto::{Issuer, Lane};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Whom to compare with.
    #[arg(long, value_delimiter = ',', default_value = "jetstream")]
    peers: Vec<Kind>,
    #[arg(long, value_delimiter = ',', default_value = "ingest,fanout,single")]
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
    short: bool,
    #[arg(long, default_value_t = 8)]
    producers: usize,
    /// Receivers of the row `fanout`.
    #[arg(long, default_value_t = 32)]
    receivers: usize,
    /// Deltas in a batch of the rows `ingest` and `fanout`.
    #[arg(long, default_value_t = 256)]
    batch: u32,
    /// Batches under way at each producer; of the row `single`, sixteen times as many.
    #[arg(long, default_value_t = 16)]
    in_flight: usize,
    /// People of each platform: registers that the deltas fall on.
    #[arg(long, default_value_t = 1_000_000)]
    people: u64,
}

/// What is measured of each system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Row {
    /// Batches, without receivers.
    Ingest,
    /// Batches, with receivers that take everything and look at nothing.
    Fanout,
    /// One delta a message, without receivers.
    Single,
}

impl Row {
    fn name(self) -> &'static str {
        match self {
            Row::Ingest => "ingest",
            Row::Fanout => "fanout",
            Row::Single => "single",
        }
    }
}

/// One turn of one system.
#[derive(Debug)]
struct Turn {
    deltas_per_s: f64,
    deliveries_per_s: f64,
    ack: Histogram<u64>,
    system: Usage,
    load_cpu_s: f64,
    acknowledged: u64,
}

/// All turns, by row and system.
#[derive(Debug)]
pub struct Comparison {
    options: Options,
    turns: BTreeMap<(Row, &'static str), Vec<Turn>>,
}

pub async fn run(options: &Options) -> Result<Comparison, Failure> {
    let mut options = options.clone();
    if options.short {
        (options.seconds, options.warmup, options.repeats) = (3.0, 1.0, 1);
    }
    let mut systems = vec![Kind::Hutong];
    systems.extend(options.peers.iter().filter(|p| **p != Kind::Hutong));
    let mut turns: BTreeMap<_, Vec<Turn>> = BTreeMap::new();
    for repeat in 1..=options.repeats {
        for row in &options.rows {
            for system in &systems {
                eprintln!(
                    "{} of {}: {} of {}",
                    repeat,
                    options.repeats,
                    row.name(),
                    system.name()
                );
                let turn = turn(&options, *row, *system).await?;
                turns.entry((*row, system.name())).or_default().push(turn);
            }
        }
    }
    Ok(Comparison { options, turns })
}

/// What the producers and receivers of a turn share.
struct Shared {
    options: Options,
    batch: u32,
    in_flight: usize,
    begin: Instant,
    end: Instant,
    /// Batches acknowledged since the start.
    acknowledged: AtomicU64,
    /// Becomes true when no more come.
    done: watch::Sender<bool>,
}

async fn turn(options: &Options, row: Row, kind: Kind) -> Result<Turn, Failure> {
    // What an earlier turn left to write must not slow this one.
    let synced = tokio::process::Command::new("sync").status().await?;
    if !synced.success() {
        return Err("`sync` failed".into());
    }
    let issuers = load::issuers(options.receivers.max(options.producers));
    let system = kind.start(&issuers).await?;
    let mut receivers = JoinSet::new();
    let begin = Instant::now() + Duration::from_secs_f64(options.warmup);
    let (batch, in_flight) = match row {
        Row::Single => (1, options.in_flight * 16),
        Row::Ingest | Row::Fanout => (options.batch, options.in_flight),
    };
    let shared = Arc::new(Shared {
        options: options.clone(),
        batch,
        in_flight,
        begin,
        end: begin + Duration::from_secs_f64(options.seconds),
        acknowledged: AtomicU64::new(0),
        done: watch::Sender::new(false),
    });
    if row == Row::Fanout {
        for issuer in issuers.iter().take(options.receivers) {
            let receiver = system.receiver(*issuer).await?;
            receivers.spawn(receive(Arc::clone(&shared), receiver));
        }
    }
    let mut producers = JoinSet::new();
    for (i, issuer) in issuers.iter().take(options.producers).enumerate() {
        let sender = system.sender(*issuer).await?;
        producers.spawn(produce(Arc::clone(&shared), *issuer, i as u64 + 1, sender));
    }
    measure(&shared, &*system, producers, receivers).await
}

async fn measure(
    shared: &Shared,
    system: &dyn System,
    mut producers: JoinSet<Result<Produced, Failure>>,
    mut receivers: JoinSet<Result<u64, Failure>>,
) -> Result<Turn, Failure> {
    tokio::time::sleep_until(shared.begin.into()).await;
    let (system_before, load_before) = (system.usage(), usage_of("self"));
    let (mut ack, mut batches) = (histogram(), 0);
    while let Some(produced) = producers.join_next().await {
        let produced = produced??;
        ack.add(&produced.ack)?;
        batches += produced.batches;
    }
    let produced_in = shared.begin.elapsed().as_secs_f64();
    shared.done.send_replace(true);
    // Who lets its receivers fall behind has not delivered: the time goes on until they have all.
    let mut deliveries = 0;
    while let Some(received) = receivers.join_next().await {
        deliveries += received??;
    }
    let delivered_in = shared.begin.elapsed().as_secs_f64();
    let deltas = batches * u64::from(shared.batch);
    let usage = system.usage();
    let seconds = if deliveries > 0 {
        delivered_in
    } else {
        produced_in
    };
    Ok(Turn {
        deltas_per_s: deltas as f64 / seconds,
        deliveries_per_s: (deliveries * u64::from(shared.batch)) as f64 / seconds,
        ack,
        system: Usage {
            cpu_s: usage.cpu_s - system_before.cpu_s,
            ..usage
        },
        load_cpu_s: usage_of("self").cpu_s - load_before.cpu_s,
        acknowledged: deltas,
    })
}

struct Produced {
    /// Acknowledged of those that were sent in the measured time.
    batches: u64,
    ack: Histogram<u64>,
}

/// Publishes until the end; counts what was sent after the warm-up.
async fn produce(
    shared: Arc<Shared>,
    issuer: Issuer,
    seed: u64,
    mut sender: Box<dyn Sender>,
) -> Result<Produced, Failure> {
    let mut generator = Generator::new(issuer, shared.options.people, seed);
    let mut produced = Produced {
        batches: 0,
        ack: histogram(),
    };
    let mut pending: VecDeque<(Instant, Ack)> = VecDeque::new();
    loop {
        let sent_at = Instant::now();
        if sent_at >= shared.end || pending.len() >= shared.in_flight {
            let Some((sent_at, ack)) = pending.pop_front() else {
                return Ok(produced);
            };
            ack.await?;
            shared.acknowledged.fetch_add(1, Ordering::AcqRel);
            if sent_at >= shared.begin {
                let micros = sent_at.elapsed().as_micros() as u64;
                produced.ack.saturating_record(micros.max(1));
                produced.batches += 1;
            }
            continue;
        }
        let committed_at = load::now();
        let batch = generator.batch(shared.batch, Lane::Bulk, |_| committed_at);
        pending.push_back((sent_at, sender.send(batch).await?));
    }
}

/// Takes until everything acknowledged has come. Returns how many batches came after the warm-up.
async fn receive(shared: Arc<Shared>, mut receiver: Box<dyn Receiver>) -> Result<u64, Failure> {
    let (mut all, mut before) = (0, 0);
    let mut done = shared.done.subscribe();
    loop {
        let ended = *done.borrow();
        if ended && all >= shared.acknowledged.load(Ordering::Acquire) {
            return Ok(all - before);
        }
        tokio::select! {
            received = receiver.receive() => {
                all += received?;
                if Instant::now() < shared.begin {
                    before = all;
                }
            }
            changed = done.changed(), if !ended => changed?,
        }
    }
}

impl Comparison {
    fn of(&self, row: Row, system: &'static str, f: impl Fn(&Turn) -> f64) -> Option<Spread> {
        let turns = self.turns.get(&(row, system))?;
        Some(Spread::of(turns.iter().map(f)))
    }

    /// This broker divided by the peer, of the medians.
    fn ratio(&self, row: Row, peer: &'static str) -> Option<f64> {
        let rate = |turn: &Turn| turn.deltas_per_s;
        let ours = self.of(row, Kind::Hutong.name(), rate)?;
        Some(ours.median / self.of(row, peer, rate)?.median)
    }

    pub fn to_json(&self) -> Value {
        let mut systems: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
        let mut ratios: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
        for (row, system) in self.turns.keys() {
            let value = |f: &dyn Fn(&Turn) -> f64| {
                let spread = self.of(*row, system, f);
                spread.map_or(Value::Null, |s| s.to_json())
            };
            let ms = |q: f64| value(&|t| t.ack.value_at_quantile(q) as f64 / 1000.0);
            let measured = json!({
                "deltas_per_s": value(&|t| t.deltas_per_s),
                "deliveries_per_s": value(&|t| t.deliveries_per_s),
                "ack_latency_ms": { "p50": ms(0.5), "p99": ms(0.99), "p999": ms(0.999) },
                "cpu_s_per_million": value(&|t| t.system.cpu_s / (t.acknowledged as f64 / 1e6)),
                "memory_peak_mb": value(&|t| t.system.memory_peak_mb),
                "load_cpu_s_per_million": value(&|t| t.load_cpu_s / (t.acknowledged as f64 / 1e6)),
            });
            let rows = systems.entry(system).or_default();
            rows.insert(row.name().to_owned(), measured);
            if *system != Kind::Hutong.name() {
                let ratio = self.ratio(*row, system);
                let rows = ratios.entry(system).or_default();
                rows.insert(row.name().to_owned(), json!(ratio));
            }
        }
        let options = &self.options;
        json!({
            "scenario": "compare",
            "options": {
                "seconds": options.seconds, "warmup": options.warmup, "repeats": options.repeats,
                "producers": options.producers, "receivers": options.receivers,
                "batch": options.batch, "in_flight": options.in_flight, "people": options.people,
            },
            "environment": Environment::read().to_json(),
            "systems": systems,
            "ratio": ratios,
        })
    }

    pub fn to_text(&self) -> String {
        let mut out = String::from(
            "| | system | deltas a second | deliveries a second | ack p99, ms | CPU s a million | memory, MB | ours / theirs |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        for (row, system) in self.turns.keys() {
            let text = |f: &dyn Fn(&Turn) -> f64, digits| {
                let spread = self.of(*row, system, f);
                spread.map_or(String::new(), |s| s.to_text(digits))
            };
            let ratio = match self.ratio(*row, system) {
                Some(ratio) if *system != Kind::Hutong.name() => format!("{ratio:.2}"),
                _ => String::new(),
            };
            writeln!(
                out,
                "| {} | {system} | {} | {} | {} | {} | {} | {ratio} |",
                row.name(),
                text(&|t| t.deltas_per_s, 0),
                text(&|t| t.deliveries_per_s, 0),
                text(&|t| t.ack.value_at_quantile(0.99) as f64 / 1000.0, 1),
                text(&|t| t.system.cpu_s / (t.acknowledged as f64 / 1e6), 2),
                text(&|t| t.system.memory_peak_mb, 0),
            )
            .expect("a text takes all");
        }
        out
    }
}
