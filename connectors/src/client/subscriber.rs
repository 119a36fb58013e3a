//! Subscribing: a stream that goes on at its cursor when the line breaks.

mod read;

use crate::client::{Backoff, ClientError, Delivered, Endpoint};
use bytes::Bytes;
use hutong_proto::{
    Cursor, Issuer, Kind, Lane, LogId, Micros, Offset, api,
    api::{
        stream::subscribe_service_client::SubscribeServiceClient, subscribe_open, subscribe_request,
    },
    frame::Frame,
    limits,
};
use prost::Message;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Requests that wait for the connection.
const OUT_MESSAGES_MAX: usize = 64;
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Bookmarks come at least every second; ten missing ones are a line that is down.
const SILENCE_MAX: Duration = Duration::from_secs(10);

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
    pub backoff: Backoff,
    /// A stream that is silent for this long counts as broken.
    pub silence_max: Duration,
}

impl SubscriberOptions {
    pub fn new(endpoint: Endpoint, subscription: impl Into<String>) -> SubscriberOptions {
        SubscriberOptions {
            endpoint,
            subscription: subscription.into(),
            filter: Filter::default(),
            start: Start::Stored,
            credit_bytes: 0,
            backoff: Backoff::default(),
            silence_max: SILENCE_MAX,
        }
    }
}

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
}

#[derive(Debug)]
pub struct Subscriber {
    options: SubscriberOptions,
    stream: Option<Stream>,
    /// After the last event given out; unknown until the first one with a cursor.
    cursor: Option<Cursor>,
    /// Taken but not given back as credit.
    consumed: u64,
    seen_at: Micros,
    reconnects: u64,
    tries: u32,
}

impl Subscriber {
    /// Opens the stream. What can pass is tried again until it does; what cannot is the error.
    pub async fn open(options: SubscriberOptions) -> Result<Subscriber, ClientError> {
        let mut subscriber = Subscriber {
            options,
            stream: None,
            cursor: None,
            consumed: 0,
            seen_at: Micros::ZERO,
            reconnects: 0,
            tries: 0,
        };
        while subscriber.stream.is_none() {
            if let Err(error) = subscriber.connect().await {
                subscriber.wait_or_end(error).await?;
            }
        }
        Ok(subscriber)
    }

    /// The next event. Hides broken lines: the stream goes on where it was. Cancel-safe: an event is
    /// either returned or comes with the next call.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        loop {
            if self.stream.is_none()
                && let Err(error) = self.connect().await
            {
                self.wait_or_end(error).await?;
                continue;
            }
            let error = match self.receive().await {
                Ok(frame) => match self.event(&frame) {
                    Ok(Some(event)) => return Ok(event),
                    Ok(None) => continue,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            self.stream = None;
            self.wait_or_end(error).await?;
            self.reconnects += 1;
        }
    }

    /// The next message as bytes, for receivers that read it themselves. Gives credit back, but does
    /// not connect again and does not move the cursor.
    pub async fn next_frame(&mut self) -> Result<Bytes, ClientError> {
        self.receive().await
    }

    /// Tells the broker that everything below the cursor is applied durably. Only the newest counts,
    /// so one that does not fit is left out.
    pub async fn applied(&mut self, cursor: Cursor) -> Result<(), ClientError> {
        let applied = api::SubscribeApplied {
            cursor: Some(cursor.to_api()),
        };
        self.say(subscribe_request::Message::Applied(applied));
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

    async fn wait_or_end(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !error.is_passing() {
            return Err(error);
        }
        tracing::debug!(subscription = self.options.subscription, %error, "connecting again");
        tokio::time::sleep(self.options.backoff.wait(self.tries)).await;
        self.tries += 1;
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), ClientError> {
        let start = match self.cursor {
            Some(cursor) => Start::Cursor(cursor),
            None => self.options.start,
        };
        let open = api::SubscribeOpen {
            subscription: self.options.subscription.clone(),
            filter: Some(self.options.filter.to_api()),
            start: Some(start.to_api()),
            credit_bytes: self.options.credit_bytes,
        };
        let (out, frames) = mpsc::channel(OUT_MESSAGES_MAX);
        // Never full: it is the first message.
        drop(
            out.send(request(subscribe_request::Message::Open(open)))
                .await,
        );
        let mut client = SubscribeServiceClient::new(self.options.endpoint.channel()?)
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
        let requests = self.options.endpoint.request(ReceiverStream::new(frames))?;
        let opening = tokio::time::timeout(OPEN_TIMEOUT, client.subscribe(requests));
        let input = opening
            .await
            .map_err(|_| ClientError::Unreachable {
                address: self.options.endpoint.address.clone(),
                why: format!("no answer for {} s", OPEN_TIMEOUT.as_secs()),
            })??
            .into_inner();
        self.stream = Some(Stream { out, input });
        self.consumed = 0;
        // The broker accepts every call; whether it opens shows in its first message.
        let first = self.receive().await.and_then(|frame| self.opened(&frame));
        if first.is_err() {
            self.stream = None;
        }
        first
    }

    async fn receive(&mut self) -> Result<Bytes, ClientError> {
        let Some(stream) = &mut self.stream else {
            return Err(ClientError::Broken("not connected".to_owned()));
        };
        let silence = self.options.silence_max;
        let frame = tokio::time::timeout(silence, stream.input.message())
            .await
            .map_err(|_| ClientError::Silent {
                seconds: silence.as_secs(),
            })??
            .ok_or_else(|| ClientError::Broken("the broker ended the stream".to_owned()))?;
        self.tries = 0;
        self.consumed += frame.0.len() as u64;
        let window = match self.options.credit_bytes {
            0 => limits::SUBSCRIBE_CREDIT_BYTES_DEFAULT,
            bytes => bytes,
        };
        if self.consumed >= window / 8 {
            let credit = api::SubscribeCredit {
                bytes: self.consumed,
            };
            if self.say(subscribe_request::Message::Credit(credit)) {
                self.consumed = 0;
            }
        }
        Ok(frame.0)
    }

    /// Sends if there is room; says whether it did. Nothing here must wait: whoever waits to speak
    /// does not listen.
    fn say(&mut self, message: subscribe_request::Message) -> bool {
        match &self.stream {
            Some(stream) => stream.out.try_send(request(message)).is_ok(),
            None => false,
        }
    }
}

fn request(message: subscribe_request::Message) -> Frame {
    let request = api::SubscribeRequest {
        message: Some(message),
    };
    Frame(request.encode_to_vec().into())
}
