//! The configuration of a running broker, with its defaults, as a file that it would take.

use super::{Config, IdentityMode, Limits, Memory, PlatformConfig, Retention, Telemetry};
use crate::overload::Policy;
use hutong_config::{ByteSize, format_duration};
use hutong_telemetry::LogFormat;
use std::{path::Path, time::Duration};
use toml::{Table, Value};

impl Config {
    /// As TOML. Comments and the order of the file it was read from are gone. Nothing in it is secret.
    pub fn to_toml(&self) -> String {
        table(self).to_string()
    }
}

// Each takes its structure apart, so that nothing new is left out.

fn table(config: &Config) -> Table {
    let Config {
        identity,
        valid_until,
        listen_grpc,
        listen_http,
        data_dir,
        platforms,
        retention,
        memory,
        limits,
        overload,
        drain_timeout,
        trial_marker,
        group_bytes,
        telemetry,
        drills,
    } = config;
    let identity = match identity {
        IdentityMode::Trial => "trial",
    };
    let mut root = of([("identity", text(identity))]);
    if let Some(day) = valid_until {
        root.insert("valid_until".to_owned(), text(day));
    }
    let listen = of([("grpc", text(listen_grpc)), ("http", text(listen_http))]);
    let sections = [
        ("listen", listen),
        ("data", of([("dir", path(data_dir))])),
        ("retention", retention_of(retention)),
        ("memory", memory_of(memory)),
        ("limits", limits_of(limits)),
        ("overload", overload_of(overload)),
        ("drain", of([("timeout", duration(*drain_timeout))])),
        ("log", of([("group_bytes", bytes(*group_bytes))])),
        ("telemetry", telemetry_of(telemetry)),
    ];
    for (name, section) in sections {
        root.insert(name.to_owned(), Value::Table(section));
    }
    let marker = trial_marker.as_ref().map(text);
    let drills = drills.as_deref().map(path);
    for (section, key, value) in [("trial", "marker", marker), ("console", "drills", drills)] {
        if let Some(value) = value {
            root.insert(section.to_owned(), Value::Table(of([(key, value)])));
        }
    }
    let platforms = platforms.iter().map(platform).collect();
    root.insert("platforms".to_owned(), Value::Array(platforms));
    root
}

fn platform(platform: &PlatformConfig) -> Value {
    let PlatformConfig {
        issuer,
        name,
        name_zh,
        shards,
        population,
    } = platform;
    Value::Table(of([
        ("code", integer(issuer.code())),
        ("name", text(name)),
        ("name_zh", text(name_zh)),
        ("shards", integer(*shards)),
        ("population", integer(*population)),
    ]))
}

fn retention_of(retention: &Retention) -> Table {
    let Retention { age, bytes: size } = retention;
    of([("age", duration(*age)), ("bytes", bytes(*size))])
}

fn memory_of(memory: &Memory) -> Table {
    let Memory {
        tail_urgent,
        tail_bulk,
        queue_urgent,
        queue_bulk,
        gather,
        block_cache,
    } = memory;
    of([
        ("tail_urgent", bytes(*tail_urgent)),
        ("tail_bulk", bytes(*tail_bulk)),
        ("queue_urgent", bytes(*queue_urgent)),
        ("queue_bulk", bytes(*queue_bulk)),
        ("gather", bytes(*gather)),
        ("block_cache", bytes(*block_cache)),
    ])
}

fn limits_of(limits: &Limits) -> Table {
    let Limits {
        snapshots,
        connections,
        stall,
    } = limits;
    of([
        ("snapshots", integer(*snapshots)),
        ("connections", integer(*connections)),
        ("stall", duration(*stall)),
    ])
}

fn overload_of(overload: &Policy) -> Table {
    let Policy {
        give_way,
        delay,
        // No file sets it.
        floor_bytes_per_s: _,
    } = overload;
    let give_way = give_way.iter().map(|what| text(what.name())).collect();
    of([
        ("give_way", Value::Array(give_way)),
        ("delay", duration(*delay)),
    ])
}

fn telemetry_of(telemetry: &Telemetry) -> Table {
    let Telemetry {
        format,
        filter,
        certificates,
        otlp,
        slow,
    } = telemetry;
    let mut words = LogFormat::WORDS.into_iter();
    let format = words.find(|(_, of)| of == format).map(|(word, _)| word);
    let certificates = certificates.iter().map(|file| path(file)).collect();
    let mut table = of([
        ("format", text(format.unwrap_or_default())),
        ("filter", text(filter)),
        ("certificates", Value::Array(certificates)),
        ("slow", duration(*slow)),
    ]);
    if let Some(otlp) = otlp {
        table.insert("otlp".to_owned(), text(otlp));
    }
    table
}

fn of<const N: usize>(pairs: [(&str, Value); N]) -> Table {
    let pairs = pairs.into_iter();
    pairs.map(|(key, value)| (key.to_owned(), value)).collect()
}

fn text(value: impl ToString) -> Value {
    Value::String(value.to_string())
}

fn path(path: &Path) -> Value {
    text(path.display())
}

fn bytes(n: u64) -> Value {
    text(ByteSize(n))
}

fn duration(duration: Duration) -> Value {
    text(format_duration(duration))
}

fn integer(n: u32) -> Value {
    Value::Integer(n.into())
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    /// What is shown is read again as the same.
    fn check(text: &str) {
        let config = Config::parse("broker.toml", text).expect("valid");
        let shown = config.to_toml();
        let again = Config::parse("shown", &shown).unwrap_or_else(|e| panic!("{shown}\n{e}"));
        assert_eq!(again, config, "{shown}");
    }

    #[test]
    fn the_example_is_shown_as_a_file_with_the_same_meaning() {
        check(include_str!("../../../deploy/broker.toml"));
    }

    #[test]
    fn everything_that_a_file_can_set_is_shown() {
        check(
            "identity = \"trial\"\nvalid_until = \"2030-01-31\"\n\
             listen = { grpc = \"127.0.0.1:0\", http = \"[::1]:0\" }\n\
             [data]\ndir = \"d\"\n\
             [retention]\nage = \"90m\"\nbytes = \"65MiB\"\n\
             [memory]\ntail_urgent = \"5MiB\"\ntail_bulk = \"6MiB\"\nqueue_urgent = \"7MiB\"\n\
             queue_bulk = \"8MiB\"\ngather = \"9MiB\"\nblock_cache = \"10MiB\"\n\
             [limits]\nsnapshots = 2\nconnections = 3\nstall = \"4s\"\n\
             [overload]\ngive_way = [\"bulk\", \"catch_up\"]\ndelay = \"7ms\"\n\
             [drain]\ntimeout = \"3s\"\n[log]\ngroup_bytes = \"128KiB\"\n[trial]\nmarker = \"m\"\n\
             [telemetry]\nformat = \"json\"\nfilter = \"warn\"\ncertificates = [\"a.pem\", \"b.pem\"]\n\
             otlp = \"http://127.0.0.1:4317\"\nslow = \"1500ms\"\n[console]\ndrills = \"drills\"\n\
             [[platforms]]\ncode = 340000\nname = \"Anhui\"\nname_zh = \"安徽\"\nshards = 4\npopulation = 5\n\
             [[platforms]]\ncode = 510000\nname = \"Sichuan\"\n",
        );
    }

    /// What is shown to who may ask has no secret, because no file has.
    #[test]
    fn an_address_of_a_collector_is_a_host_and_a_port_and_no_more() {
        let with = |otlp: &str| {
            let text = format!(
                "identity = \"trial\"\n[data]\ndir = \"d\"\n[telemetry]\notlp = \"{otlp}\"\n\
                 [[platforms]]\ncode = 340000\nname = \"Anhui\"\n"
            );
            Config::parse("broker.toml", &text)
        };
        for plain in ["http://127.0.0.1:4317", "http://collector:4317/"] {
            assert!(with(plain).is_ok(), "{plain}");
        }
        for more in [
            "http://user:word@h:4317",
            "http://h:4317/?token=x",
            "http://h:4317/x",
        ] {
            let why = with(more).expect_err(more).to_string();
            assert!(why.contains("more than a host and a port"), "{why}");
        }
    }
}
