//! A platform that receives: a sink with rows and a cursor that survive its process.

use crate::{
    model::Register,
    random::Random,
    sim::{
        executor::{Process, Spawner},
        judge::{View, Wants},
        net::Net,
        world::World,
    },
};
use hutong_planted_connectors::client::{
    Backoff, ClientError, Delivered, Dialer, Endpoint, Event, Filter, Identity, Start, Subscriber,
    SubscriberOptions,
};
use hutong_plants::Plant;
use hutong_proto::{Cursor, Delta, Issuer, Kind, Lane, Reason, Revision, limits};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Both are written in one transaction.
#[derive(Clone, Debug, Default)]
struct Stored {
    rows: BTreeMap<Register, (Revision, Delta)>,
    cursor: Option<Cursor>,
}

impl Stored {
    fn merge(&mut self, deltas: &[Delivered]) {
        for came in deltas {
            let register = (came.delta.entity, came.delta.value.kind(), came.issuer);
            let newer = self
                .rows
                .get(&register)
                .is_none_or(|(revision, _)| *revision < came.delta.revision);
            if newer {
                let row = (came.delta.revision, came.delta.clone());
                self.rows.insert(register, row);
            }
        }
    }
}

/// A platform; it outlives its processes.
#[derive(Clone, Debug)]
pub struct Sink {
    world: World,
    spawner: Spawner,
    net: Net,
    platform: Issuer,
    kinds: Vec<Kind>,
    stored: Arc<Mutex<Stored>>,
    running: Arc<Mutex<Option<Process>>>,
    /// It takes nothing until then.
    stalled_until: Arc<Mutex<Option<Instant>>>,
    random: Arc<Mutex<Random>>,
}

impl Sink {
    pub fn new(
        world: &World,
        spawner: &Spawner,
        net: &Net,
        (platform, kinds): (Issuer, Vec<Kind>),
        random: Random,
    ) -> Sink {
        Sink {
            world: world.clone(),
            spawner: spawner.clone(),
            net: net.clone(),
            platform,
            kinds,
            stored: Arc::default(),
            running: Arc::default(),
            stalled_until: Arc::default(),
            random: Arc::new(Mutex::new(random)),
        }
    }

    pub fn stall(&self, ms: u64) {
        let until = Instant::now() + Duration::from_millis(ms);
        *self.stalled_until.lock() = Some(until);
    }

    /// A process begins; the one before is gone.
    pub fn start(&self) {
        let process = self.spawner.process();
        let before = self.running.lock().replace(process);
        if let Some(before) = before {
            self.spawner.kill(before);
        }
        self.world
            .trace(|| format!("sink {} starts", self.platform));
        let random = self.random.lock().fork();
        self.spawner
            .spawn(process, self.clone().run(process, random));
    }

    fn wants(&self) -> Wants {
        Wants {
            own: self.platform,
            kinds: self.kinds.clone(),
        }
    }

    async fn run(self, process: Process, mut random: Random) {
        // Now and then a platform has lost its tables.
        if random.one_in(6) {
            *self.stored.lock() = Stored::default();
            self.world
                .trace(|| format!("sink {} has nothing", self.platform));
        }
        let mut start = match self.stored.lock().cursor {
            // The broker may be asked instead: it knows what it was told.
            Some(_) if random.one_in(3) => Start::Stored,
            Some(cursor) => Start::Cursor(cursor),
            None => Start::Snapshot,
        };
        loop {
            let error = match self.attempt(process, start, &mut random).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            self.world
                .trace(|| format!("sink {} ends: {error}", self.platform));
            match error.reason() {
                // What it missed is no longer kept: it begins anew.
                Some(Reason::CursorCompacted) => start = Start::Snapshot,
                // Another process of ours has it.
                Some(Reason::SubscriptionTakenOver) => {
                    let cursor = self.stored.lock().cursor;
                    start = cursor.map_or(Start::Snapshot, Start::Cursor);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                _ => {
                    let what = format!("sink {} gives up: {error}", self.platform);
                    return self.world.violated("INV-6", what);
                }
            }
        }
    }

    fn options(&self, start: Start, random: &mut Random) -> SubscriberOptions {
        let endpoint = Endpoint::new("http://broker", Identity::Platform(self.platform));
        SubscriberOptions {
            filter: Filter {
                kinds: self.kinds.clone(),
                ..Filter::default()
            },
            start,
            credit_bytes: limits::SUBSCRIBE_CREDIT_BYTES_MIN,
            lz4: random.one_in(2),
            backoff: Backoff {
                first: Duration::from_millis(20),
                max: Duration::from_secs(2),
                jitter_seed: Some(random.draw()),
            },
            dialer: Dialer(Arc::new(self.net.clone())),
            ..SubscriberOptions::new(endpoint, "sink")
        }
    }

    async fn attempt(
        &self,
        process: Process,
        start: Start,
        random: &mut Random,
    ) -> Result<std::convert::Infallible, ClientError> {
        let mut subscriber = Subscriber::open(self.options(start, random)).await?;
        let opened = Some(subscriber.cursor()).filter(|cursor| cursor.log_id.0 != 0);
        if let (Some(opened), Some(own)) = (opened, self.stored.lock().cursor) {
            for lane in Lane::DELIVERED {
                if opened.lane(lane) > own.lane(lane) {
                    let what = format!(
                        "a stream of {} begins at {opened:?}, it has only {own:?}",
                        self.platform
                    );
                    self.world.violated("INV-7", what);
                }
            }
        }
        let mut view = View::new(self.wants(), opened);
        let mut staged: Option<Stored> = None;
        loop {
            let stalled = *self.stalled_until.lock();
            if let Some(until) = stalled.filter(|_| !self.world.healed()) {
                tokio::time::sleep_until(until).await;
            }
            let event = subscriber.next().await?;
            self.world.judge(|judge| judge.event(&mut view, &event));
            let cursor = match event {
                Event::SnapshotBegin { .. } => {
                    staged = Some(Stored::default());
                    continue;
                }
                Event::Rows(rows) => {
                    staged.get_or_insert_default().merge(&rows);
                    continue;
                }
                Event::SnapshotEnd { cursor, .. } => {
                    let mut whole = staged.take().unwrap_or_default();
                    whole.cursor = Some(cursor);
                    *self.stored.lock() = whole;
                    cursor
                }
                Event::Records { deltas, cursor } => {
                    // A transaction takes its time; a process that dies in it has written nothing.
                    if random.one_in(4) {
                        tokio::time::sleep(Duration::from_millis(random.between(0, 30))).await;
                    }
                    self.commit(process, deltas, cursor);
                    cursor
                }
                Event::Bookmark { cursor, .. } => {
                    self.commit(process, Vec::new(), cursor);
                    cursor
                }
            };
            self.world.trace(|| {
                format!(
                    "sink {} has {}/{}",
                    self.platform, cursor.urgent, cursor.bulk
                )
            });
            subscriber.applied(cursor).await?;
        }
    }

    fn commit(&self, process: Process, deltas: Vec<Delivered>, cursor: Cursor) {
        if hutong_plants::is(Plant::SinkCursorApart) {
            self.stored.lock().cursor = Some(cursor);
            let stored = Arc::clone(&self.stored);
            return self.spawner.spawn(process, async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                stored.lock().merge(&deltas);
            });
        }
        let mut stored = self.stored.lock();
        stored.merge(&deltas);
        stored.cursor = Some(cursor);
    }

    /// Whether it has everything that the log has for it; if not, what it lacks.
    pub fn lacks(&self) -> Option<String> {
        let wants = self.wants();
        let stored = self.stored.lock();
        let compared = self.world.judge(|judge| {
            judge.catch_up()?;
            let newest = judge.model.registers_below(judge.model.next(), judge.model.log_time());
            for ((entity, kind, issuer), version) in newest {
                let wanted = issuer != wants.own && (wants.kinds.is_empty() || wants.kinds.contains(&kind));
                let row = stored.rows.get(&(entity, kind, issuer));
                if wanted && row.map(|(_, delta)| delta) != Some(&*version.delta) {
                    return Ok(Some(format!(
                        "sink {} has {:?} of a register with revision {} of offset {}; its cursor is {:?}",
                        self.platform,
                        row.map(|(revision, _)| revision),
                        version.delta.revision,
                        version.offset,
                        stored.cursor
                    )));
                }
            }
            Ok(None)
        });
        compared.flatten()
    }
}
