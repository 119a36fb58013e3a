//! Keeping the cursors of subscriptions in the log, at an easy pace.

use crate::{control::ControlWriter, fanout::registry::Subscriptions};
use hutong_proto::{api, api::control_record::Act};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Subscriptions in one control record.
const SUBSCRIPTIONS_PER_RECORD: usize = 256;

/// Writes the cursors that moved: what is lost in between is acknowledged again.
pub async fn keep_cursors(
    subscriptions: Arc<Subscriptions>,
    control: ControlWriter,
    every: Duration,
    stop: CancellationToken,
) {
    let mut every = tokio::time::interval(every);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let last = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            _ = every.tick() => false,
        };
        let changed = subscriptions.take_changed();
        for chunk in changed.chunks(SUBSCRIPTIONS_PER_RECORD) {
            let stored = api::CursorsStored {
                subscriptions: chunk.to_vec(),
            };
            if let Err(refusal) = control.write(Act::CursorsStored(stored)).await {
                tracing::warn!(%refusal, "cursors not stored");
            }
        }
        if last {
            return;
        }
    }
}
