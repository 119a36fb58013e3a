//! What is measured: this broker, and what a platform team would otherwise take, behind one trait, so
//! that all get the same batches from the same number of producers and receivers.

mod hutong;
mod jetstream;
mod postgres;
mod redis;
mod watched;

pub use crate::Failure;
use crate::{
    broker::{StateWork, Usage},
    measure::key_of,
};
use clap::ValueEnum;
use futures_util::future::BoxFuture;
use hutong_connectors::{client::EncodedBatch, testing::PostgresServer};
use hutong_proto::{Issuer, Lane, Micros, batch::BatchView};
use serde::Serialize;
use tokio::process::Command;

/// Resolves when the batch is durable.
pub type Ack = BoxFuture<'static, Result<(), Failure>>;

/// A running system with nothing in it; it ends, and its data goes, when it is dropped.
pub trait System: Send + Sync {
    /// A connection of its own, for batches of one lane of this platform; `batch` is how many deltas
    /// they have.
    fn sender(
        &self,
        issuer: Issuer,
        lane: Lane,
        batch: u32,
    ) -> BoxFuture<'_, Result<Box<dyn Sender>, Failure>>;

    /// A connection of its own that gets everything from now on.
    fn receiver(&self, issuer: Issuer) -> BoxFuture<'_, Result<Box<dyn Receiver>, Failure>>;

    /// Ids of all its processes.
    fn processes(&self) -> Vec<u32>;

    fn usage(&self) -> Usage {
        Usage::of_all(&self.processes())
    }

    /// What was done with state so far, of those that say so.
    fn state_work(&self) -> BoxFuture<'_, Result<Option<StateWork>, Failure>> {
        Box::pin(async { Ok(None) })
    }

    /// Whether one change in a hundred is sampled for tracing.
    fn traces(&self) -> bool {
        false
    }

    /// After a turn: whether it was what it says.
    fn check(&self) -> Result<(), Failure> {
        Ok(())
    }
}

pub trait Sender: Send {
    /// Hands a batch over, waiting while the system takes no more.
    fn send(&mut self, batch: EncodedBatch) -> BoxFuture<'_, Result<Ack, Failure>>;
}

pub trait Receiver: Send {
    /// Waits for what comes next.
    fn receive<'a>(&'a mut self, came: &'a mut Came) -> BoxFuture<'a, Result<(), Failure>>;
}

/// What came to a receiver.
#[derive(Debug, Default)]
pub struct Came {
    pub batches: u64,
    /// Whether anybody looks into them. A raw receiver only counts.
    pub look: bool,
    pub seen: Vec<Seen>,
}

/// What somebody who looks into a batch finds. Its first delta stands for the others: it waited longest.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub lane: Lane,
    pub deltas: u32,
    pub committed_at: Micros,
    /// Tells it apart from all others.
    pub key: u64,
}

impl Came {
    fn batch(&mut self, see: impl FnOnce() -> Result<Seen, Failure>) -> Result<(), Failure> {
        self.batches += 1;
        if self.look {
            self.seen.push(see()?);
        }
        Ok(())
    }
}

impl Seen {
    /// In a batch as it was sent; the peers keep it as it is.
    fn in_batch(bytes: &[u8]) -> Result<Seen, Failure> {
        let batch = BatchView::parse(bytes)?;
        let first = batch.delta(0)?;
        Ok(Seen {
            lane: first.lane(),
            deltas: batch.deltas.len() as u32,
            committed_at: first.committed_at,
            key: key_of(&first.entity, first.revision),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Hutong,
    /// This broker, whose receivers take records as they are and not packed.
    HutongPlain,
    /// This broker, with metrics scraped and pushed, one change in a hundred sampled for tracing, and a console open.
    HutongWatched,
    /// NATS JetStream, one replica, synced for each message; a message is a batch.
    Jetstream,
    /// Redis Streams, its append-only file synced always; an entry is a batch.
    Redis,
    /// PostgreSQL: registers and outbox in one transaction, a batch each; logical decoding out.
    Postgres,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Hutong => "hutong",
            Kind::HutongPlain => "hutong-plain",
            Kind::HutongWatched => "hutong-watched",
            Kind::Jetstream => "jetstream",
            Kind::Redis => "redis",
            Kind::Postgres => "postgres",
        }
    }

    /// Of a peer, as its server says it.
    pub async fn version(self) -> Result<Option<String>, Failure> {
        let program = match self {
            Kind::Hutong | Kind::HutongPlain | Kind::HutongWatched => return Ok(None),
            Kind::Jetstream => jetstream::program(),
            Kind::Redis => redis::program(),
            Kind::Postgres => PostgresServer::program("postgres")?,
        };
        let asked = Command::new(&program).arg("--version").output().await;
        let asked = asked.map_err(|error| {
            format!(
                "cannot start {}: {error}; `./dev bench` installs it",
                program.display()
            )
        })?;
        Ok(Some(
            String::from_utf8_lossy(&asked.stdout).trim().to_owned(),
        ))
    }

    pub async fn start(self, issuers: &[Issuer]) -> Result<Box<dyn System>, Failure> {
        Ok(match self {
            // As its SDK does if it is not told otherwise. The peers know nothing like it.
            Kind::Hutong => Box::new(hutong::Hutong::start(issuers, true).await?),
            Kind::HutongPlain => Box::new(hutong::Hutong::start(issuers, false).await?),
            Kind::HutongWatched => Box::new(watched::Watched::start(issuers).await?),
            Kind::Jetstream => Box::new(jetstream::JetStream::start().await?),
            Kind::Redis => Box::new(redis::Redis::start().await?),
            Kind::Postgres => Box::new(postgres::Postgres::start().await?),
        })
    }
}
