//! The deltas of a drill. Each follows from seed, issuer, stream and revision, so whoever reads a
//! history knows what every one of them must have said.

use crate::{
    drill::Workload,
    history::{Header, Record, Row, Stream},
};
use hutong_proto::{
    Delta, EntityId, Issuer, Kind, Micros, Provenance, Revision, Value,
    delta::{Colour, TestOutcome},
};
use std::sync::Arc;

/// The 32 platforms by code.
pub const PLATFORMS: [u32; 32] = [
    110_000, 120_000, 130_000, 140_000, 150_000, 210_000, 220_000, 230_000, 310_000, 320_000,
    330_000, 340_000, 350_000, 360_000, 370_000, 410_000, 420_000, 430_000, 440_000, 450_000,
    460_000, 500_000, 510_000, 520_000, 530_000, 540_000, 610_000, 620_000, 630_000, 640_000,
    650_000, 660_000,
];

/// Issues nothing and may see everything: its subscriptions are those of the drill itself.
pub const OBSERVER: u32 = 900_000;

/// Entities of batches that must be refused begin so; none of a drill's people does.
pub const POISON_MARK: [u8; 8] = [0xff, b'P', b'O', b'I', b'S', b'O', b'N', 0xff];

/// What all deltas of a drill have in common.
#[derive(Clone, Debug)]
pub struct Deltas {
    pub seed: u64,
    /// Registers of each stream of each platform.
    pub people: u64,
    pub wall_us: u64,
    /// Connectors publish areas beside them, which are compared in the end and not one by one.
    pub areas: bool,
}

/// A register, as far as a drill tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register {
    pub issuer: u32,
    pub stream: Stream,
    pub person: u64,
}

/// SplitMix64: spreads keys, and is the same everywhere.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Deltas {
    /// Of the drill that a history begins with.
    pub fn of(header: &Header, workload: &Workload) -> Deltas {
        Deltas {
            seed: header.seed,
            people: workload.people,
            wall_us: header.wall_us,
            areas: workload.risk_levels,
        }
    }

    fn random(&self, issuer: u32, stream: Stream, revision: u64, what: u64) -> u64 {
        let place = mix(u64::from(issuer) << 8 | stream as u64);
        mix(self.seed ^ mix(place ^ mix(revision.wrapping_mul(4).wrapping_add(what))))
    }

    pub fn register(&self, issuer: u32, stream: Stream, revision: u64) -> Register {
        Register {
            issuer,
            stream,
            person: self.random(issuer, stream, revision, 0) % self.people.max(1),
        }
    }

    /// `due` counts from the start of the drill.
    pub fn make(&self, issuer: u32, stream: Stream, revision: u64, due: u64) -> Delta {
        let committed_at = Micros(self.wall_us + due);
        let choice = self.random(issuer, stream, revision, 1);
        let value = match stream {
            Stream::Urgent => Value::HealthCode(Colour::ALL[(choice % 3) as usize]),
            Stream::Bulk => Value::TestResult {
                outcome: TestOutcome::Negative,
                sampled_at: committed_at,
            },
            Stream::Flood => Value::Vaccination {
                doses: 1 + (choice % 3) as u32,
                product: "inactivated".to_owned(),
                vaccinated_at: committed_at,
            },
        };
        Delta {
            entity: entity(self.register(issuer, stream, revision)),
            revision: Revision(revision),
            committed_at,
            expires_at: Micros::ZERO,
            evidence: format!("tube-{choice:016x}"),
            provenance: Arc::new(provenance(issuer)),
            value,
        }
    }

    /// What a record must have for its digest.
    pub fn digest(&self, record: &Record, due: impl Fn(u64) -> Option<u64>) -> Option<u32> {
        let mut digest = Digest::default();
        for (first, count) in &record.runs {
            for revision in *first..*first + u64::from(*count) {
                let due = due(revision)?;
                digest.add(&self.make(record.issuer, record.stream, revision, due));
            }
        }
        Some(digest.value())
    }

    pub fn digest_of_rows(
        &self,
        rows: &[Row],
        due: impl Fn(u32, Stream, u64) -> Option<u64>,
    ) -> Option<u32> {
        let mut digest = Digest::default();
        for (issuer, stream, revision) in rows {
            let due = due(*issuer, *stream, *revision)?;
            digest.add(&self.make(*issuer, *stream, *revision, due));
        }
        Some(digest.value())
    }
}

pub fn provenance(issuer: u32) -> Provenance {
    Provenance {
        authority: format!("CDC-{issuer}"),
        rule_id: "drill".to_owned(),
        rule_version: 1,
        reason: "演练 drill".to_owned(),
    }
}

fn entity(register: Register) -> EntityId {
    let Register { issuer, person, .. } = register;
    let mut id = [0; 16];
    // The first bit is off, so that no entity begins with the mark of poison.
    let spread = mix(person ^ u64::from(issuer) << 40) >> 1;
    id[..8].copy_from_slice(&spread.to_be_bytes());
    id[8..12].copy_from_slice(&issuer.to_be_bytes());
    id[12..].copy_from_slice(&(person as u32 + 1).to_be_bytes());
    EntityId(id)
}

/// Which stream a delta belongs to; nothing when no client of a drill makes such ones.
pub fn stream_of(issuer: Issuer, delta: &Delta) -> Option<Stream> {
    let mine =
        delta.entity.0[8..12] == issuer.code().to_be_bytes() && delta.entity.0[..8] != POISON_MARK;
    match (mine, delta.value.kind()) {
        (true, Kind::HealthCode) => Some(Stream::Urgent),
        (true, Kind::TestResult) => Some(Stream::Bulk),
        (true, Kind::Vaccination) => Some(Stream::Flood),
        _ => None,
    }
}

/// FNV-1a over the encoded content of deltas, folded to 32 bits.
#[derive(Debug)]
pub struct Digest {
    hash: u64,
    buffer: Vec<u8>,
}

impl Default for Digest {
    fn default() -> Digest {
        Digest {
            hash: 0xcbf2_9ce4_8422_2325,
            buffer: Vec::with_capacity(160),
        }
    }
}

impl Digest {
    pub fn add(&mut self, delta: &Delta) {
        self.buffer.clear();
        delta.encode(0, &mut self.buffer);
        self.buffer.extend(delta.provenance.encode());
        for byte in &self.buffer {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub fn value(&self) -> u32 {
        (self.hash ^ self.hash >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deltas() -> Deltas {
        Deltas {
            seed: 7,
            people: 50,
            wall_us: 1_660_000_000_000_000,
            areas: false,
        }
    }

    #[test]
    fn a_delta_follows_from_its_revision_and_its_stream_can_be_told() {
        for stream in Stream::ALL {
            let one = deltas().make(340_000, stream, 9, 5);
            assert_eq!(one, deltas().make(340_000, stream, 9, 5));
            let issuer = Issuer::new(340_000).expect("six digits");
            assert_eq!(stream_of(issuer, &one), Some(stream));
            let other = Issuer::new(510_000).expect("six digits");
            assert_eq!(stream_of(other, &one), None);
        }
    }

    #[test]
    fn a_digest_sees_every_field_and_the_order() {
        let of = |all: &[&Delta]| {
            let mut digest = Digest::default();
            all.iter().for_each(|delta| digest.add(delta));
            digest.value()
        };
        let a = deltas().make(340_000, Stream::Urgent, 9, 5);
        let b = deltas().make(340_000, Stream::Urgent, 10, 5);
        assert_ne!(of(&[&a, &b]), of(&[&b, &a]));
        let mut changed = a.clone();
        changed.evidence.push('x');
        assert_ne!(of(&[&a]), of(&[&changed]));
        let mut later = a.clone();
        later.committed_at.0 += 1;
        assert_ne!(of(&[&a]), of(&[&later]));
    }
}
