//! The broker's client, as the runners see it.

use super::{
    link::{Connect, Heard, Inlet, LinkError, Outcome, Outlet, Pending, RefusedDelta},
    on_disk,
    trace::{self, SinkTracer, SourceTracer},
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
use hutong_proto::{Cursor, Delta, Issuer, Lane, TraceContext};
use hutong_telemetry::Traces;
use std::time::Duration;
use tracing::Span;

/// Of the second producer: `NAME.bulk`.
const BULK_SUFFIX: &str = ".bulk";

/// Where a source's deltas go.
#[derive(Debug)]
pub struct BrokerTarget {
    endpoint: Endpoint,
    /// Of urgent deltas, and of all when there is no other.
    first: Producer,
    bulk: Option<Producer>,
    last_error: LastError,
    traces: Traces,
    /// What the next streams are part of, if they were begun.
    begun: Option<TraceContext>,
}

/// A name at the broker, with the epochs that were used under it.
#[derive(Debug)]
struct Producer {
    name: String,
    epochs: EpochFile,
}

/// Where a sink's rows come from.
#[derive(Debug)]
pub struct BrokerSource {
    endpoint: Endpoint,
    issuer: Issuer,
    subscription: SubscriptionSettings,
    last_error: LastError,
    traces: Traces,
    /// What the next stream is part of, if it was begun.
    begun: Option<TraceContext>,
}

/// One publish stream, or one for each lane.
#[derive(Debug)]
pub struct BrokerOutlet {
    first: Publisher,
    bulk: Option<Publisher>,
    tracer: SourceTracer,
}

/// A subscribe stream.
#[derive(Debug)]
pub struct BrokerInlet {
    subscriber: Subscriber,
    tracer: SinkTracer,
}

impl BrokerTarget {
    /// Two producers, one a lane: a stream is first in, first out, and urgent must not wait for bulk.
    /// Bulk goes under the name with `.bulk` after it. Epochs are kept in the folder.
    pub fn new(
        address: String,
        issuer: Issuer,
        producer: String,
        folder: &StateFolder,
    ) -> BrokerTarget {
        let bulk = Producer::new(format!("{producer}{BULK_SUFFIX}"), folder);
        BrokerTarget {
            bulk: Some(bulk),
            ..BrokerTarget::one_stream(address, issuer, producer, folder)
        }
    }

    /// One producer for both lanes: for whoever sends little, or has one lane only.
    pub fn one_stream(
        address: String,
        issuer: Issuer,
        producer: String,
        folder: &StateFolder,
    ) -> BrokerTarget {
        BrokerTarget {
            endpoint: Endpoint::new(address, Identity::Platform(issuer)),
            first: Producer::new(producer, folder),
            bulk: None,
            last_error: LastError::default(),
            traces: Traces::off(),
            begun: None,
        }
    }

    /// Some of what goes through is traced.
    #[must_use]
    pub fn traced(self, traces: Traces) -> BrokerTarget {
        BrokerTarget { traces, ..self }
    }

    async fn open(
        &self,
        producer: &Producer,
        stream: Option<TraceContext>,
    ) -> Result<Publisher, LinkError> {
        let endpoint = self.endpoint.clone().traced(stream);
        let mut options = PublisherOptions::new(endpoint, producer.name.clone());
        let epochs = producer.epochs.clone();
        let epoch = on_disk(move || Ok(epochs.next(now())?)).await;
        options.epoch = Some(epoch.map_err(|trouble| LinkError {
            passing: trouble.passing,
            reason: None,
            message: trouble.message,
        })?);
        options.last_error = self.last_error.clone();
        Ok(Publisher::connect(options).await?)
    }
}

impl Producer {
    fn new(name: String, folder: &StateFolder) -> Producer {
        Producer {
            epochs: EpochFile::new(folder, &name),
            name,
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
            issuer,
            subscription,
            last_error: LastError::default(),
            traces: Traces::off(),
            begun: None,
        }
    }

    /// What comes and is traced gets its last span here.
    #[must_use]
    pub fn traced(self, traces: Traces) -> BrokerSource {
        BrokerSource { traces, ..self }
    }
}

impl Connect for BrokerTarget {
    type Link = BrokerOutlet;

    fn begin(&mut self) -> Span {
        self.begun = trace::stream(&self.traces);
        trace::log_span(self.begun)
    }

    async fn connect(&mut self, _: Option<Cursor>) -> Result<BrokerOutlet, LinkError> {
        let begun = self.begun.take();
        let stream = begun.or_else(|| trace::stream(&self.traces));
        let bulk = async {
            match &self.bulk {
                Some(producer) => self.open(producer, stream).await.map(Some),
                None => Ok(None),
            }
        };
        let (first, bulk) = tokio::try_join!(self.open(&self.first, stream), bulk)?;
        let outlet = BrokerOutlet {
            first,
            bulk,
            tracer: SourceTracer::new(&self.traces),
        };
        let mut logs = outlet.streams().map(|stream| stream.status().log_id);
        let first = logs.next();
        if logs.any(|log| Some(log) != first) {
            return Err(LinkError {
                passing: true,
                reason: None,
                message: "the broker's log was replaced while this connected".to_owned(),
            });
        }
        drop(logs);
        Ok(outlet)
    }

    fn last_error(&self) -> LastError {
        self.last_error.clone()
    }
}

impl Connect for BrokerSource {
    type Link = BrokerInlet;

    fn begin(&mut self) -> Span {
        self.begun = trace::stream(&self.traces);
        trace::log_span(self.begun)
    }

    async fn connect(&mut self, cursor: Option<Cursor>) -> Result<BrokerInlet, LinkError> {
        let name = self.subscription.name.clone();
        let begun = self.begun.take();
        let stream = begun.or_else(|| trace::stream(&self.traces));
        let endpoint = self.endpoint.clone().traced(stream);
        let mut options = SubscriberOptions::new(endpoint, name);
        options.filter = Filter {
            kinds: self.subscription.kinds.clone(),
            issuers: self.subscription.issuers.clone(),
            lanes: self.subscription.lanes.clone(),
            include_own: self.subscription.include_own,
        };
        options.start = cursor.map_or(Start::Snapshot, Start::Cursor);
        options.last_error = self.last_error.clone();
        Ok(BrokerInlet {
            subscriber: Subscriber::open(options).await?,
            tracer: SinkTracer::new(&self.traces, self.issuer),
        })
    }

    fn last_error(&self) -> LastError {
        self.last_error.clone()
    }
}

impl BrokerOutlet {
    fn streams(&self) -> impl Iterator<Item = &Publisher> {
        std::iter::once(&self.first).chain(&self.bulk)
    }
}

impl Outlet for BrokerOutlet {
    async fn publish(&mut self, lane: Lane, deltas: Vec<Delta>) -> Result<Pending, LinkError> {
        let publisher = match (&self.bulk, lane) {
            (Some(bulk), Lane::Bulk) => bulk.clone(),
            _ => self.first.clone(),
        };
        let traced = self.tracer.begin(&deltas);
        let batch = EncodedBatch::traced(&deltas, traced.contexts())?;
        let mut pending = publisher.publish_encoded(batch).await?;
        Ok(Box::pin(async move {
            loop {
                let receipt = pending.await?;
                if !receipt.duplicate {
                    traced.end(receipt.accepted);
                    return outcome(receipt);
                }
                // It was durable before its ack was lost, and which of it was refused was in that
                // ack. Sent as a new batch, what was accepted is not newer, and the rest is refused again.
                pending = publisher.publish(deltas.clone()).await?;
            }
        }))
    }

    fn ended(&self) -> Option<LinkError> {
        let error = self.streams().find_map(Publisher::ended);
        error.map(LinkError::from)
    }

    fn connected(&self) -> Result<(), String> {
        let statuses = self.streams().map(Publisher::status);
        match statuses.into_iter().find(|status| !status.connected) {
            Some(status) => Err(status.last_error.unwrap_or_else(|| "connecting".to_owned())),
            None => Ok(()),
        }
    }

    fn reconnects(&self) -> u64 {
        self.streams().map(|s| s.status().reconnects).sum()
    }

    fn held_back(&self) -> [Duration; 2] {
        let first = self.first.status().credit_wait.total();
        // One stream for both lanes: what waits in it holds up both.
        let bulk = self.bulk.as_ref();
        let bulk = bulk.map_or(first, |s| s.status().credit_wait.total());
        [first, bulk]
    }

    fn log_id(&self) -> String {
        let log_id = self.first.status().log_id;
        log_id.map_or_else(String::new, |id| id.to_string())
    }
}

impl Inlet for BrokerInlet {
    async fn next(&mut self) -> Result<Heard, LinkError> {
        let event = self.subscriber.next().await?;
        if let Event::Records { deltas, .. } = &event {
            self.tracer.came(deltas);
        }
        Ok(match event {
            Event::SnapshotBegin { rows_estimate } => Heard::SnapshotBegin { rows_estimate },
            Event::Rows(rows) => Heard::Rows(rows),
            Event::SnapshotEnd { cursor, .. } => Heard::SnapshotEnd { cursor },
            Event::Records { deltas, cursor } => Heard::Records { deltas, cursor },
            Event::Bookmark { cursor, .. } => Heard::Bookmark { cursor },
        })
    }

    async fn applied(&mut self, cursor: Cursor) -> Result<(), LinkError> {
        self.tracer.applied(&cursor);
        Ok(self.subscriber.applied(cursor).await?)
    }

    fn lag_seconds(&self) -> f64 {
        self.subscriber.lag().seconds
    }

    fn reconnects(&self) -> u64 {
        self.subscriber.reconnects()
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
