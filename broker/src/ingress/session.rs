//! One producer's stream: reads batches, sends them on, and acknowledges in order.

use crate::{
    admission::{self, Admitted, Rules},
    apply::{
        producers::{Fate, Producer},
        waiters::{BatchKey, BatchOutcome, PartOutcome},
    },
    control::ControlWriter,
    ingress::{
        Ingress, first_frame,
        outbox::{Gone, Message as Outgoing, Outbox},
        registry::{self, Claim},
    },
    log::AppendError,
    metrics::{Direction, Hop},
    overload::GiveWay,
    routing::{self, Origin, Routed},
    state::{keys, row::ProvenanceId},
};
use bytes::Bytes;
use hutong_proto::{
    Epoch, Issuer, Lane, Micros, Reason, Refusal, Sequence, TraceContext, api,
    batch::BatchView,
    frame::Frame,
    limits,
    wire::{FieldValue, Reader},
};
use outcome::{Sent, not_newer};
use parking_lot::Mutex;
use prost::Message;
use std::{
    collections::HashMap,
    mem,
    sync::{Arc, OnceLock},
    time::Instant,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

mod outcome;
#[cfg(test)]
mod tests;

/// The least that a batch counts against the credit: bounds how many are under way.
const BATCH_CHARGE_BYTES_MIN: u64 = 1024;
/// What a refused delta costs until its ack is taken, and how much of that a session may have, unless it
/// is one batch. An empty delta has two bytes: without a bound of its own, 8 MiB of credit would be a
/// gigabyte of refusals.
const REFUSAL_BYTES: usize = 160;
const REFUSED_BYTES_MAX: usize = 1 << 20;

/// What a message of a producer holds.
enum Input {
    Open(api::PublishOpen),
    Batch(Bytes),
}

/// An ack that waits for its turn.
struct Owed {
    sequence: Sequence,
    charge: u64,
    arrived: Instant,
    /// Of the batch as a whole.
    error: Option<Refusal>,
    refused: Vec<(u32, Refusal)>,
    /// Its records, by partition.
    sent: HashMap<u32, Sent>,
    outcome: Outcome,
    /// Of its deltas that are traced.
    traces: Vec<TraceContext>,
    /// For what is refused.
    held: Option<OwnedSemaphorePermit>,
}

enum Outcome {
    /// The batch is on its way.
    Submitted(oneshot::Receiver<BatchOutcome>),
    /// It was durable before.
    Duplicate,
}

pub struct Session {
    shared: Ingress,
    platform: Issuer,
    out: Outbox,
    refused_room: Arc<Semaphore>,
    /// Of a batch whose records are not all appended yet: when the session ends there, some are in the log.
    under_way: Mutex<Option<oneshot::Receiver<BatchOutcome>>>,
}

/// A session whose `open` was accepted.
struct Opened {
    producer: Arc<str>,
    epoch: Epoch,
    base: Sequence,
    claim: Claim,
}

impl Session {
    pub fn new(shared: Ingress, platform: Issuer, out: Outbox) -> Session {
        Session {
            shared,
            platform,
            out,
            refused_room: Arc::new(Semaphore::new(REFUSED_BYTES_MAX)),
            under_way: Mutex::new(None),
        }
    }

    pub async fn run(self, mut input: Streaming<Frame>) {
        if let Err(refusal) = self.serve(&mut input).await {
            self.fault(&refusal, true);
            tracing::info!(
                platform = %self.platform,
                reason = refusal.reason.code(),
                field = refusal.field,
                "publish session ended"
            );
            self.out.end(Some(refusal.to_status()));
        }
        self.out.end(None);
        // The name is free. What is left of the session is what its client did not take yet.
        tokio::select! {
            biased;
            () = self.out.taken() => {}
            () = self.shared.draining.cancelled() => {}
            () = self.out.stalled(self.shared.stall) => {
                self.out.cut(Refusal::from(Reason::ClientStalled).to_status());
            }
        }
    }

    async fn serve(&self, input: &mut Streaming<Frame>) -> Result<(), Refusal> {
        let opened = self.open(input).await?;
        let (owed, acks) = mpsc::unbounded_channel();
        let stop = opened.claim.end.child_token();
        let acker = self.acknowledge(acks, &stop);
        let reader = self.read(input, &opened, owed, &stop);
        // The acker ends when the reader has dropped its end and everything owed is settled, also
        // after the client is gone: until then the producer's name stays taken.
        let (read, acked) = tokio::join!(reader, acker);
        // So does what was appended of a batch that was cut short: its successor sends the same batch, perhaps
        // split otherwise, and must not take the fate of these records for that of its own.
        let under_way = self.under_way.lock().take();
        if let Some(outcome) = under_way {
            drop(outcome.await);
        }
        drop(opened);
        read.and(acked)
    }

    async fn open(&self, input: &mut Streaming<Frame>) -> Result<Opened, Refusal> {
        let open = first(input).await?;
        check_name(&open.producer, "open.producer")?;
        let epoch = Epoch(open.epoch);
        if epoch.0 == 0 {
            return Err(Refusal::new(Reason::EpochZero, "open.epoch"));
        }
        if epoch.0 > limits::EPOCH_MAX {
            return Err(Refusal::new(Reason::ValueOutOfRange, "open.epoch"));
        }
        if self.shared.draining.is_cancelled() {
            return Err(Reason::ShuttingDown.into());
        }
        let row = keys::producer(self.platform, &open.producer);
        let names = self
            .shared
            .state
            .scan(&keys::producer_prefix_of(self.platform))
            .map_err(internal)?;
        let names = names
            .iter()
            .filter_map(|(key, _)| keys::decode_producer(key));
        let known = names.map(|(_, name)| name).collect();
        let claim = self
            .shared
            .producers
            .claim(self.platform, &open.producer, epoch, &known)
            .await?;
        // A batch of an older session may be settled as "perhaps": then nobody knows what is durable until
        // the log was opened again.
        if self.shared.log.poisoned().is_some() {
            return Err(Reason::LogPoisoned.into());
        }
        // Read after the claim: what an older session had taken is settled now.
        let producer = self.stored(&row)?.unwrap_or_default();
        if producer.epoch > epoch {
            return Err(registry::fenced_by(producer.epoch, epoch));
        }
        if producer.epoch < epoch && !planted!(EpochInMemory) {
            self.fence(&open.producer, epoch).await?;
        }
        let opened = api::PublishOpened {
            last_durable_sequence: match planted!(ResumeAhead) && producer.epoch == epoch {
                true => producer.complete.next().0,
                false => producer.complete.0,
            },
            credit_bytes: limits::PUBLISH_CREDIT_BYTES,
            log_id: self.shared.log_id.0,
            broker_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.send(api::publish_response::Message::Opened(opened))
            .await?;
        tracing::info!(
            platform = %self.platform,
            producer = open.producer,
            epoch = epoch.0,
            last_durable = producer.complete.0,
            "publish session opened"
        );
        Ok(Opened {
            producer: open.producer.into(),
            epoch,
            base: producer.complete,
            claim,
        })
    }

    /// Ends all lower epochs for good before this one is told where it stands, and returns when that is
    /// durable and applied. Known to memory alone, a crash would let the process before in again, and its next
    /// batch would take the number that this one was promised.
    async fn fence(&self, producer: &str, epoch: Epoch) -> Result<(), Refusal> {
        let key = BatchKey::opening(self.platform, producer.into(), epoch);
        let (registration, outcome) = self.shared.waiters.register(&key, 1, (self.shared.clock)());
        let opened = api::ProducerOpened {
            platform: self.platform.code(),
            producer: producer.to_owned(),
            epoch: epoch.0,
        };
        ControlWriter::new(Arc::clone(&self.shared.log))
            .write(api::control_record::Act::ProducerOpened(opened))
            .await?;
        registration.complete();
        settled(outcome).await.map(drop)
    }

    fn stored(&self, row: &[u8]) -> Result<Option<Producer>, Refusal> {
        let value = self.shared.state.get(row).map_err(internal)?;
        Ok(value.and_then(|v| Producer::decode(&v)))
    }

    async fn read(
        &self,
        input: &mut Streaming<Frame>,
        opened: &Opened,
        owed: mpsc::UnboundedSender<Owed>,
        stop: &CancellationToken,
    ) -> Result<(), Refusal> {
        // When the acker stopped, its error is the session's.
        let stopped = || match opened.claim.end.is_cancelled() {
            true => Err(opened.claim.reason().into()),
            false => Ok(()),
        };
        let mut last = opened.base;
        loop {
            let frame = tokio::select! {
                biased;
                () = stop.cancelled() => return stopped(),
                () = self.shared.draining.cancelled() => {
                    let bye = api::Draining { reason: "the broker is stopping".to_owned() };
                    self.send(api::publish_response::Message::Draining(bye)).await?;
                    return Ok(());
                }
                // Cancel-safe: a frame that is not complete stays in the stream's buffer.
                frame = input.message() => match frame {
                    Ok(Some(frame)) => frame,
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(transport(&status)),
                },
            };
            let Input::Batch(batch) = parse(&frame.0)? else {
                return Err(Reason::OpenRepeated.into());
            };
            self.shared.metrics.batch(self.platform, batch.len());
            let charge = (batch.len() as u64).max(BATCH_CHARGE_BYTES_MIN);
            let under_way = self.out.charge(charge);
            if under_way > charge.max(limits::PUBLISH_CREDIT_BYTES) {
                return Err(Refusal::from(Reason::CreditExceeded)
                    .detail(format!("{under_way} bytes under way")));
            }
            let sequence = BatchView::sequence_of(&batch)
                .ok_or_else(|| Refusal::new(Reason::MessageMalformed, "batch.sequence"))?;
            if sequence > last.next() || sequence == Sequence::NONE {
                return Err(Refusal::new(Reason::SequenceOutOfOrder, "batch.sequence")
                    .detail(format!("sequence {sequence}, expected {}", last.next())));
            }
            let ack = if sequence <= last {
                Owed::settled(sequence, charge, Outcome::Duplicate)
            } else {
                last = sequence;
                // Biased here and below: a simulation can then repeat a run.
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return stopped(),
                    // Not cancel-safe, but when it is cancelled the session ends, a part of the batch is
                    // missing in the log, and so the producer sends all of it again, once what is there is
                    // settled.
                    ack = self.take(batch, sequence, charge, opened) => ack?,
                }
            };
            if owed.send(ack).is_err() {
                return Ok(());
            }
        }
    }

    /// Admission, routing and commit of one batch.
    async fn take(
        &self,
        bytes: Bytes,
        sequence: Sequence,
        charge: u64,
        opened: &Opened,
    ) -> Result<Owed, Refusal> {
        let arrived = Instant::now();
        let rules = Rules {
            issuer: self.platform,
            shards: self.shared.shards.get(&self.platform).copied().unwrap_or(1),
            now: (self.shared.clock)(),
        };
        let origin = Origin {
            producer: &opened.producer,
            epoch: opened.epoch,
            epoch_base: opened.base,
        };
        let mut traces = Vec::new();
        let (routed, error) = match admission::admit(&bytes, &rules) {
            Ok(mut admitted) => {
                traces = mem::take(&mut admitted.traces);
                let metrics = &self.shared.metrics;
                metrics.choose(self.platform, &mut traces, rules.now);
                let newest = admitted
                    .accepted
                    .iter()
                    .map(|place| place.committed_at)
                    .max();
                if let Some(newest) = newest {
                    self.shared
                        .metrics
                        .clock_seen(self.platform, newest, rules.now);
                }
                self.keep_quota(&mut admitted)?;
                (routing::route(admitted, &origin), None)
            }
            Err(refusal) => {
                self.shared
                    .metrics
                    .refused(self.platform, refusal.reason, 1);
                self.fault(&refusal, false);
                // Its number must be durable all the same, or those after it could not be.
                let empty = routing::empty(self.platform, sequence, &origin);
                (empty, Some(refusal))
            }
        };
        let held = self.refused_room(routed.refused.len()).await?;
        let mut owed = self.submit(routed, charge, opened, rules.now).await?;
        // Not when it got room: what it waited for that is a part of its way.
        owed.arrived = arrived;
        owed.error = error;
        owed.traces = traces;
        owed.held = held;
        Ok(owed)
    }

    /// Refuses what a platform has too much of; costs nothing for those that are far from it.
    fn keep_quota(&self, admitted: &mut Admitted<'_>) -> Result<(), Refusal> {
        let table = admitted.batch.provenance.len();
        let mut left = self.shared.waiters.provenances.left(self.platform);
        if table as u64 <= left {
            return Ok(());
        }
        let mut used = vec![false; table];
        for place in &admitted.accepted {
            used[place.provenance as usize] = true;
        }
        let mut over = Vec::new();
        for entry in (0..table).filter(|i| used[*i]) {
            let id = ProvenanceId::of(admitted.batch.provenance(entry)?.bytes);
            let known = self.shared.state.get(&keys::provenance(id));
            if known.map_err(internal)?.is_some() {
                continue;
            }
            match left.checked_sub(1) {
                Some(rest) => left = rest,
                None => over.push((entry as u32, Reason::TooManyProvenances)),
            }
        }
        admitted.refuse_provenances(&over);
        Ok(())
    }

    /// Waits while acks with many refusals are not taken: before the batch has any room that others want.
    async fn refused_room(&self, count: usize) -> Result<Option<OwnedSemaphorePermit>, Refusal> {
        if count == 0 {
            return Ok(None);
        }
        let bytes = (count * REFUSAL_BYTES).min(REFUSED_BYTES_MAX) as u32;
        let room = Arc::clone(&self.refused_room).acquire_many_owned(bytes);
        room.await.map(Some).map_err(|_| Reason::Internal.into())
    }

    /// Appends the records of a batch, urgent first. Waiting for room slows this producer alone.
    async fn submit(
        &self,
        routed: Routed,
        charge: u64,
        opened: &Opened,
        arrived_at: Micros,
    ) -> Result<Owed, Refusal> {
        let key = BatchKey {
            issuer: self.platform,
            producer: Arc::clone(&opened.producer),
            epoch: opened.epoch,
            sequence: routed.sequence,
        };
        for (_, refusal) in &routed.refused {
            self.shared
                .metrics
                .refused(self.platform, refusal.reason, 1);
        }
        if let Some((_, refusal)) = routed.refused.first() {
            self.fault(refusal, false);
        }
        let waiters = &self.shared.waiters;
        let (registration, outcome) = waiters.register(&key, routed.parts.len(), arrived_at);
        *self.under_way.lock() = Some(outcome);
        let mut sent = HashMap::with_capacity(routed.parts.len());
        for part in routed.parts {
            if let Some(committed_at) = part.committed_at {
                let seconds = arrived_at.seconds_since(committed_at);
                let lane = part.partition.lane;
                self.shared.metrics.hop(Hop::SourceToBroker, lane, seconds);
            }
            let room = self
                .shared
                .queues
                .room(self.platform, part.partition.lane, part.record.len())
                .await;
            // With room, so that whose turn it is, is fair.
            match part.partition.lane {
                Lane::Urgent => self.shared.overload.urgent(),
                Lane::Bulk => {
                    let bytes = part.record.len();
                    self.shared.overload.pass(GiveWay::Bulk, bytes).await;
                }
                Lane::Control => {}
            }
            // From here on the log answers for it; nothing may wait in between, where a session can be cut short.
            registration.hold(part.partition, Box::new(room));
            let (waiters, key) = (Arc::clone(&self.shared.waiters), key.clone());
            let durable_at = Arc::new(OnceLock::new());
            let synced = Arc::clone(&durable_at);
            let (append, indexes) = part.into_append(Box::new(move |result| match result {
                // That it is applied is told by apply, which sees the record come out of the log.
                Ok(_) => drop(synced.set(Instant::now())),
                Err(error) => waiters.failed(&key, error),
            }));
            let part = Sent {
                indexes,
                durable_at,
            };
            sent.insert(append.partition.to_number(), part);
            self.shared.log.append(append);
        }
        registration.complete();
        let outcome = self.under_way.lock().take().ok_or(Reason::Internal)?;
        let mut owed = Owed::settled(routed.sequence, charge, Outcome::Submitted(outcome));
        (owed.refused, owed.sent) = (routed.refused, sent);
        Ok(owed)
    }

    async fn acknowledge(
        &self,
        mut owed: mpsc::UnboundedReceiver<Owed>,
        stop: &CancellationToken,
    ) -> Result<(), Refusal> {
        let mut result = Ok(());
        loop {
            let next = tokio::select! {
                biased;
                next = owed.recv() => next,
                // What was acknowledged before is not taken.
                stalled = self.stalled(), if result.is_ok() => {
                    result = stalled;
                    stop.cancel();
                    continue;
                }
            };
            let Some(mut next) = next else { break };
            if result.is_err() {
                // An ack is missing, so no later one may be sent; but all is waited for.
                next.settle().await;
                continue;
            }
            match self.ack(next).await {
                Ok(ack) => {
                    // A client that takes no acks must not keep its successor waiting.
                    result = tokio::select! {
                        biased;
                        sent = self.out.push(ack) => sent.map_err(gone),
                        () = stop.cancelled() => Err(Reason::SessionTakenOver.into()),
                        stalled = self.stalled() => stalled,
                    };
                }
                Err(refusal) => result = Err(refusal),
            }
            if result.is_err() {
                stop.cancel();
            }
        }
        result
    }

    /// Returns when the client takes nothing: what waits for it is memory, and its name is wanted.
    async fn stalled(&self) -> Result<(), Refusal> {
        self.out.stalled(self.shared.stall).await;
        Err(Reason::ClientStalled.into())
    }

    async fn ack(&self, owed: Owed) -> Result<Outgoing, Refusal> {
        let (charge, arrived, traces) = (owed.charge, owed.arrived, owed.traces);
        let mut ack = api::PublishAck {
            sequence: owed.sequence.0,
            credit_bytes: charge,
            error: owed.error.map(|refusal| refusal.to_api()),
            ..Default::default()
        };
        let (mut refused, mut steps) = (owed.refused, None);
        match owed.outcome {
            Outcome::Duplicate => ack.duplicate = true,
            Outcome::Submitted(_) if planted!(AckBeforeCommit) => {
                let deltas = owed.sent.values().map(|sent| sent.indexes.len());
                ack.accepted = deltas.sum::<usize>() as u32;
            }
            Outcome::Submitted(outcome) => {
                for part in settled(outcome).await? {
                    let sent = &owed.sent[&part.partition.to_number()];
                    self.applied(&part, sent, arrived, &mut ack, &mut steps)?;
                    if part.fate == Fate::Fresh {
                        refused.extend(not_newer(&part, &sent.indexes));
                    }
                }
            }
        }
        let metrics = &self.shared.metrics;
        metrics.credit(self.platform, Direction::ToProducers, charge);
        if ack.duplicate {
            metrics.batch_duplicate(self.platform);
        }
        metrics.acknowledged(arrived.elapsed());
        refused.sort_by_key(|(index, _)| *index);
        self.trace(&ack, &refused, (arrived, steps), &traces);
        ack.refused = refused
            .into_iter()
            .map(|(index, refusal)| api::Refusal {
                index,
                error: Some(refusal.to_api()),
            })
            .collect();
        Ok(Outgoing {
            frame: frame(api::publish_response::Message::Ack(ack)),
            credit: charge,
            held: owed.held,
        })
    }

    async fn send(&self, message: api::publish_response::Message) -> Result<(), Refusal> {
        let message = Outgoing {
            frame: frame(message),
            ..Outgoing::default()
        };
        self.out.push(message).await.map_err(gone)
    }
}

fn frame(message: api::publish_response::Message) -> Frame {
    let response = api::PublishResponse {
        message: Some(message),
    };
    Frame::new(response.encode_to_vec().into())
}

fn gone(_: Gone) -> Refusal {
    Refusal::from(Reason::SessionTakenOver).detail("the client went away")
}

impl Owed {
    fn settled(sequence: Sequence, charge: u64, outcome: Outcome) -> Owed {
        Owed {
            sequence,
            charge,
            arrived: Instant::now(),
            error: None,
            refused: Vec::new(),
            sent: HashMap::new(),
            outcome,
            traces: Vec::new(),
            held: None,
        }
    }

    async fn settle(&mut self) {
        if let Outcome::Submitted(outcome) = &mut self.outcome {
            // Whatever came of it, it is settled.
            drop(outcome.await);
        }
    }
}

/// Reads a `PublishRequest`.
fn parse(message: &Bytes) -> Result<Input, Refusal> {
    let mut reader = Reader::new(message);
    let field = reader
        .field()?
        .ok_or_else(|| Refusal::new(Reason::MessageMalformed, "message").detail("empty"))?;
    if reader.field()?.is_some() {
        return Err(Refusal::new(Reason::MessageMalformed, "message")
            .detail("more than one of open and batch"));
    }
    match (field.number, field.value) {
        (1, FieldValue::Len(open)) => api::PublishOpen::decode(open)
            .map(Input::Open)
            .map_err(|e| Refusal::new(Reason::MessageMalformed, "open").detail(e.to_string())),
        (2, FieldValue::Len(batch)) => Ok(Input::Batch(message.slice_ref(batch))),
        (n, _) => Err(Refusal::new(Reason::FieldUnknown, "message").detail(format!("field {n}"))),
    }
}

/// Names of producers and subscriptions.
pub fn check_name(name: &str, field: &str) -> Result<(), Refusal> {
    let ok = (1..=limits::NAME_BYTES_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
    if ok {
        Ok(())
    } else {
        Err(Refusal::new(Reason::NameInvalid, field))
    }
}

/// What a client says first.
async fn first(input: &mut Streaming<Frame>) -> Result<api::PublishOpen, Refusal> {
    match parse(&first_frame(input).await?.0)? {
        Input::Open(open) => Ok(open),
        Input::Batch(_) => Err(Reason::OpenExpected.into()),
    }
}

/// What came of a batch, once all its records are durable and applied.
async fn settled(outcome: oneshot::Receiver<BatchOutcome>) -> Result<Vec<PartOutcome>, Refusal> {
    outcome
        .await
        .map_err(|_| Refusal::from(Reason::CommitIndefinite))?
        .map_err(append_refusal)
}

fn append_refusal(error: AppendError) -> Refusal {
    match error {
        AppendError::Failed | AppendError::Poisoned => Reason::LogPoisoned.into(),
        AppendError::Indefinite => Reason::CommitIndefinite.into(),
        AppendError::Closed => Reason::ShuttingDown.into(),
    }
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "state cannot be read");
    Reason::Internal.into()
}

/// A stream that broke: a message over the transport's limit is named, the rest is a lost line.
fn transport(status: &Status) -> Refusal {
    match status.code() {
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => {
            Refusal::new(Reason::BatchTooLarge, "batch").detail(status.message())
        }
        _ => Refusal::from(Reason::SessionTakenOver).detail("the connection broke"),
    }
}
