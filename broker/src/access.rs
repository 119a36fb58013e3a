//! Who is on the other end, and what it may do. Nothing else knows how identity was established.

use http::HeaderMap;
use hutong_proto::{Issuer, Micros, Reason, Refusal, TraceContext, limits, metadata};
use std::{collections::BTreeSet, fmt};
use tonic::metadata::MetadataMap;
use tracing::Span;

/// What an identity is allowed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Publishes its own registers and subscribes to the others'.
    Platform,
    /// Sees lag and storage, may trim and delete.
    Operator,
    /// Sees what an operator sees, changes nothing.
    Auditor,
}

/// An established identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    role: Role,
    platform: Option<Issuer>,
    name: String,
}

impl Identity {
    pub fn role(&self) -> Role {
        self.role
    }

    /// The platform, for calls that only platforms may make.
    pub fn platform(&self) -> Result<Issuer, Refusal> {
        self.platform.ok_or_else(|| Reason::RoleNotAllowed.into())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Platform => write!(f, "platform/{}", self.name),
            Role::Operator => write!(f, "operator/{}", self.name),
            Role::Auditor => write!(f, "auditor/{}", self.name),
        }
    }
}

/// How far the caller's clock is ahead of ours, in microseconds, if it says what time it is. A time that cannot be
/// is no time.
pub fn clock_ahead_us(said: &MetadataMap, now: Micros) -> Option<i64> {
    let said: u64 = said.get(metadata::CLOCK)?.to_str().ok()?.parse().ok()?;
    let possible = (limits::TIME_US_MIN..=limits::TIME_US_MAX).contains(&said);
    possible.then(|| said as i64 - now.0 as i64)
}

/// What is logged about a call stands in this: it has the trace that the caller says the call is part of. None if it
/// says none.
pub fn log_span(path: &str, said: &HeaderMap) -> Span {
    let parent = said.get(metadata::TRACE_PARENT);
    let parent = parent.and_then(|parent| parent.to_str().ok());
    let Some(trace) = parent.and_then(TraceContext::from_trace_parent) else {
        return Span::none();
    };
    // At a filter of `warn` or `error` there is no span of a lower level, and what is left needs its trace most.
    tracing::error_span!("call", call = method(path), trace_id = %trace)
}

/// A method of ours, as it is logged. Anything else is the caller's text, of any length.
pub fn method(path: &str) -> &'static str {
    let ours = path.strip_prefix("/hutong.sync.v1.");
    let name = ours.and_then(|rest| rest.split_once("Service/"));
    let known = name.and_then(|(_, name)| METHODS.iter().find(|known| **known == name));
    known.copied().unwrap_or("other")
}

const METHODS: [&str; 15] = [
    "Publish",
    "Report",
    "Subscribe",
    "GetEntity",
    "Explain",
    "Trace",
    "GetStatus",
    "ListPlatforms",
    "ListSubscriptions",
    "GetLagMatrix",
    "ListConnectors",
    "ListPartitions",
    "TrimPartition",
    "DeleteSubscription",
    "CreateCheckpoint",
];

/// Every call, so that a new one does not compile without a line in [`allowed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Publish,
    Subscribe,
    Report,
    GetEntity,
    Explain,
    Trace,
    GetStatus,
    ListPlatforms,
    ListSubscriptions,
    GetLagMatrix,
    ListConnectors,
    ListPartitions,
    /// What is in a record: whatever entities there are.
    ReadRecord,
    /// What the broker runs with.
    ReadConfig,
    TrimPartition,
    DeleteSubscription,
    CreateCheckpoint,
}

fn allowed(call: Call, role: Role) -> bool {
    match call {
        Call::Publish | Call::Subscribe | Call::Report => role == Role::Platform,
        Call::GetEntity | Call::Explain | Call::Trace => true,
        Call::GetStatus
        | Call::ListPlatforms
        | Call::ListSubscriptions
        | Call::GetLagMatrix
        | Call::ListConnectors
        | Call::ListPartitions => true,
        Call::ReadRecord | Call::ReadConfig => role != Role::Platform,
        Call::TrimPartition | Call::DeleteSubscription | Call::CreateCheckpoint => {
            role == Role::Operator
        }
    }
}

/// Establishes identities. In trial mode a connection says who it is, which is why a broker in trial
/// mode listens on loopback only.
#[derive(Clone, Debug)]
pub struct Access {
    platforms: BTreeSet<Issuer>,
}

impl Access {
    pub fn trial(platforms: impl IntoIterator<Item = Issuer>) -> Access {
        Access {
            platforms: platforms.into_iter().collect(),
        }
    }

    /// The identity behind a call, if it may make it.
    pub fn check(&self, metadata: &MetadataMap, call: Call) -> Result<Identity, Refusal> {
        let identity = self.identify(metadata)?;
        if allowed(call, identity.role) {
            Ok(identity)
        } else {
            Err(Refusal::from(Reason::RoleNotAllowed)
                .detail(format!("{identity} may not {call:?}")))
        }
    }

    fn identify(&self, metadata: &MetadataMap) -> Result<Identity, Refusal> {
        let field = metadata::IDENTITY;
        let value = metadata
            .get(field)
            .ok_or_else(|| Refusal::new(Reason::IdentityMissing, field))?;
        let unknown = |what: &str| Refusal::new(Reason::IdentityUnknown, field).detail(what);
        let value = value.to_str().map_err(|_| unknown("not ASCII"))?;
        let (role, name) = value
            .split_once('/')
            .filter(|(_, name)| !name.is_empty() && name.len() <= 64)
            .ok_or_else(|| unknown("expected ROLE/NAME"))?;
        let (role, platform) = match role {
            "platform" => {
                let code: Issuer = name.parse().map_err(|e: String| unknown(&e))?;
                if !self.platforms.contains(&code) {
                    return Err(unknown(&format!("platform {code} is not configured")));
                }
                (Role::Platform, Some(code))
            }
            "operator" => (Role::Operator, None),
            "auditor" => (Role::Auditor, None),
            other => return Err(unknown(&format!("no role {other:?}"))),
        };
        Ok(Identity {
            role,
            platform,
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: Option<&str>, call: Call) -> Result<String, Reason> {
        let access = Access::trial(Issuer::new(340_000));
        let mut metadata = MetadataMap::new();
        if let Some(value) = value {
            metadata.insert(metadata::IDENTITY, value.parse().expect("ascii"));
        }
        access
            .check(&metadata, call)
            .map(|i| i.to_string())
            .map_err(|r| r.reason)
    }

    /// A log that takes nothing below a warning.
    struct Warnings;

    impl tracing::Subscriber for Warnings {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::WARN
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {}
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn a_trace_stands_at_warnings_also_where_nothing_less_is_logged() {
        let mut said = HeaderMap::new();
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        said.insert(metadata::TRACE_PARENT, parent.parse().expect("ascii"));
        let path = "/hutong.sync.v1.AdminService/Trace";
        let none = HeaderMap::new();
        tracing::subscriber::with_default(Warnings, || {
            assert!(!log_span(path, &said).is_disabled());
            assert!(log_span(path, &none).is_disabled());
        });
    }

    #[test]
    fn only_configured_identities_pass_and_only_for_their_calls() {
        for (value, call, expected) in [
            (None, Call::Publish, Err(Reason::IdentityMissing)),
            (Some("340000"), Call::Publish, Err(Reason::IdentityUnknown)),
            (
                Some("platform/"),
                Call::Publish,
                Err(Reason::IdentityUnknown),
            ),
            (
                Some("platform/34"),
                Call::Publish,
                Err(Reason::IdentityUnknown),
            ),
            (
                Some("platform/110000"),
                Call::Publish,
                Err(Reason::IdentityUnknown),
            ),
            (
                Some("platform/340000"),
                Call::Publish,
                Ok("platform/340000".into()),
            ),
            (
                Some("platform/340000"),
                Call::TrimPartition,
                Err(Reason::RoleNotAllowed),
            ),
            (
                Some("auditor/a"),
                Call::TrimPartition,
                Err(Reason::RoleNotAllowed),
            ),
            (
                Some("operator/a"),
                Call::TrimPartition,
                Ok("operator/a".into()),
            ),
            (
                Some("operator/a"),
                Call::Publish,
                Err(Reason::RoleNotAllowed),
            ),
        ] {
            assert_eq!(check(value, call), expected, "{value:?} {call:?}");
        }
    }
}
