//! A place in the log, per lane.

use crate::{
    api,
    ids::{Lane, LogId, Offset},
    reason::{Reason, Refusal},
};
use std::fmt;

/// Everything of a lane below its offset has been seen. The same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    pub log_id: LogId,
    pub urgent: Offset,
    pub bulk: Offset,
}

impl Cursor {
    /// Both lanes at the same offset.
    pub fn both(log_id: LogId, at: Offset) -> Cursor {
        Cursor {
            log_id,
            urgent: at,
            bulk: at,
        }
    }

    pub fn lane(&self, lane: Lane) -> Offset {
        match lane {
            Lane::Urgent | Lane::Control => self.urgent,
            Lane::Bulk => self.bulk,
        }
    }

    pub fn set_lane(&mut self, lane: Lane, at: Offset) {
        match lane {
            Lane::Urgent => self.urgent = at,
            Lane::Bulk => self.bulk = at,
            Lane::Control => {}
        }
    }

    /// Each lane at the further of the two. Both must be of one log.
    #[must_use]
    pub fn max(self, other: Cursor) -> Cursor {
        Cursor {
            log_id: self.log_id,
            urgent: self.urgent.max(other.urgent),
            bulk: self.bulk.max(other.bulk),
        }
    }

    pub fn to_api(self) -> api::Cursor {
        api::Cursor {
            log_id: self.log_id.0,
            urgent: self.urgent.0,
            bulk: self.bulk.0,
        }
    }

    /// A cursor that a client sent; it must be of this log.
    pub fn from_api(cursor: &api::Cursor, log: LogId, field: &str) -> Result<Cursor, Refusal> {
        if cursor.log_id != log.0 {
            return Err(
                Refusal::new(Reason::CursorOfAnotherLog, format!("{field}.log_id")).detail(
                    format!("cursor of log {:#018x}, this is log {log}", cursor.log_id),
                ),
            );
        }
        Ok(Cursor {
            log_id: log,
            urgent: Offset(cursor.urgent),
            bulk: Offset(cursor.bulk),
        })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.log_id, self.urgent, self.bulk)
    }
}
