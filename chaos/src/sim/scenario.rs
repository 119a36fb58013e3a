//! What breaks when: chosen by the seed, with one thing at a time or all of it together.

use crate::{
    random::Random,
    sim::{
        Outcome,
        executor::{Executor, Spawner},
        judge::Judge,
        net::{Direction, Net},
        node::{Disk, Node, Sizes},
        publisher::Producer,
        subscriber::Sink,
        world::{EPOCH_US, Violation, World},
    },
};
use futures_util::FutureExt;
use hutong_planted_broker::{
    config::Retention,
    log::{faults::Faults, memory::MemoryLog},
    node::retention,
};
use hutong_proto::{Issuer, Kind, LogId, Micros};
use parking_lot::Mutex;
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

const PLATFORMS: [u32; 3] = [340_000, 510_000, 310_000];
const LOG_ID: LogId = LogId(7);
/// After everything has healed, everyone must agree within this long.
const CONVERGE_S: u64 = 120;

/// A seed, and what it decides.
#[derive(Debug)]
pub struct Scenario {
    seed: u64,
    keep_trace: bool,
    random: Random,
}

/// Everything that runs.
struct Stage {
    world: World,
    spawner: Spawner,
    net: Net,
    disk: Disk,
    node: Mutex<Option<Arc<Node>>>,
    producers: Vec<Producer>,
    sinks: Vec<Sink>,
    random: Mutex<Random>,
    faults: Mutex<u64>,
}

impl Scenario {
    pub fn new(seed: u64, keep_trace: bool) -> Scenario {
        Scenario {
            seed,
            keep_trace,
            random: Random::new(seed),
        }
    }

    /// Within a runtime whose time is paused.
    pub async fn play(mut self, schedule: Random) -> Outcome {
        let stage = self.stage();
        self.play_on(stage, schedule).await
    }

    async fn play_on(self, stage: Arc<Stage>, schedule: Random) -> Outcome {
        let world = stage.world.clone();
        let directing = Arc::clone(&stage);
        let played = Executor::new(stage.spawner.clone(), schedule, async move {
            directing.direct().await;
        });
        if let Err(panic) = AssertUnwindSafe(played).catch_unwind().await {
            let what = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            world.violated("INV-11", format!("a panic: {}", what.unwrap_or_default()));
        }
        let (trace_hash, trace_lines) = world.trace_hash();
        let counts = world.judge(|judge| Ok((judge.acknowledged, judge.delivered)));
        let (acknowledged, delivered) = counts.unwrap_or_default();
        let faults = *stage.faults.lock();
        Outcome {
            seed: self.seed,
            violation: world.found(),
            trace_hash,
            trace_lines,
            trace: world.take_text(),
            simulated: Duration::from_millis(world.elapsed_ms()),
            acknowledged,
            delivered,
            faults,
        }
    }

    /// Everything that runs, before it does.
    fn stage(&mut self) -> Arc<Stage> {
        let random = &mut self.random;
        let issuers = PLATFORMS.map(|code| Issuer::new(code).expect("six digits"));
        // The log needs the clock of a world that needs the log.
        let clock: Arc<OnceLock<hutong_planted_broker::clock::Clock>> = Arc::default();
        let later = Arc::clone(&clock);
        let now = Arc::new(move || later.get().map_or(Micros(EPOCH_US), |clock| clock()));
        let log = Arc::new(MemoryLog::new(LOG_ID, now, Faults::default()));
        let world = World::new(Judge::new(Arc::clone(&log), &issuers), self.keep_trace);
        clock.set(world.broker_clock()).ok();
        let spawner = Spawner::default();
        let net = Net::new(world.clone(), spawner.clone(), random.fork());
        let sizes = Sizes {
            ring_bytes: random.between(500, 20_000) as usize,
            queue_bytes: random.between(1_000, 16_000) as usize,
            gather_bytes: random.between(2_000, 60_000) as usize,
            floor_bytes_per_s: random.between(2_000, 50_000),
        };
        let disk = Disk {
            log,
            state: hutong_planted_broker::state::MemoryStore::default(),
            platforms: issuers.to_vec(),
            sizes,
        };
        let producer = |issuer: &Issuer, random: Random| {
            Producer::new(&world, &spawner, &net, *issuer, random)
        };
        let producers = issuers
            .iter()
            .map(|issuer| producer(issuer, random.fork()))
            .collect();
        let kinds = [
            Vec::new(),
            vec![Kind::HealthCode, Kind::TestResult],
            vec![Kind::TestResult],
        ];
        let sink = |what, random| Sink::new(&world, &spawner, &net, what, random);
        let sinks = issuers
            .into_iter()
            .zip(kinds)
            .map(|what| sink(what, random.fork()))
            .collect();
        Arc::new(Stage {
            world,
            spawner,
            net,
            disk,
            node: Mutex::new(None),
            producers,
            sinks,
            random: Mutex::new(random.fork()),
            faults: Mutex::new(0),
        })
    }
}

impl Stage {
    fn between(&self, low: u64, high: u64) -> u64 {
        self.random.lock().between(low, high)
    }

    async fn direct(self: Arc<Self>) {
        self.world.disk_weather(5, 0);
        self.boot();
        self.producers
            .iter()
            .for_each(|producer| producer.start(true));
        self.sinks.iter().for_each(Sink::start);
        let failing = Arc::clone(&self);
        let own = self.spawner.process();
        self.spawner.spawn(own, async move {
            loop {
                failing.world.until_broker_failed().await;
                failing.restart(200).await;
            }
        });
        let rounds = self.between(8, 40);
        for _ in 0..rounds {
            if self.world.found().is_some() {
                return;
            }
            for producer in &self.producers {
                let count = match self.between(0, 5) {
                    0 => 0,
                    5 => self.between(20, 250),
                    _ => self.between(1, 8),
                };
                producer.change(count);
            }
            self.break_something().await;
            let pause = self.between(0, 3000);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.heal().await;
    }

    fn boot(&self) {
        let mut random = self.random.lock();
        match Node::boot(&self.world, &self.spawner, &self.disk, &mut random) {
            Ok(node) => {
                self.world
                    .trace(|| format!("broker up, applied below {}", node.state.applied().next));
                self.net.node(Some(Arc::clone(&node)));
                *self.node.lock() = Some(node);
            }
            Err(Violation { invariant, what }) => self.world.violated(invariant, what),
        }
        self.world.judge(Judge::promises_hold);
    }

    /// The broker is gone for so long.
    async fn restart(&self, down_ms: u64) {
        let node = self.node.lock().take();
        let Some(node) = node else { return };
        self.net.node(None);
        let named = {
            let mut random = self.random.lock();
            node.crash(&mut random);
            random.one_in(2)
        };
        // Of a run of state that is being written all is there, or nothing.
        self.disk.state.power_cut(named);
        self.net.cut(None);
        self.world.judge(Judge::promises_hold);
        tokio::time::sleep(Duration::from_millis(down_ms)).await;
        self.boot();
    }

    async fn break_something(&self) {
        *self.faults.lock() += 1;
        let platform = self.between(0, 2) as usize;
        let issuer = self.disk.platforms[platform];
        match self.between(0, 22) {
            0 | 1 => {
                let down = self.between(0, 1500);
                self.restart(down).await;
            }
            2 => {
                self.world.trace(|| "the broker is told to stop".to_owned());
                let node = self.node.lock().clone();
                if let Some(node) = node {
                    node.drain();
                    let wait = self.between(0, 300);
                    tokio::time::sleep(Duration::from_millis(wait)).await;
                }
                self.restart(100).await;
            }
            3..=6 | 14 | 15 => self.break_network(issuer),
            7 => {
                let kill = self.between(0, 2) > 0;
                self.producers[platform].start(kill);
                // The new process and the broker in the middle of it.
                if self.between(0, 1) == 0 {
                    let after = self.between(0, 1000);
                    tokio::time::sleep(Duration::from_millis(after)).await;
                    let down = self.between(0, 1500);
                    self.restart(down).await;
                }
            }
            8 | 19 | 20 => self.sinks[platform].start(),
            9 | 21 => {
                let ms = self.between(100, 20_000);
                self.world
                    .trace(|| format!("sink {issuer} takes nothing for {ms} ms"));
                self.sinks[platform].stall(ms);
            }
            10 => {
                let days = self.between(0, 20) as i64;
                let skew = match self.between(0, 2) {
                    0 => days * 86_400,
                    1 => 0,
                    _ => -(self.between(0, 1800) as i64),
                };
                self.world
                    .trace(|| format!("the broker's clock is {skew} s off"));
                self.world.skew(skew);
            }
            11 => {
                let (ms, fails) = (self.between(0, 1500), self.between(0, 3) * 8);
                self.world
                    .trace(|| format!("a sync takes up to {ms} ms, one in {fails} fails"));
                self.world.disk_weather(ms, fails);
            }
            12 | 13 => self.trim(),
            16 => self.skew_platform(platform),
            17 => {
                let ms = self.between(0, 12);
                self.world
                    .trace(|| format!("tasks wait up to {ms} ms to run"));
                self.spawner.busy(ms);
            }
            _ => self.world.disk_weather(5, 0),
        }
    }

    fn break_network(&self, issuer: Issuer) {
        match self.between(0, 5) {
            0 => self.net.cut(Some(issuer)),
            1 => self.net.cut(None),
            2 => {
                let (ms, directions) = (self.between(100, 15_000), self.directions());
                self.world
                    .trace(|| format!("nothing passes {directions:?} of {issuer} for {ms} ms"));
                self.net.still(issuer, directions, ms);
            }
            3 => {
                let ms = self.between(0, 800);
                self.world.trace(|| format!("latency up to {ms} ms"));
                self.net.latency(ms);
            }
            _ => {
                let (ms, directions) = (self.between(0, 15_000), self.directions());
                self.world
                    .trace(|| format!("{directions:?} of {issuer} is lost, found out in {ms} ms"));
                self.net.lose(issuer, directions, ms);
            }
        }
    }

    fn directions(&self) -> &'static [Direction] {
        match self.between(0, 2) {
            0 => Direction::BOTH,
            1 => &[Direction::Up],
            _ => &[Direction::Down],
        }
    }

    /// Its clock is days behind, a little ahead, or so far ahead that its rows are of a time to come.
    fn skew_platform(&self, platform: usize) {
        let skew = match self.between(0, 3) {
            0 => -(self.between(0, 3 * 86_400) as i64),
            1 => self.between(0, 240) as i64,
            2 => self.between(600, 86_400) as i64,
            _ => 0,
        };
        let issuer = self.disk.platforms[platform];
        self.world
            .trace(|| format!("the clock of {issuer} is {skew} s off"));
        self.producers[platform].skew(skew);
    }

    /// As the broker's own retention, but of much less.
    fn trim(&self) {
        let node = self.node.lock().clone();
        let Some(node) = node else { return };
        // What goes must have been looked at.
        self.world.judge(Judge::catch_up);
        let bytes = self.between(0, 20_000);
        let keep = Retention {
            age: Duration::from_secs(100 * 365 * 86_400),
            bytes,
        };
        let floor = node.state.stored().next;
        let now = (self.world.broker_clock())();
        match retention::enforce(&*node.log, &keep, floor, now) {
            Ok(trims) => self
                .world
                .trace(|| format!("{trims} partitions trimmed to {bytes} bytes")),
            Err(error) => self.world.violated("INV-3", error.to_string()),
        }
    }

    async fn heal(&self) {
        self.world.trace(|| "everything heals".to_owned());
        self.world.heal();
        self.world.disk_weather(2, 0);
        self.net.latency(3);
        self.spawner.busy(0);
        for issuer in &self.disk.platforms {
            self.net.still(*issuer, Direction::BOTH, 0);
        }
        let mut waited = 0;
        loop {
            if self.world.found().is_some() {
                return;
            }
            if self.node.lock().is_none() {
                // It is on its way up.
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            let done = self.producers.iter().all(Producer::is_done);
            let lacks = self.sinks.iter().find_map(Sink::lacks);
            if done && lacks.is_none() {
                break;
            }
            if waited > CONVERGE_S * 1000 {
                let settled: Vec<_> = self.producers.iter().map(Producer::settled).collect();
                let what = lacks.unwrap_or_else(|| format!("producers settled {settled:?}"));
                return self
                    .world
                    .violated("INV-6", format!("{CONVERGE_S} s after all faults: {what}"));
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
            waited += 250;
        }
        self.world.judge(Judge::promises_hold);
        let node = self.node.lock().clone();
        if let Some(Err(Violation { invariant, what })) = node.map(|node| node.check_state()) {
            self.world.violated(invariant, what);
        }
        self.world.trace(|| "everyone agrees".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thousands of them are played by one process.
    #[test]
    fn nothing_of_a_simulation_is_left_when_it_is_over() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without IO");
        let mut scenario = Scenario::new(1, false);
        let log = runtime.block_on(async {
            let stage = scenario.stage();
            let log = Arc::downgrade(&stage.disk.log);
            let outcome = scenario.play_on(stage, Random::new(2)).await;
            assert_eq!(outcome.violation, None);
            assert!(outcome.acknowledged > 0);
            log
        });
        drop(runtime);
        assert!(log.upgrade().is_none(), "the log of a simulation is kept");
    }
}
