//! The lines. No IO.

use super::LineError;
use crate::{client::Delivered, sinks::value};
use hutong_proto::{Cursor, LogId, Offset};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Raised when older readers could misunderstand the lines.
pub(super) const VERSION: u32 = 1;

/// The first line of a file.
pub(super) fn header(subscription: &str) -> Vec<u8> {
    line(&serde_json::json!({
        "type": "hutong", "version": VERSION, "subscription": subscription,
    }))
}

pub(super) fn snapshot_begin() -> Vec<u8> {
    line(&serde_json::json!({"type": "snapshot_begin"}))
}

#[derive(Serialize)]
struct DeltaLine<'a> {
    r#type: &'static str,
    issuer: u32,
    kind: &'static str,
    entity: String,
    revision: u64,
    value: serde_json::Value,
    committed_at_us: u64,
    /// 0: never.
    expires_at_us: u64,
    authority: &'a str,
    rule_id: &'a str,
    rule_version: u32,
    reason: &'a str,
    evidence: &'a str,
    /// 0 in a snapshot, as the next.
    offset: u64,
    durable_at_us: u64,
}

pub(super) fn delta(delivered: &Delivered) -> Vec<u8> {
    let (delta, provenance) = (&delivered.delta, &delivered.delta.provenance);
    line(&DeltaLine {
        r#type: "delta",
        issuer: delivered.issuer.code(),
        kind: delta.value.kind().name(),
        entity: delta.entity.to_string(),
        revision: delta.revision.0,
        value: value::to_json(&delta.value),
        committed_at_us: delta.committed_at.0,
        expires_at_us: delta.expires_at.0,
        authority: &provenance.authority,
        rule_id: &provenance.rule_id,
        rule_version: provenance.rule_version,
        reason: &provenance.reason,
        evidence: &delta.evidence,
        offset: delivered.offset.0,
        durable_at_us: delivered.durable_at.0,
    })
}

/// The lines before it, from the mark before them, are complete: it tells their length and hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    r#type: MarkType,
    log_id: String,
    urgent: u64,
    bulk: u64,
    pub bytes: u64,
    pub sha256: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MarkType {
    Cursor,
    SnapshotEnd,
}

impl Mark {
    pub fn new(r#type: MarkType, cursor: Cursor, check: &Check) -> Mark {
        Mark {
            r#type,
            log_id: cursor.log_id.to_string(),
            urgent: cursor.urgent.0,
            bulk: cursor.bulk.0,
            bytes: check.bytes,
            sha256: check.sha256(),
        }
    }

    pub fn to_line(&self) -> Vec<u8> {
        line(self)
    }

    /// `None` for any other line, and for a part of one.
    pub fn from_line(line: &[u8]) -> Option<Mark> {
        serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
    }

    pub fn cursor(&self) -> Option<Cursor> {
        Some(Cursor {
            log_id: LogId(u64::from_str_radix(&self.log_id, 16).ok()?),
            urgent: Offset(self.urgent),
            bulk: Offset(self.bulk),
        })
    }
}

/// Of the lines since the last mark.
#[derive(Clone, Debug, Default)]
pub(super) struct Check {
    hash: Sha256,
    pub bytes: u64,
}

impl Check {
    pub fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// The first half: it guards against accidents, not against people.
    pub fn sha256(&self) -> String {
        let hash = self.hash.clone().finalize();
        hash[..16].iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// As `Cursor` is written: `LOG:URGENT/BULK`.
pub(super) fn parse_cursor(text: &str) -> Result<Cursor, LineError> {
    let parts = || {
        let (log_id, offsets) = text.trim().split_once(':')?;
        let (urgent, bulk) = offsets.split_once('/')?;
        Some(Cursor {
            log_id: LogId(u64::from_str_radix(log_id, 16).ok()?),
            urgent: Offset(urgent.parse().ok()?),
            bulk: Offset(bulk.parse().ok()?),
        })
    };
    parts().ok_or_else(|| LineError(text.to_owned()))
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("strings and numbers");
    line.push(b'\n');
    line
}
