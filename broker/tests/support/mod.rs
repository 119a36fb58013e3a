//! A broker in this process and plain clients of its wire: no SDK, so that a defect there cannot
//! hide one here.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod process;

use hutong_broker::{Broker, config::Config};
use hutong_proto::{
    Cursor, EntityId, Issuer, LogId, Micros, Offset, Provenance, RecordView, Revision, Value, api,
    api::{
        publish_request, publish_response,
        stream::{
            publish_service_client::PublishServiceClient,
            subscribe_service_client::SubscribeServiceClient,
        },
        subscribe_open::Start,
        subscribe_request, subscribe_response,
    },
    delta::Delta,
    frame::Frame,
    metadata, record,
};
use prost::Message;
use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming, transport::Channel};

pub const ANHUI: u32 = 340_000;
pub const SICHUAN: u32 = 510_000;
pub const SHANGHAI: u32 = 310_000;

/// Nothing here takes this long; it ends a test that would hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const PLATFORMS: [(u32, &str); 3] = [
    (ANHUI, "Anhui"),
    (SICHUAN, "Sichuan"),
    (SHANGHAI, "Shanghai"),
];

pub fn config(dir: &Path) -> Config {
    Config::for_tests(dir, &PLATFORMS)
}

pub async fn start(dir: &Path) -> Broker {
    Broker::start(config(dir)).await.expect("the broker starts")
}

pub fn issuer(code: u32) -> Issuer {
    Issuer::new(code).expect("a code")
}

pub fn now() -> Micros {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    Micros(since.as_micros() as u64)
}

pub fn entity(n: u64) -> EntityId {
    let mut id = [7; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    EntityId(id)
}

pub fn provenance() -> Provenance {
    Provenance {
        authority: "CDC-340100".to_owned(),
        rule_id: "AH-2022-07".to_owned(),
        rule_version: 3,
        reason: "close contact".to_owned(),
    }
}

pub fn delta(n: u64, revision: u64, value: Value) -> Delta {
    Delta {
        entity: entity(n),
        revision: Revision(revision),
        committed_at: now(),
        expires_at: Micros::ZERO,
        evidence: String::new(),
        provenance: Arc::new(provenance()),
        value,
    }
}

pub fn api_delta(delta: &Delta) -> api::Delta {
    let mut bytes = Vec::new();
    delta.encode(0, &mut bytes);
    api::Delta::decode(bytes.as_slice()).expect("our own encoding")
}

pub fn api_provenance() -> api::Provenance {
    api::Provenance::decode(provenance().encode().as_slice()).expect("our own encoding")
}

pub fn batch(issuer: u32, sequence: u64, deltas: &[Delta]) -> api::PublishBatch {
    api::PublishBatch {
        sequence,
        issuer,
        provenance: vec![api_provenance()],
        deltas: deltas.iter().map(api_delta).collect(),
    }
}

/// What `/metrics` says.
pub async fn metrics(broker: &Broker) -> String {
    let mut stream = tokio::net::TcpStream::connect(broker.http_addr())
        .await
        .expect("connect");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .expect("send");
    let mut page = String::new();
    stream.read_to_string(&mut page).await.expect("receive");
    page
}

/// The value of a series, named with its labels.
pub fn metric(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    let value = line.unwrap_or_else(|| panic!("{series} is in {page}"));
    value.trim().parse().expect("a number")
}

/// A broker in this process or another.
pub trait Listening {
    fn grpc(&self) -> SocketAddr;
}

impl Listening for Broker {
    fn grpc(&self) -> SocketAddr {
        self.grpc_addr()
    }
}

pub async fn channel(broker: &impl Listening) -> Channel {
    Channel::from_shared(format!("http://{}", broker.grpc()))
        .expect("an address")
        .connect()
        .await
        .expect("the broker listens")
}

pub fn with_identity<T>(message: T, identity: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = identity.parse().expect("ascii");
    request.metadata_mut().insert(metadata::IDENTITY, value);
    request
}

pub fn platform(code: u32) -> String {
    format!("platform/{code}")
}

/// A publish stream, message by message.
pub struct Producer {
    pub out: mpsc::Sender<Frame>,
    input: Streaming<Frame>,
}

impl Producer {
    pub async fn connect(broker: &impl Listening, code: u32) -> Producer {
        let (out, frames) = mpsc::channel(1024);
        let mut client = PublishServiceClient::new(channel(broker).await);
        let request = with_identity(ReceiverStream::new(frames), &platform(code));
        let input = client
            .publish(request)
            .await
            .expect("accepted")
            .into_inner();
        Producer { out, input }
    }

    /// Connects and opens; returns the last durable sequence number too.
    pub async fn open(
        broker: &impl Listening,
        code: u32,
        name: &str,
        epoch: u64,
    ) -> (Producer, u64) {
        let mut producer = Producer::connect(broker, code).await;
        let opened = producer.say_open(name, epoch).await.expect("opened");
        (producer, opened.last_durable_sequence)
    }

    pub async fn say_open(&mut self, name: &str, epoch: u64) -> Result<api::PublishOpened, Status> {
        self.send(publish_request::Message::Open(api::PublishOpen {
            producer: name.to_owned(),
            epoch,
        }))
        .await;
        match self.next().await? {
            publish_response::Message::Opened(opened) => Ok(opened),
            other => panic!("expected opened, got {other:?}"),
        }
    }

    pub async fn send(&mut self, message: publish_request::Message) {
        let request = api::PublishRequest {
            message: Some(message),
        };
        self.send_bytes(request.encode_to_vec()).await;
    }

    pub async fn send_bytes(&mut self, bytes: Vec<u8>) {
        // The broker may have ended the stream; the test sees that when it reads.
        drop(self.out.send(Frame::new(bytes.into())).await);
    }

    pub async fn next(&mut self) -> Result<publish_response::Message, Status> {
        let frame = tokio::time::timeout(PATIENCE, self.input.message())
            .await
            .expect("an answer in time")?
            .ok_or_else(|| Status::aborted("end of stream"))?;
        let response = api::PublishResponse::decode(frame.0.as_ref()).expect("valid protobuf");
        Ok(response.message.expect("a message"))
    }

    pub async fn ack(&mut self) -> Result<api::PublishAck, Status> {
        match self.next().await? {
            publish_response::Message::Ack(ack) => Ok(ack),
            other => panic!("expected an ack, got {other:?}"),
        }
    }

    /// Sends a batch and waits for its ack.
    pub async fn publish(&mut self, batch: api::PublishBatch) -> Result<api::PublishAck, Status> {
        self.send(publish_request::Message::Batch(batch)).await;
        self.ack().await
    }
}

/// A record as delivered: offset, issuer, entity and revision of each delta.
pub type Delivered = (Offset, u32, Vec<(EntityId, u64)>);

/// What a subscriber saw, with records as plain values.
#[derive(Debug)]
pub enum Seen {
    Opened { cursor: Cursor, snapshot: bool },
    SnapshotBegin,
    Rows(Vec<(u32, EntityId, u64)>),
    SnapshotEnd { cursor: Cursor, rows: u64 },
    Records(Vec<Delivered>),
    Bookmark(Cursor),
    Draining,
}

/// A subscribe stream, message by message.
pub struct Consumer {
    pub out: mpsc::Sender<Frame>,
    input: Streaming<Frame>,
    /// Length of the last message: what it cost of the credit.
    last_bytes: u64,
}

pub fn open(name: &str, start: Start) -> api::SubscribeOpen {
    api::SubscribeOpen {
        subscription: name.to_owned(),
        filter: None,
        start: Some(start),
        credit_bytes: 0,
        compressions: Vec::new(),
    }
}

impl Consumer {
    pub async fn open(broker: &impl Listening, code: u32, open: api::SubscribeOpen) -> Consumer {
        let (out, frames) = mpsc::channel(1024);
        let request = subscribe_request::Message::Open(open);
        let mut client =
            SubscribeServiceClient::new(channel(broker).await).max_decoding_message_size(16 << 20);
        let requests = ReceiverStream::new(frames);
        let request_frame = api::SubscribeRequest {
            message: Some(request),
        };
        out.send(Frame::new(request_frame.encode_to_vec().into()))
            .await
            .expect("room");
        let input = client
            .subscribe(with_identity(requests, &platform(code)))
            .await
            .expect("accepted")
            .into_inner();
        Consumer {
            out,
            input,
            last_bytes: 0,
        }
    }

    pub async fn say(&mut self, message: subscribe_request::Message) {
        let request = api::SubscribeRequest {
            message: Some(message),
        };
        drop(
            self.out
                .send(Frame::new(request.encode_to_vec().into()))
                .await,
        );
    }

    pub async fn applied(&mut self, cursor: Cursor) {
        self.say(subscribe_request::Message::Applied(api::SubscribeApplied {
            cursor: Some(cursor.to_api()),
        }))
        .await;
    }

    pub async fn credit(&mut self, bytes: u64) {
        let more = api::SubscribeCredit { bytes };
        self.say(subscribe_request::Message::Credit(more)).await;
    }

    pub async fn next(&mut self) -> Result<Seen, Status> {
        let frame = tokio::time::timeout(PATIENCE, self.input.message())
            .await
            .expect("something in time")?
            .ok_or_else(|| Status::aborted("end of stream"))?;
        let response = api::SubscribeResponse::decode(frame.0.as_ref()).expect("valid protobuf");
        self.last_bytes = frame.0.len() as u64;
        use subscribe_response::Message;
        Ok(match response.message.expect("a message") {
            Message::Opened(o) => Seen::Opened {
                cursor: cursor(o.cursor),
                snapshot: o.snapshot,
            },
            Message::SnapshotBegin(_) => Seen::SnapshotBegin,
            Message::SnapshotRows(rows) => Seen::Rows(rows.rows.into_iter().map(row).collect()),
            Message::SnapshotEnd(end) => Seen::SnapshotEnd {
                cursor: cursor(end.cursor),
                rows: end.rows,
            },
            Message::Records(_) => Seen::Records(records(&frame.0)),
            Message::Bookmark(b) => Seen::Bookmark(cursor(b.cursor)),
            Message::Draining(_) => Seen::Draining,
        })
    }

    /// The next (offset, issuer, entity, revision) deltas until `count` are there.
    pub async fn deltas(&mut self, count: usize) -> Vec<(Offset, u32, EntityId, u64)> {
        let mut all = Vec::new();
        while all.len() < count {
            if let Seen::Records(records) = self.next().await.expect("the stream goes on") {
                for (offset, issuer, deltas) in records {
                    all.extend(deltas.into_iter().map(|(e, r)| (offset, issuer, e, r)));
                }
            }
        }
        all
    }

    /// Reads, granting credit, until a bookmark at or after this offset in both lanes; returns the deltas before it.
    pub async fn until(&mut self, offset: Offset) -> Vec<(Offset, u32, EntityId, u64)> {
        let mut all = Vec::new();
        loop {
            match self.next().await.expect("the stream goes on") {
                Seen::Records(records) => {
                    self.credit(self.last_bytes).await;
                    for (offset, issuer, deltas) in records {
                        all.extend(deltas.into_iter().map(|(e, r)| (offset, issuer, e, r)));
                    }
                }
                Seen::Bookmark(cursor) if cursor.urgent > offset && cursor.bulk > offset => {
                    return all;
                }
                _ => {}
            }
        }
    }

    /// A whole snapshot: its rows and the cursor after it.
    pub async fn snapshot(&mut self) -> (Vec<(u32, EntityId, u64)>, Cursor) {
        let mut all = Vec::new();
        loop {
            match self.next().await.expect("the stream goes on") {
                Seen::Rows(rows) => all.extend(rows),
                Seen::SnapshotEnd { cursor, rows } => {
                    assert_eq!(rows as usize, all.len());
                    return (all, cursor);
                }
                Seen::Opened { snapshot, .. } => assert!(snapshot),
                Seen::SnapshotBegin => {}
                other => panic!("{other:?} within a snapshot"),
            }
        }
    }
}

fn row(row: api::SnapshotRow) -> (u32, EntityId, u64) {
    let delta = row.delta.expect("a delta");
    let entity = EntityId::from_slice(&delta.entity).expect("16 bytes");
    (row.issuer, entity, delta.revision)
}

fn records(frame: &[u8]) -> Vec<Delivered> {
    let logged = record::read_delivery(frame)
        .expect("valid")
        .expect("records");
    logged
        .iter()
        .map(|logged| {
            let bytes = logged.record().expect("whole");
            let record = RecordView::parse(&bytes).expect("a record");
            let deltas = (0..record.deltas.len())
                .map(|i| record.delta(i).expect("a delta"))
                .map(|d| (d.entity, d.revision.0))
                .collect();
            (logged.offset, record.header.partition.issuer.code(), deltas)
        })
        .collect()
}

pub fn cursor(cursor: Option<api::Cursor>) -> Cursor {
    let cursor = cursor.expect("a cursor");
    Cursor {
        log_id: LogId(cursor.log_id),
        urgent: Offset(cursor.urgent),
        bulk: Offset(cursor.bulk),
    }
}

/// The reason that a failed call carries.
pub fn reason(status: &Status) -> String {
    hutong_proto::Refusal::from_status(status)
        .map(|r| r.reason.code().to_owned())
        .unwrap_or_else(|| format!("no reason: {status:?}"))
}

pub fn field(status: &Status) -> String {
    hutong_proto::Refusal::from_status(status)
        .map(|r| r.field)
        .unwrap_or_default()
}

/// Returns when the broker says that the subscription applied this.
pub async fn broker_knows(broker: &Broker, offset: Offset) {
    let mut admin = api::admin_service_client::AdminServiceClient::new(channel(broker).await);
    let known = async {
        loop {
            let request = api::ListSubscriptionsRequest::default();
            let request = with_identity(request, "operator/o");
            let all = admin.list_subscriptions(request).await.expect("an answer");
            let all = all.into_inner().subscriptions;
            let applied = all[0].applied.as_ref().map(|cursor| cursor.urgent);
            if applied >= Some(offset.0) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("known");
}
