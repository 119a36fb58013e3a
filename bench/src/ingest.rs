//! `ingest`: how many deltas a second are acknowledged, that is durable and applied, without
//! subscribers. Closed loop: a bounded number of batches is under way all the time.

use crate::{
    broker::{BrokerProcess, Usage, usage_of},
    load::{self, Generator},
    report::{Report, histogram},
};
use clap::Args;
use hdrhistogram::Histogram;
use hutong_connectors::client::{Endpoint, Identity, Pending, Publisher, PublisherOptions};
use hutong_proto::{Issuer, Lane};
use serde_json::json;
use std::{
    collections::VecDeque,
    error::Error,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How long to measure, after the warm-up.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    #[arg(long, default_value_t = 5.0)]
    warmup: f64,
    /// Deltas in a batch.
    #[arg(long, default_value_t = 256)]
    batch: u32,
    /// Producers, each of its own platform.
    #[arg(long, default_value_t = 8)]
    producers: usize,
    /// Batches under way at each producer.
    #[arg(long, default_value_t = 16)]
    in_flight: usize,
    /// People of each platform: registers that the deltas fall on.
    #[arg(long, default_value_t = 1_000_000)]
    people: u64,
    /// Folder for the broker's data; a temporary one by default.
    #[arg(long)]
    data: Option<PathBuf>,
}

struct Tally {
    published: u64,
    acknowledged: u64,
    latency: Histogram<u64>,
}

pub async fn run(options: &Options) -> Result<Report, Box<dyn Error>> {
    let issuers = load::issuers(options.producers);
    let broker = BrokerProcess::start(&issuers, options.data.as_deref(), "").await?;
    let begin = Instant::now() + Duration::from_secs_f64(options.warmup);
    let end = begin + Duration::from_secs_f64(options.seconds);
    let mut tasks = JoinSet::new();
    for (i, issuer) in issuers.iter().enumerate() {
        let endpoint = Endpoint::new(broker.grpc.clone(), Identity::Platform(*issuer));
        let mut publisher = PublisherOptions::new(endpoint, "bench");
        publisher.batches_in_flight_max = options.in_flight + 1;
        let publisher = Publisher::connect(publisher).await?;
        tasks.spawn(produce(
            options.clone(),
            *issuer,
            i as u64,
            publisher,
            begin,
            end,
        ));
    }
    tokio::time::sleep_until(begin.into()).await;
    let (broker_before, load_before) = (broker.usage(), usage_of("self"));
    let mut report = Report {
        scenario: "ingest",
        options: json!({
            "seconds": options.seconds, "batch": options.batch, "producers": options.producers,
            "in_flight": options.in_flight, "people": options.people, "subscribers": 0,
        }),
        seconds: options.seconds,
        published: 0,
        acknowledged: 0,
        delivered: 0,
        lost: 0,
        doubled: 0,
        latencies: Vec::new(),
        broker: Usage::default(),
        load: Usage::default(),
        disk_mb: 0.0,
        notes: Vec::new(),
    };
    let mut latency = histogram();
    while let Some(tally) = tasks.join_next().await {
        let tally = tally?.map_err(|e| e.to_string())?;
        report.published += tally.published;
        report.acknowledged += tally.acknowledged;
        latency.add(&tally.latency)?;
    }
    report.seconds = begin.elapsed().as_secs_f64();
    report.lost = report.published - report.acknowledged;
    report.latencies = vec![("ack", latency)];
    (report.broker, report.load) = (broker.usage(), usage_of("self"));
    report.broker.cpu_s -= broker_before.cpu_s;
    report.load.cpu_s -= load_before.cpu_s;
    report.disk_mb = broker.data_bytes() as f64 / 1e6;
    Ok(report)
}

/// Publishes until `end`; counts what was sent after `begin`.
async fn produce(
    options: Options,
    issuer: Issuer,
    seed: u64,
    publisher: Publisher,
    begin: Instant,
    end: Instant,
) -> Result<Tally, Box<dyn Error + Send + Sync>> {
    let mut generator = Generator::new(issuer, options.people, seed + 1);
    let mut tally = Tally {
        published: 0,
        acknowledged: 0,
        latency: histogram(),
    };
    let mut pending: VecDeque<(Instant, bool, Pending)> = VecDeque::new();
    loop {
        let sent_at = Instant::now();
        if sent_at >= end || pending.len() >= options.in_flight {
            let Some((started, measured, pending_receipt)) = pending.pop_front() else {
                break;
            };
            let receipt = pending_receipt.await?;
            if measured {
                let micros = started.elapsed().as_micros() as u64;
                tally.latency.saturating_record(micros.max(1));
                tally.acknowledged += u64::from(receipt.accepted);
            }
            continue;
        }
        let committed_at = load::now();
        let batch = generator.batch(options.batch, Lane::Bulk, |_| committed_at);
        let measured = sent_at >= begin;
        if measured {
            tally.published += u64::from(batch.deltas);
        }
        pending.push_back((sent_at, measured, publisher.publish_encoded(batch).await?));
    }
    publisher.close().await?;
    Ok(tally)
}
