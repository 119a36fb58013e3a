//! Damage to the log between a stop and a start.

use crate::{
    error::ChaosError,
    faults::Undone,
    history::{Proof, Reaction},
    stage::{Stage, process::Hold},
    text::Text,
};
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// The format of the write-ahead log: blocks of 32 KiB, and in them fragments with a header of 7 bytes
/// (checksum, length, kind), which do not cross a block.
const BLOCK_BYTES: u64 = 32 << 10;
const HEADER_BYTES: u64 = 7;
const KIND_FULL: u8 = 1;
/// What the record says it has, and what of it reached the disk.
const RECORD_BYTES: u16 = 4096;
const WRITTEN_BYTES: usize = 700;
/// What the broker writes into its log when it cuts off a torn end.
const TORN: &str = "the last write to the log was torn";
/// What it says, after the name of the file, when it does not start on damage.
const DAMAGED: &str = " is damaged at byte ";

/// Files of the write-ahead log with their sizes, the oldest first.
fn files(data: &Path) -> Result<Vec<(PathBuf, u64)>, ChaosError> {
    let dir = data.join("log");
    let entries = std::fs::read_dir(&dir).map_err(ChaosError::file("cannot read", &dir))?;
    let mut files: Vec<(u64, PathBuf, u64)> = entries
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let number = path.file_name()?.to_str()?.strip_suffix(".log")?.parse();
            Some((number.ok()?, path, entry.metadata().ok()?.len()))
        })
        .collect();
    files.sort();
    Ok(files
        .into_iter()
        .map(|(_, path, bytes)| (path, bytes))
        .collect())
}

fn none(data: &Path) -> ChaosError {
    let data = data.display();
    ChaosError::told(
        format!("{data} has no log that could be damaged"),
        format!("{data} 中没有可供损坏的日志"),
    )
}

/// The end of the log has half a record, as a power cut within a write leaves it.
pub struct Torn<'a> {
    stage: &'a Stage,
    hold: Hold,
    file: PathBuf,
    tail: Vec<u8>,
    log_before: usize,
}

impl<'a> Torn<'a> {
    pub async fn begin(stage: &'a Stage) -> Result<Torn<'a>, ChaosError> {
        let (hold, _) = stage.broker.kill().await?;
        let newest = files(&stage.data)?.pop();
        let (file, bytes) = newest.ok_or_else(|| none(&stage.data))?;
        let mut tail = Vec::new();
        let room = BLOCK_BYTES - bytes % BLOCK_BYTES;
        if room < HEADER_BYTES {
            tail.resize(room as usize, 0);
        }
        // A checksum that cannot hold, since most of the record is missing.
        tail.extend([0xde, 0xad, 0xbe, 0xef]);
        tail.extend(RECORD_BYTES.to_le_bytes());
        tail.push(KIND_FULL);
        tail.extend([0x5a; WRITTEN_BYTES]);
        let written = std::fs::OpenOptions::new()
            .append(true)
            .open(&file)
            .and_then(|mut log| log.write_all(&tail).and_then(|()| log.sync_all()));
        written.map_err(ChaosError::file("cannot append to", &file))?;
        Ok(Torn {
            stage,
            hold,
            file,
            tail,
            log_before: stage.broker.whole_log().matches(TORN).count(),
        })
    }

    pub fn heal(self) -> Undone<'a> {
        // Nobody has touched it: it is there when the broker starts.
        let there = std::fs::read(&self.file).is_ok_and(|bytes| bytes.ends_with(&self.tail));
        drop(self.hold);
        let name = name_of(&self.file);
        let proof = vec![Proof::new(
            "bytes of half a record at the end of the log",
            "日志尾部残缺记录的字节数",
            match there {
                true => Text::new(
                    format!("{} in {name}", self.tail.len()),
                    format!("{}，位于 {name}", self.tail.len()),
                ),
                false => Text::new(format!("none in {name}"), format!("{name} 中没有")),
            },
            there,
        )];
        let (stage, before) = (self.stage, self.log_before);
        Undone::with(stage, proof, move || {
            let found = stage.broker.whole_log().matches(TORN).count() > before;
            vec![Reaction::new(
                "the broker finds the half record and cuts it off",
                "互通发现残缺记录并截去",
                ("found", "已发现"),
                if found {
                    ("found", "已发现")
                } else {
                    ("not found", "未发现")
                },
                found,
            )]
        })
    }
}

/// One bit within the log is another one; it is put right when this is dropped.
pub struct Flipped<'a> {
    stage: &'a Stage,
    file: PathBuf,
    at: u64,
    was: u8,
    restored: bool,
    log_before: usize,
}

/// How often the broker said that this file is damaged.
fn named_damaged(stage: &Stage, name: &str) -> usize {
    let words = format!("{name}{DAMAGED}");
    stage.broker.whole_log().matches(&words).count()
}

fn name_of(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl<'a> Flipped<'a> {
    pub async fn begin(stage: &'a Stage) -> Result<Flipped<'a>, ChaosError> {
        let (hold, _) = stage.broker.kill().await?;
        // In the middle of the largest file: whole records stand behind it, so it was synced.
        let largest = files(&stage.data)?
            .into_iter()
            .max_by_key(|(_, bytes)| *bytes);
        let (file, bytes) = largest
            .filter(|(_, bytes)| *bytes > 4 * BLOCK_BYTES)
            .ok_or_else(|| none(&stage.data))?;
        // Not where padding could be.
        let at = bytes / 2 / BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES / 2;
        let log_before = named_damaged(stage, &name_of(&file));
        let was = byte(&file, at)?;
        flip(&file, at)?;
        drop(hold);
        Ok(Flipped {
            stage,
            file,
            at,
            was,
            restored: false,
            log_before,
        })
    }

    pub async fn heal(mut self) -> Result<Undone<'a>, ChaosError> {
        let name = name_of(&self.file);
        let named = named_damaged(self.stage, &name) > self.log_before;
        let (hold, _) = self.stage.broker.kill().await?;
        // Nobody has written over it meanwhile.
        let (was, is) = (self.was, byte(&self.file, self.at)?);
        flip(&self.file, self.at)?;
        self.restored = true;
        drop(hold);
        let proof = vec![Proof::new(
            "the bit that was flipped",
            "被翻转的比特",
            Text::new(
                format!("byte {} of {name}: {was:#04x} as {is:#04x}", self.at),
                format!("{name} 的第 {} 字节：{was:#04x} 变为 {is:#04x}", self.at),
            ),
            is != was,
        )];
        Ok(Undone::with(self.stage, proof, move || {
            vec![Reaction::new(
                "the broker names the damaged file",
                "互通指出损坏的文件",
                ("named", "已指出"),
                if named {
                    ("named", "已指出")
                } else {
                    ("not named", "未指出")
                },
                named,
            )]
        }))
    }
}

impl Drop for Flipped<'_> {
    fn drop(&mut self) {
        if !self.restored {
            drop(flip(&self.file, self.at));
        }
    }
}

fn byte(file: &Path, at: u64) -> Result<u8, ChaosError> {
    use std::os::unix::fs::FileExt;
    let mut byte = [0];
    let read = std::fs::File::open(file).and_then(|log| log.read_exact_at(&mut byte, at));
    read.map_err(ChaosError::file("cannot read", file))?;
    Ok(byte[0])
}

fn flip(file: &Path, at: u64) -> Result<(), ChaosError> {
    use std::os::unix::fs::FileExt;
    let flipped = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .and_then(|log| {
            let mut byte = [0];
            log.read_exact_at(&mut byte, at)?;
            log.write_all_at(&[byte[0] ^ 0x10], at)?;
            log.sync_all()
        });
    flipped.map_err(ChaosError::file("cannot change", file))
}
