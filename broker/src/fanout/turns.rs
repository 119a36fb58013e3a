//! Whose turn it is in a subscriber's stream. Nothing overtakes what is already under way: so while urgent
//! records come, bulk goes in small deliveries, and few of them at a time are on the line and in the buffers of
//! the client.

use crate::fanout::credit::Credit;
use hutong_proto::limits;
use std::time::Duration;
use tokio::time::Instant;

/// Urgent records come as long as the last one is not older.
const URGENT_FOR: Duration = Duration::from_secs(1);
/// Bulk goes on after so long, whatever is under way: a client may give credit back in few large pieces.
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
        let again = self.bulk_at.map(|at| at + BULK_AGAIN);
        match again {
            Some(at)
                if at > Instant::now()
                    && credit.under_way() >= limits::BULK_UNDER_WAY_BESIDE_URGENT_BYTES =>
            {
                Err(at)
            }
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
        credit.give(1);
        assert!(turns.bulk(&credit).is_ok(), "there is room again");
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
