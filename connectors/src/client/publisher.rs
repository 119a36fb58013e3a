//! Publishing: one task owns the stream, connects again when it breaks, and sends again what was not
//! acknowledged. Bounded by batches and by the credit that the broker gives.

mod task;

use crate::client::{
    Backoff, ClientError, Dialer, EncodedBatch, Endpoint, Identity, LastError, RefusedInfo,
};
use hutong_proto::{Delta, Epoch, Lane, LogId, Micros, Offset, Reason, Sequence, Shard};
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tracing::Instrument as _;

/// How to publish.
#[derive(Clone, Debug)]
pub struct PublisherOptions {
    pub endpoint: Endpoint,
    /// The name of the producer within its platform; one stream at a time has it.
    pub producer: String,
    /// Higher at each start of the process. The time by default; whoever can keep a number, as
    /// [`crate::checkpoint::EpochFile`] does, need not rely on a clock that only goes forward.
    pub epoch: Option<Epoch>,
    pub batches_in_flight_max: usize,
    pub backoff: Backoff,
    /// Says why it cannot connect, while it tries.
    pub last_error: LastError,
    pub dialer: Dialer,
}

impl PublisherOptions {
    pub fn new(endpoint: Endpoint, producer: impl Into<String>) -> PublisherOptions {
        PublisherOptions {
            endpoint,
            producer: producer.into(),
            epoch: None,
            batches_in_flight_max: 64,
            backoff: Backoff::default(),
            last_error: LastError::default(),
            dialer: Dialer::default(),
        }
    }
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub sequence: Sequence,
    /// Deltas that are durable and applied; of a duplicate, all that were sent.
    pub accepted: u32,
    pub refused: Vec<Refused>,
    /// The batch was refused as a whole.
    pub error: Option<RefusedInfo>,
    /// It was durable before the connection broke; what was refused of it is not known any more.
    /// Whoever has to know sends the deltas again: what was accepted is then not newer.
    pub duplicate: bool,
    pub positions: Vec<Position>,
}

/// A delta that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// In the batch.
    pub index: u32,
    pub info: RefusedInfo,
}

/// Where accepted deltas are in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub lane: Lane,
    pub shard: Shard,
    pub offset: Offset,
    pub durable_at: Micros,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublisherStatus {
    pub connected: bool,
    pub batches_in_flight: usize,
    pub credit_wait: CreditWait,
    pub last_error: Option<String>,
    pub reconnects: u64,
    /// The log of the broker; known from the first connection on.
    pub log_id: Option<LogId>,
}

/// How long batches waited because the broker had given no credit for them: it takes less than it is
/// offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreditWait {
    /// Waits that are over.
    ended: Duration,
    /// Of the wait that there is.
    since: Option<Instant>,
}

impl CreditWait {
    pub fn is_waiting(&self) -> bool {
        self.since.is_some()
    }

    /// All waits of this publisher together, up to now.
    pub fn total(&self) -> Duration {
        self.ended + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn set(&mut self, waiting: bool) {
        self.ended = self.total();
        self.since = waiting.then(Instant::now);
    }
}

/// A batch handed over, with where to tell what became of it.
#[derive(Debug)]
struct Job {
    batch: EncodedBatch,
    answer: oneshot::Sender<Result<Receipt, ClientError>>,
}

/// Resolves when the batch is acknowledged, or the publisher ends for good.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Receipt, ClientError>>);

impl Future for Pending {
    type Output = Result<Receipt, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|answer| answer.unwrap_or(Err(ClientError::Closed)))
    }
}

/// Handle of a publisher; clones share its stream. The stream ends with the last one.
#[derive(Clone, Debug)]
pub struct Publisher {
    jobs: mpsc::Sender<Job>,
    status: watch::Receiver<PublisherStatus>,
    ended: watch::Receiver<Option<ClientError>>,
    task: Arc<Mutex<Option<Owned>>>,
}

/// Aborts its task when dropped.
#[derive(Debug)]
struct Owned(JoinHandle<()>);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Publisher {
    /// Opens the stream. What can pass is tried again until it does; what cannot is the error.
    pub async fn connect(options: PublisherOptions) -> Result<Publisher, ClientError> {
        let (mut publisher, task) = Publisher::start(options)?;
        // What it logs belongs to whoever opens it.
        let owned = Owned(tokio::spawn(task.in_current_span()));
        publisher.task = Arc::new(Mutex::new(Some(owned)));
        publisher.opened().await?;
        Ok(publisher)
    }

    /// A publisher, and its task for the caller to run; it is not open yet.
    pub fn start(
        options: PublisherOptions,
    ) -> Result<(Publisher, impl Future<Output = ()> + Send + use<>), ClientError> {
        let Identity::Platform(issuer) = options.endpoint.identity else {
            return Err(ClientError::Refused(RefusedInfo {
                reason: Reason::RoleNotAllowed.code().to_owned(),
                reason_known: Some(Reason::RoleNotAllowed),
                field: "identity".to_owned(),
                message: format!("{} may not publish", options.endpoint.identity),
                retryable: false,
            }));
        };
        options.endpoint.channel()?;
        let (jobs, queue) = mpsc::channel(options.batches_in_flight_max.max(1));
        let (status_out, status) = watch::channel(PublisherStatus::default());
        let (ended_out, ended) = watch::channel(None);
        let epoch = options.epoch.unwrap_or_else(|| {
            let since = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            Epoch(since.as_micros() as u64)
        });
        let task = task::Task::new(options, issuer, epoch, queue, status_out, ended_out);
        let publisher = Publisher {
            jobs,
            status,
            ended,
            task: Arc::default(),
        };
        Ok((publisher, task.run()))
    }

    /// Waits until the stream is open for the first time; what cannot pass is the error.
    pub async fn opened(&mut self) -> Result<(), ClientError> {
        let opened = tokio::select! {
            biased;
            opened = self.status.wait_for(|status| status.connected) => opened.is_ok(),
            _ = self.ended.wait_for(Option::is_some) => false,
        };
        if opened {
            return Ok(());
        }
        let error = self.ended.borrow().clone();
        Err(error.unwrap_or(ClientError::Closed))
    }

    /// Hands over a batch; waits while too many are under way. An error means that the publisher has
    /// ended for good, or that the batch is too large.
    pub async fn publish(&self, deltas: Vec<Delta>) -> Result<Pending, ClientError> {
        self.publish_encoded(EncodedBatch::from_deltas(&deltas)?)
            .await
    }

    /// The same for a batch that is encoded already.
    pub async fn publish_encoded(&self, batch: EncodedBatch) -> Result<Pending, ClientError> {
        batch.check()?;
        let (answer, pending) = oneshot::channel();
        if self.jobs.send(Job { batch, answer }).await.is_err() {
            let error = self.ended.borrow().clone();
            return Err(error.unwrap_or(ClientError::Closed));
        }
        Ok(Pending(pending))
    }

    pub fn status(&self) -> PublisherStatus {
        self.status.borrow().clone()
    }

    /// Why the publisher has ended for good, if it has.
    pub fn ended(&self) -> Option<ClientError> {
        self.ended.borrow().clone()
    }

    /// Waits until everything handed over is acknowledged, then ends the stream. Batches handed over
    /// through other clones while this waits are taken along.
    pub async fn close(self) -> Result<(), ClientError> {
        let Publisher {
            jobs,
            ended,
            task,
            status: _status,
        } = self;
        drop(jobs);
        let owned = task.lock().await.take();
        if let Some(mut owned) = owned {
            // The task ends when the last sender is gone and nothing is owed.
            if (&mut owned.0).await.is_err() {
                return Err(ClientError::Closed);
            }
        }
        match ended.borrow().clone() {
            None | Some(ClientError::Closed) => Ok(()),
            Some(error) => Err(error),
        }
    }
}
