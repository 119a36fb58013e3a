//! Subscribing, and writing down every record that comes.

use crate::{
    clients::{Board, Deltas, Digest, Progress, issuer, stream_of},
    error::ChaosError,
    history::{Cursor, Event, Record, Role, Row, Stream, Writer},
};
use hutong_connectors::client::{
    self, Delivered, Endpoint, Identity, Start, Subscriber, SubscriberOptions,
};
use hutong_proto::{Delta, Kind, Offset};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// Opens a subscription and writes down where it begins.
pub async fn open(
    history: &Writer,
    sub: u32,
    (platform, name, role): (u32, &str, Role),
    url: &str,
    start: Start,
    silence_max: Option<Duration>,
) -> Result<Subscriber, ChaosError> {
    let endpoint = Endpoint::new(url, Identity::Platform(issuer(platform)));
    let mut options = SubscriberOptions::new(endpoint, name);
    options.start = start;
    if let Some(silence_max) = silence_max {
        options.silence_max = silence_max;
    }
    let subscriber = Subscriber::open(options)
        .await
        .map_err(ChaosError::stage("a subscriber cannot connect"))?;
    history.record(Event::Subscription {
        sub,
        platform,
        name: name.to_owned(),
        role,
    });
    if start != Start::Snapshot {
        let cursor = to_history(subscriber.cursor());
        history.record(Event::Opened { sub, cursor });
    }
    Ok(subscriber)
}

fn to_history(cursor: hutong_proto::Cursor) -> Cursor {
    Cursor {
        urgent: cursor.urgent.0,
        bulk: cursor.bulk.0,
    }
}

/// How long to read.
#[derive(Clone, Debug)]
pub enum Until {
    /// Until this becomes true.
    Told(watch::Receiver<bool>),
    /// Until everything below this offset has come.
    Reached(Offset),
}

/// Reads one subscription.
#[derive(Debug)]
pub struct Reader {
    pub sub: u32,
    pub history: Writer,
    pub deltas: Deltas,
    pub board: Arc<Board>,
    pub progress: Option<Arc<Progress>>,
    pub subscriber: Subscriber,
    /// Behind the last record that came, by lane.
    pub reached: Cursor,
    /// Everything that it was to read until has come.
    pub complete: bool,
}

impl Reader {
    /// Gives itself back: what it has read may be gone on with.
    pub async fn run(mut self, until: Until) -> Reader {
        let mut reconnects = self.subscriber.reconnects();
        loop {
            let next = match &until {
                Until::Told(told) => {
                    let mut told = told.clone();
                    tokio::select! {
                        // Cancel-safe, as it says.
                        event = self.subscriber.next() => event,
                        _ = told.wait_for(|told| *told) => return self,
                    }
                }
                Until::Reached(_) => self.subscriber.next().await,
            };
            for _ in reconnects..self.subscriber.reconnects() {
                self.history.record(Event::Reconnected { sub: self.sub });
            }
            reconnects = self.subscriber.reconnects();
            let event = match next {
                Ok(event) => event,
                Err(error) => {
                    self.history.record(Event::ClientEnded {
                        who: format!("subscription {}", self.sub),
                        error: error.to_string(),
                    });
                    return self;
                }
            };
            let cursor = self.take(event);
            let Some(cursor) = cursor else { continue };
            // Everything is in the history by now, which is where it is applied.
            if self.subscriber.applied(cursor).await.is_err() {
                return self;
            }
            if let Until::Reached(offset) = &until
                && cursor.urgent >= *offset
                && cursor.bulk >= *offset
            {
                self.complete = true;
                return self;
            }
        }
    }

    /// The cursor behind it, when it has one.
    fn take(&mut self, event: client::Event) -> Option<hutong_proto::Cursor> {
        let sub = self.sub;
        match event {
            client::Event::SnapshotBegin { .. } => {
                self.history.record(Event::SnapshotBegin { sub });
                None
            }
            client::Event::Rows(delivered) => {
                self.rows(&delivered);
                None
            }
            client::Event::SnapshotEnd { cursor, .. } => {
                let end = to_history(cursor);
                self.history.record(Event::SnapshotEnd { sub, cursor: end });
                Some(cursor)
            }
            client::Event::Records { deltas, cursor } => {
                self.records(&deltas);
                Some(cursor)
            }
            client::Event::Bookmark { cursor, .. } => Some(cursor),
        }
    }

    /// What no client of this drill can have made.
    fn alien(&self, delivered: &Delivered) {
        if self.deltas.areas && delivered.delta.value.kind() == Kind::AreaRisk {
            return;
        }
        self.history.record(Event::Alien {
            sub: self.sub,
            offset: delivered.offset.0,
            what: describe(&delivered.delta),
        });
    }

    fn rows(&self, delivered: &[Delivered]) {
        let mut digest = Digest::default();
        let mut rows: Vec<Row> = Vec::with_capacity(delivered.len());
        for one in delivered {
            match stream_of(one.issuer, &one.delta) {
                Some(stream) => {
                    digest.add(&one.delta);
                    rows.push((one.issuer.code(), stream, one.delta.revision.0));
                }
                None => self.alien(one),
            }
        }
        self.history.record(Event::Rows {
            sub: self.sub,
            rows,
            digest: digest.value(),
        });
    }

    fn records(&mut self, delivered: &[Delivered]) {
        let mut records = Vec::new();
        for group in delivered.chunk_by(|a, b| a.offset == b.offset && a.issuer == b.issuer) {
            let Some((stream, sound)) = self.sound(group) else {
                continue;
            };
            let (first, mut digest) = (sound[0], Digest::default());
            let mut runs: Vec<(u64, u32)> = Vec::new();
            for one in &sound {
                digest.add(&one.delta);
                let revision = one.delta.revision.0;
                match runs.last_mut() {
                    Some((first, count)) if *first + u64::from(*count) == revision => *count += 1,
                    _ => runs.push((revision, 1)),
                }
            }
            if let (Some(progress), Some((first, count))) = (&self.progress, runs.last()) {
                let last = first + u64::from(*count) - 1;
                let issuer = sound[0].issuer.code();
                self.board.received(progress, issuer, stream, last);
            }
            match stream {
                Stream::Urgent => self.reached.urgent = first.offset.next().0,
                Stream::Bulk | Stream::Flood => self.reached.bulk = first.offset.next().0,
            }
            records.push(Record {
                offset: first.offset.0,
                issuer: first.issuer.code(),
                stream,
                durable_at: first.durable_at.0,
                runs,
                digest: digest.value(),
            });
        }
        if !records.is_empty() {
            let sub = self.sub;
            self.history.record(Event::Got { sub, records });
        }
    }

    /// The deltas of a record that a client of this drill can have made, which are all of one stream.
    fn sound<'a>(&self, group: &'a [Delivered]) -> Option<(Stream, Vec<&'a Delivered>)> {
        let mut stream = None;
        let mut sound = Vec::with_capacity(group.len());
        for one in group {
            match stream_of(one.issuer, &one.delta) {
                Some(found) if *stream.get_or_insert(found) == found => sound.push(one),
                _ => self.alien(one),
            }
        }
        Some((stream?, sound))
    }
}

fn describe(delta: &Delta) -> String {
    format!(
        "{} of entity {}, revision {}",
        delta.value.kind().name(),
        delta.entity,
        delta.revision
    )
}
