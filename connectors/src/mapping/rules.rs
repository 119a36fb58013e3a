//! The rules of one kind of row.

use super::{
    FieldPath, Fields, ProvenanceDefaults, Refused, Word, area, fields::Origin, times::TimeReader,
    words::scalar,
};
use crate::pseudonym::Pseudonymiser;
use hutong_config::Scalar;
use hutong_proto::{
    EntityId, Kind, Micros, Provenance, Value,
    delta::{Colour, RiskLevel, TestOutcome},
};
use std::time::Duration;

/// How rows become deltas of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `None`: for every row.
    pub when: Option<When>,
    pub entity: EntityRule,
    pub value: ValueRule,
    /// `None`: the time that the source says.
    pub committed_at: Option<TimeRule>,
    pub expires: Expiry,
    pub evidence: Option<Origin<String>>,
    pub provenance: ProvenanceRule,
}

/// Which rows a rule is meant for: those whose field has one of some values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct When {
    pub field: FieldPath,
    pub values: Vec<Scalar>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntityRule {
    /// A person, by an ID number that becomes a pseudonym here.
    IdNumber(FieldPath),
    /// A person, by a pseudonym of 32 hexadecimal digits that the source made with the same key.
    Pseudonym(FieldPath),
    /// An area, by the parts of its path: texts, or lists of texts.
    Area(Vec<FieldPath>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueRule {
    HealthCode {
        colour: Word<Colour>,
    },
    TestResult {
        outcome: Word<TestOutcome>,
        sampled_at: TimeRule,
    },
    Vaccination {
        doses: Origin<u32>,
        product: Option<Origin<String>>,
        vaccinated_at: TimeRule,
    },
    AreaRisk {
        level: Word<RiskLevel>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeRule {
    pub field: FieldPath,
    pub reader: TimeReader,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expiry {
    Never,
    /// After the commit.
    After(Duration),
    At {
        time: TimeRule,
        /// May the field be absent?
        or_never: bool,
    },
}

/// Fields that say it for each row; what is not there comes from the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProvenanceRule {
    pub authority: Option<FieldPath>,
    pub rule_id: Option<FieldPath>,
    pub rule_version: Option<FieldPath>,
    pub reason: Option<FieldPath>,
}

impl When {
    pub fn holds(&self, fields: &Fields) -> bool {
        let value = self.field.find(fields).and_then(scalar);
        value.is_some_and(|value| self.values.contains(&value))
    }
}

impl Rule {
    pub(super) fn evidence(&self, fields: &Fields) -> Result<String, Refused> {
        match &self.evidence {
            Some(from) => from.text_or_empty(fields),
            None => Ok(String::new()),
        }
    }
}

impl EntityRule {
    /// The entity and, of an area, its path.
    pub(super) fn read(
        &self,
        fields: &Fields,
        pseudonyms: Option<&Pseudonymiser>,
    ) -> Result<(EntityId, Vec<String>), Refused> {
        match self {
            EntityRule::IdNumber(field) => {
                let entity = person(field, fields, pseudonyms)?;
                Ok((entity, Vec::new()))
            }
            EntityRule::Pseudonym(field) => {
                let wrong = || field.invalid("the pseudonym is not 32 hexadecimal digits");
                let text = field.require(fields)?.as_str().ok_or_else(wrong)?;
                let entity = text.trim().parse().map_err(|_| wrong())?;
                Ok((entity, Vec::new()))
            }
            EntityRule::Area(parts) => {
                let path = area_path(parts, fields)?;
                Ok((area::entity(path.iter().map(String::as_str)), path))
            }
        }
    }
}

/// No message here says what the field holds.
fn person(
    field: &FieldPath,
    fields: &Fields,
    pseudonyms: Option<&Pseudonymiser>,
) -> Result<EntityId, Refused> {
    let invalid = |message: String| Refused {
        reason: "ID_NUMBER_INVALID",
        field: field.to_string(),
        message,
    };
    let number = field.require(fields)?.as_str().ok_or_else(|| {
        invalid("the ID number is no text; a number loses leading zeros and the X".to_owned())
    })?;
    let pseudonyms =
        pseudonyms.ok_or_else(|| invalid("no [pseudonym] key is configured".into()))?;
    pseudonyms
        .person(number)
        .map_err(|e| invalid(e.to_string()))
}

fn area_path(parts: &[FieldPath], fields: &Fields) -> Result<Vec<String>, Refused> {
    let mut path = Vec::with_capacity(parts.len());
    for field in parts {
        let value = field.require(fields)?;
        let no_text = || field.invalid("a part of an area's path is no text");
        match value {
            serde_json::Value::Array(items) => {
                for item in items {
                    path.push(item.as_str().ok_or_else(no_text)?.to_owned());
                }
            }
            value => path.push(value.as_str().ok_or_else(no_text)?.to_owned()),
        }
    }
    Ok(path)
}

impl ValueRule {
    pub fn kind(&self) -> Kind {
        match self {
            ValueRule::HealthCode { .. } => Kind::HealthCode,
            ValueRule::TestResult { .. } => Kind::TestResult,
            ValueRule::Vaccination { .. } => Kind::Vaccination,
            ValueRule::AreaRisk { .. } => Kind::AreaRisk,
        }
    }

    pub(super) fn read(&self, fields: &Fields, path: Vec<String>) -> Result<Value, Refused> {
        Ok(match self {
            ValueRule::HealthCode { colour } => Value::HealthCode(colour.read(fields)?),
            ValueRule::TestResult {
                outcome,
                sampled_at,
            } => Value::TestResult {
                outcome: outcome.read(fields)?,
                sampled_at: sampled_at.read(fields)?,
            },
            ValueRule::Vaccination {
                doses,
                product,
                vaccinated_at,
            } => Value::Vaccination {
                doses: doses.number(fields)?,
                product: match product {
                    Some(from) => from.text_or_empty(fields)?,
                    None => String::new(),
                },
                vaccinated_at: vaccinated_at.read(fields)?,
            },
            ValueRule::AreaRisk { level } => Value::AreaRisk {
                level: level.read(fields)?,
                path,
            },
        })
    }
}

impl TimeRule {
    pub(super) fn read(&self, fields: &Fields) -> Result<Micros, Refused> {
        self.read_value(self.field.require(fields)?)
    }

    fn read_value(&self, value: &serde_json::Value) -> Result<Micros, Refused> {
        self.reader.read(value).map_err(|message| Refused {
            reason: "TIME_INVALID",
            field: self.field.to_string(),
            message,
        })
    }
}

impl Expiry {
    pub(super) fn read(&self, fields: &Fields, committed_at: Micros) -> Result<Micros, Refused> {
        match self {
            Expiry::Never => Ok(Micros::ZERO),
            Expiry::After(duration) => {
                let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
                Ok(Micros(committed_at.0.saturating_add(us)))
            }
            Expiry::At { time, or_never } => match time.field.find(fields) {
                Some(value) => time.read_value(value),
                None if *or_never => Ok(Micros::ZERO),
                None => time.read(fields),
            },
        }
    }
}

impl ProvenanceRule {
    pub(super) fn read(
        &self,
        fields: &Fields,
        defaults: &ProvenanceDefaults,
    ) -> Result<Provenance, Refused> {
        let text = |field: &Option<FieldPath>, default: &Option<String>, name: &str| {
            if let Some(field) = field
                && let Some(value) = field.find(fields)
            {
                return field.text(value);
            }
            default.clone().ok_or_else(|| missing(field.as_ref(), name))
        };
        let rule_version = match &self.rule_version {
            Some(field) if field.find(fields).is_some() => field.number(field.require(fields)?)?,
            field => defaults
                .rule_version
                .ok_or_else(|| missing(field.as_ref(), "rule_version"))?,
        };
        Ok(Provenance {
            authority: text(&self.authority, &defaults.authority, "authority")?,
            rule_id: text(&self.rule_id, &defaults.rule_id, "rule_id")?,
            rule_version,
            reason: text(&self.reason, &defaults.reason, "reason")?,
        })
    }
}

fn missing(field: Option<&FieldPath>, name: &str) -> Refused {
    Refused {
        reason: "FIELD_MISSING",
        field: field.map_or_else(|| format!("provenance.{name}"), FieldPath::to_string),
        message: format!("neither the row nor [provenance] says the {name} of this decision"),
    }
}
