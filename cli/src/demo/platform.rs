//! One platform of the demo: what it knows of the others, and the sink that its connector applies to.

use super::{
    book::lock,
    platforms::Place,
    registers::Registers,
    view::{Counts, View},
};
use crate::times;
use hdrhistogram::Histogram;
use hutong_connectors::{
    client::Delivered,
    sink::{Sink, SinkError},
};
use hutong_proto::{Cursor, EntityId, Issuer, Kind, Micros, Revision};
use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tokio::sync::mpsc;

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

/// A platform. Its connectors write, everybody else reads.
#[derive(Debug)]
pub struct Platform {
    pub index: usize,
    pub place: &'static Place,
    pub issuer: Issuer,
    received: Mutex<Received>,
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

    /// Takes deliveries in, with the cursor after them unless they are of a snapshot; returns those that
    /// are watched.
    pub fn take_in(
        &self,
        deltas: &[Delivered],
        registers: &Registers,
        cursor: Option<Cursor>,
    ) -> Vec<Seen> {
        let now = times::now();
        let mut seen = Vec::new();
        let mut received = self.received();
        received.cursor = cursor.or(received.cursor);
        let Received { view, latency, .. } = &mut *received;
        for delivered in deltas {
            let delta = &delivered.delta;
            let (kind, lane) = (delta.value.kind(), delta.value.lane());
            let register = registers.find(delivered.issuer, &delta.entity, kind);
            view.deliver(register, lane, delta.revision, &delta.value);
            if cursor.is_some() {
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

/// Applies to a platform's view. A snapshot finds an empty log, as it is asked for before anything is
/// published; rows of a later one would count as doubled.
#[derive(Debug)]
pub struct ViewSink {
    pub platform: Arc<Platform>,
    pub registers: Arc<Registers>,
    pub stories: mpsc::Sender<Seen>,
}

impl Sink for ViewSink {
    fn name(&self) -> &'static str {
        "demo-view"
    }

    async fn start(&mut self) -> Result<Option<Cursor>, SinkError> {
        Ok(self.platform.received().cursor)
    }

    async fn begin_snapshot(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn apply(
        &mut self,
        deltas: &[Delivered],
        cursor: Option<Cursor>,
    ) -> Result<(), SinkError> {
        for seen in self.platform.take_in(deltas, &self.registers, cursor) {
            // Nobody listens any more after the stories.
            if self.stories.send(seen).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn end_snapshot(&mut self, cursor: Cursor) -> Result<(), SinkError> {
        self.bookmark(cursor).await
    }

    async fn bookmark(&mut self, cursor: Cursor) -> Result<(), SinkError> {
        self.platform.received().cursor = Some(cursor);
        Ok(())
    }
}
