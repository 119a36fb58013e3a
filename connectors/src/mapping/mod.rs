//! From a raw row to a delta, by the tables of the configuration: field by field, word by word.
//! Nothing is guessed: what has no mapping is refused with its reason and field.
//!
//! An ID number is replaced by its pseudonym here and goes no further.

mod config;
mod fields;
mod rules;
pub mod times;
mod words;

pub use config::{MappingSettings, ProvenanceDefaults};
pub use fields::FieldPath;
pub use rules::{EntityRule, Expiry, ProvenanceRule, Rule, TimeRule, ValueRule, When};
pub use words::{Word, Words};

use crate::{
    pseudonym::Pseudonymiser,
    source::{SourceRow, UNREADABLE},
};
use hutong_proto::{
    Delta, Micros, Provenance, Reason, Refusal, Revision, area,
    batch::{DeltaView, ProvenanceView},
};
use serde_json::{Map, Value};
use std::{collections::HashMap, sync::Arc};

/// Different provenances kept for sharing; a platform has a few dozen rules.
const PROVENANCES_KEPT: usize = 1024;

/// Why a row did not become a delta. The message may quote the row, so it goes into the dead letters
/// and never into a log; reason and field may go anywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at {field}: {message}")]
pub struct Refused {
    /// Of the catalogue of the wire, or one of FIELD_MISSING, VALUE_UNMAPPED, VALUE_INVALID,
    /// TIME_INVALID, ID_NUMBER_INVALID, KIND_UNMAPPED, FILE_UNREADABLE.
    pub reason: &'static str,
    /// As the row names it; of what is only checked after mapping, as the wire names it.
    pub field: String,
    pub message: String,
}

/// A delta, and how many bytes it takes in a batch, roughly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    pub delta: Delta,
    pub bytes: usize,
}

/// Maps rows by its rules; the first one that is meant for a row is the one.
#[derive(Debug)]
pub struct Mapper {
    rules: Vec<Rule>,
    defaults: ProvenanceDefaults,
    pseudonyms: Option<Pseudonymiser>,
    provenances: HashMap<Provenance, Arc<Provenance>>,
    scratch: Vec<u8>,
}

impl Mapper {
    /// `pseudonyms` must be there if a rule takes ID numbers; the configuration sees to it.
    pub fn new(settings: MappingSettings, pseudonyms: Option<Pseudonymiser>) -> Mapper {
        Mapper {
            rules: settings.rules,
            defaults: settings.defaults,
            pseudonyms,
            provenances: HashMap::new(),
            scratch: Vec::new(),
        }
    }

    pub fn map(&mut self, row: &SourceRow) -> Result<Mapped, Refused> {
        if let Some(why) = row.fields.get(UNREADABLE) {
            return Err(Refused {
                reason: "FILE_UNREADABLE",
                field: String::new(),
                message: format!(
                    "{}; when it is mended, give it to the source again under a new name",
                    why.as_str().unwrap_or_default()
                ),
            });
        }
        let rule = self
            .rules
            .iter()
            .find(|rule| {
                rule.when
                    .as_ref()
                    .is_none_or(|when| when.holds(&row.fields))
            })
            .ok_or_else(|| Refused {
                reason: "KIND_UNMAPPED",
                field: String::new(),
                message: "no [[mapping]] is meant for this row; see its `when`".to_owned(),
            })?;
        let fields = &row.fields;
        let (entity, path) = rule.entity.read(fields, self.pseudonyms.as_ref())?;
        let committed_at = match &rule.committed_at {
            Some(time) => time.read(fields)?,
            None => row.committed_at,
        };
        let provenance = rule.provenance.read(fields, &self.defaults)?;
        let delta = Delta {
            entity,
            revision: match planted!(MappingRevision) {
                true => Revision(committed_at.0),
                false => row.revision,
            },
            committed_at,
            expires_at: rule.expires.read(fields, committed_at)?,
            evidence: rule.evidence(fields)?,
            provenance: share(&mut self.provenances, provenance)?,
            value: rule.value.read(fields, path)?,
        };
        let bytes = check(&delta, &mut self.scratch)?;
        Ok(Mapped { delta, bytes })
    }
}

fn share(
    kept: &mut HashMap<Provenance, Arc<Provenance>>,
    provenance: Provenance,
) -> Result<Arc<Provenance>, Refused> {
    if let Some(shared) = kept.get(&provenance) {
        return Ok(Arc::clone(shared));
    }
    ProvenanceView::parse(&provenance.encode()).map_err(|e| refused(e.within("provenance")))?;
    if kept.len() >= PROVENANCES_KEPT {
        kept.clear();
    }
    let shared = Arc::new(provenance.clone());
    kept.insert(provenance, Arc::clone(&shared));
    Ok(shared)
}

/// What the broker would refuse is refused here already, by the same code: a sample shows it, too.
fn check(delta: &Delta, scratch: &mut Vec<u8>) -> Result<usize, Refused> {
    scratch.clear();
    delta.encode(0, scratch);
    DeltaView::parse(scratch).map_err(refused)?;
    if delta.expires_at != Micros::ZERO && delta.expires_at <= delta.committed_at {
        return Err(refused(Refusal::new(
            Reason::ExpiryBeforeCommit,
            "expires_at_us",
        )));
    }
    // Tag and length of the field that the delta stands in.
    Ok(scratch.len() + 4)
}

fn refused(refusal: Refusal) -> Refused {
    Refused {
        reason: refusal.reason.code(),
        message: refusal.message(),
        field: refusal.field,
    }
}

type Fields = Map<String, Value>;
