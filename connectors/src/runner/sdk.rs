//! The broker's client, as the runners see it.

use super::{
    link::{Connect, Heard, Inlet, LinkError, Outcome, Outlet, Pending, RefusedDelta},
    on_disk,
};
use crate::{
    checkpoint::{EpochFile, StateFolder},
    client::{
        ClientError, EncodedBatch, Endpoint, Event, Filter, Identity, LastError, Publisher,
        PublisherOptions, Receipt, Start, Subscriber, SubscriberOptions,
    },
    config::SubscriptionSettings,
    state::now,
};
use hutong_proto::{Cursor, Delta, Issuer};
use std::time::Duration;

/// Where a source's deltas go.
#[derive(Debug)]
pub struct BrokerTarget {
    endpoint: Endpoint,
    producer: String,
    epochs: EpochFile,
    last_error: LastError,
}

/// Where a sink's rows come from.
#[derive(Debug)]
pub struct BrokerSource {
    endpoint: Endpoint,
    subscription: SubscriptionSettings,
    last_error: LastError,
}

/// A publish stream.
#[derive(Debug)]
pub struct BrokerOutlet(Publisher);

/// A subscribe stream.
#[derive(Debug)]
pub struct BrokerInlet(Subscriber);

impl BrokerTarget {
    /// The producer's epochs are kept in the folder.
    pub fn new(
        address: String,
        issuer: Issuer,
        producer: String,
        folder: &StateFolder,
    ) -> BrokerTarget {
        BrokerTarget {
            endpoint: Endpoint::new(address, Identity::Platform(issuer)),
            epochs: EpochFile::new(folder, &producer),
            producer,
            last_error: LastError::default(),
        }
    }
}

impl BrokerSource {
    pub fn new(
        address: String,
        issuer: Issuer,
        subscription: SubscriptionSettings,
    ) -> BrokerSource {
        BrokerSource {
            endpoint: Endpoint::new(address, Identity::Platform(issuer)),
            subscription,
            last_error: LastError::default(),
        }
    }
}

impl Connect for BrokerTarget {
    type Link = BrokerOutlet;

    async fn connect(&mut self, _: Option<Cursor>) -> Result<BrokerOutlet, LinkError> {
        let mut options = PublisherOptions::new(self.endpoint.clone(), self.producer.clone());
        let epochs = self.epochs.clone();
        let epoch = on_disk(move || Ok(epochs.next(now())?)).await;
        options.epoch = Some(epoch.map_err(|trouble| LinkError {
            passing: trouble.passing,
            reason: None,
            message: trouble.message,
        })?);
        options.last_error = self.last_error.clone();
        Ok(BrokerOutlet(Publisher::connect(options).await?))
    }

    fn last_error(&self) -> LastError {
        self.last_error.clone()
    }
}

impl Connect for BrokerSource {
    type Link = BrokerInlet;

    async fn connect(&mut self, cursor: Option<Cursor>) -> Result<BrokerInlet, LinkError> {
        let name = self.subscription.name.clone();
        let mut options = SubscriberOptions::new(self.endpoint.clone(), name);
        options.filter = Filter {
            kinds: self.subscription.kinds.clone(),
            issuers: self.subscription.issuers.clone(),
            lanes: self.subscription.lanes.clone(),
            include_own: self.subscription.include_own,
        };
        options.start = cursor.map_or(Start::Snapshot, Start::Cursor);
        options.last_error = self.last_error.clone();
        Ok(BrokerInlet(Subscriber::open(options).await?))
    }

    fn last_error(&self) -> LastError {
        self.last_error.clone()
    }
}

impl Outlet for BrokerOutlet {
    async fn publish(&mut self, deltas: Vec<Delta>) -> Result<Pending, LinkError> {
        let batch = EncodedBatch::from_deltas(&deltas)?;
        let mut pending = self.0.publish_encoded(batch).await?;
        let publisher = self.0.clone();
        Ok(Box::pin(async move {
            loop {
                let receipt = pending.await?;
                if !receipt.duplicate {
                    return outcome(receipt);
                }
                // It was durable before its ack was lost, and which of it was refused was in that
                // ack. Sent as a new batch, what was accepted is not newer, and the rest is refused again.
                pending = publisher.publish(deltas.clone()).await?;
            }
        }))
    }

    fn ended(&self) -> Option<LinkError> {
        self.0.ended().map(LinkError::from)
    }

    fn connected(&self) -> Result<(), String> {
        let status = self.0.status();
        if status.connected {
            return Ok(());
        }
        Err(status.last_error.unwrap_or_else(|| "connecting".to_owned()))
    }

    fn reconnects(&self) -> u64 {
        self.0.status().reconnects
    }

    fn held_back(&self) -> Duration {
        self.0.status().credit_wait.total()
    }

    fn log_id(&self) -> String {
        let log_id = self.0.status().log_id;
        log_id.map_or_else(String::new, |id| id.to_string())
    }
}

impl Inlet for BrokerInlet {
    async fn next(&mut self) -> Result<Heard, LinkError> {
        Ok(match self.0.next().await? {
            Event::SnapshotBegin { rows_estimate } => Heard::SnapshotBegin { rows_estimate },
            Event::Rows(rows) => Heard::Rows(rows),
            Event::SnapshotEnd { cursor, .. } => Heard::SnapshotEnd { cursor },
            Event::Records { deltas, cursor } => Heard::Records { deltas, cursor },
            Event::Bookmark { cursor, .. } => Heard::Bookmark { cursor },
        })
    }

    async fn applied(&mut self, cursor: Cursor) -> Result<(), LinkError> {
        Ok(self.0.applied(cursor).await?)
    }

    fn lag_seconds(&self) -> f64 {
        self.0.lag().seconds
    }

    fn reconnects(&self) -> u64 {
        self.0.reconnects()
    }
}

/// A batch that is refused as a whole says something about the connector, not about its rows: the
/// runner stops or begins again, and no row is given up.
fn outcome(receipt: Receipt) -> Result<Outcome, LinkError> {
    if let Some(error) = receipt.error {
        return Err(LinkError {
            passing: error.retryable,
            reason: error.reason_known,
            message: format!(
                "a batch was refused as a whole: {}: {}",
                error.reason, error.message
            ),
        });
    }
    let refused = receipt.refused.into_iter().map(|refused| RefusedDelta {
        index: refused.index as usize,
        reason: refused.info.reason,
        field: refused.info.field,
        message: refused.info.message,
    });
    Ok(Outcome {
        accepted: receipt.accepted,
        refused: refused.collect(),
    })
}

impl From<ClientError> for LinkError {
    fn from(error: ClientError) -> LinkError {
        LinkError {
            passing: error.is_passing(),
            reason: error.reason(),
            message: error.to_string(),
        }
    }
}
