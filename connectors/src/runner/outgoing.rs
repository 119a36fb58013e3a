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
        }
    }

    /// May the source be asked for more?
    pub fn has_room(&self) -> bool {
        self.flights.len() < BATCHES_MAX && !self.gathered.is_full()
    }

    pub fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.gathered.is_empty()
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

    /// Waits until the first batch arrived; for ever when none is on its way. Cancel-safe.
    pub async fn arrived(&mut self) -> Result<Outcome, Trouble> {
        let Some(flight) = self.flights.front_mut() else {
            return std::future::pending().await;
        };
        if let Some(error) = flight.failed.take() {
            return Err(error.into());
        }
        match &mut flight.pending {
            Some(pending) => Ok(pending.await?),
            None => Ok(Outcome::default()),
        }
    }

    /// Does what is due after [`Outgoing::arrived`], for all batches that arrived meanwhile too: one
    /// sync for all. Returns the checkpoint that is on disk now. Not cancel-safe.
    pub async fn settle(&mut self, first: Outcome) -> Result<Option<Value>, Trouble> {
        let mut settled = Settled::default();
        let mut arrived = Some(first);
        while let Some(outcome) = arrived.take() {
            if let Some(flight) = self.flights.pop_front() {
                self.take(flight.gathered, outcome, &mut settled);
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
        self.store(settled).await
    }

    fn take(&self, gathered: Gathered, outcome: Outcome, settled: &mut Settled) {
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

    /// Dead letters first: a checkpoint says that they are safe.
    async fn store(&mut self, settled: Settled) -> Result<Option<Value>, Trouble> {
        let letters_count = settled.letters.len();
        if letters_count == 0 && settled.checkpoint.is_none() {
            return Ok(None);
        }
        if letters_count > 0 {
            let reason = settled.letters[0].reason.clone();
            tracing::warn!(
                rows = letters_count,
                first = reason,
                "rows become dead letters"
            );
        }
        let dead_letters = Arc::clone(&self.dead_letters);
        let checkpoints = self.checkpoints.clone();
        let checkpoint = settled.checkpoint.clone();
        // What was complete before stays complete.
        let barrier = settled.barrier.or_else(|| self.board.status().barrier);
        let stand = settled.checkpoint.map(|checkpoint| Stand {
            checkpoint,
            barrier: barrier.clone(),
            log_id: Some(self.log_id.clone()),
        });
        let (letters_kept, bytes) = on_disk(move || {
            let mut store = dead_letters.lock().unwrap_or_else(PoisonError::into_inner);
            store.add(settled.letters, now())?;
            if let Some(stand) = &stand {
                checkpoints.store(stand)?;
            }
            Ok(store.size())
        })
        .await?;
        self.board.count(|counts| {
            counts.rows_refused += letters_count as u64;
            counts.dead_letters = letters_kept as u64;
            counts.dead_letters_bytes = bytes;
        });
        if let Some(barrier) = barrier {
            self.board.barrier(barrier);
        }
        Ok(checkpoint)
    }
}
