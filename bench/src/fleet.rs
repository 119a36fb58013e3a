//! Open loop: platforms that each publish their share of a rate and subscribe to all others. A delta
//! has a moment at which it is due, fixed before, and its latency counts from there until a receiver
//! has it, so a broker that falls behind cannot slow the clock. What is due but not taken yet waits at
//! its source, as in an outbox, and is sent later: nothing is skipped.

use crate::{
    Failure,
    broker::BrokerProcess,
    load::{self, Generator},
    measure::{Counters, Latencies, Phase},
};
use clap::Args;
use hutong_connectors::client::{
    Endpoint, Identity, Pending, Publisher, PublisherOptions, Start, Subscriber, SubscriberOptions,
};
use hutong_proto::{Cursor, Issuer, Lane, LogId, Micros, Offset, RecordView, record};
use serde::Serialize;
use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// After the end, a receiver that hears only bookmarks for so long gets nothing more.
const QUIET_FOR: Duration = Duration::from_secs(2);

/// Bulk that does not fit waits at its source, where it is counted, and not on the line.
const BULK_IN_FLIGHT_MAX: usize = 4;

#[derive(Debug, Clone, Args, Serialize)]
pub struct FleetOptions {
    /// Platforms: each publishes its share and subscribes to all others.
    #[arg(long, default_value_t = 32)]
    pub subscribers: usize,
    /// Of the subscribers, how many take nothing during the whole run.
    #[arg(long, default_value_t = 0)]
    pub stalled: usize,
    /// A producer gathers bulk deltas this long.
    #[arg(long, default_value_t = 100)]
    pub bulk_every_ms: u64,
    /// A producer gathers urgent deltas this long.
    #[arg(long, default_value_t = 10)]
    pub urgent_every_ms: u64,
    /// Deltas in a batch at most, when much is waiting; a connector's own bound.
    #[arg(long, default_value_t = 2_000)]
    pub batch_max: u32,
    /// People of each platform: registers that the deltas fall on.
    #[arg(long, default_value_t = 1_000_000)]
    pub people: u64,
}

/// What is offered in one stretch of time.
#[derive(Clone, Debug)]
pub struct Load {
    pub urgent_per_s: f64,
    pub bulk_per_s: f64,
    pub warmup: Duration,
    pub seconds: Duration,
    /// Ends it before its time.
    pub stop: CancellationToken,
    pub at_end: AtEnd,
}

/// What becomes of deltas that were due but could not be sent in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// They are sent, however long that takes.
    Drain,
    /// They are left: only the rate that fits was asked for.
    Leave,
}

/// What was offered and taken in it.
#[derive(Debug, Default)]
pub struct Driven {
    pub published: u64,
    pub acknowledged: u64,
    /// Of those, bulk.
    pub bulk_acknowledged: u64,
    /// How late batches were handed over, against when they were due.
    pub late: Latencies,
    /// From the end of what was offered until all of it was acknowledged.
    pub drained_in: Duration,
    pub seconds: f64,
}

/// What all tasks share.
#[derive(Debug)]
struct Shared {
    options: FleetOptions,
    issuers: Vec<Issuer>,
    phases: RwLock<Vec<Arc<Phase>>>,
    /// Deltas accepted, by platform, since the start.
    accepted: Vec<AtomicU64>,
    counters: Arc<Counters>,
    /// Becomes true when everything is acknowledged: receivers then take what is left.
    ended: watch::Sender<bool>,
}

#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    publishers: Vec<[Arc<Publisher>; 2]>,
    receivers: JoinSet<Result<Option<Received>, Failure>>,
}

#[derive(Debug)]
struct Received {
    own: usize,
    by_issuer: Vec<u64>,
}

/// Of all receivers, against what was accepted.
#[derive(Debug, Default)]
pub struct Tally {
    pub lost: u64,
    pub doubled: u64,
}

impl Fleet {
    pub async fn start(
        options: &FleetOptions,
        broker: &BrokerProcess,
        counters: Arc<Counters>,
    ) -> Result<Fleet, Failure> {
        let issuers = load::issuers(options.subscribers);
        let shared = Arc::new(Shared {
            options: options.clone(),
            phases: RwLock::default(),
            accepted: issuers.iter().map(|_| AtomicU64::new(0)).collect(),
            issuers,
            counters,
            ended: watch::Sender::new(false),
        });
        let mut fleet = Fleet {
            shared: Arc::clone(&shared),
            publishers: Vec::new(),
            receivers: JoinSet::new(),
        };
        let taking = options.subscribers.saturating_sub(options.stalled);
        for (i, issuer) in shared.issuers.iter().enumerate() {
            let endpoint = Endpoint::new(broker.grpc.clone(), Identity::Platform(*issuer));
            let mut subscription = SubscriberOptions::new(endpoint.clone(), "bench");
            subscription.start = Start::Now;
            let subscriber = Subscriber::open(subscription).await?;
            if i < taking {
                fleet
                    .receivers
                    .spawn(receive(Arc::clone(&shared), i, subscriber));
            } else {
                fleet
                    .receivers
                    .spawn(stall(Arc::clone(&shared), subscriber));
            }
            let connect = async |lane: Lane| {
                let mut options = PublisherOptions::new(endpoint.clone(), lane.name());
                if lane == Lane::Bulk {
                    options.batches_in_flight_max = BULK_IN_FLIGHT_MAX;
                }
                Publisher::connect(options).await.map(Arc::new)
            };
            let pair = [connect(Lane::Urgent).await?, connect(Lane::Bulk).await?];
            fleet.publishers.push(pair);
        }
        Ok(fleet)
    }

    /// Offers a load and waits until what was taken of it is acknowledged.
    pub async fn drive(&self, load: &Load) -> Result<(Arc<Phase>, Driven), Failure> {
        let phase = Arc::new(Phase::after(load.warmup));
        let phases = &self.shared.phases;
        phases
            .write()
            .map_err(|_| "a task panicked")?
            .push(Arc::clone(&phase));
        let end = phase.begin + load.seconds;
        let mut producers = JoinSet::new();
        for (i, publishers) in self.publishers.iter().enumerate() {
            for (lane, publisher) in Lane::DELIVERED.into_iter().zip(publishers) {
                let producer = Producer {
                    shared: Arc::clone(&self.shared),
                    publisher: Arc::clone(publisher),
                    index: i,
                    lane,
                    phase: Arc::clone(&phase),
                    end,
                    load: load.clone(),
                };
                producers.spawn(producer.run());
            }
        }
        tokio::select! {
            () = tokio::time::sleep_until(end.into()) => {}
            () = load.stop.cancelled() => {}
        }
        phase.end();
        let ended = Instant::now();
        let mut driven = Driven {
            seconds: phase.begin.elapsed().as_secs_f64(),
            ..Driven::default()
        };
        while let Some(one) = producers.join_next().await {
            let (lane, one) = one??;
            driven.published += one.published;
            driven.acknowledged += one.acknowledged;
            driven.late.add(&one.late);
            if lane == Lane::Bulk {
                driven.bulk_acknowledged += one.acknowledged;
            }
        }
        driven.drained_in = ended.elapsed();
        Ok((phase, driven))
    }

    /// Waits until every receiver has everything, and compares.
    pub async fn finish(mut self) -> Result<Tally, Failure> {
        self.shared.ended.send_replace(true);
        let mut tally = Tally::default();
        while let Some(received) = self.receivers.join_next().await {
            let Some(received) = received?? else { continue };
            for (i, accepted) in self.shared.accepted.iter().enumerate() {
                let expected = match i == received.own {
                    true => 0,
                    false => accepted.load(Ordering::Acquire),
                };
                tally.lost += expected.saturating_sub(received.by_issuer[i]);
                tally.doubled += received.by_issuer[i].saturating_sub(expected);
            }
        }
        Ok(tally)
    }
}

/// One lane of one platform.
struct Producer {
    shared: Arc<Shared>,
    publisher: Arc<Publisher>,
    index: usize,
    lane: Lane,
    phase: Arc<Phase>,
    end: Instant,
    load: Load,
}

impl Producer {
    async fn run(self) -> Result<(Lane, Driven), Failure> {
        let options = &self.shared.options;
        let (rate, every_ms) = match self.lane {
            Lane::Urgent => (self.load.urgent_per_s, options.urgent_every_ms),
            Lane::Bulk | Lane::Control => (self.load.bulk_per_s, options.bulk_every_ms),
        };
        let rate = rate / options.subscribers as f64;
        let every = Duration::from_millis(every_ms);
        let issuer = self.shared.issuers[self.index];
        // Another seed in each phase would only matter to who looks at the people.
        let seed = self.index as u64 * 2 + self.lane as u64;
        let mut generator = Generator::new(issuer, options.people, seed);
        let mut driven = Driven::default();
        let mut pending: JoinSet<Result<(u32, bool), Failure>> = JoinSet::new();
        // Platforms do not tick together.
        let begin = Instant::now();
        let started = begin + every * self.index as u32 / options.subscribers as u32;
        let started_us = load::now().0 + (started - begin).as_micros() as u64;
        let at = |n: u64| Micros(started_us + ((n + 1) as f64 / rate * 1e6) as u64);
        let counters = &self.shared.counters;
        let (mut due, mut sent, mut counted) = (started, 0u64, 0u64);
        loop {
            due += every;
            let left = self.load.at_end == AtEnd::Leave && Instant::now() >= self.end;
            let over = due >= self.end || left || self.load.stop.is_cancelled();
            if !over {
                tokio::time::sleep_until(due.into()).await;
                // Who was held up sends all that is due by now, not one tick's share.
                let behind = due.elapsed().as_nanos() / every.as_nanos().max(1);
                due += every * u32::try_from(behind).unwrap_or(u32::MAX);
            }
            let target = ((due.min(self.end) - started).as_secs_f64() * rate) as u64;
            counters
                .waiting
                .fetch_add(target.saturating_sub(counted), Ordering::AcqRel);
            counted = counted.max(target);
            // As many at once as a batch may have; the rest waits for the next turn.
            let deltas = (target - sent).min(u64::from(options.batch_max)) as u32;
            if over && (deltas == 0 || self.load.at_end == AtEnd::Leave) {
                break;
            }
            if over {
                // What is left is not due later than the end.
                due -= every;
            }
            if deltas == 0 {
                continue;
            }
            let first = sent;
            let batch = generator.batch(deltas, self.lane, |i| at(first + u64::from(i)));
            sent += u64::from(deltas);
            let measured = due >= self.phase.begin;
            if measured {
                driven.published += u64::from(deltas);
                let second = due.duration_since(self.phase.begin).as_secs() as usize;
                let late = due.elapsed().as_micros() as u64;
                driven.late.record(second, late, 1);
            }
            let receipt = self.publisher.publish_encoded(batch).await?;
            counters
                .waiting
                .fetch_sub(u64::from(deltas), Ordering::AcqRel);
            pending.spawn(acknowledged(receipt, measured));
            while let Some(done) = pending.try_join_next() {
                self.tally(&mut driven, done??);
            }
        }
        counters.waiting.fetch_sub(counted - sent, Ordering::AcqRel);
        while let Some(done) = pending.join_next().await {
            self.tally(&mut driven, done??);
        }
        Ok((self.lane, driven))
    }

    fn tally(&self, driven: &mut Driven, (accepted, measured): (u32, bool)) {
        let accepted = u64::from(accepted);
        self.shared.accepted[self.index].fetch_add(accepted, Ordering::AcqRel);
        self.shared
            .counters
            .acknowledged
            .fetch_add(accepted, Ordering::AcqRel);
        if measured {
            driven.acknowledged += accepted;
        }
    }
}

async fn acknowledged(receipt: Pending, measured: bool) -> Result<(u32, bool), Failure> {
    Ok((receipt.await?.accepted, measured))
}

/// Takes deliveries until everything acknowledged has come, or nothing comes any more.
async fn receive(
    shared: Arc<Shared>,
    own: usize,
    mut subscriber: Subscriber,
) -> Result<Option<Received>, Failure> {
    let mut received = Received {
        own,
        by_issuer: vec![0; shared.issuers.len()],
    };
    let mut cursor = Cursor::both(LogId(0), Offset::NONE);
    let mut ended = shared.ended.subscribe();
    let mut quiet_since = None;
    loop {
        let frame = tokio::select! {
            frame = subscriber.next_frame() => frame?,
            _ = ended.changed() => continue,
        };
        match record::read_delivery(&frame)? {
            Some(records) => {
                quiet_since = None;
                let now = load::now();
                for logged in &records {
                    let bytes = logged.record()?;
                    let record = RecordView::parse(&bytes)?;
                    count(&shared, &record, now, &mut received)?;
                    cursor.set_lane(record.header.partition.lane, logged.offset.next());
                }
            }
            // A bookmark: nothing was waiting.
            None => {
                let mut quiet = || quiet_since.get_or_insert_with(Instant::now).elapsed();
                if *ended.borrow() && quiet() > QUIET_FOR {
                    break;
                }
            }
        }
        let log_id = subscriber.cursor().log_id;
        subscriber.applied(Cursor { log_id, ..cursor }).await?;
        if *ended.borrow() && complete(&shared, &received) {
            break;
        }
    }
    Ok(Some(received))
}

fn complete(shared: &Shared, received: &Received) -> bool {
    shared.accepted.iter().enumerate().all(|(i, accepted)| {
        i == received.own || received.by_issuer[i] >= accepted.load(Ordering::Acquire)
    })
}

/// Counts a record, and the latency of its deltas in the phase in which they were due.
fn count(
    shared: &Shared,
    record: &RecordView<'_>,
    now: Micros,
    received: &mut Received,
) -> Result<(), Failure> {
    let deltas = record.deltas.len() as u64;
    let issuer = record.header.partition.issuer;
    let Some(i) = shared.issuers.iter().position(|own| *own == issuer) else {
        return Ok(());
    };
    received.by_issuer[i] += deltas;
    shared
        .counters
        .delivered
        .fetch_add(deltas, Ordering::AcqRel);
    // The first delta of a record waited longest. A real sink decodes all of them; here one stands for
    // its record, so that the load does not take the broker's processor.
    let due = record.delta_parts(0)?.committed_at.0;
    let phases = shared.phases.read().map_err(|_| "a task panicked")?;
    if let Some(phase) = phases.iter().rev().find(|phase| phase.has(due)) {
        phase.came(record.header.partition.lane, due, now.0, deltas);
    }
    Ok(())
}

/// Opens the stream and takes nothing.
async fn stall(shared: Arc<Shared>, subscriber: Subscriber) -> Result<Option<Received>, Failure> {
    let mut ended = shared.ended.subscribe();
    ended.wait_for(|ended| *ended).await?;
    drop(subscriber);
    Ok(None)
}
