//! `ingest` and `single`: how many deltas a second are acknowledged, that is durable and applied,
//! without subscribers.

use crate::{
    Failure, allowed,
    fill::{Fill, Until},
    load::Generator,
    measure::{Run, Sampler},
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
    pub times: Times,
    #[command(flatten)]
    #[serde(flatten)]
    pub fill: Fill,
    /// People of each platform: registers that the deltas fall on.
    #[arg(long, default_value_t = 1_000_000, value_parser = allowed::people())]
    pub people: u64,
}

#[derive(Debug, Clone, Args, Serialize)]
pub struct SingleOptions {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    pub times: Times,
    /// Producers, each of its own platform.
    #[arg(long, default_value_t = 8, value_parser = allowed::platforms)]
    producers: usize,
    /// Deltas under way at each producer, each a batch of its own.
    #[arg(long, default_value_t = 256, value_parser = allowed::in_flight)]
    in_flight: usize,
    /// People of each platform: registers that the deltas fall on.
    #[arg(long, default_value_t = 1_000_000, value_parser = allowed::people())]
    pub people: u64,
}

impl SingleOptions {
    pub fn fill(&self) -> Fill {
        Fill {
            producers: self.producers,
            batch: 1,
            in_flight: self.in_flight,
        }
    }
}

pub async fn run(common: &Common, times: &Times, fill: &Fill, people: u64) -> Result<Run, Failure> {
    let ceiling = Generator::ceiling_per_s(fill.batch);
    let broker = common.broker(&fill.issuers(), "").await?;
    let begin = Instant::now() + times.warmup();
    let end = begin + times.seconds();
    let counters = Arc::default();
    let sampler = Sampler::start(&broker, Arc::clone(&counters), begin);
    let filling = fill.run(&broker, people, Until::Time(end), begin, &counters);
    let before = async {
        tokio::time::sleep_until(begin.into()).await;
        look(&broker).await
    };
    let (filled, before) = tokio::join!(filling, before);
    let (filled, before, after) = (filled?, before?, look(&broker).await?);
    let mut run = Run {
        seconds: begin.elapsed().as_secs_f64(),
        published: filled.published,
        acknowledged: filled.acknowledged,
        lost: filled.published - filled.acknowledged,
        latencies: vec![("ack", filled.ack)],
        disk_mb: broker.disk_mb(),
        series: sampler.series(),
        ..Run::default()
    };
    took(&mut run, &before, &after);
    run.figure("load_waited_share", filled.waited_share);
    run.figure("load_ceiling_deltas_per_s_per_core", ceiling);
    Ok(run)
}
