//! A broker that takes nothing: a connector that has more than goes over says that it is held back, in its state and in its
//! metrics, as long as that lasts and no longer. Nothing of what waited is lost. Real processes; the broker
//! stands still with its connections, so neither acks nor credit come back.

#[path = "replay/processes.rs"]
mod processes;
#[path = "../src/testing.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod testing;

use hutong_connectors::{
    client::{Endpoint, Event, Identity, Start, Subscriber, SubscriberOptions},
    state::State,
};
use hutong_proto::Issuer;
use processes::{Broker, Connector, free_address, until};
use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    ops::RangeInclusive,
    time::{Duration, Instant},
};
use testing::PostgresServer;
use tokio_postgres::NoTls;

const ISSUER: u32 = 340_000;
const PLATFORMS: &str = "[[platforms]]\ncode = 340000\nname = \"p\"\n";

/// More than a connector has under way, and small: together they are less than the broker's credit.
const ROWS: u64 = 120_000;
/// More than two of the looks that add to it.
const STANDS_STILL: Duration = Duration::from_millis(2_500);
const HELD_BACK: &str = "hutong_connect_held_back_seconds_total";

fn source(url: &str, http: SocketAddr) -> String {
    format!(
        r#"
[source]
type = "postgres-outbox"
url = "{url}"
poll = "50ms"
delete_after = "never"

[[mapping]]
kind = "test_result"
entity = {{ pseudonym = "payload.person" }}
outcome = {{ field = "payload.outcome", canonical = true }}
sampled_at = {{ field = "payload.at", format = "unix-ms" }}

[provenance]
authority = "a"
rule_id = "r"
rule_version = 1
reason = "x"

[telemetry]
http = "{http}"
"#
    )
}

/// Negative results of as many new persons.
async fn insert(url: &str, persons: RangeInclusive<u64>) {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("a session");
    let session = tokio::spawn(connection);
    let insert = format!(
        "INSERT INTO hutong_outbox (aggregatetype, aggregateid, type, payload) \
         SELECT 'test', i::text, 'tested', jsonb_build_object('person', lpad(to_hex(i), 32, '0'), \
           'outcome', 'negative', 'at', 1661990400000) FROM generate_series({}, {}) i",
        persons.start(),
        persons.end()
    );
    client.batch_execute(&insert).await.expect("inserted");
    drop(client);
    session.await.expect("its end").expect("a clean one");
}

/// Of whom the broker has a result, by what it sends to who asks for all.
async fn persons(broker: &Broker) -> BTreeSet<u128> {
    let issuer = Issuer::new(ISSUER).expect("six digits");
    let endpoint = Endpoint::new(broker.address(), Identity::Platform(issuer));
    let mut options = SubscriberOptions::new(endpoint, "all");
    options.start = Start::Snapshot;
    options.filter.include_own = true;
    let mut subscriber = Subscriber::open(options).await.expect("opened");
    let mut persons = BTreeSet::new();
    loop {
        match subscriber.next().await.expect("a snapshot") {
            Event::Rows(rows) => {
                persons.extend(
                    rows.iter()
                        .map(|row| u128::from_be_bytes(row.delta.entity.0)),
                );
            }
            Event::SnapshotEnd { .. } => return persons,
            _ => {}
        }
    }
}

/// The value of its metric, as whoever scrapes the connector gets it.
fn metric(http: SocketAddr) -> Option<f64> {
    let mut stream = TcpStream::connect(http).ok()?;
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {http}\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    let line = page.lines().find(|line| line.starts_with(HELD_BACK))?;
    line.split_whitespace().next_back()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_says_that_it_is_held_back_while_the_broker_takes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = PostgresServer::start();
    let broker = Broker::start(dir.path(), PLATFORMS);
    let http = free_address();
    let work = source(&server.url(), http);
    let mut connector = Connector::start(dir.path(), "outbox", ISSUER, &broker, &work);
    // It runs when its first row has arrived.
    insert(&server.url(), 1..=1).await;
    until("the connector runs", async || connector.runs()).await;
    assert_eq!(metric(http), Some(0.0), "nothing has held it back yet");

    broker.stand_still();
    insert(&server.url(), 2..=ROWS).await;
    until("it says that it is held back", async || {
        let status = connector.status()?;
        let counted = status.counts.held_back_seconds;
        let scraped = metric(http).unwrap_or(0.0);
        let said = status.state == State::Running && status.reason.starts_with("held back");
        match said && counted > 1.0 && scraped > 1.0 {
            true => Ok(()),
            false => Err(format!(
                "{}: {:?}; {counted} s counted, {scraped} s scraped",
                status.state, status.reason
            )),
        }
    })
    .await;
    let accepted = connector.status().expect("it runs").counts.deltas_accepted;
    assert!(accepted < ROWS, "what was held back is not all taken");

    broker.go_on();
    until("all is taken, and it says nothing any more", async || {
        let status = connector.status()?;
        // What the broker had taken before a line broke is not newer when it comes again.
        let accepted = status.counts.deltas_accepted + status.counts.deltas_not_newer;
        match (status.state, status.reason.as_str(), accepted >= ROWS) {
            (State::Running, "", true) => Ok(()),
            (state, reason, _) => Err(format!("{state}: {reason:?}, {accepted} of {ROWS} taken")),
        }
    })
    .await;
    // What it counts may come twice and hide what is lost.
    let expected: BTreeSet<u128> = (1..=ROWS.into()).collect();
    let missing = expected.difference(&persons(&broker).await).count();
    assert_eq!(missing, 0, "of {ROWS} persons");
    // The metric is a sum, which the connector adds to each second: that it is over shows in that it stays.
    let mut last = (metric(http), Instant::now());
    until("the metric stands still", async || {
        let now = metric(http);
        if now != last.0 {
            last = (now, Instant::now());
        }
        match last.1.elapsed() > STANDS_STILL {
            true => Ok(()),
            false => Err(format!("{now:?} s")),
        }
    })
    .await;
}
