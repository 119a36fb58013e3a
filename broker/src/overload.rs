//! What gives way when the machine cannot do everything at once, so that what is urgent does not wait.
//!
//! Queues serve urgent first, but on processors that are never free everything waits for its turn to
//! run, urgent as well. So bulk leaves a little of the machine free. A task that asks to be woken every
//! few milliseconds sees how late it is: that is how long any task, the urgent ones too, waits to run.
//! While that is too long, and urgent deltas come, one valve after the other is turned down, in the
//! order of the configuration; when it is short again they open in the opposite order. A valve lets
//! through what it did before, less a part (multiplicative decrease), and more again step by step, as
//! TCP does; it is never shut.
//!
//! Subscribers that fell behind give way first as long as they are few. When most are behind, they are the
//! traffic itself, and reading the log for each costs more than the rings do: slowing them down would leave
//! less done in all, and everybody further behind. Then what comes in gives way before them.

mod gate;

pub use gate::BulkGate;
use hutong_proto::Offset;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// How often it is looked how late a task is, and how long such looks are gathered for one decision.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const DECIDE_EVERY: Duration = Duration::from_millis(200);
/// Urgent deltas come as long as the last one is not older.
const URGENT_FOR: Duration = Duration::from_secs(5);
/// No valve of a real broker lets through less: about the results of a whole country on a usual day.
pub const FLOOR_BYTES_PER_S: u64 = 4 << 20;
const DECREASE: f64 = 0.85;
const INCREASE: f64 = 1.08;
/// A valve that would let through so many times what comes is open.
const OPEN_ABOVE: f64 = 4.0;
/// Of what passed a valve, how much the newest look counts.
const NEWEST_COUNTS: f64 = 0.3;
/// What was not used of this long may be used at once: timers are late as well.
const BURST: Duration = Duration::from_millis(50);

/// What can give way. Urgent deltas never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GiveWay {
    /// Bulk records to subscribers that fell behind: they get further behind, the log keeps the records.
    CatchUp,
    /// Snapshots for new subscriptions take longer.
    Snapshot,
    /// Bulk deltas of producers: their acks come later, and with their credit used up they wait.
    Bulk,
}

impl GiveWay {
    pub const ALL: [GiveWay; 3] = [GiveWay::CatchUp, GiveWay::Snapshot, GiveWay::Bulk];

    pub fn name(self) -> &'static str {
        match self {
            GiveWay::CatchUp => "catch_up",
            GiveWay::Snapshot => "snapshot",
            GiveWay::Bulk => "bulk",
        }
    }
}

/// The order, and from which delay on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// First to last; what is not in it never gives way.
    pub give_way: Vec<GiveWay>,
    pub delay: Duration,
    /// No valve lets through less.
    pub floor_bytes_per_s: u64,
}

#[derive(Debug)]
pub struct Overload {
    policy: Mutex<Policy>,
    valves: [Valve; 3],
    urgent: AtomicBool,
    delay_us: AtomicU64,
    /// Subscribers by where they read.
    readers: [AtomicUsize; 3],
}

/// Where a subscriber takes its bulk records from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadsFrom {
    /// It has no credit, so nothing here holds it up.
    Nowhere,
    Ring,
    Log,
}

/// A connected subscriber; one less when it is dropped.
#[derive(Debug)]
pub struct Reader {
    overload: Arc<Overload>,
    from: ReadsFrom,
}

impl Reader {
    pub fn reads(&mut self, from: ReadsFrom) {
        if from != self.from {
            let readers = &self.overload.readers;
            readers[self.from as usize].fetch_sub(1, Relaxed);
            readers[from as usize].fetch_add(1, Relaxed);
            self.from = from;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.overload.readers[self.from as usize].fetch_sub(1, Relaxed);
    }
}

#[derive(Debug, Default)]
struct Valve {
    /// Since the last decision.
    bytes: AtomicU64,
    /// Bytes a second that may pass; 0 when it is open.
    limit: AtomicU64,
    /// What passed lately, in bytes a second.
    recent: Mutex<f64>,
    /// Whoever has it waits for the moment in it; the others wait for it, in their order.
    turn: tokio::sync::Mutex<Option<Instant>>,
}

impl Valve {
    fn limit(&self) -> Option<f64> {
        match self.limit.load(Relaxed) {
            0 => None,
            limit => Some(limit as f64),
        }
    }

    fn set(&self, limit: Option<f64>) {
        self.limit.store(limit.map_or(0, |l| l as u64), Relaxed);
    }

    async fn pass(&self, bytes: usize) {
        if self.limit().is_some() {
            let mut turn = self.turn.lock().await;
            if let Some(free_at) = *turn {
                tokio::time::sleep_until(free_at).await;
            }
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            // It may have opened in the meantime.
            *turn = self.limit().map(|limit| {
                let cost = Duration::from_secs_f64(bytes as f64 / limit);
                turn.unwrap_or(now).max(earliest) + cost
            });
        }
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn look(&self, elapsed: Duration) -> f64 {
        let passed = self.bytes.swap(0, Relaxed) as f64 / elapsed.as_secs_f64();
        let mut recent = self.recent.lock();
        *recent += (passed - *recent) * NEWEST_COUNTS;
        *recent
    }
}

impl Overload {
    pub fn new(policy: Policy) -> Overload {
        Overload {
            policy: Mutex::new(policy),
            valves: Default::default(),
            urgent: AtomicBool::new(false),
            delay_us: AtomicU64::new(0),
            readers: Default::default(),
        }
    }

    pub fn reader(self: &Arc<Overload>) -> Reader {
        self.readers[ReadsFrom::Nowhere as usize].fetch_add(1, Relaxed);
        Reader {
            overload: Arc::clone(self),
            from: ReadsFrom::Nowhere,
        }
    }

    /// Whether more than half of those who could take bulk fell behind.
    fn most_are_behind(&self) -> bool {
        let [_, ring, log] = [0, 1, 2].map(|i| self.readers[i].load(Relaxed));
        log > ring
    }

    /// Who gives way, first to last, as things are.
    fn order(&self, policy: &Policy) -> Vec<GiveWay> {
        let mut order = policy.give_way.clone();
        if self.most_are_behind()
            && let Some(at) = order.iter().position(|what| *what == GiveWay::CatchUp)
        {
            order.remove(at);
            order.push(GiveWay::CatchUp);
        }
        order
    }

    /// From the next decision on. A valve that does not give way any more is opened.
    pub fn set_policy(&self, policy: Policy) {
        let mut current = self.policy.lock();
        for what in GiveWay::ALL {
            if !policy.give_way.contains(&what) && self.valve(what).limit().is_some() {
                self.open(what);
            }
        }
        *current = policy;
    }

    pub fn policy(&self) -> Policy {
        self.policy.lock().clone()
    }

    /// Waits until so much may pass. May be cancelled.
    pub async fn pass(&self, what: GiveWay, bytes: usize) {
        self.valve(what).pass(bytes).await;
    }

    /// An urgent delta came.
    pub fn urgent(&self) {
        self.urgent.store(true, Relaxed);
    }

    /// What each valve is turned down to, in bytes a second.
    pub fn limits(&self) -> [(GiveWay, Option<f64>); 3] {
        GiveWay::ALL.map(|what| (what, self.valve(what).limit()))
    }

    /// How late tasks run.
    pub fn delay(&self) -> Duration {
        Duration::from_micros(self.delay_us.load(Relaxed))
    }

    /// As if it had been decided.
    #[cfg(test)]
    pub fn set_limit(&self, what: GiveWay, bytes_per_s: f64) {
        self.valve(what).set(Some(bytes_per_s));
    }

    fn valve(&self, what: GiveWay) -> &Valve {
        &self.valves[what as usize]
    }

    /// Looks and decides while records are applied; an idle broker has nothing to wake up for.
    pub async fn run(
        self: Arc<Self>,
        mut applied: watch::Receiver<Offset>,
        stop: CancellationToken,
    ) {
        let looks = self.look(&mut applied);
        // Biased: a simulation can then repeat a run.
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = looks => {}
        }
        self.open_all();
    }

    async fn look(&self, applied: &mut watch::Receiver<Offset>) {
        let mut late = Vec::new();
        let mut urgent_at: Option<Instant> = None;
        loop {
            let nothing_to_do = self.limits().iter().all(|(_, limit)| limit.is_none());
            if nothing_to_do && applied.changed().await.is_err() {
                return;
            }
            let began = Instant::now();
            late.clear();
            while began.elapsed() < DECIDE_EVERY {
                let due = Instant::now() + LOOK_EVERY;
                tokio::time::sleep_until(due).await;
                late.push(due.elapsed());
            }
            applied.borrow_and_update();
            if self.urgent.swap(false, Relaxed) {
                urgent_at = Some(Instant::now());
            }
            let urgent = urgent_at.is_some_and(|at| at.elapsed() < URGENT_FOR);
            late.sort_unstable();
            self.decide(late[late.len() / 2], urgent, began.elapsed());
        }
    }

    fn decide(&self, delay: Duration, urgent: bool, elapsed: Duration) {
        self.delay_us.store(delay.as_micros() as u64, Relaxed);
        let recent = GiveWay::ALL.map(|what| self.valve(what).look(elapsed));
        let policy = self.policy.lock();
        let order = self.order(&policy);
        // They gave way while they were few; now it is the turn of what comes before them.
        if order != policy.give_way
            && self.gives_way_later(GiveWay::CatchUp, &order, &policy, &recent)
        {
            self.open(GiveWay::CatchUp);
        }
        if urgent && delay > policy.delay {
            let floor = policy.floor_bytes_per_s as f64;
            self.turn_down(&order, floor, &recent, delay);
        } else if !urgent {
            self.open_all();
        } else if delay < policy.delay / 2 {
            self.turn_up(&order, &recent);
        }
    }

    /// The first in the order by which something can be won.
    fn turn_down(&self, order: &[GiveWay], floor: f64, recent: &[f64; 3], delay: Duration) {
        for what in order.iter().copied() {
            let valve = self.valve(what);
            let now = self.passes(what, recent);
            if now <= floor {
                continue;
            }
            let limit = (now * DECREASE).max(floor);
            if valve.limit().is_none() {
                tracing::info!(
                    what = what.name(),
                    bytes_per_s = limit as u64,
                    delay_ms = delay.as_millis() as u64,
                    "overload: gives way to what is urgent"
                );
            }
            return valve.set(Some(limit));
        }
    }

    /// What still passes there.
    fn passes(&self, what: GiveWay, recent: &[f64; 3]) -> f64 {
        let recent = recent[what as usize];
        let limit = self.valve(what).limit();
        limit.map_or(recent, |limit| limit.min(recent))
    }

    /// Whether it is turned down while there is something to win before it.
    fn gives_way_later(
        &self,
        what: GiveWay,
        order: &[GiveWay],
        policy: &Policy,
        recent: &[f64; 3],
    ) -> bool {
        let floor = policy.floor_bytes_per_s as f64;
        let mut before = order.iter().take_while(|other| **other != what);
        self.valve(what).limit().is_some() && before.any(|b| self.passes(*b, recent) > floor)
    }

    fn open_all(&self) {
        for what in GiveWay::ALL {
            if self.valve(what).limit().is_some() {
                self.open(what);
            }
        }
    }

    fn open(&self, what: GiveWay) {
        tracing::info!(what = what.name(), "overload: passes freely again");
        self.valve(what).set(None);
    }

    /// The last in the order that is turned down.
    fn turn_up(&self, order: &[GiveWay], recent: &[f64; 3]) {
        for what in order.iter().rev().copied() {
            let valve = self.valve(what);
            let Some(limit) = valve.limit() else { continue };
            let limit = limit * INCREASE;
            if limit > recent[what as usize] * OPEN_ABOVE {
                return self.open(what);
            }
            return valve.set(Some(limit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOO_LATE: Duration = Duration::from_millis(30);
    const SOON: Duration = Duration::from_millis(1);
    const MIB: u64 = 1 << 20;

    fn overload(give_way: &[GiveWay]) -> Overload {
        Overload::new(Policy {
            give_way: give_way.to_vec(),
            delay: Duration::from_millis(10),
            floor_bytes_per_s: FLOOR_BYTES_PER_S,
        })
    }

    /// Decides so many times, each after a second in which so much wanted to pass each valve.
    fn seconds(overload: &Overload, n: usize, delay: Duration, urgent: bool, mib: u64) {
        for _ in 0..n {
            for valve in &overload.valves {
                let wanted = (mib * MIB) as f64;
                let passed = valve.limit().map_or(wanted, |limit| limit.min(wanted));
                valve.bytes.fetch_add(passed as u64, Relaxed);
            }
            overload.decide(delay, urgent, Duration::from_secs(1));
        }
    }

    fn limited(overload: &Overload) -> Vec<GiveWay> {
        let limits = overload.limits().into_iter();
        limits
            .filter_map(|(what, limit)| limit.map(|_| what))
            .collect()
    }

    #[test]
    fn they_give_way_in_the_order_of_the_configuration_and_come_back_in_the_opposite_one() {
        use GiveWay::{Bulk, CatchUp};
        let overload = overload(&[Bulk, CatchUp]);
        seconds(&overload, 10, SOON, true, 100);
        assert_eq!(limited(&overload), []);
        seconds(&overload, 1, TOO_LATE, true, 100);
        assert_eq!(limited(&overload), [Bulk]);
        // Bulk goes down to its floor first.
        seconds(&overload, 40, TOO_LATE, true, 100);
        assert_eq!(limited(&overload), [CatchUp, Bulk]);
        let floor = overload.valve(Bulk).limit().expect("limited");
        assert!((floor - FLOOR_BYTES_PER_S as f64).abs() < 1.0, "{floor}");
        seconds(&overload, 1, SOON, true, 100);
        assert_eq!(
            overload.valve(Bulk).limit(),
            Some(floor),
            "the last comes back first"
        );
        seconds(&overload, 200, SOON, true, 100);
        assert_eq!(limited(&overload), []);
    }

    #[test]
    fn subscribers_that_fell_behind_give_way_first_unless_they_are_most() {
        use GiveWay::{Bulk, CatchUp};
        let overload = Arc::new(overload(&GiveWay::ALL));
        let mut readers: Vec<Reader> = (0..5).map(|_| overload.reader()).collect();
        let mut first_after = |from: [ReadsFrom; 5]| {
            readers
                .iter_mut()
                .zip(from)
                .for_each(|(reader, from)| reader.reads(from));
            overload.open_all();
            seconds(&overload, 1, TOO_LATE, true, 100);
            limited(&overload)
        };
        use ReadsFrom::{Log, Nowhere, Ring};
        assert_eq!(first_after([Nowhere; 5]), [CatchUp]);
        assert_eq!(first_after([Log, Log, Ring, Ring, Nowhere]), [CatchUp]);
        // The snapshot keeps its place before bulk.
        let most = first_after([Log, Log, Ring, Nowhere, Nowhere]);
        assert_eq!(most, [GiveWay::Snapshot]);
        // Nobody takes one: then it is bulk that gives way, down to its floor, and only then they do.
        overload.open_all();
        let no_snapshot = |delay| {
            for valve in [Bulk, CatchUp].map(|what| overload.valve(what)) {
                let wanted = (100 * MIB) as f64;
                let passed = valve.limit().map_or(wanted, |limit| limit.min(wanted));
                valve.bytes.fetch_add(passed as u64, Relaxed);
            }
            overload.decide(delay, true, Duration::from_secs(1));
            limited(&overload)
        };
        // What passed before is forgotten first.
        (0..40).for_each(|_| drop(no_snapshot(SOON)));
        assert_eq!(no_snapshot(TOO_LATE), [Bulk]);
        let mut both = (0..60).map(|_| no_snapshot(TOO_LATE));
        assert!(both.any(|limited| limited == [CatchUp, Bulk]));
        let between = Duration::from_millis(8);
        for _ in 0..5 {
            assert_eq!(no_snapshot(between), [CatchUp, Bulk], "it stays down");
        }
        drop(readers);
        overload.open_all();
        seconds(&overload, 1, TOO_LATE, true, 100);
        assert_eq!(
            limited(&overload),
            [CatchUp],
            "who went away does not count"
        );
    }

    #[test]
    fn nothing_gives_way_while_nothing_is_urgent_or_nothing_may() {
        let bulk = overload(&[GiveWay::Bulk]);
        seconds(&bulk, 50, TOO_LATE, false, 100);
        assert_eq!(limited(&bulk), []);
        let nothing = overload(&[]);
        seconds(&nothing, 50, TOO_LATE, true, 100);
        assert_eq!(limited(&nothing), []);
    }

    #[test]
    fn what_passes_little_anyway_is_left_alone() {
        let overload = overload(&[GiveWay::CatchUp, GiveWay::Bulk]);
        seconds(&overload, 50, TOO_LATE, true, 1);
        assert_eq!(limited(&overload), []);
    }

    #[tokio::test]
    async fn a_valve_that_is_turned_down_lets_through_its_rate_and_the_others_pass_freely() {
        let overload = overload(&[GiveWay::Bulk]);
        overload.valve(GiveWay::Bulk).set(Some((50 * MIB) as f64));
        let began = Instant::now();
        for _ in 0..20 {
            overload.pass(GiveWay::Bulk, MIB as usize).await;
        }
        // The first needs not wait, and a burst was saved up by none.
        let took = began.elapsed().as_secs_f64();
        assert!(took >= 0.95 * 19.0 / 50.0, "{took}");
        // At the rate of the other valve this would take 20 seconds; it never waits at all.
        let freely = overload.pass(GiveWay::CatchUp, (1000 * MIB) as usize);
        tokio::select! {
            biased;
            () = freely => {}
            () = std::future::ready(()) => panic!("waited"),
        }
    }

    #[tokio::test]
    async fn who_waits_at_a_valve_passes_when_it_opens() {
        let overload = Arc::new(overload(&[GiveWay::Bulk]));
        overload
            .valve(GiveWay::Bulk)
            .set(Some(FLOOR_BYTES_PER_S as f64));
        // At the floor they would take two hours.
        let waiting: Vec<_> = (0..8192)
            .map(|_| {
                let overload = Arc::clone(&overload);
                tokio::spawn(async move { overload.pass(GiveWay::Bulk, 4 * MIB as usize).await })
            })
            .collect();
        tokio::task::yield_now().await;
        overload.valve(GiveWay::Bulk).set(None);
        for each in waiting {
            let passed = tokio::time::timeout(Duration::from_secs(60), each).await;
            passed.expect("it passes").expect("no panic");
        }
    }
}
