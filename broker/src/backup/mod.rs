//! Backups: `hutong-broker backup` carries a checkpoint out of the data folder, `restore` makes a data folder of
//! it again.
//!
//! A backup is a folder with the files, and a manifest that names each with its size and SHA-256; it is written
//! last, so what has no manifest is no backup. Restoring reads every byte, compares, opens log and state as a
//! start would, and only then makes the folder one that a broker takes.
//!
//! What was acknowledged after the backup is lost by restoring it, but subscribers may have got it, with offsets
//! that the restored log would give out again. A cursor would then pass over records that were never seen. So the
//! restored log goes on far beyond any offset of its first life, with a record that says so. Its id stays, and
//! every cursor resumes.

mod manifest;

use crate::{
    checkpoint::{self, CheckpointError, Checkpoints, LOG, STATE},
    clock::Clock,
    config::Config,
    control::ControlWriter,
    log::{Log, LogError, ReadError, embedded::EmbeddedLog, embedded::EmbeddedOptions},
    node::{self, DataDir, DataDirError},
    state::{State, StateError, StateOptions},
};
use hutong_proto::{
    Micros, Offset, Refusal, api, api::admin_service_client::AdminServiceClient,
    api::control_record::Act, metadata,
};
use manifest::{Manifest, copy_hashed};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tonic::{Request, Status, transport::Endpoint};

/// Of the data folder, beside log and state.
const FILES: [&str; 2] = [node::VERSION_FILE, "SHARDS"];
/// Within the folder of a backup.
const DATA: &str = "data";
const IDENTITY: &str = "operator/backup";
/// More records than a log gets between two backups: a million a second for twelve days.
const SKIPPED_OFFSETS: u64 = 1 << 40;
/// The broker flushes what is in memory and links files.
const CHECKPOINT_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("the folder {dir} is not empty; name a new or an empty one")]
    NotEmpty { dir: PathBuf },
    #[error(
        "{dir} is inside the data folder {data}; a backup belongs on another disk, or at least beside it: name such a \
         folder"
    )]
    Inside { dir: PathBuf, data: PathBuf },
    #[error("{dir} is no data folder of a broker; is `data.dir` right?")]
    NoData { dir: PathBuf },
    #[error("cannot read or write {path}: {why}")]
    Io { path: PathBuf, why: String },
    #[error("{dir} is no backup: {why}; a backup that was cut short has no manifest: make another")]
    NoBackup { dir: PathBuf, why: String },
    #[error(
        "the backup's file {file} is damaged: {why}; nothing was restored, take another backup"
    )]
    Damaged { file: PathBuf, why: String },
    #[error(
        "the broker that uses the data folder cannot be asked at {address}: {why}; name its gRPC address with \
         --address"
    )]
    Unreachable { address: String, why: String },
    #[error(
        "the broker at {address} has another data folder: it made {theirs}, and `data.dir` is {ours}; name the address \
         of the broker of this configuration with --address, or the configuration of that broker"
    )]
    Another {
        address: String,
        theirs: PathBuf,
        ours: PathBuf,
    },
    #[error("the broker refused: {0}")]
    Refused(String),
    #[error("state and log of the backup do not belong together: {0}")]
    Apart(String),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    State(#[from] StateError),
}

/// What a backup or a restored folder has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub log_id: u64,
    /// Everything below is applied in the state, at least.
    pub stored: Offset,
    /// Everything below is in the log, at least.
    pub next: Offset,
    pub files: usize,
    pub bytes: u64,
    /// The broker was running.
    pub live: bool,
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |error| BackupError::Io {
        path: path.clone(),
        why: error.to_string(),
    }
}

/// Backs the data folder of this configuration up into `into`. Asks the broker if one is running, at `address`
/// or where the configuration has it.
pub async fn backup(
    config: &Config,
    into: &Path,
    address: Option<&str>,
    clock: &Clock,
) -> Result<Summary, BackupError> {
    if !config.data_dir.join(node::VERSION_FILE).exists() {
        let dir = config.data_dir.clone();
        return Err(BackupError::NoData { dir });
    }
    outside(&config.data_dir, into)?;
    new_folder(into)?;
    // With `..` behind a folder that was not there, it is known only now where this is.
    if let Err(inside) = outside(&config.data_dir, into) {
        fs::remove_dir(into).map_err(io_error(into))?;
        return Err(inside);
    }
    let made = match DataDir::open(config) {
        Ok(held) => at_rest(config, held, clock),
        Err(DataDirError::InUse { .. }) => live(config, address).await,
        Err(error) => Err(error.into()),
    }?;
    let (data_dir, into) = (config.data_dir.clone(), into.to_owned());
    let (folder, manifest, live) = made;
    let carried = tokio::task::spawn_blocking(move || {
        let held = checkpoint::hold(&folder)?;
        let carried = carry(&data_dir, &folder, &into, manifest);
        drop(held);
        checkpoint::clear(&data_dir)?;
        carried
    });
    let manifest = carried.await.map_err(|error| BackupError::Io {
        path: config.data_dir.clone(),
        why: error.to_string(),
    })??;
    Ok(manifest.summary(live))
}

/// Who loses the data folder would lose the backup with it.
fn outside(data: &Path, into: &Path) -> Result<(), BackupError> {
    let data = fs::canonicalize(data).map_err(io_error(data))?;
    let target = std::path::absolute(into).map_err(io_error(into))?;
    // What is not there yet has no links.
    let there = target
        .ancestors()
        .find_map(|dir| fs::canonicalize(dir).ok());
    match there.is_some_and(|dir| dir.starts_with(&data)) {
        true => Err(BackupError::Inside { dir: target, data }),
        false => Ok(()),
    }
}

/// The folder of the checkpoint, what is known of it, and whether the broker runs.
type Made = (PathBuf, Manifest, bool);

/// Nobody has the data folder: opens it as a start would.
fn at_rest(config: &Config, held: DataDir, clock: &Clock) -> Result<Made, BackupError> {
    let (log, state) = open(&config.data_dir, clock)?;
    let made = Checkpoints::new(&config.data_dir).create(&log, &state)?;
    let manifest = Manifest::new((clock)(), log.id().0, made.stored, made.next);
    state.stop();
    log.close();
    drop(held);
    Ok((made.folder, manifest, false))
}

/// The broker that runs has it, and copies.
async fn live(config: &Config, address: Option<&str>) -> Result<Made, BackupError> {
    let configured = format!("http://{}", config.listen_grpc);
    let address = address.unwrap_or(&configured).to_owned();
    let unreachable = |why: String| BackupError::Unreachable {
        address: address.clone(),
        why,
    };
    let endpoint =
        Endpoint::from_shared(address.clone()).map_err(|e| unreachable(e.to_string()))?;
    let channel = endpoint
        .timeout(CHECKPOINT_MAX)
        .connect()
        .await
        .map_err(|e| unreachable(innermost(&e)))?;
    let mut request = Request::new(api::CreateCheckpointRequest {});
    let identity = tonic::metadata::MetadataValue::from_static(IDENTITY);
    request.metadata_mut().insert(metadata::IDENTITY, identity);
    let answer = AdminServiceClient::new(channel)
        .create_checkpoint(request)
        .await
        .map_err(|status| refused(&status))?
        .into_inner();
    let folder = PathBuf::from(answer.folder);
    let data_dir = fs::canonicalize(&config.data_dir).map_err(io_error(&config.data_dir))?;
    if !folder.starts_with(&data_dir) {
        return Err(BackupError::Another {
            address,
            theirs: folder,
            ours: data_dir,
        });
    }
    let (stored, next) = (Offset(answer.stored_offset), Offset(answer.next_offset));
    let manifest = Manifest::new(Micros(answer.at_us), answer.log_id, stored, next);
    Ok((folder, manifest, true))
}

/// "connection refused" says more than "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn refused(status: &Status) -> BackupError {
    let refusal = Refusal::from_status(status);
    BackupError::Refused(refusal.map_or_else(
        || status.message().to_owned(),
        |r| format!("{}: {}", r.reason, status.message()),
    ))
}

fn new_folder(dir: &Path) -> Result<(), BackupError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error(dir))?;
    let mut entries = fs::read_dir(dir).map_err(io_error(dir))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(BackupError::NotEmpty {
            dir: dir.to_owned(),
        }),
    }
}

fn carry(
    data_dir: &Path,
    folder: &Path,
    into: &Path,
    mut manifest: Manifest,
) -> Result<Manifest, BackupError> {
    let data = into.join(DATA);
    new_folder(&data)?;
    for name in FILES {
        manifest.add(copy_hashed(data_dir, &data, name)?);
    }
    for (from, name) in checkpoint::folders(folder) {
        new_folder(&data.join(name))?;
        for file in plain_files(&from)? {
            let file = format!("{name}/{file}");
            manifest.add(copy_hashed(folder, &data, &file)?);
        }
        sync_folder(&data.join(name))?;
    }
    sync_folder(&data)?;
    manifest.write(into)?;
    Ok(manifest)
}

/// RocksDB's lock and its own notes are no data.
fn plain_files(dir: &Path) -> Result<Vec<String>, BackupError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error(dir))? {
        let entry = entry.map_err(io_error(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_file = entry.file_type().map_err(io_error(dir))?.is_file();
        if is_file && name != "LOCK" && !name.starts_with("LOG") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn sync_folder(dir: &Path) -> Result<(), BackupError> {
    let synced = File::open(dir).and_then(|folder| folder.sync_all());
    synced.map_err(io_error(dir))
}

/// Makes the data folder of this configuration, which must be new or empty, from a backup. Returns only after
/// every byte was compared and log and state were opened together.
pub async fn restore(config: &Config, from: &Path, clock: &Clock) -> Result<Summary, BackupError> {
    let (config, from, clock) = (config.clone(), from.to_owned(), Arc::clone(clock));
    let dir = config.data_dir.clone();
    let manifest = Manifest::read(&from)?;
    let copied = tokio::task::spawn_blocking(move || {
        new_folder(&config.data_dir)?;
        for name in [LOG, STATE] {
            new_folder(&config.data_dir.join(name))?;
        }
        manifest.copy_checked(&from.join(DATA), &config.data_dir, node::VERSION_FILE)?;
        for folder in [LOG, STATE] {
            sync_folder(&config.data_dir.join(folder))?;
        }
        let (log, state) = open(&config.data_dir, &clock)?;
        belong_together(&log, &state, &manifest)?;
        Ok::<_, BackupError>((config, manifest, log, state))
    });
    let (config, manifest, log, state) = copied.await.map_err(|error| BackupError::Io {
        path: dir.clone(),
        why: error.to_string(),
    })??;
    mark(log, &manifest).await?;
    state.stop();
    drop(state);
    // From here on a broker takes the folder.
    let version = node::write_durably(&dir, node::VERSION_FILE, &node::layout_version());
    version.map_err(io_error(&dir))?;
    drop(DataDir::open(&config)?);
    Ok(manifest.summary(false))
}

fn open(dir: &Path, clock: &Clock) -> Result<(EmbeddedLog, State), BackupError> {
    let options = EmbeddedOptions {
        clock: Arc::clone(clock),
        ..EmbeddedOptions::default()
    };
    let log = EmbeddedLog::open(&dir.join(LOG), options)?;
    let state = State::open(&dir.join(STATE), StateOptions::default())?;
    Ok((log, state))
}

/// What a start demands: all that the state has is in the log, and all that it has not can be applied. And it is
/// the log that the manifest speaks of, with all of it.
fn belong_together(
    log: &EmbeddedLog,
    state: &State,
    manifest: &Manifest,
) -> Result<(), BackupError> {
    let (applied, end) = (state.stored().next, log.next_offset());
    manifest.is_of(log.id().0, applied, end)?;
    if applied > end {
        let what = format!("the state is applied below {applied}, the log ends at {end}");
        return Err(BackupError::Apart(what));
    }
    let mut tail = log.tail(applied).map_err(|error| match error {
        ReadError::Trimmed { .. } => BackupError::Apart(error.to_string()),
        error => LogError::from(error).into(),
    })?;
    // Reads all that the next start will apply. Nothing is appended meanwhile, so it ends at the end.
    let mut next = applied;
    let last = log.partitions().iter().map(|p| p.last).max();
    while last.is_some_and(|last| next <= last) {
        let Some(group) = tail.next() else {
            let what = format!("the log cannot be read from {next} on");
            return Err(BackupError::Apart(what));
        };
        next = group.last().map_or(next, |entry| entry.head.offset.next());
    }
    Ok(())
}

/// Lets the restored log go on where no cursor of its first life has been.
async fn mark(log: EmbeddedLog, manifest: &Manifest) -> Result<(), BackupError> {
    let ended_at = log.next_offset();
    log.skip_to(Offset(ended_at.0 + SKIPPED_OFFSETS));
    let log: Arc<dyn Log> = Arc::new(log);
    let act = Act::Restored(api::Restored {
        ended_at: ended_at.0,
        backup_at_us: manifest.made_at.0,
    });
    let written = ControlWriter::new(Arc::clone(&log)).write(act).await;
    log.close();
    written.map_err(|refusal| LogError::Io(refusal.to_string()))?;
    Ok(())
}
