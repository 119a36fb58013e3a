//! Whose turn it is in a subscriber's stream. Nothing overtakes what is already under way: so while urgent
//! records come, bulk goes in small deliveries, and few of them at a time are on the line and in the buffers of
//! the client. While none come, no more bulk is under way than the client takes in about a second: the next
//! urgent record waits behind that.

use crate::fanout::credit::Credit;
use hutong_proto::limits;
use std::time::Duration;
use tokio::time::Instant;

/// Urgent records come as long as the last one is not older.
const URGENT_FOR: Duration = Duration::from_secs(1);
/// Before a client first gave credit back, bulk goes on after so long, whatever is under way: the pieces may be
/// large. Later it does not: on a narrow line that would fill all of the window, and urgent would wait behind it.
const BULK_AGAIN: Duration = Duration::from_millis(50);
/// Beside urgent, a client that takes much has under way what it takes in a twentieth of a second.
const BESIDE_URGENT_SHARE: usize = 20;
/// Bulk that stood still for so long goes on with one delivery, and then after twice the time: the client may keep
/// more than all that is under way until it gives any of it back.
const STILL: Duration = Duration::from_secs(10);
const STILL_DOUBLINGS_MAX: u32 = 4;

#[derive(Debug, Default)]
pub struct Turns {
    urgent_at: Option<Instant>,
    bulk_at: Option<Instant>,
    /// Deliveries since one that was in turn.
    out_of_turn: u32,
    next_is_out_of_turn: bool,
}

impl Turns {
    pub fn urgent_sent(&mut self) {
        self.urgent_at = Some(Instant::now());
    }

    pub fn bulk_sent(&mut self) {
        self.bulk_at = Some(Instant::now());
        self.out_of_turn = match self.next_is_out_of_turn {
            true => self.out_of_turn.saturating_add(1),
            false => 0,
        };
    }

    /// How much bulk may go out now; otherwise when to ask again, unless credit comes before.
    pub fn bulk(&mut self, credit: &Credit) -> Result<usize, Instant> {
        let urgent_until = self.urgent_at.map(|at| at + URGENT_FOR);
        let beside_urgent = urgent_until.filter(|until| *until > Instant::now());
        let least = limits::BULK_BESIDE_URGENT_BYTES;
        // What the client keeps until it makes a piece must not stop it.
        let most = limits::BULK_UNDER_WAY_BESIDE_URGENT_BYTES.max(credit.piece() + least);
        let most = match (beside_urgent, credit.given_in_a_second()) {
            (Some(_), given) => most.max(given.unwrap_or(0) / BESIDE_URGENT_SHARE),
            (None, Some(given)) => most.max(given),
            // A first look at how much it takes.
            (None, None) => limits::DELIVERY_BYTES_TARGET,
        };
        let room = most.saturating_sub(credit.under_way());
        self.next_is_out_of_turn = room < least;
        if room >= least {
            return Ok(match beside_urgent {
                Some(_) => least,
                None => room.min(limits::DELIVERY_BYTES_TARGET),
            });
        }
        let waits = match credit.piece() {
            0 => BULK_AGAIN,
            _ => STILL * (1 << self.out_of_turn.min(STILL_DOUBLINGS_MAX)),
        };
        let again = self.bulk_at.map(|at| at + waits);
        match again.filter(|at| *at > Instant::now()) {
            // Without urgent there may be more room.
            Some(at) => Err(beside_urgent.map_or(at, |until| until.min(at))),
            None => Ok(least),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 4 << 20;

    #[tokio::test(start_paused = true)]
    async fn bulk_is_alone_until_something_is_urgent() {
        let (mut turns, credit) = (Turns::default(), Credit::new(WINDOW));
        credit.spend(3 << 20);
        credit.give(2 << 20);
        turns.bulk_sent();
        assert_eq!(turns.bulk(&credit), Ok(limits::DELIVERY_BYTES_TARGET));
        credit.spend(1 << 20);
        turns.urgent_sent();
        assert_eq!(turns.bulk(&credit), Ok(limits::BULK_BESIDE_URGENT_BYTES));
        credit.spend(1 << 20);
        assert!(turns.bulk(&credit).is_err(), "much is under way");
        credit.give(2 << 20);
        tokio::time::advance(URGENT_FOR).await;
        assert_eq!(turns.bulk(&credit), Ok(limits::DELIVERY_BYTES_TARGET));
    }

    /// Of a client on a line that carries so much, which gives back in pieces of 64 KiB: the most that was under way in
    /// the last minute of three, and what was sent in it.
    async fn alone(bytes_per_s: usize, round_trip: Duration) -> (usize, usize) {
        let (mut turns, credit) = (Turns::default(), Credit::new(WINDOW));
        let step = Duration::from_millis(10);
        let (mut line, mut taken, mut back) = (0usize, 0usize, std::collections::VecDeque::new());
        let (mut most, mut sent) = (0, 0);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(180) {
            while credit.available()
                && let Ok(bytes) = turns.bulk(&credit)
            {
                credit.spend(bytes);
                turns.bulk_sent();
                line += bytes;
                if begun.elapsed() >= Duration::from_secs(120) {
                    sent += bytes;
                }
            }
            if begun.elapsed() >= Duration::from_secs(120) {
                most = most.max(credit.under_way());
            }
            tokio::time::advance(step).await;
            let carried = line.min(bytes_per_s / 100);
            line -= carried;
            taken += carried;
            while taken >= 64 << 10 {
                taken -= 64 << 10;
                back.push_back(Instant::now() + round_trip);
            }
            while back.pop_front_if(|at| *at <= Instant::now()).is_some() {
                credit.give(64 << 10);
            }
        }
        (most, sent / 60)
    }

    #[tokio::test(start_paused = true)]
    async fn a_rare_urgent_record_waits_behind_little_more_than_a_second_of_bulk() {
        for bytes_per_s in [128 << 10, 512 << 10, 2 << 20] {
            let (most, sent) = alone(bytes_per_s, Duration::from_millis(30)).await;
            let bound = bytes_per_s * 3 / 2 + limits::BULK_UNDER_WAY_BESIDE_URGENT_BYTES;
            assert!(
                most <= bound,
                "{most} bytes under way at {bytes_per_s} a second"
            );
            assert!(
                sent * 100 >= bytes_per_s * 95,
                "{sent} of {bytes_per_s} a second"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wide_line_with_a_long_way_is_filled() {
        let (_, sent) = alone(100 << 20, Duration::from_millis(100)).await;
        // Its window each 110 ms: the way, and a step of this test.
        assert!(
            sent * 100 >= (WINDOW as usize) * 100 / 11 * 9,
            "{sent} a second"
        );
    }

    /// Its pieces are larger than all that may be under way beside urgent, and urgent's credit comes in small ones.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_keeps_bulk_until_it_has_much_is_not_starved_beside_urgent() {
        let (mut turns, credit) = (Turns::default(), Credit::new(WINDOW));
        let (mut kept, mut sent) = (0, 0);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(600) {
            credit.spend(200);
            turns.urgent_sent();
            credit.give(200);
            while let Ok(bytes) = turns.bulk(&credit) {
                credit.spend(bytes);
                turns.bulk_sent();
                (kept, sent) = (kept + bytes, sent + bytes);
            }
            if kept >= 512 << 10 {
                credit.give(kept as u64);
                kept = 0;
            }
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!(
            sent >= 600 / 60 * (512 << 10),
            "{sent} bytes in ten minutes"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn beside_urgent_little_bulk_is_under_way() {
        let (mut turns, credit) = (Turns::default(), Credit::new(WINDOW));
        turns.urgent_sent();
        let mut sent = 0;
        while let Ok(bytes) = turns.bulk(&credit) {
            assert_eq!(bytes, limits::BULK_BESIDE_URGENT_BYTES);
            credit.spend(bytes);
            turns.bulk_sent();
            sent += bytes;
        }
        assert_eq!(sent, limits::BULK_UNDER_WAY_BESIDE_URGENT_BYTES);
        credit.give(limits::BULK_BESIDE_URGENT_BYTES as u64);
        assert!(turns.bulk(&credit).is_ok(), "there is room again");
    }

    /// A narrow line: credit comes back in pieces, and slowly.
    #[tokio::test(start_paused = true)]
    async fn beside_urgent_a_slow_client_never_has_more_than_that_under_way() {
        let (mut turns, credit) = (Turns::default(), Credit::new(WINDOW));
        let piece = 64 << 10;
        turns.urgent_sent();
        credit.spend(piece);
        credit.give(piece as u64);
        let mut sent = 0;
        for _ in 0..100 {
            turns.urgent_sent();
            while let Ok(bytes) = turns.bulk(&credit) {
                credit.spend(bytes);
                turns.bulk_sent();
                sent += bytes;
            }
            let most = limits::BULK_UNDER_WAY_BESIDE_URGENT_BYTES;
            assert!(credit.under_way() <= most, "{}", credit.under_way());
            tokio::time::advance(Duration::from_millis(500)).await;
            credit.give(piece as u64);
        }
        assert!(sent >= 100 * piece, "and all that it takes");
    }

    #[tokio::test(start_paused = true)]
    async fn one_large_piece_is_forgotten() {
        let credit = Credit::new(WINDOW);
        credit.spend(WINDOW as usize);
        credit.give(2 << 20);
        assert_eq!(credit.piece(), 2 << 20);
        for _ in 0..40 {
            credit.give(64 << 10);
        }
        assert_eq!(credit.piece(), 64 << 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_gives_credit_rarely_is_not_starved_of_bulk() {
        let (mut turns, credit) = (Turns::default(), Credit::new(WINDOW));
        credit.spend(2 << 20);
        let mut sent = 0;
        for _ in 0..10 {
            turns.urgent_sent();
            let again = match turns.bulk(&credit) {
                Ok(bytes) => {
                    sent += bytes;
                    turns.bulk_sent();
                    continue;
                }
                Err(again) => again,
            };
            tokio::time::advance(again - Instant::now()).await;
        }
        assert_eq!(sent, 5 * limits::BULK_BESIDE_URGENT_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn beside_urgent_a_client_that_takes_much_has_a_twentieth_of_a_second_under_way() {
        let (mut turns, credit) = (Turns::default(), Credit::new(WINDOW));
        let (piece, pieces) = (16 << 10, 1024);
        for _ in 0..pieces {
            credit.spend(piece);
            credit.give(piece as u64);
        }
        turns.urgent_sent();
        while let Ok(bytes) = turns.bulk(&credit) {
            credit.spend(bytes);
            turns.bulk_sent();
        }
        let twentieth = piece * pieces / 20;
        assert!(twentieth > 2 * limits::BULK_UNDER_WAY_BESIDE_URGENT_BYTES);
        let room = twentieth - credit.under_way();
        assert!(room < limits::BULK_BESIDE_URGENT_BYTES, "{room}");
    }

    #[tokio::test(start_paused = true)]
    async fn bulk_that_stands_still_is_tried_after_twice_the_time_each_time() {
        let (mut turns, credit) = (Turns::default(), Credit::new(WINDOW));
        // It gave something back once, and never again.
        credit.spend(1);
        credit.give(1);
        let least = limits::BULK_BESIDE_URGENT_BYTES;
        let fill = |credit: &Credit| {
            let most = limits::BULK_UNDER_WAY_BESIDE_URGENT_BYTES;
            credit.spend(most - least - credit.under_way());
        };
        let send = |turns: &mut Turns, credit: &Credit| {
            assert_eq!(turns.bulk(credit), Ok(least));
            credit.spend(least);
            turns.bulk_sent();
            turns.bulk(credit).map_err(|again| again - Instant::now())
        };
        fill(&credit);
        // The last that has room is in its turn.
        let mut waits = send(&mut turns, &credit);
        for seconds in [10, 20, 40, 80, 160, 160] {
            assert_eq!(waits, Err(Duration::from_secs(seconds)));
            tokio::time::advance(Duration::from_secs(seconds)).await;
            waits = send(&mut turns, &credit);
        }
        while credit.under_way() > 0 {
            credit.give(4096);
        }
        // What it gave is long ago.
        for _ in 0..2 {
            tokio::time::advance(Duration::from_secs(3)).await;
            credit.given_in_a_second();
        }
        fill(&credit);
        assert_eq!(send(&mut turns, &credit), Err(STILL), "it was in its turn");
    }
}
