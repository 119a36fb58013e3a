//! The file of one connector: one source or one sink, and where it belongs.

use crate::{
    checkpoint::StateFolder,
    mapping::MappingSettings,
    pseudonym::{Algorithm, PseudonymSettings},
    sinks, sources,
};
use hutong_config::{ByteSize, ConfigErrors, Document, Table, Value, read};
use hutong_proto::{Issuer, Kind, Lane, limits};
use hutong_telemetry::{LogFormat, logs};
use std::{net::SocketAddr, path::Path, path::PathBuf};

/// So that the producers of bulk and of retries have names too: `NAME.bulk`, `NAME.retry`.
const NAME_BYTES_MAX: usize = limits::NAME_BYTES_MAX - ".retry".len();

/// One change in a hundred, where there is somewhere to push to.
const TRACES: f64 = 0.01;

#[derive(Debug)]
pub struct Config {
    pub name: String,
    /// The platform that it speaks for.
    pub identity: Issuer,
    /// Of the broker: `http://127.0.0.1:7400`.
    pub address: String,
    pub state: StateSettings,
    pub work: Work,
    pub telemetry: TelemetrySettings,
}

#[derive(Clone, Debug)]
pub struct StateSettings {
    pub dir: PathBuf,
    pub dead_letters_bytes_max: u64,
}

#[derive(Clone, Debug)]
pub struct TelemetrySettings {
    pub format: LogFormat,
    pub filter: String,
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    pub http: Option<SocketAddr>,
    /// Where spans are pushed by OTLP.
    pub otlp: Option<String>,
    /// The share of a source's changes that is traced.
    pub traces: f64,
}

/// Out of the platform, or into it.
#[derive(Debug)]
pub enum Work {
    Source(Box<SourceWork>),
    Sink(Box<SinkWork>),
}

#[derive(Debug)]
pub struct SourceWork {
    pub settings: SourceSettings,
    pub mapping: MappingSettings,
    pub pseudonym: Option<PseudonymSettings>,
}

#[derive(Debug)]
pub struct SinkWork {
    pub settings: SinkSettings,
    pub subscription: SubscriptionSettings,
}

#[derive(Clone, Debug)]
pub enum SourceSettings {
    SnapshotFolder(sources::snapshot_folder::Settings),
    PostgresOutbox(Box<sources::postgres_outbox::Settings>),
}

#[derive(Clone, Debug)]
pub enum SinkSettings {
    Postgres(Box<sinks::postgres::Settings>),
    JsonLines(sinks::json_lines::Settings),
}

/// What a sink gets. Empty lists mean everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionSettings {
    pub name: String,
    pub kinds: Vec<Kind>,
    pub issuers: Vec<Issuer>,
    pub lanes: Vec<Lane>,
    /// Also what this platform itself has issued.
    pub include_own: bool,
}

#[derive(Clone, Copy)]
enum SourceType {
    SnapshotFolder,
    PostgresOutbox,
}

#[derive(Clone, Copy)]
enum SinkType {
    Postgres,
    JsonLines,
}

impl Config {
    /// Every mistake of the file at once.
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        let doc = Document::load(path)?;
        let config = Config::read(&doc);
        doc.finish(config)
    }

    pub fn parse(name: &str, text: &str) -> Result<Config, ConfigErrors> {
        let doc = Document::parse(name, text);
        let config = Config::read(&doc);
        doc.finish(config)
    }

    fn read(doc: &Document) -> Option<Config> {
        let mut root = doc.root();
        let name = root.required_as("name", name);
        let identity = root.required_as("identity", identity);
        let address = root.table("broker").required_as("address", address);
        let state = state(&mut root.table("state"));
        let telemetry = telemetry(&mut root.table("telemetry"));
        let is_sink = root.has("sink");
        let work = match (root.has("source"), is_sink) {
            (true, true) => {
                let message = "a connector has a source or a sink, not both";
                root.fail("sink", message, "write a second file with another `name`");
                // Read anyway, for the mistakes in it.
                drop(sink(&mut root, name.as_deref()));
                source(&mut root)
            }
            (_, true) => sink(&mut root, name.as_deref()),
            (_, false) => source(&mut root),
        };
        Some(Config {
            name: name?,
            identity: identity?,
            address: address?,
            state: state?,
            work: work?,
            telemetry,
        })
    }

    /// Where it keeps what it must remember.
    pub fn folder(&self) -> StateFolder {
        StateFolder::new(&self.state.dir, &self.name)
    }
}

fn name(value: &Value<'_>) -> Option<String> {
    let name = read::text(1..=NAME_BYTES_MAX)(value)?;
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    if name.bytes().all(allowed) && !name.starts_with('.') {
        return Some(name);
    }
    let help = "write a-z, 0-9, dot, underscore and hyphen, such as \"anhui-codes\"";
    value.fail_expected("a name", help)
}

fn identity(value: &Value<'_>) -> Option<Issuer> {
    let code = value
        .as_str()
        .and_then(|text| text.strip_prefix("platform/"));
    code.and_then(|code| code.parse().ok()).or_else(|| {
        let help = "write \"platform/\" and its six-digit code, such as \"platform/340000\"";
        value.fail_expected("a platform", help)
    })
}

fn address(value: &Value<'_>) -> Option<String> {
    let help = "write it with its port, such as \"http://127.0.0.1:7400\"";
    let text = value.as_str().unwrap_or_default();
    let uri: Option<tonic::transport::Uri> = text.parse().ok();
    match uri {
        Some(uri)
            if uri.scheme_str() == Some("http")
                && uri.port().is_some()
                && matches!(uri.path(), "" | "/") =>
        {
            Some(text.trim_end_matches('/').to_owned())
        }
        _ => value.fail_expected("the address of a broker", help),
    }
}

fn state(table: &mut Table<'_>) -> Option<StateSettings> {
    let dir = table.required("dir");
    let range = ByteSize::kib(64)..=ByteSize::gib(4);
    let default = ByteSize::mib(64).0;
    let dead_letters_bytes_max = table.with_default_as("dead_letters", default, read::bytes(range));
    Some(StateSettings {
        dir: dir?,
        dead_letters_bytes_max,
    })
}

fn telemetry(table: &mut Table<'_>) -> TelemetrySettings {
    let format = read::one_of(&LogFormat::WORDS);
    let filter = table.optional_as("filter", |value| {
        let filter = read::text(1..=1024)(value)?;
        match logs::check_filter(&filter) {
            Ok(()) => Some(filter),
            Err(e) => value.fail(
                e.to_string(),
                "write \"info\", or \"info,hutong_connectors=debug\"",
            ),
        }
    });
    TelemetrySettings {
        format: table.with_default_as("format", LogFormat::Text, format),
        filter: filter.unwrap_or_else(|| "info".to_owned()),
        http: table.optional("http"),
        otlp: table.optional_as("otlp", address),
        traces: table.with_default_as("traces", TRACES, share),
    }
}

fn share(value: &Value<'_>) -> Option<f64> {
    let share = value.as_number();
    share
        .filter(|share| (0.0..=1.0).contains(share))
        .or_else(|| {
            value.fail_expected(
                "a share",
                "write a number from 0 to 1, such as 0.01 for one change in a hundred",
            )
        })
}

fn source(root: &mut Table<'_>) -> Option<Work> {
    let mut table = root.table("source");
    let types = [
        ("snapshot-folder", SourceType::SnapshotFolder),
        ("postgres-outbox", SourceType::PostgresOutbox),
    ];
    let kind = table.required_as("type", read::one_of(&types));
    let settings = match kind {
        Some(SourceType::SnapshotFolder) => {
            sources::snapshot_folder::Settings::read(&mut table).map(SourceSettings::SnapshotFolder)
        }
        Some(SourceType::PostgresOutbox) => {
            let settings = sources::postgres_outbox::Settings::read(&mut table);
            settings.map(|s| SourceSettings::PostgresOutbox(Box::new(s)))
        }
        None => {
            // Whose keys the others are is not known.
            drop(table.entries());
            None
        }
    };
    table.finish();
    let mapping = MappingSettings::read(root);
    let pseudonym = root
        .optional_table("pseudonym")
        .map(|mut t| pseudonym(&mut t));
    let takes_id_numbers = mapping
        .as_ref()
        .is_some_and(MappingSettings::takes_id_numbers);
    if takes_id_numbers && pseudonym.is_none() {
        root.fail(
            "mapping",
            "an ID number never leaves the connector, and there is no key to make a pseudonym of it",
            "add [pseudonym] with key_file and epoch",
        );
    }
    let pseudonym = match pseudonym {
        None => None,
        Some(read) => Some(read?),
    };
    Some(Work::Source(Box::new(SourceWork {
        settings: settings?,
        mapping: mapping?,
        pseudonym,
    })))
}

fn pseudonym(table: &mut Table<'_>) -> Option<PseudonymSettings> {
    let algorithm = read::one_of(&Algorithm::WORDS);
    let algorithm = table.with_default_as("algorithm", Algorithm::HmacSm3, algorithm);
    let key_file = table.required("key_file");
    let epoch = table.required_as("epoch", read::integer(1..=u8::MAX));
    Some(PseudonymSettings {
        algorithm,
        key_file: key_file?,
        epoch: epoch?,
    })
}

fn sink(root: &mut Table<'_>, name: Option<&str>) -> Option<Work> {
    let mut table = root.table("sink");
    let types = [
        ("postgres", SinkType::Postgres),
        ("json-lines", SinkType::JsonLines),
    ];
    let kind = table.required_as("type", read::one_of(&types));
    let settings = match kind {
        Some(SinkType::Postgres) => {
            let settings = sinks::postgres::Settings::read(&mut table);
            settings.map(|s| SinkSettings::Postgres(Box::new(s)))
        }
        Some(SinkType::JsonLines) => {
            sinks::json_lines::Settings::read(&mut table).map(SinkSettings::JsonLines)
        }
        None => {
            drop(table.entries());
            None
        }
    };
    table.finish();
    let subscription = subscription(&mut root.table("subscription"), name);
    Some(Work::Sink(Box::new(SinkWork {
        settings: settings?,
        subscription: subscription?,
    })))
}

fn subscription(table: &mut Table<'_>, connector: Option<&str>) -> Option<SubscriptionSettings> {
    const VALUES: std::ops::RangeInclusive<usize> = 1..=limits::FILTER_VALUES_MAX;
    let kinds = Kind::ALL.map(|kind| (kind.name(), kind));
    let lanes = Lane::DELIVERED.map(|lane| (lane.name(), lane));
    let issuer = read::parsed("a six-digit code of a platform");
    let given = table.optional_as("name", name);
    let kinds = table.optional_as("kinds", read::list(read::one_of(&kinds), VALUES));
    let issuers = table.optional_as("issuers", read::list(issuer, VALUES));
    let lanes = table.optional_as("lanes", read::list(read::one_of(&lanes), VALUES));
    let include_own = table.with_default("include_own", false);
    Some(SubscriptionSettings {
        name: given.or_else(|| connector.map(str::to_owned))?,
        kinds: kinds.unwrap_or_default(),
        issuers: issuers.unwrap_or_default(),
        lanes: lanes.unwrap_or_default(),
        include_own,
    })
}
