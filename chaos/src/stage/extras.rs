//! Clients that faults bring in and that stay until the end of the drill.

use crate::{
    clients::{Producer, Reader, Until},
    proxy::Line,
    stage::process::Hold,
};
use hutong_connectors::client::Publisher;
use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use tokio::{sync::watch, task::JoinSet};

#[derive(Debug)]
pub struct Extras {
    readers: Mutex<JoinSet<Reader>>,
    publishing: Mutex<JoinSet<u64>>,
    lines: Mutex<Vec<Line>>,
    /// Of processes that must not start any more.
    down: Mutex<Vec<Hold>>,
    pub(super) read_until: watch::Sender<bool>,
    pub(super) give_up: watch::Sender<bool>,
    flood: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole after every call, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Extras {
    fn default() -> Extras {
        Extras {
            readers: Mutex::default(),
            publishing: Mutex::default(),
            lines: Mutex::default(),
            down: Mutex::default(),
            read_until: watch::Sender::new(false),
            give_up: watch::Sender::new(false),
            flood: AtomicU64::new(1),
        }
    }
}

impl Extras {
    /// Reads until the end of the drill.
    pub fn read(&self, reader: Reader) {
        let until = Until::Told(self.read_until.subscribe());
        lock(&self.readers).spawn(reader.run(until));
    }

    pub fn publish(&self, producer: Producer, publisher: Publisher) {
        let give_up = self.give_up.subscribe();
        lock(&self.publishing).spawn(producer.run(publisher, give_up));
    }

    /// Lines live as long as those who use them.
    pub fn keep(&self, lines: Vec<Line>) {
        lock(&self.lines).extend(lines);
    }

    /// Until the end of the drill: what it stands on could not be put right.
    pub fn keep_down(&self, hold: Hold) {
        lock(&self.down).push(hold);
    }

    /// Is somebody kept down for good?
    pub fn keeps_down(&self) -> bool {
        !lock(&self.down).is_empty()
    }

    /// The first of so many revisions of a flood, which no other flood has.
    pub fn flood_from(&self, count: u64) -> u64 {
        self.flood.fetch_add(count, Ordering::AcqRel)
    }

    pub(super) fn take_readers(&self) -> JoinSet<Reader> {
        std::mem::take(&mut *lock(&self.readers))
    }

    pub(super) fn take_publishing(&self) -> JoinSet<u64> {
        std::mem::take(&mut *lock(&self.publishing))
    }
}
