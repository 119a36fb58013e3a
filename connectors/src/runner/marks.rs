//! How far the source is done: a checkpoint counts when all before it arrived in both lanes. Pure.

use serde_json::Value;
use std::collections::VecDeque;

/// Up to which batch of each lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Upto {
    pub urgent: u64,
    pub bulk: u64,
}

impl Upto {
    fn reached(self, arrived: Upto) -> bool {
        self.urgent <= arrived.urgent && self.bulk <= arrived.bulk
    }

    /// What is still waited for, in a form that is equal when the same is.
    fn left(self, arrived: Upto) -> Upto {
        Upto {
            urgent: self.urgent.max(arrived.urgent),
            bulk: self.bulk.max(arrived.bulk),
        }
    }
}

/// A place in the source, and what has to arrive before it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub upto: Upto,
    pub checkpoint: Value,
    pub barrier: Option<String>,
}

/// In the order of the source.
#[derive(Debug, Default)]
pub(super) struct Marks(VecDeque<Mark>);

impl Marks {
    pub fn push(&mut self, mark: Mark) {
        self.0.push_back(mark);
    }

    /// The last mark that is reached. A barrier stays until it is told, also when it is not the last
    /// mark's own.
    pub fn reached(&mut self, arrived: Upto) -> Option<Mark> {
        let mut last: Option<Mark> = None;
        while self
            .0
            .front()
            .is_some_and(|mark| mark.upto.reached(arrived))
        {
            let mark = self.0.pop_front()?;
            last = Some(merged(last, mark));
        }
        self.compact(arrived);
        last
    }

    /// Of marks that will be reached at the same moment only the last one says anything. So there
    /// are never more than batches that have not arrived, however long a lane waits.
    fn compact(&mut self, arrived: Upto) {
        let mut kept: VecDeque<Mark> = VecDeque::with_capacity(self.0.len());
        for mark in self.0.drain(..) {
            let together = |before: &mut Mark| before.upto.left(arrived) == mark.upto.left(arrived);
            let before = kept.pop_back_if(together);
            kept.push_back(merged(before, mark));
        }
        self.0 = kept;
    }
}

fn merged(before: Option<Mark>, mut mark: Mark) -> Mark {
    mark.barrier = mark.barrier.or(before.and_then(|b| b.barrier));
    mark
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn upto(urgent: u64, bulk: u64) -> Upto {
        Upto { urgent, bulk }
    }

    fn mark(at: u64, upto: Upto) -> Mark {
        Mark {
            upto,
            checkpoint: json!(at),
            barrier: at.is_multiple_of(2).then(|| at.to_string()),
        }
    }

    #[test]
    fn a_mark_is_reached_when_both_lanes_are_there() {
        let mut marks = Marks::default();
        marks.push(mark(1, upto(1, 0)));
        marks.push(mark(2, upto(1, 1)));
        marks.push(mark(3, upto(2, 1)));
        assert_eq!(marks.reached(upto(0, 0)), None);
        assert_eq!(marks.reached(upto(1, 0)), Some(mark(1, upto(1, 0))));
        assert_eq!(marks.reached(upto(2, 0)), None);
        let both = marks.reached(upto(2, 1)).expect("reached");
        assert_eq!(
            (both.checkpoint, both.barrier.as_deref()),
            (json!(3), Some("2"))
        );
    }

    #[test]
    fn a_lane_that_waits_for_long_does_not_gather_marks() {
        let mut marks = Marks::default();
        for urgent in 0..10_000 {
            marks.push(mark(urgent, upto(urgent, 1)));
            assert_eq!(marks.reached(upto(urgent, 0)), None);
            assert!(marks.0.len() <= 2);
        }
        let last = marks.reached(upto(9_999, 1)).expect("reached");
        assert_eq!(last.checkpoint, json!(9_999));
    }

    proptest! {
        #[test]
        fn what_is_reached_is_what_a_plain_list_says(
            steps in proptest::collection::vec((0..3_u64, 0..3_u64, 0..3_u64, 0..3_u64), 1..60),
        ) {
            let (mut marks, mut plain) = (Marks::default(), Vec::new());
            let (mut sent, mut arrived) = (upto(0, 0), upto(0, 0));
            let mut at = 0;
            for (n, (urgent, bulk, urgent_in, bulk_in)) in steps.into_iter().enumerate() {
                sent = upto(sent.urgent + urgent, sent.bulk + bulk);
                marks.push(mark(n as u64, sent));
                plain.push(sent);
                arrived.urgent = sent.urgent.min(arrived.urgent + urgent_in);
                arrived.bulk = sent.bulk.min(arrived.bulk + bulk_in);
                if let Some(reached) = marks.reached(arrived) {
                    at = reached.checkpoint.as_u64().expect("a number") + 1;
                }
                let expected = plain.iter().take_while(|u| u.reached(arrived)).count() as u64;
                prop_assert_eq!(at, expected);
            }
        }
    }
}
