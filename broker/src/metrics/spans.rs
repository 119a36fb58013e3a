//! The spans of a broker, as they stand in a trace. What they say about is platforms and numbers, never an entity.

use hutong_proto::{Issuer, Lane, Micros, TraceContext};
use hutong_telemetry::{LINKS_MAX, Span, SpanRef};
use opentelemetry::KeyValue;
use std::time::Duration;

/// A span in a delta's trace.
pub fn span_of(trace: TraceContext) -> SpanRef {
    SpanRef {
        trace_id: trace.trace_id,
        span_id: trace.span_id,
    }
}

/// What became of a batch.
#[derive(Clone, Debug)]
pub struct Ingested {
    pub issuer: Issuer,
    pub accepted: u32,
    pub refused: usize,
    pub arrived_at: Micros,
    pub acknowledged_at: Micros,
    /// Of its last record; none if nothing of it went into the log.
    pub reached: Option<Reached>,
    /// Of the first delta that was refused, or of the batch.
    pub reason: Option<&'static str>,
}

/// When a batch came on.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    pub durable_at: Micros,
    pub applied_at: Micros,
}

impl Ingested {
    /// Where the time went.
    fn events(&self) -> Vec<(&'static str, u64)> {
        let of = |reached: Reached| {
            [
                ("durable", reached.durable_at.0),
                ("applied", reached.applied_at.0),
            ]
        };
        self.reached.into_iter().flat_map(of).collect()
    }
}

/// A batch, from its arrival to its ack; linked to the traces of its deltas.
pub fn ingest(batch: &Ingested, traces: &[TraceContext]) -> Span {
    Span {
        name: "hutong.ingest",
        parent: None,
        links: traces.iter().map(|trace| span_of(*trace)).collect(),
        from_us: batch.arrived_at.0,
        to_us: batch.acknowledged_at.0,
        attributes: vec![
            KeyValue::new("hutong.issuer", batch.issuer.to_string()),
            KeyValue::new("hutong.deltas.accepted", i64::from(batch.accepted)),
            KeyValue::new("hutong.deltas.refused", batch.refused as i64),
        ],
        events: batch.events(),
        error: batch.reason,
    }
}

/// A delta in the broker, from the arrival of its batch until it is applied; linked to that batch.
pub fn broker(trace: TraceContext, batch: &Ingested, of: Option<SpanRef>) -> Span {
    Span {
        name: "hutong.broker",
        parent: Some(span_of(trace)),
        links: of.into_iter().collect(),
        from_us: batch.arrived_at.0,
        to_us: batch.acknowledged_at.0,
        attributes: vec![KeyValue::new("hutong.issuer", batch.issuer.to_string())],
        events: batch.events(),
        error: None,
    }
}

/// What a platform has just said to have.
#[derive(Clone, Copy, Debug)]
pub struct Delivered {
    pub to: Issuer,
    pub lane: Lane,
    pub records: usize,
    /// Of the oldest delta, at its source; that of the record where it is not known.
    pub committed_at: Micros,
    /// Of the oldest record.
    pub durable_at: Micros,
    pub sent_at: Micros,
    pub applied_at: Micros,
}

impl Delivered {
    /// From when it was durable until the platform had applied it: whatever held it up in between, here or there.
    pub fn took(&self) -> Duration {
        Duration::from_micros(self.applied_at.0.saturating_sub(self.durable_at.0))
    }

    fn span(&self, from: Micros) -> Span {
        Span {
            name: "hutong.deliver",
            parent: None,
            links: Vec::new(),
            from_us: from.0,
            to_us: self.applied_at.0,
            attributes: vec![
                KeyValue::new("hutong.receiver", self.to.to_string()),
                KeyValue::new("hutong.lane", self.lane.name()),
                KeyValue::new("hutong.records", self.records as i64),
            ],
            events: Vec::new(),
            error: None,
        }
    }
}

/// A delta on its way to a platform, until that has applied it.
pub fn deliver(trace: TraceContext, delivered: &Delivered) -> Span {
    Span {
        parent: Some(span_of(trace)),
        ..delivered.span(delivered.sent_at)
    }
}

/// What was slow, as a whole, with how much of the time it was not sent yet; linked to the traces of its deltas.
pub fn deliver_slow(delivered: &Delivered, traces: impl Iterator<Item = TraceContext>) -> Span {
    let mut span = delivered.span(delivered.durable_at);
    let ms = |from: Micros, to: Micros| (to.0.saturating_sub(from.0) / 1000) as i64;
    // Not known of what was read from the log, which says then when it was durable. Of two clocks: what the issuer's
    // says wrongly shows in its skew.
    if delivered.committed_at < delivered.durable_at {
        let came = ms(delivered.committed_at, delivered.durable_at);
        let came = KeyValue::new("hutong.durable_after_ms", came);
        span.attributes.push(came);
    }
    let waited = ms(delivered.durable_at, delivered.sent_at);
    let waited = KeyValue::new("hutong.sent_after_ms", waited);
    span.attributes.push(waited);
    span.events = vec![("sent", delivered.sent_at.0)];
    // Much may have landed at once, and no more is kept of a span.
    span.links = traces.take(LINKS_MAX).map(span_of).collect();
    span
}
