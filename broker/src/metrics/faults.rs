//! What went wrong last, for each platform and direction: one of each is kept, so that a platform's page can say it.

use super::Recorder;
use hutong_proto::{Issuer, Micros, Reason, Refusal};

/// Of a field's name; the rest is cut off.
const FIELD_BYTES_MAX: usize = 64;

/// Of which of a platform's streams something is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Publish,
    Subscribe,
}

impl Side {
    pub const ALL: [Side; 2] = [Side::Publish, Side::Subscribe];

    pub fn name(self) -> &'static str {
        match self {
            Side::Publish => "publish",
            Side::Subscribe => "subscribe",
        }
    }
}

/// A refusal, or an error that a stream ended with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub at: Micros,
    pub reason: Reason,
    /// Where in the message it was found; never what was found there.
    pub field: String,
    /// The stream ended with it.
    pub ended: bool,
}

impl Recorder {
    /// Something of the platform was refused, or its stream ended with an error. Once a batch, not once a delta.
    pub fn fault(&self, platform: Issuer, side: Side, refusal: &Refusal, ended: bool, at: Micros) {
        let mut end = refusal.field.len().min(FIELD_BYTES_MAX);
        while !refusal.field.is_char_boundary(end) {
            end -= 1;
        }
        let fault = Fault {
            at,
            reason: refusal.reason,
            field: refusal.field[..end].to_owned(),
            ended,
        };
        self.platform(platform).faults[side as usize]
            .lock()
            .replace(fault);
    }

    /// The last ones of a platform, newest first.
    pub fn faults(&self, platform: Issuer) -> Vec<(Side, Fault)> {
        let faults = &self.platform(platform).faults;
        let last = |side: Side| faults[side as usize].lock().clone().map(|f| (side, f));
        let mut last: Vec<_> = Side::ALL.into_iter().filter_map(last).collect();
        last.sort_by_key(|(_, fault)| std::cmp::Reverse(fault.at));
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn the_last_one_of_each_direction_is_kept_and_none_of_another_platform() {
        let of = |code| Issuer::new(code).expect("six digits");
        let metrics = Metrics::new([of(340_000), of(510_000)]);
        // Three bytes each, so that the bound falls into one.
        let long = "码".repeat(FIELD_BYTES_MAX);
        let first = (Side::Publish, Reason::EntityInvalid, true, 1);
        let publish = (Side::Publish, Reason::TimeInFuture, false, 3);
        let subscribe = (Side::Subscribe, Reason::CursorAhead, true, 2);
        let newer = (Side::Subscribe, Reason::CursorOfAnotherLog, true, 4);
        for (fault, expected) in [
            (first, vec![first]),
            (subscribe, vec![subscribe, first]),
            (publish, vec![publish, subscribe]),
            (newer, vec![newer, publish]),
        ] {
            let (side, reason, ended, at) = fault;
            let refusal = Refusal::new(reason, long.clone());
            metrics.fault(of(340_000), side, &refusal, ended, Micros(at));
            let faults = metrics.faults(of(340_000));
            let said = faults
                .iter()
                .map(|(side, f)| (*side, f.reason, f.ended, f.at.0));
            let said: Vec<_> = said.collect();
            assert_eq!(said, expected);
            assert_eq!(faults[0].1.field, "码".repeat(FIELD_BYTES_MAX / 3));
        }
        assert_eq!(metrics.faults(of(510_000)), []);
    }
}
