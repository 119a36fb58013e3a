//! All platforms of the demo together: how they start, when they have caught up, and whether they agree.

use super::{
    book::{Book, Ends},
    people::Population,
    platform::{self, Platform, Received, Seen, Source},
    platforms::Place,
    registers::Registers,
    report::Lanes,
};
use crate::{errors::CliError, times};
use hdrhistogram::Histogram;
use hutong_proto::{EntityId, Lane, Revision};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
};

/// Deltas of stories on their way to the one who tells them.
const SEEN_MAX: usize = 1024;
/// Waiting ends when nothing has moved for so long; the comparison then says what is missing.
const STUCK_AFTER: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The platforms, their publishers and the book.
#[derive(Debug)]
pub struct Fleet {
    pub places: &'static [Place],
    pub platforms: Vec<Arc<Platform>>,
    pub registers: Arc<Registers>,
    pub book: Arc<Book>,
    people: Vec<Arc<[EntityId]>>,
    /// By platform and lane.
    sources: Vec<[Source; 2]>,
}

/// A fleet that runs. A task that ends, ends the demo.
#[derive(Debug)]
pub struct Running {
    pub fleet: Fleet,
    pub seen: mpsc::Receiver<Seen>,
    pub tasks: JoinSet<Result<(), CliError>>,
}

/// Sums over the fleet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub published: u64,
    pub acknowledged: u64,
    pub delivered: u64,
}

impl Fleet {
    /// Connects every platform of `places` to the broker at `address`.
    pub async fn start(
        places: &'static [Place],
        address: &str,
        registers: Registers,
        people: Vec<Arc<[EntityId]>>,
    ) -> Result<Running, CliError> {
        let registers = Arc::new(registers);
        // Revisions that rise from one run to the next, as those of a source do.
        let base = Revision(times::now().0);
        let book = Arc::new(Book::new(places.len(), registers.cells()));
        let (seen_by, seen) = mpsc::channel(SEEN_MAX);
        let mut tasks = JoinSet::new();
        let mut platforms = Vec::with_capacity(places.len());
        let mut sources = Vec::with_capacity(places.len());
        for (index, place) in places.iter().enumerate() {
            let platform = Arc::new(Platform::new(index, place, registers.cells(), base));
            let subscriber = platform::subscribe(&platform, address).await?;
            tasks.spawn(platform::receive(
                Arc::clone(&platform),
                subscriber,
                Arc::clone(&registers),
                seen_by.clone(),
            ));
            let mut connect = async |lane| {
                let (source, acks) = platform::source(&platform, lane, address, &book).await?;
                tasks.spawn(platform::settle(
                    Arc::clone(&platform),
                    acks,
                    Arc::clone(&book),
                    Arc::clone(&registers),
                ));
                Ok::<Source, CliError>(source)
            };
            sources.push([connect(Lane::Urgent).await?, connect(Lane::Bulk).await?]);
            platforms.push(platform);
        }
        Ok(Running {
            fleet: Fleet {
                places,
                platforms,
                registers,
                book,
                people,
                sources,
            },
            seen,
            tasks,
        })
    }

    pub fn source(&self, platform: usize, lane: Lane) -> &Source {
        &self.sources[platform][lane.index()]
    }

    pub fn population(&self, platform: usize, lane: Lane) -> Population {
        Population::new(
            &self.places[platform],
            lane,
            Arc::clone(&self.people[platform]),
        )
    }

    pub fn people(&self) -> usize {
        self.people.iter().map(|p| p.len()).sum()
    }

    pub fn by_code(&self, code: u32) -> Option<&Arc<Platform>> {
        self.platforms.iter().find(|p| p.place.code == code)
    }

    pub fn totals(&self) -> Totals {
        Totals {
            published: self.book.published.load(Relaxed),
            acknowledged: self.book.acknowledged.load(Relaxed),
            delivered: self.platforms.iter().map(|p| p.counts().received).sum(),
        }
    }

    /// Adds what the platforms measured since the last look.
    pub fn take_latency(&self, latency: &mut Lanes<Histogram<u64>>) {
        let mut window = [platform::latency_histogram(), platform::latency_histogram()];
        for platform in &self.platforms {
            platform.take_latency(&mut window);
        }
        for (total, seen) in [&mut latency.urgent, &mut latency.bulk]
            .into_iter()
            .zip(&window)
        {
            total
                .add(seen)
                .expect("all histograms have the same bounds");
        }
    }

    /// Waits until every batch has its ack and every platform has passed the last record. Returns how
    /// long that took, and who has not arrived when nothing moves any more.
    pub async fn quiet_down(&self) -> Quiet {
        let start = Instant::now();
        let (mut moved_at, mut last) = (start, (0, 0));
        loop {
            let totals = self.totals();
            let settled = totals.acknowledged
                + self.book.refused.load(Relaxed)
                + self.book.superseded.load(Relaxed);
            let ends = self.book.ends();
            let late: Vec<&'static str> = self
                .platforms
                .iter()
                .filter(|p| !has_passed(&p.received(), &ends))
                .map(|p| p.place.name)
                .collect();
            if settled >= totals.published && late.is_empty() {
                return Quiet {
                    waited: start.elapsed(),
                    late,
                };
            }
            if last != (settled, totals.delivered) {
                last = (settled, totals.delivered);
                moved_at = Instant::now();
            } else if moved_at.elapsed() > STUCK_AFTER {
                return Quiet {
                    waited: start.elapsed(),
                    late,
                };
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Compares every platform with the book.
    pub fn verdict(&self) -> Verdict {
        judge(&self.platforms, &self.book, &self.registers)
    }
}

fn judge(platforms: &[Arc<Platform>], book: &Book, registers: &Registers) -> Verdict {
    let mut verdict = Verdict {
        applied_min: u64::MAX,
        ..Verdict::default()
    };
    let model = book.model();
    for platform in platforms {
        let received = platform.received();
        let counts = received.view.counts;
        verdict.applied_min = verdict.applied_min.min(counts.applied);
        verdict.applied_max = verdict.applied_max.max(counts.applied);
        verdict.delivered += counts.received;
        verdict.lost += book.lost_at(platform.index, &counts);
        verdict.doubled += book.doubled_at(platform.index, &counts);
        verdict.went_back += counts.went_back;
        verdict.unknown += counts.unknown;
        verdict.reconnects += platform.reconnects.load(Relaxed);
        let different = received.view.differences(&model, registers, platform.index);
        if different > 0 {
            verdict.unequal.push((platform.place.name, different));
        }
    }
    verdict
}

fn has_passed(received: &Received, ends: &Ends) -> bool {
    match &received.cursor {
        Some(cursor) => ends.are_passed_by(cursor),
        None => *ends == Ends::default(),
    }
}

/// How the end of the log was reached.
#[derive(Debug)]
pub struct Quiet {
    pub waited: Duration,
    /// Platforms that did not get there.
    pub late: Vec<&'static str>,
}

/// What the comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub applied_min: u64,
    pub applied_max: u64,
    pub delivered: u64,
    pub lost: u64,
    pub doubled: u64,
    pub went_back: u64,
    pub unknown: u64,
    pub reconnects: u64,
    /// Platforms whose view is not what it must be, and in how many registers.
    pub unequal: Vec<(&'static str, u64)>,
}

impl Verdict {
    pub fn is_good(&self) -> bool {
        self.lost == 0
            && self.doubled == 0
            && self.went_back == 0
            && self.unknown == 0
            && self.unequal.is_empty()
    }
}

/// The error of the first task that ends; a task that ends at all before the demo does is one.
pub async fn first_failure(tasks: &mut JoinSet<Result<(), CliError>>) -> CliError {
    match tasks.join_next().await {
        Some(ended) => failure(ended),
        None => std::future::pending().await,
    }
}

fn failure(ended: Result<Result<(), CliError>, JoinError>) -> CliError {
    match ended {
        Ok(Err(e)) => e,
        Ok(Ok(())) => CliError::Broken("a platform's task ended before the demo did".to_owned()),
        Err(e) => CliError::Broken(format!("a platform's task died: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::platforms::first;
    use hutong_connectors::client::{Delivered, Receipt};
    use hutong_proto::{Delta, Micros, Offset, Provenance, Sequence, Value, delta::Colour};

    const BASE: Revision = Revision(100);

    /// Three platforms; the first one has published two deltas, which the broker acknowledged.
    fn after_two_deltas() -> (Vec<Arc<Platform>>, Book, Registers, Vec<Delivered>) {
        let places = first(3);
        let mut registers = Registers::default();
        let entities = [1, 2].map(|n| EntityId([n; 16]));
        let issuer = hutong_proto::Issuer::new(places[0].code).expect("valid");
        for entity in &entities {
            registers.add(issuer, entity, 0);
        }
        let deltas: Vec<Delta> = entities
            .iter()
            .zip(1..)
            .map(|(entity, n)| Delta {
                entity: *entity,
                revision: Revision(BASE.0 + n),
                committed_at: Micros(1),
                expires_at: Micros::ZERO,
                evidence: String::new(),
                provenance: Arc::new(Provenance {
                    authority: "a".to_owned(),
                    rule_id: "r".to_owned(),
                    rule_version: 1,
                    reason: "x".to_owned(),
                }),
                value: Value::HealthCode(Colour::Red),
            })
            .collect();
        let book = Book::new(3, registers.cells());
        let receipt = Receipt {
            sequence: Sequence(1),
            accepted: 2,
            refused: Vec::new(),
            error: None,
            duplicate: false,
            positions: Vec::new(),
        };
        book.settle(0, issuer, &deltas, &receipt, &registers);
        let platforms = places
            .iter()
            .enumerate()
            .map(|(i, p)| Arc::new(Platform::new(i, p, registers.cells(), BASE)))
            .collect();
        let delivered = deltas
            .into_iter()
            .map(|delta| Delivered {
                issuer,
                offset: Offset(1),
                durable_at: Micros(1),
                delta,
            })
            .collect();
        (platforms, book, registers, delivered)
    }

    #[test]
    fn a_complete_delivery_is_good() {
        let (platforms, book, registers, delivered) = after_two_deltas();
        for platform in &platforms[1..] {
            platform.take_in(&delivered, &registers, true);
        }
        let verdict = judge(&platforms, &book, &registers);
        assert!(verdict.is_good(), "{verdict:?}");
        assert_eq!((verdict.applied_min, verdict.applied_max), (0, 2));
    }

    #[test]
    fn a_delta_kept_from_one_platform_is_found() {
        let (platforms, book, registers, delivered) = after_two_deltas();
        platforms[1].take_in(&delivered, &registers, true);
        platforms[2].take_in(&delivered[..1], &registers, true);
        let verdict = judge(&platforms, &book, &registers);
        assert_eq!(verdict.lost, 1);
        assert_eq!(verdict.unequal, [(platforms[2].place.name, 1)]);
        assert!(!verdict.is_good());
    }

    #[test]
    fn a_delta_delivered_twice_or_to_its_own_issuer_is_found() {
        let (platforms, book, registers, delivered) = after_two_deltas();
        for platform in &platforms {
            platform.take_in(&delivered, &registers, true);
        }
        platforms[1].take_in(&delivered[1..], &registers, true);
        let verdict = judge(&platforms, &book, &registers);
        // One that came again, and two that the issuer must not get at all.
        assert_eq!((verdict.lost, verdict.doubled), (0, 1 + 2));
        assert_eq!(verdict.unequal, [(platforms[0].place.name, 2)]);
    }
}
