//! Stage 7: one task and one cursor a subscription. It reads the rings, or the log when it fell
//! behind; urgent goes first; a slow receiver costs memory to nobody and delay to nobody else.

mod beside;
mod blocking;
pub mod credit;
pub mod cursors;
mod flight;
mod log_reader;
pub mod registry;
mod session;
mod snapshot;
mod turns;

use crate::{
    access::{Access, Call, clock_ahead_us},
    clock::Clock,
    control::ControlWriter,
    ingress::FrameStream,
    log::Log,
    metrics::Metrics,
    overload::Overload,
    state::State,
    tail::TailRings,
};
pub use beside::Beside;
pub use blocking::Blocking;
use hutong_proto::{
    Issuer, LogId, api::stream::subscribe_service_server::SubscribeService, frame::Frame,
};
pub use log_reader::LogReaders;
use registry::Subscriptions;
pub use snapshot::Snapshots;
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

/// Messages to a subscriber that wait for its connection; each is up to about 1 MiB, and what waits
/// here an urgent record cannot overtake.
const OUT_MESSAGES_MAX: usize = 2;

/// What all subscriptions share.
#[derive(Clone)]
pub struct Fanout {
    pub access: Access,
    pub log: Arc<dyn Log>,
    pub log_id: LogId,
    pub state: Arc<State>,
    pub rings: Arc<TailRings>,
    pub subscriptions: Arc<Subscriptions>,
    pub control: ControlWriter,
    pub platforms: Arc<Vec<(Issuer, u32)>>,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub snapshots: Arc<Snapshots>,
    /// A client that takes nothing of its snapshot for so long is sent away.
    pub stall: Duration,
    pub overload: Arc<Overload>,
    pub log_readers: Arc<LogReaders>,
    pub blocking: Blocking,
    pub beside: Beside,
    pub tasks: TaskTracker,
    pub draining: CancellationToken,
}

impl std::fmt::Debug for Fanout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fanout").finish_non_exhaustive()
    }
}

impl Fanout {
    /// A session that somebody has to run, and what it sends.
    pub fn session(
        &self,
        platform: Issuer,
        input: Streaming<Frame>,
    ) -> (impl Future<Output = ()> + Send + use<>, FrameStream) {
        let (out, frames) = mpsc::channel(OUT_MESSAGES_MAX);
        let session = session::Session::new(self.clone(), platform, out);
        (session.run(input), Box::pin(ReceiverStream::new(frames)))
    }
}

#[tonic::async_trait]
impl SubscribeService for Fanout {
    type SubscribeStream = FrameStream;

    async fn subscribe(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let platform = self
            .access
            .check(request.metadata(), Call::Subscribe)
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
