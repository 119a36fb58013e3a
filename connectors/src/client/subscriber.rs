//! Subscribing: a stream that goes on at its cursor when the line breaks.

mod read;

use crate::client::{Backoff, ClientError, Delivered, Dialer, Endpoint, LastError};
use bytes::Bytes;
use hutong_proto::{
    Cursor, Issuer, Kind, Lane, LogId, Micros, Offset, api,
    api::{subscribe_open, subscribe_request},
    frame::Frame,
    limits, wire,
};
use prost::Message;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Requests that wait for the connection.
const OUT_MESSAGES_MAX: usize = 64;
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Bookmarks come at least every second; ten missing ones are a line that is down.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Beyond this a clock cannot count.
const SILENCE_FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// With what a bookmark begins: its field in a `SubscribeResponse`.
const BOOKMARK_TAG: u8 = (6 << 3) | wire::LEN;

/// What to receive. Empty lists mean: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub kinds: Vec<Kind>,
    pub issuers: Vec<Issuer>,
    pub lanes: Vec<Lane>,
    /// Also what this platform itself issued.
    pub include_own: bool,
}

impl Filter {
    fn to_api(&self) -> api::Filter {
        api::Filter {
            kinds: self.kinds.iter().map(|k| k.to_api().into()).collect(),
            issuers: self.issuers.iter().map(|i| i.code()).collect(),
            lanes: self.lanes.iter().map(|l| l.to_api().into()).collect(),
            include_own: self.include_own,
        }
    }
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the cursor that the broker has stored; with a snapshot when it has none.
    Stored,
    Cursor(Cursor),
    Snapshot,
    Now,
}

impl Start {
    fn to_api(self) -> subscribe_open::Start {
        match self {
            Start::Stored => subscribe_open::Start::Stored(api::StartStored {}),
            Start::Cursor(cursor) => subscribe_open::Start::Cursor(cursor.to_api()),
            Start::Snapshot => subscribe_open::Start::Snapshot(api::StartSnapshot {}),
            Start::Now => subscribe_open::Start::Now(api::StartNow {}),
        }
    }
}

/// How to subscribe.
#[derive(Clone, Debug)]
pub struct SubscriberOptions {
    pub endpoint: Endpoint,
    /// The name of the subscription within its platform; one stream at a time has it.
    pub subscription: String,
    pub filter: Filter,
    pub start: Start,
    /// Bytes that may be under way; 0 for the broker's default.
    pub credit_bytes: u64,
    /// Takes records packed, which the broker does once for all; plain ones are several times larger.
    pub lz4: bool,
    pub backoff: Backoff,
    /// A stream that is silent for this long counts as broken.
    pub silence_max: Duration,
    /// Says why it cannot connect, while it tries.
    pub last_error: LastError,
    pub dialer: Dialer,
}

impl SubscriberOptions {
    pub fn new(endpoint: Endpoint, subscription: impl Into<String>) -> SubscriberOptions {
        SubscriberOptions {
            endpoint,
            subscription: subscription.into(),
            filter: Filter::default(),
            start: Start::Stored,
            credit_bytes: 0,
            lz4: true,
            backoff: Backoff::default(),
            silence_max: SILENCE_MAX,
            last_error: LastError::default(),
            dialer: Dialer::default(),
        }
    }
}

/// Credit is given back after so much at the latest: what the broker thinks to be under way holds bulk up
/// while urgent records come.
const CREDIT_STEP_BYTES_MAX: u64 = limits::BULK_UNDER_WAY_BESIDE_URGENT_BYTES as u64 / 4;

/// What comes out of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Rows of a snapshot follow. After a broken line it comes again: start over.
    SnapshotBegin {
        rows_estimate: u64,
    },
    Rows(Vec<Delivered>),
    /// The rows are all values as of this cursor.
    SnapshotEnd {
        cursor: Cursor,
        rows: u64,
    },
    /// `cursor`: after these.
    Records {
        deltas: Vec<Delivered>,
        cursor: Cursor,
    },
    /// Everything below the cursor has come.
    Bookmark {
        cursor: Cursor,
        sent_at: Micros,
    },
}

/// How far behind the newest thing seen is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lag {
    pub seconds: f64,
}

/// An open stream.
#[derive(Debug)]
struct Stream {
    out: mpsc::Sender<Frame>,
    input: Streaming<Frame>,
    /// Taken but not given back as credit.
    consumed: u64,
    /// When it counts as broken; set when someone begins to wait for a message.
    silent_at: Option<Instant>,
}

/// A stream and its first message.
type Opening = Result<(Stream, Bytes), ClientError>;

/// A stream on its way up. It stays when whoever waits for it stops, and goes on with the next one who
/// does; the calls below it have tasks of the transport's own.
struct Attempt(Pin<Box<dyn Future<Output = Opening> + Send>>);

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Line {
    /// Connects again, not before this.
    Down {
        until: Instant,
    },
    Connecting(Attempt),
    Up(Box<Stream>),
}

#[derive(Debug)]
pub struct Subscriber {
    options: SubscriberOptions,
    line: Line,
    /// After the last event given out; unknown until the first one with a cursor, and in a snapshot.
    cursor: Option<Cursor>,
    /// Applied, but the broker was not told yet.
    unsaid: Option<Cursor>,
    seen_at: Micros,
    reconnects: u64,
    tries: u32,
}

impl Subscriber {
    /// Opens the stream. What can pass is tried again until it does; what cannot is the error.
    pub async fn open(options: SubscriberOptions) -> Result<Subscriber, ClientError> {
        let mut subscriber = Subscriber {
            options,
            line: Line::Down {
                until: Instant::now(),
            },
            cursor: None,
            unsaid: None,
            seen_at: Micros::ZERO,
            reconnects: 0,
            tries: 0,
        };
        while let Err(error) = subscriber.connect().await {
            subscriber.lost(error)?;
        }
        Ok(subscriber)
    }

    /// The next event. Hides broken lines: the stream goes on where it was. Cancel-safe: an event is
    /// either returned or comes with the next call, and what was waited for is not begun anew.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            match self.step().await {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(error) => self.lost(error)?,
            }
        }
    }

    /// The next message as bytes, for receivers that read it themselves. Gives credit back, but does
    /// not connect again and does not move the cursor.
    pub async fn next_frame(&mut self) -> Result<Bytes, ClientError> {
        self.receive().await
    }

    /// Tells the broker that everything below the cursor is applied durably: at once, or, when that
    /// cannot be, with what comes next. Only the newest counts.
    pub async fn applied(&mut self, cursor: Cursor) -> Result<(), ClientError> {
        self.unsaid = Some(cursor);
        self.say_applied();
        Ok(())
    }

    /// After the last event given out.
    pub fn cursor(&self) -> Cursor {
        self.cursor
            .unwrap_or_else(|| Cursor::both(LogId(0), Offset::NONE))
    }

    /// Time since the broker wrote or sent the newest thing seen.
    pub fn lag(&self) -> Lag {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = Micros(since.as_micros() as u64);
        let seconds = match self.seen_at {
            Micros::ZERO => 0.0,
            at => now.seconds_since(at),
        };
        Lag { seconds }
    }

    pub fn reconnects(&self) -> u64 {
        self.reconnects
    }

    /// One message.
    async fn step(&mut self) -> Result<Option<Event>, ClientError> {
        self.connect().await?;
        let frame = self.receive().await?;
        self.event(&frame)
    }

    /// The line is down; when it should come up again, if it can.
    fn lost(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.options.last_error.set(&error);
        if matches!(self.line, Line::Up(_)) {
            self.reconnects += 1;
        }
        let mut until = Instant::now();
        if error.is_passing() {
            until += self.options.backoff.wait(self.tries);
            self.tries = self.tries.saturating_add(1);
        }
        self.line = Line::Down { until };
        if !error.is_passing() {
            return Err(error);
        }
        tracing::debug!(subscription = self.options.subscription, %error, "connecting again");
        Ok(())
    }

    /// Brings the line up. Cancel-safe: goes on where it was.
    async fn connect(&mut self) -> Result<(), ClientError> {
        loop {
            match &mut self.line {
                Line::Up(_) => return Ok(()),
                Line::Down { until } => {
                    tokio::time::sleep_until(*until).await;
                    self.line = Line::Connecting(Attempt(Box::pin(self.opening())));
                }
                Line::Connecting(attempt) => {
                    let opened = attempt.0.as_mut().await;
                    self.line = Line::Down {
                        until: Instant::now(),
                    };
                    let (stream, first) = opened?;
                    self.opened(&first)?;
                    self.line = Line::Up(Box::new(stream));
                }
            }
        }
    }

    /// Opens a stream and waits for its first message: the broker accepts every call, and whether it
    /// opens shows there.
    fn opening(&self) -> impl Future<Output = Opening> + Send + use<> {
        let start = match self.cursor {
            Some(cursor) => Start::Cursor(cursor),
            None => self.options.start,
        };
        let open = api::SubscribeOpen {
            subscription: self.options.subscription.clone(),
            filter: Some(self.options.filter.to_api()),
            start: Some(start.to_api()),
            credit_bytes: self.options.credit_bytes,
            compressions: match self.options.lz4 {
                true => vec![api::Compression::Lz4.into()],
                false => Vec::new(),
            },
        };
        let (out, frames) = mpsc::channel(OUT_MESSAGES_MAX);
        let dialer = &self.options.dialer.0;
        let call = dialer.subscribe(&self.options.endpoint, ReceiverStream::new(frames));
        let address = self.options.endpoint.address.clone();
        let silence = self.options.silence_max;
        async move {
            // Never full: it is the first message.
            drop(
                out.send(request(subscribe_request::Message::Open(open)))
                    .await,
            );
            let opening = tokio::time::timeout(OPEN_TIMEOUT, call);
            let input = opening.await.map_err(|_| ClientError::Unreachable {
                address,
                why: format!("no answer for {} s", OPEN_TIMEOUT.as_secs()),
            })??;
            let mut stream = Stream {
                out,
                input,
                consumed: 0,
                silent_at: None,
            };
            let first = stream.message(silence).await?;
            Ok((stream, first))
        }
    }

    async fn receive(&mut self) -> Result<Bytes, ClientError> {
        let Line::Up(stream) = &mut self.line else {
            return Err(ClientError::Broken("not connected".to_owned()));
        };
        let frame = stream.message(self.options.silence_max).await?;
        // Not when a stream opens: one that opens and fails each time must not be asked at once.
        self.tries = 0;
        // The broker does not count bookmarks either.
        if frame.first() != Some(&BOOKMARK_TAG) {
            stream.consumed += frame.len() as u64;
        }
        let window = match self.options.credit_bytes {
            0 => limits::SUBSCRIBE_CREDIT_BYTES_DEFAULT,
            bytes => bytes,
        };
        if stream.consumed >= (window / 8).min(CREDIT_STEP_BYTES_MAX) && stream.consumed > 0 {
            let bytes = stream.consumed;
            let credit = api::SubscribeCredit { bytes };
            if stream.say(subscribe_request::Message::Credit(credit)) {
                stream.consumed = 0;
            }
        }
        self.say_applied();
        Ok(frame)
    }

    fn say_applied(&mut self) {
        if let (Line::Up(stream), Some(cursor)) = (&self.line, self.unsaid) {
            let applied = api::SubscribeApplied {
                cursor: Some(cursor.to_api()),
            };
            if stream.say(subscribe_request::Message::Applied(applied)) {
                self.unsaid = None;
            }
        }
    }
}

impl Stream {
    /// The next message. Cancel-safe: silence counts on over calls that were given up, but not while
    /// nobody waits.
    async fn message(&mut self, silence: Duration) -> Result<Bytes, ClientError> {
        let silent_at = *self
            .silent_at
            .get_or_insert_with(|| Instant::now() + silence.min(SILENCE_FOREVER));
        let frame = tokio::time::timeout_at(silent_at, self.input.message())
            .await
            .map_err(|_| ClientError::Silent {
                seconds: silence.as_secs(),
            })??
            .ok_or_else(|| ClientError::Broken("the broker ended the stream".to_owned()))?;
        self.silent_at = None;
        Ok(frame.0)
    }

    /// Sends if there is room; says whether it did. Nothing here must wait: whoever waits to speak
    /// does not listen.
    fn say(&self, message: subscribe_request::Message) -> bool {
        self.out.try_send(request(message)).is_ok()
    }
}

fn request(message: subscribe_request::Message) -> Frame {
    let request = api::SubscribeRequest {
        message: Some(message),
    };
    Frame::new(request.encode_to_vec().into())
}
