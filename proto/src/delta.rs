//! The vocabulary: what can be said about an entity, as values that a program works with.

use crate::{
    ids::{EntityId, Kind, Lane, Micros, Revision},
    reason::{Reason, Refusal},
    trace::TraceContext,
    wire::{self, FieldValue, Reader},
};
use std::{fmt, sync::Arc};

/// Declares a vocabulary: its numbers on the wire and its names. Zero is in none of them.
macro_rules! vocabulary {
    ($(#[$doc:meta])* $name:ident { $($value:ident = $number:literal $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($value = $number,)* }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$value,)*];

            pub fn from_number(n: u64) -> Option<$name> {
                match n {
                    $($number => Some($name::$value),)*
                    _ => None,
                }
            }

            pub fn name(self) -> &'static str {
                match self {
                    $($name::$value => $text,)*
                }
            }

            pub fn from_name(name: &str) -> Option<$name> {
                $name::ALL.iter().copied().find(|v| v.name() == name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

vocabulary! {
    /// Of a health code; a greater one is more severe.
    Colour {
        Green = 1 "green",
        Yellow = 2 "yellow",
        Red = 3 "red",
    }
}

vocabulary! {
    TestOutcome {
        Negative = 1 "negative",
        Positive = 2 "positive",
        Inconclusive = 3 "inconclusive",
    }
}

vocabulary! {
    RiskLevel {
        Low = 1 "low",
        Middle = 2 "middle",
        High = 3 "high",
        Cleared = 4 "cleared",
    }
}

/// Who decided, under which public rule, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Provenance {
    pub authority: String,
    pub rule_id: String,
    pub rule_version: u32,
    pub reason: String,
}

impl Provenance {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        wire::put_bytes(&mut out, 1, self.authority.as_bytes());
        wire::put_bytes(&mut out, 2, self.rule_id.as_bytes());
        wire::put_number(&mut out, 3, u64::from(self.rule_version));
        wire::put_bytes(&mut out, 4, self.reason.as_bytes());
        out
    }
}

/// The value of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    HealthCode(Colour),
    TestResult {
        outcome: TestOutcome,
        sampled_at: Micros,
    },
    Vaccination {
        doses: u32,
        product: String,
        vaccinated_at: Micros,
    },
    AreaRisk {
        level: RiskLevel,
        path: Vec<String>,
    },
}

impl Value {
    pub fn kind(&self) -> Kind {
        match self {
            Value::HealthCode(_) => Kind::HealthCode,
            Value::TestResult { .. } => Kind::TestResult,
            Value::Vaccination { .. } => Kind::Vaccination,
            Value::AreaRisk { .. } => Kind::AreaRisk,
        }
    }

    pub fn lane(&self) -> Lane {
        match self {
            Value::TestResult { outcome, .. } => outcome.lane(),
            Value::Vaccination { .. } => Lane::Bulk,
            Value::HealthCode(_) | Value::AreaRisk { .. } => Lane::Urgent,
        }
    }

    /// The encoded message of this value, without its field.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Value::HealthCode(colour) => wire::put_number(&mut out, 1, *colour as u64),
            Value::TestResult {
                outcome,
                sampled_at,
            } => {
                wire::put_number(&mut out, 1, *outcome as u64);
                wire::put_number(&mut out, 2, sampled_at.0);
            }
            Value::Vaccination {
                doses,
                product,
                vaccinated_at,
            } => {
                wire::put_number(&mut out, 1, u64::from(*doses));
                if !product.is_empty() {
                    wire::put_bytes(&mut out, 2, product.as_bytes());
                }
                wire::put_number(&mut out, 3, vaccinated_at.0);
            }
            Value::AreaRisk { level, path } => {
                wire::put_number(&mut out, 1, *level as u64);
                for part in path {
                    wire::put_bytes(&mut out, 2, part.as_bytes());
                }
            }
        }
        out
    }
}

impl TestOutcome {
    /// Only a negative result can wait.
    pub fn lane(self) -> Lane {
        match self {
            TestOutcome::Negative => Lane::Bulk,
            TestOutcome::Positive | TestOutcome::Inconclusive => Lane::Urgent,
        }
    }
}

/// A new value for one register of its issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    pub entity: EntityId,
    pub revision: Revision,
    pub committed_at: Micros,
    /// Zero: never.
    pub expires_at: Micros,
    pub evidence: String,
    pub provenance: Arc<Provenance>,
    pub value: Value,
}

impl Delta {
    /// Appends the encoded message, without field tag, to `out`; `provenance` is the index in the
    /// table of the message that will carry it.
    pub fn encode(&self, provenance: u32, out: &mut Vec<u8>) {
        self.encode_traced(provenance, None, out);
    }

    /// The same for a delta that is traced.
    pub fn encode_traced(&self, provenance: u32, trace: Option<TraceContext>, out: &mut Vec<u8>) {
        DeltaParts {
            entity: self.entity,
            revision: self.revision,
            committed_at: self.committed_at,
            expires_at: self.expires_at,
            provenance,
            evidence: &self.evidence,
            trace,
            kind: self.value.kind(),
            value: &self.value.encode(),
        }
        .encode(out);
    }
}

/// A delta whose value is encoded already.
#[derive(Clone, Copy, Debug)]
pub struct DeltaParts<'a> {
    pub entity: EntityId,
    pub revision: Revision,
    pub committed_at: Micros,
    pub expires_at: Micros,
    pub provenance: u32,
    pub evidence: &'a str,
    /// Of the few that are traced.
    pub trace: Option<TraceContext>,
    pub kind: Kind,
    pub value: &'a [u8],
}

/// A delta's fields, as they stand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    pub entity: &'a [u8; 16],
    pub revision: u64,
    pub committed_at: u64,
    pub expires_at: u64,
    pub provenance: u64,
    pub evidence: &'a [u8],
    /// Field and encoded value.
    pub value: (u32, &'a [u8]),
}

impl<'a> Fields<'a> {
    /// Of a delta as encoders write it: each field at most once, in the order of their numbers, and short.
    /// Nothing for any other, which may be sound or not; nor for the few that are traced.
    ///
    /// In line, with the entity as a reference: what is written to memory in parts and at once read as a
    /// whole waits until the processor has finished all writes before it, misses of the cache included.
    #[inline(always)]
    pub fn in_order(bytes: &'a [u8]) -> Option<Fields<'a>> {
        // Field 1, of 16 bytes.
        let (&[0x0a, 16], rest) = bytes.split_first_chunk()? else {
            return None;
        };
        let (entity, mut rest) = rest.split_first_chunk()?;
        let mut number = |tag: u8| {
            if rest.first() != Some(&tag) {
                return Some(0);
            }
            let (value, len) = wire::short_varint(&rest[1..])?;
            rest = &rest[1 + len..];
            Some(value)
        };
        let (revision, committed_at) = (number(2 << 3)?, number(3 << 3)?);
        let (expires_at, provenance) = (number(4 << 3)?, number(5 << 3)?);
        let mut short = || {
            let (&[tag, len @ 0..0x80], after) = rest.split_first_chunk()? else {
                return None;
            };
            let (part, after) = after.split_at_checked(usize::from(len))?;
            rest = after;
            Some((tag, part))
        };
        let (mut tag, mut value) = short()?;
        let mut evidence = &[][..];
        if tag == (6 << 3 | wire::LEN) {
            evidence = value;
            (tag, value) = short()?;
        }
        let sound = tag & 7 == wire::LEN && (10..=15).contains(&(tag >> 3)) && rest.is_empty();
        sound.then_some(Fields {
            entity,
            revision,
            committed_at,
            expires_at,
            provenance,
            evidence,
            value: (u32::from(tag >> 3), value),
        })
    }
}

fn missing(field: &'static str) -> Refusal {
    Refusal::new(Reason::FieldMissing, field)
}

impl<'a> DeltaParts<'a> {
    /// Reads a delta that admission let pass before; what it checked is not checked again.
    #[inline]
    pub fn read(bytes: &'a [u8]) -> Result<DeltaParts<'a>, Refusal> {
        let Some(fields) = Fields::in_order(bytes) else {
            return DeltaParts::read_any(bytes);
        };
        let (number, value) = fields.value;
        let kind = kind_of_field(number);
        Ok(DeltaParts {
            entity: EntityId(*fields.entity),
            revision: Revision(fields.revision),
            committed_at: Micros(fields.committed_at),
            expires_at: Micros(fields.expires_at),
            provenance: u32::try_from(fields.provenance).map_err(|_| missing("provenance"))?,
            evidence: std::str::from_utf8(fields.evidence)
                .map_err(|_| Refusal::new(Reason::StringNotUtf8, "evidence"))?,
            trace: None,
            kind: kind.ok_or_else(|| missing("value"))?,
            value,
        })
    }

    /// With its fields in any order.
    fn read_any(bytes: &'a [u8]) -> Result<DeltaParts<'a>, Refusal> {
        let (mut revision, mut committed_at, mut expires_at, mut provenance) = (0, 0, 0, 0);
        let (mut entity, mut evidence, mut trace, mut value) = (None, &[][..], None, None);
        let mut reader = Reader::new(bytes);
        while let Some(field) = reader.field()? {
            match (field.number, field.value) {
                (1, FieldValue::Len(b)) => entity = EntityId::from_slice(b),
                (2, FieldValue::Varint(n)) => revision = n,
                (3, FieldValue::Varint(n)) => committed_at = n,
                (4, FieldValue::Varint(n)) => expires_at = n,
                (5, FieldValue::Varint(n)) => provenance = n,
                (6, FieldValue::Len(b)) => evidence = b,
                (7, FieldValue::Len(b)) => trace = TraceContext::from_slice(b),
                (n, FieldValue::Len(b)) => {
                    value = kind_of_field(n).map(|kind| (kind, b));
                }
                _ => return Err(Refusal::new(Reason::FieldUnknown, "delta")),
            }
        }
        let (kind, value) = value.ok_or_else(|| missing("value"))?;
        Ok(DeltaParts {
            entity: entity.ok_or_else(|| missing("entity"))?,
            revision: Revision(revision),
            committed_at: Micros(committed_at),
            expires_at: Micros(expires_at),
            provenance: u32::try_from(provenance).map_err(|_| missing("provenance"))?,
            evidence: std::str::from_utf8(evidence)
                .map_err(|_| Refusal::new(Reason::StringNotUtf8, "evidence"))?,
            trace,
            kind,
            value,
        })
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        wire::put_bytes(out, 1, &self.entity.0);
        wire::put_number(out, 2, self.revision.0);
        wire::put_number(out, 3, self.committed_at.0);
        wire::put_number(out, 4, self.expires_at.0);
        wire::put_number(out, 5, u64::from(self.provenance));
        if !self.evidence.is_empty() {
            wire::put_bytes(out, 6, self.evidence.as_bytes());
        }
        if let Some(trace) = self.trace {
            wire::put_bytes(out, 7, &trace.to_bytes());
        }
        wire::put_bytes(out, value_field(self.kind), self.value);
    }
}

/// The field of a delta that carries values of this kind.
pub fn value_field(kind: Kind) -> u32 {
    match kind {
        Kind::HealthCode => 10,
        Kind::TestResult => 11,
        Kind::Vaccination => 12,
        Kind::AreaRisk => 13,
    }
}

/// The other way round.
fn kind_of_field(number: u32) -> Option<Kind> {
    match number {
        10 => Some(Kind::HealthCode),
        11 => Some(Kind::TestResult),
        12 => Some(Kind::Vaccination),
        13 => Some(Kind::AreaRisk),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_field_that_leads_back_to_it() {
        for kind in Kind::ALL {
            assert_eq!(kind_of_field(value_field(kind)), Some(kind));
        }
        assert_eq!(kind_of_field(9), None);
        assert_eq!(kind_of_field(14), None);
    }
}
