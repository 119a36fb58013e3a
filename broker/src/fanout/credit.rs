//! How many bytes a subscriber is ready to take.

use std::sync::atomic::{AtomicI64, Ordering};
use tokio::sync::Notify;

/// Falls below zero by at most one message, so that a message larger than all credit still goes out.
#[derive(Debug)]
pub struct Credit {
    /// All there is when nothing is under way.
    max: i64,
    bytes: AtomicI64,
    /// In what pieces the client gives back, about; 0 before the first.
    piece: AtomicI64,
    more: Notify,
}

impl Credit {
    pub fn new(bytes: u64) -> Credit {
        let max = i64::try_from(bytes).unwrap_or(i64::MAX);
        Credit {
            max,
            bytes: AtomicI64::new(max),
            piece: AtomicI64::new(0),
            more: Notify::new(),
        }
    }

    pub fn available(&self) -> bool {
        self.bytes.load(Ordering::Acquire) > 0
    }

    /// Bytes that the client has not given back: on their way, or waiting at its end.
    pub fn under_way(&self) -> usize {
        let bytes = self.max.saturating_sub(self.bytes.load(Ordering::Acquire));
        usize::try_from(bytes).unwrap_or(0)
    }

    /// The largest of the last pieces in which the client gave back; 0 before it did. So much may be taken and
    /// not yet given back.
    pub fn piece(&self) -> usize {
        usize::try_from(self.piece.load(Ordering::Acquire)).unwrap_or(0)
    }

    pub fn spend(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes as i64, Ordering::AcqRel);
    }

    /// Gives back, up to all there is: a client cannot make the broker send without bound.
    pub fn give(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let max = self.max;
        // One task gives. A piece that was large once is forgotten after some that were small.
        let before = self.piece.load(Ordering::Acquire);
        let piece = bytes.min(max).max(before - (before + 7) / 8);
        self.piece.store(piece, Ordering::Release);
        // The closure always gives a value, so this cannot fail.
        let updated = self
            .bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| {
                Some(now.saturating_add(bytes).min(max))
            });
        debug_assert!(updated.is_ok());
        self.more.notify_one();
    }

    /// Returns when there may be credit.
    pub async fn changed(&self) {
        self.more.notified().await;
    }
}
