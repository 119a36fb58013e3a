//! A TCP proxy between the clients and the broker, which breaks lines without root: it holds bytes,
//! delays them, lets few through, or cuts connections. Every client has a line of its own, so a fault
//! can hit some and not others. Nothing is ever dropped from the middle of a connection: TCP would
//! send it again, so to the ends a loss looks like a stall.

mod pump;

use crate::{drill::Clients, error::ChaosError};
use pump::Pump;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

/// What the broker may send before we take it.
const WINDOW_BYTES: u32 = 128 << 10;

/// What happens to bytes that go one way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rule {
    /// Nothing gets through.
    pub held: bool,
    /// Nothing is even read: the sender's window closes.
    pub unread: bool,
    pub delay: Duration,
    pub jitter: Duration,
    /// Of segments, as a share; each stalls the line for as long as a retransmission takes.
    pub loss: f64,
    pub bytes_per_s: Option<u64>,
}

impl Rule {
    /// Both at one time: the bytes pass one after the other.
    #[must_use]
    fn and(self, other: Rule) -> Rule {
        let narrower = match (self.bytes_per_s, other.bytes_per_s) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Rule {
            held: self.held || other.held,
            unread: self.unread || other.unread,
            delay: self.delay + other.delay,
            jitter: self.jitter + other.jitter,
            loss: 1.0 - (1.0 - self.loss) * (1.0 - other.loss),
            bytes_per_s: narrower,
        }
    }
}

/// Rules of one fault on a line; given back to take them away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling(u64);

/// The rules of all faults that are there: to the broker, and from it.
#[derive(Debug, Default)]
struct Rules {
    next: u64,
    all: Vec<(Ruling, Rule, Rule)>,
}

/// What a line did since it was made.
#[derive(Debug, Default)]
pub struct Counters {
    pub connections: AtomicU64,
    pub refused: AtomicU64,
    pub cut: AtomicU64,
    pub bytes: AtomicU64,
    /// Of these, those that went to the broker.
    pub to_broker_bytes: AtomicU64,
    pub held_bytes: AtomicU64,
    pub delayed_chunks: AtomicU64,
    pub delayed_us: AtomicU64,
    pub stalls: AtomicU64,
    /// Segments that could have been lost.
    pub segments: AtomicU64,
    /// Of bytes that had to wait for bytes before them, because few get through.
    pub throttled_us: AtomicU64,
}

/// The same at one moment, over some lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub connections: u64,
    pub refused: u64,
    pub cut: u64,
    pub bytes: u64,
    pub held_bytes: u64,
    pub delayed_chunks: u64,
    pub delayed_us: u64,
    pub stalls: u64,
    pub segments: u64,
    pub throttled_us: u64,
}

impl Counters {
    fn add(&self, counter: fn(&Counters) -> &AtomicU64, n: u64) {
        counter(self).fetch_add(n, Ordering::AcqRel);
    }

    fn read(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        Counts {
            connections: of(&self.connections),
            refused: of(&self.refused),
            cut: of(&self.cut),
            bytes: of(&self.bytes),
            held_bytes: of(&self.held_bytes),
            delayed_chunks: of(&self.delayed_chunks),
            delayed_us: of(&self.delayed_us),
            stalls: of(&self.stalls),
            segments: of(&self.segments),
            throttled_us: of(&self.throttled_us),
        }
    }
}

impl Counts {
    #[must_use]
    fn plus(self, other: Counts) -> Counts {
        Counts {
            connections: self.connections + other.connections,
            refused: self.refused + other.refused,
            cut: self.cut + other.cut,
            bytes: self.bytes + other.bytes,
            held_bytes: self.held_bytes + other.held_bytes,
            delayed_chunks: self.delayed_chunks + other.delayed_chunks,
            delayed_us: self.delayed_us + other.delayed_us,
            stalls: self.stalls + other.stalls,
            segments: self.segments + other.segments,
            throttled_us: self.throttled_us + other.throttled_us,
        }
    }

    #[must_use]
    pub fn since(self, before: Counts) -> Counts {
        Counts {
            connections: self.connections - before.connections,
            refused: self.refused - before.refused,
            cut: self.cut - before.cut,
            bytes: self.bytes - before.bytes,
            held_bytes: self.held_bytes - before.held_bytes,
            delayed_chunks: self.delayed_chunks - before.delayed_chunks,
            delayed_us: self.delayed_us - before.delayed_us,
            stalls: self.stalls - before.stalls,
            segments: self.segments - before.segments,
            throttled_us: self.throttled_us - before.throttled_us,
        }
    }
}

/// What the tasks of a line share.
#[derive(Debug)]
struct Shared {
    to_broker: watch::Sender<Rule>,
    from_broker: watch::Sender<Rule>,
    rules: Mutex<Rules>,
    /// Connections older than this number of cuts are cut.
    cuts: watch::Sender<u64>,
    /// How many want a connection that comes to be closed at once.
    closed: AtomicUsize,
    counters: Counters,
    /// Our ends of the connections to the broker that are open.
    upstream: Mutex<Vec<SocketAddr>>,
    broker: watch::Receiver<SocketAddr>,
}

/// A listening address for one client.
#[derive(Debug)]
pub struct Line {
    pub clients: Clients,
    address: SocketAddr,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl Line {
    /// Listens on a free port of `ip`; connections go on to where the broker is by then.
    pub async fn open(
        ip: std::net::IpAddr,
        clients: Clients,
        broker: watch::Receiver<SocketAddr>,
    ) -> Result<Line, ChaosError> {
        let listener = TcpListener::bind((ip, 0))
            .await
            .map_err(ChaosError::stage("the proxy cannot listen"))?;
        let address = listener
            .local_addr()
            .map_err(ChaosError::stage("the proxy cannot listen"))?;
        let shared = Arc::new(Shared {
            to_broker: watch::Sender::new(Rule::default()),
            from_broker: watch::Sender::new(Rule::default()),
            rules: Mutex::default(),
            cuts: watch::Sender::new(0),
            closed: AtomicUsize::new(0),
            counters: Counters::default(),
            upstream: Mutex::default(),
            broker,
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Line {
            clients,
            address,
            shared,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// For a client, in place of the broker's.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds rules to those that are there, until they are taken away.
    #[must_use]
    pub fn add(&self, to_broker: Rule, from_broker: Rule) -> Ruling {
        let mut rules = lock(&self.shared.rules);
        let ruling = Ruling(rules.next);
        rules.next += 1;
        rules.all.push((ruling, to_broker, from_broker));
        self.apply(&rules);
        ruling
    }

    /// All others stay. Twice is as good as once.
    pub fn take_away(&self, ruling: Ruling) {
        let mut rules = lock(&self.shared.rules);
        rules.all.retain(|(of, ..)| *of != ruling);
        self.apply(&rules);
    }

    /// Under the lock, so that the last word is that of the last change.
    fn apply(&self, rules: &Rules) {
        let of = |way: fn(&(Ruling, Rule, Rule)) -> Rule| {
            rules.all.iter().map(way).fold(Rule::default(), Rule::and)
        };
        self.shared.to_broker.send_replace(of(|rule| rule.1));
        self.shared.from_broker.send_replace(of(|rule| rule.2));
    }

    /// Ends all connections, and those that come as well, until each that did so has opened it again.
    pub fn close(&self) {
        self.shared.closed.fetch_add(1, Ordering::AcqRel);
        self.shared.cuts.send_modify(|n| *n += 1);
    }

    pub fn open_again(&self) {
        self.shared.closed.fetch_sub(1, Ordering::AcqRel);
    }

    /// Counts on while the line is there.
    pub fn carried(&self) -> Carried {
        Carried(Arc::clone(&self.shared))
    }

    pub fn counts(&self) -> Counts {
        self.shared.counters.read()
    }

    /// Our ends of the open connections to the broker.
    pub fn upstream(&self) -> Vec<SocketAddr> {
        lock(&self.shared.upstream).clone()
    }
}

/// What a line has handed to the broker's kernel, for who does not have the line.
#[derive(Clone, Debug)]
pub struct Carried(Arc<Shared>);

impl Carried {
    pub fn bytes(&self) -> u64 {
        self.0.counters.to_broker_bytes.load(Ordering::Acquire)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A list is whole after every call, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of all these lines together.
pub fn counts<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Counts {
    lines
        .into_iter()
        .fold(Counts::default(), |sum, line| sum.plus(line.counts()))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Cancel-safe, as both say.
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                if shared.closed.load(Ordering::Acquire) > 0 {
                    shared.counters.add(|c| &c.refused, 1);
                    continue;
                }
                shared.counters.add(|c| &c.connections, 1);
                connections.spawn(connection(client, Arc::clone(&shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// With a window of its own size: the kernel's would grow to megabytes, and hide a slow line as well.
async fn dial(broker: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = match broker {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_recv_buffer_size(WINDOW_BYTES)?;
    socket.connect(broker).await
}

/// Our end of a connection to the broker is on the list while this lives.
struct Listed<'a>(&'a Shared, SocketAddr);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        lock(&self.0.upstream).retain(|address| *address != self.1);
    }
}

async fn connection(client: TcpStream, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    let born = *cuts.borrow_and_update();
    let broker = *shared.broker.borrow();
    let carried = async {
        // A line that is held answers nothing, not even that nobody listens.
        let mut rule = shared.to_broker.subscribe();
        if rule.wait_for(|rule| !rule.held).await.is_err() {
            return;
        }
        // Nobody listens: closing the client's connection tells it so.
        let Ok(upstream) = dial(broker).await else {
            shared.counters.add(|c| &c.refused, 1);
            return;
        };
        let Ok(own) = upstream.local_addr() else {
            return;
        };
        lock(&shared.upstream).push(own);
        let _listed = Listed(&shared, own);
        // Only makes it slower when it fails.
        drop(client.set_nodelay(true));
        drop(upstream.set_nodelay(true));
        let (client_in, client_out) = client.into_split();
        let (broker_in, broker_out) = upstream.into_split();
        let up = Pump::new(
            shared.to_broker.subscribe(),
            &shared.counters,
            true,
            own.port(),
        );
        let down = Pump::new(
            shared.from_broker.subscribe(),
            &shared.counters,
            false,
            !own.port(),
        );
        // When one way ends the other is of no use: gRPC needs both.
        tokio::select! {
            () = up.run(client_in, broker_out) => {}
            () = down.run(broker_in, client_out) => {}
        }
    };
    tokio::select! {
        () = carried => {}
        _ = cuts.wait_for(|n| *n != born) => shared.counters.add(|c| &c.cut, 1),
    }
}

#[cfg(test)]
mod tests;
