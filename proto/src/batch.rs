//! Reading what a producer sent, in place: nothing is copied, every field is checked, and what is
//! not understood is refused, so that the bytes may be forwarded as they are.

use crate::{
    delta::{Colour, Delta, Fields, Provenance, RiskLevel, TestOutcome, Value},
    ids::{EntityId, Issuer, Kind, Lane, Micros, Revision, Sequence},
    limits,
    reason::{Reason, Refusal},
    trace::TraceContext,
    wire::{self, Field, FieldValue, Reader},
};
use std::{ops::Range, sync::Arc};

/// Field of the provenance table and of the deltas, the same in a batch and in a record, so that
/// they move from one to the other with their tags.
pub const PROVENANCE_FIELD: u32 = 9;
pub const DELTA_FIELD: u32 = 10;
pub(crate) const DELTA_TAG: u8 = (DELTA_FIELD << 3) as u8 | wire::LEN;

type Result<T, E = Refusal> = std::result::Result<T, E>;

/// A `PublishBatch` whose outline is known; its deltas are read one by one.
#[derive(Clone, Debug)]
pub struct BatchView<'a> {
    pub bytes: &'a [u8],
    pub sequence: Sequence,
    /// As sent; 0 if absent.
    pub issuer: u32,
    /// Of each provenance entry, tag included.
    pub provenance: Vec<Range<usize>>,
    /// Of each delta, tag included.
    pub deltas: Vec<Range<usize>>,
}

impl<'a> BatchView<'a> {
    /// Reads the outline. The error is about the batch as a whole; its `sequence` may still be read
    /// with [`BatchView::sequence_of`].
    pub fn parse(bytes: &'a [u8]) -> Result<BatchView<'a>> {
        let mut batch = BatchView {
            bytes,
            sequence: Sequence::NONE,
            issuer: 0,
            provenance: Vec::new(),
            deltas: Vec::with_capacity(bytes.len() / 96),
        };
        let mut seen = Seen::default();
        let mut reader = Reader::new(bytes);
        loop {
            while let Some(delta) = reader.short_field(DELTA_TAG) {
                batch.deltas.push(delta);
            }
            let Some(field) = reader.field()? else { break };
            if field.number < PROVENANCE_FIELD {
                seen.once(&field, |n| if n == 1 { "sequence" } else { "issuer" })?;
            }
            match (field.number, field.value) {
                (1, FieldValue::Varint(n)) => batch.sequence = Sequence(n),
                (2, FieldValue::Varint(n)) => batch.issuer = u32::try_from(n).unwrap_or(u32::MAX),
                (PROVENANCE_FIELD, FieldValue::Len(_)) => {
                    batch.provenance.push(field.start..field.end);
                }
                (DELTA_FIELD, FieldValue::Len(_)) => batch.deltas.push(field.start..field.end),
                _ => return Err(unknown(&field, "")),
            }
        }
        if bytes.len() > limits::BATCH_BYTES_MAX {
            return Err(Refusal::new(Reason::BatchTooLarge, "batch")
                .detail(format!("{} bytes", bytes.len())));
        }
        if batch.deltas.len() > limits::BATCH_DELTAS_MAX {
            return Err(Refusal::new(Reason::BatchTooManyDeltas, "deltas")
                .detail(format!("{} deltas", batch.deltas.len())));
        }
        if batch.provenance.len() > limits::BATCH_PROVENANCES_MAX {
            return Err(Refusal::new(Reason::BatchTooManyProvenances, "provenance")
                .detail(format!("{} entries", batch.provenance.len())));
        }
        if batch.deltas.is_empty() {
            return Err(Refusal::new(Reason::BatchEmpty, "deltas"));
        }
        Ok(batch)
    }

    /// The sequence number, also of a batch that is refused as a whole.
    pub fn sequence_of(bytes: &[u8]) -> Option<Sequence> {
        let mut reader = Reader::new(bytes);
        while let Ok(Some(field)) = reader.field() {
            if let (1, FieldValue::Varint(n)) = (field.number, field.value) {
                return Some(Sequence(n));
            }
        }
        None
    }

    pub fn provenance(&self, index: usize) -> Result<ProvenanceView<'a>> {
        ProvenanceView::parse(inner(&self.bytes[self.provenance[index].clone()])?)
    }

    #[inline]
    pub fn delta(&self, index: usize) -> Result<DeltaView<'a>> {
        DeltaView::parse(inner(&self.bytes[self.deltas[index].clone()])?)
    }
}

/// The value of a field that is written with its tag.
#[inline]
pub(crate) fn inner(field: &[u8]) -> Result<&[u8]> {
    match wire::short_value(field) {
        Some((head, value)) if head + value == field.len() => Ok(&field[head..]),
        _ => long_inner(field),
    }
}

fn long_inner(field: &[u8]) -> Result<&[u8]> {
    match Reader::new(field).field()? {
        Some(Field {
            value: FieldValue::Len(bytes),
            ..
        }) => Ok(bytes),
        _ => Err(Refusal::new(Reason::MessageMalformed, "")),
    }
}

/// An entry of a provenance table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProvenanceView<'a> {
    pub bytes: &'a [u8],
    pub authority: &'a str,
    pub rule_id: &'a str,
    pub rule_version: u32,
    pub reason: &'a str,
}

impl<'a> ProvenanceView<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<ProvenanceView<'a>> {
        let mut view = ProvenanceView {
            bytes,
            authority: "",
            rule_id: "",
            rule_version: 0,
            reason: "",
        };
        let mut seen = Seen::default();
        let mut reader = Reader::new(bytes);
        while let Some(field) = reader.field()? {
            seen.once(&field, provenance_field)?;
            match (field.number, field.value) {
                (1, FieldValue::Len(b)) => {
                    view.authority = text(b, "authority", limits::AUTHORITY_BYTES_MAX)?;
                }
                (2, FieldValue::Len(b)) => {
                    view.rule_id = text(b, "rule_id", limits::RULE_ID_BYTES_MAX)?;
                }
                (3, FieldValue::Varint(n)) => {
                    view.rule_version = u32::try_from(n)
                        .map_err(|_| Refusal::new(Reason::ValueOutOfRange, "rule_version"))?;
                }
                (4, FieldValue::Len(b)) => {
                    view.reason = text(b, "reason", limits::REASON_BYTES_MAX)?;
                }
                _ => return Err(unknown(&field, provenance_field(field.number))),
            }
        }
        for (value, name) in [
            (view.authority, "authority"),
            (view.rule_id, "rule_id"),
            (view.reason, "reason"),
        ] {
            if value.is_empty() {
                return Err(Refusal::new(Reason::FieldMissing, name));
            }
        }
        if view.rule_version == 0 {
            return Err(Refusal::new(Reason::FieldMissing, "rule_version"));
        }
        Ok(view)
    }

    pub fn to_owned(&self) -> Provenance {
        Provenance {
            authority: self.authority.to_owned(),
            rule_id: self.rule_id.to_owned(),
            rule_version: self.rule_version,
            reason: self.reason.to_owned(),
        }
    }
}

/// A delta that was read and is well formed. Whether its time, provenance and issuer are allowed is
/// for admission to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaView<'a> {
    pub entity: EntityId,
    pub revision: Revision,
    pub committed_at: Micros,
    /// Zero: never.
    pub expires_at: Micros,
    pub provenance: u32,
    pub evidence: &'a str,
    /// Of the few that are traced.
    pub trace: Option<TraceContext>,
    pub value: ValueView<'a>,
    /// The encoded value, without its field.
    pub value_bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueView<'a> {
    HealthCode(Colour),
    TestResult {
        outcome: TestOutcome,
        sampled_at: Micros,
    },
    Vaccination {
        doses: u32,
        product: &'a str,
        vaccinated_at: Micros,
    },
    AreaRisk {
        level: RiskLevel,
        path: PathView<'a>,
    },
}

impl<'a> DeltaView<'a> {
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<DeltaView<'a>> {
        if bytes.len() > limits::DELTA_BYTES_MAX {
            return Err(
                Refusal::new(Reason::DeltaTooLarge, "").detail(format!("{} bytes", bytes.len()))
            );
        }
        match Fields::in_order(bytes) {
            Some(fields) => DeltaView::of(&fields),
            None => DeltaView::parse_any(bytes),
        }
    }

    #[inline]
    fn of(fields: &Fields<'a>) -> Result<DeltaView<'a>> {
        let (number, value_bytes) = fields.value;
        let view = DeltaView {
            entity: EntityId(*fields.entity),
            revision: Revision(fields.revision),
            committed_at: Micros(fields.committed_at),
            expires_at: Micros(fields.expires_at),
            provenance: u32::try_from(fields.provenance)
                .map_err(|_| Refusal::new(Reason::ProvenanceMissing, "provenance"))?,
            evidence: text(fields.evidence, "evidence", limits::EVIDENCE_BYTES_MAX)?,
            trace: None,
            value: ValueView::parse(number, value_bytes)?,
            value_bytes,
        };
        possible(&view.entity, view.revision.0)?;
        Ok(view)
    }

    /// With its fields in any order.
    fn parse_any(bytes: &'a [u8]) -> Result<DeltaView<'a>> {
        let mut entity = None;
        let (mut revision, mut committed_at, mut expires_at, mut provenance) = (0, 0, 0, 0);
        let mut evidence = "";
        let mut trace = None;
        let mut value = None;
        let mut seen = Seen::default();
        let mut reader = Reader::new(bytes);
        while let Some(field) = reader.field()? {
            seen.once(&field, delta_field)?;
            match (field.number, field.value) {
                (1, FieldValue::Len(b)) => {
                    let id = EntityId::from_slice(b).ok_or_else(|| {
                        Refusal::new(Reason::EntityInvalid, "entity")
                            .detail(format!("{} bytes", b.len()))
                    })?;
                    entity = Some(id);
                }
                (2, FieldValue::Varint(n)) => revision = n,
                (3, FieldValue::Varint(n)) => committed_at = n,
                (4, FieldValue::Varint(n)) => expires_at = n,
                (5, FieldValue::Varint(n)) => {
                    provenance = u32::try_from(n)
                        .map_err(|_| Refusal::new(Reason::ProvenanceMissing, "provenance"))?;
                }
                (6, FieldValue::Len(b)) => {
                    evidence = text(b, "evidence", limits::EVIDENCE_BYTES_MAX)?;
                }
                (7, FieldValue::Len(b)) => trace = Some(trace_context(b)?),
                (number @ 10..=31, FieldValue::Len(b)) => {
                    if value.is_some() {
                        return Err(Refusal::new(Reason::KindUnknown, "value")
                            .detail("more than one value"));
                    }
                    value = Some((ValueView::parse(number, b)?, b));
                }
                _ => return Err(unknown(&field, delta_field(field.number))),
            }
        }
        let entity = entity.ok_or_else(|| Refusal::new(Reason::FieldMissing, "entity"))?;
        possible(&entity, revision)?;
        let (value, value_bytes) =
            value.ok_or_else(|| Refusal::new(Reason::KindUnknown, "value").detail("no value"))?;
        Ok(DeltaView {
            entity,
            revision: Revision(revision),
            committed_at: Micros(committed_at),
            expires_at: Micros(expires_at),
            provenance,
            evidence,
            trace,
            value,
            value_bytes,
        })
    }

    pub fn kind(&self) -> Kind {
        self.value.kind()
    }

    pub fn lane(&self) -> Lane {
        self.value.lane()
    }

    pub fn to_owned(&self, provenance: Arc<Provenance>) -> Delta {
        Delta {
            entity: self.entity,
            revision: self.revision,
            committed_at: self.committed_at,
            expires_at: self.expires_at,
            evidence: self.evidence.to_owned(),
            provenance,
            value: self.value.to_owned(),
        }
    }
}

#[inline]
fn possible(entity: &EntityId, revision: u64) -> Result<()> {
    if entity.0 == [0; 16] {
        return Err(Refusal::new(Reason::EntityInvalid, "entity").detail("all zero"));
    }
    if revision == 0 {
        return Err(Refusal::new(Reason::RevisionZero, "revision"));
    }
    if revision > limits::REVISION_MAX {
        return Err(Refusal::new(Reason::ValueOutOfRange, "revision")
            .detail(format!("{revision}, the greatest is 2^63 - 1")));
    }
    Ok(())
}

impl<'a> ValueView<'a> {
    /// Reads the value that stands in field `number` of a delta.
    #[inline]
    pub fn parse(number: u32, bytes: &'a [u8]) -> Result<ValueView<'a>> {
        match number {
            10 => health_code(bytes),
            11 => test_result(bytes),
            12 => vaccination(bytes),
            13 => area_risk(bytes),
            _ => Err(Refusal::new(Reason::KindUnknown, "value")
                .detail(format!("no kind has field {number}"))),
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            ValueView::HealthCode(_) => Kind::HealthCode,
            ValueView::TestResult { .. } => Kind::TestResult,
            ValueView::Vaccination { .. } => Kind::Vaccination,
            ValueView::AreaRisk { .. } => Kind::AreaRisk,
        }
    }

    pub fn lane(&self) -> Lane {
        match self {
            ValueView::TestResult { outcome, .. } => outcome.lane(),
            ValueView::Vaccination { .. } => Lane::Bulk,
            ValueView::HealthCode(_) | ValueView::AreaRisk { .. } => Lane::Urgent,
        }
    }

    pub fn to_owned(&self) -> Value {
        match *self {
            ValueView::HealthCode(colour) => Value::HealthCode(colour),
            ValueView::TestResult {
                outcome,
                sampled_at,
            } => Value::TestResult {
                outcome,
                sampled_at,
            },
            ValueView::Vaccination {
                doses,
                product,
                vaccinated_at,
            } => Value::Vaccination {
                doses,
                product: product.to_owned(),
                vaccinated_at,
            },
            ValueView::AreaRisk { level, path } => Value::AreaRisk {
                level,
                path: path.parts().map(str::to_owned).collect(),
            },
        }
    }
}

fn health_code(bytes: &[u8]) -> Result<ValueView<'_>> {
    let mut colour = 0;
    let mut seen = Seen::default();
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        seen.once(&field, |_| "health_code.colour")?;
        match (field.number, field.value) {
            (1, FieldValue::Varint(n)) => colour = n,
            _ => return Err(unknown(&field, "health_code")),
        }
    }
    let colour = word(colour, "health_code.colour", Colour::from_number)?;
    Ok(ValueView::HealthCode(colour))
}

#[inline]
fn test_result(bytes: &[u8]) -> Result<ValueView<'_>> {
    let (outcome, sampled_at) = match *bytes {
        // As encoders write it, with a time of these years.
        [0x08, outcome @ 0..0x80, 0x10, ref time @ ..] => match wire::short_varint(time) {
            Some((sampled_at, len)) if len == time.len() => (u64::from(outcome), sampled_at),
            _ => any_test_result(bytes)?,
        },
        _ => any_test_result(bytes)?,
    };
    Ok(ValueView::TestResult {
        outcome: word(outcome, "test_result.outcome", TestOutcome::from_number)?,
        sampled_at: Micros(sampled_at),
    })
}

fn any_test_result(bytes: &[u8]) -> Result<(u64, u64)> {
    let (mut outcome, mut sampled_at) = (0, 0);
    let mut seen = Seen::default();
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        seen.once(&field, |_| "test_result")?;
        match (field.number, field.value) {
            (1, FieldValue::Varint(n)) => outcome = n,
            (2, FieldValue::Varint(n)) => sampled_at = n,
            _ => return Err(unknown(&field, "test_result")),
        }
    }
    Ok((outcome, sampled_at))
}

fn vaccination(bytes: &[u8]) -> Result<ValueView<'_>> {
    let (mut doses, mut product, mut vaccinated_at) = (0, "", 0);
    let mut seen = Seen::default();
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        seen.once(&field, |_| "vaccination")?;
        match (field.number, field.value) {
            (1, FieldValue::Varint(n)) => doses = n,
            (2, FieldValue::Len(b)) => {
                product = text(b, "vaccination.product", limits::PRODUCT_BYTES_MAX)?;
            }
            (3, FieldValue::Varint(n)) => vaccinated_at = n,
            _ => return Err(unknown(&field, "vaccination")),
        }
    }
    let doses = u32::try_from(doses)
        .ok()
        .filter(|d| (1..=limits::DOSES_MAX).contains(d))
        .ok_or_else(|| {
            Refusal::new(Reason::ValueOutOfRange, "vaccination.doses")
                .detail(format!("{doses}, allowed are 1 to {}", limits::DOSES_MAX))
        })?;
    Ok(ValueView::Vaccination {
        doses,
        product,
        vaccinated_at: Micros(vaccinated_at),
    })
}

fn area_risk(bytes: &[u8]) -> Result<ValueView<'_>> {
    let mut level = None;
    let mut parts = 0;
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            (1, FieldValue::Varint(_)) if level.is_some() => {
                return Err(Refusal::new(Reason::FieldRepeated, "area_risk.level"));
            }
            (1, FieldValue::Varint(n)) => level = Some(n),
            (2, FieldValue::Len(b)) => {
                let part = text(b, "area_risk.path", limits::PATH_PART_BYTES_MAX)?;
                if part.is_empty() || part.chars().any(char::is_control) {
                    return Err(Refusal::new(
                        Reason::PathInvalid,
                        format!("area_risk.path[{parts}]"),
                    ));
                }
                parts += 1;
            }
            _ => return Err(unknown(&field, "area_risk")),
        }
    }
    if parts == 0 || parts > limits::PATH_PARTS_MAX {
        return Err(
            Refusal::new(Reason::PathInvalid, "area_risk.path").detail(format!("{parts} parts"))
        );
    }
    Ok(ValueView::AreaRisk {
        level: word(
            level.unwrap_or(0),
            "area_risk.level",
            RiskLevel::from_number,
        )?,
        path: PathView(bytes),
    })
}

/// The path of an area whose value was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathView<'a>(&'a [u8]);

impl<'a> PathView<'a> {
    pub fn parts(&self) -> impl Iterator<Item = &'a str> {
        let mut reader = Reader::new(self.0);
        std::iter::from_fn(move || {
            while let Ok(Some(field)) = reader.field() {
                if let (2, FieldValue::Len(b)) = (field.number, field.value) {
                    return std::str::from_utf8(b).ok();
                }
            }
            None
        })
    }
}

fn trace_context(bytes: &[u8]) -> Result<TraceContext> {
    TraceContext::from_slice(bytes).ok_or_else(|| {
        Refusal::new(Reason::ValueOutOfRange, "trace")
            .detail("16 bytes of a trace and 8 of a span, neither all zero")
    })
}

/// Which fields of a message were seen: a field that stands twice means different things to
/// different readers, so it is refused.
#[derive(Default)]
struct Seen(u32);

impl Seen {
    #[inline]
    fn once(&mut self, field: &Field<'_>, name: impl Fn(u32) -> &'static str) -> Result<()> {
        let bit = 1u32.checked_shl(field.number).unwrap_or(0);
        if self.0 & bit != 0 {
            return Err(Refusal::new(Reason::FieldRepeated, name(field.number)));
        }
        self.0 |= bit;
        Ok(())
    }
}

fn delta_field(number: u32) -> &'static str {
    match number {
        1 => "entity",
        2 => "revision",
        3 => "committed_at_us",
        4 => "expires_at_us",
        5 => "provenance",
        6 => "evidence",
        7 => "trace",
        10..=31 => "value",
        _ => "",
    }
}

fn provenance_field(number: u32) -> &'static str {
    match number {
        1 => "authority",
        2 => "rule_id",
        3 => "rule_version",
        4 => "reason",
        _ => "",
    }
}

#[cold]
fn unknown(field: &Field<'_>, name: &str) -> Refusal {
    Refusal::new(Reason::FieldUnknown, name)
        .detail(format!("field number {} of this wire type", field.number))
}

#[inline]
fn word<T>(number: u64, field: &'static str, known: impl Fn(u64) -> Option<T>) -> Result<T> {
    known(number).ok_or_else(|| match number {
        0 => Refusal::new(Reason::EnumUnspecified, field),
        n => Refusal::new(Reason::EnumUnknown, field).detail(format!("value {}", n as i64)),
    })
}

#[inline]
fn text<'a>(bytes: &'a [u8], field: &'static str, max: usize) -> Result<&'a str> {
    if bytes.len() > max {
        return Err(Refusal::new(Reason::StringTooLong, field)
            .detail(format!("{} bytes, at most {max}", bytes.len())));
    }
    std::str::from_utf8(bytes).map_err(|_| Refusal::new(Reason::StringNotUtf8, field))
}

/// The issuer that a batch names, if it is a possible code.
pub fn issuer_of(batch: &BatchView<'_>) -> Option<Issuer> {
    Issuer::new(batch.issuer)
}
