//! When a subscription got where: for tracing one delta to one platform. Bounded; what is older is
//! known to be applied, but no longer when.

use hutong_proto::{Lane, Micros, Offset};
use parking_lot::Mutex;
use std::collections::VecDeque;

/// Points remembered for each lane.
const POINTS_MAX: usize = 4096;

/// (everything below this offset, since when).
type Points = VecDeque<(Offset, Micros)>;

/// Rising offsets with the time each was reached.
#[derive(Debug, Default)]
pub struct History {
    lanes: [Mutex<Points>; 2],
}

impl History {
    pub fn reached(&self, lane: Lane, below: Offset, at: Micros) {
        let mut points = self.lanes[lane.index()].lock();
        if points.back().is_some_and(|(last, _)| *last >= below) {
            return;
        }
        if points.len() == POINTS_MAX {
            points.pop_front();
        }
        points.push_back((below, at));
    }

    /// When everything up to and including `offset` was reached; `None` if not, or too long ago.
    pub fn when(&self, lane: Lane, offset: Offset) -> Option<Micros> {
        let points = self.lanes[lane.index()].lock();
        let i = points.partition_point(|(below, _)| *below <= offset);
        // The first point kept says nothing about what lies before it.
        let complete = points.len() < POINTS_MAX;
        match i {
            0 if !complete => None,
            i => points.get(i).map(|(_, at)| *at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_point_beyond_an_offset_says_when_it_was_reached() {
        let history = History::default();
        for (below, at) in [(5, 50), (9, 90), (9, 95), (12, 120)] {
            history.reached(Lane::Urgent, Offset(below), Micros(at));
        }
        for (offset, at) in [
            (4, Some(50)),
            (5, Some(90)),
            (8, Some(90)),
            (11, Some(120)),
            (12, None),
        ] {
            let expected = at.map(Micros);
            assert_eq!(
                history.when(Lane::Urgent, Offset(offset)),
                expected,
                "{offset}"
            );
        }
        assert_eq!(history.when(Lane::Bulk, Offset(4)), None);
    }

    #[test]
    fn what_is_too_long_ago_is_not_guessed() {
        let history = History::default();
        for n in 1..=2 * POINTS_MAX as u64 {
            history.reached(Lane::Bulk, Offset(n * 10), Micros(n));
        }
        assert_eq!(history.when(Lane::Bulk, Offset(3)), None);
    }
}
