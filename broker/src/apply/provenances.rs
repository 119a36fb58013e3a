//! How many different provenance entries each platform has brought into the state. They stay there, as a
//! register may refer to any of them, so there is a limit. Apply counts; ingress asks before it takes more.

use hutong_proto::{Issuer, limits};
use parking_lot::Mutex;
use std::collections::HashMap;

#[derive(Debug, Default)]
pub struct Provenances {
    counts: Mutex<HashMap<Issuer, u64>>,
}

impl Provenances {
    pub fn set(&self, issuer: Issuer, count: u64) {
        self.counts.lock().insert(issuer, count);
    }

    pub fn count(&self, issuer: Issuer) -> u64 {
        self.counts.lock().get(&issuer).copied().unwrap_or(0)
    }

    /// One more; returns how many there are now.
    pub fn add(&self, issuer: Issuer) -> u64 {
        let mut counts = self.counts.lock();
        let count = counts.entry(issuer).or_default();
        *count += 1;
        *count
    }

    /// How many a batch may still bring. Batches that are under way are not counted yet, so a platform may
    /// get over the limit by as much as its credit has.
    pub fn left(&self, issuer: Issuer) -> u64 {
        limits::PROVENANCES_PER_PLATFORM_MAX.saturating_sub(self.count(issuer))
    }
}
