//! Reading a drill's file. Every mistake is reported, each with its line.

use crate::drill::{
    Clients, Direction, Drill, Fault, Hypothesis, Rollback, STEADY_AFTER, Stop, Surge, What,
    Workload,
};
use hutong_config::{ByteSize, Document, Table, Value, read};
use hutong_plants::Failpoint;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
const LAG_MAX: Duration = Duration::from_secs(600);
/// Before the first fault there must be a steady state to compare with.
const STEADY_MIN: Duration = Duration::from_secs(3);
/// The broker takes no smaller ones: a batch must fit.
const RINGS_MIN: ByteSize = ByteSize::mib(4);

/// What holds for what a file leaves out.
mod defaults {
    use super::{ByteSize, Duration};

    pub const URGENT_LAG: Duration = Duration::from_secs(1);
    pub const BULK_LAG: Duration = Duration::from_secs(3);
    pub const RECOVERY: Duration = Duration::from_secs(10);
    pub const MEMORY: ByteSize = ByteSize::mib(600);
    pub const PLATFORMS: usize = 8;
    pub const RATE: f64 = 2000.0;
    pub const URGENT: f64 = 0.1;
    pub const PEOPLE: u64 = 500;
    pub const STOP_URGENT_LAG: Duration = Duration::from_secs(120);
    pub const STOP_MEMORY: ByteSize = ByteSize::gib(2);
    pub const STOP_DISK_FREE: ByteSize = ByteSize::gib(1);
    pub const ROLLBACK: Duration = Duration::from_secs(60);
}

pub fn drill(doc: &Document) -> Option<Drill> {
    let mut root = doc.root();
    let name = root.required_as("name", name);
    let title = root.required_as("title", read::text(1..=120));
    let title_zh = root.required_as("title_zh", read::text(1..=240));
    let why = root.required_as("why", read::text(1..=1000));
    let why_zh = root.required_as("why_zh", read::text(1..=2000));
    let duration = root.required_as("duration", read::duration(5 * SECOND..=DURATION_MAX));
    let hypothesis = hypothesis(root.table("hypothesis"));
    let workload = workload(root.table("workload"), duration);
    let stop = stop(root.table("stop"));
    let mut rollback = root.table("rollback");
    let timeout = rollback.with_default_as(
        "timeout",
        defaults::ROLLBACK,
        read::duration(SECOND..=LAG_MAX),
    );
    rollback.finish();
    if !root.has("faults") {
        root.fail(
            "faults",
            "nothing is broken in this drill",
            "add [[faults]] with kind = \"kill-broker\", at = \"8s\" and for = \"2s\"",
        );
    }
    let seen = Seen {
        duration,
        recovery: hypothesis.recovery,
        sink: workload.sink,
    };
    let mut tables = root.list_of_tables("faults");
    let faults: Vec<Option<Fault>> = (tables.iter_mut())
        .map(|table| fault(table, &seen))
        .collect();
    together(&tables, &faults);
    drop(tables);
    root.finish();
    let name = name?;
    Some(Drill {
        name,
        title: title?,
        title_zh: title_zh?,
        why: why?,
        why_zh: why_zh?,
        duration: duration?,
        hypothesis,
        workload,
        faults: faults.into_iter().collect::<Option<_>>()?,
        stop,
        rollback: Rollback { timeout },
        file: doc.name().to_owned(),
        text: doc.text().to_owned(),
    })
}

fn name(value: &Value<'_>) -> Option<String> {
    let name = read::text(1..=48)(value)?;
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match name.chars().all(fits) {
        true => Some(name),
        false => value.fail_expected("a name of a-z, 0-9 and -", "it names files: kill-broker"),
    }
}

fn hypothesis(mut table: Table<'_>) -> Hypothesis {
    let lag = || read::duration(Duration::from_millis(10)..=LAG_MAX);
    Hypothesis {
        urgent_lag: table.with_default_as("urgent_lag", defaults::URGENT_LAG, lag()),
        bulk_lag: table.with_default_as("bulk_lag", defaults::BULK_LAG, lag()),
        urgent_lag_during: table.optional_as("urgent_lag_during", lag()),
        recovery: table.with_default_as("recovery", defaults::RECOVERY, lag()),
        memory: table.with_default_as(
            "memory",
            defaults::MEMORY.0,
            read::bytes(ByteSize::mib(16)..=ByteSize::gib(1024)),
        ),
        fail_stop: table.with_default("fail_stop", false),
        refuses_to_start: table.with_default("refuses_to_start", false),
    }
}

fn workload(mut table: Table<'_>, duration: Option<Duration>) -> Workload {
    let surge = table.optional_table("surge").and_then(|mut table| {
        let at = table.required_as("at", read::duration(Duration::ZERO..=DURATION_MAX));
        let lasting = table.required_as("for", read::duration(SECOND / 10..=DURATION_MAX));
        let factor = table.required_as("factor", number(1.0, 1000.0));
        ends_in_time(&table, at, lasting, duration);
        Some(Surge {
            at: at?,
            lasting: lasting?,
            factor: factor?,
        })
    });
    let sink = table.with_default("sink", false);
    let risk_levels = table.with_default("risk_levels", false);
    if risk_levels && !sink {
        table.fail(
            "risk_levels",
            "there is no sink whose table could be compared with the lists",
            "write `sink = true` beside it",
        );
    }
    Workload {
        platforms: table.with_default_as("platforms", defaults::PLATFORMS, |value: &Value<'_>| {
            read::integer(2..=32u32)(value).map(|n| n as usize)
        }),
        rate: table.with_default_as("rate", defaults::RATE, number(1.0, 1e6)),
        urgent: table.with_default_as("urgent", defaults::URGENT, number(0.001, 1.0)),
        people: table.with_default_as("people", defaults::PEOPLE, read::integer(1..=1_000_000u64)),
        rings: table.optional_as("rings", read::bytes(RINGS_MIN..=ByteSize::gib(64))),
        sink,
        risk_levels,
        surge,
    }
}

fn stop(mut table: Table<'_>) -> Stop {
    let size = || read::bytes(ByteSize::mib(1)..=ByteSize::gib(1 << 20));
    Stop {
        urgent_lag: table.with_default_as(
            "urgent_lag",
            defaults::STOP_URGENT_LAG,
            read::duration(SECOND..=DURATION_MAX),
        ),
        memory: table.with_default_as("memory", defaults::STOP_MEMORY.0, size()),
        disk_free: table.with_default_as("disk_free", defaults::STOP_DISK_FREE.0, size()),
    }
}

fn number(low: f64, high: f64) -> impl Fn(&Value<'_>) -> Option<f64> {
    move |value| match value.as_number() {
        Some(n) if n >= low && n <= high => Some(n),
        _ => value.fail_expected(&format!("a number from {low} to {high}"), ""),
    }
}

/// What begins in the load must end in it: afterwards nobody would see the recovery. When it ends, if in
/// time.
fn ends_in_time(
    table: &Table<'_>,
    at: Option<Duration>,
    lasting: Option<Duration>,
    duration: Option<Duration>,
) -> Option<Duration> {
    let (at, lasting, duration) = (at?, lasting?, duration?);
    if at + lasting > duration {
        table.fail(
            "for",
            format!(
                "it ends {} s after the load",
                (at + lasting - duration).as_secs_f64()
            ),
            "end it before `duration`, so that the recovery is seen",
        );
        return None;
    }
    Some(at + lasting)
}

/// What else a file says that a fault must fit.
struct Seen {
    duration: Option<Duration>,
    recovery: Duration,
    sink: bool,
}

/// The bounds hold again when the time for a recovery is over: something must be due by then.
fn leaves_time(table: &Table<'_>, ends: Option<Duration>, seen: &Seen) {
    if let (Some(ends), Some(duration)) = (ends, seen.duration) {
        let needed = ends + seen.recovery + STEADY_AFTER;
        if needed > duration {
            table.fail(
                "for",
                format!(
                    "its recovery may take until {} s, and the load is over at {} s: nothing would be left \
                     to measure",
                    (ends + seen.recovery).as_secs_f64(),
                    duration.as_secs_f64()
                ),
                format!(
                    "write a `duration` of \"{}s\" or more, or promise a shorter `recovery`",
                    needed.as_secs_f64().ceil()
                ),
            );
        }
    }
}

/// Two faults that need the same thing for themselves cannot be there at one time.
fn together(tables: &[Table<'_>], faults: &[Option<Fault>]) {
    for (i, later) in faults.iter().enumerate() {
        for earlier in &faults[..i] {
            let (Some(a), Some(b)) = (earlier, later) else {
                continue;
            };
            let overlap = a.at < b.at + b.lasting && b.at < a.at + a.lasting;
            if let (true, Some(claim)) = (overlap, a.what.claim())
                && b.what.claim() == Some(claim)
            {
                tables[i].fail(
                    "at",
                    format!(
                        "`{}` and `{}` both need {} for themselves",
                        a.what.name(),
                        b.what.name(),
                        claim.words()
                    ),
                    "let one end before the other begins",
                );
            }
        }
    }
}

const KINDS: [&str; 27] = [
    "kill-broker",
    "crash-at-sync",
    "crash-at-edge",
    "pause-broker",
    "kill-connector",
    "crash-postgres",
    "partition",
    "latency",
    "loss",
    "bandwidth",
    "drop-packets",
    "reconnect-storm",
    "disk-full",
    "sync-error",
    "slow-sync",
    "power-loss",
    "torn-tail",
    "flipped-byte",
    "read-only",
    "clock-step",
    "memory-squeeze",
    "cpu-squeeze",
    "stalled-subscriber",
    "zero-window",
    "poison",
    "flood",
    "reload-expired",
];

fn fault(table: &mut Table<'_>, seen: &Seen) -> Option<Fault> {
    let words = KINDS.map(|kind| (kind, kind));
    let kind = table.required_as("kind", read::one_of(&words));
    let at = table.required_as("at", read::duration(Duration::ZERO..=DURATION_MAX));
    let lasting = table.required_as("for", read::duration(SECOND / 10..=DURATION_MAX));
    if at.is_some_and(|at| at < STEADY_MIN) {
        table.fail(
            "at",
            "no steady state was seen before it",
            format!("begin at \"{}s\" or later", STEADY_MIN.as_secs()),
        );
    }
    let ends = ends_in_time(table, at, lasting, seen.duration);
    leaves_time(table, ends, seen);
    let Some(kind) = kind else {
        // Which keys belong to it is not known either.
        table.entries();
        return None;
    };
    let what = what(table, kind);
    if what.as_ref().is_some_and(What::needs_sink) && !seen.sink {
        table.fail(
            "kind",
            "there is no sink to do this to",
            "write `sink = true` under [workload]",
        );
    }
    Some(Fault {
        at: at?,
        lasting: lasting?,
        what: what?,
    })
}

fn clients(table: &mut Table<'_>) -> Clients {
    table.with_default_as("clients", Clients::All, read::one_of(&Clients::WORDS))
}

fn direction(table: &mut Table<'_>) -> Direction {
    table.with_default_as(
        "direction",
        Direction::Both,
        read::one_of(&Direction::WORDS),
    )
}

fn count(table: &mut Table<'_>) -> usize {
    table.with_default_as("count", 1, |value: &Value<'_>| {
        read::integer(1..=8u32)(value).map(|n| n as usize)
    })
}

fn edge(table: &mut Table<'_>) -> Option<What> {
    let words: Vec<_> = Failpoint::ALL.iter().map(|e| (e.name(), *e)).collect();
    let edge = table.required_as("edge", read::one_of(&words));
    let nth = table.with_default_as("nth", 1, read::integer(1..=1_000_000u32));
    let edge = edge?;
    if nth > 1 && edge.is_of_a_start() {
        table.fail(
            "nth",
            "a broker comes to this edge once, when it starts",
            "leave it out",
        );
    }
    Some(What::CrashAtEdge { edge, nth })
}

fn what(table: &mut Table<'_>, kind: &str) -> Option<What> {
    let time = |low: Duration| read::duration(low..=Duration::from_secs(3600));
    let size = |low: ByteSize| read::bytes(low..=ByteSize::gib(64));
    let ms = Duration::from_millis(1);
    Some(match kind {
        "kill-broker" => What::KillBroker,
        "crash-at-sync" => What::CrashAtSync {
            sync: table.with_default_as("sync", 50, read::integer(1..=100_000u32)),
        },
        "crash-at-edge" => edge(table)?,
        "pause-broker" => What::PauseBroker,
        "kill-connector" => What::KillConnector,
        "crash-postgres" => What::CrashPostgres,
        "partition" => What::Partition {
            clients: clients(table),
            direction: direction(table),
        },
        "latency" => {
            let clients = clients(table);
            let delay = table.required_as("delay", time(ms));
            What::Latency {
                clients,
                jitter: table.with_default_as("jitter", Duration::ZERO, time(Duration::ZERO)),
                delay: delay?,
            }
        }
        "loss" => {
            let clients = clients(table);
            let percent = table.required_as("percent", number(0.1, 90.0));
            What::Loss {
                clients,
                percent: percent?,
            }
        }
        "bandwidth" => {
            let clients = clients(table);
            let bytes_per_s = table.required_as("bytes_per_s", size(ByteSize::kib(1)));
            What::Bandwidth {
                clients,
                bytes_per_s: bytes_per_s?,
            }
        }
        "drop-packets" => What::DropPackets {
            direction: direction(table),
            percent: table.with_default_as("percent", 100, read::integer(1..=100u32)),
        },
        "reconnect-storm" => What::ReconnectStorm,
        "disk-full" => What::DiskFull,
        "sync-error" => What::SyncError,
        "slow-sync" => {
            let delay = table.required_as("delay", time(ms));
            What::SlowSync { delay: delay? }
        }
        "power-loss" => What::PowerLoss,
        "torn-tail" => What::TornTail,
        "flipped-byte" => What::FlippedByte,
        "read-only" => What::ReadOnly,
        "clock-step" => {
            let by = table.required_as("by", read::duration(SECOND..=3650 * 24 * 3600 * SECOND));
            What::ClockStep {
                back: table.with_default("back", false),
                by: by?,
            }
        }
        "memory-squeeze" => {
            let limit = table.required_as("limit", size(ByteSize::mib(16)));
            What::MemorySqueeze { limit: limit? }
        }
        "cpu-squeeze" => {
            let cores = table.required_as("cores", number(0.02, 64.0));
            What::CpuSqueeze { cores: cores? }
        }
        "stalled-subscriber" => What::StalledSubscriber {
            count: count(table),
        },
        "zero-window" => What::ZeroWindow {
            count: count(table),
        },
        "poison" => What::Poison {
            per_s: table.with_default_as("per_s", 20.0, number(0.1, 10_000.0)),
        },
        "flood" => {
            let rate = table.required_as("rate", number(100.0, 1e6));
            What::Flood { rate: rate? }
        }
        _ => What::ReloadExpired,
    })
}
