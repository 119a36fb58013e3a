//! What can go wrong between a client and a broker.

use hutong_proto::{LogId, Reason, Refusal, api};
use std::fmt;
use tonic::{Code, Status};

/// A refusal as it came over the wire; the reason may be newer than this client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedInfo {
    pub reason: String,
    pub reason_known: Option<Reason>,
    /// Path of the field at fault; may be empty.
    pub field: String,
    pub message: String,
    pub retryable: bool,
}

impl RefusedInfo {
    pub fn from_api(error: api::ErrorInfo) -> RefusedInfo {
        RefusedInfo {
            reason_known: Reason::from_code(&error.reason),
            reason: error.reason,
            field: error.field,
            message: error.message,
            retryable: error.retryable,
        }
    }
}

impl fmt::Display for RefusedInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        if !self.field.is_empty() {
            write!(f, " at {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why a call, a stream or a batch failed. Cheap to clone: all that wait get the same one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("the broker's address {address:?} is not valid: {why}; expected http://HOST:PORT")]
    Address { address: String, why: String },
    #[error("cannot reach the broker at {address}: {why}")]
    Unreachable { address: String, why: String },
    /// The broker said no, with a reason of its catalogue.
    #[error("{0}")]
    Refused(RefusedInfo),
    #[error("the connection to the broker broke: {0}")]
    Broken(String),
    #[error("the broker is stopping: {0}")]
    Draining(String),
    #[error("nothing came from the broker for {seconds} s, not even a bookmark: the line is down")]
    Silent { seconds: u64 },
    #[error("the broker sent something that this client does not understand: {0}")]
    Malformed(String),
    /// Not sent: it would be refused.
    #[error("batch of {what} is over the limit of {limit}; split it")]
    TooLarge { what: String, limit: String },
    #[error(
        "the broker forgot what it had acknowledged: batch {acknowledged} was durable, now it knows \
         only up to {durable}; it was restored from an older backup, or another broker answers at \
         this address"
    )]
    Forgotten { acknowledged: u64, durable: u64 },
    #[error(
        "the broker has batch {durable} of this producer, but only {sent} were sent: another process \
         publishes under the same name with the same epoch; give each its own name"
    )]
    Overtaken { sent: u64, durable: u64 },
    #[error(
        "the broker has another log than before ({now}, it was {was}): its data were lost or replaced, or \
         another broker answers at this address"
    )]
    AnotherLog { was: LogId, now: LogId },
    #[error("the publisher is closed")]
    Closed,
}

impl ClientError {
    /// The reason of the catalogue, if the broker gave one.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            ClientError::Refused(info) => info.reason_known,
            _ => None,
        }
    }

    /// May the same succeed later, with nobody changing anything?
    pub fn is_passing(&self) -> bool {
        match self {
            ClientError::Unreachable { .. }
            | ClientError::Broken(_)
            | ClientError::Draining(_)
            | ClientError::Silent { .. } => true,
            ClientError::Refused(info) => info.retryable,
            ClientError::Address { .. }
            | ClientError::Malformed(_)
            | ClientError::TooLarge { .. }
            | ClientError::Forgotten { .. }
            | ClientError::Overtaken { .. }
            | ClientError::AnotherLog { .. }
            | ClientError::Closed => false,
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> ClientError {
        if let Some(refusal) = Refusal::from_status(&status) {
            // The status carries the whole text; the details only its parts.
            return ClientError::Refused(RefusedInfo {
                reason: refusal.reason.code().to_owned(),
                reason_known: Some(refusal.reason),
                retryable: refusal.reason.retryable(),
                message: match status.message().split_once(": ") {
                    Some((_, text)) => text.to_owned(),
                    None => status.message().to_owned(),
                },
                field: refusal.field,
            });
        }
        match status.code() {
            Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::ResourceExhausted => ClientError::Broken(status.message().to_owned()),
            code => ClientError::Refused(RefusedInfo {
                reason: format!("{code:?}"),
                reason_known: None,
                field: String::new(),
                message: status.message().to_owned(),
                retryable: false,
            }),
        }
    }
}

impl From<Refusal> for ClientError {
    fn from(refusal: Refusal) -> ClientError {
        ClientError::Malformed(refusal.to_string())
    }
}
