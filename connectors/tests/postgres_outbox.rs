//! The outbox against a real PostgreSQL: no row is lost, whatever order transactions commit in.

#[path = "../src/testing.rs"]
mod testing;

use hutong_connectors::{
    postgres::Server,
    source::{Source, SourceBatch, SourceError, SourceRow},
    sources::postgres_outbox::{PostgresOutbox, Settings},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use testing::PostgresServer;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_postgres::{Client, NoTls};

const SOON: Duration = Duration::from_secs(30);

/// A session of the application.
async fn session(server: &PostgresServer, tasks: &mut JoinSet<()>) -> Client {
    let connected = tokio_postgres::connect(&server.url(), NoTls).await;
    let (client, connection) = connected.expect("a session");
    tasks.spawn(async move {
        if let Err(error) = connection.await {
            println!("a session of the application ended: {error}");
        }
    });
    client
}

fn settings(server: &PostgresServer) -> Settings {
    Settings {
        poll: Duration::from_millis(10),
        delete_after: None,
        batch_rows: 7,
        ..Settings::new(Server::new(&server.url()).expect("a connection string"))
    }
}

async fn outbox(settings: &Settings) -> PostgresOutbox {
    let mut outbox = PostgresOutbox::new(settings.clone());
    outbox.init().await.expect("made");
    outbox
}

async fn next(source: &mut PostgresOutbox) -> Result<SourceBatch, SourceError> {
    timeout(SOON, source.next()).await.expect("rows in time")
}

async fn nothing_more(source: &mut PostgresOutbox) {
    let more = timeout(Duration::from_millis(300), source.next()).await;
    assert!(more.is_err(), "{more:?}");
}

async fn insert(client: &Client, register: &str, payload: &str) {
    let statement = "INSERT INTO hutong_outbox (aggregatetype, aggregateid, type, payload) \
        VALUES ('person', $1, 'changed', $2::text::jsonb)";
    client
        .execute(statement, &[&register, &payload])
        .await
        .expect("inserted");
}

/// Register and number of a row of [`write`].
fn change(row: &SourceRow) -> (String, i64) {
    let register = row.fields["aggregateid"].as_str().expect("a register");
    (
        register.to_owned(),
        row.fields["payload"]["n"].as_i64().expect("a number"),
    )
}

const WRITERS: i32 = 8;
const CHANGES: i32 = 40;
const REGISTERS: i32 = 12;

/// Transactions of many sessions that commit out of order: each changes its row, puts the change into
/// the outbox and then takes its time. A fifth are rolled back.
async fn write(client: Client, writer: i32) {
    let statement = "WITH changed AS ( \
          UPDATE people SET n = n + 1 WHERE register = 'r' || $1::int RETURNING register, n) \
        INSERT INTO hutong_outbox (aggregatetype, aggregateid, type, payload) \
        SELECT 'person', register, 'changed', jsonb_build_object('n', n) FROM changed";
    for change in 0..CHANGES {
        let seed = writer * 7919 + change * 104_729;
        client.batch_execute("BEGIN").await.expect("begun");
        client
            .execute(statement, &[&(seed % REGISTERS)])
            .await
            .expect("changed");
        let seconds = f64::from(seed % 23) / 1000.0;
        client
            .execute("SELECT pg_sleep($1)", &[&seconds])
            .await
            .expect("slept");
        let end = if seed % 5 == 0 { "ROLLBACK" } else { "COMMIT" };
        client.batch_execute(end).await.expect("ended");
    }
}

async fn people(server: &PostgresServer, tasks: &mut JoinSet<()>) -> Client {
    let client = session(server, tasks).await;
    let make = format!(
        "CREATE TABLE people (register text PRIMARY KEY, n bigint NOT NULL); \
         INSERT INTO people SELECT 'r' || i, 0 FROM generate_series(0, {REGISTERS} - 1) i"
    );
    client.batch_execute(&make).await.expect("made");
    client
}

async fn committed(client: &Client) -> BTreeSet<i64> {
    let rows = client
        .query("SELECT position FROM hutong_outbox", &[])
        .await
        .expect("rows");
    rows.iter().map(|row| row.get(0)).collect()
}

/// What one does who has not heard of this: remembers the last position.
async fn poll_naively(client: Client, done: tokio::sync::watch::Receiver<bool>) -> BTreeSet<i64> {
    let (mut last, mut seen) = (0i64, BTreeSet::new());
    loop {
        let ending = *done.borrow();
        let statement = "SELECT position FROM hutong_outbox WHERE position > $1 ORDER BY position";
        let rows = client.query(statement, &[&last]).await.expect("rows");
        seen.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
        last = seen.last().copied().unwrap_or(0);
        if ending {
            return seen;
        }
        sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn no_committed_row_is_lost_where_polling_by_position_loses_some() {
    let server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = people(&server, &mut tasks).await;
    let mut source = outbox(&settings(&server)).await;
    source.start(None).await.expect("starts");
    // Runs all the time, with a row of its own, and must hold up nobody.
    let slow = session(&server, &mut tasks).await;
    slow.batch_execute("BEGIN").await.expect("begun");
    insert(&slow, "slow", r#"{"n": 1}"#).await;

    let (end, ending) = tokio::sync::watch::channel(false);
    let naive = tokio::spawn(poll_naively(session(&server, &mut tasks).await, ending));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(session(&server, &mut tasks).await, writer));
    }
    let mut rows: Vec<SourceRow> = Vec::new();
    while !writers.is_empty() {
        tokio::select! {
            _ = writers.join_next() => {}
            batch = source.next() => rows.extend(batch.expect("rows").rows),
        }
    }
    let expected = committed(&client).await;
    while rows.len() < expected.len() {
        rows.extend(next(&mut source).await.expect("rows").rows);
    }
    slow.batch_execute("COMMIT").await.expect("committed");
    let last = next(&mut source).await.expect("the slow row").rows;
    assert_eq!(
        last.iter().map(change).collect::<Vec<_>>(),
        [("slow".to_owned(), 1)]
    );
    rows.extend(last);
    nothing_more(&mut source).await;
    end.send(true).expect("it polls");

    let expected = committed(&client).await;
    let naive = naive.await.expect("it ends");
    assert!(
        naive.len() < expected.len(),
        "the workload does not even lose rows for the naive"
    );
    println!(
        "naive polling lost {} of {}",
        expected.len() - naive.len(),
        expected.len()
    );
    let seen: Vec<i64> = rows.iter().map(|row| row.revision.0 as i64).collect();
    let distinct: BTreeSet<i64> = seen.iter().copied().collect();
    assert_eq!(seen.len(), distinct.len(), "no row comes twice");
    assert_eq!(distinct, expected, "every committed row comes");
    // The order of a register's changes is the order of their commits.
    let mut newest: BTreeMap<String, (i64, u64)> = BTreeMap::new();
    for row in &rows {
        let (register, n) = change(row);
        let before = newest
            .insert(register, (n, row.revision.0))
            .unwrap_or_default();
        assert_eq!(before.0 + 1, n, "each change follows the one before it");
        assert!(before.1 < row.revision.0, "and has a higher revision");
    }
}

#[tokio::test]
async fn nothing_is_lost_over_restarts_and_crashes_of_the_server() {
    let mut server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    people(&server, &mut tasks).await;
    let settings = settings(&server);
    let mut source = outbox(&settings).await;
    source.start(None).await.expect("starts");
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(session(&server, &mut tasks).await, writer));
    }
    let (mut seen, mut durable, mut batches, mut again) = (BTreeSet::new(), None, 0, 0);
    let mut crashes = 0;
    loop {
        if batches == 12 && crashes == 0 {
            // In the middle of everything: what committed stays, the rest is undone.
            writers.abort_all();
            while writers.join_next().await.is_some() {}
            server.crash();
            let error = next(&mut source).await.expect_err("the server is gone");
            assert!(error.passing, "{error}");
            let error = source.start(durable.clone()).await.expect_err("still gone");
            assert!(error.passing, "{error}");
            server.run();
            source.start(durable.clone()).await.expect("starts");
            crashes += 1;
            for writer in 0..WRITERS {
                writers.spawn(write(session(&server, &mut tasks).await, writer + 100));
            }
        }
        tokio::select! {
            Some(done) = writers.join_next() => done.expect("it wrote"),
            batch = source.next() => {
                let batch = batch.expect("rows");
                for row in &batch.rows {
                    again += usize::from(!seen.insert(row.revision.0 as i64));
                }
                batches += 1;
                match batches % 5 {
                    // Killed before the checkpoint was kept.
                    4 => {
                        source = PostgresOutbox::new(settings.clone());
                        source.start(durable.clone()).await.expect("starts");
                    }
                    _ => durable = Some(batch.checkpoint),
                }
            }
            () = sleep(Duration::from_millis(500)), if writers.is_empty() => break,
        }
    }
    let client = session(&server, &mut tasks).await;
    assert_eq!(seen, committed(&client).await);
    assert_eq!(crashes, 1);
    assert!(again > 0, "rows whose checkpoint was not kept come again");
}

/// An application that does not wait for its commits. The connector must: what it gave away, or counts as
/// ended, may not be undone by a crash.
#[tokio::test]
async fn what_was_given_away_survives_a_crash_also_without_synchronous_commits() {
    let mut server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = session(&server, &mut tasks).await;
    let settings = settings(&server);
    let mut source = outbox(&settings).await;
    // Nothing else writes the log to disk meanwhile.
    let lazy = ["wal_writer_delay = '10s'", "synchronous_commit = off"];
    for setting in lazy {
        let alter = format!("ALTER SYSTEM SET {setting}");
        client.batch_execute(&alter).await.expect("set");
    }
    server.crash();
    server.run();
    let client = session(&server, &mut tasks).await;
    source.start(None).await.expect("starts");
    insert(&client, "kept", "{}").await;
    let durable = next(&mut source).await.expect("rows");
    let positions = |batch: &SourceBatch| -> BTreeSet<i64> {
        batch.rows.iter().map(|r| r.revision.0 as i64).collect()
    };
    // More transactions end than are on disk: one commits, others are rolled back.
    insert(&client, "seen", "{}").await;
    for _ in 0..5 {
        client.batch_execute("BEGIN").await.expect("begun");
        insert(&client, "undone", "{}").await;
        client.batch_execute("ROLLBACK").await.expect("undone");
    }
    let given = next(&mut source).await.expect("rows");
    insert(&client, "lost", "{}").await;
    server.crash();
    server.run();
    let client = session(&server, &mut tasks).await;
    let there = committed(&client).await;
    for batch in [&durable, &given] {
        assert!(
            positions(batch).is_subset(&there),
            "{:?} of {there:?}",
            positions(batch)
        );
    }
    // What the application commits now has numbers that were not counted yet.
    source
        .start(Some(given.checkpoint.clone()))
        .await
        .expect("starts");
    let known = there.len();
    for n in 0..8 {
        insert(&client, "after", &format!(r#"{{"n": {n}}}"#)).await;
    }
    let mut rows = Vec::new();
    while rows.len() < 8 {
        let batch = next(&mut source).await.expect("rows");
        rows.extend(
            batch
                .rows
                .iter()
                .filter(|r| r.fields["aggregateid"] == "after")
                .cloned(),
        );
    }
    assert_eq!(committed(&client).await.len(), known + 8);
    nothing_more(&mut source).await;
}

#[tokio::test]
async fn a_backlog_is_read_in_pages_from_wherever_it_was_left() {
    let server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = session(&server, &mut tasks).await;
    let mut source = outbox(&settings(&server)).await;
    let fill = "INSERT INTO hutong_outbox (aggregatetype, aggregateid, type, payload) \
        SELECT 'person', 'r' || i, 'changed', '{}' FROM generate_series(1, 50) i";
    client.batch_execute(fill).await.expect("filled");
    source.start(None).await.expect("starts");
    let mut positions = Vec::new();
    for round in 0..2 {
        // A crash after every page, on the first group and on a later one.
        while positions.len() < 50 * (round + 1) {
            let batch = next(&mut source).await.expect("rows");
            assert!(batch.rows.len() <= 7);
            positions.extend(batch.rows.iter().map(|row| row.revision.0));
            source.start(Some(batch.checkpoint)).await.expect("starts");
        }
        nothing_more(&mut source).await;
        client.batch_execute(fill).await.expect("filled");
    }
    assert_eq!(positions, (1..=100).collect::<Vec<u64>>());
    let sample = source.sample(2).await.expect("rows");
    let row = &sample[0];
    assert_eq!(row.place, "table hutong_outbox, position 1");
    assert_eq!(row.fields["aggregateid"], "r1");
    assert_eq!(
        row.committed_at.0,
        row.fields["created_at_us"].as_u64().expect("a time")
    );
}

#[tokio::test]
async fn only_acknowledged_rows_are_deleted() {
    let server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = session(&server, &mut tasks).await;
    let cleaning = Settings {
        delete_after: Some(Duration::ZERO),
        ..settings(&server)
    };
    let mut source = outbox(&cleaning).await;
    insert(&client, "a", "{}").await;
    source.start(None).await.expect("starts");
    let first = next(&mut source).await.expect("a");
    insert(&client, "b", "{}").await;
    let second = next(&mut source).await.expect("b");
    source
        .acknowledged(&first.checkpoint)
        .await
        .expect("cleaned up");
    assert_eq!(committed(&client).await, BTreeSet::from([2]));
    // The rest goes while it waits for rows, also after a restart.
    source.start(Some(second.checkpoint)).await.expect("starts");
    let begun = Instant::now();
    while !committed(&client).await.is_empty() {
        assert!(begun.elapsed() < SOON, "the acknowledged row stays");
        nothing_more(&mut source).await;
    }
}

#[tokio::test]
async fn another_server_is_read_anew_and_a_sequence_that_went_back_is_refused() {
    let server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = session(&server, &mut tasks).await;
    let mut source = outbox(&settings(&server)).await;
    insert(&client, "a", "{}").await;
    source.start(None).await.expect("starts");
    let checkpoint = next(&mut source).await.expect("a").checkpoint;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = checkpoint.clone();
        change(&mut changed);
        Some(changed)
    };
    source
        .start(Some(checkpoint.clone()))
        .await
        .expect("starts");
    nothing_more(&mut source).await;

    source
        .start(with(&|c| c["server"] = "1/00000001".into()))
        .await
        .expect("starts");
    assert_eq!(next(&mut source).await.expect("again").rows.len(), 1);
    let future = "999999:999999:";
    source
        .start(with(&|c| c["base"] = future.into()))
        .await
        .expect("starts");
    assert_eq!(next(&mut source).await.expect("again").rows.len(), 1);

    let mut refused = async |checkpoint: Option<Value>, expected: &str| {
        let error = source.start(checkpoint).await.expect_err(expected);
        assert!(
            !error.passing && error.message.contains(expected),
            "{error}"
        );
    };
    refused(
        with(&|c| c["highest"] = 5.into()),
        "setval('hutong_outbox_position_seq', 5)",
    )
    .await;
    refused(Some("x".into()), "not of an outbox").await;
    let run = async |statement: &str| client.batch_execute(statement).await.expect(statement);
    run("ALTER SEQUENCE hutong_outbox_position_seq CACHE 20").await;
    refused(None, "CACHE 1").await;
    run("ALTER SEQUENCE hutong_outbox_position_seq CACHE 1").await;
    run("UPDATE hutong_outbox SET txid = '999999'").await;
    refused(None, "UPDATE hutong_outbox SET txid = DEFAULT").await;
    run("DROP TABLE hutong_outbox").await;
    refused(None, "hutong-connect init").await;
}

#[tokio::test]
async fn a_table_of_debezium_gets_what_it_lacks_and_can_say_that_there_are_rows() {
    let server = PostgresServer::start();
    let mut tasks = JoinSet::new();
    let client = session(&server, &mut tasks).await;
    let made = client.batch_execute(
        "CREATE SCHEMA app; CREATE TABLE app.outbox (id uuid PRIMARY KEY, \
           aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, \
           type varchar(255) NOT NULL, payload text); \
         INSERT INTO app.outbox VALUES (gen_random_uuid(), 'person', 'a', 'changed', 'no JSON'); \
         CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA app TO reader",
    );
    made.await.expect("made");
    let settings = Settings {
        table: "app.outbox".into(),
        notify: true,
        poll: Duration::from_secs(3600),
        ..settings(&server)
    };
    outbox(&settings).await;
    let mut source = outbox(&settings).await;
    source.start(None).await.expect("starts");
    let old = next(&mut source).await.expect("the old row").rows;
    assert_eq!(old[0].fields["payload"], "no JSON");
    let begun = Instant::now();
    let (new, ()) = tokio::join!(next(&mut source), async {
        sleep(Duration::from_millis(100)).await;
        let row = "INSERT INTO app.outbox VALUES (gen_random_uuid(), 'person', 'b', 'changed', '{\"n\": 2}')";
        client.batch_execute(row).await.expect("inserted");
    });
    assert_eq!(new.expect("the new row").rows[0].fields["payload"]["n"], 2);
    assert!(begun.elapsed() < SOON);

    // A user who may only read needs little.
    let reader = Settings {
        server: Server::new(&server.url().replace("postgres@", "reader@")).expect("a string"),
        notify: false,
        ..settings
    };
    let mut source = PostgresOutbox::new(reader);
    let error = source.start(None).await.expect_err("no permission");
    assert!(
        !error.passing && error.message.contains("grant it"),
        "{error}"
    );
    let grants =
        "GRANT SELECT ON app.outbox TO reader; GRANT SELECT ON app.outbox_position_seq TO reader";
    client.batch_execute(grants).await.expect("granted");
    source.start(None).await.expect("starts");
    assert_eq!(next(&mut source).await.expect("rows").rows.len(), 2);
}
