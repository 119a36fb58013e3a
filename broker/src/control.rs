//! Writing the broker's own records.

use crate::{
    fanout::registry::Subscriptions,
    log::{Append, AppendError, Log},
};
use hutong_proto::{KindSet, Partition, Reason, Refusal, api, api::control_record::Act};
use prost::Message;
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Subscriptions in one control record.
const SUBSCRIPTIONS_PER_RECORD: usize = 256;

/// Appends to the control partition.
#[derive(Clone)]
pub struct ControlWriter {
    log: Arc<dyn Log>,
}

impl std::fmt::Debug for ControlWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlWriter").finish_non_exhaustive()
    }
}

impl ControlWriter {
    pub fn new(log: Arc<dyn Log>) -> ControlWriter {
        ControlWriter { log }
    }

    /// Returns when the record is durable.
    pub async fn write(&self, act: Act) -> Result<(), Refusal> {
        let record = api::ControlRecord { act: Some(act) };
        let (answer, outcome) = oneshot::channel();
        self.log.append(Append {
            partition: Partition::CONTROL,
            kinds: KindSet::default(),
            deltas: 0,
            record: record.encode_to_vec().into(),
            done: Box::new(move |result| {
                if answer.send(result).is_err() {
                    tracing::debug!("nobody waits for this control record any more");
                }
            }),
        });
        match outcome.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(AppendError::Closed)) => Err(Reason::ShuttingDown.into()),
            Ok(Err(AppendError::Failed | AppendError::Poisoned)) => Err(Reason::LogPoisoned.into()),
            Ok(Err(AppendError::Indefinite)) | Err(_) => Err(Reason::CommitIndefinite.into()),
        }
    }
}

/// Writes the cursors that moved, at an easy pace: what is lost in between is acknowledged again.
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
