//! One file a scenario: what it offers, and what it looks at. A scenario starts its own broker with
//! nothing in it, runs once, and leaves nothing.

pub mod bootstrap;
pub mod catchup;
pub mod fanout;
pub mod idle;
pub mod ingest;
pub mod scale;
pub mod surge;

use crate::{
    Failure, allowed,
    broker::{BrokerProcess, StateWork, Usage, usage_of},
    fleet::{Driven, Tally},
    measure::{Run, between},
};
use clap::{Args, Subcommand};
use hutong_proto::Issuer;
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// What every scenario has.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Common {
    /// Whole runs, each with a new broker; figures are their medians.
    #[arg(long, default_value_t = 3, value_parser = allowed::repeats())]
    pub repeats: u64,
    /// Folder for the broker's data; a temporary one by default.
    #[arg(long)]
    #[serde(skip)]
    pub data: Option<PathBuf>,
}

/// Of scenarios that measure for a given time.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Times {
    /// How long to measure, after the warm-up.
    #[arg(long, default_value_t = 60.0, value_parser = allowed::measured)]
    seconds: f64,
    #[arg(long, default_value_t = 5.0, value_parser = allowed::seconds)]
    warmup: f64,
}

impl Times {
    pub fn seconds(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    pub fn warmup(&self) -> Duration {
        Duration::from_secs_f64(self.warmup)
    }
}

impl Common {
    /// Where the broker's data goes.
    pub fn folder(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// A new broker, after what an earlier run left to write is on disk: it must not slow this one.
    pub async fn broker(&self, issuers: &[Issuer], extra: &str) -> Result<BrokerProcess, Failure> {
        let synced = tokio::process::Command::new("sync").status().await?;
        if !synced.success() {
            return Err("`sync` failed".into());
        }
        Ok(BrokerProcess::start(issuers, self.data.as_deref(), extra).await?)
    }
}

#[derive(Debug, Clone, Subcommand)]
pub enum Scenario {
    /// As many deltas as are acknowledged, in batches, without subscribers.
    Ingest(ingest::Options),
    /// As `ingest`, with one delta in each batch and many under way.
    Single(ingest::SingleOptions),
    /// A fixed rate to many subscribers; latency from commit at the source to applied.
    Fanout(fanout::Options),
    /// Steady urgent deltas while more bulk is offered than fits.
    Surge(surge::Options),
    /// A subscriber that is millions of deltas behind, while others are served.
    Catchup(catchup::Options),
    /// A new subscriber takes a snapshot of many registers.
    Bootstrap(bootstrap::Options),
    /// What a delta costs when there are more and more registers.
    Scale(scale::Options),
    /// Subscribers that are connected, and nothing to do.
    Idle(idle::Options),
}

impl Scenario {
    pub fn name(&self) -> &'static str {
        match self {
            Scenario::Ingest(_) => "ingest",
            Scenario::Single(_) => "single",
            Scenario::Fanout(_) => "fanout",
            Scenario::Surge(_) => "surge",
            Scenario::Catchup(_) => "catchup",
            Scenario::Bootstrap(_) => "bootstrap",
            Scenario::Scale(_) => "scale",
            Scenario::Idle(_) => "idle",
        }
    }

    pub fn common(&self) -> &Common {
        match self {
            Scenario::Ingest(o) => &o.common,
            Scenario::Single(o) => &o.common,
            Scenario::Fanout(o) => &o.common,
            Scenario::Surge(o) => &o.common,
            Scenario::Catchup(o) => &o.common,
            Scenario::Bootstrap(o) => &o.common,
            Scenario::Scale(o) => &o.common,
            Scenario::Idle(o) => &o.common,
        }
    }

    pub fn options(&self) -> Value {
        match self {
            Scenario::Ingest(o) => json!(o),
            Scenario::Single(o) => json!(o),
            Scenario::Fanout(o) => json!(o),
            Scenario::Surge(o) => json!(o),
            Scenario::Catchup(o) => json!(o),
            Scenario::Bootstrap(o) => json!(o),
            Scenario::Scale(o) => json!(o),
            Scenario::Idle(o) => json!(o),
        }
    }

    pub async fn run(&self) -> Result<Run, Failure> {
        match self {
            Scenario::Ingest(o) => ingest::run(&o.common, &o.times, &o.fill, o.people).await,
            Scenario::Single(o) => ingest::run(&o.common, &o.times, &o.fill(), o.people).await,
            Scenario::Fanout(o) => fanout::run(o).await,
            Scenario::Surge(o) => surge::run(o).await,
            Scenario::Catchup(o) => catchup::run(o).await,
            Scenario::Bootstrap(o) => bootstrap::run(o).await,
            Scenario::Scale(o) => scale::run(o).await,
            Scenario::Idle(o) => idle::run(o).await,
        }
    }
}

/// Both processes at one moment.
struct Look {
    at: Instant,
    broker: Usage,
    load: Usage,
    state: StateWork,
}

async fn look(broker: &BrokerProcess) -> Result<Look, Failure> {
    Ok(Look {
        at: Instant::now(),
        broker: broker.usage(),
        load: usage_of("self"),
        // Asked last: the answer may take a while.
        state: broker.state_work().await?,
    })
}

/// What both took from one look to the other.
fn took(run: &mut Run, before: &Look, after: &Look) {
    run.broker = between(before.broker, after.broker);
    run.load = between(before.load, after.load);
    let seconds = after.at.duration_since(before.at).as_secs_f64();
    run.figure("broker_cores", run.broker.cpu_s / seconds);
    run.figure("load_cores", run.load.cpu_s / seconds);
    let [flushes, merges] = after.state.since(before.state);
    run.figure("state_flushes", flushes);
    run.figure("state_merges", merges);
}

/// That a fleet was not the limit, and that who was to stand still did.
fn prove(run: &mut Run, driven: &Driven, tally: &Tally) {
    run.figure("load_receivers_waited_share", driven.receivers_waited_share);
    let [urgent, bulk] = &driven.late;
    run.figure("load_late_urgent_p99_ms", urgent.p99_ms());
    run.figure("load_late_bulk_p99_ms", bulk.p99_ms());
    run.figure("ack_urgent_p99_ms", driven.acks[0].p99_ms());
    if let Some(records) = tally.stalled_records_behind {
        run.figure("stalled_records_behind", records as f64);
    }
}
