//! One task that looks, for all clients: it takes a sample a second, and a picture as long as somebody wants
//! one. What a client costs is the bytes that it is sent.

use crate::{
    clock::Clock,
    console::{
        picture::{Picture, Sources},
        samples::{Point, Sampler},
    },
    lag::SubscriptionLag,
};
use bytes::Bytes;
use futures_core::Stream;
use futures_util::stream;
use parking_lot::Mutex;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Streams at one time; the next client is asked to come again.
pub const CLIENTS_MAX: usize = 16;
const EVERY: Duration = Duration::from_secs(1);
/// The pause after a picture is so many times what it took: pictures cost at most a hundredth of a processor...
const PAUSE_SHARE: u32 = 99;
/// ...unless that would be a pause longer than this, so that what is shown is never old.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// A picture that is younger serves whoever asks for one.
const FRESH: Duration = Duration::from_millis(500);
/// A page that goes with a picture is answered from the last one: a stream brings one more often than this.
const RECENT: Duration = PAUSE_MAX.saturating_add(EVERY);
/// Whoever asked once gets its answer by then.
const ANSWER_MAX: Duration = Duration::from_secs(4);
/// Something is sent at least so often, so that both ends notice a line that is down.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// After which a browser comes again when its stream has ended.
const RETRY_MS: &str = "1000";

/// A picture as JSON, encoded once. The number tells one from the next.
#[derive(Clone, Default)]
struct Frame {
    serial: u64,
    taken: Option<Instant>,
    /// What it was made of.
    lags: Arc<[SubscriptionLag]>,
    json: Bytes,
    /// The same as an event of a stream.
    event: Bytes,
}

impl Frame {
    /// What a client that comes now has seen: a picture of when somebody looked last is not shown as one of now.
    fn counts_as_seen(&self) -> u64 {
        let old = self.taken.is_some_and(|at| at.elapsed() > PAUSE_MAX);
        if old { self.serial } else { 0 }
    }
}

pub struct Watch {
    sources: Sources,
    sampler: Mutex<Sampler>,
    frame: watch::Sender<Frame>,
    places: Arc<Semaphore>,
    /// Somebody without a stream wants a picture.
    asked: AtomicBool,
    ask: Notify,
    clock: Clock,
    stop: CancellationToken,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    pub fn new(sources: Sources, sampler: Sampler, stop: CancellationToken) -> Watch {
        Watch {
            clock: Arc::clone(&sources.lags.clock),
            sources,
            sampler: Mutex::new(sampler),
            frame: watch::Sender::new(Frame::default()),
            places: Arc::new(Semaphore::new(CLIENTS_MAX)),
            asked: AtomicBool::new(false),
            ask: Notify::new(),
            stop,
        }
    }

    /// Looks until it is told to stop.
    pub async fn run(self: Arc<Watch>) {
        let mut every = interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut not_before = Instant::now();
        loop {
            // Each arm is safe to cancel: they wait, and take nothing.
            let ticked = tokio::select! {
                () = self.stop.cancelled() => return,
                _ = every.tick() => true,
                () = self.ask.notified() => false,
            };
            if ticked {
                self.sampler.lock().take((self.clock)());
            }
            if !self.wanted() || Instant::now() < not_before {
                continue;
            }
            self.asked.store(false, Ordering::Release);
            let started = Instant::now();
            self.picture().await;
            not_before = Instant::now() + pause(started.elapsed());
        }
    }

    fn wanted(&self) -> bool {
        let clients = CLIENTS_MAX - self.places.available_permits();
        clients > 0 || self.asked.load(Ordering::Acquire)
    }

    /// Takes one and gives it to all. Lags are read from the log, which may block.
    async fn picture(self: &Arc<Watch>) {
        let this = Arc::clone(self);
        let encoded = tokio::task::spawn_blocking(move || {
            // Its lock is given back at once: others ask for points meanwhile.
            let recent = this.sampler.lock().recent();
            let lags = this.sources.lags.all();
            let picture = Picture::take(&this.sources, &lags, recent);
            serde_json::to_vec(&picture).map(|json| (json, lags))
        })
        .await;
        match encoded {
            Ok(Ok((json, lags))) => self.frame.send_modify(|frame| {
                *frame = Frame {
                    serial: frame.serial + 1,
                    taken: Some(Instant::now()),
                    lags: lags.into(),
                    event: event(&json),
                    json: json.into(),
                };
            }),
            Ok(Err(error)) => tracing::error!(%error, "the console's picture cannot be encoded"),
            Err(error) => tracing::error!(%error, "the console's picture cannot be taken"),
        }
    }

    /// A picture of now, as JSON; shared by all who ask at one time.
    pub async fn once(&self) -> Option<Bytes> {
        self.frame_within(FRESH).await.map(|frame| frame.json)
    }

    /// What the last picture was made of, or the next one if that is too old: who asks for it again and again costs no
    /// more than a stream.
    pub async fn lags(&self) -> Option<Arc<[SubscriptionLag]>> {
        self.frame_within(RECENT).await.map(|frame| frame.lags)
    }

    async fn frame_within(&self, age: Duration) -> Option<Frame> {
        let mut frames = self.frame.subscribe();
        let first = frames.borrow().clone();
        if first.taken.is_some_and(|taken| taken.elapsed() < age) {
            return Some(first);
        }
        self.asked.store(true, Ordering::Release);
        self.ask.notify_one();
        let next = frames.wait_for(|frame| frame.serial > first.serial);
        let next = timeout(ANSWER_MAX, next).await.ok()?.ok()?;
        Some(next.clone())
    }

    /// Pictures for as long as somebody reads them; `None` when all places are taken. A client that is slow
    /// misses some: it is sent the newest, and nothing waits for it.
    pub fn stream(&self) -> Option<impl Stream<Item = Result<Bytes, Infallible>> + Send + use<>> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        self.ask.notify_one();
        let frames = self.frame.subscribe();
        let seen = frames.borrow().counts_as_seen();
        let reader = Reader {
            frames,
            seen,
            stop: self.stop.clone(),
            _place: place,
        };
        Some(stream::unfold(reader, |mut reader| async move {
            let event = reader.next().await?;
            Some((Ok(event), reader))
        }))
    }

    /// Of the last minutes.
    pub fn points(&self) -> Vec<Point> {
        self.sampler.lock().points()
    }

    pub fn sources(&self) -> &Sources {
        &self.sources
    }
}

fn pause(took: Duration) -> Duration {
    took.saturating_mul(PAUSE_SHARE).min(PAUSE_MAX)
}

fn event(json: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(json.len() + 64);
    event.extend_from_slice(b"event: picture\nretry: ");
    event.extend_from_slice(RETRY_MS.as_bytes());
    event.extend_from_slice(b"\ndata: ");
    // JSON as it is written here has no line breaks.
    event.extend_from_slice(json);
    event.extend_from_slice(b"\n\n");
    event.into()
}

/// One client's end.
struct Reader {
    frames: watch::Receiver<Frame>,
    seen: u64,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    async fn next(&mut self) -> Option<Bytes> {
        let seen = self.seen;
        let beat = Instant::now() + HEARTBEAT;
        tokio::select! {
            () = self.stop.cancelled() => None,
            frame = self.frames.wait_for(|frame| frame.serial > seen) => {
                let frame = frame.ok()?;
                self.seen = frame.serial;
                Some(frame.event.clone())
            }
            () = sleep_until(beat) => Some(Bytes::from_static(b": still here\n\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_take_a_hundredth_of_the_time_but_are_never_old() {
        assert_eq!(pause(Duration::from_millis(5)), Duration::from_millis(495));
        assert_eq!(pause(Duration::from_secs(2)), PAUSE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_after_a_while_is_not_shown_the_picture_of_before() {
        let frames = watch::Sender::new(Frame {
            serial: 7,
            taken: Some(Instant::now()),
            event: Bytes::from_static(b"of before"),
            ..Frame::default()
        });
        let reader = || Reader {
            seen: frames.borrow().counts_as_seen(),
            frames: frames.subscribe(),
            stop: CancellationToken::new(),
            _place: Arc::new(Semaphore::new(1))
                .try_acquire_owned()
                .expect("there is one"),
        };
        let event = reader().next().await;
        assert_eq!(event.as_deref(), Some(&b"of before"[..]), "it is fresh");
        tokio::time::advance(PAUSE_MAX + Duration::from_secs(1)).await;
        let event = reader().next().await;
        assert_eq!(event.as_deref(), Some(&b": still here\n\n"[..]));
    }

    #[test]
    fn an_event_ends_with_an_empty_line() {
        assert_eq!(
            &event(b"{}")[..],
            b"event: picture\nretry: 1000\ndata: {}\n\n"
        );
    }
}
