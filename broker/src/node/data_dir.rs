//! The data folder: one broker at a time, a version, and what may not change once there is a log.

use crate::config::Config;
use std::{
    fs::{self, File, TryLockError},
    io::Write,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// Raised when the layout on disk changes in a way that an older broker cannot read.
const VERSION: u32 = 1;
const VERSION_FILE: &str = "VERSION";
const SHARDS_FILE: &str = "SHARDS";

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
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("LOCK"))
            .map_err(io)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => DataDirError::InUse { dir: dir.clone() },
            TryLockError::Error(error) => io(error),
        })?;
        check_version(dir, io)?;
        check_shards(config, io)?;
        Ok(DataDir { _lock: lock })
    }
}

fn check_version(
    dir: &Path,
    io: impl Fn(std::io::Error) -> DataDirError,
) -> Result<(), DataDirError> {
    let file = dir.join(VERSION_FILE);
    match fs::read_to_string(&file) {
        Ok(text) => {
            let found: u32 = text.trim().parse().map_err(|_| DataDirError::NotOurs {
                dir: dir.to_owned(),
                file,
            })?;
            if found > VERSION {
                let dir = dir.to_owned();
                return Err(DataDirError::Newer { dir, found });
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            write_durably(dir, VERSION_FILE, &format!("{VERSION}\n")).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

/// Shards decide which partition an entity is in, so they are fixed when a platform is first seen.
fn check_shards(
    config: &Config,
    io: impl Fn(std::io::Error) -> DataDirError,
) -> Result<(), DataDirError> {
    let text = match fs::read_to_string(config.data_dir.join(SHARDS_FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(io(error)),
    };
    let mut stored: Vec<(String, u32)> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(code, n)| Some((code.to_owned(), n.parse().ok()?)))
        .collect();
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

/// The file is either as before or complete, also after a power cut.
fn write_durably(dir: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}
