//! Open loop: platforms that publish at a fixed rate, urgent and bulk, and receive what all publish. A
//! delta has a moment at which it is due, fixed before; its latency counts from there until a receiver
//! has it, and until the last one does. Rates are of what was acknowledged, and of what came, in the
//! measured time. A system that does not keep up is given some time after the end; what has not come by
//! then counts with the time since then, which is less than it will have taken.

use super::{Look, Options, Turn, issuers, sampler};
use crate::{
    Failure,
    load::{self, Generator},
    measure::{Counters, Everywhere, Latencies, key_of, lock, place},
    systems::{Ack, Came, Kind, Receiver, Sender, System},
    waited::Busy,
};
use hutong_proto::{Issuer, Lane, Micros, Revision};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};

/// How long deltas are gathered at their source, urgent and bulk.
const GATHER: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(100)];
/// Batches under way at each source; what is due while so many are waits there and goes together.
const IN_FLIGHT_MAX: usize = 8;
/// A connector's own bound.
const BATCH_MAX: u64 = 2_000;
/// After the end, for who is behind; or the measured time again, if that is shorter.
const GRACE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Shared {
    options: Options,
    traced: bool,
    begin: Instant,
    begin_us: u64,
    end: Instant,
    end_us: u64,
    give_up: Instant,
    /// Deltas that are due until the end, warm-up and all, by lane.
    due: [AtomicU64; 2],
    /// In the measured time.
    acknowledged: AtomicU64,
    delivered: AtomicU64,
    ack: Mutex<Latencies>,
    /// From when deltas were due until they came, by lane.
    came: [Mutex<Latencies>; 2],
    everywhere: Everywhere,
    counters: Arc<Counters>,
    producing: Busy,
    /// Becomes true when all of them were sent, or never will be.
    done: watch::Sender<bool>,
}

impl Shared {
    fn new(options: &Options) -> Shared {
        let warmup = Duration::from_secs_f64(options.warmup);
        let seconds = Duration::from_secs_f64(options.seconds);
        let begin = Instant::now() + warmup;
        let begin_us = load::now().0 + warmup.as_micros() as u64;
        Shared {
            options: options.clone(),
            traced: false,
            begin,
            begin_us,
            end: begin + seconds,
            end_us: begin_us + seconds.as_micros() as u64,
            give_up: begin + seconds + GRACE.min(seconds),
            due: Default::default(),
            acknowledged: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            ack: Mutex::default(),
            came: Default::default(),
            everywhere: Everywhere::default(),
            counters: Arc::default(),
            producing: Busy::default(),
            done: watch::Sender::new(false),
        }
    }
}

pub async fn turn(options: &Options, kind: Kind) -> Result<Turn, Failure> {
    let issuers = &issuers(options)[..options.receivers];
    let system = kind.start(issuers).await?;
    let (mut opened, mut senders) = (Vec::new(), Vec::new());
    for issuer in issuers {
        opened.push(system.receiver(*issuer).await?);
        for lane in Lane::DELIVERED {
            senders.push((
                *issuer,
                lane,
                system.sender(*issuer, lane, options.batch).await?,
            ));
        }
    }
    let shared = Arc::new(Shared {
        traced: system.traces(),
        ..Shared::new(options)
    });
    let counters = &shared.counters;
    counters.subscribers(opened.len());
    let sampler = sampler(&*system, counters, shared.begin);
    let mut receivers = JoinSet::new();
    for (i, receiver) in opened.into_iter().enumerate() {
        let receiver = receive(Arc::clone(&shared), i, receiver);
        receivers.spawn(counters.receiving.watch(receiver));
    }
    let mut producers = JoinSet::new();
    for (i, (issuer, lane, sender)) in senders.into_iter().enumerate() {
        let source = Source {
            shared: Arc::clone(&shared),
            issuer,
            lane,
            number: i as u32,
        };
        producers.spawn(shared.producing.watch(source.run(sender)));
    }
    let tasks = (producers.len(), receivers.len());
    let mut turn = measured(&shared, &*system, tasks).await?;
    while let Some(produced) = producers.join_next().await {
        produced??;
    }
    shared.done.send_replace(true);
    while let Some(missing) = receivers.join_next().await {
        turn.missing += missing??;
    }
    shared.everywhere.give_up(load::now().0, shared.begin_us);
    turn.ack = std::mem::take(&mut *lock(&shared.ack));
    turn.came = [0, 1].map(|lane: usize| std::mem::take(&mut *lock(&shared.came[lane])));
    turn.everywhere = shared.everywhere.take(Lane::Urgent);
    turn.series = sampler.series();
    system.check()?;
    turn.acknowledged = shared.acknowledged.load(Ordering::Acquire);
    turn.delivered = shared.delivered.load(Ordering::Acquire);
    turn.deltas_per_s = turn.acknowledged as f64 / options.seconds;
    turn.deliveries_per_s = turn.delivered as f64 / options.seconds;
    Ok(turn)
}

/// Waits for the end of the measured time. `tasks`: producers and receivers.
async fn measured(
    shared: &Shared,
    system: &dyn System,
    tasks: (usize, usize),
) -> Result<Turn, Failure> {
    let receiving = &shared.counters.receiving;
    tokio::time::sleep_until(shared.begin.into()).await;
    let before = Look::at(system).await?;
    let marks = (shared.producing.mark(), receiving.mark());
    tokio::time::sleep_until(shared.end.into()).await;
    let mut turn = Turn {
        waited_share: shared.producing.waited_share(marks.0, tasks.0),
        receivers_waited_share: Some(receiving.waited_share(marks.1, tasks.1)),
        ..Turn::default()
    };
    turn.took(&before, &Look::at(system).await?);
    Ok(turn)
}

/// One lane of one platform.
struct Source {
    shared: Arc<Shared>,
    issuer: Issuer,
    lane: Lane,
    number: u32,
}

impl Source {
    async fn run(self, mut sender: Box<dyn Sender>) -> Result<(), Failure> {
        let options = &self.shared.options;
        let share = match self.lane {
            Lane::Urgent => options.urgent,
            Lane::Bulk | Lane::Control => 1.0 - options.urgent,
        };
        let rate = options.rate as f64 * share / options.receivers as f64;
        let every = GATHER[place(self.lane)];
        let generator = Generator::new(self.issuer, options.people, u64::from(self.number));
        let mut generator = generator.traced(self.shared.traced);
        let mut acks = JoinSet::new();
        // Platforms do not tick together.
        let sources = 2 * options.receivers as u32;
        let first = every * self.number / sources;
        let (started, started_us) = (
            Instant::now() + first,
            load::now().0 + first.as_micros() as u64,
        );
        let due_at = |n: u64| Micros(started_us + ((n + 1) as f64 / rate * 1e6) as u64);
        // How many are due by a moment; none after the end.
        let due_by = |at: Instant| {
            let at = at.min(self.shared.end);
            (at.saturating_duration_since(started).as_secs_f64() * rate) as u64
        };
        let all = due_by(self.shared.end);
        self.shared.due[place(self.lane)].fetch_add(all, Ordering::AcqRel);
        let (mut tick, mut sent) = (started, 0);
        while sent < all && Instant::now() < self.shared.give_up {
            tick = (tick + every).max(Instant::now());
            tokio::time::sleep_until(tick.into()).await;
            while let Some(ack) = acks.try_join_next() {
                self.acknowledged(ack??);
            }
            let deltas = (due_by(tick) - sent).min(BATCH_MAX) as u32;
            if deltas == 0 || acks.len() >= IN_FLIGHT_MAX {
                continue;
            }
            let (from, first) = (sent, generator.next_revision());
            let batch = generator.batch(deltas, self.lane, |i| due_at(from + u64::from(i)));
            sent += u64::from(deltas);
            let due_us = due_at(from).0;
            if (self.shared.begin_us..self.shared.end_us).contains(&due_us) {
                let key = key_of(&generator.first_entity(), Revision(first));
                let (everywhere, receivers) = (&self.shared.everywhere, options.receivers);
                everywhere.sent(key, self.lane, due_us, u64::from(deltas), receivers);
            }
            let ack = sender.send(batch).await?;
            acks.spawn(wait_for(ack, due_us, deltas));
        }
        if sent < all {
            // Nobody ever gets these: known by a key that no batch has.
            let (key, due_us) = (u64::MAX - u64::from(self.number), due_at(sent).0);
            let (everywhere, receivers) = (&self.shared.everywhere, options.receivers);
            everywhere.sent(key, self.lane, due_us, all - sent, receivers);
        }
        while let Some(ack) = acks.join_next().await {
            self.acknowledged(ack??);
        }
        Ok(())
    }

    fn acknowledged(&self, acked: Acked) {
        let Acked {
            due_us,
            at_us,
            deltas,
        } = acked;
        let measured = self.shared.begin_us..self.shared.end_us;
        let deltas = u64::from(deltas);
        let counters = &self.shared.counters;
        counters.acknowledged.fetch_add(deltas, Ordering::AcqRel);
        counters.owed(deltas, None);
        if measured.contains(&at_us) {
            self.shared.acknowledged.fetch_add(deltas, Ordering::AcqRel);
        }
        if measured.contains(&due_us) {
            let second = (due_us - measured.start) / 1_000_000;
            let took_us = at_us.saturating_sub(due_us);
            lock(&self.shared.ack).record(second as usize, took_us, deltas);
        }
    }
}

struct Acked {
    /// When its first delta was: a system that takes nothing for a while must not look fast to who waits outside.
    due_us: u64,
    at_us: u64,
    deltas: u32,
}

async fn wait_for(ack: Ack, due_us: u64, deltas: u32) -> Result<Acked, Failure> {
    ack.await?;
    Ok(Acked {
        due_us,
        at_us: load::now().0,
        deltas,
    })
}

/// Takes until everything that was due has come, or it is given up. Returns how many deltas did not come.
async fn receive(
    shared: Arc<Shared>,
    number: usize,
    mut receiver: Box<dyn Receiver>,
) -> Result<u64, Failure> {
    let mut came = Came {
        look: true,
        ..Came::default()
    };
    let mut got = [0u64; 2];
    let mut done = shared.done.subscribe();
    let due = || {
        let due = shared.due.iter().map(|due| due.load(Ordering::Acquire));
        due.collect::<Vec<u64>>()
    };
    loop {
        let ended = *done.borrow();
        if ended && due() == got {
            return Ok(0);
        }
        tokio::select! {
            received = receiver.receive(&mut came) => {
                received?;
                let now = load::now().0;
                for seen in came.seen.drain(..) {
                    let (due, deltas) = (seen.committed_at.0, u64::from(seen.deltas));
                    got[place(seen.lane)] += deltas;
                    shared.counters.delivered.fetch_add(deltas, Ordering::AcqRel);
                    shared.counters.got(number, deltas);
                    shared.everywhere.came(seen.key, now, shared.begin_us);
                    if (shared.begin_us..shared.end_us).contains(&now) {
                        shared.delivered.fetch_add(deltas, Ordering::AcqRel);
                    }
                    if (shared.begin_us..shared.end_us).contains(&due) {
                        let second = (due - shared.begin_us) / 1_000_000;
                        let mut latencies = lock(&shared.came[place(seen.lane)]);
                        latencies.record(second as usize, now.saturating_sub(due), deltas);
                    }
                }
            }
            changed = done.changed(), if !ended => changed?,
            () = tokio::time::sleep_until(shared.give_up.into()) => {
                let so_far = shared.end.elapsed().as_micros() as u64;
                let mut all = 0;
                for ((due, got), latencies) in due().into_iter().zip(got).zip(&shared.came) {
                    let missing = due.saturating_sub(got);
                    lock(latencies).record_undrawn(so_far, missing);
                    all += missing;
                }
                return Ok(all);
            }
        }
    }
}
