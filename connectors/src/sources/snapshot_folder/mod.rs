//! A folder where full lists are dropped as files.
//!
//! Files are read in the order of their names. What one list says that the list before it did not
//! becomes rows; areas that are listed no more become level `cleared`. A row has the fields `level`,
//! `path` (a list), `type`, `area_name` and `file`. A file that arrives after one with a greater name was
//! read is out of date, and is left alone.
//!
//! **Revisions** come from the files alone: the time that a file says, in microseconds, or one more
//! than the file before it, whichever is greater. So the same files give the same revisions, however
//! often the source starts anew, and a register's revision rises from file to file.
//!
//! **Start again**: the checkpoint names the last list; it is read again from the folder, so it has to stay
//! there, unchanged, until the next one was read.
//!
//! **Bad files** clear nothing. One that cannot be read as a list becomes a row that no mapping
//! accepts (see [`Settings::settle`] for files that are being written), so it is found among the
//! dead letters, and the next file is compared with the last good one. One in which suspiciously much
//! vanishes is held: the source does not go past it until a later file looks like the last good
//! one again, or someone removes the file or names it in `accept_shrink`.

mod folder;
mod list;
mod risk_levels;
mod settings;
mod watch;

pub use risk_levels::{RiskLevelsError, parse_risk_levels};
pub use settings::{CommittedAt, Format, Settings};

use crate::source::{Source, SourceBatch, SourceError, SourceRow};
use folder::Examined;
use hutong_proto::{Micros, Revision};
use list::{List, Stamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::Notify;

/// How often a file that is being written is looked at.
const WRITING_POLL: Duration = Duration::from_millis(50);
/// How many files after a suspicious one may show that it was an exception.
const LOOK_AHEAD_FILES_MAX: usize = 16;

/// Where the source stands, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checkpoint {
    /// The last list; `None` before the first.
    base: Option<Base>,
    /// The last file that was dealt with, good or not.
    after: String,
    /// Of the last list.
    revision: u64,
    /// As they were configured: another choice would leave areas behind.
    provinces: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base {
    file: String,
    sha256: String,
}

/// See the module.
pub struct SnapshotFolder {
    settings: Settings,
    at: Checkpoint,
    /// What `at.base` says.
    base: Option<List>,
    /// Files after `at.after`, as the folder was last seen.
    pending: BTreeSet<String>,
    changed: Arc<Notify>,
    /// Lives as long as this is in use.
    watcher: Option<notify::RecommendedWatcher>,
}

impl fmt::Debug for SnapshotFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotFolder")
            .field("settings", &self.settings)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl SnapshotFolder {
    pub fn new(settings: Settings) -> SnapshotFolder {
        SnapshotFolder {
            settings,
            at: Checkpoint::default(),
            base: None,
            pending: BTreeSet::new(),
            changed: Arc::default(),
            watcher: None,
        }
    }

    /// Puts the source where it was, with the list that it stood at.
    async fn resume(&mut self, value: Value) -> Result<(), SourceError> {
        let at: Checkpoint = serde_json::from_value(value).map_err(|e| {
            SourceError::lasting(format!(
                "this checkpoint is not of a snapshot folder: {e}; if the kind of source was changed, \
                 remove the checkpoint"
            ))
        })?;
        if at.provinces != self.settings.provinces {
            return Err(SourceError::lasting(format!(
                "`province` was {:?} and is {:?}: areas would be left behind; set it back, or remove the \
                 checkpoint to read the folder again from its first file",
                at.provinces, self.settings.provinces
            )));
        }
        self.base = match &at.base {
            Some(base) => Some(self.read_base(base).await?),
            None => None,
        };
        self.at = at;
        Ok(())
    }

    async fn read_base(&self, base: &Base) -> Result<List, SourceError> {
        let (dir, file) = (self.settings.dir.display(), &base.file);
        let what = match folder::examine(&self.settings, file).await? {
            Examined::List { list, sha256 } if sha256 == base.sha256 => return Ok(list),
            Examined::Gone => "is gone from",
            _ => "was changed in",
        };
        Err(SourceError::lasting(format!(
            "{file}, the last list that was read, {what} {dir}: without it nobody can tell what a newer list \
             changes. Put the file back as it was. If that cannot be, remove the checkpoint: then the \
             folder is read again from its first file, which repeats what was sent and does no harm, but \
             areas that only the lost list had stay as they are until they are listed again"
        )))
    }

    fn watch(&mut self) {
        if !self.settings.notify || self.settings.once || self.watcher.is_some() {
            return;
        }
        match watch::watch(&self.settings.dir, Arc::clone(&self.changed)) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => tracing::warn!(
                dir = %self.settings.dir.display(), %error,
                "changes of the folder are not announced: it is only looked at now and then"
            ),
        }
    }

    async fn wait(&self) {
        if self.settings.once {
            tracing::info!(dir = %self.settings.dir.display(), "that was the last file");
            return std::future::pending().await;
        }
        // Time out or not: then the folder is looked at.
        drop(tokio::time::timeout(self.settings.poll, self.changed.notified()).await);
    }

    /// Why this list has to be looked at by someone, unless they did.
    fn suspicion(&self, name: &str, list: &List) -> Option<String> {
        let accepted = self.settings.accept_shrink.iter().any(|file| file == name);
        let base = self.base.as_ref().filter(|_| !accepted)?;
        base.shrinks(list, self.settings.shrink_max)
    }

    /// Is one of the files after `name` like the last good one again?
    async fn later_file_is_fine(&self, name: &str) -> Result<bool, SourceError> {
        let later = folder::names(&self.settings, name).await?;
        for later in later.iter().take(LOOK_AHEAD_FILES_MAX) {
            if let Examined::List { list, .. } = folder::examine(&self.settings, later).await?
                && self.suspicion(later, &list).is_none()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn held(&self, name: &str, why: &str) -> SourceError {
        let base = self.at.base.as_ref().map_or("", |b| b.file.as_str());
        SourceError::passing(format!(
            "file {name} is held, nothing was cleared: {why} since {base}. Look at it. If it is right, set \
             accept_shrink = \"{name}\"; if it is wrong, remove it from {}",
            self.settings.dir.display()
        ))
    }

    /// Goes past a file without a list.
    fn refuse(&mut self, name: String, why: &str) -> SourceBatch {
        tracing::warn!(
            file = name,
            why,
            "a file is refused, nothing is cleared because of it"
        );
        let stamp = Stamp {
            file: &name,
            revision: Revision(self.at.revision.max(1)),
            committed_at: micros_of(SystemTime::now()),
            provinces: &[],
        };
        let rows = vec![list::refused(stamp, why)];
        self.at.after = name;
        self.batch(rows, None)
    }

    /// Goes on to this list.
    fn accept(&mut self, name: String, list: List, sha256: String) -> SourceBatch {
        let revision = list.at.0.max(self.at.revision + 1);
        let committed_at = match self.settings.committed_at {
            CommittedAt::File => list.at,
            CommittedAt::Now => micros_of(SystemTime::now()),
        };
        let stamp = Stamp {
            file: &name,
            revision: Revision(revision),
            committed_at,
            provinces: &self.settings.provinces,
        };
        let rows = list.differences(self.base.as_ref(), stamp);
        self.base = Some(list);
        self.at = Checkpoint {
            base: Some(Base {
                file: name.clone(),
                sha256,
            }),
            after: name.clone(),
            revision,
            provinces: self.settings.provinces.clone(),
        };
        self.batch(rows, Some(name))
    }

    fn batch(&self, rows: Vec<SourceRow>, barrier: Option<String>) -> SourceBatch {
        SourceBatch {
            rows,
            checkpoint: serde_json::to_value(&self.at).expect("strings and numbers"),
            barrier,
        }
    }
}

impl Source for SnapshotFolder {
    fn name(&self) -> &'static str {
        "snapshot-folder"
    }

    async fn init(&mut self) -> Result<Vec<String>, SourceError> {
        let dir = &self.settings.dir;
        if dir.is_dir() {
            return Ok(vec![format!("folder {} is there", dir.display())]);
        }
        tokio::fs::create_dir_all(dir).await.map_err(|e| {
            SourceError::lasting(format!("folder {} cannot be made: {e}", dir.display()))
        })?;
        Ok(vec![format!("folder {} made", dir.display())])
    }

    async fn start(&mut self, checkpoint: Option<Value>) -> Result<(), SourceError> {
        self.pending.clear();
        match checkpoint {
            Some(checkpoint) => self.resume(checkpoint).await?,
            None => {
                self.base = None;
                self.at = Checkpoint {
                    provinces: self.settings.provinces.clone(),
                    ..Checkpoint::default()
                };
            }
        }
        // Tells a folder that is not there.
        folder::names(&self.settings, &self.at.after).await?;
        self.watch();
        Ok(())
    }

    /// Cancel-safe: nothing of `self` that matters changes before the last await.
    async fn next(&mut self) -> Result<SourceBatch, SourceError> {
        loop {
            let Some(name) = self.pending.first().cloned() else {
                self.pending = folder::names(&self.settings, &self.at.after).await?;
                if self.pending.is_empty() {
                    self.wait().await;
                }
                continue;
            };
            match folder::examine(&self.settings, &name).await? {
                Examined::BeingWritten => {
                    tokio::time::sleep(WRITING_POLL.min(self.settings.settle)).await;
                    continue;
                }
                Examined::Gone => {
                    self.pending.pop_first();
                }
                Examined::Broken(why) => {
                    self.pending.pop_first();
                    return Ok(self.refuse(name, &why));
                }
                Examined::List { list, sha256 } => {
                    if let Some(why) = self.suspicion(&name, &list) {
                        if !self.later_file_is_fine(&name).await? {
                            return Err(self.held(&name, &why));
                        }
                        self.pending.pop_first();
                        let why = format!("{why}, and the files after it have them again");
                        return Ok(self.refuse(name, &why));
                    }
                    self.pending.pop_first();
                    return Ok(self.accept(name, list, sha256));
                }
            }
        }
    }

    async fn acknowledged(&mut self, _checkpoint: &Value) -> Result<(), SourceError> {
        Ok(())
    }

    async fn sample(&mut self, rows: usize) -> Result<Vec<SourceRow>, SourceError> {
        for name in folder::names(&self.settings, "").await? {
            let Examined::List { list, .. } = folder::examine(&self.settings, &name).await? else {
                continue;
            };
            let stamp = Stamp {
                file: &name,
                revision: Revision(list.at.0),
                committed_at: list.at,
                provinces: &self.settings.provinces,
            };
            let mut sample = list.differences(None, stamp);
            sample.truncate(rows);
            if !sample.is_empty() {
                return Ok(sample);
            }
        }
        Ok(Vec::new())
    }
}

fn micros_of(time: SystemTime) -> Micros {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
