//! What is on its way to a subscriber: when it was sent and how old it is, until the platform says that it has
//! applied it. Bounded: a subscriber that takes long has its newest deliveries counted as one.

use hutong_proto::{Micros, Offset, TraceContext};
use std::collections::VecDeque;

/// Of one lane. Credit bounds what is under way to a few deliveries of a usual size; many small ones may be more.
const FLIGHTS_MAX: usize = 1024;

/// A delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flight {
    /// It holds nothing from here on.
    pub below: Offset,
    /// Of the oldest delta in it, at its source.
    pub committed_at: Micros,
    /// Of the oldest record in it.
    pub durable_at: Micros,
    pub records: usize,
    pub sent_at: Micros,
    /// Some of its deltas that were sampled at their source; first those whose way is traced.
    pub traces: Vec<TraceContext>,
}

/// In the order in which they were sent.
pub type Flights = VecDeque<Flight>;

pub fn take_off(flights: &mut Flights, flight: Flight) {
    if flights.len() < FLIGHTS_MAX {
        return flights.push_back(flight);
    }
    if let Some(last) = flights.back_mut() {
        last.below = flight.below;
        last.committed_at = last.committed_at.min(flight.committed_at);
        last.records += flight.records;
    }
}

/// Those of which everything is applied.
pub fn land(flights: &mut Flights, applied: Offset) -> Vec<Flight> {
    let count = flights.partition_point(|flight| flight.below <= applied);
    flights.drain(..count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(n: u64) -> Flight {
        Flight {
            below: Offset(n),
            committed_at: Micros(1_000_000 - n),
            durable_at: Micros(n),
            records: 1,
            sent_at: Micros(n),
            traces: Vec::new(),
        }
    }

    #[test]
    fn what_is_applied_as_a_whole_has_landed() {
        let mut flights = Flights::new();
        for n in [3, 5, 9] {
            take_off(&mut flights, flight(n));
        }
        assert_eq!(land(&mut flights, Offset(2)), []);
        assert_eq!(land(&mut flights, Offset(8)), [flight(3), flight(5)]);
        assert_eq!(land(&mut flights, Offset(9)), [flight(9)]);
    }

    #[test]
    fn many_are_counted_as_one_and_as_the_oldest() {
        let mut flights = Flights::new();
        for n in 1..=5_000 {
            take_off(&mut flights, flight(n));
        }
        assert_eq!(flights.len(), FLIGHTS_MAX);
        let landed = land(&mut flights, Offset(5_000));
        let last = landed.last().expect("the newest ones");
        assert_eq!((last.below, last.sent_at), (Offset(5_000), Micros(1024)));
        assert_eq!(last.committed_at, Micros(1_000_000 - 5_000));
        assert_eq!(last.durable_at, Micros(1024));
        let records: usize = landed.iter().map(|flight| flight.records).sum();
        assert_eq!(records, 5_000);
    }
}
