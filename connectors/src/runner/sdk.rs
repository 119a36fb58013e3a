//! The broker's client, as the runners see it.

use super::link::{Connect, Heard, Inlet, LinkError, Outcome, Outlet, Pending, RefusedDelta};
use crate::{
    client::{
        ClientError, EncodedBatch, Endpoint, Event, Filter, Identity, Publisher, PublisherOptions,
        Receipt, Start, Subscriber, SubscriberOptions,
    },
    config::SubscriptionSettings,
};
use hutong_proto::{Cursor, Delta, Issuer};

/// Where a source's deltas go.
#[derive(Debug)]
pub struct BrokerTarget {
    endpoint: Endpoint,
    producer: String,
}

/// Where a sink's rows come from.
#[derive(Debug)]
pub struct BrokerSource {
    endpoint: Endpoint,
    subscription: SubscriptionSettings,
}

/// A publish stream.
#[derive(Debug)]
pub struct BrokerOutlet(Publisher);

/// A subscribe stream.
#[derive(Debug)]
pub struct BrokerInlet(Subscriber);

impl BrokerTarget {
    pub fn new(address: String, issuer: Issuer, producer: String) -> BrokerTarget {
        BrokerTarget {
            endpoint: Endpoint::new(address, Identity::Platform(issuer)),
            producer,
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
        }
    }
}

impl Connect for BrokerTarget {
    type Link = BrokerOutlet;

    async fn connect(&mut self, _: Option<Cursor>) -> Result<BrokerOutlet, LinkError> {
        let options = PublisherOptions::new(self.endpoint.clone(), self.producer.clone());
        Ok(BrokerOutlet(Publisher::connect(options).await?))
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
        Ok(BrokerInlet(Subscriber::open(options).await?))
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
