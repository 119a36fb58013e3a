//! One lane's way to the broker: what is gathered, what waits, and what is under way. Lanes have a
//! stream each, so neither waits for the other's acks.

use super::{
    LinkError, Outcome, Outlet, Pending, Trouble,
    gather::{Batch, Register},
};
use crate::source::SourceRow;
use futures_util::FutureExt;
use hutong_proto::{Delta, Lane};
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Batches of a lane that are under way. The publisher takes so many without a wait, also while it
/// has no connection.
pub(super) const BATCHES_MAX: usize = 32;

/// While so many are on their way, what comes is gathered: under load batches grow, and a lone delta
/// never waits.
const BATCHES_EAGER: usize = 2;

struct Flight {
    number: u64,
    pending: Pending,
    /// What the wait ended with, if it was an error that nobody has heard yet.
    failed: Option<LinkError>,
    rows: Vec<SourceRow>,
    registers: Vec<Register>,
}

/// A batch that arrived, in the order in which they were sent.
pub(super) struct Arrived {
    pub number: u64,
    pub rows: Vec<SourceRow>,
    pub registers: Vec<Register>,
    pub outcome: Outcome,
}

/// The batches of one lane that have not arrived.
pub(super) struct LaneQueue {
    lane: Lane,
    gathered: Batch,
    /// They are whole, and wait until others arrived.
    waiting: VecDeque<Batch>,
    waiting_bytes: usize,
    flights: VecDeque<Flight>,
    arrived: u64,
    /// How long whole batches waited for those under way, and since when they do now.
    held_back: Duration,
    full_since: Option<Instant>,
}

impl LaneQueue {
    pub fn new(lane: Lane) -> LaneQueue {
        LaneQueue {
            lane,
            gathered: Batch::new(1),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            flights: VecDeque::new(),
            arrived: 0,
            held_back: Duration::ZERO,
            full_since: None,
        }
    }

    /// Could another batch go now?
    pub fn has_room(&self) -> bool {
        self.flights.len() < BATCHES_MAX && self.waiting.is_empty()
    }

    /// In memory, about, without what is under way.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes + self.gathered.memory_bytes
    }

    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// How long whole batches waited because as many as may be were under way. Small ones reach that
    /// bound long before the broker's credit is used up.
    pub fn held_back(&self) -> Duration {
        let now = self.full_since.map(|since| since.elapsed());
        self.held_back + now.unwrap_or_default()
    }

    fn tell_full(&mut self) {
        let full = self.flights.len() >= BATCHES_MAX && !self.waiting.is_empty();
        if full != self.full_since.is_some() {
            self.held_back = self.held_back();
            self.full_since = full.then(Instant::now);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.waiting.is_empty() && self.gathered.is_empty()
    }

    /// The last batch that arrived, with all before it.
    pub fn arrived_number(&self) -> u64 {
        self.arrived
    }

    /// The batch that is being gathered.
    pub fn gathering_number(&self) -> u64 {
        self.gathered.number
    }

    /// The last batch that has anything in it.
    pub fn last_number(&self) -> u64 {
        match self.gathered.is_empty() {
            true => self.gathered.number - 1,
            false => self.gathered.number,
        }
    }

    /// Takes a delta, for a batch that must not go before the urgent batch `after` arrived. Says
    /// whether that made the batch whole.
    pub fn take(&mut self, row: SourceRow, delta: Delta, bytes: usize, after: u64) -> bool {
        self.gathered.after = self.gathered.after.max(after);
        self.gathered.push(row, delta, bytes);
        let whole = self.gathered.is_full();
        if whole {
            self.close();
        }
        whole
    }

    fn close(&mut self) {
        let next = Batch::new(self.gathered.number + 1);
        let batch = std::mem::replace(&mut self.gathered, next);
        self.waiting_bytes += batch.memory_bytes;
        self.waiting.push_back(batch);
    }

    /// Sends what may go: with `all`, also what could still grow.
    pub async fn send(
        &mut self,
        outlet: &mut impl Outlet,
        all: bool,
        urgent_arrived: u64,
    ) -> Result<(), Trouble> {
        while self.flights.len() < BATCHES_MAX {
            let eager = all || self.flights.len() < BATCHES_EAGER;
            if eager && self.waiting.is_empty() && !self.gathered.is_empty() {
                self.close();
            }
            match self.waiting.front() {
                Some(batch) if batch.after <= urgent_arrived => {}
                _ => break,
            }
            let Some(batch) = self.waiting.pop_front() else {
                break;
            };
            self.waiting_bytes -= batch.memory_bytes;
            let register = |delta: &Delta| (delta.entity, delta.value.kind());
            let registers = match self.lane {
                Lane::Urgent => batch.deltas.iter().map(register).collect(),
                _ => Vec::new(),
            };
            self.flights.push_back(Flight {
                number: batch.number,
                pending: outlet.publish(self.lane, batch.deltas).await?,
                failed: None,
                rows: batch.rows,
                registers,
            });
        }
        self.tell_full();
        Ok(())
    }

    /// Gives up what waits, so that it need not be waited for: its rows come again. The hole that is left
    /// keeps the checkpoint before them.
    pub fn give_up_waiting(&mut self) {
        if !self.waiting.is_empty() {
            self.waiting.clear();
            self.waiting_bytes = 0;
            self.gathered = Batch::new(self.gathered.number + 1);
            self.tell_full();
        }
    }

    /// Waits until the first batch arrived; for ever when none is under way. Cancel-safe.
    pub async fn arrival(&mut self) -> Result<Outcome, LinkError> {
        let Some(flight) = self.flights.front_mut() else {
            return std::future::pending().await;
        };
        match flight.failed.take() {
            Some(error) => Err(error),
            None => (&mut flight.pending).await,
        }
    }

    /// Takes the first batch, which arrived with this outcome, and all others that arrived meanwhile.
    pub fn take_arrived(&mut self, first: Outcome) -> Vec<Arrived> {
        let mut all = Vec::new();
        let mut arrived = Some(first);
        while let Some(outcome) = arrived.take() {
            if let Some(flight) = self.flights.pop_front() {
                // A batch that was given up on its way leaves a hole: nothing after it counts.
                if flight.number == self.arrived + 1 {
                    self.arrived = flight.number;
                }
                all.push(Arrived {
                    number: flight.number,
                    rows: flight.rows,
                    registers: flight.registers,
                    outcome,
                });
            }
            // An error is kept: what arrived before it did arrive.
            if let Some(flight) = self.flights.front_mut()
                && flight.failed.is_none()
                && let Some(next) = (&mut flight.pending).now_or_never()
            {
                arrived = next.map_err(|e| flight.failed = Some(e)).ok();
            }
        }
        self.tell_full();
        all
    }
}
