//! Batches as they go over the wire.

use crate::client::ClientError;
use bytes::Bytes;
use hutong_proto::{Delta, Issuer, Provenance, Sequence, TraceContext, limits, wire};
use std::{collections::HashMap, sync::Arc};

const BATCH_FIELD: u32 = 2;
const PROVENANCE_FIELD: u32 = 9;
const DELTA_FIELD: u32 = 10;
/// Room for sequence number and issuer.
const HEAD_BYTES_MAX: usize = 24;

/// The provenance table and the deltas of a batch, encoded; its number is not in it yet.
#[derive(Clone, Debug)]
pub struct EncodedBatch {
    pub body: Bytes,
    pub deltas: u32,
}

impl EncodedBatch {
    /// Equal provenance stands in the table once.
    pub fn from_deltas(deltas: &[Delta]) -> Result<EncodedBatch, ClientError> {
        EncodedBatch::traced(deltas, &[])
    }

    /// The same with the traces of some deltas, by their place; those that are left out have none.
    pub fn traced(
        deltas: &[Delta],
        traces: &[Option<TraceContext>],
    ) -> Result<EncodedBatch, ClientError> {
        if deltas.len() > limits::BATCH_DELTAS_MAX {
            return Err(ClientError::TooLarge {
                what: format!("{} deltas", deltas.len()),
                limit: format!("{} deltas", limits::BATCH_DELTAS_MAX),
            });
        }
        let mut table: HashMap<&Arc<Provenance>, u32> = HashMap::new();
        let mut body = Vec::with_capacity(deltas.len() * 112 + 256);
        let mut indexes = Vec::with_capacity(deltas.len());
        for delta in deltas {
            let next = table.len() as u32;
            let index = *table.entry(&delta.provenance).or_insert(next);
            if index == next {
                wire::put_bytes(&mut body, PROVENANCE_FIELD, &delta.provenance.encode());
            }
            indexes.push(index);
        }
        if table.len() > limits::BATCH_PROVENANCES_MAX {
            return Err(ClientError::TooLarge {
                what: format!("{} provenance entries", table.len()),
                limit: format!("{} entries", limits::BATCH_PROVENANCES_MAX),
            });
        }
        let mut encoded = Vec::with_capacity(128);
        for (place, (delta, index)) in deltas.iter().zip(indexes).enumerate() {
            encoded.clear();
            let trace = traces.get(place).copied().flatten();
            delta.encode_traced(index, trace, &mut encoded);
            wire::put_bytes(&mut body, DELTA_FIELD, &encoded);
        }
        let batch = EncodedBatch {
            body: body.into(),
            deltas: deltas.len() as u32,
        };
        batch.check()?;
        Ok(batch)
    }

    pub(crate) fn check(&self) -> Result<(), ClientError> {
        if self.body.len() + HEAD_BYTES_MAX > limits::BATCH_BYTES_MAX {
            return Err(ClientError::TooLarge {
                what: format!("{} bytes", self.body.len()),
                limit: format!("{} bytes", limits::BATCH_BYTES_MAX - HEAD_BYTES_MAX),
            });
        }
        Ok(())
    }

    /// The whole `PublishRequest`, and the size of the batch in it, which is what credit counts.
    pub(crate) fn message(&self, sequence: Sequence, issuer: Issuer) -> (Bytes, u64) {
        let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
        wire::put_number(&mut head, 1, sequence.0);
        wire::put_number(&mut head, 2, u64::from(issuer.code()));
        let len = head.len() + self.body.len();
        let mut out = Vec::with_capacity(len + 8);
        wire::put_len(&mut out, BATCH_FIELD, len);
        out.extend_from_slice(&head);
        out.extend_from_slice(&self.body);
        (out.into(), len as u64)
    }
}
