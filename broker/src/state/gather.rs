//! The newest values, in memory, until they go down as one sorted run.

use crate::state::keys::{REGISTER_BYTES, stored_register};
use hutong_proto::Issuer;
use std::collections::{BTreeMap, HashMap};

/// What a map entry costs beside its bytes.
const REGISTER_OVERHEAD_BYTES: usize = REGISTER_BYTES + 16 + 16 + 8;
const OTHER_OVERHEAD_BYTES: usize = 96;

type Key = [u8; REGISTER_BYTES];

/// Registers are many and only looked up; everything else is small and also scanned.
#[derive(Debug, Default)]
pub struct Gather {
    registers: HashMap<Key, Box<[u8]>>,
    /// Issuers of the registers, as in their keys; few.
    issuers: Vec<[u8; 3]>,
    /// `None` for a row that was deleted.
    others: BTreeMap<Vec<u8>, Option<Box<[u8]>>>,
    bytes: usize,
}

impl Gather {
    pub fn is_empty(&self) -> bool {
        self.registers.is_empty() && self.others.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn rows(&self) -> usize {
        self.registers.len() + self.others.len()
    }

    pub fn register(&self, key: &Key) -> Option<&[u8]> {
        self.registers.get(key).map(AsRef::as_ref)
    }

    pub fn put_register(&mut self, key: Key, row: &[u8]) {
        self.bytes += row.len();
        let issuer = [key[17], key[18], key[19]];
        // Records come by issuer, so it is nearly always the last one.
        if self.issuers.last() != Some(&issuer) && !self.issuers.contains(&issuer) {
            self.issuers.push(issuer);
        }
        match self.registers.insert(key, row.into()) {
            Some(old) => self.bytes -= old.len(),
            None => self.bytes += REGISTER_OVERHEAD_BYTES,
        }
    }

    /// `Some(None)` for a row that is known to be deleted.
    pub fn other(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.others.get(key).map(|row| row.as_deref())
    }

    pub fn put_other(&mut self, key: &[u8], row: Option<&[u8]>) {
        self.bytes += row.map_or(0, <[u8]>::len);
        match self.others.insert(key.to_vec(), row.map(Box::from)) {
            Some(old) => self.bytes -= old.map_or(0, |o| o.len()),
            None => self.bytes += key.len() + OTHER_OVERHEAD_BYTES,
        }
    }

    pub fn others_in(
        &self,
        from: &[u8],
        below: &[u8],
    ) -> impl Iterator<Item = (&Vec<u8>, Option<&[u8]>)> {
        self.others
            .range::<[u8], _>((
                std::ops::Bound::Included(from),
                std::ops::Bound::Excluded(below),
            ))
            .map(|(key, row)| (key, row.as_deref()))
    }

    /// Whoever has a register here: the map has no order, so a look-up by entity tries them all.
    pub fn issuers(&self) -> impl Iterator<Item = Issuer> {
        self.issuers
            .iter()
            .filter_map(|i| Issuer::new(u32::from_be_bytes([0, i[0], i[1], i[2]])))
    }

    pub fn sorted_registers(&self) -> Vec<(&Key, &[u8])> {
        let mut rows: Vec<_> = self
            .registers
            .iter()
            .map(|(k, v)| (k, v.as_ref()))
            .collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        rows
    }

    /// Everything in the order of the keys on disk: other kinds come before registers.
    pub fn for_each_sorted<E>(
        &self,
        mut row: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (key, value) in &self.others {
            row(key, value.as_deref())?;
        }
        for (key, value) in self.sorted_registers() {
            row(&stored_register(key), Some(value))?;
        }
        Ok(())
    }
}
