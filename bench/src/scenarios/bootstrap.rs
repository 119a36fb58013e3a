//! `bootstrap`: a new subscriber takes a snapshot of all registers.

use crate::{
    Failure,
    broker::BrokerProcess,
    fill::Fill,
    measure::{Run, Sampler, between},
    scenarios::{Common, look},
};
use clap::Args;
use hutong_connectors::client::{Endpoint, Filter, Identity, Start, Subscriber, SubscriberOptions};
use hutong_proto::{Issuer, api};
use prost::Message;
use serde::Serialize;
use std::{sync::Arc, time::Instant};

#[derive(Debug, Clone, Args, Serialize)]
pub struct Options {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    fill: Fill,
    #[arg(long, default_value_t = 10_000_000)]
    registers: u64,
}

/// A message of rows begins with its field: it is counted, not decoded, as a raw receiver does.
const ROWS_TAG: u8 = (3 << 3) | 2;

pub async fn run(options: &Options) -> Result<Run, Failure> {
    let issuers = options.fill.issuers();
    let broker = options.common.broker(&issuers, "").await?;
    options.fill.registers(&broker, options.registers).await?;
    let counters = Arc::default();
    let before = look(&broker);
    let begin = Instant::now();
    let sampler = Sampler::start(&broker, counters, begin);
    let (rows, bytes) = snapshot(&broker, issuers[0]).await?;
    let seconds = begin.elapsed().as_secs_f64();
    let after = look(&broker);
    let mut run = Run {
        seconds,
        broker: between(before.broker, after.broker),
        load: between(before.load, after.load),
        disk_mb: broker.disk_mb(),
        series: sampler.series(),
        lost: options.registers.saturating_sub(rows),
        ..Run::default()
    };
    run.figure("registers", rows as f64);
    run.figure("registers_per_s", rows as f64 / seconds);
    run.figure("mb_per_s", bytes as f64 / 1e6 / seconds);
    Ok(run)
}

/// Rows, as the end of the snapshot says, and bytes.
async fn snapshot(broker: &BrokerProcess, issuer: Issuer) -> Result<(u64, u64), Failure> {
    let endpoint = Endpoint::new(broker.grpc.clone(), Identity::Platform(issuer));
    let mut options = SubscriberOptions::new(endpoint, "new");
    options.filter = Filter {
        include_own: true,
        ..Filter::default()
    };
    options.start = Start::Snapshot;
    let mut subscriber = Subscriber::open(options).await?;
    let mut bytes = 0;
    loop {
        let frame = subscriber.next_frame().await?;
        bytes += frame.len() as u64;
        if frame.first() == Some(&ROWS_TAG) {
            continue;
        }
        let response = api::SubscribeResponse::decode(frame)?;
        if let Some(api::subscribe_response::Message::SnapshotEnd(end)) = response.message {
            return Ok((end.rows, bytes));
        }
    }
}
