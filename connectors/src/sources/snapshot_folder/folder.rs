//! The files: which there are, and what each of them is.

use super::{
    list::List,
    risk_levels,
    settings::{Format, Settings},
};
use crate::source::SourceError;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    io::ErrorKind,
    path::Path,
    time::{Duration, SystemTime},
};

/// Far above any list of areas; keeps memory bounded.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Each takes about 2 KB of memory on its way.
const AREAS_MAX: usize = 200_000;
/// A file cannot say a time later than this after now.
const FUTURE_MAX: Duration = Duration::from_secs(24 * 3600);

/// What a file turned out to be.
#[derive(Debug)]
pub(super) enum Examined {
    List {
        list: List,
        sha256: String,
    },
    /// It cannot be read as a list, but it changed only just now.
    BeingWritten,
    Broken(String),
    /// Someone took it away.
    Gone,
}

/// The names that come after `after`, in order, as far as `until`. Other files than `*.json` and
/// those that begin with a dot do not count: a writer can use such names until a file is complete.
pub(super) async fn names(
    settings: &Settings,
    after: &str,
) -> Result<BTreeSet<String>, SourceError> {
    let dir = &settings.dir;
    let failed = |e: std::io::Error| folder_failed(dir, &e);
    let mut entries = tokio::fs::read_dir(dir).await.map_err(failed)?;
    let mut names = BTreeSet::new();
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let read = name.ends_with(".json") && !name.starts_with('.');
        let until = settings.until.as_ref().is_none_or(|until| name <= *until);
        if read && until && name.as_str() > after {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Reads one file.
pub(super) async fn examine(settings: &Settings, name: &str) -> Result<Examined, SourceError> {
    let path = settings.dir.join(name);
    let failed = |e: std::io::Error| match e.kind() {
        ErrorKind::NotFound => Ok(Examined::Gone),
        _ => Err(SourceError::passing(format!(
            "file {} cannot be read: {e}; see to it that this user may read it",
            path.display()
        ))),
    };
    let metadata = match tokio::fs::metadata(&path).await {
        Ok(metadata) => metadata,
        Err(e) => return failed(e),
    };
    if !metadata.is_file() {
        return Ok(Examined::Broken("not a file".into()));
    }
    if metadata.len() > FILE_BYTES_MAX {
        let why = format!("{} bytes, more than {FILE_BYTES_MAX}", metadata.len());
        return Ok(Examined::Broken(why));
    }
    let bytes = match tokio::fs::read(&path).await {
        Ok(bytes) => bytes,
        Err(e) => return failed(e),
    };
    let parsed = match settings.format {
        Format::RiskLevels => risk_levels::parse(name, &bytes).map_err(|e| e.to_string()),
    };
    Ok(
        match parsed.and_then(not_too_many).and_then(not_in_the_future) {
            Ok(list) => Examined::List {
                list,
                sha256: sha256(&bytes),
            },
            Err(_) if is_fresh(&metadata, settings.settle) => Examined::BeingWritten,
            Err(why) => Examined::Broken(why),
        },
    )
}

fn not_too_many(list: List) -> Result<List, String> {
    match list.areas.len() {
        n if n > AREAS_MAX => Err(format!("{n} areas, more than {AREAS_MAX}")),
        _ => Ok(list),
    }
}

/// A future time would make every later revision follow it.
fn not_in_the_future(list: List) -> Result<List, String> {
    match list.at.0 > super::micros_of(SystemTime::now() + FUTURE_MAX).0 {
        true => Err(format!(
            "its time, {} microseconds since 1970, is in the future",
            list.at
        )),
        false => Ok(list),
    }
}

fn is_fresh(metadata: &std::fs::Metadata, settle: Duration) -> bool {
    let age = metadata.modified().ok().and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age < settle)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

fn folder_failed(dir: &Path, e: &std::io::Error) -> SourceError {
    let dir = dir.display();
    match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => SourceError::lasting(format!(
            "{dir} is no folder; make it, or run `hutong-connect init`, or correct `dir`"
        )),
        _ => SourceError::passing(format!("folder {dir} cannot be read: {e}")),
    }
}
