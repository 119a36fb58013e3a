//! What load balancers and generic tools ask any gRPC server, and what a page of metrics says of what is on disk.

mod support;

use hutong_proto::{
    Value,
    api::{self, publish_request},
    delta::Colour,
};
use hutong_telemetry::catalogue::Label;
use support::{ANHUI, PATIENCE, Producer, batch, channel, delta, metric, metrics, start};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

const SERVICES: [&str; 5] = [
    "hutong.sync.v1.PublishService",
    "hutong.sync.v1.SubscribeService",
    "hutong.sync.v1.QueryService",
    "hutong.sync.v1.AdminService",
    "hutong.sync.v1.ReportService",
];

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

async fn next(
    watch: &mut tonic::Streaming<HealthCheckResponse>,
) -> Option<Result<ServingStatus, Code>> {
    let next = tokio::time::timeout(PATIENCE, watch.next()).await;
    let next = next.expect("an answer in time")?;
    Some(next.map(|found| found.status()).map_err(|s| s.code()))
}

#[tokio::test]
async fn each_service_is_serving_until_the_broker_drains() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut client = HealthClient::new(channel(&broker).await);
    for service in SERVICES.into_iter().chain([""]) {
        let answer = client.check(about(service)).await.expect("known");
        let status = answer.into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }
    let unknown = client.check(about("hutong.sync.v1.Nothing")).await;
    assert_eq!(unknown.expect_err("unknown").code(), Code::NotFound);
    let watch = client.watch(about(SERVICES[0])).await;
    let mut watch = watch.expect("known").into_inner();
    assert_eq!(next(&mut watch).await, Some(Ok(ServingStatus::Serving)));
    // A producer whose goodbye nobody has read yet: the drain is on.
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let stopped = tokio::spawn(broker.shutdown());
    let goodbye = producer.next().await.expect("a goodbye");
    assert!(matches!(
        goodbye,
        api::publish_response::Message::Draining(_)
    ));
    assert_eq!(next(&mut watch).await, Some(Ok(ServingStatus::NotServing)));
    assert_ne!(next(&mut watch).await, Some(Ok(ServingStatus::Serving)));
    let late = publish_request::Message::Batch(batch(ANHUI, 1, &[]));
    producer.send(late).await;
    let stopped = tokio::time::timeout(PATIENCE, stopped).await;
    stopped.expect("a watch holds up nothing").expect("stopped");
}

#[tokio::test]
async fn both_names_of_reflection_list_the_services() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let mut found: Vec<Vec<String>> = Vec::new();
    {
        use v1::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(channel(&broker).await);
        let answers = client.server_reflection_info(tokio_stream::iter([request]));
        let mut answers = answers.await.expect("served").into_inner();
        let answer = answers.next().await.expect("one").expect("no error");
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}");
        };
        found.push(list.service.into_iter().map(|s| s.name).collect());
    }
    {
        use v1alpha::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(channel(&broker).await);
        let answers = client.server_reflection_info(tokio_stream::iter([request]));
        let mut answers = answers.await.expect("served").into_inner();
        let answer = answers.next().await.expect("one").expect("no error");
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}");
        };
        found.push(list.service.into_iter().map(|s| s.name).collect());
    }
    for names in found {
        for service in SERVICES {
            assert!(names.iter().any(|name| name == service), "{names:?}");
        }
    }
    broker.shutdown().await;
}

#[tokio::test]
async fn what_is_on_disk_is_counted_after_a_restart() {
    const REGISTERS: u64 = 1000;
    let dir = tempfile::tempdir().expect("a folder");
    let broker = start(dir.path()).await;
    let (mut producer, _) = Producer::open(&broker, ANHUI, "p", 1).await;
    let deltas: Vec<_> = (0..REGISTERS)
        .map(|n| delta(n, 1, Value::HealthCode(Colour::Green)))
        .collect();
    let ack = producer.publish(batch(ANHUI, 1, &deltas)).await;
    ack.expect("ack");
    drop(producer);
    broker.shutdown().await;
    // Nothing is gathered in memory now.
    let broker = start(dir.path()).await;
    let page = metrics(&broker).await;
    for store in ["log", "state"] {
        let series = format!("hutong_store_disk_bytes{{store=\"{store}\"}}");
        assert!(metric(&page, &series) > 0.0, "{series}");
    }
    let stores = page
        .lines()
        .filter(|line| line.starts_with("hutong_store_disk_bytes{"));
    assert_eq!(stores.count(), Label::Store.values_max());
    let mut admin = api::admin_service_client::AdminServiceClient::new(channel(&broker).await);
    let request = support::with_identity(api::GetStatusRequest {}, "operator/o");
    let status = admin.get_status(request).await.expect("an answer");
    let estimate = status.into_inner().registers_estimate;
    // With the rows that are no registers: how far the log is applied, the producer, its provenance.
    let counted = REGISTERS..REGISTERS + 10;
    assert!(counted.contains(&estimate), "{estimate}");
    broker.shutdown().await;
}
