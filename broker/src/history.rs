//! When what was reached: for tracing one delta, along the broker's stages and to one platform. Bounded: the
//! longer ago, the coarser, to about a hundredth of its age. What lies before the first point is not guessed.

use hutong_proto::{Lane, Micros, Offset};
use parking_lot::Mutex;
use std::collections::VecDeque;

/// Points remembered for each lane.
const POINTS_MAX: usize = 4096;
/// Two points may be as far apart as the older one is old, divided by this.
const AGE_SHARE: u64 = 128;

/// What else is known at a point. When two points become one, it must hold for what was reached by either.
pub trait Note: Copy + Default + std::fmt::Debug {
    fn join(&mut self, other: Self);
}

impl Note for () {
    fn join(&mut self, (): ()) {}
}

/// The longest that anything took: no bound of it is lost when points become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Longest(pub Micros);

impl Note for Longest {
    fn join(&mut self, other: Longest) {
        self.0 = self.0.max(other.0);
    }
}

/// Everything below this offset was reached, since when.
#[derive(Clone, Copy, Debug)]
struct Point<N> {
    below: Offset,
    at: Micros,
    note: N,
}

#[derive(Debug)]
struct Points<N> {
    /// Was reached before anything is remembered here.
    before: Offset,
    points: VecDeque<Point<N>>,
}

/// Rising offsets with the time each was reached.
#[derive(Debug)]
pub struct History<N = ()> {
    lanes: [Mutex<Points<N>>; 2],
}

impl<N: Note> History<N> {
    /// What is below these offsets, by lane, was reached at times that nobody remembers.
    pub fn new(before: [Offset; 2]) -> History<N> {
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

    pub fn note(&self, lane: Lane, below: Offset, at: Micros, note: N) {
        let mut known = self.lanes[lane.index()].lock();
        if known.points.back().is_some_and(|last| last.below >= below) {
            return;
        }
        if known.points.len() == POINTS_MAX {
            thin(&mut known.points, at);
        }
        known.points.push_back(Point { below, at, note });
    }

    /// When everything up to and including `offset` was reached, or a little later if that is long ago, with
    /// what holds for all that was reached around then; `None` if it was not, or before the first point.
    pub fn noted(&self, lane: Lane, offset: Offset) -> Option<(Micros, N)> {
        let known = self.lanes[lane.index()].lock();
        if offset < known.before {
            return None;
        }
        let i = known.points.partition_point(|p| p.below <= offset);
        known.points.get(i).map(|p| (p.at, p.note))
    }

    pub fn when(&self, lane: Lane, offset: Offset) -> Option<Micros> {
        self.noted(lane, offset).map(|(at, _)| at)
    }
}

impl History {
    pub fn reached(&self, lane: Lane, below: Offset, at: Micros) {
        self.note(lane, below, at, ());
    }

    /// Whether a point was reached beyond `from`, up to `upto`.
    pub fn reached_between(&self, lane: Lane, from: Offset, upto: Offset) -> bool {
        let known = self.lanes[lane.index()].lock();
        let i = known.points.partition_point(|p| p.below <= from);
        known.points.get(i).is_some_and(|p| p.below <= upto)
    }
}

/// Makes room. Of each stretch of time the last point stays: stretches are powers of two, and so lie within
/// those of later, longer ones, and what is lost in one pass does not add up with the next. The first point
/// stays too.
fn thin<N: Note>(points: &mut VecDeque<Point<N>>, now: Micros) {
    let first = points.front().map(|p| p.below);
    let mut last_stretch = None;
    leave(points, |_, point| {
        let at = point.at.0;
        let exponent = (now.0.saturating_sub(at) / AGE_SHARE).max(1).ilog2();
        let stretch = Some((exponent, at >> exponent));
        let stays = stretch != last_stretch || Some(point.below) == first;
        last_stretch = stretch;
        stays
    });
    if points.len() > POINTS_MAX * 3 / 4 {
        // All of them within moments: then every second one is enough.
        leave(points, |newer, _| newer % 2 == 0);
    }
}

/// Leaves the points that stay, asked from the newest to the oldest with how many are newer. What is known of
/// another one goes over to the next newer one, which now says when it was reached; so the newest must stay.
fn leave<N: Note>(
    points: &mut VecDeque<Point<N>>,
    mut stays: impl FnMut(usize, &Point<N>) -> bool,
) {
    let mut left: VecDeque<Point<N>> = VecDeque::with_capacity(POINTS_MAX);
    for (newer, point) in points.drain(..).rev().enumerate() {
        // Asked in any case: the answer may depend on those before.
        let stays = stays(newer, &point);
        match left.front_mut() {
            Some(next) if !stays => next.note.join(point.note),
            _ => left.push_front(point),
        }
    }
    *points = left;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_point_beyond_an_offset_says_when_it_was_reached() {
        let history = History::<()>::new([Offset::NONE; 2]);
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
        let history: History = History::new([Offset(3), Offset(5)]);
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

    /// Evenly, at one moment, and so that no two are in one stretch: then every second one goes.
    #[test]
    fn the_longest_of_what_became_one_point_is_kept_and_what_is_new_is_exact() {
        let even: Vec<u64> = (0..20 * POINTS_MAX as u64).map(|n| n * 10_000).collect();
        let still = vec![7; 2 * POINTS_MAX];
        let apart = std::iter::successors(Some(1_u64 << 62), |age| Some(age - age / 110 - 1));
        let apart = apart.take_while(|age| *age > AGE_SHARE);
        let apart: Vec<u64> = apart.map(|age| (1 << 62) - age).collect();
        assert!(apart.len() > POINTS_MAX, "{}", apart.len());
        for times in [&even, &still, &apart] {
            let history = History::new([Offset::NONE; 2]);
            let took = |n: usize| Longest(Micros(if n % 1000 == 77 { 5_000 } else { 10 }));
            for (n, at) in times.iter().enumerate() {
                history.note(Lane::Urgent, Offset(n as u64 + 1), Micros(*at), took(n));
            }
            let noted = |n| {
                let known = history.noted(Lane::Urgent, Offset(n as u64));
                known.expect("known").1
            };
            let short = (0..times.len()).find(|n| noted(*n).0 < took(*n).0);
            assert_eq!(short, None, "it took longer than is known");
            assert!(history.lanes[0].lock().points.len() <= POINTS_MAX);
            if times.len() == even.len() {
                let last = times.len() - 1;
                assert!((last - 100..=last).all(|n| noted(n) == took(n)));
                let quick = (0..times.len()).filter(|n| noted(*n) == Longest(Micros(10)));
                let (quick, all) = (quick.count(), times.len());
                assert!(quick > all / 2, "{quick} of {all} are not taken for slow");
            }
        }
    }

    #[test]
    fn a_clock_that_stands_still_does_not_fill_it_up() {
        let history = History::<()>::new([Offset::NONE; 2]);
        for n in 1..=10 * POINTS_MAX as u64 {
            history.reached(Lane::Urgent, Offset(n), Micros(7));
        }
        assert!(history.lanes[0].lock().points.len() <= POINTS_MAX);
        assert_eq!(history.when(Lane::Urgent, Offset(1)), Some(Micros(7)));
    }
}
