//! One life of the broker: its real parts, wired as `hutong_broker::node` does it, over a disk that
//! outlives it.

use crate::{
    model::Register,
    random::Random,
    sim::{
        executor::{Process, Spawner},
        log::SimLog,
        net::Call,
        world::{Violation, World},
    },
};
use hutong_planted_broker::{
    access::Access,
    apply::{Apply, waiters::Waiters},
    control::ControlWriter,
    fanout::{Beside, Blocking, Fanout, Snapshots, cursors, registry::Subscriptions},
    ingress::{FrameStream, Ingress, queue::Queues, registry::Producers},
    log::{Log, memory::MemoryLog},
    metrics::Metrics,
    overload::{GiveWay, Overload, Policy},
    state::{MemoryStore, State, StateOptions, keys::RegisterKey},
    tail::TailRings,
};
use hutong_proto::{Issuer, Lane, Offset, Partition, Revision, Shard, frame::Frame};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Streaming;

const CURSORS_EVERY: Duration = Duration::from_secs(1);
/// Shorter than a line may stand still: now and then a client is sent away.
const STALL: Duration = Duration::from_secs(12);
/// Tasks of a busy machine wait longer.
const GIVE_WAY_DELAY: Duration = Duration::from_millis(3);

/// Sizes that a seed chooses: small, so that everything overflows now and then.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub ring_bytes: usize,
    pub queue_bytes: usize,
    pub gather_bytes: usize,
    /// What no valve goes below.
    pub floor_bytes_per_s: u64,
}

/// What survives a broker.
#[derive(Clone, Debug)]
pub struct Disk {
    pub log: Arc<MemoryLog>,
    pub state: MemoryStore,
    pub platforms: Vec<Issuer>,
    pub sizes: Sizes,
}

/// A running broker.
#[derive(Debug)]
pub struct Node {
    world: World,
    spawner: Spawner,
    process: Process,
    ingress: Ingress,
    fanout: Fanout,
    pub log: Arc<SimLog>,
    pub state: Arc<State>,
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Violation {
    Violation {
        invariant: "INV-3",
        what: format!("{what}: {error}"),
    }
}

/// What ingress, apply and fan-out share.
struct Parts {
    world: World,
    disk: Disk,
    log: Arc<SimLog>,
    state: Arc<State>,
    rings: Arc<TailRings>,
    waiters: Arc<Waiters>,
    metrics: Arc<Metrics>,
    overload: Arc<Overload>,
    platforms: Vec<(Issuer, u32)>,
}

impl Parts {
    fn open(world: &World, disk: &Disk) -> Result<Parts, Violation> {
        let options = StateOptions {
            gather_bytes_max: disk.sizes.gather_bytes,
            ..StateOptions::default()
        };
        let state = State::open_in_memory(disk.state.clone(), options);
        let state = Arc::new(state.map_err(|e| failed("state does not open", &e))?);
        let (stored, end) = (state.stored().next, disk.log.next_offset());
        if stored > end {
            return Err(Violation {
                invariant: "INV-5",
                what: format!("state is applied below {stored}, the log ends at {end}"),
            });
        }
        let Sizes {
            ring_bytes,
            queue_bytes,
            floor_bytes_per_s,
            ..
        } = disk.sizes;
        let log = SimLog::new(Arc::clone(&disk.log), world.clone(), queue_bytes);
        Ok(Parts {
            world: world.clone(),
            disk: disk.clone(),
            log: Arc::new(log),
            state,
            rings: Arc::new(TailRings::new(stored, ring_bytes, ring_bytes)),
            waiters: Arc::new(Waiters::default()),
            metrics: Arc::new(Metrics::new(disk.platforms.iter().copied())),
            overload: Arc::new(Overload::new(Policy {
                give_way: GiveWay::ALL.to_vec(),
                delay: GIVE_WAY_DELAY,
                floor_bytes_per_s,
            })),
            platforms: disk.platforms.iter().map(|p| (*p, 1)).collect(),
        })
    }

    fn applier(&self) -> Result<Applier, Violation> {
        let apply = Apply::open(
            Arc::clone(&self.state),
            Arc::clone(&self.rings),
            Arc::clone(&self.waiters),
            self.metrics.recorder(),
        );
        Ok(Applier {
            world: self.world.clone(),
            apply: apply.map_err(|e| failed("apply does not open", &e))?,
            state: Arc::clone(&self.state),
            rings: Arc::clone(&self.rings),
            disk: self.disk.clone(),
        })
    }

    fn access(&self) -> Access {
        Access::trial(self.disk.platforms.iter().copied())
    }

    fn ingress(&self) -> Ingress {
        let queue_bytes = self.disk.sizes.queue_bytes;
        Ingress {
            access: self.access(),
            log: Arc::clone(&self.log) as _,
            log_id: self.log.id(),
            state: Arc::clone(&self.state),
            waiters: Arc::clone(&self.waiters),
            producers: Arc::new(Producers::default()),
            queues: Arc::new(Queues::new(queue_bytes, queue_bytes, &HashMap::new())),
            overload: Arc::clone(&self.overload),
            shards: Arc::new(self.platforms.iter().copied().collect()),
            metrics: Arc::clone(&self.metrics),
            clock: self.world.broker_clock(),
            stall: STALL,
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
        }
    }

    fn fanout(&self, subscriptions: &Arc<Subscriptions>, beside: Beside) -> Fanout {
        let platforms = self.disk.platforms.iter().copied();
        Fanout {
            access: self.access(),
            log: Arc::clone(&self.log) as _,
            log_id: self.log.id(),
            state: Arc::clone(&self.state),
            rings: Arc::clone(&self.rings),
            subscriptions: Arc::clone(subscriptions),
            control: ControlWriter::new(Arc::clone(&self.log) as _),
            platforms: Arc::new(self.platforms.clone()),
            metrics: Arc::clone(&self.metrics),
            clock: self.world.broker_clock(),
            snapshots: Arc::new(Snapshots::new(2, platforms)),
            stall: STALL,
            overload: Arc::clone(&self.overload),
            log_readers: Arc::default(),
            blocking: Blocking::Inline,
            beside,
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
        }
    }
}

impl Node {
    /// Opens what is on disk, applies what state does not have, and serves.
    pub fn boot(
        world: &World,
        spawner: &Spawner,
        disk: &Disk,
        random: &mut Random,
    ) -> Result<Arc<Node>, Violation> {
        let parts = Parts::open(world, disk)?;
        let mut applier = parts.applier()?;
        let end = disk.log.next_offset();
        while applier.rings.next() < end {
            applier.step(random)?;
        }
        let subscriptions = Subscriptions::load(&parts.state, parts.log.id(), &parts.platforms);
        let subscriptions = Arc::new(subscriptions.map_err(|e| failed("subscriptions", &e))?);
        let process = spawner.process();
        let tasks = spawner.clone();
        let beside = Beside::new(move |task| tasks.spawn(process, task));
        let fanout = parts.fanout(&subscriptions, beside);
        let control = fanout.control.clone();
        let node = Arc::new(Node {
            world: world.clone(),
            spawner: spawner.clone(),
            process,
            ingress: parts.ingress(),
            fanout,
            log: Arc::clone(&parts.log),
            state: Arc::clone(&parts.state),
        });
        node.check_state()?;
        let spawn = |task: Box<dyn Future<Output = ()> + Send>| {
            spawner.spawn(node.process, Box::into_pin(task));
        };
        let overload = Arc::clone(&parts.overload);
        spawn(Box::new(
            overload.run(parts.rings.applied(), CancellationToken::new()),
        ));
        let log = parts.log;
        spawn(Box::new(
            Arc::clone(&log).write(world.clone(), random.fork()),
        ));
        spawn(Box::new(applier.run(log, random.fork())));
        spawn(Box::new(Arc::clone(&node).bring_down(random.fork())));
        spawn(Box::new(cursors::keep_cursors(
            subscriptions,
            control,
            CURSORS_EVERY,
            CancellationToken::new(),
        )));
        Ok(node)
    }

    /// Takes a call; what it answers.
    pub fn serve(&self, platform: Issuer, call: Call, input: Streaming<Frame>) -> FrameStream {
        match call {
            Call::Publish => {
                let (session, output) = self.ingress.session(platform, input);
                self.spawner.spawn(self.process, session);
                output
            }
            Call::Subscribe => {
                let (session, output) = self.fanout.session(platform, input);
                self.spawner.spawn(self.process, session);
                output
            }
        }
    }

    /// The process is gone, and the power with it.
    pub fn crash(&self, random: &mut Random) {
        self.spawner.kill(self.process);
        let kept = self.log.power_cut(random);
        self.world
            .trace(|| format!("broker crashes, {kept} unsynced records stay"));
    }

    /// It is told to stop: sessions say goodbye.
    pub fn drain(&self) {
        self.ingress.draining.cancel();
        self.fanout.draining.cancel();
    }

    /// Runs go down now and then.
    async fn bring_down(self: Arc<Self>, mut random: Random) {
        loop {
            tokio::time::sleep(Duration::from_millis(random.between(50, 4000))).await;
            if let Err(error) = self.state.rotate() {
                return self.world.violated("INV-3", error.to_string());
            }
            self.state.write_next();
            tokio::time::sleep(Duration::from_millis(random.between(0, 300))).await;
            match self.state.flush_next() {
                Ok(_) => self
                    .world
                    .trace(|| format!("state stored below {}", self.state.stored().next)),
                Err(error) => return self.world.violated("INV-3", error.to_string()),
            }
        }
    }

    /// State is exactly the effect of the log.
    pub fn check_state(&self) -> Result<(), Violation> {
        let applied = self.state.applied();
        let mut rows: BTreeMap<Register, (Offset, Revision)> = BTreeMap::new();
        let read = self.state.with_snapshot(|found, _| {
            while let Some((key, row)) = found.next_row()? {
                let RegisterKey {
                    entity,
                    kind,
                    issuer,
                } = key;
                rows.insert((entity, kind, issuer), (row.offset, row.revision));
            }
            Ok(())
        });
        read.and_then(|read| read)
            .map_err(|e| failed("state cannot be read", &e))?;
        let expected = self.world.judge(|judge| {
            judge.catch_up()?;
            Ok(judge.model.registers_below(applied.next, applied.log_time))
        });
        let Some(expected) = expected else {
            return Ok(());
        };
        for (register, version) in &expected {
            let right = (version.offset, version.delta.revision);
            let found = rows.get(register);
            if found == Some(&right) {
                continue;
            }
            let invariant = match found {
                Some((_, revision)) if *revision < right.1 => "INV-4",
                None if version.delta.expires_at.0 != 0 => "INV-12",
                _ => "INV-5",
            };
            return Err(Violation {
                invariant,
                what: format!(
                    "state below {} has {found:?} where the log has {right:?}",
                    applied.next
                ),
            });
        }
        match rows
            .keys()
            .find(|register| !expected.contains_key(*register))
        {
            None => Ok(()),
            Some(register) => Err(Violation {
                invariant: "INV-2",
                what: format!(
                    "state has a register of {} that the log has not",
                    register.2
                ),
            }),
        }
    }
}

/// The apply thread, as a task.
struct Applier {
    world: World,
    apply: Apply,
    state: Arc<State>,
    rings: Arc<TailRings>,
    disk: Disk,
}

impl Applier {
    async fn run(mut self, log: Arc<SimLog>, mut random: Random) {
        loop {
            if self.rings.next() >= self.disk.log.next_offset() {
                log.committed.notified().await;
                continue;
            }
            if random.one_in(4) {
                tokio::time::sleep(Duration::from_millis(random.between(0, 20))).await;
            }
            if let Err(Violation { invariant, what }) = self.step(&mut random) {
                return self.world.violated(invariant, what);
            }
        }
    }

    /// A group, as large as it happens to be.
    fn step(&mut self, random: &mut Random) -> Result<(), Violation> {
        // Apply would wait for the thread that brings runs down; here it is us.
        while self.state.flush_next().map_err(|e| failed("state", &e))? {}
        let partitions = self.disk.platforms.iter().flat_map(|issuer| {
            Lane::DELIVERED.map(|lane| Partition {
                issuer: *issuer,
                lane,
                shard: Shard(0),
            })
        });
        let mut partitions: Vec<Partition> = partitions.collect();
        partitions.push(Partition::CONTROL);
        let bytes = match random.below(3) {
            0 => 1,
            1 => 2000,
            _ => 1 << 20,
        };
        let from = self.rings.next();
        let read = self
            .disk
            .log
            .read_merged(&partitions, from, Offset(u64::MAX), bytes);
        let read = read.map_err(|e| failed("the log cannot be read", &e))?;
        let applied = self.apply.group(&read.entries);
        applied.map_err(|e| failed("apply stops", &e))?;
        let next = self.rings.next();
        self.world.trace(|| format!("applied below {next}"));
        self.world.judge(|judge| judge.visible(next));
        Ok(())
    }
}
