//! `catchup`: a subscriber comes back millions of deltas behind and reads them from the log, while live
//! traffic goes on to all others. How fast it catches up, and what that does to the others' latency.

use crate::{
    Failure, allowed,
    broker::BrokerProcess,
    fill::Fill,
    fleet::{AtEnd, Fleet, FleetOptions, Load},
    load,
    measure::{Run, Sampler},
    plot::Progress,
    scenarios::{Common, Times, look, prove, took},
    waited::Busy,
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
    // That one is live again is known by bulk: urgent deltas overtake what it is behind.
    if options.urgent >= 1.0 {
        return Err("--urgent 1 leaves no bulk, which tells that the late subscriber is live again; give less".into());
    }
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
    let mut load = live(options);
    let (alone, driven_alone) = fleet.drive(&load).await?;

    // Again and again for as long as before, and no longer: what comes after would make the latency look better.
    // The last time may begin just before the end.
    load.seconds = options.times.seconds() + CATCH_UP_MAX;
    let mut late = Late::new(begin, options.behind);
    let catch_up = async {
        tokio::time::sleep(load.warmup).await;
        let before = look(&broker).await;
        let caught = (late.catch_ups(&broker, issuers[0], behind, options.times.seconds())).await;
        load.stop.cancel();
        caught.and(before)
    };
    let (driven, caught) = tokio::join!(fleet.drive(&load), catch_up);
    let ((beside, driven), before) = (driven?, caught?);
    let after = look(&broker).await?;
    let tally = fleet.finish().await?;
    let mut latencies = vec![("urgent_alone", alone.take(Lane::Urgent))];
    latencies.extend(beside.latencies());
    let [p99_alone, p99_beside] = [0, 1].map(|i: usize| latencies[i].1.p99_ms());
    // Of the time in which it caught up: a rate over all of it would mix that with what was before.
    let mut run = Run {
        seconds: driven.seconds,
        published: driven.published,
        acknowledged: driven.acknowledged,
        delivered: beside.delivered.load(Ordering::Acquire) + late.deltas,
        lost: tally.lost
            + late.lost
            + driven_alone
                .published
                .saturating_sub(driven_alone.acknowledged),
        doubled: tally.doubled,
        latencies,
        disk_mb: broker.disk_mb(),
        series: sampler.series(),
        ..Run::default()
    };
    took(&mut run, &before, &after);
    prove(&mut run, &driven, &tally);
    late.report(&mut run);
    run.figure("urgent_p99_ms_alone", p99_alone);
    run.figure("urgent_p99_ms_beside", p99_beside);
    run.figure("urgent_p99_beside_to_alone", p99_beside / p99_alone);
    Ok(run)
}

/// What goes on all the time.
fn live(options: &Options) -> Load {
    let rate = options.rate as f64;
    Load {
        urgent_per_s: rate * options.urgent,
        bulk_per_s: rate * (1.0 - options.urgent),
        warmup: options.times.warmup(),
        seconds: options.times.seconds(),
        stop: CancellationToken::new(),
        at_end: AtEnd::Drain,
        urgent_until_drained: false,
    }
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

/// The subscriber that comes back.
struct Late {
    behind: u64,
    /// Of what it was behind, each time, what had not come when it was live again.
    lost: u64,
    times: u64,
    deltas: u64,
    took: Duration,
    waited_share: f64,
    /// Of all that it took, and of what it took since it last came back.
    taken: Progress,
    caught_up: Progress,
}

impl Late {
    fn new(begin: Instant, behind: u64) -> Late {
        Late {
            behind,
            lost: 0,
            times: 0,
            deltas: 0,
            took: Duration::ZERO,
            waited_share: 0.0,
            taken: Progress::since(begin),
            caught_up: Progress::since(begin),
        }
    }

    /// Catches up from the same place until the time is over.
    async fn catch_ups(
        &mut self,
        broker: &BrokerProcess,
        issuer: Issuer,
        from: Cursor,
        time: Duration,
    ) -> Result<(), Failure> {
        let (begin, busy) = (Instant::now(), Busy::default());
        let waited = busy.mark();
        while self.times == 0 || begin.elapsed() < time {
            let one = busy.watch(self.catch_up(broker, issuer, from));
            let late = |_| format!("not caught up within {} s", CATCH_UP_MAX.as_secs());
            let one = tokio::time::timeout(CATCH_UP_MAX, one);
            one.await.map_err(late)??;
            self.times += 1;
        }
        self.took = begin.elapsed();
        self.waited_share = busy.waited_share(waited, 1);
        Ok(())
    }

    /// Takes what it is behind, until it gets what was written after it came.
    async fn catch_up(
        &mut self,
        broker: &BrokerProcess,
        issuer: Issuer,
        from: Cursor,
    ) -> Result<(), Failure> {
        let mut subscriber = open(broker, issuer, Start::Cursor(from)).await?;
        let (mut cursor, before, begin) = (from, self.deltas, load::now());
        self.caught_up.reached(0, true);
        loop {
            let frame = subscriber.next_frame().await?;
            let Some(records) = record::read_delivery(&frame)? else {
                continue;
            };
            let mut bulk_came = false;
            for logged in &records {
                let bytes = logged.record()?;
                let record = RecordView::parse(&bytes)?;
                self.deltas += record.deltas.len() as u64;
                bulk_came = record.header.partition.lane == Lane::Bulk;
                cursor.set_lane(record.header.partition.lane, logged.offset.next());
            }
            subscriber.applied(cursor).await?;
            // Of bulk: urgent deltas overtake what is behind.
            let reached = |r: &LoggedView<'_>| r.durable_at >= begin;
            let all = bulk_came && records.last().is_some_and(reached);
            self.taken.reached(self.deltas, all);
            self.caught_up.reached(self.deltas - before, all);
            if all {
                self.lost += self.behind.saturating_sub(self.deltas - before);
                return Ok(());
            }
        }
    }

    fn report(&self, run: &mut Run) {
        let took = self.took.as_secs_f64();
        run.figure("catchup_times", self.times as f64);
        run.figure("catchup_deltas", self.deltas as f64);
        run.figure("catchup_s", took);
        run.figure("catchup_deltas_per_s", self.deltas as f64 / took);
        run.figure("load_waited_share", self.waited_share);
        let rate = self.taken.per_second();
        run.series.push(("catchup_deltas_per_s", rate));
        run.series
            .push(("lag_late", self.caught_up.left(self.behind)));
    }
}
