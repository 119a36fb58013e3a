//! A line that can be cut: forwards TCP connections to a broker, until the test says otherwise.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Listens on a port of its own, which it keeps while it is down.
pub struct Line {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    target: SocketAddr,
    /// Ends the connections there are.
    cut: Mutex<CancellationToken>,
    connections: AtomicUsize,
    /// Bytes to the client until the line cuts itself.
    until_cut: AtomicI64,
}

impl Line {
    pub async fn to(target: SocketAddr) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut line = Line {
            addr: listener.local_addr().expect("bound"),
            shared: Arc::new(Shared {
                target,
                cut: Mutex::default(),
                connections: AtomicUsize::new(0),
                until_cut: AtomicI64::new(i64::MAX),
            }),
            listener: None,
        };
        line.listener = Some(tokio::spawn(accept(listener, Arc::clone(&line.shared))));
        line
    }

    /// Resets the connections there are; new ones are taken.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// The same, in the middle of whatever stands there, after so many bytes to the client.
    pub fn cut_after(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).expect("few");
        self.shared.until_cut.store(bytes, Ordering::SeqCst);
    }

    /// Whether a cut that was asked for has not come yet.
    pub fn cut_is_due(&self) -> bool {
        self.shared.until_cut.load(Ordering::SeqCst) != i64::MAX
    }

    /// Resets the connections and refuses new ones.
    pub async fn down(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
            // It was told to end; nothing else is to be learned here.
            drop(listener.await);
        }
        self.cut();
    }

    /// On the same port as before.
    pub async fn up(&mut self) {
        let listener = TcpListener::bind(self.addr).await.expect("our port");
        self.listener = Some(tokio::spawn(accept(listener, Arc::clone(&self.shared))));
    }

    /// How many were taken so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
        self.cut();
    }
}

impl Shared {
    fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().expect("nobody panics")).cancel();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let cut = shared.cut.lock().expect("nobody panics").clone();
        tokio::spawn(forward(client, Arc::clone(&shared), cut));
    }
}

async fn forward(mut client: TcpStream, shared: Arc<Shared>, cut: CancellationToken) {
    let Ok(mut server) = TcpStream::connect(shared.target).await else {
        return;
    };
    for stream in [&client, &server] {
        // So that a cut is a reset and not an orderly end.
        stream.set_zero_linger().expect("a socket");
        stream.set_nodelay(true).expect("a socket");
    }
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    tokio::select! {
        () = cut.cancelled() => {}
        () = copy(&mut from_client, &mut to_server, None) => {}
        () = copy(&mut from_server, &mut to_client, Some(&shared)) => {}
    }
}

/// Until one end is gone, or the line cuts itself.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    shared: Option<&Shared>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut len = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(len) => len,
        };
        let mut cut = None;
        if let Some(shared) = shared
            && shared.until_cut.load(Ordering::SeqCst) != i64::MAX
        {
            let left = shared.until_cut.fetch_sub(len as i64, Ordering::SeqCst);
            if left < len as i64 {
                len = usize::try_from(left).unwrap_or(0);
                cut = Some(shared);
            }
        }
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
        if let Some(shared) = cut {
            shared.until_cut.store(i64::MAX, Ordering::SeqCst);
            shared.cut();
            return;
        }
    }
}
