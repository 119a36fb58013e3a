//! The network: messages take their time, stay in order within a connection, and a connection can be cut
//! or stand still. What is under way on an old one may still arrive when there is a new one.

use crate::{
    random::Random,
    sim::{
        executor::{Process, Spawner},
        node::Node,
        watch::Watch,
        world::{World, digest},
    },
};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use http_body::Body;
use hutong_planted_connectors::client::{ClientError, Dial, Endpoint, Identity, Opening};
use hutong_proto::{
    Issuer,
    frame::{Frame, FrameCodec},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// Messages that wait at the receiver.
const RECEIVED_MAX: usize = 4;
/// Messages under way in one direction.
const UNDER_WAY_MAX: usize = 8;

type Item = Result<Frame, Status>;

/// What a message of one side holds, as a stream of the transport.
struct Received(mpsc::Receiver<Item>);

impl Body for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        self.0.poll_recv(cx).map(|item| {
            item.map(|item| {
                let message = item?.to_bytes();
                let mut framed = BytesMut::with_capacity(message.len() + 5);
                framed.put_u8(0);
                framed.put_u32(message.len() as u32);
                framed.put_slice(&message);
                Ok(http_body::Frame::data(framed.freeze()))
            })
        })
    }
}

/// A connection that there is.
#[derive(Clone, Debug)]
struct Connection {
    id: u64,
    of: Issuer,
    process: Process,
    /// For each side, that it is over.
    client_end: CancellationToken,
    server_end: CancellationToken,
}

#[derive(Debug)]
struct Inner {
    node: Option<Arc<Node>>,
    connections: BTreeMap<u64, Connection>,
    made: u64,
    /// Until when nothing passes to or from a platform.
    still_until: BTreeMap<Issuer, Instant>,
    latency_ms_max: u64,
    random: Random,
}

/// The one network.
#[derive(Clone, Debug)]
pub struct Net {
    world: World,
    spawner: Spawner,
    inner: Arc<Mutex<Inner>>,
    /// Told when there is another node, or none.
    changed: Arc<Notify>,
}

fn reset() -> Status {
    Status::unavailable("the connection was reset")
}

impl Net {
    pub fn new(world: World, spawner: Spawner, random: Random) -> Net {
        Net {
            world,
            spawner,
            inner: Arc::new(Mutex::new(Inner {
                node: None,
                connections: BTreeMap::new(),
                made: 0,
                still_until: BTreeMap::new(),
                latency_ms_max: 5,
                random,
            })),
            changed: Arc::default(),
        }
    }

    /// The broker listens, or is gone: then its connections are, too, as its clients see a little later.
    pub fn node(&self, node: Option<Arc<Node>>) {
        self.inner.lock().node = node;
        self.changed.notify_waiters();
    }

    pub fn latency(&self, ms_max: u64) {
        self.inner.lock().latency_ms_max = ms_max;
    }

    /// Nothing passes to or from this platform for so long, and nobody is told.
    pub fn still(&self, platform: Issuer, ms: u64) {
        let until = Instant::now() + Duration::from_millis(ms);
        self.inner.lock().still_until.insert(platform, until);
    }

    /// Each side of a platform's connections sees the end, one of them later.
    pub fn cut(&self, platform: Option<Issuer>) {
        let mut inner = self.inner.lock();
        let cut: Vec<Connection> = inner
            .connections
            .values()
            .filter(|c| platform.is_none_or(|p| p == c.of))
            .cloned()
            .collect();
        for connection in cut {
            inner.connections.remove(&connection.id);
            let delays = [inner.random.below(40), inner.random.below(400)];
            let first = inner.random.one_in(2);
            let (spawner, process) = (&self.spawner, connection.process);
            spawner.spawn(process, async move {
                let ends = match first {
                    true => [connection.client_end, connection.server_end],
                    false => [connection.server_end, connection.client_end],
                };
                for (end, delay) in ends.into_iter().zip(delays) {
                    tokio::time::sleep(Duration::from_millis(delay)).await;
                    end.cancel();
                }
            });
        }
    }

    fn delay(&self) -> Duration {
        let mut inner = self.inner.lock();
        let max = inner.latency_ms_max;
        Duration::from_millis(inner.random.between(0, max))
    }

    async fn wait_while_still(&self, platform: Issuer) {
        loop {
            let until = self.inner.lock().still_until.get(&platform).copied();
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return,
            }
        }
    }

    async fn open(
        self,
        platform: Issuer,
        requests: ReceiverStream<Frame>,
        what: Call,
    ) -> Result<Streaming<Frame>, ClientError> {
        self.wait_while_still(platform).await;
        tokio::time::sleep(self.delay()).await;
        let Some(node) = self.inner.lock().node.clone() else {
            return Err(ClientError::Unreachable {
                address: "broker".to_owned(),
                why: "nobody listens".to_owned(),
            });
        };
        let connection = {
            let mut inner = self.inner.lock();
            inner.made += 1;
            let connection = Connection {
                id: inner.made,
                of: platform,
                process: self.spawner.process(),
                client_end: CancellationToken::new(),
                server_end: CancellationToken::new(),
            };
            inner.connections.insert(connection.id, connection.clone());
            connection
        };
        let (to_server, at_server) = mpsc::channel(RECEIVED_MAX);
        let (to_client, at_client) = mpsc::channel(RECEIVED_MAX);
        let input = Streaming::new_request(FrameCodec, Received(at_server), None, None);
        let watch = Watch::new(self.world.clone(), platform, what);
        let output = node.serve(platform, what, input);
        let label = format!("{} {platform} c{}", what.name(), connection.id);
        let (up, down) = (watch.clone(), watch);
        let upward = Pipe {
            net: self.clone(),
            label: format!("{label} >"),
            platform,
            end: connection.server_end.clone(),
            output: to_server,
        };
        let downward = Pipe {
            net: self.clone(),
            label: format!("{label} <"),
            platform,
            end: connection.client_end.clone(),
            output: to_client,
        };
        let requests = requests.map(Ok);
        self.spawner.spawn(
            connection.process,
            upward.run(requests, |_| {}, move |f| up.received(f)),
        );
        let sent = down.clone();
        self.spawner.spawn(
            connection.process,
            downward.run(output, move |f| sent.sent(f), |_| {}),
        );
        Ok(Streaming::new_response(
            FrameCodec,
            Received(at_client),
            tonic::codegen::http::StatusCode::OK,
            None,
            None,
        ))
    }
}

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Publish,
    Subscribe,
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Call::Publish => "publish",
            Call::Subscribe => "subscribe",
        }
    }
}

impl Dial for Net {
    fn publish(&self, endpoint: &Endpoint, requests: ReceiverStream<Frame>) -> Opening {
        Box::pin(
            self.clone()
                .open(platform(endpoint), requests, Call::Publish),
        )
    }

    fn subscribe(&self, endpoint: &Endpoint, requests: ReceiverStream<Frame>) -> Opening {
        Box::pin(
            self.clone()
                .open(platform(endpoint), requests, Call::Subscribe),
        )
    }
}

fn platform(endpoint: &Endpoint) -> Issuer {
    match &endpoint.identity {
        Identity::Platform(issuer) => *issuer,
        other => panic!("only platforms are simulated, not {other}"),
    }
}

/// One direction of a connection.
struct Pipe {
    net: Net,
    label: String,
    platform: Issuer,
    /// The receiver sees the end.
    end: CancellationToken,
    output: mpsc::Sender<Item>,
}

impl Pipe {
    async fn run(
        self,
        mut input: impl Stream<Item = Item> + Unpin,
        on_sent: impl Fn(&Frame) + Send,
        on_received: impl Fn(&Frame) + Send,
    ) {
        let mut under_way: VecDeque<(Instant, Item)> = VecDeque::new();
        let mut open = true;
        let mut last = Instant::now();
        while open || !under_way.is_empty() {
            let first = under_way.front().map(|(at, _)| *at);
            tokio::select! {
                biased;
                () = self.end.cancelled() => break,
                () = tokio::time::sleep_until(first.unwrap_or(last)), if first.is_some() => {
                    self.net.wait_while_still(self.platform).await;
                    let Some((_, item)) = under_way.pop_front() else { continue };
                    self.trace(&item);
                    if let Ok(frame) = &item {
                        on_received(frame);
                    }
                    tokio::select! {
                        biased;
                        () = self.end.cancelled() => break,
                        sent = self.output.send(item) => if sent.is_err() { return },
                    }
                }
                item = input.next(), if open && under_way.len() < UNDER_WAY_MAX => match item {
                    Some(item) => {
                        if let Ok(frame) = &item {
                            on_sent(frame);
                        }
                        last = last.max(Instant::now() + self.net.delay());
                        under_way.push_back((last, item));
                    }
                    None => open = false,
                },
                () = self.output.closed() => return,
            }
        }
        if self.end.is_cancelled() {
            self.net.world.trace(|| format!("{} cut", self.label));
            // Nobody may be there to see it.
            self.output.send(Err(reset())).await.ok();
        }
    }

    fn trace(&self, item: &Item) {
        self.net.world.trace(|| match item {
            Ok(frame) => format!("{} {}", self.label, digest(&frame.to_bytes())),
            Err(status) => format!("{} {}", self.label, status.message()),
        });
    }
}
