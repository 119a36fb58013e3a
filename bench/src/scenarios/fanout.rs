//! `fanout`: a fixed rate in, every platform publishing and subscribing, and how long a delta takes
//! from its commit at the source until it is applied at each platform: its frame is unpacked, its place is found, and
//! the broker is told that it was applied. Nothing is written: what a sink of its own takes is not in it.

use crate::{
    Failure, allowed,
    fleet::{AtEnd, Fleet, FleetOptions, Load},
    load,
    measure::{Run, Sampler},
    scenarios::{Common, Times, look, prove, took},
};
use clap::Args;
use serde::Serialize;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

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
    fleet: FleetOptions,
    /// Deltas a second, over all platforms.
    #[arg(long, default_value_t = 60_000, value_parser = allowed::rate())]
    rate: u64,
    /// Share of urgent deltas.
    #[arg(long, default_value_t = 0.03, value_parser = allowed::share)]
    urgent: f64,
}

pub async fn run(options: &Options) -> Result<Run, Failure> {
    let issuers = load::issuers(options.fleet.subscribers);
    let broker = options.common.broker(&issuers, "").await?;
    let counters = Arc::default();
    let fleet = Fleet::start(&options.fleet, &broker, Arc::clone(&counters)).await?;
    let begin = Instant::now() + options.times.warmup();
    let sampler = Sampler::start(&broker, Arc::clone(&counters), begin);
    let rate = options.rate as f64;
    let load = Load {
        urgent_per_s: rate * options.urgent,
        bulk_per_s: rate * (1.0 - options.urgent),
        warmup: options.times.warmup(),
        seconds: options.times.seconds(),
        stop: CancellationToken::new(),
        at_end: AtEnd::Drain,
        urgent_until_drained: false,
    };
    let looked = async {
        tokio::time::sleep_until(begin.into()).await;
        let before = look(&broker).await?;
        tokio::time::sleep(load.seconds).await;
        Ok::<_, Failure>((before, look(&broker).await?))
    };
    let (driven, looked) = tokio::join!(fleet.drive(&load), looked);
    let ((phase, driven), (before, after)) = (driven?, looked?);
    let tally = fleet.finish().await?;
    let mut run = Run {
        seconds: driven.seconds,
        published: driven.published,
        acknowledged: driven.acknowledged,
        delivered: phase.delivered.load(Ordering::Acquire),
        lost: tally.lost,
        doubled: tally.doubled,
        latencies: phase.latencies(),
        disk_mb: broker.disk_mb(),
        series: sampler.series(),
        ..Run::default()
    };
    took(&mut run, &before, &after);
    run.broker.memory_peak_mb = broker.usage().memory_peak_mb;
    run.figure("load_waited_share", driven.waited_share);
    prove(&mut run, &driven, &tally);
    Ok(run)
}
