//! What a connector is doing, since when, and why: for people (`hutong-connect status`), for health
//! checks and for metrics.

use crate::checkpoint::{StateError, StateFolder, replace_file};
use hutong_proto::Micros;
use hutong_telemetry::catalogue::Label;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::watch;

const VERSION: u32 = 1;

/// Of what there is no room for.
const OTHER_REASON: &str = "OTHER";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Connecting.
    Starting,
    /// Everything that is there goes over, before the changes.
    Snapshotting,
    Running,
    /// Something is wrong that can pass; it is tried again.
    Degraded,
    /// Stopped; someone has to change something.
    Failed,
}

impl State {
    pub const ALL: [State; 5] = [
        State::Starting,
        State::Snapshotting,
        State::Running,
        State::Degraded,
        State::Failed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "STARTING",
            State::Snapshotting => "SNAPSHOTTING",
            State::Running => "RUNNING",
            State::Degraded => "DEGRADED",
            State::Failed => "FAILED",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Counts since the process started, unless it says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Rows that the source gave.
    pub rows_read: u64,
    /// Deltas that the broker has durably accepted.
    pub deltas_accepted: u64,
    /// Deltas that the broker had already, or newer: repeats after a restart.
    pub deltas_not_newer: u64,
    /// Rows refused by the mapping or the broker; they are among the dead letters.
    pub rows_refused: u64,
    /// Deltas that the sink has durably applied.
    pub deltas_applied: u64,
    /// Snapshots that were begun.
    pub snapshots: u64,
    /// How often it began again after trouble.
    pub restarts: u64,
    /// How often the connection to the broker was made again.
    pub reconnects: u64,
    /// Rows that became dead letters, by reason.
    #[serde(default)]
    pub dead_letters_added: BTreeMap<String, u64>,
    /// Letters in the file now.
    pub dead_letters: u64,
    /// Size of that file now.
    pub dead_letters_bytes: u64,
    /// Batches on the way to the broker now.
    pub batches_in_flight: u64,
    /// Seconds that batches waited because the broker took no more.
    #[serde(default)]
    pub held_back_seconds: f64,
    /// How far a sink is behind now.
    pub lag_seconds: f64,
}

impl Counts {
    /// So many rows became dead letters. Reasons are those of two catalogues; a broker that knows more than we do
    /// must not make the list long.
    pub fn dead_letter(&mut self, reason: &str, rows: u64) {
        let known = &mut self.dead_letters_added;
        let room = known.len() + 1 < Label::Reason.values_max();
        let reason = match room || known.contains_key(reason) {
            true => reason,
            false => OTHER_REASON,
        };
        *known.entry(reason.to_owned()).or_default() += rows;
    }
}

/// As it stands in `status.json`. Names no person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: u32,
    pub connector: String,
    pub state: State,
    /// Empty when there is nothing to say.
    pub reason: String,
    /// In this state.
    pub since_us: u64,
    /// When this was written down.
    pub updated_us: u64,
    pub process_id: u32,
    /// What is complete up to here, such as a file.
    pub barrier: Option<String>,
    #[serde(flatten)]
    pub counts: Counts,
}

/// Shared by who works and who reports.
#[derive(Clone, Debug)]
pub struct Board {
    status: Arc<Mutex<Status>>,
    /// The state alone, for those who wait for it.
    changed: watch::Sender<State>,
}

impl Board {
    pub fn new(connector: &str) -> Board {
        let status = Status {
            version: VERSION,
            connector: connector.to_owned(),
            state: State::Starting,
            reason: String::new(),
            since_us: now().0,
            updated_us: now().0,
            process_id: std::process::id(),
            barrier: None,
            counts: Counts::default(),
        };
        Board {
            changed: watch::Sender::new(status.state),
            status: Arc::new(Mutex::new(status)),
        }
    }

    /// Enters a state, or says a new reason for it.
    pub fn set(&self, state: State, reason: impl Into<String>) {
        let reason = reason.into();
        let mut status = self.lock();
        if status.state == state && status.reason == reason {
            return;
        }
        if status.state != state {
            status.since_us = now().0;
            let connector = &status.connector;
            match state {
                State::Failed => tracing::error!(connector, state = %state, reason),
                State::Degraded => tracing::warn!(connector, state = %state, reason),
                _ => tracing::info!(connector, state = %state, reason),
            }
        }
        status.state = state;
        status.reason = reason;
        drop(status);
        self.changed.send_replace(state);
    }

    pub fn state(&self) -> State {
        self.lock().state
    }

    /// Something became complete.
    pub fn barrier(&self, name: String) {
        self.lock().barrier = Some(name);
    }

    pub fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock().counts);
    }

    pub fn status(&self) -> Status {
        let mut status = self.lock().clone();
        status.updated_us = now().0;
        status
    }

    /// Wakes when the state was set; the value is the state.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        // Whoever panicked had no half of a change here.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `status.json` of a state folder.
#[derive(Clone, Debug)]
pub struct StatusFile(StateFolder);

impl StatusFile {
    pub fn new(folder: &StateFolder) -> StatusFile {
        StatusFile(folder.clone())
    }

    /// Not synced: after a power failure nobody asks what was running before.
    pub fn write(&self, status: &Status) -> Result<(), StateError> {
        let path = self.0.file("status.json");
        let bytes = serde_json::to_vec_pretty(status).map_err(|e| StateError::Damaged {
            path: path.display().to_string(),
            why: e.to_string(),
        })?;
        replace_file(&path, &bytes, false)
    }

    /// `None` when it never ran.
    pub fn read(&self) -> Result<Option<Status>, StateError> {
        let path = self.0.file("status.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StateError::io("read", &path)(e)),
        };
        let status = serde_json::from_slice(&bytes).map_err(|e| StateError::Damaged {
            path: path.display().to_string(),
            why: e.to_string(),
        })?;
        Ok(Some(status))
    }
}

/// The wall clock: for people and for the times in dead letters. Nothing is decided by it.
pub fn now() -> Micros {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_nobody_knows_are_counted_together() {
        let mut counts = Counts::default();
        for n in 0..1000 {
            counts.dead_letter(&format!("REASON_{n}"), 1);
        }
        assert_eq!(counts.dead_letters_added.len(), Label::Reason.values_max());
        assert_eq!(counts.dead_letters_added.values().sum::<u64>(), 1000);
    }

    #[test]
    fn a_new_reason_does_not_make_the_state_newer() {
        let board = Board::new("anhui");
        assert_eq!(board.state(), State::Starting);
        board.set(State::Degraded, "no connection");
        let since = board.status().since_us;
        board.set(State::Degraded, "still none");
        assert_eq!(board.status().since_us, since);
        assert_eq!(board.status().reason, "still none");
        let mut watch = board.watch();
        board.set(State::Running, "");
        assert!(watch.has_changed().expect("the board lives"));
        assert_eq!(*watch.borrow_and_update(), State::Running);
    }

    #[test]
    fn the_status_is_read_back_by_another_process() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = StateFolder::new(dir.path(), "anhui");
        folder.create().expect("created");
        let file = StatusFile::new(&folder);
        assert_eq!(file.read().expect("nothing yet"), None);
        let board = Board::new("anhui");
        board.set(State::Failed, "the disk is full");
        board.barrier("b.json".to_owned());
        board.count(|counts| counts.rows_read += 3);
        let status = board.status();
        file.write(&status).expect("written");
        assert_eq!(file.read().expect("read"), Some(status));
        let text = fs::read_to_string(folder.file("status.json")).expect("read");
        assert!(text.contains("\"state\": \"FAILED\""), "{text}");
        assert!(text.contains("\"rows_read\": 3"), "{text}");
    }
}
