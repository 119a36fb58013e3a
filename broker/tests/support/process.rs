//! The broker as a process of its own: the release binary, as an operator starts it.

use super::{Listening, PLATFORMS};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

/// A running broker on free ports. Killed when dropped.
pub struct BrokerProcess {
    child: Child,
    stdout: BufReader<ChildStdout>,
    log: PathBuf,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Listening for BrokerProcess {
    fn grpc(&self) -> SocketAddr {
        self.grpc
    }
}

/// Writes a configuration into `dir`, with the data in `data`.
pub fn configuration(dir: &Path, data: &Path, grpc: &str) -> PathBuf {
    let file = dir.join("broker.toml");
    let mut text = format!(
        "identity = \"trial\"\n[listen]\ngrpc = \"{grpc}\"\nhttp = \"127.0.0.1:0\"\n\
         [data]\ndir = \"{}\"\n[drain]\ntimeout = \"1s\"\n",
        data.display()
    );
    for (code, name) in PLATFORMS {
        text += &format!("[[platforms]]\ncode = {code}\nname = \"{name}\"\n");
    }
    std::fs::write(&file, text).expect("write");
    file
}

pub fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hutong-broker"));
    command.arg("run").arg(config).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl BrokerProcess {
    /// With configuration, log and data in `dir`.
    pub fn start(dir: &Path) -> BrokerProcess {
        let config = configuration(dir, &dir.join("data"), "127.0.0.1:0");
        BrokerProcess::spawn(dir, &mut command(&config)).expect("it starts")
    }

    /// The log of a broker that ended before it said its addresses is the error.
    pub fn spawn(dir: &Path, command: &mut Command) -> Result<BrokerProcess, String> {
        // A file, because a pipe that nobody reads would stop the broker when it is full.
        let log = dir.join("broker.log");
        let file = File::create(&log).expect("create");
        let mut child = command.stderr(file).spawn().expect("spawn");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("UTF-8");
        if line.is_empty() {
            child.wait().expect("wait");
            return Err(std::fs::read_to_string(&log).expect("UTF-8"));
        }
        let address = |key: &str| {
            let mut words = line.split_whitespace();
            let word = words.find_map(|word| word.strip_prefix(key));
            word.expect("an address").parse().expect("an address")
        };
        Ok(BrokerProcess {
            grpc: address("grpc="),
            http: address("http="),
            child,
            stdout,
            log,
        })
    }

    /// SIGKILL, and the end of it.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self) {
        self.send("-TERM");
    }

    /// Reads the configuration again.
    pub fn hang_up(&self) {
        self.send("-HUP");
    }

    fn send(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status();
        assert!(status.expect("kill").success());
    }

    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("send");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("receive");
        response
    }

    /// The exit code, and the log.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("UTF-8");
        assert_eq!(rest, "", "only the addresses go to standard output");
        let code = self.child.wait().expect("wait").code();
        (code, std::fs::read_to_string(&self.log).expect("UTF-8"))
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        // Both fail only when it ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
