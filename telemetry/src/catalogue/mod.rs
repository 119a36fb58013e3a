//! The catalogue of metrics: what each is called, what it means, and how many series it can have. The
//! programs make their instruments of it, [`page`] makes the reference of it, and alerts and dashboards
//! are checked against it.
//!
//! Series are bounded: a label has at most [`Label::values_max`] values, and a metric at most the product
//! over its labels. No label is free text, but for the name of a subscription, which its platform chooses out of
//! 64 plain characters, and the file of a certificate, which the operator does. None names a person.

mod metrics;
mod page;

pub use metrics::{Broker, Connector};
use opentelemetry::{KeyValue, metrics::Meter};
pub use page::page;

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only rises, from 0 at the start of the process.
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

impl Kind {
    /// As Prometheus has it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// What a series may be told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Label {
    Certificate,
    Colour,
    Conflict,
    Direction,
    Hop,
    Issuer,
    Lane,
    Level,
    Owner,
    Platform,
    Reason,
    Receiver,
    Result,
    State,
    Store,
    Subscription,
    Valve,
    Version,
}

/// 64 that can be configured, and `none`, for what belongs to nobody.
const PLATFORMS_MAX: usize = 65;

impl Label {
    pub const ALL: [Label; 18] = [
        Label::Certificate,
        Label::Colour,
        Label::Conflict,
        Label::Direction,
        Label::Hop,
        Label::Issuer,
        Label::Lane,
        Label::Level,
        Label::Owner,
        Label::Platform,
        Label::Reason,
        Label::Receiver,
        Label::Result,
        Label::State,
        Label::Store,
        Label::Subscription,
        Label::Valve,
        Label::Version,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Label::Certificate => "certificate",
            Label::Colour => "colour",
            Label::Conflict => "conflict",
            Label::Direction => "direction",
            Label::Hop => "hop",
            Label::Issuer => "issuer",
            Label::Lane => "lane",
            Label::Level => "level",
            Label::Owner => "owner",
            Label::Platform => "platform",
            Label::Reason => "reason",
            Label::Receiver => "receiver",
            Label::Result => "result",
            Label::State => "state",
            Label::Store => "store",
            Label::Subscription => "subscription",
            Label::Valve => "valve",
            Label::Version => "version",
        }
    }

    /// More values than this a label cannot have.
    pub const fn values_max(self) -> usize {
        match self {
            Label::Issuer | Label::Platform | Label::Receiver => PLATFORMS_MAX,
            // Those of the wire and those of the mapping.
            Label::Reason => 80,
            // Of one platform.
            Label::Subscription => 16,
            Label::Certificate => 16,
            Label::Owner => 9,
            Label::Level => 7,
            Label::Hop => 6,
            Label::State => 5,
            Label::Colour | Label::Conflict | Label::Valve => 3,
            Label::Direction | Label::Lane | Label::Result | Label::Store => 2,
            Label::Version => 1,
        }
    }

    /// What its values are.
    pub const fn help(self) -> &'static str {
        match self {
            Label::Certificate => "name of the file",
            Label::Colour => "`green`, `yellow`, `red`",
            Label::Conflict => "`cursor_ahead`, `cursor_back`, `another_log`",
            Label::Direction => "`to_producers`, `from_subscribers`",
            Label::Hop => {
                "`source_to_broker`, `broker_to_durable`, `durable_to_applied`, `applied_to_sent`, \
                 `sent_to_platform`, and the whole way, `source_to_platform`"
            }
            Label::Issuer => "six-digit code of the platform that a change comes from",
            Label::Lane => "`urgent`, `bulk`",
            Label::Level => "of the database, `0` to `6`",
            Label::Owner => {
                "`queue_urgent`, `queue_bulk`, `tail_urgent`, `tail_bulk`, `gather`, `memory_tables`, \
                 `block_cache`, `table_readers`, and `other`, the rest of what is in RAM"
            }
            Label::Platform => "six-digit code, or `none` for what belongs to nobody",
            Label::Reason => "of the catalogue of reasons",
            Label::Receiver => "six-digit code of the platform that has to apply a change",
            Label::Result => "`taken`, `refused`",
            Label::State => "`STARTING`, `SNAPSHOTTING`, `RUNNING`, `DEGRADED`, `FAILED`",
            Label::Store => "`log`, `state`",
            Label::Subscription => "name that the platform chose",
            Label::Valve => "what gives way: `catch_up`, `snapshot`, `bulk`",
            Label::Version => "of the program",
        }
    }
}

/// What stands in the catalogue about a metric.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// As it is scraped.
    pub name: &'static str,
    pub kind: Kind,
    /// UCUM, as OpenTelemetry wants it; always a base unit.
    pub unit: &'static str,
    /// In alphabetical order.
    pub labels: &'static [Label],
    pub help: &'static str,
}

impl Definition {
    /// More series than this cannot be; buckets are not counted.
    pub fn series_max(&self) -> usize {
        self.labels.iter().map(|label| label.values_max()).product()
    }

    /// Makes the instrument of a counter or a gauge. It lives in its meter, and asks `read` for all its values
    /// when it is scraped. A histogram cannot be read so, and gets none.
    pub fn observe(&self, meter: &Meter, read: impl Fn(Emit<'_>) + Send + Sync + 'static) {
        match self.kind {
            Kind::Counter => drop(
                meter
                    .f64_observable_counter(self.name)
                    .with_unit(self.unit)
                    .with_description(self.help)
                    .with_callback(move |to| read(&mut |value, labels| to.observe(value, labels)))
                    .build(),
            ),
            Kind::Gauge => drop(
                meter
                    .f64_observable_gauge(self.name)
                    .with_unit(self.unit)
                    .with_description(self.help)
                    .with_callback(move |to| read(&mut |value, labels| to.observe(value, labels)))
                    .build(),
            ),
            Kind::Histogram(_) => {}
        }
    }
}

/// Takes a value and its labels.
pub type Emit<'a> = &'a mut dyn FnMut(f64, &[KeyValue]);

/// Every metric of every program.
pub fn all() -> impl Iterator<Item = Definition> {
    let broker = Broker::ALL.iter().map(|metric| metric.definition());
    broker.chain(Connector::ALL.iter().map(|metric| metric.definition()))
}

/// How many series a metric may have.
pub fn series_max(name: &str) -> Option<usize> {
    all().find(|d| d.name == name).map(|d| d.series_max())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Names that every program has, and that tools look for.
    const PROCESS: &str = "process_";

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        let mut seen = BTreeSet::new();
        for d in all() {
            assert!(seen.insert(d.name), "{} stands twice", d.name);
            let ours = d.name.starts_with("hutong_") || d.name.starts_with(PROCESS);
            assert!(ours, "{}", d.name);
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            assert!(d.name.bytes().all(plain), "{}", d.name);
            let counter = d.kind == Kind::Counter;
            assert_eq!(d.name.ends_with("_total"), counter, "{}", d.name);
            let stem = d.name.trim_end_matches("_total");
            match d.unit {
                "s" => assert!(stem.ends_with("_seconds"), "{}", d.name),
                "By" => assert!(stem.contains("_bytes"), "{}", d.name),
                "By/s" => assert!(stem.ends_with("_bytes_per_second"), "{}", d.name),
                unit => assert!(
                    unit.is_empty() || unit.starts_with('{'),
                    "{}: {unit}",
                    d.name
                ),
            }
            assert!(
                d.help.ends_with('.') && !d.help.contains('\n'),
                "{}",
                d.name
            );
            assert!(d.labels.is_sorted(), "{}", d.name);
            if let Kind::Histogram(bounds) = d.kind {
                assert!(bounds.is_sorted() && bounds.len() <= 20, "{}", d.name);
            }
        }
    }

    #[test]
    fn no_metric_has_more_series_than_a_scrape_can_carry() {
        for d in all() {
            assert!(d.series_max() <= 10_000, "{} has too many series", d.name);
        }
        let total: usize = all().map(|d| d.series_max()).sum();
        assert!(total <= 60_000, "{total} series in all");
    }

    #[test]
    fn each_label_has_a_name_of_its_own_and_is_used() {
        let names: BTreeSet<_> = Label::ALL.iter().map(|l| l.name()).collect();
        assert_eq!(names.len(), Label::ALL.len());
        assert!(Label::ALL.is_sorted());
        for label in Label::ALL {
            assert!(all().any(|d| d.labels.contains(&label)), "{label:?}");
        }
    }
}
