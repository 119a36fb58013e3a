//! What a workload does, by its seed: the process that does it and the checker that judges it afterwards
//! both know.

use crate::random::Random;
use bytes::Bytes;
use hutong_proto::{
    Delta, EntityId, Epoch, Issuer, KindSet, Lane, Micros, Partition, Provenance, Revision,
    Sequence, Shard, Value,
    batch::{DELTA_FIELD, PROVENANCE_FIELD},
    delta::{Colour, TestOutcome},
    record::{RecordBuilder, RecordHeader},
    wire,
};
use std::sync::Arc;

const ISSUERS: [u32; 2] = [340_000, 510_000];
/// Few, so that registers are written again and again; with every other seed so many that state has several segments.
const PEOPLE: [u64; 2] = [600, 40];
const PRODUCER: &str = "sweep";

/// A record to append.
#[derive(Clone, Debug)]
pub struct Planned {
    pub partition: Partition,
    pub kinds: KindSet,
    pub deltas: u32,
    pub record: Bytes,
}

/// What the workload does next.
#[derive(Clone, Debug)]
pub enum Operation {
    /// The number of a record; all between two waits are under way together.
    Append(usize),
    /// Until everything is acknowledged and applied.
    Wait,
    /// State goes down.
    Flush,
    /// So many percent of what a partition holds go, as far as that is allowed.
    Trim { partition: Partition, percent: u64 },
    /// The process ends, well or as if killed, and begins again.
    Reopen { clean: bool },
}

/// A workload.
#[derive(Clone, Debug)]
pub struct Plan {
    pub records: Vec<Planned>,
    pub operations: Vec<Operation>,
}

fn provenance() -> Arc<Provenance> {
    Arc::new(Provenance {
        authority: "CDC".to_owned(),
        rule_id: "R-1".to_owned(),
        rule_version: 1,
        reason: "contact".to_owned(),
    })
}

fn delta(random: &mut Random, people: u64, revision: u64, lane: Lane) -> Delta {
    let mut entity = [7; 16];
    entity[..8].copy_from_slice(&random.below(people).to_be_bytes());
    let value = match lane {
        Lane::Urgent => Value::HealthCode(*random.pick(Colour::ALL)),
        Lane::Bulk | Lane::Control => Value::TestResult {
            outcome: TestOutcome::Negative,
            sampled_at: Micros(1_600_000_000_000_000 + revision),
        },
    };
    Delta {
        entity: EntityId(entity),
        // Now and then an old one, which must change nothing.
        revision: Revision(match random.one_in(10) {
            true => random.between(1, revision),
            false => revision,
        }),
        committed_at: Micros(1_600_000_000_000_000 + revision),
        expires_at: Micros::ZERO,
        evidence: "e".repeat(random.below(60) as usize),
        provenance: provenance(),
        value,
    }
}

/// A record of these deltas.
pub fn record(
    partition: Partition,
    producer: &str,
    (epoch, sequence, parts): (u64, u64, u32),
    deltas: &[Delta],
) -> Planned {
    let header = RecordHeader {
        partition,
        producer,
        epoch: Epoch(epoch),
        sequence: Sequence(sequence),
        epoch_base: Sequence::NONE,
        parts,
    };
    let mut record = RecordBuilder::new(&header, 1024);
    let mut field = Vec::new();
    wire::put_bytes(&mut field, PROVENANCE_FIELD, &provenance().encode());
    let mut kinds = KindSet::default();
    for delta in deltas {
        let mut encoded = Vec::new();
        delta.encode(0, &mut encoded);
        wire::put_bytes(&mut field, DELTA_FIELD, &encoded);
        kinds.insert(delta.value.kind());
    }
    record.fields(&field);
    Planned {
        partition,
        kinds,
        deltas: deltas.len() as u32,
        record: record.finish(),
    }
}

impl Plan {
    pub fn new(seed: u64, operations: usize) -> Plan {
        let mut random = Random::new(seed ^ 0x5eed_0001);
        let mut plan = Plan {
            records: Vec::new(),
            operations: Vec::new(),
        };
        let people = PEOPLE[(seed % 2) as usize];
        let mut sequences = [0; 2];
        let mut revision = 0;
        while plan.operations.len() < operations {
            for _ in 0..random.between(1, 6) {
                if random.one_in(12) && !plan.records.is_empty() {
                    // As a producer does that got no answer.
                    let again = plan.records.len()
                        - 1
                        - random.below(plan.records.len().min(8) as u64) as usize;
                    plan.operations.push(Operation::Append(again));
                    continue;
                }
                let who = random.below(2) as usize;
                sequences[who] += 1;
                let sequence = (ISSUERS[who], sequences[who]);
                plan.batch(&mut random, people, sequence, &mut revision);
            }
            plan.operations.push(Operation::Wait);
            match random.below(24) {
                0..=3 => plan.operations.push(Operation::Flush),
                4 | 5 => {
                    let lane = *random.pick(&Lane::DELIVERED);
                    let partition = partition(*random.pick(&ISSUERS), lane);
                    let percent = random.between(10, 100);
                    plan.operations.push(Operation::Trim { partition, percent });
                }
                6 | 7 => {
                    let clean = random.one_in(2);
                    plan.operations.push(Operation::Reopen { clean });
                }
                _ => {}
            }
        }
        plan
    }

    /// A batch becomes a record of each lane it touches.
    fn batch(
        &mut self,
        random: &mut Random,
        people: u64,
        (issuer, sequence): (u32, u64),
        revision: &mut u64,
    ) {
        let lanes: &[Lane] = match random.below(3) {
            0 => &[Lane::Urgent],
            1 => &[Lane::Bulk],
            _ => &Lane::DELIVERED,
        };
        for lane in lanes {
            // Mostly small; some are larger than a page of the disk, and than a block of the log.
            let count = match random.below(20) {
                0 => random.between(300, 500),
                1 | 2 => random.between(40, 120),
                _ => random.between(1, 8),
            };
            let deltas: Vec<Delta> = (0..count)
                .map(|_| {
                    *revision += 1;
                    delta(random, people, *revision, *lane)
                })
                .collect();
            let numbers = (1, sequence, lanes.len() as u32);
            self.operations.push(Operation::Append(self.records.len()));
            self.records
                .push(record(partition(issuer, *lane), PRODUCER, numbers, &deltas));
        }
    }
}

/// A record of as many people, whom no other number has.
pub fn people(number: u64, count: u64) -> Planned {
    let mut random = Random::new(number);
    let deltas: Vec<Delta> = (0..count)
        .map(|index| {
            let mut entity = [9; 16];
            entity[..8].copy_from_slice(&(number * count + index).to_be_bytes());
            let delta = delta(&mut random, 1, number + 1, Lane::Bulk);
            Delta {
                entity: EntityId(entity),
                ..delta
            }
        })
        .collect();
    let numbers = (1, number + 1, 1);
    record(
        partition(ISSUERS[0], Lane::Bulk),
        PRODUCER,
        numbers,
        &deltas,
    )
}

/// What is written after a recovery, to see that it goes on.
pub fn afterwards(attempt: u64) -> Vec<Planned> {
    let mut random = Random::new(attempt);
    let record = |lane| {
        let deltas: Vec<Delta> = (0..3)
            .map(|n| delta(&mut random, PEOPLE[1], 1_000_000 + n, lane))
            .collect();
        record(
            partition(ISSUERS[0], lane),
            "afterwards",
            (attempt, 1, 2),
            &deltas,
        )
    };
    Lane::DELIVERED.map(record).into()
}

fn partition(issuer: u32, lane: Lane) -> Partition {
    Partition {
        issuer: Issuer::new(issuer).expect("six digits"),
        lane,
        shard: Shard(0),
    }
}
