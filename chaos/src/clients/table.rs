//! Looking at what a sink has, as its users would: rows and cursor in one transaction, again and again.

use crate::{
    clients::Deltas,
    error::ChaosError,
    history::{Cursor, Event, Row, Stream, Writer},
};
use hutong_proto::{Value, delta::Colour};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_postgres::{Client, IsolationLevel, NoTls};

const EVERY: Duration = Duration::from_secs(1);

const ROWS: &str = "SELECT entity, kind, issuer, revision, status, evidence, \
    (extract(epoch FROM committed_at) * 1000000)::bigint FROM hutong_registers";
/// Lists that are replayed beside the load are compared by themselves; where none are, an area is a row that
/// nobody made.
const WITHOUT_AREAS: &str = " WHERE kind <> 'area_risk'";
const CURSOR: &str = "SELECT urgent, bulk FROM hutong_cursor WHERE urgent IS NOT NULL";

#[derive(Debug)]
pub struct Sampler {
    pub url: String,
    pub sink: String,
    pub history: Writer,
    pub deltas: Deltas,
}

impl Sampler {
    /// Until it is dropped. A server that is away for a while is asked again.
    pub async fn run(&self) {
        loop {
            let mut sessions = JoinSet::new();
            if let Ok(mut client) = self.session(&mut sessions).await {
                while self.look(&mut client).await.is_ok() {
                    tokio::time::sleep(EVERY).await;
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn session(&self, sessions: &mut JoinSet<()>) -> Result<Client, ChaosError> {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls)
            .await
            .map_err(ChaosError::stage("no session with PostgreSQL"))?;
        sessions.spawn(async move {
            // That it broke is seen by whoever asks next.
            drop(connection.await);
        });
        Ok(client)
    }

    /// Once, for the end of a drill.
    pub async fn look_once(&self) -> Result<Option<Cursor>, ChaosError> {
        let mut sessions = JoinSet::new();
        let mut client = self.session(&mut sessions).await?;
        self.look(&mut client).await
    }

    async fn look(&self, client: &mut Client) -> Result<Option<Cursor>, ChaosError> {
        let failed = || ChaosError::stage("the table cannot be read");
        let transaction = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await
            .map_err(failed())?;
        let cursor = transaction.query_opt(CURSOR, &[]).await.map_err(failed())?;
        let rows = match self.deltas.areas {
            true => [ROWS, WITHOUT_AREAS].concat(),
            false => ROWS.to_owned(),
        };
        let found = transaction.query(&rows, &[]).await.map_err(failed())?;
        transaction.commit().await.map_err(failed())?;
        let cursor = cursor.map(|row| Cursor {
            urgent: row.get::<_, i64>(0).unsigned_abs(),
            bulk: row.get::<_, i64>(1).unsigned_abs(),
        });
        let mut rows: Vec<Row> = Vec::with_capacity(found.len());
        let mut bad = 0;
        for row in &found {
            match self.row(row) {
                Some(row) => rows.push(row),
                None => bad += 1,
            }
        }
        rows.sort_unstable();
        self.history.record(Event::Table {
            sink: self.sink.clone(),
            cursor,
            rows,
            bad,
        });
        Ok(cursor)
    }

    /// Nothing for a row that is not what its revision says.
    fn row(&self, row: &tokio_postgres::Row) -> Option<Row> {
        let stream = match row.get::<_, &str>(1) {
            "health_code" => Stream::Urgent,
            "test_result" => Stream::Bulk,
            "vaccination" => Stream::Flood,
            _ => return None,
        };
        let issuer = row.get::<_, i32>(2).unsigned_abs();
        let revision = row.get::<_, i64>(3).unsigned_abs();
        let committed_at = row.get::<_, i64>(6).unsigned_abs();
        let due = committed_at.checked_sub(self.deltas.wall_us)?;
        let made = self.deltas.make(issuer, stream, revision, due);
        let status = match made.value {
            Value::HealthCode(colour) => Some(Colour::name(colour)),
            Value::TestResult { outcome, .. } => Some(outcome.name()),
            Value::Vaccination { .. } | Value::AreaRisk { .. } => None,
        };
        let same = row.get::<_, Vec<u8>>(0) == made.entity.0
            && row.get::<_, &str>(5) == made.evidence
            && row.get::<_, Option<&str>>(4) == status;
        same.then_some((issuer, stream, revision))
    }
}
