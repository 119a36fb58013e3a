//! The whole of it: a broker, 32 platforms that publish their own areas out of one folder of lists,
//! and two sinks that take what all of them say.

use crate::{
    lists::Expected,
    lists::{Lists, PLATFORMS},
    processes::{Broker, Connector, until},
    testing::PostgresServer,
    views::{self, Progress},
    views::{Lines, check_equal},
};
use hutong_proto::api;
use std::{fmt::Write, fs, path::PathBuf};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

/// The platform that the sinks belong to; it takes its own deltas as well.
const RECEIVER: u32 = 340_000;
const SINKS: [&str; 2] = ["table", "lines"];

pub struct Fleet {
    // Dropped in this order: those who write before that which they write to.
    pub sources: Vec<Connector>,
    pub table: Connector,
    pub lines: Connector,
    pub broker: Broker,
    pub client: Client,
    _sessions: JoinSet<()>,
    _server: PostgresServer,
    lists: Lists,
    /// Lists that are in the folder.
    pub dropped: usize,
    dir: TempDir,
}

impl Fleet {
    /// Everything runs when it returns, and no list is there yet.
    pub async fn start(lists: Lists) -> Fleet {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("in")).expect("created");
        let server = PostgresServer::start();
        let mut sessions = JoinSet::new();
        let connected = tokio_postgres::connect(&server.url(), NoTls).await;
        let (client, connection) = connected.expect("a session");
        sessions.spawn(async move {
            if let Err(error) = connection.await {
                println!("the session of the test ended: {error}");
            }
        });
        let broker = Broker::start(dir.path(), &platforms());
        let subscription = "subscription = { kinds = [\"area_risk\"], include_own = true }\n";
        let sink = |name: &str, sink: String| {
            let work = format!("sink = {{ {sink} }}\n{subscription}");
            Connector::start(dir.path(), name, RECEIVER, &broker, &work)
        };
        let url = format!("type = \"postgres\", url = \"{}\"", server.url());
        let mut table = sink("table", url);
        let path = dir.path().join("lines.jsonl");
        let path = format!("type = \"json-lines\", path = \"{}\"", path.display());
        let mut lines = sink("lines", path);
        until("the sinks run", async || {
            table.runs()?;
            lines.runs()
        })
        .await;
        let source = |&(code, province): &(u32, &str)| {
            let work = source(&dir, code, province);
            Connector::start(dir.path(), &format!("areas-{code}"), code, &broker, &work)
        };
        Fleet {
            sources: PLATFORMS.iter().map(source).collect(),
            table,
            lines,
            broker,
            client,
            _sessions: sessions,
            _server: server,
            lists,
            dropped: 0,
            dir,
        }
    }

    fn lines_file(&self) -> PathBuf {
        self.dir.path().join("lines.jsonl")
    }

    pub fn lines_reader(&self) -> Lines {
        Lines::new(&self.lines_file())
    }

    pub fn progress(&self) -> Progress {
        Progress::new(&self.lines_file())
    }

    pub fn lists(&self) -> &Lists {
        &self.lists
    }

    /// Puts the next lists into the folder, up to and without `end`, each whole or not at all.
    pub fn drop_lists(&mut self, end: usize) {
        let folder = self.dir.path().join("in");
        for index in self.dropped..end {
            let incoming = folder.join(".incoming");
            fs::copy(self.lists.path(index), &incoming).expect("copied");
            fs::rename(&incoming, folder.join(&self.lists.names[index])).expect("renamed");
        }
        self.dropped = end;
    }

    /// Waits until everything that is in the folder is in both sinks: each source says that its last list
    /// arrived, and then the broker says that both sinks have applied all that its log held.
    pub async fn barrier(&mut self) {
        let file = self.lists.names[self.dropped - 1].clone();
        let sources = &mut self.sources;
        until("every source is at the last list", async || {
            sources.iter_mut().try_for_each(|s| s.reached(&file))
        })
        .await;
        let mut admin = self.broker.admin();
        let status = admin.get_status(api::GetStatusRequest {}).await;
        let tail = status.expect("an answer").into_inner().next_offset;
        until("both sinks have applied the log", async || {
            let request = api::ListSubscriptionsRequest { platform: RECEIVER };
            let answer = admin.list_subscriptions(request).await;
            let list = answer
                .map_err(|e| e.to_string())?
                .into_inner()
                .subscriptions;
            SINKS.iter().try_for_each(|name| {
                let found = list.iter().find(|s| s.subscription == *name);
                applied(found.ok_or(format!("no subscription {name}"))?, tail)
            })
        })
        .await;
    }

    /// At a barrier: table and lines equal what the lists say.
    pub async fn check(&self, expected: &Expected, lines: &mut Lines) {
        let when = &self.lists.names[expected.lists - 1];
        check_equal(
            &format!("{when}: table"),
            &expected.view,
            &views::table(&self.client).await,
        );
        lines.read();
        lines.check(when, expected);
        assert_eq!(
            lines.snapshots, 1,
            "{when}: only the first start needs a snapshot"
        );
    }
}

fn applied(subscription: &api::Subscription, tail: u64) -> Result<(), String> {
    let name = &subscription.subscription;
    let cursor = subscription.applied.as_ref();
    let behind = subscription.urgent.as_ref().map_or(0, |lag| lag.records);
    if !subscription.connected || behind > 0 {
        return Err(format!("{name} is {behind} records behind"));
    }
    match cursor {
        Some(cursor) if cursor.urgent >= tail => Ok(()),
        cursor => Err(format!("{name} has applied up to {cursor:?} of {tail}")),
    }
}

fn platforms() -> String {
    let mut text = String::new();
    for (code, name) in PLATFORMS {
        // As in the configuration that comes with the broker: some have more than one partition.
        let shards = if [370_000, 410_000, 440_000].contains(&code) {
            2
        } else {
            1
        };
        write!(
            text,
            "[[platforms]]\ncode = {code}\nname = \"{name}\"\nshards = {shards}\n"
        )
        .expect("a text");
    }
    text
}

fn source(dir: &TempDir, code: u32, province: &str) -> String {
    format!(
        "source = {{ type = \"snapshot-folder\", dir = \"{}\", format = \"risk-levels\", province = \"{province}\" }}\n\
         [mapping]\nkind = \"area_risk\"\nentity = {{ area = \"path\" }}\n\
         level = {{ field = \"level\", canonical = true }}\nprovenance = {{ reason = \"area_name\" }}\n\
         [provenance]\nauthority = \"{code}\"\nrule_id = \"risk-areas\"\nrule_version = 9\nreason = \"名单\"\n",
        dir.path().join("in").display()
    )
}
