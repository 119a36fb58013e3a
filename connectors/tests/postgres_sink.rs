//! The PostgreSQL sink against a real server: rows and cursor agree, whatever happens.

#[path = "../src/testing.rs"]
mod testing;

use hutong_connectors::{
    client::Delivered,
    postgres::Server,
    sink::Sink,
    sinks::postgres::{PostgresSink, Settings},
};
use hutong_proto::{
    Cursor, Delta, EntityId, Issuer, LogId, Micros, Offset, Provenance, Revision, Value,
    delta::{Colour, RiskLevel, TestOutcome},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use testing::PostgresServer;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

const SUBSCRIPTION: &str = "s";
/// A crash of the server takes seconds to recover from.
const CRASHES_UNTIL: u64 = 8;

async fn session(server: &PostgresServer, tasks: &mut JoinSet<()>) -> Client {
    let connected = tokio_postgres::connect(&server.url(), NoTls).await;
    let (client, connection) = connected.expect("a session");
    tasks.spawn(async move {
        if let Err(error) = connection.await {
            println!("a session of the test ended: {error}");
        }
    });
    client
}

fn settings(server: &PostgresServer) -> Settings {
    Settings::new(Server::new(&server.url()).expect("a connection string"))
}

async fn sink(server: &PostgresServer) -> PostgresSink {
    let mut sink = PostgresSink::new(settings(server), SUBSCRIPTION);
    sink.init().await.expect("made");
    sink
}

fn cursor(at: u64) -> Cursor {
    Cursor {
        log_id: LogId(0xfeed_0000_0000_0001),
        urgent: Offset(at),
        bulk: Offset(at + 1),
    }
}

fn with_value(entity: u32, revision: u64, value: Value) -> Delivered {
    let mut id = [7; 16];
    id[..4].copy_from_slice(&entity.to_be_bytes());
    Delivered {
        issuer: Issuer::new(340_000).expect("six digits"),
        offset: Offset(revision * 10),
        durable_at: Micros(1_660_000_000_000_001),
        trace: None,
        delta: Delta {
            entity: EntityId(id),
            revision: Revision(revision),
            committed_at: Micros(1_659_999_999_999_999),
            expires_at: Micros::ZERO,
            evidence: "e-1".into(),
            provenance: Arc::new(Provenance {
                authority: "安徽省疾控".into(),
                rule_id: "rule".into(),
                rule_version: u32::MAX,
                reason: "close \0contact".into(),
            }),
            value,
        },
    }
}

fn delta(entity: u32, revision: u64) -> Delivered {
    let colour = Colour::ALL[revision as usize % 3];
    with_value(entity, revision, Value::HealthCode(colour))
}

/// Entity number and revision of each row.
async fn rows(client: &Client) -> BTreeMap<u32, u64> {
    let rows = client
        .query("SELECT entity, revision FROM hutong_registers", &[])
        .await
        .expect("rows");
    let row = |row: &tokio_postgres::Row| {
        let entity: &[u8] = row.get(0);
        let entity = u32::from_be_bytes(entity[..4].try_into().expect("16 bytes"));
        (entity, row.get::<_, i64>(1) as u64)
    };
    rows.iter().map(row).collect()
}

/// Urgent offset of the cursor and how often rows were applied.
async fn applied(client: &Client) -> (Option<i64>, i64) {
    let statement = "SELECT urgent, applies FROM hutong_cursor WHERE subscription = $1";
    let row = client
        .query_one(statement, &[&SUBSCRIPTION])
        .await
        .expect("a row");
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn the_newest_revision_of_each_register_stays_however_often_it_comes() {
    let server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = session(&server, &mut tasks).await;
    let mut sink = sink(&server).await;
    assert_eq!(sink.start().await, Ok(None));
    let batch = [delta(1, 5), delta(2, 6), delta(1, 7), delta(1, 6)];
    for n in 1..3 {
        sink.apply(&batch, Some(cursor(n))).await.expect("applied");
        assert_eq!(rows(&client).await, BTreeMap::from([(1, 7), (2, 6)]));
        assert_eq!(applied(&client).await, (Some(n as i64), n as i64));
    }
    sink.apply(&[delta(1, 3), delta(2, 8), delta(3, 1)], Some(cursor(9)))
        .await
        .expect("applied");
    assert_eq!(
        rows(&client).await,
        BTreeMap::from([(1, 7), (2, 8), (3, 1)])
    );
    // The same entity under another kind or issuer is another register.
    let value = Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at: Micros(1),
    };
    let mut other = delta(1, 2);
    other.issuer = Issuer::new(510_000).expect("six digits");
    sink.apply(&[with_value(1, 2, value), other], Some(cursor(10)))
        .await
        .expect("applied");
    let count = client
        .query_one("SELECT count(*) FROM hutong_registers", &[])
        .await
        .expect("a row");
    assert_eq!(count.get::<_, i64>(0), 5);
    // Another process goes on where this one stopped.
    let mut again = PostgresSink::new(settings(&server), SUBSCRIPTION);
    assert_eq!(again.start().await, Ok(Some(cursor(10))));
}

#[tokio::test]
async fn columns_hold_what_was_delivered() {
    let server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = session(&server, &mut tasks).await;
    let mut sink = sink(&server).await;
    sink.start().await.expect("starts");
    let path = [
        "安徽省",
        "a \"quoted\" {part}, with \\ and ,",
        "NULL",
        " white ",
    ];
    let area = Value::AreaRisk {
        level: RiskLevel::High,
        path: path.map(str::to_owned).to_vec(),
    };
    let vaccination = Value::Vaccination {
        doses: 3,
        product: "x\0y".into(),
        vaccinated_at: Micros(1_650_000_000_000_000),
    };
    let mut expiring = delta(3, i64::MAX as u64 / 10);
    expiring.delta.expires_at = Micros(4_000_000_000_000_007);
    expiring.offset = Offset::NONE;
    expiring.durable_at = Micros::ZERO;
    let batch = [
        with_value(1, 1, area),
        with_value(2, 2, vaccination),
        expiring,
    ];
    sink.apply(&batch, Some(cursor(1))).await.expect("applied");

    let statement = "SELECT * FROM hutong_registers ORDER BY entity";
    let rows = client.query(statement, &[]).await.expect("rows");
    let at = |us: u64| UNIX_EPOCH + Duration::from_micros(us);
    let row = &rows[0];
    assert_eq!(row.get::<_, Vec<String>>("path"), path);
    assert_eq!(row.get::<_, &str>("status"), "high");
    assert_eq!(row.get::<_, &str>("kind"), "area_risk");
    assert_eq!(row.get::<_, i32>("issuer"), 340_000);
    assert_eq!(
        row.get::<_, SystemTime>("committed_at"),
        at(1_659_999_999_999_999)
    );
    assert_eq!(
        row.get::<_, SystemTime>("durable_at"),
        at(1_660_000_000_000_001)
    );
    assert_eq!(row.get::<_, Option<SystemTime>>("expires_at"), None);
    assert_eq!(row.get::<_, i64>("log_offset"), 10);
    assert_eq!(row.get::<_, i64>("rule_version"), i64::from(u32::MAX));
    assert_eq!(row.get::<_, &str>("reason"), "close \u{fffd}contact");
    let row = &rows[1];
    assert_eq!(row.get::<_, Option<&str>>("status"), None);
    let value = serde_json::json!({"doses": 3, "product": "x\u{fffd}y", "vaccinated_at_us": 1_650_000_000_000_000_u64});
    assert_eq!(row.get::<_, serde_json::Value>("value"), value);
    let row = &rows[2];
    assert_eq!(
        row.get::<_, Option<SystemTime>>("expires_at"),
        Some(at(4_000_000_000_000_007))
    );
    assert_eq!(row.get::<_, Option<i64>>("log_offset"), None);
    assert_eq!(row.get::<_, Option<SystemTime>>("durable_at"), None);
    assert_eq!(row.get::<_, Option<Vec<String>>>("path"), None);
}

#[tokio::test]
async fn rows_and_cursor_agree_after_every_kind_of_break() {
    let mut server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let mut sink = sink(&server).await;
    let mut at = sink
        .start()
        .await
        .expect("starts")
        .map_or(0, |c| c.urgent.0);
    let mut broken = 0;
    for round in 1..60_u64 {
        let batch: Vec<_> = (0..300).map(|n| delta(n, at + 1)).collect();
        let client = session(&server, &mut tasks).await;
        let apply = sink.apply(&batch, Some(cursor(at + 1)));
        let pause = Duration::from_micros(round * 211 % 9000);
        let done = match round % 3 {
            // Our side goes away: the call is dropped in the middle.
            0 => matches!(tokio::time::timeout(pause, apply).await, Ok(Ok(()))),
            // The session is ended by the server, or all of it crashes.
            kind => {
                let (done, ()) = tokio::join!(apply, async {
                    tokio::time::sleep(pause).await;
                    if kind == 1 || round > CRASHES_UNTIL {
                        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                            WHERE application_name = 'hutong-connect'";
                        client.query(end, &[]).await.expect("ended");
                    } else {
                        server.crash();
                    }
                });
                if let Err(error) = &done {
                    assert!(error.passing, "{error}");
                }
                if kind != 1 && round <= CRASHES_UNTIL {
                    server.run();
                }
                done.is_ok()
            }
        };
        let stored = sink
            .start()
            .await
            .expect("starts")
            .map_or(0, |c| c.urgent.0);
        assert!(
            stored == at + 1 || stored == at && !done,
            "{stored} after {at}, done: {done}"
        );
        broken += usize::from(!done);
        let client = session(&server, &mut tasks).await;
        let expected = (0..300)
            .map(|n| (n, stored))
            .filter(|(_, revision)| *revision > 0);
        assert_eq!(rows(&client).await, expected.collect(), "round {round}");
        assert_eq!(
            applied(&client).await.1,
            stored as i64,
            "each part was applied once"
        );
        at = stored;
    }
    assert!(broken > 10 && at > 10, "{broken} broke, {at} did not");
}

#[tokio::test]
async fn a_snapshot_removes_what_it_does_not_mention_and_only_at_its_end() {
    let server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = session(&server, &mut tasks).await;
    let mut sink = sink(&server).await;
    sink.start().await.expect("starts");
    // Another subscription in the same table is not touched.
    let mut other = PostgresSink::new(settings(&server), "other");
    other.start().await.expect("starts");
    other
        .apply(&[delta(100, 1)], Some(cursor(1)))
        .await
        .expect("applied");

    let first: Vec<_> = (1..6).map(|n| delta(n, 5)).collect();
    sink.begin_snapshot().await.expect("begun");
    sink.apply(&first, None).await.expect("applied");
    assert_eq!(applied(&client).await.0, None);
    sink.end_snapshot(cursor(3)).await.expect("ended");
    assert_eq!(applied(&client).await.0, Some(3));
    sink.apply(&[delta(6, 9)], Some(cursor(4)))
        .await
        .expect("applied");

    // One that breaks off: what is newer stays, nothing goes, the cursor is the old one.
    sink.begin_snapshot().await.expect("begun");
    sink.apply(&[delta(1, 8)], None).await.expect("applied");
    assert_eq!(sink.start().await, Ok(Some(cursor(4))));
    let expected = BTreeMap::from([(1, 8), (2, 5), (3, 5), (4, 5), (5, 5), (6, 9), (100, 1)]);
    assert_eq!(rows(&client).await, expected);

    // One that begins twice: only what the second one mentions stays, also what is not newer.
    sink.begin_snapshot().await.expect("begun");
    sink.apply(&[delta(4, 5), delta(5, 5)], None)
        .await
        .expect("applied");
    sink.begin_snapshot().await.expect("begun again");
    sink.apply(&[delta(1, 8), delta(2, 4), delta(6, 10), delta(7, 1)], None)
        .await
        .expect("applied");
    assert_eq!(rows(&client).await.len(), 8, "nothing goes before the end");
    sink.end_snapshot(cursor(12)).await.expect("ended");
    let expected = BTreeMap::from([(1, 8), (2, 5), (6, 10), (7, 1), (100, 1)]);
    assert_eq!(rows(&client).await, expected);
    assert_eq!(sink.start().await, Ok(Some(cursor(12))));
}

#[tokio::test]
async fn a_connector_whose_subscription_was_taken_over_stops() {
    let server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = session(&server, &mut tasks).await;
    let mut old = sink(&server).await;
    old.start().await.expect("starts");
    let mut new = PostgresSink::new(settings(&server), SUBSCRIPTION);
    new.start().await.expect("starts");
    new.apply(&[delta(1, 5)], Some(cursor(5)))
        .await
        .expect("applied");
    let error = old
        .apply(&[delta(2, 5)], Some(cursor(3)))
        .await
        .expect_err("taken over");
    assert!(
        !error.passing && error.message.contains("taken over subscription s"),
        "{error}"
    );
    assert_eq!(rows(&client).await, BTreeMap::from([(1, 5)]));
    assert_eq!(applied(&client).await.0, Some(5));
}

#[tokio::test]
async fn what_the_tables_cannot_hold_or_are_not_is_said_clearly() {
    let server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = session(&server, &mut tasks).await;
    let mut unmade = PostgresSink::new(settings(&server), SUBSCRIPTION);
    let error = unmade.start().await.expect_err("no tables");
    assert!(
        !error.passing && error.message.contains("hutong-connect init"),
        "{error}"
    );
    let mut sink = sink(&server).await;
    sink.init().await.expect("a second time changes nothing");
    sink.start().await.expect("starts");
    let mut large = delta(1, 1);
    large.delta.revision = Revision(i64::MAX as u64 + 1);
    let error = sink
        .apply(&[large], Some(cursor(1)))
        .await
        .expect_err("too large");
    assert!(
        !error.passing && error.message.contains("a bigint ends at"),
        "{error}"
    );
    assert_eq!(sink.start().await, Ok(None));
    client
        .batch_execute("INSERT INTO hutong_layout VALUES (99)")
        .await
        .expect("newer");
    let error = sink.start().await.expect_err("newer");
    assert!(
        !error.passing && error.message.contains("use a newer hutong-connect"),
        "{error}"
    );
    let gone = Settings::new(Server::new("postgres://u@127.0.0.1:1/d").expect("a string"));
    let error = PostgresSink::new(gone, SUBSCRIPTION)
        .start()
        .await
        .expect_err("nobody there");
    assert!(
        error.passing && error.message.contains("database d on 127.0.0.1:1"),
        "{error}"
    );
    let missing = Settings::new(Server::new(&server.url_of("nowhere")).expect("a string"));
    let error = PostgresSink::new(missing, SUBSCRIPTION)
        .start()
        .await
        .expect_err("no database");
    assert!(
        !error.passing && error.message.contains("does not exist"),
        "{error}"
    );
}

#[tokio::test]
async fn a_large_batch_is_one_transaction() {
    let server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = session(&server, &mut tasks).await;
    let mut sink = sink(&server).await;
    sink.start().await.expect("starts");
    let batch: Vec<_> = (0..20_000).map(|n| delta(n, 2)).collect();
    sink.apply(&batch, Some(cursor(1))).await.expect("applied");
    assert_eq!(rows(&client).await.len(), 20_000);
    assert_eq!(applied(&client).await, (Some(1), 1));
    let transactions = "SELECT count(DISTINCT xmin::text) FROM hutong_registers";
    let row = client.query_one(transactions, &[]).await.expect("a row");
    assert_eq!(row.get::<_, i64>(0), 1);
}
