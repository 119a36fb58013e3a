//! Publishing in an open loop: each delta has a moment at which it is due, fixed before, so a broker
//! that falls behind cannot slow the clock. What is due but not taken waits, as in an outbox, and
//! goes later with its own time.

use crate::{
    clients::{Board, Deltas, POISON_MARK, issuer, provenance},
    clock::Clock,
    drill::{Surge, Workload},
    error::ChaosError,
    history::{Event, How, Stream, Writer},
};
use hutong_connectors::client::{
    ClientError, EncodedBatch, Endpoint, Identity, Pending, Publisher, PublisherOptions, Receipt,
};
use hutong_proto::{Delta, EntityId, Micros, Reason, Revision, Value, delta::Colour, limits, wire};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet};

/// A connector's own bound.
const BATCH_DELTAS_MAX: u64 = 2000;
const URGENT_EVERY: Duration = Duration::from_millis(20);
const BULK_EVERY: Duration = Duration::from_millis(100);
/// More would wait on the line, where nobody counts it.
const IN_FLIGHT_MAX: usize = 32;

/// How many deltas of a stream are due by a moment.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub per_s: f64,
    pub surge: Option<Surge>,
    /// Since the start of the drill.
    pub from: Duration,
    pub until: Duration,
}

impl Load {
    /// One platform's share of a stream.
    pub fn of(workload: &Workload, stream: Stream, duration: Duration) -> Load {
        let share = match stream {
            Stream::Urgent => workload.urgent,
            Stream::Bulk | Stream::Flood => 1.0 - workload.urgent,
        };
        Load {
            per_s: workload.rate * share / workload.platforms as f64,
            surge: workload.surge.filter(|_| stream != Stream::Urgent),
            from: Duration::ZERO,
            until: duration,
        }
    }

    /// Up to this moment.
    fn due_by(&self, at: Duration) -> u64 {
        let at = at.clamp(self.from, self.until);
        let mut seconds = (at - self.from).as_secs_f64();
        if let Some(surge) = self.surge {
            let within = at.clamp(surge.at, surge.at + surge.lasting) - surge.at;
            seconds += within.as_secs_f64() * (surge.factor - 1.0);
        }
        (seconds * self.per_s) as u64
    }
}

/// One stream of one platform.
#[derive(Debug)]
pub struct Producer {
    pub issuer: u32,
    pub stream: Stream,
    pub load: Load,
    pub deltas: Deltas,
    pub history: Writer,
    pub board: Arc<Board>,
    /// Above all that this stream said before.
    pub first: u64,
    /// Of the platforms, so that they do not all tick together.
    pub phase: f64,
}

impl Producer {
    /// Opens the stream, which works also while the broker is away for a moment.
    pub async fn connect(&self, url: &str) -> Result<Publisher, ChaosError> {
        let endpoint = Endpoint::new(url, Identity::Platform(issuer(self.issuer)));
        let mut options = PublisherOptions::new(endpoint, self.stream.name());
        options.batches_in_flight_max = IN_FLIGHT_MAX;
        Publisher::connect(options)
            .await
            .map_err(ChaosError::stage("a publisher cannot connect"))
    }

    /// Until all that was due is handed over, and then until all of it is answered. `give_up` ends the
    /// wait: what has no answer by then stays unknown.
    pub async fn run(self, publisher: Publisher, mut give_up: watch::Receiver<bool>) -> u64 {
        let every = match self.stream {
            Stream::Urgent => URGENT_EVERY,
            Stream::Bulk | Stream::Flood => BULK_EVERY,
        };
        let me = Arc::new(self);
        let clock = me.clock();
        let mut pending = JoinSet::new();
        let begin = me.load.from + every.mul_f64(me.phase);
        let mut sent = 0;
        let mut next = me.first;
        let mut ended = false;
        for tick in 1.. {
            let due = begin + every * tick;
            tokio::select! {
                () = clock.sleep_until(due) => {}
                _ = give_up.wait_for(|given_up| *given_up) => break,
            }
            let mut left = me.load.due_by(due) - sent;
            sent += left;
            while left > 0 && !ended {
                let count = left.min(BATCH_DELTAS_MAX);
                left -= count;
                let handed = me.hand_over(&publisher, next, count as u32, due);
                tokio::select! {
                    waiting = handed => match waiting {
                        Some((op, waiting)) => {
                            let me = Arc::clone(&me);
                            pending.spawn(me.settle(op, next, count as u32, waiting));
                        }
                        None => ended = true,
                    },
                    _ = give_up.wait_for(|given_up| *given_up) => ended = true,
                }
                next += count;
            }
            while pending.try_join_next().is_some() {}
            if due >= me.load.until || ended {
                break;
            }
        }
        let answered = async { while pending.join_next().await.is_some() {} };
        tokio::select! {
            () = answered => {}
            _ = give_up.wait_for(|given_up| *given_up) => {}
        }
        // Others may hold the library's error; here it is only about when it ended.
        if let Some(error) = publisher.ended() {
            me.history.record(Event::ClientEnded {
                who: format!("publisher {} {}", me.issuer, me.stream.name()),
                error: error.to_string(),
            });
        }
        next
    }

    fn clock(&self) -> Clock {
        self.history.clock()
    }

    async fn hand_over(
        &self,
        publisher: &Publisher,
        first: u64,
        count: u32,
        due: Duration,
    ) -> Option<(u64, Pending)> {
        let due = due.as_micros() as u64;
        let made: Vec<Delta> = (first..first + u64::from(count))
            .map(|revision| self.deltas.make(self.issuer, self.stream, revision, due))
            .collect();
        let op = self.history.next_op();
        self.history.record(Event::Publish {
            op,
            issuer: self.issuer,
            stream: self.stream,
            first,
            count,
            due,
        });
        let last = first + u64::from(count) - 1;
        self.board.handed_over(self.issuer, self.stream, last, due);
        if self.stream == Stream::Flood {
            self.board.flood_offers(u64::from(count));
        }
        match publisher.publish(made).await {
            Ok(pending) => Some((op, pending)),
            Err(error) => {
                // The library ended before it took the batch, so it was never sent.
                self.history.record(failed(op, How::Failed, &error));
                None
            }
        }
    }

    async fn settle(self: Arc<Self>, op: u64, first: u64, count: u32, pending: Pending) {
        let receipt = match pending.await {
            Ok(receipt) => receipt,
            Err(error) => {
                self.history.record(failed(op, How::Unknown, &error));
                return;
            }
        };
        let refused: Vec<u32> = receipt.refused.iter().map(|r| r.index).collect();
        let highest = (0..count).rev().find(|index| !refused.contains(index));
        if let (Some(highest), None) = (highest, &receipt.error) {
            let highest = first + u64::from(highest);
            let deltas = u64::from(receipt.accepted);
            self.board
                .accepted(self.issuer, self.stream, highest, deltas);
        }
        self.history.record(ended(op, receipt));
    }
}

fn failed(op: u64, how: How, error: &ClientError) -> Event {
    Event::End {
        op,
        how,
        accepted: 0,
        duplicate: false,
        refused: Vec::new(),
        error: Some(error.to_string()),
    }
}

fn ended(op: u64, receipt: Receipt) -> Event {
    Event::End {
        op,
        how: match receipt.error {
            Some(_) => How::Failed,
            None => How::Ok,
        },
        accepted: receipt.accepted,
        duplicate: receipt.duplicate,
        refused: (receipt.refused.into_iter())
            .map(|refused| (refused.index, refused.info.reason))
            .collect(),
        error: receipt.error.map(|error| error.to_string()),
    }
}

/// Batches that must be refused, of every kind that can be made.
#[derive(Debug)]
pub struct Poisoner {
    pub issuer: u32,
    pub url: String,
    pub history: Writer,
    pub deltas: Deltas,
    pub every: Duration,
}

/// Poison batches so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refusals {
    pub sent: u64,
    /// With a reason.
    pub refused: u64,
}

/// A batch that is wrong in one way.
struct Poison {
    what: &'static str,
    body: Vec<u8>,
    deltas: u32,
    bad: u32,
}

impl Poisoner {
    /// Until it is stopped.
    pub async fn run(self, seen: watch::Sender<Refusals>) {
        let endpoint = Endpoint::new(&self.url, Identity::Platform(issuer(self.issuer)));
        let mut publisher: Option<Publisher> = None;
        for turn in 0.. {
            tokio::time::sleep(self.every).await;
            let line = match publisher.take().filter(|p| p.ended().is_none()) {
                Some(line) => line,
                // What cannot be read at all ends the stream, as it must.
                None => match Publisher::connect(PublisherOptions::new(endpoint.clone(), "poison"))
                    .await
                {
                    Ok(line) => line,
                    Err(_) => continue,
                },
            };
            self.give(&line, turn, &seen).await;
            publisher = Some(line);
        }
    }

    async fn give(&self, publisher: &Publisher, turn: u64, seen: &watch::Sender<Refusals>) {
        let Poison {
            what,
            body,
            deltas,
            bad,
        } = self.poison(turn);
        let op = self.history.next_op();
        self.history.record(Event::Poison {
            op,
            issuer: self.issuer,
            what: what.to_owned(),
            bad,
        });
        let batch = EncodedBatch {
            body: body.into(),
            deltas,
        };
        let pending = match publisher.publish_encoded(batch).await {
            Ok(pending) => pending,
            Err(error) => {
                self.history.record(failed(op, How::Failed, &error));
                return;
            }
        };
        seen.send_modify(|seen| seen.sent += 1);
        match pending.await {
            Ok(receipt) => {
                if receipt.error.is_some() || !receipt.refused.is_empty() {
                    seen.send_modify(|seen| seen.refused += 1);
                }
                self.history.record(ended(op, receipt));
            }
            Err(error) => {
                let how = match error.reason() {
                    // It said no to the stream as a whole, with a reason.
                    Some(reason) if reason != Reason::CommitIndefinite => {
                        seen.send_modify(|seen| seen.refused += 1);
                        How::Failed
                    }
                    _ => How::Unknown,
                };
                self.history.record(failed(op, how, &error));
            }
        }
    }

    fn poison(&self, turn: u64) -> Poison {
        let now = self.history.clock().wall_now();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&POISON_MARK);
        id[8..].copy_from_slice(&turn.to_be_bytes());
        let sound = Delta {
            entity: EntityId(id),
            revision: Revision(turn + 1),
            committed_at: now,
            expires_at: Micros::ZERO,
            evidence: String::new(),
            provenance: Arc::new(provenance(self.issuer)),
            value: Value::HealthCode(Colour::Red),
        };
        poisoned(sound, turn)
    }
}

/// The body of a batch of one.
fn whole(delta: &Delta, provenance: u32) -> Vec<u8> {
    let mut body = Vec::new();
    wire::put_bytes(&mut body, 9, &delta.provenance.encode());
    let mut one = Vec::new();
    delta.encode(provenance, &mut one);
    wire::put_bytes(&mut body, 10, &one);
    body
}

/// A sound delta, spoilt in one of eight ways.
fn poisoned(sound: Delta, turn: u64) -> Poison {
    let now = sound.committed_at;
    let one = |what, delta: &Delta| Poison {
        what,
        body: whole(delta, 0),
        deltas: 1,
        bad: 1,
    };
    match turn % 8 {
        0 => one(
            "entity of zeros",
            &Delta {
                entity: EntityId([0; 16]),
                ..sound
            },
        ),
        1 => one(
            "revision 0",
            &Delta {
                revision: Revision(0),
                ..sound
            },
        ),
        2 => one(
            "committed in 2099",
            &Delta {
                committed_at: Micros(limits::TIME_US_MAX - 1),
                ..sound
            },
        ),
        3 => one(
            "expires before it was committed",
            &Delta {
                expires_at: Micros(now.0 - 1_000_000),
                ..sound
            },
        ),
        4 => Poison {
            what: "no provenance",
            body: whole(&sound, 7),
            deltas: 1,
            bad: 1,
        },
        5 => Poison {
            what: "a field that nobody knows",
            body: {
                let mut body = whole(&sound, 0);
                wire::put_bytes(&mut body, 99, b"?");
                body
            },
            deltas: 1,
            bad: 1,
        },
        6 => Poison {
            what: "a batch without deltas",
            body: Vec::new(),
            deltas: 0,
            bad: 0,
        },
        _ => Poison {
            what: "bytes that are no message",
            body: vec![0xff; 64],
            deltas: 1,
            bad: 1,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_surge_makes_more_due_only_while_it_lasts() {
        let second = Duration::from_secs(1);
        let load = Load {
            per_s: 10.0,
            surge: Some(Surge {
                at: second * 2,
                lasting: second * 2,
                factor: 5.0,
            }),
            from: Duration::ZERO,
            until: second * 6,
        };
        let due: Vec<_> = (0..8).map(|at| load.due_by(second * at)).collect();
        assert_eq!(due, [0, 10, 20, 70, 120, 130, 140, 140]);
    }
}
