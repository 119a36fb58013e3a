//! What a RocksDB database says about itself; the same for the log and the state.

use crate::metrics::StoreGauges;
use rocksdb::DB;

/// A property of all column families together; one that this version does not know counts as zero.
pub fn property(db: &DB, families: &[&str], name: &str) -> u64 {
    families
        .iter()
        .filter_map(|family| db.cf_handle(family))
        .filter_map(|family| db.property_int_value_cf(family, name).ok().flatten())
        .sum()
}

pub fn gauges(db: &DB, families: &[&str]) -> StoreGauges {
    let property = |name| property(db, families, name);
    StoreGauges {
        name: "",
        writes_stopped: property("rocksdb.is-write-stopped") != 0,
        write_rate_limit_bytes_per_second: property("rocksdb.actual-delayed-write-rate"),
        pending_compaction_bytes: property("rocksdb.estimate-pending-compaction-bytes"),
        running_compactions: property("rocksdb.num-running-compactions"),
        running_flushes: property("rocksdb.num-running-flushes"),
        level0_files: property("rocksdb.num-files-at-level0"),
        memory_tables_bytes: property("rocksdb.cur-size-all-mem-tables"),
        disk_bytes: property("rocksdb.total-sst-files-size"),
    }
}
