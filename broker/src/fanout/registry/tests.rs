//! Tests of the cursors: what a session may move, where a stream may begin, and what is stored of it.

use super::*;

const LOG: LogId = LogId(7);
const AT: Micros = Micros(1);

struct Registry {
    subscriptions: Subscriptions,
    platforms: Vec<(Issuer, u32)>,
    key: SubscriptionKey,
}

fn platform(code: u32) -> Issuer {
    Issuer::new(code).expect("six digits")
}

fn registry() -> Registry {
    Registry {
        subscriptions: Subscriptions {
            log_id: LOG,
            all: Mutex::default(),
            serial: AtomicU64::new(0),
        },
        platforms: [340_000, 510_000].map(|code| (platform(code), 1)).to_vec(),
        key: (platform(510_000), "s".to_owned()),
    }
}

impl Registry {
    /// Everything, or only one lane.
    fn filter(&self, lane: Option<Lane>) -> FilterSpec {
        let lanes = lane.into_iter().map(|lane| lane.to_api().into()).collect();
        let wire = api::Filter {
            lanes,
            ..Default::default()
        };
        FilterSpec::from_api(Some(wire), self.key.0, &self.platforms).expect("valid")
    }

    fn attach(&self) -> Attached {
        self.attach_with(None, true).expect("allowed")
    }

    fn attach_with(&self, lane: Option<Lane>, anew: bool) -> Result<Attached, Refusal> {
        let (key, filter) = (self.key.clone(), self.filter(lane));
        self.subscriptions.attach(key, filter, anew)
    }

    /// Attached, and begun at this offset of both lanes.
    fn begun(&self, offset: u64, how: Begin) -> Attached {
        let attached = self.attach();
        let begun = attached.lease.begin(at(offset), how, AT);
        begun.expect("held");
        attached
    }
}

fn at(offset: u64) -> Cursor {
    Cursor::both(LOG, Offset(offset))
}

fn lanes(urgent: u64, bulk: u64) -> Cursor {
    Cursor {
        log_id: LOG,
        urgent: Offset(urgent),
        bulk: Offset(bulk),
    }
}

/// A delivery that ends here.
fn flight(below: u64) -> Flight {
    Flight {
        below: Offset(below),
        committed_at: AT,
        durable_at: AT,
        records: 1,
        sent_at: AT,
        traces: Vec::new(),
    }
}

impl Lease {
    /// A delivery up to here was sent.
    fn sent(&self, lane: Lane, below: u64, when: Micros) {
        let done = self.handled(lane, Offset(below), Some(flight(below)), when);
        done.expect("held");
    }

    /// What lies below was looked at, and nothing of it is wanted.
    fn passed(&self, lane: Lane, below: u64) {
        let done = self.handled(lane, Offset(below), None, AT);
        done.expect("held");
    }

    fn applied(&self, cursor: Cursor) {
        self.acknowledge(cursor, AT).expect("was sent");
    }
}

#[test]
fn a_session_that_was_taken_over_moves_nothing() {
    let registry = registry();
    let old = registry.begun(5, Begin::AtCursor);
    let new = registry.attach();
    assert!(old.end.is_cancelled());
    new.lease.begin(at(10), Begin::AtCursor, AT).expect("held");
    let taken_over = |done: Result<(), Refusal>| {
        assert_eq!(
            done.expect_err("taken over").reason,
            Reason::SubscriptionTakenOver
        );
    };
    taken_over(old.lease.handled(Lane::Urgent, Offset(20), None, AT));
    taken_over(old.lease.begin(at(20), Begin::AfterSnapshot, AT));
    taken_over(old.lease.begin_snapshot());
    taken_over(old.lease.acknowledge(at(5), AT));
    let subscription = &new.lease.subscription;
    assert_eq!(subscription.position(Lane::Urgent), Offset(10));
    assert_eq!(subscription.applied(Lane::Urgent), Offset(10));
    assert!(!subscription.in_snapshot.load(Ordering::Acquire));
    drop(old);
    assert!(subscription.connected(), "the new one still has it");
}

#[test]
fn a_session_that_fails_forgets_only_what_is_its_own_and_never_began() {
    let registry = registry();
    let known = || registry.subscriptions.get(&registry.key).is_some();
    let old = registry.attach();
    let new = registry.attach();
    registry.subscriptions.forget_unbegun(&old.lease);
    assert!(known(), "another session has it");
    registry.subscriptions.forget_unbegun(&new.lease);
    assert!(!known());
    // A new one of that name is not the one that failed.
    let other = registry.attach();
    registry.subscriptions.forget_unbegun(&new.lease);
    assert!(known());
    let lease = &other.lease;
    lease.begin(at(3), Begin::AfterSnapshot, AT).expect("held");
    registry.subscriptions.forget_unbegun(lease);
    assert!(known(), "it began");
    let forgotten = registry.subscriptions.forget(&registry.key);
    assert_eq!(
        forgotten.expect_err("connected").reason,
        Reason::SubscriptionConnected
    );
    drop(other);
    registry.subscriptions.forget(&registry.key).expect("free");
    assert!(!known());
}

#[test]
fn another_filter_needs_a_platform_that_gives_up_what_it_has() {
    let registry = registry();
    let first = registry.attach_with(Some(Lane::Bulk), false);
    first.expect("a new one may have any filter");
    let again = registry.attach_with(Some(Lane::Bulk), false);
    assert!(!again.expect("the same filter").lease.changes_filter());
    let other = registry.attach_with(None, false);
    assert_eq!(
        other.expect_err("another filter").reason,
        Reason::FilterChanged
    );
    let anew = registry.attach_with(None, true).expect("anew");
    assert!(anew.lease.changes_filter());
}

#[test]
fn a_stream_goes_on_only_where_what_was_sent_went_through_its_filter() {
    let registry = registry();
    let first = registry.begun(5, Begin::AtCursor);
    let subscription = &first.lease.subscription;
    let refused = |cursor: Cursor| {
        let checked = subscription.check_filtered(&cursor);
        checked.expect_err("another filter").reason
    };
    assert!(subscription.check_filtered(&at(0)).is_ok());
    let other = registry
        .attach_with(Some(Lane::Urgent), true)
        .expect("anew");
    let begun = other.lease.begin(lanes(20, 30), Begin::Now, AT);
    begun.expect("held");
    assert!(
        !other.lease.changes_filter(),
        "it is the subscription's now"
    );
    assert!(subscription.check_filtered(&lanes(20, 30)).is_ok());
    assert_eq!(refused(lanes(19, 30)), Reason::FilterChanged);
    assert_eq!(refused(lanes(20, 29)), Reason::FilterChanged);
    // The same filter, further on: what lies between went through it.
    let same = other.lease.begin(at(90), Begin::AtCursor, AT);
    same.expect("held");
    assert!(subscription.check_filtered(&lanes(20, 30)).is_ok());
    let stored = subscription.to_stored(LOG);
    let from = stored.filtered_from.expect("is kept");
    assert_eq!((from.urgent, from.bulk), (20, 30));
}

#[test]
fn a_platform_has_a_bounded_number_of_subscriptions_and_its_own_only() {
    let registry = registry();
    let attach = |code: u32, name: usize| {
        let key = (platform(code), name.to_string());
        registry
            .subscriptions
            .attach(key, registry.filter(None), true)
    };
    for name in 0..limits::SUBSCRIPTIONS_PER_PLATFORM_MAX {
        attach(510_000, name).expect("one of its own");
    }
    let more = attach(510_000, limits::SUBSCRIPTIONS_PER_PLATFORM_MAX);
    assert_eq!(
        more.expect_err("one too many").reason,
        Reason::TooManySubscriptions
    );
    attach(510_000, 0).expect("it is known");
    attach(340_000, 0).expect("of another platform");
    assert_eq!(
        registry.subscriptions.list().len(),
        limits::SUBSCRIPTIONS_PER_PLATFORM_MAX + 1
    );
}

#[test]
fn a_cursor_is_what_the_platform_says_and_never_beyond_what_was_sent() {
    let registry = registry();
    // At the end of a snapshot the platform has not applied it yet.
    let attached = registry.begun(5, Begin::AfterSnapshot);
    let lease = &attached.lease;
    let subscription = &lease.subscription;
    assert!(!subscription.has_cursor(), "nothing was ever applied");
    assert_eq!(subscription.applied(Lane::Urgent), Offset::NONE);
    lease.applied(at(5));
    assert!(subscription.has_cursor());

    lease.sent(Lane::Urgent, 9, AT);
    assert_eq!(subscription.position(Lane::Urgent), Offset(9));
    for ahead in [lanes(10, 5), lanes(9, 6)] {
        let refused = lease.acknowledge(ahead, AT);
        assert_eq!(refused.expect_err("not sent").reason, Reason::CursorAhead);
    }
    lease.applied(lanes(9, 5));
    // An older one is late, and not a step back.
    lease.applied(lanes(7, 5));
    assert_eq!(subscription.applied(Lane::Urgent), Offset(9));
    assert_eq!(subscription.applied(Lane::Bulk), Offset(5));
}

#[test]
fn what_a_filter_leaves_out_counts_as_applied_once_all_that_was_sent_is() {
    let registry = registry();
    let attached = registry.begun(5, Begin::AtCursor);
    let lease = &attached.lease;
    let effective = || lease.subscription.effective(Lane::Urgent);
    lease.sent(Lane::Urgent, 9, AT);
    lease.passed(Lane::Urgent, 20);
    assert_eq!(effective(), Offset(5), "what was sent is not applied");
    lease.applied(lanes(8, 5));
    assert_eq!(effective(), Offset(8));
    lease.applied(lanes(9, 5));
    assert_eq!(effective(), Offset(20));
}

#[test]
fn deliveries_land_when_they_are_applied_as_a_whole() {
    let registry = registry();
    let attached = registry.begun(5, Begin::AtCursor);
    let lease = &attached.lease;
    for below in [7, 9] {
        lease.sent(Lane::Bulk, below, AT);
    }
    lease.applied(lanes(5, 8));
    let landed = || lease.subscription.landed(Lane::Bulk);
    assert_eq!(landed(), [flight(7)]);
    assert_eq!(landed(), []);
    lease.applied(lanes(5, 9));
    assert_eq!(landed(), [flight(9)]);
    // A stream that begins again has nothing under way.
    lease.sent(Lane::Bulk, 11, AT);
    lease.begin(at(9), Begin::AtCursor, AT).expect("held");
    lease.sent(Lane::Bulk, 11, AT);
    lease.applied(lanes(9, 11));
    assert_eq!(landed(), [flight(11)]);
}

#[test]
fn what_was_acknowledged_beyond_an_older_cursor_is_lost() {
    let registry = registry();
    let attached = registry.begun(5, Begin::AtCursor);
    let lease = &attached.lease;
    let has_lost = |cursor: Cursor| lease.subscription.has_lost(&cursor);
    lease.sent(Lane::Urgent, 9, AT);
    assert!(!has_lost(at(5)), "it was not acknowledged");
    lease.applied(lanes(9, 5));
    assert!(has_lost(at(5)));
    assert!(has_lost(lanes(8, 5)));
    assert!(!has_lost(lanes(9, 5)));
    // What was passed over is nothing to lose.
    lease.passed(Lane::Urgent, 20);
    lease.applied(lanes(20, 5));
    assert!(!has_lost(lanes(9, 5)));
}

#[test]
fn what_came_with_a_snapshot_was_never_sent_as_records() {
    let registry = registry();
    let attached = registry.begun(5, Begin::AfterSnapshot);
    let before = |offset| {
        let subscription = &attached.lease.subscription;
        subscription.began_after(Lane::Bulk, Offset(offset))
    };
    assert!(before(4));
    assert!(!before(5) && !before(6));
    let begin = |offset, how| {
        let begun = attached.lease.begin(at(offset), how, AT);
        begun.expect("held");
    };
    begin(8, Begin::AtCursor);
    assert!(!before(7), "below a cursor it was sent");
    begin(8, Begin::Now);
    assert!(before(7));
}

#[test]
fn a_cursor_that_moved_is_stored_and_one_that_moved_over_nothing_now_and_then() {
    let registry = registry();
    let attached = registry.begun(5, Begin::AtCursor);
    let lease = &attached.lease;
    let taken = || registry.subscriptions.take_changed();
    let stored = taken();
    assert_eq!(stored.len(), 1, "it began");
    let applied = stored[0].applied.expect("a cursor");
    assert_eq!((applied.urgent, applied.bulk), (5, 5));
    assert_eq!(stored[0].applied_at_us, AT.0);
    assert_eq!(taken(), []);

    lease.sent(Lane::Urgent, 7, AT);
    assert_eq!(taken(), [], "sent is not applied");
    lease.applied(lanes(7, 5));
    assert_eq!(taken()[0].applied.expect("a cursor").urgent, 7);
    // The same again moves nothing, also when there is more to apply.
    lease.sent(Lane::Urgent, 8, AT);
    lease.applied(lanes(7, 5));
    assert_eq!(taken(), []);
    lease.applied(lanes(8, 5));
    assert_eq!(taken().len(), 1);

    let all_but_one = 8 + STORE_EVERY_OFFSETS - 1;
    lease.passed(Lane::Urgent, all_but_one);
    lease.applied(lanes(all_but_one, 5));
    assert_eq!(taken(), []);
    lease.passed(Lane::Urgent, all_but_one + 1);
    lease.applied(lanes(all_but_one + 1, 5));
    let row = taken().pop().expect("far enough");
    assert_eq!(row.applied.expect("a cursor").urgent, all_but_one + 1);
    assert_eq!((row.platform, row.subscription.as_str()), (510_000, "s"));
}

#[test]
fn connections_are_counted_by_platform() {
    let registry = registry();
    let attach = |code: u32, name: &str| {
        let key = (platform(code), name.to_owned());
        let attached = registry
            .subscriptions
            .attach(key, registry.filter(None), true);
        attached.expect("allowed")
    };
    let held = [
        attach(510_000, "a"),
        attach(510_000, "b"),
        attach(340_000, "a"),
    ];
    drop(attach(340_000, "gone"));
    let counts = registry.subscriptions.connected();
    assert_eq!(
        counts.into_iter().collect::<Vec<_>>(),
        [(platform(340_000), 1), (platform(510_000), 2)]
    );
    drop(held);
    assert!(registry.subscriptions.connected().is_empty());
}
