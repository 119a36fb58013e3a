//! The listeners: gRPC for clients, HTTP for those who watch.

use crate::{
    access,
    config::Config,
    http,
    node::{Parts, StartError},
    reload::Live,
};
use hutong_proto::{
    api::{
        self,
        admin_service_server::AdminServiceServer,
        query_service_server::QueryServiceServer,
        stream::{
            publish_service_server::PublishServiceServer,
            subscribe_service_server::SubscribeServiceServer,
        },
    },
    limits,
};
use hutong_telemetry::Health;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{
    Server,
    server::{Connected, TcpConnectInfo},
};
use tonic_health::{ServingStatus, server::HealthReporter};

/// What a client may send before it waits for us to take it.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const FRAME_BYTES: u32 = 1 << 20;
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// Bounds a reset flood (CVE-2023-44487 and its kin).
const RESETS_MAX: usize = 256;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Unary calls answer within this; the streams' first answer too.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections are renewed now and then, so that a moved address is noticed; clients resume.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
const ACCEPT_QUEUE_MAX: usize = 64;

/// A connection that has not said a word by then is closed: it would hold a place, and a drain.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bound, but not served yet: a wrong address is known before the data folder is touched.
pub struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
}

impl Listeners {
    pub async fn bind(config: &Config) -> Result<Listeners, StartError> {
        Ok(Listeners {
            grpc: bind(config.listen_grpc).await?,
            http: bind(config.listen_http).await?,
        })
    }

    /// gRPC and HTTP, with the ports that were free.
    pub fn addresses(&self) -> Result<[SocketAddr; 2], StartError> {
        let other = |error: std::io::Error| StartError::Other(error.to_string());
        Ok([
            self.grpc.local_addr().map_err(other)?,
            self.http.local_addr().map_err(other)?,
        ])
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| StartError::Listen {
            address,
            why: error.to_string(),
        })
}

/// Serves until the servers' token is cancelled. Returns the addresses.
pub fn start(
    listeners: Listeners,
    parts: &Parts,
    live: &Arc<Live>,
    health: &Health,
) -> Result<(SocketAddr, SocketAddr), StartError> {
    let [grpc_addr, http_addr] = listeners.addresses()?;
    let (tasks, stop) = (&parts.drain.server_tasks, &parts.drain.servers);

    let console = parts.console(live);
    tasks.spawn(Arc::clone(&console).run());
    let router = http::router(health.clone(), parts.metrics.registry(), console.router());
    tasks.spawn(http::serve(listeners.http, router, stop.clone()));

    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(api::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| StartError::Other(error.to_string());
    // Older tools know only the name that it had before it was stable.
    let reflection_old = reflection().build_v1alpha().map_err(failed)?;
    let reflection = reflection().build_v1().map_err(failed)?;
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let grpc = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(RESETS_MAX))
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_connection_age(CONNECTION_AGE_MAX)
        .timeout(CALL_TIMEOUT)
        .trace_fn(|call| access::log_span(call.uri().path(), call.headers()))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(reflection_old)
        .add_service(
            PublishServiceServer::new(parts.ingress())
                .max_decoding_message_size(limits::MESSAGE_BYTES_MAX),
        )
        .add_service(
            // A record can be as large as a batch.
            SubscribeServiceServer::new(parts.fanout())
                .max_encoding_message_size(limits::MESSAGE_BYTES_MAX),
        )
        .add_service(QueryServiceServer::new(parts.query()))
        .add_service(AdminServiceServer::new(parts.admin()))
        .add_service(parts.reporting());
    let connections = accept(
        listeners.grpc,
        parts.config.limits.connections as usize,
        parts,
        stop.clone(),
    );
    tasks.spawn(report(reporter, health.clone(), stop.clone()));
    let stop = stop.clone();
    tasks.spawn(async move {
        let served = grpc
            .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the gRPC server ended");
        }
    });
    Ok((grpc_addr, http_addr))
}

/// What health checks ask for; the empty name is the broker as a whole.
const SERVICES: [&str; 6] = [
    "",
    "hutong.sync.v1.PublishService",
    "hutong.sync.v1.SubscribeService",
    "hutong.sync.v1.QueryService",
    "hutong.sync.v1.AdminService",
    "hutong.sync.v1.ReportService",
];

/// Says on gRPC what `/readyz` says: who spreads load must send nobody here while it drains.
async fn report(mut reporter: HealthReporter, health: Health, stop: CancellationToken) {
    let mut ready = health.ready().is_ok();
    loop {
        let status = match ready {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        for service in SERVICES {
            reporter.set_service_status(service, status).await;
        }
        tokio::select! {
            () = health.until(!ready) => ready = !ready,
            () = stop.cancelled() => break,
        }
    }
    // Ends the streams of those who watch, which would hold up the drain.
    for service in SERVICES {
        reporter.clear_service_status(service).await;
    }
}

/// Accepts connections, at most `max` at a time; more wait in the kernel's queue.
fn accept(
    listener: TcpListener,
    max: usize,
    parts: &Parts,
    stop: CancellationToken,
) -> ReceiverStream<std::io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(ACCEPT_QUEUE_MAX);
    let permits = Arc::new(Semaphore::new(max));
    parts.drain.server_tasks.spawn(async move {
        loop {
            let next = async {
                if permits.available_permits() == 0 {
                    tracing::warn!(max, "all connections are taken; the next one waits");
                }
                let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
                Some((listener.accept().await, permit))
            };
            let (connection, permit) = tokio::select! {
                () = stop.cancelled() => return,
                next = next => match next {
                    Some(next) => next,
                    None => return,
                },
            };
            let connection = connection.and_then(|(stream, _)| {
                // Acks and urgent records are small: they must not wait for more.
                stream.set_nodelay(true)?;
                Ok(Connection {
                    stream,
                    silent_until: Some(Box::pin(tokio::time::sleep(FIRST_BYTE_TIMEOUT))),
                    _permit: permit,
                })
            });
            match connection {
                Ok(connection) => {
                    if accepted.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    ReceiverStream::new(connections)
}

/// A connection that gives its place back when it is dropped.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// Until its first byte.
    silent_until: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl tokio::io::AsyncRead for Connection {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        let read = std::pin::Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.silent_until = None;
        } else if let Some(timer) = &mut self.silent_until
            && timer.as_mut().poll(cx).is_ready()
        {
            return std::task::Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl tokio::io::AsyncWrite for Connection {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::access::method;

    #[test]
    fn a_call_is_logged_with_its_method_and_never_with_a_text_of_the_caller() {
        use prost::Message as _;
        let files = prost_types::FileDescriptorSet::decode(hutong_proto::api::FILE_DESCRIPTOR_SET);
        for file in files.expect("descriptors").file {
            for service in file
                .service
                .iter()
                .filter(|_| file.package() == "hutong.sync.v1")
            {
                for m in &service.method {
                    let path = format!("/hutong.sync.v1.{}/{}", service.name(), m.name());
                    assert_eq!(method(&path), m.name());
                }
            }
        }
        let long = format!("/hutong.sync.v1.AdminService/{}", "x".repeat(1 << 16));
        for path in [
            "",
            "/",
            "/a/Publish",
            "/hutong.sync.v1.Publish",
            long.as_str(),
        ] {
            assert_eq!(method(path), "other");
        }
    }
}
