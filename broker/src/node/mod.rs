//! Wires the stages together and owns every task and thread. `ARCHITECTURE.md` draws the picture.
mod data_dir;
mod observe;
pub mod retention;
mod serve;

use crate::{
    access::Access,
    admin::Admin,
    apply::{Apply, ApplyError, waiters::Waiters, ways::Ways},
    checkpoint::Checkpoints,
    clock::{self, Clock},
    config::Config,
    console::{self, Console},
    control::ControlWriter,
    fanout::{Beside, Blocking, Fanout, Snapshots, registry::Subscriptions},
    ingress::{Ingress, queue::Queues, registry::Producers},
    lag::Lags,
    log::{
        Log, LogError, ReadError, Tail,
        embedded::{Commit, CommitFailed, EmbeddedLog, EmbeddedOptions},
    },
    metrics::{Metrics, Recorder},
    overload::{BulkGate, Overload},
    query::Query,
    reload::Live,
    reports::{Reporting, Reports},
    state::{Flush, State, StateError, StateOptions},
    tail::TailRings,
};

use hutong_config::ConfigErrors;
use hutong_proto::{
    Issuer, Micros, Offset, Partition, api::report_service_server::ReportServiceServer,
};
use hutong_telemetry::{Exporter, Health, PUSH_EVERY, Service, TraceSettings, Traces, catalogue};
use std::{net::SocketAddr, path::Path, sync::Arc, thread::JoinHandle, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use data_dir::{DataDir, DataDirError, VERSION_FILE, layout_version, write_durably};

/// Gathered state goes down at least this often, so that a restart has little to replay.
const ROTATE_EVERY: Duration = Duration::from_secs(30);
const CURSORS_EVERY: Duration = Duration::from_secs(1);

/// Why a broker did not start. Nothing is listening then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(
        "the state in {dir} is ahead of the log (applied below {applied}, the log ends at {end}): \
         they do not belong together; restore both from one backup"
    )]
    StateAheadOfLog {
        dir: String,
        applied: Offset,
        end: Offset,
    },
    #[error(
        "the state in {dir} is behind the log (applied below {applied}, but {partition} is kept from \
         {trimmed_below} on): what lies between is in neither of them; restore the folder `state` from a \
         backup that is at {trimmed_below} or later"
    )]
    StateBehindLog {
        dir: String,
        applied: Offset,
        partition: Partition,
        trimmed_below: Offset,
    },
    #[error("cannot listen on {address}: {why}")]
    Listen { address: SocketAddr, why: String },
    #[error("cannot start: {0}")]
    Other(String),
}

/// A running broker.
#[derive(Debug)]
pub struct Broker {
    grpc_addr: SocketAddr,
    http_addr: SocketAddr,
    stores: Stores,
    waiters: Arc<Waiters>,
    failure: watch::Receiver<Option<String>>,
    drain: Drain,
    health: Health,
    live: Arc<Live>,
    metrics: Arc<Metrics>,
}

/// What works on the data folder, with threads of its own.
#[derive(Debug)]
struct Stores {
    log: Arc<dyn Log>,
    state: Arc<State>,
    apply: Option<JoinHandle<()>>,
    // Last: the lock on the folder goes after everything in it is closed.
    _data_dir: DataDir,
}

impl Stores {
    /// Blocks until what was appended is on disk and applied, and state is down. Why not, if it could not.
    fn close(&mut self) -> Option<String> {
        let applied = self.stop();
        let closed = self.state.close();
        if !applied || closed.is_err() {
            tracing::error!(applied, ?closed, "not everything closed well");
        }
        let failed = self.log.poisoned().or_else(|| self.state.failure());
        failed.or_else(|| closed.err().map(|error| error.to_string()))
    }

    /// Blocks until the threads have ended; says whether apply ended well.
    fn stop(&mut self) -> bool {
        self.state.closing();
        self.log.close();
        self.apply.take().is_none_or(|apply| apply.join().is_ok())
    }
}

/// Without draining it is as after a crash, but the threads end: they must not work on files that the
/// process is about to leave.
impl Drop for Stores {
    fn drop(&mut self) {
        self.stop();
        self.state.stop();
    }
}

/// The order in which things stop.
#[derive(Debug, Clone)]
struct Drain {
    /// Producers: no more intake.
    ingress: CancellationToken,
    ingress_tasks: TaskTracker,
    /// Background tasks that append or trim.
    background: CancellationToken,
    background_tasks: TaskTracker,
    /// Subscribers: send what there is, say goodbye.
    fanout: CancellationToken,
    fanout_tasks: TaskTracker,
    /// The servers.
    servers: CancellationToken,
    server_tasks: TaskTracker,
}

impl Drain {
    fn new() -> Drain {
        Drain {
            ingress: CancellationToken::new(),
            ingress_tasks: TaskTracker::new(),
            background: CancellationToken::new(),
            background_tasks: TaskTracker::new(),
            fanout: CancellationToken::new(),
            fanout_tasks: TaskTracker::new(),
            servers: CancellationToken::new(),
            server_tasks: TaskTracker::new(),
        }
    }
}

/// The parts that the services share.
struct Parts {
    config: Config,
    clock: Clock,
    log: Arc<dyn Log>,
    state: Arc<State>,
    rings: Arc<TailRings>,
    waiters: Arc<Waiters>,
    ways: Arc<Ways>,
    subscriptions: Arc<Subscriptions>,
    producers: Arc<Producers>,
    queues: Arc<Queues>,
    metrics: Arc<Metrics>,
    reports: Arc<Reports>,
    platforms: Arc<Vec<(Issuer, u32)>>,
    lags: Lags,
    control: ControlWriter,
    snapshots: Arc<Snapshots>,
    overload: Arc<Overload>,
    drain: Drain,
}

impl Broker {
    /// Opens the data folder, replays what state does not have yet, and serves.
    pub async fn start(config: Config) -> Result<Broker, StartError> {
        let clock = clock::system();
        let data_dir = DataDir::open(&config)?;
        let listeners = serve::Listeners::bind(&config).await?;
        let metrics = Arc::new(metrics(&config)?);
        metrics.configured(clock());
        let health = Health::new();
        let (log, state) = open_stores(&config, &clock, &metrics.recorder()).await?;
        let rings = Arc::new(TailRings::new(
            state.stored().next,
            config.memory.tail_urgent as usize,
            config.memory.tail_bulk as usize,
        ));
        let platforms = config.platforms.iter().map(|p| p.issuer);
        let ways = Arc::new(Ways::new(platforms, log.next_offset(), Arc::clone(&clock)));
        let waiters = Arc::new(Waiters::telling(Arc::clone(&ways)));
        let (failed, failure) = watch::channel(None);
        let tail = tail_for(&config, &*log, &state)?;
        let apply = start_apply(tail, &state, &rings, &waiters, &metrics, failed)?;
        replay(&log, &rings, failure.clone()).await?;

        let platforms: Arc<Vec<(Issuer, u32)>> = Arc::new(
            config
                .platforms
                .iter()
                .map(|p| (p.issuer, p.shards))
                .collect(),
        );
        let subscriptions = Arc::new(Subscriptions::load(&state, log.id(), &platforms)?);
        let lags = Lags {
            log: Arc::clone(&log),
            subscriptions: Arc::clone(&subscriptions),
            platforms: Arc::clone(&platforms),
            clock: Arc::clone(&clock),
        };
        let parts = Parts {
            queues: Arc::new(Queues::new(
                config.memory.queue_urgent as usize,
                config.memory.queue_bulk as usize,
                &config.weights(),
            )),
            producers: Arc::new(Producers::default()),
            reports: Arc::default(),
            control: ControlWriter::new(Arc::clone(&log)),
            snapshots: Arc::new(Snapshots::new(
                config.limits.snapshots as usize,
                config.platforms.iter().map(|p| p.issuer),
            )),
            overload: Arc::new(Overload::new(config.overload.clone())),
            drain: Drain::new(),
            clock,
            log,
            state,
            rings,
            waiters,
            ways,
            subscriptions,
            metrics,
            platforms,
            lags,
            config,
        };
        let live = Arc::new(Live::new(
            parts.config.clone(),
            listeners.addresses()?,
            Arc::clone(&parts.overload),
            Arc::clone(&parts.queues),
        ));
        parts.start_background(&live);
        parts
            .metrics
            .observe(Arc::new(observe::Observer::new(&parts, &live)));
        let (grpc_addr, http_addr) = serve::start(listeners, &parts, &live, &health)?;
        health.set_ready(Ok(()));
        tracing::info!(%grpc_addr, %http_addr, log_id = %parts.log.id(), "broker ready");
        Ok(Broker {
            grpc_addr,
            http_addr,
            stores: Stores {
                log: parts.log,
                state: parts.state,
                apply: Some(apply),
                _data_dir: data_dir,
            },
            waiters: parts.waiters,
            failure,
            drain: parts.drain,
            health,
            live,
            metrics: parts.metrics,
        })
    }

    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Resolves when the broker must stop because it can no longer keep its promises.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.clone();
        let mut check = tokio::time::interval(Duration::from_millis(200));
        loop {
            let reason = failure.borrow_and_update().clone();
            if let Some(reason) = reason
                .or_else(|| self.stores.log.poisoned())
                .or_else(|| self.stores.state.failure())
            {
                self.health.set_dead(reason.clone());
                return reason;
            }
            check.tick().await;
        }
    }

    /// Reads the configuration again. A file that is refused changes nothing.
    pub fn reload(&self, path: &Path, now: Micros) -> Result<(), ConfigErrors> {
        match self.live.reload(path, now) {
            Ok(changed) => {
                self.metrics.reloaded(now);
                let changed = changed.join(", ");
                tracing::info!(changed, file = %path.display(), "configuration read again");
                Ok(())
            }
            Err(errors) => {
                self.metrics.reload_refused();
                for error in &errors {
                    tracing::error!(
                        file = errors.file(),
                        line = error.line,
                        mistake = %error,
                        "configuration refused; the one before stays"
                    );
                }
                Err(errors)
            }
        }
    }

    /// Stops in data order under the configured deadline: intake, commits, subscribers, servers. Tells why it could no
    /// longer keep its promises, if it failed before its end.
    pub async fn shutdown(self) -> Option<String> {
        let started = Instant::now();
        let deadline = started + self.live.running().drain_timeout;
        self.health.set_ready(Err("stopping".to_owned()));
        let drain = &self.drain;
        drain.ingress.cancel();
        drain.ingress_tasks.close();
        wait(
            "producers to get their acks",
            &drain.ingress_tasks,
            deadline,
            || format!("{} batches not applied", self.waiters.len()),
        )
        .await;
        drain.background.cancel();
        drain.background_tasks.close();
        wait(
            "background tasks",
            &drain.background_tasks,
            deadline,
            String::new,
        )
        .await;
        drain.fanout.cancel();
        drain.fanout_tasks.close();
        wait(
            "subscribers to take what is applied",
            &drain.fanout_tasks,
            deadline,
            || format!("{} sessions", drain.fanout_tasks.len()),
        )
        .await;
        drain.servers.cancel();
        drain.server_tasks.close();
        wait(
            "connections to close",
            &drain.server_tasks,
            deadline,
            String::new,
        )
        .await;
        let mut stores = self.stores;
        let closed = tokio::task::spawn_blocking(move || stores.close()).await;
        let failed = closed.unwrap_or_else(|error| Some(format!("closing failed: {error}")));
        tracing::info!(seconds = started.elapsed().as_secs_f64(), "broker stopped");
        failed
    }
}

async fn wait(what: &str, tasks: &TaskTracker, deadline: Instant, blocking: impl Fn() -> String) {
    let started = Instant::now();
    if tokio::time::timeout_at(deadline, tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            what,
            tasks = tasks.len(),
            blocking = blocking(),
            "not waiting any longer"
        );
    } else {
        tracing::info!(
            what,
            milliseconds = started.elapsed().as_millis() as u64,
            "waited for"
        );
    }
}

/// With what pushes them, if that is configured.
fn metrics(config: &Config) -> Result<Metrics, StartError> {
    let other = |error: &dyn std::error::Error| StartError::Other(error.to_string());
    let telemetry = &config.telemetry;
    let platforms = config.platforms.iter().map(|p| p.issuer);
    let service = service(config);
    let to = telemetry.otlp.as_deref().map(|otlp| (otlp, &service));
    let exporter = Exporter::pushing(catalogue::series_max, to);
    let exporter = exporter.map_err(|e| other(&e))?;
    let traces = match &telemetry.otlp {
        None => Traces::off(),
        Some(otlp) => Traces::start(&TraceSettings {
            otlp: otlp.clone(),
            service: service.clone(),
            // Traces begin at the sources.
            share: 0.0,
            slow: telemetry.slow,
        })
        .map_err(|e| other(&e))?,
    };
    Ok(Metrics::with(platforms, exporter, traces))
}

/// One broker listens at an address of a machine.
fn service(config: &Config) -> Service {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Service {
        name: "hutong-broker",
        instance: format!("{}/{}", machine.trim(), config.listen_grpc),
    }
}

/// Opening reads from disk: off the runtime's threads.
async fn open_stores(
    config: &Config,
    clock: &Clock,
    recorder: &Recorder,
) -> Result<(Arc<dyn Log>, Arc<State>), StartError> {
    let dir = config.data_dir.clone();
    let bulk_gate = Arc::<BulkGate>::default();
    let log_options = EmbeddedOptions {
        group_bytes_max: config.group_bytes as usize,
        clock: Arc::clone(clock),
        bulk_gate: Arc::clone(&bulk_gate),
        observer: {
            let recorder = recorder.clone();
            Arc::new(move |commit: Result<Commit, CommitFailed>| match commit {
                Ok(c) => recorder.commit(c.records, c.bytes, c.write, c.sync),
                Err(CommitFailed) => recorder.commit_failed(),
            })
        },
        ..EmbeddedOptions::default()
    };
    let state_options = StateOptions {
        gather_bytes_max: config.memory.gather as usize,
        block_cache_bytes: config.memory.block_cache as usize,
        bulk_gate,
        observer: {
            let recorder = recorder.clone();
            Arc::new(move |f: Flush| recorder.state_flushed(f.rows, f.bytes, f.took))
        },
        ..StateOptions::default()
    };
    let opened = tokio::task::spawn_blocking(move || {
        let log = EmbeddedLog::open(&dir.join("log"), log_options)?;
        let state = State::open(&dir.join("state"), state_options)?;
        let (applied, end) = (state.stored().next, log.next_offset());
        if applied > end {
            return Err(StartError::StateAheadOfLog {
                dir: dir.display().to_string(),
                applied,
                end,
            });
        }
        let log: Arc<dyn Log> = Arc::new(log);
        Ok((log, Arc::new(state)))
    });
    opened
        .await
        .map_err(|error| StartError::Other(error.to_string()))?
}

/// What state does not have yet. It must all be there: a state that skips what was trimmed would take
/// new batches for repeats, and miss registers and cursors, and nobody would know.
fn tail_for(config: &Config, log: &dyn Log, state: &State) -> Result<Box<dyn Tail>, StartError> {
    let applied = state.stored().next;
    log.tail(applied).map_err(|error| match error {
        ReadError::Trimmed {
            partition,
            trimmed_below,
        } => StartError::StateBehindLog {
            dir: config.data_dir.display().to_string(),
            applied,
            partition,
            trimmed_below,
        },
        error => LogError::from(error).into(),
    })
}

fn start_apply(
    tail: Box<dyn Tail>,
    state: &Arc<State>,
    rings: &Arc<TailRings>,
    waiters: &Arc<Waiters>,
    metrics: &Arc<Metrics>,
    failed: watch::Sender<Option<String>>,
) -> Result<JoinHandle<()>, StartError> {
    let apply = Apply::open(
        Arc::clone(state),
        Arc::clone(rings),
        Arc::clone(waiters),
        metrics.recorder(),
    )?;
    std::thread::Builder::new()
        .name("apply".to_owned())
        .spawn(move || {
            if let Err(error) = apply.run(tail) {
                tracing::error!(%error, "apply stopped");
                failed.send_replace(Some(error.to_string()));
            }
        })
        .map_err(|error| StartError::Other(error.to_string()))
}

/// Waits until everything in the log is applied; only then may anyone be told what is durable.
async fn replay(
    log: &Arc<dyn Log>,
    rings: &TailRings,
    mut failure: watch::Receiver<Option<String>>,
) -> Result<(), StartError> {
    let (from, end) = (rings.next(), log.next_offset());
    let started = Instant::now();
    let mut applied = rings.applied();
    // A log that ends in trimmed records has nothing to wait for.
    let last = log
        .partitions()
        .iter()
        .map(|p| p.last)
        .max()
        .unwrap_or(Offset::NONE);
    tokio::select! {
        reached = applied.wait_for(|next| *next > last) => {
            reached.map_err(|error| StartError::Other(error.to_string()))?;
        }
        failed = failure.wait_for(Option::is_some) => {
            let why = failed.ok().and_then(|f| f.clone()).unwrap_or_default();
            return Err(StartError::Other(why));
        }
    }
    if from < end {
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(from = from.0, to = end.0, seconds, "log replayed");
    }
    Ok(())
}

impl Parts {
    fn start_background(&self, live: &Live) {
        let (tasks, stop) = (&self.drain.background_tasks, &self.drain.background);
        tasks.spawn(crate::fanout::cursors::keep_cursors(
            Arc::clone(&self.subscriptions),
            self.control.clone(),
            CURSORS_EVERY,
            stop.clone(),
        ));
        tasks.spawn(retention::run(
            Arc::clone(&self.log),
            Arc::clone(&self.state),
            Arc::clone(&self.metrics),
            live.retention(),
            Arc::clone(&self.clock),
            stop.clone(),
        ));
        tasks.spawn(self.metrics.registry().push(PUSH_EVERY, stop.clone()));
        let overload = Arc::clone(&self.overload);
        tasks.spawn(overload.run(self.rings.applied(), stop.clone()));
        tasks.spawn(rotate(Arc::clone(&self.state), stop.clone()));
    }

    fn access(&self) -> Access {
        Access::trial(self.config.platforms.iter().map(|p| p.issuer))
    }

    fn ingress(&self) -> Ingress {
        Ingress {
            access: self.access(),
            log: Arc::clone(&self.log),
            log_id: self.log.id(),
            state: Arc::clone(&self.state),
            waiters: Arc::clone(&self.waiters),
            producers: Arc::clone(&self.producers),
            queues: Arc::clone(&self.queues),
            overload: Arc::clone(&self.overload),
            shards: Arc::new(self.platforms.iter().copied().collect()),
            metrics: Arc::clone(&self.metrics),
            clock: Arc::clone(&self.clock),
            stall: self.config.limits.stall,
            tasks: self.drain.ingress_tasks.clone(),
            draining: self.drain.ingress.clone(),
        }
    }

    fn fanout(&self) -> Fanout {
        Fanout {
            access: self.access(),
            log: Arc::clone(&self.log),
            log_id: self.log.id(),
            state: Arc::clone(&self.state),
            rings: Arc::clone(&self.rings),
            subscriptions: Arc::clone(&self.subscriptions),
            control: self.control.clone(),
            platforms: Arc::clone(&self.platforms),
            metrics: Arc::clone(&self.metrics),
            clock: Arc::clone(&self.clock),
            snapshots: Arc::clone(&self.snapshots),
            stall: self.config.limits.stall,
            overload: Arc::clone(&self.overload),
            log_readers: Arc::default(),
            blocking: Blocking::default(),
            beside: Beside::default(),
            tasks: self.drain.fanout_tasks.clone(),
            draining: self.drain.fanout.clone(),
        }
    }

    fn console(&self, live: &Arc<Live>) -> Arc<Console> {
        Console::new(console::Parts {
            access: self.access(),
            admin: self.admin(),
            query: self.query(),
            live: Arc::clone(live),
            drills: self.config.drills.clone(),
            stop: self.drain.servers.clone(),
        })
    }

    fn reporting(&self) -> ReportServiceServer<Reporting> {
        let (reports, clock) = (Arc::clone(&self.reports), Arc::clone(&self.clock));
        Reporting::new(self.access(), reports, clock).server()
    }

    fn query(&self) -> Query {
        Query {
            access: self.access(),
            state: Arc::clone(&self.state),
            log: Arc::clone(&self.log),
            ways: Arc::clone(&self.ways),
            subscriptions: Arc::clone(&self.subscriptions),
            platforms: Arc::clone(&self.platforms),
            clock: Arc::clone(&self.clock),
        }
    }

    fn admin(&self) -> Admin {
        Admin {
            access: self.access(),
            platforms: Arc::new(self.config.platforms.clone()),
            log: Arc::clone(&self.log),
            state: Arc::clone(&self.state),
            producers: Arc::clone(&self.producers),
            subscriptions: Arc::clone(&self.subscriptions),
            lags: self.lags.clone(),
            metrics: Arc::clone(&self.metrics),
            reports: Arc::clone(&self.reports),
            control: self.control.clone(),
            started_at: (self.clock)(),
            trial_marker: self.config.trial_marker.clone(),
            checkpoints: Arc::new(Checkpoints::new(&self.config.data_dir)),
        }
    }
}

/// Lets gathered state go down from time to time, also when little happens.
async fn rotate(state: Arc<State>, stop: CancellationToken) {
    let mut every = tokio::time::interval(ROTATE_EVERY);
    every.tick().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {
                let state = Arc::clone(&state);
                match tokio::task::spawn_blocking(move || state.rotate()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(%error, "state cannot go down"),
                    Err(error) => tracing::error!(%error, "state cannot go down"),
                }
            }
        }
    }
}
