//! What can go wrong for a person at the prompt, and the exit code that says so to a script.

use hutong_connectors::client::ClientError;
use hutong_proto::{Refusal, reason::DOMAIN};
use std::{io, path::PathBuf, process::ExitCode};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The table of exit codes, for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
    0  done, nothing found
    1  done, and something was found: a loss, an inequality, a refused line, lag over a limit
    2  wrong usage or configuration
    3  the broker cannot be reached
    4  the broker refused, with a reason
  130  interrupted
`hutong check` has those of monitoring plugins: 0 well, 1 warning, 2 critical, 3 unknown";

/// Every error of the command. The text says what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command did its work and found something that needs attention.
    #[error("{0}")]
    Finding(String),
    #[error("{0}")]
    Usage(String),
    #[error(
        "cannot reach a broker at {address}: {cause}; see whether it runs and answers, or name another with --address or \
         HUTONG_ADDRESS"
    )]
    Unreachable { address: String, cause: String },
    #[error("refused with {reason}{}: {message}", at(.field))]
    Refused {
        reason: String,
        field: String,
        message: String,
    },
    #[error("{doing} {}: {source}", .path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// A part of the demo broke.
    #[error("{0}")]
    Broken(String),
    /// Everything was said already; the exit code is the answer of `check`.
    #[error("status {0}")]
    Status(u8),
    #[error("interrupted")]
    Interrupted,
}

fn at(field: &str) -> String {
    if field.is_empty() {
        String::new()
    } else {
        format!(" at {field}")
    }
}

impl CliError {
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    pub fn code(&self) -> u8 {
        match self {
            CliError::Finding(_) | CliError::Broken(_) => 1,
            CliError::Usage(_) | CliError::File { .. } => 2,
            CliError::Unreachable { .. } => 3,
            CliError::Refused { .. } => 4,
            CliError::Status(code) => *code,
            // As shells do for a command that SIGINT ended.
            CliError::Interrupted => 130,
            // Who reads us has seen enough, as with `hutong tail | head`.
            CliError::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => 0,
            CliError::Output(_) => 1,
        }
    }

    /// Whether the same may succeed later, without anybody doing something else.
    pub fn may_pass(&self) -> bool {
        matches!(self, CliError::Unreachable { .. })
    }

    /// Whether there is nothing to tell anybody.
    pub fn is_silent(&self) -> bool {
        self.code() == 0 || matches!(self, CliError::Status(_))
    }

    /// What a failed call means. A status without a reason of ours comes from the transport.
    pub fn from_status(address: &str, status: &Status) -> CliError {
        if let Some(refusal) = Refusal::from_status(status) {
            return CliError::Refused {
                reason: refusal.reason.code().to_owned(),
                field: refusal.field,
                message: without_reason(status.message()).to_owned(),
            };
        }
        // A newer broker may have reasons that this command does not know yet.
        if let Some(info) = status
            .get_details_error_info()
            .filter(|i| i.domain == DOMAIN)
        {
            return CliError::Refused {
                reason: info.reason,
                field: info.metadata.get("field").cloned().unwrap_or_default(),
                message: without_reason(status.message()).to_owned(),
            };
        }
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::DeadlineExceeded => CliError::Unreachable {
                address: address.to_owned(),
                cause: cause_of(status),
            },
            Code::Unimplemented => CliError::Refused {
                reason: "UNIMPLEMENTED".to_owned(),
                field: String::new(),
                message: format!(
                    "what answers at {address} is not a Hutong broker, or an older one; check --address"
                ),
            },
            code => CliError::Refused {
                reason: format!("{code:?}"),
                field: String::new(),
                message: status.message().to_owned(),
            },
        }
    }

    /// What a failed stream means.
    pub fn from_client(address: &str, error: &ClientError) -> CliError {
        match error {
            ClientError::Refused(info) => CliError::Refused {
                reason: info.reason.clone(),
                field: info.field.clone(),
                message: info.message.clone(),
            },
            ClientError::Address { address, why } => CliError::Usage(format!(
                "--address {address}: {why}; write http://HOST:PORT"
            )),
            ClientError::TooLarge { .. } => CliError::Usage(error.to_string()),
            ClientError::Unreachable { why, .. } => CliError::Unreachable {
                address: address.to_owned(),
                cause: why.clone(),
            },
            ClientError::Broken(_)
            | ClientError::Draining(_)
            | ClientError::Silent { .. }
            | ClientError::Malformed(_)
            | ClientError::Forgotten { .. }
            | ClientError::Overtaken { .. }
            | ClientError::AnotherLog { .. }
            | ClientError::Closed => CliError::Unreachable {
                address: address.to_owned(),
                cause: error.to_string(),
            },
        }
    }
}

/// `REASON at field: message` without what the caller prints itself.
fn without_reason(message: &str) -> &str {
    match message.split_once(": ") {
        Some((head, rest))
            if head.starts_with(|c: char| c.is_ascii_uppercase())
                && head
                    .split(' ')
                    .next()
                    .is_some_and(|w| w.chars().all(|c| c.is_ascii_uppercase() || c == '_')) =>
        {
            rest
        }
        _ => message,
    }
}

/// The innermost cause: "connection refused" says more than "transport error".
fn cause_of(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut text = status.message().to_owned();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::Reason;

    #[test]
    fn a_refusal_keeps_its_reason_and_field_and_says_each_once() {
        let status = Refusal::new(Reason::NameInvalid, "subscription").to_status();
        let error = CliError::from_status("http://here", &status);
        assert_eq!(error.code(), 4);
        let text = error.to_string();
        assert!(
            text.starts_with("refused with NAME_INVALID at subscription: names have"),
            "{text}"
        );
    }

    #[test]
    fn a_broken_line_is_not_a_refusal() {
        let error = CliError::from_status("http://here:1", &Status::unavailable("gone"));
        assert_eq!(error.code(), 3);
        assert!(error.to_string().contains("http://here:1"));
    }

    #[test]
    fn a_closed_pipe_is_the_reader_having_seen_enough() {
        let error = CliError::Output(io::ErrorKind::BrokenPipe.into());
        assert!(error.is_silent());
    }
}
