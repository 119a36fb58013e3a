//! What is measured: this broker, and what a platform team would otherwise take, behind one trait, so
//! that all get the same batches from the same number of producers and receivers.

mod hutong;
mod jetstream;

pub use crate::Failure;
use crate::broker::Usage;
use clap::ValueEnum;
use futures_util::future::BoxFuture;
use hutong_connectors::client::EncodedBatch;
use hutong_proto::Issuer;

/// Resolves when the batch is durable.
pub type Ack = BoxFuture<'static, Result<(), Failure>>;

/// A running system with nothing in it; it ends, and its data goes, when it is dropped.
pub trait System: Send + Sync {
    /// A connection of its own, as this platform.
    fn sender(&self, issuer: Issuer) -> BoxFuture<'_, Result<Box<dyn Sender>, Failure>>;

    /// A connection of its own that gets everything from now on.
    fn receiver(&self, issuer: Issuer) -> BoxFuture<'_, Result<Box<dyn Receiver>, Failure>>;

    fn usage(&self) -> Usage;
}

pub trait Sender: Send {
    /// Hands a batch over, waiting while the system takes no more.
    fn send(&mut self, batch: EncodedBatch) -> BoxFuture<'_, Result<Ack, Failure>>;
}

/// Counts what comes without looking into it: the raw receiver.
pub trait Receiver: Send {
    /// Batches in what came next.
    fn receive(&mut self) -> BoxFuture<'_, Result<u64, Failure>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Hutong,
    /// NATS JetStream, one replica, synced for each message; a message is a batch.
    Jetstream,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Hutong => "hutong",
            Kind::Jetstream => "jetstream",
        }
    }

    pub async fn start(self, issuers: &[Issuer]) -> Result<Box<dyn System>, Failure> {
        Ok(match self {
            Kind::Hutong => Box::new(hutong::Hutong::start(issuers).await?),
            Kind::Jetstream => Box::new(jetstream::JetStream::start().await?),
        })
    }
}
