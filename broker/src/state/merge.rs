//! How runs become segments: what they have of a part of the keys is merged with the segment of that part, which is written
//! anew, one part after the other. Values that are forgotten go.
//!
//! A pass over all segments costs as much as these are large, however many runs it takes in: so it waits for many. At any
//! moment the disk has one segment twice, not all of them.

use crate::state::{
    Shared, StateError,
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

/// Runs that wait when a pass begins, at most: what comes during the pass needs room too.
const RUNS_MERGED_MAX: usize = 64;
/// Fewer are enough if they have so many times the bytes of the segments.
const SHARE: u64 = 4;
/// Rows between two looks whether to stop.
const LOOK_EVERY_ROWS: u64 = 1 << 12;

/// Merges when enough waits, until it is told to stop.
pub fn merge_loop(shared: &Shared, tables: &Tables) {
    loop {
        {
            let mut signal = shared.signal.lock();
            while !signal.ends() && !due(shared, &tables.list()) {
                shared.changed.wait(&mut signal);
            }
            if signal.ends() {
                return;
            }
        }
        if let Err(error) = pass(shared, tables) {
            return shared.fail(&error);
        }
    }
}

fn due(shared: &Shared, list: &List) -> bool {
    let runs = list.runs.len();
    let enough = list.run_bytes() >= SHARE * list.segment_bytes();
    let least = shared.options.runs_merged;
    runs >= least && (enough || runs >= RUNS_MERGED_MAX)
}

/// Merges into all segments, unless it is told to stop before.
pub fn pass(shared: &Shared, tables: &Tables) -> Result<(), StateError> {
    let _one = tables.merging.lock();
    let mut low = Some(0);
    while let Some(from) = low {
        if shared.signal.lock().ends() {
            return Ok(());
        }
        let Some(step) = Step::new(shared, tables, from)? else {
            return Ok(());
        };
        low = step.below;
        step.take_in()?;
        let signal = shared.signal.lock();
        shared.changed.notify_all();
        drop(signal);
    }
    shared.stats.lock().merges += 1;
    Ok(())
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
    /// Writes the segment that begins at `low` anew, with small ones behind it; `None` if it was told to stop.
    fn new(shared: &Shared, tables: &'a Tables, low: u128) -> Result<Option<Step<'a>>, StateError> {
        let list = tables.list();
        let begin = list.segments.partition_point(|s| s.low < low);
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
        let runs = (list.runs.iter().rev()).filter(|run| run.number > merged_through);
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
        let mut piece: Option<(u128, Writer)> = None;
        let mut written = Vec::new();
        let mut read = 0u64;
        let mut before = None;
        while rows.advance()? {
            read += 1;
            if read.is_multiple_of(LOOK_EVERY_ROWS) && self.shared.signal.lock().ends() {
                return Ok(None);
            }
            let (columns, i) = rows.row();
            let first = table::first(&columns.keys()[i]);
            if row::forgotten(columns.expires_at(i), log_time) {
                continue;
            }
            // What is of one entity stays together.
            let full = |piece: &Writer| piece.bytes() >= piece_bytes && before != Some(first);
            if let Some((low, full)) = piece.take_if(|(_, piece)| full(piece)) {
                written.push((low, full.finish()?));
            }
            let (_, piece) = match &mut piece {
                Some(piece) => piece,
                none => none.insert((first, self.create()?)),
            };
            piece.push_from(columns, i)?;
            before = Some(first);
        }
        if let Some((low, last)) = piece {
            written.push((low, last.finish()?));
        }
        Ok(Some(written))
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
