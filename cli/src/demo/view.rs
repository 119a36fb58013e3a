//! What a platform knows: for each register the newest revision and its value. A view is built from
//! deliveries alone, idempotently, and counts what must never happen.

use super::registers::{Register, Registers};
use hutong_proto::{Lane, Revision, Value, delta::RiskLevel};

/// The newest revision of a register, its value, and the lane it came in: 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    revision: Revision,
    value: ValueMark,
    lane: u8,
}

/// A short stand-in for a value: the same for equal values. Zero for no value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ValueMark(u32);

impl ValueMark {
    pub const NONE: ValueMark = ValueMark(0);

    pub fn of(value: &Value) -> ValueMark {
        match value {
            Value::HealthCode(colour) => ValueMark::mix(1, *colour as u64, 0),
            Value::TestResult {
                outcome,
                sampled_at,
            } => ValueMark::mix(2, *outcome as u64, sampled_at.0),
            Value::Vaccination {
                doses,
                product,
                vaccinated_at,
            } => {
                let product = product.bytes().fold(u64::from(*doses), |h, b| {
                    (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
                });
                ValueMark::mix(3, product, vaccinated_at.0)
            }
            Value::AreaRisk { level, .. } => ValueMark::of_level(*level),
        }
    }

    /// The path is in the name of the register.
    pub fn of_level(level: RiskLevel) -> ValueMark {
        ValueMark::mix(4, level as u64, 0)
    }

    fn mix(kind: u64, a: u64, b: u64) -> ValueMark {
        let mut z = kind
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(a.wrapping_mul(0xbf58_476d_1ce4_e5b9))
            .wrapping_add(b);
        z = (z ^ (z >> 30)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ValueMark(((z >> 32) as u32).max(1))
    }
}

/// What a delivery did to a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    /// A newer value had come in the other lane: nothing to do, and nothing wrong.
    Overtaken,
    /// This very revision had been delivered: must not happen.
    Doubled,
    /// A newer revision had been delivered in the same lane: must not happen.
    WentBack,
}

/// How often each thing happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub received: u64,
    pub applied: u64,
    pub overtaken: u64,
    pub doubled: u64,
    pub went_back: u64,
    /// Delivered, but no platform of the demo can have published it.
    pub unknown: u64,
}

impl Counts {
    /// Deliveries that each were a different published delta, as far as a view can tell: it does not
    /// notice when something that was overtaken comes a second time. The sum does.
    pub fn distinct(&self) -> u64 {
        self.applied + self.overtaken + self.went_back
    }
}

/// The registers as one platform, or the model, knows them.
#[derive(Debug)]
pub struct View {
    cells: Vec<Cell>,
    pub counts: Counts,
}

impl View {
    pub fn new(cells: usize) -> View {
        View {
            cells: vec![Cell::default(); cells],
            counts: Counts::default(),
        }
    }

    /// Takes one delivered delta in; `register` is `None` when the directory does not know it.
    #[inline]
    pub fn deliver(
        &mut self,
        register: Option<Register>,
        lane: Lane,
        revision: Revision,
        value: &Value,
    ) -> Option<Outcome> {
        self.counts.received += 1;
        let Some(register) = register else {
            self.counts.unknown += 1;
            return None;
        };
        let outcome = self.apply(register, lane, revision, value);
        match outcome {
            Outcome::Applied => self.counts.applied += 1,
            Outcome::Overtaken => self.counts.overtaken += 1,
            Outcome::Doubled => self.counts.doubled += 1,
            Outcome::WentBack => self.counts.went_back += 1,
        }
        Some(outcome)
    }

    #[inline]
    fn apply(
        &mut self,
        register: Register,
        lane: Lane,
        revision: Revision,
        value: &Value,
    ) -> Outcome {
        let cell = &mut self.cells[register.0 as usize];
        let lane = lane as u8;
        if revision > cell.revision {
            *cell = Cell {
                revision,
                value: ValueMark::of(value),
                lane,
            };
            Outcome::Applied
        } else if revision == cell.revision {
            Outcome::Doubled
        } else if lane == cell.lane {
            Outcome::WentBack
        } else {
            Outcome::Overtaken
        }
    }

    /// The newest revision and value of a cell.
    fn newest(&self, cell: usize) -> (Revision, ValueMark) {
        let c = &self.cells[cell];
        (c.revision, c.value)
    }

    pub fn value(&self, register: Register) -> ValueMark {
        self.cells[register.0 as usize].value
    }

    /// In how many registers this view of the platform `own` is not what `model` says it must be: every
    /// other platform's registers as the model has them, and none of its own.
    pub fn differences(&self, model: &View, registers: &Registers, own: usize) -> u64 {
        (0..self.cells.len())
            .filter(|cell| {
                let expected = if registers.home(*cell) == own {
                    (Revision(0), ValueMark::NONE)
                } else {
                    model.newest(*cell)
                };
                self.newest(*cell) != expected
            })
            .count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::{EntityId, Issuer, Kind, delta::Colour};

    const GREEN: Value = Value::HealthCode(Colour::Green);
    const RED: Value = Value::HealthCode(Colour::Red);

    fn directory() -> (Registers, Register, Register) {
        let mut registers = Registers::default();
        let entity = EntityId([3; 16]);
        let mut add = |code, home| {
            let issuer = Issuer::new(code).expect("six digits");
            registers.add(issuer, &entity, home);
            registers
                .find(issuer, &entity, Kind::HealthCode)
                .expect("added")
        };
        let (first, second) = (add(340_000, 0), add(510_000, 1));
        (registers, first, second)
    }

    #[test]
    fn the_same_delta_twice_is_counted_and_changes_nothing() {
        let (registers, first, _) = directory();
        let mut view = View::new(registers.cells());
        let mut deliver = |n, value| view.deliver(Some(first), Lane::Urgent, Revision(n), value);
        assert_eq!(deliver(5, &GREEN), Some(Outcome::Applied));
        assert_eq!(deliver(5, &GREEN), Some(Outcome::Doubled));
        assert_eq!(deliver(4, &RED), Some(Outcome::WentBack));
        assert_eq!(deliver(6, &RED), Some(Outcome::Applied));
        assert_eq!(view.value(first), ValueMark::of(&RED));
        assert_eq!((view.counts.doubled, view.counts.went_back), (1, 1));
    }

    #[test]
    fn the_urgent_lane_may_overtake_the_bulk_lane() {
        let (registers, first, _) = directory();
        let mut view = View::new(registers.cells());
        view.deliver(Some(first), Lane::Urgent, Revision(6), &RED);
        let late = view.deliver(Some(first), Lane::Bulk, Revision(5), &GREEN);
        assert_eq!(late, Some(Outcome::Overtaken));
        assert_eq!(view.value(first), ValueMark::of(&RED));
    }

    #[test]
    fn what_nobody_published_is_counted_as_unknown() {
        let (registers, first, _) = directory();
        let mut view = View::new(registers.cells());
        view.deliver(None, Lane::Urgent, Revision(1), &GREEN);
        assert_eq!(view.counts.unknown, 1);
        assert_eq!(view.counts.applied, 0);
        assert_eq!(view.value(first), ValueMark::NONE);
    }

    #[test]
    fn a_view_equals_the_model_without_its_own_registers() {
        let (registers, first, second) = directory();
        let mut model = View::new(registers.cells());
        model.deliver(Some(first), Lane::Urgent, Revision(1), &GREEN);
        model.deliver(Some(second), Lane::Urgent, Revision(2), &RED);
        let mut view = View::new(registers.cells());
        view.deliver(Some(second), Lane::Urgent, Revision(2), &RED);
        assert_eq!(view.differences(&model, &registers, 0), 0);
        // A missing, an own and a wrong value each make a difference.
        assert_eq!(view.differences(&model, &registers, 1), 2);
        let mut wrong = View::new(registers.cells());
        wrong.deliver(Some(second), Lane::Urgent, Revision(2), &GREEN);
        assert_eq!(wrong.differences(&model, &registers, 0), 1);
    }

    #[test]
    fn different_values_have_different_marks() {
        let marks = [&GREEN, &RED].map(ValueMark::of);
        assert_ne!(marks[0], marks[1]);
        assert_ne!(marks[0], ValueMark::NONE);
        let doses = |n, product: &str| {
            ValueMark::of(&Value::Vaccination {
                doses: n,
                product: product.to_owned(),
                vaccinated_at: hutong_proto::Micros::ZERO,
            })
        };
        assert_ne!(doses(2, "a"), doses(2, "b"));
        assert_ne!(doses(2, "a"), doses(3, "a"));
    }
}
