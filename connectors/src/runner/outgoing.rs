//! Batches on their way to the broker, and what is done when they arrived.
//!
//! A register's deltas may be in both lanes: a test that is negative, then positive, then negative again. Bulk
//! waits for what is urgent before it in the same register, or the later revision could arrive first and the urgent
//! one be refused. Urgent waits for nothing: what it overtakes is superseded.

use super::{
    LinkError, Outcome, Outlet, Trouble,
    gather::{DELTAS_MAX, Register},
    lane::{Arrived, BATCHES_MAX, LaneQueue},
    marks::{Mark, Marks, Upto},
    on_disk,
};
use crate::{
    checkpoint::{CheckpointFile, Stand},
    dlq::{DeadLetters, NewLetter},
    mapping::{Mapper, Refused},
    source::SourceRow,
    state::{Board, now},
};
use hutong_proto::{Lane, Reason};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::task::{JoinError, JoinHandle};

/// What has arrived, not yet on disk here.
#[derive(Default)]
struct Settled {
    batches: usize,
    letters: Vec<NewLetter>,
    checkpoint: Option<Value>,
    barrier: Option<String>,
}

/// Owns everything between the source and its checkpoint.
pub(super) struct Outgoing {
    urgent: LaneQueue,
    bulk: LaneQueue,
    /// Of each register with an urgent delta that has not arrived, the last batch with one.
    urgent_registers: HashMap<Register, u64>,
    marks: Marks,
    /// In bytes of memory: bulk that is read and waits, so that what is urgent behind it is found.
    read_ahead_max: usize,
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
    /// By reason.
    letters_added: BTreeMap<String, u64>,
    /// Letters that are kept, and their bytes.
    letters: (usize, u64),
}

impl Outgoing {
    pub fn new(
        checkpoints: CheckpointFile,
        dead_letters: Arc<Mutex<DeadLetters>>,
        board: Board,
        log_id: String,
        read_ahead_max: usize,
    ) -> Outgoing {
        Outgoing {
            urgent: LaneQueue::new(Lane::Urgent),
            bulk: LaneQueue::new(Lane::Bulk),
            urgent_registers: HashMap::new(),
            marks: Marks::default(),
            read_ahead_max,
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
        let batches = self.settled.batches + self.urgent.in_flight();
        batches < BATCHES_MAX
            && self.settled.letters.len() < DELTAS_MAX
            && self.urgent.has_room()
            && (self.bulk.has_room() || self.bulk.waiting_bytes() < self.read_ahead_max)
    }

    /// By lane, how long batches waited because as many as may be were under way.
    pub fn held_back(&self) -> [Duration; 2] {
        [self.urgent.held_back(), self.bulk.held_back()]
    }

    pub fn is_idle(&self) -> bool {
        self.urgent.is_idle()
            && self.bulk.is_idle()
            && self.settled.letters.is_empty()
            && self.settled.checkpoint.is_none()
            && self.storing.is_none()
    }

    /// Maps a row and takes what it became. Says whether a batch is whole now.
    pub fn take(&mut self, row: SourceRow, mapper: &mut Mapper) -> bool {
        let mapped = match mapper.map(&row) {
            Ok(mapped) => mapped,
            Err(refused) => {
                self.settled.letters.push(letter(row, refused));
                return false;
            }
        };
        let register = (mapped.delta.entity, mapped.delta.value.kind());
        if mapped.delta.value.lane() == Lane::Bulk {
            let after = self.urgent_registers.get(&register).copied().unwrap_or(0);
            return self.bulk.take(row, mapped.delta, mapped.bytes, after);
        }
        let number = self.urgent.gathering_number();
        self.urgent_registers.insert(register, number);
        self.urgent.take(row, mapped.delta, mapped.bytes, 0)
    }

    /// Everything of the source up to here was taken.
    pub fn reached(&mut self, checkpoint: Value, barrier: Option<String>) {
        self.marks.push(Mark {
            upto: match planted!(CheckpointBeforeAck) {
                true => Upto::default(),
                false => Upto {
                    urgent: self.urgent.last_number(),
                    bulk: self.bulk.last_number(),
                },
            },
            checkpoint,
            barrier,
        });
        // Rows that were all refused wait for nothing.
        self.settle();
    }

    /// Sends what was gathered if it should go now.
    pub async fn send(&mut self, outlet: &mut impl Outlet) -> Result<(), Trouble> {
        self.send_some(outlet, false).await
    }

    /// Sends what was gathered as far as there is room.
    pub async fn send_all(&mut self, outlet: &mut impl Outlet) -> Result<(), Trouble> {
        self.send_some(outlet, true).await
    }

    /// Nothing more will be gathered. What is under way and what is urgent still arrives; bulk that was read
    /// ahead would take as long as the broker likes.
    pub fn close(&mut self) {
        self.bulk.give_up_waiting();
    }

    async fn send_some(&mut self, outlet: &mut impl Outlet, all: bool) -> Result<(), Trouble> {
        let arrived = self.urgent.arrived_number();
        self.urgent.send(outlet, all, arrived).await?;
        self.bulk.send(outlet, all, arrived).await?;
        self.tell_in_flight();
        Ok(())
    }

    fn tell_in_flight(&self) {
        let in_flight = (self.urgent.in_flight() + self.bulk.in_flight()) as u64;
        self.board
            .count(|counts| counts.batches_in_flight = in_flight);
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
        let (arrived, lane) = tokio::select! {
            biased;
            stored = stored => {
                self.storing = None;
                return self.stored(stored).map(Progress::Stored).map_err(Halt::State);
            }
            arrived = self.urgent.arrival() => (arrived, Lane::Urgent),
            arrived = self.bulk.arrival() => (arrived, Lane::Bulk),
        };
        let outcome = arrived.map_err(|e: LinkError| Halt::Outlet(e.into()))?;
        self.arrived(lane, outcome);
        Ok(Progress::Arrived)
    }

    /// Takes a batch, and all others of its lane that arrived meanwhile: one sync for all.
    fn arrived(&mut self, lane: Lane, first: Outcome) {
        let queue = match lane {
            Lane::Urgent => &mut self.urgent,
            _ => &mut self.bulk,
        };
        for arrived in queue.take_arrived(first) {
            self.take_outcome(arrived);
        }
        self.settle();
        self.tell_in_flight();
    }

    /// Waits for what is being stored, if anything is: nothing may be written behind the back of
    /// whoever begins again.
    pub async fn finish_storing(&mut self) {
        if let Some(storing) = self.storing.take() {
            // What it says is not heard any more: whoever begins again reads what is on disk.
            drop(storing.await);
        }
    }

    fn take_outcome(&mut self, arrived: Arrived) {
        for register in &arrived.registers {
            if self.urgent_registers.get(register) == Some(&arrived.number) {
                self.urgent_registers.remove(register);
            }
        }
        let settled = &mut self.settled;
        settled.batches += 1;
        let mut not_newer = 0;
        let mut rows: Vec<Option<SourceRow>> = arrived.rows.into_iter().map(Some).collect();
        for refused in arrived.outcome.refused {
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
        let accepted = u64::from(arrived.outcome.accepted);
        self.board.count(|counts| {
            counts.deltas_accepted += accepted;
            counts.deltas_not_newer += not_newer;
        });
    }

    /// Moves over what both lanes have done, and stores it.
    fn settle(&mut self) {
        let arrived = Upto {
            urgent: self.urgent.arrived_number(),
            bulk: self.bulk.arrived_number(),
        };
        if let Some(mark) = self.marks.reached(arrived) {
            self.settled.checkpoint = Some(mark.checkpoint);
            self.settled.barrier = mark.barrier.or(self.settled.barrier.take());
        }
        self.store();
    }

    /// Begins to store what is settled, unless something is being stored. Dead letters first: a
    /// checkpoint says that they are safe.
    fn store(&mut self) {
        if self.storing.is_some() {
            return;
        }
        let settled = mem::take(&mut self.settled);
        // Parts of what the source gave at once: the last of them brings the checkpoint.
        if settled.letters.is_empty() && settled.checkpoint.is_none() {
            return;
        }
        let mut letters_added: BTreeMap<String, u64> = BTreeMap::new();
        for letter in &settled.letters {
            *letters_added.entry(letter.reason.clone()).or_default() += 1;
        }
        if let Some(first) = settled.letters.first() {
            tracing::warn!(
                rows = settled.letters.len(),
                first = first.reason,
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
            if !planted!(DeadLetterDropped) {
                store.add(settled.letters, now())?;
            }
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
            for (reason, rows) in &stored.letters_added {
                counts.rows_refused += rows;
                counts.dead_letter(reason, *rows);
            }
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

fn letter(row: SourceRow, refused: Refused) -> NewLetter {
    // The message may quote the row: it goes into the file only.
    tracing::debug!(
        place = row.place,
        reason = refused.reason,
        field = refused.field,
        "a row is refused by the mapping"
    );
    NewLetter {
        row,
        reason: refused.reason.to_owned(),
        field: refused.field,
        message: refused.message,
    }
}
