//! The pages for machines: `/metrics`, `/livez`, `/readyz`.

use crate::{Exporter, Health};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Connections at once; the next one waits.
const CONNECTIONS_MAX: usize = 64;

/// After this a connection is cut, so that forgotten ones do not use up the others' places.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(600);

/// From the first byte of a request to its answer, and from connecting to the first byte: half a request
/// must not hold a place.
const REQUEST_MAX: Duration = Duration::from_secs(5);

/// How long requests under way may take after [`serve`] was told to stop.
const STOP_MAX: Duration = Duration::from_secs(2);

/// The three pages. `/livez` and `/readyz` answer 200 with `ok`, or 503 with the reason.
pub fn router(exporter: Exporter, health: Health) -> Router {
    Router::new()
        .route("/metrics", get(metrics).with_state(exporter))
        .route("/livez", get(livez).with_state(health.clone()))
        .route("/readyz", get(readyz).with_state(health))
}

async fn metrics(State(exporter): State<Exporter>) -> Response {
    // Observers may read from disk.
    let scraped = tokio::task::spawn_blocking(move || exporter.scrape()).await;
    let text = match scraped {
        Ok(Ok(text)) => text,
        Ok(Err(e)) => return failed(&e),
        Err(e) => return failed(&e),
    };
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

fn failed(error: &dyn std::error::Error) -> Response {
    tracing::error!(error = %error, "a scrape of the metrics failed");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

async fn livez(State(health): State<Health>) -> Response {
    answer(health.live())
}

async fn readyz(State(health): State<Health>) -> Response {
    answer(health.ready())
}

fn answer(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

/// Serves until `stop` is cancelled, then finishes the requests under way, for a short while.
/// Not safe to cancel otherwise: connections would be cut.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = Limited {
        listener,
        places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
    };
    let stopping = stop.clone();
    let serving = axum::serve(listener, router)
        .with_graceful_shutdown(async move { stopping.cancelled().await });
    let mut serving = std::pin::pin!(serving.into_future());
    tokio::select! {
        served = &mut serving => return served,
        () = stop.cancelled() => {}
    }
    match timeout(STOP_MAX, serving).await {
        Ok(served) => served,
        Err(_) => {
            tracing::warn!("http connections were still busy and are cut");
            Ok(())
        }
    }
}

struct Limited {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Listener for Limited {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.expect("nobody closes the semaphore");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let connection = Connection {
            stream,
            deadline: Box::pin(sleep(REQUEST_MAX)),
            until: Instant::now() + CONNECTION_AGE_MAX,
            in_request: true,
            _place: place,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that holds a place and does not live for ever.
struct Connection {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    until: Instant,
    /// Between the first byte that came and the first one that went.
    in_request: bool,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            if !self.in_request {
                self.in_request = true;
                let soon = Instant::now() + REQUEST_MAX;
                let until = self.until.min(soon);
                self.deadline.as_mut().reset(until);
            }
            return Poll::Ready(read);
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, buf) {
            if self.in_request {
                self.in_request = false;
                let until = self.until;
                self.deadline.as_mut().reset(until);
            }
            return Poll::Ready(written);
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
