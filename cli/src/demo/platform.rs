//! One platform of the demo: what it publishes, what it receives, over gRPC like any other client.

use super::{
    book::{Book, lock},
    platforms::Place,
    registers::Registers,
    view::{Counts, View},
};
use crate::{errors::CliError, times};
use hdrhistogram::Histogram;
use hutong_connectors::client::{
    Delivered, Endpoint, Event, Identity, Pending, Publisher, PublisherOptions, Start, Subscriber,
    SubscriberOptions,
};
use hutong_proto::{Cursor, Delta, EntityId, Issuer, Kind, Lane, Micros, Revision};
use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// The name of every platform's subscription.
pub const SUBSCRIPTION: &str = "demo";
/// Batches sent and not yet acknowledged, beyond what the publisher itself holds.
const UNSETTLED_MAX: usize = 256;
/// How often at most a platform tells the broker what it has applied.
const APPLIED_EVERY: Duration = Duration::from_millis(20);
/// Latencies above are counted as this; two digits of precision keep 64 histograms small.
const LATENCY_US_MAX: u64 = 600_000_000;

/// A delta of a story that reached a platform.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub platform: usize,
    pub issuer: Issuer,
    pub entity: EntityId,
    pub kind: Kind,
    pub revision: Revision,
    pub applied_at: Micros,
}

/// What a platform has received.
#[derive(Debug)]
pub struct Received {
    pub view: View,
    /// Microseconds from the commit at the source until applied here, by lane, since last taken.
    latency: [Histogram<u64>; 2],
    pub cursor: Option<Cursor>,
}

/// A platform. The receiving task writes, everybody else reads.
#[derive(Debug)]
pub struct Platform {
    pub index: usize,
    pub place: &'static Place,
    pub issuer: Issuer,
    received: Mutex<Received>,
    pub reconnects: AtomicU64,
    /// The source's commit sequence: revisions rise over all its registers.
    revision: AtomicU64,
}

pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 2).expect("valid bounds")
}

impl Platform {
    pub fn new(index: usize, place: &'static Place, cells: usize, base: Revision) -> Platform {
        Platform {
            index,
            place,
            issuer: Issuer::new(place.code).expect("the table holds valid codes"),
            received: Mutex::new(Received {
                view: View::new(cells),
                latency: [latency_histogram(), latency_histogram()],
                cursor: None,
            }),
            reconnects: AtomicU64::new(0),
            revision: AtomicU64::new(base.0),
        }
    }

    pub fn next_revision(&self) -> Revision {
        Revision(self.revision.fetch_add(1, Relaxed) + 1)
    }

    pub fn received(&self) -> MutexGuard<'_, Received> {
        lock(&self.received)
    }

    pub fn counts(&self) -> Counts {
        self.received().view.counts
    }

    /// Adds the latencies since the last call to `totals`, and returns the 99th percentile of each lane.
    pub fn take_latency(&self, totals: &mut [Histogram<u64>; 2]) -> [u64; 2] {
        let mut received = self.received();
        let mut p99 = [0; 2];
        for (lane, histogram) in received.latency.iter_mut().enumerate() {
            if !histogram.is_empty() {
                p99[lane] = histogram.value_at_quantile(0.99);
                totals[lane]
                    .add(&*histogram)
                    .expect("all histograms have the same bounds");
                histogram.reset();
            }
        }
        p99
    }

    pub fn endpoint(&self, address: &str) -> Endpoint {
        Endpoint::new(address.to_owned(), Identity::Platform(self.issuer))
    }

    /// Takes deliveries in; returns those that are watched.
    pub fn take_in(&self, deltas: &[Delivered], registers: &Registers, live: bool) -> Vec<Seen> {
        let now = times::now();
        let mut seen = Vec::new();
        let mut received = self.received();
        let Received { view, latency, .. } = &mut *received;
        for delivered in deltas {
            let delta = &delivered.delta;
            let (kind, lane) = (delta.value.kind(), delta.value.lane());
            let register = registers.find(delivered.issuer, &delta.entity, kind);
            view.deliver(register, lane, delta.revision, &delta.value);
            if live {
                let us = now.0.saturating_sub(delta.committed_at.0);
                latency[lane.index()].saturating_record(us);
            }
            if register.is_some_and(|r| registers.is_watched(r)) {
                seen.push(Seen {
                    platform: self.index,
                    issuer: delivered.issuer,
                    entity: delta.entity,
                    kind,
                    revision: delta.revision,
                    applied_at: now,
                });
            }
        }
        seen
    }
}

/// Opens the platform's subscription: all current values first, then what follows.
pub async fn subscribe(platform: &Platform, address: &str) -> Result<Subscriber, CliError> {
    let mut options = SubscriberOptions::new(platform.endpoint(address), SUBSCRIPTION.to_owned());
    options.start = Start::Snapshot;
    Subscriber::open(options)
        .await
        .map_err(|e| broken(platform, "subscribing", &e))
}

/// Receives until the stream ends for good. Cancelled at the end of the demo.
pub async fn receive(
    platform: Arc<Platform>,
    mut subscriber: Subscriber,
    registers: Arc<Registers>,
    stories: mpsc::Sender<Seen>,
) -> Result<(), CliError> {
    let failed = |e| broken(&platform, "receiving", &e);
    let mut told_at = Instant::now();
    loop {
        let event = subscriber.next().await.map_err(failed)?;
        let (cursor, idle) = match event {
            Event::SnapshotBegin { .. } => continue,
            Event::Rows(rows) => {
                platform.take_in(&rows, &registers, false);
                continue;
            }
            Event::Records { deltas, cursor } => {
                for seen in platform.take_in(&deltas, &registers, true) {
                    // Nobody listens any more after the stories.
                    if stories.send(seen).await.is_err() {
                        break;
                    }
                }
                (cursor, false)
            }
            Event::SnapshotEnd { cursor, .. } | Event::Bookmark { cursor, .. } => (cursor, true),
        };
        platform.received().cursor = Some(cursor);
        platform.reconnects.store(subscriber.reconnects(), Relaxed);
        if idle || told_at.elapsed() >= APPLIED_EVERY {
            subscriber.applied(cursor).await.map_err(failed)?;
            told_at = Instant::now();
        }
    }
}

/// One of a platform's two publishers. Lanes have a stream each, so that back pressure on negative
/// results never holds up a colour.
#[derive(Clone, Debug)]
pub struct Source {
    platform: Arc<Platform>,
    publisher: Publisher,
    unsettled: mpsc::Sender<Unsettled>,
    book: Arc<Book>,
}

/// A batch that waits for its ack.
#[derive(Debug)]
pub struct Unsettled {
    pending: Pending,
    deltas: Vec<Delta>,
}

/// Connects a publisher; the second value is for [`settle`].
pub async fn source(
    platform: &Arc<Platform>,
    lane: Lane,
    address: &str,
    book: &Arc<Book>,
) -> Result<(Source, mpsc::Receiver<Unsettled>), CliError> {
    let options =
        PublisherOptions::new(platform.endpoint(address), format!("demo-{}", lane.name()));
    let publisher = Publisher::connect(options)
        .await
        .map_err(|e| broken(platform, "connecting a publisher", &e))?;
    let (unsettled, acks) = mpsc::channel(UNSETTLED_MAX);
    let source = Source {
        platform: Arc::clone(platform),
        publisher,
        unsettled,
        book: Arc::clone(book),
    };
    Ok((source, acks))
}

impl Source {
    /// Sends a batch; waits while the broker gives no credit.
    pub async fn publish(&self, deltas: Vec<Delta>) -> Result<(), CliError> {
        let pending = self
            .publisher
            .publish(deltas.clone())
            .await
            .map_err(|e| broken(&self.platform, "publishing", &e))?;
        self.book.published.fetch_add(deltas.len() as u64, Relaxed);
        self.unsettled
            .send(Unsettled { pending, deltas })
            .await
            .map_err(|_| {
                CliError::Broken(format!(
                    "{}: the ack task has ended",
                    self.platform.place.name
                ))
            })
    }
}

/// Waits for the acks of a source, in order, and enters them into the book.
pub async fn settle(
    platform: Arc<Platform>,
    mut acks: mpsc::Receiver<Unsettled>,
    book: Arc<Book>,
    registers: Arc<Registers>,
) -> Result<(), CliError> {
    while let Some(Unsettled { pending, deltas }) = acks.recv().await {
        let receipt = pending
            .await
            .map_err(|e| broken(&platform, "waiting for an ack", &e))?;
        book.settle(
            platform.index,
            platform.issuer,
            &deltas,
            &receipt,
            &registers,
        );
    }
    Ok(())
}

fn broken(platform: &Platform, doing: &str, error: &dyn std::error::Error) -> CliError {
    CliError::Broken(format!(
        "{} ({}), {doing}: {error}",
        platform.place.name, platform.place.code
    ))
}
