//! `./dev observe`: what it starts watches what it should, with our rules, and is gone after Ctrl-C.

mod watch;

use serde_json::Value;
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};
use tempfile::TempDir;
use watch::{Broker, Connector, get, rules, until};

/// What the shell says of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;
/// Below are those of services that are known, and of this one's defaults.
const LOWEST_PORT: u16 = 12_000;

fn root() -> PathBuf {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    cli.parent().expect("the repository").to_owned()
}

/// On the address that it listens on, which all share. Its ports are used seconds after they are found, so they are none of
/// those that the system gives to whoever asks for any, and each test, a process of its own, begins elsewhere.
fn free_addresses() -> [SocketAddr; 2] {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("a range");
    let first = range.split_whitespace().next().expect("its first port");
    let first: u16 = first.parse().expect("a number");
    let ports: Vec<u16> = (LOWEST_PORT..first).collect();
    assert!(ports.len() > 1000, "too few ports below {first}");
    let begin = std::process::id() as usize * 2 % ports.len();
    let from_there = ports.iter().cycle().skip(begin).take(ports.len());
    let addresses = from_there.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, *port)));
    let mut free = addresses.filter(|address| TcpListener::bind(address).is_ok());
    [(); 2].map(|()| free.next().expect("a free port"))
}

/// `./dev observe`, in a process group of its own, as in a terminal.
struct Observe {
    child: Child,
    dir: TempDir,
    prometheus: SocketAddr,
    alertmanager: SocketAddr,
}

impl Observe {
    fn start(targets: &[String]) -> Observe {
        let [prometheus, alertmanager] = free_addresses();
        Observe::start_on(targets, prometheus, alertmanager)
    }

    fn start_on(targets: &[String], prometheus: SocketAddr, alertmanager: SocketAddr) -> Observe {
        let dir = tempfile::tempdir().expect("a folder");
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        let temporary = dir.path().join("tmp");
        fs::create_dir(&temporary).expect("a folder");
        let release = Path::new(env!("CARGO_BIN_EXE_hutong")).parent();
        let target = release.and_then(Path::parent).expect("the target folder");
        let child = Command::new("bash")
            .arg(root().join("dev"))
            .arg("observe")
            .args(targets)
            .env("PATH", nothing_to_build(dir.path()))
            .env("CARGO_TARGET_DIR", target)
            .env("ROCKSDB_LIB_DIR", target)
            .env("TMPDIR", &temporary)
            .env("HUTONG_PROMETHEUS_PORT", prometheus.port().to_string())
            .env("HUTONG_ALERTMANAGER_PORT", alertmanager.port().to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("bash runs");
        Observe {
            child,
            dir,
            prometheus,
            alertmanager,
        }
    }

    fn said(&self) -> String {
        let mut text = String::new();
        let log = fs::File::open(self.dir.path().join("log"));
        let read = log.and_then(|mut log| log.read_to_string(&mut text));
        read.map_or_else(|e| e.to_string(), |_| text)
    }

    async fn says(&mut self, part: &str) {
        until(part, async || match self.child.try_wait() {
            Ok(None) if self.said().contains(part) => Ok(()),
            Ok(None) => Err(self.said()),
            ended => panic!("it ended, {ended:?}: {}", self.said()),
        })
        .await;
    }

    async fn ends(&mut self) -> ExitStatus {
        let mut status = None;
        until("it ends", async || {
            status = self.child.try_wait().map_err(|e| e.to_string())?;
            status.map(drop).ok_or_else(|| self.said())
        })
        .await;
        status.expect("it ended")
    }

    /// To all of the group, as a terminal does.
    fn interrupt(&self) {
        assert!(self.signal("-INT"), "{}", self.said());
    }

    fn signal(&self, signal: &str) -> bool {
        let group = format!("-{}", self.child.id());
        let mut kill = Command::new("kill");
        kill.args([signal, "--", &group]).stderr(Stdio::null());
        kill.status().expect("kill").success()
    }

    /// Programs of its group that run.
    fn left(&self) -> Vec<String> {
        let group = self.child.id().to_string();
        let all = fs::read_dir("/proc").expect("a list").flatten();
        let stats = all.filter_map(|p| fs::read_to_string(p.path().join("stat")).ok());
        let of_group = stats.filter(|stat| {
            let after_name = stat.rsplit(") ").next().unwrap_or_default();
            after_name.split(' ').nth(2) == Some(group.as_str())
        });
        of_group.collect()
    }

    /// After its end.
    fn left_nothing(&self) {
        let left = self.left();
        assert!(left.is_empty(), "{left:?} run: {}", self.said());
        let files = fs::read_dir(self.dir.path().join("tmp")).expect("a folder");
        let files: Vec<PathBuf> = files.flatten().map(|f| f.path()).collect();
        assert!(files.is_empty(), "{files:?} are there: {}", self.said());
    }
}

impl Drop for Observe {
    fn drop(&mut self) {
        // Fails only when all of them ended.
        self.signal("-KILL");
        drop(self.child.wait());
        if std::thread::panicking() {
            println!("it said:\n{}", self.said());
        }
    }
}

/// A path on which `cargo` has nothing to do: the programs of this test are built.
fn nothing_to_build(dir: &Path) -> OsString {
    let programs = dir.join("programs");
    fs::create_dir(&programs).expect("a folder");
    let cargo = programs.join("cargo");
    fs::write(&cargo, "#!/bin/sh\n").expect("written");
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).expect("executable");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(programs).chain(std::env::split_paths(&path));
    std::env::join_paths(all).expect("a path")
}

fn ask(address: SocketAddr, path: &str) -> Result<Value, String> {
    let body = get(address, path)?;
    serde_json::from_str(&body).map_err(|e| format!("{e}: {body}"))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// What stands in our files.
fn rule_names() -> BTreeSet<String> {
    let text = rules::read("prometheus/alerts.yml") + &rules::read("prometheus/recording.yml");
    let names = text.lines().filter_map(|line| {
        let line = line.trim().strip_prefix("- ")?;
        line.strip_prefix("alert: ")
            .or_else(|| line.strip_prefix("record: "))
    });
    names.map(str::to_owned).collect()
}

/// Of each of these jobs a target answers, and none does not.
async fn targets_are_up(observe: &Observe, jobs: &[&str]) {
    until("targets are up", async || {
        let found = ask(observe.prometheus, "/api/v1/targets?state=active")?;
        let active = &found["data"]["activeTargets"];
        let up: BTreeSet<&str> = list(active)
            .filter(|t| t["health"] == "up")
            .filter_map(|t| t["labels"]["job"].as_str())
            .collect();
        let all = list(active).count();
        match up == BTreeSet::from_iter(jobs.iter().copied()) && all == jobs.len() {
            true => Ok(()),
            false => Err(found.to_string()),
        }
    })
    .await;
}

async fn rules_are_loaded(observe: &Observe) {
    // Some are evaluated once a minute only, and say `unknown` before that.
    until("rules are loaded", async || {
        let found = ask(observe.prometheus, "/api/v1/rules")?;
        let rules = || list(&found["data"]["groups"]).flat_map(|group| list(&group["rules"]));
        let names: BTreeSet<String> = rules()
            .filter(|rule| rule["health"] != "err")
            .filter_map(|rule| Some(rule["name"].as_str()?.to_owned()))
            .collect();
        match names == rule_names() {
            true => Ok(()),
            false => Err(found.to_string()),
        }
    })
    .await;
}

/// The alert that always fires went all the way, and its page is there.
async fn the_watchdog_is_told(observe: &Observe) {
    until("Alertmanager has the watchdog", async || {
        let found = ask(observe.alertmanager, "/api/v2/alerts")?;
        let watchdog = list(&found).find(|a| a["labels"]["alertname"] == "Watchdog");
        let watchdog = watchdog.ok_or_else(|| found.to_string())?;
        assert_eq!(watchdog["receivers"][0]["name"], "dead-mans-switch");
        let page = watchdog["annotations"]["runbook_url"].as_str();
        let page = page.and_then(|url| url.strip_prefix("file://"));
        assert!(page.is_some_and(|p| Path::new(p).exists()), "{watchdog}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_demo_it_watches_until_it_is_interrupted_and_leaves_nothing() {
    let mut observe = Observe::start(&[]);
    observe.says("Ctrl-C ends it.").await;
    targets_are_up(&observe, &["hutong-broker"]).await;
    rules_are_loaded(&observe).await;
    the_watchdog_is_told(&observe).await;
    assert!(observe.left().len() >= 4, "{:?}", observe.left());
    observe.interrupt();
    assert_eq!(observe.ends().await.code(), Some(INTERRUPTED));
    observe.left_nothing();
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_what_runs_already_it_starts_no_demo_and_leaves_it_running() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = Broker::start(dir.path()).await;
    let connector = Connector::start(dir.path(), &broker).await;
    let targets = [
        format!("http://{}/metrics", broker.http),
        format!("connect={}", connector.http),
    ];
    let mut observe = Observe::start(&targets);
    observe.says("Ctrl-C ends it.").await;
    targets_are_up(&observe, &["hutong-broker", "hutong-connect"]).await;
    assert!(!observe.said().contains("demo to look at"));
    observe.interrupt();
    assert_eq!(observe.ends().await.code(), Some(INTERRUPTED));
    observe.left_nothing();
    broker.metrics().expect("the broker goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_somebody_has_is_named_with_the_way_out() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let taken = taken.local_addr().map(|address| (address, taken));
    let (address, _listener) = taken.expect("its address");
    let mut observe = Observe::start_on(&["127.0.0.1:1".to_owned()], address, address);
    assert_eq!(observe.ends().await.code(), Some(1));
    let said = observe.said();
    for part in [&address.to_string(), "HUTONG_PROMETHEUS_PORT"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    observe.left_nothing();
}
