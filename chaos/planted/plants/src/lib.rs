//! Bugs planted on purpose, and the edges of a commit at which a process may crash.
//!
//! A check that has never failed is no check. Each plant stands in the code of the product, at the place
//! where somebody might once make that mistake, and self-tests show that it is noticed. One process has
//! at most one plant: the one that [`plant`] says; until then, in a program of `chaos/planted/programs`, the one
//! that [`VARIABLE`] names when it starts.
//! `chaos/planted` says why nothing of this is in a release.

mod edge;

pub use edge::{EDGE_VARIABLE, Order, Reached};

use edge::Asked;
use parking_lot::RwLock;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
};

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $about:literal])* $value:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[doc = $about])* $value,)* }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$value,)*];

            pub fn name(self) -> &'static str {
                match self { $($name::$value => $text,)* }
            }

            /// In a sentence.
            pub fn about(self) -> &'static str {
                match self { $($name::$value => concat!($($about),*).trim_ascii(),)* }
            }

            pub fn from_name(name: &str) -> Option<$name> {
                $name::ALL.iter().copied().find(|value| value.name() == name)
            }
        }
    };
}

named! {
    /// A mistake, in the order of a delta's way.
    Plant {
        /// Admission lets a delta pass that expires before it was committed.
        AdmitsUnchecked = "admits-unchecked",
        /// Routing changes a byte of what it copies.
        ByteFlipped = "byte-flipped",
        /// The second record of a batch goes to the first one's partition.
        WrongPartition = "wrong-partition",
        /// A producer is told that a batch is durable when it was taken.
        AckBeforeCommit = "ack-before-commit",
        /// A batch counts as durable with its first record.
        AckOfHalf = "ack-of-half",
        /// One batch in eight is never answered.
        WakeUpDropped = "wake-up-dropped",
        /// What is queued before the log has no bound.
        QueueUnbounded = "queue-unbounded",
        /// A producer that opens again is told one batch more than is durable.
        ResumeAhead = "resume-ahead",
        /// A new epoch is known to the broker's memory alone until its first batch is applied.
        EpochInMemory = "epoch-in-memory",
        /// The log answers before it has synced.
        AckBeforeSync = "ack-before-sync",
        /// One sync in four is left out.
        SyncSkipped = "sync-skipped",
        /// A failed sync is tried again, and its success believed.
        SyncRetried = "sync-retried",
        /// The log goes on after a failed write or sync.
        PoisonIgnored = "poison-ignored",
        /// An opened log gives its last offset out again.
        OffsetReused = "offset-reused",
        /// What a power cut tore is not cut off before the log is opened.
        TornEndKept = "torn-end-kept",
        /// Opening cuts off one record more than was torn.
        CutsTooMuch = "cuts-too-much",
        /// A new folder is used before its name is on disk.
        FolderNotSynced = "folder-not-synced",
        /// The two records of a batch are taken for repeats of each other.
        DedupeBySequence = "dedupe-by-sequence",
        /// A batch counts as complete when a later one was seen.
        CompleteIsHighest = "complete-is-highest",
        /// What comes last wins, whatever its revision.
        RevisionIgnored = "revision-ignored",
        /// After a restart every revision is newer than all.
        HighestForgotten = "highest-forgotten",
        /// What apply dropped is not remembered for readers of the log.
        ExceptionForgotten = "exception-forgotten",
        /// State says that it has one record more than it has.
        AppliedAhead = "applied-ahead",
        /// State says that a run is down before it is on disk.
        StateNotSynced = "state-not-synced",
        /// A run that goes down has not the newest values.
        RunWithoutNewest = "run-without-newest",
        /// A list names tables before they are on disk.
        TableNotSynced = "table-not-synced",
        /// Of a register that several runs have, merging keeps the oldest value.
        MergeKeepsOldest = "merge-keeps-oldest",
        /// What is expired is decided by the clock on the wall.
        ExpiryByWallClock = "expiry-by-wall-clock",
        /// A snapshot leaves out what was not written down yet.
        SnapshotWithoutGathered = "snapshot-without-gathered",
        /// The cursor of a snapshot is of its end and not of its beginning.
        SnapshotCursorLate = "snapshot-cursor-late",
        /// A ring does not know that it forgot.
        RingFloorStuck = "ring-floor-stuck",
        /// A stream begins behind its cursor.
        CursorOffByOne = "cursor-off-by-one",
        /// Whoever comes back from the log to the ring leaves out a record.
        RejoinSkips = "rejoin-skips",
        /// A subscriber gets what it has no credit for.
        CreditIgnored = "credit-ignored",
        /// The cursor that is kept is of what was sent, not of what was applied.
        SentIsApplied = "sent-is-applied",
        /// A platform gets its own deltas back.
        EchoSent = "echo-sent",
        /// A record that is wanted in part is sent whole.
        KindsNotCut = "kinds-not-cut",
        /// One delivery in four has not quite what the log has.
        OtherContent = "other-content",
        /// Bulk goes first.
        BulkFirst = "bulk-first",
        /// The publisher takes one batch more for durable than the broker says.
        PublisherForgets = "publisher-forgets",
        /// The subscriber resumes at the last record that it has, and gets it again.
        SubscriberRepeats = "subscriber-repeats",
        /// The sink commits its cursor before its rows.
        SinkCursorApart = "sink-cursor-apart",
        /// The sink of files syncs the mark of a cursor before the lines that it stands for.
        LinesCursorApart = "lines-cursor-apart",
        /// A row's revision is the time of its commit, which two rows can share.
        MappingRevision = "mapping-revision",
        /// A row that is refused is counted, and not kept.
        DeadLetterDropped = "dead-letter-dropped",
        /// A source's checkpoint is stored when its rows were taken, not when they arrived.
        CheckpointBeforeAck = "checkpoint-before-ack",
    }
}

named! {
    /// An edge of a commit.
    Failpoint {
        /// A group is taken, nothing is written: guards against an ack of what is only queued.
        CommitTaken = "commit-taken",
        /// Written, not synced: guards against an ack before the sync.
        CommitWritten = "commit-written",
        /// Synced, not published: guards against offsets that are given out again.
        CommitSynced = "commit-synced",
        /// Told to those who wait, not to the tail: guards against a record that apply never sees.
        CommitTold = "commit-told",
        /// Applied, not visible: guards against half a group.
        ApplyCommitted = "apply-committed",
        /// Visible, nobody was woken: guards against an ack that stands for a state that is not there.
        ApplyVisible = "apply-visible",
        /// A run is a file, not taken in: guards against a file that is found twice.
        RunWritten = "run-written",
        /// Taken in, not dropped from memory: guards against an applied position apart from its rows.
        RunTakenIn = "run-taken-in",
        /// Segments are files, not taken in: guards against rows that are neither here nor there.
        SegmentsWritten = "segments-written",
        /// Taken in, what they replace is still there: guards against what was merged coming back.
        SegmentsTakenIn = "segments-taken-in",
        /// The mark of a trim is written, not synced: guards against a hole that nobody is told of.
        TrimMarked = "trim-marked",
        /// Synced, its files are still there: guards against records that come back.
        TrimSynced = "trim-synced",
        /// A torn end is cut off, the log is not open: guards against a recovery that cannot be repeated.
        RecoveryMended = "recovery-mended",
    }
}

impl Failpoint {
    /// A process comes to it once, when it starts, and to the others as long as it runs.
    pub fn is_of_a_start(self) -> bool {
        self == Failpoint::RecoveryMended
    }
}

/// The environment variable that plants a bug in one of [`PROGRAMS`] from its beginning.
pub const VARIABLE: &str = "HUTONG_PLANT";

/// How the names of those programs begin. Simulations and tests are other programs: a variable that was left in
/// a shell must not plant a bug in what looks for bugs.
const PROGRAMS: &str = "hutong-planted-";

const NONE: u8 = u8::MAX;
/// Nobody has looked at the environment yet.
const UNREAD: u8 = u8::MAX - 1;
static PLANTED: AtomicU8 = AtomicU8::new(UNREAD);
static PASSED: AtomicU64 = AtomicU64::new(0);
static WATCHED: AtomicBool = AtomicBool::new(false);
static WATCHER: RwLock<Option<Watcher>> = RwLock::new(None);
static ASKED: OnceLock<Option<Asked>> = OnceLock::new();

type Watcher = Arc<dyn Fn(Failpoint) + Send + Sync>;

/// Plants a bug, or none, from now on.
pub fn plant(plant: Option<Plant>) {
    PASSED.store(0, Ordering::SeqCst);
    PLANTED.store(plant.map_or(NONE, |plant| plant as u8), Ordering::SeqCst);
}

pub fn is(plant: Plant) -> bool {
    let planted = match PLANTED.load(Ordering::Relaxed) {
        UNREAD => from_environment(),
        planted => planted,
    };
    planted == plant as u8
}

/// A name that is no plant ends the process: a hunt for nothing would find nothing, and prove nothing.
fn from_environment() -> u8 {
    let planted = match std::env::var(VARIABLE) {
        _ if !is_for_drills() => NONE,
        Err(_) => NONE,
        Ok(name) => match Plant::from_name(&name) {
            Some(plant) => plant as u8,
            None => {
                eprintln!(
                    "{VARIABLE}: no plant is called {name:?}; `hutong-chaos plants` names them"
                );
                std::process::exit(2);
            }
        },
    };
    // Whoever planted one meanwhile has said it later.
    match PLANTED.compare_exchange(UNREAD, planted, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => planted,
        Err(now) => now,
    }
}

/// Is this one of [`PROGRAMS`]?
fn is_for_drills() -> bool {
    let own = std::env::current_exe().unwrap_or_default();
    let name = own.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(PROGRAMS)
}

/// Says yes once in so many times, beginning with the last of them.
pub fn once_in(times: u64) -> bool {
    (PASSED.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(times)
}

/// Begins the counting of [`once_in`] anew, so that each run of a simulation is the same.
pub fn restart() {
    PASSED.store(0, Ordering::SeqCst);
}

/// Calls this at each failpoint, in the thread that reaches it.
pub fn watch(watcher: impl Fn(Failpoint) + Send + Sync + 'static) {
    *WATCHER.write() = Some(Arc::new(watcher));
    WATCHED.store(true, Ordering::SeqCst);
}

pub fn reach(point: Failpoint) {
    if WATCHED.load(Ordering::Relaxed) {
        let watcher = WATCHER.read().clone();
        if let Some(watcher) = watcher {
            watcher(point);
        }
    }
    let asked = || Asked::new(std::env::var_os(EDGE_VARIABLE), is_for_drills());
    if let Some(asked) = ASKED.get_or_init(asked) {
        asked.reached(point);
    }
}
