//! What a drill is played on: a broker that is a process of its own, a line for every client, and for
//! some drills a disk, a control group, a clock that lies, and a PostgreSQL with its connector. All of
//! it is gone when the stage is dropped.

mod alone;
mod areas;
pub mod cgroup;
pub mod disk;
mod extras;
mod fleet;
pub mod isolate;
pub mod machine;
mod metrics;
pub mod process;
pub mod shell;
mod sink;
pub mod trial;

pub use alone::BrokerAlone;
pub use areas::Areas;
pub use extras::Extras;
pub use fleet::{Fleet, SETTLE_BEYOND, cpu_ms, producer, usage};
pub use sink::Sink;
pub use trial::Trial;

use crate::{
    clients::{Board, Deltas, OBSERVER, PLATFORMS},
    clock::Clock,
    drill::{Clients, DISK_BYTES, Drill, What},
    error::ChaosError,
    history::{Event, Header, VERSION, Writer},
    proxy::Line,
    stage::{
        cgroup::Cgroup,
        disk::Disk,
        machine::Machine,
        process::{Process, Spec},
    },
};
use hutong_connectors::client::{AdminClient, Endpoint, Identity, admin};
use hutong_plants::EDGE_VARIABLE;
use hutong_proto::api;
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::sync::watch;

const START_MAX: Duration = Duration::from_secs(30);
const CALL_MAX: Duration = Duration::from_secs(10);
/// Between two questions to a broker that is not ours whether it is there again.
const ANSWER_POLL: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Stage {
    pub drill: Drill,
    pub history: Writer,
    pub deltas: Deltas,
    pub board: Arc<Board>,
    pub broker: Process,
    /// The broker is not ours.
    pub trial: Option<Trial>,
    pub grpc: SocketAddr,
    /// Of publishers and subscribers; the sink's is with the sink.
    pub lines: Vec<Line>,
    pub sink: Option<Sink>,
    pub areas: Option<Areas>,
    pub disk: Option<Disk>,
    pub cgroup: Option<Cgroup>,
    pub extras: Extras,
    pub data: PathBuf,
    address: watch::Sender<SocketAddr>,
    subs: AtomicU32,
    serials: AtomicU32,
    dir: TempDir,
}

/// An address on loopback that belongs to this process: a broker that is killed leaves its port, and on
/// the common address another program could take it before the next start.
fn loopback() -> IpAddr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 64 | (a & 63), b, c.max(1)))
}

/// What some faults need: a disk and a control group of its own.
async fn places(drill: &Drill, dir: &Path) -> Result<(Option<Disk>, Option<Cgroup>), ChaosError> {
    let any = |is: fn(&What) -> bool| drill.faults.iter().any(|fault| is(&fault.what));
    let disk = match any(What::needs_disk) {
        true => Some(Disk::make(dir, DISK_BYTES).await?),
        false => None,
    };
    let cgroup = match any(What::needs_cgroup) {
        true => Some(Cgroup::make(&cgroup_name(dir))?),
        false => None,
    };
    Ok((disk, cgroup))
}

/// What some faults need the broker to be started with.
async fn environment(
    drill: &Drill,
    machine: &Machine,
    dir: &Path,
) -> Result<Vec<(String, String)>, ChaosError> {
    let any = |is: fn(&What) -> bool| drill.faults.iter().any(|fault| is(&fault.what));
    let mut env = machine.env();
    if any(What::needs_fake_clock) {
        env.extend(fake_clock(dir).await?);
    }
    if any(What::needs_failpoints) {
        let file = edge_file(dir);
        env.push((EDGE_VARIABLE.to_owned(), shell::text(&file)?.to_owned()));
    }
    Ok(env)
}

/// The broker, and where it listens.
async fn started(spec: Spec, history: &Writer) -> Result<(Process, SocketAddr), ChaosError> {
    let broker = Process::start(spec, history.clone());
    let grpc = listens_at(&broker.ready(START_MAX).await?, "grpc=")?;
    Ok((broker, grpc))
}

fn configuration_file(dir: &Path) -> PathBuf {
    dir.join("broker.toml")
}

fn clock_file(dir: &Path) -> PathBuf {
    dir.join("clock")
}

fn edge_file(dir: &Path) -> PathBuf {
    dir.join("edge")
}

/// How a broker of this folder is started.
fn broker(machine: &Machine, dir: &Path, file: &Path) -> Spec {
    Spec {
        name: "hutong-broker".to_owned(),
        program: machine.broker().to_owned(),
        args: vec!["run".to_owned(), file.display().to_string()],
        env: machine.env(),
        log: dir.join("broker.log"),
        says_ready: true,
        join: Vec::new(),
    }
}

/// What the history opens with; the caller adds what it was called with.
fn header_of(drill: &Drill, clock: Clock, platforms: &[u32], broker: String) -> Header {
    Header {
        version: VERSION,
        seed: 0,
        wall_us: clock.wall_us(),
        drill: drill.text.clone(),
        drill_file: drill.file.clone(),
        duration_us: None,
        rate: None,
        edge: None,
        nth: None,
        load: None,
        platforms: platforms.to_vec(),
        observer: OBSERVER,
        commit: String::new(),
        machine: String::new(),
        broker,
        trial: None,
        trial_at: None,
        kill_with: None,
        plant: None,
    }
}

impl Stage {
    /// Everything runs when it returns, and no delta is published yet.
    pub async fn build(
        drill: &Drill,
        machine: &Machine,
        history_file: &Path,
        trial: Option<Trial>,
        header: impl FnOnce(Header) -> Header,
    ) -> Result<Stage, ChaosError> {
        let dir = tempfile::Builder::new()
            .prefix("hutong-chaos-")
            .tempdir()
            .map_err(ChaosError::stage("no folder for the drill"))?;
        let clock = Clock::start();
        let history = Writer::create(history_file, clock)?;
        let machine = &machine.for_drill(drill);
        let (disk, cgroup) = places(drill, dir.path()).await?;
        let data = disk.as_ref().map_or(dir.path(), Disk::path).join("data");
        let platforms = &PLATFORMS[..drill.workload.platforms];
        let rings = drill.workload.rings;
        let configuration = |grpc: SocketAddr| configuration(platforms, &data, grpc, rings);
        let any = SocketAddr::new(loopback(), 0);
        let file = configuration_file(dir.path());
        let write = |text: &str| {
            std::fs::write(&file, text).map_err(ChaosError::file("cannot write", &file))
        };
        write(&configuration(any))?;
        let made = header(header_of(drill, clock, platforms, configuration(any)));
        let deltas = Deltas::of(&made, &drill.workload);
        history.record(Event::Header(Box::new(made)));
        let spec = Spec {
            env: environment(drill, machine, dir.path()).await?,
            join: cgroup.as_ref().map(Cgroup::join).unwrap_or_default(),
            ..broker(machine, dir.path(), &file)
        };
        let (broker, grpc) = match &trial {
            Some(trial) => (Process::elsewhere(spec), trial.address),
            None => {
                let (broker, grpc) = started(spec, &history).await?;
                // From now on always there.
                write(&configuration(grpc))?;
                (broker, grpc)
            }
        };
        let mut stage = Stage {
            drill: drill.clone(),
            history,
            deltas,
            board: Arc::new(Board::new(platforms.to_vec())),
            broker,
            trial,
            grpc,
            lines: Vec::new(),
            sink: None,
            areas: None,
            disk,
            cgroup,
            extras: Extras::default(),
            data,
            address: watch::Sender::new(grpc),
            subs: AtomicU32::new(0),
            serials: AtomicU32::new(0),
            dir,
        };
        stage.connect(machine).await?;
        Ok(stage)
    }

    /// Lines for all clients, and the sink if the drill has one.
    async fn connect(&mut self, machine: &Machine) -> Result<(), ChaosError> {
        for clients in [Clients::Publishers, Clients::Subscribers] {
            for _ in self.platforms() {
                self.lines.push(self.line(clients).await?);
            }
        }
        if self.drill.workload.sink {
            self.sink = Some(Sink::build(self, machine).await?);
        }
        if self.drill.workload.risk_levels {
            self.areas = Some(Areas::build(self, machine)?);
        }
        Ok(())
    }

    pub async fn line(&self, clients: Clients) -> Result<Line, ChaosError> {
        Line::open(loopback(), clients, self.address.subscribe()).await
    }

    /// Those of these clients.
    pub fn lines_of(&self, clients: Clients) -> Vec<&Line> {
        let sink = self.sink.as_ref().map(|sink| &sink.line);
        let all = self.lines.iter().chain(sink);
        all.filter(|line| clients == Clients::All || line.clients == clients)
            .collect()
    }

    /// Of the `i`-th platform.
    pub fn publisher_line(&self, i: usize) -> &Line {
        &self.lines[i]
    }

    pub fn subscriber_line(&self, i: usize) -> &Line {
        &self.lines[self.drill.workload.platforms + i]
    }

    pub fn platforms(&self) -> &'static [u32] {
        &PLATFORMS[..self.drill.workload.platforms]
    }

    /// For a new subscription; the history numbers them in the order of their opening.
    pub fn next_sub(&self) -> u32 {
        self.subs.fetch_add(1, Ordering::AcqRel)
    }

    /// A number for a name that nothing else of this drill has.
    pub fn serial(&self) -> u32 {
        self.serials.fetch_add(1, Ordering::AcqRel)
    }

    /// Around the proxy.
    pub fn url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The file that the broker is started with.
    pub fn configuration(&self) -> PathBuf {
        configuration_file(self.dir())
    }

    /// The file that a broker built for drills looks at whenever it comes to an edge of a commit.
    pub fn edge_file(&self) -> PathBuf {
        edge_file(self.dir())
    }

    /// How the broker's clock is to differ from this machine's, in seconds.
    pub fn set_clock(&self, ahead_s: i64) -> Result<(), ChaosError> {
        let file = clock_file(self.dir());
        // As a whole: the broker reads it at any moment.
        let new = file.with_extension("new");
        std::fs::write(&new, format!("{ahead_s:+}\n"))
            .and_then(|()| std::fs::rename(&new, &file))
            .map_err(ChaosError::file("cannot write", file))
    }

    pub fn admin(&self) -> Result<AdminClient, ChaosError> {
        let operator = Identity::Operator("chaos".to_owned());
        admin(&Endpoint::new(self.url(), operator))
            .map_err(ChaosError::stage("the broker's address"))
    }

    pub async fn status(&self) -> Result<api::GetStatusResponse, ChaosError> {
        let mut admin = self.admin()?;
        let call = admin.get_status(api::GetStatusRequest {});
        let answer = tokio::time::timeout(CALL_MAX, call)
            .await
            .map_err(|_| ChaosError::told("the broker does not answer", "互通无应答"))?;
        let answer = answer.map_err(ChaosError::stage("the broker's status"))?;
        Ok(answer.into_inner())
    }

    /// Waits until the broker is ready, as long as a rollback may take.
    pub async fn broker_ready(&self) -> Result<(), ChaosError> {
        let within = self.drill.rollback.timeout;
        if self.trial.is_none() {
            self.broker.ready(within).await?;
            return Ok(());
        }
        let answers = async {
            while self.status().await.is_err() {
                tokio::time::sleep(ANSWER_POLL).await;
            }
        };
        let late = |_| {
            let grpc = self.grpc;
            ChaosError::told(
                format!("{grpc} does not come back"),
                format!("{grpc} 未恢复"),
            )
        };
        tokio::time::timeout(within, answers).await.map_err(late)
    }

    pub fn bytes_free(&self) -> u64 {
        rustix::fs::statvfs(self.dir.path()).map_or(u64::MAX, |stat| stat.f_bavail * stat.f_frsize)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // First, so that nobody writes to what goes next.
        self.broker.end();
        if let Some(sink) = &self.sink {
            sink.connector.end();
        }
        if let Some(areas) = &self.areas {
            areas.end();
        }
    }
}

fn cgroup_name(dir: &Path) -> String {
    dir.file_name().map_or("hutong-chaos".to_owned(), |name| {
        name.to_string_lossy().into_owned()
    })
}

fn configuration(platforms: &[u32], data: &Path, grpc: SocketAddr, rings: Option<u64>) -> String {
    let mut text = format!(
        "identity = \"trial\"\n[listen]\ngrpc = \"{grpc}\"\nhttp = \"{}\"\n\
         [data]\ndir = \"{}\"\n[drain]\ntimeout = \"10s\"\n",
        SocketAddr::new(grpc.ip(), 0),
        data.display()
    );
    if let Some(bytes) = rings {
        write!(
            text,
            "[memory]\ntail_urgent = {bytes}\ntail_bulk = {bytes}\n"
        )
        .expect("a text takes all");
    }
    for code in platforms.iter().chain([&OBSERVER]) {
        write!(text, "[[platforms]]\ncode = {code}\nname = \"P{code}\"\n")
            .expect("a text takes all");
    }
    text
}

/// `listening grpc=ADDRESS http=ADDRESS`
fn listens_at(line: &str, which: &str) -> Result<SocketAddr, ChaosError> {
    let mut words = line.split_whitespace();
    let address = words.find_map(|word| word.strip_prefix(which));
    let address = address.and_then(|address| address.parse().ok());
    address.ok_or_else(|| ChaosError::Stage(format!("the broker said {line:?}")))
}

/// Compiled where it is needed: a library that is loaded before all others.
const FAKE_CLOCK: &str = include_str!("fake_clock.c");

/// The broker's clock follows a file; monotonic time stays true, as it does when a clock is set.
async fn fake_clock(dir: &Path) -> Result<Vec<(String, String)>, ChaosError> {
    let file = clock_file(dir);
    let (source, library) = (dir.join("fake_clock.c"), dir.join("fake_clock.so"));
    for (path, text) in [(&file, "+0\n"), (&source, FAKE_CLOCK)] {
        std::fs::write(path, text).map_err(ChaosError::file("cannot write", path))?;
    }
    let (from, to) = (shell::text(&source)?, shell::text(&library)?);
    shell::run("cc", &["-shared", "-fPIC", "-O1", "-o", to, from]).await?;
    Ok(vec![
        ("LD_PRELOAD".to_owned(), to.to_owned()),
        (
            "HUTONG_CLOCK_FILE".to_owned(),
            shell::text(&file)?.to_owned(),
        ),
    ])
}
