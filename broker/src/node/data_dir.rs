//! The data folder: one broker at a time, a version, and what may not change once there is a log.

use crate::{checkpoint, config::Config, rocks};
use std::{
    fs::{self, File, TryLockError},
    io::Write,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Raised when the layout on disk changes in a way that an older broker cannot read.
const VERSION: u32 = 2;
pub const VERSION_FILE: &str = "VERSION";
const SHARDS_FILE: &str = "SHARDS";
const LOCK_FILE: &str = "LOCK";
/// Where the log is; the shards of its entries are fixed.
const LOG_DIR: &str = "log";

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("cannot use the data folder {dir}: {why}")]
    Io { dir: PathBuf, why: String },
    #[error("another broker uses the data folder {dir}; stop it, or set another `data.dir`")]
    InUse { dir: PathBuf },
    #[error(
        "the data folder {dir} was written by a newer broker (layout {found}, this one knows up to \
         {VERSION}); install that version or a later one"
    )]
    Newer { dir: PathBuf, found: u32 },
    #[error(
        "the folder {dir} is not empty ({found}) and no data folder of the broker; `data.dir` takes a new or \
         an empty one"
    )]
    Foreign { dir: PathBuf, found: String },
    #[error("the file {file} {why}; restore it from a backup")]
    Damaged { file: PathBuf, why: String },
    #[error(
        "the file {file} does not say a layout version; is {dir} really a data folder of the broker?"
    )]
    NotOurs { dir: PathBuf, file: PathBuf },
    #[error(
        "platform {platform} has {stored} shards in the data folder and {configured} in the \
         configuration; the number is fixed once the log exists: set it back to {stored}"
    )]
    ShardsChanged {
        platform: String,
        stored: u32,
        configured: u32,
    },
}

/// Held while the broker runs.
#[derive(Debug)]
pub struct DataDir {
    _lock: File,
}

impl DataDir {
    pub fn open(config: &Config) -> Result<DataDir, DataDirError> {
        let dir = &config.data_dir;
        let io = |error: std::io::Error| DataDirError::Io {
            dir: dir.clone(),
            why: error.to_string(),
        };
        // For its owner only: it holds what is known about people, if under pseudonyms.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io)?;
        rocks::create_folder(dir).map_err(io)?;
        refuse_foreign(dir, io)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join(LOCK_FILE))
            .map_err(io)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => DataDirError::InUse { dir: dir.clone() },
            TryLockError::Error(error) => io(error),
        })?;
        check_version(dir, io)?;
        check_shards(config, io)?;
        // Of a backup that was cut short. One that is being carried away is left alone.
        if let Err(error) = checkpoint::clear(dir) {
            tracing::warn!(%error, "a copy for a backup stays");
        }
        Ok(DataDir { _lock: lock })
    }
}

/// A wrong path must not fill somebody else's folder.
fn refuse_foreign(
    dir: &Path,
    io: impl Fn(std::io::Error) -> DataDirError,
) -> Result<(), DataDirError> {
    if dir.join(VERSION_FILE).exists() {
        return Ok(());
    }
    // `LOCK` and `VERSION.new` are ours, of a start that was killed. A new file system has `lost+found`.
    let ours = [LOCK_FILE, "VERSION.new", "lost+found"];
    for entry in fs::read_dir(dir).map_err(&io)? {
        let name = entry.map_err(&io)?.file_name();
        if !ours.iter().any(|ours| name == *ours) {
            return Err(DataDirError::Foreign {
                dir: dir.to_owned(),
                found: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

fn check_version(
    dir: &Path,
    io: impl Fn(std::io::Error) -> DataDirError,
) -> Result<(), DataDirError> {
    let file = dir.join(VERSION_FILE);
    match fs::read(&file) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let found: u32 = text.trim().parse().map_err(|_| DataDirError::NotOurs {
                dir: dir.to_owned(),
                file,
            })?;
            if found > VERSION {
                let dir = dir.to_owned();
                return Err(DataDirError::Newer { dir, found });
            }
            // Before anything is written in it: from then on an earlier broker would miss what it does not know.
            match found < VERSION {
                true => write_durably(dir, VERSION_FILE, &layout_version()).map_err(io),
                false => Ok(()),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            write_durably(dir, VERSION_FILE, &layout_version()).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

/// Shards decide which partition an entity is in, so they are fixed when a platform is first seen.
fn check_shards(
    config: &Config,
    io: impl Fn(std::io::Error) -> DataDirError,
) -> Result<(), DataDirError> {
    let file = config.data_dir.join(SHARDS_FILE);
    let damaged = |why: &str| DataDirError::Damaged {
        file: file.clone(),
        why: why.to_owned(),
    };
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if config.data_dir.join(LOG_DIR).exists() {
                return Err(damaged("is missing, though there is a log"));
            }
            Vec::new()
        }
        Err(error) => return Err(io(error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut stored: Vec<(String, u32)> = Vec::new();
    for line in text.lines() {
        let entry = line
            .split_once(' ')
            .and_then(|(code, n)| Some((code.to_owned(), n.parse().ok()?)));
        stored.push(entry.ok_or_else(|| damaged("has a line that is no platform and number"))?);
    }
    let before = stored.len();
    for platform in &config.platforms {
        let code = platform.issuer.to_string();
        match stored.iter().find(|(c, _)| *c == code) {
            Some((_, n)) if *n == platform.shards => {}
            Some((_, n)) => {
                return Err(DataDirError::ShardsChanged {
                    platform: code,
                    stored: *n,
                    configured: platform.shards,
                });
            }
            None => stored.push((code, platform.shards)),
        }
    }
    if stored.len() == before {
        return Ok(());
    }
    let text: String = stored
        .iter()
        .map(|(code, n)| format!("{code} {n}\n"))
        .collect();
    write_durably(&config.data_dir, SHARDS_FILE, &text).map_err(io)
}

/// What stands in [`VERSION_FILE`] of a folder that this broker writes.
pub fn layout_version() -> String {
    format!("{VERSION}\n")
}

/// The file is either as before or complete, also after a power cut.
pub fn write_durably(dir: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}
