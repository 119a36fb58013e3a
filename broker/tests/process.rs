//! The broker as a process: what supervisors and scripts rely on.

mod support;

use std::{
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use support::{
    Listening,
    process::{BrokerProcess as Broker, command, configuration},
};
use tempfile::TempDir;

/// Ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn it_says_its_ports_serves_the_pages_and_drains_on_a_signal() {
    let dir = TempDir::new().expect("temp dir");
    let broker = Broker::start(dir.path());
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
    let again = Broker::start(dir.path());
    again.signal();
    assert_eq!(again.wait().0, Some(0));
}

/// What a shell gives is too little for the tables of a large state.
#[test]
fn it_may_open_as_many_files_as_whoever_started_it_may_allow_itself() {
    let dir = TempDir::new().expect("temp dir");
    let config = configuration(dir.path(), &dir.path().join("data"), "127.0.0.1:0");
    let plain = command(&config);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 200 && exec \"$@\"", "sh"]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let broker = Broker::spawn(dir.path(), &mut command).expect("it starts");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", broker.id()));
    let limits = limits.expect("its limits");
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut files = files.expect("a line").split_whitespace().skip(3);
    assert_eq!(files.next(), files.next(), "{limits}");
    broker.signal();
    assert_eq!(broker.wait().0, Some(0));
}

/// The metric with this text, once it has this value.
fn until(broker: &Broker, metric: &str) {
    let begun = Instant::now();
    loop {
        let metrics = broker.get("/metrics");
        if metrics.lines().any(|line| line == metric) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{metric}: {metrics}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn it_reads_its_configuration_again_and_refuses_what_it_cannot_take() {
    let dir = TempDir::new().expect("temp dir");
    let broker = Broker::start(dir.path());
    let file = dir.path().join("broker.toml");
    let text = std::fs::read_to_string(&file).expect("its configuration");
    let (taken, refused) = (
        |n| format!("hutong_config_reloads_total{{result=\"taken\"}} {n}"),
        |n| format!("hutong_config_reloads_total{{result=\"refused\"}} {n}"),
    );
    until(&broker, &taken(0));
    std::fs::write(&file, format!("{text}[retention]\nage = \"1h\"\n")).expect("written");
    broker.hang_up();
    until(&broker, &taken(1));
    let refusals = [
        format!("valid_until = \"2020-01-01\"\n{text}"),
        format!("{text}[retention]\nage = \"1\"\n"),
        format!("{text}[log]\ngroup_bytes = \"1MiB\"\n"),
    ];
    for (i, wrong) in refusals.iter().enumerate() {
        std::fs::write(&file, wrong).expect("written");
        broker.hang_up();
        until(&broker, &refused(i + 1));
    }
    until(&broker, &taken(1));
    assert!(broker.get("/readyz").starts_with("HTTP/1.1 200"));
    broker.signal();
    let (code, log) = broker.wait();
    assert_eq!(code, Some(0), "{log}");
    for said in [
        "configuration read again",
        "until 2020-01-01, and that is over",
        "`log.group_bytes` is not what the broker runs with",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
}

#[test]
fn a_second_broker_on_the_same_folder_is_refused_with_exit_code_1() {
    let dir = TempDir::new().expect("temp dir");
    let first = Broker::start(dir.path());
    let config = configuration(dir.path(), &dir.path().join("data"), "127.0.0.1:0");
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
    let config = configuration(dir.path(), &dir.path().join("data"), &address);
    let output = command(&config).output().expect("run");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains(&address), "{log}");
}

#[test]
fn a_connection_that_says_nothing_does_not_keep_it_from_ending() {
    let dir = TempDir::new().expect("temp dir");
    let broker = Broker::start(dir.path());
    let silent = TcpStream::connect(broker.grpc()).expect("connect");
    assert!(broker.get("/readyz").starts_with("HTTP/1.1 200"));
    broker.signal();
    let (code, log) = broker.wait();
    assert_eq!(code, Some(0), "{log}");
    drop(silent);
}

/// The error that a broker ends with when it is started on this folder.
fn refused(dir: &TempDir) -> String {
    let config = configuration(dir.path(), &dir.path().join("data"), "127.0.0.1:0");
    let output = command(&config).output().expect("run");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "no address was told");
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn a_folder_of_a_newer_broker_or_of_something_else_is_refused_and_left_alone() {
    let dir = TempDir::new().expect("temp dir");
    Broker::start(dir.path()).kill();
    let version = dir.path().join("data/VERSION");
    std::fs::write(&version, "7\n").expect("write");
    let log = refused(&dir);
    assert!(
        log.contains("newer broker") && log.contains("layout 7"),
        "{log}"
    );
    std::fs::write(&version, "PostgreSQL 15").expect("write");
    let log = refused(&dir);
    assert!(log.contains("really a data folder"), "{log}");
    let kept = std::fs::read_to_string(&version).expect("read");
    assert_eq!(kept, "PostgreSQL 15");
    // And nothing else was touched: with its version back it starts.
    std::fs::write(&version, "1\n").expect("write");
    Broker::start(dir.path());
}

#[test]
fn a_folder_that_holds_something_else_is_not_filled() {
    let dir = TempDir::new().expect("temp dir");
    Broker::start(dir.path()).kill();
    let version = dir.path().join("data/VERSION");
    std::fs::remove_file(&version).expect("removed");
    let log = refused(&dir);
    assert!(
        log.contains("not empty") && log.contains("data.dir"),
        "{log}"
    );
    assert!(!version.exists(), "nothing was written");
    std::fs::write(&version, "1\n").expect("write");
    let shards = dir.path().join("data/SHARDS");
    let text = std::fs::read(&shards).expect("read");
    for (wrong, what) in [(&b"\xff\xfe"[..], "no platform"), (b"34000", "no platform")] {
        std::fs::write(&shards, wrong).expect("write");
        let log = refused(&dir);
        assert!(log.contains("SHARDS") && log.contains(what), "{log}");
    }
    std::fs::remove_file(&shards).expect("removed");
    let log = refused(&dir);
    assert!(log.contains("SHARDS is missing"), "{log}");
    std::fs::write(&shards, text).expect("write");
    Broker::start(dir.path());
}

#[test]
fn what_is_known_about_people_is_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().expect("temp dir");
    let broker = Broker::start(dir.path());
    let mode = |name: &str| {
        let metadata = std::fs::metadata(dir.path().join(name)).expect("there");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode("data"), 0o700);
    drop(broker);
}

#[test]
fn shards_that_differ_from_the_logs_are_refused_with_both_numbers() {
    let dir = TempDir::new().expect("temp dir");
    Broker::start(dir.path()).kill();
    let shards = dir.path().join("data/SHARDS");
    let text = std::fs::read_to_string(&shards).expect("read");
    assert!(text.contains("340000 1"), "{text}");
    std::fs::write(&shards, text.replace("340000 1", "340000 4")).expect("write");
    let log = refused(&dir);
    assert!(
        log.contains("340000 has 4 shards") && log.contains("set it back to 4"),
        "{log}"
    );
}
