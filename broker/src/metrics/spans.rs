//! The spans of a broker, as they stand in a trace. What they say about is platforms and numbers, never an entity.

use hutong_proto::{Issuer, Lane, Micros, TraceContext};
use hutong_telemetry::{Span, SpanRef};
use opentelemetry::KeyValue;

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
    /// Of the first delta that was refused, or of the batch.
    pub reason: Option<&'static str>,
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
        error: None,
    }
}

/// A delta on its way to a platform, until that has applied it.
pub fn deliver(trace: TraceContext, to: Issuer, lane: Lane, sent: Micros, applied: Micros) -> Span {
    Span {
        name: "hutong.deliver",
        parent: Some(span_of(trace)),
        links: Vec::new(),
        from_us: sent.0,
        to_us: applied.0,
        attributes: vec![
            KeyValue::new("hutong.receiver", to.to_string()),
            KeyValue::new("hutong.lane", lane.name()),
        ],
        error: None,
    }
}
