//! `hutong-connect sample`: what the first rows become, without sending anything.

use super::{
    AnySource, CommandError, Format,
    output::{json, line, table, time},
    pseudonymiser, runtime,
};
use crate::{
    config::{Config, Work},
    mapping::Mapper,
    source::{Source, SourceRow},
};
use hutong_proto::{Delta, Value};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct SampleArgs {
    /// The connector's configuration.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How many rows at most.
    #[arg(long, default_value_t = 10, value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub rows: u16,
}

pub fn sample(config: Config, rows: u16, format: Format) -> Result<(), CommandError> {
    let Work::Source(work) = config.work else {
        let what = "a sink has no rows of its own; sample the file of a source";
        return Err(CommandError::Usage(what.to_owned()));
    };
    let pseudonyms = pseudonymiser(work.pseudonym.as_ref())?;
    let mut mapper = Mapper::new(work.mapping, pseudonyms);
    let mut source = AnySource::new(work.settings);
    let rows = runtime()?.block_on(source.sample(usize::from(rows)))?;
    match format {
        Format::Json => {
            let mapped: Vec<_> = rows.iter().map(|row| as_json(row, &mut mapper)).collect();
            json(&mapped)?;
        }
        Format::Table => {
            let mapped = rows.iter().map(|row| as_cells(row, &mut mapper)).collect();
            let head = [
                "PLACE",
                "ENTITY",
                "KIND",
                "VALUE",
                "REVISION",
                "COMMITTED",
                "EXPIRES",
            ];
            table(head, mapped)?;
            line(format!("{} rows; nothing was sent", rows.len()))?;
        }
    }
    Ok(())
}

fn as_json(row: &SourceRow, mapper: &mut Mapper) -> serde_json::Value {
    match mapper.map(row) {
        Ok(mapped) => json!({ "place": row.place, "delta": delta_json(&mapped.delta) }),
        Err(refused) => json!({ "place": row.place, "refused": {
            "reason": refused.reason, "field": refused.field, "message": refused.message,
        }}),
    }
}

fn delta_json(delta: &Delta) -> serde_json::Value {
    json!({
        "entity": delta.entity.to_string(),
        "kind": delta.value.kind().name(),
        "lane": delta.value.lane().name(),
        "value": value_json(&delta.value),
        "revision": delta.revision.0,
        "committed_at_us": delta.committed_at.0,
        "expires_at_us": delta.expires_at.0,
        "evidence": delta.evidence,
        "authority": delta.provenance.authority,
        "rule_id": delta.provenance.rule_id,
        "rule_version": delta.provenance.rule_version,
        "reason": delta.provenance.reason,
    })
}

fn value_json(value: &Value) -> serde_json::Value {
    match value {
        Value::HealthCode(colour) => json!({ "colour": colour.name() }),
        Value::TestResult {
            outcome,
            sampled_at,
        } => json!({ "outcome": outcome.name(), "sampled_at_us": sampled_at.0 }),
        Value::Vaccination {
            doses,
            product,
            vaccinated_at,
        } => json!({ "doses": doses, "product": product, "vaccinated_at_us": vaccinated_at.0 }),
        Value::AreaRisk { level, path } => json!({ "level": level.name(), "path": path }),
    }
}

fn as_cells(row: &SourceRow, mapper: &mut Mapper) -> [String; 7] {
    let delta = match mapper.map(row) {
        Ok(mapped) => mapped.delta,
        Err(refused) => {
            let blank = String::new;
            let why = format!("{} {}: {}", refused.reason, refused.field, refused.message);
            let cells = [blank(), blank(), blank()];
            let [a, b, c] = cells;
            return [
                row.place.clone(),
                "REFUSED".to_owned(),
                blank(),
                why,
                a,
                b,
                c,
            ];
        }
    };
    let value = match &delta.value {
        Value::HealthCode(colour) => colour.to_string(),
        Value::TestResult {
            outcome,
            sampled_at,
        } => format!("{outcome}, sampled {}", time(sampled_at.0)),
        Value::Vaccination { doses, product, .. } => format!("{doses} doses {product}"),
        Value::AreaRisk { level, path } => format!("{level} {}", path.join("/")),
    };
    [
        row.place.clone(),
        delta.entity.to_string(),
        delta.value.kind().to_string(),
        value,
        delta.revision.to_string(),
        time(delta.committed_at.0),
        time(delta.expires_at.0),
    ]
}
