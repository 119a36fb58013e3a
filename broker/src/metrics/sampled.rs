//! Which of the deltas that were sampled at their source the broker traces.
//!
//! Sources sample a share, so what they sample grows with the load; what may be spent on being watched does not. It is
//! decided when a batch comes, before any span is made: so many deltas of a platform in a second. Those are traced to
//! every platform, the others nowhere: a trace in which some deliveries are missing would look like platforms that have
//! not applied it.

use super::Recorder;
use foldhash::quality::FixedState;
use hutong_proto::{Issuer, Micros, TraceContext};
use std::{
    hash::BuildHasher,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Of sampled deltas, over all platforms: with those that are kept in any case, what waits between two pushes of a quick
/// collector has room in the queue of spans.
const SPANS_PER_SECOND: usize = 1_024;
/// Chosen deltas that are remembered: of more than a few seconds, so that few of those under way are forgotten.
const REMEMBERED: usize = 1 << 14;

/// Sampled deltas of a platform that are traced in a second. Each has a span here, one with each platform, and mostly
/// one of its batch.
pub(super) fn chosen_per_second(platforms: usize) -> u16 {
    let spans = platforms * (platforms + 2);
    let chosen = SPANS_PER_SECOND / spans.max(1);
    chosen.clamp(1, u16::MAX.into()) as u16
}

/// Spans of their deliveries to one platform. Twice as many as there should be, because what was chosen in one second
/// may be applied in the next; a client that gives the same trace to many deltas gets no more either.
pub(super) fn deliveries_per_second(platforms: usize) -> u16 {
    let chosen = platforms * usize::from(chosen_per_second(platforms));
    (2 * chosen).clamp(2, u16::MAX.into()) as u16
}

/// Remembers what was chosen, without a lock: the newest in each place stays, and what it displaced lacks the deliveries
/// that were not made yet.
#[derive(Debug)]
pub(super) struct Chosen(Box<[AtomicU64]>);

impl Chosen {
    /// Without a place if nothing is traced.
    pub fn new(traced: bool) -> Chosen {
        let places = if traced { REMEMBERED } else { 0 };
        Chosen((0..places).map(|_| AtomicU64::default()).collect())
    }

    /// With what stands there if this delta was chosen. No hash is 0, which is what an empty place has.
    fn place(&self, trace: &TraceContext) -> Option<(&AtomicU64, u64)> {
        let hash = FixedState::default().hash_one(trace).max(1);
        let index = hash.checked_rem(self.0.len() as u64)?;
        Some((&self.0[index as usize], hash))
    }

    fn add(&self, trace: &TraceContext) {
        if let Some((place, hash)) = self.place(trace) {
            place.store(hash, Relaxed);
        }
    }

    fn has(&self, trace: &TraceContext) -> bool {
        let place = self.place(trace);
        place.is_some_and(|(place, hash)| place.load(Relaxed) == hash)
    }
}

impl Recorder {
    /// Leaves those sampled deltas of a batch whose way through the broker is traced, and counts the others.
    pub fn choose(&self, platform: Issuer, sampled: &mut Vec<TraceContext>, now: Micros) {
        if sampled.is_empty() {
            return;
        }
        if !self.traces.is_on() {
            return sampled.clear();
        }
        let (counters, came) = (self.platform(platform), sampled.len());
        sampled.retain(|_| counters.sampled_chosen.take(now.0));
        for trace in sampled.iter() {
            self.counters.chosen.add(trace);
        }
        let left_out = (came - sampled.len()) as u64;
        counters.spans_left_out.fetch_add(left_out, Relaxed);
    }

    /// Of the sampled deltas of a delivery so many, and those that are traced before others, which are good for links.
    pub fn chosen_first<'a>(
        &self,
        sampled: impl Iterator<Item = &'a TraceContext> + Clone,
        max: usize,
    ) -> Vec<TraceContext> {
        if !self.traces.is_on() {
            return Vec::new();
        }
        let chosen = |trace: &&TraceContext| self.counters.chosen.has(trace);
        let others = sampled.clone().filter(|trace| !chosen(trace));
        let first = sampled.filter(chosen).chain(others);
        first.take(max).copied().collect()
    }

    /// Whether the delivery of a sampled delta to the platform gets a span.
    pub fn traces_delivery(&self, platform: Issuer, trace: &TraceContext, now: Micros) -> bool {
        if !self.counters.chosen.has(trace) {
            return false;
        }
        let counters = self.platform(platform);
        let has_room = counters.deliveries_chosen.take(now.0);
        if !has_room {
            counters.spans_left_out.fetch_add(1, Relaxed);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use hutong_telemetry::{Exporter, Service, TraceSettings, Traces};
    use std::time::Duration;

    /// By default what three platforms have in a second.
    const CHOSEN: usize = 68;
    const SECOND: u64 = 1_000_000;

    fn of(code: u32) -> Issuer {
        Issuer::new(code).expect("six digits")
    }

    fn delta(n: u64) -> TraceContext {
        let mut trace_id = [1; 16];
        trace_id[8..].copy_from_slice(&n.to_le_bytes());
        TraceContext {
            trace_id,
            span_id: [9; 8],
        }
    }

    fn deltas(count: u64) -> Vec<TraceContext> {
        (0..count).map(delta).collect()
    }

    /// Of three platforms, with a collector that nobody calls.
    fn traced() -> Metrics {
        let settings = TraceSettings {
            otlp: "http://127.0.0.1:9".to_owned(),
            service: Service {
                name: "test",
                instance: "one".to_owned(),
            },
            share: 0.0,
            slow: Duration::from_secs(1),
        };
        let traces = Traces::start(&settings).expect("an address");
        let exporter = Exporter::new(|_| None).expect("an exporter");
        Metrics::with([1, 2, 3].map(|n| of(n * 110_000)), exporter, traces)
    }

    fn left_out(metrics: &Metrics, platform: u32) -> u64 {
        metrics.platform(of(platform)).spans_left_out.load(Relaxed)
    }

    #[test]
    fn spans_stay_within_the_bound_and_each_platform_has_one_trace_a_second() {
        for (platforms, expected) in [(1, 341), (2, 128), (3, 68), (31, 1), (32, 1), (64, 1)] {
            let chosen = chosen_per_second(platforms);
            assert_eq!(chosen, expected, "{platforms}");
            let spans = platforms * usize::from(chosen) * (platforms + 2);
            let bound = SPANS_PER_SECOND.max(platforms * (platforms + 2));
            assert!(spans <= bound, "{platforms}: {spans}");
            let delivered = usize::from(deliveries_per_second(platforms));
            assert!(delivered >= 2 * platforms * usize::from(chosen));
        }
        assert!(chosen_per_second(0) >= 1 && deliveries_per_second(0) >= 2);
    }

    #[tokio::test]
    async fn so_many_sampled_deltas_are_traced_in_a_second_and_the_others_are_counted() {
        let metrics = traced();
        let (busy, quiet) = (of(110_000), of(220_000));
        let choose = |platform, count, at| {
            let mut sampled = deltas(count);
            metrics.choose(platform, &mut sampled, Micros(at));
            assert!(deltas(count).starts_with(&sampled), "those that came first");
            sampled.len()
        };
        assert_eq!(choose(busy, 8, SECOND), 8);
        assert_eq!(choose(busy, 200, SECOND), CHOSEN - 8);
        assert_eq!(choose(busy, 200, 2 * SECOND - 1), 0, "the same second");
        assert_eq!(choose(quiet, 8, SECOND), 8, "nobody uses up another's");
        assert_eq!(choose(busy, 200, 2 * SECOND), CHOSEN, "the next one");
        let expected = (8 + 3 * 200 - 2 * CHOSEN) as u64;
        assert_eq!(left_out(&metrics, 110_000), expected);
        assert_eq!(left_out(&metrics, 220_000), 0);
    }

    #[tokio::test]
    async fn a_delta_is_traced_to_every_platform_or_to_none() {
        let metrics = traced();
        let all = deltas(200);
        let mut chosen = all.clone();
        metrics.choose(of(110_000), &mut chosen, Micros(SECOND));
        for platform in [1, 2, 3].map(|n| of(n * 110_000)) {
            let traced = |t: &&TraceContext| metrics.traces_delivery(platform, t, Micros(SECOND));
            let traced: Vec<_> = all.iter().filter(traced).copied().collect();
            assert_eq!(traced, chosen, "{platform}");
        }
        // Another delta of a trace that was chosen was not.
        let other = TraceContext {
            span_id: [8; 8],
            ..chosen[0]
        };
        assert!(!metrics.traces_delivery(of(220_000), &other, Micros(SECOND)));
    }

    #[tokio::test]
    async fn of_a_delivery_those_that_are_traced_come_first_and_others_fill_it_up() {
        let metrics = traced();
        let all = deltas(40);
        metrics.choose(of(110_000), &mut all[30..].to_vec(), Micros(SECOND));
        let first = metrics.chosen_first(all.iter(), 16);
        assert_eq!(first, [&all[30..], &all[..6]].concat());
        assert_eq!(metrics.chosen_first(all.iter(), 4), all[30..34]);
        assert_eq!(metrics.chosen_first([].iter(), 4), []);
    }

    #[tokio::test]
    async fn many_deltas_with_one_trace_get_no_more_spans_than_many_with_their_own() {
        let metrics = traced();
        let mut one = deltas(1);
        metrics.choose(of(110_000), &mut one, Micros(SECOND));
        let traced = |_: &usize| metrics.traces_delivery(of(330_000), &one[0], Micros(SECOND));
        let bound = usize::from(deliveries_per_second(3));
        assert_eq!((0..10_000).filter(traced).count(), bound);
        assert_eq!(left_out(&metrics, 330_000), (10_000 - bound) as u64);
    }

    #[tokio::test]
    async fn what_is_slow_is_kept_when_what_was_sampled_is_used_up() {
        let metrics = traced();
        let (platform, slow) = (of(110_000), Duration::from_secs(2));
        metrics.choose(platform, &mut deltas(1_000), Micros(SECOND));
        assert!(left_out(&metrics, 110_000) > 0);
        assert!(metrics.keeps_batch(platform, slow, false, Micros(SECOND)));
        assert!(metrics.keeps_delivery(platform, slow, Micros(SECOND)));
    }

    #[test]
    fn nothing_is_chosen_or_counted_when_nothing_is_traced() {
        let metrics = Metrics::new([of(110_000)]);
        let mut sampled = deltas(1_000);
        metrics.choose(of(110_000), &mut sampled, Micros(SECOND));
        assert_eq!((sampled.len(), left_out(&metrics, 110_000)), (0, 0));
        assert_eq!(metrics.chosen_first(deltas(3).iter(), 16), []);
        assert!(!metrics.traces_delivery(of(110_000), &delta(1), Micros(SECOND)));
    }
}
