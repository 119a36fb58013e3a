//! Deltas for measuring: the mix of a mass test, encoded straight into batches.

use bytes::Bytes;
use hutong_connectors::client::EncodedBatch;
use hutong_proto::{
    EntityId, Issuer, Kind, Lane, Micros, Provenance, Revision, TraceContext, Value,
    delta::{Colour, DeltaParts, TestOutcome},
    wire,
};
use std::{
    fmt::Write,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const CEILING_FOR: Duration = Duration::from_millis(200);

/// The 32 platforms by code.
pub const PLATFORMS: [u32; 32] = [
    110_000, 120_000, 130_000, 140_000, 150_000, 210_000, 220_000, 230_000, 310_000, 320_000,
    330_000, 340_000, 350_000, 360_000, 370_000, 410_000, 420_000, 430_000, 440_000, 450_000,
    460_000, 500_000, 510_000, 520_000, 530_000, 540_000, 610_000, 620_000, 630_000, 640_000,
    650_000, 660_000,
];

pub fn issuers(count: usize) -> Vec<Issuer> {
    PLATFORMS
        .iter()
        .take(count)
        .filter_map(|code| Issuer::new(*code))
        .collect()
}

pub fn now() -> Micros {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Micros(since.as_micros() as u64)
}

/// Makes deltas over a fixed set of people; each new delta of a person has a higher revision.
#[derive(Debug)]
pub struct Generator {
    random: u64,
    people: u64,
    platform: Issuer,
    revision: u64,
    provenance: Vec<u8>,
    /// Each person once, in turn, instead of at random.
    in_turn: bool,
    turn: u64,
    /// Ten people are tested together: they share a tube, a moment and a result.
    tube: Tube,
    first_entity: EntityId,
    traced: bool,
}

/// One change in so many is traced, as connectors do if they are not told otherwise.
const TRACED_OF: u64 = 100;

/// People in one tube.
const TOGETHER: u64 = 10;
/// What a test is good for.
const VALID_US: u64 = 48 * 3_600_000_000;
/// Results come up to so long after the sample.
const SAMPLED_BEFORE_US: u64 = 8 * 3_600_000_000;

/// Real evidence differs from tube to tube, so that no compression can make it vanish.
#[derive(Debug)]
struct Tube {
    number: u64,
    evidence: String,
    sampled_at: u64,
    value: Vec<u8>,
    left: u64,
}

impl Generator {
    pub fn new(platform: Issuer, people: u64, seed: u64) -> Generator {
        let provenance = Provenance {
            authority: format!("CDC-{platform}"),
            rule_id: "mass-testing".to_owned(),
            rule_version: 1,
            reason: "routine test".to_owned(),
        };
        let mut entry = Vec::new();
        wire::put_bytes(&mut entry, 9, &provenance.encode());
        Generator {
            random: seed | 1,
            people,
            platform,
            revision: now().0,
            provenance: entry,
            in_turn: false,
            turn: 0,
            tube: Tube {
                number: seed.wrapping_mul(1_000_003) % 100_000_000,
                evidence: String::new(),
                sampled_at: 0,
                value: Vec::new(),
                left: 0,
            },
            first_entity: EntityId([0; 16]),
            traced: false,
        }
    }

    /// Whether some of the changes are traced.
    pub fn traced(self, traced: bool) -> Generator {
        Generator { traced, ..self }
    }

    fn trace(&self) -> Option<TraceContext> {
        let number = self.revision.to_be_bytes();
        let mut trace_id = [1; 16];
        trace_id[8..].copy_from_slice(&number);
        (self.traced && self.revision.is_multiple_of(TRACED_OF)).then_some(TraceContext {
            trace_id,
            span_id: number,
        })
    }

    /// Of the first delta of the last batch.
    pub fn first_entity(&self) -> EntityId {
        self.first_entity
    }

    /// Of the next delta.
    pub fn next_revision(&self) -> u64 {
        self.revision + 1
    }

    fn next_tube(&mut self, lane: Lane) {
        let random = self.next_random();
        let tube = &mut self.tube;
        tube.left = TOGETHER;
        tube.number = (tube.number + 1) % 100_000_000;
        tube.evidence.clear();
        write!(tube.evidence, "tube-2022-09-02-{:08}-07", tube.number).expect("a text takes all");
        tube.sampled_at = self.revision - random % SAMPLED_BEFORE_US;
        tube.value = match lane {
            Lane::Urgent => Value::HealthCode(match random.is_multiple_of(2) {
                true => Colour::Red,
                false => Colour::Yellow,
            }),
            // Any other result would be urgent.
            Lane::Bulk | Lane::Control => Value::TestResult {
                outcome: TestOutcome::Negative,
                sampled_at: Micros(tube.sampled_at),
            },
        }
        .encode();
    }

    /// Each person once, in turn: after `people` deltas there are as many registers.
    pub fn in_turn(platform: Issuer, people: u64) -> Generator {
        Generator {
            in_turn: true,
            ..Generator::new(platform, people, 1)
        }
    }

    /// Deltas a second that one thread makes when nothing takes them: where the load itself ends.
    pub fn ceiling_per_s(batch: u32) -> f64 {
        let issuer = issuers(1)[0];
        let mut generator = Generator::new(issuer, 1_000_000, 1);
        let (begin, mut made) = (Instant::now(), 0u64);
        while begin.elapsed() < CEILING_FOR {
            made += u64::from(generator.batch(batch, Lane::Bulk, |_| Micros(1)).deltas);
        }
        made as f64 / begin.elapsed().as_secs_f64()
    }

    fn next_random(&mut self) -> u64 {
        // xorshift64*: good enough to spread keys, and costs nothing.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn entity(&mut self) -> EntityId {
        let person = match self.in_turn {
            true => self.turn % self.people,
            false => self.next_random() % self.people,
        };
        self.turn += 1;
        // As with keyed hashes, whoever is of another platform has nothing in common, from the first bytes on.
        let whose = person ^ u64::from(self.platform.code()) << 40;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&whose.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        id[8..].copy_from_slice(&whose.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_be_bytes());
        id[15] |= 1;
        EntityId(id)
    }

    /// One batch; the delta at position `i` was committed at `committed_at(i)`.
    pub fn batch(
        &mut self,
        deltas: u32,
        lane: Lane,
        committed_at: impl Fn(u32) -> Micros,
    ) -> EncodedBatch {
        let kind = match lane {
            Lane::Urgent => Kind::HealthCode,
            Lane::Bulk | Lane::Control => Kind::TestResult,
        };
        let mut body = Vec::with_capacity(self.provenance.len() + deltas as usize * 104);
        body.extend_from_slice(&self.provenance);
        let mut delta = Vec::with_capacity(128);
        for i in 0..deltas {
            // A batch has one kind, and so has a tube.
            if self.tube.left == 0 || i == 0 {
                self.next_tube(lane);
            }
            self.tube.left -= 1;
            self.revision += 1;
            delta.clear();
            let entity = self.entity();
            if i == 0 {
                self.first_entity = entity;
            }
            DeltaParts {
                entity,
                revision: Revision(self.revision),
                committed_at: committed_at(i),
                expires_at: Micros(self.tube.sampled_at + SAMPLED_BEFORE_US + VALID_US),
                provenance: 0,
                evidence: &self.tube.evidence,
                trace: self.trace(),
                kind,
                value: &self.tube.value,
            }
            .encode(&mut delta);
            wire::put_bytes(&mut body, 10, &delta);
        }
        EncodedBatch {
            body: Bytes::from(body),
            deltas,
        }
    }
}
