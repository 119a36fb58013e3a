//! The task behind a publisher.

use crate::client::{
    ClientError, RefusedInfo,
    publisher::{Job, Position, PublisherOptions, PublisherStatus, Receipt, Refused},
};
use bytes::Bytes;
use hutong_proto::{
    Epoch, Issuer, Lane, LogId, Micros, Offset, Sequence, Shard, api,
    api::{publish_request, publish_response},
    frame::Frame,
};
use prost::Message;
use std::{collections::VecDeque, time::Duration};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Messages that wait for the connection; what is under way is bounded by credit.
const OUT_MESSAGES_MAX: usize = 16;
/// The least that the broker counts for a batch.
const BATCH_CHARGE_BYTES_MIN: u64 = 1024;
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A batch that is not acknowledged.
struct Owed {
    sequence: Sequence,
    message: Bytes,
    charge: u64,
    deltas: u32,
    answer: oneshot::Sender<Result<Receipt, ClientError>>,
}

pub struct Task {
    options: PublisherOptions,
    issuer: Issuer,
    epoch: Epoch,
    jobs: mpsc::Receiver<Job>,
    status: watch::Sender<PublisherStatus>,
    ended: watch::Sender<Option<ClientError>>,
    /// Oldest first; those before `sent` were sent on the connection there is.
    owed: VecDeque<Owed>,
    sent: usize,
    /// Of the next new batch; known once the first stream is open.
    next: Option<Sequence>,
    /// The highest one that was ever sent: nothing above it can be durable.
    sent_last: Sequence,
    acknowledged: Sequence,
    /// Of the first stream.
    log_id: Option<LogId>,
    /// Streams that failed one after the other, without an ack between them.
    tries: u32,
    /// All handles are gone: no new batch will come.
    closed: bool,
}

/// An open stream.
struct Stream {
    out: mpsc::Sender<Frame>,
    input: Streaming<Frame>,
    credit: i64,
    credit_max: i64,
}

impl Task {
    pub fn new(
        options: PublisherOptions,
        issuer: Issuer,
        epoch: Epoch,
        jobs: mpsc::Receiver<Job>,
        status: watch::Sender<PublisherStatus>,
        ended: watch::Sender<Option<ClientError>>,
    ) -> Task {
        Task {
            options,
            issuer,
            epoch,
            jobs,
            status,
            ended,
            owed: VecDeque::new(),
            sent: 0,
            next: None,
            sent_last: Sequence::NONE,
            acknowledged: Sequence::NONE,
            log_id: None,
            tries: 0,
            closed: false,
        }
    }

    pub async fn run(mut self) {
        let end = loop {
            let error = match self.open().await {
                Ok(mut stream) => {
                    self.status.send_modify(|s| s.connected = true);
                    match self.drive(&mut stream).await {
                        Ok(()) => break ClientError::Closed,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            self.options.last_error.set(&error);
            self.status.send_modify(|s| {
                s.connected = false;
                s.last_error = Some(error.to_string());
            });
            self.tell_credit_wait(false);
            if !error.is_passing() {
                break error;
            }
            let tries = self.tries;
            tracing::debug!(producer = self.options.producer, %error, tries, "connecting again");
            self.pause(self.options.backoff.wait(tries)).await;
            if self.done() {
                break ClientError::Closed;
            }
            self.tries = tries.saturating_add(1);
            self.status.send_modify(|s| s.reconnects += 1);
        };
        self.ended.send_replace(Some(end.clone()));
        self.jobs.close();
        for owed in self.owed.drain(..) {
            // Whoever waited may have stopped to.
            drop(owed.answer.send(Err(end.clone())));
        }
        while let Ok(job) = self.jobs.try_recv() {
            drop(job.answer.send(Err(end.clone())));
        }
    }

    /// Every handle is gone, and nothing is owed to them.
    fn done(&self) -> bool {
        self.closed && self.owed.is_empty()
    }

    fn room(&self) -> bool {
        // Fewer than one batch under way would be none for ever.
        !self.closed && self.owed.len() < self.options.batches_in_flight_max.max(1)
    }

    /// Waits, but takes what is handed over meanwhile, and sees when nobody is left to wait for.
    async fn pause(&mut self, wait: Duration) {
        let until = tokio::time::Instant::now() + wait;
        while !self.done() {
            // Before the first stream there is no number to give, and nobody to hand over.
            let room = self.room() && self.next.is_some();
            // Biased, as every choice of this task: a simulation can then repeat a run.
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until) => return,
                // Cancel-safe, as mpsc says.
                job = self.jobs.recv(), if room => match job {
                    Some(job) => self.number(job),
                    None => self.closed = true,
                },
            }
        }
    }

    async fn open(&mut self) -> Result<Stream, ClientError> {
        let (out, frames) = mpsc::channel(OUT_MESSAGES_MAX);
        let dialer = &self.options.dialer.0;
        let opening = dialer.publish(&self.options.endpoint, ReceiverStream::new(frames));
        let open = api::PublishRequest {
            message: Some(publish_request::Message::Open(api::PublishOpen {
                producer: self.options.producer.clone(),
                epoch: self.epoch.0,
            })),
        };
        let address = self.options.endpoint.address.clone();
        let opening = async {
            // Never full: it is the first message.
            drop(out.send(Frame::new(open.encode_to_vec().into())).await);
            let mut input = opening.await?;
            let first = input.message().await?;
            Ok::<_, ClientError>((input, first))
        };
        let (input, first) = tokio::time::timeout(OPEN_TIMEOUT, opening)
            .await
            .unwrap_or_else(|_| {
                Err(ClientError::Unreachable {
                    address,
                    why: format!("no answer for {} s", OPEN_TIMEOUT.as_secs()),
                })
            })?;
        let opened = match read(first)? {
            publish_response::Message::Opened(opened) => opened,
            publish_response::Message::Draining(draining) => {
                return Err(ClientError::Draining(draining.reason));
            }
            other => return Err(ClientError::Malformed(format!("{other:?} before opened"))),
        };
        let log_id = LogId(opened.log_id);
        if let Some(was) = self.log_id.replace(log_id)
            && was != log_id
        {
            return Err(ClientError::AnotherLog { was, now: log_id });
        }
        self.status.send_modify(|s| s.log_id = Some(log_id));
        self.resume(Sequence(opened.last_durable_sequence))?;
        let credit = i64::try_from(opened.credit_bytes).unwrap_or(i64::MAX);
        Ok(Stream {
            out,
            input,
            credit,
            credit_max: credit,
        })
    }

    /// Settles what the broker has, so that the rest is sent again.
    fn resume(&mut self, durable: Sequence) -> Result<(), ClientError> {
        if durable < self.acknowledged {
            return Err(ClientError::Forgotten {
                acknowledged: self.acknowledged.0,
                durable: durable.0,
            });
        }
        if durable.0 == u64::MAX {
            return Err(ClientError::Malformed(format!(
                "batch {durable} as the last durable one"
            )));
        }
        match self.next {
            // Batches that are not ours have our numbers: ours would be taken for them.
            Some(_) if durable > self.sent_last => {
                return Err(ClientError::Overtaken {
                    sent: self.sent_last.0,
                    durable: durable.0,
                });
            }
            Some(_) => {}
            None => {
                self.next = Some(durable.next());
                self.sent_last = durable;
                self.acknowledged = durable;
            }
        }
        let durable = match planted!(PublisherForgets) {
            true => durable.next(),
            false => durable,
        };
        while let Some(owed) = self.owed.pop_front_if(|owed| owed.sequence <= durable) {
            self.acknowledged = owed.sequence;
            let receipt = Receipt {
                sequence: owed.sequence,
                accepted: owed.deltas,
                refused: Vec::new(),
                error: None,
                duplicate: true,
                positions: Vec::new(),
            };
            drop(owed.answer.send(Ok(receipt)));
        }
        self.sent = 0;
        Ok(())
    }

    /// Works until the stream breaks (an error) or everything is done (`Ok`).
    async fn drive(&mut self, stream: &mut Stream) -> Result<(), ClientError> {
        let out = stream.out.clone();
        loop {
            let sendable = self.owed.get(self.sent).is_some_and(|owed| {
                // A batch larger than all credit goes alone.
                stream.credit >= owed.charge as i64 || (self.sent == 0 && stream.credit > 0)
            });
            if self.done() {
                return Ok(());
            }
            self.tell_credit_wait(self.sent < self.owed.len() && !sendable);
            let room = self.room();
            tokio::select! {
                // Acks first: they make room. Cancel-safe: a partial frame stays in the stream.
                biased;
                frame = stream.input.message() => self.take(frame?, stream)?,
                // Cancel-safe: a permit that is not used goes back.
                permit = out.reserve(), if sendable => {
                    let permit = permit.map_err(|_| ClientError::Broken("stream ended".into()))?;
                    let owed = &self.owed[self.sent];
                    stream.credit -= owed.charge as i64;
                    permit.send(Frame::new(owed.message.clone()));
                    self.sent_last = self.sent_last.max(owed.sequence);
                    self.sent += 1;
                }
                // Cancel-safe, as mpsc says.
                job = self.jobs.recv(), if room => match job {
                    Some(job) => self.number(job),
                    None => self.closed = true,
                },
            }
        }
    }

    fn number(&mut self, job: Job) {
        let sequence = self.next.unwrap_or(Sequence::NONE.next());
        self.next = Some(sequence.next());
        let (message, bytes) = job.batch.message(sequence, self.issuer);
        self.owed.push_back(Owed {
            sequence,
            message,
            charge: bytes.max(BATCH_CHARGE_BYTES_MIN),
            deltas: job.batch.deltas,
            answer: job.answer,
        });
        self.tell_in_flight();
    }

    fn take(&mut self, frame: Option<Frame>, stream: &mut Stream) -> Result<(), ClientError> {
        match read(frame)? {
            publish_response::Message::Ack(ack) => {
                let more = i64::try_from(ack.credit_bytes).unwrap_or(i64::MAX);
                stream.credit = stream.credit.saturating_add(more).min(stream.credit_max);
                self.acknowledge(ack)
            }
            publish_response::Message::Draining(draining) => {
                Err(ClientError::Draining(draining.reason))
            }
            publish_response::Message::Opened(_) => {
                Err(ClientError::Malformed("opened twice".to_owned()))
            }
        }
    }

    fn acknowledge(&mut self, ack: api::PublishAck) -> Result<(), ClientError> {
        let expected = self.owed.front().map(|owed| owed.sequence);
        if expected != Some(Sequence(ack.sequence)) || self.sent == 0 {
            return Err(ClientError::Malformed(format!(
                "an ack of batch {}, expected {expected:?}",
                ack.sequence
            )));
        }
        let Some(owed) = self.owed.pop_front() else {
            return Ok(());
        };
        self.sent -= 1;
        self.acknowledged = owed.sequence;
        // Not when a stream opens: one that opens and fails each time must not be asked at once.
        self.tries = 0;
        // Whoever waited may have stopped to.
        drop(owed.answer.send(receipt(ack)));
        self.tell_in_flight();
        Ok(())
    }

    fn tell_credit_wait(&self, waiting: bool) {
        self.status.send_if_modified(|s| {
            let changed = s.credit_wait.is_waiting() != waiting;
            if changed {
                s.credit_wait.set(waiting);
            }
            changed
        });
    }

    fn tell_in_flight(&self) {
        let count = self.owed.len();
        self.status.send_if_modified(|s| {
            let changed = s.batches_in_flight != count;
            s.batches_in_flight = count;
            changed
        });
    }
}

fn read(frame: Option<Frame>) -> Result<publish_response::Message, ClientError> {
    let frame = frame.ok_or_else(|| ClientError::Broken("the broker ended the stream".into()))?;
    api::PublishResponse::decode(frame.0)
        .map_err(|e| ClientError::Malformed(e.to_string()))?
        .message
        .ok_or_else(|| ClientError::Malformed("an empty message".to_owned()))
}

fn receipt(ack: api::PublishAck) -> Result<Receipt, ClientError> {
    let info = |error: Option<api::ErrorInfo>| RefusedInfo::from_api(error.unwrap_or_default());
    let position = |p: &api::Position| {
        let lane = u64::try_from(p.lane).ok().and_then(Lane::from_number);
        Ok::<_, ClientError>(Position {
            lane: lane.ok_or_else(|| ClientError::Malformed(format!("lane {}", p.lane)))?,
            shard: Shard(p.shard),
            offset: Offset(p.offset),
            durable_at: Micros(p.durable_at_us),
        })
    };
    Ok(Receipt {
        sequence: Sequence(ack.sequence),
        accepted: ack.accepted,
        refused: ack
            .refused
            .into_iter()
            .map(|refusal| Refused {
                index: refusal.index,
                info: info(refusal.error),
            })
            .collect(),
        error: ack.error.map(RefusedInfo::from_api),
        duplicate: ack.duplicate,
        positions: ack
            .positions
            .iter()
            .map(position)
            .collect::<Result<_, _>>()?,
    })
}
