//! Gathers what goes into one batch, in the order of the source.

use crate::{
    dlq::NewLetter,
    mapping::{Mapper, Refused},
    source::SourceRow,
};
use hutong_proto::{Delta, Provenance};
use serde_json::Value;
use std::sync::Arc;

/// Of one batch. Larger ones cost latency and gain nothing.
pub(super) const DELTAS_MAX: usize = 2_000;
pub(super) const BYTES_MAX: usize = 1 << 20;
/// Well below what the wire allows.
pub(super) const PROVENANCES_MAX: usize = 512;

/// A batch, with the rows that it came from and what is true once it is durable.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub deltas: Vec<Delta>,
    /// Of each delta.
    pub rows: Vec<SourceRow>,
    /// Rows that did not become deltas.
    pub refused: Vec<NewLetter>,
    /// The last checkpoint that is reached with this batch.
    pub checkpoint: Option<Value>,
    pub barrier: Option<String>,
    bytes: usize,
    provenances: Vec<Arc<Provenance>>,
}

impl Gathered {
    pub fn is_empty(&self) -> bool {
        self.deltas.is_empty() && self.refused.is_empty() && self.checkpoint.is_none()
    }

    /// Must it go before anything else is gathered?
    pub fn is_full(&self) -> bool {
        self.deltas.len() >= DELTAS_MAX
            || self.bytes >= BYTES_MAX
            || self.provenances.len() >= PROVENANCES_MAX
            || self.refused.len() >= DELTAS_MAX
    }

    /// Maps a row and takes what it became.
    pub fn take(&mut self, row: SourceRow, mapper: &mut Mapper) {
        match mapper.map(&row) {
            Ok(mapped) => {
                self.bytes += mapped.bytes;
                let provenance = &mapped.delta.provenance;
                if !self.provenances.iter().rev().any(|p| p == provenance) {
                    self.provenances.push(Arc::clone(provenance));
                }
                self.deltas.push(mapped.delta);
                self.rows.push(row);
            }
            Err(refused) => self.refused.push(letter(row, refused)),
        }
    }

    /// Everything of the source up to here was taken.
    pub fn reached(&mut self, checkpoint: Value, barrier: Option<String>) {
        self.checkpoint = Some(checkpoint);
        self.barrier = barrier.or(self.barrier.take());
    }
}

fn letter(row: SourceRow, refused: Refused) -> NewLetter {
    // The message may quote the row: it goes into the file only.
    tracing::debug!(
        place = row.place,
        reason = refused.reason,
        field = refused.field,
        "a row is refused by the mapping"
    );
    NewLetter {
        row,
        reason: refused.reason.to_owned(),
        field: refused.field,
        message: refused.message,
    }
}
