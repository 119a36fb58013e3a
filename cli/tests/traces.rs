//! One trace leads from the commit at a source to every sink, with links from the batches; what is refused is traced too.
//! The collector is a real one, as far as the wire goes.

mod watch;

use hutong_connectors::{
    checkpoint::StateFolder,
    config::SubscriptionSettings,
    runner::{BrokerSource, BrokerTarget, Connect as _, Heard, Inlet as _, Outlet},
};
use hutong_proto::{Delta, Issuer, Lane, delta::Colour};
use hutong_telemetry::{TraceSettings, Traces};
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    trace::v1::Span,
};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use watch::{ANHUI, Broker, SHANGHAI, SICHUAN, clients, until};

/// How many spans have which name.
type Named = Vec<(String, usize)>;

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    metrics: Arc<Mutex<BTreeSet<String>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        let spans = scopes.flat_map(|scope| scope.spans);
        self.spans.lock().expect("no panic").extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let resources = request.into_inner().resource_metrics.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_metrics);
        let names = scopes.flat_map(|scope| scope.metrics).map(|m| m.name);
        self.metrics.lock().expect("no panic").extend(names);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Collector, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let collector = Collector::default();
        let server = Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        // It ends with the test's runtime.
        drop(tokio::spawn(server));
        (collector, address)
    }

    fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("no panic").clone()
    }

    /// In the trace of the first change that a source began: names and how often.
    fn trace(&self) -> Result<(Vec<u8>, Named), String> {
        let spans = self.spans();
        let root = spans
            .iter()
            .find(|s| s.name == "hutong.source")
            .ok_or("no source yet")?;
        let mut names: Vec<(String, usize)> = Vec::new();
        for span in spans.iter().filter(|s| s.trace_id == root.trace_id) {
            match names.iter_mut().find(|(name, _)| *name == span.name) {
                Some((_, count)) => *count += 1,
                None => names.push((span.name.clone(), 1)),
            }
        }
        names.sort();
        Ok((root.trace_id.clone(), names))
    }
}

fn traces(otlp: SocketAddr, share: f64) -> Traces {
    let settings = TraceSettings {
        otlp: format!("http://{otlp}"),
        service: "test",
        share,
        slow: Duration::MAX,
    };
    Traces::start(&settings).expect("an address")
}

fn issuer(code: u32) -> Issuer {
    Issuer::new(code).expect("a code")
}

/// Applies all that comes, as a sink connector does.
async fn sink(broker: &Broker, code: u32, traces: Traces) {
    let subscription = SubscriptionSettings {
        name: "main".to_owned(),
        kinds: Vec::new(),
        issuers: Vec::new(),
        lanes: Vec::new(),
        include_own: false,
    };
    let source = BrokerSource::new(broker.address(), issuer(code), subscription);
    let mut inlet = source
        .traced(traces)
        .connect(None)
        .await
        .expect("connected");
    drop(tokio::spawn(async move {
        while let Ok(heard) = inlet.next().await {
            let cursor = match heard {
                Heard::SnapshotEnd { cursor }
                | Heard::Records { cursor, .. }
                | Heard::Bookmark { cursor } => cursor,
                Heard::SnapshotBegin { .. } | Heard::Rows(_) => continue,
            };
            if inlet.applied(cursor).await.is_err() {
                return;
            }
        }
    }));
}

async fn publish(outlet: &mut impl Outlet, delta: Delta) {
    let pending = outlet.publish(Lane::Urgent, vec![delta]).await;
    pending.expect("taken").await.expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_commit_to_every_sink_and_batches_link_to_it() {
    let (collector, otlp) = Collector::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let broker = Broker::start_pushing(dir.path(), Some(otlp)).await;
    let traces = traces(otlp, 1.0);
    for code in [SICHUAN, SHANGHAI] {
        sink(&broker, code, traces.clone()).await;
    }
    let folder = StateFolder::new(dir.path(), "source");
    folder.create().expect("created");
    let target = BrokerTarget::one_stream(broker.address(), issuer(ANHUI), "s".to_owned(), &folder);
    let mut outlet = target
        .traced(traces.clone())
        .connect(None)
        .await
        .expect("connected");
    publish(&mut outlet, clients::delta(1, 1, Colour::Red)).await;

    let expected = [
        ("hutong.apply", 2),
        ("hutong.broker", 1),
        ("hutong.deliver", 2),
        ("hutong.source", 1),
    ];
    let expected = expected
        .map(|(name, count)| (name.to_owned(), count))
        .to_vec();
    until("the whole trace", async || match collector.trace()? {
        (_, names) if names == expected => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let (trace, _) = collector.trace().expect("there");
    until("links from batches", async || {
        let spans = collector.spans();
        let linked = |name: &str| {
            let mut batches = spans.iter().filter(|s| s.name == name);
            batches.any(|s| s.links.iter().any(|link| link.trace_id == trace))
        };
        match linked("hutong.publish") && linked("hutong.ingest") {
            true => Ok(()),
            false => Err("a batch has no link to it".to_owned()),
        }
    })
    .await;
    // Streams say what they are part of, and the broker's log repeats it.
    let log = std::fs::read_to_string(dir.path().join("broker.log")).expect("a log");
    let spans = collector.spans();
    let streams = spans.iter().filter(|s| s.name == "hutong.stream");
    let ids: Vec<String> = streams
        .map(|s| s.trace_id.iter().map(|b| format!("{b:02x}")).collect())
        .collect();
    // A subscriber's stream says nothing while all is well; a publisher's says that it opened.
    assert!(ids.iter().any(|id| log.contains(id)), "{ids:?}:\n{log}");
    // And metrics are pushed as well.
    until("metrics", async || {
        let names = collector.metrics.lock().expect("no panic").clone();
        match names.contains("hutong_pair_lag_records") && names.contains("hutong_hop_seconds") {
            true => Ok(()),
            false => Err(format!("{names:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_traced_although_nobody_sampled_it_and_names_no_person() {
    let (collector, otlp) = Collector::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let broker = Broker::start_pushing(dir.path(), Some(otlp)).await;
    let source = clients::Source::start(&broker).await;
    source.publish_wrong().await;
    until("the refusal", async || {
        let spans = collector.spans();
        let refused = spans.iter().find(|s| {
            let message = s.status.as_ref().map(|status| status.message.as_str());
            message == Some("TIME_IN_FUTURE")
        });
        refused.map(drop).ok_or(format!("{} spans", spans.len()))
    })
    .await;
    let spans = collector.spans();
    // Those of the other batches were quick, right and not sampled.
    assert!(spans.iter().all(|s| s.name == "hutong.ingest"), "{spans:?}");
    let allowed = [
        "hutong.issuer",
        "hutong.deltas.accepted",
        "hutong.deltas.refused",
    ];
    for attribute in spans.iter().flat_map(|s| &s.attributes) {
        assert!(allowed.contains(&attribute.key.as_str()), "{attribute:?}");
    }
}
