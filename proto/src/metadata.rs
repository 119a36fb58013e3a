//! Names of gRPC metadata that clients and broker agree on.

/// In trial mode a connection says here who it is: `platform/340000`, `operator/NAME`, `auditor/NAME`.
pub const IDENTITY: &str = "hutong-identity";
