//! The broker and the connectors as processes of their own: the programs that operators run, on an
//! address that nobody else uses, killed and started again when a test says so.
#![allow(dead_code, reason = "each test file uses its part")]

use hutong_connectors::{
    client::{AdminClient, Endpoint, Identity, admin},
    state::{State, Status},
};
use std::{
    fs::OpenOptions,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Ends a test that would hang; nothing here takes nearly as long.
pub const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);
/// Of a log, in a message.
const LOG_LINES: usize = 15;

/// An address on loopback that belongs to this process. A broker that is killed leaves its port, and
/// on the common address another program could take it before the next start.
fn loopback() -> IpAddr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 64 | (a & 63), b, c.max(1)))
}

/// One that a program can be told in advance: nobody else takes its port until then.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((loopback(), 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

/// Waits for a condition; `Err` says what is missing.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<(), String>) {
    let begun = Instant::now();
    loop {
        let Err(missing) = holds().await else {
            return;
        };
        assert!(
            begun.elapsed() < PATIENCE,
            "{what}: not within {} s: {missing}",
            PATIENCE.as_secs()
        );
        tokio::time::sleep(POLL).await;
    }
}

/// A program that is killed and started again with the same arguments.
struct Process {
    name: String,
    log: PathBuf,
    program: PathBuf,
    config: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Not started; its configuration is `NAME.toml` in `dir`, and its log goes beside that.
    fn new(program: &Path, dir: &Path, name: &str) -> Process {
        Process {
            name: name.to_owned(),
            log: dir.join(format!("{name}.log")),
            program: program.to_owned(),
            config: dir.join(format!("{name}.toml")),
            child: None,
        }
    }

    fn configure(&self, text: &str) {
        std::fs::write(&self.config, text).expect("written");
    }

    fn start(&mut self, stdout: Stdio) -> &mut Child {
        // A file, because a pipe that nobody reads would stop the program when it is full.
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let mut command = Command::new(&self.program);
        command.arg("run").arg(&self.config).stdin(Stdio::null());
        command.stdout(stdout).stderr(log.expect("a log"));
        self.child.insert(command.spawn().expect("it starts"))
    }

    /// Started, and killed so long after.
    fn start_in_vain(&mut self, after: Duration) {
        self.start(Stdio::null());
        std::thread::sleep(after);
        self.kill();
    }

    /// SIGKILL, and the end of it.
    fn kill(&mut self) {
        self.check_alive();
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("killed");
        child.wait().expect("its end");
    }

    /// SIGTERM, and the end of it, in order.
    fn terminate(&mut self) {
        self.check_alive();
        self.signal("TERM");
        let mut child = self.child.take().expect("it runs");
        let status = child.wait().expect("its end");
        assert!(
            status.success(),
            "{} ended with {status}:\n{}",
            self.name,
            self.log()
        );
    }

    fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("started").id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(
            sent.expect("it runs").success(),
            "SIG{name} to {}",
            self.name
        );
    }

    /// Nobody but the test ends it.
    fn check_alive(&mut self) {
        let ended = self.child.as_mut().expect("started").try_wait();
        if let Some(status) = ended.expect("its state") {
            panic!("{} ended by itself, {status}:\n{}", self.name, self.log());
        }
    }

    /// The last lines of its log, for messages.
    fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Both fail only when it ended already.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// `hutong-broker run FILE`, with its data in a folder that outlives it.
pub struct Broker {
    process: Process,
    grpc: SocketAddr,
}

impl Broker {
    /// `platforms` is that part of its configuration.
    pub fn start(dir: &Path, platforms: &str) -> Broker {
        let program = Path::new(env!("CARGO_BIN_EXE_hutong-connect"));
        let program = program.with_file_name("hutong-broker");
        assert!(
            program.exists(),
            "{} is not there: build all programs first, with `./dev build` or `./dev test`",
            program.display()
        );
        let any = SocketAddr::new(loopback(), 0);
        let configuration = |grpc: SocketAddr| {
            format!(
                "identity = \"trial\"\n[listen]\ngrpc = \"{grpc}\"\nhttp = \"{any}\"\n\
                 [data]\ndir = \"{}\"\n{platforms}",
                dir.join("data").display()
            )
        };
        let process = Process::new(&program, dir, "broker");
        process.configure(&configuration(any));
        let mut broker = Broker { process, grpc: any };
        broker.grpc = broker.listen();
        // From now on always there.
        broker.process.configure(&configuration(broker.grpc));
        broker
    }

    /// Starts the process; where it listens once it does.
    fn listen(&mut self) -> SocketAddr {
        let stdout = self
            .process
            .start(Stdio::piped())
            .stdout
            .take()
            .expect("piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("UTF-8");
        let mut words = line.split_whitespace();
        let address = words.find_map(|word| word.strip_prefix("grpc="));
        let address = address.and_then(|address| address.parse().ok());
        address.unwrap_or_else(|| panic!("the broker does not start:\n{}", self.process.log()))
    }

    pub fn address(&self) -> String {
        format!("http://{}", self.grpc)
    }

    pub fn admin(&self) -> AdminClient {
        let operator = Identity::Operator("replay".to_owned());
        admin(&Endpoint::new(self.address(), operator)).expect("an address")
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// It stands still as it is, with its connections, until it is told to go on.
    pub fn stand_still(&self) {
        self.process.signal("STOP");
    }

    pub fn go_on(&self) {
        self.process.signal("CONT");
    }

    /// At the same address, on what the one that was killed left behind. With `in_vain`, one before it is
    /// killed while it starts, so long after it began.
    pub fn start_again(&mut self, in_vain: Option<Duration>) {
        if let Some(after) = in_vain {
            self.process.start_in_vain(after);
        }
        assert_eq!(self.listen(), self.grpc);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("end of the broker's log:\n{}", self.process.log());
        }
    }
}

/// `hutong-connect run FILE`, after `hutong-connect init FILE`.
pub struct Connector {
    process: Process,
    state: PathBuf,
}

impl Connector {
    pub fn terminate(&mut self) {
        self.process.terminate();
    }

    /// `hutong-connect dlq COMMAND FILE ...`.
    pub fn dlq(&self, arguments: &[&str]) -> Output {
        let (command, more) = arguments.split_first().expect("a command");
        Command::new(&self.process.program)
            .args(["dlq", command])
            .arg(&self.process.config)
            .args(more)
            .output()
            .expect("it runs")
    }

    /// A file of its state folder.
    pub fn state_file(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// `work` is its configuration without name, state and broker.
    pub fn start(dir: &Path, name: &str, platform: u32, broker: &Broker, work: &str) -> Connector {
        let program = Path::new(env!("CARGO_BIN_EXE_hutong-connect"));
        let mut process = Process::new(program, dir, name);
        let state = dir.join("state");
        process.configure(&format!(
            "name = \"{name}\"\nidentity = \"platform/{platform}\"\nbroker.address = \"{}\"\n\
             state.dir = \"{}\"\n{work}",
            broker.address(),
            state.display()
        ));
        let init = Command::new(program)
            .arg("init")
            .arg(&process.config)
            .output();
        let output = init.expect("it runs");
        assert!(output.status.success(), "init of {name}: {output:?}");
        process.start(Stdio::null());
        Connector {
            process,
            state: state.join(name),
        }
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// As [`Broker::start_again`].
    pub fn start_again(&mut self, in_vain: Option<Duration>) {
        if let Some(after) = in_vain {
            self.process.start_in_vain(after);
        }
        self.process.start(Stdio::null());
    }

    /// What this process, not one before it, has written down.
    pub fn status(&mut self) -> Result<Status, String> {
        self.process.check_alive();
        let nothing = || format!("{} says nothing yet", self.process.name);
        let bytes = std::fs::read(self.state.join("status.json")).map_err(|_| nothing())?;
        let status: Status = serde_json::from_slice(&bytes).expect("a whole status");
        let id = self.process.child.as_ref().map(Child::id);
        match id == Some(status.process_id) {
            true => Ok(status),
            false => Err(nothing()),
        }
    }

    pub fn runs(&mut self) -> Result<(), String> {
        let status = self.status()?;
        match status.state {
            State::Running => Ok(()),
            state => Err(format!(
                "{} is {state}: {}",
                self.process.name, status.reason
            )),
        }
    }

    /// Everything up to and with this file arrived.
    pub fn reached(&mut self, file: &str) -> Result<(), String> {
        let status = self.status()?;
        let (state, reason) = (status.state, status.reason);
        match status.barrier {
            Some(barrier) if barrier == file => Ok(()),
            barrier => Err(format!(
                "{} is {state} at {barrier:?}: {reason}",
                self.process.name
            )),
        }
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        self.process.log()
    }
}
