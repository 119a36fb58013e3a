//! A copy of log and state that belong together, made while the broker runs.
//!
//! The state is copied first, the log after it. The log is the truth and the state follows from it, so a log
//! that has more than the state is what every crash leaves: the next start applies the rest. A state that has
//! more than the log would hold effects of records that nobody has, and is refused at the start. Copied in this
//! order, the log can only be ahead.
//!
//! One thing could still come in between: retention may drop records of the log that were in the state on disk by
//! then, but not in the copy of it. That is looked for, and then both are copied anew.

use crate::{
    log::{Log, LogError},
    state::{State, StateError},
};
use hutong_proto::Offset;
use parking_lot::Mutex;
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// In the data folder; on its file system, so that files can be linked.
const FOLDER: &str = "checkpoint";
/// Locked by whoever carries the copy away.
const LOCK_FILE: &str = "LOCK";
/// The folders within, as in the data folder.
pub const LOG: &str = "log";
pub const STATE: &str = "state";
/// Retention works every twenty seconds; a copy takes less.
const TRIES_MAX: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{folder} is being carried away by another backup; wait for its end")]
    InUse { folder: PathBuf },
    #[error("cannot work in {folder}: {why}; look at its rights and at the room on its disk")]
    Io { folder: PathBuf, why: String },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(
        "the log was shortened {TRIES_MAX} times while it was copied; try again, or raise `retention`"
    )]
    Trimmed,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub folder: PathBuf,
    /// Everything below is applied in the copied state; it may have more.
    pub stored: Offset,
    /// Everything below is in the copied log; it may have more.
    pub next: Offset,
}

/// Makes copies in one data folder, one at a time.
#[derive(Debug)]
pub struct Checkpoints {
    data_dir: PathBuf,
    making: Mutex<()>,
}

impl Checkpoints {
    pub fn new(data_dir: &Path) -> Checkpoints {
        Checkpoints {
            data_dir: data_dir.to_owned(),
            making: Mutex::new(()),
        }
    }

    /// Replaces an older copy that nobody carries away. Blocks on the disk; appends go on.
    pub fn create(&self, log: &dyn Log, state: &State) -> Result<Made, CheckpointError> {
        let _making = self.making.lock();
        for _ in 0..TRIES_MAX {
            clear(&self.data_dir)?;
            let folder = begin(&self.data_dir)?;
            let stored = state.checkpoint(&folder.join(STATE))?.next;
            let next = log.next_offset();
            log.checkpoint(&folder.join(LOG))?;
            // Marks only rise, so what is not beyond the state now was not in the copy.
            let trimmed = log.partitions().iter().map(|p| p.trimmed_below).max();
            if trimmed.unwrap_or(Offset::NONE) <= stored {
                return Ok(Made {
                    folder,
                    stored,
                    next,
                });
            }
        }
        Err(CheckpointError::Trimmed)
    }
}

/// An empty folder for a copy, with its lock in it.
fn begin(data_dir: &Path) -> Result<PathBuf, CheckpointError> {
    let folder = data_dir.join(FOLDER);
    let made = fs::create_dir(&folder).and_then(|()| File::create(folder.join(LOCK_FILE)));
    // In full: who carries it away may have been started somewhere else.
    let whole = made.and_then(|_| fs::canonicalize(&folder));
    whole.map_err(failed(&folder))
}

fn failed(folder: &Path) -> impl Fn(io::Error) -> CheckpointError + use<> {
    let folder = folder.to_owned();
    move |error| CheckpointError::Io {
        folder: folder.clone(),
        why: error.to_string(),
    }
}

/// Removes what a backup left.
pub fn clear(data_dir: &Path) -> Result<(), CheckpointError> {
    let folder = data_dir.join(FOLDER);
    if !folder.exists() {
        return Ok(());
    }
    // Held until everything is gone: nobody begins to carry away what is being removed.
    let _held = hold(&folder)?;
    fs::remove_dir_all(&folder).map_err(failed(&folder))
}

/// Keeps others from removing or replacing a copy. One without its lock file was not begun well.
pub fn hold(folder: &Path) -> Result<Option<File>, CheckpointError> {
    let lock = match File::open(folder.join(LOCK_FILE)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(folder)(error)),
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Err(CheckpointError::InUse {
            folder: folder.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(failed(folder)(error)),
    }
}

/// The file names of a copy that belong into a backup.
pub fn folders(folder: &Path) -> [(PathBuf, &'static str); 2] {
    [STATE, LOG].map(|name| (folder.join(name), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_is_carried_away_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = begin(dir.path()).expect("begun");
        let held = hold(&folder).expect("free");
        assert!(held.is_some());
        let error = clear(dir.path()).expect_err("in use");
        assert!(matches!(error, CheckpointError::InUse { .. }), "{error}");
        drop(held);
        clear(dir.path()).expect("free again");
        assert!(!folder.exists());
        clear(dir.path()).expect("nothing to do");
    }
}
