//! OpenTelemetry instruments, read in Prometheus' text format.

use opentelemetry::{
    KeyValue,
    metrics::{Meter, MeterProvider as _},
};
use opentelemetry_otlp::{MetricExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    metrics::{Instrument, PeriodicReader, SdkMeterProvider, Stream},
};
use prometheus::{Registry, TextEncoder};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often metrics are pushed.
pub const PUSH_EVERY: Duration = Duration::from_secs(15);
const NEVER: Duration = Duration::from_secs(365 * 86_400);

type Hook = Box<dyn Fn() + Send + Sync>;

/// Who pushes, as collectors show it: the same with metrics and with spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: &'static str,
    /// Tells it from others of that name, and stays the same over restarts.
    pub instance: String,
}

impl Service {
    pub(crate) fn resource(&self) -> Resource {
        Resource::builder_empty()
            .with_service_name(self.name)
            .with_attribute(KeyValue::new("service.instance.id", self.instance.clone()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build()
    }
}

/// Makes instruments, and reads them all. Cheap to clone.
#[derive(Clone)]
pub struct Exporter(Arc<Inner>);

struct Inner {
    registry: Registry,
    provider: SdkMeterProvider,
    pushes: bool,
    /// Run before the instruments are read. The lock also keeps those who run them, and
    /// scrapes, one after the other.
    before: Mutex<Vec<Hook>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    #[error("cannot set up the metrics: {0}")]
    SetUp(String),
    #[error("cannot encode the metrics: {0}")]
    Encode(String),
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl Exporter {
    /// `series_max` says how many series an instrument may have, by its name; what is beyond goes into
    /// one series with the label `otel_metric_overflow`. `None` means the default of 2,000.
    ///
    /// Instruments are named as they are scraped: no suffix is added for unit or kind, and no labels
    /// about who measured.
    pub fn new(
        series_max: impl Fn(&str) -> Option<usize> + Send + Sync + 'static,
    ) -> Result<Exporter, ScrapeError> {
        Exporter::pushing(series_max, None)
    }

    /// The same, and [`Exporter::push`] pushes as this service to this address by OTLP over gRPC:
    /// `http://127.0.0.1:4317`. Within a runtime of tokio; nothing is connected yet.
    pub fn pushing(
        series_max: impl Fn(&str) -> Option<usize> + Send + Sync + 'static,
        otlp: Option<(&str, &Service)>,
    ) -> Result<Exporter, ScrapeError> {
        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_units()
            .without_counter_suffixes()
            .without_target_info()
            .scope_info_enabled(false)
            .build()
            .map_err(|e| ScrapeError::SetUp(e.to_string()))?;
        let view = move |instrument: &Instrument| {
            let limit = series_max(instrument.name())?;
            Stream::builder()
                .with_cardinality_limit(limit.max(1))
                .build()
                .ok()
        };
        let mut provider = SdkMeterProvider::builder()
            .with_resource(match otlp {
                Some((_, service)) => service.resource(),
                None => Resource::builder_empty().build(),
            })
            .with_reader(reader)
            .with_view(view);
        if let Some((otlp, _)) = otlp {
            let exporter = MetricExporter::builder()
                .with_tonic()
                .with_endpoint(otlp)
                .build()
                .map_err(|e| ScrapeError::SetUp(e.to_string()))?;
            // It would read without the hooks: it is told when.
            let reader = PeriodicReader::builder(exporter)
                .with_interval(NEVER)
                .build();
            provider = provider.with_reader(reader);
        }
        Ok(Exporter(Arc::new(Inner {
            registry,
            provider: provider.build(),
            pushes: otlp.is_some(),
            before: Mutex::default(),
        })))
    }

    /// Makes instruments.
    pub fn meter(&self, name: &'static str) -> Meter {
        self.0.provider.meter(name)
    }

    /// Runs before each scrape: the place to collect at once what several observable instruments
    /// report. It may block, and must not scrape.
    pub fn before_scrape(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.hooks().push(Box::new(hook));
    }

    /// All instruments in Prometheus' text format. Blocks for as long as observers take.
    pub fn scrape(&self) -> Result<String, ScrapeError> {
        let hooks = self.hooks();
        for hook in hooks.iter() {
            hook();
        }
        let families = self.0.registry.gather();
        TextEncoder::new()
            .encode_to_string(&families)
            .map_err(|e| ScrapeError::Encode(e.to_string()))
    }

    /// Pushes all instruments, if there is somewhere to push them to. Blocks for as long as that takes.
    fn push_once(&self) {
        let hooks = self.hooks();
        for hook in hooks.iter() {
            hook();
        }
        // A collector may take long, and who scrapes must not wait for it.
        drop(hooks);
        if let Err(error) = self.0.provider.force_flush() {
            tracing::warn!(%error, "metrics could not be pushed");
        }
    }

    /// Pushes now and then until it is told to stop. Ends at once without an address.
    pub async fn push(self, every: Duration, stop: CancellationToken) {
        if !self.0.pushes {
            return;
        }
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Each is cancel-safe.
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let exporter = self.clone();
            // Only a defect of a hook ends it so, and the next push says it again.
            drop(tokio::task::spawn_blocking(move || exporter.push_once()).await);
        }
    }

    fn hooks(&self) -> std::sync::MutexGuard<'_, Vec<Hook>> {
        // A hook that panicked left the list as it was.
        self.0.before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn exporter() -> Exporter {
        Exporter::new(|name| (name == "wide_total").then_some(3_000)).expect("exporter")
    }

    #[test]
    fn names_are_scraped_as_they_were_given() {
        let exporter = exporter();
        let meter = exporter.meter("a");
        let counter = meter.u64_counter("sent_bytes_total");
        let counter = counter.with_unit("By").with_description("Sent.").build();
        counter.add(3, &[KeyValue::new("lane", "urgent")]);
        assert_eq!(
            exporter.scrape().expect("scrape"),
            "# HELP sent_bytes_total Sent.\n# TYPE sent_bytes_total counter\n\
             sent_bytes_total{lane=\"urgent\"} 3\n"
        );
    }

    #[test]
    fn more_series_than_the_default_fit_where_it_was_said() {
        let exporter = exporter();
        let meter = exporter.meter("a");
        for name in ["wide_total", "narrow_total"] {
            let counter = meter.u64_counter(name).build();
            (0..3_000).for_each(|i| counter.add(1, &[KeyValue::new("i", i)]));
        }
        let text = exporter.scrape().expect("scrape");
        let lines = |name| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(lines("wide_total{i="), 3_000);
        assert_eq!(lines("wide_total{otel_metric_overflow"), 0);
        assert_eq!(lines("narrow_total{i="), 2_000);
        assert_eq!(lines("narrow_total{otel_metric_overflow"), 1);
    }

    #[test]
    fn series_that_are_no_longer_observed_disappear() {
        let exporter = exporter();
        let seen = Arc::new(AtomicU64::new(1));
        let hooked = Arc::clone(&seen);
        exporter.before_scrape(move || {
            hooked.fetch_add(1, Ordering::Relaxed);
        });
        let meter = exporter.meter("a");
        let _gauge = meter
            .u64_observable_gauge("lag")
            .with_callback(move |observer| {
                let n = seen.load(Ordering::Relaxed);
                observer.observe(7, &[KeyValue::new("n", n.to_string())]);
            })
            .build();
        assert!(
            exporter
                .scrape()
                .expect("scrape")
                .contains("lag{n=\"2\"} 7\n")
        );
        let text = exporter.scrape().expect("scrape");
        assert!(
            text.contains("lag{n=\"3\"} 7\n") && !text.contains("n=\"2\""),
            "{text}"
        );
    }

    #[test]
    fn two_exporters_do_not_see_each_other() {
        let (one, two) = (exporter(), exporter());
        one.meter("a").u64_counter("x_total").build().add(1, &[]);
        assert!(one.scrape().expect("scrape").contains("x_total 1"));
        assert_eq!(two.scrape().expect("scrape"), "");
    }
}
