//! `surge`: colours at a steady rate while test results are offered at several times what fits. First
//! it finds out what fits, with all subscribers; then it offers that many times over, and waits until
//! all of it has gone through.

use crate::{
    Failure, allowed,
    fleet::{AtEnd, Fleet, FleetOptions, Load},
    load,
    measure::{Counters, Run, Sampler},
    scenarios::{Common, look, prove, took},
};
use clap::Args;
use serde::Serialize;
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Of what the probe offers, what may be taken; with more the probe itself was the limit.
const PROBE_SHARE_MAX: f64 = 0.9;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    fleet: FleetOptions,
    /// Urgent deltas a second, over all platforms.
    #[arg(long, default_value_t = 1_800, value_parser = allowed::rate())]
    urgent_rate: u64,
    /// How many times what fits is offered in bulk.
    #[arg(long, default_value_t = 3.0, value_parser = allowed::times)]
    times: f64,
    #[arg(long, default_value_t = 5.0, value_parser = allowed::seconds)]
    warmup: f64,
    /// How long to find out what fits.
    #[arg(long, default_value_t = 10.0, value_parser = allowed::measured)]
    probe_seconds: f64,
    /// Offered while finding out, in bulk deltas a second: more than any broker here takes.
    #[arg(long, default_value_t = 3_000_000, value_parser = allowed::rate())]
    probe_rate: u64,
    /// How long the surge itself lasts.
    #[arg(long, default_value_t = 60.0, value_parser = allowed::measured)]
    surge_seconds: f64,
}

/// What fits is what reaches the subscribers, not only what is acknowledged.
async fn probe(
    options: &Options,
    fleet: &Fleet,
    load: &Load,
    counters: &Counters,
) -> Result<f64, Failure> {
    let delivered = || counters.delivered.load(Ordering::Acquire) as f64;
    let watch = async {
        tokio::time::sleep(load.warmup).await;
        let (begin, before) = (Instant::now(), delivered());
        tokio::time::sleep(load.seconds).await;
        let per_s = (delivered() - before) / begin.elapsed().as_secs_f64();
        per_s / options.fleet.receivers_of_one()
    };
    let (probed, fits) = tokio::join!(fleet.drive(load), watch);
    probed?;
    // Of a probe that was taken whole nobody knows how much more would have been.
    if fits <= load.bulk_per_s * PROBE_SHARE_MAX {
        return Ok(fits);
    }
    Err(format!(
        "{fits:.0} deltas a second of the {:.0} offered were taken: nothing is known about what fits; offer more \
         with --probe-rate",
        load.bulk_per_s
    )
    .into())
}

pub async fn run(options: &Options) -> Result<Run, Failure> {
    let issuers = load::issuers(options.fleet.subscribers);
    let broker = options.common.broker(&issuers, "").await?;
    let counters: Arc<Counters> = Arc::default();
    let fleet = Fleet::start(&options.fleet, &broker, Arc::clone(&counters)).await?;
    let begin = Instant::now();
    let sampler = Sampler::start(&broker, Arc::clone(&counters), begin);
    let mut load = Load {
        urgent_per_s: options.urgent_rate as f64,
        bulk_per_s: options.probe_rate as f64,
        warmup: Duration::from_secs_f64(options.warmup),
        seconds: Duration::from_secs_f64(options.probe_seconds),
        stop: CancellationToken::new(),
        at_end: AtEnd::Leave,
        urgent_until_drained: false,
    };
    let fits = probe(options, &fleet, &load, &counters).await?;
    load.bulk_per_s = fits * options.times;
    load.warmup = Duration::ZERO;
    load.seconds = Duration::from_secs_f64(options.surge_seconds);
    load.at_end = AtEnd::Drain;
    // Those who are behind are part of the surge, and so is what is urgent meanwhile.
    load.urgent_until_drained = true;
    let before = look(&broker).await?;
    let surge_from = begin.elapsed();
    let (phase, driven) = fleet.drive(&load).await?;
    let after = look(&broker).await?;
    // What comes after the last ack is in `delivered_in_s`: the broker's processors were looked at now.
    let delivered = phase.delivered.load(Ordering::Acquire);
    let acknowledged = Instant::now();
    let tally = fleet.finish().await?;
    let delivered_in = driven.drained_in + acknowledged.elapsed();
    let mut run = Run {
        seconds: driven.seconds + driven.drained_in.as_secs_f64(),
        published: driven.published,
        acknowledged: driven.acknowledged,
        delivered,
        lost: tally.lost,
        doubled: tally.doubled,
        latencies: phase.latencies(),
        disk_mb: broker.disk_mb(),
        series: sampler.series(),
        ..Run::default()
    };
    took(&mut run, &before, &after);
    run.broker.memory_peak_mb = broker.usage().memory_peak_mb;
    run.figure("fits_bulk_deltas_per_s", fits);
    run.figure("offered_bulk_deltas_per_s", load.bulk_per_s);
    run.figure("surge_from_s", surge_from.as_secs_f64());
    run.figure("surge_s", driven.seconds);
    run.figure("load_waited_share", driven.waited_share);
    prove(&mut run, &driven, &tally);
    // From the end of what was offered: until all was acknowledged, and until everybody had all of it.
    run.figure("drained_in_s", driven.drained_in.as_secs_f64());
    run.figure("delivered_in_s", delivered_in.as_secs_f64());
    Ok(run)
}
