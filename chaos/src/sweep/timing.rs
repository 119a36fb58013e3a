//! How long recovery takes, against the size of what recovers.

use crate::{
    interrupt,
    sweep::{
        check::Recovered,
        plan::{Planned, people},
        store::{OnAck, Store},
    },
};
use hutong_planted_broker::{log::faults::Faults, state::StateOptions};
use hutong_proto::Offset;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

/// Deltas of one record of a large store; each is of a register of its own.
const LARGE_DELTAS: u64 = 250;
/// Gathered in memory there, as a broker might.
const LARGE_GATHER_BYTES: usize = 16 << 20;
/// Of its records so many percent are applied and on disk; the others are applied again.
const LARGE_STORED_PERCENT: usize = 75;
const LARGE_RECOVERIES: usize = 7;
/// Appended between two waits.
const LARGE_WINDOW: usize = 200;

/// Recoveries of stores of about one size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Up to so many of each.
    pub log_records: u64,
    pub registers: usize,
    /// Records that were applied again.
    pub replayed: u64,
    pub recoveries: usize,
    pub ms_p50: f64,
    pub ms_max: f64,
}

impl Timing {
    fn of(mut recovered: Vec<Recovered>) -> Timing {
        assert!(!recovered.is_empty(), "of nothing there is no median");
        recovered.sort_by_key(|one| one.took);
        let ms = |took: Duration| took.as_secs_f64() * 1e3;
        let all = || recovered.iter();
        Timing {
            log_records: all().map(|one| one.log_records).max().unwrap_or(0),
            registers: all().map(|one| one.registers).max().unwrap_or(0),
            replayed: all().map(|one| one.replayed).max().unwrap_or(0),
            recoveries: recovered.len(),
            ms_p50: ms(recovered[recovered.len() / 2].took),
            ms_max: ms(recovered[recovered.len() - 1].took),
        }
    }
}

/// A row for each doubling of the log, the smallest first.
pub fn by_size(recovered: &[Recovered]) -> Vec<Timing> {
    let mut sizes: BTreeMap<u32, Vec<Recovered>> = BTreeMap::new();
    for one in recovered {
        let doublings = one.log_records.checked_ilog2().map_or(0, |n| n + 1);
        sizes.entry(doublings).or_default().push(*one);
    }
    sizes.into_values().map(Timing::of).collect()
}

/// For people.
pub fn table(timings: &[Timing]) -> String {
    let mut text =
        "  log records  registers  applied again  recoveries    p50 ms    max ms".to_owned();
    for timing in timings {
        // Writing into a text cannot fail.
        write!(
            text,
            "\n  {:>11}  {:>9}  {:>13}  {:>10}  {:>8.1}  {:>8.1}",
            timing.log_records,
            timing.registers,
            timing.replayed,
            timing.recoveries,
            timing.ms_p50,
            timing.ms_max
        )
        .ok();
    }
    text
}

/// A store of so many records, which recovers several times as after the death of its process.
pub fn large(dir: &Path, records: usize) -> Result<Timing, String> {
    let size = || StateOptions {
        gather_bytes_max: LARGE_GATHER_BYTES,
        ..StateOptions::default()
    };
    let open = || Store::open_with(dir, Faults::default(), size());
    let mut store = open()?;
    // The log waits for who applies it.
    store.apply_up_to(Offset::NONE)?;
    let on_ack: OnAck = Arc::new(|_, _| {});
    let planned: Vec<Planned> = (0..records as u64)
        .map(|number| people(number, LARGE_DELTAS))
        .collect();
    let stored = records * LARGE_STORED_PERCENT / 100;
    append(&mut store, &planned[..stored], &on_ack)?;
    store.state.flush().map_err(|e| e.to_string())?;
    append(&mut store, &planned[stored..], &on_ack)?;
    drop(store);
    let mut recovered = Vec::new();
    for _ in 0..LARGE_RECOVERIES {
        let began = Instant::now();
        let mut store = open()?;
        let from = store.state.stored().next;
        let last = store.last();
        store.apply_up_to(last)?;
        recovered.push(Recovered {
            took: began.elapsed(),
            log_records: last.0,
            replayed: last.next().0.saturating_sub(from.0),
            registers: records * LARGE_DELTAS as usize,
        });
    }
    Ok(Timing::of(recovered))
}

fn append(store: &mut Store, planned: &[Planned], on_ack: &OnAck) -> Result<(), String> {
    for some in planned.chunks(LARGE_WINDOW) {
        interrupt::check()?;
        let (told, outcome) = mpsc::channel();
        for (number, record) in some.iter().enumerate() {
            store.append(number, record, on_ack, told.clone());
        }
        drop(told);
        let mut last = Offset::NONE;
        for outcome in outcome {
            last = last.max(outcome.map_err(|e| e.to_string())?);
        }
        store.apply_up_to(last)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_of_stores_of_about_one_size() {
        let recovered = |log_records, ms| Recovered {
            took: Duration::from_millis(ms),
            log_records,
            replayed: log_records / 2,
            registers: 10,
        };
        let found = by_size(&[
            recovered(0, 9),
            recovered(5, 3),
            recovered(7, 1),
            recovered(4, 2),
            recovered(8, 4),
        ]);
        let rows: Vec<_> = found
            .iter()
            .map(|row| (row.log_records, row.recoveries, row.ms_p50, row.ms_max))
            .collect();
        assert_eq!(rows, [(0, 1, 9.0, 9.0), (7, 3, 2.0, 3.0), (8, 1, 4.0, 4.0)]);
        assert_eq!(table(&found).lines().count(), 4);
    }
}
