//! Keeps bulk out of the log while state has little room. Apply goes in the order of the log, so when it must wait
//! until a run went down, urgent records wait with it, however few they are. So bulk stops a little earlier, before
//! it is committed, and what room is left is for what is urgent.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Open unless somebody shuts it.
#[derive(Debug)]
pub struct BulkGate {
    shut: AtomicBool,
    /// For metrics.
    since: Mutex<Option<Instant>>,
    told: Sender<()>,
    opened: Receiver<()>,
}

impl Default for BulkGate {
    fn default() -> BulkGate {
        let (told, opened) = bounded(1);
        BulkGate {
            shut: AtomicBool::new(false),
            since: Mutex::new(None),
            told,
            opened,
        }
    }
}

impl BulkGate {
    pub fn is_open(&self) -> bool {
        !self.shut.load(Ordering::Acquire)
    }

    pub fn shut(&self, shut: bool) {
        let was = self.shut.swap(shut, Ordering::AcqRel);
        if was != shut {
            *self.since.lock() = shut.then(Instant::now);
        }
        if was && !shut {
            match self.told.try_send(()) {
                // One is enough: who takes it looks for itself.
                Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
            }
        }
    }

    /// How long it has been shut so far; zero when it is open.
    pub fn shut_for(&self) -> Duration {
        self.since.lock().map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// Gives something after it was opened; it may be shut again by then.
    pub fn opened(&self) -> &Receiver<()> {
        &self.opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_at_it_is_told_once_when_it_opens() {
        let gate = BulkGate::default();
        assert!(gate.is_open());
        gate.shut(false);
        assert!(gate.opened().try_recv().is_err(), "it was open");
        gate.shut(true);
        gate.shut(true);
        assert!(!gate.is_open());
        let shut_for = gate.shut_for();
        assert!(gate.shut_for() >= shut_for, "shut again, it counts on");
        assert!(gate.opened().try_recv().is_err());
        for _ in 0..3 {
            gate.shut(true);
            gate.shut(false);
        }
        assert!(gate.is_open());
        assert_eq!(gate.shut_for(), Duration::ZERO);
        assert_eq!(gate.opened().try_iter().count(), 1);
    }
}
