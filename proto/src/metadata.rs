//! Names of gRPC metadata that clients and broker agree on.

/// In trial mode a connection says here who it is: `platform/340000`, `operator/NAME`, `auditor/NAME`.
pub const IDENTITY: &str = "hutong-identity";

/// What time it is at the client when it calls: microseconds since the Unix epoch. The broker shows how far its
/// clock is from the platform's, and decides nothing by it.
pub const CLOCK: &str = "hutong-clock-us";

/// W3C Trace Context: the span that a call is part of.
pub const TRACE_PARENT: &str = "traceparent";
