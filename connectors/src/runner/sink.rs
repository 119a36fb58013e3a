//! From the broker to a sink: apply what comes, then say so.
//!
//! Rows and cursor go into the sink in one transaction, and only then does the broker hear of the
//! cursor. Whatever dies, the sink knows where to go on.

use super::{Connect, Heard, Inlet, LinkError, Pauses, Trouble, after_trouble, open};
use crate::{
    client::Delivered,
    sink::Sink,
    state::{Board, State},
};
use futures_util::FutureExt;
use hutong_proto::{Cursor, Reason};
use std::{pin::pin, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

/// Of one transaction. What waits goes together: a sink that is behind catches up in large steps.
const ROWS_MAX: usize = 10_000;

/// A stream carries something twice a second; after so long without, the line is down.
const SILENCE_MAX: Duration = Duration::from_secs(5);

const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Runs one sink.
pub struct SinkRunner<S, C> {
    sink: S,
    source: C,
    board: Board,
    pauses: Pauses,
    stop: CancellationToken,
    /// Why the next attempt takes a snapshot, whatever cursor the sink has.
    afresh: Option<String>,
    /// Another log of the broker is no mistake.
    new_log: bool,
    heard_at: Instant,
    /// What is logged about the stream goes into this.
    stream: Span,
}

impl<S, C> std::fmt::Debug for SinkRunner<S, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SinkRunner").finish_non_exhaustive()
    }
}

/// Rows of a snapshot that arrived, of about how many.
#[derive(Clone, Copy, Default)]
struct Progress {
    rows: u64,
    estimate: u64,
}

impl<S, C> SinkRunner<S, C>
where
    S: Sink,
    C: Connect,
    C::Link: Inlet,
{
    pub fn new(sink: S, source: C, board: Board, stop: CancellationToken) -> SinkRunner<S, C> {
        SinkRunner {
            sink,
            source,
            board,
            pauses: Pauses::default(),
            stop,
            afresh: None,
            new_log: false,
            heard_at: Instant::now(),
            stream: Span::none(),
        }
    }

    /// When the broker's log is another one than before, its snapshot replaces what is here.
    #[must_use]
    pub fn accept_new_log(mut self, accept: bool) -> Self {
        self.new_log = accept;
        self
    }

    #[must_use]
    pub fn pauses(mut self, pauses: Pauses) -> Self {
        self.pauses = pauses;
        self
    }

    /// Until it is told to stop, or cannot go on.
    pub async fn run(mut self) -> Result<(), Trouble> {
        loop {
            let trouble = match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(Ended::Trouble(trouble)) => trouble,
                Err(Ended::AnotherLog(why)) if !self.new_log => Trouble {
                    passing: false,
                    message: format!(
                        "broker: {why}: its data were lost or replaced, or the address is wrong. If it is \
                         right, wait until the other platforms have sent it their data again, and start once \
                         with --new-log: then its snapshot replaces what is here"
                    ),
                },
                Err(Ended::Afresh(why) | Ended::AnotherLog(why)) => {
                    // Refused a snapshot as well: that is no way out.
                    if self.afresh.is_some() {
                        Trouble {
                            passing: false,
                            message: format!("broker: {why}, also for a snapshot"),
                        }
                    } else {
                        self.board.set(State::Snapshotting, &why);
                        self.afresh = Some(why);
                        continue;
                    }
                }
            };
            let stop = self.stop.clone();
            let pause = after_trouble(trouble, &mut self.pauses, &self.board, &stop);
            if !pause.instrument(self.stream.clone()).await? {
                return Ok(());
            }
        }
    }

    async fn attempt(&mut self) -> Result<(), Ended> {
        let stop = self.stop.clone();
        // The sink comes first: its troubles are no stream's.
        self.stream = Span::none();
        if self.board.state() != State::Degraded && self.afresh.is_none() {
            self.board.set(State::Starting, "connecting");
        }
        let stored = tokio::select! {
            stored = self.sink.start() => stored?,
            () = stop.cancelled() => return Ok(()),
        };
        let cursor = stored.filter(|_| self.afresh.is_none());
        self.stream = self.source.begin();
        let stream = self.stream.clone();
        self.follow(cursor, &stop).instrument(stream).await
    }

    /// One stream, as long as it goes well.
    async fn follow(
        &mut self,
        cursor: Option<Cursor>,
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        let opened = open(&mut self.source, cursor, &self.board, stop).await?;
        let Some(mut inlet) = opened else {
            return Ok(());
        };
        self.heard_at = Instant::now();
        let mut waiting = None;
        let mut progress = Progress::default();
        loop {
            let heard = match waiting.take() {
                Some(heard) => heard,
                None => match self.hear(&mut inlet, stop).await? {
                    Some(heard) => heard,
                    None => return Ok(()),
                },
            };
            waiting = self.act(heard, &mut inlet, &mut progress).await?;
            let (lag, reconnects) = (inlet.lag_seconds(), inlet.reconnects());
            self.board.count(|counts| {
                counts.lag_seconds = lag;
                counts.reconnects = reconnects;
            });
        }
    }

    /// Waits for what comes next, and says so when nothing comes. `None`: told to stop.
    async fn hear(
        &mut self,
        inlet: &mut C::Link,
        stop: &CancellationToken,
    ) -> Result<Option<Heard>, LinkError> {
        let mut watch = interval_at(Instant::now() + WATCH_EVERY, WATCH_EVERY);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next = pin!(inlet.next());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(None),
                heard = &mut next => {
                    let heard = heard?;
                    self.heard_at = Instant::now();
                    return Ok(Some(heard));
                }
                _ = watch.tick() => {
                    let silence = self.heard_at.elapsed();
                    if silence >= SILENCE_MAX {
                        let reason = format!("nothing from the broker for {} s; trying again", silence.as_secs());
                        self.board.set(State::Degraded, reason);
                    }
                }
            }
        }
    }

    /// Does what was heard. Returns what came meanwhile and could not be done with it.
    async fn act(
        &mut self,
        heard: Heard,
        inlet: &mut C::Link,
        progress: &mut Progress,
    ) -> Result<Option<Heard>, Ended> {
        match heard {
            Heard::SnapshotBegin { rows_estimate } => {
                *progress = Progress {
                    rows: 0,
                    estimate: rows_estimate,
                };
                self.sink.begin_snapshot().await?;
                self.board.count(|counts| counts.snapshots += 1);
                self.board
                    .set(State::Snapshotting, self.snapshot_reason(*progress));
                Ok(None)
            }
            Heard::Rows(rows) => {
                self.sink.apply(&rows, None).await?;
                progress.rows += rows.len() as u64;
                let applied = rows.len() as u64;
                self.board.count(|counts| counts.deltas_applied += applied);
                self.board
                    .set(State::Snapshotting, self.snapshot_reason(*progress));
                Ok(None)
            }
            Heard::SnapshotEnd { cursor } => {
                self.sink.end_snapshot(cursor).await?;
                self.afresh = None;
                self.applied(inlet, cursor).await?;
                Ok(None)
            }
            Heard::Records { deltas, cursor } => self.records(deltas, cursor, inlet).await,
            Heard::Bookmark { cursor } => {
                self.sink.bookmark(cursor).await?;
                self.applied(inlet, cursor).await?;
                Ok(None)
            }
        }
    }

    async fn records(
        &mut self,
        mut deltas: Vec<Delivered>,
        mut cursor: Cursor,
        inlet: &mut C::Link,
    ) -> Result<Option<Heard>, Ended> {
        let mut left = None;
        while deltas.len() < ROWS_MAX && left.is_none() {
            // Nothing is waited for: a lone delta goes on at once. `Inlet::next` is cancel-safe. An
            // error comes when what was heard before it is done.
            match inlet.next().now_or_never() {
                Some(Ok(Heard::Records {
                    deltas: more,
                    cursor: after,
                })) => {
                    deltas.extend(more);
                    cursor = after;
                }
                Some(Ok(Heard::Bookmark { cursor: after })) => cursor = after,
                Some(Ok(other)) => left = Some(other),
                Some(Err(error)) => {
                    self.apply(&deltas, cursor, inlet).await?;
                    return Err(error.into());
                }
                None => break,
            }
        }
        self.apply(&deltas, cursor, inlet).await?;
        Ok(left)
    }

    async fn apply(
        &mut self,
        deltas: &[Delivered],
        cursor: Cursor,
        inlet: &mut C::Link,
    ) -> Result<(), Ended> {
        self.sink.apply(deltas, Some(cursor)).await?;
        let applied = deltas.len() as u64;
        self.board.count(|counts| counts.deltas_applied += applied);
        self.applied(inlet, cursor).await
    }

    async fn applied(&mut self, inlet: &mut C::Link, cursor: Cursor) -> Result<(), Ended> {
        inlet.applied(cursor).await?;
        self.pauses.worked();
        self.board.set(State::Running, "");
        Ok(())
    }

    fn snapshot_reason(&self, progress: Progress) -> String {
        let Progress { rows, estimate } = progress;
        let why = self.afresh.as_ref().map(|why| format!("{why}; "));
        format!("{}{rows} rows of about {estimate}", why.unwrap_or_default())
    }
}

/// Why an attempt ended.
enum Ended {
    Trouble(Trouble),
    /// The cursor is of no use any more.
    Afresh(String),
    /// The broker does not have what the cursor says.
    AnotherLog(String),
}

impl From<LinkError> for Ended {
    fn from(error: LinkError) -> Ended {
        match error.reason {
            Some(reason @ (Reason::CursorCompacted | Reason::FilterChanged)) => Ended::Afresh(
                format!("the stored cursor cannot be used ({reason}), taking a snapshot"),
            ),
            Some(reason @ (Reason::CursorOfAnotherLog | Reason::CursorAhead)) => {
                Ended::AnotherLog(format!("it does not know the stored cursor ({reason})"))
            }
            _ => Ended::Trouble(error.into()),
        }
    }
}

impl From<crate::sink::SinkError> for Ended {
    fn from(error: crate::sink::SinkError) -> Ended {
        Ended::Trouble(error.into())
    }
}
