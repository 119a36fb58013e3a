//! When a subscription got where: for tracing one delta to one platform. Bounded: the longer ago, the
//! coarser, to about a hundredth of its age. What lies before the first point is not guessed.

use hutong_proto::{Lane, Micros, Offset};
use parking_lot::Mutex;
use std::collections::VecDeque;

/// Points remembered for each lane.
const POINTS_MAX: usize = 4096;
/// Two points may be as far apart as the older one is old, divided by this.
const AGE_SHARE: u64 = 128;

/// (everything below this offset, since when).
type Point = (Offset, Micros);

#[derive(Debug, Default)]
struct Points {
    /// Was reached before anything is remembered here.
    before: Offset,
    points: VecDeque<Point>,
}

/// Rising offsets with the time each was reached.
#[derive(Debug, Default)]
pub struct History {
    lanes: [Mutex<Points>; 2],
}

impl History {
    /// What is below these offsets, by lane, was reached at times that nobody remembers.
    pub fn new(before: [Offset; 2]) -> History {
        let points = |before| {
            Mutex::new(Points {
                before,
                points: VecDeque::new(),
            })
        };
        History {
            lanes: before.map(points),
        }
    }

    pub fn reached(&self, lane: Lane, below: Offset, at: Micros) {
        let mut known = self.lanes[lane.index()].lock();
        if known.points.back().is_some_and(|(last, _)| *last >= below) {
            return;
        }
        if known.points.len() == POINTS_MAX {
            thin(&mut known.points, at);
        }
        known.points.push_back((below, at));
    }

    /// Whether a point was reached beyond `from`, up to `upto`.
    pub fn reached_between(&self, lane: Lane, from: Offset, upto: Offset) -> bool {
        let known = self.lanes[lane.index()].lock();
        let i = known.points.partition_point(|(below, _)| *below <= from);
        known.points.get(i).is_some_and(|(below, _)| *below <= upto)
    }

    /// When everything up to and including `offset` was reached, or a little later if that is long ago;
    /// `None` if it was not, or before the first point.
    pub fn when(&self, lane: Lane, offset: Offset) -> Option<Micros> {
        let known = self.lanes[lane.index()].lock();
        if offset < known.before {
            return None;
        }
        let i = known.points.partition_point(|(below, _)| *below <= offset);
        known.points.get(i).map(|(_, at)| *at)
    }
}

/// Makes room. Of each stretch of time the last point stays: stretches are powers of two, and so lie within
/// those of later, longer ones, and what is lost in one pass does not add up with the next. The first point
/// stays too.
fn thin(points: &mut VecDeque<Point>, now: Micros) {
    let mut kept = VecDeque::with_capacity(POINTS_MAX);
    let first = points.front().copied();
    let mut last_stretch = None;
    for point in points.drain(..).rev() {
        let at = point.1.0;
        let exponent = (now.0.saturating_sub(at) / AGE_SHARE).max(1).ilog2();
        let stretch = Some((exponent, at >> exponent));
        if stretch != last_stretch || Some(point) == first {
            kept.push_front(point);
        }
        last_stretch = stretch;
    }
    *points = kept;
    if points.len() > POINTS_MAX * 3 / 4 {
        // All of them within moments: then every second one is enough.
        let mut even = false;
        points.retain(|_| {
            even = !even;
            even
        });
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
        for (from, upto, expected) in [(5, 9, true), (5, 8, false), (9, 11, false), (12, 99, false)]
        {
            let reached = history.reached_between(Lane::Urgent, Offset(from), Offset(upto));
            assert_eq!(reached, expected, "{from} to {upto}");
        }
    }

    #[test]
    fn what_is_long_ago_is_known_less_exactly_but_never_too_early() {
        const SECOND: u64 = 1_000_000;
        let history = History::new([Offset(3), Offset(5)]);
        // A delivery each ten milliseconds, for a day.
        let last = 24 * 3600 * 100;
        let at = |n: u64| Micros(n * SECOND / 100);
        for n in 1..=last {
            history.reached(Lane::Bulk, Offset(n * 10), at(n));
        }
        assert!(history.lanes[1].lock().points.len() <= POINTS_MAX);
        assert_eq!(history.when(Lane::Bulk, Offset(4)), None, "it began later");
        for back in [0, 1, 50, 1000, 100_000, last / 2, last - 1] {
            let n = last - back;
            let when = history.when(Lane::Bulk, Offset(n * 10 - 1));
            let late = when.expect("known").0 - at(n).0;
            let age = at(last).0 - at(n).0;
            assert!(late <= age / 64 + SECOND / 100, "{late} us at {age} us");
        }
        assert_eq!(history.when(Lane::Bulk, Offset(last * 10)), None);
    }

    #[test]
    fn a_clock_that_stands_still_does_not_fill_it_up() {
        let history = History::default();
        for n in 1..=10 * POINTS_MAX as u64 {
            history.reached(Lane::Urgent, Offset(n), Micros(7));
        }
        assert!(history.lanes[0].lock().points.len() <= POINTS_MAX);
        assert_eq!(history.when(Lane::Urgent, Offset(1)), Some(Micros(7)));
    }
}
