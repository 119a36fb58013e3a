//! The real log and the real state, opened and driven as the broker does it, but from one thread.

use crate::sweep::plan::Planned;
use hutong_planted_broker::{
    apply::{Apply, waiters::Waiters},
    clock,
    log::{
        Append, AppendError, Log, Tail,
        embedded::{EmbeddedLog, EmbeddedOptions},
        faults::Faults,
    },
    metrics::Metrics,
    state::{State, StateOptions},
    tail::TailRings,
};
use hutong_proto::Offset;
use std::{
    path::Path,
    sync::{Arc, mpsc},
};

/// Small, so that a short workload has runs that go down by themselves.
const GATHER_BYTES_MAX: usize = 24 << 10;
const GROUP_BYTES_MAX: usize = 32 << 10;

/// Both, open.
pub struct Store {
    pub log: Arc<EmbeddedLog>,
    pub state: Arc<State>,
    apply: Apply,
    tail: Box<dyn Tail>,
    rings: Arc<TailRings>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}

/// Told of each record that the log acknowledged.
pub type OnAck = Arc<dyn Fn(usize, Offset) + Send + Sync>;

impl Store {
    /// Opens what is in a folder; nothing is applied yet.
    pub fn open(dir: &Path, faults: Faults) -> Result<Store, String> {
        let options = EmbeddedOptions {
            group_bytes_max: GROUP_BYTES_MAX,
            clock: clock::system(),
            faults,
            ..EmbeddedOptions::default()
        };
        let log = EmbeddedLog::open(&dir.join("log"), options).map_err(|e| e.to_string())?;
        let options = StateOptions {
            gather_bytes_max: GATHER_BYTES_MAX,
            block_cache_bytes: 1 << 20,
            ..StateOptions::default()
        };
        let state = State::open(&dir.join("state"), options).map_err(|e| e.to_string())?;
        let (log, state) = (Arc::new(log), Arc::new(state));
        let (stored, end) = (state.stored().next, log.next_offset());
        if stored > end {
            return Err(format!(
                "INV-5: state is applied below {stored}, the log ends at {end}"
            ));
        }
        let rings = Arc::new(TailRings::new(stored, 1 << 20, 1 << 20));
        let tail = log.tail(stored).map_err(|e| e.to_string())?;
        let metrics = Metrics::new([]).recorder();
        let waiters = Arc::new(Waiters::default());
        let apply = Apply::open(Arc::clone(&state), Arc::clone(&rings), waiters, metrics);
        Ok(Store {
            apply: apply.map_err(|e| e.to_string())?,
            log,
            state,
            tail,
            rings,
        })
    }

    /// Applies until everything up to this offset is.
    pub fn apply_up_to(&mut self, last: Offset) -> Result<(), String> {
        while self.rings.next() <= last {
            let group = self.tail.next().ok_or("the tail of the log ended")?;
            self.apply.group(&group).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// The newest record that is stored.
    pub fn last(&self) -> Offset {
        let last = self.log.partitions().iter().map(|p| p.last).max();
        last.unwrap_or(Offset::NONE)
    }

    /// Appends, and tells when the log has acknowledged it.
    pub fn append(
        &self,
        number: usize,
        planned: &Planned,
        on_ack: &OnAck,
        told: mpsc::Sender<Result<Offset, AppendError>>,
    ) {
        let on_ack = Arc::clone(on_ack);
        self.log.append(Append {
            partition: planned.partition,
            kinds: planned.kinds,
            deltas: planned.deltas,
            record: planned.record.clone(),
            done: Box::new(move |result| {
                if let Ok(offset) = result {
                    on_ack(number, offset);
                }
                // Whoever waits may have stopped to.
                told.send(result).ok();
            }),
        });
    }

    /// Closes as a broker does that is told to stop.
    pub fn close(self) -> Result<(), String> {
        self.log.close();
        self.state.close().map_err(|e| e.to_string())
    }
}
