//! The spans of a connector: a change from its commit on, a batch until its ack, a change until its sink has it.

use crate::{client::Delivered, state::now};
use hutong_proto::{Cursor, Delta, Issuer, Lane, Offset, TraceContext};
use hutong_telemetry::{Span, SpanRef, Traces};
use opentelemetry::KeyValue;
use std::collections::VecDeque;

/// Traced deltas that came and are not applied; of more the last span is missing.
const WAITING_MAX: usize = 1024;

/// What the calls of a stream are part of.
pub fn stream(traces: &Traces) -> Option<TraceContext> {
    if !traces.is_on() {
        return None;
    }
    let opened = now().0;
    traces
        .record(span("hutong.stream", None, opened, opened), None)
        .map(context)
}

/// What is logged about a stream stands in this: the broker's lines about it have the same trace.
pub fn log_span(stream: Option<TraceContext>) -> tracing::Span {
    match stream {
        // At a filter of `warn` or `error` there is no span of a lower level, and what is left needs its trace most.
        Some(trace) => tracing::error_span!("stream", trace_id = %trace),
        None => tracing::Span::none(),
    }
}

fn context(span: SpanRef) -> TraceContext {
    TraceContext {
        trace_id: span.trace_id,
        span_id: span.span_id,
    }
}

fn span(name: &'static str, parent: Option<SpanRef>, from_us: u64, to_us: u64) -> Span {
    Span {
        name,
        parent,
        links: Vec::new(),
        from_us,
        to_us,
        attributes: Vec::new(),
        events: Vec::new(),
        error: None,
    }
}

/// Of a source: it begins the traces.
#[derive(Clone, Debug)]
pub struct SourceTracer(Traces);

/// A batch on its way.
#[derive(Debug)]
pub struct Traced {
    traces: Traces,
    sent_us: u64,
    /// By place of the delta; empty when none is traced.
    contexts: Vec<Option<TraceContext>>,
}

impl SourceTracer {
    pub fn new(traces: &Traces) -> SourceTracer {
        SourceTracer(traces.clone())
    }

    /// Chooses those that are traced. Their first span is over: from the commit until they are handed over here.
    pub fn begin(&self, deltas: &[Delta]) -> Traced {
        let (traces, sent_us) = (self.0.clone(), now().0);
        let mut contexts = Vec::new();
        if traces.is_on() {
            let begin = |delta: &Delta| {
                let own = traces.sample()?;
                let mut source = span("hutong.source", None, delta.committed_at.0, sent_us);
                source.attributes = vec![
                    KeyValue::new("hutong.kind", delta.value.kind().name()),
                    KeyValue::new("hutong.lane", delta.value.lane().name()),
                ];
                traces.record(source, Some(own)).map(context)
            };
            contexts = deltas.iter().map(begin).collect();
        }
        Traced {
            traces,
            sent_us,
            contexts,
        }
    }
}

impl Traced {
    pub fn contexts(&self) -> &[Option<TraceContext>] {
        &self.contexts
    }

    /// The batch was acknowledged.
    pub fn end(&self, accepted: u32) {
        let links: Vec<SpanRef> = self.contexts.iter().flatten().map(reference).collect();
        if links.is_empty() {
            return;
        }
        let mut publish = span("hutong.publish", None, self.sent_us, now().0);
        publish.links = links;
        publish.attributes = vec![KeyValue::new("hutong.deltas.accepted", i64::from(accepted))];
        self.traces.record(publish, None);
    }
}

fn reference(trace: &TraceContext) -> SpanRef {
    SpanRef {
        trace_id: trace.trace_id,
        span_id: trace.span_id,
    }
}

/// Of a sink: it ends them.
#[derive(Debug)]
pub struct SinkTracer {
    traces: Traces,
    /// The platform whose sink it is.
    receiver: Issuer,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    trace: TraceContext,
    lane: Lane,
    offset: Offset,
    came_us: u64,
}

impl SinkTracer {
    pub fn new(traces: &Traces, receiver: Issuer) -> SinkTracer {
        SinkTracer {
            traces: traces.clone(),
            receiver,
            waiting: VecDeque::new(),
        }
    }

    pub fn came(&mut self, deltas: &[Delivered]) {
        if !self.traces.is_on() {
            return;
        }
        let came_us = now().0;
        for delivered in deltas {
            if let Some(trace) = delivered.trace
                && self.waiting.len() < WAITING_MAX
            {
                self.waiting.push_back(Waiting {
                    trace,
                    lane: delivered.delta.value.lane(),
                    offset: delivered.offset,
                    came_us,
                });
            }
        }
    }

    /// Everything below this is durable here.
    pub fn applied(&mut self, cursor: &Cursor) {
        if self.waiting.is_empty() {
            return;
        }
        let applied_us = now().0;
        let (traces, receiver) = (&self.traces, self.receiver);
        self.waiting.retain(|waiting| {
            if waiting.offset >= cursor.lane(waiting.lane) {
                return true;
            }
            let parent = Some(reference(&waiting.trace));
            let mut apply = span("hutong.apply", parent, waiting.came_us, applied_us);
            apply.attributes = vec![
                KeyValue::new("hutong.receiver", receiver.to_string()),
                KeyValue::new("hutong.lane", waiting.lane.name()),
            ];
            traces.record(apply, None);
            false
        });
    }
}
