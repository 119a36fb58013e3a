//! Every metric of the broker: its name, kind, unit, labels and help. The reference in `docs/` and the
//! alerts name them as they stand here.
//!
//! Series are bounded: at most 65 platforms (64 configured and `none`, for what belongs to nobody), 2
//! lanes, 16 subscriptions a platform and the catalogue of reasons. No label is free text; the name of
//! a subscription is chosen by its platform, out of 64 plain characters. None names a person.

use crate::overload::GiveWay;
use hutong_proto::{Reason, limits};

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, from 0 at the start of the process.
    Counter,
    Gauge,
    Histogram,
}

/// What stands in the table about a metric.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// As it is scraped.
    pub name: &'static str,
    pub kind: Kind,
    /// UCUM, as OpenTelemetry wants it; always a base unit.
    pub unit: &'static str,
    /// In alphabetical order.
    pub labels: &'static [&'static str],
    /// More series than this cannot be.
    pub series_max: usize,
    pub help: &'static str,
}

const PLATFORMS: usize = limits::PLATFORMS_MAX + 1;
const LANES: usize = 2;
const REASONS: usize = Reason::ALL.len();
const SUBSCRIPTIONS: usize = PLATFORMS * limits::SUBSCRIPTIONS_PER_PLATFORM_MAX;
/// What can give way.
const VALVES: usize = GiveWay::ALL.len();
/// Databases under the data folder.
const STORES: usize = 4;

macro_rules! metrics {
    ($($variant:ident $name:literal $kind:ident $unit:literal [$($label:literal)*] $series:expr, $help:literal;)*) => {
        /// A metric. The order is the order of registration and means nothing.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Name { $(#[doc = $help] $variant,)* }

        impl Name {
            pub const ALL: &'static [Name] = &[$(Name::$variant,)*];

            pub fn definition(self) -> Definition {
                match self {
                    $(Name::$variant => Definition {
                        name: $name,
                        kind: Kind::$kind,
                        unit: $unit,
                        labels: &[$($label,)*],
                        series_max: $series,
                        help: $help,
                    },)*
                }
            }
        }
    };
}

metrics! {
    BuildInfo "hutong_build_info" Gauge "" ["version"] 1,
        "Always 1; the label is the broker's version.";
    ConfigReloads "hutong_config_reloads_total" Counter "{reload}" ["result"] 2,
        "Times that the configuration was read again: `taken` or `refused`.";
    ConfigReloaded "hutong_config_reload_success_timestamp_seconds" Gauge "s" [] 1,
        "When a configuration was last taken; the start counts.";
    MemoryResident "hutong_memory_resident_bytes" Gauge "By" [] 1,
        "Memory of the process that is in RAM.";

    ProducersConnected "hutong_producers_connected" Gauge "{producer}" ["platform"] PLATFORMS,
        "Publish streams that are open.";
    Batches "hutong_batches_total" Counter "{batch}" ["platform"] PLATFORMS,
        "Batches received from producers.";
    BatchBytes "hutong_batch_bytes_total" Counter "By" ["platform"] PLATFORMS,
        "Bytes of batches received from producers.";
    BatchesDuplicate "hutong_batches_duplicate_total" Counter "{batch}" ["platform"] PLATFORMS,
        "Batches that had been durable before: resent after a reconnect, acknowledged, not applied again.";
    DeltasAccepted "hutong_deltas_accepted_total" Counter "{delta}" ["lane" "platform"] PLATFORMS * LANES,
        "Deltas acknowledged as durable and applied.";
    DeltasRefused "hutong_deltas_refused_total" Counter "{delta}" ["platform" "reason"] PLATFORMS * REASONS,
        "Deltas and batches refused, by the reason that the producer was told.";
    Ack "hutong_ack_seconds" Histogram "s" [] 1,
        "From the arrival of a batch to its ack.";
    QueueBytes "hutong_queue_bytes" Gauge "By" ["lane"] LANES,
        "Records between ingress and apply.";

    LogRecords "hutong_log_records_appended_total" Counter "{record}" [] 1,
        "Records appended to the log and synced.";
    LogAppendedBytes "hutong_log_bytes_appended_total" Counter "By" [] 1,
        "Bytes of records appended to the log and synced.";
    CommitRecords "hutong_commit_records" Histogram "{record}" [] 1,
        "Records in one group commit.";
    CommitBytes "hutong_commit_bytes" Histogram "By" [] 1,
        "Bytes of records in one group commit.";
    CommitWrite "hutong_commit_write_seconds" Histogram "s" [] 1,
        "Time of the write of one group commit.";
    CommitSync "hutong_commit_sync_seconds" Histogram "s" [] 1,
        "Time of the sync of one group commit.";
    CommitFailures "hutong_commit_failures_total" Counter "{commit}" [] 1,
        "Group commits whose write or sync failed; the first one poisons the log.";
    LogPoisoned "hutong_log_poisoned" Gauge "" [] 1,
        "1 when the log takes nothing because a write or sync failed.";
    LogBytes "hutong_log_bytes" Gauge "By" [] 1,
        "Size of the log, about.";
    LogTrims "hutong_log_trims_total" Counter "{trim}" [] 1,
        "Partitions shortened by retention.";
    LogNextOffset "hutong_log_next_offset" Gauge "" [] 1,
        "Offset that the next record gets at least.";
    AppliedOffset "hutong_applied_offset" Gauge "" [] 1,
        "Everything below this offset is applied.";
    StoredOffset "hutong_stored_offset" Gauge "" [] 1,
        "Everything below this offset is in the state on disk; a restart replays the rest.";

    Apply "hutong_apply_seconds" Histogram "s" [] 1,
        "Time to apply one group of records.";
    RecordsApplied "hutong_records_applied_total" Counter "{record}" [] 1,
        "Records applied.";
    StateGatherBytes "hutong_state_gather_bytes" Gauge "By" [] 1,
        "Newest values gathered in memory that are not on disk yet.";
    StateFlush "hutong_state_flush_seconds" Histogram "s" [] 1,
        "Time to write and ingest one sorted run of state.";
    StateRows "hutong_state_rows_flushed_total" Counter "{row}" [] 1,
        "Rows of state written in sorted runs.";
    StateBytes "hutong_state_bytes_flushed_total" Counter "By" [] 1,
        "Bytes of state written in sorted runs.";

    TailBytes "hutong_tail_bytes" Gauge "By" ["lane"] LANES,
        "Records in the ring that readers which keep up are served from.";
    SubscribersConnected "hutong_subscribers_connected" Gauge "{subscriber}" ["platform"] PLATFORMS,
        "Subscribe streams that are open.";
    RecordsDelivered "hutong_records_delivered_total" Counter "{record}" ["platform"] PLATFORMS,
        "Records sent to the subscribers of a platform.";
    DeliveredBytes "hutong_delivered_bytes_total" Counter "By" ["platform"] PLATFORMS,
        "Bytes sent to the subscribers of a platform.";
    FellBehind "hutong_fell_behind_total" Counter "{read}" ["platform"] PLATFORMS,
        "Reads of the log for subscribers that the rings no longer serve.";
    CreditExhausted "hutong_credit_exhausted_total" Counter "{wait}" ["platform"] PLATFORMS,
        "Times that a subscriber had something to receive and had given no credit for it.";
    SnapshotsRunning "hutong_snapshots_running" Gauge "{snapshot}" [] 1,
        "Snapshots being sent.";
    SnapshotRows "hutong_snapshot_rows_total" Counter "{row}" ["platform"] PLATFORMS,
        "Rows sent in snapshots.";

    SchedulingDelay "hutong_scheduling_delay_seconds" Gauge "s" [] 1,
        "How late tasks run; the processors are busy when it is long.";
    OverloadLimit "hutong_overload_limit_bytes_per_second" Gauge "By/s" ["valve"] VALVES,
        "What gives way to urgent deltas is slowed down to this; 0 when it is not.";

    SubscriptionLagRecords "hutong_subscription_lag_records" Gauge "{record}" ["lane" "platform" "subscription"] SUBSCRIPTIONS * LANES,
        "Records that a subscription has not applied.";
    SubscriptionLagSeconds "hutong_subscription_lag_seconds" Gauge "s" ["lane" "platform" "subscription"] SUBSCRIPTIONS * LANES,
        "Age of the oldest record that a subscription has not applied; 0 when there is none.";
    PairOldestSeconds "hutong_pair_oldest_unapplied_seconds" Gauge "s" ["issuer" "lane" "receiver"] PLATFORMS * PLATFORMS * LANES,
        "Age of the oldest record of an issuer that a receiver has not applied, over its subscriptions.";

    StoreWritesStopped "hutong_store_writes_stopped" Gauge "" ["store"] STORES,
        "1 while the database takes no writes because compaction is behind.";
    StoreWriteRateLimit "hutong_store_write_rate_limit_bytes_per_second" Gauge "By/s" ["store"] STORES,
        "What the database slows writes down to; 0 when it does not.";
    StorePendingCompaction "hutong_store_pending_compaction_bytes" Gauge "By" ["store"] STORES,
        "Bytes that compaction still has to rewrite, about.";
    StoreRunningCompactions "hutong_store_running_compactions" Gauge "{compaction}" ["store"] STORES,
        "Compactions under way.";
    StoreRunningFlushes "hutong_store_running_flushes" Gauge "{flush}" ["store"] STORES,
        "Flushes of memory tables under way.";
    StoreLevel0Files "hutong_store_level0_files" Gauge "{file}" ["store"] STORES,
        "Files in level 0.";
    StoreMemoryTables "hutong_store_memory_tables_bytes" Gauge "By" ["store"] STORES,
        "Memory tables of the database.";
    StoreDisk "hutong_store_disk_bytes" Gauge "By" ["store"] STORES,
        "Files of the database on disk.";
}

/// How many series a metric may have.
pub(super) fn series_max(name: &str) -> Option<usize> {
    let mut definitions = Name::ALL.iter().map(|n| n.definition());
    definitions.find(|d| d.name == name).map(|d| d.series_max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        let mut seen = BTreeSet::new();
        for name in Name::ALL {
            let d = name.definition();
            assert!(seen.insert(d.name), "{} stands twice", d.name);
            assert!(d.name.starts_with("hutong_"), "{}", d.name);
            assert!(
                d.name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            );
            assert_eq!(
                d.name.ends_with("_total"),
                d.kind == Kind::Counter,
                "{}",
                d.name
            );
            let stem = d.name.trim_end_matches("_total");
            match d.unit {
                "s" => assert!(stem.ends_with("_seconds"), "{}", d.name),
                "By" => assert!(stem.contains("_bytes"), "{}", d.name),
                "By/s" => assert!(stem.ends_with("_bytes_per_second"), "{}", d.name),
                unit => assert!(
                    unit.is_empty() || unit.starts_with('{'),
                    "{}: {unit}",
                    d.name
                ),
            }
            assert!(
                d.help.ends_with('.') && !d.help.contains('\n'),
                "{}",
                d.name
            );
            assert!(d.labels.is_sorted(), "{}", d.name);
            assert!(d.labels.is_empty() == (d.series_max == 1) || d.labels == ["version"]);
            assert!(d.series_max <= 10_000, "{} has too many series", d.name);
        }
    }

    #[test]
    fn no_label_can_name_a_person() {
        let allowed = [
            "issuer",
            "lane",
            "platform",
            "reason",
            "receiver",
            "result",
            "store",
            "subscription",
            "valve",
            "version",
        ];
        for name in Name::ALL {
            let d = name.definition();
            assert!(d.labels.iter().all(|l| allowed.contains(l)), "{}", d.name);
        }
    }
}
