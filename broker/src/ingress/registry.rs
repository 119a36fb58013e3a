//! Which session publishes under a producer's name. A newer session ends an older one, and begins
//! only when everything the older one had taken is applied or failed: what it is told about
//! durability then holds.

use hutong_proto::{Epoch, Issuer, Reason, Refusal, limits};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A live session as others see it.
#[derive(Clone, Debug)]
struct Holder {
    epoch: Epoch,
    serial: u64,
    end: CancellationToken,
    /// Set when a higher epoch is the reason for the end.
    fenced: Arc<std::sync::atomic::AtomicBool>,
    /// Becomes true when the session has settled everything.
    settled: watch::Receiver<bool>,
}

/// All producers with a live session.
#[derive(Debug, Default)]
pub struct Producers {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    holders: HashMap<(Issuer, Arc<str>), Holder>,
    serial: u64,
}

/// The right to publish under a name, held by one session at a time.
#[derive(Debug)]
pub struct Claim {
    producers: Arc<Producers>,
    key: (Issuer, Arc<str>),
    serial: u64,
    settled: watch::Sender<bool>,
    pub end: CancellationToken,
    pub fenced: Arc<std::sync::atomic::AtomicBool>,
}

impl Producers {
    /// Takes over from an older session, if its epoch is not higher. `known` are the names that state has of this
    /// platform; those and the ones that have just begun count against its limit.
    pub async fn claim(
        self: &Arc<Self>,
        issuer: Issuer,
        name: &str,
        epoch: Epoch,
        known: &HashSet<String>,
    ) -> Result<Claim, Refusal> {
        let key: (Issuer, Arc<str>) = (issuer, name.into());
        let (settled, settled_seen) = watch::channel(false);
        let end = CancellationToken::new();
        let fenced = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (previous, serial) = {
            let mut inner = self.inner.lock();
            let live = inner.holders.keys();
            let new = live.filter(|(i, name)| *i == issuer && !known.contains(&**name));
            if !known.contains(name)
                && !inner.holders.contains_key(&key)
                && known.len() + new.count() >= limits::PRODUCERS_PER_PLATFORM_MAX
            {
                return Err(Refusal::new(Reason::TooManyProducers, "open.producer"));
            }
            let previous = inner.holders.get(&key).cloned();
            if let Some(previous) = &previous
                && previous.epoch > epoch
            {
                return Err(fenced_by(previous.epoch, epoch));
            }
            inner.serial += 1;
            let serial = inner.serial;
            let holder = Holder {
                epoch,
                serial,
                end: end.clone(),
                fenced: Arc::clone(&fenced),
                settled: settled_seen,
            };
            inner.holders.insert(key.clone(), holder);
            (previous, serial)
        };
        let claim = Claim {
            producers: Arc::clone(self),
            key,
            serial,
            settled,
            end,
            fenced,
        };
        if let Some(mut previous) = previous {
            if previous.epoch < epoch {
                previous
                    .fenced
                    .store(true, std::sync::atomic::Ordering::Release);
            }
            previous.end.cancel();
            // An error means that the sender is gone, which it only is after settling.
            drop(previous.settled.wait_for(|settled| *settled).await);
        }
        Ok(claim)
    }

    /// Live sessions of each platform.
    pub fn connected(&self) -> HashMap<Issuer, usize> {
        let mut counts = HashMap::new();
        for (issuer, _) in self.inner.lock().holders.keys() {
            *counts.entry(*issuer).or_default() += 1;
        }
        counts
    }
}

impl Claim {
    /// Why the session has to end, when [`Claim::end`] is cancelled.
    pub fn reason(&self) -> Reason {
        if self.fenced.load(std::sync::atomic::Ordering::Acquire) {
            Reason::ProducerFenced
        } else {
            Reason::SessionTakenOver
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.settled.send_replace(true);
        let mut inner = self.producers.inner.lock();
        if inner
            .holders
            .get(&self.key)
            .is_some_and(|h| h.serial == self.serial)
        {
            inner.holders.remove(&self.key);
        }
    }
}

pub fn fenced_by(current: Epoch, epoch: Epoch) -> Refusal {
    Refusal::new(Reason::ProducerFenced, "open.epoch")
        .detail(format!("epoch {epoch} after epoch {current}"))
}
