//! Every alert is fired for real: a Prometheus scrapes a broker and a connector while something is broken, the alert
//! comes, with its page and its texts, and goes when it is mended. Only times and thresholds of the rules are smaller.

mod watch;

use hutong_connectors::client::{Endpoint, Identity, admin};
use hutong_proto::{LogId, api, delta::Colour};
use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};
use watch::{
    ANHUI, BadCalls, Broker, Connector, SHANGHAI, SICHUAN, Setup,
    clients::{Sink, Source, call_with_clock, claim_too_much},
    metric,
    prometheus::{Alert, Prometheus},
    rules, until,
};

/// Branches of alerts, with the times of a test.
const WRITE_HANGS: &str = "max by (instance) (hutong_commit_running_seconds) > 0.5";
const BULK_IS_HELD: &str = "max by (instance) (hutong_bulk_held_seconds) > 0.5";
const SYNCS_ARE_SLOW: &str = "sum by (instance) (rate(hutong_commit_sync_seconds_sum[4s])) \
     / sum by (instance) (rate(hutong_commit_sync_seconds_count[4s])) > 0.5";
const WRITES_ARE_STOPPED: &str = "max by (instance) (hutong_store_writes_stopped) == 1";
const NEARLY_FULL: &str = "hutong_disk_free_bytes / hutong_disk_size_bytes < 0.1";
const WILL_BE_FULL: &str = "predict_linear(hutong_disk_free_bytes[8s], 32) < 0";
const LITTLE_IS_FREE: &str = "hutong_disk_free_bytes / hutong_disk_size_bytes < 0.4";
const RESTARTED: &str = "changes(process_start_time_seconds{job=\"hutong-broker\"}[8s]) > 0";
const REFUSED_AGAIN: &str =
    "(increase(hutong_deltas_refused_total{reason!=\"REVISION_NOT_NEWER\"}[8s]) > 0)";

/// Everything that a test needs, in one folder.
struct Stage {
    dir: tempfile::TempDir,
    broker: Broker,
    connector: Connector,
    source: Option<Source>,
    sichuan: Sink,
    shanghai: Option<Sink>,
    prometheus: Prometheus,
    fired: BTreeSet<String>,
}

impl Stage {
    async fn build(setup: Setup) -> Stage {
        let dir = tempfile::tempdir().expect("a folder");
        let broker = Broker::start_with(dir.path(), setup).await;
        let source = Some(Source::start(&broker).await);
        let sichuan = Sink::start(&broker, SICHUAN).await;
        let shanghai = Some(Sink::start(&broker, SHANGHAI).await);
        let connector = Connector::start(dir.path(), &broker).await;
        let targets = [
            ("hutong-broker", broker.http),
            ("hutong-connect", connector.http),
        ];
        let names = rules::write_short(dir.path());
        let prometheus = Prometheus::start(dir.path(), &names, &targets).await;
        Stage {
            dir,
            broker,
            connector,
            source,
            sichuan,
            shanghai,
            prometheus,
            fired: BTreeSet::new(),
        }
    }

    /// Waits for an alert, and looks at what it says.
    async fn fires(&mut self, name: &str, labels: &[(&str, &str)]) {
        let alert = self.prometheus.fires(name, labels).await;
        check_texts(&alert);
        self.fired.insert(name.to_owned());
    }

    fn source(&self) -> &Source {
        self.source.as_ref().expect("it is there")
    }

    /// Of an alert with several branches, that it fires by this one.
    async fn by(&self, branch: &str) {
        assert!(rules::alerts_have(branch), "no alert has {branch}");
        self.says(branch, true).await;
    }

    /// Waits until an expression has a value, or has none.
    async fn says(&self, expression: &str, something: bool) {
        until(expression, async || {
            let said = self.prometheus.query(expression)?;
            match said.is_empty() == something {
                true => Err(format!("it says {said:?}")),
                false => Ok(()),
            }
        })
        .await;
    }

    /// What an expression says now is nothing.
    fn is_silent(&self, expression: &str) {
        assert_eq!(
            self.prometheus.query(expression),
            Ok(Vec::new()),
            "{expression}"
        );
    }

    async fn clears(&self, names: &[&str]) {
        self.prometheus.clears(names).await;
    }
}

fn check_texts(alert: &Alert) {
    let name = alert.name();
    let text = |key: &str| alert.annotations.get(key).map_or("", String::as_str);
    let page = format!("https://runbooks.example/{name}.md");
    assert_eq!(text("runbook_url"), page);
    for key in ["summary", "summary_zh"] {
        let summary = text(key);
        let whole =
            !summary.is_empty() && !summary.contains("<no value>") && !summary.contains("error");
        assert!(whole, "{name}: {summary:?}");
    }
    assert!(
        text("summary_zh")
            .chars()
            .any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c)),
        "{name}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_alert_fires_for_its_fault_and_clears_when_it_is_mended() {
    let mut stage = Stage::build(Setup::default()).await;
    stage.fires("Watchdog", &[]).await;
    stage.prometheus.is_quiet().await;
    a_platform_stops_applying(&mut stage).await;
    a_platform_is_gone_and_one_is_silent(&mut stage).await;
    a_platform_that_only_publishes_is_gone(&mut stage).await;
    a_wave_a_wrong_clock_and_a_wrong_cursor(&mut stage).await;
    what_is_refused(&mut stage).await;
    files_that_are_wrong(&mut stage).await;
    a_disk_that_will_be_full(&mut stage).await;
    a_state_that_is_not_written_down(&mut stage).await;
    a_disk_that_is_slow_and_then_full(&mut stage).await;
    a_broker_that_is_gone(&mut stage).await;
    let alerts = rules::read("prometheus/alerts.yml");
    let all = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let all: BTreeSet<String> = all.map(str::to_owned).collect();
    assert_eq!(
        stage.fired, all,
        "those that fired, and those that there are"
    );
}

async fn a_platform_stops_applying(stage: &mut Stage) {
    stage.sichuan.stall(true);
    who_since_when_and_which_change(stage).await;
    stage
        .fires("LagHigh", &[("platform", "510000"), ("lane", "urgent")])
        .await;
    // What is never applied is in no histogram, and still the promise is not kept.
    stage.says("hutong:urgent_kept:ratio5m < 0.99", true).await;
    stage
        .fires(
            "OldestUnappliedStale",
            &[("issuer", "340000"), ("receiver", "510000")],
        )
        .await;
    stage.fires("LagGrowing", &[("platform", "510000")]).await;
    stage.source().publish_bulk().await;
    let bulk = [
        ("platform", "510000"),
        ("lane", "bulk"),
        ("severity", "warning"),
    ];
    stage.fires("LagHigh", &bulk).await;
    let firing = stage.prometheus.firing().expect("alerts");
    let others = firing.iter().find(|a| {
        let whom = a
            .labels
            .get("platform")
            .or_else(|| a.labels.get("receiver"));
        whom.map(String::as_str) != Some("510000")
    });
    assert!(others.is_none(), "{others:?} has nothing to do with it");
    stage.sichuan.stall(false);
    stage.prometheus.is_quiet().await;
    nobody_waits_for_anything(stage).await;
}

/// After healing all of them are clear, and not only what fires.
async fn nobody_waits_for_anything(stage: &mut Stage) {
    stage.source().be_silent(true);
    until("all are clear", async || {
        let page = stage.broker.metrics()?;
        let of = |name: &str| {
            let series = format!("{name}{{issuer=\"340000\",lane=\"urgent\",receiver=\"510000\"}}");
            metric(&page, &series)
        };
        let measured = of("hutong_pair_lag_records") == Some(0.0)
            && of("hutong_pair_oldest_unapplied_seconds") == Some(0.0)
            && of("hutong_pair_oldest_unapplied_timestamp_seconds").is_none()
            && of("hutong_pair_oldest_unapplied_offset").is_none();
        let own = *stage.sichuan.applied.borrow();
        let said = [
            command_line(&stage.broker.address()).map(|(lag, _)| lag.0),
            console(stage).map(|(lag, _)| lag.0),
        ];
        match measured && own.waiting == 0 && said == [Ok(0), Ok(0)] {
            true => Ok(()),
            false => Err(format!(
                "metric {measured}, {own:?}, command, console: {said:?}"
            )),
        }
    })
    .await;
    stage.source().be_silent(false);
}

/// The matrix, the console, the metric, the command line and the subscriber itself say the same within five seconds.
async fn who_since_when_and_which_change(stage: &mut Stage) {
    let begun = Instant::now();
    until("one pair is behind", async || {
        let page = stage.broker.metrics()?;
        let series = r#"hutong_pair_lag_records{issuer="340000",lane="urgent",receiver="510000"}"#;
        let records = metric(&page, series).ok_or("no series")?;
        match records >= 3.0 {
            true => Ok(()),
            false => Err(format!("{records} records")),
        }
    })
    .await;
    // Nothing new comes, so that all of them look at the same moment.
    stage.source().be_silent(true);
    let operator = Identity::Operator("test".to_owned());
    let endpoint = Endpoint::new(stage.broker.address(), operator);
    let mut admin = admin(&endpoint).expect("an address");
    until("all say the same", async || {
        let request = api::GetLagMatrixRequest {};
        let matrix = admin
            .get_lag_matrix(request)
            .await
            .map_err(|e| e.to_string())?;
        let pairs = matrix.into_inner().pairs;
        let is = |pair: &&api::LagPair| (pair.issuer, pair.receiver) == (ANHUI, SICHUAN);
        let pair = pairs.iter().find(is).ok_or("no such pair")?;
        let lag = pair.urgent.ok_or("no lag")?;
        let page = stage.broker.metrics()?;
        let of = |name: &str| {
            let series = format!("{name}{{issuer=\"340000\",lane=\"urgent\",receiver=\"510000\"}}");
            metric(&page, &series).ok_or(format!("no {series}"))
        };
        let own = *stage.sichuan.applied.borrow();
        let (own_at, own_offset) = own.oldest.map_or((0, 0), |(at, offset)| (at.0, offset));
        let (command, change) = command_line(&stage.broker.address())?;
        let (console, shown) = console(stage)?;
        let measured = of("hutong_pair_oldest_unapplied_offset")? as u64;
        let changes = [lag.oldest_offset, own_offset, measured, change, shown];
        if changes.iter().any(|one| *one != changes[0]) {
            return Err(format!(
                "which change: matrix, subscriber, metric, command, console: {changes:?}"
            ));
        }
        let told = (
            of("hutong_pair_lag_records")? as u64,
            (of("hutong_pair_oldest_unapplied_timestamp_seconds")? * 1e6).round() as u64,
        );
        let matrix = (lag.records, lag.oldest_at_us);
        let subscriber = (own.waiting, own_at);
        let all = [told, matrix, subscriber, command, console];
        match all.iter().all(|one| *one == all[0]) {
            true => Ok(()),
            false => Err(format!(
                "metric, matrix, subscriber, command, console: {all:?}"
            )),
        }
    })
    .await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    stage.source().be_silent(false);
}

/// Of a pair: records, and since when; and the offset of the oldest change.
type Said = ((u64, u64), u64);

fn said(lane: &serde_json::Value) -> Result<Said, String> {
    let number = |key: &str| lane[key].as_u64().ok_or(format!("no {key} in {lane}"));
    let records = (number("records")?, number("oldest_at_us")?);
    Ok((records, number("oldest_offset")?))
}

/// What the console shows of the pair on the platform's page.
fn console(stage: &Stage) -> Result<Said, String> {
    let page = watch::get(stage.broker.http, "/console/api/platform/510000")?;
    let json: serde_json::Value =
        serde_json::from_str(&page).map_err(|e| format!("{e}: {page}"))?;
    let pairs = json["pairs"].as_array().ok_or("no list of pairs")?;
    let pair = pairs.iter().find(|p| p["issuer"] == ANHUI);
    said(&pair.ok_or(format!("no such pair in {page}"))?["lag"][0])
}

/// What `hutong lag --matrix` says of the pair.
fn command_line(address: &str) -> Result<Said, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_hutong"))
        .args(["lag", "--matrix", "--output", "json", "--address", address])
        .output()
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
    let pairs = json.as_array().ok_or("no list of pairs")?;
    let pair = pairs
        .iter()
        .find(|p| p["issuer"] == ANHUI && p["receiver"] == SICHUAN)
        .ok_or(format!("no such pair in {text}"))?;
    said(&pair["urgent"])
}

async fn a_platform_is_gone_and_one_is_silent(stage: &mut Stage) {
    stage.shanghai = None;
    stage.source().be_silent(true);
    stage.fires("PlatformDown", &[("platform", "310000")]).await;
    stage
        .fires("PlatformSilent", &[("platform", "340000")])
        .await;
    stage.source().be_silent(false);
    stage.shanghai = Some(Sink::start(&stage.broker, SHANGHAI).await);
    stage.prometheus.is_quiet().await;
}

/// Nothing is delivered to it, so it has no lag by which it would be known.
async fn a_platform_that_only_publishes_is_gone(stage: &mut Stage) {
    stage.is_silent(r#"hutong_subscription_lag_seconds{platform="340000"}"#);
    stage.connector.kill();
    stage.source = None;
    stage.fires("PlatformDown", &[("platform", "340000")]).await;
    stage
        .fires("PlatformSilent", &[("platform", "340000")])
        .await;
    let firing = stage.prometheus.firing().expect("alerts");
    let other = |a: &&Alert| a.labels.get("platform").map(String::as_str) != Some("340000");
    assert_eq!(firing.iter().find(other).map(Alert::name), None);
    // It is connected by that alone, and still says nothing.
    stage.connector.start_again().await;
    stage.clears(&["PlatformDown"]).await;
    stage
        .fires("PlatformSilent", &[("platform", "340000")])
        .await;
    stage.source = Some(Source::start(&stage.broker).await);
    stage.prometheus.is_quiet().await;
}

async fn a_wave_a_wrong_clock_and_a_wrong_cursor(stage: &mut Stage) {
    let log_id = log_id(&stage.broker).await;
    stage.source().publish(300, Colour::Red).await;
    call_with_clock(&stage.broker, SICHUAN, -120).await;
    claim_too_much(&stage.broker, SHANGHAI, log_id).await;
    stage.fires("ColourWave", &[("platform", "340000")]).await;
    stage
        .fires(
            "ViewsDiffer",
            &[("platform", "310000"), ("conflict", "cursor_ahead")],
        )
        .await;
    stage.fires("ClockSkew", &[("platform", "510000")]).await;
    call_with_clock(&stage.broker, SHANGHAI, 120).await;
    stage.fires("ClockSkew", &[("platform", "310000")]).await;
    call_with_clock(&stage.broker, SICHUAN, 0).await;
    call_with_clock(&stage.broker, SHANGHAI, 0).await;
    stage.prometheus.is_quiet().await;
}

async fn log_id(broker: &Broker) -> LogId {
    let operator = Identity::Operator("test".to_owned());
    let mut admin = admin(&Endpoint::new(broker.address(), operator)).expect("an address");
    let status = admin
        .get_status(api::GetStatusRequest {})
        .await
        .expect("a status");
    LogId(status.into_inner().log_id)
}

async fn what_is_refused(stage: &mut Stage) {
    stage.source().publish_wrong().await;
    let refused = [("platform", "340000"), ("reason", "TIME_IN_FUTURE")];
    stage.fires("DeadLettersGrowing", &refused).await;
    // What was not there before has no increase.
    stage.is_silent(REFUSED_AGAIN);
    stage.clears(&["DeadLettersGrowing"]).await;
    // The reason is known by now: another branch of the alert than the first time.
    stage.source().publish_wrong().await;
    stage.fires("DeadLettersGrowing", &refused).await;
    stage.by(REFUSED_AGAIN).await;
    stage.clears(&["DeadLettersGrowing"]).await;
    stage.connector.poison("2022-12-01.json");
    let letters = [("job", "hutong-connect")];
    stage.fires("DeadLettersGrowing", &letters).await;
    stage.prometheus.is_quiet().await;
}

async fn files_that_are_wrong(stage: &mut Stage) {
    stage.broker.certificate("expired.pem");
    std::fs::write(stage.broker.config(), "nothing = \"right\"\n").expect("written");
    stage.broker.reload();
    stage
        .fires("CertificateExpiring", &[("certificate", "proxy.pem")])
        .await;
    stage.fires("ConfigReloadFailed", &[]).await;
    stage.broker.certificate("until-2126.pem");
    // Another age is something that it can take over.
    stage.broker.write_config("6d");
    stage.broker.reload();
    stage.prometheus.is_quiet().await;
    // One that cannot be read is as good as expired.
    stage.broker.spoil_certificate();
    stage
        .fires("CertificateExpiring", &[("certificate", "proxy.pem")])
        .await;
    stage.broker.certificate("until-2126.pem");
    stage.prometheus.is_quiet().await;
}

/// It has more room than it needs, and would not have it for long.
async fn a_disk_that_will_be_full(stage: &mut Stage) {
    let mut filled = stage.broker.fill_disk(0.45);
    // What came at once is no forecast: it leaves the window first.
    stage
        .says(
            "hutong_disk_free_bytes / hutong_disk_size_bytes < 0.5",
            true,
        )
        .await;
    stage.says(WILL_BE_FULL, false).await;
    // 3 MB a second, of 256; where it ends, more is free than is too little.
    let growing = tokio::spawn(async move {
        filled
            .grow_steadily(75 << 20, Duration::from_secs(25))
            .await;
        filled
    });
    stage.fires("DiskFullSoon", &[]).await;
    stage.by(WILL_BE_FULL).await;
    stage.is_silent(NEARLY_FULL);
    let filled = growing.await.expect("there is room");
    // It stays as full as it is, and that is no alert.
    stage.prometheus.is_quiet().await;
    stage.by(LITTLE_IS_FREE).await;
    drop(filled);
    stage.says(LITTLE_IS_FREE, false).await;
}

/// The log is as fast as ever, and what is gathered of the state does not go down: bulk is held, and nothing else.
async fn a_state_that_is_not_written_down(stage: &mut Stage) {
    let delay = Duration::from_secs(10);
    let slow = BadCalls::slow_syncs_of(stage.broker.id(), "state-flush", delay).await;
    let flood = stage.source().flood();
    stage.fires("WriteStall", &[]).await;
    stage.by(BULK_IS_HELD).await;
    stage.is_silent(WRITE_HANGS);
    stage.is_silent(SYNCS_ARE_SLOW);
    drop((flood, slow));
    stage.prometheus.is_quiet().await;
}

async fn a_disk_that_is_slow_and_then_full(stage: &mut Stage) {
    let slow = BadCalls::slow_syncs(stage.broker.id(), Duration::from_millis(1500)).await;
    stage.fires("WriteStall", &[]).await;
    stage.by(WRITE_HANGS).await;
    stage.by(SYNCS_ARE_SLOW).await;
    drop(slow);
    stage.prometheus.is_quiet().await;
    let filled = stage.broker.fill_disk(0.05);
    stage.fires("DiskFullSoon", &[]).await;
    // It fires on when nothing more is taken.
    stage.says(WILL_BE_FULL, false).await;
    stage.fires("DiskFullSoon", &[]).await;
    stage.by(NEARLY_FULL).await;
    drop(filled);
    stage.prometheus.is_quiet().await;
}

async fn a_broker_that_is_gone(stage: &mut Stage) {
    stage.is_silent(RESTARTED);
    // Its disk is gone with it: what comes back is another broker, which is enough to be scraped.
    stage.broker.kill();
    stage.broker.start_again().await;
    stage.fires("BrokerRestarted", &[]).await;
    stage.by(RESTARTED).await;
    stage.clears(&["BrokerDown", "BrokerRestarted"]).await;
    stage.broker.kill();
    stage.fires("BrokerDown", &[]).await;
    stage.broker.start_again().await;
    stage.clears(&["BrokerDown"]).await;
    assert!(stage.dir.path().exists());
}

/// A disk that is large enough for what the log has in memory before it stops.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_write_is_told_and_so_is_a_broker_that_stops_because_of_it() {
    let disk = "size=1g";
    let setup = Setup {
        disk,
        ..Setup::default()
    };
    let mut stage = Stage::build(setup).await;
    stage.prometheus.is_quiet().await;
    a_database_that_takes_no_writes(&mut stage).await;
    a_log_that_is_poisoned_while_the_broker_drains(&mut stage).await;
    a_broker_that_stops_because_a_sync_failed(&mut stage).await;
}

/// What the log has in memory does not become files, until it takes no more.
async fn a_database_that_takes_no_writes(stage: &mut Stage) {
    let delay = Duration::from_secs(60);
    let slow = BadCalls::slow_files_of(stage.broker.id(), "rocksdb:high", delay).await;
    let flood = stage.source().flood();
    stage.by(WRITES_ARE_STOPPED).await;
    stage.fires("WriteStall", &[]).await;
    stage
        .says(r#"hutong_store_writes_stopped{store="log"} == 1"#, true)
        .await;
    drop((flood, slow));
    stage.prometheus.is_quiet().await;
}

/// A broker that runs stops at once when its log is poisoned, too soon to be asked. One that was told to stop waits for
/// its clients first, and can be.
async fn a_log_that_is_poisoned_while_the_broker_drains(stage: &mut Stage) {
    let broker = stage.broker.id();
    // Bulk that waits for the state holds up the drain.
    let held = BadCalls::slow_syncs_of(broker, "state-flush", Duration::from_secs(120)).await;
    let flood = stage.source().flood();
    stage.by(BULK_IS_HELD).await;
    // The one that floods waits with all that it has; what is urgent of another one is committed.
    let other = Source::start_as(&stage.broker, SICHUAN).await;
    let failing = BadCalls::failing_syncs_of(broker, "log-writer", Duration::from_secs(5)).await;
    until("a commit that will fail", async || {
        let page = stage.broker.metrics()?;
        let running = metric(&page, "hutong_commit_running_seconds ").ok_or("no series")?;
        match running > 0.0 {
            true => Ok(()),
            false => Err("none is running".to_owned()),
        }
    })
    .await;
    stage.broker.stop();
    stage.fires("WriteStall", &[("cause", "poisoned")]).await;
    drop((flood, other, held, failing));
    // It ends as it was told to, and says that not all went well; nobody got an ack for what is lost.
    ends_and_comes_back(stage, 3).await;
}

async fn a_broker_that_stops_because_a_sync_failed(stage: &mut Stage) {
    let broker = stage.broker.id();
    let failing = BadCalls::failing_syncs_of(broker, "log-writer", Duration::ZERO).await;
    ends_and_comes_back(stage, 3).await;
    drop(failing);
}

async fn ends_and_comes_back(stage: &mut Stage, code: i32) {
    let mut ended = None;
    until("the broker ends", async || {
        ended = stage.broker.ended()?;
        Ok(())
    })
    .await;
    assert_eq!(ended, Some(code));
    stage.fires("BrokerDown", &[]).await;
    // On an empty disk, so a source that was there before is as good as a new one.
    stage.source = None;
    stage.broker.start_again().await;
    stage.source = Some(Source::start(&stage.broker).await);
    stage.clears(&["BrokerDown", "WriteStall"]).await;
}
