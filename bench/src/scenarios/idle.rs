//! `idle`: what a broker takes that has its subscribers connected and nothing to do.

use crate::{
    Failure,
    fleet::{Fleet, FleetOptions},
    load,
    measure::{Counters, Run, Sampler},
    scenarios::{Common, Times, look, took},
};
use clap::Args;
use serde::Serialize;
use std::{sync::Arc, time::Instant};

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
}

pub async fn run(options: &Options) -> Result<Run, Failure> {
    let issuers = load::issuers(options.fleet.subscribers);
    let broker = options.common.broker(&issuers, "").await?;
    let counters: Arc<Counters> = Arc::default();
    let fleet = Fleet::start(&options.fleet, &broker, Arc::clone(&counters)).await?;
    tokio::time::sleep(options.times.warmup()).await;
    let (before, begin) = (look(&broker).await?, Instant::now());
    let waited = counters.receiving.mark();
    let sampler = Sampler::start(&broker, Arc::clone(&counters), begin);
    tokio::time::sleep(options.times.seconds()).await;
    let after = look(&broker).await?;
    let waited = (counters.receiving).waited_share(waited, options.fleet.subscribers);
    let mut run = Run {
        seconds: begin.elapsed().as_secs_f64(),
        disk_mb: broker.disk_mb(),
        series: sampler.series(),
        ..Run::default()
    };
    took(&mut run, &before, &after);
    run.figure("load_waited_share", waited);
    fleet.finish().await?;
    Ok(run)
}
