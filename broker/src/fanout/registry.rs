//! All subscriptions: their filters, how far each is sent and applied, and who is connected. The
//! cursors are written to the control partition once a second, so any node knows them.

use crate::{
    fanout::flight::{self, Flight, Flights},
    filter::{FilterSpec, Platforms},
    history::History,
    state::{State, StateError, keys},
    tail::Packing,
};
use hutong_proto::{Cursor, Issuer, Lane, LogId, Micros, Offset, Reason, Refusal, api, limits};
use parking_lot::Mutex;
use prost::Message;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio_util::sync::CancellationToken;

/// A cursor that moved only over what its filter leaves out is stored after so many offsets.
const STORE_EVERY_OFFSETS: u64 = 1024;

pub type SubscriptionKey = (Issuer, String);

/// A filter, and from where on what was sent went through it.
#[derive(Debug)]
struct Filtered {
    spec: Arc<FilterSpec>,
    /// By lane. A platform that goes on below has not what another filter left out.
    from: [Offset; 2],
}

/// One subscription, connected or not.
#[derive(Debug)]
pub struct Subscription {
    pub key: SubscriptionKey,
    filter: Mutex<Filtered>,
    /// By lane: everything below is applied at the platform, as it says.
    applied: [AtomicU64; 2],
    /// By lane: everything below was looked at and, as far as wanted, sent.
    position: [AtomicU64; 2],
    /// By lane: end of the last record that was really sent.
    sent: [AtomicU64; 2],
    /// By lane: what lies below was never sent as records, but came with a snapshot or not at all.
    begun: [AtomicU64; 2],
    /// By lane: the applied cursor that was last taken to be stored.
    stored: [AtomicU64; 2],
    pub applied_at: AtomicU64,
    /// By lane.
    flights: [Mutex<Flights>; 2],
    pub sent_history: History,
    pub applied_history: History,
    pub in_snapshot: AtomicBool,
    /// Its cursor was older than retention when it last asked.
    pub compacted: AtomicBool,
    changed: AtomicBool,
    session: Mutex<Option<(u64, CancellationToken)>>,
}

impl Subscription {
    fn new(key: SubscriptionKey, filter: Arc<FilterSpec>, row: &api::StoredSubscription) -> Self {
        let offsets = |cursor: Option<api::Cursor>| {
            let cursor = cursor.unwrap_or_default();
            [cursor.urgent, cursor.bulk].map(AtomicU64::new)
        };
        let atomics = || offsets(row.applied);
        // What it had before this broker started was sent and applied at times that are forgotten.
        let applied = row.applied.unwrap_or_default();
        let before = [Offset(applied.urgent), Offset(applied.bulk)];
        let from = row.filtered_from.unwrap_or_default();
        Subscription {
            key,
            filter: Mutex::new(Filtered {
                spec: filter,
                from: [Offset(from.urgent), Offset(from.bulk)],
            }),
            applied: atomics(),
            position: atomics(),
            sent: atomics(),
            begun: offsets(row.begun),
            stored: atomics(),
            applied_at: AtomicU64::new(row.applied_at_us),
            flights: Default::default(),
            sent_history: History::new(before),
            applied_history: History::new(before),
            in_snapshot: AtomicBool::new(false),
            compacted: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            session: Mutex::new(None),
        }
    }

    pub fn filter(&self) -> Arc<FilterSpec> {
        Arc::clone(&self.filter.lock().spec)
    }

    pub fn connected(&self) -> bool {
        self.session.lock().is_some()
    }

    fn begin(&self, cursor: Cursor, how: Begin, filter: &Arc<FilterSpec>, at: Micros) {
        let mut filtered = self.filter.lock();
        if filtered.spec != *filter {
            // The platform may die before it has stored this cursor, and come back with an older one.
            filtered.from = [cursor.urgent, cursor.bulk];
            filtered.spec = Arc::clone(filter);
        }
        drop(filtered);
        // At the end of a snapshot the platform has not applied it yet.
        let applied = how != Begin::AfterSnapshot;
        for lane in Lane::DELIVERED {
            let mut offset = cursor.lane(lane).0;
            let i = lane.index();
            if planted!(CursorOffByOne) && how == Begin::AtCursor {
                offset += 1;
            }
            self.flights[i].lock().clear();
            self.position[i].store(offset, Ordering::Release);
            self.sent[i].store(offset, Ordering::Release);
            if applied {
                self.applied[i].store(offset, Ordering::Release);
            }
            if how != Begin::AtCursor {
                self.begun[i].store(offset, Ordering::Release);
            }
        }
        if applied {
            self.applied_at.store(at.0, Ordering::Release);
            self.changed.store(true, Ordering::Release);
        }
        self.compacted.store(false, Ordering::Release);
        self.in_snapshot.store(false, Ordering::Release);
    }

    /// Whether a stream with the subscription's filter can go on at this cursor.
    pub fn check_filtered(&self, cursor: &Cursor) -> Result<(), Refusal> {
        let from = self.filter.lock().from;
        for lane in Lane::DELIVERED {
            let (at, from) = (cursor.lane(lane), from[lane.index()]);
            if at < from {
                return Err(Refusal::new(Reason::FilterChanged, "open.filter").detail(format!(
                    "at offset {at} of {lane} it had another filter; it has this one from {from} on"
                )));
            }
        }
        Ok(())
    }

    /// Neither a cursor nor the end of a snapshot: no stream of it ever began.
    fn unbegun(&self) -> bool {
        !self.has_cursor() && self.begun.iter().all(|b| b.load(Ordering::Acquire) == 0)
    }

    /// Whether it ever said that it applied something; if not, it has no cursor to resume at.
    pub fn has_cursor(&self) -> bool {
        self.applied_at.load(Ordering::Acquire) != 0
    }

    fn handled(&self, lane: Lane, position: Offset, sent: Option<Flight>, at: Micros) {
        if let Some(flight) = sent {
            self.sent[lane.index()].store(flight.below.0, Ordering::Release);
            self.sent_history.reached(lane, flight.below, at);
            flight::take_off(&mut self.flights[lane.index()].lock(), flight);
        }
        self.position[lane.index()].store(position.0, Ordering::Release);
    }

    fn acknowledge(&self, cursor: Cursor, at: Micros) -> Result<(), Refusal> {
        for lane in Lane::DELIVERED {
            let i = lane.index();
            let offset = cursor.lane(lane);
            if offset > self.position(lane) {
                return Err(
                    Refusal::new(Reason::CursorAhead, format!("applied.cursor.{lane}"))
                        .detail(format!("{offset} applied, {} sent", self.position(lane))),
                );
            }
            let before = self.applied[i].fetch_max(offset.0, Ordering::AcqRel);
            if before < offset.0 {
                self.applied_history.reached(lane, offset, at);
                let sent = self.sent[i].load(Ordering::Acquire);
                let stored = self.stored[i].load(Ordering::Acquire);
                // A cursor that moved over nothing that was sent is stored only now and then: the
                // record that stores one moves them all.
                if before < sent || offset.0 - stored.min(offset.0) >= STORE_EVERY_OFFSETS {
                    self.changed.store(true, Ordering::Release);
                }
            }
        }
        self.applied_at.store(at.0, Ordering::Release);
        Ok(())
    }

    /// What was sent and is acknowledged since the last call.
    pub fn landed(&self, lane: Lane) -> Vec<Flight> {
        flight::land(&mut self.flights[lane.index()].lock(), self.applied(lane))
    }

    /// Whether it had acknowledged a record that is beyond this cursor.
    pub fn has_lost(&self, cursor: &Cursor) -> bool {
        Lane::DELIVERED.into_iter().any(|lane| {
            let (from, upto) = (cursor.lane(lane), self.applied(lane));
            from < upto && self.sent_history.reached_between(lane, from, upto)
        })
    }

    /// Whether what is at this offset was never sent as a record.
    pub fn began_after(&self, lane: Lane, offset: Offset) -> bool {
        offset.0 < self.begun[lane.index()].load(Ordering::Acquire)
    }

    pub fn position(&self, lane: Lane) -> Offset {
        Offset(self.position[lane.index()].load(Ordering::Acquire))
    }

    pub fn applied(&self, lane: Lane) -> Offset {
        Offset(self.applied[lane.index()].load(Ordering::Acquire))
    }

    /// Where the platform is, counting what its filter leaves out as applied.
    pub fn effective(&self, lane: Lane) -> Offset {
        let applied = self.applied(lane);
        if applied.0 >= self.sent[lane.index()].load(Ordering::Acquire) {
            applied.max(self.position(lane))
        } else {
            applied
        }
    }

    pub fn cursor(&self, log_id: LogId, of: impl Fn(Lane) -> Offset) -> Cursor {
        Cursor {
            log_id,
            urgent: of(Lane::Urgent),
            bulk: of(Lane::Bulk),
        }
    }

    pub fn to_stored(&self, log_id: LogId) -> api::StoredSubscription {
        let (filter, [urgent, bulk]) = {
            let filtered = self.filter.lock();
            (filtered.spec.wire.clone(), filtered.from)
        };
        let from = Cursor {
            log_id,
            urgent,
            bulk,
        };
        let begun = |lane: Lane| Offset(self.begun[lane.index()].load(Ordering::Acquire));
        for lane in Lane::DELIVERED {
            self.stored[lane.index()].store(self.applied(lane).0, Ordering::Release);
        }
        api::StoredSubscription {
            platform: self.key.0.code(),
            subscription: self.key.1.clone(),
            filter: Some(filter),
            applied: Some(
                self.cursor(log_id, |l| match planted!(SentIsApplied) {
                    true => self.position(l),
                    false => self.applied(l),
                })
                .to_api(),
            ),
            applied_at_us: self.applied_at.load(Ordering::Acquire),
            begun: Some(self.cursor(log_id, begun).to_api()),
            filtered_from: Some(from.to_api()),
        }
    }
}

/// How a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Where the platform says that it has everything before.
    AtCursor,
    /// With what comes from now on.
    Now,
    /// After a snapshot of all that came before.
    AfterSnapshot,
}

/// The right to move a subscription, held by one session at a time. Whoever lost it moves nothing:
/// a position set by the old session would make the new one skip records.
#[derive(Clone, Debug)]
pub struct Lease {
    pub subscription: Arc<Subscription>,
    /// Of this session; the subscription's own from when the stream begins.
    pub filter: Arc<FilterSpec>,
    /// How this session takes records.
    pub packing: Packing,
    serial: u64,
}

impl Lease {
    /// A stream begins at this cursor, with the filter of its session.
    pub fn begin(&self, cursor: Cursor, how: Begin, at: Micros) -> Result<(), Refusal> {
        self.held(|s| s.begin(cursor, how, &self.filter, at))
    }

    /// Whether this session's filter is another one than what the platform has went through.
    pub fn changes_filter(&self) -> bool {
        *self.subscription.filter() != *self.filter
    }

    pub fn begin_snapshot(&self) -> Result<(), Refusal> {
        self.held(|s| s.in_snapshot.store(true, Ordering::Release))
    }

    /// Everything of a lane below `position` was handled; `sent` is what of it was sent, if anything.
    pub fn handled(
        &self,
        lane: Lane,
        position: Offset,
        sent: Option<Flight>,
        at: Micros,
    ) -> Result<(), Refusal> {
        self.held(|s| s.handled(lane, position, sent, at))
    }

    /// The platform says it applied everything below this cursor; refused beyond what was sent.
    pub fn acknowledge(&self, cursor: Cursor, at: Micros) -> Result<(), Refusal> {
        self.held(|s| s.acknowledge(cursor, at))?
    }

    /// Does it unless another session took over, and keeps others from that meanwhile.
    fn held<T>(&self, act: impl FnOnce(&Subscription) -> T) -> Result<T, Refusal> {
        let session = self.subscription.session.lock();
        if session.as_ref().is_none_or(|(s, _)| *s != self.serial) {
            return Err(Reason::SubscriptionTakenOver.into());
        }
        Ok(act(&self.subscription))
    }
}

/// A session's hold on its subscription, from attaching to its end.
#[derive(Debug)]
pub struct Attached {
    pub lease: Lease,
    /// Cancelled when another session takes over.
    pub end: CancellationToken,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let Lease {
            subscription,
            serial,
            ..
        } = &self.lease;
        let mut session = subscription.session.lock();
        if session.as_ref().is_some_and(|(s, _)| s == serial) {
            *session = None;
            subscription.in_snapshot.store(false, Ordering::Release);
        }
    }
}

#[derive(Debug)]
pub struct Subscriptions {
    log_id: LogId,
    all: Mutex<BTreeMap<SubscriptionKey, Arc<Subscription>>>,
    serial: AtomicU64,
}

impl Subscriptions {
    /// Those that the state knows.
    pub fn load(
        state: &State,
        log_id: LogId,
        platforms: &Platforms,
    ) -> Result<Subscriptions, StateError> {
        let mut all = BTreeMap::new();
        for (key, value) in state.scan(&keys::subscription_prefix())? {
            let damaged = || StateError::damaged(&key, "does not decode");
            let row = api::StoredSubscription::decode(value.as_slice()).map_err(|_| damaged())?;
            let platform = Issuer::new(row.platform).ok_or_else(damaged)?;
            // A platform that left the configuration takes its subscriptions with it.
            let Ok(filter) = FilterSpec::from_api(row.filter.clone(), platform, platforms) else {
                tracing::warn!(%platform, subscription = row.subscription, "stored filter no longer fits, dropped");
                continue;
            };
            let key = (platform, row.subscription.clone());
            let subscription = Subscription::new(key.clone(), Arc::new(filter), &row);
            all.insert(key, Arc::new(subscription));
        }
        Ok(Subscriptions {
            log_id,
            all: Mutex::new(all),
            serial: AtomicU64::new(0),
        })
    }

    /// Attaches a session, ending an older one. `filter` must be the known one, unless the platform
    /// gives up what it has: below a cursor, another filter would have left out other things.
    pub fn attach(
        &self,
        key: SubscriptionKey,
        filter: FilterSpec,
        anew: bool,
    ) -> Result<Attached, Refusal> {
        let mut all = self.all.lock();
        let platform = key.0;
        let filter = Arc::new(filter);
        let subscription = match all.get(&key).cloned() {
            Some(subscription) => {
                if !anew && subscription.filter() != filter {
                    return Err(Refusal::new(Reason::FilterChanged, "open.filter"));
                }
                subscription
            }
            None => {
                let own = all.keys().filter(|(p, _)| *p == platform).count();
                if own >= limits::SUBSCRIPTIONS_PER_PLATFORM_MAX {
                    return Err(Refusal::new(
                        Reason::TooManySubscriptions,
                        "open.subscription",
                    ));
                }
                let nothing = api::StoredSubscription::default();
                let new = Subscription::new(key.clone(), Arc::clone(&filter), &nothing);
                let subscription = Arc::new(new);
                all.insert(key, Arc::clone(&subscription));
                subscription
            }
        };
        let serial = self.serial.fetch_add(1, Ordering::AcqRel);
        let end = CancellationToken::new();
        let previous = subscription.session.lock().replace((serial, end.clone()));
        if let Some((_, previous)) = previous {
            previous.cancel();
        }
        Ok(Attached {
            lease: Lease {
                subscription,
                filter,
                packing: Packing::Plain,
                serial,
            },
            end,
        })
    }

    /// Forgets the subscription of a session that failed before its stream began, if it never began
    /// before and nobody else has it by now.
    pub fn forget_unbegun(&self, lease: &Lease) {
        let mut all = self.all.lock();
        let unused = |s: &Arc<Subscription>| {
            // Another of that name may have taken its place.
            Arc::ptr_eq(s, &lease.subscription) && lease.held(Subscription::unbegun) == Ok(true)
        };
        if all.get(&lease.subscription.key).is_some_and(unused) {
            all.remove(&lease.subscription.key);
        }
    }

    /// Forgets a subscription, unless someone is connected.
    pub fn forget(&self, key: &SubscriptionKey) -> Result<(), Refusal> {
        let mut all = self.all.lock();
        let subscription = all
            .get(key)
            .ok_or_else(|| Refusal::new(Reason::SubscriptionUnknown, "subscription"))?;
        if subscription.connected() {
            return Err(Refusal::new(Reason::SubscriptionConnected, "subscription"));
        }
        all.remove(key);
        Ok(())
    }

    pub fn get(&self, key: &SubscriptionKey) -> Option<Arc<Subscription>> {
        self.all.lock().get(key).cloned()
    }

    pub fn list(&self) -> Vec<Arc<Subscription>> {
        self.all.lock().values().cloned().collect()
    }

    /// Rows of those whose cursor moved since the last call.
    pub fn take_changed(&self) -> Vec<api::StoredSubscription> {
        self.list()
            .iter()
            .filter(|s| s.changed.swap(false, Ordering::AcqRel))
            .map(|s| s.to_stored(self.log_id))
            .collect()
    }

    pub fn connected(&self) -> BTreeMap<Issuer, usize> {
        let mut counts = BTreeMap::new();
        for subscription in self.list().iter().filter(|s| s.connected()) {
            *counts.entry(subscription.key.0).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests;
