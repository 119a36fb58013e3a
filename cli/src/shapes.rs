//! The stable JSON of `--output json` and of `publish` and `tail`: documented in cli/README.md, names
//! never change their meaning. Values are converted from the wire here and nowhere else.

use hutong_proto::{
    EntityId, Issuer, Kind, Lane, Micros, Provenance, Revision, Value,
    api::{self, delta::Value as ApiValue},
    area,
    delta::{Colour, Delta, RiskLevel, TestOutcome},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One delta, as `publish` reads it and `tail` and `get` write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaShape {
    /// The platform that issued it; written by `tail` and `get`. `publish` takes only its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<u32>,
    /// Position in the log; written by `tail` and `get`, ignored by `publish`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// When the broker made it durable; written by `tail`, ignored by `publish`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable_at_us: Option<u64>,
    /// 32 hexadecimal digits. May be left out for an area: it is the hash of the path.
    #[serde(default)]
    pub entity: String,
    /// Left out on input: the moment of reading, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Left out on input: the moment of reading.
    #[serde(default)]
    pub committed_at_us: u64,
    /// 0 for never.
    #[serde(default)]
    pub expires_at_us: u64,
    #[serde(default)]
    pub evidence: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<ProvenanceShape>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_code: Option<HealthCodeShape>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_result: Option<TestResultShape>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vaccination: Option<VaccinationShape>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub area_risk: Option<AreaRiskShape>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvenanceShape {
    pub authority: String,
    pub rule_id: String,
    pub rule_version: u32,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCodeShape {
    /// `green`, `yellow` or `red`.
    pub colour: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestResultShape {
    /// `negative`, `positive` or `inconclusive`.
    pub outcome: String,
    #[serde(default)]
    pub sampled_at_us: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaccinationShape {
    pub doses: u32,
    #[serde(default)]
    pub product: String,
    #[serde(default)]
    pub vaccinated_at_us: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AreaRiskShape {
    /// `low`, `middle`, `high` or `cleared`.
    pub level: String,
    /// Province, city, county, community.
    pub path: Vec<String>,
}

/// Why a line of JSON is not a delta: the field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ShapeError {
    pub field: &'static str,
    pub problem: String,
}

fn wrong(field: &'static str, problem: impl Into<String>) -> ShapeError {
    ShapeError {
        field,
        problem: problem.into(),
    }
}

fn word<T>(
    field: &'static str,
    text: &str,
    known: impl Fn(&str) -> Option<T>,
    words: &str,
) -> Result<T, ShapeError> {
    known(text).ok_or_else(|| wrong(field, format!("{text:?} is none of {words}")))
}

impl DeltaShape {
    /// Reads what stands on one line, to be published as `own`. `now` fills the times that were left
    /// out.
    pub fn parse(line: &str, own: Issuer, now: Micros) -> Result<Delta, ShapeError> {
        let shape: DeltaShape =
            serde_json::from_str(line).map_err(|e| wrong("line", e.to_string()))?;
        // What another platform said must not become our own word by the way.
        match shape.issuer {
            Some(code) if code != own.code() => Err(wrong(
                "issuer",
                format!("{code} said this, and {own} publishes; leave it out to say it yourself"),
            )),
            _ => shape.into_delta(now),
        }
    }

    fn into_delta(self, now: Micros) -> Result<Delta, ShapeError> {
        let value = self.value()?;
        let entity = match (&value, self.entity.as_str()) {
            (Value::AreaRisk { path, .. }, "") => area::entity(path.iter().map(String::as_str)),
            (_, text) => text.parse().map_err(|e: String| wrong("entity", e))?,
        };
        let provenance = self.provenance.ok_or_else(|| {
            wrong(
                "provenance",
                "missing; authority, rule_id, rule_version and reason are required",
            )
        })?;
        let or_now = |us: u64| if us == 0 { now.0 } else { us };
        Ok(Delta {
            entity,
            revision: Revision(self.revision.unwrap_or(now.0)),
            committed_at: Micros(or_now(self.committed_at_us)),
            expires_at: Micros(self.expires_at_us),
            evidence: self.evidence,
            provenance: Arc::new(Provenance {
                authority: provenance.authority,
                rule_id: provenance.rule_id,
                rule_version: provenance.rule_version,
                reason: provenance.reason,
            }),
            value,
        })
    }

    fn value(&self) -> Result<Value, ShapeError> {
        let mut values = Vec::new();
        if let Some(v) = &self.health_code {
            let colour = word(
                "health_code.colour",
                &v.colour,
                Colour::from_name,
                "green, yellow, red",
            )?;
            values.push(Value::HealthCode(colour));
        }
        if let Some(v) = &self.test_result {
            values.push(Value::TestResult {
                outcome: word(
                    "test_result.outcome",
                    &v.outcome,
                    TestOutcome::from_name,
                    "negative, positive, inconclusive",
                )?,
                sampled_at: Micros(v.sampled_at_us),
            });
        }
        if let Some(v) = &self.vaccination {
            values.push(Value::Vaccination {
                doses: v.doses,
                product: v.product.clone(),
                vaccinated_at: Micros(v.vaccinated_at_us),
            });
        }
        if let Some(v) = &self.area_risk {
            values.push(Value::AreaRisk {
                level: word(
                    "area_risk.level",
                    &v.level,
                    RiskLevel::from_name,
                    "low, middle, high, cleared",
                )?,
                path: v.path.clone(),
            });
        }
        match values.len() {
            1 => Ok(values.remove(0)),
            n => Err(wrong(
                "value",
                format!(
                    "{n} values; exactly one of health_code, test_result, vaccination, area_risk"
                ),
            )),
        }
    }

    pub fn from_delta(delta: &Delta) -> DeltaShape {
        let mut shape = DeltaShape {
            entity: delta.entity.to_string(),
            revision: Some(delta.revision.0),
            committed_at_us: delta.committed_at.0,
            expires_at_us: delta.expires_at.0,
            evidence: delta.evidence.clone(),
            provenance: Some(ProvenanceShape {
                authority: delta.provenance.authority.clone(),
                rule_id: delta.provenance.rule_id.clone(),
                rule_version: delta.provenance.rule_version,
                reason: delta.provenance.reason.clone(),
            }),
            ..DeltaShape::default()
        };
        shape.set_value(&delta.value);
        shape
    }

    fn set_value(&mut self, value: &Value) {
        match value {
            Value::HealthCode(colour) => {
                self.health_code = Some(HealthCodeShape {
                    colour: colour.name().to_owned(),
                });
            }
            Value::TestResult {
                outcome,
                sampled_at,
            } => {
                self.test_result = Some(TestResultShape {
                    outcome: outcome.name().to_owned(),
                    sampled_at_us: sampled_at.0,
                });
            }
            Value::Vaccination {
                doses,
                product,
                vaccinated_at,
            } => {
                self.vaccination = Some(VaccinationShape {
                    doses: *doses,
                    product: product.clone(),
                    vaccinated_at_us: vaccinated_at.0,
                });
            }
            Value::AreaRisk { level, path } => {
                self.area_risk = Some(AreaRiskShape {
                    level: level.name().to_owned(),
                    path: path.clone(),
                });
            }
        }
    }

    /// A delta that the broker sent in answer to a question. What this command does not know yet is
    /// left out rather than guessed.
    pub fn from_api(delta: &api::Delta, provenance: Option<&api::Provenance>) -> DeltaShape {
        let mut shape = DeltaShape {
            entity: entity_hex(&delta.entity),
            revision: Some(delta.revision),
            committed_at_us: delta.committed_at_us,
            expires_at_us: delta.expires_at_us,
            evidence: delta.evidence.clone(),
            provenance: provenance.map(|p| ProvenanceShape {
                authority: p.authority.clone(),
                rule_id: p.rule_id.clone(),
                rule_version: p.rule_version,
                reason: p.reason.clone(),
            }),
            ..DeltaShape::default()
        };
        if let Some(value) = delta.value.as_ref().and_then(value_from_api) {
            shape.set_value(&value);
        }
        shape
    }

    /// The value in a few words, for a table.
    pub fn value_text(&self) -> String {
        if let Some(v) = &self.health_code {
            v.colour.clone()
        } else if let Some(v) = &self.test_result {
            v.outcome.clone()
        } else if let Some(v) = &self.vaccination {
            match v.product.as_str() {
                "" => format!("{} doses", v.doses),
                product => format!("{} doses of {product}", v.doses),
            }
        } else if let Some(v) = &self.area_risk {
            format!("{} {}", v.level, v.path.join("/"))
        } else {
            "?".to_owned()
        }
    }

    pub fn kind_text(&self) -> &'static str {
        if self.health_code.is_some() {
            Kind::HealthCode.name()
        } else if self.test_result.is_some() {
            Kind::TestResult.name()
        } else if self.vaccination.is_some() {
            Kind::Vaccination.name()
        } else if self.area_risk.is_some() {
            Kind::AreaRisk.name()
        } else {
            "?"
        }
    }
}

fn value_from_api(value: &ApiValue) -> Option<Value> {
    Some(match value {
        ApiValue::HealthCode(v) => Value::HealthCode(Colour::from_number(v.colour as u64)?),
        ApiValue::TestResult(v) => Value::TestResult {
            outcome: TestOutcome::from_number(v.outcome as u64)?,
            sampled_at: Micros(v.sampled_at_us),
        },
        ApiValue::Vaccination(v) => Value::Vaccination {
            doses: v.doses,
            product: v.product.clone(),
            vaccinated_at: Micros(v.vaccinated_at_us),
        },
        ApiValue::AreaRisk(v) => Value::AreaRisk {
            level: RiskLevel::from_number(v.level as u64)?,
            path: v.path.clone(),
        },
    })
}

pub fn entity_hex(bytes: &[u8]) -> String {
    match EntityId::from_slice(bytes) {
        Some(entity) => entity.to_string(),
        None => "?".to_owned(),
    }
}

pub fn lane_name(number: i32) -> &'static str {
    Lane::from_number(number as u64).map_or("?", Lane::name)
}

pub fn kind_name(number: i32) -> &'static str {
    Kind::from_number(number as u64).map_or("?", Kind::name)
}

/// A cursor as `LOG:URGENT/BULK`, the form that `tail --from` takes.
pub fn cursor_text(cursor: Option<&api::Cursor>) -> String {
    match cursor {
        Some(c) => format!("{:016x}:{}/{}", c.log_id, c.urgent, c.bulk),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"entity":"000102030405060708090a0b0c0d0e0f","revision":7,
        "committed_at_us":1650000000000000,"provenance":{"authority":"A","rule_id":"R",
        "rule_version":1,"reason":"x"},"health_code":{"colour":"green"}}"#;

    fn own() -> Issuer {
        Issuer::new(340_000).expect("six digits")
    }

    #[test]
    fn what_another_platform_said_is_not_published_as_ones_own() {
        let of = |code: u32| LINE.replacen('{', &format!("{{\"issuer\":{code},"), 1);
        assert!(DeltaShape::parse(&of(340_000), own(), Micros(5)).is_ok());
        let error = DeltaShape::parse(&of(510_000), own(), Micros(5)).expect_err("another's");
        assert_eq!(error.field, "issuer");
    }

    #[test]
    fn a_revision_of_zero_is_not_one_that_was_left_out() {
        let zero = LINE.replace("\"revision\":7", "\"revision\":0");
        let delta = DeltaShape::parse(&zero, own(), Micros(5)).expect("the broker refuses it");
        assert_eq!(delta.revision, Revision(0));
    }

    #[test]
    fn a_line_is_read_and_written_back_the_same() {
        let delta = DeltaShape::parse(LINE, own(), Micros(5)).expect("valid");
        assert_eq!(delta.revision, Revision(7));
        let text = serde_json::to_string(&DeltaShape::from_delta(&delta)).expect("json");
        assert_eq!(DeltaShape::parse(&text, own(), Micros(5)), Ok(delta));
    }

    #[test]
    fn the_written_names_are_the_documented_ones() {
        let delta = DeltaShape::parse(LINE, own(), Micros(5)).expect("valid");
        let text = serde_json::to_string(&DeltaShape::from_delta(&delta)).expect("json");
        assert_eq!(
            text,
            r#"{"entity":"000102030405060708090a0b0c0d0e0f","revision":7,"committed_at_us":1650000000000000,"expires_at_us":0,"evidence":"","provenance":{"authority":"A","rule_id":"R","rule_version":1,"reason":"x"},"health_code":{"colour":"green"}}"#
        );
    }

    #[test]
    fn what_was_left_out_is_filled_with_now_and_the_hash_of_the_path() {
        let line = r#"{"provenance":{"authority":"A","rule_id":"R","rule_version":1,"reason":"x"},
            "area_risk":{"level":"high","path":["安徽省","宿州市"]}}"#;
        let delta = DeltaShape::parse(line, own(), Micros(42)).expect("valid");
        assert_eq!(delta.revision, Revision(42));
        assert_eq!(delta.committed_at, Micros(42));
        assert_eq!(delta.entity, area::entity(["安徽省", "宿州市"]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field() {
        for (line, expected) in [
            ("{", "line: EOF while parsing"),
            (r#"{"colour":1}"#, "line: unknown field `colour`"),
            (r#"{"entity":"00"}"#, "value: 0 values"),
            (
                r#"{"health_code":{"colour":"blue"}}"#,
                "health_code.colour: \"blue\" is none of",
            ),
            (
                r#"{"entity":"zz","health_code":{"colour":"red"}}"#,
                "entity: \"zz\" is not",
            ),
            (
                r#"{"entity":"000102030405060708090a0b0c0d0e0f","health_code":{"colour":"red"}}"#,
                "provenance: missing",
            ),
        ] {
            let error = DeltaShape::parse(line, own(), Micros(1))
                .expect_err("wrong")
                .to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
