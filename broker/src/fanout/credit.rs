//! How many bytes a subscriber is ready to take.

use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// What was given back is counted over so long.
const SECOND: Duration = Duration::from_secs(1);

/// Falls below zero by at most one message, so that a message larger than all credit still goes out.
#[derive(Debug)]
pub struct Credit {
    /// All there is when nothing is under way.
    max: i64,
    bytes: AtomicI64,
    /// In what pieces the client gives back, about; 0 before the first.
    piece: AtomicI64,
    given: Mutex<Option<Given>>,
    more: Notify,
}

/// What a client gives back, second by second.
#[derive(Clone, Copy, Debug)]
struct Given {
    since: Instant,
    bytes: u64,
    /// In the second before.
    before: u64,
}

impl Given {
    fn roll(&mut self) {
        let elapsed = self.since.elapsed();
        if elapsed >= SECOND {
            self.before = (self.bytes as f64 / elapsed.as_secs_f64()) as u64;
            self.bytes = 0;
            self.since = Instant::now();
        }
    }
}

impl Credit {
    pub fn new(bytes: u64) -> Credit {
        let max = i64::try_from(bytes).unwrap_or(i64::MAX);
        Credit {
            max,
            bytes: AtomicI64::new(max),
            piece: AtomicI64::new(0),
            given: Mutex::new(None),
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

    /// How much the client gives back in a second, about; `None` before it first did.
    pub fn given_in_a_second(&self) -> Option<usize> {
        let mut given = self.given.lock();
        let given = given.as_mut()?;
        given.roll();
        usize::try_from(given.bytes.max(given.before)).ok()
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
        let mut given = self.given.lock();
        let given = given.get_or_insert_with(|| Given {
            since: Instant::now(),
            bytes: 0,
            before: 0,
        });
        given.roll();
        given.bytes = given.bytes.saturating_add(bytes as u64);
        self.more.notify_one();
    }

    /// Returns when there may be credit.
    pub async fn changed(&self) {
        self.more.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_may_go_below_zero_and_giving_back_stops_at_all_there_is() {
        let credit = Credit::new(100);
        credit.spend(99);
        assert!(credit.available());
        credit.spend(1);
        assert!(!credit.available(), "nothing is left");
        credit.give(1);
        assert!(credit.available());
        credit.spend(500);
        assert_eq!(credit.under_way(), 599);
        credit.give(499);
        assert!(!credit.available());
        credit.give(10_000);
        assert_eq!(credit.under_way(), 0);
        credit.spend(100);
        assert!(!credit.available(), "no more than there was");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_counts_by_the_second() {
        let credit = Credit::new(1 << 20);
        assert_eq!(credit.given_in_a_second(), None);
        credit.give(100);
        credit.give(200);
        assert_eq!(credit.given_in_a_second(), Some(300));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(credit.given_in_a_second(), Some(150));
        credit.give(40);
        assert_eq!(credit.given_in_a_second(), Some(150), "the second before");
        tokio::time::advance(SECOND).await;
        assert_eq!(credit.given_in_a_second(), Some(40));
        tokio::time::advance(SECOND).await;
        assert_eq!(credit.given_in_a_second(), Some(0));
    }

    #[test]
    fn a_large_piece_is_forgotten_by_an_eighth_at_a_time() {
        let credit = Credit::new(4 << 20);
        credit.give(2 << 20);
        credit.give(64 << 10);
        assert_eq!(credit.piece(), (2 << 20) * 7 / 8);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_credit_waits_until_some_is_given() {
        let credit = Credit::new(100);
        let hour = Duration::from_secs(3600);
        let waited = tokio::time::timeout(hour, credit.changed()).await;
        waited.expect_err("nobody gave any");
        credit.give(1);
        let waited = tokio::time::timeout(hour, credit.changed()).await;
        waited.expect("some was given");
    }
}
