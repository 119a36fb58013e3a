//! State as a simulation has it: in memory, and without a thread. Only in the build with plants.

use crate::state::{
    Applied, MemoryStore, Shared, State, StateError, StateOptions, keys, run, store::Store,
};
use parking_lot::Mutex;
use std::sync::{Arc, atomic::AtomicU64};

impl State {
    /// What is in memory goes when this is dropped; what went down stays in the store.
    pub fn open_in_memory(store: MemoryStore, options: StateOptions) -> Result<State, StateError> {
        let db = Store::Memory(store);
        let row = db.get(&keys::applied()).ok().flatten();
        let stored = row.map_or(Some(Applied::NOTHING), |row| Applied::decode(&row));
        let stored =
            stored.ok_or_else(|| StateError::damaged(&keys::applied(), "does not decode"))?;
        let (wake, _) = crossbeam_channel::bounded(1);
        let times = || Arc::new(AtomicU64::new(0));
        let shared = Shared::new(db, stored, wake, times(), times(), options.clone());
        Ok(State {
            shared: Arc::new(shared),
            options,
            flusher: Mutex::new(None),
            merger: Mutex::new(None),
        })
    }

    /// The oldest run that waits is written. It is on disk when it went down.
    pub fn write_next(&self) {
        let memory = self.shared.memory.read();
        if let (Some(run), Store::Memory(store)) = (memory.frozen.first(), &self.shared.db) {
            let mut rows = Vec::new();
            run.gather.for_each_sorted(|key, row| {
                rows.push((key.to_vec(), row.map(<[u8]>::to_vec)));
            });
            store.write(rows);
        }
    }

    /// The oldest run that waits goes down; says whether there was one.
    pub fn flush_next(&self) -> Result<bool, StateError> {
        let next = self.shared.memory.read().frozen.first().cloned();
        match next {
            Some(run) => run::flush(&self.shared, &run).map(|_| true),
            None => Ok(false),
        }
    }
}
