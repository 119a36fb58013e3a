//! The state folder of a connector, and files in it that are whole or not there, whatever happens.

use hutong_proto::{Epoch, Micros};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Of the layout of all files here.
const VERSION: u32 = 1;

/// A checkpoint says where to go on; a source that keeps more in it is wrong.
const CHECKPOINT_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {what} {path}: {error}; check its owner, its mode and the free space")]
    Io {
        what: &'static str,
        path: String,
        error: io::Error,
    },
    #[error(
        "{path} is damaged: {why}; restore it, or remove it to read the source from its beginning: what was published already is not newer and changes nothing"
    )]
    Damaged { path: String, why: String },
    #[error(
        "{path} was written by a newer version (layout {found}, this program knows {VERSION}); run that version"
    )]
    Newer { path: String, found: u64 },
    #[error(
        "connector `{name}` runs already, with the state folder {path}; stop it, or give this one another name"
    )]
    Running { name: String, path: String },
}

impl StateError {
    pub(crate) fn io<'a>(
        what: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> StateError + 'a {
        move |error| StateError::Io {
            what,
            path: path.display().to_string(),
            error,
        }
    }
}

/// Where one connector keeps what it must remember: `DIR/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateFolder {
    path: PathBuf,
    name: String,
}

/// Held while a connector runs. The system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct RunLock(#[expect(dead_code, reason = "held, never read")] File);

impl StateFolder {
    pub fn new(dir: &Path, name: &str) -> StateFolder {
        StateFolder {
            path: dir.join(name),
            name: name.to_owned(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the folder, for its owner only: dead letters hold raw rows.
    pub fn create(&self) -> Result<(), StateError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(StateError::io("create", &self.path))
    }

    /// Two processes with one state would publish over each other.
    pub fn lock(&self) -> Result<RunLock, StateError> {
        self.create()?;
        let path = self.file("run.lock");
        let file = open_lock(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(RunLock(file)),
            Err(TryLockError::WouldBlock) => Err(StateError::Running {
                name: self.name.clone(),
                path: self.path.display().to_string(),
            }),
            Err(TryLockError::Error(e)) => Err(StateError::io("lock", &path)(e)),
        }
    }

    /// Does a process run with this state?
    pub fn is_running(&self) -> bool {
        let Ok(file) = File::open(self.file("run.lock")) else {
            return false;
        };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }
}

pub(crate) fn open_lock(path: &Path) -> Result<File, StateError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(StateError::io("open", path))
}

/// Replaces a file: afterwards it has all the new bytes, or, if the machine stopped on the way, all
/// the old ones. With `durable`, it has the new ones also when the power fails right after.
pub(crate) fn replace_file(path: &Path, bytes: &[u8], durable: bool) -> Result<(), StateError> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(StateError::io("write", &temporary))?;
    file.write_all(bytes)
        .map_err(StateError::io("write", &temporary))?;
    if durable {
        file.sync_all()
            .map_err(StateError::io("sync", &temporary))?;
    }
    fs::rename(&temporary, path).map_err(StateError::io("replace", path))?;
    if durable && let Some(folder) = path.parent() {
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(StateError::io("sync", folder))?;
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u64,
    /// Of the kind of source: the checkpoint of one means nothing to another.
    source: String,
    checkpoint: Value,
    /// What was complete with it, by name; files of older versions do not say it.
    #[serde(default)]
    barrier: Option<String>,
    /// Of the broker's log that has all of it; files of older versions do not say it.
    #[serde(default)]
    log_id: Option<String>,
}

/// Where a source stands, and the last thing that is complete there, if it has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stand {
    pub checkpoint: Value,
    pub barrier: Option<String>,
    /// The broker's log that has all of it.
    pub log_id: Option<String>,
}

/// Epochs of one producer, each higher than all before, also when the clock goes back.
#[derive(Clone, Debug)]
pub struct EpochFile {
    path: PathBuf,
}

impl EpochFile {
    /// `producer` is one of several that the connector has.
    pub fn new(folder: &StateFolder, producer: &str) -> EpochFile {
        EpochFile {
            path: folder.file(&format!("epoch.{producer}")),
        }
    }

    /// The next one. It is on disk before anyone hears of it. Blocks.
    ///
    /// At least the time: a state folder that was lost begins above what it had.
    pub fn next(&self, now: Micros) -> Result<Epoch, StateError> {
        let last = match fs::read_to_string(&self.path) {
            Ok(text) => text
                .trim()
                .parse::<u64>()
                .map_err(|e| StateError::Damaged {
                    path: self.path.display().to_string(),
                    why: format!("it holds no number: {e}"),
                })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(StateError::io("read", &self.path)(e)),
        };
        let next = now.0.max(last.saturating_add(1));
        replace_file(&self.path, format!("{next}\n").as_bytes(), true)?;
        Ok(Epoch(next))
    }
}

/// Where the source goes on after a restart.
#[derive(Clone, Debug)]
pub struct CheckpointFile {
    path: PathBuf,
    source: String,
}

impl CheckpointFile {
    pub fn new(folder: &StateFolder, source: &str) -> CheckpointFile {
        CheckpointFile {
            path: folder.file("checkpoint.json"),
            source: source.to_owned(),
        }
    }

    /// `None` before the first one was stored.
    pub fn load(&self) -> Result<Option<Stand>, StateError> {
        let bytes = match fs::metadata(&self.path) {
            Ok(meta) if meta.len() > CHECKPOINT_BYTES_MAX => {
                return Err(self.damaged(format!("it has {} bytes", meta.len())));
            }
            Ok(_) => fs::read(&self.path).map_err(StateError::io("read", &self.path))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(StateError::io("read", &self.path)(e)),
        };
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|e| self.damaged(e.to_string()))?;
        let found = json.get("version").and_then(Value::as_u64).unwrap_or(0);
        if found > u64::from(VERSION) {
            let path = self.path.display().to_string();
            return Err(StateError::Newer { path, found });
        }
        let stored: Stored =
            serde_json::from_value(json).map_err(|e| self.damaged(e.to_string()))?;
        if stored.source != self.source {
            let why = format!(
                "it belongs to a source of type {}, not {}",
                stored.source, self.source
            );
            return Err(self.damaged(why));
        }
        Ok(Some(Stand {
            checkpoint: stored.checkpoint,
            barrier: stored.barrier,
            log_id: stored.log_id,
        }))
    }

    /// Returns when it is on disk. Blocks.
    pub fn store(&self, stand: &Stand) -> Result<(), StateError> {
        let stored = Stored {
            version: u64::from(VERSION),
            source: self.source.clone(),
            checkpoint: stand.checkpoint.clone(),
            barrier: stand.barrier.clone(),
            log_id: stand.log_id.clone(),
        };
        let bytes = serde_json::to_vec(&stored).map_err(|e| self.damaged(e.to_string()))?;
        replace_file(&self.path, &bytes, true)
    }

    fn damaged(&self, why: String) -> StateError {
        StateError::Damaged {
            path: self.path.display().to_string(),
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    fn folder() -> (tempfile::TempDir, StateFolder) {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = StateFolder::new(dir.path(), "anhui");
        folder.create().expect("created");
        (dir, folder)
    }

    fn stand(id: u64) -> Stand {
        Stand {
            checkpoint: json!({ "id": id }),
            barrier: None,
            log_id: None,
        }
    }

    #[test]
    fn a_checkpoint_is_read_back() {
        let (_dir, folder) = folder();
        let file = CheckpointFile::new(&folder, "outbox");
        assert_eq!(file.load().expect("nothing yet"), None);
        for checkpoint in [json!({"id": 17}), json!(null), json!([1, "二"])] {
            for barrier in [None, Some("二.json".to_owned())] {
                let stand = Stand {
                    checkpoint: checkpoint.clone(),
                    barrier,
                    log_id: Some("00000000000000ff".to_owned()),
                };
                file.store(&stand).expect("stored");
                assert_eq!(file.load().expect("loaded"), Some(stand));
            }
        }
        let older = r#"{"version":1,"source":"outbox","checkpoint":{"id":3}}"#;
        fs::write(folder.file("checkpoint.json"), older).expect("written");
        assert_eq!(file.load().expect("loaded"), Some(stand(3)));
    }

    #[test]
    fn epochs_rise_also_when_the_clock_goes_back() {
        let (_dir, folder) = folder();
        let epochs = EpochFile::new(&folder, "anhui");
        let other = EpochFile::new(&folder, "anhui.retry");
        assert_eq!(epochs.next(Micros(1000)).expect("kept"), Epoch(1000));
        assert_eq!(other.next(Micros(500)).expect("kept"), Epoch(500));
        assert_eq!(epochs.next(Micros(700)).expect("kept"), Epoch(1001));
        // Another process, later.
        let epochs = EpochFile::new(&folder, "anhui");
        assert_eq!(epochs.next(Micros(1001)).expect("kept"), Epoch(1002));
        assert_eq!(epochs.next(Micros(5000)).expect("kept"), Epoch(5000));
        fs::write(folder.file("epoch.anhui"), "no number").expect("written");
        let damaged = epochs.next(Micros(6000)).expect_err("damaged");
        assert!(damaged.to_string().contains("epoch.anhui"), "{damaged}");
    }

    #[test]
    fn a_death_while_writing_leaves_the_checkpoint_before() {
        let (_dir, folder) = folder();
        let file = CheckpointFile::new(&folder, "outbox");
        file.store(&stand(17)).expect("stored");
        let whole = fs::read(folder.file("checkpoint.json")).expect("read");
        // What a process that died leaves behind: any part of the next file, under the other name.
        for length in 0..=whole.len() {
            fs::write(folder.file("checkpoint.tmp"), &whole[..length]).expect("written");
            assert_eq!(file.load().expect("loaded"), Some(stand(17)));
        }
        file.store(&stand(18)).expect("stored over the remains");
        assert_eq!(file.load().expect("loaded"), Some(stand(18)));
    }

    #[test]
    fn a_damaged_checkpoint_is_said_and_never_taken_for_a_beginning() {
        let (_dir, folder) = folder();
        let file = CheckpointFile::new(&folder, "outbox");
        file.store(&stand(17)).expect("stored");
        let path = folder.file("checkpoint.json");
        let whole = fs::read(&path).expect("read");
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).expect("written");
            let error = file.load().expect_err("damaged").to_string();
            assert!(error.contains("checkpoint.json is damaged"), "{error}");
        }
        fs::write(&path, r#"{"version":2,"checkpoint":1}"#).expect("written");
        let error = file.load().expect_err("newer").to_string();
        assert!(error.contains("newer version"), "{error}");
        fs::write(&path, &whole).expect("written");
        let other = CheckpointFile::new(&folder, "snapshot-folder");
        let error = other.load().expect_err("of another source").to_string();
        assert!(
            error.contains("belongs to a source of type outbox"),
            "{error}"
        );
    }

    #[test]
    fn one_state_is_for_one_process_and_one_owner() {
        let (_dir, folder) = folder();
        assert!(!folder.is_running());
        let lock = folder.lock().expect("free");
        assert!(folder.is_running());
        let error = folder.lock().expect_err("taken").to_string();
        assert!(error.contains("`anhui` runs already"), "{error}");
        drop(lock);
        assert!(!folder.is_running());
        drop(folder.lock().expect("free again"));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&folder.file("run.lock")), 0o600);
    }
}
