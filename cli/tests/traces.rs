//! One trace leads from the commit at a source to every sink, with links from the batches; what is refused or slow is
//! traced too, and logs have the ids of traces. The collector is a real one, as far as the wire goes.

mod watch;

use hutong_connectors::{
    checkpoint::StateFolder,
    client::{Endpoint, Identity, admin},
    config::SubscriptionSettings,
    runner::{
        BrokerInlet, BrokerOutlet, BrokerSource, BrokerTarget, Connect as _, Heard, Inlet as _,
        Outlet,
    },
};
use hutong_proto::{Cursor, Delta, Issuer, Lane, Micros, TraceContext, api, delta::Colour};
use hutong_telemetry::{Service, TraceSettings, Traces};
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
    common::v1::{KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{Span, span::Event},
};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use watch::{
    ANHUI, BadCalls, Broker, Connector, SHANGHAI, SICHUAN, Setup, clients, sink_connector, until,
};

/// Provinces, and the corps in Xinjiang.
const PLATFORMS: [u32; 32] = [
    110_000, 120_000, 130_000, 140_000, 150_000, 210_000, 220_000, 230_000, 310_000, 320_000,
    330_000, 340_000, 350_000, 360_000, 370_000, 410_000, 420_000, 430_000, 440_000, 450_000,
    460_000, 500_000, 510_000, 520_000, 530_000, 540_000, 610_000, 620_000, 630_000, 640_000,
    650_000, 660_000,
];

/// How many spans have which name.
type Named = Vec<(String, usize)>;

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    metrics: Arc<Mutex<BTreeSet<String>>>,
    /// Who sent spans and who sent metrics: name and instance.
    span_services: Arc<Mutex<BTreeSet<(String, String)>>>,
    metric_services: Arc<Mutex<BTreeSet<(String, String)>>>,
}

fn service(resource: Option<Resource>) -> (String, String) {
    let attributes = resource.unwrap_or_default().attributes;
    let text = |key: &str| text_of(&attributes, key);
    (text("service.name"), text("service.instance.id"))
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| {
            let mut services = self.span_services.lock().expect("no panic");
            services.insert(service(resource.resource));
            resource.scope_spans
        });
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
        let scopes = resources.flat_map(|resource| {
            let mut services = self.metric_services.lock().expect("no panic");
            services.insert(service(resource.resource));
            resource.scope_metrics
        });
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

    fn named(&self, name: &str) -> Vec<Span> {
        let spans = self.spans();
        spans.into_iter().filter(|s| s.name == name).collect()
    }

    /// Until a batch of each end has a link into the trace.
    async fn links_into(&self, trace: &[u8]) {
        until("links from batches", async || {
            let linked = |name: &str| {
                let links = self.named(name).into_iter().flat_map(|s| s.links);
                links.into_iter().any(|link| link.trace_id == trace)
            };
            match linked("hutong.publish") && linked("hutong.ingest") {
                true => Ok(()),
                false => Err("a batch has no link to it".to_owned()),
            }
        })
        .await;
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
        service: Service {
            name: "test",
            instance: "one".to_owned(),
        },
        share,
        slow: Duration::MAX,
    };
    Traces::start(&settings).expect("an address")
}

fn issuer(code: u32) -> Issuer {
    Issuer::new(code).expect("a code")
}

fn pushing(otlp: SocketAddr) -> Setup {
    Setup {
        otlp: Some(otlp),
        ..Setup::default()
    }
}

/// A text or a number, as text; empty if the span has no such attribute.
fn attribute(span: &Span, key: &str) -> String {
    text_of(&span.attributes, key)
}

/// What was reached on the way, and how long after its beginning.
fn events(span: &Span) -> Vec<(&str, Duration)> {
    let after = |event: &Event| {
        event
            .time_unix_nano
            .saturating_sub(span.start_time_unix_nano)
    };
    let of = |event| Duration::from_nanos(after(event));
    span.events
        .iter()
        .map(|e| (e.name.as_str(), of(e)))
        .collect()
}

fn text_of(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|a| a.key == key);
    let value = found.and_then(|a| a.value.clone()).and_then(|v| v.value);
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// Where a source connector's deltas go.
async fn outlet(broker: &Broker, dir: &Path, traces: Traces) -> BrokerOutlet {
    let folder = StateFolder::new(dir, "source");
    folder.create().expect("created");
    let target = BrokerTarget::one_stream(broker.address(), issuer(ANHUI), "s".to_owned(), &folder);
    target
        .traced(traces)
        .connect(None)
        .await
        .expect("connected")
}

/// A sink connector's stream, after its snapshot.
async fn inlet(broker: &Broker, code: u32, traces: Traces) -> BrokerInlet {
    let subscription = SubscriptionSettings {
        name: "main".to_owned(),
        kinds: Vec::new(),
        issuers: Vec::new(),
        lanes: Vec::new(),
        include_own: true,
    };
    let source = BrokerSource::new(broker.address(), issuer(code), subscription);
    let mut inlet = source
        .traced(traces)
        .connect(None)
        .await
        .expect("connected");
    loop {
        if let Heard::SnapshotEnd { cursor } = inlet.next().await.expect("a snapshot") {
            inlet.applied(cursor).await.expect("said");
            return inlet;
        }
    }
}

/// Applies all that comes, as a sink connector does.
async fn sink(broker: &Broker, code: u32, traces: Traces) {
    let mut inlet = inlet(broker, code, traces).await;
    drop(tokio::spawn(async move {
        while let Ok(heard) = inlet.next().await {
            if let Heard::Records { cursor, .. } | Heard::Bookmark { cursor } = heard
                && inlet.applied(cursor).await.is_err()
            {
                return;
            }
        }
    }));
}

/// Waits for so many deltas. With the cursor after them, and when the last one was durable.
async fn receive(inlet: &mut BrokerInlet, count: usize) -> (Cursor, Micros) {
    let mut received = 0;
    loop {
        if let Heard::Records { deltas, cursor } = inlet.next().await.expect("records") {
            received += deltas.len();
            if received >= count {
                let last = deltas.last().expect("no record is empty");
                return (cursor, last.durable_at);
            }
        }
    }
}

async fn publish(outlet: &mut impl Outlet, delta: Delta) {
    publish_batch(outlet, vec![delta]).await;
}

async fn publish_batch(outlet: &mut impl Outlet, deltas: Vec<Delta>) {
    let pending = outlet.publish(Lane::Urgent, deltas).await;
    pending.expect("taken").await.expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_commit_to_every_sink_and_batches_link_to_it() {
    let (collector, otlp) = Collector::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let broker = Broker::start_with(dir.path(), pushing(otlp)).await;
    let traces = traces(otlp, 1.0);
    for code in [SICHUAN, SHANGHAI] {
        sink(&broker, code, traces.clone()).await;
    }
    let mut outlet = outlet(&broker, dir.path(), traces).await;
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
    collector.links_into(&trace).await;
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
async fn one_trace_leads_to_32_platforms_and_names_each_of_them() {
    let (collector, otlp) = Collector::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let setup = Setup {
        platforms: PLATFORMS.to_vec(),
        ..pushing(otlp)
    };
    let broker = Broker::start_with(dir.path(), setup).await;
    let traces = traces(otlp, 1.0);
    for code in PLATFORMS {
        sink(&broker, code, traces.clone()).await;
    }
    let mut outlet = outlet(&broker, dir.path(), traces).await;
    publish(&mut outlet, clients::delta(1, 1, Colour::Red)).await;

    let expected = [
        ("hutong.apply", 32),
        ("hutong.broker", 1),
        ("hutong.deliver", 32),
        ("hutong.source", 1),
    ];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    until("the whole trace", async || match collector.trace()? {
        (_, names) if names == expected => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let (trace, _) = collector.trace().expect("there");
    let everybody: BTreeSet<String> = PLATFORMS.iter().map(u32::to_string).collect();
    for name in ["hutong.deliver", "hutong.apply"] {
        let spans = collector.named(name);
        let of_trace = spans.iter().filter(|s| s.trace_id == trace);
        let receivers: BTreeSet<String> = of_trace
            .map(|span| attribute(span, "hutong.receiver"))
            .collect();
        assert_eq!(receivers, everybody, "{name}");
    }
    collector.links_into(&trace).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_more_than_the_broker_takes_on_a_part_is_traced_to_every_platform_and_the_rest_is_counted()
 {
    /// In one batch, so within one second; 32 platforms have one trace a second each.
    const SAMPLED: u64 = 6;
    const LEFT_OUT: &str = "hutong_spans_left_out_total{platform=\"340000\"}";
    let (collector, otlp) = Collector::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let setup = Setup {
        platforms: PLATFORMS.to_vec(),
        ..pushing(otlp)
    };
    let broker = Broker::start_with(dir.path(), setup).await;
    let traces = traces(otlp, 1.0);
    for code in [SICHUAN, SHANGHAI] {
        sink(&broker, code, traces.clone()).await;
    }
    let mut outlet = outlet(&broker, dir.path(), traces).await;
    let deltas = (1..=SAMPLED).map(|n| clients::delta(n, n, Colour::Red));
    publish_batch(&mut outlet, deltas.collect()).await;
    until("spans of all ends", async || {
        let of = |name| collector.named(name).len();
        let counts = ["hutong.apply", "hutong.broker", "hutong.deliver"].map(of);
        // What connectors make is all there, because it is not theirs to leave anything out.
        match counts[0] == 2 * SAMPLED as usize && counts[1] >= 1 && counts[2] >= 2 {
            true => Ok(()),
            false => Err(format!("{counts:?}")),
        }
    })
    .await;
    let ingested = collector.named("hutong.broker");
    assert_eq!(ingested.len(), 1, "{ingested:?}");
    let delivered = collector.named("hutong.deliver");
    let receivers: Vec<_> = delivered
        .iter()
        .map(|span| attribute(span, "hutong.receiver"))
        .collect();
    assert_eq!(receivers.len(), 2, "{receivers:?}");
    assert_ne!(receivers[0], receivers[1]);
    let trace = &ingested[0].trace_id;
    assert!(delivered.iter().all(|span| span.trace_id == *trace));
    collector.links_into(trace).await;
    let page = broker.metrics().expect("a page");
    let left_out = watch::metric(&page, LEFT_OUT);
    assert_eq!(left_out, Some((SAMPLED - 1) as f64), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_platform_applies_late_is_traced_although_nobody_sampled_it() {
    /// As the broker's configuration has it; much more than what is quick takes on a busy machine.
    const SLOW: Duration = Duration::from_secs(3);
    let (collector, otlp) = Collector::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let setup = Setup {
        slow: "3s",
        ..pushing(otlp)
    };
    let broker = Broker::start_with(dir.path(), setup).await;
    let mut late = inlet(&broker, SHANGHAI, Traces::off()).await;
    sink(&broker, SICHUAN, Traces::off()).await;
    let mut outlet = outlet(&broker, dir.path(), Traces::off()).await;
    for n in 1..=3 {
        publish(&mut outlet, clients::delta(n, n, Colour::Red)).await;
    }
    let (cursor, durable_at) = receive(&mut late, 3).await;
    let had_at = clients::now();
    until("it is late", async || {
        let seconds = clients::now().seconds_since(durable_at);
        let left = SLOW.as_secs_f64() - seconds;
        (left < 0.0).then_some(()).ok_or(format!("{left} s left"))
    })
    .await;
    late.applied(cursor).await.expect("said");
    until("the late delivery", async || {
        let spans = collector.named("hutong.deliver");
        (!spans.is_empty())
            .then_some(())
            .ok_or_else(|| "none".to_owned())
    })
    .await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 1, "what was quick is not kept: {spans:?}");
    let span = &spans[0];
    let took = Duration::from_nanos(span.end_time_unix_nano - span.start_time_unix_nano);
    assert!(took >= SLOW, "{took:?}");
    let said: Vec<_> = span.attributes.iter().map(|a| a.key.as_str()).collect();
    let allowed = [
        "hutong.receiver",
        "hutong.lane",
        "hutong.records",
        "hutong.durable_after_ms",
        "hutong.sent_after_ms",
    ];
    assert_eq!(said, allowed);
    // It was there before it was late, and waited there.
    let sent: Vec<_> = (span.events.iter())
        .map(|e| (e.name.as_str(), e.time_unix_nano / 1000 <= had_at.0))
        .collect();
    assert_eq!(sent, [("sent", true)], "{had_at:?}: {span:?}");
    assert_eq!(attribute(span, "hutong.receiver"), SHANGHAI.to_string());
    assert_eq!(attribute(span, "hutong.lane"), "urgent");
    assert_eq!(attribute(span, "hutong.records"), "3");
}

/// Of the traces that a log names.
fn trace_ids(log: &str) -> BTreeSet<&str> {
    let parts = log.split("trace_id=").skip(1);
    parts.filter_map(|part| part.get(..32)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_of_a_stream_log_one_trace_and_a_call_is_logged_with_its_own() {
    let (collector, otlp) = Collector::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let broker = Broker::start_with(dir.path(), pushing(otlp)).await;
    let log = |name: &str| {
        let file = dir.path().join(format!("{name}.log"));
        std::fs::read_to_string(file).unwrap_or_default()
    };
    let in_both = |name: &str| {
        let (here, there) = (log(name), log("broker"));
        match trace_ids(&here).is_disjoint(&trace_ids(&there)) {
            false => Ok(()),
            true => Err(format!("{name}:\n{here}\nbroker:\n{there}")),
        }
    };
    let _source = Connector::start(dir.path(), &broker).await;
    until("the source's stream", async || in_both("connector")).await;
    let _sink = sink_connector(dir.path(), &broker, SICHUAN);
    until("the sink's stream", async || {
        match trace_ids(&log("sink")).is_empty() {
            false => Ok(()),
            true => Err(log("sink")),
        }
    })
    .await;
    // The broker says nothing of a subscriber while all is well: somebody else takes its stream over.
    drop(clients::Sink::start(&broker, SICHUAN).await);
    until("its end in both logs", async || in_both("sink")).await;

    // Connectors push metrics too, and who pushes is called the same with both.
    until("metrics of both", async || {
        let names = collector.metrics.lock().expect("no panic").clone();
        let spans = collector.span_services.lock().expect("no panic").clone();
        let metrics = collector.metric_services.lock().expect("no panic").clone();
        let of = |name: &str| metrics.iter().filter(|(n, _)| n == name).count();
        let all = names.contains("hutong_connect_state")
            && (of("hutong-broker"), of("hutong-connect")) == (1, 2)
            && metrics.iter().all(|(_, instance)| !instance.is_empty())
            && spans.is_subset(&metrics)
            && spans.iter().any(|(name, _)| name == "hutong-connect");
        match all {
            true => Ok(()),
            false => Err(format!("{spans:?} {metrics:?} {names:?}")),
        }
    })
    .await;

    let endpoint = Endpoint::new(broker.address(), Identity::Operator("test".to_owned()));
    let trace = TraceContext {
        trace_id: [0xc5; 16],
        span_id: [7; 8],
    };
    for endpoint in [endpoint.clone().traced(Some(trace)), endpoint] {
        let request = api::TrimPartitionRequest {
            issuer: ANHUI,
            lane: Lane::Urgent.to_api().into(),
            ..Default::default()
        };
        let mut admin = admin(&endpoint).expect("an address");
        admin.trim_partition(request).await.expect("trimmed");
    }
    let log = log("broker");
    let lines = log.lines().filter(|l| l.contains("trimmed on request"));
    let named: Vec<_> = lines
        .map(|line| line.contains(&trace.to_string()))
        .collect();
    assert_eq!(named, [true, false], "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_traced_although_nobody_sampled_it_and_names_no_person() {
    let (collector, otlp) = Collector::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let broker = Broker::start_with(dir.path(), pushing(otlp)).await;
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

/// Every entity of these tests begins so; ids of traces are left out, which may be anything.
fn names_nobody(what: &str, text: &str) {
    let (hexadecimal, bytes) = ("07".repeat(8), ["7"; 8].join(", "));
    for person in [&hexadecimal, &bytes, EVIDENCE] {
        let found = text.lines().find(|line| line.contains(person));
        assert_eq!(found, None, "{what} names a person");
    }
}

const EVIDENCE: &str = "case-4711";

#[tokio::test(flavor = "multi_thread")]
async fn no_metric_log_or_span_names_a_person_whatever_becomes_of_a_change() {
    let (collector, otlp) = Collector::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let setup = Setup {
        log: "debug",
        ..pushing(otlp)
    };
    let broker = Broker::start_with(dir.path(), setup).await;
    let traces = traces(otlp, 1.0);
    sink(&broker, SICHUAN, traces.clone()).await;
    let mut outlet = outlet(&broker, dir.path(), traces).await;
    let change = |n, revision| Delta {
        evidence: EVIDENCE.to_owned(),
        ..clients::delta(n, revision, Colour::Red)
    };
    let too_new = Delta {
        committed_at: Micros(clients::now().0 + 2 * 86_400 * 1_000_000),
        ..change(2, 1)
    };
    publish_batch(&mut outlet, vec![change(1, 1), too_new]).await;
    // Not newer.
    publish(&mut outlet, change(1, 1)).await;
    let entity = change(1, 1).entity;
    let ways = [
        format!("entity/{entity}"),
        format!("entity/{entity}00"),
        format!("trace/{entity}/{ANHUI}/health_code/0"),
        format!("trace/{entity}/{ANHUI}/health_code/7"),
        format!("record/{ANHUI}/urgent/0/3"),
    ];
    let answers = ways.map(|way| watch::get(broker.http, &format!("/console/api/{way}")));
    assert!(
        answers.iter().filter(|answer| answer.is_ok()).count() >= 2,
        "{answers:?}"
    );
    until("spans of all of it", async || {
        let spans = collector.spans();
        let names: BTreeSet<&str> = spans.iter().map(|s| s.name.as_str()).collect();
        let refused = spans
            .iter()
            .any(|s| attribute(s, "hutong.deltas.refused") == "1");
        let all = ["source", "publish", "ingest", "broker", "deliver", "apply"];
        let all = all
            .iter()
            .all(|name| names.contains(format!("hutong.{name}").as_str()));
        match all && refused {
            true => Ok(()),
            false => Err(format!("{names:?}")),
        }
    })
    .await;
    for span in collector.spans() {
        let said = format!("{:?} {:?} {:?}", span.attributes, span.events, span.status);
        names_nobody(&span.name, &said);
    }
    let log = std::fs::read_to_string(dir.path().join("broker.log")).expect("a log");
    assert!(
        log.contains("DEBUG") || log.contains("TRACE"),
        "it tells little: {log}"
    );
    names_nobody("the log", &log);
    names_nobody("/metrics", &broker.metrics().expect("a page"));
    let errors = watch::get(broker.http, "/console/api/errors");
    names_nobody("the list of errors", &errors.expect("a list"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_takes_long_is_traced_although_nobody_sampled_it() {
    const SLOW: Duration = Duration::from_secs(1);
    let (collector, otlp) = Collector::start().await;
    let dir = tempfile::tempdir().expect("a folder");
    let setup = Setup {
        slow: "1s",
        ..pushing(otlp)
    };
    let broker = Broker::start_with(dir.path(), setup).await;
    let mut outlet = outlet(&broker, dir.path(), Traces::off()).await;
    let slow = BadCalls::slow_syncs_of(broker.id(), "log-writer", 2 * SLOW).await;
    publish(&mut outlet, clients::delta(1, 1, Colour::Red)).await;
    drop(slow);
    until("the slow batch", async || {
        let spans = collector.named("hutong.ingest");
        let took = |span: &Span| span.end_time_unix_nano - span.start_time_unix_nano;
        let slow = spans
            .iter()
            .find(|s| u128::from(took(s)) >= SLOW.as_nanos());
        let slow = slow.ok_or(format!("{spans:?}"))?;
        // What took long was the sync: what came after it was quick.
        let steps = events(slow);
        let [("durable", durable), ("applied", applied)] = steps[..] else {
            return Err(format!("{steps:?}"));
        };
        assert!(durable >= SLOW && durable <= applied, "{steps:?}");
        match attribute(slow, "hutong.deltas.accepted").as_str() {
            "1" => Ok(()),
            other => Err(format!("{other} accepted")),
        }
    })
    .await;
}
