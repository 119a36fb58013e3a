//! Records of which apply dropped something. They are few, and stored by offset, so that a reader of
//! the log delivers exactly what a reader of the tail gets.

use crate::log::EntryHead;
use bytes::Bytes;
use hutong_proto::{RecordView, Refusal};

/// Which deltas of a record were not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dropped {
    Nothing,
    /// Indexes in the record, rising.
    Some(Vec<u32>),
    /// A repeat of a batch, or nothing in it was new.
    All,
}

impl Dropped {
    /// The row to store; nothing dropped needs none. Layout: indexes as u32 little-endian, no index
    /// for "all".
    pub fn encode(&self) -> Option<Vec<u8>> {
        match self {
            Dropped::Nothing => None,
            Dropped::Some(indexes) => Some(indexes.iter().flat_map(|i| i.to_le_bytes()).collect()),
            Dropped::All => Some(Vec::new()),
        }
    }

    pub fn decode(row: &[u8]) -> Dropped {
        if row.is_empty() {
            return Dropped::All;
        }
        let indexes = row
            .chunks_exact(4)
            .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        Dropped::Some(indexes.collect())
    }

    /// What of the record is delivered; `None` for nothing. Records without deltas (all refused)
    /// only number batches.
    pub fn cut(&self, head: &EntryHead, bytes: &Bytes, record: &RecordView<'_>) -> Option<Bytes> {
        match self {
            _ if head.deltas == 0 => None,
            Dropped::Nothing => Some(bytes.clone()),
            Dropped::Some(indexes) => {
                Some(record.retain(|i| indexes.binary_search(&(i as u32)).is_err()))
            }
            Dropped::All => None,
        }
    }

    /// The same for a record that was not read yet.
    pub fn cut_unread(&self, head: &EntryHead, bytes: &Bytes) -> Result<Option<Bytes>, Refusal> {
        match self {
            Dropped::Some(_) => Ok(self.cut(head, bytes, &RecordView::parse(bytes)?)),
            Dropped::Nothing if head.deltas > 0 => Ok(Some(bytes.clone())),
            _ => Ok(None),
        }
    }
}
