//! What the clients of a drill saw, as they saw it: one JSON object a line, written outside the broker.
//! A verdict is a function of this file alone, so an old one can be judged again.
//!
//! Every operation ends ok, failed or unknown. Unknown is what got no answer: it may appear once, or
//! never.

mod reader;
mod writer;

pub use reader::{FaultSeen, FaultTimes, History, Item, Op, Subscription, Table, read};
pub use writer::Writer;

use crate::{drill::Loading, text::Text};
use serde::{Deserialize, Serialize};

/// Of the file. A reader refuses what it does not know.
pub const VERSION: u32 = 2;

/// A line: microseconds since the drill began, and what happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    pub t: u64,
    pub e: Event,
}

/// Which of a platform's producers: each has revisions of its own, from 1 without gaps, and registers
/// that no other has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Colours.
    Urgent,
    /// Negative results.
    Bulk,
    /// Vaccinations, as many as a fault asks for.
    Flood,
}

impl Stream {
    pub const ALL: [Stream; 3] = [Stream::Urgent, Stream::Bulk, Stream::Flood];

    pub fn name(self) -> &'static str {
        match self {
            Stream::Urgent => "urgent",
            Stream::Bulk => "bulk",
            Stream::Flood => "flood",
        }
    }
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    Ok,
    /// For certain without effect.
    Failed,
    /// It may have had its effect, or not.
    Unknown,
}

/// What a subscription is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Of a platform, from before the load until the end.
    Live,
    /// One that a fault keeps from reading for a while.
    Slow,
    /// Opened after the load: a snapshot, and what follows.
    Snapshot,
    /// Opened after the load: the whole log, read again from its beginning.
    Log,
}

/// A record as a subscriber got it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub offset: u64,
    pub issuer: u32,
    pub stream: Stream,
    /// By the broker's clock; microseconds since the Unix epoch.
    pub durable_at: u64,
    /// First revision and count, of each stretch without gaps, in the order of the record.
    pub runs: Vec<(u64, u32)>,
    /// Over the content of all deltas, in order.
    pub digest: u32,
}

/// A register in a snapshot or a table: issuer, stream and revision say which, as a revision belongs to
/// one register.
pub type Row = (u32, Stream, u64);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    pub urgent: u64,
    pub bulk: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The first line.
    Header(Box<Header>),
    /// Deltas `first..first + count` of a producer are handed over; they were due at `due`.
    Publish {
        op: u64,
        issuer: u32,
        stream: Stream,
        first: u64,
        count: u32,
        due: u64,
    },
    /// A batch that must be refused is handed over; `good` of its deltas are not at fault.
    Poison {
        op: u64,
        issuer: u32,
        what: String,
        bad: u32,
    },
    /// What became of it. `refused`: index in the batch, and the reason.
    End {
        op: u64,
        how: How,
        accepted: u32,
        duplicate: bool,
        refused: Vec<(u32, String)>,
        error: Option<String>,
    },
    /// A subscription begins to exist; `sub` stands for it from here on.
    Subscription {
        sub: u32,
        platform: u32,
        name: String,
        role: Role,
    },
    /// It stands at this cursor, and everything from there must come.
    Opened {
        sub: u32,
        cursor: Cursor,
    },
    SnapshotBegin {
        sub: u32,
    },
    Rows {
        sub: u32,
        rows: Vec<Row>,
        digest: u32,
    },
    SnapshotEnd {
        sub: u32,
        cursor: Cursor,
    },
    Got {
        sub: u32,
        records: Vec<Record>,
    },
    /// Deltas that no client of this drill can have made.
    Alien {
        sub: u32,
        offset: u64,
        what: String,
    },
    /// Opened after the load, and read up to where the log ended.
    Audited {
        sub: u32,
    },
    /// The line broke and came up again.
    Reconnected {
        sub: u32,
    },
    /// The client library gave up; the text says why.
    ClientEnded {
        who: String,
        error: String,
    },
    /// The rows of a sink and its cursor, read in one transaction. `bad`: rows whose content is not
    /// what their revision says.
    Table {
        sink: String,
        cursor: Option<Cursor>,
        rows: Vec<Row>,
        bad: u32,
    },
    /// In the end.
    Areas(AreasCompared),
    Process {
        name: String,
        what: Life,
    },
    Fault {
        index: usize,
        phase: Phase,
    },
    /// What the broker's process takes.
    Sample {
        memory: u64,
        cpu_ms: u64,
    },
    /// The clients run: written four times a second, whatever the broker does.
    Beat,
    /// The load is over. All that follows is healing and looking.
    LoadEnded,
    /// Every live subscription has all that was acknowledged.
    Converged,
    /// A stop condition of the drill was met.
    Stopped {
        why: Text,
    },
    /// The last line of a drill that ended by itself.
    Done,
}

/// The last of so many lists of risk areas, beside the sink's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AreasCompared {
    pub lists: u64,
    /// Areas of the last list.
    pub listed: u64,
    pub different: u64,
    /// Some of the differences.
    pub told: Vec<AreaDiffers>,
}

/// An area, and its level in the list and in the table, where it is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AreaDiffers {
    pub area: String,
    pub listed: Option<String>,
    pub found: Option<String>,
}

/// Of a process that the drill runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    Started {
        pid: u32,
    },
    Ready,
    Exited {
        code: Option<i32>,
        signal: Option<i32>,
    },
}

/// Of a fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It is about to be done.
    Begin,
    /// It is done.
    Active,
    /// It is about to be undone: from here on things may get well.
    Healing,
    /// It is undone. `proof` says how one can tell that it happened; without one it did not. It is what
    /// the injector did or the kernel saw, never what the broker made of it.
    Undone { proof: Vec<Proof> },
    /// What it hit stands again, and did this about it.
    Ended { reactions: Vec<Reaction> },
    /// What it hit did not come back in the time for rolling back.
    NotBack { why: Text },
    /// It could not be done; nothing of it is left.
    Failed { why: Text },
    /// It could not be undone, so what it hit is kept down.
    Stuck { why: Text },
}

impl Phase {
    /// Nothing comes of the fault after it.
    pub fn is_last(&self) -> bool {
        matches!(
            self,
            Phase::Ended { .. }
                | Phase::NotBack { .. }
                | Phase::Failed { .. }
                | Phase::Stuck { .. }
        )
    }
}

/// A thing measured that shows that a fault happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    pub what: String,
    pub what_zh: String,
    pub seen: Text,
    /// Does it show it?
    pub holds: bool,
}

impl Proof {
    pub fn new(what: &str, what_zh: &str, seen: impl Into<Text>, holds: bool) -> Proof {
        Proof {
            what: what.to_owned(),
            what_zh: what_zh.to_owned(),
            seen: seen.into(),
            holds,
        }
    }
}

/// What somebody had to do about a fault, and whether it was done: for the judge, as a promise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reaction {
    pub what: String,
    pub what_zh: String,
    pub bound: Text,
    pub seen: Text,
    pub kept: bool,
}

impl Reaction {
    pub fn new(
        what: &str,
        what_zh: &str,
        bound: impl Into<Text>,
        seen: impl Into<Text>,
        kept: bool,
    ) -> Self {
        Reaction {
            what: what.to_owned(),
            what_zh: what_zh.to_owned(),
            bound: bound.into(),
            seen: seen.into(),
            kept,
        }
    }
}

/// Everything that a judge needs besides the events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub version: u32,
    pub seed: u64,
    /// Time of day of the start, microseconds since the Unix epoch.
    pub wall_us: u64,
    /// What the drill's file says.
    pub drill: String,
    pub drill_file: String,
    /// What the command line says in its place, in microseconds and deltas a second.
    pub duration_us: Option<u64>,
    pub rate: Option<f64>,
    /// The edge of a commit at which the broker dies, and how often it comes there before.
    #[serde(default)]
    pub edge: Option<String>,
    #[serde(default)]
    pub nth: Option<u32>,
    /// Whether its surge is another one than the file says.
    #[serde(default)]
    pub load: Option<Loading>,
    pub platforms: Vec<u32>,
    pub observer: u32,
    pub commit: String,
    pub machine: String,
    /// The broker's configuration, as it was given.
    pub broker: String,
    /// The marker of the deployment that it was played on, when the broker was not our own.
    #[serde(default)]
    pub trial: Option<String>,
    /// Its address, and the command that killed it.
    #[serde(default)]
    pub trial_at: Option<String>,
    #[serde(default)]
    pub kill_with: Option<String>,
    /// The bug that was planted in the programs, to see it caught.
    #[serde(default)]
    pub plant: Option<String>,
}
