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
    thread::JoinHandle,
    time::Duration,
};

/// Small, so that a short workload has runs that go down by themselves.
pub const GATHER_BYTES_MAX: usize = 24 << 10;
const GROUP_BYTES_MAX: usize = 32 << 10;
/// And several segments, if there are many registers.
const SEGMENT_BYTES: u64 = 16 << 10;

/// Both, open.
pub struct Store {
    pub log: Arc<EmbeddedLog>,
    pub state: Arc<State>,
    rings: Arc<TailRings>,
    applying: Applying,
    runtime: tokio::runtime::Runtime,
}

/// Apply has a thread of its own, as in the broker: the log waits for it, and it for the log.
enum Applying {
    NotYet(Box<Apply>, Box<dyn Tail>),
    Running(JoinHandle<Result<(), String>>),
    Ended,
}

/// Whether an error is of the machine that runs this, and says nothing about the store.
pub fn of_the_machine(why: &str) -> bool {
    const WORDS: [&str; 4] = [
        "No space left",
        "Too many open files",
        "Cannot allocate memory",
        "Disk quota exceeded",
    ];
    WORDS.iter().any(|words| why.contains(words))
}

/// Nothing here takes longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

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
        let small = StateOptions {
            gather_bytes_max: GATHER_BYTES_MAX,
            segment_bytes: SEGMENT_BYTES,
            ..StateOptions::default()
        };
        Store::open_with(dir, faults, small)
    }

    /// The same, with a state of another size.
    pub fn open_with(dir: &Path, faults: Faults, size: StateOptions) -> Result<Store, String> {
        let options = EmbeddedOptions {
            group_bytes_max: GROUP_BYTES_MAX,
            clock: clock::system(),
            faults,
            ..EmbeddedOptions::default()
        };
        let log = EmbeddedLog::open(&dir.join("log"), options).map_err(|e| e.to_string())?;
        let options = StateOptions {
            block_cache_bytes: 1 << 20,
            // So that a short workload has merges too.
            runs_merged: 2,
            ..size
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
        let apply = Box::new(apply.map_err(|e| e.to_string())?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Store {
            log,
            state,
            rings,
            applying: Applying::NotYet(apply, tail),
            runtime,
        })
    }

    /// Returns when everything up to this offset is applied.
    pub fn apply_up_to(&mut self, last: Offset) -> Result<(), String> {
        self.applying = match std::mem::replace(&mut self.applying, Applying::Ended) {
            Applying::NotYet(apply, tail) => {
                let run = move || apply.run(tail).map_err(|error| error.to_string());
                Applying::Running(std::thread::spawn(run))
            }
            other => other,
        };
        let mut applied = self.rings.applied();
        let reached = async {
            let reached = applied.wait_for(|next| *next > last);
            tokio::time::timeout(PATIENCE, reached)
                .await
                .is_ok_and(|r| r.is_ok())
        };
        match self.runtime.block_on(reached) {
            true => Ok(()),
            false => Err(self
                .join()
                .err()
                .unwrap_or_else(|| "apply hangs".to_owned())),
        }
    }

    fn join(&mut self) -> Result<(), String> {
        match std::mem::replace(&mut self.applying, Applying::Ended) {
            Applying::Running(thread) => {
                self.log.close();
                thread
                    .join()
                    .unwrap_or_else(|_| Err("apply panicked".to_owned()))
            }
            Applying::NotYet(..) | Applying::Ended => Ok(()),
        }
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
    pub fn close(mut self) -> Result<(), String> {
        self.log.close();
        self.join()?;
        self.state.close().map_err(|e| e.to_string())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // As after a crash, but nothing goes on working on the files.
        self.log.close();
        self.join().ok();
        self.state.stop();
    }
}
