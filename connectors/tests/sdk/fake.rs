//! A broker that does what the test says, message by message.

use crate::sdk::{GRACE, soon};
use futures_util::Stream;
use hutong_proto::{
    Cursor, Delta, Lane, LogId, Micros, Offset, Partition, RecordHeader, Refusal, Sequence, Shard,
    api,
    api::{
        publish_request, publish_response,
        stream::{
            publish_service_server::{PublishService, PublishServiceServer},
            subscribe_service_server::{SubscribeService, SubscribeServiceServer},
        },
        subscribe_request, subscribe_response,
    },
    frame::Frame,
    ids::Epoch,
    metadata, record,
    record::RecordBuilder,
    wire,
};
use prost::{Message, bytes::Bytes};
use std::{net::SocketAddr, pin::Pin};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    task::JoinHandle,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

pub const LOG: LogId = LogId(0x00c0_ffee);

/// What a batch counts at least.
const CHARGE_MIN: u64 = 1024;

/// Listens until it is dropped. Each call of a client waits for the test to take it.
pub struct FakeBroker {
    pub addr: SocketAddr,
    calls: Mutex<mpsc::UnboundedReceiver<Call>>,
    server: JoinHandle<()>,
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FakeBroker {
    pub async fn start() -> FakeBroker {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let (taken, calls) = mpsc::unbounded_channel();
        let door = Door(taken);
        let server = tokio::spawn(async move {
            let served = Server::builder()
                .add_service(
                    PublishServiceServer::new(door.clone()).max_decoding_message_size(16 << 20),
                )
                .add_service(SubscribeServiceServer::new(door))
                .serve_with_incoming(TcpListenerStream::new(listener));
            served.await.expect("the listener works");
        });
        FakeBroker {
            addr,
            calls: Mutex::new(calls),
            server,
        }
    }

    /// The next call of a client.
    pub async fn accept(&self) -> Call {
        let call = soon("a call", async { self.calls.lock().await.recv().await }).await;
        call.expect("the server runs")
    }

    /// No client calls, for a while.
    pub async fn nobody_calls(&self) {
        let mut calls = self.calls.lock().await;
        let call = tokio::time::timeout(GRACE, calls.recv()).await;
        assert!(call.is_err(), "a client called");
    }

    /// The next call, of a publisher, opened as asked.
    pub async fn producer(&self, last_durable: u64, credit_bytes: u64) -> Call {
        let mut call = self.accept().await;
        call.publish_open().await;
        call.opened(last_durable, credit_bytes).await;
        call
    }
}

/// Hands calls over to the test.
#[derive(Clone)]
struct Door(mpsc::UnboundedSender<Call>);

type Frames = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

impl Door {
    fn call(&self, request: Request<Streaming<Frame>>) -> Response<Frames> {
        let (out, frames) = mpsc::channel(1024);
        let identity = request.metadata().get(metadata::IDENTITY);
        let identity = identity.map(|v| v.to_str().expect("ascii").to_owned());
        let call = Call {
            identity: identity.unwrap_or_default(),
            input: request.into_inner(),
            out,
        };
        // The test may be over.
        drop(self.0.send(call));
        Response::new(Box::pin(ReceiverStream::new(frames)))
    }
}

#[tonic::async_trait]
impl PublishService for Door {
    type PublishStream = Frames;

    async fn publish(&self, r: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        Ok(self.call(r))
    }
}

#[tonic::async_trait]
impl SubscribeService for Door {
    type SubscribeStream = Frames;

    async fn subscribe(&self, r: Request<Streaming<Frame>>) -> Result<Response<Frames>, Status> {
        Ok(self.call(r))
    }
}

/// One stream. The stream ends when this is dropped.
pub struct Call {
    pub identity: String,
    input: Streaming<Frame>,
    out: mpsc::Sender<Result<Frame, Status>>,
}

impl Call {
    /// The next message of the client; `None` when it ended the stream or is gone.
    pub async fn frame(&mut self) -> Option<Bytes> {
        let frame = soon("a message", self.input.message()).await;
        frame.ok().flatten().map(|frame| frame.0)
    }

    /// The client says nothing, for a while.
    pub async fn hears_nothing(&mut self) {
        let heard = tokio::time::timeout(GRACE, self.input.message()).await;
        assert!(heard.is_err(), "the client said {heard:?}");
    }

    /// Waits until the client has ended the stream, whatever it says before.
    pub async fn ended(&mut self) {
        while self.frame().await.is_some() {}
    }

    pub async fn bytes(&self, bytes: impl Into<Bytes>) {
        // The client may be gone; the test sees that by what comes.
        drop(self.out.send(Ok(Frame::new(bytes.into()))).await);
    }

    pub async fn fail(self, status: impl Into<Status>) {
        drop(self.out.send(Err(status.into())).await);
    }

    // Of a publisher.

    pub async fn publish_open(&mut self) -> api::PublishOpen {
        let frame = self.frame().await.expect("an open");
        let request = api::PublishRequest::decode(frame).expect("protobuf");
        match request.message {
            Some(publish_request::Message::Open(open)) => open,
            other => panic!("expected open, got {other:?}"),
        }
    }

    pub async fn batch(&mut self) -> Batch {
        let frame = self.frame().await.expect("a batch");
        let request = api::PublishRequest::decode(frame.clone()).expect("protobuf");
        match request.message {
            Some(publish_request::Message::Batch(batch)) => Batch {
                sequence: batch.sequence,
                charge: (batch.encoded_len() as u64).max(CHARGE_MIN),
                deltas: batch.deltas.len() as u32,
                frame,
            },
            other => panic!("expected a batch, got {other:?}"),
        }
    }

    pub async fn say(&self, message: publish_response::Message) {
        let response = api::PublishResponse {
            message: Some(message),
        };
        self.bytes(response.encode_to_vec()).await;
    }

    pub async fn opened(&self, last_durable_sequence: u64, credit_bytes: u64) {
        let opened = api::PublishOpened {
            last_durable_sequence,
            credit_bytes,
            ..Default::default()
        };
        self.say(publish_response::Message::Opened(opened)).await;
    }

    /// Acknowledges a batch and gives its credit back.
    pub async fn ack(&self, batch: &Batch) {
        self.say(publish_response::Message::Ack(batch.ack())).await;
    }

    pub async fn draining(&self) {
        let reason = "the broker is stopping".to_owned();
        let draining = api::Draining { reason };
        self.say(publish_response::Message::Draining(draining))
            .await;
    }

    // Of a subscriber.

    pub async fn heard(&mut self) -> subscribe_request::Message {
        let frame = self.frame().await.expect("a message");
        let request = api::SubscribeRequest::decode(frame).expect("protobuf");
        request.message.expect("something")
    }

    pub async fn subscribe_open(&mut self) -> api::SubscribeOpen {
        match self.heard().await {
            subscribe_request::Message::Open(open) => open,
            other => panic!("expected open, got {other:?}"),
        }
    }

    pub async fn tell(&self, message: subscribe_response::Message) {
        self.bytes(response(message)).await;
    }

    pub async fn begun(&self, cursor: Cursor, snapshot: bool) {
        let opened = api::SubscribeOpened {
            cursor: Some(cursor.to_api()),
            snapshot,
            ..Default::default()
        };
        self.tell(subscribe_response::Message::Opened(opened)).await;
    }

    pub async fn bookmark(&self, cursor: Cursor, sent_at: Micros) {
        self.tell(subscribe_response::Message::Bookmark(api::Bookmark {
            cursor: Some(cursor.to_api()),
            sent_at_us: sent_at.0,
        }))
        .await;
    }

    pub async fn snapshot_begin(&self) {
        let begin = api::SnapshotBegin { rows_estimate: 7 };
        self.tell(subscribe_response::Message::SnapshotBegin(begin))
            .await;
    }

    pub async fn snapshot_end(&self, cursor: Cursor, rows: u64) {
        self.tell(subscribe_response::Message::SnapshotEnd(api::SnapshotEnd {
            cursor: Some(cursor.to_api()),
            rows,
        }))
        .await;
    }
}

/// A batch as it came.
#[derive(Clone, Debug)]
pub struct Batch {
    pub sequence: u64,
    /// What it counts against the credit.
    pub charge: u64,
    pub deltas: u32,
    pub frame: Bytes,
}

impl Batch {
    pub fn ack(&self) -> api::PublishAck {
        api::PublishAck {
            sequence: self.sequence,
            accepted: self.deltas,
            credit_bytes: self.charge,
            ..Default::default()
        }
    }
}

pub fn response(message: subscribe_response::Message) -> Vec<u8> {
    let response = api::SubscribeResponse {
        message: Some(message),
    };
    response.encode_to_vec()
}

pub fn at(offset: u64) -> Cursor {
    Cursor::both(LOG, Offset(offset))
}

/// One record of Anhui's urgent lane with these deltas, as it is delivered.
pub fn delivery(offset: u64, deltas: &[Delta]) -> Bytes {
    let record = logged(offset, Lane::Urgent, deltas);
    record::delivery(vec![record]).to_bytes()
}

pub fn logged(offset: u64, lane: Lane, deltas: &[Delta]) -> Bytes {
    let header = RecordHeader {
        partition: Partition {
            issuer: crate::sdk::issuer(crate::sdk::ANHUI),
            lane,
            shard: Shard(0),
        },
        producer: "p",
        epoch: Epoch(1),
        sequence: Sequence(offset),
        epoch_base: Sequence::NONE,
        parts: 1,
    };
    let mut record = RecordBuilder::new(&header, 256);
    let mut fields = Vec::new();
    wire::put_bytes(&mut fields, 9, &crate::sdk::provenance().encode());
    for delta in deltas {
        let mut encoded = Vec::new();
        delta.encode(0, &mut encoded);
        wire::put_bytes(&mut fields, 10, &encoded);
    }
    record.fields(&fields);
    let record = record.finish();
    let head = record::logged_head(Offset(offset), crate::sdk::now(), record.len());
    [head, record].concat().into()
}

/// Rows of a snapshot, one a delta.
pub fn rows(deltas: &[Delta]) -> Vec<u8> {
    let provenance = crate::sdk::provenance().encode();
    let row = |delta: &Delta| {
        let mut encoded = Vec::new();
        delta.encode(0, &mut encoded);
        api::SnapshotRow {
            issuer: crate::sdk::ANHUI,
            offset: 1,
            delta: Some(api::Delta::decode(encoded.as_slice()).expect("our encoding")),
        }
    };
    let rows = api::SnapshotRows {
        provenance: vec![api::Provenance::decode(provenance.as_slice()).expect("our encoding")],
        rows: deltas.iter().map(row).collect(),
    };
    response(subscribe_response::Message::SnapshotRows(rows))
}

/// A refusal as a broker would end a stream with it.
pub fn refused(reason: hutong_proto::Reason) -> Status {
    Refusal::new(reason, "open").to_status()
}
