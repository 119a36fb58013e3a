//! `fanout`: a fixed rate in, every platform publishing and subscribing, and how long a delta takes
//! from its commit at the source until it is applied at each platform. Open loop: a delta's time is
//! the time at which it was due, so a broker that falls behind cannot hide it.

use crate::{
    broker::{BrokerProcess, Usage, usage_of},
    load::{self, Generator},
    report::{Report, histogram},
};
use clap::Args;
use hdrhistogram::Histogram;
use hutong_connectors::client::{
    Endpoint, Filter, Identity, Pending, Publisher, PublisherOptions, Start, Subscriber,
    SubscriberOptions,
};
use hutong_proto::{Cursor, Issuer, Lane, LogId, Micros, RecordView, record};
use serde_json::json;
use std::{
    error::Error,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Deltas a second, over all platforms.
    #[arg(long, default_value_t = 60_000)]
    rate: u64,
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    #[arg(long, default_value_t = 5.0)]
    warmup: f64,
    /// Platforms: each publishes its share and subscribes to all others.
    #[arg(long, default_value_t = 32)]
    subscribers: usize,
    /// Share of urgent deltas.
    #[arg(long, default_value_t = 0.03)]
    urgent: f64,
    /// Of the subscribers, how many take nothing during the whole run.
    #[arg(long, default_value_t = 0)]
    stalled: usize,
    /// A producer gathers bulk deltas this long.
    #[arg(long, default_value_t = 100)]
    bulk_every_ms: u64,
    /// A producer gathers urgent deltas this long.
    #[arg(long, default_value_t = 10)]
    urgent_every_ms: u64,
    /// People of each platform.
    #[arg(long, default_value_t = 1_000_000)]
    people: u64,
    /// Folder for the broker's data; a temporary one by default.
    #[arg(long)]
    data: Option<PathBuf>,
}

/// Shared by all tasks of a run.
struct Run {
    options: Options,
    begin: Instant,
    begin_us: u64,
    end: Instant,
    /// Deltas accepted, by platform, since the start.
    accepted: Vec<AtomicU64>,
    /// Fired when everything is acknowledged: receivers then drain.
    drained: watch::Sender<bool>,
}

#[derive(Default)]
struct Produced {
    published: u64,
    acknowledged: u64,
}

struct Received {
    delivered: u64,
    by_issuer: Vec<u64>,
    urgent: Histogram<u64>,
    bulk: Histogram<u64>,
}

pub async fn run(options: &Options) -> Result<Report, Box<dyn Error>> {
    let issuers = load::issuers(options.subscribers);
    let broker = BrokerProcess::start(&issuers, options.data.as_deref(), "").await?;
    let warmup = Duration::from_secs_f64(options.warmup);
    let begin = Instant::now() + warmup;
    let run = Arc::new(Run {
        options: options.clone(),
        begin,
        begin_us: load::now().0 + warmup.as_micros() as u64,
        end: begin + Duration::from_secs_f64(options.seconds),
        accepted: issuers.iter().map(|_| AtomicU64::new(0)).collect(),
        drained: watch::Sender::new(false),
    });

    let mut receivers = JoinSet::new();
    for (i, issuer) in issuers.iter().enumerate() {
        let subscriber = subscribe(&broker.grpc, *issuer).await?;
        if i < issuers.len() - options.stalled {
            receivers.spawn(receive(Arc::clone(&run), i, subscriber));
        } else {
            receivers.spawn(stall(Arc::clone(&run), subscriber));
        }
    }
    let mut producers = JoinSet::new();
    for (i, issuer) in issuers.iter().enumerate() {
        for lane in Lane::DELIVERED {
            let endpoint = Endpoint::new(broker.grpc.clone(), Identity::Platform(*issuer));
            let publisher =
                Publisher::connect(PublisherOptions::new(endpoint, lane.name())).await?;
            producers.spawn(produce(Arc::clone(&run), i, *issuer, lane, publisher));
        }
    }
    tokio::time::sleep_until(begin.into()).await;
    let (broker_before, load_before) = (broker.usage(), usage_of("self"));

    let mut produced = Produced::default();
    while let Some(one) = producers.join_next().await {
        let one = one?.map_err(|e| e.to_string())?;
        produced.published += one.published;
        produced.acknowledged += one.acknowledged;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let (broker_after, load_after) = (broker.usage(), usage_of("self"));
    run.drained.send_replace(true);

    let mut report = Report {
        scenario: "fanout",
        options: options_json(options),
        seconds,
        published: produced.published,
        acknowledged: produced.acknowledged,
        delivered: 0,
        lost: 0,
        doubled: 0,
        latencies: Vec::new(),
        broker: Usage {
            cpu_s: broker_after.cpu_s - broker_before.cpu_s,
            ..broker_after
        },
        load: Usage {
            cpu_s: load_after.cpu_s - load_before.cpu_s,
            ..load_after
        },
        disk_mb: broker.data_bytes() as f64 / 1e6,
        notes: Vec::new(),
    };
    collect(&run, &mut receivers, &mut report).await?;
    report.broker.memory_peak_mb = broker.usage().memory_peak_mb;
    Ok(report)
}

fn options_json(options: &Options) -> serde_json::Value {
    json!({
        "rate": options.rate, "seconds": options.seconds, "subscribers": options.subscribers,
        "urgent": options.urgent, "stalled": options.stalled,
        "bulk_every_ms": options.bulk_every_ms, "urgent_every_ms": options.urgent_every_ms,
        "people": options.people,
    })
}

/// Adds up what the receivers saw and compares it with what was accepted from each platform.
async fn collect(
    run: &Run,
    receivers: &mut JoinSet<Result<Option<(usize, Received)>, Failure>>,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let (mut urgent, mut bulk) = (histogram(), histogram());
    while let Some(received) = receivers.join_next().await {
        let Some((own, received)) = received?.map_err(|e| e.to_string())? else {
            continue;
        };
        report.delivered += received.delivered;
        urgent.add(&received.urgent)?;
        bulk.add(&received.bulk)?;
        for (i, accepted) in run.accepted.iter().enumerate() {
            let expected = if i == own {
                0
            } else {
                accepted.load(Ordering::Acquire)
            };
            report.lost += expected.saturating_sub(received.by_issuer[i]);
            report.doubled += received.by_issuer[i].saturating_sub(expected);
        }
    }
    report.latencies = vec![("urgent", urgent), ("bulk", bulk)];
    Ok(())
}

async fn subscribe(address: &str, issuer: Issuer) -> Result<Subscriber, Box<dyn Error>> {
    let endpoint = Endpoint::new(address.to_owned(), Identity::Platform(issuer));
    let mut options = SubscriberOptions::new(endpoint, "bench");
    options.filter = Filter::default();
    options.start = Start::Now;
    Ok(Subscriber::open(options).await?)
}

/// Publishes this platform's share of one lane, on time.
async fn produce(
    run: Arc<Run>,
    index: usize,
    issuer: Issuer,
    lane: Lane,
    publisher: Publisher,
) -> Result<Produced, Failure> {
    let options = &run.options;
    let (share, every_ms) = match lane {
        Lane::Urgent => (options.urgent, options.urgent_every_ms),
        Lane::Bulk | Lane::Control => (1.0 - options.urgent, options.bulk_every_ms),
    };
    let rate = options.rate as f64 / options.subscribers as f64 * share;
    let every = Duration::from_millis(every_ms);
    let mut generator = Generator::new(issuer, options.people, index as u64 * 2 + lane as u64);
    let mut produced = Produced::default();
    let mut pending: JoinSet<Result<(u32, bool), Failure>> = JoinSet::new();
    // Platforms do not tick together.
    let mut due = Instant::now() + every * index as u32 / options.subscribers as u32;
    let (mut sent, started) = (0u64, due);
    let started_us =
        load::now().0 + due.saturating_duration_since(Instant::now()).as_micros() as u64;
    loop {
        due += every;
        if due >= run.end {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let target = ((due - started).as_secs_f64() * rate) as u64;
        let deltas = u32::try_from(target - sent)?.min(20_000);
        if deltas == 0 {
            continue;
        }
        // The moment at which `target` first counts it.
        let at = |n: u64| Micros(started_us + ((n + 1) as f64 / rate * 1e6) as u64);
        let first = sent;
        let batch = generator.batch(deltas, lane, |i| at(first + u64::from(i)));
        sent += u64::from(deltas);
        let measured = due >= run.begin;
        if measured {
            produced.published += u64::from(deltas);
        }
        let receipt = publisher.publish_encoded(batch).await?;
        pending.spawn(acknowledged(receipt, measured));
        while let Some(done) = pending.try_join_next() {
            tally(&run, index, &mut produced, done??);
        }
    }
    while let Some(done) = pending.join_next().await {
        tally(&run, index, &mut produced, done??);
    }
    publisher.close().await?;
    Ok(produced)
}

async fn acknowledged(receipt: Pending, measured: bool) -> Result<(u32, bool), Failure> {
    Ok((receipt.await?.accepted, measured))
}

fn tally(run: &Run, index: usize, produced: &mut Produced, (accepted, measured): (u32, bool)) {
    run.accepted[index].fetch_add(u64::from(accepted), Ordering::AcqRel);
    if measured {
        produced.acknowledged += u64::from(accepted);
    }
}

/// Takes deliveries until everything acknowledged has come, or nothing comes any more.
async fn receive(
    run: Arc<Run>,
    own: usize,
    mut subscriber: Subscriber,
) -> Result<Option<(usize, Received)>, Failure> {
    let mut received = Received {
        delivered: 0,
        by_issuer: vec![0; run.accepted.len()],
        urgent: histogram(),
        bulk: histogram(),
    };
    let mut cursor = Cursor::both(LogId(0), hutong_proto::Offset::NONE);
    let mut drained = run.drained.subscribe();
    let mut quiet_since = None;
    loop {
        let frame = tokio::select! {
            frame = subscriber.next_frame() => frame?,
            _ = drained.changed() => continue,
        };
        match record::read_delivery(&frame)? {
            Some(records) => {
                quiet_since = None;
                for logged in &records {
                    let record = RecordView::parse(logged.record)?;
                    count(&run, &record, &mut received)?;
                    cursor.set_lane(record.header.partition.lane, logged.offset.next());
                }
            }
            // A bookmark: nothing was waiting.
            None => {
                if *drained.borrow()
                    && quiet_since.get_or_insert_with(Instant::now).elapsed()
                        > Duration::from_secs(2)
                {
                    break;
                }
            }
        }
        let log_id = subscriber.cursor().log_id;
        subscriber.applied(Cursor { log_id, ..cursor }).await?;
        if *drained.borrow() && complete(&run, own, &received) {
            break;
        }
    }
    Ok(Some((own, received)))
}

fn complete(run: &Run, own: usize, received: &Received) -> bool {
    run.accepted
        .iter()
        .enumerate()
        .all(|(i, accepted)| i == own || received.by_issuer[i] >= accepted.load(Ordering::Acquire))
}

/// Counts a record, and the latency of each of its deltas if it was due within the measured time.
fn count(run: &Run, record: &RecordView<'_>, received: &mut Received) -> Result<(), Failure> {
    let deltas = record.deltas.len() as u64;
    let code = record.header.partition.issuer.code();
    let Some(i) = load::PLATFORMS.iter().position(|p| *p == code) else {
        return Ok(());
    };
    received.by_issuer[i] += deltas;
    let now = load::now().0;
    // The first delta of a record waited longest. All of them are decoded by a real sink; here one
    // stands for its record, so that the load does not take the broker's processor.
    let delta = record.delta(0)?;
    if delta.committed_at.0 >= run.begin_us {
        received.delivered += deltas;
        let micros = now.saturating_sub(delta.committed_at.0).max(1);
        match record.header.partition.lane {
            Lane::Urgent => received.urgent.saturating_record_n(micros, deltas),
            Lane::Bulk | Lane::Control => received.bulk.saturating_record_n(micros, deltas),
        }
    }
    Ok(())
}

/// Opens the stream and takes nothing.
async fn stall(
    run: Arc<Run>,
    subscriber: Subscriber,
) -> Result<Option<(usize, Received)>, Failure> {
    let mut drained = run.drained.subscribe();
    drained.wait_for(|d| *d).await?;
    drop(subscriber);
    Ok(None)
}
