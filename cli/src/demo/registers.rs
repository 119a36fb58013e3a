//! The directory of all registers that the demo may write, shared by the 32 views: it turns the name of
//! a register into the number of a cell, so that a view is a plain array and a delivery costs one
//! look-up. What is delivered but stands in no directory was never published by anybody.

use hutong_proto::{EntityId, Issuer, Kind};
use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
};

/// Person kinds of one (entity, issuer); an area uses the first cell of its own.
const CELLS: usize = 3;

/// Number of a register's cell in every view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Register(pub u32);

/// (entity, issuer), folded into 16 bytes: entities are random, so a code mixed in keeps them apart.
type Key = [u8; 16];

/// The keys are random bytes already; hashing them again would buy nothing.
#[derive(Debug, Default)]
pub struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*first);
        }
    }

    /// The length of the array, which is always the same.
    fn write_usize(&mut self, _: usize) {}
}

/// All registers, with the platform that may write them.
#[derive(Debug, Default)]
pub struct Registers {
    entries: HashMap<Key, u32, BuildHasherDefault<FirstBytes>>,
    /// By entry: which platform of the demo writes it.
    homes: Vec<u8>,
    /// Entries from here on are watched one by one.
    watched_from: Option<u32>,
}

fn key(issuer: Issuer, entity: &EntityId) -> Key {
    let mut key = entity.0;
    for (byte, code) in key.iter_mut().zip(issuer.code().to_le_bytes()) {
        *byte ^= code;
    }
    key
}

impl Registers {
    /// Adds the registers of an entity at an issuer, unless they are there; `home` is that issuer's
    /// place in the demo.
    pub fn add(&mut self, issuer: Issuer, entity: &EntityId, home: usize) {
        let entry = u32::try_from(self.homes.len()).expect("far fewer registers than 2^32");
        let home = u8::try_from(home).expect("32 platforms at most");
        if let Entry::Vacant(vacant) = self.entries.entry(key(issuer, entity)) {
            vacant.insert(entry);
            self.homes.push(home);
        }
    }

    /// What is added from now on is watched.
    pub fn watch_from_here(&mut self) {
        self.watched_from = Some(self.homes.len() as u32);
    }

    #[inline]
    pub fn find(&self, issuer: Issuer, entity: &EntityId, kind: Kind) -> Option<Register> {
        let entry = self.entries.get(&key(issuer, entity))?;
        let cell = (kind as u32 - 1) % CELLS as u32;
        Some(Register(entry * CELLS as u32 + cell))
    }

    /// Cells that a view needs.
    pub fn cells(&self) -> usize {
        self.homes.len() * CELLS
    }

    /// The platform that writes a cell.
    pub fn home(&self, cell: usize) -> usize {
        usize::from(self.homes[cell / CELLS])
    }

    #[inline]
    pub fn is_watched(&self, register: Register) -> bool {
        self.watched_from
            .is_some_and(|from| register.0 >= from * CELLS as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(code: u32) -> Issuer {
        Issuer::new(code).expect("six digits")
    }

    #[test]
    fn one_entity_at_two_issuers_is_two_sets_of_registers() {
        let mut registers = Registers::default();
        let driver = EntityId([7; 16]);
        registers.add(issuer(340_000), &driver, 0);
        registers.add(issuer(510_000), &driver, 1);
        let here = registers.find(issuer(340_000), &driver, Kind::HealthCode);
        let there = registers.find(issuer(510_000), &driver, Kind::HealthCode);
        assert!(here.is_some() && there.is_some() && here != there);
        assert_eq!(
            registers.find(issuer(310_000), &driver, Kind::HealthCode),
            None
        );
        assert_eq!(registers.cells(), 6);
        assert_eq!(registers.home(here.expect("found").0 as usize), 0);
        assert_eq!(registers.home(there.expect("found").0 as usize), 1);
    }

    #[test]
    fn the_kinds_of_a_person_have_cells_of_their_own() {
        let mut registers = Registers::default();
        let person = EntityId([9; 16]);
        registers.add(issuer(340_000), &person, 0);
        let mut cells: Vec<u32> = [Kind::HealthCode, Kind::TestResult, Kind::Vaccination]
            .into_iter()
            .filter_map(|k| registers.find(issuer(340_000), &person, k))
            .map(|r| r.0)
            .collect();
        cells.dedup();
        assert_eq!(cells, [0, 1, 2]);
    }

    #[test]
    fn only_what_comes_after_the_mark_is_watched() {
        let mut registers = Registers::default();
        let (before, after) = (EntityId([1; 16]), EntityId([2; 16]));
        registers.add(issuer(340_000), &before, 0);
        registers.watch_from_here();
        registers.add(issuer(340_000), &after, 0);
        let find = |e| {
            registers
                .find(issuer(340_000), e, Kind::HealthCode)
                .expect("added")
        };
        assert!(!registers.is_watched(find(&before)));
        assert!(registers.is_watched(find(&after)));
    }
}
