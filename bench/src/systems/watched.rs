//! This broker as it is watched by what `deploy/` has: metrics scraped as often as its Prometheus does and pushed by OTLP, one
//! change in a hundred traced, and a console open. Beside the same broker that nobody looks at, that is what looking costs.

use crate::{
    Failure,
    broker::{StateWork, get},
    systems::{Receiver, Sender, System, hutong::Hutong},
};
use futures_util::future::BoxFuture;
use hutong_proto::{Issuer, Lane};
use opentelemetry_proto::tonic::collector::{
    metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, transport::Server};

/// As in `deploy/prometheus/prometheus.yml`; Prometheus does so each minute, if it is not told otherwise.
const SCRAPE_EVERY: Duration = Duration::from_secs(5);

/// What those who look have seen. Nothing seen would be nothing measured.
#[derive(Debug, Default)]
struct Seen {
    scrapes: AtomicU64,
    pictures: AtomicU64,
    spans: AtomicU64,
}

pub struct Watched {
    broker: Hutong,
    seen: Arc<Seen>,
    _watchers: Vec<AbortOnDropHandle<()>>,
}

impl Watched {
    pub async fn start(issuers: &[Issuer]) -> Result<Watched, Failure> {
        let seen = Arc::<Seen>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let otlp = format!(
            "[telemetry]\notlp = \"http://{}\"\n",
            listener.local_addr()?
        );
        let collector = Collector(Arc::clone(&seen));
        let server = Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let collector = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = server.await {
                eprintln!("the collector ended: {error}");
            }
        }));
        let broker = Hutong::start_with(issuers, true, &otlp).await?;
        let scraper = scrape(broker.http().to_owned(), Arc::clone(&seen));
        let console = look(broker.http().to_owned(), Arc::clone(&seen));
        Ok(Watched {
            broker,
            seen,
            _watchers: vec![
                collector,
                AbortOnDropHandle::new(tokio::spawn(scraper)),
                AbortOnDropHandle::new(tokio::spawn(console)),
            ],
        })
    }
}

impl System for Watched {
    fn sender(
        &self,
        issuer: Issuer,
        lane: Lane,
        batch: u32,
    ) -> BoxFuture<'_, Result<Box<dyn Sender>, Failure>> {
        self.broker.sender(issuer, lane, batch)
    }

    fn receiver(&self, issuer: Issuer) -> BoxFuture<'_, Result<Box<dyn Receiver>, Failure>> {
        self.broker.receiver(issuer)
    }

    fn processes(&self) -> Vec<u32> {
        self.broker.processes()
    }

    fn state_work(&self) -> BoxFuture<'_, Result<Option<StateWork>, Failure>> {
        self.broker.state_work()
    }

    fn traces(&self) -> bool {
        true
    }

    fn check(&self) -> Result<(), Failure> {
        let of = |count: &AtomicU64| count.load(Ordering::Acquire);
        let seen = &self.seen;
        let all = [of(&seen.scrapes), of(&seen.pictures), of(&seen.spans)];
        match all.contains(&0) {
            true => Err(format!(
                "nobody looked: {} scrapes, {} pictures of the console, {} exports of spans",
                all[0], all[1], all[2]
            )
            .into()),
            false => Ok(()),
        }
    }
}

async fn scrape(http: String, seen: Arc<Seen>) {
    loop {
        tokio::time::sleep(SCRAPE_EVERY).await;
        let answer = get(&http, "/metrics").await;
        if answer.is_some_and(|answer| answer.contains(" 200 ")) {
            seen.scrapes.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// As an open page does: it takes every picture that the broker sends.
async fn look(http: String, seen: Arc<Seen>) {
    let request = format!(
        "GET /console/api/live HTTP/1.1\r\nHost: {http}\r\nhutong-identity: auditor/bench\r\n\r\n"
    );
    let Ok(mut stream) = TcpStream::connect(&http).await else {
        return;
    };
    if stream.write_all(request.as_bytes()).await.is_err() {
        return;
    }
    let mut buffer = vec![0; 64 << 10];
    while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
        // A picture begins a piece, as it is sent whole.
        let begun = buffer[..bytes]
            .windows(14)
            .filter(|w| w == b"event: picture");
        seen.pictures
            .fetch_add(begun.count() as u64, Ordering::AcqRel);
    }
}

#[derive(Clone)]
struct Collector(Arc<Seen>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        _: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.spans.fetch_add(1, Ordering::AcqRel);
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        _: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}
