//! The pages as a scraper and a supervisor see them.

use hutong_telemetry::{Exporter, Health, http};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

struct Server {
    address: SocketAddr,
    exporter: Exporter,
    health: Health,
    stop: CancellationToken,
    tasks: JoinSet<std::io::Result<()>>,
}

async fn server() -> Server {
    let exporter = Exporter::new(|_| None).expect("exporter");
    let health = Health::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let stop = CancellationToken::new();
    let router = http::router(exporter.clone(), health.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(http::serve(listener, router, stop.clone()));
    Server {
        address,
        exporter,
        health,
        stop,
        tasks,
    }
}

impl Server {
    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut response = String::new();
        stream.read_to_string(&mut response).await.expect("receive");
        response
    }

    async fn stop(mut self) {
        self.stop.cancel();
        let served = self.tasks.join_next().await.expect("one task");
        served.expect("no panic").expect("served");
    }
}

#[tokio::test]
async fn readiness_and_liveness_answer_with_the_reason() {
    let server = server().await;
    let check = async |path, status: &str, body: &str| {
        let response = server.get(path).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status}")),
            "{path}: {response}"
        );
        assert!(
            response.ends_with(&format!("\r\n\r\n{body}\n")),
            "{path}: {response}"
        );
    };
    check("/livez", "200", "ok").await;
    check("/readyz", "503", "starting").await;
    server.health.set_ready(Ok(()));
    check("/readyz", "200", "ok").await;
    let draining = "draining: 2 producers";
    server.health.set_ready(Err(draining.to_owned()));
    check("/readyz", "503", draining).await;
    server.health.set_dead("the log is poisoned");
    check("/livez", "503", "the log is poisoned").await;
    server.stop().await;
}

#[tokio::test]
async fn metrics_are_served_in_the_text_format() {
    let server = server().await;
    let meter = server.exporter.meter("test");
    meter.u64_counter("sent_total").build().add(2, &[]);
    let response = server.get("/metrics").await;
    assert!(response.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(response.contains("\nsent_total 2\n"), "{response}");
    assert!(server.get("/nothing").await.starts_with("HTTP/1.1 404"));
    server.stop().await;
}

#[tokio::test]
async fn stopping_does_not_wait_for_clients_that_say_nothing() {
    let server = server().await;
    let silent = TcpStream::connect(server.address).await.expect("connect");
    let mut half = TcpStream::connect(server.address).await.expect("connect");
    half.write_all(b"GET /livez HTTP/1.1\r\n")
        .await
        .expect("send");
    assert!(server.get("/livez").await.starts_with("HTTP/1.1 200"));
    server.stop().await;
    drop((silent, half));
}

#[tokio::test]
async fn more_connections_than_places_wait_for_their_turn() {
    let server = server().await;
    let mut held = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(server.address).await.expect("connect");
        let request = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(request).await.expect("send");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
        held.push(stream);
    }
    let mut late = Box::pin(server.get("/livez"));
    let answered = tokio::time::timeout(Duration::from_millis(100), &mut late).await;
    assert!(answered.is_err(), "there was no place left");
    drop(held);
    assert!(late.await.starts_with("HTTP/1.1 200"));
    server.stop().await;
}
