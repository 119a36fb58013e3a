//! Open loop: platforms that publish at a fixed rate, urgent and bulk, and receive what all publish. A
//! delta has a moment at which it is due, fixed before; its latency counts from there until a receiver
//! has it, and until the last one does. Rates are of what was acknowledged, and of what came, in the
//! measured time. A system that does not keep up is given some time after the end; what has not come by
//! then counts with the time since then, which is less than it will have taken.

use super::{Options, Turn, issuers};
use crate::{
    Failure,
    broker::usage_of,
    load::{self, Generator},
    measure::{Everywhere, between, histogram, key_of, place},
    systems::{Ack, Came, Kind, Receiver, Sender},
};
use hdrhistogram::Histogram;
use hutong_proto::{Issuer, Lane, Micros, Revision};
use std::{
    sync::{
        Arc,
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
    everywhere: Everywhere,
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
            everywhere: Everywhere::default(),
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
    let mut receivers = JoinSet::new();
    for receiver in opened {
        receivers.spawn(receive(Arc::clone(&shared), receiver));
    }
    let mut producers = JoinSet::new();
    for (i, (issuer, lane, sender)) in senders.into_iter().enumerate() {
        let source = Source {
            shared: Arc::clone(&shared),
            issuer,
            lane,
            number: i as u32,
        };
        producers.spawn(source.run(sender));
    }
    tokio::time::sleep_until(shared.begin.into()).await;
    let (system_before, load_before) = (system.usage(), usage_of("self"));
    tokio::time::sleep_until(shared.end.into()).await;
    let mut turn = Turn {
        system: between(system_before, system.usage()),
        load_cpu_s: between(load_before, usage_of("self")).cpu_s,
        ..Turn::default()
    };
    while let Some(produced) = producers.join_next().await {
        turn.ack.add(&produced??)?;
    }
    shared.done.send_replace(true);
    while let Some(received) = receivers.join_next().await {
        let (came, missing) = received??;
        for (all, one) in turn.came.iter_mut().zip(&came) {
            all.add(one)?;
        }
        turn.missing += missing;
    }
    shared.everywhere.give_up(load::now().0, shared.begin_us);
    turn.everywhere = shared.everywhere.take(Lane::Urgent).into_all();
    system.check()?;
    turn.acknowledged = shared.acknowledged.load(Ordering::Acquire);
    turn.deltas_per_s = turn.acknowledged as f64 / options.seconds;
    turn.deliveries_per_s = shared.delivered.load(Ordering::Acquire) as f64 / options.seconds;
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
    /// Returns how long acks took.
    async fn run(self, mut sender: Box<dyn Sender>) -> Result<Histogram<u64>, Failure> {
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
        let mut took = histogram();
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
                self.acknowledged(ack??, &mut took);
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
            let sent_at = Instant::now();
            let ack = sender.send(batch).await?;
            acks.spawn(wait_for(ack, sent_at, deltas));
        }
        if sent < all {
            // Nobody ever gets these: known by a key that no batch has.
            let (key, due_us) = (u64::MAX - u64::from(self.number), due_at(sent).0);
            let (everywhere, receivers) = (&self.shared.everywhere, options.receivers);
            everywhere.sent(key, self.lane, due_us, all - sent, receivers);
        }
        while let Some(ack) = acks.join_next().await {
            self.acknowledged(ack??, &mut took);
        }
        Ok(took)
    }

    fn acknowledged(
        &self,
        (sent_at, after, deltas): (Instant, Duration, u32),
        took: &mut Histogram<u64>,
    ) {
        let deltas = u64::from(deltas);
        if (self.shared.begin..self.shared.end).contains(&(sent_at + after)) {
            self.shared.acknowledged.fetch_add(deltas, Ordering::AcqRel);
        }
        if sent_at >= self.shared.begin {
            took.saturating_record_n((after.as_micros() as u64).max(1), deltas);
        }
    }
}

async fn wait_for(
    ack: Ack,
    sent_at: Instant,
    deltas: u32,
) -> Result<(Instant, Duration, u32), Failure> {
    ack.await?;
    Ok((sent_at, sent_at.elapsed(), deltas))
}

/// Takes until everything that was due has come, or it is given up. Returns the latencies by lane, and
/// how many of them are of deltas that did not come.
async fn receive(
    shared: Arc<Shared>,
    mut receiver: Box<dyn Receiver>,
) -> Result<([Histogram<u64>; 2], u64), Failure> {
    let mut came = Came {
        look: true,
        ..Came::default()
    };
    let mut latencies = [histogram(), histogram()];
    let mut got = [0u64; 2];
    let mut done = shared.done.subscribe();
    let due = || {
        let due = shared.due.iter().map(|due| due.load(Ordering::Acquire));
        due.collect::<Vec<u64>>()
    };
    loop {
        let ended = *done.borrow();
        if ended && due() == got {
            return Ok((latencies, 0));
        }
        tokio::select! {
            received = receiver.receive(&mut came) => {
                received?;
                let now = load::now().0;
                for seen in came.seen.drain(..) {
                    let (due, deltas) = (seen.committed_at.0, u64::from(seen.deltas));
                    got[place(seen.lane)] += deltas;
                    shared.everywhere.came(seen.key, now, shared.begin_us);
                    if (shared.begin_us..shared.end_us).contains(&now) {
                        shared.delivered.fetch_add(deltas, Ordering::AcqRel);
                    }
                    if (shared.begin_us..shared.end_us).contains(&due) {
                        let micros = now.saturating_sub(due).max(1);
                        let latencies = &mut latencies[place(seen.lane)];
                        latencies.saturating_record_n(micros, deltas);
                    }
                }
            }
            changed = done.changed(), if !ended => changed?,
            () = tokio::time::sleep_until(shared.give_up.into()) => {
                let so_far = shared.end.elapsed().as_micros() as u64;
                let mut all = 0;
                for ((due, got), latencies) in due().into_iter().zip(got).zip(&mut latencies) {
                    let missing = due.saturating_sub(got);
                    latencies.saturating_record_n(so_far.max(1), missing);
                    all += missing;
                }
                return Ok((latencies, all));
            }
        }
    }
}
