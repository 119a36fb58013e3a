//! The broker's configuration file. `deploy/broker.toml` is an annotated example.
//!
//! Every default stands in [`defaults`], every range in [`read`]; a mistake is reported with its line,
//! together with all others, before any port is bound.

mod day;
mod shown;

pub use day::Day;

use crate::overload::{FLOOR_BYTES_PER_S, GiveWay, Policy};
use hutong_config::{ByteSize, ConfigErrors, Document, Table, Value, read};
use hutong_proto::{Issuer, limits};
use hutong_telemetry::catalogue::Label;
use hutong_telemetry::{LogFormat, logs};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// Certificates that are watched.
pub const CERTIFICATES_MAX: usize = Label::Certificate.values_max();

/// Everything between two stages must be able to hold one batch.
const ONE_BATCH: ByteSize = ByteSize(limits::BATCH_BYTES_MAX as u64);

/// What a broker is told. Paths are relative to the folder that it is started in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub identity: IdentityMode,
    /// From when on this file must not be taken any more.
    pub valid_until: Option<Day>,
    pub listen_grpc: SocketAddr,
    pub listen_http: SocketAddr,
    pub data_dir: PathBuf,
    /// In the order of the file; codes are unique.
    pub platforms: Vec<PlatformConfig>,
    pub retention: Retention,
    pub memory: Memory,
    pub limits: Limits,
    /// What gives way to urgent deltas.
    pub overload: Policy,
    /// How long a drain may take before what is left is cut.
    pub drain_timeout: Duration,
    /// Names a deployment that drills may break on purpose.
    pub trial_marker: Option<String>,
    /// Bytes in one group commit, at most, unless one record is larger.
    pub group_bytes: u64,
    pub telemetry: Telemetry,
    /// Where reports of drills are, for the console.
    pub drills: Option<PathBuf>,
}

/// How a connection proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityMode {
    /// It says so and is believed: only for a broker that listens on loopback.
    Trial,
}

/// A platform that may take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformConfig {
    pub issuer: Issuer,
    pub name: String,
    pub name_zh: String,
    /// Into how many partitions each lane of its deltas is split. Fixed once the log exists.
    pub shards: u32,
    /// People it is responsible for: when more is offered than fits, its share is in proportion.
    pub population: u32,
}

/// How long the log keeps records; state outlives it. The first bound that is reached counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    pub age: Duration,
    pub bytes: u64,
}

/// Where memory may go, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Rings of applied records, for subscribers that keep up.
    pub tail_urgent: u64,
    pub tail_bulk: u64,
    /// Records between ingress and apply.
    pub queue_urgent: u64,
    pub queue_bulk: u64,
    /// Newest values that are not on disk yet.
    pub gather: u64,
    /// Blocks of state read from disk.
    pub block_cache: u64,
}

impl Memory {
    pub fn total(&self) -> u64 {
        let Memory {
            tail_urgent,
            tail_bulk,
            queue_urgent,
            queue_bulk,
            gather,
            block_cache,
        } = self;
        [
            tail_urgent,
            tail_bulk,
            queue_urgent,
            queue_bulk,
            gather,
            block_cache,
        ]
        .into_iter()
        .sum()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Snapshots sent at one time.
    pub snapshots: u32,
    /// gRPC connections at one time.
    pub connections: u32,
    /// Of a client that takes nothing of what waits for it.
    pub stall: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    pub format: LogFormat,
    pub filter: String,
    /// Files of certificates whose expiry is a metric.
    pub certificates: Vec<PathBuf>,
    /// Where metrics and spans are pushed by OTLP.
    pub otlp: Option<String>,
    /// A batch or a delivery that takes longer is traced, whether it was sampled or not.
    pub slow: Duration,
}

/// What holds for what a file leaves out.
mod defaults {
    use super::{FLOOR_BYTES_PER_S, GiveWay, Limits, Memory, Policy, Retention, Telemetry};
    use hutong_telemetry::LogFormat;
    use std::{net::Ipv4Addr, net::SocketAddr, time::Duration};

    const MIB: u64 = 1 << 20;

    pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
    pub const GROUP_BYTES: u64 = 4 * MIB;
    pub const SHARDS: u32 = 1;
    /// About the mean of the 32 platforms.
    pub const POPULATION: u32 = 44_000_000;

    pub fn grpc() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 7400).into()
    }

    pub fn http() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 7401).into()
    }

    pub fn retention() -> Retention {
        Retention {
            age: Duration::from_secs(7 * 86_400),
            bytes: 50 << 30,
        }
    }

    pub fn memory() -> Memory {
        Memory {
            tail_urgent: 32 * MIB,
            tail_bulk: 64 * MIB,
            queue_urgent: 16 * MIB,
            queue_bulk: 64 * MIB,
            gather: 96 * MIB,
            block_cache: 64 * MIB,
        }
    }

    pub fn limits() -> Limits {
        Limits {
            snapshots: 4,
            connections: 1024,
            stall: Duration::from_secs(30),
        }
    }

    pub fn overload() -> Policy {
        Policy {
            give_way: GiveWay::ALL.to_vec(),
            delay: Duration::from_millis(5),
            floor_bytes_per_s: FLOOR_BYTES_PER_S,
        }
    }

    pub fn telemetry() -> Telemetry {
        Telemetry {
            format: LogFormat::Text,
            filter: "info".to_owned(),
            certificates: Vec::new(),
            otlp: None,
            slow: Duration::from_secs(1),
        }
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        Config::from_document(Document::load(path)?)
    }

    /// `name` stands in the reports.
    pub fn parse(name: &str, text: &str) -> Result<Config, ConfigErrors> {
        Config::from_document(Document::parse(name, text))
    }

    fn from_document(doc: Document) -> Result<Config, ConfigErrors> {
        let config = Config::read(&doc);
        doc.finish(config)
    }

    /// Of a document to which more is said before it is finished.
    pub(crate) fn read(doc: &Document) -> Option<Config> {
        config(doc)
    }

    /// For tests and demonstrations: free ports on loopback, little memory, one shard a platform.
    /// Change its fields as needed.
    pub fn for_tests(dir: &Path, platforms: &[(u32, &str)]) -> Config {
        const MIB: u64 = 1 << 20;
        let platforms = platforms.iter().map(|(code, name)| PlatformConfig {
            issuer: Issuer::new(*code).expect("six digits"),
            name: (*name).to_owned(),
            name_zh: (*name).to_owned(),
            shards: defaults::SHARDS,
            population: defaults::POPULATION,
        });
        let free_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Config {
            identity: IdentityMode::Trial,
            valid_until: None,
            listen_grpc: free_port,
            listen_http: free_port,
            data_dir: dir.to_owned(),
            platforms: platforms.collect(),
            retention: defaults::retention(),
            memory: Memory {
                tail_urgent: 4 * MIB,
                tail_bulk: 8 * MIB,
                queue_urgent: 4 * MIB,
                queue_bulk: 8 * MIB,
                gather: 16 * MIB,
                block_cache: 8 * MIB,
            },
            limits: defaults::limits(),
            overload: defaults::overload(),
            drain_timeout: Duration::from_secs(10),
            trial_marker: None,
            group_bytes: defaults::GROUP_BYTES,
            telemetry: defaults::telemetry(),
            drills: None,
        }
    }

    /// For people, a few lines.
    pub fn summary(&self) -> String {
        let shards: u32 = self.platforms.iter().map(|p| p.shards).sum();
        let Retention { age, bytes } = &self.retention;
        format!(
            "platforms  {} with {shards} shards in all\n\
             listen     gRPC {}, HTTP {}\n\
             data       {}\n\
             retention  {} or {}\n\
             memory     {} in rings, queues and caches",
            self.platforms.len(),
            self.listen_grpc,
            self.listen_http,
            self.data_dir.display(),
            hutong_config::format_duration(*age),
            ByteSize(*bytes),
            ByteSize(self.memory.total()),
        )
    }
}

impl Config {
    /// Of each platform, when room is short.
    pub fn weights(&self) -> HashMap<Issuer, u32> {
        let of = |platform: &PlatformConfig| (platform.issuer, platform.population);
        self.platforms.iter().map(of).collect()
    }
}

/// Reads everything before it gives up on anything: a `?` on the way would hide later mistakes.
fn config(doc: &Document) -> Option<Config> {
    let mut root = doc.root();
    let identity = root.required_as("identity", read::one_of(&[("trial", IdentityMode::Trial)]));
    let valid_until = root.optional_as("valid_until", day::read);
    let (listen_grpc, listen_http) = listen(root.table("listen"), identity);
    let data_dir = root.table("data").required("dir");
    let platforms = platforms(&mut root);
    let retention = retention(root.table("retention"));
    let memory = memory(root.table("memory"));
    let limits = limits_of(root.table("limits"));
    let overload = overload(root.table("overload"));
    let drain_timeout = root.table("drain").with_default_as(
        "timeout",
        defaults::DRAIN_TIMEOUT,
        read::duration(Duration::from_secs(1)..=Duration::from_secs(600)),
    );
    let mut trial = root.table("trial");
    let trial_marker = trial.optional_as("marker", read::text(1..=64));
    trial.finish();
    let group_bytes = root.table("log").with_default_as(
        "group_bytes",
        defaults::GROUP_BYTES,
        read::bytes(ByteSize::kib(64)..=ByteSize::mib(64)),
    );
    let telemetry = telemetry(root.table("telemetry"));
    let drills = root.table("console").optional("drills");
    root.finish();
    Some(Config {
        identity: identity?,
        valid_until,
        listen_grpc,
        listen_http,
        data_dir: data_dir?,
        platforms: platforms?,
        retention,
        memory,
        limits,
        overload,
        drain_timeout,
        trial_marker,
        group_bytes,
        telemetry,
        drills,
    })
}

fn listen(mut table: Table<'_>, identity: Option<IdentityMode>) -> (SocketAddr, SocketAddr) {
    let grpc = table.with_default("grpc", defaults::grpc());
    let http = table.with_default("http", defaults::http());
    // Also when `identity` is wrong or missing: it is the only mode there is.
    if identity.unwrap_or(IdentityMode::Trial) == IdentityMode::Trial {
        for (key, address) in [("grpc", grpc), ("http", http)] {
            if !address.ip().is_loopback() {
                table.fail(
                    key,
                    format!("`listen.{key}` is {address}, which other machines can reach"),
                    "with identity = \"trial\" whoever connects is believed, so listen on \
                     127.0.0.1 or [::1]",
                );
            }
        }
    }
    if grpc == http && grpc.port() != 0 {
        table.fail(
            "http",
            format!("`listen.grpc` and `listen.http` are both {grpc}"),
            "change one",
        );
    }
    (grpc, http)
}

fn platforms(root: &mut Table<'_>) -> Option<Vec<PlatformConfig>> {
    let tables = root.list_of_tables("platforms");
    if tables.is_empty() && !root.has("platforms") {
        let help = "add [[platforms]] with code = 340000 and name = \"Anhui\", once a platform";
        root.fail("platforms", "there are no platforms", help);
    }
    if tables.len() > limits::PLATFORMS_MAX {
        let message = format!("there are {} platforms", tables.len());
        root.fail(
            "platforms",
            message,
            format!("at most {} are possible", limits::PLATFORMS_MAX),
        );
    }
    let mut lines: BTreeMap<Issuer, String> = BTreeMap::new();
    let read: Vec<Option<PlatformConfig>> = tables
        .into_iter()
        .map(|table| platform(table, &mut lines))
        .collect();
    read.into_iter().collect()
}

/// `seen` has the path of the platform that a code stood at first.
fn platform(mut table: Table<'_>, seen: &mut BTreeMap<Issuer, String>) -> Option<PlatformConfig> {
    let issuer = table.required_as("code", code);
    let name = table.required_as("name", read::text(1..=limits::NAME_BYTES_MAX));
    let name_zh = table.optional_as("name_zh", read::text(1..=limits::NAME_BYTES_MAX));
    let shards = table.with_default_as(
        "shards",
        defaults::SHARDS,
        read::integer(1..=limits::SHARDS_MAX),
    );
    let population = table.with_default_as(
        "population",
        defaults::POPULATION,
        read::integer(1..=2_000_000_000),
    );
    if let Some(issuer) = issuer
        && let Some(first) = seen.insert(issuer, table.path().to_owned())
    {
        table.fail(
            "code",
            format!("the code {issuer} stands twice, here and at `{first}`"),
            "each platform has a code of its own; remove one of the two",
        );
    }
    let name = name?;
    Some(PlatformConfig {
        issuer: issuer?,
        name_zh: name_zh.unwrap_or_else(|| name.clone()),
        name,
        shards,
        population,
    })
}

fn code(value: &Value<'_>) -> Option<Issuer> {
    let issuer = value
        .as_integer()
        .and_then(|n| u32::try_from(n).ok())
        .and_then(Issuer::new);
    issuer.or_else(|| {
        value.fail_expected(
            "a code of six digits",
            "write the GB/T 2260 code of the province without quotes, such as 340000 for Anhui",
        )
    })
}

fn retention(mut table: Table<'_>) -> Retention {
    let default = defaults::retention();
    let day = Duration::from_secs(86_400);
    Retention {
        age: table.with_default_as(
            "age",
            default.age,
            read::duration(Duration::from_secs(60)..=3650 * day),
        ),
        bytes: table.with_default_as(
            "bytes",
            default.bytes,
            read::bytes(ByteSize::mib(64)..=ByteSize::gib(1 << 20)),
        ),
    }
}

fn memory(mut table: Table<'_>) -> Memory {
    let default = defaults::memory();
    let mut size = |key, default, low| {
        table.with_default_as(key, default, read::bytes(low..=ByteSize::gib(64)))
    };
    Memory {
        tail_urgent: size("tail_urgent", default.tail_urgent, ONE_BATCH),
        tail_bulk: size("tail_bulk", default.tail_bulk, ONE_BATCH),
        queue_urgent: size("queue_urgent", default.queue_urgent, ONE_BATCH),
        queue_bulk: size("queue_bulk", default.queue_bulk, ONE_BATCH),
        gather: size("gather", default.gather, ByteSize::mib(8)),
        block_cache: size("block_cache", default.block_cache, ByteSize::mib(1)),
    }
}

fn limits_of(mut table: Table<'_>) -> Limits {
    let default = defaults::limits();
    Limits {
        snapshots: table.with_default_as("snapshots", default.snapshots, read::integer(1..=64)),
        connections: table.with_default_as(
            "connections",
            default.connections,
            read::integer(1..=65_536),
        ),
        stall: table.with_default_as(
            "stall",
            default.stall,
            read::duration(Duration::from_secs(1)..=Duration::from_secs(600)),
        ),
    }
}

fn overload(mut table: Table<'_>) -> Policy {
    let default = defaults::overload();
    Policy {
        give_way: table.with_default_as("give_way", default.give_way, give_way),
        delay: table.with_default_as(
            "delay",
            default.delay,
            read::duration(Duration::from_millis(1)..=Duration::from_secs(10)),
        ),
        floor_bytes_per_s: default.floor_bytes_per_s,
    }
}

fn give_way(value: &Value<'_>) -> Option<Vec<GiveWay>> {
    let words = GiveWay::ALL.map(|what| (what.name(), what));
    let order = read::list(read::one_of(&words), 0..=words.len())(value)?;
    let twice = order
        .iter()
        .enumerate()
        .find(|(i, what)| order[..*i].contains(what));
    match twice {
        None => Some(order),
        Some((_, what)) => value.fail(
            format!("`{}` stands twice", what.name()),
            "each gives way once: write the order from first to last",
        ),
    }
}

fn telemetry(mut table: Table<'_>) -> Telemetry {
    let default = defaults::telemetry();
    Telemetry {
        format: table.with_default_as("format", default.format, read::one_of(&LogFormat::WORDS)),
        filter: table.with_default_as("filter", default.filter, filter),
        certificates: table.with_default_as("certificates", default.certificates, certificates),
        otlp: table.optional_as("otlp", otlp),
        slow: table.with_default_as(
            "slow",
            default.slow,
            read::duration(Duration::from_millis(1)..=Duration::from_secs(600)),
        ),
    }
}

/// Without TLS, as everything in trial mode: a collector on this machine.
fn otlp(value: &Value<'_>) -> Option<String> {
    let text = read::text(1..=256)(value)?;
    let uri: Option<http::Uri> = text.parse().ok();
    match uri {
        // A collector of gRPC needs none of it, and this file is shown to who may ask.
        Some(uri)
            if uri.authority().is_some_and(|a| a.as_str().contains('@'))
                || uri.path_and_query().is_some_and(|more| more != "/") =>
        {
            value.fail(
                "the address of a collector has more than a host and a port",
                "leave out users, passwords, paths and what follows a question mark",
            )
        }
        Some(uri) if uri.scheme_str() == Some("http") && uri.port().is_some() => Some(text),
        _ => value.fail_expected(
            "the address of a collector",
            "write it with its port, such as \"http://127.0.0.1:4317\"",
        ),
    }
}

/// Their names are labels, so each has one of its own.
fn certificates(value: &Value<'_>) -> Option<Vec<PathBuf>> {
    let files = read::list(read::text(1..=4096), 0..=CERTIFICATES_MAX)(value)?;
    let files: Vec<PathBuf> = files.into_iter().map(PathBuf::from).collect();
    let names: BTreeSet<_> = files.iter().map(|file| file.file_name()).collect();
    if names.len() < files.len() || names.contains(&None) {
        let help = "give each file a name of its own: metrics and alerts tell them apart by it";
        return value.fail(
            "two certificates have the same file name, or one has none",
            help,
        );
    }
    Some(files)
}

fn filter(value: &Value<'_>) -> Option<String> {
    let filter = read::text(1..=1024)(value)?;
    match logs::check_filter(&filter) {
        Ok(()) => Some(filter),
        Err(error) => value.fail(
            error.to_string(),
            "write a level, or levels of targets: \"info,hutong_broker::fanout=debug\"",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "identity = \"trial\"\n[data]\ndir = \"d\"\n[[platforms]]\ncode = 340000\nname = \"Anhui\"\n";

    fn mistakes(text: &str) -> Vec<(usize, String)> {
        let errors = Config::parse("broker.toml", text).expect_err(text);
        errors.iter().map(|e| (e.line, e.to_string())).collect()
    }

    /// One mistake, on this line, whose message has this text.
    fn check(text: &str, line: usize, message: &str) {
        let found = mistakes(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!(found[0].0, line, "{text}: {found:?}");
        assert!(found[0].1.contains(message), "{text}: {found:?}");
    }

    #[test]
    fn the_smallest_file_gets_the_defaults() {
        let config = Config::parse("broker.toml", SMALLEST).expect("valid");
        assert_eq!(config.listen_grpc, defaults::grpc());
        assert_eq!(config.retention, defaults::retention());
        assert_eq!(config.memory, defaults::memory());
        assert_eq!(config.limits, defaults::limits());
        assert_eq!(config.overload, defaults::overload());
        assert_eq!(config.telemetry, defaults::telemetry());
        assert_eq!(config.drain_timeout, Duration::from_secs(20));
        assert_eq!(config.group_bytes, 4 << 20);
        let anhui = &config.platforms[0];
        assert_eq!((anhui.issuer.code(), anhui.shards), (340_000, 1));
        assert_eq!(anhui.name_zh, "Anhui");
    }

    #[test]
    fn trial_identity_and_an_open_port_do_not_go_together() {
        let with = |listen: &str| format!("{SMALLEST}[listen]\n{listen}\n");
        check(
            &with("grpc = \"0.0.0.0:7400\""),
            8,
            "other machines can reach",
        );
        check(&with("http = \"[::]:7401\""), 8, "other machines can reach");
        check(
            &with("http = \"127.0.0.1:7400\""),
            8,
            "are both 127.0.0.1:7400",
        );
        let good = with("grpc = \"[::1]:0\"\nhttp = \"127.0.0.9:0\"");
        assert!(Config::parse("broker.toml", &good).is_ok());
    }

    #[test]
    fn what_gives_way_is_an_order_without_repetition() {
        let with = |order: &str| format!("{SMALLEST}[overload]\ngive_way = {order}\n");
        let parsed = Config::parse("broker.toml", &with("[\"bulk\", \"catch_up\"]"));
        let order = parsed.expect("valid").overload.give_way;
        assert_eq!(order, [GiveWay::Bulk, GiveWay::CatchUp]);
        assert!(Config::parse("broker.toml", &with("[]")).is_ok());
        check(&with("[\"bulk\", \"bulk\"]"), 8, "`bulk` stands twice");
        check(&with("[\"urgent\"]"), 8, "one of");
        check(&with("\"bulk\""), 8, "a list");
    }

    #[test]
    fn platforms_are_there_once_each_and_not_too_many() {
        let platform = |code: u32| format!("[[platforms]]\ncode = {code}\nname = \"x\"\n");
        check(
            &format!("{SMALLEST}{}", platform(340_000)),
            8,
            "stands twice, here and at `platforms[0]`",
        );
        check(&format!("{SMALLEST}{}", platform(34)), 8, "six digits");
        check(&SMALLEST.replace("340000", "\"340000\""), 5, "six digits");
        let head = "identity = \"trial\"\ndata.dir = \"d\"\n";
        check(head, 1, "there are no platforms");
        let many: String = (0..65).map(|i| platform(100_000 + i)).collect();
        check(&format!("{head}{many}"), 3, "there are 65 platforms");
        check(&format!("{SMALLEST}shards = 65\n"), 7, "from 1 to 64");
        check(&format!("{SMALLEST}shards = 0\n"), 7, "from 1 to 64");
    }

    #[test]
    fn queues_and_rings_hold_at_least_one_batch() {
        for key in ["queue_bulk", "queue_urgent", "tail_bulk", "tail_urgent"] {
            let text = format!("{SMALLEST}[memory]\n{key} = \"3MiB\"\n");
            check(&text, 8, "a size from 4MiB");
        }
    }

    #[test]
    fn a_filter_that_would_silence_the_log_is_refused() {
        check(
            &format!("{SMALLEST}[telemetry]\nfilter = \"inof\"\n"),
            8,
            "inof",
        );
    }

    #[test]
    fn the_configuration_for_tests_is_one_that_a_file_could_say() {
        let config = Config::for_tests(Path::new("d"), &[(340_000, "Anhui"), (510_000, "Sichuan")]);
        let Memory {
            tail_urgent,
            tail_bulk,
            queue_urgent,
            queue_bulk,
            gather,
            block_cache,
        } = config.memory.clone();
        let text = format!(
            "{SMALLEST}[[platforms]]\ncode = 510000\nname = \"Sichuan\"\n\
             [listen]\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n[drain]\ntimeout = \"10s\"\n\
             [memory]\ntail_urgent = {tail_urgent}\ntail_bulk = {tail_bulk}\nqueue_urgent = {queue_urgent}\n\
             queue_bulk = {queue_bulk}\ngather = {gather}\nblock_cache = {block_cache}\n"
        );
        assert_eq!(Config::parse("broker.toml", &text).expect("valid"), config);
    }
}
