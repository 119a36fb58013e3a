//! What the broker's messages mean.

use crate::client::{ClientError, Delivered, Event, Subscriber};
use bytes::Bytes;
use hutong_proto::{
    Cursor, Issuer, LogId, Micros, Offset, Provenance, RecordView, api,
    api::subscribe_response::Message as Response,
    batch::{DeltaView, ProvenanceView},
    record,
    wire::{FieldValue, Reader},
};
use prost::Message;
use std::sync::Arc;

impl Subscriber {
    /// The first message of a stream.
    pub(super) fn opened(&mut self, frame: &Bytes) -> Result<(), ClientError> {
        match decode(frame)? {
            Response::Opened(opened) => {
                if !opened.snapshot {
                    self.cursor = Some(cursor(opened.cursor)?);
                } else {
                    // Until its end a snapshot can only be started over.
                    self.cursor = None;
                    // Of what it is about to replace.
                    self.unsaid = None;
                }
                Ok(())
            }
            Response::Draining(draining) => Err(ClientError::Draining(draining.reason)),
            other => Err(ClientError::Malformed(format!("{other:?} before opened"))),
        }
    }

    /// What a message means; `None` for nothing that a receiver has to know.
    pub(super) fn event(&mut self, frame: &Bytes) -> Result<Option<Event>, ClientError> {
        if let Some(records) = record::read_delivery(frame)? {
            return self.records(&records).map(Some);
        }
        if let Some(rows) = snapshot_rows(frame)? {
            self.within_snapshot("rows")?;
            return Ok((!rows.is_empty()).then_some(Event::Rows(rows)));
        }
        match decode(frame)? {
            Response::SnapshotBegin(begin) => {
                self.within_snapshot("begin of rows")?;
                Ok(Some(Event::SnapshotBegin {
                    rows_estimate: begin.rows_estimate,
                }))
            }
            Response::SnapshotEnd(end) => {
                self.within_snapshot("end of rows")?;
                let cursor = cursor(end.cursor)?;
                self.cursor = Some(cursor);
                Ok(Some(Event::SnapshotEnd {
                    cursor,
                    rows: end.rows,
                }))
            }
            // Whoever went on at its cursor would never get the rest of the rows.
            Response::Bookmark(_) if self.cursor.is_none() => Err(ClientError::Malformed(
                "a bookmark within a snapshot".to_owned(),
            )),
            Response::Bookmark(bookmark) => {
                let cursor = cursor(bookmark.cursor)?;
                self.cursor = Some(cursor);
                self.seen_at = Micros(bookmark.sent_at_us);
                Ok(Some(Event::Bookmark {
                    cursor,
                    sent_at: self.seen_at,
                }))
            }
            Response::Draining(draining) => Err(ClientError::Draining(draining.reason)),
            other => Err(ClientError::Malformed(format!("unexpected {other:?}"))),
        }
    }

    fn within_snapshot(&self, what: &str) -> Result<(), ClientError> {
        match self.cursor {
            None => Ok(()),
            Some(_) => Err(ClientError::Malformed(format!("{what} outside a snapshot"))),
        }
    }

    fn records(&mut self, records: &[record::LoggedView<'_>]) -> Result<Event, ClientError> {
        let mut cursor = self
            .cursor
            .ok_or_else(|| ClientError::Malformed("records within a snapshot".to_owned()))?;
        let mut deltas = Vec::new();
        for logged in records {
            let bytes = logged.record()?;
            let record = RecordView::parse(&bytes)?;
            let partition = record.header.partition;
            if logged.offset.0 == u64::MAX {
                let offset = logged.offset;
                return Err(ClientError::Malformed(format!("offset {offset}")));
            }
            // Read when a delta refers to it: what nobody refers to is nobody's business.
            let mut table: Vec<Option<Arc<Provenance>>> = vec![None; record.provenance.len()];
            for i in 0..record.deltas.len() {
                let delta = record.delta(i)?;
                let index = delta.provenance as usize;
                let provenance = match table.get(index).cloned().flatten() {
                    Some(known) => known,
                    None => {
                        let read = Arc::new(record.provenance(index)?.to_owned());
                        table[index] = Some(Arc::clone(&read));
                        read
                    }
                };
                deltas.push(Delivered {
                    issuer: partition.issuer,
                    offset: logged.offset,
                    durable_at: logged.durable_at,
                    trace: delta.trace,
                    delta: delta.to_owned(provenance),
                });
            }
            let after = match planted!(SubscriberRepeats) {
                true => logged.offset,
                false => logged.offset.next(),
            };
            cursor.set_lane(partition.lane, after);
            self.seen_at = logged.durable_at;
        }
        self.cursor = Some(cursor);
        Ok(Event::Records { deltas, cursor })
    }
}

fn provenance(
    table: &[Arc<Provenance>],
    delta: &DeltaView<'_>,
) -> Result<Arc<Provenance>, ClientError> {
    table
        .get(delta.provenance as usize)
        .cloned()
        .ok_or_else(|| ClientError::Malformed("a delta without provenance".to_owned()))
}

fn decode(frame: &Bytes) -> Result<Response, ClientError> {
    api::SubscribeResponse::decode(frame.clone())
        .map_err(|e| ClientError::Malformed(e.to_string()))?
        .message
        .ok_or_else(|| ClientError::Malformed("an empty message".to_owned()))
}

fn cursor(cursor: Option<api::Cursor>) -> Result<Cursor, ClientError> {
    let cursor = cursor.ok_or_else(|| ClientError::Malformed("no cursor".to_owned()))?;
    Ok(Cursor {
        log_id: LogId(cursor.log_id),
        urgent: Offset(cursor.urgent),
        bulk: Offset(cursor.bulk),
    })
}

/// Field of `SnapshotRows` in a `SubscribeResponse`.
const ROWS_FIELD: u32 = 3;

/// The rows of a message, or `None` if it is something else. Read in place: a snapshot is large.
fn snapshot_rows(frame: &[u8]) -> Result<Option<Vec<Delivered>>, ClientError> {
    let Some(field) = Reader::new(frame).field()? else {
        return Ok(None);
    };
    let (ROWS_FIELD, FieldValue::Len(message)) = (field.number, field.value) else {
        return Ok(None);
    };
    let mut table = Vec::new();
    let mut rows = Vec::new();
    let mut reader = Reader::new(message);
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            (1, FieldValue::Len(entry)) => {
                table.push(Arc::new(ProvenanceView::parse(entry)?.to_owned()));
            }
            // The table comes before the rows.
            (2, FieldValue::Len(row)) => rows.push(snapshot_row(row, &table)?),
            _ => {}
        }
    }
    Ok(Some(rows))
}

fn snapshot_row(row: &[u8], table: &[Arc<Provenance>]) -> Result<Delivered, ClientError> {
    let (mut issuer, mut offset, mut delta) = (None, Offset::NONE, None);
    let mut reader = Reader::new(row);
    while let Some(field) = reader.field()? {
        match (field.number, field.value) {
            (1, FieldValue::Varint(n)) => issuer = u32::try_from(n).ok().and_then(Issuer::new),
            (2, FieldValue::Varint(n)) => offset = Offset(n),
            (3, FieldValue::Len(bytes)) => delta = Some(DeltaView::parse(bytes)?),
            _ => {}
        }
    }
    let (Some(issuer), Some(delta)) = (issuer, delta) else {
        return Err(ClientError::Malformed(
            "a row without issuer or delta".to_owned(),
        ));
    };
    Ok(Delivered {
        issuer,
        offset,
        durable_at: Micros::ZERO,
        trace: None,
        delta: delta.to_owned(provenance(table, &delta)?),
    })
}
