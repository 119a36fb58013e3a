//! When a sink was well again: when its table had all that its bounds of lag allow nobody to be without.

use crate::{
    history::{Cursor, Role},
    judge::{
        Facts,
        facts::{is_urgent, records},
    },
};

/// From this moment until a table was seen that has what it must have by then. Tables are looked at each second, so it is
/// up to a second more than it took.
pub fn recovered(facts: &Facts<'_>, from: u64) -> Option<u64> {
    let hypothesis = &facts.history.drill.hypothesis;
    let bounds = [hypothesis.urgent_lag, hypothesis.bulk_lag].map(|lag| lag.as_micros() as u64);
    let came = [true, false].map(|urgent| first_seen(facts, urgent));
    let has_all = |at: u64, cursor: Cursor| {
        let lanes = [cursor.urgent, cursor.bulk].into_iter().zip(&came);
        lanes.zip(bounds).all(|((cursor, came), bound)| {
            let known = came.partition_point(|(t, _)| t + bound <= at);
            known == 0 || came[known - 1].1 < cursor
        })
    };
    let tables = facts.history.tables.iter().filter(|table| table.at >= from);
    let mut seen = tables.filter_map(|table| Some((table.at, table.cursor?)));
    let (at, _) = seen.find(|(at, cursor)| has_all(*at, *cursor))?;
    Some(at - from)
}

/// By time: the highest offset of a lane that any live subscriber had by then.
fn first_seen(facts: &Facts<'_>, urgent: bool) -> Vec<(u64, u64)> {
    let live = facts.history.with_role(Role::Live);
    let mut came: Vec<(u64, u64)> = live
        .flat_map(records)
        .filter(|(_, record)| is_urgent(record.stream) == urgent)
        .map(|(t, record)| (t, record.offset))
        .collect();
    came.sort_unstable();
    let mut highest = 0;
    for (_, offset) in &mut came {
        highest = highest.max(*offset);
        *offset = highest;
    }
    came
}
