//! `scale`: what a delta costs when it falls on one of a million, ten million or a hundred million
//! registers, and what those take on disk. Before and after the load it waits until nothing is merged any more: what
//! a delta leaves to be done is part of its cost, and what the registers were filled with is not.

use crate::{
    Failure,
    broker::BrokerProcess,
    fill::{Fill, Until},
    measure::{Run, Sampler, between},
    scenarios::{Common, Times, look, took},
};
use clap::Args;
use serde::Serialize;
use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::MissedTickBehavior;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    times: Times,
    #[command(flatten)]
    #[serde(flatten)]
    fill: Fill,
    /// Registers of each step, rising.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1000000,10000000,100000000"
    )]
    registers: Vec<u64>,
    /// Bytes of log that the broker keeps, as in its configuration: here the state is looked at.
    #[arg(long, default_value = "2GiB")]
    log: String,
}

/// Longer than this nothing is merged that was left.
const SETTLED_MAX: Duration = Duration::from_secs(900);
/// So many seconds with less than this share of a processor, one after the other, are rest.
const RESTS: u32 = 2;
const RESTING_CORES: f64 = 0.15;
/// How often it is looked what state takes on disk.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Waits until the broker has nothing left to do.
async fn settled(broker: &BrokerProcess) -> Result<(), Failure> {
    let begin = Instant::now();
    let (mut rests, mut before) = (0, broker.usage());
    while rests < RESTS {
        if begin.elapsed() > SETTLED_MAX {
            return Err("the broker still merges what was written long ago".into());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = broker.usage();
        let busy = between(before, now).cpu_s > RESTING_CORES;
        rests = if busy { 0 } else { rests + 1 };
        before = now;
    }
    Ok(())
}

/// Does something, and says how much of the disk state took at most meanwhile, in MB.
async fn with_peak<T>(
    broker: &BrokerProcess,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<(T, f64), Failure> {
    let (mut work, mut peak) = (pin!(work), 0.0f64);
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            done = &mut work => return Ok((done?, peak)),
            _ = look.tick() => peak = peak.max(broker.disk_mb_of("state")),
        }
    }
}

pub async fn run(options: &Options) -> Result<Run, Failure> {
    let issuers = options.fill.issuers();
    let retention = format!("[retention]\nbytes = \"{}\"", options.log);
    let broker = options.common.broker(&issuers, &retention).await?;
    let (mut steps, mut figures) = (Vec::new(), Vec::new());
    let mut first_cost = None;
    for registers in &options.registers {
        let filling = async {
            options.fill.registers(&broker, *registers).await?;
            settled(&broker).await
        };
        let ((), peak_filling) = with_peak(&broker, filling).await?;
        let each = registers / options.fill.producers as u64;
        let begin = Instant::now() + options.times.warmup();
        let until = Until::Time(begin + options.times.seconds());
        let counters = Arc::default();
        let sampler = Sampler::start(&broker, Arc::clone(&counters), begin);
        let filling = options.fill.run(&broker, each, until, begin, &counters);
        let before = async {
            tokio::time::sleep_until(begin.into()).await;
            look(&broker).await
        };
        let work = async {
            let (filled, before) = tokio::join!(filling, before);
            let (filled, before) = (filled?, before?);
            let seconds = begin.elapsed().as_secs_f64();
            settled(&broker).await?;
            Ok((filled, before, seconds))
        };
        let ((filled, before, seconds), peak) = with_peak(&broker, work).await?;
        let after = look(&broker).await?;
        let cpu_s = between(before.broker, after.broker).cpu_s;
        let cost = cpu_s / (filled.acknowledged as f64 / 1e6);
        let first = *first_cost.get_or_insert(cost);
        let [flushes, merges] = after.state.since(before.state);
        for (name, value) in [
            ("deltas_per_s", filled.acknowledged as f64 / seconds),
            ("cpu_s_per_million", cost),
            ("cost_to_first", cost / first),
            ("load_waited_share", filled.waited_share),
            ("state_mb", broker.disk_mb_of("state")),
            ("state_peak_mb", peak.max(peak_filling)),
            ("state_flushes", flushes),
            ("state_merges", merges),
            ("memory_mb", sampler.memory_peak_mb()),
        ] {
            figures.push((format!("{name}_at_{registers}"), value));
        }
        let mut step = Run {
            seconds,
            published: filled.published,
            acknowledged: filled.acknowledged,
            latencies: vec![("ack", filled.ack)],
            disk_mb: broker.disk_mb(),
            series: sampler.series(),
            part: format!(", {} M registers", *registers as f64 / 1e6),
            figures: vec![("load_waited_share".to_owned(), filled.waited_share)],
            ..Run::default()
        };
        took(&mut step, &before, &after);
        steps.push(step);
    }
    // The whole is the last and largest step.
    let mut run = steps.pop().ok_or("--registers names no step")?;
    run.figures.extend(figures);
    run.earlier = steps;
    Ok(run)
}
