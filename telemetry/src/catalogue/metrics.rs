//! Every metric, one a line: its name, kind, unit, labels and help.

use super::{
    Definition,
    Kind::{self, Counter, Gauge},
    Label,
};

/// Of what happens within the broker.
const SECONDS: Kind = Kind::Histogram(&[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
]);
/// Of what may also wait for hours: 1 s is the promise, 48 h the deadline of a correction.
const WAITS: Kind = Kind::Histogram(&[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 300.0, 3600.0, 21_600.0, 172_800.0,
]);
const RECORDS: Kind = Kind::Histogram(&[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, 4096.0,
]);
const BYTES: Kind = Kind::Histogram(&[
    1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0, 67108864.0,
]);

macro_rules! metrics {
    ($(#[$doc:meta])* $of:ident: $($variant:ident $name:literal $kind:ident $unit:literal [$($label:ident)*] $help:literal;)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $of { $(#[doc = $help] $variant,)* }

        impl $of {
            pub const ALL: &'static [$of] = &[$($of::$variant,)*];

            pub fn definition(self) -> Definition {
                match self {
                    $($of::$variant => Definition {
                        name: $name,
                        kind: $kind,
                        unit: $unit,
                        labels: &[$(Label::$label,)*],
                        help: $help,
                    },)*
                }
            }
        }
    };
}

metrics! {
    /// A metric of the broker. The order is that of the reference and means nothing else.
    Broker:
    BuildInfo "hutong_build_info" Gauge "" [Version]
        "Always 1; the label is the broker's version.";
    ProcessCpu "process_cpu_seconds_total" Counter "s" []
        "Processor time that the process has used.";
    ProcessOpenFiles "process_open_fds" Gauge "{file}" []
        "Files and connections that the process has open.";
    ProcessMaxFiles "process_max_fds" Gauge "{file}" []
        "Files and connections that the process may have open.";
    ProcessStart "process_start_time_seconds" Gauge "s" []
        "When the process started, in seconds since the Unix epoch.";
    MemoryResident "hutong_memory_resident_bytes" Gauge "By" []
        "Memory of the process that is in RAM.";
    Memory "hutong_memory_bytes" Gauge "By" [Owner]
        "Memory by what it is used for; each owner has its bound in the configuration.";
    DiskFree "hutong_disk_free_bytes" Gauge "By" []
        "Room that is left for the broker on the file system of the data folder.";
    DiskSize "hutong_disk_size_bytes" Gauge "By" []
        "Size of the file system of the data folder.";
    CertificateExpiry "hutong_certificate_not_after_timestamp_seconds" Gauge "s" [Certificate]
        "When a certificate that the broker was told to watch expires, in seconds since the Unix epoch; 0 if its file cannot be read.";
    ConfigReloads "hutong_config_reloads_total" Counter "{reload}" [Result]
        "Times that the configuration was read again while the broker ran.";
    ConfigReloadOk "hutong_config_last_reload_successful" Gauge "" []
        "1 when the configuration that runs is the one in the file, as of the last start or reload; 0 when the last reload was refused.";
    ConfigReloadAt "hutong_config_last_reload_success_timestamp_seconds" Gauge "s" []
        "When the configuration was last taken over, in seconds since the Unix epoch.";

    ProducersConnected "hutong_producers_connected" Gauge "{producer}" [Platform]
        "Publish streams that are open.";
    Batches "hutong_batches_total" Counter "{batch}" [Platform]
        "Batches received from producers.";
    BatchBytes "hutong_batch_bytes_total" Counter "By" [Platform]
        "Bytes of batches received from producers.";
    BatchesDuplicate "hutong_batches_duplicate_total" Counter "{batch}" [Platform]
        "Batches that had been durable before: resent after a reconnect, acknowledged, not applied again.";
    DeltasAccepted "hutong_deltas_accepted_total" Counter "{delta}" [Lane Platform]
        "Deltas acknowledged as durable and applied.";
    DeltasRefused "hutong_deltas_refused_total" Counter "{delta}" [Platform Reason]
        "Deltas and batches refused, by the reason that the producer was told.";
    LastRecord "hutong_platform_last_record_timestamp_seconds" Gauge "s" [Platform]
        "When the newest record of a platform became durable, in seconds since the Unix epoch; absent while the log has none.";
    Colours "hutong_colours_applied_total" Counter "{delta}" [Colour Platform]
        "Health codes applied, by the colour that they set, whether or not it was another one before: a source that publishes all of its codes again counts again.";
    FlipFlops "hutong_colour_flip_flops_total" Counter "{delta}" [Platform]
        "Health codes that gave an entity the colour back that it had before its last change, within an hour. Counted over the entities changed last, so in a surge it is a lower bound.";
    ClockSkew "hutong_clock_skew_seconds" Gauge "s" [Platform]
        "How far a platform's clock is ahead of the broker's, as its client said when it connected, or at least as its newest deltas show; negative when it is behind.";
    Credit "hutong_credit_given_bytes_total" Counter "By" [Direction Platform]
        "Credit given: by the broker to producers, with their acks, and by subscribers to the broker.";
    CreditExhausted "hutong_credit_exhausted_total" Counter "{wait}" [Platform]
        "Turns at which a subscriber had given no credit, whether or not something waited for it: two a second or more for as long as that lasts. A producer without credit waits at its connector: `hutong_connect_held_back_seconds_total`.";

    Hop "hutong_hop_seconds" WAITS "s" [Hop Lane]
        "Time of each hop, until applied at the broker once a record, behind that once a delivery, which may hold many: of the oldest delta in it. What never arrives is in the lag alone. The source's clock counts in the first hop and in the whole; where a subscriber reads the log because it fell behind, the whole counts from durable.";
    Ack "hutong_ack_seconds" SECONDS "s" []
        "From the arrival of a batch to its ack.";
    QueueBytes "hutong_queue_bytes" Gauge "By" [Lane]
        "Records between ingress and apply.";

    LogRecords "hutong_log_records_appended_total" Counter "{record}" []
        "Records appended to the log and synced.";
    LogAppendedBytes "hutong_log_bytes_appended_total" Counter "By" []
        "Bytes of records appended to the log and synced.";
    CommitRecords "hutong_commit_records" RECORDS "{record}" []
        "Records in one group commit.";
    CommitBytes "hutong_commit_bytes" BYTES "By" []
        "Bytes of records in one group commit.";
    CommitWrite "hutong_commit_write_seconds" SECONDS "s" []
        "Time of the write of one group commit.";
    CommitSync "hutong_commit_sync_seconds" SECONDS "s" []
        "Time of the sync of one group commit.";
    CommitRunning "hutong_commit_running_seconds" Gauge "s" []
        "How long the group commit that is under way has taken so far, handing it to apply included; 0 when there is none. A disk that hangs shows here alone.";
    BulkHeld "hutong_bulk_held_seconds" Gauge "s" []
        "How long bulk has been kept out of the log so far, because the state brings down runs more slowly than they come; 0 when it is not. Urgent goes on meanwhile.";
    CommitFailures "hutong_commit_failures_total" Counter "{commit}" []
        "Group commits whose write or sync failed; the first one poisons the log.";
    LogPoisoned "hutong_log_poisoned" Gauge "" []
        "1 when the log takes nothing because a write or sync failed.";
    LogBytes "hutong_log_bytes" Gauge "By" []
        "Size of the log, about.";
    LogTrims "hutong_log_trims_total" Counter "{trim}" []
        "Partitions shortened by retention.";
    LogNextOffset "hutong_log_next_offset" Gauge "" []
        "Offset that the next record gets at least.";
    AppliedOffset "hutong_applied_offset" Gauge "" []
        "Everything below this offset is applied.";
    StoredOffset "hutong_stored_offset" Gauge "" []
        "Everything below this offset is in the state on disk; a restart replays the rest.";

    Apply "hutong_apply_seconds" SECONDS "s" []
        "Time to apply one group of records.";
    RecordsApplied "hutong_records_applied_total" Counter "{record}" []
        "Records applied.";
    StateGatherBytes "hutong_state_gather_bytes" Gauge "By" []
        "Newest values gathered in memory that are not on disk yet.";
    StateFlush "hutong_state_flush_seconds" SECONDS "s" []
        "Time to write and ingest one sorted run of state.";
    StateRows "hutong_state_rows_flushed_total" Counter "{row}" []
        "Rows of state written in sorted runs.";
    StateBytes "hutong_state_bytes_flushed_total" Counter "By" []
        "Bytes of state written in sorted runs.";
    StateMerges "hutong_state_merges_total" Counter "{merge}" []
        "Parts of the keys for which runs of state that waited were merged.";

    TailBytes "hutong_tail_bytes" Gauge "By" [Lane]
        "Records in the ring that readers which keep up are served from.";
    SubscribersConnected "hutong_subscribers_connected" Gauge "{subscriber}" [Platform]
        "Subscribe streams that are open.";
    RecordsDelivered "hutong_records_delivered_total" Counter "{record}" [Platform]
        "Records sent to the subscribers of a platform.";
    DeliveredBytes "hutong_delivered_bytes_total" Counter "By" [Platform]
        "Bytes sent to the subscribers of a platform.";
    FellBehind "hutong_fell_behind_total" Counter "{read}" [Platform]
        "Reads of the log for subscribers that the rings no longer serve.";
    SnapshotsRunning "hutong_snapshots_running" Gauge "{snapshot}" []
        "Snapshots being sent.";
    SnapshotRows "hutong_snapshot_rows_total" Counter "{row}" [Platform]
        "Rows sent in snapshots.";
    ViewConflicts "hutong_view_conflicts_total" Counter "{conflict}" [Conflict Platform]
        "Times that a platform said to have something else than the broker knows it has: a cursor beyond what was sent to it, one below what it had acknowledged, or one of another log.";
    SpansLeftOut "hutong_spans_left_out_total" Counter "{span}" [Platform]
        "Spans of deltas sampled at their source that were not made, because the broker had traced its share of that second: of what comes from the platform, where a delta counts once, or of what goes to it.";

    SchedulingDelay "hutong_scheduling_delay_seconds" Gauge "s" []
        "How late tasks run; the processors are busy when it is long.";
    OverloadLimit "hutong_overload_limit_bytes_per_second" Gauge "By/s" [Valve]
        "What gives way to urgent deltas is slowed down to this; 0 when it is not.";

    SubscriptionLagRecords "hutong_subscription_lag_records" Gauge "{record}" [Lane Platform Subscription]
        "Records that a subscription has not applied.";
    SubscriptionLagSeconds "hutong_subscription_lag_seconds" Gauge "s" [Lane Platform Subscription]
        "Age of the oldest record that a subscription has not applied; 0 when there is none.";
    PairLagRecords "hutong_pair_lag_records" Gauge "{record}" [Issuer Lane Receiver]
        "Records of an issuer that a receiver has not applied, of the subscription that is furthest behind.";
    PairOldestSeconds "hutong_pair_oldest_unapplied_seconds" Gauge "s" [Issuer Lane Receiver]
        "Age of the oldest record of an issuer that a receiver has not applied, over its subscriptions; 0 when there is none.";
    PairOldestAt "hutong_pair_oldest_unapplied_timestamp_seconds" Gauge "s" [Issuer Lane Receiver]
        "Since when: the time that record became durable, in seconds since the Unix epoch; absent when there is none.";
    PairOldestOffset "hutong_pair_oldest_unapplied_offset" Gauge "" [Issuer Lane Receiver]
        "Which change: the offset of that record in the log, to which the page of the receiver in the console leads; absent when there is none.";

    StoreWritesStopped "hutong_store_writes_stopped" Gauge "" [Store]
        "1 while the database takes no writes because compaction is behind.";
    StoreWriteRateLimit "hutong_store_write_rate_limit_bytes_per_second" Gauge "By/s" [Store]
        "What the database slows writes down to; 0 when it does not.";
    StoreStalled "hutong_store_stall_seconds_total" Counter "s" [Store]
        "Time that writers were slowed down or stopped by the database since it was opened; of a stop, once it is over.";
    StoreErrors "hutong_store_background_errors_total" Counter "{error}" [Store]
        "Errors of flushes and compactions in the background.";
    StorePendingCompaction "hutong_store_pending_compaction_bytes" Gauge "By" [Store]
        "Bytes that compaction still has to rewrite, about.";
    StoreRunningCompactions "hutong_store_running_compactions" Gauge "{compaction}" [Store]
        "Compactions under way.";
    StoreRunningFlushes "hutong_store_running_flushes" Gauge "{flush}" [Store]
        "Flushes of memory tables under way.";
    StoreLevelFiles "hutong_store_level_files" Gauge "{file}" [Level Store]
        "Files in each level; many in level 0 mean that compaction is behind.";
    StoreMemoryTables "hutong_store_memory_tables_bytes" Gauge "By" [Store]
        "Memory tables of the database.";
    StoreDisk "hutong_store_disk_bytes" Gauge "By" [Store]
        "Files of the database on disk.";
}

metrics! {
    /// A metric of a connector.
    Connector:
    BuildInfo "hutong_connect_build_info" Gauge "" [Version]
        "Always 1; the label is the connector's version.";
    State "hutong_connect_state" Gauge "" [State]
        "1 for the state that the connector is in, 0 for the others.";
    RowsRead "hutong_connect_rows_read_total" Counter "{row}" []
        "Rows that the source gave.";
    DeltasAccepted "hutong_connect_deltas_accepted_total" Counter "{delta}" []
        "Deltas that the broker has durably accepted.";
    DeltasNotNewer "hutong_connect_deltas_not_newer_total" Counter "{delta}" []
        "Deltas that the broker had already, or newer.";
    RowsRefused "hutong_connect_rows_refused_total" Counter "{row}" []
        "Rows refused by the mapping or the broker.";
    DeadLettersAdded "hutong_connect_dead_letters_added_total" Counter "{row}" [Reason]
        "Rows that became dead letters, by reason.";
    DeltasApplied "hutong_connect_deltas_applied_total" Counter "{delta}" []
        "Deltas that the sink has durably applied.";
    Snapshots "hutong_connect_snapshots_total" Counter "{snapshot}" []
        "Snapshots that were begun.";
    Restarts "hutong_connect_restarts_total" Counter "{restart}" []
        "How often it began again after trouble.";
    Reconnects "hutong_connect_reconnects_total" Counter "{reconnect}" []
        "How often the connection to the broker was made again.";
    HeldBackSeconds "hutong_connect_held_back_seconds_total" Counter "s" []
        "Time that batches waited because the broker took no more.";
    DeadLetters "hutong_connect_dead_letters" Gauge "{row}" []
        "Dead letters that wait for someone.";
    DeadLettersBytes "hutong_connect_dead_letters_bytes" Gauge "By" []
        "Size of the file of dead letters.";
    BatchesInFlight "hutong_connect_batches_in_flight" Gauge "{batch}" []
        "Batches on the way to the broker.";
    LagSeconds "hutong_connect_lag_seconds" Gauge "s" []
        "How old the newest thing is that the sink has.";
}
