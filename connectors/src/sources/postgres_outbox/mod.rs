//! An outbox: a table that the platform's application fills in the same transaction as its own tables.
//!
//! The table has the columns of Debezium's outbox (`id`, `aggregatetype`, `aggregateid`, `type`,
//! `payload`), and three that fill themselves: `position` from a sequence, `txid` with the inserting
//! transaction, `created_at`. The application inserts the first five and nothing else, **after** it
//! changed, and so locked, its own row. The fields of a row are `id`, `aggregatetype`, `aggregateid`,
//! `type`, `payload` (what is in it is `payload.NAME`), `position` and `created_at_us`.
//!
//! # No row is lost
//! A transaction can commit after others that began later, so its rows appear behind rows with a
//! higher position and a higher `txid`. Whoever remembers the last position has then gone past
//! them. This source remembers a *snapshot* of PostgreSQL instead: the exact set of transactions that
//! had ended. It reads in groups: a group is what is visible in a newer snapshot and was not in the
//! remembered one, that is rows of transactions at or above the old `xmax`, and of those that ran then.
//! Every committed row is in exactly one group, and a transaction that runs for hours delays only its
//! own rows. The checkpoint is the old snapshot, the new one, and the position within the group.
//!
//! # Which row of a register is the newest
//! `txid` does not tell: it is given out when a transaction begins to write, not when it commits. `position` does. Two
//! transactions that change the same register wait for each other at the lock of the application's
//! row, so the later one inserts into the outbox after the earlier one has committed, and its
//! position is greater. So **the revision of a row is its position**. Groups keep this order as well: the
//! later transaction is in the same group or a later one, and a group is read by position. The sequence
//! must not be cached by sessions (`CACHE 1`, the default), which is checked.
//!
//! # When the server crashes
//! With `synchronous_commit = off` a transaction is seen before it is on the server's disk, and a rolled back
//! one never has to be. After a crash such rows are gone and their transaction numbers are given out again: below a
//! snapshot that says that they had ended. So before rows are given away, this source commits a message of its own
//! to the write-ahead log, synchronously: with it everything before it is on disk, that is all that the group's
//! snapshot says.
//!
//! # When the server is another one
//! Transactions are counted anew after a restore elsewhere, and may be given out twice after a failover
//! that lost some. The checkpoint names system and timeline; when they differ, all that is in the table
//! is read again, and the receivers drop what they have by its revision. A sequence that is behind
//! what was sent already is refused, as new rows would seem old.

mod settings;
mod snapshot;
mod statements;

pub use settings::Settings;

use crate::{
    postgres::{LONG_SESSION, Link},
    source::{Source, SourceBatch, SourceError, SourceRow},
};
use hutong_proto::{Micros, Revision};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use snapshot::PgSnapshot;
use statements::{CLEAN_UP_ROWS, END, FLUSH, Statements};
use std::{fmt, time::Duration};
use tokio::time::Instant;
use tokio_postgres::{Row, types::ToSql};

/// Acknowledged rows are looked for this often.
const CLEAN_UP_EVERY: Duration = Duration::from_secs(5);
/// So many times the rows of a page are looked at for one: others may lie between them.
const LOOK_AT: i64 = 4;
/// More have to wait for the next time.
const CLEAN_UPS_AT_ONCE: usize = 20;

/// Where the source stands, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checkpoint {
    /// System identifier and timeline.
    server: String,
    /// All that was visible in it was read; `None` is nothing.
    base: Option<PgSnapshot>,
    /// What is visible in it and not in `base` is the group that is being read.
    group: Option<PgSnapshot>,
    /// All of the group up to here was read.
    position: i64,
    /// The highest position that was ever read.
    highest: i64,
}

/// A part of a group.
struct Page {
    rows: Vec<SourceRow>,
    /// Of the rows; 0 without any.
    last: i64,
    /// The group goes on after this position; `None` if that was all of it.
    reach: Option<i64>,
}

/// See the module.
pub struct PostgresOutbox {
    settings: Settings,
    statements: Statements,
    link: Option<Link>,
    at: Checkpoint,
    /// Of the group that is being read: no later transaction has a lower position.
    first: Option<i64>,
    /// All that is visible in the group is on the server's disk.
    flushed: bool,
    /// All that was visible in it is durable elsewhere.
    acknowledged: Option<PgSnapshot>,
    cleaned_up: Option<Instant>,
}

impl fmt::Debug for PostgresOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOutbox")
            .field("settings", &self.settings)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl PostgresOutbox {
    pub fn new(settings: Settings) -> PostgresOutbox {
        PostgresOutbox {
            statements: Statements::new(&settings.table),
            settings,
            link: None,
            at: Checkpoint::default(),
            first: None,
            flushed: false,
            acknowledged: None,
            cleaned_up: None,
        }
    }

    fn failed(&self, error: &tokio_postgres::Error) -> SourceError {
        self.settings.server.failed(error).into()
    }

    fn link(&self) -> Result<&Link, SourceError> {
        let message = || format!("{}: not connected", self.settings.server);
        self.link
            .as_ref()
            .ok_or_else(|| SourceError::passing(message()))
    }

    async fn query(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, SourceError> {
        let rows = self.link()?.client.query(statement, parameters).await;
        rows.map_err(|e| self.failed(&e))
    }

    /// Where to go on at this server.
    async fn place(&self, checkpoint: Option<Checkpoint>) -> Result<Checkpoint, SourceError> {
        let table = &self.settings.table;
        let row = self.query(&self.statements.server, &[]).await?.remove(0);
        let (server, next): (String, String) = (row.get(0), row.get(1));
        let Some(sequence) = row.get::<_, Option<String>>(2) else {
            return Err(SourceError::lasting(format!(
                "column position of {table} has no sequence; make it a bigserial"
            )));
        };
        if row.get::<_, i64>(4) != 1 {
            return Err(SourceError::lasting(format!(
                "sequence {sequence} is cached by sessions, so positions are not in order; run \
                 ALTER SEQUENCE {sequence} CACHE 1"
            )));
        }
        if row.get::<_, bool>(5) {
            return Err(SourceError::lasting(format!(
                "{table} has rows of transactions that this server has not begun yet: they come from \
                 another one; run UPDATE {table} SET txid = DEFAULT"
            )));
        }
        let at = checkpoint.unwrap_or_default();
        if row.get::<_, i64>(3) < at.highest {
            return Err(SourceError::lasting(format!(
                "sequence {sequence} is behind position {}, which was sent already: new rows would be \
                 taken for old ones; run SELECT setval('{sequence}', {})",
                at.highest, at.highest
            )));
        }
        let next: u64 = next.parse().unwrap_or(0);
        let last = at.group.as_ref().or(at.base.as_ref()).map_or(0, |s| s.xmax);
        if at.server == server && last <= next {
            return Ok(at);
        }
        if !at.server.is_empty() {
            tracing::warn!(
                was = at.server,
                now = server,
                "another server: the table is read anew"
            );
        }
        Ok(Checkpoint {
            server,
            highest: at.highest,
            ..Checkpoint::default()
        })
    }

    /// The group that is being read; begins one if there is something new.
    async fn group(&mut self) -> Result<Option<PgSnapshot>, SourceError> {
        if self.at.group.is_none() {
            let rows = self
                .query("SELECT pg_current_snapshot()::text", &[])
                .await?;
            let now: PgSnapshot = rows[0]
                .get::<_, &str>(0)
                .parse()
                .map_err(SourceError::lasting)?;
            if self.at.base.as_ref() == Some(&now) {
                return Ok(None);
            }
            self.at.group = Some(now);
            self.at.position = 0;
            self.flushed = false;
        }
        Ok(self.at.group.clone())
    }

    /// The next rows of the group.
    async fn page(&mut self, group: &PgSnapshot) -> Result<Page, SourceError> {
        let (snapshot, limit) = (group.to_string(), i64::from(self.settings.batch_rows));
        let after = self.at.position;
        let found = match &self.at.base {
            None => {
                let parameters: [&(dyn ToSql + Sync); 3] = [&snapshot, &after, &limit];
                self.query(&self.statements.page_of_all, &parameters)
                    .await?
            }
            Some(base) => {
                let xmax = base.xmax.to_string();
                let running: Vec<String> = base.running.iter().map(u64::to_string).collect();
                let first = match self.first {
                    Some(first) => first,
                    None => {
                        let parameters: [&(dyn ToSql + Sync); 2] = [&xmax, &snapshot];
                        let rows = self.query(&self.statements.first, &parameters).await?;
                        rows[0].get::<_, Option<i64>>(0).unwrap_or(END)
                    }
                };
                self.first = Some(first);
                let looked_at = limit * LOOK_AT;
                let parameters: [&(dyn ToSql + Sync); 7] = [
                    &xmax, &running, &snapshot, &after, &limit, &first, &looked_at,
                ];
                self.query(&self.statements.page, &parameters).await?
            }
        };
        let (reach, count): (i64, i64) = match found.first() {
            Some(row) => (row.get(0), row.get(1)),
            None => (END, 0),
        };
        let mut rows = Vec::with_capacity(found.len());
        for row in &found {
            if row.get::<_, Option<i64>>(2).is_some() {
                rows.push(self.source_row(row)?);
            }
        }
        let last = rows.last().map_or(0, |row| row.revision.0 as i64);
        // Cut by number or by size: then more may follow the last one.
        let cut = count == limit || (rows.len() as i64) < count;
        let reach = if cut { last } else { reach };
        Ok(Page {
            rows,
            last,
            reach: (reach != END).then_some(reach),
        })
    }

    /// Deletes rows that are durable elsewhere and old enough, some at a time.
    async fn clean_up(&mut self) -> Result<(), SourceError> {
        let due = self
            .cleaned_up
            .is_none_or(|at| at.elapsed() >= CLEAN_UP_EVERY);
        let (Some(after), Some(snapshot), true) =
            (self.settings.delete_after, &self.acknowledged, due)
        else {
            return Ok(());
        };
        let (snapshot, age_s) = (snapshot.to_string(), after.as_secs_f64());
        for _ in 0..CLEAN_UPS_AT_ONCE {
            let client = &self.link()?.client;
            let deleted = client
                .execute(&self.statements.clean_up, &[&snapshot, &age_s])
                .await;
            if deleted.map_err(|e| self.failed(&e))? < CLEAN_UP_ROWS {
                break;
            }
        }
        self.cleaned_up = Some(Instant::now());
        Ok(())
    }

    fn source_row(&self, row: &Row) -> Result<SourceRow, SourceError> {
        read_row(row, &self.settings.table).map_err(|e| self.failed(&e))
    }
}

impl Source for PostgresOutbox {
    fn name(&self) -> &'static str {
        "postgres-outbox"
    }

    async fn init(&mut self) -> Result<Vec<String>, SourceError> {
        let link = self.settings.server.connect().await?;
        let longer = link.client.batch_execute(LONG_SESSION).await;
        longer.map_err(|e| self.failed(&e))?;
        let done = link
            .client
            .batch_execute(&statements::init(&self.settings))
            .await;
        done.map_err(|e| self.failed(&e))?;
        let mut did = vec![format!(
            "table {} with its columns and indexes is there",
            self.settings.table
        )];
        if self.settings.notify {
            did.push(format!(
                "trigger {}_notify is there",
                self.settings.plain_name()
            ));
        }
        Ok(did)
    }

    async fn start(&mut self, checkpoint: Option<Value>) -> Result<(), SourceError> {
        let checkpoint = checkpoint
            .map(serde_json::from_value::<Checkpoint>)
            .transpose();
        let checkpoint = checkpoint.map_err(|e| {
            SourceError::lasting(format!(
                "this checkpoint is not of an outbox: {e}; if the kind of source was changed, remove the \
                 checkpoint"
            ))
        })?;
        self.link = None;
        self.link = Some(self.settings.server.connect().await?);
        if self.settings.notify {
            let listen = format!("LISTEN {}", self.settings.plain_name());
            let listening = self.link()?.client.batch_execute(&listen).await;
            listening.map_err(|e| self.failed(&e))?;
        }
        // All statements go along an index. Statistics of a table that is filled and emptied are often
        // wrong, and then the planner would read all of it for each page.
        let indexed = self
            .link()?
            .client
            .batch_execute("SET enable_seqscan = off");
        indexed.await.map_err(|e| self.failed(&e))?;
        self.at = self.place(checkpoint).await?;
        self.first = None;
        self.flushed = false;
        self.acknowledged = self.at.base.clone();
        Ok(())
    }

    /// Cancel-safe: a group that was begun is begun, and the position moves after the last await.
    async fn next(&mut self) -> Result<SourceBatch, SourceError> {
        loop {
            self.clean_up().await?;
            if let Some(group) = self.group().await? {
                let page = self.page(&group).await?;
                // Not for a group without rows: it would make the next one.
                if !page.rows.is_empty() && !self.flushed {
                    let flushed = self.link()?.client.batch_execute(FLUSH).await;
                    flushed.map_err(|e| self.failed(&e))?;
                    self.flushed = true;
                }
                self.at.highest = self.at.highest.max(page.last);
                match page.reach {
                    Some(reach) => self.at.position = reach,
                    None => {
                        self.at.base = self.at.group.take();
                        self.at.position = 0;
                        self.first = None;
                    }
                }
                if page.rows.is_empty() && page.reach.is_some() {
                    continue;
                }
                if !page.rows.is_empty() {
                    return Ok(SourceBatch {
                        rows: page.rows,
                        checkpoint: serde_json::to_value(&self.at).expect("strings and numbers"),
                        barrier: None,
                    });
                }
            }
            let notified = self.link()?.notified.notified();
            // Time out or not: then the table is looked at.
            drop(tokio::time::timeout(self.settings.poll, notified).await);
        }
    }

    async fn acknowledged(&mut self, checkpoint: &Value) -> Result<(), SourceError> {
        let checkpoint = Checkpoint::deserialize(checkpoint)
            .map_err(|e| SourceError::lasting(format!("not a checkpoint of this source: {e}")))?;
        self.acknowledged = checkpoint.base;
        self.clean_up().await
    }

    async fn sample(&mut self, rows: usize) -> Result<Vec<SourceRow>, SourceError> {
        let link = self.settings.server.connect().await?;
        let limit = i64::try_from(rows).unwrap_or(i64::MAX);
        let found = link.client.query(&self.statements.sample, &[&limit]).await;
        let found = found.map_err(|e| self.failed(&e))?;
        found.iter().map(|row| self.source_row(row)).collect()
    }
}

fn read_row(row: &Row, table: &str) -> Result<SourceRow, tokio_postgres::Error> {
    // After what is said of the page.
    let position: i64 = row.try_get(2)?;
    let mut fields = Map::new();
    fields.insert("position".into(), position.into());
    for (index, name) in ["id", "aggregatetype", "aggregateid", "type"]
        .iter()
        .enumerate()
    {
        let value: Option<String> = row.try_get(index + 3)?;
        fields.insert((*name).into(), value.into());
    }
    let payload: Option<&str> = row.try_get(7)?;
    // A text column may hold anything; what is no JSON stays a text.
    let payload = payload.map(|text| serde_json::from_str(text).unwrap_or_else(|_| text.into()));
    fields.insert("payload".into(), payload.unwrap_or_default());
    let created_us: i64 = row.try_get(8)?;
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    fields.insert("created_at_us".into(), created_us.into());
    Ok(SourceRow {
        fields,
        place: format!("table {table}, position {position}"),
        revision: Revision(number(position)),
        committed_at: Micros(number(created_us)),
    })
}
