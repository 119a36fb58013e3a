//! From a source to the broker: map, publish, and only then move the checkpoint.
//!
//! A row counts as done when the broker has it durably, or has it or something newer already, or it
//! is among the dead letters. The checkpoint moves over done rows only, so that after kill -9 rows come
//! again, and the broker knows them by their revision; none is lost.

use super::{
    Connect, Outlet, Pauses, Trouble, after_trouble, on_disk, open,
    outgoing::{Halt, Outgoing, Progress},
};
use crate::{
    checkpoint::{CheckpointFile, StateFolder},
    dlq::DeadLetters,
    mapping::Mapper,
    source::{Source, SourceBatch},
    state::{Board, State},
};
use serde_json::Value;
use std::{
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

/// How long batches on their way are waited for when the connector stops or begins again.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Bulk rows that are read and wait, in bytes of memory. What is urgent is found behind so many.
const READ_AHEAD_MAX: usize = 64 << 20;

const FIRST_RUN: &str = "first run: everything that the source has is sent";

/// The state says so when it was held back for most of the time since it was last looked at.
const HELD_BACK: &str =
    "held back: the broker takes less than the source gives, and batches wait for it";

const WATCH_EVERY: Duration = Duration::from_secs(1);
/// A source that waits for rows hears within this what became durable. Longer than it takes to
/// answer, as the wait is begun anew then.
const TELL_WITHIN: Duration = Duration::from_secs(1);
/// Letters that somebody retries or drops while the connector runs.
const COUNT_EVERY: Duration = Duration::from_secs(2);
/// How many times as long as counting took is waited at least.
const COUNT_PAUSE: u32 = 20;

/// Where a source runner keeps what it must remember.
#[derive(Debug)]
pub struct SourceState {
    pub checkpoints: CheckpointFile,
    pub dead_letters: DeadLetters,
}

impl SourceState {
    /// Blocks.
    pub fn open(
        folder: &StateFolder,
        source: &str,
        dead_letters_bytes_max: u64,
    ) -> Result<SourceState, Trouble> {
        Ok(SourceState {
            checkpoints: CheckpointFile::new(folder, source),
            dead_letters: DeadLetters::open(folder, dead_letters_bytes_max)?,
        })
    }
}

/// Keeps on the board how many letters there are: `dlq retry` and `dlq drop` are processes of their own.
async fn count_letters(letters: Arc<Mutex<DeadLetters>>, board: Board) -> Infallible {
    loop {
        let begun = Instant::now();
        let letters = Arc::clone(&letters);
        let counted = on_disk(move || {
            let mut letters = letters.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(letters.count()?)
        });
        match counted.await {
            Ok((letters, bytes)) => board.count(|counts| {
                counts.dead_letters = letters as u64;
                counts.dead_letters_bytes = bytes;
            }),
            // Whoever adds one will find that out, and stops.
            Err(trouble) => tracing::debug!(%trouble, "the dead letters cannot be counted"),
        }
        // When somebody changes a large file again and again, reading it must not be all that is done.
        sleep(COUNT_EVERY.max(begun.elapsed() * COUNT_PAUSE)).await;
    }
}

/// Runs one source.
pub struct SourceRunner<S, C> {
    source: S,
    target: C,
    mapper: Mapper,
    checkpoints: CheckpointFile,
    dead_letters: Arc<Mutex<DeadLetters>>,
    board: Board,
    pauses: Pauses,
    /// The state when nothing is wrong.
    normal: (State, &'static str),
    pressure: Pressure,
    read_ahead_max: usize,
    stop: CancellationToken,
    /// Another log of the broker is no mistake.
    new_log: bool,
}

impl<S, C> std::fmt::Debug for SourceRunner<S, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceRunner").finish_non_exhaustive()
    }
}

impl<S, C> SourceRunner<S, C>
where
    S: Source,
    C: Connect,
    C::Link: Outlet,
{
    pub fn new(
        source: S,
        target: C,
        mapper: Mapper,
        state: SourceState,
        board: Board,
        stop: CancellationToken,
    ) -> SourceRunner<S, C> {
        let (letters, bytes) = state.dead_letters.size();
        board.count(|counts| {
            counts.dead_letters = letters as u64;
            counts.dead_letters_bytes = bytes;
        });
        SourceRunner {
            source,
            target,
            mapper,
            checkpoints: state.checkpoints,
            dead_letters: Arc::new(Mutex::new(state.dead_letters)),
            board,
            pauses: Pauses::default(),
            normal: (State::Snapshotting, FIRST_RUN),
            pressure: Pressure::since([Duration::ZERO; 2]),
            read_ahead_max: READ_AHEAD_MAX,
            stop,
            new_log: false,
        }
    }

    /// When the broker's log is another one than before, everything is sent again.
    #[must_use]
    pub fn accept_new_log(mut self, accept: bool) -> Self {
        self.new_log = accept;
        self
    }

    /// How many bytes of bulk rows may be read and wait while the broker takes no more of them: a
    /// source that carries both lanes is read on for what is urgent. Zero reads nothing ahead.
    #[must_use]
    pub fn read_ahead(mut self, bytes_max: usize) -> Self {
        self.read_ahead_max = bytes_max;
        self
    }

    #[must_use]
    pub fn pauses(mut self, pauses: Pauses) -> Self {
        self.pauses = pauses;
        self
    }

    /// Until it is told to stop, or cannot go on.
    pub async fn run(self) -> Result<(), Trouble> {
        let counting = count_letters(Arc::clone(&self.dead_letters), self.board.clone());
        // Counting has nothing to finish.
        tokio::select! {
            ended = self.attempts() => ended,
            never = counting => match never {},
        }
    }

    async fn attempts(mut self) -> Result<(), Trouble> {
        let mut outlet = None;
        let mut stream = Span::none();
        loop {
            if outlet.is_none() {
                stream = self.target.begin();
            }
            let attempt = self.attempt(&mut outlet).instrument(stream.clone());
            let Err(trouble) = attempt.await else {
                return Ok(());
            };
            let stop = self.stop.clone();
            let pause = after_trouble(trouble, &mut self.pauses, &self.board, &stop);
            if !pause.instrument(stream.clone()).await? {
                return Ok(());
            }
        }
    }

    /// Until it is told to stop (`Ok`) or something goes wrong. The outlet lives on unless it was
    /// the outlet that ended.
    async fn attempt(&mut self, outlet: &mut Option<C::Link>) -> Result<(), Trouble> {
        let stop = self.stop.clone();
        if outlet.is_none() {
            if self.board.state() != State::Degraded {
                self.board.set(State::Starting, "connecting to the broker");
            }
            *outlet = open(&mut self.target, None, &self.board, &stop).await?;
        }
        let Some(link) = outlet.as_mut() else {
            return Ok(());
        };
        let log_id = link.log_id();
        let checkpoint = self.begin_at(&log_id)?;
        tokio::select! {
            started = self.source.start(checkpoint) => started?,
            () = stop.cancelled() => return Ok(()),
        }
        // After trouble it has to prove itself first, or the state would flap.
        if self.board.state() != State::Degraded {
            self.board.set(self.normal.0, self.normal.1);
        }
        self.pressure = Pressure::since(link.held_back());
        let mut outgoing = Outgoing::new(
            self.checkpoints.clone(),
            Arc::clone(&self.dead_letters),
            self.board.clone(),
            log_id,
            self.read_ahead_max,
        );
        let ended = match self.pump(link, &mut outgoing).await {
            Ended::Told => Ok(()),
            Ended::Source(trouble) => Err(trouble),
            // After trouble with the state nothing may be settled: a later checkpoint would go over
            // what could not be written.
            Ended::State(trouble) | Ended::Outlet(trouble) => {
                outgoing.finish_storing().await;
                *outlet = None;
                return Err(trouble);
            }
        };
        // What is on its way arrives all the same: wait for it, so that it does not come again.
        let drained = match timeout(DRAIN_MAX, self.drain(link, &mut outgoing)).await {
            Ok(drained) => drained,
            Err(_) => Err(Trouble {
                passing: true,
                message: "broker: batches on their way were not acknowledged in time; they are sent again after a restart".to_owned(),
            }),
        };
        if let Err(trouble) = drained {
            outgoing.finish_storing().await;
            *outlet = None;
            if ended.is_ok() {
                // It was told to stop, and nothing is lost: the checkpoint did not move.
                tracing::warn!(
                    reason = trouble.message,
                    "stopped before everything arrived"
                );
            }
        }
        ended
    }

    /// Where the source goes on; its beginning for a log that was not known.
    fn begin_at(&mut self, log_id: &str) -> Result<Option<Value>, Trouble> {
        let mut stand = self.checkpoints.load()?;
        if let Some(was) = stand.as_ref().and_then(|stand| stand.log_id.clone())
            && was != *log_id
        {
            if !self.new_log {
                return Err(another_log(&was, log_id));
            }
            tracing::warn!(was, now = log_id, "another log: everything is sent again");
            stand = None;
        }
        if let Some(stand) = &stand {
            self.normal = (State::Running, "");
            // True before this process, and nothing may come that says it again.
            if let Some(barrier) = &stand.barrier {
                self.board.barrier(barrier.clone());
            }
        }
        Ok(stand.map(|stand| stand.checkpoint))
    }

    async fn pump(&mut self, link: &mut C::Link, outgoing: &mut Outgoing) -> Ended {
        loop {
            let heard = self.hear(link, outgoing).await;
            let (batch, durable) = match heard {
                Ok(heard) => heard,
                Err(ended) => return ended,
            };
            if let Some(checkpoint) = durable
                && let Err(e) = self.source.acknowledged(&checkpoint).await
            {
                return Ended::Source(e.into());
            }
            if let Some(batch) = batch
                && let Err(ended) = self.take(batch, link, outgoing).await
            {
                return ended;
            }
            if let Err(trouble) = outgoing.send(link).await {
                return Ended::Outlet(trouble);
            }
        }
    }

    /// Waits for the next rows, and meanwhile does all that is not the source's matter. The wait is not
    /// begun anew each time something else happens: a source that needs a second for its answer
    /// would never come to its end. Returns without rows when the source should hear of a checkpoint.
    async fn hear(
        &mut self,
        link: &mut C::Link,
        outgoing: &mut Outgoing,
    ) -> Result<(Option<SourceBatch>, Option<Value>), Ended> {
        let stop = self.stop.clone();
        let mut durable = None;
        let mut tell_at = Instant::now();
        let mut next = pin!(self.source.next());
        loop {
            let has_room = outgoing.has_room();
            // Every arm waits for something that loses nothing when it is dropped: `arrived` polls
            // a future that stays, `Source::next` promises it.
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Ended::Told),
                progress = outgoing.progress() => {
                    let reached = match progress? {
                        Progress::Arrived => None,
                        Progress::Stored(checkpoint) => checkpoint,
                    };
                    if reached.is_some() {
                        self.pauses.worked();
                        self.normal = (State::Running, "");
                        if self.board.state() == State::Snapshotting {
                            self.board.set(State::Running, "");
                        }
                        if durable.is_none() {
                            tell_at = Instant::now() + TELL_WITHIN;
                        }
                        durable = reached;
                    }
                }
                () = sleep_until(self.pressure.next_look()) => {
                    if let Some(error) = link.ended() {
                        return Err(Ended::Outlet(error.into()));
                    }
                    let held_back = self.pressure.look(&self.board, link, outgoing.held_back());
                    watch(&self.board, self.normal, held_back, link);
                }
                () = sleep_until(tell_at), if durable.is_some() => return Ok((None, durable)),
                batch = &mut next, if has_room => {
                    let batch = batch.map_err(|e| Ended::Source(e.into()))?;
                    return Ok((Some(batch), durable));
                }
            }
            outgoing.send(link).await.map_err(Ended::Outlet)?;
        }
    }

    async fn take(
        &mut self,
        batch: SourceBatch,
        link: &mut C::Link,
        outgoing: &mut Outgoing,
    ) -> Result<(), Ended> {
        let rows = batch.rows.len() as u64;
        self.board.count(|counts| counts.rows_read += rows);
        for row in batch.rows {
            if outgoing.take(row, &mut self.mapper) {
                outgoing.send(link).await.map_err(Ended::Outlet)?;
            }
        }
        outgoing.reached(batch.checkpoint, batch.barrier);
        Ok(())
    }

    async fn drain(&mut self, link: &mut C::Link, outgoing: &mut Outgoing) -> Result<(), Trouble> {
        outgoing.close();
        loop {
            outgoing.send_all(link).await?;
            if outgoing.is_idle() {
                return Ok(());
            }
            let progress = outgoing.progress().await;
            let progress = progress.map_err(|(Halt::Outlet(t) | Halt::State(t))| t)?;
            if let Progress::Stored(Some(checkpoint)) = progress {
                // A source in trouble may not hear it; the checkpoint is on disk all the same.
                if let Err(e) = self.source.acknowledged(&checkpoint).await {
                    tracing::debug!(
                        reason = e.message,
                        "the source did not take the acknowledgement"
                    );
                }
            }
        }
    }
}

/// What was seen of the broker's taking less than it is offered.
#[derive(Clone, Copy, Debug)]
struct Pressure {
    looked_at: Instant,
    /// How long batches had waited by then for credit, and for those under way; each by lane.
    held_back: [[Duration; 2]; 2],
}

impl Pressure {
    /// From now on: what this link waited for before is counted already. No batch is under way yet.
    fn since(credit: [Duration; 2]) -> Pressure {
        Pressure {
            looked_at: Instant::now(),
            held_back: [credit, [Duration::ZERO; 2]],
        }
    }

    fn next_look(&self) -> Instant {
        self.looked_at + WATCH_EVERY
    }

    /// Counts, and says whether most of the time went by with waiting.
    fn look(
        &mut self,
        board: &Board,
        link: &impl Outlet,
        for_those_under_way: [Duration; 2],
    ) -> bool {
        let held_back = [link.held_back(), for_those_under_way];
        // Both may be one and the same wait, and lanes wait beside each other: nothing is counted twice.
        let waited = |what: usize| {
            let lanes = [0, 1].map(|i| held_back[what][i].saturating_sub(self.held_back[what][i]));
            lanes[0].max(lanes[1])
        };
        // Without a connection it is not the broker that takes nothing.
        let waited = match link.connected() {
            Ok(()) => waited(0).max(waited(1)),
            Err(_) => waited(0),
        };
        let most = waited > self.looked_at.elapsed() / 2;
        *self = Pressure {
            looked_at: Instant::now(),
            held_back,
        };
        board.count(|counts| counts.held_back_seconds += waited.as_secs_f64());
        most
    }
}

fn watch(board: &Board, normal: (State, &'static str), held_back: bool, link: &impl Outlet) {
    board.count(|counts| counts.reconnects = link.reconnects());
    let was_held_back = board.status().reason == HELD_BACK;
    match (link.connected(), board.state()) {
        (Err(why), State::Running | State::Snapshotting | State::Degraded) => {
            let reason = format!("no connection to the broker, trying again: {why}");
            board.set(State::Degraded, reason);
        }
        (Ok(()), state @ (State::Running | State::Snapshotting)) if held_back => {
            if !was_held_back {
                tracing::info!(reason = HELD_BACK, "back-pressure");
            }
            board.set(state, HELD_BACK);
        }
        (Ok(()), State::Degraded) => board.set(normal.0, normal.1),
        (Ok(()), _) if was_held_back => board.set(normal.0, normal.1),
        _ => {}
    }
}

/// What the source has given may not be there: that somebody has to decide.
fn another_log(was: &str, now: &str) -> Trouble {
    Trouble {
        passing: false,
        message: format!(
            "broker: its log is another one ({now}) than the one that has what was sent so far ({was}): its \
             data were lost or replaced, or the address is wrong. If it is right, start once with --new-log: \
             then everything that the source still has is sent again"
        ),
    }
}

impl From<Halt> for Ended {
    fn from(halt: Halt) -> Ended {
        match halt {
            Halt::Outlet(trouble) => Ended::Outlet(trouble),
            Halt::State(trouble) => Ended::State(trouble),
        }
    }
}

/// Why the pump stopped.
enum Ended {
    Told,
    Source(Trouble),
    /// Of this machine's disk.
    State(Trouble),
    Outlet(Trouble),
}
