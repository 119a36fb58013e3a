//! Registers of one page, column by column, and how a page is written.
//!
//! Neighbours by key have nothing in common but what their columns have: times of one week, few issuers, few
//! provenances, evidence made after one pattern. So each column is written by itself, without what all of its values
//! share. A row takes about 50 bytes instead of 120, and needs no general compression, which costs more than all else.
//!
//! A page, numbers little-endian: format u8, rows u16, then the columns:
//!
//! | column | form |
//! |---|---|
//! | entity | bytes that all begin with: n u8, these; then the rest of each, 16 - n |
//! | kind and issuer, as in the key | choice of 4 bytes |
//! | revision | numbers |
//! | committed at, less revision | numbers |
//! | expires at | u8: 1 if less revision, 0 if as it is, where one never expires; numbers |
//! | offset | numbers |
//! | provenance id | choice of 16 bytes |
//! | evidence | texts, or numbered |
//! | value | texts |
//!
//! - *numbers*: the lowest u64; bytes of each n u8; what each is above the lowest, in n bytes. Differences wrap, and
//!   which is lowest counts them as signed
//! - *choice*: how many different ones u8, these; then which, u8 each, if there are two or more. 0: too many, each itself
//! - *texts*: u8. 0: how many different ones u8, of each its length u16 and bytes; then which, u8 each, if there are two or
//!   more. 1: bytes that all begin with, bytes that all end with, each length u16 and bytes; lengths of what is between,
//!   numbers; what is between.
//! - *numbered*: 2; head, tail, length u16 and bytes each; digits u8; numbers. Each is the head, so many decimal digits of its
//!   number, and the tail
//!
//! Eight bytes of zero end it, so that each number can be read as eight bytes.

use crate::state::{
    evidence::Evidence,
    keys::REGISTER_BYTES,
    row::{ProvenanceId, Row},
    texts::{Texts, put_texts},
};
use hutong_proto::{Micros, Offset, Revision};

pub type Key = [u8; REGISTER_BYTES];

/// Raised when the layout changes. Pages of 1 have nothing numbered, and are read.
const FORMAT: u8 = 2;
pub const ROWS_MAX: usize = 256;
/// Of evidence and values: then a page is full too.
const TEXT_BYTES_MAX: usize = 64 << 10;
const ENTITY_BYTES: usize = 16;
const PADDING: usize = 8;
/// So many different values are looked up fast.
const SLOTS: usize = 512;

/// Where a row is: in one of several pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub page: u32,
    pub row: u32,
}

/// Rows in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    keys: Vec<Key>,
    revision: Vec<u64>,
    committed_at: Vec<u64>,
    expires_at: Vec<u64>,
    offset: Vec<u64>,
    provenance: Vec<[u8; 16]>,
    evidence: Evidence,
    value: Texts,
    /// Of one column, while it is written.
    differences: Vec<u64>,
}

impl Columns {
    pub fn clear(&mut self) {
        self.keys.clear();
        self.revision.clear();
        self.committed_at.clear();
        self.expires_at.clear();
        self.offset.clear();
        self.provenance.clear();
        self.evidence.clear();
        self.value.clear();
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether it makes a page.
    pub fn is_full(&self) -> bool {
        self.len() >= ROWS_MAX || self.evidence.total() + self.value.total() > TEXT_BYTES_MAX
    }

    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    pub fn expires_at(&self, i: usize) -> Micros {
        Micros(self.expires_at[i])
    }

    /// `None` if its evidence is no UTF-8.
    pub fn row(&mut self, i: usize) -> Option<Row<'_>> {
        let evidence = self.evidence.spelled_out().get(i);
        Some(Row {
            revision: Revision(self.revision[i]),
            committed_at: Micros(self.committed_at[i]),
            expires_at: Micros(self.expires_at[i]),
            offset: Offset(self.offset[i]),
            provenance: ProvenanceId(self.provenance[i]),
            evidence: std::str::from_utf8(evidence).ok()?,
            value: self.value.get(i),
        })
    }

    pub fn push(&mut self, key: &Key, row: &Row<'_>) {
        self.keys.push(*key);
        self.revision.push(row.revision.0);
        self.committed_at.push(row.committed_at.0);
        self.expires_at.push(row.expires_at.0);
        self.offset.push(row.offset.0);
        self.provenance.push(row.provenance.0);
        self.evidence.push(row.evidence.as_bytes());
        self.value.push(row.value);
    }

    pub fn push_from(&mut self, other: &Columns, i: usize) {
        self.keys.push(other.keys[i]);
        self.revision.push(other.revision[i]);
        self.committed_at.push(other.committed_at[i]);
        self.expires_at.push(other.expires_at[i]);
        self.offset.push(other.offset[i]);
        self.provenance.push(other.provenance[i]);
        self.evidence.push_from(&other.evidence, i);
        self.value.push(other.value.get(i));
    }

    /// Some of these rows, in order, as many as there is room for; says how many. Column by column, since rows of many
    /// pages are in many places: so the processor waits for several of them at once.
    pub fn push_all<'a>(&mut self, rows: &[Place], page: impl Fn(u32) -> &'a Columns) -> usize {
        let rows = &rows[..rows.len().min(ROWS_MAX - self.len().min(ROWS_MAX))];
        let bytes = |row: &Place| {
            let (page, i) = (page(row.page), row.row as usize);
            page.evidence.len(i) + page.value.len(i)
        };
        let mut texts = self.evidence.total() + self.value.total();
        // No page is fuller than if each had come by itself.
        let fits = rows.iter().take_while(|row| {
            let room = texts <= TEXT_BYTES_MAX;
            texts += bytes(row);
            room
        });
        let rows = &rows[..fits.count()];
        let each = || rows.iter().map(|row| (page(row.page), row.row as usize));
        self.keys.extend(each().map(|(page, i)| page.keys[i]));
        let (revision, committed) = (&mut self.revision, &mut self.committed_at);
        revision.extend(each().map(|(page, i)| page.revision[i]));
        committed.extend(each().map(|(page, i)| page.committed_at[i]));
        let (expires, offset) = (&mut self.expires_at, &mut self.offset);
        expires.extend(each().map(|(page, i)| page.expires_at[i]));
        offset.extend(each().map(|(page, i)| page.offset[i]));
        let provenance = &mut self.provenance;
        provenance.extend(each().map(|(page, i)| page.provenance[i]));
        self.evidence
            .push_all(each().map(|(page, i)| (&page.evidence, i)));
        each().for_each(|(page, i)| self.value.push(page.value.get(i)));
        rows.len()
    }

    /// Appends the page.
    ///
    /// # Panics
    ///
    /// If there is no row.
    pub fn encode(&mut self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.extend_from_slice(&(self.len() as u16).to_le_bytes());
        put_entities(out, &self.keys);
        put_choice(out, &self.keys, |key: &Key| {
            [key[16], key[17], key[18], key[19]]
        });
        put_numbers(out, &self.revision);
        self.put_differences(out, |columns| &columns.committed_at);
        let never = self.expires_at.contains(&0);
        out.push(u8::from(!never));
        match never {
            true => put_numbers(out, &self.expires_at),
            false => self.put_differences(out, |columns| &columns.expires_at),
        }
        put_numbers(out, &self.offset);
        put_choice(out, &self.provenance, |id: &[u8; 16]| *id);
        self.evidence.encode(out);
        put_texts(out, &self.value);
        out.extend_from_slice(&[0; PADDING]);
    }

    fn put_differences(&mut self, out: &mut Vec<u8>, of: impl Fn(&Columns) -> &Vec<u64>) {
        let mut differences = std::mem::take(&mut self.differences);
        differences.clear();
        let both = of(self).iter().zip(&self.revision);
        differences.extend(both.map(|(n, revision)| n.wrapping_sub(*revision)));
        put_numbers(out, &differences);
        self.differences = differences;
    }

    /// What is in the page takes the place of what was here; `None` if it is none.
    pub fn decode(&mut self, page: &[u8]) -> Option<()> {
        self.clear();
        let mut page = Page(page);
        if !(1..=FORMAT).contains(&page.byte()?) {
            return None;
        }
        let rows = usize::from(page.short()?);
        if rows == 0 || rows > ROWS_MAX {
            return None;
        }
        page.entities(rows, &mut self.keys)?;
        let keys = &mut self.keys;
        page.choice::<4>(rows, |i, last| {
            keys[i][ENTITY_BYTES..].copy_from_slice(last);
        })?;
        page.numbers(rows, &mut self.revision)?;
        page.numbers(rows, &mut self.committed_at)?;
        add(&mut self.committed_at, &self.revision);
        let never = page.byte()? == 0;
        page.numbers(rows, &mut self.expires_at)?;
        if !never {
            add(&mut self.expires_at, &self.revision);
        }
        page.numbers(rows, &mut self.offset)?;
        let provenance = &mut self.provenance;
        page.choice::<16>(rows, |_, id| provenance.push(*id))?;
        self.evidence.decode(&mut page, rows)?;
        let form = page.byte()?;
        page.texts(form, rows, &mut self.value)?;
        (page.0.len() == PADDING).then_some(())
    }
}

fn add(to: &mut [u64], what: &[u64]) {
    for (n, more) in to.iter_mut().zip(what) {
        *n = n.wrapping_add(*more);
    }
}

/// How many bytes both begin with.
pub fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn put_entities(out: &mut Vec<u8>, keys: &[Key]) {
    let (first, last) = (&keys[0], &keys[keys.len() - 1]);
    let shared = common(&first[..ENTITY_BYTES], &last[..ENTITY_BYTES]);
    out.push(shared as u8);
    out.extend_from_slice(&first[..shared]);
    for key in keys {
        out.extend_from_slice(&key[shared..ENTITY_BYTES]);
    }
}

pub fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    let signed = || numbers.iter().map(|n| *n as i64);
    let lowest = signed().min().unwrap_or(0) as u64;
    let spread = (signed().max().unwrap_or(0) as u64).wrapping_sub(lowest);
    let width = (u64::BITS - spread.leading_zeros()).div_ceil(8) as usize;
    out.extend_from_slice(&lowest.to_le_bytes());
    out.push(width as u8);
    if width == 0 {
        return;
    }
    // Each is written as eight bytes, and the next one over what is too much.
    let start = out.len();
    out.resize(start + numbers.len() * width + 8, 0);
    for (i, n) in numbers.iter().enumerate() {
        let at = start + i * width;
        out[at..at + 8].copy_from_slice(&n.wrapping_sub(lowest).to_le_bytes());
    }
    out.truncate(start + numbers.len() * width);
}

fn put_choice<T, const N: usize>(out: &mut Vec<u8>, rows: &[T], of: impl Fn(&T) -> [u8; N]) {
    // One more than the row in which the value of this slot stands first.
    let mut slots = [0u8; SLOTS];
    let mut choices = [[0u8; N]; u8::MAX as usize];
    let mut which = [0u8; ROWS_MAX];
    let mut known = 0;
    let mut before = 0;
    for (row, place) in rows.iter().zip(&mut which) {
        let value = of(row);
        if known == 0 || choices[before] != value {
            let head = u32::from_le_bytes([value[0], value[1], value[2], value[3]]);
            // The upper nine bits: as many as there are slots.
            let mut slot = (head.wrapping_mul(0x9e37_79b1) >> 23) as usize;
            before = loop {
                match slots[slot] {
                    0 if known == choices.len() => {
                        out.push(0);
                        rows.iter().for_each(|row| out.extend_from_slice(&of(row)));
                        return;
                    }
                    0 => {
                        choices[known] = value;
                        known += 1;
                        slots[slot] = known as u8;
                        break known - 1;
                    }
                    n if choices[usize::from(n) - 1] == value => break usize::from(n) - 1,
                    _ => slot = (slot + 1) % SLOTS,
                }
            };
        }
        *place = before as u8;
    }
    out.push(known as u8);
    out.extend_from_slice(choices[..known].as_flattened());
    if known > 1 {
        out.extend_from_slice(&which[..rows.len()]);
    }
}

/// What is left to read.
pub struct Page<'a>(&'a [u8]);

impl<'a> Page<'a> {
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    pub fn short(&mut self) -> Option<u16> {
        self.take(2).map(|two| u16::from_le_bytes([two[0], two[1]]))
    }

    fn entities(&mut self, rows: usize, keys: &mut Vec<Key>) -> Option<()> {
        let shared = usize::from(self.byte()?);
        let each = ENTITY_BYTES.checked_sub(shared)?;
        let mut key = [0; REGISTER_BYTES];
        key[..shared].copy_from_slice(self.take(shared)?);
        if each == 0 {
            keys.resize(rows, key);
            return Some(());
        }
        for rest in self.take(rows * each)?.chunks_exact(each) {
            key[shared..ENTITY_BYTES].copy_from_slice(rest);
            keys.push(key);
        }
        Some(())
    }

    pub fn numbers(&mut self, rows: usize, out: &mut Vec<u64>) -> Option<()> {
        let lowest = u64::from_le_bytes(self.take(8)?.try_into().ok()?);
        let width = usize::from(self.byte()?);
        if width == 0 {
            out.resize(rows, lowest);
            return Some(());
        }
        // What is behind the last one is at least the end of the page.
        let eights = self.0.get(..rows * width + PADDING)?;
        if width > 8 {
            return None;
        }
        let mask = u64::MAX >> (64 - 8 * width);
        out.extend((0..rows).map(|i| {
            let eight = &eights[i * width..i * width + 8];
            let n = u64::from_le_bytes(eight.try_into().expect("8 bytes"));
            (n & mask).wrapping_add(lowest)
        }));
        self.0 = &self.0[rows * width..];
        Some(())
    }

    fn choice<const N: usize>(
        &mut self,
        rows: usize,
        mut put: impl FnMut(usize, &[u8; N]),
    ) -> Option<()> {
        let known = usize::from(self.byte()?);
        let (choices, _) = self.take(known.max(1) * N)?.as_chunks::<N>();
        match known {
            // The first was taken already.
            0 => {
                put(0, &choices[0]);
                let (others, _) = self.take(rows.checked_sub(1)? * N)?.as_chunks::<N>();
                for (i, one) in others.iter().enumerate() {
                    put(i + 1, one);
                }
            }
            1 => (0..rows).for_each(|i| put(i, &choices[0])),
            _ => {
                for (i, which) in self.take(rows)?.iter().enumerate() {
                    put(i, choices.get(usize::from(*which))?);
                }
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Made = (Key, [u64; 4], [u8; 16], String, Vec<u8>);

    /// What columns may have in common: nothing, little, or all.
    fn number() -> impl Strategy<Value = u64> {
        let near = 1_700_000_000_000_000..1_700_000_100_000_000u64;
        prop_oneof![Just(0), near, any::<u64>(), Just(u64::MAX)]
    }

    fn made() -> impl Strategy<Value = Made> {
        let id = prop_oneof![Just([7; 16]), any::<[u8; 16]>()];
        let evidence = prop_oneof![Just(String::new()), "tube-[0-9]{1,3}-07", "\\PC{0,40}"];
        let value = prop_oneof![
            Just(vec![8, 1]),
            proptest::collection::vec(any::<u8>(), 0..60)
        ];
        let key = prop_oneof![
            any::<[u8; REGISTER_BYTES]>(),
            any::<u8>().prop_map(|n| {
                let mut key = [3; REGISTER_BYTES];
                key[REGISTER_BYTES - 1] = n;
                key
            }),
        ];
        (
            key,
            [number(), number(), number(), number()],
            id,
            evidence,
            value,
        )
    }

    fn row(made: &Made) -> Row<'_> {
        let (_, numbers, id, evidence, value) = made;
        Row {
            revision: Revision(numbers[0]),
            committed_at: Micros(numbers[1]),
            expires_at: Micros(numbers[2]),
            offset: Offset(numbers[3]),
            provenance: ProvenanceId(*id),
            evidence,
            value,
        }
    }

    proptest! {
        #[test]
        fn a_page_is_read_back_and_damage_never_panics(
            mut rows in proptest::collection::vec(made(), 1..=ROWS_MAX),
            cut in any::<prop::sample::Index>(),
            byte in any::<prop::sample::Index>(),
            with in any::<u8>(),
        ) {
            rows.sort();
            rows.dedup_by_key(|made| made.0);
            let mut columns = Columns::default();
            rows.iter().for_each(|made| columns.push(&made.0, &row(made)));
            let mut page = Vec::new();
            columns.encode(&mut page);
            let mut read = Columns::default();
            // What was there before makes no difference.
            read.push(&[9; REGISTER_BYTES], &row(&rows[0]));
            prop_assert_eq!(read.decode(&page), Some(()));
            prop_assert_eq!(read.len(), rows.len());
            let mut copied = Columns::default();
            for (i, made) in rows.iter().enumerate() {
                prop_assert_eq!(read.keys()[i], made.0);
                prop_assert_eq!(read.row(i), Some(row(made)));
                prop_assert_eq!(read.expires_at(i), Micros(made.1[2]));
                copied.push_from(&read, i);
            }
            let mut again = Vec::new();
            copied.encode(&mut again);
            prop_assert_eq!(&again, &page);
            // And from two pages, as far as each time there is room for.
            let other = copied.clone();
            copied.clear();
            let place = |row| Place { page: row % 2, row };
            let places: Vec<_> = (0..rows.len() as u32).map(place).collect();
            let mut rest = &places[..];
            while !rest.is_empty() {
                prop_assert!(!copied.is_full());
                let pushed = copied.push_all(rest, |page| if page == 0 { &read } else { &other });
                rest = &rest[pushed..];
            }
            again.clear();
            copied.encode(&mut again);
            prop_assert_eq!(&again, &page);
            prop_assert_eq!(read.decode(&page[..cut.index(page.len())]), None);
            let at = byte.index(page.len());
            page[at] = with;
            // Either it is noticed, or it is another row.
            let _ = read.decode(&page);
        }
    }

    /// As in mass testing: ten people to a tube, a week of them in one page.
    #[test]
    fn a_row_takes_half_of_what_it_has() {
        let (mut columns, mut page, mut plain) = (Columns::default(), Vec::new(), Vec::new());
        for n in 0..ROWS_MAX as u64 {
            let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut key = [0; REGISTER_BYTES];
            key[..3].copy_from_slice(&[1, 2, n as u8]);
            key[3..11].copy_from_slice(&random.to_be_bytes());
            let at = 1_700_000_000_000_000 + random % 600_000_000_000;
            let evidence = format!("tube-2022-09-02-{:08}-07", random % 100_000_000);
            let value = [&[18, 11, 8, 1, 16][..], &at.to_le_bytes()[..6], &[3]].concat();
            let row = Row {
                revision: Revision(at + 40_000_000),
                committed_at: Micros(at + 30_000_000),
                expires_at: Micros(at + 172_800_000_000),
                offset: Offset(5_000_000 + random % 400_000),
                provenance: ProvenanceId([n as u8 % 4; 16]),
                evidence: &evidence,
                value: &value,
            };
            columns.push(&key, &row);
            row.encode(&mut plain);
            plain.extend_from_slice(&key);
        }
        assert!(columns.is_full());
        columns.encode(&mut page);
        let (page, plain) = (page.len() / ROWS_MAX, plain.len() / ROWS_MAX);
        assert!(page * 2 < plain, "{page} bytes a row of {plain}");
    }
}
