//! The broker as a process: what supervisors and scripts rely on.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};
use tempfile::TempDir;

/// A running broker on free ports. Killed when dropped.
struct Broker {
    child: Child,
    stdout: BufReader<ChildStdout>,
    grpc: SocketAddr,
    http: SocketAddr,
}

fn configuration(dir: &Path, grpc: &str) -> std::path::PathBuf {
    let file = dir.join("broker.toml");
    let text = format!(
        "identity = \"trial\"\n[listen]\ngrpc = \"{grpc}\"\nhttp = \"127.0.0.1:0\"\n\
         [data]\ndir = \"{}\"\n[[platforms]]\ncode = 340000\nname = \"Anhui\"\n\
         [drain]\ntimeout = \"1s\"\n",
        dir.join("data").display()
    );
    std::fs::write(&file, text).expect("write");
    file
}

fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hutong-broker"));
    command.arg("run").arg(config).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Broker {
    fn start(dir: &TempDir) -> Broker {
        let config = configuration(dir.path(), "127.0.0.1:0");
        let mut child = command(&config).spawn().expect("spawn");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        let address = |key: &str| {
            let mut words = line.split_whitespace();
            let word = words.find_map(|word| word.strip_prefix(key));
            word.expect("an address").parse().expect("an address")
        };
        Broker {
            grpc: address("grpc="),
            http: address("http="),
            child,
            stdout,
        }
    }

    fn signal(&self) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(status.expect("kill").success());
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("send");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("receive");
        response
    }

    /// The exit code, and the log.
    fn wait(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        let mut stderr = self.child.stderr.take().expect("piped");
        stderr.read_to_string(&mut log).expect("UTF-8");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("UTF-8");
        assert_eq!(rest, "", "only the addresses go to standard output");
        (self.child.wait().expect("wait").code(), log)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Both fail only when it ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn it_says_its_ports_serves_the_pages_and_drains_on_a_signal() {
    let dir = TempDir::new().expect("temp dir");
    let broker = Broker::start(&dir);
    assert!(broker.get("/readyz").starts_with("HTTP/1.1 200"));
    assert!(broker.get("/livez").starts_with("HTTP/1.1 200"));
    let metrics = broker.get("/metrics");
    assert!(metrics.contains("hutong_build_info{version="), "{metrics}");
    assert!(
        metrics.contains("hutong_batches_total{platform=\"340000\"} 0"),
        "{metrics}"
    );
    assert!(broker.get("/").contains("/metrics"));
    broker.signal();
    let (code, log) = broker.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("draining") && log.contains("waited for"),
        "{log}"
    );
    // And again on what it left behind.
    let again = Broker::start(&dir);
    again.signal();
    assert_eq!(again.wait().0, Some(0));
}

#[test]
fn a_second_broker_on_the_same_folder_is_refused_with_exit_code_1() {
    let dir = TempDir::new().expect("temp dir");
    let first = Broker::start(&dir);
    let config = configuration(dir.path(), "127.0.0.1:0");
    let output = command(&config).output().expect("run");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("cannot start") && log.contains("another broker"),
        "{log}"
    );
    assert!(output.stdout.is_empty());
    assert!(
        first.get("/readyz").starts_with("HTTP/1.1 200"),
        "the first one goes on"
    );
}

#[test]
fn a_port_that_is_taken_is_named_with_exit_code_1() {
    let dir = TempDir::new().expect("temp dir");
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    let config = configuration(dir.path(), &address);
    let output = command(&config).output().expect("run");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains(&address), "{log}");
}

#[test]
fn a_connection_that_says_nothing_does_not_keep_it_from_ending() {
    let dir = TempDir::new().expect("temp dir");
    let broker = Broker::start(&dir);
    let silent = TcpStream::connect(broker.grpc).expect("connect");
    assert!(broker.get("/readyz").starts_with("HTTP/1.1 200"));
    broker.signal();
    let (code, log) = broker.wait();
    assert_eq!(code, Some(0), "{log}");
    drop(silent);
}
