//! Writing the broker's own records.

use crate::log::{Append, AppendError, Log};
use hutong_proto::{KindSet, Offset, Partition, Reason, Refusal, api, api::control_record::Act};
use prost::Message;
use std::sync::Arc;
use tokio::sync::oneshot;

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

    /// Returns when the record is durable: where it is.
    pub async fn write(&self, act: Act) -> Result<Offset, Refusal> {
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
            Ok(Ok(offset)) => Ok(offset),
            Ok(Err(AppendError::Closed)) => Err(Reason::ShuttingDown.into()),
            Ok(Err(AppendError::Failed | AppendError::Poisoned)) => Err(Reason::LogPoisoned.into()),
            Ok(Err(AppendError::Indefinite)) | Err(_) => Err(Reason::CommitIndefinite.into()),
        }
    }
}
