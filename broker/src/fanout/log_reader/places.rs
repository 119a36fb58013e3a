//! Whose turn it is to read the log. Few may at a time, and what one reads others take too, as long as they are
//! near. So those who fell furthest behind go first: they come up to the others, and then one read serves all.
//! Every second turn is of who has waited longest, so that nobody waits for ever behind those with more to read.

use hutong_proto::Offset;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Of one lane.
#[derive(Debug)]
pub struct Places {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    free: usize,
    /// Where reads under way begin, of those that others can take.
    reading: Vec<Offset>,
    /// Offsets that the last read covered: the next one will cover about as many.
    span: u64,
    waiting: Vec<Waiter>,
    arrivals: u64,
    longest_waiting_next: bool,
}

#[derive(Debug)]
struct Waiter {
    arrival: u64,
    from: Offset,
    shares: bool,
    told: oneshot::Sender<Turn>,
}

/// What somebody was waiting for.
#[derive(Debug)]
pub enum Turn {
    /// It may read.
    Read(Place),
    /// Somebody else has just read it.
    Look,
}

/// Given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    from: Offset,
    shares: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.places.inner.lock();
        inner.free += 1;
        let mine = inner.reading.iter().position(|from| *from == self.from);
        if let Some(i) = mine.filter(|_| self.shares) {
            inner.reading.swap_remove(i);
        }
        drop(inner);
        self.places.grant();
    }
}

impl Inner {
    /// Whether a read under way will probably bring it.
    fn is_coming(&self, from: Offset) -> bool {
        let within = |begin: &Offset| *begin <= from && from.0 - begin.0 < self.span;
        self.reading.iter().any(within)
    }

    fn next(&mut self) -> Option<Waiter> {
        if self.free == 0 {
            return None;
        }
        self.waiting.retain(|waiter| !waiter.told.is_closed());
        let ready = self.waiting.iter().enumerate();
        let ready = ready.filter(|(_, waiter)| !waiter.shares || !self.is_coming(waiter.from));
        let (i, _) = match self.longest_waiting_next {
            true => ready.min_by_key(|(_, waiter)| waiter.arrival),
            false => ready.min_by_key(|(_, waiter)| (waiter.from, waiter.arrival)),
        }?;
        self.longest_waiting_next = !self.longest_waiting_next;
        self.free -= 1;
        let waiter = self.waiting.remove(i);
        if waiter.shares {
            self.reading.push(waiter.from);
        }
        Some(waiter)
    }
}

impl Places {
    pub fn new(count: usize) -> Places {
        Places {
            inner: Mutex::new(Inner {
                free: count,
                reading: Vec::new(),
                span: 0,
                waiting: Vec::new(),
                arrivals: 0,
                longest_waiting_next: false,
            }),
        }
    }

    /// For a read from there, alone or to share. May be cancelled.
    pub async fn turn(self: &Arc<Places>, from: Offset, shares: bool) -> Turn {
        let (told, turn) = oneshot::channel();
        {
            let mut inner = self.inner.lock();
            inner.arrivals += 1;
            let arrival = inner.arrivals;
            inner.waiting.push(Waiter {
                arrival,
                from,
                shares,
                told,
            });
        }
        self.grant();
        // A waiter goes only when it is told or gone.
        turn.await.unwrap_or(Turn::Look)
    }

    /// A stretch was read, and others can take it.
    pub fn has_read(&self, from: Offset, next: Offset) {
        let mut inner = self.inner.lock();
        inner.span = next.0.saturating_sub(from.0);
        let within = |waiter: &mut Waiter| from <= waiter.from && waiter.from < next;
        let served: Vec<Waiter> = inner.waiting.extract_if(.., within).collect();
        drop(inner);
        for waiter in served {
            // It may have gone away.
            drop(waiter.told.send(Turn::Look));
        }
    }

    fn grant(self: &Arc<Places>) {
        loop {
            let Some(waiter) = self.inner.lock().next() else {
                return;
            };
            let place = Place {
                places: Arc::clone(self),
                from: waiter.from,
                shares: waiter.shares,
            };
            // Who went away in this moment gives it back at once, which comes here again.
            drop(waiter.told.send(Turn::Read(place)));
        }
    }

    #[cfg(test)]
    pub fn free(&self) -> usize {
        self.inner.lock().free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, future::BoxFuture};

    fn ask(places: &Arc<Places>, from: u64) -> BoxFuture<'static, Turn> {
        let places = Arc::clone(places);
        let mut turn = async move { places.turn(Offset(from), true).await }.boxed();
        // The first look puts it into the queue.
        match (&mut turn).now_or_never() {
            Some(turn) => std::future::ready(turn).boxed(),
            None => turn,
        }
    }

    /// The place, if it is its turn now.
    fn place(turn: &mut BoxFuture<'static, Turn>) -> Option<Place> {
        match turn.now_or_never()? {
            Turn::Read(place) => Some(place),
            Turn::Look => panic!("nobody read it"),
        }
    }

    #[test]
    fn who_is_furthest_behind_and_who_waited_longest_take_turns() {
        let places = Arc::new(Places::new(1));
        let mut held = place(&mut ask(&places, 500)).expect("it is free");
        let mut waiting: Vec<_> = [900, 100, 300, 200]
            .map(|from| (from, ask(&places, from)))
            .into();
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(held);
            let found = waiting.iter_mut().enumerate();
            let mut found = found.filter_map(|(i, (_, turn))| Some((i, place(turn)?)));
            let (i, next) = found.next().expect("somebody's turn");
            assert!(found.next().is_none(), "one may");
            drop(found);
            held = next;
            order.push(waiting.remove(i).0);
        }
        assert_eq!(order, [900, 100, 300, 200]);
    }

    #[test]
    fn who_wants_what_is_being_read_waits_for_that() {
        let places = Arc::new(Places::new(2));
        places.has_read(Offset(0), Offset(100));
        let first = place(&mut ask(&places, 1000)).expect("free");
        let mut near = ask(&places, 1050);
        assert!((&mut near).now_or_never().is_none(), "it is coming");
        let mut far = ask(&places, 1100);
        let far = place(&mut far).expect("beyond what is coming");
        places.has_read(Offset(1000), Offset(1100));
        assert!(matches!(near.now_or_never(), Some(Turn::Look)));
        drop((first, far));
        // A read that failed: its place is given to who waited for it.
        let first = place(&mut ask(&places, 2000)).expect("free");
        let mut near = ask(&places, 2050);
        assert!((&mut near).now_or_never().is_none());
        drop(first);
        assert!(place(&mut near).is_some());
        assert_eq!(places.free(), 2);
    }

    #[test]
    fn nobody_waits_for_what_somebody_reads_alone() {
        let places = Arc::new(Places::new(2));
        places.has_read(Offset(0), Offset(100));
        let alone = Arc::clone(&places);
        let mut alone = async move { alone.turn(Offset(1000), false).await }.boxed();
        let first = place(&mut alone).expect("free");
        let second = place(&mut ask(&places, 1050)).expect("nothing is coming");
        drop((first, second));
        assert_eq!(places.free(), 2);
    }

    #[test]
    fn who_goes_away_takes_no_place_with_it() {
        let places = Arc::new(Places::new(1));
        let held = place(&mut ask(&places, 1)).expect("free");
        let gone = ask(&places, 2);
        let granted = ask(&places, 3);
        drop(gone);
        drop(held);
        // It has its place, and never looks.
        drop(granted);
        assert_eq!(places.free(), 1);
    }
}
