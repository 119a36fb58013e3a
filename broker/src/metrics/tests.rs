//! What a scrape shows.

use super::*;
use crate::config::CERTIFICATES_MAX;
use hutong_proto::limits;
use hutong_telemetry::catalogue::{Kind, Label};
use std::collections::{BTreeMap, BTreeSet};

const ANHUI: u32 = 340_000;
const SICHUAN: u32 = 510_000;

fn platform(code: u32) -> Issuer {
    Issuer::new(code).expect("six digits")
}

struct Fixed;

impl Observe for Fixed {
    fn lags(&self) -> Vec<LagSample> {
        let sample = |subscription: &str, issuer, seconds| LagSample {
            platform: platform(SICHUAN),
            subscription: subscription.to_owned(),
            issuer,
            lane: Lane::Urgent,
            records: 3,
            seconds,
            oldest_at: Some(Micros(1_700_000_000_250_000)),
            oldest: Some(Offset(if subscription == "audit" { 9 } else { 11 })),
        };
        vec![
            sample("main", None, 1.5),
            sample("main", Some(platform(ANHUI)), 1.5),
            sample("audit", Some(platform(ANHUI)), 7.25),
        ]
    }

    fn gauges(&self) -> Gauges {
        Gauges {
            now: Micros(1_700_000_000_000_000),
            next_offset: Offset(12),
            commit_running: Duration::from_millis(1_500),
            bulk_held: Duration::from_millis(2_500),
            last_records: vec![(platform(ANHUI), Micros(1_700_000_000_500_000))],
            disk: Some(Disk {
                free: 4_000,
                size: 9_000,
            }),
            certificates: vec![("broker.pem".to_owned(), Micros(1_800_000_000_000_000))],
            queue_bytes: [5, 6],
            overload_limits: vec![(GiveWay::Bulk, Some(4e6)), (GiveWay::CatchUp, None)],
            producers_connected: vec![(platform(ANHUI), 2)],
            stores: vec![StoreGauges {
                name: "state",
                pending_compaction_bytes: 77,
                level_files: [4, 0, 0, 0, 0, 0, 2],
                ..StoreGauges::default()
            }],
            ..Gauges::default()
        }
    }
}

/// Metrics in which every instrument has something to show.
fn busy() -> Metrics {
    let metrics = Metrics::new([platform(SICHUAN), platform(ANHUI)]);
    metrics.accepted(platform(ANHUI), Lane::Urgent, 10);
    metrics.accepted(platform(ANHUI), Lane::Bulk, 5);
    metrics.refused(platform(ANHUI), Reason::RevisionZero, 2);
    metrics.refused(platform(999_999), Reason::IdentityUnknown, 1);
    metrics.batch(platform(ANHUI), 4_000);
    metrics.batch_duplicate(platform(ANHUI));
    metrics.acknowledged(Duration::from_millis(3));
    metrics.commit(
        8,
        9_000,
        Duration::from_micros(300),
        Duration::from_millis(2),
    );
    metrics.commit_failed();
    metrics.applied(8, Duration::from_micros(700));
    metrics.state_flushed(100, 9_600, Duration::from_millis(40));
    metrics.trimmed(3);
    metrics.reloaded(Micros(1_700_000_000_000_000));
    metrics.reload_refused();
    metrics.delivered(platform(SICHUAN), 8, 9_100);
    metrics.fell_behind(platform(SICHUAN));
    metrics.credit_exhausted(platform(SICHUAN));
    metrics.snapshot_rows(platform(SICHUAN), 1_000);
    for hop in Hop::ALL {
        metrics.hop(hop, Lane::Urgent, 0.003);
    }
    metrics.colours(
        platform(ANHUI),
        &Colours {
            applied: [7, 1, 2],
            flip_flops: 1,
        },
    );
    metrics.clock_said(platform(ANHUI), -250_000);
    metrics.credit(platform(SICHUAN), Direction::FromSubscribers, 77);
    metrics.view_conflict(platform(SICHUAN), Conflict::CursorAhead);
    metrics.observe(Arc::new(Fixed));
    metrics
}

fn scrape(metrics: &Metrics) -> String {
    metrics.registry().scrape().expect("scrape")
}

/// A sample line of the text format: name, labels, value.
fn sample(line: &str) -> Option<(&str, BTreeMap<&str, &str>, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        number => number.parse().ok()?,
    };
    let Some((name, labels)) = series.split_once('{') else {
        return Some((series, BTreeMap::new(), value));
    };
    let mut pairs = BTreeMap::new();
    for pair in labels.strip_suffix('}')?.split(',') {
        let (key, quoted) = pair.split_once('=')?;
        pairs.insert(key, quoted.strip_prefix('"')?.strip_suffix('"')?);
    }
    Some((name, pairs, value))
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[test]
fn a_scrape_is_valid_and_shows_every_name_of_the_table_and_no_other() {
    let text = scrape(&busy());
    let mut families: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut family, mut series) = ("", BTreeSet::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a kind");
            assert!(
                families.insert(name, kind).is_none(),
                "{name} has two TYPE lines"
            );
            family = name;
        } else if !line.starts_with("# HELP ") {
            let (name, labels, value) = sample(line).unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(name) && labels.keys().all(|k| is_name(k)), "{line}");
            let signed = name == Name::ClockSkew.definition().name;
            assert!(value >= 0.0 || signed, "{line}");
            let suffix = name
                .strip_prefix(family)
                .unwrap_or_else(|| panic!("{line} in {family}"));
            let of_histogram = ["_bucket", "_sum", "_count"].contains(&suffix);
            assert!(
                suffix.is_empty() || of_histogram && families[family] == "histogram",
                "{line}"
            );
            assert!(
                series.insert(line.rsplit_once(' ').expect("value").0),
                "{line} stands twice"
            );
        }
    }
    assert!(text.ends_with('\n'));
    let expected: BTreeMap<&str, &str> = Name::ALL
        .iter()
        .map(|name| name.definition())
        .map(|d| (d.name, d.kind.name()))
        .collect();
    assert_eq!(families, expected);
}

#[test]
fn each_metric_has_the_labels_of_the_table() {
    let text = scrape(&busy());
    for name in Name::ALL {
        let definition = name.definition();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.filter_map(sample).filter(|(name, ..)| {
            let stem = name.strip_suffix("_bucket").unwrap_or(name);
            stem == definition.name
        });
        for (_, mut labels, _) in samples {
            labels.remove("le");
            let keys: Vec<_> = labels.into_keys().collect();
            let expected: Vec<_> = definition.labels.iter().map(|l| l.name()).collect();
            assert_eq!(keys, expected, "{}", definition.name);
        }
    }
}

#[test]
fn values_are_what_was_counted() {
    let text = scrape(&busy());
    for line in [
        r#"hutong_deltas_accepted_total{lane="urgent",platform="340000"} 10"#,
        r#"hutong_deltas_accepted_total{lane="bulk",platform="340000"} 5"#,
        r#"hutong_deltas_accepted_total{lane="bulk",platform="510000"} 0"#,
        r#"hutong_deltas_refused_total{platform="340000",reason="REVISION_ZERO"} 2"#,
        r#"hutong_deltas_refused_total{platform="none",reason="IDENTITY_UNKNOWN"} 1"#,
        r#"hutong_batch_bytes_total{platform="340000"} 4000"#,
        r#"hutong_batch_bytes_total{platform="510000"} 0"#,
        r#"hutong_log_records_appended_total 8"#,
        r#"hutong_commit_bytes_bucket{le="16384"} 1"#,
        r#"hutong_commit_bytes_bucket{le="4096"} 0"#,
        r#"hutong_commit_sync_seconds_bucket{le="0.001"} 0"#,
        r#"hutong_commit_sync_seconds_bucket{le="0.0025"} 1"#,
        r#"hutong_commit_sync_seconds_bucket{le="+Inf"} 1"#,
        r#"hutong_delivered_bytes_total{platform="510000"} 9100"#,
        r#"hutong_producers_connected{platform="340000"} 2"#,
        r#"hutong_producers_connected{platform="510000"} 0"#,
        r#"hutong_queue_bytes{lane="bulk"} 6"#,
        r#"hutong_log_next_offset 12"#,
        r#"hutong_store_pending_compaction_bytes{store="state"} 77"#,
        r#"hutong_subscription_lag_seconds{lane="urgent",platform="510000",subscription="main"} 1.5"#,
        r#"hutong_pair_oldest_unapplied_seconds{issuer="340000",lane="urgent",receiver="510000"} 7.25"#,
        r#"hutong_pair_oldest_unapplied_timestamp_seconds{issuer="340000",lane="urgent",receiver="510000"} 1700000000.25"#,
        r#"hutong_pair_oldest_unapplied_offset{issuer="340000",lane="urgent",receiver="510000"} 9"#,
        r#"hutong_pair_lag_records{issuer="340000",lane="urgent",receiver="510000"} 3"#,
        r#"hutong_hop_seconds_bucket{hop="sent_to_platform",lane="urgent",le="0.005"} 1"#,
        r#"hutong_colours_applied_total{colour="red",platform="340000"} 2"#,
        r#"hutong_colour_flip_flops_total{platform="340000"} 1"#,
        r#"hutong_platform_last_record_timestamp_seconds{platform="340000"} 1700000000.5"#,
        r#"hutong_clock_skew_seconds{platform="340000"} -0.25"#,
        r#"hutong_credit_given_bytes_total{direction="from_subscribers",platform="510000"} 77"#,
        r#"hutong_view_conflicts_total{conflict="cursor_ahead",platform="510000"} 1"#,
        r#"hutong_commit_running_seconds 1.5"#,
        r#"hutong_bulk_held_seconds 2.5"#,
        r#"hutong_config_reloads_total{result="taken"} 1"#,
        r#"hutong_config_reloads_total{result="refused"} 1"#,
        r#"hutong_config_last_reload_successful 0"#,
        r#"hutong_config_last_reload_success_timestamp_seconds 1700000000"#,
        r#"hutong_disk_free_bytes 4000"#,
        r#"hutong_certificate_not_after_timestamp_seconds{certificate="broker.pem"} 1800000000"#,
        r#"hutong_store_level_files{level="0",store="state"} 4"#,
        r#"hutong_memory_bytes{owner="queue_bulk"} 6"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    let metrics = busy();
    assert_eq!(metrics.accepted_total(platform(ANHUI)), 15);
    assert_eq!(metrics.refused_total(platform(ANHUI)), 2);
}

/// Everything that can be: the most platforms, subscriptions, reasons and files.
struct Largest(Vec<Issuer>);

impl Observe for Largest {
    fn lags(&self) -> Vec<LagSample> {
        let mut samples = Vec::new();
        for receiver in &self.0 {
            for lane in Lane::DELIVERED {
                for n in 0..limits::SUBSCRIPTIONS_PER_PLATFORM_MAX {
                    let of = |issuer| LagSample {
                        platform: *receiver,
                        subscription: format!("subscription-{n}"),
                        issuer,
                        lane,
                        records: 1,
                        seconds: 1.0,
                        oldest_at: Some(Micros(1)),
                        oldest: Some(Offset(1)),
                    };
                    samples.push(of(None));
                    samples.extend(self.0.iter().map(|issuer| of(Some(*issuer))));
                }
            }
        }
        samples
    }

    fn gauges(&self) -> Gauges {
        let store = |name| StoreGauges {
            name,
            ..StoreGauges::default()
        };
        let each = |n| self.0.iter().map(|p| (*p, n)).collect::<Vec<_>>();
        Gauges {
            producers_connected: each(1),
            subscribers_connected: each(1),
            last_records: self.0.iter().map(|p| (*p, Micros(1))).collect(),
            overload_limits: GiveWay::ALL.map(|what| (what, Some(1.0))).to_vec(),
            certificates: (0..CERTIFICATES_MAX)
                .map(|n| (format!("{n}.pem"), Micros(1)))
                .collect(),
            stores: vec![store("log"), store("state")],
            ..Gauges::default()
        }
    }
}

#[test]
fn the_largest_broker_stays_within_the_bounds_of_the_catalogue() {
    let count = limits::PLATFORMS_MAX as u32;
    let platforms: Vec<Issuer> = (0..count).map(|i| platform(100_000 + i)).collect();
    let metrics = Metrics::new(platforms.clone());
    for platform in platforms.iter().copied().chain([platform(999_999)]) {
        for reason in Reason::ALL {
            metrics.refused(platform, *reason, 1);
        }
        metrics.clock_said(platform, 1);
        metrics.batch(platform, 1);
    }
    for hop in Hop::ALL {
        for lane in Lane::DELIVERED {
            metrics.hop(hop, lane, 1.0);
        }
    }
    metrics.observe(Arc::new(Largest(platforms)));
    let text = scrape(&metrics);
    assert!(
        !text.contains("otel_metric_overflow"),
        "a series is missing"
    );
    let mut series: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, ..) in text.lines().filter_map(sample) {
        *series.entry(name).or_default() += 1;
    }
    for name in Name::ALL {
        let d = name.definition();
        // What nobody has recorded yet has no series.
        let name = match d.kind {
            Kind::Histogram(_) => format!("{}_count", d.name),
            Kind::Counter | Kind::Gauge => d.name.to_owned(),
        };
        let count = series.get(name.as_str()).copied().unwrap_or(0);
        assert!(count <= d.series_max(), "{}: {count} series", d.name);
    }
    let owners = series["hutong_memory_bytes"];
    assert_eq!(owners, Label::Owner.values_max(), "each is always there");
    let pairs = (count * count * 2) as usize;
    assert_eq!(series["hutong_pair_oldest_unapplied_seconds"], pairs);
    assert_eq!(series["hutong_pair_lag_records"], pairs);
}

#[test]
fn the_bounds_of_the_catalogue_are_those_of_the_broker() {
    for (label, real) in [
        (Label::Platform, limits::PLATFORMS_MAX + 1),
        (Label::Subscription, limits::SUBSCRIPTIONS_PER_PLATFORM_MAX),
        (Label::Valve, GiveWay::ALL.len()),
        (Label::Colour, Colour::ALL.len()),
        (Label::Conflict, Conflict::ALL.len()),
        (Label::Direction, Direction::ALL.len()),
        (Label::Hop, Hop::ALL.len()),
        (Label::Lane, Lane::DELIVERED.len()),
        (Label::Level, LEVELS),
    ] {
        assert_eq!(label.values_max(), real, "{label:?}");
    }
    assert!(Reason::ALL.len() <= Label::Reason.values_max());
    assert!(
        Colour::ALL.is_sorted(),
        "their places are those of the counters"
    );
}

#[test]
fn dropping_the_metrics_lets_go_of_the_observer() {
    let observer: Arc<dyn Observe> = Arc::new(Fixed);
    let metrics = Metrics::new([platform(ANHUI)]);
    metrics.observe(Arc::clone(&observer));
    let recorder = metrics.recorder();
    assert!(!scrape(&metrics).is_empty());
    drop(metrics);
    assert_eq!(
        Arc::strong_count(&observer),
        1,
        "the recorder must not hold it"
    );
    recorder.trimmed(1);
}
