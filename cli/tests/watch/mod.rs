//! A broker, a connector, clients and a Prometheus that watches them: programs of their own, on addresses that nobody
//! else uses, in a folder that goes away.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod clients;
pub mod prometheus;
pub mod rules;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Ends a test that would hang; nothing here takes nearly as long.
pub const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);
const FILL_EVERY: Duration = Duration::from_millis(250);

pub const ANHUI: u32 = 340_000;
pub const SICHUAN: u32 = 510_000;
pub const SHANGHAI: u32 = 310_000;

/// Of what a broker's data are on: small enough to be filled, large enough to work in.
const DISK: &str = "size=256m";

/// Waits for a condition; `Err` says what is missing.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<(), String>) {
    let begun = Instant::now();
    loop {
        let Err(missing) = holds().await else {
            return;
        };
        let seconds = PATIENCE.as_secs();
        assert!(
            begun.elapsed() < PATIENCE,
            "{what}: not within {seconds} s: {missing}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// An address of this process alone, so that a port that is free stays free until it is used.
pub fn free_address() -> SocketAddr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let ip = IpAddr::V4(Ipv4Addr::new(127, 128 | (a & 63), b, c.max(1)));
    let listener = TcpListener::bind((ip, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

/// The body of a page.
pub fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let fetch = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        // HTTP/1.0: the body comes in one piece.
        // Who asks matters to the console alone.
        let identity = "hutong-identity: operator/test";
        let request = format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n{identity}\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        Ok::<_, std::io::Error>(response)
    };
    let response = fetch().map_err(|e| format!("{address}{path}: {e}"))?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or("no answer")?;
    match head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200") {
        true => Ok(body.to_owned()),
        false => Err(format!("{address}{path}: {head}\n{body}")),
    }
}

/// Of a page of metrics, the value of a series as it is written there.
pub fn metric(page: &str, series: &str) -> Option<f64> {
    let rest = page.lines().find_map(|line| line.strip_prefix(series))?;
    rest.trim().parse().ok()
}

/// A program that is killed when it is dropped; its output goes into a file.
pub struct Program {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Program {
    pub fn start(dir: &Path, name: &str, command: &mut Command) -> Program {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.expect("a log");
        command.stdin(Stdio::null());
        command
            .stdout(file.try_clone().expect("a log"))
            .stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
        let name = name.to_owned();
        Program { name, log, child }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.id().to_string()])
            .status();
        assert!(status.expect("kill").success(), "{}", self.name);
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, and the end of it.
    pub fn kill(&mut self) {
        // Fails only when it ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let end = log.len().saturating_sub(4000);
            println!(
                "end of the log of {}:\n{}",
                self.name,
                log.get(end..).unwrap_or(&log)
            );
        }
    }
}

/// A program of this repository.
fn ours(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_hutong")).with_file_name(name);
    let shown = path.display();
    assert!(
        path.exists(),
        "{shown} is not there: build all programs first, with `./dev build`"
    );
    path
}

/// `hutong-broker` with its data on a small disk of its own.
pub struct Broker {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    dir: PathBuf,
    setup: Setup,
    program: Option<Program>,
}

/// What brokers do not all have in common.
pub struct Setup {
    /// Where it pushes.
    pub otlp: Option<SocketAddr>,
    /// What takes longer is traced.
    pub slow: &'static str,
    pub platforms: Vec<u32>,
    /// Of what its data are on, for `mount`.
    pub disk: &'static str,
    /// What it logs.
    pub log: &'static str,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            otlp: None,
            slow: "1s",
            platforms: vec![ANHUI, SICHUAN, SHANGHAI],
            disk: DISK,
            log: "info",
        }
    }
}

impl Setup {
    /// As a line of a configuration.
    fn pushing(&self) -> String {
        let line = |otlp| format!("otlp = \"http://{otlp}\"\n");
        self.otlp.map(line).unwrap_or_default()
    }
}

impl Broker {
    pub async fn start(dir: &Path) -> Broker {
        Broker::start_with(dir, Setup::default()).await
    }

    pub async fn start_with(dir: &Path, setup: Setup) -> Broker {
        let mut broker = Broker {
            grpc: free_address(),
            http: free_address(),
            dir: dir.to_owned(),
            setup,
            program: None,
        };
        broker.write_config("7d");
        broker.certificate("until-2126.pem");
        broker.start_again().await;
        broker
    }

    /// On an empty disk: the one before went with its process.
    pub async fn start_again(&mut self) {
        let disk = self.dir.join("disk");
        std::fs::create_dir_all(&disk).expect("a folder");
        // The process becomes the broker; the mount is its alone, and goes with it.
        let script = "mount -t tmpfs -o \"$1\" hutong \"$2\" && exec \"$3\" run \"$4\"";
        let mut command = Command::new("unshare");
        command.args(if is_root() {
            &["--mount"][..]
        } else {
            &["--user", "--map-root-user", "--mount"]
        });
        let size = self.setup.disk;
        command.args(["sh", "-c", script, "sh", size]).arg(&disk);
        command.arg(ours("hutong-broker")).arg(self.config());
        self.program = Some(Program::start(&self.dir, "broker", &mut command));
        let http = self.http;
        until("the broker", async || get(http, "/readyz").map(drop)).await;
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("broker.toml")
    }

    /// The age is how long the log is kept.
    pub fn write_config(&self, age: &str) {
        let dir = self.dir.display();
        let mut text = format!(
            "identity = \"trial\"\n[listen]\ngrpc = \"{}\"\nhttp = \"{}\"\n[data]\ndir = \"{dir}/disk/data\"\n\
             [retention]\nage = \"{age}\"\n[memory]\ngather = \"8MiB\"\n[telemetry]\ncertificates = [\"{dir}/proxy.pem\"]\nslow = \"{}\"\nfilter = \"{}\"\n",
            self.grpc, self.http, self.setup.slow, self.setup.log
        );
        text += &self.setup.pushing();
        for code in &self.setup.platforms {
            text += &format!("[[platforms]]\ncode = {code}\nname = \"{code}\"\n");
        }
        std::fs::write(self.config(), text).expect("written");
    }

    /// The certificate that it watches.
    pub fn certificate(&self, which: &str) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR"));
        let from = from.join("../telemetry/tests/certificates").join(which);
        std::fs::copy(from, self.dir.join("proxy.pem")).expect("copied");
    }

    pub fn spoil_certificate(&self) {
        std::fs::write(self.dir.join("proxy.pem"), "no certificate").expect("written");
    }

    pub fn reload(&self) {
        self.program().signal("-HUP");
    }

    pub fn metrics(&self) -> Result<String, String> {
        get(self.http, "/metrics")
    }

    pub fn address(&self) -> String {
        format!("http://{}", self.grpc)
    }

    pub fn id(&self) -> u32 {
        self.program().id()
    }

    /// A file beside its data, so large that only this share of the disk is left.
    pub fn fill_disk(&self, left: f64) -> Filled {
        let page = self.metrics().expect("metrics");
        let free = metric(&page, "hutong_disk_free_bytes").expect("known");
        let size = metric(&page, "hutong_disk_size_bytes").expect("known");
        // Seen through the broker's own mounts.
        let disk = format!(
            "/proc/{}/root{}",
            self.id(),
            self.dir.join("disk").display()
        );
        let path = Path::new(&disk).join("fill");
        let file = File::create(&path).expect("created");
        let mut filled = Filled { path, file };
        filled.grow((free - size * left).max(0.0) as usize);
        filled
    }

    /// SIGTERM: it drains.
    pub fn stop(&self) {
        self.program().signal("-TERM");
    }

    /// With what it ended by itself; an error while it runs.
    pub fn ended(&mut self) -> Result<Option<i32>, String> {
        let program = self.program.as_mut().expect("it was started");
        let ended = program.child.try_wait().map_err(|e| e.to_string())?;
        Ok(ended.ok_or("it runs")?.code())
    }

    pub fn kill(&mut self) {
        self.program.take().expect("it runs").kill();
    }

    fn program(&self) -> &Program {
        self.program.as_ref().expect("it runs")
    }
}

/// Gives the room back when dropped.
pub struct Filled {
    path: PathBuf,
    file: File,
}

impl Filled {
    fn grow(&mut self, bytes: usize) {
        let zeros = vec![0u8; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(zeros.len());
            self.file.write_all(&zeros[..piece]).expect("room");
            left -= piece;
        }
    }

    /// Takes so much more, evenly over this time; what is left of it is not taken when this is dropped.
    pub async fn grow_steadily(&mut self, bytes: usize, over: Duration) {
        let mut pace = tokio::time::interval(FILL_EVERY);
        let pieces = over.as_millis() / FILL_EVERY.as_millis();
        for _ in 0..pieces {
            pace.tick().await;
            self.grow(bytes / pieces as usize);
        }
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        // Gone with the broker at the latest.
        drop(std::fs::remove_file(&self.path));
    }
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uid.and_then(|ids| ids.split_whitespace().next()) == Some("0")
}

const SYNCS: &str = "fsync,fdatasync";

/// Calls by which a process asks the kernel take so long, or fail, until this is dropped.
pub struct BadCalls(Child);

impl BadCalls {
    pub async fn slow_syncs(process: u32, delay: Duration) -> BadCalls {
        let slow = BadCalls::start(&["-f"], process, SYNCS, &delayed(delay));
        until("strace", async || {
            match threads(process).all(|(_, status)| is_traced(&status)) {
                true => Ok(()),
                false => Err("not every thread is traced".to_owned()),
            }
        })
        .await;
        slow
    }

    /// Those of one thread alone; the others are as fast as before.
    pub async fn slow_syncs_of(process: u32, thread: &str, delay: Duration) -> BadCalls {
        BadCalls::on_thread(process, thread, SYNCS, &delayed(delay)).await
    }

    /// After this time they answer that the disk is broken.
    pub async fn failing_syncs_of(process: u32, thread: &str, after: Duration) -> BadCalls {
        let inject = format!("error=EIO:{}", delayed(after));
        BadCalls::on_thread(process, thread, SYNCS, &inject).await
    }

    /// Files that a thread creates, or opens.
    pub async fn slow_files_of(process: u32, thread: &str, delay: Duration) -> BadCalls {
        BadCalls::on_thread(process, thread, "openat", &delayed(delay)).await
    }

    async fn on_thread(process: u32, name: &str, calls: &str, inject: &str) -> BadCalls {
        let is = |status: &str| status.lines().next() == Some(&format!("Name:\t{name}"));
        let (thread, _) = threads(process)
            .find(|(_, status)| is(status))
            .unwrap_or_else(|| panic!("no thread {name}"));
        let bad = BadCalls::start(&[], thread, calls, inject);
        until("strace", async || {
            match threads(process).any(|(_, status)| is(&status) && is_traced(&status)) {
                true => Ok(()),
                false => Err("the thread is not traced".to_owned()),
            }
        })
        .await;
        bad
    }

    /// `inject` is strace's own language.
    fn start(options: &[&str], id: u32, calls: &str, inject: &str) -> BadCalls {
        let child = Command::new("strace")
            .args(options)
            .args(["-q", "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:{inject}")])
            .args(["-o", "/dev/null", "-p", &id.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace");
        BadCalls(child)
    }
}

fn delayed(delay: Duration) -> String {
    format!("delay_enter={}", delay.as_micros())
}

/// Each thread's id, and what the kernel says about it.
fn threads(process: u32) -> impl Iterator<Item = (u32, String)> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    threads.flatten().filter_map(|thread| {
        let id = thread.file_name().to_str()?.parse().ok()?;
        let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
        Some((id, status))
    })
}

fn is_traced(status: &str) -> bool {
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}

impl Drop for BadCalls {
    fn drop(&mut self) {
        // With SIGINT it lets go of the process; killed, it would leave it stopped.
        drop(
            Command::new("kill")
                .args(["-INT", &self.0.id().to_string()])
                .status(),
        );
        drop(self.0.wait());
    }
}

/// `hutong-connect` with a folder of lists as its source.
pub struct Connector {
    pub http: SocketAddr,
    dir: PathBuf,
    program: Program,
}

impl Connector {
    pub async fn start(dir: &Path, broker: &Broker) -> Connector {
        let (http, lists) = (free_address(), dir.join("lists"));
        std::fs::create_dir_all(&lists).expect("a folder");
        let config = dir.join("connector.toml");
        let text = format!(
            "name = \"lists\"\nidentity = \"platform/{ANHUI}\"\n[broker]\naddress = \"{}\"\n\
             [state]\ndir = \"{}\"\n[telemetry]\nhttp = \"{http}\"\n{}\
             [source]\ntype = \"snapshot-folder\"\ndir = \"{}\"\nformat = \"risk-levels\"\nsettle = \"0s\"\npoll = \"100ms\"\n\
             [mapping]\nkind = \"area_risk\"\nentity = {{ area = \"path\" }}\n\
             [mapping.level]\nfield = \"level\"\ncanonical = true\n\
             [provenance]\nauthority = \"CDC\"\nrule_id = \"risk-areas\"\nrule_version = 1\nreason = \"list\"\n",
            broker.address(),
            dir.join("connector").display(),
            broker.setup.pushing(),
            lists.display(),
        );
        std::fs::write(&config, text).expect("written");
        let dir = dir.to_owned();
        let program = Connector::run(&dir, http).await;
        Connector { http, dir, program }
    }

    async fn run(dir: &Path, http: SocketAddr) -> Program {
        let mut command = Command::new(ours("hutong-connect"));
        command.arg("run").arg(dir.join("connector.toml"));
        let program = Program::start(dir, "connector", &mut command);
        until("the connector", async || get(http, "/metrics").map(drop)).await;
        program
    }

    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Where it listened before, with what it kept.
    pub async fn start_again(&mut self) {
        self.program = Connector::run(&self.dir, self.http).await;
    }

    /// A file that nobody can read: a dead letter.
    pub fn poison(&self, name: &str) {
        std::fs::write(self.dir.join("lists").join(name), "no list at all").expect("written");
    }
}

/// `hutong-connect` with a file as its sink.
pub fn sink_connector(dir: &Path, broker: &Broker, code: u32) -> Program {
    let config = dir.join("sink.toml");
    let text = format!(
        "name = \"main\"\nidentity = \"platform/{code}\"\n[broker]\naddress = \"{}\"\n\
         [state]\ndir = \"{}\"\n[telemetry]\n{}[sink]\ntype = \"json-lines\"\npath = \"{}\"\n",
        broker.address(),
        dir.join("sink").display(),
        broker.setup.pushing(),
        dir.join("sink.jsonl").display(),
    );
    std::fs::write(&config, text).expect("written");
    let mut command = Command::new(ours("hutong-connect"));
    Program::start(dir, "sink", command.arg("run").arg(&config))
}
