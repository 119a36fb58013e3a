//! How far a platform's clock is from ours, as far as that can be known.
//!
//! Its clients say what time it is when they connect: exact but for the time on the line, and as old as the
//! connection. A delta from the future shows a clock that went ahead since; one from the past shows nothing,
//! because it may have waited.

use hutong_proto::Micros;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// What deltas showed is forgotten after so long: the clock may have been set.
const SEEN_FOR_US: u64 = 60_000_000;
const UNKNOWN: i64 = i64::MIN;

#[derive(Debug)]
pub struct Skew {
    said_us: AtomicI64,
    ahead_us: AtomicU64,
    ahead_at: AtomicU64,
}

impl Default for Skew {
    fn default() -> Skew {
        Skew {
            said_us: AtomicI64::new(UNKNOWN),
            ahead_us: AtomicU64::new(0),
            ahead_at: AtomicU64::new(0),
        }
    }
}

impl Skew {
    pub fn said(&self, ahead_us: i64) {
        self.said_us.store(ahead_us.max(UNKNOWN + 1), Relaxed);
    }

    pub fn ahead(&self, ahead_us: u64, now: Micros) {
        self.ahead_us.store(ahead_us, Relaxed);
        self.ahead_at.store(now.0, Relaxed);
    }

    /// In seconds; `None` while nothing is known.
    pub fn seconds(&self, now: Micros) -> Option<f64> {
        let said = match self.said_us.load(Relaxed) {
            UNKNOWN => None,
            said => Some(said as f64 / 1e6),
        };
        let age = now.0.saturating_sub(self.ahead_at.load(Relaxed));
        let seen = match self.ahead_us.load(Relaxed) {
            0 => None,
            ahead => (age < SEEN_FOR_US).then_some(ahead as f64 / 1e6),
        };
        match (said, seen) {
            (Some(said), Some(seen)) => Some(said.max(seen)),
            (said, seen) => said.or(seen),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_stays_and_what_was_seen_is_forgotten() {
        let skew = Skew::default();
        let at = Micros(1_000_000_000);
        assert_eq!(skew.seconds(at), None);
        skew.ahead(2_000_000, at);
        assert_eq!(skew.seconds(at), Some(2.0));
        skew.said(-500_000);
        assert_eq!(
            skew.seconds(at),
            Some(2.0),
            "it went ahead since it said so"
        );
        assert_eq!(skew.seconds(Micros(at.0 + SEEN_FOR_US)), Some(-0.5));
        skew.said(7_000_000);
        assert_eq!(skew.seconds(at), Some(7.0));
    }
}
