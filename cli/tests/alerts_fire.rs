//! Every alert is fired for real: a Prometheus scrapes a broker and a connector while something is broken, the alert
//! comes, with its page and its texts, and goes when it is mended. Only the times of the rules are shorter.

mod watch;

use hutong_connectors::client::{Endpoint, Identity, admin};
use hutong_proto::{LogId, api, delta::Colour};
use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};
use watch::{
    ANHUI, Broker, Connector, SHANGHAI, SICHUAN, SlowSyncs,
    clients::{Sink, Source, call_with_clock, claim_too_much},
    metric,
    prometheus::{Alert, Prometheus},
    rules, until,
};

/// Branches of `WriteStall`, with the times of a test.
const WRITE_HANGS: &str = "max by (instance) (hutong_commit_running_seconds) > 0.5";
const BULK_IS_HELD: &str = "max by (instance) (hutong_bulk_held_seconds) > 0.5";
const SYNCS_ARE_SLOW: &str = "sum by (instance) (rate(hutong_commit_sync_seconds_sum[4s])) \
     / sum by (instance) (rate(hutong_commit_sync_seconds_count[4s])) > 0.5";

/// Everything that a test needs, in one folder.
struct Stage {
    dir: tempfile::TempDir,
    broker: Broker,
    connector: Connector,
    source: Source,
    sichuan: Sink,
    shanghai: Option<Sink>,
    prometheus: Prometheus,
    fired: BTreeSet<String>,
}

impl Stage {
    async fn build() -> Stage {
        let dir = tempfile::tempdir().expect("a folder");
        let broker = Broker::start(dir.path()).await;
        let source = Source::start(&broker).await;
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

    /// Of an alert with several branches, that it fires by this one.
    async fn by(&self, branch: &str) {
        until(branch, async || {
            match self.prometheus.query(branch)?.is_empty() {
                true => Err("it says nothing".to_owned()),
                false => Ok(()),
            }
        })
        .await;
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
    let mut stage = Stage::build().await;
    stage.fires("Watchdog", &[]).await;
    stage.prometheus.is_quiet().await;
    a_platform_stops_applying(&mut stage).await;
    a_platform_is_gone_and_one_is_silent(&mut stage).await;
    a_wave_a_wrong_clock_and_a_wrong_cursor(&mut stage).await;
    what_is_refused(&mut stage).await;
    files_that_are_wrong(&mut stage).await;
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
    stage
        .fires(
            "OldestUnappliedStale",
            &[("issuer", "340000"), ("receiver", "510000")],
        )
        .await;
    stage.fires("LagGrowing", &[("platform", "510000")]).await;
    stage.source.publish_bulk().await;
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
    stage.source.be_silent(true);
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
        let (command, change) = command_line(&stage.broker.address())?;
        let (console, shown) = console(stage)?;
        if [change, shown] != [lag.oldest_offset; 2] {
            let matrix = lag.oldest_offset;
            return Err(format!(
                "which change: matrix, command, console: {:?}",
                [matrix, change, shown]
            ));
        }
        let told = (
            of("hutong_pair_lag_records")? as u64,
            (of("hutong_pair_oldest_unapplied_timestamp_seconds")? * 1e6).round() as u64,
        );
        let matrix = (lag.records, lag.oldest_at_us);
        let subscriber = (own.waiting, own.oldest.map_or(0, |at| at.0));
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
    stage.source.be_silent(false);
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
    stage.source.be_silent(true);
    stage.fires("PlatformDown", &[("platform", "310000")]).await;
    stage
        .fires("PlatformSilent", &[("platform", "340000")])
        .await;
    stage.source.be_silent(false);
    stage.shanghai = Some(Sink::start(&stage.broker, SHANGHAI).await);
    stage.prometheus.is_quiet().await;
}

async fn a_wave_a_wrong_clock_and_a_wrong_cursor(stage: &mut Stage) {
    let log_id = log_id(&stage.broker).await;
    stage.source.publish(300, Colour::Red).await;
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
    stage.source.publish_wrong().await;
    let refused = [("platform", "340000"), ("reason", "TIME_IN_FUTURE")];
    stage.fires("DeadLettersGrowing", &refused).await;
    stage.clears(&["DeadLettersGrowing"]).await;
    // The reason is known by now: another branch of the alert than the first time.
    stage.source.publish_wrong().await;
    stage.fires("DeadLettersGrowing", &refused).await;
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
}

/// The log is as fast as ever, and what is gathered of the state does not go down: bulk is held, and nothing else.
async fn a_state_that_is_not_written_down(stage: &mut Stage) {
    let delay = Duration::from_secs(10);
    let slow = SlowSyncs::of_thread(stage.broker.id(), "state-flush", delay).await;
    let flood = stage.source.flood();
    stage.fires("WriteStall", &[]).await;
    stage.by(BULK_IS_HELD).await;
    let others = [WRITE_HANGS, SYNCS_ARE_SLOW].map(|branch| stage.prometheus.query(branch));
    assert_eq!(others, [Ok(Vec::new()), Ok(Vec::new())]);
    drop((flood, slow));
    stage.prometheus.is_quiet().await;
}

async fn a_disk_that_is_slow_and_then_full(stage: &mut Stage) {
    let slow = SlowSyncs::of(stage.broker.id(), Duration::from_millis(1500)).await;
    stage.fires("WriteStall", &[]).await;
    stage.by(WRITE_HANGS).await;
    stage.by(SYNCS_ARE_SLOW).await;
    drop(slow);
    stage.prometheus.is_quiet().await;
    let filled = stage.broker.fill_disk();
    stage.fires("DiskFullSoon", &[]).await;
    drop(filled);
    stage.prometheus.is_quiet().await;
}

async fn a_broker_that_is_gone(stage: &mut Stage) {
    stage.broker.kill();
    stage.fires("BrokerDown", &[]).await;
    // Its disk is gone with it: what comes back is another broker, which is enough to be scraped.
    stage.broker.start_again().await;
    stage.clears(&["BrokerDown"]).await;
    assert!(stage.dir.path().exists());
}
