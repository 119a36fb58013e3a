//! Deltas as columns for `unnest`. No IO.

use crate::{client::Delivered, sink::SinkError, sinks::value::to_json};
use hutong_proto::{EntityId, Issuer, Kind, Micros, Value};
use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio_postgres::types::ToSql;

/// Keeps the newest delta of each register, in the order in which they came: a statement may not
/// write a row twice.
pub(super) fn newest(deltas: &[Delivered]) -> Vec<&Delivered> {
    let mut places: HashMap<(EntityId, Kind, Issuer), usize> = HashMap::with_capacity(deltas.len());
    let mut newest: Vec<&Delivered> = Vec::with_capacity(deltas.len());
    for delivered in deltas {
        let register = (
            delivered.delta.entity,
            delivered.delta.value.kind(),
            delivered.issuer,
        );
        let place = *places.entry(register).or_insert(newest.len());
        match newest.get_mut(place) {
            Some(kept) if kept.delta.revision < delivered.delta.revision => *kept = delivered,
            Some(_) => {}
            None => newest.push(delivered),
        }
    }
    newest
}

/// One list a column.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub entity: Vec<Vec<u8>>,
    pub kind: Vec<&'static str>,
    pub issuer: Vec<i32>,
    revision: Vec<i64>,
    status: Vec<Option<&'static str>>,
    value: Vec<serde_json::Value>,
    path: Vec<Option<String>>,
    committed_at: Vec<SystemTime>,
    expires_at: Vec<Option<SystemTime>>,
    authority: Vec<String>,
    rule_id: Vec<String>,
    rule_version: Vec<i64>,
    reason: Vec<String>,
    evidence: Vec<String>,
    log_offset: Vec<Option<i64>>,
    durable_at: Vec<Option<SystemTime>>,
}

/// As [`Columns::parameters`] gives them, with the types of their lists and what makes a list's item a
/// column's value.
pub(super) const COLUMNS: [(&str, &str, &str); 16] = [
    ("entity", "bytea[]", ""),
    ("kind", "text[]", ""),
    ("issuer", "int[]", ""),
    ("revision", "bigint[]", ""),
    ("status", "text[]", ""),
    ("value", "jsonb[]", ""),
    // A list of lists of different lengths is no array, so each comes as the text of one.
    ("path", "text[]", "::text[]"),
    ("committed_at", "timestamptz[]", ""),
    ("expires_at", "timestamptz[]", ""),
    ("authority", "text[]", ""),
    ("rule_id", "text[]", ""),
    ("rule_version", "bigint[]", ""),
    ("reason", "text[]", ""),
    ("evidence", "text[]", ""),
    ("log_offset", "bigint[]", ""),
    ("durable_at", "timestamptz[]", ""),
];

impl Columns {
    pub fn of(deltas: &[&Delivered]) -> Result<Columns, SinkError> {
        let mut columns = Columns::default();
        for delivered in deltas {
            columns.push(delivered)?;
        }
        Ok(columns)
    }

    fn push(&mut self, delivered: &Delivered) -> Result<(), SinkError> {
        let (delta, provenance) = (&delivered.delta, &delivered.delta.provenance);
        self.entity.push(delta.entity.0.to_vec());
        self.kind.push(delta.value.kind().name());
        self.issuer
            .push(i32::try_from(delivered.issuer.code()).expect("six digits"));
        self.revision
            .push(signed(delta.revision.0, "revision", delivered)?);
        self.status.push(status(&delta.value));
        self.value.push(value(&delta.value));
        self.path.push(path(&delta.value));
        self.committed_at
            .push(time(delta.committed_at).unwrap_or(UNIX_EPOCH));
        self.expires_at.push(time(delta.expires_at));
        self.authority.push(text(&provenance.authority));
        self.rule_id.push(text(&provenance.rule_id));
        self.rule_version.push(i64::from(provenance.rule_version));
        self.reason.push(text(&provenance.reason));
        self.evidence.push(text(&delta.evidence));
        let offset = signed(delivered.offset.0, "offset", delivered)?;
        self.log_offset.push((offset > 0).then_some(offset));
        self.durable_at.push(time(delivered.durable_at));
        Ok(())
    }

    /// In the order of [`COLUMNS`].
    pub fn parameters(&self) -> [&(dyn ToSql + Sync); 16] {
        [
            &self.entity,
            &self.kind,
            &self.issuer,
            &self.revision,
            &self.status,
            &self.value,
            &self.path,
            &self.committed_at,
            &self.expires_at,
            &self.authority,
            &self.rule_id,
            &self.rule_version,
            &self.reason,
            &self.evidence,
            &self.log_offset,
            &self.durable_at,
        ]
    }
}

/// PostgreSQL has no unsigned integers.
fn signed(number: u64, what: &str, delivered: &Delivered) -> Result<i64, SinkError> {
    i64::try_from(number).map_err(|_| {
        SinkError::lasting(format!(
            "{what} {number} of a {} of issuer {}, record {}: a bigint ends at {}; its issuer has to use \
             smaller revisions",
            delivered.delta.value.kind(),
            delivered.issuer,
            delivered.offset,
            i64::MAX
        ))
    })
}

/// PostgreSQL has no NUL in texts; one that comes is shown as U+FFFD instead of stopping everything.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn time(at: Micros) -> Option<SystemTime> {
    (at != Micros::ZERO).then(|| UNIX_EPOCH + Duration::from_micros(at.0))
}

/// What people look for first: the colour, the outcome, the level.
fn status(value: &Value) -> Option<&'static str> {
    match value {
        Value::HealthCode(colour) => Some(colour.name()),
        Value::TestResult { outcome, .. } => Some(outcome.name()),
        Value::Vaccination { .. } => None,
        Value::AreaRisk { level, .. } => Some(level.name()),
    }
}

/// A jsonb has no NUL in its texts either.
fn value(value: &Value) -> serde_json::Value {
    match value {
        Value::Vaccination {
            doses,
            product,
            vaccinated_at,
        } if product.contains('\0') => to_json(&Value::Vaccination {
            doses: *doses,
            product: text(product),
            vaccinated_at: *vaccinated_at,
        }),
        // Parts of a path have no control characters.
        _ => to_json(value),
    }
}

/// An array as PostgreSQL writes it: every part in quotes.
fn path(value: &Value) -> Option<String> {
    let Value::AreaRisk { path, .. } = value else {
        return None;
    };
    let quoted = path.iter().map(|part| {
        format!(
            "\"{}\"",
            text(part).replace('\\', "\\\\").replace('"', "\\\"")
        )
    });
    Some(format!("{{{}}}", quoted.collect::<Vec<_>>().join(",")))
}
