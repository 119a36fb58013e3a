//! One clock for all clients of a drill: the history counts microseconds from its start, and only the
//! start has a time of day.

use hutong_proto::Micros;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Copies count from the same start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    begun: Instant,
    wall_us: u64,
}

impl Clock {
    pub fn start() -> Clock {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Clock {
            begun: Instant::now(),
            wall_us: since.as_micros() as u64,
        }
    }

    /// Microseconds since the start.
    pub fn now_us(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    /// The time of day at the start, in microseconds since the Unix epoch.
    pub fn wall_us(&self) -> u64 {
        self.wall_us
    }

    /// The time of day now. It does not follow steps of the machine's clock: no client may.
    pub fn wall_now(&self) -> Micros {
        Micros(self.wall_us + self.now_us())
    }

    /// Waits until so long after the start; not at all when that is over.
    pub async fn sleep_until(&self, at: Duration) {
        tokio::time::sleep_until((self.begun + at).into()).await;
    }
}
