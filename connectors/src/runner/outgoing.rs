//! Batches on their way to the broker, and what is done when they arrived.

use super::{LinkError, Outcome, Outlet, Pending, Trouble, gather::Gathered, on_disk};
use crate::{
    checkpoint::{CheckpointFile, Stand},
    dlq::{DeadLetters, NewLetter},
    source::SourceRow,
    state::{Board, now},
};
use futures_util::FutureExt;
use hutong_proto::Reason;
use serde_json::Value;
use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::task::{JoinError, JoinHandle};

/// Batches on their way; the publisher has its own bound in bytes.
const BATCHES_MAX: usize = 32;

/// While so many are on their way, what comes is gathered: under load batches grow, and a lone delta
/// never waits.
const BATCHES_EAGER: usize = 2;

struct Flight {
    /// `None` when there was nothing to publish.
    pending: Option<Pending>,
    /// What the wait ended with, if it was an error that nobody has heard yet.
    failed: Option<LinkError>,
    gathered: Gathered,
}

/// What has arrived, in order, not yet on disk here.
#[derive(Default)]
struct Settled {
    batches: usize,
    letters: Vec<NewLetter>,
    checkpoint: Option<Value>,
    barrier: Option<String>,
}

/// Owns everything between the source and its checkpoint.
pub(super) struct Outgoing {
    flights: VecDeque<Flight>,
    gathered: Gathered,
    checkpoints: CheckpointFile,
    dead_letters: Arc<Mutex<DeadLetters>>,
    board: Board,
    /// Where what arrives is durable.
    log_id: String,
    /// Waits for its turn to be stored.
    settled: Settled,
    /// On its way to the disk here.
    storing: Option<JoinHandle<Result<Stored, Trouble>>>,
}

/// What came about.
pub(super) enum Progress {
    /// A batch: there is room for another one.
    Arrived,
    /// This is on disk here now: a checkpoint, or none when only rows were refused.
    Stored(Option<Value>),
}

/// Why nothing more will.
pub(super) enum Halt {
    Outlet(Trouble),
    /// Of this machine's disk.
    State(Trouble),
}

struct Stored {
    checkpoint: Option<Value>,
    barrier: Option<String>,
    letters_added: usize,
    /// Letters that are kept, and their bytes.
    letters: (usize, u64),
}

impl Outgoing {
    pub fn new(
        checkpoints: CheckpointFile,
        dead_letters: Arc<Mutex<DeadLetters>>,
        board: Board,
        log_id: String,
    ) -> Outgoing {
        Outgoing {
            flights: VecDeque::new(),
            gathered: Gathered::default(),
            checkpoints,
            dead_letters,
            board,
            log_id,
            settled: Settled::default(),
            storing: None,
        }
    }

    /// May the source be asked for more?
    pub fn has_room(&self) -> bool {
        // What waits for a slow disk counts as well.
        self.flights.len() + self.settled.batches < BATCHES_MAX && !self.gathered.is_full()
    }

    pub fn is_idle(&self) -> bool {
        self.flights.is_empty()
            && self.gathered.is_empty()
            && self.settled.batches == 0
            && self.storing.is_none()
    }

    pub fn gathered(&mut self) -> &mut Gathered {
        &mut self.gathered
    }

    /// Sends what was gathered if it should go now.
    pub async fn send(&mut self, outlet: &mut impl Outlet) -> Result<(), Trouble> {
        let eager = self.flights.len() < BATCHES_EAGER;
        if self.gathered.is_full() || (eager && !self.gathered.is_empty()) {
            self.send_all(outlet).await?;
        }
        Ok(())
    }

    /// Sends what was gathered. Waits for room at the publisher. Not cancel-safe.
    pub async fn send_all(&mut self, outlet: &mut impl Outlet) -> Result<(), Trouble> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let mut gathered = mem::take(&mut self.gathered);
        let pending = match mem::take(&mut gathered.deltas) {
            none if none.is_empty() => None,
            deltas => Some(outlet.publish(deltas).await?),
        };
        self.flights.push_back(Flight {
            pending,
            failed: None,
            gathered,
        });
        let in_flight = self.flights.len() as u64;
        self.board
            .count(|counts| counts.batches_in_flight = in_flight);
        Ok(())
    }

    /// Waits until a batch arrived, or what arrived is on disk here; for ever when nothing is on its
    /// way. Rows are sent meanwhile: they do not wait for this disk. Cancel-safe.
    pub async fn progress(&mut self) -> Result<Progress, Halt> {
        let stored = async {
            match &mut self.storing {
                Some(storing) => storing.await,
                None => std::future::pending().await,
            }
        };
        let arrived = async {
            let Some(flight) = self.flights.front_mut() else {
                return std::future::pending().await;
            };
            if let Some(error) = flight.failed.take() {
                return Err(error);
            }
            match &mut flight.pending {
                Some(pending) => pending.await,
                None => Ok(Outcome::default()),
            }
        };
        tokio::select! {
            biased;
            stored = stored => {
                self.storing = None;
                self.stored(stored).map(Progress::Stored).map_err(Halt::State)
            }
            arrived = arrived => {
                self.arrived(arrived.map_err(|e| Halt::Outlet(e.into()))?);
                Ok(Progress::Arrived)
            }
        }
    }

    /// Takes the first batch, and all others that arrived meanwhile: one sync for all.
    fn arrived(&mut self, first: Outcome) {
        let mut arrived = Some(first);
        while let Some(outcome) = arrived.take() {
            if let Some(flight) = self.flights.pop_front() {
                self.take(flight.gathered, outcome);
            }
            // An error is kept: what arrived before it did arrive.
            if let Some(flight) = self.flights.front_mut() {
                arrived = match &mut flight.pending {
                    Some(pending) => flight
                        .failed
                        .is_none()
                        .then(|| pending.now_or_never())
                        .flatten(),
                    None => Some(Ok(Outcome::default())),
                }
                .and_then(|next| next.map_err(|e| flight.failed = Some(e)).ok());
            }
        }
        self.store();
    }

    /// Waits for what is being stored, if anything is: nothing may be written behind the back of
    /// whoever begins again.
    pub async fn finish_storing(&mut self) {
        if let Some(storing) = self.storing.take() {
            // What it says is not heard any more: whoever begins again reads what is on disk.
            drop(storing.await);
        }
    }

    fn take(&mut self, gathered: Gathered, outcome: Outcome) {
        let settled = &mut self.settled;
        settled.batches += 1;
        let mut not_newer = 0;
        let mut rows: Vec<Option<SourceRow>> = gathered.rows.into_iter().map(Some).collect();
        settled.letters.extend(gathered.refused);
        for refused in outcome.refused {
            if refused.reason == Reason::RevisionNotNewer.code() {
                not_newer += 1;
                continue;
            }
            if let Some(row) = rows.get_mut(refused.index).and_then(Option::take) {
                tracing::debug!(
                    place = row.place,
                    reason = refused.reason,
                    field = refused.field,
                    "a row is refused by the broker"
                );
                settled.letters.push(NewLetter {
                    row,
                    reason: refused.reason,
                    field: refused.field,
                    message: refused.message,
                });
            }
        }
        settled.checkpoint = gathered.checkpoint.or(settled.checkpoint.take());
        settled.barrier = gathered.barrier.or(settled.barrier.take());
        let in_flight = self.flights.len() as u64;
        self.board.count(|counts| {
            counts.deltas_accepted += u64::from(outcome.accepted);
            counts.deltas_not_newer += not_newer;
            counts.batches_in_flight = in_flight;
        });
    }

    /// Begins to store what is settled, unless something is being stored. Dead letters first: a
    /// checkpoint says that they are safe.
    fn store(&mut self) {
        if self.storing.is_some() || self.settled.batches == 0 {
            return;
        }
        let settled = mem::take(&mut self.settled);
        // Parts of what the source gave at once: the last of them brings the checkpoint.
        if settled.letters.is_empty() && settled.checkpoint.is_none() {
            return;
        }
        let letters_added = settled.letters.len();
        if letters_added > 0 {
            let reason = settled.letters[0].reason.clone();
            tracing::warn!(
                rows = letters_added,
                first = reason,
                "rows become dead letters"
            );
        }
        let dead_letters = Arc::clone(&self.dead_letters);
        let checkpoints = self.checkpoints.clone();
        let checkpoint = settled.checkpoint;
        // What was complete before stays complete.
        let barrier = settled.barrier.or_else(|| self.board.status().barrier);
        let stand = checkpoint.clone().map(|checkpoint| Stand {
            checkpoint,
            barrier: barrier.clone(),
            log_id: Some(self.log_id.clone()),
        });
        self.storing = Some(tokio::spawn(on_disk(move || {
            let mut store = dead_letters.lock().unwrap_or_else(PoisonError::into_inner);
            store.add(settled.letters, now())?;
            if let Some(stand) = &stand {
                checkpoints.store(stand)?;
            }
            Ok(Stored {
                checkpoint,
                barrier,
                letters_added,
                letters: store.size(),
            })
        })));
    }

    fn stored(
        &mut self,
        stored: Result<Result<Stored, Trouble>, JoinError>,
    ) -> Result<Option<Value>, Trouble> {
        let stored = stored.map_err(|panic| Trouble {
            passing: false,
            message: format!("state: a defect while writing: {panic}"),
        })??;
        self.board.count(|counts| {
            counts.rows_refused += stored.letters_added as u64;
            counts.dead_letters = stored.letters.0 as u64;
            counts.dead_letters_bytes = stored.letters.1;
        });
        if let Some(barrier) = stored.barrier {
            self.board.barrier(barrier);
        }
        // Only after what came before it is on disk.
        self.store();
        Ok(stored.checkpoint)
    }
}
