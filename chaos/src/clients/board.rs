//! How far everybody is, for those who must know while a drill runs: when all have all, and how long
//! the oldest urgent delta has been waiting.

use crate::history::Stream;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

const STREAMS: usize = Stream::ALL.len();

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole after every call, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub struct Board {
    issuers: Vec<u32>,
    produced: Vec<[Produced; STREAMS]>,
    readers: Mutex<Vec<Arc<Progress>>>,
    deltas_accepted: AtomicU64,
    flood_offered: AtomicU64,
}

#[derive(Debug, Default)]
struct Produced {
    /// Highest revision that was acknowledged and not refused.
    accepted: AtomicU64,
    /// Last revision and due time of what some reader has not got, oldest first.
    waiting: Mutex<VecDeque<(u64, u64)>>,
}

/// Of one subscription.
#[derive(Debug)]
pub struct Progress {
    own: u32,
    received: Vec<[AtomicU64; STREAMS]>,
    /// Others wait for it.
    counts: AtomicBool,
}

impl Board {
    pub fn new(issuers: Vec<u32>) -> Board {
        Board {
            produced: issuers.iter().map(|_| Default::default()).collect(),
            issuers,
            readers: Mutex::default(),
            deltas_accepted: AtomicU64::new(0),
            flood_offered: AtomicU64::new(0),
        }
    }

    fn index(&self, issuer: u32) -> Option<usize> {
        self.issuers.iter().position(|own| *own == issuer)
    }

    /// A reader of everything that others than `own` issue from now on.
    pub fn reader(&self, own: u32, counts: bool) -> Arc<Progress> {
        let progress = Arc::new(Progress {
            own,
            // What was there before it is none of its business.
            received: (self.produced.iter())
                .map(|streams| {
                    std::array::from_fn(|s| {
                        AtomicU64::new(streams[s].accepted.load(Ordering::Acquire))
                    })
                })
                .collect(),
            counts: AtomicBool::new(counts),
        });
        lock(&self.readers).push(Arc::clone(&progress));
        progress
    }

    pub fn handed_over(&self, issuer: u32, stream: Stream, last: u64, due: u64) {
        if let Some(i) = self.index(issuer) {
            lock(&self.produced[i][stream as usize].waiting).push_back((last, due));
        }
    }

    pub fn accepted(&self, issuer: u32, stream: Stream, highest: u64, deltas: u64) {
        self.deltas_accepted.fetch_add(deltas, Ordering::AcqRel);
        if let Some(i) = self.index(issuer) {
            let accepted = &self.produced[i][stream as usize].accepted;
            accepted.fetch_max(highest, Ordering::AcqRel);
        }
    }

    pub fn deltas_accepted(&self) -> u64 {
        self.deltas_accepted.load(Ordering::Acquire)
    }

    /// Deltas of floods that were handed over so far.
    pub fn flood_offered(&self) -> u64 {
        self.flood_offered.load(Ordering::Acquire)
    }

    pub fn flood_offers(&self, deltas: u64) {
        self.flood_offered.fetch_add(deltas, Ordering::AcqRel);
    }

    pub fn received(&self, progress: &Progress, issuer: u32, stream: Stream, revision: u64) {
        if let Some(i) = self.index(issuer) {
            progress.received[i][stream as usize].fetch_max(revision, Ordering::AcqRel);
        }
    }

    /// Does everybody who counts have all that was accepted? Otherwise, what is missing.
    pub fn converged(&self) -> Result<(), String> {
        for reader in lock(&self.readers).iter().filter(|r| r.counts()) {
            for (i, issuer) in self.issuers.iter().enumerate() {
                if *issuer == reader.own {
                    continue;
                }
                for stream in Stream::ALL {
                    let accepted = self.produced[i][stream as usize]
                        .accepted
                        .load(Ordering::Acquire);
                    let received = reader.received[i][stream as usize].load(Ordering::Acquire);
                    if received < accepted {
                        return Err(format!(
                            "{} has {} deltas of {issuer} up to {received} of {accepted}",
                            reader.own,
                            stream.name()
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Since when the oldest urgent delta that some reader has not got is due.
    pub fn oldest_urgent(&self) -> Option<u64> {
        let readers = lock(&self.readers).clone();
        let oldest = |(i, issuer): (usize, &u32)| {
            let others = readers.iter().filter(|r| r.counts() && r.own != *issuer);
            let all_have = others
                .map(|r| r.received[i][Stream::Urgent as usize].load(Ordering::Acquire))
                .min()?;
            let mut waiting = lock(&self.produced[i][Stream::Urgent as usize].waiting);
            while waiting.front().is_some_and(|(last, _)| *last <= all_have) {
                waiting.pop_front();
            }
            waiting.front().map(|(_, due)| *due)
        };
        self.issuers.iter().enumerate().filter_map(oldest).min()
    }
}

impl Progress {
    fn counts(&self) -> bool {
        self.counts.load(Ordering::Acquire)
    }

    /// Whether others wait for it.
    pub fn set_counts(&self, counts: bool) {
        self.counts.store(counts, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_what_the_slowest_reader_waits_for() {
        let board = Board::new(vec![1, 2]);
        let (a, b) = (board.reader(2, true), board.reader(3, true));
        for (last, due) in [(10, 100), (20, 200)] {
            board.handed_over(1, Stream::Urgent, last, due);
        }
        assert_eq!(board.oldest_urgent(), Some(100));
        board.accepted(1, Stream::Urgent, 20, 20);
        board.received(&a, 1, Stream::Urgent, 20);
        assert_eq!(board.oldest_urgent(), Some(100));
        board.received(&b, 1, Stream::Urgent, 10);
        assert_eq!(board.oldest_urgent(), Some(200));
        assert!(board.converged().is_err());
        b.set_counts(false);
        assert_eq!(board.converged(), Ok(()));
        assert_eq!(board.oldest_urgent(), None);
    }
}
