//! From the outbox of one PostgreSQL database through real processes into the tables of another, while
//! transactions commit in another order than they wrote, and while SIGKILL hits source, broker
//! and sink: every committed row arrives with one effect, and no other.

#[path = "replay/lists.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod lists;
#[path = "replay/processes.rs"]
mod processes;
#[path = "../src/testing.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod testing;

use hutong_proto::api;
use lists::Random;
use processes::{Broker, Connector, until};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use testing::PostgresServer;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

const ISSUER: u32 = 340_000;
const RECEIVER: u32 = 510_000;

const WRITERS: usize = 6;
/// Persons whose colour several sessions change.
const CONTESTED: usize = 12;
const KILLS: [(Victim, usize); 4] = [
    (Victim::Source, 4),
    (Victim::Broker, 4),
    (Victim::Sink, 4),
    (Victim::All, 1),
];
/// No number of theirs is higher.
const CONTESTED_LAST: &str = "000000000000000000000000000000ff";
/// Kills that must hit while rows are under way, or the test shows nothing.
const UNDER_WAY_MIN: usize = 6;
/// Transactions that must have committed before one that wrote earlier, or the test shows nothing.
const OUT_OF_ORDER_MIN: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Source,
    Broker,
    Sink,
    All,
}

/// `[source]` and the mapping of a platform whose application writes colours and test results.
fn source(url: &str) -> String {
    format!(
        r#"
[source]
type = "postgres-outbox"
url = "{url}"
poll = "50ms"
delete_after = "never"

[[mapping]]
kind = "health_code"
when = {{ field = "aggregatetype", is = "code" }}
entity = {{ pseudonym = "payload.person" }}
colour = {{ field = "payload.colour", canonical = true }}
evidence = "payload.n"

[[mapping]]
kind = "test_result"
when = {{ field = "aggregatetype", is = "test" }}
entity = {{ pseudonym = "payload.person" }}
outcome = {{ field = "payload.outcome", canonical = true }}
sampled_at = {{ field = "payload.at", format = "unix-ms" }}

[provenance]
authority = "a"
rule_id = "r"
rule_version = 1
reason = "x"
"#
    )
}

/// The application's own table, and what it does in one transaction: it changes the colour of a person,
/// which waits for whoever changes the same one, and tests that person and a new one. The tests of the same
/// person go from lane to lane.
const APPLICATION: &str = "
CREATE TABLE people (person text PRIMARY KEY, colour text NOT NULL, n bigint NOT NULL);
CREATE FUNCTION work(who text, tested text, out code_position bigint, out test_position bigint) LANGUAGE plpgsql AS $$
DECLARE changed people;
BEGIN
  UPDATE people SET n = n + 1, colour = (ARRAY['green', 'yellow', 'red'])[1 + n % 3]
    WHERE person = who RETURNING * INTO STRICT changed;
  INSERT INTO hutong_outbox (aggregatetype, aggregateid, type, payload)
    VALUES ('code', who, 'changed', jsonb_build_object(
      'person', who, 'colour', changed.colour, 'n', changed.n::text))
    RETURNING position INTO code_position;
  INSERT INTO hutong_outbox (aggregatetype, aggregateid, type, payload)
    VALUES ('test', tested, 'tested', jsonb_build_object(
      'person', tested, 'outcome', (ARRAY['negative', 'positive'])[1 + changed.n % 2],
      'at', floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint))
    RETURNING position INTO test_position;
  INSERT INTO hutong_outbox (aggregatetype, aggregateid, type, payload)
    VALUES ('test', who, 'tested', jsonb_build_object(
      'person', who, 'outcome', (ARRAY['negative', 'positive'])[1 + changed.n % 2],
      'at', floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint));
END $$;
";

/// In the receiver's database: each effect on a register that a transaction of the sink had.
const EFFECTS: &str = "
CREATE TABLE effects (number bigserial, entity bytea, kind text, revision bigint);
CREATE FUNCTION effect() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO effects (entity, kind, revision) VALUES (NEW.entity, NEW.kind, NEW.revision);
  RETURN NULL;
END $$;
CREATE TRIGGER effect AFTER INSERT OR UPDATE ON hutong_registers
  FOR EACH ROW EXECUTE FUNCTION effect();
";

/// A register as one side has it: its person and kind; then its word and its revision.
type Registers = BTreeMap<(String, String), (String, i64)>;

/// What the writers have done.
#[derive(Default)]
struct Done {
    stop: AtomicBool,
    /// Transactions.
    committed: AtomicU64,
    /// Those that committed after one that wrote later.
    out_of_order: AtomicU64,
    /// The highest position that was committed.
    newest: AtomicU64,
}

/// Writes until told to stop: transactions take their time between writing and their end, and a fifth
/// is rolled back.
async fn write(client: Client, writer: usize, done: Arc<Done>) {
    let mut random = Random::new(writer as u64);
    let mut number = 0_u64;
    while !done.stop.load(Ordering::Acquire) {
        number += 1;
        let who = format!("{:032x}", 1 + random.below(CONTESTED));
        let tested = format!("{:016x}{number:016x}", 1 + writer);
        client.batch_execute("BEGIN").await.expect("begun");
        let row = client
            .query_one("SELECT test_position FROM work($1, $2)", &[&who, &tested])
            .await;
        let position: i64 = row.expect("written").get(0);
        let seconds = random.below(30) as f64 / 1000.0;
        let pause = client.execute("SELECT pg_sleep($1)", &[&seconds]).await;
        pause.expect("slept");
        if random.below(5) == 0 {
            client.batch_execute("ROLLBACK").await.expect("rolled back");
            continue;
        }
        client.batch_execute("COMMIT").await.expect("committed");
        let position = u64::try_from(position).expect("positive");
        let newest = done.newest.fetch_max(position, Ordering::AcqRel);
        done.out_of_order
            .fetch_add(u64::from(newest > position), Ordering::AcqRel);
        done.committed.fetch_add(1, Ordering::AcqRel);
    }
}

/// The processes, and both databases.
struct Line {
    // Dropped in this order: those who write before that which they write to.
    source: Connector,
    sink: Connector,
    broker: Broker,
    application: Client,
    receiver: Client,
    sessions: JoinSet<()>,
    server: PostgresServer,
    _dir: TempDir,
}

async fn session(url: &str, sessions: &mut JoinSet<()>) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("a session");
    sessions.spawn(async move {
        if let Err(error) = connection.await {
            println!("a session of the test ended: {error}");
        }
    });
    client
}

impl Line {
    async fn start() -> Line {
        let dir = tempfile::tempdir().expect("a folder");
        let server = PostgresServer::start();
        let mut sessions = JoinSet::new();
        let application = session(&server.url(), &mut sessions).await;
        let made = application.batch_execute("CREATE DATABASE receiver").await;
        made.expect("made");
        let receiver_url = server.url_of("receiver");
        let receiver = session(&receiver_url, &mut sessions).await;
        let platforms =
            [ISSUER, RECEIVER].map(|code| format!("[[platforms]]\ncode = {code}\nname = \"p\"\n"));
        let broker = Broker::start(dir.path(), &platforms.concat());
        let sink = format!("sink = {{ type = \"postgres\", url = \"{receiver_url}\" }}\n");
        let mut sink = Connector::start(dir.path(), "sink", RECEIVER, &broker, &sink);
        until("the sink runs", async || sink.runs()).await;
        receiver.batch_execute(EFFECTS).await.expect("made");
        let source = source(&server.url());
        let source = Connector::start(dir.path(), "outbox", ISSUER, &broker, &source);
        let people = format!(
            "{APPLICATION} INSERT INTO people SELECT lpad(to_hex(i), 32, '0'), 'green', 0 \
             FROM generate_series(1, {CONTESTED}) i"
        );
        application.batch_execute(&people).await.expect("made");
        Line {
            source,
            sink,
            broker,
            application,
            receiver,
            sessions,
            server,
            _dir: dir,
        }
    }

    /// Tests of new persons that arrived.
    async fn arrived(&self) -> u64 {
        let statement = "SELECT count(*) FROM hutong_registers \
            WHERE kind = 'test_result' AND encode(entity, 'hex') > $1";
        let row = self
            .receiver
            .query_one(statement, &[&CONTESTED_LAST])
            .await
            .expect("a row");
        u64::try_from(row.get::<_, i64>(0)).expect("a count")
    }

    fn strike(&mut self, victim: Victim, twice: bool, random: &mut Random) {
        let after = twice.then(|| Duration::from_millis(random.below(150) as u64));
        let mut chosen = match victim {
            Victim::Source => vec![&mut self.source],
            Victim::Sink => vec![&mut self.sink],
            Victim::Broker => vec![],
            Victim::All => vec![&mut self.source, &mut self.sink],
        };
        let broker = matches!(victim, Victim::Broker | Victim::All);
        if broker {
            self.broker.kill();
        }
        chosen.iter_mut().for_each(|connector| connector.kill());
        if broker {
            self.broker.start_again(after);
        }
        chosen
            .iter_mut()
            .for_each(|connector| connector.start_again(after));
    }

    /// What the outbox and the application's own table say, read without our source.
    async fn written(&self) -> Registers {
        let statement = "SELECT DISTINCT ON (1, 2) payload->>'person', aggregatetype, \
            coalesce(payload->>'colour', payload->>'outcome'), position \
            FROM hutong_outbox ORDER BY 1, 2, position DESC";
        let rows = self.application.query(statement, &[]).await.expect("rows");
        let kind = |row: &tokio_postgres::Row| match row.get(1) {
            "code" => "health_code".to_owned(),
            _ => "test_result".to_owned(),
        };
        let written: Registers = rows
            .iter()
            .map(|row| ((row.get(0), kind(row)), (row.get(2), row.get(3))))
            .collect();
        let people = "SELECT person, colour FROM people WHERE n > 0";
        for row in self.application.query(people, &[]).await.expect("rows") {
            let (person, colour): (String, String) = (row.get(0), row.get(1));
            let last = &written[&(person, "health_code".to_owned())];
            assert_eq!(last.0, colour, "the outbox says what the application has");
        }
        written
    }

    async fn received(&self) -> Registers {
        let statement =
            "SELECT encode(entity, 'hex'), kind, status, revision FROM hutong_registers";
        let rows = self.receiver.query(statement, &[]).await.expect("rows");
        let row = |row: &tokio_postgres::Row| ((row.get(0), row.get(1)), (row.get(2), row.get(3)));
        let received: Registers = rows.iter().map(row).collect();
        assert_eq!(received.len(), rows.len(), "one row a register");
        received
    }

    /// The sink has applied all that is in the log now.
    async fn applied(&self) {
        let mut admin = self.broker.admin();
        let status = admin.get_status(api::GetStatusRequest {}).await;
        let tail = status.expect("an answer").into_inner().next_offset;
        until("the sink has applied the log", async || {
            let request = api::ListSubscriptionsRequest { platform: RECEIVER };
            let answer = admin.list_subscriptions(request).await;
            let list = answer.map_err(|e| e.to_string())?.into_inner();
            let cursor = list.subscriptions.first().and_then(|s| s.applied.as_ref());
            match cursor {
                Some(cursor) if cursor.urgent.min(cursor.bulk) >= tail => Ok(()),
                cursor => Err(format!("{cursor:?} of {tail}")),
            }
        })
        .await;
    }

    /// Every effect is of a row of the outbox, and each register only went forward.
    async fn check_effects(&self) {
        let statement = "SELECT payload->>'person', position FROM hutong_outbox";
        let rows = self.application.query(statement, &[]).await.expect("rows");
        let known: BTreeSet<(String, i64)> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let statement = "SELECT encode(entity, 'hex'), kind, revision FROM effects ORDER BY number";
        let rows = self.receiver.query(statement, &[]).await.expect("rows");
        let mut newest: BTreeMap<(String, String), i64> = BTreeMap::new();
        for row in &rows {
            let (person, kind, revision): (String, String, i64) =
                (row.get(0), row.get(1), row.get(2));
            assert!(
                known.contains(&(person.clone(), revision)),
                "{person} {revision} was never committed"
            );
            let before = newest.entry((person.clone(), kind)).or_insert(0);
            assert!(*before < revision, "{person}: {revision} after {before}");
            *before = revision;
        }
    }
}

fn differences(written: &Registers, received: &Registers) -> Vec<String> {
    let all: BTreeSet<_> = written.keys().chain(received.keys()).collect();
    all.into_iter()
        .map(|key| (key, written.get(key), received.get(key)))
        .filter(|(_, written, received)| written != received)
        .map(|(key, written, received)| {
            format!("{key:?}: written {written:?}, received {received:?}")
        })
        .collect()
}

/// Kills one after the other while rows are written. Returns how many hit while rows were under way.
async fn kill_all(
    line: &mut Line,
    victims: Vec<(Victim, bool)>,
    done: &Done,
    random: &mut Random,
) -> usize {
    let mut under_way = 0;
    for (victim, twice) in victims {
        // Now and then without waiting until all works again.
        let written = random.below(2) == 0;
        let some = async |line: &Line| match written {
            true => done.committed.load(Ordering::Acquire),
            false => line.arrived().await,
        };
        let moment = some(line).await + 20 + random.below(200) as u64;
        until("rows are written and arrive", async || {
            match some(line).await {
                enough if enough >= moment => Ok(()),
                some => Err(format!("{some} of {moment}")),
            }
        })
        .await;
        let committed = done.committed.load(Ordering::Acquire);
        let arrived = line.arrived().await;
        under_way += usize::from(arrived < committed);
        println!(
            "SIGKILL for {victim:?} at {arrived} of {committed}, again while it starts: {twice}"
        );
        line.strike(victim, twice, random);
    }
    under_way
}

/// Waits until the receiver has all that was written, also after another start; returns that.
async fn settled(line: &mut Line, random: &mut Random) -> Registers {
    let written = line.written().await;
    until("the newest colours arrive", async || {
        let received = line.received().await;
        match differences(&written, &received).as_slice() {
            [] => Ok(()),
            [first, ..] => Err(first.clone()),
        }
    })
    .await;
    // Once more from the checkpoints: what comes again changes nothing.
    line.strike(Victim::All, false, random);
    until("both run", async || {
        line.source.runs()?;
        line.sink.runs()
    })
    .await;
    line.applied().await;
    assert_eq!(differences(&written, &line.received().await), [""; 0]);
    line.check_effects().await;
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_committed_row_has_one_effect_whatever_is_killed() {
    let mut line = Line::start().await;
    let mut random = Random::new(20_220_831);
    let times = |&(victim, count)| (0..count).map(move |n| (victim, n % 3 == 1));
    let mut victims: Vec<(Victim, bool)> = KILLS.iter().flat_map(times).collect();
    random.shuffle(&mut victims);

    let done = Arc::new(Done::default());
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let client = session(&line.server.url(), &mut line.sessions).await;
        writers.spawn(write(client, writer, Arc::clone(&done)));
    }
    let kills = victims.len();
    let under_way = kill_all(&mut line, victims, &done, &mut random).await;
    done.stop.store(true, Ordering::Release);
    while let Some(ended) = writers.join_next().await {
        ended.expect("a writer ends");
    }

    let committed = done.committed.load(Ordering::Acquire);
    until("all rows arrive", async || match line.arrived().await {
        enough if enough >= committed => Ok(()),
        some => Err(format!("{some} of {committed}: {}", line.source.log())),
    })
    .await;
    let written = settled(&mut line, &mut random).await;
    let tests = written
        .keys()
        .filter(|(person, kind)| kind == "test_result" && person.as_str() > CONTESTED_LAST)
        .count();
    assert_eq!(
        tests as u64, committed,
        "each transaction tested one new person"
    );
    let counts = line.source.status().expect("it runs").counts;
    assert_eq!(
        (counts.rows_refused, counts.dead_letters),
        (0, 0),
        "{}",
        line.source.log()
    );

    let out_of_order = done.out_of_order.load(Ordering::Acquire);
    assert!(
        out_of_order >= OUT_OF_ORDER_MIN as u64,
        "only {out_of_order} of {committed} transactions committed out of order: the test shows nothing"
    );
    assert!(
        under_way >= UNDER_WAY_MIN,
        "only {under_way} of {kills} kills hit while rows were under way: the test shows nothing"
    );
    // The comparison can fail: a row that is altered is reported with both values.
    let alter = "UPDATE hutong_registers SET status = 'altered' WHERE ctid = (SELECT min(ctid) FROM hutong_registers)";
    let altered = line.receiver.execute(alter, &[]).await;
    assert_eq!(altered.expect("altered"), 1);
    let found = differences(&written, &line.received().await);
    assert!(
        found.len() == 1 && found[0].contains("received Some((\"altered\""),
        "{found:?}"
    );
    println!(
        "{committed} transactions, {out_of_order} out of order, {kills} kills, {under_way} under way"
    );
}
