//! The file: what was written completely, and appending to it. Blocking IO.

use super::lines::{self, Check, Mark, MarkType};
use crate::sink::SinkError;
use hutong_proto::Cursor;
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const BLOCK_BYTES: u64 = 64 << 10;
/// No line of ours is longer; what is, was not written by us or not completely.
const LINE_BYTES_MAX: usize = 1 << 20;
/// A job whose caller went away still holds the lock for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// An open file, locked, with nothing behind its last mark but what was appended since.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Its length, as long as nobody else writes.
    len: u64,
    check: Check,
}

impl Journal {
    /// Opens or makes the file, and takes away what was not written completely. The cursor is that of
    /// the last mark.
    pub fn open(path: &Path, subscription: &str) -> Result<(Journal, Option<Cursor>), SinkError> {
        let header = lines::header(subscription);
        let failed = |what: &str| {
            let message = format!("file {}: cannot be {what}", path.display());
            move |e: io::Error| SinkError::passing(format!("{message}: {e}"))
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(failed("opened"))?;
        lock(path, &file)?;
        let len = file.metadata().map_err(failed("read"))?.len();
        check_header(path, &file, &header, len)?;
        let (end, cursor) = match len < header.len() as u64 {
            true => (0, None),
            false => last_mark(&file, len, header.len() as u64).map_err(failed("read"))?,
        };
        if end < len {
            tracing::info!(file = %path.display(), bytes = len - end, "an incomplete end is taken away");
            file.set_len(end).map_err(failed("truncated"))?;
        }
        let mut journal = Journal {
            path: path.to_owned(),
            file,
            len: end,
            check: Check::default(),
        };
        journal
            .file
            .seek(SeekFrom::Start(end))
            .map_err(failed("read"))?;
        if end == 0 {
            journal.file.write_all(&header).map_err(failed("written"))?;
            journal.len = header.len() as u64;
        }
        journal.sync()?;
        // A new file is only there after a crash when its folder is synced too.
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = File::open(parent.unwrap_or(Path::new("."))).map_err(failed("synced"))?;
        folder.sync_all().map_err(failed("synced"))?;
        Ok((journal, cursor))
    }

    /// Adds lines without making them durable.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), SinkError> {
        self.write(lines)?;
        self.check.add(lines);
        Ok(())
    }

    /// Completes the lines since the last mark; durable when it returns.
    pub fn mark(&mut self, r#type: MarkType, cursor: Cursor) -> Result<(), SinkError> {
        let mark = Mark::new(r#type, cursor, &self.check);
        self.write(&mark.to_line())?;
        self.sync()?;
        self.check_file()?;
        self.check = Check::default();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.check_file()?;
        self.file.write_all(bytes).map_err(|e| {
            SinkError::passing(format!(
                "file {}: cannot be written: {e}",
                self.path.display()
            ))
        })?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Whoever moves the file away or cuts it, as programs that rotate logs do, takes lines with it that
    /// were said to be kept. Opened again, it begins with what is there.
    fn check_file(&self) -> Result<(), SinkError> {
        let place = self.path.display();
        let failed =
            |e: io::Error| SinkError::passing(format!("file {place}: cannot be read: {e}"));
        let ours = self.file.metadata().map_err(failed)?;
        let changed = match std::fs::metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) != (ours.dev(), ours.ino()) => "replaced",
            Ok(_) if ours.len() != self.len => "cut or written to",
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => "moved away or removed",
            Err(e) => return Err(failed(e)),
        };
        Err(SinkError::passing(format!(
            "file {place}: was {changed} by another program; it is opened again"
        )))
    }

    /// After a failed sync nobody knows what is on the disk, and a second one may not tell.
    fn sync(&self) -> Result<(), SinkError> {
        self.file.sync_data().map_err(|e| {
            SinkError::lasting(format!(
                "file {}: cannot be synced: {e}; see to the disk before starting again",
                self.path.display()
            ))
        })
    }
}

fn lock(path: &Path, file: &File) -> Result<(), SinkError> {
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(SinkError::passing(format!(
                    "file {}: another program has it locked; stop it, or choose another file",
                    path.display()
                )));
            }
            Err(TryLockError::Error(e)) => {
                let message = format!("file {}: cannot be locked: {e}", path.display());
                return Err(SinkError::lasting(message));
            }
        }
    }
}

/// Nobody's file is truncated because of a wrong path.
fn check_header(path: &Path, file: &File, header: &[u8], len: u64) -> Result<(), SinkError> {
    let mut start = vec![0; header.len().min(usize::try_from(len).unwrap_or(usize::MAX))];
    let read = file.read_exact_at(&mut start, 0);
    read.map_err(|e| SinkError::passing(format!("file {}: cannot be read: {e}", path.display())))?;
    if header.starts_with(&start) {
        return Ok(());
    }
    Err(SinkError::lasting(format!(
        "file {} is not empty and does not begin with {}: it is not of this subscription; choose another \
         file, or move this one away",
        path.display(),
        String::from_utf8_lossy(header).trim_end()
    )))
}

/// Where the last complete part ends, and its cursor; the end of the header when there is none.
fn last_mark(file: &File, len: u64, header_len: u64) -> io::Result<(u64, Option<Cursor>)> {
    let mut lines = Backwards {
        file,
        block: Vec::new(),
        start: len,
    };
    while let Some((start, line)) = lines.next()? {
        let mark = Mark::from_line(&line).filter(|m| m.bytes <= start.saturating_sub(header_len));
        let Some((mark, cursor)) = mark.and_then(|m| m.cursor().map(|c| (m, c))) else {
            continue;
        };
        // The disk may have got the mark before the lines that it completes.
        if hash(file, start - mark.bytes, mark.bytes)? == mark.sha256 {
            return Ok((start + line.len() as u64, Some(cursor)));
        }
    }
    Ok((header_len, None))
}

fn hash(file: &File, mut from: u64, mut bytes: u64) -> io::Result<String> {
    let mut check = Check::default();
    let mut block = vec![0; BLOCK_BYTES as usize];
    while bytes > 0 {
        let part = &mut block[..bytes.min(BLOCK_BYTES) as usize];
        file.read_exact_at(part, from)?;
        check.add(part);
        from += part.len() as u64;
        bytes -= part.len() as u64;
    }
    Ok(check.sha256())
}

/// The lines of a file from the last to the first.
struct Backwards<'a> {
    file: &'a File,
    /// Read and not given out.
    block: Vec<u8>,
    /// Of the block, in the file.
    start: u64,
}

impl Backwards<'_> {
    /// Where a line begins, and the line with its end. The last line may have none.
    fn next(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        loop {
            let before_last = self.block.len().saturating_sub(1);
            if let Some(end) = self.block[..before_last].iter().rposition(|b| *b == b'\n') {
                let line = self.block.split_off(end + 1);
                return Ok(Some((self.start + end as u64 + 1, line)));
            }
            if self.start == 0 {
                let line = std::mem::take(&mut self.block);
                return Ok((!line.is_empty()).then_some((0, line)));
            }
            if self.block.len() > LINE_BYTES_MAX {
                // What is before it will be taken for a line without end, which is never a mark.
                self.block.clear();
            }
            let size = BLOCK_BYTES.min(self.start);
            let mut block = vec![0; size as usize];
            self.file.read_exact_at(&mut block, self.start - size)?;
            block.append(&mut self.block);
            self.block = block;
            self.start -= size;
        }
    }
}
