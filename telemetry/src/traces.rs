//! Traces: spans that are made when what they are about is over, so that it is known whether they are worth keeping.
//!
//! Two ways lead to a span. A share of changes is sampled at its source, and whoever meets one of those on its way adds
//! a span to its trace, as far as its own bound goes. And what was slow or refused is kept whether it was sampled or not (tail sampling): as far as
//! an [`Allowance`] goes, because in a flood of errors the first ones say as much as all.
//!
//! Spans wait in a bounded queue and are pushed by OTLP; what has no room is dropped and counted by the SDK. Nothing in a
//! span names a person.

use crate::Service;
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{Event, Link, SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks,
    SpanProcessor,
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Of other spans, in one span; of more, the first ones are kept.
pub const LINKS_MAX: usize = 32;

/// A span, as others refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanRef {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
}

/// What happened, from when to when; microseconds since the Unix epoch.
#[derive(Debug)]
pub struct Span {
    pub name: &'static str,
    /// A trace of its own, if there is none.
    pub parent: Option<SpanRef>,
    /// Other spans that it has to do with: of a batch, those of its deltas.
    pub links: Vec<SpanRef>,
    pub from_us: u64,
    pub to_us: u64,
    pub attributes: Vec<KeyValue>,
    /// What was reached on the way, and when: microseconds since the Unix epoch.
    pub events: Vec<(&'static str, u64)>,
    /// What went wrong, if anything: a reason, never a text of a user.
    pub error: Option<&'static str>,
}

/// How to trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// Of the collector: `http://127.0.0.1:4317`.
    pub otlp: String,
    pub service: Service,
    /// Of what begins here, between 0 and 1.
    pub share: f64,
    /// What takes longer is kept.
    pub slow: Duration,
}

/// Makes spans. Cheap to clone; one that is off costs a comparison.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Inner>>);

struct Inner {
    processor: Box<dyn SpanProcessor>,
    scope: InstrumentationScope,
    /// One in so many is sampled; 0 is none.
    one_in: u64,
    begun: AtomicU64,
    slow: Duration,
}

/// How many of something are traced in one second. Who has one of its own leaves those of others alone.
#[derive(Debug)]
pub struct Allowance {
    per_second: u16,
    /// The second that the count is of, and in the lower 16 bits the count: they change together.
    taken: AtomicU64,
}

impl Allowance {
    pub const fn new(per_second: u16) -> Allowance {
        Allowance {
            per_second,
            taken: AtomicU64::new(0),
        }
    }

    /// One of them, if there is one left.
    pub fn take(&self, now_us: u64) -> bool {
        let second = now_us / 1_000_000;
        let take = |was: u64| {
            let (last, count) = (was >> 16, was & 0xffff);
            // A clock that was set back gives nothing anew.
            let (at, count) = match second > last {
                true => (second, 0),
                false => (last, count),
            };
            (count < u64::from(self.per_second)).then_some(at << 16 | (count + 1))
        };
        self.taken.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot push to {otlp} by OTLP: {why}")]
pub struct TracesError {
    pub otlp: String,
    pub why: String,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Traces").field(&self.0.is_some()).finish()
    }
}

impl Traces {
    /// Makes none.
    pub fn off() -> Traces {
        Traces(None)
    }

    /// Pushes by OTLP over gRPC. Within a runtime of tokio; nothing is connected yet.
    pub fn start(settings: &TraceSettings) -> Result<Traces, TracesError> {
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(settings.otlp.clone())
            .build()
            .map_err(|error| TracesError {
                otlp: settings.otlp.clone(),
                why: error.to_string(),
            })?;
        let processor = BatchSpanProcessor::builder(exporter).build();
        Ok(Traces::with_processor(Box::new(processor), settings))
    }

    /// Gives spans to somebody else.
    pub fn with_processor(
        mut processor: Box<dyn SpanProcessor>,
        settings: &TraceSettings,
    ) -> Traces {
        processor.set_resource(&settings.service.resource());
        let one_in = match settings.share {
            share if share > 0.0 => (1.0 / share).round().max(1.0) as u64,
            _ => 0,
        };
        Traces(Some(Arc::new(Inner {
            processor,
            scope: InstrumentationScope::builder("hutong").build(),
            one_in,
            begun: AtomicU64::new(0),
            slow: settings.slow,
        })))
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A new trace for something that begins here, if it is one of those that are sampled.
    pub fn sample(&self) -> Option<SpanRef> {
        let inner = self.0.as_ref()?;
        let begun = inner.begun.fetch_add(1, Relaxed);
        (inner.one_in > 0 && begun.is_multiple_of(inner.one_in)).then(|| {
            let ids = RandomIdGenerator::default();
            SpanRef {
                trace_id: ids.new_trace_id().to_bytes(),
                span_id: ids.new_span_id().to_bytes(),
            }
        })
    }

    /// Whether what took so long, or failed, is to be kept although nobody sampled it; out of this allowance.
    pub fn keeps(&self, allowance: &Allowance, took: Duration, failed: bool, now_us: u64) -> bool {
        let Some(inner) = &self.0 else { return false };
        (failed || took >= inner.slow) && allowance.take(now_us)
    }

    /// Records a span that is over; returns it for others to refer to. `own` is what it is known as already.
    pub fn record(&self, span: Span, own: Option<SpanRef>) -> Option<SpanRef> {
        let inner = self.0.as_ref()?;
        let ids = RandomIdGenerator::default();
        let own = own.unwrap_or_else(|| SpanRef {
            trace_id: span
                .parent
                .map_or_else(|| ids.new_trace_id().to_bytes(), |p| p.trace_id),
            span_id: ids.new_span_id().to_bytes(),
        });
        let mut links = SpanLinks::default();
        links.links = span
            .links
            .iter()
            .take(LINKS_MAX)
            .map(|l| Link::with_context(l.context()))
            .collect();
        links.dropped_count = span.links.len().saturating_sub(LINKS_MAX) as u32;
        let mut events = SpanEvents::default();
        events.events = (span.events.iter())
            .map(|(name, us)| Event::new(*name, at(*us), Vec::new(), 0))
            .collect();
        let parent = span
            .parent
            .map_or(SpanId::INVALID, |p| SpanId::from_bytes(p.span_id));
        inner.processor.on_end(SpanData {
            span_context: own.context(),
            parent_span_id: parent,
            parent_span_is_remote: true,
            span_kind: SpanKind::Internal,
            name: span.name.into(),
            start_time: at(span.from_us),
            end_time: at(span.to_us.max(span.from_us)),
            attributes: span.attributes,
            dropped_attributes_count: 0,
            events,
            links,
            status: span.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: inner.scope.clone(),
        });
        Some(own)
    }

    /// Pushes what waits. Blocks.
    pub fn flush(&self) {
        if let Some(inner) = &self.0
            && let Err(error) = inner.processor.force_flush()
        {
            tracing::warn!(%error, "spans could not be pushed");
        }
    }
}

impl SpanRef {
    fn context(self) -> SpanContext {
        SpanContext::new(
            TraceId::from_bytes(self.trace_id),
            SpanId::from_bytes(self.span_id),
            TraceFlags::SAMPLED,
            true,
            TraceState::default(),
        )
    }
}

fn at(us: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_sdk::error::OTelSdkResult;
    use std::sync::Mutex;

    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Kept {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &opentelemetry::Context) {}
        fn on_end(&self, span: SpanData) {
            self.0.lock().expect("no panic").push(span);
        }
        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }
        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    fn traces(share: f64) -> (Traces, Kept) {
        let kept = Kept::default();
        let settings = TraceSettings {
            otlp: String::new(),
            service: Service {
                name: "test",
                instance: "one".to_owned(),
            },
            share,
            slow: Duration::from_secs(1),
        };
        (
            Traces::with_processor(Box::new(kept.clone()), &settings),
            kept,
        )
    }

    fn span(parent: Option<SpanRef>, links: Vec<SpanRef>) -> Span {
        Span {
            name: "test",
            parent,
            links,
            from_us: 1_000,
            to_us: 3_000,
            attributes: Vec::new(),
            events: vec![("half", 2_000)],
            error: None,
        }
    }

    #[test]
    fn a_share_is_sampled_and_what_is_off_makes_nothing() {
        for (share, expected) in [(0.01, 10), (1.0, 1000), (0.0, 0)] {
            let (traces, _) = traces(share);
            let sampled = (0..1000).filter_map(|_| traces.sample()).count();
            assert_eq!(sampled, expected, "{share}");
        }
        let (off, plenty) = (Traces::off(), Allowance::new(10));
        assert!(off.sample().is_none() && !off.keeps(&plenty, Duration::MAX, true, 0));
        assert!(off.record(span(None, Vec::new()), None).is_none());
    }

    #[test]
    fn a_child_is_in_the_trace_of_its_parent_and_links_are_bounded() {
        let (traces, kept) = traces(1.0);
        let root = traces.sample().expect("all are");
        traces.record(span(None, Vec::new()), Some(root));
        let child = traces
            .record(span(Some(root), vec![root; 100]), None)
            .expect("on");
        assert_eq!(child.trace_id, root.trace_id);
        assert_ne!(child.span_id, root.span_id);
        let kept = kept.0.lock().expect("no panic");
        assert_eq!(kept[0].span_context.span_id().to_bytes(), root.span_id);
        assert_eq!(kept[1].parent_span_id.to_bytes(), root.span_id);
        assert_eq!(kept[1].links.links.len(), LINKS_MAX);
        let took = kept[1].end_time.duration_since(kept[1].start_time);
        assert_eq!(took.expect("later"), Duration::from_millis(2));
        let [half] = &kept[1].events.events[..] else {
            panic!("one event: {:?}", kept[1].events);
        };
        assert_eq!((half.name.as_ref(), half.timestamp), ("half", at(2_000)));
    }

    #[test]
    fn what_is_slow_or_failed_is_kept_but_not_without_bound() {
        let (traces, _) = traces(0.0);
        let (quick, slow) = (Duration::from_millis(1), Duration::from_secs(2));
        let (one, another) = (Allowance::new(3), Allowance::new(3));
        assert!(!traces.keeps(&one, quick, false, 0));
        assert!(traces.keeps(&one, slow, false, 0) && traces.keeps(&one, quick, true, 0));
        let in_a_second = |allowance| {
            let kept = (0..1000).filter(|_| traces.keeps(allowance, slow, false, 5_000_000));
            kept.count()
        };
        assert_eq!(in_a_second(&one), 3);
        assert_eq!(in_a_second(&one), 0, "the same second");
        assert_eq!(in_a_second(&another), 3, "nobody uses up another's");
        assert!(
            traces.keeps(&one, quick, true, 6_000_000),
            "the next second"
        );
        assert_eq!(in_a_second(&one), 2, "a clock set back gives nothing anew");
        assert_eq!(in_a_second(&one), 0);
        let many = Allowance::new(100);
        let taken: usize = std::thread::scope(|scope| {
            let count = || (0..1000).filter(|_| many.take(7_000_000)).count();
            let threads = [(); 4].map(|()| scope.spawn(count));
            threads.map(|t| t.join().expect("no panic")).iter().sum()
        });
        assert_eq!(taken, 100, "together");
    }
}
