//! What became of a batch: counted, measured, traced, and said in its ack.

use super::Session;
use crate::{
    apply::{producers::Fate, waiters::PartOutcome},
    metrics::{
        Hop,
        faults::Side,
        spans::{self, Ingested, Reached},
    },
};
use hutong_proto::{Micros, Reason, Refusal, TraceContext, api};
use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

/// When the last record of a batch came on, on the clock that only goes forward.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    durable: Instant,
    applied: Instant,
}

/// A record of a batch, on its way.
pub struct Sent {
    /// Index in the batch for each index in the record.
    pub indexes: Vec<u32>,
    /// When it was synced; told by the log before apply sees it.
    pub durable_at: Arc<OnceLock<Instant>>,
}

impl Session {
    /// Repeats after a broken line are no mistake of anybody, and do not come here.
    pub(super) fn fault(&self, refusal: &Refusal, ended: bool) {
        let (metrics, now) = (&self.shared.metrics, (self.shared.clock)());
        metrics.fault(self.platform, Side::Publish, refusal, ended, now);
    }

    /// Counts what became of a record, and says it in the ack of its batch.
    pub(super) fn applied(
        &self,
        part: &PartOutcome,
        sent: &Sent,
        arrived: Instant,
        ack: &mut api::PublishAck,
        steps: &mut Option<Steps>,
    ) -> Result<(), Refusal> {
        match part.fate {
            Fate::Fenced => return Err(Reason::ProducerFenced.into()),
            Fate::Duplicate => {
                ack.duplicate = true;
                return Ok(());
            }
            Fate::Fresh => {}
        }
        let (metrics, lane) = (&self.shared.metrics, part.partition.lane);
        let fresh = sent.indexes.len() - part.stale.len();
        ack.accepted += fresh as u32;
        metrics.accepted(self.platform, lane, fresh as u64);
        if !part.stale.is_empty() {
            let stale = part.stale.len() as u64;
            metrics.refused(self.platform, Reason::RevisionNotNewer, stale);
        }
        if sent.indexes.is_empty() {
            return Ok(());
        }
        if let Some(durable_at) = sent.durable_at.get() {
            let hop = |hop, from: Instant, to: Instant| {
                metrics.hop(hop, lane, to.saturating_duration_since(from).as_secs_f64());
            };
            hop(Hop::BrokerToDurable, arrived, *durable_at);
            hop(Hop::DurableToApplied, *durable_at, part.applied_at);
            let last = steps.get_or_insert(Steps {
                durable: *durable_at,
                applied: part.applied_at,
            });
            last.durable = last.durable.max(*durable_at);
            last.applied = last.applied.max(part.applied_at);
        }
        ack.positions.push(api::Position {
            lane: lane.to_api().into(),
            shard: part.partition.shard.0,
            offset: part.offset.0,
            durable_at_us: part.durable_at.0,
        });
        Ok(())
    }

    /// Adds the batch to the traces of its deltas. One that was slow or refused something is traced without any.
    pub(super) fn trace(
        &self,
        ack: &api::PublishAck,
        refused: &[(u32, Refusal)],
        (arrived, steps): (Instant, Option<Steps>),
        deltas: &[TraceContext],
    ) {
        let traces = self.shared.metrics.traces();
        if !traces.is_on() {
            return;
        }
        let (now, here) = ((self.shared.clock)(), Instant::now());
        let ago = |then: Instant| here.saturating_duration_since(then);
        let at = |then: Instant| Micros(now.0.saturating_sub(ago(then).as_micros() as u64));
        let took = ago(arrived);
        let whole = ack.error.as_ref().map(|_| "BATCH_REFUSED");
        // Repeats after a broken line are no mistake of anybody.
        let mistakes = refused.iter().map(|(_, refusal)| refusal.reason);
        let reason = mistakes
            .filter(|r| *r != Reason::RevisionNotNewer)
            .map(Reason::code)
            .next();
        let reason = whole.or(reason);
        let metrics = &self.shared.metrics;
        if deltas.is_empty() && !metrics.keeps_batch(self.platform, took, reason.is_some(), now) {
            return;
        }
        let batch = Ingested {
            issuer: self.platform,
            accepted: ack.accepted,
            refused: refused.len(),
            arrived_at: at(arrived),
            acknowledged_at: now,
            reached: steps.map(|steps| Reached {
                durable_at: at(steps.durable),
                applied_at: at(steps.applied),
            }),
            reason,
        };
        let own = traces.record(spans::ingest(&batch, deltas), None);
        for delta in deltas {
            traces.record(spans::broker(*delta, &batch, own), None);
        }
    }
}

/// Deltas of a part that came too late, by their index in the batch.
pub fn not_newer(part: &PartOutcome, indexes: &[u32]) -> impl Iterator<Item = (u32, Refusal)> {
    part.stale.iter().map(|i| {
        let index = indexes[*i as usize];
        let field = format!("deltas[{index}].revision");
        (index, Refusal::new(Reason::RevisionNotNewer, field))
    })
}
