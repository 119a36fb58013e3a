//! What connectors say of themselves, seen at the broker: real programs, asked as an operator asks.

#[path = "replay/processes.rs"]
mod processes;

use hutong_proto::api::{ConnectorReport, ConnectorRole, ConnectorState, ListConnectorsRequest};
use processes::{Broker, Connector, until};
use std::{fs, path::Path};

const PLATFORM: u32 = 340_000;

/// A folder of lists, one of which cannot be read.
fn source(dir: &Path) -> String {
    let lists = dir.join("in");
    fs::create_dir(&lists).expect("created");
    fs::write(lists.join("a.json"), "{ this is no list").expect("written");
    format!(
        "source = {{ type = \"snapshot-folder\", dir = \"{}\", format = \"risk-levels\" }}\n\
         [mapping]\nkind = \"area_risk\"\nentity = {{ area = \"path\" }}\n\
         level = {{ field = \"level\", canonical = true }}\nprovenance = {{ reason = \"area_name\" }}\n\
         [provenance]\nauthority = \"a\"\nrule_id = \"r\"\nrule_version = 1\nreason = \"名单\"\n",
        lists.display()
    )
}

fn sink(dir: &Path) -> String {
    let path = dir.join("lines.jsonl");
    format!(
        "sink = {{ type = \"json-lines\", path = \"{}\" }}\n",
        path.display()
    )
}

/// What the broker knows of this connector.
async fn known(broker: &Broker, connector: &str) -> Option<(ConnectorReport, bool)> {
    let answer = broker
        .admin()
        .list_connectors(ListConnectorsRequest {})
        .await;
    let all = answer.expect("an answer").into_inner().connectors;
    all.into_iter().find_map(|known| {
        assert_eq!(known.platform, PLATFORM);
        assert!(known.said_at_us > 0);
        let report = known
            .report
            .filter(|report| report.connector == connector)?;
        Some((report, known.silent))
    })
}

async fn becomes(broker: &Broker, connector: &str, state: ConnectorState) -> ConnectorReport {
    let mut seen = None;
    until(&format!("{connector} is {state:?}"), async || {
        seen = known(broker, connector).await;
        match &seen {
            Some((report, false)) if report.state() == state => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    seen.expect("seen").0
}

#[tokio::test]
async fn an_operator_sees_a_connector_its_dead_letters_and_how_it_ended() {
    let dir = tempfile::tempdir().expect("a folder");
    let platforms = format!("[[platforms]]\ncode = {PLATFORM}\nname = \"p\"\n");
    let broker = Broker::start(dir.path(), &platforms);
    let mut areas = Connector::start(dir.path(), "areas", PLATFORM, &broker, &source(dir.path()));
    let running = becomes(&broker, "areas", ConnectorState::Running).await;
    assert_eq!(running.role(), ConnectorRole::Source);

    // Each is told in its own time.
    let mut seen = running;
    until(
        "its dead letter is told as it is written down",
        async || {
            seen = known(&broker, "areas").await.ok_or("nobody")?.0;
            let status = areas.status()?;
            let added = seen.dead_letters_added.iter();
            let added = added
                .map(|added| (added.reason.clone(), added.rows))
                .collect();
            let told = (
                seen.since_us,
                seen.dead_letters,
                seen.dead_letters_bytes,
                added,
            );
            let counts = status.counts;
            let written = (
                status.since_us,
                counts.dead_letters,
                counts.dead_letters_bytes,
                counts.dead_letters_added,
            );
            match told == written && seen.dead_letters == 1 {
                true => Ok(()),
                false => Err(format!("told {told:?}, written {written:?}")),
            }
        },
    )
    .await;
    assert_eq!(seen.dead_letters_added.len(), 1);
    assert!(seen.dead_letters_bytes > 0);

    // By another process, while it runs.
    let dropped = areas.dlq(&["drop", "--all"]);
    assert!(dropped.status.success(), "{dropped:?}");
    until("its dead letter is gone", async || {
        match known(&broker, "areas")
            .await
            .ok_or("nobody")?
            .0
            .dead_letters
        {
            0 => Ok(()),
            other => Err(format!("{other} dead letters")),
        }
    })
    .await;

    areas.terminate();
    becomes(&broker, "areas", ConnectorState::Stopped).await;

    // What it cannot read it will not be able to read later either.
    fs::write(areas.state_file("checkpoint.json"), "{").expect("written");
    areas.start_again(None);
    let failed = becomes(&broker, "areas", ConnectorState::Failed).await;
    assert!(failed.since_us > seen.since_us);
}

#[tokio::test]
async fn a_sink_is_seen_too_and_nobody_is_known_to_a_broker_that_was_started_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let platforms = format!("[[platforms]]\ncode = {PLATFORM}\nname = \"p\"\n");
    let mut broker = Broker::start(dir.path(), &platforms);
    let mut lines = Connector::start(dir.path(), "lines", PLATFORM, &broker, &sink(dir.path()));
    let running = becomes(&broker, "lines", ConnectorState::Running).await;
    assert_eq!(
        (running.role(), running.dead_letters),
        (ConnectorRole::Sink, 0)
    );
    lines.kill();
    broker.kill();
    broker.start_again(None);
    assert_eq!(known(&broker, "lines").await, None);
    // It tells itself, and nobody has to tell it.
    lines.start_again(None);
    becomes(&broker, "lines", ConnectorState::Running).await;
}
