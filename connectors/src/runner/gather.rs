//! Gathers what goes into one batch of a lane, in the order of the source.

use crate::source::SourceRow;
use hutong_proto::{Delta, EntityId, Kind, Provenance};
use serde_json::Value;
use std::sync::Arc;

/// Of one batch. Larger ones cost latency and gain nothing.
pub(super) const DELTAS_MAX: usize = 2_000;
pub(super) const BYTES_MAX: usize = 1 << 20;
/// Well below what the wire allows.
pub(super) const PROVENANCES_MAX: usize = 512;

/// What order is kept for; its issuer is always the same.
pub(super) type Register = (EntityId, Kind);

/// A batch, with the rows that it came from.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// In its lane, from 1.
    pub number: u64,
    /// The urgent batch that must have arrived before this one may go; 0 is none.
    pub after: u64,
    pub deltas: Vec<Delta>,
    /// Of each delta.
    pub rows: Vec<SourceRow>,
    /// What the rows take in memory, about.
    pub memory_bytes: usize,
    bytes: usize,
    provenances: Vec<Arc<Provenance>>,
}

impl Batch {
    pub fn new(number: u64) -> Batch {
        Batch {
            number,
            ..Batch::default()
        }
    }

    pub fn is_empty(&self) -> bool {
        self.deltas.is_empty()
    }

    /// Must it go before anything else is gathered?
    pub fn is_full(&self) -> bool {
        self.deltas.len() >= DELTAS_MAX
            || self.bytes >= BYTES_MAX
            || self.provenances.len() >= PROVENANCES_MAX
    }

    /// `bytes` is what the delta takes in a batch.
    pub fn push(&mut self, row: SourceRow, delta: Delta, bytes: usize) {
        self.bytes += bytes;
        self.memory_bytes += bytes + memory_bytes(&row);
        let provenance = &delta.provenance;
        if !self.provenances.iter().rev().any(|p| p == provenance) {
            self.provenances.push(Arc::clone(provenance));
        }
        self.deltas.push(delta);
        self.rows.push(row);
    }
}

/// A row stays in memory until it is acknowledged: a dead letter would need it.
fn memory_bytes(row: &SourceRow) -> usize {
    let fields = row.fields.iter();
    let bytes = fields.map(|(name, value)| name.len() + value_bytes(value));
    size_of::<SourceRow>() + row.place.len() + bytes.sum::<usize>()
}

fn value_bytes(value: &Value) -> usize {
    // A name and a value in a map, with their share of its nodes.
    const ENTRY: usize = 2 * (size_of::<String>() + size_of::<Value>());
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => ENTRY,
        Value::String(text) => ENTRY + text.len(),
        Value::Array(values) => ENTRY + values.iter().map(value_bytes).sum::<usize>(),
        Value::Object(fields) => {
            let bytes = fields.iter().map(|(name, v)| name.len() + value_bytes(v));
            ENTRY + bytes.sum::<usize>()
        }
    }
}
