//! The people of the demo: made up, a few thousand a platform, drawn again and again so that their
//! registers change many times.

use super::{
    outbox::{Because, Change},
    platforms::Place,
    random::Random,
    registers::Registers,
};
use hutong_connectors::pseudonym::Pseudonymiser;
use hutong_proto::{
    EntityId, Issuer, Lane, Micros, Value,
    delta::{Colour, TestOutcome},
};
use std::{collections::VecDeque, sync::Arc};

/// In all; three registers each. Small enough that 32 views fit in little memory.
pub const PEOPLE: u64 = 60_000;
const PEOPLE_PER_PLATFORM_MIN: u32 = 64;
/// So that every run is the same.
const SEED: u64 = 0x4875_746f_6e67;
/// One positive pooled tube concerns about this many people.
const TUBE: usize = 10;
/// Colours that may be corrected later; older ones are forgotten.
const COLOURED_MAX: usize = 512;
/// One person in so many is reserved for positive tests. A person's negative results travel in the
/// other lane, from the other source: a real source numbers the two in one transaction, the demo
/// keeps them apart.
const POSITIVE_EVERY: usize = 16;

const HOUR_US: u64 = 3_600_000_000;

/// Somebody who does not exist.
#[derive(Clone, Copy, Debug)]
pub struct Person {
    place: u32,
    number: u32,
    /// What everybody but the own platform knows.
    pub entity: EntityId,
}

impl Person {
    pub fn new(place: u32, number: u32, pseudonyms: &Pseudonymiser) -> Person {
        Person {
            place,
            number,
            entity: pseudonyms
                .person(&id_number(place, number))
                .expect("digits, letters and hyphens"),
        }
    }

    pub fn id_number(&self) -> String {
        id_number(self.place, self.number)
    }
}

/// No number that anybody has.
fn id_number(place: u32, number: u32) -> String {
    format!("{place}-DEMO-{number:07}")
}

/// Makes the people of every platform and enters them into the directory.
pub fn settle(
    places: &[Place],
    shares: &[f64],
    pseudonyms: &Pseudonymiser,
    registers: &mut Registers,
) -> Vec<Arc<[Person]>> {
    let mut all = Vec::with_capacity(places.len());
    for (home, (place, share)) in places.iter().zip(shares).enumerate() {
        let issuer = Issuer::new(place.code).expect("the table holds valid codes");
        let count = ((PEOPLE as f64 * share) as u32).max(PEOPLE_PER_PLATFORM_MIN);
        let people: Arc<[Person]> = (0..count)
            .map(|number| Person::new(place.code, number, pseudonyms))
            .collect();
        for person in people.iter() {
            registers.add(issuer, &person.entity, home);
        }
        all.push(people);
    }
    all
}

/// What happens to the people of one platform, in one lane.
#[derive(Debug)]
pub struct Population {
    people: Arc<[Person]>,
    lane: Lane,
    random: Random,
    reasons: Reasons,
    /// Follows from what happened before: the people of a positive tube.
    coming: VecDeque<(usize, Event)>,
    coloured: VecDeque<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Positive,
    Colour(Colour),
    /// Back to green: the earlier colour was wrong.
    Corrected,
}

#[derive(Clone, Debug)]
struct Reasons {
    tested: Arc<Because>,
    vaccinated: Arc<Because>,
    contact: Arc<Because>,
    travelled: Arc<Because>,
    corrected: Arc<Because>,
}

impl Reasons {
    fn of(place: &Place) -> Reasons {
        let because = |rule: &str, reason: &str| because(place, rule, reason);
        Reasons {
            tested: because("TEST", "mass testing"),
            vaccinated: because("VACC", "dose given"),
            contact: because("CODE", "in one tube with a positive sample"),
            travelled: because("CODE", "came from an area of risk"),
            corrected: because("CODE", "corrected on review"),
        }
    }
}

/// Rules of the demo are named after the province: `340000-CODE`.
pub fn because(place: &Place, rule: &str, reason: &str) -> Arc<Because> {
    Arc::new(Because {
        rule_id: format!("{}-{rule}", place.code),
        reason: reason.to_owned(),
    })
}

impl Population {
    pub fn new(place: &Place, lane: Lane, people: Arc<[Person]>) -> Population {
        Population {
            people,
            lane,
            random: Random::new(SEED ^ u64::from(place.code) ^ ((lane.index() as u64) << 40)),
            reasons: Reasons::of(place),
            coming: VecDeque::new(),
            coloured: VecDeque::new(),
        }
    }

    /// The next thing that happens, at its moment.
    pub fn next(&mut self, at: Micros) -> Change {
        let (person, value, expires_at, because) = match self.lane {
            Lane::Urgent => self.urgent(at),
            Lane::Bulk | Lane::Control => self.bulk(at),
        };
        Change {
            person: self.people[person],
            committed_at: at,
            expires_at,
            because,
            value,
        }
    }

    fn bulk(&mut self, at: Micros) -> (usize, Value, Micros, Arc<Because>) {
        let mut person = self.draw();
        if self.random.below(1000) < 15 {
            let value = Value::Vaccination {
                doses: 1 + self.random.below(3) as u32,
                product: "inactivated".to_owned(),
                vaccinated_at: at,
            };
            return (
                person,
                value,
                Micros::ZERO,
                Arc::clone(&self.reasons.vaccinated),
            );
        }
        if person.is_multiple_of(POSITIVE_EVERY) {
            person += 1;
        }
        let sampled_hours_ago = 4 + self.random.below(4);
        let value = Value::TestResult {
            outcome: TestOutcome::Negative,
            sampled_at: Micros(at.0 - sampled_hours_ago * HOUR_US),
        };
        let expires = Micros(at.0 + 72 * HOUR_US);
        (person, value, expires, Arc::clone(&self.reasons.tested))
    }

    fn urgent(&mut self, at: Micros) -> (usize, Value, Micros, Arc<Because>) {
        if self.coming.is_empty() {
            self.happen();
        }
        let (person, event) = self
            .coming
            .pop_front()
            .expect("something has just happened");
        let in_days = |days: u64| Micros(at.0 + days * 24 * HOUR_US);
        match event {
            Event::Positive => {
                let value = Value::TestResult {
                    outcome: TestOutcome::Positive,
                    sampled_at: Micros(at.0 - 6 * HOUR_US),
                };
                (person, value, in_days(14), Arc::clone(&self.reasons.tested))
            }
            Event::Colour(colour) => {
                self.coloured.push_back(person);
                if self.coloured.len() > COLOURED_MAX {
                    self.coloured.pop_front();
                }
                let reason = match colour {
                    Colour::Yellow => &self.reasons.contact,
                    Colour::Red | Colour::Green => &self.reasons.travelled,
                };
                (
                    person,
                    Value::HealthCode(colour),
                    in_days(7),
                    Arc::clone(reason),
                )
            }
            Event::Corrected => (
                person,
                Value::HealthCode(Colour::Green),
                Micros::ZERO,
                Arc::clone(&self.reasons.corrected),
            ),
        }
    }

    /// A positive tube, a traveller, or a correction.
    fn happen(&mut self) {
        match (self.random.below(10), self.coloured.pop_front()) {
            (0, kept) => {
                self.coloured.extend(kept);
                let person = self.draw() / POSITIVE_EVERY * POSITIVE_EVERY;
                self.coming.push_back((person, Event::Positive));
                self.coming.push_back((person, Event::Colour(Colour::Red)));
                for neighbour in 1..TUBE {
                    let person = (person + neighbour) % self.people.len();
                    self.coming
                        .push_back((person, Event::Colour(Colour::Yellow)));
                }
            }
            (1..=6, Some(person)) => self.coming.push_back((person, Event::Corrected)),
            (_, kept) => {
                self.coloured.extend(kept);
                let person = self.draw();
                self.coming.push_back((person, Event::Colour(Colour::Red)));
            }
        }
    }

    fn draw(&mut self) -> usize {
        // Rounded down so that the next person always exists.
        let count = self.people.len() / POSITIVE_EVERY * POSITIVE_EVERY;
        self.random.below(count as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::platforms::{PLACES, shares};
    use hutong_connectors::pseudonym::Algorithm;
    use hutong_proto::Kind;
    use std::collections::HashSet;

    fn made(lane: Lane, count: u64) -> (Registers, Vec<Change>) {
        let mut registers = Registers::default();
        let pseudonyms = Pseudonymiser::new(Algorithm::HmacSm3, b"any", 1);
        let people = settle(&PLACES, &shares(&PLACES), &pseudonyms, &mut registers);
        let mut population = Population::new(&PLACES[0], lane, Arc::clone(&people[0]));
        let start = 1_650_000_000_000_000;
        let deltas = (0..count)
            .map(|i| population.next(Micros(start + i)))
            .collect();
        (registers, deltas)
    }

    #[test]
    fn every_delta_is_of_a_register_in_the_directory_and_in_its_lane() {
        for lane in Lane::DELIVERED {
            let (registers, deltas) = made(lane, 5000);
            let issuer = Issuer::new(PLACES[0].code).expect("valid");
            for delta in &deltas {
                assert_eq!(delta.value.lane(), lane);
                assert!(
                    registers
                        .find(issuer, &delta.person.entity, delta.value.kind())
                        .is_some()
                );
            }
        }
    }

    #[test]
    fn nearly_all_of_the_bulk_is_negative_tests_and_registers_repeat() {
        let (_, deltas) = made(Lane::Bulk, 20_000);
        let tests = deltas
            .iter()
            .filter(|d| d.value.kind() == Kind::TestResult)
            .count();
        assert!((19_500..19_900).contains(&tests), "{tests}");
        let entities: HashSet<EntityId> = deltas.iter().map(|d| d.person.entity).collect();
        assert!(entities.len() < 10_000);
    }

    #[test]
    fn the_urgent_lane_has_positives_colours_and_corrections() {
        let (_, deltas) = made(Lane::Urgent, 5000);
        let count = |value: &Value| deltas.iter().filter(|d| d.value == *value).count();
        for colour in Colour::ALL {
            assert!(count(&Value::HealthCode(*colour)) > 100, "{colour}");
        }
        assert!(deltas.iter().any(|d| d.value.kind() == Kind::TestResult));
    }

    #[test]
    fn a_register_of_tests_stays_in_one_lane() {
        let tests = |lane| -> HashSet<EntityId> {
            made(lane, 20_000)
                .1
                .iter()
                .filter(|d| d.value.kind() == Kind::TestResult)
                .map(|d| d.person.entity)
                .collect()
        };
        assert!(tests(Lane::Urgent).is_disjoint(&tests(Lane::Bulk)));
    }

    #[test]
    fn the_registers_of_all_platforms_stay_few() {
        let (registers, _) = made(Lane::Bulk, 1);
        assert!(registers.cells() <= 300_000, "{}", registers.cells());
    }
}
