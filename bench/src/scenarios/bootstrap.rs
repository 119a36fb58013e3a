//! `bootstrap`: a new subscriber takes a snapshot of all registers.

use crate::{
    Failure, allowed,
    broker::BrokerProcess,
    fill::Fill,
    measure::{Run, Sampler},
    plot::Progress,
    scenarios::{Common, look, took},
    waited::Busy,
};
use clap::Args;
use hutong_connectors::client::{Endpoint, Filter, Identity, Start, Subscriber, SubscriberOptions};
use hutong_proto::{
    Issuer, api,
    wire::{FieldValue, Reader},
};
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
    #[arg(long, default_value_t = 10_000_000, value_parser = allowed::people())]
    registers: u64,
}

/// Fields of messages with rows: they are counted, not decoded, as a raw receiver does.
const SNAPSHOT_ROWS: u32 = 3;
const ROW: u32 = 2;

pub async fn run(options: &Options) -> Result<Run, Failure> {
    let issuers = options.fill.issuers();
    let broker = options.common.broker(&issuers, "").await?;
    options.fill.registers(&broker, options.registers).await?;
    let counters = Arc::default();
    let before = look(&broker).await?;
    let begin = Instant::now();
    let sampler = Sampler::start(&broker, counters, begin);
    let (busy, mut progress) = (Busy::default(), Progress::since(begin));
    let waited = busy.mark();
    let taken = busy.watch(snapshot(&broker, issuers[0], &mut progress));
    let (rows, bytes) = taken.await?;
    let waited = busy.waited_share(waited, 1);
    let seconds = begin.elapsed().as_secs_f64();
    let after = look(&broker).await?;
    let mut run = Run {
        seconds,
        disk_mb: broker.disk_mb(),
        series: sampler.series(),
        lost: options.registers.saturating_sub(rows),
        ..Run::default()
    };
    took(&mut run, &before, &after);
    run.series.push(("registers_per_s", progress.per_second()));
    let left = progress.left(options.registers);
    run.series.push(("lag_late", left));
    run.figure("registers", rows as f64);
    run.figure("load_waited_share", waited);
    run.figure("registers_per_s", rows as f64 / seconds);
    run.figure("mb_per_s", bytes as f64 / 1e6 / seconds);
    Ok(run)
}

/// Rows of a frame; nothing when it is a frame of something else.
fn rows_of(frame: &[u8]) -> Result<Option<u64>, Failure> {
    let field = Reader::new(frame).field()?;
    let Some((SNAPSHOT_ROWS, FieldValue::Len(message))) = field.map(|f| (f.number, f.value)) else {
        return Ok(None);
    };
    let (mut reader, mut rows) = (Reader::new(message), 0);
    while let Some(field) = reader.field()? {
        rows += u64::from(field.number == ROW);
    }
    Ok(Some(rows))
}

/// Rows and bytes that came.
async fn snapshot(
    broker: &BrokerProcess,
    issuer: Issuer,
    progress: &mut Progress,
) -> Result<(u64, u64), Failure> {
    let endpoint = Endpoint::new(broker.grpc.clone(), Identity::Platform(issuer));
    let mut options = SubscriberOptions::new(endpoint, "new");
    options.filter = Filter {
        include_own: true,
        ..Filter::default()
    };
    options.start = Start::Snapshot;
    let mut subscriber = Subscriber::open(options).await?;
    let (mut rows, mut bytes) = (0, 0);
    progress.reached(0, false);
    loop {
        let frame = subscriber.next_frame().await?;
        bytes += frame.len() as u64;
        if let Some(more) = rows_of(&frame)? {
            rows += more;
            progress.reached(rows, false);
            continue;
        }
        let response = api::SubscribeResponse::decode(frame)?;
        if let Some(api::subscribe_response::Message::SnapshotEnd(end)) = response.message {
            progress.reached(rows, true);
            return match end.rows == rows {
                true => Ok((rows, bytes)),
                false => Err(format!("{rows} rows came, and the end says {}", end.rows).into()),
            };
        }
    }
}
