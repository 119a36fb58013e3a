//! Bounds what is between ingress and apply, in bytes and by lane, so that a flood of bulk never
//! takes the room of urgent. Whoever cannot get room waits, and so slows its producer.

use hutong_proto::Lane;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room is counted in these units.
const UNIT_BYTES: usize = 1024;

/// One budget a lane.
#[derive(Debug)]
pub struct Queues {
    lanes: [Arc<Semaphore>; 2],
    units: [u32; 2],
}

/// Room that was given; it comes back when this is dropped.
#[derive(Debug)]
pub struct Room {
    _permit: OwnedSemaphorePermit,
}

impl Queues {
    pub fn new(urgent_bytes_max: usize, bulk_bytes_max: usize) -> Queues {
        let units = [urgent_bytes_max, bulk_bytes_max].map(|bytes| {
            u32::try_from(bytes / UNIT_BYTES)
                .unwrap_or(u32::MAX >> 4)
                .max(1)
        });
        Queues {
            lanes: units.map(|n| Arc::new(Semaphore::new(n as usize))),
            units,
        }
    }

    /// Waits for room. A record larger than the whole budget takes all of it.
    pub async fn room(&self, lane: Lane, bytes: usize) -> Room {
        let i = lane.index();
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let semaphore = Arc::clone(&self.lanes[i]);
        let permit = semaphore
            .acquire_many_owned(units.clamp(1, self.units[i]))
            .await
            .expect("the budget is never closed");
        Room { _permit: permit }
    }

    /// Bytes taken, by lane.
    pub fn bytes(&self) -> [usize; 2] {
        [0, 1].map(|i| {
            (self.units[i] as usize).saturating_sub(self.lanes[i].available_permits()) * UNIT_BYTES
        })
    }
}
