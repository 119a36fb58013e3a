//! Colours that go back and forth: a person is red, green an hour later, and red again. Real systems did that to
//! people, by two authorities that corrected each other or a rule that contradicts itself.
//!
//! Looking at the value before would cost a read of each delta. So the last colours of the entities that changed
//! last are kept in a table of fixed size, where a newer entity takes the place of an older one: what is counted
//! did happen, and in a surge some of it is missed. By the log's time, so that every node counts the same.

use crate::{metrics::Colours, state::keys::RegisterKey};
use hutong_proto::{
    Micros,
    delta::Colour,
    wire::{FieldValue, Reader},
};

/// Entities that are remembered: 16 bytes each.
const PLACES: usize = 1 << 16;
/// Odd, near 2^64 over the golden ratio: spreads numbers that differ in few bits.
const MIXER: u64 = 0x9e37_79b9_7f4a_7c15;
/// A colour that comes back later than this is a change as any other.
const WITHIN_SECONDS: u32 = 3600;

#[derive(Clone, Copy, Default)]
struct Place {
    /// Which entity; 0 for none.
    tag: u64,
    changed_at_seconds: u32,
    /// As numbers of [`Colour`]; 0 for unknown.
    before: u8,
    now: u8,
}

pub struct FlipFlops(Vec<Place>);

impl Default for FlipFlops {
    fn default() -> FlipFlops {
        FlipFlops(vec![Place::default(); PLACES])
    }
}

impl std::fmt::Debug for FlipFlops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlipFlops").finish_non_exhaustive()
    }
}

impl FlipFlops {
    /// Counts a health code that was applied.
    pub fn count(&mut self, key: &RegisterKey, value: &[u8], at: Micros, colours: &mut Colours) {
        let Some(colour) = colour(value) else { return };
        colours.applied[colour as usize - 1] += 1;
        // Pseudonyms are keyed hashes: half of one tells entities apart well enough, with the issuer.
        let [a, b] = [0, 8].map(|from| {
            let half = key.entity.0[from..from + 8].try_into();
            u64::from_le_bytes(half.expect("half of sixteen bytes"))
        });
        let mixed = a.wrapping_mul(MIXER) ^ b ^ u64::from(key.issuer.code());
        let tag = mixed.max(1);
        let hash = tag.wrapping_mul(MIXER);
        let place = &mut self.0[(hash >> 48) as usize % PLACES];
        let seconds = (at.0 / 1_000_000) as u32;
        let colour = colour as u8;
        if place.tag != tag {
            *place = Place {
                tag,
                changed_at_seconds: seconds,
                before: 0,
                now: colour,
            };
        } else if place.now != colour {
            let soon = seconds.saturating_sub(place.changed_at_seconds) <= WITHIN_SECONDS;
            if soon && place.before == colour {
                colours.flip_flops += 1;
            }
            place.before = place.now;
            place.now = colour;
            place.changed_at_seconds = seconds;
        }
    }
}

/// Of an encoded health code that admission let pass.
fn colour(value: &[u8]) -> Option<Colour> {
    match Reader::new(value).field().ok()?? {
        field if field.number == 1 => match field.value {
            FieldValue::Varint(n) => Colour::from_number(n),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::{EntityId, Issuer, Kind, delta::Value};

    fn said(changes: &[(u8, Colour, u64)]) -> Colours {
        let (mut flips, mut colours) = (FlipFlops::default(), Colours::default());
        for (entity, colour, seconds) in changes {
            let key = RegisterKey {
                entity: EntityId([*entity; 16]),
                kind: Kind::HealthCode,
                issuer: Issuer::new(340_000).expect("a code"),
            };
            let value = Value::HealthCode(*colour).encode();
            flips.count(&key, &value, Micros(seconds * 1_000_000), &mut colours);
        }
        colours
    }

    #[test]
    fn a_colour_that_comes_back_within_the_hour_is_a_flip_flop() {
        use Colour::{Green, Red, Yellow};
        for (changes, expected) in [
            (&[(1, Red, 10), (1, Green, 20), (1, Red, 30)][..], 1),
            (
                &[(1, Red, 10), (1, Green, 20), (1, Red, 30), (1, Green, 40)],
                2,
            ),
            (&[(1, Red, 10), (1, Green, 20), (1, Red, 4000)], 0),
            (&[(1, Red, 10), (1, Green, 20), (1, Yellow, 30)], 0),
            (&[(1, Red, 10), (1, Red, 20), (1, Red, 30)], 0),
            (&[(1, Red, 10), (2, Green, 20), (1, Red, 30)], 0),
        ] {
            assert_eq!(said(changes).flip_flops, expected, "{changes:?}");
        }
    }

    /// Red, another one green, and red again.
    fn beside(one: ([u64; 2], u32), other: ([u64; 2], u32)) -> u64 {
        let (mut flips, mut colours) = (FlipFlops::default(), Colours::default());
        let said = [
            (one, Colour::Red),
            (other, Colour::Green),
            (one, Colour::Red),
        ];
        for (((halves, issuer), colour), seconds) in said.into_iter().zip(1..) {
            let key = RegisterKey {
                entity: EntityId(entity_of(halves)),
                kind: Kind::HealthCode,
                issuer: Issuer::new(issuer).expect("a code"),
            };
            let value = Value::HealthCode(colour).encode();
            flips.count(&key, &value, Micros(seconds * 1_000_000), &mut colours);
        }
        colours.flip_flops
    }

    fn entity_of(halves: [u64; 2]) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&halves[0].to_le_bytes());
        bytes[8..].copy_from_slice(&halves[1].to_le_bytes());
        bytes
    }

    #[test]
    fn who_differs_in_half_of_the_name_or_in_the_issuer_is_another_one() {
        const ONES: u64 = u64::MAX;
        for (one, other) in [
            (([1, ONES], 340_000), ([2, ONES], 340_000)),
            (([1, 0], 340_000), ([2, 0], 340_000)),
            (([0, 1], 340_000), ([0, 2], 340_000)),
            (([0, ONES], 340_000), ([0, ONES], 510_000)),
            (([0, 0], 340_000), ([0, 0], 510_000)),
        ] {
            assert_eq!(beside(one, other), 0, "{one:?} {other:?}");
        }
        let same = ([7, 7], 340_000);
        assert_eq!(beside(same, same), 1);
    }

    #[test]
    fn several_are_remembered_and_who_lost_the_place_is_not_taken_for_its_new_owner() {
        use Colour::{Green, Red};
        let two = [
            (1, Red, 1),
            (2, Red, 1),
            (1, Green, 2),
            (2, Green, 2),
            (1, Red, 3),
            (2, Red, 3),
        ];
        assert_eq!(said(&two).flip_flops, 2);
        let (mut flips, mut colours) = (FlipFlops::default(), Colours::default());
        let mut say = |n: u64, colour| {
            let key = RegisterKey {
                entity: EntityId(entity_of([n, 7])),
                kind: Kind::HealthCode,
                issuer: Issuer::new(340_000).expect("a code"),
            };
            let value = Value::HealthCode(colour).encode();
            flips.count(&key, &value, Micros(1), &mut colours);
        };
        // So many that every place has another owner than before.
        say(0, Red);
        (1..20 * PLACES as u64).for_each(|n| say(n, Green));
        say(0, Red);
        assert_eq!(colours.flip_flops, 0);
    }

    #[test]
    fn what_is_no_health_code_has_no_colour() {
        let red = Value::HealthCode(Colour::Red).encode();
        assert_eq!(colour(&red), Some(Colour::Red));
        let other_field = [red[0] + 8, red[1]];
        assert_eq!(colour(&other_field), None);
        assert_eq!(colour(b""), None);
    }

    #[test]
    fn every_colour_is_counted_and_the_table_keeps_its_size() {
        let all: Vec<_> = (0..200_000u32).collect();
        let (mut flips, mut colours) = (FlipFlops::default(), Colours::default());
        for n in &all {
            let mut entity = [7; 16];
            entity[..4].copy_from_slice(&n.to_le_bytes());
            let key = RegisterKey {
                entity: EntityId(entity),
                kind: Kind::HealthCode,
                issuer: Issuer::new(340_000).expect("a code"),
            };
            flips.count(
                &key,
                &Value::HealthCode(Colour::Green).encode(),
                Micros(1),
                &mut colours,
            );
        }
        assert_eq!(colours.applied, [200_000, 0, 0]);
        assert_eq!(flips.0.len(), PLACES);
    }
}
