//! What a scrape shows.

use super::{
    names::{Kind, Name},
    *,
};
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
        };
        vec![
            sample("main", None, 1.5),
            sample("main", Some(platform(ANHUI)), 1.5),
            sample("audit", Some(platform(ANHUI)), 7.25),
        ]
    }

    fn gauges(&self) -> Gauges {
        Gauges {
            next_offset: Offset(12),
            queue_bytes: [5, 6],
            overload_limits: vec![(GiveWay::Bulk, Some(4e6)), (GiveWay::CatchUp, None)],
            producers_connected: vec![(platform(ANHUI), 2)],
            stores: vec![StoreGauges {
                name: "state",
                pending_compaction_bytes: 77,
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
    metrics.reloaded(hutong_proto::Micros(1_700_000_000_000_000));
    metrics.reload_refused();
    metrics.delivered(platform(SICHUAN), 8, 9_100);
    metrics.fell_behind(platform(SICHUAN));
    metrics.credit_exhausted(platform(SICHUAN));
    metrics.snapshot_rows(platform(SICHUAN), 1_000);
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
            assert!(value >= 0.0, "{line}");
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
        .map(|d| match d.kind {
            Kind::Counter => (d.name, "counter"),
            Kind::Gauge => (d.name, "gauge"),
            Kind::Histogram => (d.name, "histogram"),
        })
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
            assert_eq!(keys, definition.labels, "{}", definition.name);
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
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    let metrics = busy();
    assert_eq!(metrics.accepted_total(platform(ANHUI)), 15);
    assert_eq!(metrics.refused_total(platform(ANHUI)), 2);
}

#[test]
fn the_largest_pair_matrix_fits() {
    struct Matrix(Vec<Issuer>);
    impl Observe for Matrix {
        fn lags(&self) -> Vec<LagSample> {
            let pairs = self
                .0
                .iter()
                .flat_map(|a| self.0.iter().map(move |b| (*a, *b)));
            let pairs = pairs.filter(|(a, b)| a != b);
            pairs
                .flat_map(|pair| Lane::DELIVERED.map(|lane| (pair, lane)))
                .map(|((issuer, platform), lane)| LagSample {
                    platform,
                    subscription: "main".to_owned(),
                    issuer: Some(issuer),
                    lane,
                    records: 0,
                    seconds: 0.0,
                })
                .collect()
        }
        fn gauges(&self) -> Gauges {
            Gauges::default()
        }
    }
    let platforms: Vec<Issuer> = (0..64).map(|i| platform(100_000 + i)).collect();
    let metrics = Metrics::new(platforms.clone());
    metrics.observe(Arc::new(Matrix(platforms)));
    let text = scrape(&metrics);
    let series = text
        .lines()
        .filter(|l| l.starts_with("hutong_pair_oldest_unapplied_seconds{"));
    assert_eq!(series.count(), 64 * 63 * 2);
    assert!(!text.contains("otel_metric_overflow"));
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
