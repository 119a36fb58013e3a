//! States that earlier brokers wrote: in layout 1 of the data folder a register was a row of its own, which RocksDB merged.

use crate::state::{
    StateError,
    keys::{self, KeyKind, RegisterKey},
    row::Row,
    table::{self, Table, Writer},
    tables::{List, Segment, Tables},
};
use rocksdb::{ReadOptions, WriteOptions};

/// As many bytes as a segment has that was merged.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Makes such rows segments, and forgets them. Both are on disk for a while; a crash in between repeats the rest.
pub fn bring_over(tables: &Tables) -> Result<(), StateError> {
    let failed = |error: rocksdb::Error| StateError::Failed(error.to_string());
    let rows = [KeyKind::Register as u8]..[KeyKind::Register as u8 + 1];
    let mut options = ReadOptions::default();
    options.set_iterate_range(rows.clone());
    options.fill_cache(false);
    let mut found = tables.db.raw_iterator_opt(options);
    found.seek(rows.start);
    if found.valid() && tables.list().segments.iter().all(|s| s.table.is_none()) {
        tracing::info!("registers are rewritten in the layout of this broker, once");
        let written = write(tables, &mut found)?;
        let (lows, written): (Vec<_>, Vec<_>) = written.into_iter().unzip();
        let change = |list: &mut List, new: Vec<_>| {
            let new = lows.into_iter().zip(new);
            list.segments = new
                .map(|(low, table)| Segment {
                    low,
                    through: 0,
                    table: Some(table),
                })
                .collect();
            list.segments[0].low = 0;
        };
        tables.take_in(written, [], change)?.publish();
        found.seek(rows.start);
    }
    found.status().map_err(failed)?;
    if found.valid() {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        let family = tables
            .db
            .cf_handle(super::FAMILY)
            .expect("named when it was opened");
        let (from, below) = (rows.start, rows.end);
        tables
            .db
            .delete_range_cf_opt(family, from, below, &options)
            .map_err(failed)?;
        drop(found);
        tables.db.compact_range(Some(from), Some(below));
    }
    Ok(())
}

fn write(
    tables: &Tables,
    rows: &mut rocksdb::DBRawIterator<'_>,
) -> Result<Vec<(u128, Table)>, StateError> {
    let damaged = |what| StateError::damaged(&keys::register_prefix(), what);
    let mut written = Vec::new();
    let mut piece: Option<(u128, Writer)> = None;
    let mut before = None;
    while let Some((key, value)) = rows.key().zip(rows.value()) {
        let key = RegisterKey::decode(&key[1..]);
        let key = key
            .ok_or_else(|| damaged("the key does not decode"))?
            .encode();
        let row = Row::decode_layout_1(value);
        let row = row.ok_or_else(|| damaged("the row does not decode"))?;
        let first = table::first(&key);
        let full = |piece: &Writer| piece.bytes() >= SEGMENT_BYTES && before != Some(first);
        if let Some((low, full)) = piece.take_if(|(_, piece)| full(piece)) {
            written.push((low, full.finish()?));
        }
        let (_, piece) = match &mut piece {
            Some(piece) => piece,
            none => {
                let number = tables.next_number();
                none.insert((first, Writer::create(&tables.dir, number, false)?))
            }
        };
        piece.push(&key, &row)?;
        before = Some(first);
        rows.next();
    }
    // It ends also where it cannot be read on.
    rows.status()
        .map_err(|e| StateError::Failed(e.to_string()))?;
    if let Some((low, last)) = piece {
        written.push((low, last.finish()?));
    }
    Ok(written)
}
