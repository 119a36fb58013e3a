//! The network. Messages take their time and stay in order within a connection, as its protocol promises.
//!
//! A connection can stand still, in one direction or both; be cut, which one side may learn long after
//! the other; or lose what is under way, until it is cut. Connections are of different speed, so that what
//! was sent on an old one arrives beside, or after, what goes on a new one.

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
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
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
/// Of a slow connection, beside the latency of all.
const SLOW_MS_MAX: u64 = 600;
/// How much later than the other a side may learn that its connection is cut.
const HALF_OPEN_MS_MAX: u64 = 20_000;

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

/// From a client, or to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Up,
    Down,
}

impl Direction {
    pub const BOTH: &'static [Direction] = &[Direction::Up, Direction::Down];
}

/// What becomes of the messages of one direction.
#[derive(Debug, Default)]
struct Fate {
    /// Nothing more is taken, also not its end: the sender does not know yet that it is cut.
    closed: AtomicBool,
    /// Nothing arrives.
    lost: AtomicBool,
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
    up: Arc<Fate>,
    down: Arc<Fate>,
    /// How much slower than others it is.
    slow_ms: u64,
}

impl Connection {
    fn fate(&self, direction: Direction) -> &Arc<Fate> {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }
}

#[derive(Debug)]
struct Inner {
    node: Option<Arc<Node>>,
    connections: BTreeMap<u64, Connection>,
    made: u64,
    /// Until when nothing passes to or from a platform.
    still_until: BTreeMap<(Issuer, Direction), Instant>,
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
    pub fn still(&self, platform: Issuer, directions: &[Direction], ms: u64) {
        let until = Instant::now() + Duration::from_millis(ms);
        for direction in directions {
            let mut inner = self.inner.lock();
            inner.still_until.insert((platform, *direction), until);
        }
    }

    /// What is under way on a platform's connections, and what follows, never arrives; after a while the
    /// connections are found dead.
    pub fn lose(&self, platform: Issuer, directions: &[Direction], found_dead_ms: u64) {
        let connections = self.connections(Some(platform));
        for connection in &connections {
            for direction in directions {
                let fate = connection.fate(*direction);
                fate.lost.store(true, Ordering::Relaxed);
            }
        }
        let net = self.clone();
        self.spawner.spawn(self.spawner.process(), async move {
            tokio::time::sleep(Duration::from_millis(found_dead_ms)).await;
            net.cut_these(connections);
        });
    }

    fn connections(&self, platform: Option<Issuer>) -> Vec<Connection> {
        let inner = self.inner.lock();
        let connections = inner.connections.values();
        connections
            .filter(|c| platform.is_none_or(|p| p == c.of))
            .cloned()
            .collect()
    }

    /// Each side of a platform's connections sees the end, one of them later.
    pub fn cut(&self, platform: Option<Issuer>) {
        let cut = self.connections(platform);
        self.cut_these(cut);
    }

    fn cut_these(&self, cut: Vec<Connection>) {
        let mut inner = self.inner.lock();
        for connection in cut {
            // It may have been cut in the meantime.
            if inner.connections.remove(&connection.id).is_none() {
                continue;
            }
            for direction in Direction::BOTH {
                let fate = connection.fate(*direction);
                fate.closed.store(true, Ordering::Relaxed);
            }
            let later = match inner.random.one_in(4) {
                true => HALF_OPEN_MS_MAX,
                false => 400,
            };
            let delays = [inner.random.below(40), inner.random.below(later)];
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

    fn delay(&self, slow_ms: u64) -> Duration {
        let mut inner = self.inner.lock();
        let max = match self.world.healed() {
            true => inner.latency_ms_max,
            false => inner.latency_ms_max + slow_ms,
        };
        Duration::from_millis(inner.random.between(0, max))
    }

    async fn wait_while_still(&self, platform: Issuer, direction: Direction) {
        let place = (platform, direction);
        loop {
            let until = self.inner.lock().still_until.get(&place).copied();
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return,
            }
        }
    }

    fn connection(&self, platform: Issuer) -> Connection {
        let mut inner = self.inner.lock();
        inner.made += 1;
        let slow_ms = match inner.random.one_in(4) {
            true => inner.random.between(0, SLOW_MS_MAX),
            false => 0,
        };
        let connection = Connection {
            id: inner.made,
            of: platform,
            process: self.spawner.process(),
            client_end: CancellationToken::new(),
            server_end: CancellationToken::new(),
            up: Arc::default(),
            down: Arc::default(),
            slow_ms,
        };
        inner.connections.insert(connection.id, connection.clone());
        connection
    }

    async fn open(
        self,
        platform: Issuer,
        requests: ReceiverStream<Frame>,
        what: Call,
    ) -> Result<Streaming<Frame>, ClientError> {
        for direction in Direction::BOTH {
            self.wait_while_still(platform, *direction).await;
        }
        tokio::time::sleep(self.delay(0)).await;
        let Some(node) = self.inner.lock().node.clone() else {
            return Err(ClientError::Unreachable {
                address: "broker".to_owned(),
                why: "nobody listens".to_owned(),
            });
        };
        let connection = self.connection(platform);
        let (to_server, at_server) = mpsc::channel(RECEIVED_MAX);
        let (to_client, at_client) = mpsc::channel(RECEIVED_MAX);
        let input = Streaming::new_request(FrameCodec, Received(at_server), None, None);
        let watch = Watch::new(self.world.clone(), platform, what);
        let output = node.serve(platform, what, input);
        let label = format!("{} {platform} c{}", what.name(), connection.id);
        let (up, down) = (watch.clone(), watch);
        let pipe = |sign, direction, end: &CancellationToken, output| Pipe {
            net: self.clone(),
            label: format!("{label} {sign}"),
            platform,
            direction,
            slow_ms: connection.slow_ms,
            fate: Arc::clone(connection.fate(direction)),
            end: end.clone(),
            output,
        };
        let upward = pipe('>', Direction::Up, &connection.server_end, to_server);
        let downward = pipe('<', Direction::Down, &connection.client_end, to_client);
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
    direction: Direction,
    slow_ms: u64,
    fate: Arc<Fate>,
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
        while open || !under_way.is_empty() || self.is_cut() {
            let first = under_way.front().map(|(at, _)| *at);
            tokio::select! {
                biased;
                () = self.end.cancelled() => break,
                () = tokio::time::sleep_until(first.unwrap_or(last)), if first.is_some() => {
                    self.net.wait_while_still(self.platform, self.direction).await;
                    let Some((_, item)) = under_way.pop_front() else { continue };
                    if self.fate.lost.load(Ordering::Relaxed) {
                        self.net.world.trace(|| format!("{} lost", self.label));
                        continue;
                    }
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
                    Some(_) if self.fate.closed.load(Ordering::Relaxed) => {
                        self.net.world.trace(|| format!("{} sent in vain", self.label));
                    }
                    Some(item) => {
                        if let Ok(frame) = &item {
                            on_sent(frame);
                        }
                        last = last.max(Instant::now() + self.net.delay(self.slow_ms));
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

    /// Then its receiver sees no proper end, but finds out later.
    fn is_cut(&self) -> bool {
        let fate = &self.fate;
        fate.closed.load(Ordering::Relaxed) || fate.lost.load(Ordering::Relaxed)
    }

    fn trace(&self, item: &Item) {
        self.net.world.trace(|| match item {
            Ok(frame) => format!("{} {}", self.label, digest(&frame.to_bytes())),
            Err(status) => format!("{} {}", self.label, status.message()),
        });
    }
}
