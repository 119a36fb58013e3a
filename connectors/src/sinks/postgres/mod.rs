//! Registers as rows of a PostgreSQL table.
//!
//! `hutong_registers` holds the newest revision of every register. `hutong_cursor` holds, for each
//! subscription, how far it is applied; it changes in the same transaction as the rows. So after a crash
//! of either side the cursor says exactly what the rows say, and what is sent again changes nothing, as its
//! revision is not newer.
//!
//! **Snapshots** have a number. Rows that a snapshot mentions get it, whether they were new or not; at its
//! end the rows of the subscription with another number go, and the cursor is set, in one transaction. A
//! snapshot that was not ended leaves the cursor as it was, and the next one has another number. Two
//! subscriptions that overlap need a `schema` each.
//!
//! **One connector a subscription**: whoever starts takes it over by raising `session`; another one
//! that still writes finds that out in its next transaction, and stops.

mod rows;
mod statements;

use crate::{
    client::Delivered,
    postgres::{LONG_SESSION, LONG_STATEMENTS, Link, Server, read_name},
    sink::{Sink, SinkError},
};
use hutong_config::Table;
use hutong_proto::{Cursor, LogId, Offset};
use rows::{Columns, newest};
use statements::{LAYOUT, Statements};
use std::{fmt, time::Duration};
use tokio::time::Instant;
use tokio_postgres::{Row, Transaction};

/// Rows in one statement; a transaction has as many statements as it needs.
const STATEMENT_ROWS_MAX: usize = 4096;
/// Bookmarks are only written this often: resuming at an older one changes nothing.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Settings {
    pub server: Server,
    /// Where the tables are.
    pub schema: String,
}

impl Settings {
    pub fn new(server: Server) -> Settings {
        Settings {
            server,
            schema: "public".into(),
        }
    }

    /// Reads `[sink]`.
    pub fn read(table: &mut Table<'_>) -> Option<Settings> {
        let server = Server::read(table);
        let schema =
            table.with_default_as("schema", "public".into(), |value| match read_name(value)? {
                name if name.contains('.') => value.fail("a schema has no dot in its name", ""),
                name => Some(name),
            });
        Some(Settings {
            server: server?,
            schema,
        })
    }
}

/// See the module.
pub struct PostgresSink {
    settings: Settings,
    subscription: String,
    statements: Statements,
    open: Option<Open>,
}

/// From a start to the first error.
struct Open {
    link: Link,
    session: i64,
    /// Of the last snapshot that was begun.
    snapshot_id: i64,
    in_snapshot: bool,
    bookmarked: Instant,
    stored: Option<Cursor>,
}

impl fmt::Debug for PostgresSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSink")
            .field("settings", &self.settings)
            .field("subscription", &self.subscription)
            .finish_non_exhaustive()
    }
}

impl PostgresSink {
    pub fn new(settings: Settings, subscription: impl Into<String>) -> PostgresSink {
        PostgresSink {
            statements: Statements::new(&settings.schema),
            settings,
            subscription: subscription.into(),
            open: None,
        }
    }

    fn failed(&self, error: &tokio_postgres::Error) -> SinkError {
        self.settings.server.failed(error).into()
    }

    /// What a transaction needs. Until `done`, the sink is as if not started: a call that fails or is
    /// dropped leaves it so.
    fn begin(&mut self) -> Result<Open, SinkError> {
        self.open
            .take()
            .ok_or_else(|| SinkError::passing(format!("{}: not connected", self.settings.server)))
    }

    async fn write_rows(
        &self,
        transaction: &Transaction<'_>,
        open: (i64, bool),
        deltas: &[Delivered],
    ) -> Result<(), SinkError> {
        let (snapshot_id, in_snapshot) = open;
        for some in newest(deltas).chunks(STATEMENT_ROWS_MAX) {
            let columns = Columns::of(some)?;
            let mut parameters = columns.parameters().to_vec();
            parameters.push(&self.subscription);
            parameters.push(&snapshot_id);
            let written = transaction
                .execute(&self.statements.upsert, &parameters)
                .await;
            let written = written.map_err(|e| self.failed(&e))?;
            if in_snapshot && written < some.len() as u64 {
                let key: [&(dyn tokio_postgres::types::ToSql + Sync); 5] = [
                    &columns.entity,
                    &columns.kind,
                    &columns.issuer,
                    &self.subscription,
                    &snapshot_id,
                ];
                let mentioned = transaction.execute(&self.statements.mention, &key).await;
                mentioned.map_err(|e| self.failed(&e))?;
            }
        }
        Ok(())
    }

    /// Fails when another connector has taken the subscription over.
    async fn write_cursor(
        &self,
        transaction: &Transaction<'_>,
        session: i64,
        cursor: Option<Cursor>,
        applies: i64,
    ) -> Result<(), SinkError> {
        let held = match cursor {
            None => {
                let hold = &self.statements.hold;
                transaction
                    .query(hold, &[&self.subscription, &session])
                    .await
                    .map(|rows| rows.len() as u64)
            }
            Some(cursor) => {
                let log_id = cursor.log_id.to_string();
                let (urgent, bulk) = (position(cursor.urgent)?, position(cursor.bulk)?);
                let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 6] = [
                    &self.subscription,
                    &session,
                    &log_id,
                    &urgent,
                    &bulk,
                    &applies,
                ];
                transaction
                    .execute(&self.statements.set_cursor, &parameters)
                    .await
            }
        };
        match held.map_err(|e| self.failed(&e))? {
            1 => Ok(()),
            _ => Err(self.taken_over()),
        }
    }

    fn taken_over(&self) -> SinkError {
        SinkError::lasting(format!(
            "another connector has taken over subscription {} in {}: stop one of the two",
            self.subscription, self.settings.server
        ))
    }

    async fn check_layout(&self, link: &Link) -> Result<(), SinkError> {
        let layout = link.client.query_one(&self.statements.layout, &[]).await;
        match layout
            .map_err(|e| self.failed(&e))?
            .get::<_, Option<i32>>(0)
        {
            Some(LAYOUT) => Ok(()),
            found => Err(SinkError::lasting(format!(
                "the tables in schema {} have layout {}, this program writes {LAYOUT}; {}",
                self.settings.schema,
                found.map_or("none".into(), |n| n.to_string()),
                match found {
                    Some(newer) if newer > LAYOUT => "use a newer hutong-connect",
                    _ => "run `hutong-connect init`",
                }
            ))),
        }
    }

    fn stored_cursor(&self, row: &Row) -> Result<Option<Cursor>, SinkError> {
        let Some(log_id) = row.get::<_, Option<String>>("log_id") else {
            return Ok(None);
        };
        let offset = |column| {
            let n: Option<i64> = row.get(column);
            n.and_then(|n| u64::try_from(n).ok()).map(Offset)
        };
        let log_id_number = u64::from_str_radix(&log_id, 16).ok();
        match (log_id_number, offset("urgent"), offset("bulk")) {
            (Some(id), Some(urgent), Some(bulk)) => Ok(Some(Cursor {
                log_id: LogId(id),
                urgent,
                bulk,
            })),
            _ => Err(SinkError::lasting(format!(
                "the cursor of subscription {} in {}.hutong_cursor is damaged; delete its row to begin with a \
                 snapshot",
                self.subscription, self.settings.schema
            ))),
        }
    }
}

impl Sink for PostgresSink {
    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn init(&mut self) -> Result<Vec<String>, SinkError> {
        let link = self.settings.server.connect().await?;
        let longer = link.client.batch_execute(LONG_SESSION).await;
        longer.map_err(|e| self.failed(&e))?;
        let done = link
            .client
            .batch_execute(&statements::init(&self.settings.schema))
            .await;
        done.map_err(|e| self.failed(&e))?;
        self.check_layout(&link).await?;
        Ok(vec![format!(
            "tables hutong_registers and hutong_cursor are in schema {}",
            self.settings.schema
        )])
    }

    async fn start(&mut self) -> Result<Option<Cursor>, SinkError> {
        // Ends a session that was in use, so that what it left open is undone.
        self.open = None;
        let link = self.settings.server.connect().await?;
        self.check_layout(&link).await?;
        // Waits for a transaction of the session before, or finds the cursor as it was before it.
        let row = link
            .client
            .query_one(&self.statements.open, &[&self.subscription])
            .await;
        let row = row.map_err(|e| self.failed(&e))?;
        let stored = self.stored_cursor(&row)?;
        self.open = Some(Open {
            link,
            session: row.get("session"),
            snapshot_id: row.get("snapshot_id"),
            in_snapshot: false,
            bookmarked: Instant::now(),
            stored,
        });
        Ok(stored)
    }

    async fn begin_snapshot(&mut self) -> Result<(), SinkError> {
        let mut open = self.begin()?;
        let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 2] =
            [&self.subscription, &open.session];
        let transaction = open
            .link
            .client
            .transaction()
            .await
            .map_err(|e| self.failed(&e))?;
        let longer = transaction.batch_execute(LONG_STATEMENTS).await;
        longer.map_err(|e| self.failed(&e))?;
        let row = transaction
            .query_opt(&self.statements.begin_snapshot, &parameters)
            .await;
        let row = row
            .map_err(|e| self.failed(&e))?
            .ok_or_else(|| self.taken_over())?;
        transaction.commit().await.map_err(|e| self.failed(&e))?;
        open.snapshot_id = row.get(0);
        open.in_snapshot = true;
        self.open = Some(open);
        Ok(())
    }

    async fn apply(
        &mut self,
        deltas: &[Delivered],
        cursor: Option<Cursor>,
    ) -> Result<(), SinkError> {
        let mut open = self.begin()?;
        let (session, snapshot) = (open.session, (open.snapshot_id, open.in_snapshot));
        let transaction = open
            .link
            .client
            .transaction()
            .await
            .map_err(|e| self.failed(&e))?;
        // The cursor's row first: whoever holds it writes, the others wait or stop.
        self.write_cursor(&transaction, session, cursor, 1).await?;
        let transaction = match planted!(SinkCursorApart) {
            false => transaction,
            true => {
                transaction.commit().await.map_err(|e| self.failed(&e))?;
                // As far apart as two commits of a database that is busy.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let rows = open.link.client.transaction().await;
                rows.map_err(|e| self.failed(&e))?
            }
        };
        self.write_rows(&transaction, snapshot, deltas).await?;
        transaction.commit().await.map_err(|e| self.failed(&e))?;
        if cursor.is_some() {
            open.stored = cursor;
            open.bookmarked = Instant::now();
        }
        self.open = Some(open);
        Ok(())
    }

    async fn end_snapshot(&mut self, cursor: Cursor) -> Result<(), SinkError> {
        let mut open = self.begin()?;
        let (session, snapshot_id) = (open.session, open.snapshot_id);
        if !open.in_snapshot {
            return Err(SinkError::passing("a snapshot ends that was not begun"));
        }
        let transaction = open
            .link
            .client
            .transaction()
            .await
            .map_err(|e| self.failed(&e))?;
        self.write_cursor(&transaction, session, Some(cursor), 1)
            .await?;
        let longer = transaction.batch_execute(LONG_STATEMENTS).await;
        longer.map_err(|e| self.failed(&e))?;
        let delete = &self.statements.delete_unmentioned;
        let deleted = transaction
            .execute(delete, &[&self.subscription, &snapshot_id])
            .await;
        deleted.map_err(|e| self.failed(&e))?;
        transaction.commit().await.map_err(|e| self.failed(&e))?;
        open.in_snapshot = false;
        open.stored = Some(cursor);
        self.open = Some(open);
        Ok(())
    }

    async fn bookmark(&mut self, cursor: Cursor) -> Result<(), SinkError> {
        let mut open = self.begin()?;
        let due = open.bookmarked.elapsed() >= BOOKMARK_EVERY && open.stored != Some(cursor);
        // Within a snapshot the cursor would say that its rows are there.
        if due && !open.in_snapshot {
            let session = open.session;
            let transaction = open
                .link
                .client
                .transaction()
                .await
                .map_err(|e| self.failed(&e))?;
            self.write_cursor(&transaction, session, Some(cursor), 0)
                .await?;
            transaction.commit().await.map_err(|e| self.failed(&e))?;
            open.bookmarked = Instant::now();
            open.stored = Some(cursor);
        }
        self.open = Some(open);
        Ok(())
    }
}

fn position(offset: Offset) -> Result<i64, SinkError> {
    i64::try_from(offset.0)
        .map_err(|_| SinkError::lasting(format!("offset {offset} is too large for a bigint")))
}
