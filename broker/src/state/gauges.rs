//! What the state says about itself, for metrics and operators.

use super::{FAMILY, State, StateStats};
use crate::{metrics::StoreGauges, rocks};
use std::time::Duration;

impl State {
    pub fn registers_estimate(&self) -> u64 {
        let gathered: usize = {
            let memory = self.shared.memory.read();
            memory.frozen.iter().map(|f| f.gather.rows()).sum::<usize>() + memory.active.rows()
        };
        self.shared.property("rocksdb.estimate-num-keys") + gathered as u64
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
        self.shared.property("rocksdb.total-sst-files-size")
    }

    pub fn stats(&self) -> StateStats {
        *self.shared.stats.lock()
    }

    /// How long bulk has been kept out of the log so far, because there is little room here.
    pub fn bulk_held(&self) -> Duration {
        self.options.bulk_gate.shut_for()
    }

    /// What the store says about itself, for metrics.
    pub fn store(&self) -> StoreGauges {
        let database = self.shared.db.database();
        database.map_or_else(StoreGauges::default, |db| rocks::gauges(db, &[FAMILY]))
    }
}
