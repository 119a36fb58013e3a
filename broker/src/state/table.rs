//! One sorted table of registers, in a file of its own that is written once and never changed.
//!
//! Pages, one after the other: CRC-32C u32 of the page, the page (`columns.rs`). Then what is kept in memory of the table:
//! rows u64; pages u32; of each page its first entity as a number u128, where it ends u64; the filter of each, if
//! there are filters (`filter.rs`). At the end: bytes of that u32, CRC-32C of that u32, `hutong-1`. Numbers are little-endian.
//!
//! Not a file of RocksDB: that one forgets what it wrote as soon as it is written, and merging would read it from the disk,
//! which takes ten times the processor time.

use crate::state::{
    StateError,
    columns::{Columns, Key, Place},
    filter::Filter,
    row::Row,
};
use crc32c::crc32c;
use hutong_proto::EntityId;
use std::{
    fs::{self, File},
    io::{self, Write},
    ops::{Range, RangeInclusive},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Raised when anything in the file changes.
const MAGIC: &[u8; 8] = b"hutong-1";
const FOOTER_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
/// Rows and pages.
const INDEX_HEAD_BYTES: usize = 12;
/// Of a page, in the index.
const PLACE_BYTES: usize = 24;
pub const EXTENSION: &str = "table";
/// Written at once.
const WRITE_BYTES: usize = 256 << 10;
/// Synced at once: the log's syncs wait behind what is on its way to the disk.
const SYNC_BYTES: usize = 2 << 20;
/// Read at once by who reads on.
const READ_BYTES: u64 = 256 << 10;

/// The entity of a key, as a number with the same order.
pub fn first(key: &[u8]) -> u128 {
    u128::from_be_bytes(key[..16].try_into().expect("16 of 20 bytes"))
}

/// A key as numbers with the same order.
pub type Order = (u128, u32);

pub fn order(key: &Key) -> Order {
    let last = key[16..].try_into().expect("4 of 20 bytes");
    (first(key), u32::from_be_bytes(last))
}

pub fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:06}.{EXTENSION}"))
}

/// The number of the table in this file, if it is one.
pub fn number_of(path: &Path) -> Option<u64> {
    let table = path.extension().is_some_and(|e| e == EXTENSION);
    table.then(|| path.file_stem()?.to_str()?.parse().ok())?
}

/// A table that is on disk, and where its pages are. Its file goes with who has it last, unless it is listed.
#[derive(Debug)]
pub struct Table {
    pub number: u64,
    pub rows: u64,
    /// Of its pages.
    pub bytes: u64,
    pub path: PathBuf,
    file: File,
    firsts: Vec<u128>,
    ends: Vec<u64>,
    filter: Option<Filter>,
    /// Somebody may look for it at the next opening.
    listed: AtomicBool,
}

impl Table {
    pub fn load(dir: &Path, number: u64) -> Result<Table, StateError> {
        let path = path(dir, number);
        let failed = |error: io::Error| failed(&path, &error);
        let file = File::open(&path).map_err(failed)?;
        let damaged = |what: &str| damaged(&path, what);
        let bytes = file.metadata().map_err(failed)?.len();
        let mut footer = [0; FOOTER_BYTES];
        let at = bytes.checked_sub(FOOTER_BYTES as u64);
        let at = at.ok_or_else(|| damaged("it is cut off"))?;
        file.read_exact_at(&mut footer, at).map_err(failed)?;
        if &footer[8..] != MAGIC {
            return Err(damaged("it does not end as a table"));
        }
        let number_at =
            |i: usize| u32::from_le_bytes([footer[i], footer[i + 1], footer[i + 2], footer[i + 3]]);
        let at = at.checked_sub(u64::from(number_at(0)));
        let at = at.ok_or_else(|| damaged("it is cut off"))?;
        let mut index = vec![0; number_at(0) as usize];
        file.read_exact_at(&mut index, at).map_err(failed)?;
        if crc32c(&index) != number_at(4) {
            return Err(damaged("the checksum of its index is another one"));
        }
        let mut table = Table {
            number,
            rows: 0,
            bytes: at,
            path: path.clone(),
            file,
            firsts: Vec::new(),
            ends: Vec::new(),
            filter: None,
            listed: AtomicBool::new(true),
        };
        let decoded = table.decode_index(&index);
        decoded.ok_or_else(|| damaged("its index does not decode"))?;
        Ok(table)
    }

    fn decode_index(&mut self, index: &[u8]) -> Option<()> {
        let (rows, rest) = index.split_first_chunk::<8>()?;
        let (pages, rest) = rest.split_first_chunk::<4>()?;
        let pages = usize::try_from(u32::from_le_bytes(*pages)).ok()?;
        let (places, filter) = rest.split_at_checked(pages.checked_mul(PLACE_BYTES)?)?;
        for place in places.chunks_exact(PLACE_BYTES) {
            let (first, end) = place.split_first_chunk::<16>()?;
            self.firsts.push(u128::from_le_bytes(*first));
            self.ends.push(u64::from_le_bytes(end.try_into().ok()?));
        }
        self.rows = u64::from_le_bytes(*rows);
        if !filter.is_empty() {
            self.filter = Some(Filter::decode(filter)?);
        }
        let in_order = self.firsts.is_sorted() && self.ends.is_sorted_by(|a, b| a < b);
        (in_order && self.ends.last() == Some(&self.bytes)).then_some(())
    }

    fn encode_index(&self) -> Vec<u8> {
        let mut index = Vec::with_capacity(self.disk_bytes() as usize - self.bytes as usize);
        index.extend_from_slice(&self.rows.to_le_bytes());
        index.extend_from_slice(&(self.firsts.len() as u32).to_le_bytes());
        for (first, end) in self.firsts.iter().zip(&self.ends) {
            index.extend_from_slice(&first.to_le_bytes());
            index.extend_from_slice(&end.to_le_bytes());
        }
        if let Some(filter) = &self.filter {
            filter.encode(&mut index);
        }
        let (bytes, crc) = (index.len() as u32, crc32c(&index));
        index.extend_from_slice(&bytes.to_le_bytes());
        index.extend_from_slice(&crc.to_le_bytes());
        index.extend_from_slice(MAGIC);
        index
    }

    /// Whether a list names it, or may do so: one that could not be written may have been, all the same.
    pub fn set_listed(&self, listed: bool) {
        self.listed.store(listed, Ordering::Release);
    }

    /// What of it is kept in memory.
    pub fn memory_bytes(&self) -> usize {
        self.firsts.len() * PLACE_BYTES + self.filter.as_ref().map_or(0, Filter::bytes)
    }

    /// Of its file.
    pub fn disk_bytes(&self) -> u64 {
        self.bytes + (INDEX_HEAD_BYTES + self.memory_bytes() + FOOTER_BYTES) as u64
    }

    /// Where this page begins.
    fn start(&self, page: usize) -> u64 {
        match page {
            0 => 0,
            page => self.ends[page - 1],
        }
    }

    /// The pages that may have these entities.
    fn pages(&self, firsts: &RangeInclusive<u128>) -> Range<usize> {
        // Others of the entity that is first in a page may stand at the end of the one before.
        let from = self.firsts.partition_point(|f| f < firsts.start());
        let below = self.firsts.partition_point(|f| f <= firsts.end());
        from.saturating_sub(1)..below
    }

    fn damaged(&self, page: usize, what: &str) -> StateError {
        damaged(&self.path, &format!("page {page}: {what}"))
    }

    /// The page that is in these bytes of the file.
    fn decode(&self, page: usize, bytes: &[u8], columns: &mut Columns) -> Result<(), StateError> {
        let (crc, bytes) = bytes
            .split_first_chunk::<CRC_BYTES>()
            .unwrap_or((&[0; 4], &[]));
        if crc32c(bytes) != u32::from_le_bytes(*crc) {
            return Err(self.damaged(page, "its checksum is another one"));
        }
        let decoded = columns.decode(bytes);
        decoded.ok_or_else(|| self.damaged(page, "it does not decode"))
    }

    /// All registers of this entity, in order.
    pub fn entity(
        &self,
        entity: EntityId,
        mut found: impl FnMut(&Key, Row<'_>),
    ) -> Result<(), StateError> {
        let begins = first(&entity.0);
        let mut columns = Columns::default();
        let may_have = |page: &usize| {
            let filter = self.filter.as_ref();
            filter.is_none_or(|filter| filter.may_have(*page, entity))
        };
        // One, or two.
        for page in self.pages(&(begins..=begins)).filter(may_have) {
            let start = self.start(page);
            let mut bytes = vec![0; (self.ends[page] - start) as usize];
            self.read(&mut bytes, start)?;
            self.decode(page, &bytes, &mut columns)?;
            let keys = columns.keys();
            let from = keys.partition_point(|key| key[..16] < entity.0[..]);
            let of_entity = keys[from..].iter().take_while(|key| key[..16] == entity.0);
            for i in from..from + of_entity.count() {
                let key = columns.keys()[i];
                let row = columns.row(i);
                found(
                    &key,
                    row.ok_or_else(|| self.damaged(page, "a row does not decode"))?,
                );
            }
        }
        Ok(())
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> Result<(), StateError> {
        let read = self.file.read_exact_at(bytes, at);
        read.map_err(|error| failed(&self.path, &error))
    }
}

fn failed(path: &Path, error: &io::Error) -> StateError {
    StateError::Failed(format!("{}: {error}", path.display()))
}

fn damaged(path: &Path, what: &str) -> StateError {
    StateError::Damaged {
        key: format!("in {}", path.display()),
        what: what.to_owned(),
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // What is left, after a crash too, goes at the next opening.
        if !*self.listed.get_mut() {
            fs::remove_file(&self.path).ok();
        }
    }
}

/// A table that is being written.
#[derive(Debug)]
pub struct Writer {
    table: Table,
    columns: Columns,
    /// What is not in the file yet.
    pages: Vec<u8>,
    /// Bytes that are in the file and may not be on the disk.
    unsynced: usize,
}

impl Writer {
    /// With a filter or without.
    pub fn create(dir: &Path, number: u64, filter: bool) -> Result<Writer, StateError> {
        let path = path(dir, number);
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true);
        let file = options.open(&path).map_err(|e| failed(&path, &e))?;
        let table = Table {
            number,
            rows: 0,
            bytes: 0,
            path,
            file,
            firsts: Vec::new(),
            ends: Vec::new(),
            filter: filter.then(Filter::default),
            listed: AtomicBool::new(false),
        };
        Ok(Writer {
            table,
            columns: Columns::default(),
            pages: Vec::new(),
            unsynced: 0,
        })
    }

    /// Of the pages so far.
    pub fn bytes(&self) -> u64 {
        self.table.bytes
    }

    /// In the order of their keys.
    pub fn push(&mut self, key: &Key, row: &Row<'_>) -> Result<(), StateError> {
        self.columns.push(key, row);
        self.pushed()
    }

    /// Some of these rows of other pages, in order: as many as there is room for in one page; says how many.
    pub fn push_all<'a>(
        &mut self,
        rows: &[Place],
        page: impl Fn(u32) -> &'a Columns,
    ) -> Result<usize, StateError> {
        let pushed = self.columns.push_all(rows, page);
        self.pushed()?;
        Ok(pushed)
    }

    fn pushed(&mut self) -> Result<(), StateError> {
        match self.columns.is_full() {
            true => self.put_page(),
            false => Ok(()),
        }
    }

    fn put_page(&mut self) -> Result<(), StateError> {
        let start = self.pages.len();
        self.pages.extend_from_slice(&[0; CRC_BYTES]);
        self.columns.encode(&mut self.pages);
        let (crc, page) = self.pages[start..].split_at_mut(CRC_BYTES);
        crc.copy_from_slice(&crc32c(page).to_le_bytes());
        let (table, keys) = (&mut self.table, self.columns.keys());
        table.firsts.push(first(&keys[0]));
        if let Some(filter) = &mut table.filter {
            let entity = |key: &Key| EntityId(key[..16].try_into().expect("16 of 20 bytes"));
            filter.add_page(keys.iter().map(entity));
        }
        table.rows += self.columns.len() as u64;
        table.bytes += (self.pages.len() - start) as u64;
        table.ends.push(table.bytes);
        self.columns.clear();
        match self.pages.len() >= WRITE_BYTES {
            true => self.write(),
            false => Ok(()),
        }
    }

    fn write(&mut self) -> Result<(), StateError> {
        let written = self.table.file.write_all(&self.pages);
        written.map_err(|error| failed(&self.table.path, &error))?;
        self.unsynced += self.pages.len();
        self.pages.clear();
        if self.unsynced >= SYNC_BYTES && !planted!(TableNotSynced) {
            let synced = self.table.file.sync_data();
            synced.map_err(|error| failed(&self.table.path, &error))?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Brings all of it to the disk.
    pub fn finish(mut self) -> Result<Table, StateError> {
        if !self.columns.is_empty() {
            self.put_page()?;
        }
        let index = self.table.encode_index();
        self.pages.extend_from_slice(&index);
        self.write()?;
        if !planted!(TableNotSynced) {
            let synced = self.table.file.sync_all();
            synced.map_err(|error| failed(&self.table.path, &error))?;
        }
        Ok(self.table)
    }
}

/// Rows of tables that follow each other, of entities within these bounds.
#[derive(Debug)]
pub struct Cursor {
    /// Those after the one that is read.
    tables: std::vec::IntoIter<Arc<Table>>,
    table: Option<Arc<Table>>,
    firsts: RangeInclusive<u128>,
    /// Of the table, those that are not read yet.
    pages: Range<usize>,
    /// Bytes of the file from here on.
    window: Vec<u8>,
    window_start: u64,
    columns: Columns,
    at: usize,
}

impl Cursor {
    pub fn open(
        tables: Vec<Arc<Table>>,
        firsts: RangeInclusive<u128>,
    ) -> Result<Cursor, StateError> {
        let mut cursor = Cursor {
            tables: tables.into_iter(),
            table: None,
            firsts,
            pages: 0..0,
            window: Vec::new(),
            window_start: 0,
            columns: Columns::default(),
            at: 0,
        };
        cursor.next_page()?;
        while cursor.at < cursor.columns.len() && cursor.first() < *cursor.firsts.start() {
            cursor.at += 1;
            cursor.read_on()?;
        }
        Ok(cursor)
    }

    fn first(&self) -> u128 {
        first(&self.columns.keys()[self.at])
    }

    /// The page that is read.
    pub fn page(&self) -> &Columns {
        &self.columns
    }

    /// All its rows up to this key are passed or in the page.
    pub fn known(&self) -> Order {
        let more = !self.pages.is_empty() || self.tables.len() > 0;
        let last = self.columns.keys().last().filter(|_| more);
        last.map_or((*self.firsts.end(), u32::MAX), order)
    }

    /// Passes the rows of the page that are not above this, which is known; says which they are.
    pub fn pass(&mut self, highest: Order) -> Range<usize> {
        let from = self.at;
        let rest = self.columns.keys()[from..].iter();
        self.at += rest.take_while(|key| order(key) <= highest).count();
        from..self.at
    }

    /// Nothing is left, or only keys above its bounds.
    pub fn has_ended(&self) -> bool {
        let above = |key: &Key| first(key) > *self.firsts.end();
        let left = self.columns.keys().get(self.at);
        let more = !self.pages.is_empty() || self.tables.len() > 0;
        left.map_or(!more, above)
    }

    /// What is wrong with a table whose keys are not.
    pub fn not_in_order(&self) -> StateError {
        let path = self.table.as_ref().map(|table| &*table.path);
        damaged(
            path.unwrap_or(Path::new("a table")),
            "its keys are not in order",
        )
    }

    /// If the page is read to its end, the next one takes its place.
    pub fn read_on(&mut self) -> Result<(), StateError> {
        match self.at < self.columns.len() {
            true => Ok(()),
            false => self.next_page(),
        }
    }

    fn next_page(&mut self) -> Result<(), StateError> {
        self.columns.clear();
        self.at = 0;
        while self.pages.is_empty() {
            let Some(table) = self.tables.next() else {
                self.table = None;
                return Ok(());
            };
            self.pages = table.pages(&self.firsts);
            self.window.clear();
            self.table = Some(table);
        }
        let (Some(page), Some(table)) = (self.pages.next(), &self.table) else {
            return Ok(());
        };
        let (start, end) = (table.start(page), table.ends[page]);
        if self.window_start + (self.window.len() as u64) < end || self.window.is_empty() {
            // No more than is wanted, and at least this page.
            let last = table.ends[self.pages.end - 1];
            let bytes = (last - start).min(READ_BYTES.max(end - start));
            self.window.resize(bytes as usize, 0);
            self.window_start = start;
            table.read(&mut self.window, start)?;
        }
        let at = |place: u64| (place - self.window_start) as usize;
        table.decode(page, &self.window[at(start)..at(end)], &mut self.columns)
    }
}
