//! One way of one connection: bytes are read, get the moment at which they may go on, and go on then.

use crate::{
    clients::mix,
    proxy::{Counters, Rule},
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::{mpsc, watch},
    time::Instant,
};

const CHUNK_BYTES: usize = 16 << 10;
/// Chunks under way: with [`CHUNK_BYTES`], 512 KiB. A line that swallowed more than real ones do would hide
/// from the broker that it is slow.
const CHUNKS_MAX: usize = 32;
/// What is lost one by one.
const SEGMENT_BYTES: usize = 1448;
/// The least time after which Linux sends a segment again.
const RETRANSMISSION: Duration = Duration::from_millis(200);

pub struct Pump<'a> {
    rule: watch::Receiver<Rule>,
    counters: &'a Counters,
    to_broker: bool,
    random: u64,
}

struct Chunk {
    bytes: Vec<u8>,
    go_at: Instant,
}

impl<'a> Pump<'a> {
    /// `salt` makes two pumps draw differently.
    pub fn new(
        rule: watch::Receiver<Rule>,
        counters: &'a Counters,
        to_broker: bool,
        salt: u16,
    ) -> Pump<'a> {
        Pump {
            rule,
            counters,
            to_broker,
            random: u64::from(salt),
        }
    }

    /// Until one end closes.
    pub async fn run(self, input: OwnedReadHalf, output: OwnedWriteHalf) {
        let (chunks, queue) = mpsc::channel(CHUNKS_MAX);
        let (rule, counters, to_broker) = (self.rule.clone(), self.counters, self.to_broker);
        // Both end when either does: a closed channel ends the other.
        tokio::join!(
            self.read(input, chunks),
            write(rule, (counters, to_broker), queue, output)
        );
    }

    async fn read(mut self, mut input: OwnedReadHalf, chunks: mpsc::Sender<Chunk>) {
        let mut last = Instant::now();
        loop {
            if self.rule.wait_for(|rule| !rule.unread).await.is_err() {
                return;
            }
            let mut bytes = vec![0; CHUNK_BYTES];
            let read = tokio::select! {
                // Cancel-safe: nothing is read unless it says so.
                read = input.read(&mut bytes) => read,
                _ = self.rule.wait_for(|rule| rule.unread) => continue,
                () = chunks.closed() => return,
            };
            let Ok(count @ 1..) = read else {
                return;
            };
            bytes.truncate(count);
            let go_at = self.go_at(&mut last, count);
            if chunks.send(Chunk { bytes, go_at }).await.is_err() {
                return;
            }
        }
    }

    /// Bytes of one way stay in order, so none goes before those before it.
    fn go_at(&mut self, last: &mut Instant, bytes: usize) -> Instant {
        let rule = *self.rule.borrow();
        let now = Instant::now();
        let mut delay = rule.delay;
        if !rule.jitter.is_zero() {
            // Within plus and minus the jitter, evenly.
            let share = self.draw() * 2.0;
            delay = (delay + rule.jitter.mul_f64(share)).saturating_sub(rule.jitter);
        }
        if rule.loss > 0.0 {
            let segments = bytes.div_ceil(SEGMENT_BYTES);
            let lost = (0..segments).filter(|_| self.draw() < rule.loss).count();
            delay += RETRANSMISSION * lost as u32;
            self.counters.add(|c| &c.stalls, lost as u64);
            self.counters.add(|c| &c.segments, segments as u64);
        }
        if !delay.is_zero() {
            self.counters.add(|c| &c.delayed_chunks, 1);
            self.counters
                .add(|c| &c.delayed_us, delay.as_micros() as u64);
        }
        let mut at = (now + delay).max(*last);
        if let Some(bytes_per_s) = rule.bytes_per_s {
            // A line that is wide enough takes its time for each piece too; only what queues is held up.
            let queued = last.saturating_duration_since(now + delay);
            self.counters
                .add(|c| &c.throttled_us, queued.as_micros() as u64);
            at += Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
        }
        *last = at;
        at
    }

    /// From 0 to below 1.
    fn draw(&mut self) -> f64 {
        self.random = mix(self.random);
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }
}

async fn write(
    mut rule: watch::Receiver<Rule>,
    (counters, to_broker): (&Counters, bool),
    mut queue: mpsc::Receiver<Chunk>,
    mut output: OwnedWriteHalf,
) {
    while let Some(chunk) = queue.recv().await {
        tokio::time::sleep_until(chunk.go_at).await;
        if rule.borrow().held {
            counters.add(|c| &c.held_bytes, chunk.bytes.len() as u64);
        }
        if rule.wait_for(|rule| !rule.held).await.is_err()
            || output.write_all(&chunk.bytes).await.is_err()
        {
            return;
        }
        counters.add(|c| &c.bytes, chunk.bytes.len() as u64);
        if to_broker {
            counters.add(|c| &c.to_broker_bytes, chunk.bytes.len() as u64);
        }
    }
    // The other side may still speak; it sees the end here.
    drop(output.shutdown().await);
}
