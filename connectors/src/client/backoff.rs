//! How long to wait before the next try: longer each time, and never the same for everyone.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Waits grow from `first` to `max` by doubling, each shortened by up to half at random.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
    /// For clients that must do the same each time, as in a simulation: what the jitter is drawn from.
    pub jitter_seed: Option<u64>,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            first: Duration::from_millis(100),
            max: Duration::from_secs(5),
            jitter_seed: None,
        }
    }
}

impl Backoff {
    /// Before try number `tries`, counted from 0.
    pub fn wait(&self, tries: u32) -> Duration {
        let full = self.first.saturating_mul(1 << tries.min(16)).min(self.max);
        // All clients of a broker that stopped come back at once: the jitter spreads them.
        let random = match self.jitter_seed {
            None => RandomState::new().hash_one(tries) % 1000,
            Some(seed) => (seed ^ u64::from(tries)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32,
        };
        let random = random % 1000;
        full / 2 + full / 2 * random as u32 / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_limit() {
        let backoff = Backoff::default();
        for tries in 0..40 {
            let full = backoff
                .first
                .saturating_mul(1 << tries.min(16))
                .min(backoff.max);
            let wait = backoff.wait(tries);
            assert!(wait >= full / 2 && wait <= full, "{tries}: {wait:?}");
        }
    }
}
