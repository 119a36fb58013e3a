//! Where rows come from.

pub mod postgres_outbox;
pub mod snapshot_folder;
