//! Platforms: one that publishes, and those that apply what it publishes, or do not.

use super::{ANHUI, Broker};
use hutong_connectors::client::{
    Endpoint, Event, Identity, Publisher, PublisherOptions, Start, Subscriber, SubscriberOptions,
};
use hutong_proto::{
    Cursor, EntityId, Issuer, LogId, Micros, Offset, Provenance, Revision, Value,
    api::stream::publish_service_client::PublishServiceClient,
    delta::{Colour, Delta, TestOutcome},
    frame::Frame,
    metadata,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::watch, task::JoinHandle};
use tonic::{Request, transport::Channel};

/// How often the publisher says something of its own accord.
const EVERY: Duration = Duration::from_millis(200);
const FLOOD_A_BATCH: usize = 2_000;

pub fn now() -> Micros {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    Micros(since.as_micros() as u64)
}

pub fn endpoint(broker: &Broker, code: u32) -> Endpoint {
    let issuer = Issuer::new(code).expect("a code");
    Endpoint::new(broker.address(), Identity::Platform(issuer))
}

/// Publishes now and then until it is told to be silent.
pub struct Source {
    publisher: Publisher,
    revision: Arc<AtomicU64>,
    silent: watch::Sender<bool>,
    talking: JoinHandle<()>,
}

impl Source {
    pub async fn start(broker: &Broker) -> Source {
        Source::start_as(broker, ANHUI).await
    }

    pub async fn start_as(broker: &Broker, code: u32) -> Source {
        let options = PublisherOptions::new(endpoint(broker, code), "source");
        let publisher = Publisher::connect(options).await.expect("connected");
        let (silent, mut told) = watch::channel(false);
        // Above those of a source that was there before.
        let revision = Arc::new(AtomicU64::new(now().0));
        let talking = tokio::spawn({
            let (publisher, revision) = (publisher.clone(), Arc::clone(&revision));
            async move {
                loop {
                    if told.wait_for(|silent| !silent).await.is_err() {
                        return;
                    }
                    let delta = green(&revision);
                    // The broker may be gone at the end of a test.
                    let Ok(sent) = publisher.publish(vec![delta]).await else {
                        return;
                    };
                    drop(sent.await);
                    tokio::time::sleep(EVERY).await;
                }
            }
        });
        Source {
            publisher,
            revision,
            silent,
            talking,
        }
    }

    pub fn be_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    pub async fn publish(&self, count: u64, colour: Colour) {
        let deltas = (0..count).map(|n| self.delta(n, colour)).collect();
        let receipt = self.publisher.publish(deltas).await.expect("taken").await;
        let receipt = receipt.expect("acknowledged");
        assert_eq!(u64::from(receipt.accepted), count, "{receipt:?}");
    }

    /// Negative test results, each of another entity, until this is dropped.
    pub fn flood(&self) -> Flood {
        let (publisher, revision) = (self.publisher.clone(), Arc::clone(&self.revision));
        Flood(tokio::spawn(async move {
            for first in (0..).step_by(FLOOD_A_BATCH) {
                let deltas = (first..).take(FLOOD_A_BATCH).map(|n| {
                    let revision = revision.fetch_add(1, Ordering::Relaxed);
                    negative(delta(n, revision, Colour::Green))
                });
                // Acks are not waited for: the publisher knows how many may be under way.
                if publisher.publish(deltas.collect()).await.is_err() {
                    return;
                }
            }
        }))
    }

    /// One test result: bulk.
    pub async fn publish_bulk(&self) {
        let deltas = vec![negative(self.delta(0, Colour::Green))];
        let receipt = self.publisher.publish(deltas).await.expect("taken").await;
        assert_eq!(receipt.expect("acknowledged").accepted, 1);
    }

    /// What the broker must refuse: it is of the day after tomorrow.
    pub async fn publish_wrong(&self) {
        let mut delta = self.delta(0, Colour::Green);
        delta.committed_at.0 += 2 * 86_400 * 1_000_000;
        let receipt = self
            .publisher
            .publish(vec![delta])
            .await
            .expect("taken")
            .await;
        assert_eq!(receipt.expect("acknowledged").refused.len(), 1);
    }

    fn delta(&self, n: u64, colour: Colour) -> Delta {
        delta(n, self.revision.fetch_add(1, Ordering::Relaxed), colour)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.talking.abort();
    }
}

/// Goes on until it is dropped.
pub struct Flood(JoinHandle<()>);

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn negative(delta: Delta) -> Delta {
    let value = Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at: delta.committed_at,
    };
    Delta { value, ..delta }
}

fn green(revision: &AtomicU64) -> Delta {
    delta(
        u64::MAX,
        revision.fetch_add(1, Ordering::Relaxed),
        Colour::Green,
    )
}

pub fn delta(n: u64, revision: u64, colour: Colour) -> Delta {
    let mut entity = [7; 16];
    entity[8..].copy_from_slice(&n.to_be_bytes());
    Delta {
        entity: EntityId(entity),
        revision: Revision(revision),
        committed_at: now(),
        expires_at: Micros::ZERO,
        evidence: String::new(),
        provenance: Arc::new(Provenance {
            authority: "CDC".to_owned(),
            rule_id: "R-1".to_owned(),
            rule_version: 1,
            reason: "close contact".to_owned(),
        }),
        value: Value::HealthCode(colour),
    }
}

/// What a sink has, as it would say itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Applied {
    pub deltas: u64,
    /// Records that came and were not applied, and the durable time and the offset of the oldest one.
    pub waiting: u64,
    pub oldest: Option<(Micros, u64)>,
}

/// Applies what comes, until it is told to stall.
pub struct Sink {
    pub stalled: watch::Sender<bool>,
    pub applied: watch::Receiver<Applied>,
    working: JoinHandle<()>,
}

impl Sink {
    pub async fn start(broker: &Broker, code: u32) -> Sink {
        let options = SubscriberOptions::new(endpoint(broker, code), "main");
        let mut subscriber = Subscriber::open(options).await.expect("opened");
        let (stalled, mut told) = watch::channel(false);
        let (tell, applied) = watch::channel(Applied::default());
        let working = tokio::spawn(async move {
            let mut seen = Applied::default();
            let mut cursor = None;
            loop {
                // Cancel-safe, as the client says.
                tokio::select! {
                    biased;
                    event = subscriber.next() => match event {
                        Ok(event) => take(event, &mut seen, &mut cursor),
                        // The broker went away for good.
                        Err(_) => return,
                    },
                    changed = told.changed() => if changed.is_err() { return },
                }
                if !*told.borrow()
                    && let Some(cursor) = cursor.take()
                {
                    if subscriber.applied(cursor).await.is_err() {
                        return;
                    }
                    seen.waiting = 0;
                    seen.oldest = None;
                }
                tell.send_replace(seen);
            }
        });
        Sink {
            stalled,
            applied,
            working,
        }
    }

    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }
}

fn take(event: Event, seen: &mut Applied, cursor: &mut Option<Cursor>) {
    match event {
        Event::Records {
            deltas,
            cursor: upto,
        } => {
            seen.deltas += deltas.len() as u64;
            // One record a batch here: told apart by their offsets.
            let mut offsets: Vec<_> = deltas.iter().map(|d| d.offset).collect();
            offsets.dedup();
            seen.waiting += offsets.len() as u64;
            let first = deltas.first().map(|d| (d.durable_at, d.offset.0));
            seen.oldest = seen.oldest.or(first);
            *cursor = Some(upto);
        }
        Event::SnapshotEnd { cursor: upto, .. } | Event::Bookmark { cursor: upto, .. } => {
            *cursor = Some(upto);
        }
        Event::SnapshotBegin { .. } | Event::Rows(_) => {}
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.working.abort();
    }
}

/// Says to have applied what does not exist yet; refused.
pub async fn claim_too_much(broker: &Broker, code: u32, log_id: LogId) {
    let mut options = SubscriberOptions::new(endpoint(broker, code), "wrong");
    options.start = Start::Cursor(Cursor::both(log_id, Offset(1 << 40)));
    let refused = Subscriber::open(options).await.map(drop);
    let why = refused.expect_err("refused").to_string();
    assert!(why.contains("CURSOR_AHEAD"), "{why}");
}

/// Calls as a client whose clock is so far ahead.
pub async fn call_with_clock(broker: &Broker, code: u32, ahead_seconds: i64) {
    let channel = Channel::from_shared(broker.address())
        .expect("an address")
        .connect()
        .await;
    let mut client = PublishServiceClient::new(channel.expect("connected"));
    let mut request = Request::new(tokio_stream::empty::<Frame>());
    let identity = format!("platform/{code}").parse().expect("ascii");
    request.metadata_mut().insert(metadata::IDENTITY, identity);
    let clock = now().0.saturating_add_signed(ahead_seconds * 1_000_000);
    request.metadata_mut().insert(metadata::CLOCK, clock.into());
    // It says nothing else; the stream ends at once.
    drop(client.publish(request).await.expect("taken"));
}
