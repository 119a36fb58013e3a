//! What was published and what was acknowledged: the other side of every comparison.

use super::{
    platform::Platform,
    registers::Registers,
    view::{Counts, View},
};
use hutong_proto::{EntityId, Revision, Value};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// A panic elsewhere fails the demo by itself; the counters behind the lock stay true.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one row says, as its source knows it: not by way of the mapping and the wire.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub entity: EntityId,
    pub revision: Revision,
    pub value: &'a Value,
}

/// The ledger of all sources.
#[derive(Debug)]
pub struct Book {
    registers: Arc<Registers>,
    published: AtomicU64,
    /// By platform of the demo: rows that their connector's checkpoint has passed.
    settled: Vec<AtomicU64>,
    /// Those of them that are among the dead letters.
    refused: Vec<AtomicU64>,
    /// What every view must show: the acknowledged values.
    model: Mutex<View>,
}

impl Book {
    pub fn new(platforms: usize, registers: Arc<Registers>) -> Book {
        let zeros = || (0..platforms).map(|_| AtomicU64::new(0)).collect();
        Book {
            published: AtomicU64::new(0),
            settled: zeros(),
            refused: zeros(),
            model: Mutex::new(View::new(registers.cells())),
            registers,
        }
    }

    /// Rows were committed at a source.
    pub fn publish(&self, rows: usize) {
        self.published.fetch_add(rows as u64, Relaxed);
    }

    /// A connector's checkpoint has passed rows of the platform `from`.
    pub fn settle<'a>(&self, from: &Platform, rows: impl Iterator<Item = Entry<'a>>) {
        let mut model = lock(&self.model);
        let mut count = 0;
        for Entry {
            entity,
            revision,
            value,
        } in rows
        {
            let register = self.registers.find(from.issuer, &entity, value.kind());
            model.deliver(register, value.lane(), revision, value);
            count += 1;
        }
        self.settled[from.index].fetch_add(count, Relaxed);
    }

    /// So many rows of a platform are dead letters.
    pub fn refuse(&self, from: &Platform, rows: u64) {
        self.refused[from.index].store(rows, Relaxed);
    }

    pub fn published(&self) -> u64 {
        self.published.load(Relaxed)
    }

    pub fn refused(&self) -> u64 {
        self.refused.iter().map(|r| r.load(Relaxed)).sum()
    }

    fn acknowledged_of(&self, platform: usize) -> u64 {
        let settled = self.settled[platform].load(Relaxed);
        settled.saturating_sub(self.refused[platform].load(Relaxed))
    }

    pub fn acknowledged(&self) -> u64 {
        (0..self.settled.len())
            .map(|p| self.acknowledged_of(p))
            .sum()
    }

    pub fn model(&self) -> MutexGuard<'_, View> {
        lock(&self.model)
    }

    /// How many of the acknowledged deltas a platform must have received: all but its own.
    pub fn expected_at(&self, platform: usize) -> u64 {
        self.acknowledged() - self.acknowledged_of(platform)
    }

    /// Acknowledged for other platforms and not delivered to this one.
    pub fn lost_at(&self, platform: usize, counts: &Counts) -> u64 {
        self.expected_at(platform).saturating_sub(counts.distinct())
    }

    /// Delivered to this platform more than once.
    pub fn doubled_at(&self, platform: usize, counts: &Counts) -> u64 {
        counts.doubled + counts.distinct().saturating_sub(self.expected_at(platform))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::platforms::first;
    use hutong_proto::delta::Colour;

    #[test]
    fn only_what_was_acknowledged_is_expected_elsewhere() {
        let platform = Platform::new(0, &first(1)[0], 0, Revision(0));
        let mut registers = Registers::default();
        let entities = [1, 2, 3].map(|n| EntityId([n; 16]));
        for entity in &entities {
            registers.add(platform.issuer, entity, 0);
        }
        let book = Book::new(2, Arc::new(registers));
        book.publish(4);
        let value = Value::HealthCode(Colour::Green);
        let rows = entities.iter().zip(11..).map(|(entity, n)| Entry {
            entity: *entity,
            revision: Revision(n),
            value: &value,
        });
        book.settle(&platform, rows);
        book.refuse(&platform, 2);
        assert_eq!((book.published(), book.acknowledged()), (4, 1));
        assert_eq!(book.refused(), 2);
        assert_eq!(book.expected_at(0), 0);
        assert_eq!(book.expected_at(1), 1);
        assert_eq!(book.lost_at(1, &Counts::default()), 1);
        let too_much = Counts {
            applied: 1,
            overtaken: 2,
            ..Counts::default()
        };
        assert_eq!(book.lost_at(1, &too_much), 0);
        assert_eq!(book.doubled_at(1, &too_much), 2);
    }
}
