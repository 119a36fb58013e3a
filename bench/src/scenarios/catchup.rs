//! `catchup`: a subscriber comes back millions of deltas behind and reads them from the log, while live
//! traffic goes on to all others. How fast it catches up, and what that does to the others' latency.

use crate::{
    Failure, allowed,
    broker::BrokerProcess,
    fill::Fill,
    fleet::{AtEnd, Fleet, FleetOptions, Load},
    load,
    measure::{Run, Sampler, between},
    scenarios::{Common, Times, look},
};
use clap::Args;
use hutong_connectors::client::{Endpoint, Filter, Identity, Start, Subscriber, SubscriberOptions};
use hutong_proto::{Cursor, Issuer, Lane, RecordView, record, record::LoggedView};
use serde::Serialize;
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
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
    #[command(flatten)]
    #[serde(flatten)]
    fill: Fill,
    /// Deltas that the subscriber is behind.
    #[arg(long, default_value_t = 10_000_000, value_parser = allowed::people())]
    behind: u64,
    /// Live deltas a second, over all platforms, meanwhile.
    #[arg(long, default_value_t = 10_000, value_parser = allowed::rate())]
    rate: u64,
    /// Share of urgent deltas.
    #[arg(long, default_value_t = 0.03, value_parser = allowed::share)]
    urgent: f64,
}

const LATE: &str = "late";
/// One that takes longer never ends.
const CATCH_UP_MAX: Duration = Duration::from_secs(600);

pub async fn run(options: &Options) -> Result<Run, Failure> {
    let issuers = load::issuers(options.fleet.subscribers.max(options.fill.producers));
    let broker = options.common.broker(&issuers, "").await?;
    // The log's beginning, in the words of this log.
    let first = open(&broker, issuers[0], Start::Now).await?;
    let behind = first.cursor();
    drop(first);
    options.fill.registers(&broker, options.behind).await?;
    let counters = Arc::default();
    let fleet = Fleet::start(&options.fleet, &broker, Arc::clone(&counters)).await?;
    let begin = Instant::now();
    let sampler = Sampler::start(&broker, Arc::clone(&counters), begin);
    let rate = options.rate as f64;
    let mut load = Load {
        urgent_per_s: rate * options.urgent,
        bulk_per_s: rate * (1.0 - options.urgent),
        warmup: options.times.warmup(),
        seconds: options.times.seconds(),
        stop: CancellationToken::new(),
        at_end: AtEnd::Drain,
        urgent_until_drained: false,
    };
    let (alone, driven) = fleet.drive(&load).await?;
    let (mut published, mut acknowledged) = (driven.published, driven.acknowledged);

    // Again and again for as long as before, and no longer: what comes after would make the latency look better.
    load.seconds = CATCH_UP_MAX;
    let before = look(&broker);
    let catch_up = async {
        tokio::time::sleep(load.warmup).await;
        let caught = catch_ups(&broker, issuers[0], behind, options.times.seconds()).await;
        load.stop.cancel();
        caught
    };
    let (driven, caught) = tokio::join!(fleet.drive(&load), catch_up);
    let ((beside, driven), (times, deltas, took)) = (driven?, caught?);
    let after = look(&broker);
    published += driven.published;
    acknowledged += driven.acknowledged;
    let tally = fleet.finish().await?;
    let (urgent_alone, urgent) = (alone.take(Lane::Urgent), beside.take(Lane::Urgent));
    let mut run = Run {
        // Rates over all of it would mix what was before with what was meanwhile.
        seconds: 0.0,
        published,
        acknowledged,
        delivered: beside.delivered.load(Ordering::Acquire),
        lost: tally.lost,
        doubled: tally.doubled,
        broker: between(before.broker, after.broker),
        load: between(before.load, after.load),
        disk_mb: broker.disk_mb(),
        series: sampler.series(),
        ..Run::default()
    };
    run.figure("catchup_times", times as f64);
    run.figure("catchup_deltas", deltas as f64);
    run.figure("catchup_s", took.as_secs_f64());
    run.figure("catchup_deltas_per_s", deltas as f64 / took.as_secs_f64());
    run.figure("urgent_p99_ms_alone", urgent_alone.p99_ms());
    run.figure("urgent_p99_ms_beside", urgent.p99_ms());
    run.figure(
        "urgent_p99_beside_to_alone",
        urgent.p99_ms() / urgent_alone.p99_ms(),
    );
    run.latencies = vec![("urgent_alone", urgent_alone), ("urgent", urgent)];
    Ok(run)
}

async fn open(broker: &BrokerProcess, issuer: Issuer, start: Start) -> Result<Subscriber, Failure> {
    let endpoint = Endpoint::new(broker.grpc.clone(), Identity::Platform(issuer));
    let mut options = SubscriberOptions::new(endpoint, LATE);
    options.filter = Filter {
        include_own: true,
        ..Filter::default()
    };
    options.start = start;
    Ok(Subscriber::open(options).await?)
}

/// Catches up from the same place until the time is over: how often, how many deltas that were, and how
/// long it took.
async fn catch_ups(
    broker: &BrokerProcess,
    issuer: Issuer,
    from: Cursor,
    time: Duration,
) -> Result<(u64, u64, Duration), Failure> {
    let begin = Instant::now();
    let (mut times, mut deltas) = (0, 0);
    while times == 0 || begin.elapsed() < time {
        let one = tokio::time::timeout(CATCH_UP_MAX, catch_up(broker, issuer, from));
        let late = |_| format!("not caught up within {} s", CATCH_UP_MAX.as_secs());
        deltas += one.await.map_err(late)??;
        times += 1;
    }
    Ok((times, deltas, begin.elapsed()))
}

/// Takes what it is behind, until it gets what was written after it came; how many deltas that were.
async fn catch_up(broker: &BrokerProcess, issuer: Issuer, from: Cursor) -> Result<u64, Failure> {
    let mut subscriber = open(broker, issuer, Start::Cursor(from)).await?;
    let (mut deltas, mut cursor, begin) = (0, from, load::now());
    loop {
        let frame = subscriber.next_frame().await?;
        let Some(records) = record::read_delivery(&frame)? else {
            continue;
        };
        let mut bulk_came = false;
        for logged in &records {
            let bytes = logged.record()?;
            let record = RecordView::parse(&bytes)?;
            deltas += record.deltas.len() as u64;
            bulk_came = record.header.partition.lane == Lane::Bulk;
            cursor.set_lane(record.header.partition.lane, logged.offset.next());
        }
        subscriber.applied(cursor).await?;
        // Of bulk: urgent deltas overtake what is behind.
        let reached = |r: &LoggedView<'_>| r.durable_at >= begin;
        if bulk_came && records.last().is_some_and(reached) {
            return Ok(deltas);
        }
    }
}
