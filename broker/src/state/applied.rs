//! How far the state is: which part of the log is in it.

use hutong_proto::{Micros, Offset};

/// How far the log is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The next offset to apply.
    pub next: Offset,
    /// The log's time at the last applied record.
    pub log_time: Micros,
    /// Deltas applied since the log began.
    pub deltas: u64,
}

impl Applied {
    pub(super) const NOTHING: Applied = Applied {
        next: Offset::FIRST,
        log_time: Micros::ZERO,
        deltas: 0,
    };

    pub(super) fn encode(&self) -> [u8; 24] {
        let mut out = [0; 24];
        let numbers = [self.next.0, self.log_time.0, self.deltas];
        for (chunk, n) in out.chunks_exact_mut(8).zip(numbers) {
            chunk.copy_from_slice(&n.to_be_bytes());
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Applied> {
        let bytes: &[u8; 24] = bytes.try_into().ok()?;
        let number = |i: usize| {
            let mut n = [0; 8];
            n.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
            u64::from_be_bytes(n)
        };
        Some(Applied {
            next: Offset(number(0)),
            log_time: Micros(number(1)),
            deltas: number(2),
        })
    }
}
