//! Stage 1: one bidirectional stream a producer.

mod outbox;
pub mod queue;
pub mod registry;
mod session;
pub use session::check_name;

use crate::{
    access::{Access, Call, clock_ahead_us},
    clock::Clock,
    log::Log,
    metrics::Metrics,
    overload::Overload,
    state::State,
};
use futures_core::Stream;
use hutong_proto::{
    Issuer, LogId, Reason, Refusal, api::stream::publish_service_server::PublishService,
    frame::Frame,
};
use queue::Queues;
use registry::Producers;
use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use crate::apply::waiters::Waiters;

/// What all sessions share.
#[derive(Clone)]
pub struct Ingress {
    pub access: Access,
    pub log: Arc<dyn Log>,
    pub log_id: LogId,
    pub state: Arc<State>,
    pub waiters: Arc<Waiters>,
    pub producers: Arc<Producers>,
    pub queues: Arc<Queues>,
    pub overload: Arc<Overload>,
    pub shards: Arc<HashMap<Issuer, u32>>,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    /// A client that takes nothing for so long is sent away.
    pub stall: Duration,
    /// Owns the session tasks.
    pub tasks: TaskTracker,
    /// Ends intake: sessions finish what they took and say goodbye.
    pub draining: CancellationToken,
}

impl std::fmt::Debug for Ingress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingress").finish_non_exhaustive()
    }
}

/// A connection that does not say what it wants is closed after this long.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The first message of a stream, in which a client says what it wants.
pub async fn first_frame(input: &mut Streaming<Frame>) -> Result<Frame, Refusal> {
    match tokio::time::timeout(OPEN_TIMEOUT, input.message()).await {
        Ok(Ok(Some(frame))) => Ok(frame),
        Ok(Ok(None)) => Err(Reason::OpenExpected.into()),
        // The line may stand still after the call and before its first message: no mistake of the client,
        // which may try again.
        Ok(Err(_)) | Err(_) => {
            Err(Refusal::from(Reason::SessionTakenOver).detail("no `open` came"))
        }
    }
}

/// Messages to a client.
pub type FrameStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

impl Ingress {
    /// A session that somebody has to run, and what it sends.
    pub fn session(
        &self,
        platform: Issuer,
        input: Streaming<Frame>,
    ) -> (impl Future<Output = ()> + Send + use<>, FrameStream) {
        let (out, frames) = outbox::outbox();
        let session = session::Session::new(self.clone(), platform, out);
        (session.run(input), Box::pin(frames))
    }
}

#[tonic::async_trait]
impl PublishService for Ingress {
    type PublishStream = FrameStream;

    async fn publish(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let platform = self
            .access
            .check(request.metadata(), Call::Publish)
            .and_then(|identity| identity.platform())?;
        if let Some(ahead_us) = clock_ahead_us(request.metadata(), (self.clock)()) {
            self.metrics.clock_said(platform, ahead_us);
        }
        let (session, frames) = self.session(platform, request.into_inner());
        // What it logs carries the trace of the call.
        self.tasks.spawn(session.in_current_span());
        Ok(Response::new(frames))
    }
}
