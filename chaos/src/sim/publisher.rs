//! A platform that publishes: what it has to say is safe with it, and is said again until it is settled.

use crate::{
    random::Random,
    sim::{
        executor::{Process, Spawner},
        judge::BAD_EVIDENCE,
        net::Net,
        world::{EPOCH_US, World},
    },
};
use hutong_planted_connectors::client::{
    Backoff, ClientError, Dialer, Endpoint, Identity, Pending, Publisher, PublisherOptions, Receipt,
};
use hutong_proto::{
    Delta, EntityId, Epoch, Issuer, Micros, Provenance, Reason, Revision, Value,
    delta::{Colour, TestOutcome},
    limits,
};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::sync::Notify;

/// Registers of one platform: few, so that they are written again and again.
const PEOPLE: u64 = 6;

/// The tables of a platform's own system.
#[derive(Debug)]
struct Source {
    deltas: Vec<Arc<Delta>>,
    /// When each came to be, since the simulation began.
    made_us: Vec<u64>,
    settled: BTreeSet<usize>,
    life: u64,
    /// How far the platform's own clock is off.
    skew_us: i64,
    random: Random,
}

/// A platform; it outlives its processes.
#[derive(Clone, Debug)]
pub struct Producer {
    world: World,
    spawner: Spawner,
    net: Net,
    issuer: Issuer,
    source: Arc<Mutex<Source>>,
    more: Arc<Notify>,
    running: Arc<Mutex<Option<Process>>>,
}

impl Producer {
    pub fn new(
        world: &World,
        spawner: &Spawner,
        net: &Net,
        issuer: Issuer,
        random: Random,
    ) -> Producer {
        Producer {
            world: world.clone(),
            spawner: spawner.clone(),
            net: net.clone(),
            issuer,
            source: Arc::new(Mutex::new(Source {
                deltas: Vec::new(),
                made_us: Vec::new(),
                settled: BTreeSet::new(),
                life: 0,
                skew_us: 0,
                random,
            })),
            more: Arc::default(),
            running: Arc::default(),
        }
    }

    /// So many rows change.
    pub fn change(&self, count: u64) {
        let mut source = self.source.lock();
        for _ in 0..count {
            let number = source.deltas.len() as u64 + 1;
            let made_us = self.world.elapsed_us();
            let now = Micros((EPOCH_US + made_us).saturating_add_signed(source.skew_us));
            let delta = self.delta(number, now, &mut source.random);
            source.deltas.push(Arc::new(delta));
            source.made_us.push(made_us);
        }
        drop(source);
        self.more.notify_one();
    }

    /// The clock by which its rows are committed goes wrong.
    pub fn skew(&self, seconds: i64) {
        self.source.lock().skew_us = seconds * 1_000_000;
    }

    fn delta(&self, number: u64, committed_at: Micros, random: &mut Random) -> Delta {
        let provenance = Provenance {
            authority: format!("CDC {}", self.issuer),
            rule_id: "R-1".to_owned(),
            rule_version: random.between(1, 3) as u32,
            reason: "contact".to_owned(),
        };
        let mut delta = Delta {
            entity: entity(self.issuer, random.below(PEOPLE)),
            revision: Revision(number),
            committed_at,
            expires_at: Micros::ZERO,
            evidence: "e".repeat(evidence_bytes(random)),
            provenance: Arc::new(provenance),
            value: value(random, committed_at),
        };
        match random.below(24) {
            // An old one that was found again: it must change nothing.
            0 => delta.revision = Revision(random.between(1, number)),
            // One that nobody may let in.
            1 => {
                delta.expires_at = Micros(committed_at.0 - 1);
                BAD_EVIDENCE.clone_into(&mut delta.evidence);
            }
            // Of a person whom nobody mentions again.
            2 | 3 => {
                delta.entity = entity(self.issuer, 1000 + number);
                delta.expires_at = Micros(committed_at.0 + random.between(1, 100_000_000));
            }
            _ => {}
        }
        delta
    }

    /// Everything that it had to say was settled.
    pub fn is_done(&self) -> bool {
        let source = self.source.lock();
        source.settled.len() == source.deltas.len()
    }

    pub fn settled(&self) -> (usize, usize) {
        let source = self.source.lock();
        (source.settled.len(), source.deltas.len())
    }

    /// A process begins; an older one dies first, or is left to find out.
    pub fn start(&self, kill_first: bool) {
        let process = self.spawner.process();
        let before = self.running.lock().replace(process);
        let life = {
            let mut source = self.source.lock();
            source.life += 1;
            source.life
        };
        self.world
            .trace(|| format!("producer {} starts, epoch {life}", self.issuer));
        if let Some(before) = before {
            let spawner = self.spawner.clone();
            match kill_first {
                true => spawner.kill(before),
                false => self.spawner.spawn(process, async move {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    spawner.kill(before);
                }),
            }
        }
        let random = self.source.lock().random.fork();
        let producer = self.clone();
        self.spawner.spawn(process, async move {
            let ended = producer.clone().run(process, life, random).await;
            producer.ended(life, &ended);
        });
    }

    fn ended(&self, life: u64, error: &ClientError) {
        let current = self.source.lock().life;
        self.world
            .trace(|| format!("producer {} of epoch {life} ends: {error}", self.issuer));
        let fenced = matches!(
            error.reason(),
            Some(Reason::ProducerFenced | Reason::SessionTakenOver)
        );
        if life == current || !fenced {
            let what = format!("producer {} gives up: {error}", self.issuer);
            // It knows best what was promised to it.
            let invariant = match error {
                ClientError::Forgotten { .. } => "INV-1",
                _ => "INV-6",
            };
            self.world.violated(invariant, what);
        }
    }

    async fn run(self, process: Process, life: u64, mut random: Random) -> ClientError {
        let endpoint = Endpoint::new("http://broker", Identity::Platform(self.issuer));
        let options = PublisherOptions {
            epoch: Some(Epoch(life)),
            batches_in_flight_max: random.between(1, 12) as usize,
            backoff: Backoff {
                first: Duration::from_millis(20),
                max: Duration::from_secs(2),
                jitter_seed: Some(random.draw()),
            },
            dialer: Dialer(Arc::new(self.net.clone())),
            ..PublisherOptions::new(endpoint, "source")
        };
        let (mut publisher, task) = match Publisher::start(options) {
            Ok(started) => started,
            Err(error) => return error,
        };
        self.spawner.spawn(process, task);
        if let Err(error) = publisher.opened().await {
            return error;
        }
        // What an earlier process had not settled goes again, in other batches.
        let mut next = 0;
        loop {
            let batch = self.batch(&mut next, &mut random);
            if batch.is_empty() {
                // Not only told: an older process that still runs may have taken the news.
                let told = tokio::time::timeout(Duration::from_millis(500), self.more.notified());
                told.await.ok();
                continue;
            }
            let deltas = batch.iter().map(|(_, delta)| (**delta).clone()).collect();
            match publisher.publish(deltas).await {
                Ok(pending) => {
                    let producer = self.clone();
                    self.spawner.spawn(process, producer.settle(batch, pending));
                }
                Err(error) => return publisher.ended().unwrap_or(error),
            }
            if random.one_in(3) {
                tokio::time::sleep(Duration::from_millis(random.between(0, 200))).await;
            }
        }
    }

    fn batch(&self, next: &mut usize, random: &mut Random) -> Vec<(usize, Arc<Delta>)> {
        let source = self.source.lock();
        let max = random.between(1, 8) as usize;
        let mut batch = Vec::new();
        while batch.len() < max && *next < source.deltas.len() {
            if !source.settled.contains(next) {
                batch.push((*next, Arc::clone(&source.deltas[*next])));
            }
            *next += 1;
        }
        batch
    }

    async fn settle(self, batch: Vec<(usize, Arc<Delta>)>, pending: Pending) {
        // The process goes with its publisher; another one says it again.
        let Ok(receipt) = pending.await else { return };
        self.world.trace(|| {
            let Receipt {
                sequence,
                accepted,
                duplicate,
                ..
            } = &receipt;
            format!(
                "ack {} {sequence}: {accepted} accepted, again {duplicate}",
                self.issuer
            )
        });
        if let Some(error) = &receipt.error {
            let what = format!("a batch of {} was refused: {error}", self.issuer);
            return self.world.violated("INV-1", what);
        }
        for (index, (number, delta)) in batch.iter().enumerate() {
            self.settle_one(&receipt, index as u32, *number, delta);
        }
    }

    fn settle_one(&self, receipt: &Receipt, index: u32, number: usize, delta: &Delta) {
        let refused = receipt
            .refused
            .iter()
            .find(|refused| refused.index == index);
        let bad = delta.evidence == BAD_EVIDENCE;
        let made_us = self.source.lock().made_us[number];
        let (earliest, latest) = self.world.broker_clock_since(made_us);
        let ahead_of = |now: Micros| delta.committed_at.0 > now.0 + limits::FUTURE_US_MAX;
        match refused.map(|refused| refused.info.reason_known) {
            Some(Some(Reason::ExpiryBeforeCommit)) if bad => {}
            // By the broker's clock its producer's is too far ahead.
            Some(Some(Reason::TimeInFuture)) if ahead_of(earliest) => {}
            None if ahead_of(latest) && !receipt.duplicate => {
                let what = "a delta of a time to come was acknowledged";
                self.world.violated("INV-2", what);
            }
            None if receipt.duplicate && ahead_of(earliest) => {}
            // What was durable before: what was refused of it is not known any more.
            None if bad && receipt.duplicate => {}
            None if bad => {
                let what = "a delta that had to be refused was acknowledged";
                self.world.violated("INV-2", what);
            }
            None | Some(Some(Reason::RevisionNotNewer)) => {
                self.world.judge(|judge| judge.acked(self.issuer, delta));
            }
            Some(reason) => {
                let what = format!("a delta of {} was refused: {reason:?}", self.issuer);
                self.world.violated("INV-1", what);
            }
        }
        self.source.lock().settled.insert(number);
    }
}

fn entity(issuer: Issuer, number: u64) -> EntityId {
    let mut id = [1; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    id[8..12].copy_from_slice(&issuer.code().to_be_bytes());
    EntityId(id)
}

/// Mostly short; now and then as long as may be, so that little credit is soon used up.
fn evidence_bytes(random: &mut Random) -> usize {
    match random.below(8) {
        0 => random.between(0, limits::EVIDENCE_BYTES_MAX as u64) as usize,
        _ => random.below(30) as usize,
    }
}

fn value(random: &mut Random, at: Micros) -> Value {
    match random.below(4) {
        0 | 1 => Value::HealthCode(*random.pick(Colour::ALL)),
        2 => Value::TestResult {
            outcome: *random.pick(TestOutcome::ALL),
            sampled_at: at,
        },
        _ => Value::Vaccination {
            doses: random.between(1, 4) as u32,
            product: "A".repeat(random.below(20) as usize),
            vaccinated_at: at,
        },
    }
}
