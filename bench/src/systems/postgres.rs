//! PostgreSQL as a platform team would use it: each batch is one transaction that keeps the newest value
//! of each register and adds a row to an outbox; every receiver decodes the log of the outbox by a
//! replication slot of its own. An ack is a commit with `synchronous_commit = on`.

use crate::systems::{Ack, Came, Failure, Receiver, Seen, Sender, System};
use futures_util::future::BoxFuture;
use hutong_connectors::{client::EncodedBatch, testing::PostgresServer};
use hutong_proto::{Issuer, Lane, batch::BatchView};
use pgwire_replication::{ReplicationClient, ReplicationConfig, ReplicationEvent};
use std::{collections::HashMap, fs, sync::Arc};
use tokio_postgres::{Client, NoTls, Statement};
use tokio_util::task::AbortOnDropHandle;

/// Of a machine that serves nothing else; what is not here is as Debian has it.
const SETTINGS: [&str; 10] = [
    "wal_level=logical",
    "max_connections=200",
    "max_replication_slots=64",
    "max_wal_senders=64",
    "shared_buffers=2GB",
    "max_wal_size=16GB",
    "checkpoint_timeout=15min",
    "wal_compression=lz4",
    "wal_buffers=64MB",
    "track_activities=off",
];

/// Rows that are updated stay on their page as long as there is room on it.
const SCHEMA: &str = "
CREATE TABLE registers (
    entity bytea, issuer int, kind smallint, revision bigint NOT NULL, committed_at bigint NOT NULL,
    expires_at bigint NOT NULL, value bytea NOT NULL, PRIMARY KEY (entity, issuer, kind)
) WITH (fillfactor = 70);
CREATE TABLE outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload bytea NOT NULL);
ALTER TABLE outbox ALTER payload SET STORAGE EXTERNAL;
CREATE PUBLICATION outbox FOR TABLE outbox WITH (publish = 'insert');
";

/// Both in one statement, which is one transaction and one round trip.
const WRITE: &str = "
WITH newest AS (
    INSERT INTO registers AS r
    SELECT e, $1, k, v, c, x, b
    FROM unnest($2::bytea[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[])
        AS t (e, k, v, c, x, b)
    ON CONFLICT (entity, issuer, kind) DO UPDATE
    SET revision = EXCLUDED.revision, committed_at = EXCLUDED.committed_at,
        expires_at = EXCLUDED.expires_at, value = EXCLUDED.value
    WHERE r.revision < EXCLUDED.revision
)
INSERT INTO outbox (payload) VALUES ($8)";

/// Commits that go to disk together come from as many connections. Batches are best with one each, as
/// one connection fills a processor; single deltas wait for the disk, so each sender has several.
const CONNECTIONS_OF_SINGLE: usize = 6;
/// Events that a receiver's client reads ahead.
const READ_AHEAD: usize = 1024;

pub struct Postgres {
    server: PostgresServer,
    first_process: u32,
}

impl Postgres {
    pub async fn start() -> Result<Postgres, Failure> {
        let server = tokio::task::spawn_blocking(|| PostgresServer::try_start(&SETTINGS)).await??;
        let first_process = server.process()?;
        let postgres = Postgres {
            server,
            first_process,
        };
        let (client, _connection) = postgres.connect().await?;
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            let row = client.query_one(&format!("SHOW {setting}"), &[]).await?;
            if row.get::<_, &str>(0) != "on" {
                return Err(format!("PostgreSQL does not say {setting} on: not comparable").into());
            }
        }
        client.batch_execute(SCHEMA).await?;
        Ok(postgres)
    }

    async fn connect(&self) -> Result<(Client, AbortOnDropHandle<()>), Failure> {
        let (folder, port) = self.server.socket_folder();
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(folder)
            .port(port)
            .user("postgres")
            .dbname("postgres")
            .connect(NoTls)
            .await?;
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("PostgreSQL: {error}");
            }
        });
        Ok((client, AbortOnDropHandle::new(connection)))
    }
}

impl System for Postgres {
    fn sender(
        &self,
        issuer: Issuer,
        _lane: Lane,
        batch: u32,
    ) -> BoxFuture<'_, Result<Box<dyn Sender>, Failure>> {
        Box::pin(async move {
            let mut connections = Vec::new();
            for _ in 0..if batch == 1 { CONNECTIONS_OF_SINGLE } else { 1 } {
                let (client, connection) = self.connect().await?;
                let write = client.prepare(WRITE).await?;
                connections.push(Connection {
                    client: Arc::new(client),
                    write,
                    _connection: connection,
                });
            }
            let sender = PostgresSender {
                issuer: i32::try_from(issuer.code())?,
                connections,
                next: 0,
            };
            Ok(Box::new(sender) as Box<dyn Sender>)
        })
    }

    fn receiver(&self, issuer: Issuer) -> BoxFuture<'_, Result<Box<dyn Receiver>, Failure>> {
        Box::pin(async move {
            let (client, _connection) = self.connect().await?;
            let slot = format!("platform_{issuer}");
            client
                .execute(
                    "SELECT pg_create_logical_replication_slot($1, 'pgoutput')",
                    &[&slot],
                )
                .await?;
            let (folder, port) = self.server.socket_folder();
            let folder = folder.display().to_string();
            let config = ReplicationConfig::new(folder, "postgres", "", "postgres", slot, "outbox")
                .with_port(port)
                .with_buffer_size(READ_AHEAD)
                .with_binary(true);
            let mut client = ReplicationClient::connect(config).await?;
            client.wait_started().await?;
            Ok(Box::new(PostgresReceiver(client)) as Box<dyn Receiver>)
        })
    }

    fn processes(&self) -> Vec<u32> {
        let mut all = vec![self.first_process];
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // After the name, which may have anything in it: state, then the parent.
            let parent = stat.rsplit_once(')').map(|(_, rest)| rest);
            let parent = parent.and_then(|rest| rest.split_whitespace().nth(1));
            if parent.is_some_and(|p| p == self.first_process.to_string()) {
                all.push(id);
            }
        }
        all
    }
}

struct Connection {
    client: Arc<Client>,
    write: Statement,
    _connection: AbortOnDropHandle<()>,
}

struct PostgresSender {
    issuer: i32,
    connections: Vec<Connection>,
    next: usize,
}

/// The columns of a batch.
#[derive(Default)]
struct Columns {
    entities: Vec<Vec<u8>>,
    kinds: Vec<i16>,
    revisions: Vec<i64>,
    committed_at: Vec<i64>,
    expires_at: Vec<i64>,
    values: Vec<Vec<u8>>,
}

impl Columns {
    /// A statement may touch a row once: of two deltas of one register the newer is taken.
    fn of(batch: &EncodedBatch) -> Result<Columns, Failure> {
        let view = BatchView::parse(&batch.body)?;
        let mut newest = HashMap::with_capacity(view.deltas.len());
        for i in 0..view.deltas.len() {
            let delta = view.delta(i)?;
            newest.insert((delta.entity, delta.kind()), delta);
        }
        let mut columns = Columns::default();
        for delta in newest.into_values() {
            columns.entities.push(delta.entity.0.to_vec());
            columns.kinds.push(delta.kind() as i16);
            columns.revisions.push(delta.revision.0 as i64);
            columns.committed_at.push(delta.committed_at.0 as i64);
            columns.expires_at.push(delta.expires_at.0 as i64);
            columns.values.push(delta.value_bytes.to_vec());
        }
        Ok(columns)
    }
}

impl Sender for PostgresSender {
    fn send(&mut self, batch: EncodedBatch) -> BoxFuture<'_, Result<Ack, Failure>> {
        self.next = (self.next + 1) % self.connections.len();
        let connection = &self.connections[self.next];
        let (client, write) = (Arc::clone(&connection.client), connection.write.clone());
        let issuer = self.issuer;
        Box::pin(async move {
            let c = Columns::of(&batch)?;
            // A task of its own, so that it is on its way before anybody waits for its answer.
            let sent = AbortOnDropHandle::new(tokio::spawn(async move {
                let body = &batch.body[..];
                client
                    .execute(
                        &write,
                        &[
                            &issuer,
                            &c.entities,
                            &c.kinds,
                            &c.revisions,
                            &c.committed_at,
                            &c.expires_at,
                            &c.values,
                            &body,
                        ],
                    )
                    .await
            }));
            Ok(Box::pin(async move {
                match sent.await?? {
                    1 => Ok(()),
                    rows => Err(format!("{rows} rows in the outbox for one batch").into()),
                }
            }) as Ack)
        })
    }
}

struct PostgresReceiver(ReplicationClient);

impl Receiver for PostgresReceiver {
    fn receive<'a>(&'a mut self, came: &'a mut Came) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            match self.0.recv().await?.ok_or("the replication ended")? {
                ReplicationEvent::XLogData { data, .. } if data.first() == Some(&b'I') => {
                    came.batch(|| Seen::in_batch(payload(&data).ok_or("an insert is cut short")?))?;
                }
                ReplicationEvent::Commit { end_lsn, .. } => self.0.update_applied_lsn(end_lsn),
                _ => {}
            }
            Ok(())
        })
    }
}

/// The second column of an insert, as `pgoutput` writes it: the letter I, the table's id, the letter N,
/// the number of columns, then of each its kind, its length and its bytes.
/// <https://www.postgresql.org/docs/15/protocol-logicalrep-message-formats.html>
fn payload(insert: &[u8]) -> Option<&[u8]> {
    let mut at = 1 + 4 + 1 + 2;
    let mut column = || {
        let length = insert.get(at + 1..at + 5)?;
        let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
        let value = insert.get(at + 5..at + 5 + length)?;
        at += 5 + length;
        Some(value)
    };
    column()?;
    column()
}
