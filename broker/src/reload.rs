//! Reading the configuration again while the broker runs. What can change at once does; a file in which anything
//! else is different, that has a mistake, or whose time is over is refused as a whole, and everything stays
//! as it was.

use crate::{
    config::{Config, Limits, Memory, PlatformConfig, Retention, Telemetry},
    ingress::queue::Queues,
    overload::Overload,
};
use hutong_config::{ConfigErrors, Document, Table};
use hutong_proto::Micros;
use parking_lot::Mutex;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;

const RESTART: &str = "restart the broker to change it, or put back what was there";

/// A file that may be taken now.
pub fn check(path: &Path, now: Micros) -> Result<Config, ConfigErrors> {
    let doc = Document::load(path)?;
    let read = Config::read(&doc);
    if let Some(new) = &read {
        still_valid(&doc, new, now);
    }
    doc.finish(read)
}

/// What a running broker has of its configuration, and what holds on to it.
#[derive(Debug)]
pub struct Live {
    running: Mutex<Config>,
    /// Where it listens, which a file need not say: port 0 takes a free one.
    bound: [SocketAddr; 2],
    retention: watch::Sender<Retention>,
    /// Those that are watched.
    certificates: watch::Sender<Vec<PathBuf>>,
    overload: Arc<Overload>,
    queues: Arc<Queues>,
}

impl Live {
    pub fn new(
        running: Config,
        bound: [SocketAddr; 2],
        overload: Arc<Overload>,
        queues: Arc<Queues>,
    ) -> Live {
        Live {
            retention: watch::Sender::new(running.retention.clone()),
            certificates: watch::Sender::new(running.telemetry.certificates.clone()),
            running: Mutex::new(running),
            bound,
            overload,
            queues,
        }
    }

    pub fn retention(&self) -> watch::Receiver<Retention> {
        self.retention.subscribe()
    }

    pub fn certificates(&self) -> watch::Receiver<Vec<PathBuf>> {
        self.certificates.subscribe()
    }

    pub fn running(&self) -> Config {
        self.running.lock().clone()
    }

    /// Takes what a file says, or nothing of it. The names of the parts that are different now.
    pub fn reload(&self, path: &Path, now: Micros) -> Result<Vec<&'static str>, ConfigErrors> {
        let mut running = self.running.lock();
        let doc = Document::load(path)?;
        let read = Config::read(&doc);
        if let Some(new) = &read {
            still_valid(&doc, new, now);
            only_what_may_change(&doc, &running, new, self.bound);
        }
        let new = doc.finish(read)?;
        let changed = changed(&running, &new);
        self.retention.send_replace(new.retention.clone());
        self.certificates
            .send_replace(new.telemetry.certificates.clone());
        self.overload.set_policy(new.overload.clone());
        self.queues.set_weights(&new.weights());
        *running = new;
        Ok(changed)
    }
}

fn changed(running: &Config, new: &Config) -> Vec<&'static str> {
    [
        ("retention", running.retention != new.retention),
        ("overload", running.overload != new.overload),
        ("population", running.weights() != new.weights()),
        ("drain.timeout", running.drain_timeout != new.drain_timeout),
        ("valid_until", running.valid_until != new.valid_until),
        (
            "telemetry.certificates",
            running.telemetry.certificates != new.telemetry.certificates,
        ),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
}

/// Everything of a part is known: only its mistakes are of interest.
fn part<'d>(root: &mut Table<'d>, name: &str) -> Table<'d> {
    let mut table = root.table(name);
    table.entries();
    table
}

fn still_valid(doc: &Document, new: &Config, now: Micros) {
    let mut root = doc.root();
    root.entries();
    if let Some(day) = new.valid_until
        && now >= day.end()
    {
        root.fail(
            "valid_until",
            format!("this file was to be taken until {day}, and that is over"),
            "if it is still right, write a later day, or remove the line",
        );
    }
}

/// Reports every difference that needs a restart, each at its line. A field that is new in [`Config`] does not
/// compile here until somebody has said which kind it is.
fn only_what_may_change(doc: &Document, running: &Config, new: &Config, bound: [SocketAddr; 2]) {
    let Config {
        // There is one mode.
        identity: _,
        listen_grpc,
        listen_http,
        data_dir,
        platforms: _,
        memory,
        limits,
        trial_marker,
        group_bytes,
        telemetry,
        drills,
        // These change.
        valid_until: _,
        retention: _,
        overload: _,
        drain_timeout: _,
    } = new;
    let address =
        |new: &SocketAddr, old: &SocketAddr, bound: &SocketAddr| new == old || new == bound;
    let mut fixed = vec![
        (
            "listen",
            "grpc",
            address(listen_grpc, &running.listen_grpc, &bound[0]),
        ),
        (
            "listen",
            "http",
            address(listen_http, &running.listen_http, &bound[1]),
        ),
        ("data", "dir", *data_dir == running.data_dir),
        ("trial", "marker", *trial_marker == running.trial_marker),
        ("log", "group_bytes", *group_bytes == running.group_bytes),
        ("console", "drills", *drills == running.drills),
    ];
    fixed.extend(of_memory(&running.memory, memory));
    fixed.extend(of_limits(&running.limits, limits));
    fixed.extend(of_telemetry(&running.telemetry, telemetry));
    let mut root = doc.root();
    root.entries();
    for (table, key, same) in fixed {
        if !same {
            part(&mut root, table).fail(
                key,
                format!("`{table}.{key}` is not what the broker runs with"),
                RESTART,
            );
        }
    }
    same_platforms(&mut root, &running.platforms, &new.platforms);
}

type Fixed = (&'static str, &'static str, bool);

fn of_memory(running: &Memory, new: &Memory) -> [Fixed; 6] {
    let Memory {
        tail_urgent,
        tail_bulk,
        queue_urgent,
        queue_bulk,
        gather,
        block_cache,
    } = new;
    [
        ("tail_urgent", tail_urgent, running.tail_urgent),
        ("tail_bulk", tail_bulk, running.tail_bulk),
        ("queue_urgent", queue_urgent, running.queue_urgent),
        ("queue_bulk", queue_bulk, running.queue_bulk),
        ("gather", gather, running.gather),
        ("block_cache", block_cache, running.block_cache),
    ]
    .map(|(key, new, old)| ("memory", key, *new == old))
}

fn of_limits(running: &Limits, new: &Limits) -> [Fixed; 3] {
    let Limits {
        snapshots,
        connections,
        stall,
    } = new;
    [
        ("limits", "snapshots", *snapshots == running.snapshots),
        ("limits", "connections", *connections == running.connections),
        ("limits", "stall", *stall == running.stall),
    ]
}

fn of_telemetry(running: &Telemetry, new: &Telemetry) -> [Fixed; 4] {
    let Telemetry {
        format,
        filter,
        otlp,
        slow,
        // These change.
        certificates: _,
    } = new;
    [
        ("telemetry", "format", *format == running.format),
        ("telemetry", "filter", *filter == running.filter),
        ("telemetry", "otlp", *otlp == running.otlp),
        ("telemetry", "slow", *slow == running.slow),
    ]
}

/// The same ones in the same order; only their populations may differ.
fn same_platforms(root: &mut Table<'_>, running: &[PlatformConfig], new: &[PlatformConfig]) {
    if running.len() != new.len() {
        root.fail(
            "platforms",
            format!(
                "there are {} platforms, and the broker runs with {}",
                new.len(),
                running.len()
            ),
            RESTART,
        );
        return;
    }
    let tables = root.list_of_tables("platforms");
    for ((mut table, old), new) in tables.into_iter().zip(running).zip(new) {
        table.entries();
        let PlatformConfig {
            issuer,
            name,
            name_zh,
            shards,
            population: _,
        } = new;
        for (key, same) in [
            ("code", *issuer == old.issuer),
            ("name", *name == old.name),
            ("name_zh", *name_zh == old.name_zh),
            ("shards", *shards == old.shards),
        ] {
            if !same {
                table.fail(
                    key,
                    format!("`{}.{key}` is not what the broker runs with", table.path()),
                    RESTART,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overload::GiveWay;
    use std::{fs, time::Duration};
    use tempfile::TempDir;

    const NOW: Micros = Micros(1_700_000_000_000_000);
    const FILE: &str = "identity = \"trial\"\n[listen]\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n\
        [data]\ndir = \"d\"\n[retention]\nage = \"7d\"\n[overload]\ndelay = \"5ms\"\n\
        [[platforms]]\ncode = 340000\nname = \"Anhui\"\npopulation = 61_000_000\n";

    struct Broker {
        dir: TempDir,
        live: Live,
    }

    impl Broker {
        fn new() -> Broker {
            let running = Config::parse("broker.toml", FILE).expect("valid");
            let queues = Queues::new(1 << 20, 1 << 20, &running.weights());
            let overload = Overload::new(running.overload.clone());
            let port = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
            Broker {
                dir: TempDir::new().expect("a folder"),
                live: Live::new(
                    running,
                    [port(7400), port(7401)],
                    overload.into(),
                    queues.into(),
                ),
            }
        }

        fn reload(&self, text: &str) -> Result<Vec<&'static str>, ConfigErrors> {
            let file = self.dir.path().join("broker.toml");
            fs::write(&file, text).expect("written");
            self.live.reload(&file, NOW)
        }

        /// It is refused for one reason at this line, and nothing has changed.
        #[track_caller]
        fn refuses(&self, text: &str, line: usize, message: &str) {
            let before = self.live.running();
            let errors = self.reload(text).expect_err("refused");
            let found: Vec<_> = errors.iter().map(|e| (e.line, e.to_string())).collect();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].0, line, "{found:?}");
            assert!(found[0].1.contains(message), "{found:?}");
            assert_eq!(self.live.running(), before);
            assert_eq!(*self.live.retention().borrow(), before.retention);
        }
    }

    #[test]
    fn what_may_change_takes_effect_and_is_named() {
        let broker = Broker::new();
        assert_eq!(broker.reload(FILE).expect("the same"), Vec::<&str>::new());
        let watched = "[telemetry]\ncertificates = [\"a.pem\"]\n";
        let drain = "[drain]\ntimeout = \"1s\"\n";
        let text = format!("valid_until = \"2030-01-01\"\n{FILE}{drain}{watched}")
            .replace("7d", "2d")
            .replace("delay = \"5ms\"", "give_way = [\"bulk\"]")
            .replace("61_000_000", "62_000_000");
        let changed = broker.reload(&text).expect("taken");
        assert_eq!(
            changed,
            [
                "retention",
                "overload",
                "population",
                "drain.timeout",
                "valid_until",
                "telemetry.certificates"
            ]
        );
        let live = &broker.live;
        assert_eq!(
            live.retention().borrow().age,
            Duration::from_secs(2 * 86_400)
        );
        assert_eq!(*live.certificates().borrow(), [PathBuf::from("a.pem")]);
        assert_eq!(live.overload.policy().give_way, [GiveWay::Bulk]);
        assert_eq!(live.running().drain_timeout, Duration::from_secs(1));
    }

    #[test]
    fn what_needs_a_restart_is_refused_at_its_line_with_all_else() {
        let broker = Broker::new();
        let with = |from: &str, to: &str| FILE.replace(from, to).replace("7d", "2d");
        let cases = [
            (
                "grpc = \"127.0.0.1:0\"",
                "grpc = \"127.0.0.1:9\"",
                3,
                "`listen.grpc`",
            ),
            ("dir = \"d\"", "dir = \"e\"", 6, "`data.dir`"),
            ("Anhui", "Anhwei", 13, "`platforms[0].name`"),
            (
                "population = 61_000_000",
                "shards = 2",
                14,
                "`platforms[0].shards`",
            ),
        ];
        for (from, to, line, message) in cases {
            // A name that is not said in Chinese is the other one.
            let text = with(from, to).replace("Anhwei\"", "Anhwei\"\nname_zh = \"Anhui\"");
            broker.refuses(&text, line, message);
        }
        let more = format!("{FILE}[[platforms]]\ncode = 510000\nname = \"Sichuan\"\n");
        broker.refuses(&more, 11, "there are 2 platforms");
        broker.refuses(
            &format!("{FILE}[telemetry]\nslow = \"2s\"\n"),
            16,
            "`telemetry.slow`",
        );
        broker.refuses(
            &format!("{FILE}[memory]\ngather = \"8MiB\"\n"),
            16,
            "`memory.gather`",
        );
    }

    #[test]
    fn the_port_that_it_took_is_the_one_that_it_was_told() {
        let broker = Broker::new();
        let text = FILE.replace("grpc = \"127.0.0.1:0\"", "grpc = \"127.0.0.1:7400\"");
        assert_eq!(broker.reload(&text).expect("taken"), Vec::<&str>::new());
    }

    #[test]
    fn a_file_with_a_mistake_or_whose_time_is_over_is_refused() {
        let broker = Broker::new();
        broker.refuses(&FILE.replace("7d", "7"), 8, "duration");
        let over = format!("valid_until = \"2023-11-13\"\n{FILE}").replace("7d", "2d");
        broker.refuses(&over, 1, "until 2023-11-13, and that is over");
        let today = format!("valid_until = \"2023-11-14\"\n{FILE}");
        assert_eq!(broker.reload(&today).expect("taken"), ["valid_until"]);
        let gone = broker
            .live
            .reload(&broker.dir.path().join("gone.toml"), NOW);
        assert!(gone.is_err());
    }
}
