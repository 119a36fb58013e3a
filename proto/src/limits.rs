//! Every limit of the wire, in one place. A limit is part of the interface: clients may rely on it,
//! and the broker refuses what is over it with a reason of [`crate::reason`].

/// Encoded size of one batch.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Deltas in one batch.
pub const BATCH_DELTAS_MAX: usize = 20_000;
/// Entries in the provenance table of one batch.
pub const BATCH_PROVENANCES_MAX: usize = 1024;
/// Encoded size of one delta.
pub const DELTA_BYTES_MAX: usize = 4 << 10;
/// Largest message that the transport takes in; above [`BATCH_BYTES_MAX`], so that a batch that is too
/// large can be refused by name.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

pub const ENTITY_BYTES: usize = 16;
pub const AUTHORITY_BYTES_MAX: usize = 64;
pub const RULE_ID_BYTES_MAX: usize = 64;
pub const REASON_BYTES_MAX: usize = 256;
pub const EVIDENCE_BYTES_MAX: usize = 128;
pub const PRODUCT_BYTES_MAX: usize = 64;
pub const DOSES_MAX: u32 = 20;
pub const PATH_PARTS_MAX: usize = 6;
/// Real lists name an area by all the streets around it: up to 655 bytes were seen.
pub const PATH_PART_BYTES_MAX: usize = 1024;

/// Producer and subscription names.
pub const NAME_BYTES_MAX: usize = 64;
/// Values in one filter list.
pub const FILTER_VALUES_MAX: usize = 64;

/// How far a source's clock may run ahead of the broker's.
pub const FUTURE_US_MAX: u64 = 5 * 60 * 1_000_000;
/// Times before 2019-01-01 are units mixed up (seconds or milliseconds for microseconds).
pub const TIME_US_MIN: u64 = 1_546_300_800_000_000;
/// Times after 2100-01-01 likewise.
pub const TIME_US_MAX: u64 = 4_102_444_800_000_000;

/// The greatest that databases and most languages can hold, as none of them has unsigned integers.
pub const REVISION_MAX: u64 = i64::MAX as u64;

/// Likewise. Above the highest epoch there is none that could fence it.
pub const EPOCH_MAX: u64 = i64::MAX as u64;

/// Producers that one platform may have.
pub const PRODUCERS_PER_PLATFORM_MAX: usize = 64;
/// Different provenance entries that one platform may bring: rules and their public reasons are hundreds.
pub const PROVENANCES_PER_PLATFORM_MAX: u64 = 100_000;
/// Subscriptions that one platform may have.
pub const SUBSCRIPTIONS_PER_PLATFORM_MAX: usize = 16;
/// 31 provinces and XPCC are 32; the rest is room for trials.
pub const PLATFORMS_MAX: usize = 64;
/// Connectors of one platform that are known at one time; of more, those are forgotten that said nothing for longest, and one that failed after
/// all others.
pub const CONNECTORS_PER_PLATFORM_MAX: usize = 32;
/// Reasons in one report of a connector.
pub const REPORT_REASONS_MAX: usize = 96;
/// An encoded report.
pub const REPORT_BYTES_MAX: usize = 8 << 10;
/// Shards of one issuer.
pub const SHARDS_MAX: u32 = 64;

/// Bytes of batches that one producer may have under way.
pub const PUBLISH_CREDIT_BYTES: u64 = 8 << 20;
/// Bytes that a subscriber gets before it gives credit, unless it asks for another amount.
pub const SUBSCRIBE_CREDIT_BYTES_DEFAULT: u64 = 4 << 20;
pub const SUBSCRIBE_CREDIT_BYTES_MIN: u64 = 64 << 10;
pub const SUBSCRIBE_CREDIT_BYTES_MAX: u64 = 64 << 20;
/// A delivered message stays below this, unless a single record is larger.
pub const DELIVERY_BYTES_TARGET: usize = 1 << 20;
/// A bulk one while urgent records come: the next urgent one waits behind it.
pub const BULK_BESIDE_URGENT_BYTES: usize = 128 << 10;
/// While urgent records come, a client has no more than so much that it has not given back yet when bulk goes out,
/// or one bulk message on top of the pieces in which it gives back.
pub const BULK_UNDER_WAY_BESIDE_URGENT_BYTES: usize = 256 << 10;

/// A stream carries a bookmark at least this often.
pub const BOOKMARK_EVERY_MS: u64 = 500;
