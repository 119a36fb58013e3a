//! All platforms of the demo together: how they start, when they have caught up, and whether they agree.

use super::{
    book::Book,
    connectors::{Connector, Connectors, outbox_mapping},
    outbox::{Outbox, OutboxSource},
    people::{Person, Population},
    platform::{self, Platform, Received, Seen, ViewSink},
    platforms::Place,
    registers::Registers,
    report::Lanes,
};
use crate::{errors::CliError, times};
use hdrhistogram::Histogram;
use hutong_connectors::client::{self, Endpoint, Identity};
use hutong_proto::{Lane, Offset, Revision, api};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Deltas of stories on their way to the one who tells them.
const SEEN_MAX: usize = 1024;
/// Waiting ends when nothing has moved for so long; the comparison then says what is missing.
const STUCK_AFTER: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The broker is asked once a second how far behind everybody is; an answer that takes so long says it.
const BEHIND_MAX: Duration = Duration::from_millis(800);

/// The platforms, their connectors and the book.
#[derive(Debug)]
pub struct Fleet {
    pub places: &'static [Place],
    pub platforms: Vec<Arc<Platform>>,
    pub registers: Arc<Registers>,
    pub book: Arc<Book>,
    address: String,
    people: Vec<Arc<[Person]>>,
    sinks: Vec<Connector>,
    pub sources: Vec<Connector>,
    /// Of each of the sources when there are people: by platform and lane.
    outboxes: Vec<Arc<Outbox>>,
}

/// Sums over the fleet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub published: u64,
    pub acknowledged: u64,
    pub delivered: u64,
}

impl Fleet {
    /// Starts the sinks of every platform of `places`. Also returns what they see of stories.
    pub fn start(
        places: &'static [Place],
        registers: Registers,
        connectors: &mut Connectors,
    ) -> (Fleet, mpsc::Receiver<Seen>) {
        let registers = Arc::new(registers);
        // Revisions that rise from one run to the next, as those of a source do.
        let base = Revision(times::now().0);
        let (stories, seen) = mpsc::channel(SEEN_MAX);
        let mut fleet = Fleet {
            places,
            platforms: Vec::with_capacity(places.len()),
            book: Arc::new(Book::new(places.len(), Arc::clone(&registers))),
            registers,
            address: connectors.address().to_owned(),
            people: Vec::new(),
            sinks: Vec::with_capacity(places.len()),
            sources: Vec::new(),
            outboxes: Vec::new(),
        };
        for (index, place) in places.iter().enumerate() {
            let cells = fleet.registers.cells();
            let platform = Arc::new(Platform::new(index, place, cells, base));
            let sink = ViewSink {
                platform: Arc::clone(&platform),
                registers: Arc::clone(&fleet.registers),
                stories: stories.clone(),
            };
            fleet.sinks.push(connectors.sink(&platform, sink));
            fleet.platforms.push(platform);
        }
        (fleet, seen)
    }

    /// Starts the sources of what happens to people: two a platform, as the lanes have a producer each.
    /// So back pressure on negative results never holds up a colour.
    pub fn add_people(
        &mut self,
        people: Vec<Arc<[Person]>>,
        connectors: &mut Connectors,
    ) -> Result<(), CliError> {
        self.people = people;
        for platform in &self.platforms {
            let mapping = outbox_mapping(platform)?;
            for lane in Lane::DELIVERED {
                let outbox = Arc::new(Outbox::new(Arc::clone(platform), Arc::clone(&self.book)));
                let source = OutboxSource(Arc::clone(&outbox));
                let source = connectors.source(platform, lane.name(), source, mapping.clone())?;
                self.sources.push(source);
                self.outboxes.push(outbox);
            }
        }
        Ok(())
    }

    /// Waits until every connector has begun.
    pub async fn has_begun(&self) -> Result<(), CliError> {
        for connector in self.sinks.iter().chain(&self.sources) {
            connector.has_begun().await?;
        }
        Ok(())
    }

    pub fn outbox(&self, platform: usize, lane: Lane) -> &Arc<Outbox> {
        &self.outboxes[platform * 2 + lane.index()]
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

    /// As the connectors' boards say now.
    pub fn totals(&self) -> Totals {
        for (source, outbox) in self.sources.iter().zip(&self.outboxes) {
            let up_to = source.complete().and_then(|name| name.parse().ok());
            outbox.acknowledged(up_to.map_or(Revision(0), Revision));
        }
        for platform in &self.platforms {
            let sources = self.sources.iter();
            let own = sources.filter(|s| s.platform().index == platform.index);
            let refused = own.map(|s| s.counts().rows_refused).sum();
            self.book.refuse(platform, refused);
        }
        Totals {
            published: self.book.published(),
            acknowledged: self.book.acknowledged(),
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

    /// Waits until every row is acknowledged and every platform has passed the end of the log. Says who
    /// has not arrived when nothing moves any more.
    pub async fn quiet_down(&self) -> Result<Quiet, CliError> {
        let start = Instant::now();
        let (mut moved_at, mut last) = (start, (0, 0));
        let (mut complete_after, mut end) = (None, None);
        loop {
            let totals = self.totals();
            let settled = totals.acknowledged + self.book.refused();
            if settled >= totals.published {
                let mut platforms = self.platforms.iter();
                if platforms.all(|p| self.book.lost_at(p.index, &p.counts()) == 0) {
                    complete_after.get_or_insert_with(|| start.elapsed());
                }
                if end.is_none() {
                    end = Some(self.end_of_log().await?);
                }
            }
            let late: Vec<&'static str> = self
                .platforms
                .iter()
                .filter(|p| !end.is_some_and(|end| has_passed(&p.received(), end)))
                .map(|p| p.place.name)
                .collect();
            if last != (settled, totals.delivered) {
                last = (settled, totals.delivered);
                moved_at = Instant::now();
            }
            if late.is_empty() || moved_at.elapsed() > STUCK_AFTER {
                return Ok(Quiet {
                    complete_after: complete_after.unwrap_or_else(|| start.elapsed()),
                    late,
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn admin(&self) -> Result<client::AdminClient, CliError> {
        let operator = Identity::Operator("demo".to_owned());
        client::admin(&Endpoint::new(self.address.clone(), operator))
            .map_err(|e| CliError::from_client(&self.address, &e))
    }

    /// The broker has applied everything below this, and everything that it has acknowledged is.
    async fn end_of_log(&self) -> Result<Offset, CliError> {
        let status = self
            .admin()?
            .get_status(api::GetStatusRequest {})
            .await
            .map_err(|s| CliError::from_status(&self.address, &s))?;
        Ok(Offset(status.into_inner().applied_offset))
    }

    /// How old the oldest change is that some platform has not applied, by lane, as the broker says;
    /// `None` when it does not say in time.
    pub async fn behind(&self) -> Option<Lanes<f64>> {
        let ask = async {
            let request = api::GetLagMatrixRequest {};
            self.admin().ok()?.get_lag_matrix(request).await.ok()
        };
        let answer = tokio::time::timeout(BEHIND_MAX, ask).await.ok()??;
        Some(oldest(&answer.into_inner().pairs))
    }

    /// The first dead letter of the fleet, in words.
    pub fn first_refusal(&self) -> Option<String> {
        let mut refused = self.sources.iter().filter(|s| s.counts().dead_letters > 0);
        refused.find_map(Connector::first_dead_letter)
    }

    /// Rows that the broker had already, or newer.
    pub fn superseded(&self) -> u64 {
        let counts = self.sources.iter().map(Connector::counts);
        counts.map(|c| c.deltas_not_newer).sum()
    }

    /// How often sinks had to connect again.
    pub fn reconnects(&self) -> u64 {
        let counts = self.sinks.iter().map(Connector::counts);
        counts.map(|c| c.reconnects + c.restarts).sum()
    }

    /// Compares every platform with the book.
    pub fn verdict(&self) -> Verdict {
        judge(&self.platforms, &self.book, &self.registers)
    }
}

/// Of all pairs the worst, in seconds.
fn oldest(pairs: &[api::LagPair]) -> Lanes<f64> {
    let worst = |lane: fn(&api::LagPair) -> &Option<api::LaneLag>| {
        let seconds = pairs.iter().filter_map(|pair| lane(pair).as_ref());
        seconds.map(|lag| lag.seconds).fold(0.0, f64::max)
    };
    Lanes {
        urgent: worst(|pair| &pair.urgent),
        bulk: worst(|pair| &pair.bulk),
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
        let different = received.view.differences(&model, registers, platform.index);
        if different > 0 {
            verdict.unequal.push((platform.place.name, different));
        }
    }
    verdict
}

fn has_passed(received: &Received, end: Offset) -> bool {
    let cursor = received.cursor.as_ref();
    cursor.is_some_and(|cursor| cursor.urgent >= end && cursor.bulk >= end)
}

/// How the end of the log was reached.
#[derive(Debug)]
pub struct Quiet {
    /// How long until every ack was there and nothing was missing anywhere.
    pub complete_after: Duration,
    /// Platforms that have not passed the end of the log, or nobody knows whether they have.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::book::Entry;
    use crate::demo::platforms::first;
    use hutong_connectors::client::Delivered;
    use hutong_proto::{
        Cursor, Delta, EntityId, Issuer, LogId, Micros, Provenance, Value, delta::Colour,
    };

    #[test]
    fn a_lane_is_as_far_behind_as_its_worst_pair() {
        let lag = |seconds| {
            Some(api::LaneLag {
                records: 1,
                seconds,
                oldest_at_us: 1,
                ..api::LaneLag::default()
            })
        };
        let pairs = [(0.02, 0.0), (0.01, 12.5)].map(|(urgent, bulk)| api::LagPair {
            issuer: 340_000,
            receiver: 510_000,
            subscription: "demo".to_owned(),
            urgent: lag(urgent),
            bulk: lag(bulk),
        });
        let expected = Lanes {
            urgent: 0.02,
            bulk: 12.5,
        };
        assert_eq!(oldest(&pairs), expected);
        assert_eq!(oldest(&[]), Lanes::default());
    }

    const BASE: Revision = Revision(100);

    const CURSOR: Option<Cursor> = Some(Cursor {
        log_id: LogId(1),
        urgent: Offset(2),
        bulk: Offset(2),
    });

    /// Three platforms; the first one has published two deltas, which the broker acknowledged.
    fn after_two_deltas() -> (Vec<Arc<Platform>>, Book, Arc<Registers>, Vec<Delivered>) {
        let places = first(3);
        let mut registers = Registers::default();
        let entities = [1, 2].map(|n| EntityId([n; 16]));
        let issuer = Issuer::new(places[0].code).expect("valid");
        for entity in &entities {
            registers.add(issuer, entity, 0);
        }
        let delivered: Vec<Delivered> = entities
            .iter()
            .zip(1..)
            .map(|(entity, n)| Delivered {
                issuer,
                offset: Offset(1),
                durable_at: Micros(1),
                trace: None,
                delta: Delta {
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
                },
            })
            .collect();
        let registers = Arc::new(registers);
        let book = Book::new(3, Arc::clone(&registers));
        let platforms: Vec<Arc<Platform>> = places
            .iter()
            .enumerate()
            .map(|(i, p)| Arc::new(Platform::new(i, p, registers.cells(), BASE)))
            .collect();
        let rows = delivered.iter().map(|d| Entry {
            entity: d.delta.entity,
            revision: d.delta.revision,
            value: &d.delta.value,
        });
        book.settle(&platforms[0], rows);
        (platforms, book, registers, delivered)
    }

    #[test]
    fn a_complete_delivery_is_good() {
        let (platforms, book, registers, delivered) = after_two_deltas();
        for platform in &platforms[1..] {
            platform.take_in(&delivered, &registers, CURSOR);
        }
        let verdict = judge(&platforms, &book, &registers);
        assert!(verdict.is_good(), "{verdict:?}");
        assert_eq!((verdict.applied_min, verdict.applied_max), (0, 2));
    }

    #[test]
    fn a_delta_kept_from_one_platform_is_found() {
        let (platforms, book, registers, delivered) = after_two_deltas();
        platforms[1].take_in(&delivered, &registers, CURSOR);
        platforms[2].take_in(&delivered[..1], &registers, CURSOR);
        let verdict = judge(&platforms, &book, &registers);
        assert_eq!(verdict.lost, 1);
        assert_eq!(verdict.unequal, [(platforms[2].place.name, 1)]);
        assert!(!verdict.is_good());
    }

    #[test]
    fn a_delta_delivered_twice_or_to_its_own_issuer_is_found() {
        let (platforms, book, registers, delivered) = after_two_deltas();
        for platform in &platforms {
            platform.take_in(&delivered, &registers, CURSOR);
        }
        platforms[1].take_in(&delivered[1..], &registers, CURSOR);
        let verdict = judge(&platforms, &book, &registers);
        // One that came again, and two that the issuer must not get at all.
        assert_eq!((verdict.lost, verdict.doubled), (0, 1 + 2));
        assert_eq!(verdict.unequal, [(platforms[0].place.name, 2)]);
    }
}
