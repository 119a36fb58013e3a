//! Batches whose producers wait: an ack is sent when every part of a batch is durable and applied.

use crate::apply::{producers::Fate, provenances::Provenances, ways::Ways};
use hutong_proto::{Epoch, Issuer, Micros, Offset, Partition, Sequence};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Instant};
use tokio::sync::oneshot;

use crate::log::AppendError;

/// What became of one part of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartOutcome {
    pub partition: Partition,
    pub offset: Offset,
    pub durable_at: Micros,
    /// When it became visible.
    pub applied_at: Instant,
    pub fate: Fate,
    /// Indexes in the record of deltas whose register was newer already.
    pub stale: Vec<u32>,
}

pub type BatchOutcome = Result<Vec<PartOutcome>, AppendError>;

/// A batch is known by who sent it and its number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchKey {
    pub issuer: Issuer,
    pub producer: Arc<str>,
    pub epoch: Epoch,
    pub sequence: Sequence,
}

impl BatchKey {
    /// For what begins an epoch; no batch has this number.
    pub fn opening(issuer: Issuer, producer: Arc<str>, epoch: Epoch) -> BatchKey {
        BatchKey {
            issuer,
            producer,
            epoch,
            sequence: Sequence::NONE,
        }
    }
}

/// Whatever is given back when a part is applied, such as its room.
pub type Held = Box<dyn std::any::Any + Send + Sync>;

#[derive(Debug)]
struct Waiting {
    arrived_at: Micros,
    parts: usize,
    /// What a part holds until it is applied, not until the producer takes its ack or the other parts of
    /// its batch have room: that would be room of others.
    held: Vec<(Partition, Held)>,
    done: Vec<PartOutcome>,
    answer: oneshot::Sender<BatchOutcome>,
}

/// Shared by ingress, which registers before it appends, and apply, which resolves. Bounded by the
/// credit of the sessions.
#[derive(Debug, Default)]
pub struct Waiters {
    /// What apply counts and ingress asks for.
    pub provenances: Provenances,
    /// If anybody traces.
    ways: Option<Arc<Ways>>,
    batches: Mutex<HashMap<BatchKey, Waiting>>,
}

/// A batch whose session ends before all its parts are appended waits for those that are, and no more:
/// until then they hold their room.
#[derive(Debug)]
pub struct Registration<'a> {
    waiters: &'a Waiters,
    key: Option<&'a BatchKey>,
}

impl Registration<'_> {
    /// Call before the part is appended: apply may be quick.
    pub fn hold(&self, partition: Partition, held: Held) {
        if let Some(key) = self.key
            && let Some(waiting) = self.waiters.batches.lock().get_mut(key)
        {
            waiting.held.push((partition, held));
        }
    }

    /// The log has every part, and will tell what came of it.
    pub fn complete(mut self) {
        self.key = None;
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut batches = self.waiters.batches.lock();
        if let Some(waiting) = batches.get_mut(key) {
            waiting.parts = waiting.held.len() + waiting.done.len();
            if waiting.held.is_empty() {
                batches.remove(key);
            }
        }
    }
}

impl Waiters {
    /// Of a broker that tells when what it acknowledged had arrived and was applied.
    pub fn telling(ways: Arc<Ways>) -> Waiters {
        Waiters {
            ways: Some(ways),
            ..Waiters::default()
        }
    }

    pub fn ways(&self) -> Option<&Ways> {
        self.ways.as_deref()
    }

    /// Call before the first part is appended. A batch under the same key that still waits (its
    /// session was taken over) is forgotten: its connection is gone.
    pub fn register<'a>(
        &'a self,
        key: &'a BatchKey,
        parts: usize,
        arrived_at: Micros,
    ) -> (Registration<'a>, oneshot::Receiver<BatchOutcome>) {
        let (answer, outcome) = oneshot::channel();
        let waiting = Waiting {
            arrived_at,
            parts,
            held: Vec::with_capacity(parts),
            done: Vec::with_capacity(parts),
            answer,
        };
        self.batches.lock().insert(key.clone(), waiting);
        let registration = Registration {
            waiters: self,
            key: Some(key),
        };
        (registration, outcome)
    }

    /// One part is durable and applied.
    pub fn applied(&self, key: &BatchKey, part: PartOutcome) {
        if planted!(WakeUpDropped, once in 8) {
            return;
        }
        let mut batches = self.batches.lock();
        let Some(waiting) = batches.get_mut(key) else {
            return;
        };
        if waiting.done.iter().any(|p| p.partition == part.partition) {
            return;
        }
        if let Some(ways) = &self.ways {
            // Before the ack: who has that may ask.
            let (partition, offset) = (part.partition, part.offset);
            ways.arrived(partition, offset, waiting.arrived_at, part.durable_at);
        }
        waiting.held.retain(|(held, _)| *held != part.partition);
        waiting.done.push(part);
        if (waiting.done.len() == waiting.parts || planted!(AckOfHalf))
            && let Some(waiting) = batches.remove(key)
        {
            // A receiver that is gone has no one to tell.
            drop(waiting.answer.send(Ok(waiting.done)));
        }
    }

    /// One part did not get in; the batch as a whole is not acknowledged.
    pub fn failed(&self, key: &BatchKey, error: AppendError) {
        if let Some(waiting) = self.batches.lock().remove(key) {
            drop(waiting.answer.send(Err(error)));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.batches.lock().is_empty()
    }

    pub fn len(&self) -> usize {
        self.batches.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::{Lane, Shard};

    fn anhui() -> Issuer {
        Issuer::new(340_000).expect("a code")
    }

    fn key() -> BatchKey {
        BatchKey {
            issuer: anhui(),
            producer: "p".into(),
            epoch: Epoch(1),
            sequence: Sequence(1),
        }
    }

    fn part(lane: Lane) -> Partition {
        Partition {
            issuer: anhui(),
            lane,
            shard: Shard(0),
        }
    }

    fn applied(waiters: &Waiters, lane: Lane) {
        let part = PartOutcome {
            partition: part(lane),
            offset: Offset(7),
            durable_at: Micros(1),
            applied_at: Instant::now(),
            fate: Fate::Fresh,
            stale: Vec::new(),
        };
        waiters.applied(&key(), part);
    }

    /// Room that says whether it is still held.
    fn room() -> (Arc<()>, Held) {
        let room = Arc::new(());
        (Arc::clone(&room), Box::new(room))
    }

    fn is_held(room: &Arc<()>) -> bool {
        Arc::strong_count(room) > 1
    }

    #[test]
    fn a_batch_is_answered_when_its_last_part_is_applied_and_each_gives_back_its_own_room() {
        let (waiters, key) = (Waiters::default(), key());
        let (registration, mut outcome) = waiters.register(&key, 2, Micros(1));
        let ((urgent, held_urgent), (bulk, held_bulk)) = (room(), room());
        registration.hold(part(Lane::Urgent), held_urgent);
        registration.hold(part(Lane::Bulk), held_bulk);
        registration.complete();
        assert_eq!((waiters.len(), waiters.is_empty()), (1, false));
        applied(&waiters, Lane::Urgent);
        assert!(!is_held(&urgent) && is_held(&bulk));
        // A record that is in the log twice is one part.
        applied(&waiters, Lane::Urgent);
        outcome.try_recv().expect_err("a part is missing");
        applied(&waiters, Lane::Bulk);
        let parts = outcome.try_recv().expect("answered").expect("applied");
        let lanes: Vec<_> = parts.iter().map(|part| part.partition.lane).collect();
        assert_eq!(lanes, [Lane::Urgent, Lane::Bulk]);
        assert!(!is_held(&bulk));
        assert_eq!((waiters.len(), waiters.is_empty()), (0, true));
    }

    #[test]
    fn a_batch_of_which_no_more_is_appended_waits_for_what_is_in_the_log() {
        let (waiters, key) = (Waiters::default(), key());
        let (registration, mut outcome) = waiters.register(&key, 3, Micros(1));
        registration.hold(part(Lane::Urgent), room().1);
        applied(&waiters, Lane::Urgent);
        let (bulk, held) = room();
        registration.hold(part(Lane::Bulk), held);
        // The session ends before it appends the third.
        drop(registration);
        assert!(is_held(&bulk));
        outcome.try_recv().expect_err("the second is not applied");
        applied(&waiters, Lane::Bulk);
        assert_eq!(
            outcome
                .try_recv()
                .expect("answered")
                .expect("applied")
                .len(),
            2
        );
        assert!(waiters.is_empty());
    }

    #[test]
    fn a_batch_of_which_nothing_is_in_the_log_is_forgotten() {
        let (waiters, key) = (Waiters::default(), key());
        let (registration, mut outcome) = waiters.register(&key, 2, Micros(1));
        drop(registration);
        assert!(waiters.is_empty());
        outcome.try_recv().expect_err("nobody answers");
    }

    #[test]
    fn a_batch_of_which_a_part_did_not_get_in_is_answered_with_why() {
        let (waiters, key) = (Waiters::default(), key());
        let (registration, mut outcome) = waiters.register(&key, 2, Micros(1));
        let (urgent, held) = room();
        registration.hold(part(Lane::Urgent), held);
        registration.complete();
        waiters.failed(&key, AppendError::Indefinite);
        assert_eq!(outcome.try_recv(), Ok(Err(AppendError::Indefinite)));
        assert!(waiters.is_empty() && !is_held(&urgent));
        // What comes of its other parts has nobody to tell.
        applied(&waiters, Lane::Urgent);
        assert!(waiters.is_empty());
    }
}
