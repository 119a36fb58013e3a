//! What is measured: this broker, and what a platform team would otherwise take, behind one trait, so
//! that all get the same batches from the same number of producers and receivers.

mod hutong;
mod jetstream;
mod postgres;
mod redis;

pub use crate::Failure;
use crate::broker::Usage;
use clap::ValueEnum;
use futures_util::future::BoxFuture;
use hutong_connectors::client::EncodedBatch;
use hutong_proto::{Issuer, Lane, Micros, batch::BatchView};
use serde::Serialize;

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
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Hutong,
    /// NATS JetStream, one replica, synced for each message; a message is a batch.
    Jetstream,
    /// Redis Streams, its append-only file synced always; an entry is a batch.
    Redis,
    /// PostgreSQL: registers and outbox in one transaction, a batch each; logical decoding out.
    Postgres,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Hutong, Kind::Jetstream, Kind::Redis, Kind::Postgres];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Hutong => "hutong",
            Kind::Jetstream => "jetstream",
            Kind::Redis => "redis",
            Kind::Postgres => "postgres",
        }
    }

    /// `lz4`: whether receivers of this broker take records packed. The peers know nothing like it.
    pub async fn start(self, issuers: &[Issuer], lz4: bool) -> Result<Box<dyn System>, Failure> {
        Ok(match self {
            Kind::Hutong => Box::new(hutong::Hutong::start(issuers, lz4).await?),
            Kind::Jetstream => Box::new(jetstream::JetStream::start().await?),
            Kind::Redis => Box::new(redis::Redis::start().await?),
            Kind::Postgres => Box::new(postgres::Postgres::start().await?),
        })
    }
}
