//! What the broker says to a producer, bounded in bytes until the connection takes it. An ack that
//! refuses 20,000 deltas has megabytes, so a bound in messages would be none. Credit comes back when the
//! ack that carries it was taken: whoever takes no acks comes to a halt by its own credit (INV-9).

use futures_core::Stream;
use hutong_proto::frame::Frame;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::Instant,
};
use tonic::Status;

/// What may wait, unless a single message is larger.
const BYTES_MAX: usize = 1 << 20;
/// The least that a message counts: bounds how many wait.
const MESSAGE_CHARGE_BYTES_MIN: usize = 1024;

/// The session's end. Dropping it ends the stream after what waits.
#[derive(Debug)]
pub struct Outbox {
    shared: Arc<Shared>,
}

/// The connection's end.
#[derive(Debug)]
pub struct Frames {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Bytes of batches that are neither acknowledged nor refused, as the producer counts its credit.
    under_way: AtomicU64,
    waiting: Mutex<Waiting>,
    /// Told whenever something is put in, taken or dropped.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Message>,
    bytes: usize,
    /// Since when the first one waits to be taken.
    stands_since: Option<Instant>,
    /// Nothing is put in any more; with a status to end with, or none.
    ended: bool,
    status: Option<Status>,
    /// The connection is gone.
    gone: bool,
    waker: Option<Waker>,
}

/// A message for the client.
#[derive(Debug, Default)]
pub struct Message {
    pub frame: Frame,
    /// Comes back to the producer when this is taken.
    pub credit: u64,
    /// What the message cost before it was written; given back when it is taken.
    pub held: Option<OwnedSemaphorePermit>,
}

impl Message {
    fn bytes(&self) -> usize {
        self.frame.len().max(MESSAGE_CHARGE_BYTES_MIN)
    }
}

/// The client went away: nobody will take anything.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

pub fn outbox() -> (Outbox, Frames) {
    let shared = Arc::new(Shared {
        under_way: AtomicU64::new(0),
        waiting: Mutex::default(),
        changed: Notify::new(),
    });
    let frames = Frames {
        shared: Arc::clone(&shared),
    };
    (Outbox { shared }, frames)
}

impl Outbox {
    /// Counts a batch against the credit; returns what is under way with it.
    pub fn charge(&self, bytes: u64) -> u64 {
        self.shared.under_way.fetch_add(bytes, Ordering::AcqRel) + bytes
    }

    /// Puts a message in, once there is room. May be cancelled: then nothing was put in.
    pub async fn push(&self, message: Message) -> Result<(), Gone> {
        let bytes = message.bytes();
        let mut message = Some(message);
        loop {
            let changed = self.shared.changed.notified();
            let waker = {
                let mut waiting = self.shared.waiting.lock();
                if waiting.gone || waiting.ended {
                    return Err(Gone);
                }
                if waiting.messages.is_empty() || waiting.bytes + bytes <= BYTES_MAX {
                    waiting.bytes += bytes;
                    waiting.messages.extend(message.take());
                    waiting.stands_since.get_or_insert_with(Instant::now);
                    Some(waiting.waker.take())
                } else {
                    None
                }
            };
            match waker {
                Some(waker) => {
                    self.shared.changed.notify_waiters();
                    waker.into_iter().for_each(Waker::wake);
                    return Ok(());
                }
                None => changed.await,
            }
        }
    }

    /// Returns when the first message that waits has waited for so long: the client takes nothing.
    pub async fn stalled(&self, patience: Duration) {
        loop {
            let changed = self.shared.changed.notified();
            let since = self.shared.waiting.lock().stands_since;
            let Some(deadline) = since.map(|since| since + patience) else {
                changed.await;
                continue;
            };
            if deadline <= Instant::now() {
                return;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    /// Returns when everything was taken, or nobody is left to take it.
    pub async fn taken(&self) {
        loop {
            let changed = self.shared.changed.notified();
            if self.shared.waiting.lock().messages.is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// Ends the stream after what waits.
    pub fn end(&self, status: Option<Status>) {
        self.finish(status, false);
    }

    /// Ends the stream and drops what waits: the memory is the broker's, not that of who does not read.
    pub fn cut(&self, status: Status) {
        self.finish(Some(status), true);
    }

    fn finish(&self, status: Option<Status>, cut: bool) {
        let waker = {
            let mut waiting = self.shared.waiting.lock();
            waiting.ended = true;
            waiting.status = status.or(waiting.status.take());
            if cut {
                waiting.clear();
            }
            waiting.waker.take()
        };
        self.shared.changed.notify_waiters();
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.end(None);
    }
}

impl Waiting {
    fn clear(&mut self) {
        self.messages = VecDeque::new();
        self.bytes = 0;
        self.stands_since = None;
    }
}

impl Stream for Frames {
    type Item = Result<Frame, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut waiting = self.shared.waiting.lock();
        if let Some(message) = waiting.messages.pop_front() {
            waiting.bytes -= message.bytes();
            let Message {
                frame,
                credit,
                held,
            } = message;
            waiting.stands_since = (!waiting.messages.is_empty()).then(Instant::now);
            drop(waiting);
            drop(held);
            self.shared.under_way.fetch_sub(credit, Ordering::AcqRel);
            self.shared.changed.notify_waiters();
            return Poll::Ready(Some(Ok(frame)));
        }
        if waiting.ended {
            return Poll::Ready(waiting.status.take().map(Err));
        }
        waiting.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        let mut waiting = self.shared.waiting.lock();
        waiting.gone = true;
        waiting.clear();
        drop(waiting);
        self.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt};

    const HALF: usize = BYTES_MAX / 2;
    const PATIENCE: Duration = Duration::from_millis(50);

    fn message(len: usize, credit: u64) -> Message {
        Message {
            frame: Frame::new(vec![0; len].into()),
            credit,
            held: None,
        }
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_bytes_and_credit_comes_back_with_what_is_taken() {
        let (outbox, mut frames) = outbox();
        assert_eq!((outbox.charge(10), outbox.charge(20)), (10, 30));
        assert_eq!(outbox.push(message(HALF, 10)).await, Ok(()));
        assert_eq!(outbox.push(message(HALF, 20)).await, Ok(()));
        assert!(outbox.push(message(1, 0)).now_or_never().is_none(), "full");
        assert_eq!(outbox.charge(0), 30, "nothing was taken yet");
        frames.next().await.expect("a frame").expect("no error");
        assert_eq!(outbox.charge(0), 20);
        assert_eq!(outbox.push(message(1, 0)).now_or_never(), Some(Ok(())));
        // One that is larger than everything goes alone.
        let large = outbox.push(message(2 * BYTES_MAX, 0));
        tokio::pin!(large);
        assert!((&mut large).now_or_never().is_none());
        for _ in 0..2 {
            frames.next().await.expect("a frame").expect("no error");
        }
        assert_eq!(large.now_or_never(), Some(Ok(())));
    }

    #[tokio::test]
    async fn many_small_messages_are_bounded_too() {
        let (outbox, _frames) = outbox();
        let mut put = 0;
        while outbox.push(message(1, 0)).now_or_never().is_some() {
            put += 1;
        }
        assert_eq!(put, BYTES_MAX / MESSAGE_CHARGE_BYTES_MIN);
    }

    #[tokio::test]
    async fn who_takes_nothing_is_noticed_from_the_last_time_that_it_took_something() {
        let (outbox, mut frames) = outbox();
        assert!(outbox.stalled(Duration::ZERO).now_or_never().is_none());
        for _ in 0..3 {
            outbox.push(message(1, 0)).await.expect("room");
        }
        outbox.stalled(PATIENCE).await;
        let taken = Instant::now();
        frames.next().await.expect("a frame").expect("no error");
        outbox.stalled(PATIENCE).await;
        assert!(taken.elapsed() >= PATIENCE);
        outbox.cut(Status::aborted("stalled"));
        let last = frames.next().await.expect("the end");
        assert_eq!(last.expect_err("a status").message(), "stalled");
        assert!(frames.next().await.is_none());
        assert_eq!(outbox.push(message(1, 0)).await, Err(Gone));
    }

    #[tokio::test]
    async fn the_end_comes_after_what_waits_and_a_client_that_left_holds_up_nobody() {
        let (first, mut frames) = outbox();
        first.push(message(1, 0)).await.expect("room");
        first.end(Some(Status::aborted("over")));
        assert!(first.taken().now_or_never().is_none());
        assert!(frames.next().await.expect("a frame").is_ok());
        assert!(frames.next().await.expect("the status").is_err());
        first.taken().await;
        let (second, frames) = outbox();
        second.push(message(2 * BYTES_MAX, 0)).await.expect("room");
        let more = second.push(message(1, 0));
        tokio::pin!(more);
        assert!((&mut more).now_or_never().is_none());
        drop(frames);
        assert_eq!(more.await, Err(Gone));
        second.taken().await;
    }
}
