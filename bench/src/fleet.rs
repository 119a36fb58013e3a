//! Open loop: platforms that each publish their share of a rate and subscribe to all others. A delta
//! has a moment at which it is due, fixed before, and its latency counts from there until a receiver
//! has applied it, so a broker that falls behind cannot slow the clock. What is due but not taken yet waits at
//! its source, as in an outbox, and is sent later: nothing is skipped.

mod stalled;

use crate::{
    Failure, allowed,
    broker::BrokerProcess,
    load::{self, Generator},
    measure::{Counters, Latencies, Phase, key_of, place},
    waited::Busy,
};
use clap::Args;
use hutong_connectors::client::{
    Endpoint, Identity, Pending, Publisher, PublisherOptions, Start, Subscriber, SubscriberOptions,
};
use hutong_proto::{Cursor, Issuer, Lane, LogId, Micros, Offset, RecordView, Revision, record};
use serde::Serialize;
use stalled::{Firsts, Stalled};
use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// After the end, a receiver that hears only bookmarks for so long gets nothing more.
const QUIET_FOR: Duration = Duration::from_secs(2);

/// A drain that takes longer is none.
const DRAIN_MAX: Duration = Duration::from_secs(600);

/// Bulk that does not fit waits at its source, where it is counted, and not on the line.
const BULK_IN_FLIGHT_MAX: usize = 4;

/// Receivers have a runtime of their own: in life each has a machine of its own, and what one of them unpacks
/// must not hold up a producer here.
const RECEIVING_THREADS: usize = 2;

#[derive(Debug, Clone, Args, Serialize)]
pub struct FleetOptions {
    /// Platforms: each publishes its share and subscribes to all others.
    #[arg(long, default_value_t = 32, value_parser = allowed::platforms)]
    pub subscribers: usize,
    /// Beside the subscribers, so many that open their stream and take nothing during the whole run.
    #[arg(long, default_value_t = 0, value_parser = allowed::none_or_platforms)]
    pub stalled: usize,
    /// A producer gathers bulk deltas this long.
    #[arg(long, default_value_t = 100, value_parser = allowed::millis())]
    pub bulk_every_ms: u64,
    /// A producer gathers urgent deltas this long.
    #[arg(long, default_value_t = 10, value_parser = allowed::millis())]
    pub urgent_every_ms: u64,
    /// Deltas in a batch at most, when much is waiting; a connector's own bound.
    #[arg(long, default_value_t = 2_000, value_parser = allowed::batch())]
    pub batch_max: u32,
    /// People of each platform: registers that the deltas fall on.
    #[arg(long, default_value_t = 1_000_000, value_parser = allowed::people())]
    pub people: u64,
}

impl FleetOptions {
    /// How many take a delta of one platform, in the mean: nobody gets its own back.
    pub fn receivers_of_one(&self) -> f64 {
        self.subscribers.saturating_sub(1).max(1) as f64
    }
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
    /// Urgent deltas come, and are measured, until all bulk that was due is acknowledged too.
    pub urgent_until_drained: bool,
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
    /// How late deltas were handed over, against the turn in which they were due, urgent and bulk: late is
    /// what the load did not manage, and what the broker did not take.
    pub late: [Latencies; 2],
    /// From when a delta was due until it was acknowledged, urgent and bulk: durable, and its source knows.
    pub acks: [Latencies; 2],
    /// From the end of what was offered until all of it was acknowledged.
    pub drained_in: Duration,
    pub seconds: f64,
    /// Share of the measured time in which producers had nothing to do: nothing was due, or the broker took nothing.
    pub waited_share: f64,
    /// In which subscribers had nothing to take.
    pub receivers_waited_share: f64,
}

/// What all tasks share.
#[derive(Debug)]
struct Shared {
    options: FleetOptions,
    issuers: Vec<Issuer>,
    phases: RwLock<Vec<Arc<Phase>>>,
    /// Accepted, by platform, since the start.
    accepted: Vec<Sum>,
    counters: Arc<Counters>,
    /// Becomes true when everything is acknowledged: receivers then take what is left.
    ended: watch::Sender<bool>,
}

/// A runtime that may be dropped in a task.
#[derive(Debug)]
struct Own(Option<Runtime>);

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    publishers: Vec<[Arc<Publisher>; 2]>,
    receivers: JoinSet<Result<Ended, Failure>>,
    /// Where the broker listens.
    grpc: String,
    receiving: tokio::runtime::Handle,
    _runtime: Own,
}

/// Deltas, counted, and told apart: of each batch the first revision as often as it has deltas, summed up.
#[derive(Debug, Default)]
struct Sum {
    deltas: AtomicU64,
    revisions: AtomicU64,
}

impl Sum {
    fn add(&self, first: u64, deltas: u64) {
        self.deltas.fetch_add(deltas, Ordering::AcqRel);
        // It wraps around, here and at each receiver alike.
        let revisions = first.wrapping_mul(deltas);
        self.revisions.fetch_add(revisions, Ordering::AcqRel);
    }

    fn read(&self) -> (u64, u64) {
        let of = |sum: &AtomicU64| sum.load(Ordering::Acquire);
        (of(&self.deltas), of(&self.revisions))
    }
}

#[derive(Debug)]
struct Received {
    own: usize,
    by_issuer: Vec<Sum>,
    firsts: Firsts,
}

#[derive(Debug)]
enum Ended {
    Received(Received),
    Stalled(Stalled),
}

/// Of all receivers, against what was accepted.
#[derive(Debug, Default)]
pub struct Tally {
    pub lost: u64,
    pub doubled: u64,
    /// Of the subscribers that were to take nothing, the one that is least behind: by how many records. Nothing
    /// where nothing was offered.
    pub stalled_records_behind: Option<u64>,
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
            accepted: issuers.iter().map(|_| Sum::default()).collect(),
            issuers,
            counters,
            ended: watch::Sender::new(false),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(RECEIVING_THREADS)
            .thread_name("receivers")
            .enable_all()
            .build()?;
        shared.counters.subscribers(shared.issuers.len());
        let mut fleet = Fleet {
            shared: Arc::clone(&shared),
            publishers: Vec::new(),
            receivers: JoinSet::new(),
            grpc: broker.grpc.clone(),
            receiving: runtime.handle().clone(),
            _runtime: Own(Some(runtime)),
        };
        for (i, issuer) in shared.issuers.iter().enumerate() {
            let endpoint = Endpoint::new(broker.grpc.clone(), Identity::Platform(*issuer));
            let subscriber = fleet.subscribe(&endpoint, "bench").await?;
            let receiver = receive(Arc::clone(&shared), i, subscriber);
            let receiver = shared.counters.receiving.watch(receiver);
            fleet.receivers.spawn_on(receiver, &fleet.receiving);
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
        for n in 0..options.stalled {
            let platform = Identity::Platform(shared.issuers[n % shared.issuers.len()]);
            let endpoint = Endpoint::new(broker.grpc.clone(), platform);
            let subscriber = fleet.subscribe(&endpoint, &stalled::name(n)).await?;
            let stalled = stalled::stall(Arc::clone(&shared), n, subscriber);
            let stalled = async move { stalled.await.map(Ended::Stalled) };
            fleet.receivers.spawn_on(stalled, &fleet.receiving);
        }
        Ok(fleet)
    }

    /// Connected on the runtime that serves it.
    async fn subscribe(&self, endpoint: &Endpoint, name: &str) -> Result<Subscriber, Failure> {
        let mut subscription = SubscriberOptions::new(endpoint.clone(), name);
        subscription.start = Start::Now;
        let opened = self.receiving.spawn(Subscriber::open(subscription));
        Ok(opened.await??)
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
        let (drained, producing) = (CancellationToken::new(), Busy::default());
        let [urgent, bulk] = self.produce(load, &phase, &drained, &producing);
        let receiving = &self.shared.counters.receiving;
        let mut marks = (producing.mark(), receiving.mark());
        let measured = async {
            tokio::time::sleep_until(phase.begin.into()).await;
            marks = (producing.mark(), receiving.mark());
            tokio::time::sleep_until(end.into()).await;
        };
        tokio::select! {
            () = measured => {}
            () = load.stop.cancelled() => {}
        }
        if !load.urgent_until_drained {
            phase.end();
        }
        let ended = Instant::now();
        let platforms = self.publishers.len();
        let mut driven = Driven {
            seconds: phase.begin.elapsed().as_secs_f64(),
            waited_share: producing.waited_share(marks.0, Lane::DELIVERED.len() * platforms),
            receivers_waited_share: receiving.waited_share(marks.1, platforms),
            ..Driven::default()
        };
        join(bulk, Lane::Bulk, &mut driven).await?;
        driven.drained_in = ended.elapsed();
        phase.end();
        drained.cancel();
        join(urgent, Lane::Urgent, &mut driven).await?;
        Ok((phase, driven))
    }

    /// The producers at work, urgent and bulk.
    fn produce(
        &self,
        load: &Load,
        phase: &Arc<Phase>,
        drained: &CancellationToken,
        busy: &Busy,
    ) -> [JoinSet<Result<Driven, Failure>>; 2] {
        let mut producers = [JoinSet::new(), JoinSet::new()];
        for (i, publishers) in self.publishers.iter().enumerate() {
            for (lane, publisher) in Lane::DELIVERED.into_iter().zip(publishers) {
                let mut producer = Producer {
                    shared: Arc::clone(&self.shared),
                    publisher: Arc::clone(publisher),
                    index: i,
                    lane,
                    phase: Arc::clone(phase),
                    end: phase.begin + load.seconds,
                    load: load.clone(),
                };
                if lane == Lane::Urgent && load.urgent_until_drained {
                    producer.end += DRAIN_MAX;
                    producer.load.stop = drained.clone();
                }
                producers[place(lane)].spawn(busy.watch(producer.run()));
            }
        }
        producers
    }

    /// Waits until every receiver has everything, and compares.
    pub async fn finish(mut self) -> Result<Tally, Failure> {
        let mut tally = Tally::default();
        let stalled = self.shared.options.stalled;
        let phases = self.shared.phases.read().map(|all| all.clone());
        let phases = phases.map_err(|_| "a task panicked")?;
        // Where nothing was offered, nobody can be behind.
        if stalled > 0 && !phases.is_empty() {
            let behind = stalled::behind(&self.grpc, &self.shared.issuers, stalled).await?;
            tally.stalled_records_behind = Some(behind);
        }
        self.shared.ended.send_replace(true);
        let mut firsts = vec![[None; 2]; self.shared.issuers.len()];
        let mut stood_still = Vec::new();
        let all = async {
            while let Some(ended) = self.receivers.join_next().await {
                let received = match ended?? {
                    Ended::Received(received) => received,
                    Ended::Stalled(stalled) => {
                        stood_still.push(stalled);
                        continue;
                    }
                };
                firsts[received.own] = received.firsts;
                for (i, accepted) in self.shared.accepted.iter().enumerate() {
                    let expected = match i == received.own {
                        true => (0, 0),
                        false => accepted.read(),
                    };
                    tally.compare(expected, received.by_issuer[i].read());
                }
            }
            Ok::<(), Failure>(())
        };
        let late = |_| format!("not everything has come within {} s", DRAIN_MAX.as_secs());
        tokio::time::timeout(DRAIN_MAX, all).await.map_err(late)??;
        for stalled in &stood_still {
            stalled.check(firsts[stalled.platform])?;
        }
        phases.iter().for_each(|phase| phase.give_up());
        Ok(tally)
    }
}

impl Tally {
    fn compare(&mut self, expected: (u64, u64), received: (u64, u64)) {
        self.lost += expected.0.saturating_sub(received.0);
        self.doubled += received.0.saturating_sub(expected.0);
        // As many as expected, but not the same: at least one is missing, and another came twice.
        if expected.0 == received.0 && expected.1 != received.1 {
            self.lost += 1;
            self.doubled += 1;
        }
    }
}

async fn join(
    mut producers: JoinSet<Result<Driven, Failure>>,
    lane: Lane,
    driven: &mut Driven,
) -> Result<(), Failure> {
    while let Some(one) = producers.join_next().await {
        let one = one??;
        driven.published += one.published;
        driven.acknowledged += one.acknowledged;
        driven.late[place(lane)].add(&one.late[place(lane)]);
        driven.acks[place(lane)].add(&one.acks[place(lane)]);
        if lane == Lane::Bulk {
            driven.bulk_acknowledged += one.acknowledged;
        }
    }
    Ok(())
}

/// When the deltas of one producer are due, and in which turn they are handed over: in each, all that is
/// due by then.
struct Schedule {
    started: Instant,
    started_us: u64,
    per_s: f64,
    every: Duration,
    turn: Instant,
}

impl Schedule {
    fn new(per_s: f64, every: Duration, share: f64) -> Schedule {
        // Platforms do not tick together.
        let first = every.mul_f64(share);
        let started = Instant::now() + first;
        Schedule {
            started,
            started_us: load::now().0 + first.as_micros() as u64,
            per_s,
            every,
            turn: started,
        }
    }

    fn due_at(&self, n: u64) -> Micros {
        Micros(self.started_us + ((n + 1) as f64 / self.per_s * 1e6) as u64)
    }

    fn due_by(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started);
        (since.as_secs_f64() * self.per_s) as u64
    }

    /// How long ago this one should have been handed over.
    fn late(&self, n: u64) -> Duration {
        let due = (n + 1) as f64 / self.per_s / self.every.as_secs_f64();
        let turn = self.started + self.every.mul_f64(due.ceil());
        Instant::now().saturating_duration_since(turn)
    }

    /// The next turn, or the last one that is over for who was held up.
    async fn next(&mut self) {
        self.turn += self.every;
        let behind = self.turn.elapsed().as_nanos() / self.every.as_nanos().max(1);
        self.turn += self.every * u32::try_from(behind).unwrap_or(u32::MAX);
        tokio::time::sleep_until(self.turn.into()).await;
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
    async fn run(self) -> Result<Driven, Failure> {
        let options = &self.shared.options;
        let (rate, every_ms) = match self.lane {
            Lane::Urgent => (self.load.urgent_per_s, options.urgent_every_ms),
            Lane::Bulk | Lane::Control => (self.load.bulk_per_s, options.bulk_every_ms),
        };
        let platforms = options.subscribers as f64;
        let mut schedule = Schedule::new(
            rate / platforms,
            Duration::from_millis(every_ms),
            self.index as f64 / platforms,
        );
        // Another seed in each phase would only matter to who looks at the people.
        let seed = self.index as u64 * 2 + self.lane as u64;
        let issuer = self.shared.issuers[self.index];
        let mut generator = Generator::new(issuer, options.people, seed);
        let mut driven = Driven::default();
        let mut pending: JoinSet<Result<Acked, Failure>> = JoinSet::new();
        let waiting = &self.shared.counters.waiting;
        let (mut sent, mut counted) = (0, 0);
        loop {
            let ended = Instant::now() >= self.end;
            let over = ended || self.load.stop.is_cancelled();
            if over && self.load.at_end == AtEnd::Leave {
                break;
            }
            let by = match ended {
                true => self.end,
                false => schedule.turn.min(self.end),
            };
            let target = schedule.due_by(by).max(counted);
            waiting.fetch_add(target - counted, Ordering::AcqRel);
            counted = target;
            if sent == target {
                if over {
                    break;
                }
                schedule.next().await;
                continue;
            }
            // As many at once as a batch may have, batch after batch while the broker takes them.
            let deltas = (target - sent).min(u64::from(options.batch_max)) as u32;
            let late = schedule.late(sent);
            let due_us = Some(schedule.due_at(sent).0).filter(|due| self.phase.has(*due));
            if due_us.is_some() {
                driven.published += u64::from(deltas);
                let late = late.as_micros() as u64;
                driven.late[place(self.lane)].record_undrawn(late, u64::from(deltas));
            }
            let receipt = self.publish(&mut generator, &schedule, sent, deltas);
            let (first, receipt) = receipt.await?;
            sent += u64::from(deltas);
            waiting.fetch_sub(u64::from(deltas), Ordering::AcqRel);
            pending.spawn(acknowledged(receipt, first, due_us));
            while let Some(done) = pending.try_join_next() {
                self.tally(&mut driven, done??);
            }
        }
        waiting.fetch_sub(counted - sent, Ordering::AcqRel);
        while let Some(done) = pending.join_next().await {
            self.tally(&mut driven, done??);
        }
        Ok(driven)
    }

    /// Makes the batch of these deltas and hands it over; its first revision, and its receipt.
    async fn publish(
        &self,
        generator: &mut Generator,
        schedule: &Schedule,
        from: u64,
        deltas: u32,
    ) -> Result<(u64, Pending), Failure> {
        let first = generator.next_revision();
        let batch = generator.batch(deltas, self.lane, |i| schedule.due_at(from + u64::from(i)));
        let due_us = schedule.due_at(from).0;
        if self.phase.has(due_us) {
            let receivers = self.shared.options.subscribers - 1;
            let key = key_of(&generator.first_entity(), Revision(first));
            let everywhere = &self.phase.everywhere;
            everywhere.sent(key, self.lane, due_us, u64::from(deltas), receivers);
        }
        Ok((first, self.publisher.publish_encoded(batch).await?))
    }

    fn tally(&self, driven: &mut Driven, acked: Acked) {
        let Acked {
            first,
            accepted,
            took_us,
        } = acked;
        self.shared.accepted[self.index].add(first, accepted);
        let counters = &self.shared.counters;
        counters.acknowledged.fetch_add(accepted, Ordering::AcqRel);
        counters.owed(accepted, Some(self.index));
        if let Some(took_us) = took_us {
            driven.acknowledged += accepted;
            driven.acks[place(self.lane)].record_undrawn(took_us, accepted);
        }
    }
}

struct Acked {
    first: u64,
    accepted: u64,
    /// From when the batch's first delta was due, if that is measured.
    took_us: Option<u64>,
}

async fn acknowledged(receipt: Pending, first: u64, due_us: Option<u64>) -> Result<Acked, Failure> {
    let accepted = u64::from(receipt.await?.accepted);
    Ok(Acked {
        first,
        accepted,
        took_us: due_us.map(|due| load::now().0.saturating_sub(due)),
    })
}

/// Takes deliveries until everything acknowledged has come, or nothing comes any more.
async fn receive(
    shared: Arc<Shared>,
    own: usize,
    mut subscriber: Subscriber,
) -> Result<Ended, Failure> {
    let mut received = Received {
        own,
        by_issuer: shared.issuers.iter().map(|_| Sum::default()).collect(),
        firsts: [None; 2],
    };
    let mut cursor = Cursor::both(LogId(0), Offset::NONE);
    let mut ended = shared.ended.subscribe();
    let (mut quiet_since, mut taken) = (None, Vec::new());
    loop {
        let frame = tokio::select! {
            frame = subscriber.next_frame() => frame?,
            _ = ended.changed() => continue,
        };
        match record::read_delivery(&frame)? {
            Some(records) => {
                quiet_since = None;
                for logged in &records {
                    let bytes = logged.record()?;
                    let record = RecordView::parse(&bytes)?;
                    taken.extend(Taken::of(&shared, &record)?);
                    let lane = record.header.partition.lane;
                    received.firsts[place(lane)].get_or_insert(logged.offset);
                    cursor.set_lane(lane, logged.offset.next());
                }
            }
            // A bookmark: nothing was waiting. What came twice would have come before it.
            None => {
                let mut quiet = || quiet_since.get_or_insert_with(Instant::now).elapsed();
                let all = complete(&shared, &received);
                if *ended.borrow() && (all || quiet() > QUIET_FOR) {
                    break;
                }
            }
        }
        let log_id = subscriber.cursor().log_id;
        subscriber.applied(Cursor { log_id, ..cursor }).await?;
        let now = load::now();
        for taken in taken.drain(..) {
            count(&shared, &taken, now, &received)?;
        }
    }
    Ok(Ended::Received(received))
}

fn complete(shared: &Shared, received: &Received) -> bool {
    shared.accepted.iter().enumerate().all(|(i, accepted)| {
        i == received.own || received.by_issuer[i].read().0 >= accepted.read().0
    })
}

/// A record that a subscriber took.
#[derive(Clone, Copy, Debug)]
struct Taken {
    /// Number of its platform.
    issuer: usize,
    lane: Lane,
    deltas: u64,
    /// The first delta of a record waited longest. A real sink decodes all of them; here one stands for
    /// its record, so that the load does not take the broker's processor.
    first: Revision,
    key: u64,
    due_us: u64,
}

impl Taken {
    /// Nothing where it is of nobody who publishes here.
    fn of(shared: &Shared, record: &RecordView<'_>) -> Result<Option<Taken>, Failure> {
        let from = record.header.partition.issuer;
        let Some(issuer) = shared.issuers.iter().position(|issuer| *issuer == from) else {
            return Ok(None);
        };
        let first = record.delta_parts(0)?;
        Ok(Some(Taken {
            issuer,
            lane: record.header.partition.lane,
            deltas: record.deltas.len() as u64,
            first: first.revision,
            key: key_of(&first.entity, first.revision),
            due_us: first.committed_at.0,
        }))
    }
}

/// Counts a record that was applied, and the latency of its deltas in the phase in which they were due.
fn count(shared: &Shared, taken: &Taken, now: Micros, received: &Received) -> Result<(), Failure> {
    let deltas = taken.deltas;
    let counters = &shared.counters;
    counters.delivered.fetch_add(deltas, Ordering::AcqRel);
    counters.got(received.own, deltas);
    received.by_issuer[taken.issuer].add(taken.first.0, deltas);
    let phases = shared.phases.read().map_err(|_| "a task panicked")?;
    if let Some(phase) = phases.iter().rev().find(|phase| phase.has(taken.due_us)) {
        phase.came(taken.key, taken.lane, taken.due_us, now.0, deltas);
    }
    Ok(())
}
