//! A broker with subscribers of which some stop applying, for tests that look at it from all sides.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod surge;

use hutong_cli::demo::{embedded::Embedded, platforms};
use hutong_connectors::client::{
    Delivered, Endpoint, Event, Filter, Identity, Start, Subscriber, SubscriberOptions, report,
};
use hutong_proto::{Cursor, Issuer, api};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    sync::watch,
    task::JoinSet,
    time::timeout,
};

/// Nothing here takes this long; it ends a test that would hang.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const SUBSCRIPTION: &str = "main";

pub async fn broker(platforms: usize) -> Embedded {
    let places = platforms::first(platforms);
    Embedded::start(places, None).await.expect("a broker")
}

pub fn codes(platforms: usize) -> Vec<u32> {
    platforms::first(platforms).iter().map(|p| p.code).collect()
}

pub async fn hutong(broker: &Embedded, identity: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hutong"))
        .args(args)
        .args(["--address", broker.address(), "--identity", identity])
        .output()
        .await
        .expect("the binary starts")
}

/// The JSON of a command that must succeed.
pub async fn json(broker: &Embedded, args: &[&str]) -> Value {
    let mut args = args.to_vec();
    args.extend(["--output", "json"]);
    let output = hutong(broker, "operator/test", &args).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).expect("one JSON value")
}

/// One delta as a line for `hutong publish`.
pub fn line(entity: &str, value: &str) -> String {
    format!(
        r#"{{"entity":"{entity}","provenance":{{"authority":"卫生健康委员会","rule_id":"R1","rule_version":1,"reason":"密切接触者"}},{value}}}"#
    )
}

pub async fn publish(broker: &Embedded, dir: &Path, issuer: u32, lines: &[String]) -> Output {
    let file = dir.join(format!("{issuer}.jsonl"));
    std::fs::write(&file, lines.join("\n")).expect("a file");
    let identity = format!("platform/{issuer}");
    hutong(
        broker,
        &identity,
        &["publish", file.to_str().expect("plain")],
    )
    .await
}

/// As a connector of this platform says it: degraded, with 1,312 dead letters.
pub async fn report_letters(broker: &Embedded, platform: u32) {
    let identity = Identity::Platform(Issuer::new(platform).expect("a code"));
    let client = report(&Endpoint::new(broker.address(), identity));
    let added = |reason: &str, rows| api::DeadLettersAdded {
        reason: reason.to_owned(),
        rows,
    };
    let report = Some(api::ConnectorReport {
        connector: "registry".to_owned(),
        role: api::ConnectorRole::Source.into(),
        state: api::ConnectorState::Degraded.into(),
        since_us: 1_650_000_000_000_000,
        dead_letters: 1_312,
        dead_letters_bytes: 400_000,
        dead_letters_added: vec![added("TIME_IN_FUTURE", 12), added("VALUE_UNMAPPED", 1_300)],
    });
    let mut client = client.expect("an address");
    let said = client.report(api::ReportRequest { report }).await;
    said.expect("taken");
}

/// Plays a short drill of its own, and leaves its page where the console looks for reports. Returns its name there.
pub async fn drill_report(folder: PathBuf) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_hutong")).with_file_name("hutong-chaos");
    let shown = program.display();
    assert!(
        program.exists(),
        "{shown} is not there: build all programs first, with `./dev build`"
    );
    let histories = tempfile::tempdir().expect("a folder");
    let name = "kill-broker.html";
    let output = Command::new(&program)
        .args([
            "run",
            "kill-broker",
            "--duration",
            "15s",
            "--rate",
            "200",
            "--report",
        ])
        .arg(folder.join(name))
        .arg("--out")
        .arg(histories.path())
        .kill_on_drop(true)
        .output()
        .await
        .expect("the binary starts");
    // Whatever the verdict on a machine that has much else to do: it is a report.
    assert!(folder.join(name).exists(), "{output:?}");
    name.to_owned()
}

/// The body of a page of the broker's HTTP port.
pub async fn page(broker: &Embedded, path: &str) -> String {
    let url = broker.console();
    let host = url.trim_start_matches("http://").split('/').next();
    let host = host.expect("an address");
    let mut stream = TcpStream::connect(host).await.expect("connect");
    let request = format!(
        "GET {path} HTTP/1.0\r\nhost: {host}\r\nhutong-identity: auditor/test\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("UTF-8");
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer");
    body.to_owned()
}

/// What the console shows.
pub async fn picture(broker: &Embedded) -> Value {
    serde_json::from_str(&page(broker, "/console/api/picture").await).expect("JSON")
}

/// Asks until the answer is good; the last one ends a test that would hang.
pub async fn until<T: std::fmt::Debug>(
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let mut last = String::new();
    let asking = async {
        loop {
            match ask().await {
                Ok(found) => return found,
                Err(why) => last = why,
            }
            tokio::task::yield_now().await;
        }
    };
    let found = timeout(within, asking).await;
    found.unwrap_or_else(|_| panic!("not within {within:?}: {what}; last: {last}"))
}

async fn subscribe(broker: &Embedded, code: u32) -> Subscriber {
    let issuer = Issuer::new(code).expect("six digits");
    let endpoint = Endpoint::new(broker.address().to_owned(), Identity::Platform(issuer));
    let mut options = SubscriberOptions::new(endpoint, SUBSCRIPTION);
    options.start = Start::Now;
    options.filter = Filter::default();
    Subscriber::open(options).await.expect("opened")
}

/// Subscribers that apply everything at once.
#[derive(Debug)]
pub struct Healthy {
    tasks: JoinSet<()>,
}

impl Healthy {
    pub async fn start(broker: &Embedded, codes: &[u32]) -> Healthy {
        let mut tasks = JoinSet::new();
        for code in codes {
            let mut subscriber = subscribe(broker, *code).await;
            tasks.spawn(async move {
                while let Ok(event) = subscriber.next().await {
                    if let Event::Records { cursor, .. } | Event::Bookmark { cursor, .. } = event {
                        subscriber.applied(cursor).await.expect("said");
                    }
                }
            });
        }
        Healthy { tasks }
    }
}

/// A subscriber that takes what comes, and applies it only once it is healed.
#[derive(Debug)]
pub struct Stalled {
    /// What it got and did not apply, in order; and the cursor after it.
    pub got: watch::Receiver<(Vec<Delivered>, Option<Cursor>)>,
    heal: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Stalled {
    pub async fn start(broker: &Embedded, code: u32) -> Stalled {
        let mut subscriber = subscribe(broker, code).await;
        let (sender, got) = watch::channel((Vec::new(), None));
        let (heal, mut healed) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let event = tokio::select! {
                    event = subscriber.next() => event,
                    changed = healed.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let cursor = sender.borrow().1;
                        if let Some(cursor) = cursor {
                            subscriber.applied(cursor).await.expect("said");
                        }
                        continue;
                    }
                };
                let Ok(event) = event else { return };
                if let Event::Records { cursor, .. } | Event::Bookmark { cursor, .. } = &event {
                    let cursor = *cursor;
                    sender.send_modify(|(_, last)| *last = Some(cursor));
                    if *healed.borrow() {
                        subscriber.applied(cursor).await.expect("said");
                    }
                }
                if let Event::Records { deltas, .. } = event {
                    sender.send_modify(|(got, _)| got.extend(deltas));
                }
            }
        });
        Stalled { got, heal, tasks }
    }

    /// The oldest change that it got and did not apply.
    pub async fn oldest(&mut self) -> Delivered {
        let got = self.got.wait_for(|(deltas, _)| !deltas.is_empty());
        let got = timeout(PATIENCE, got).await.expect("in time");
        got.expect("it runs").0[0].clone()
    }

    pub fn heal(&self) {
        self.heal.send_replace(true);
    }
}
