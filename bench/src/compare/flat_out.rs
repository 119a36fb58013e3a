//! Closed loop: producers that have a bounded number of batches under way all the time, so that each
//! system takes as much as it can. Between warm-up and measured time the producers stand still until each receiver has
//! what was acknowledged: a backlog of the warm-up would cost a system time that its figures do not show.

use super::{Look, Options, Row, Turn, issuers, sampler};
use crate::{
    Failure,
    load::{self, Generator},
    measure::{Counters, Latencies},
    systems::{Ack, Came, Kind, Receiver, Sender, System},
    waited::Busy,
};
use hutong_proto::{Issuer, Lane};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};

/// For receivers, when all is acknowledged. Who takes longer has lost something.
const DRAIN_MAX: Duration = Duration::from_secs(300);
/// How often it is looked whether they have it.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What the producers and receivers of a turn share.
#[derive(Debug)]
pub struct Shared {
    people: u64,
    /// One change in a hundred is.
    pub traced: bool,
    batch: u32,
    in_flight: usize,
    warm_until: Instant,
    measured: Duration,
    /// Producers that have done with the warm-up, and nothing under way.
    warm: AtomicUsize,
    /// When the measured time began.
    begun: watch::Sender<Option<Instant>>,
    /// Batches acknowledged since the start.
    acknowledged: AtomicU64,
    /// Becomes true when no more come.
    done: watch::Sender<bool>,
    pub counters: Arc<Counters>,
    producing: Busy,
}

/// Batches that a receiver took, and itself, still connected: what a server's part of it took is known only so long.
type Received = (u64, Box<dyn Receiver>);

impl Shared {
    pub fn new(options: &Options, row: Row, warmup: f64, seconds: f64) -> Shared {
        let (batch, in_flight) = row.shape(options);
        Shared {
            people: options.people,
            traced: false,
            batch,
            in_flight,
            warm_until: Instant::now() + Duration::from_secs_f64(warmup),
            measured: Duration::from_secs_f64(seconds),
            warm: AtomicUsize::new(0),
            begun: watch::Sender::new(None),
            acknowledged: AtomicU64::new(0),
            done: watch::Sender::new(false),
            counters: Arc::default(),
            producing: Busy::default(),
        }
    }

    /// The measured time begins now.
    pub fn begin(&self) -> Instant {
        let now = Instant::now();
        self.begun.send_replace(Some(now));
        now
    }

    /// Waits until nothing of the warm-up is left: it is acknowledged, and all receivers have it.
    async fn warmed(&self, producers: usize) {
        let behind = || self.counters.lag().is_some_and(|(most, _)| most > 0);
        while self.warm.load(Ordering::Acquire) < producers || behind() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

pub async fn turn(options: &Options, row: Row, kind: Kind) -> Result<Turn, Failure> {
    let issuers = issuers(options);
    let system = kind.start(&issuers).await?;
    let mut opened = Vec::new();
    if row == Row::Fanout {
        for issuer in issuers.iter().take(options.receivers) {
            opened.push(system.receiver(*issuer).await?);
        }
    }
    let senders = senders(options, row, &*system, &issuers).await?;
    let shared = Arc::new(Shared {
        traced: system.traces(),
        ..Shared::new(options, row, options.warmup, options.seconds)
    });
    let mut receivers = JoinSet::new();
    let counters = &shared.counters;
    counters.subscribers(opened.len());
    for (i, receiver) in opened.into_iter().enumerate() {
        let receiver = receive(Arc::clone(&shared), i, receiver);
        receivers.spawn(counters.receiving.watch(receiver));
    }
    let mut producers = JoinSet::new();
    for (i, (issuer, sender)) in senders.into_iter().enumerate() {
        let producer = produce(Arc::clone(&shared), issuer, i as u64 + 1, sender);
        producers.spawn(shared.producing.watch(producer));
    }
    let turn = measure(&shared, &*system, producers, receivers).await?;
    system.check()?;
    Ok(turn)
}

pub async fn senders(
    options: &Options,
    row: Row,
    system: &dyn System,
    issuers: &[Issuer],
) -> Result<Vec<(Issuer, Box<dyn Sender>)>, Failure> {
    let (batch, _) = row.shape(options);
    let mut senders = Vec::new();
    for issuer in issuers.iter().take(options.producers) {
        senders.push((*issuer, system.sender(*issuer, Lane::Bulk, batch).await?));
    }
    Ok(senders)
}

async fn measure(
    shared: &Shared,
    system: &dyn System,
    mut producers: JoinSet<Result<Produced, Failure>>,
    mut receivers: JoinSet<Result<Received, Failure>>,
) -> Result<Turn, Failure> {
    warm_up(shared, &mut producers, &mut receivers).await?;
    let warm = shared.acknowledged.load(Ordering::Acquire);
    let before = Look::at(system).await?;
    let receiving = &shared.counters.receiving;
    let (producing, received) = (shared.producing.mark(), receiving.mark());
    let tasks = (producers.len(), receivers.len());
    let mut turn = Turn::default();
    let begin = shared.begin();
    let sampler = sampler(system, &shared.counters, begin);
    // Connections stay until the system's processors were looked at: of a process that has just ended nobody knows.
    let (mut batches, mut connected) = (0, (Vec::new(), Vec::new()));
    while let Some(produced) = producers.join_next().await {
        let produced = produced??;
        turn.ack.add(&produced.ack);
        batches += produced.batches;
        connected.0.push(produced.sender);
    }
    turn.waited_share = shared.producing.waited_share(producing, tasks.0);
    let mut seconds = begin.elapsed().as_secs_f64();
    shared.done.send_replace(true);
    // Who lets its receivers fall behind has not delivered: the time goes on until they have all.
    let mut deliveries = 0;
    let counted = !receivers.is_empty();
    let all = async {
        while let Some(received) = receivers.join_next().await {
            let (batches, receiver) = received??;
            deliveries += batches.saturating_sub(warm);
            connected.1.push(receiver);
        }
        Ok::<(), Failure>(())
    };
    let late = |_| {
        format!(
            "a receiver has not got everything after {} s",
            DRAIN_MAX.as_secs()
        )
    };
    tokio::time::timeout(DRAIN_MAX, all).await.map_err(late)??;
    if counted {
        seconds = begin.elapsed().as_secs_f64();
        turn.receivers_waited_share = Some(receiving.waited_share(received, tasks.1));
    }
    turn.acknowledged = batches * u64::from(shared.batch);
    turn.delivered = deliveries * u64::from(shared.batch);
    turn.deltas_per_s = turn.acknowledged as f64 / seconds;
    turn.deliveries_per_s = turn.delivered as f64 / seconds;
    turn.took(&before, &Look::at(system).await?);
    turn.series = sampler.series();
    drop(connected);
    Ok(turn)
}

/// Until the measured time may begin. Nobody ends before, but who fails.
async fn warm_up(
    shared: &Shared,
    producers: &mut JoinSet<Result<Produced, Failure>>,
    receivers: &mut JoinSet<Result<Received, Failure>>,
) -> Result<(), Failure> {
    let time = shared.warm_until.saturating_duration_since(Instant::now()) + DRAIN_MAX;
    tokio::select! {
        () = shared.warmed(producers.len()) => Ok(()),
        Some(produced) = producers.join_next() => {
            produced??;
            Err("a producer has ended during the warm-up".into())
        }
        Some(received) = receivers.join_next() => {
            received??;
            Err("a receiver has ended during the warm-up".into())
        }
        () = tokio::time::sleep(time) => Err(format!(
            "{} s after the warm-up a receiver has not got all of it, so nothing can be measured; a shorter \
             --warmup leaves less to catch up with",
            DRAIN_MAX.as_secs()
        )
        .into()),
    }
}

pub struct Produced {
    /// Acknowledged of those that were sent in the measured time.
    pub batches: u64,
    ack: Latencies,
    sender: Box<dyn Sender>,
}

/// Publishes through the warm-up and the measured time; counts what was sent in the latter.
pub async fn produce(
    shared: Arc<Shared>,
    issuer: Issuer,
    seed: u64,
    sender: Box<dyn Sender>,
) -> Result<Produced, Failure> {
    let mut producer = Producer {
        generator: Generator::new(issuer, shared.people, seed).traced(shared.traced),
        shared: Arc::clone(&shared),
        sender,
    };
    producer.publish(shared.warm_until, None).await?;
    shared.warm.fetch_add(1, Ordering::AcqRel);
    let mut begun = shared.begun.subscribe();
    let begin = *begun.wait_for(Option::is_some).await?;
    let begin = begin.ok_or("the measured time has not begun")?;
    let (batches, ack) = producer
        .publish(begin + shared.measured, Some(begin))
        .await?;
    Ok(Produced {
        batches,
        ack,
        sender: producer.sender,
    })
}

struct Producer {
    shared: Arc<Shared>,
    generator: Generator,
    sender: Box<dyn Sender>,
}

impl Producer {
    /// Until `end`, and until all is acknowledged. How many batches that were, and their acks by second since `begin`,
    /// if there is one.
    async fn publish(
        &mut self,
        end: Instant,
        begin: Option<Instant>,
    ) -> Result<(u64, Latencies), Failure> {
        let shared = &self.shared;
        let (mut batches, mut acks) = (0, Latencies::default());
        let mut pending: VecDeque<(Instant, Ack)> = VecDeque::new();
        loop {
            let sent_at = Instant::now();
            if sent_at >= end || pending.len() >= shared.in_flight {
                let Some((sent_at, ack)) = pending.pop_front() else {
                    return Ok((batches, acks));
                };
                ack.await?;
                let (counters, deltas) = (&shared.counters, u64::from(shared.batch));
                counters.owed(deltas, None);
                counters.acknowledged.fetch_add(deltas, Ordering::AcqRel);
                shared.acknowledged.fetch_add(1, Ordering::AcqRel);
                batches += 1;
                if let Some(begin) = begin {
                    let second = sent_at.duration_since(begin).as_secs() as usize;
                    acks.record(second, sent_at.elapsed().as_micros() as u64, 1);
                }
                continue;
            }
            let committed_at = load::now();
            let batch = (self.generator).batch(shared.batch, Lane::Bulk, |_| committed_at);
            pending.push_back((sent_at, self.sender.send(batch).await?));
        }
    }
}

/// Takes until everything acknowledged has come. Returns how many batches that were, with those of the warm-up.
async fn receive(
    shared: Arc<Shared>,
    number: usize,
    mut receiver: Box<dyn Receiver>,
) -> Result<Received, Failure> {
    let mut came = Came::default();
    let mut done = shared.done.subscribe();
    loop {
        let ended = *done.borrow();
        if ended && came.batches >= shared.acknowledged.load(Ordering::Acquire) {
            return Ok((came.batches, receiver));
        }
        let had = came.batches;
        tokio::select! {
            received = receiver.receive(&mut came) => {
                received?;
                let deltas = (came.batches - had) * u64::from(shared.batch);
                shared.counters.delivered.fetch_add(deltas, Ordering::AcqRel);
                shared.counters.got(number, deltas);
            }
            changed = done.changed(), if !ended => changed?,
        }
    }
}
