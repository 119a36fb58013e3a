//! Bounds what is between ingress and apply, in bytes and by lane, so that a flood of bulk never
//! takes the room of urgent. Whoever cannot get room waits, and so slows its producer.
//!
//! Room is shared fairly between platforms, by their weights: when more is offered than fits, each gets
//! its share, and what one does not take goes to the others. However many producers a platform has and
//! however large their batches are, its flood fills its own share. This is start-time fair queueing
//! (P. Goyal, H. M. Vin, H. Cheng, SIGCOMM 1996): each grant has a start tag, the later of the clock and
//! the end of the platform's last grant; the smallest tag goes next, and the clock follows it.

use hutong_proto::{Issuer, Lane};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use tokio::sync::oneshot;

/// Room is counted in these units.
const UNIT_BYTES: usize = 1024;
/// Of tags: a unit of a platform with the weight one. Weights are people, so this is above all of them,
/// and tags are wide enough never to end.
const TAG_SCALE: u128 = 1 << 40;

/// One budget a lane.
#[derive(Debug)]
pub struct Queues {
    lanes: [Arc<Budget>; 2],
}

/// Room that was given; it comes back when this is dropped.
#[derive(Debug)]
pub struct Room {
    budget: Arc<Budget>,
    units: u32,
}

#[derive(Debug)]
struct Budget {
    units: u32,
    fair: Mutex<Fair>,
}

#[derive(Debug)]
struct Fair {
    weights: HashMap<Issuer, u32>,
    free: u32,
    clock: u128,
    platforms: HashMap<Issuer, Platform>,
}

#[derive(Debug, Default)]
struct Platform {
    /// Where its last grant ends.
    end: u128,
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    units: u32,
    granted: oneshot::Sender<Room>,
}

impl Fair {
    fn charge(&mut self, issuer: Issuer, units: u32) {
        let weight = self.weights.get(&issuer).copied().unwrap_or(1);
        self.free -= units;
        let platform = self.platforms.entry(issuer).or_default();
        let start = platform.end.max(self.clock);
        platform.end = start + u128::from(units) * (TAG_SCALE / u128::from(weight.max(1)));
        self.clock = start;
    }

    /// Whose turn it is, among those that wait.
    fn next(&mut self) -> Option<Issuer> {
        let clock = self.clock;
        let waiting = self.platforms.iter_mut().filter_map(|(issuer, platform)| {
            // Those who went away have no turn.
            while platform.waiting.front()?.granted.is_closed() {
                platform.waiting.pop_front();
            }
            Some((platform.end.max(clock), *issuer))
        });
        waiting.min().map(|(_, issuer)| issuer)
    }
}

impl Budget {
    async fn room(self: &Arc<Budget>, issuer: Issuer, bytes: usize) -> Room {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        if planted!(QueueUnbounded) {
            return self.given(0);
        }
        let units = units.clamp(1, self.units);
        let granted = {
            let mut fair = self.fair.lock();
            if fair.free >= units && fair.next().is_none() {
                fair.charge(issuer, units);
                return self.given(units);
            }
            let (granted, outcome) = oneshot::channel();
            let platform = fair.platforms.entry(issuer).or_default();
            platform.waiting.push_back(Waiter { units, granted });
            outcome
        };
        granted
            .await
            .expect("a waiter goes only when it is granted or gone")
    }

    fn given(self: &Arc<Budget>, units: u32) -> Room {
        Room {
            budget: Arc::clone(self),
            units,
        }
    }

    fn give_back(self: &Arc<Budget>, units: u32) {
        self.fair.lock().free += units;
        while let Some((waiter, room)) = self.grant() {
            // Who went away in this moment gives it back at once, which comes here again.
            drop(waiter.granted.send(room));
        }
    }

    /// To whoever is next, if it fits: nobody overtakes it, or it might never fit.
    fn grant(self: &Arc<Budget>) -> Option<(Waiter, Room)> {
        let mut fair = self.fair.lock();
        let issuer = fair.next()?;
        let free = fair.free;
        let waiting = &mut fair.platforms.get_mut(&issuer)?.waiting;
        let waiter = waiting.pop_front_if(|first| first.units <= free)?;
        fair.charge(issuer, waiter.units);
        let room = self.given(waiter.units);
        Some((waiter, room))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.budget.give_back(self.units);
    }
}

impl Queues {
    /// Weights are of any unit; a platform without one has the weight one.
    pub fn new(
        urgent_bytes_max: usize,
        bulk_bytes_max: usize,
        weights: &HashMap<Issuer, u32>,
    ) -> Queues {
        let lanes = [urgent_bytes_max, bulk_bytes_max].map(|bytes| {
            let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
            Arc::new(Budget {
                units,
                fair: Mutex::new(Fair {
                    weights: weights.clone(),
                    free: units,
                    clock: 0,
                    platforms: HashMap::new(),
                }),
            })
        });
        Queues { lanes }
    }

    /// Waits for room. A record larger than the whole budget takes all of it.
    pub async fn room(&self, issuer: Issuer, lane: Lane, bytes: usize) -> Room {
        self.lanes[lane.index()].room(issuer, bytes).await
    }

    /// From the next grant on.
    pub fn set_weights(&self, weights: &HashMap<Issuer, u32>) {
        for budget in &self.lanes {
            budget.fair.lock().weights.clone_from(weights);
        }
    }

    /// Bytes taken, by lane.
    pub fn bytes(&self) -> [usize; 2] {
        [0, 1].map(|i| {
            let budget = &self.lanes[i];
            (budget.units - budget.fair.lock().free) as usize * UNIT_BYTES
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, future::BoxFuture};

    const KIB: usize = 1024;

    fn platform(code: u32) -> Issuer {
        Issuer::new(code).expect("valid")
    }

    fn queues(kib: usize, weights: &[(u32, u32)]) -> Queues {
        let weights = weights.iter().map(|(code, w)| (platform(*code), *w));
        Queues::new(kib * KIB, kib * KIB, &weights.collect())
    }

    // Outside of any runtime, which would make a future that is polled often pretend to wait.

    /// A waiting session: one request, already in its queue.
    fn ask(queues: &Queues, code: u32, kib: usize) -> BoxFuture<'static, Room> {
        let budget = Arc::clone(&queues.lanes[Lane::Bulk.index()]);
        let mut asked = async move { budget.room(platform(code), kib * KIB).await }.boxed();
        assert!((&mut asked).now_or_never().is_none(), "there is no room");
        asked
    }

    /// Gives one grant back again and again, and counts whose turn each time is.
    fn turns(
        queues: &Queues,
        sessions: &[(u32, usize, usize)],
        rounds: usize,
    ) -> HashMap<u32, usize> {
        let all = queues.lanes[1].units as usize;
        let mut held = queues
            .room(platform(999_999), Lane::Bulk, all * KIB)
            .now_or_never()
            .expect("room");
        let mut waiting: Vec<(u32, usize, BoxFuture<'static, Room>)> = Vec::new();
        for (code, kib, count) in sessions {
            waiting.extend((0..*count).map(|_| (*code, *kib, ask(queues, *code, *kib))));
        }
        let mut granted = HashMap::new();
        for _ in 0..rounds {
            drop(held);
            let ready = waiting.iter_mut().enumerate();
            let mut ready = ready.filter_map(|(i, (_, _, w))| Some((i, w.now_or_never()?)));
            let (i, room) = ready.next().expect("somebody's turn");
            assert!(ready.next().is_none(), "there is room for one");
            drop(ready);
            held = room;
            let (code, kib, _) = waiting[i];
            *granted.entry(code).or_default() += kib;
            // It comes back with its next batch.
            waiting[i] = (code, kib, ask(queues, code, kib));
        }
        granted
    }

    #[test]
    fn a_flood_of_one_platform_leaves_the_others_their_shares() {
        // Twenty producers with large batches against one with small ones, same weight.
        let queues = queues(8, &[(110_000, 1), (120_000, 1)]);
        let sessions = [(110_000, 8, 20), (120_000, 8, 1)];
        let granted = turns(&queues, &sessions, 400);
        assert_eq!(granted[&110_000], granted[&120_000], "{granted:?}");
    }

    #[test]
    fn shares_follow_the_weights() {
        let queues = queues(4, &[(110_000, 10_000_000), (120_000, 30_000_000)]);
        let sessions = [(110_000, 4, 3), (120_000, 4, 3)];
        let granted = turns(&queues, &sessions, 400);
        assert_eq!((granted[&110_000], granted[&120_000]), (400, 1200));
    }

    #[test]
    fn other_weights_count_from_the_next_grant_on() {
        let queues = queues(4, &[(110_000, 1), (120_000, 1)]);
        let sessions = [(110_000, 4, 3), (120_000, 4, 3)];
        let before = turns(&queues, &sessions, 400);
        assert_eq!((before[&110_000], before[&120_000]), (800, 800));
        queues.set_weights(&HashMap::from([
            (platform(110_000), 1),
            (platform(120_000), 3),
        ]));
        let after = turns(&queues, &sessions, 400);
        let share = after[&120_000] as f64 / after[&110_000] as f64;
        assert!((2.9..3.1).contains(&share), "{after:?}");
    }

    #[test]
    fn who_was_quiet_has_saved_nothing_up() {
        let queues = queues(4, &[]);
        let alone = turns(&queues, &[(110_000, 4, 2)], 1000);
        assert_eq!(alone[&110_000], 4000, "what nobody else takes is its own");
        let both = turns(&queues, &[(110_000, 4, 2), (120_000, 4, 2)], 100);
        let difference = both[&110_000].abs_diff(both[&120_000]);
        assert!(difference <= 8, "from when both want it: {both:?}");
    }

    #[test]
    fn who_goes_away_while_waiting_takes_no_room_with_it() {
        let queues = queues(4, &[]);
        let held = queues
            .room(platform(110_000), Lane::Bulk, 4 * KIB)
            .now_or_never()
            .expect("room");
        let gone = ask(&queues, 110_000, 4);
        let stays = ask(&queues, 120_000, 4);
        drop(gone);
        drop(held);
        let room = stays.now_or_never().expect("its turn");
        assert_eq!(queues.bytes(), [0, 4 * KIB]);
        drop(room);
        assert_eq!(queues.bytes(), [0, 0]);
        // Granted, and gone before it looked.
        let held = queues
            .room(platform(110_000), Lane::Bulk, 4 * KIB)
            .now_or_never()
            .expect("room");
        let gone = ask(&queues, 120_000, 4);
        drop(held);
        drop(gone);
        assert_eq!(queues.bytes(), [0, 0]);
    }

    #[test]
    fn a_large_record_is_not_overtaken_for_ever_and_one_beyond_the_budget_takes_all() {
        let queues = queues(4, &[]);
        let small = queues
            .room(platform(110_000), Lane::Bulk, KIB)
            .now_or_never()
            .expect("room");
        let large = ask(&queues, 120_000, 400);
        let later = ask(&queues, 110_000, 1);
        drop(small);
        let large = large.now_or_never().expect("its turn");
        assert_eq!(queues.bytes(), [0, 4 * KIB]);
        drop(large);
        assert!(later.now_or_never().is_some());
    }

    #[test]
    fn bulk_takes_no_room_of_urgent() {
        let queues = queues(4, &[]);
        let _bulk = queues
            .room(platform(110_000), Lane::Bulk, 4 * KIB)
            .now_or_never()
            .expect("room");
        let urgent = queues.room(platform(110_000), Lane::Urgent, 4 * KIB);
        assert!(urgent.now_or_never().is_some());
    }
}
