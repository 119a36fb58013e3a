//! What the state says about itself, for metrics and operators.

use super::{FAMILY, State, StateStats};
use crate::{
    metrics::{LEVELS, StoreGauges},
    rocks,
};
use std::time::Duration;

impl State {
    /// A register counts once for each place that has it.
    pub fn registers_estimate(&self) -> u64 {
        let gathered: usize = {
            let memory = self.shared.memory.read();
            memory.frozen.iter().map(|f| f.gather.rows()).sum::<usize>() + memory.active.rows()
        };
        let stored = self.shared.db.tables().map_or(0, |t| t.list().rows());
        stored + gathered as u64
    }

    /// Bytes gathered and on their way down.
    pub fn memory_bytes(&self) -> usize {
        let memory = self.shared.memory.read();
        memory
            .frozen
            .iter()
            .map(|f| f.gather.bytes())
            .sum::<usize>()
            + memory.active.bytes()
    }

    pub fn disk_bytes(&self) -> u64 {
        self.shared
            .db
            .tables()
            .map_or(0, |tables| tables.disk_bytes())
    }

    pub fn stats(&self) -> StateStats {
        *self.shared.stats.lock()
    }

    /// How long bulk has been kept out of the log so far, because there is little room here.
    pub fn bulk_held(&self) -> Duration {
        self.options.bulk_gate.shut_for()
    }

    /// What the store says about itself, for metrics. Tables are no files that RocksDB merges: runs that wait count as
    /// level 0 and segments as the lowest one, as they would if it did.
    pub fn store(&self) -> StoreGauges {
        let Some(tables) = self.shared.db.tables() else {
            return StoreGauges::default();
        };
        let list = tables.list();
        let mut gauges = rocks::gauges(&tables.db, &[FAMILY]);
        gauges.level_files = [0; LEVELS];
        gauges.level_files[0] = list.runs.len() as u64;
        gauges.level_files[LEVELS - 1] = list.segments.len() as u64;
        gauges.running_compactions += u64::from(tables.merging.is_locked());
        gauges.pending_compaction_bytes += list.waiting_mean().1 as u64;
        gauges.disk_bytes = tables.disk_bytes();
        gauges.table_readers_bytes += list.memory_bytes() as u64;
        gauges
    }
}
