//! Whose turn it is in a subscriber's stream. Nothing overtakes what is already under way: so while urgent
//! records come, bulk goes in small deliveries, and few of them at a time are on the line and in the buffers of
//! the client.

use crate::fanout::credit::Credit;
use hutong_proto::limits;
use std::time::Duration;
use tokio::time::Instant;

/// Urgent records come as long as the last one is not older.
const URGENT_FOR: Duration = Duration::from_secs(1);
/// Before a client first gave credit back, bulk goes on after so long, whatever is under way: the pieces may be
/// large. Later it does not: on a narrow line that would fill all of the window, and urgent would wait behind it.
const BULK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub struct Turns {
    urgent_at: Option<Instant>,
    bulk_at: Option<Instant>,
}

impl Turns {
    pub fn urgent_sent(&mut self) {
        self.urgent_at = Some(Instant::now());
    }

    pub fn bulk_sent(&mut self) {
        self.bulk_at = Some(Instant::now());
    }

    /// How much bulk may go out now; otherwise when to ask again, unless credit comes before.
    pub fn bulk(&self, credit: &Credit) -> Result<usize, Instant> {
        if self.urgent_at.is_none_or(|at| at.elapsed() >= URGENT_FOR) {
            return Ok(limits::DELIVERY_BYTES_TARGET);
        }
        let piece = credit.piece();
        // What the client keeps until it makes a piece must not stop it.
        let most = limits::BULK_UNDER_WAY_BESIDE_URGENT_BYTES
            .max(piece + limits::BULK_BESIDE_URGENT_BYTES);
        if credit.under_way() + limits::BULK_BESIDE_URGENT_BYTES <= most {
            return Ok(limits::BULK_BESIDE_URGENT_BYTES);
        }
        let again = match piece {
            0 => self.bulk_at.map(|at| at + BULK_AGAIN),
            _ => self.urgent_at.map(|at| at + URGENT_FOR),
        };
        match again {
            Some(at) if at > Instant::now() => Err(at),
            _ => Ok(limits::BULK_BESIDE_URGENT_BYTES),
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
        turns.bulk_sent();
        assert_eq!(turns.bulk(&credit), Ok(limits::DELIVERY_BYTES_TARGET));
        turns.urgent_sent();
        assert!(turns.bulk(&credit).is_err(), "much is under way");
        tokio::time::advance(URGENT_FOR).await;
        assert_eq!(turns.bulk(&credit), Ok(limits::DELIVERY_BYTES_TARGET));
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
}
