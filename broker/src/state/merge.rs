//! How runs become segments: what they have of a part of the keys is merged with the segment of that part, which is written
//! anew, one part after the other. Values that are forgotten go.
//!
//! A segment costs as much as it is large, however many runs are taken in: so many wait. Its turn comes when it has waited
//! longest, and turns are spread: were all segments due at once, runs that come meanwhile would wait beside those that the
//! last segment still needs. At any moment the disk has one segment twice, not all of them.

use crate::state::{
    Shared, StateError,
    columns::Place,
    merged::Merged,
    row, table,
    table::{Cursor, Table, Writer},
    tables::{List, Segment, Tables},
};
use hutong_proto::Micros;
use std::{
    ops::RangeInclusive,
    sync::{Arc, atomic::Ordering},
};

/// Runs that wait for the segment that has waited longest, at most.
const RUNS_MERGED_MAX: usize = 92;
/// Fewer are enough if they have so many times the bytes of the segments.
const SHARE: u64 = 4;

/// Merges when enough waits, until it is told to stop.
pub fn merge_loop(shared: &Shared, tables: &Tables) {
    loop {
        let low = {
            let mut signal = shared.signal.lock();
            loop {
                if signal.ends() {
                    return;
                }
                // Not held while it waits: tables that are replaced meanwhile would stay.
                let due = due(&tables.list(), shared.options.runs_merged);
                match due {
                    Some(low) => break low,
                    None => shared.changed.wait(&mut signal),
                }
            }
        };
        let merging = tables.merging.lock();
        let merged = merge(shared, tables, low);
        drop(merging);
        if let Err(error) = merged {
            return shared.fail(&error);
        }
    }
}

/// Where the segment begins that has waited longest, if enough waits.
pub(super) fn due(list: &List, least: usize) -> Option<u128> {
    let next = list.segments.iter().min_by_key(|segment| segment.through)?;
    let (runs, run_bytes) = (list.runs.len() as u64, list.run_bytes().max(1));
    let enough = (SHARE * list.segment_bytes() * runs).div_ceil(run_bytes);
    let enough = (enough as usize).min(RUNS_MERGED_MAX).max(least);
    // In the mean it is about half of that once turns are spread evenly. By bytes, since keys may be anywhere.
    let turns = list.segments.len() as f64;
    let spread = list.waiting_mean().0 >= enough as f64 * (turns + 1.0) / (2.0 * turns);
    (list.waiting(next.through).len() >= enough || spread).then_some(next.low)
}

/// Merges into all segments, whatever waits, unless it is told to stop before.
#[cfg(test)]
pub fn pass(shared: &Shared, tables: &Tables) -> Result<(), StateError> {
    let _one = tables.merging.lock();
    let mut low = Some(0);
    while let Some(from) = low
        && !shared.signal.lock().ends()
    {
        low = merge(shared, tables, from)?;
    }
    Ok(())
}

/// Merges into the segment that begins here. Says where the next one begins, if there is one and it was not told to stop.
fn merge(shared: &Shared, tables: &Tables, low: u128) -> Result<Option<u128>, StateError> {
    let Some(step) = Step::new(shared, tables, low)? else {
        return Ok(None);
    };
    let below = step.below;
    step.take_in()?;
    shared.stats.lock().merges += 1;
    let signal = shared.signal.lock();
    shared.changed.notify_all();
    drop(signal);
    Ok(below)
}

/// New segments in the place of old ones.
struct Step<'a> {
    tables: &'a Tables,
    /// Places of the old ones in the list.
    begin: usize,
    end: usize,
    /// Where the next one begins.
    below: Option<u128>,
    new: Vec<(u128, Table)>,
    low: u128,
    through: u64,
}

impl<'a> Step<'a> {
    /// Writes the segment that begins at `low` anew, with small ones behind it; `None` if there is none or it was told to
    /// stop.
    fn new(shared: &Shared, tables: &'a Tables, low: u128) -> Result<Option<Step<'a>>, StateError> {
        let list = tables.list();
        let Ok(begin) = list.segments.binary_search_by_key(&low, |s| s.low) else {
            // Another merge has joined it with the one before.
            return Ok(None);
        };
        let mut end = begin + 1;
        let mut bytes = list.segments[begin].bytes();
        while let Some(next) = list.segments.get(end)
            && bytes + next.bytes() <= shared.options.segment_bytes / 2
        {
            bytes += next.bytes();
            end += 1;
        }
        let old = &list.segments[begin..end];
        let below = list.segments.get(end).map(|s| s.low);
        let merged_through = old.iter().map(|s| s.through).min().unwrap_or(0);
        let runs = list.waiting(merged_through).iter().rev();
        let runs: Vec<Arc<Table>> = runs.map(Arc::clone).collect();
        let through = runs.first().map_or(merged_through, |run| run.number);
        let old = old.iter().filter_map(|s| s.table.clone()).collect();
        let keys = low..=below.map_or(u128::MAX, |below| below - 1);
        let part = Part {
            shared,
            tables,
            keys,
        };
        let new = part.write(runs, old)?;
        Ok(new.map(|new| Step {
            tables,
            begin,
            end,
            below,
            new,
            low,
            through,
        }))
    }

    fn take_in(self) -> Result<(), StateError> {
        failpoint!(SegmentsWritten);
        let (lows, written): (Vec<_>, Vec<_>) = self.new.into_iter().unzip();
        let through = self.through;
        let segment = |low, table| Segment {
            low,
            through,
            table,
        };
        let change = |list: &mut List, tables: Vec<Arc<Table>>| {
            let new = lows.into_iter().zip(tables);
            let mut new: Vec<_> = new.map(|(low, table)| segment(low, Some(table))).collect();
            match new.first_mut() {
                Some(first) => first.low = self.low,
                None => new.push(segment(self.low, None)),
            }
            list.segments.splice(self.begin..self.end, new);
            list.drop_merged();
        };
        let taken = self.tables.take_in(written, [], change)?;
        failpoint!(SegmentsTakenIn);
        taken.publish();
        Ok(())
    }
}

/// The keys of some neighbours.
struct Part<'a> {
    shared: &'a Shared,
    tables: &'a Tables,
    keys: RangeInclusive<u128>,
}

impl Part<'_> {
    /// Tables of all rows in this part, and with which key each begins. Runs newest first, old segments in order.
    fn write(
        &self,
        runs: Vec<Arc<Table>>,
        old: Vec<Arc<Table>>,
    ) -> Result<Option<Vec<(u128, Table)>>, StateError> {
        let piece_bytes = self.piece_bytes(&runs, &old);
        let sources = runs.into_iter().map(|run| vec![run]).chain([old]);
        let cursors = sources.map(|tables| Cursor::open(tables, self.keys.clone()));
        let mut cursors: Vec<_> = cursors.collect::<Result<_, _>>()?;
        if planted!(MergeKeepsOldest) {
            cursors.reverse();
        }
        let mut rows = Merged::new(cursors);
        // What is forgotten must be so for every record that a restart applies again, too.
        let log_time = Micros(self.shared.log_time.load(Ordering::Acquire));
        let mut pieces = Pieces {
            part: self,
            bytes: piece_bytes,
            piece: None,
            written: Vec::new(),
        };
        let mut kept = Vec::new();
        while rows.advance_many()? {
            if self.shared.signal.lock().ends() {
                return Ok(None);
            }
            kept.clear();
            kept.extend(rows.rows().iter().copied().filter(|row| {
                let expires_at = rows.page(row.page).expires_at(row.row as usize);
                !row::forgotten(expires_at, log_time)
            }));
            pieces.put(&rows, &kept)?;
        }
        pieces.finish().map(Some)
    }

    fn create(&self) -> Result<Writer, StateError> {
        let number = self.tables.next_number();
        Writer::create(&self.tables.dir, number, false)
    }

    /// As many as make pieces of one size, if keys are spread evenly, as those of entities are.
    fn piece_bytes(&self, runs: &[Arc<Table>], old: &[Arc<Table>]) -> u64 {
        let bytes = |tables: &[Arc<Table>]| tables.iter().map(|t| t.bytes).sum::<u64>();
        let keys = (self.keys.end() - self.keys.start()) >> u64::BITS;
        let of_runs = (u128::from(bytes(runs)) * keys) >> u64::BITS;
        let expected = bytes(old) + of_runs as u64;
        let most = self.shared.options.segment_bytes;
        let pieces = expected.div_ceil(most.max(1));
        // If they are not, at least not too small.
        expected.div_ceil(pieces.max(1)).max(most / 4).max(1)
    }
}

/// What is written so far.
struct Pieces<'a> {
    part: &'a Part<'a>,
    /// Of one.
    bytes: u64,
    /// The one that is being written, where it begins, and the last entity in it.
    piece: Option<(u128, Writer, u128)>,
    written: Vec<(u128, Table)>,
}

impl Pieces<'_> {
    fn put(&mut self, rows: &Merged, mut put: &[Place]) -> Result<(), StateError> {
        let first = |row: &Place| table::first(&rows.page(row.page).keys()[row.row as usize]);
        while let Some(next) = put.first().map(first) {
            let full = |piece: &Writer| piece.bytes() >= self.bytes;
            // What is of one entity stays together.
            let same = match &self.piece {
                Some((_, piece, last)) if full(piece) => {
                    put.iter().take_while(|row| first(row) == *last).count()
                }
                _ => put.len(),
            };
            if same == 0 {
                self.end_piece()?;
                continue;
            }
            let (_, piece, last) = match &mut self.piece {
                Some(piece) => piece,
                none => none.insert((next, self.part.create()?, next)),
            };
            let pushed = piece.push_all(&put[..same], |page| rows.page(page))?;
            *last = first(&put[pushed - 1]);
            put = &put[pushed..];
        }
        Ok(())
    }

    fn end_piece(&mut self) -> Result<(), StateError> {
        if let Some((low, piece, _)) = self.piece.take() {
            self.written.push((low, piece.finish()?));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<(u128, Table)>, StateError> {
        self.end_piece()?;
        Ok(self.written)
    }
}
