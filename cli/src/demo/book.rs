//! What was published and what the broker acknowledged: the other side of every comparison.

use super::{
    registers::Registers,
    view::{Counts, View},
};
use hutong_connectors::client::Receipt;
use hutong_proto::{Cursor, Delta, Issuer, Lane, LogId, Offset, Reason};
use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// A panic elsewhere fails the demo by itself; the counters behind the lock stay true.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The ledger of all sources.
#[derive(Debug)]
pub struct Book {
    pub published: AtomicU64,
    pub acknowledged: AtomicU64,
    pub refused: AtomicU64,
    /// Refused because a newer value of the same register was there already: nothing is missing.
    pub superseded: AtomicU64,
    /// Acknowledged, by platform of the demo.
    by_platform: Vec<AtomicU64>,
    /// What every view must show: the acknowledged values.
    model: Mutex<View>,
    ends: Mutex<Ends>,
    first_refusal: Mutex<Option<String>>,
}

/// The offset after the last acknowledged record of each lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    pub urgent: Offset,
    pub bulk: Offset,
}

impl Ends {
    pub fn pass(&mut self, lane: Lane, offset: Offset) {
        let end = match lane {
            Lane::Urgent => &mut self.urgent,
            Lane::Bulk => &mut self.bulk,
            Lane::Control => return,
        };
        *end = (*end).max(offset.next());
    }

    /// Whether a reader at this cursor has everything.
    pub fn are_passed_by(&self, cursor: &Cursor) -> bool {
        cursor.urgent >= self.urgent && cursor.bulk >= self.bulk
    }

    pub fn as_cursor(&self) -> Cursor {
        Cursor {
            log_id: LogId(0),
            urgent: self.urgent,
            bulk: self.bulk,
        }
    }
}

impl Book {
    pub fn new(platforms: usize, cells: usize) -> Book {
        Book {
            published: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            superseded: AtomicU64::new(0),
            by_platform: (0..platforms).map(|_| AtomicU64::new(0)).collect(),
            model: Mutex::new(View::new(cells)),
            ends: Mutex::new(Ends::default()),
            first_refusal: Mutex::new(None),
        }
    }

    /// Counts what the broker said about a batch of the platform `from`.
    pub fn settle(
        &self,
        from: usize,
        issuer: Issuer,
        deltas: &[Delta],
        receipt: &Receipt,
        registers: &Registers,
    ) {
        if let Some(error) = &receipt.error {
            self.refused.fetch_add(deltas.len() as u64, Relaxed);
            self.note_refusal(&format!("{}: {}", error.reason, error.message));
            return;
        }
        let mut refused = receipt.refused.iter().peekable();
        let mut model = lock(&self.model);
        for (i, delta) in deltas.iter().enumerate() {
            if let Some(no) = refused.next_if(|r| r.index as usize == i) {
                if no.info.reason_known == Some(Reason::RevisionNotNewer) {
                    self.superseded.fetch_add(1, Relaxed);
                } else {
                    self.refused.fetch_add(1, Relaxed);
                    self.note_refusal(&format!("{}: {}", no.info.reason, no.info.message));
                }
                continue;
            }
            let register = registers.find(issuer, &delta.entity, delta.value.kind());
            model.deliver(register, delta.value.lane(), delta.revision, &delta.value);
        }
        drop(model);
        let accepted = u64::from(receipt.accepted);
        self.acknowledged.fetch_add(accepted, Relaxed);
        self.by_platform[from].fetch_add(accepted, Relaxed);
        let mut ends = lock(&self.ends);
        for position in &receipt.positions {
            ends.pass(position.lane, position.offset);
        }
    }

    fn note_refusal(&self, text: &str) {
        lock(&self.first_refusal).get_or_insert_with(|| text.to_owned());
    }

    pub fn first_refusal(&self) -> Option<String> {
        lock(&self.first_refusal).clone()
    }

    pub fn ends(&self) -> Ends {
        *lock(&self.ends)
    }

    pub fn model(&self) -> MutexGuard<'_, View> {
        lock(&self.model)
    }

    /// How many of the acknowledged deltas a platform must have received: all but its own.
    pub fn expected_at(&self, platform: usize) -> u64 {
        let all = self.acknowledged.load(Relaxed);
        all - self.by_platform[platform].load(Relaxed)
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
    use hutong_connectors::client::{Position, Refused, RefusedInfo};
    use hutong_proto::{
        EntityId, Micros, Provenance, Revision, Sequence, Shard, Value, delta::Colour,
    };
    use std::sync::Arc;

    fn delta(entity: u8, revision: u64) -> Delta {
        Delta {
            entity: EntityId([entity; 16]),
            revision: Revision(revision),
            committed_at: Micros(1),
            expires_at: Micros::ZERO,
            evidence: String::new(),
            provenance: Arc::new(Provenance {
                authority: "a".to_owned(),
                rule_id: "r".to_owned(),
                rule_version: 1,
                reason: "x".to_owned(),
            }),
            value: Value::HealthCode(Colour::Green),
        }
    }

    #[test]
    fn only_accepted_deltas_are_expected_elsewhere() {
        let issuer = Issuer::new(340_000).expect("six digits");
        let mut registers = Registers::default();
        for entity in 1..=3 {
            registers.add(issuer, &EntityId([entity; 16]), 0);
        }
        let book = Book::new(2, registers.cells());
        let refused = |index, reason: Reason| Refused {
            index,
            info: RefusedInfo {
                reason: reason.code().to_owned(),
                reason_known: Some(reason),
                field: String::new(),
                message: "m".to_owned(),
                retryable: false,
            },
        };
        let receipt = Receipt {
            sequence: Sequence(1),
            accepted: 1,
            refused: vec![
                refused(0, Reason::TimeInFuture),
                refused(2, Reason::RevisionNotNewer),
            ],
            error: None,
            duplicate: false,
            positions: vec![Position {
                lane: Lane::Urgent,
                shard: Shard(0),
                offset: Offset(7),
                durable_at: Micros(1),
            }],
        };
        let deltas = [delta(1, 11), delta(2, 12), delta(3, 13)];
        book.settle(0, issuer, &deltas, &receipt, &registers);
        assert_eq!(book.refused.load(Relaxed), 1);
        assert_eq!(book.superseded.load(Relaxed), 1);
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
        assert_eq!(book.first_refusal().as_deref(), Some("TIME_IN_FUTURE: m"));
        let mut cursor = book.ends().as_cursor();
        assert_eq!(cursor.urgent, Offset(8));
        assert!(book.ends().are_passed_by(&cursor));
        cursor.urgent = Offset(7);
        assert!(!book.ends().are_passed_by(&cursor));
    }
}
