//! The file of dead letters.

use super::letter::{DeadLetter, LetterId, Line, NewLetter, RowKey, Tried};
use crate::checkpoint::{StateError, StateFolder, open_lock, replace_file};
use hutong_proto::Micros;
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
};

const VERSION: u32 = 1;

/// A file below this is not worth writing anew.
const REWRITE_BYTES_MIN: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum DlqError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(
        "the dead letters fill {bytes_max} bytes, all they may; look at them with `hutong-connect dlq list`, mend the mapping and retry, or drop them, or raise `dead_letters` under [state]"
    )]
    Full { bytes_max: u64 },
    #[error("there is no dead letter {0}; see `hutong-connect dlq list`")]
    Unknown(LetterId),
    #[error("the dead letters were written by a newer version (layout {0}); run that version")]
    Newer(u32),
    #[error("cannot write a dead letter as JSON: {0}")]
    Encode(#[from] serde_json::Error),
}

/// What is in the file.
#[derive(Debug, Default)]
pub struct Contents {
    pub letters: BTreeMap<LetterId, DeadLetter>,
    /// Lines that could not be read, such as one that a power failure cut.
    pub damaged_lines: u64,
    /// The length of the file.
    pub bytes: u64,
    next_id: u64,
}

/// The dead letters of one connector. Its calls block.
#[derive(Debug)]
pub struct DeadLetters {
    path: PathBuf,
    lock: PathBuf,
    bytes_max: u64,
    /// Of the letters that are here, as of `seen`.
    known: HashMap<RowKey, LetterId>,
    next_id: u64,
    /// The file when it was read last; `None` when it must be read again.
    seen: Option<Stamp>,
}

/// Tells whether another process has changed the file: an append changes its length, a rewrite makes
/// it another file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl DeadLetters {
    pub fn open(folder: &StateFolder, bytes_max: u64) -> Result<DeadLetters, DlqError> {
        folder.create()?;
        let mut store = DeadLetters {
            path: folder.file("dead-letters.jsonl"),
            lock: folder.file("dead-letters.lock"),
            bytes_max,
            known: HashMap::new(),
            next_id: 1,
            seen: None,
        };
        let lock = store.locked()?;
        store.refresh()?;
        drop(lock);
        Ok(store)
    }

    /// Everything that is in the file now.
    pub fn contents(&self) -> Result<Contents, DlqError> {
        let _lock = self.locked()?;
        self.read()
    }

    pub fn get(&self, id: LetterId) -> Result<DeadLetter, DlqError> {
        let letter = self.contents()?.letters.remove(&id);
        letter.ok_or(DlqError::Unknown(id))
    }

    /// Adds letters; durable when it returns. A row that is here already, as after a restart, counts as
    /// one more attempt. All or none are added.
    pub fn add(&mut self, letters: Vec<NewLetter>, now: Micros) -> Result<(), DlqError> {
        if letters.is_empty() {
            return Ok(());
        }
        let _lock = self.locked()?;
        let length = self.refresh()?;
        // Until all is well: what is remembered below may not come to stand in the file.
        self.seen = None;
        let bytes = encode(&self.lines_of(letters, now))?;
        self.room_for(bytes.len() as u64, length)?;
        self.append(&bytes)?;
        self.seen = Some(self.stamp()?);
        Ok(())
    }

    /// Makes room for so many bytes in a file of this length, if there is any to be made.
    fn room_for(&self, bytes: u64, length: u64) -> Result<(), DlqError> {
        if length + bytes > self.bytes_max && self.rewrite(&self.read()?)? + bytes > self.bytes_max
        {
            let bytes_max = self.bytes_max;
            return Err(DlqError::Full { bytes_max });
        }
        Ok(())
    }

    fn lines_of(&mut self, letters: Vec<NewLetter>, now: Micros) -> Vec<Line> {
        let mut lines = Vec::with_capacity(letters.len());
        for new in letters {
            let key = RowKey::new(&new.row.place, new.row.revision.0, &new.row.fields);
            if let Some(id) = self.known.get(&key) {
                lines.push(Line::Tried(Tried {
                    id: *id,
                    at_us: now.0,
                    reason: new.reason,
                    field: new.field,
                    message: new.message,
                }));
                continue;
            }
            let id = LetterId(self.next_id);
            self.next_id += 1;
            self.known.insert(key, id);
            lines.push(Line::Add(DeadLetter::new(id, new, now)));
        }
        lines
    }

    /// How many letters there are now, and the bytes they take: other processes retry and drop them.
    pub fn count(&mut self) -> Result<(usize, u64), DlqError> {
        let _lock = self.locked()?;
        self.refresh()?;
        Ok(self.size())
    }

    /// How many letters there are, and the bytes they take, as this process knows.
    pub fn size(&self) -> (usize, u64) {
        (self.known.len(), self.seen.map_or(0, |seen| seen.bytes))
    }

    /// Notes that a retry failed, and why.
    pub fn tried(
        &mut self,
        id: LetterId,
        (reason, field, message): (String, String, String),
        now: Micros,
    ) -> Result<(), DlqError> {
        let line = Line::Tried(Tried {
            id,
            at_us: now.0,
            reason,
            field,
            message,
        });
        let _lock = self.locked()?;
        let contents = self.read()?;
        if !contents.letters.contains_key(&id) {
            return Err(DlqError::Unknown(id));
        }
        let bytes = encode(&[line])?;
        self.seen = None;
        self.room_for(bytes.len() as u64, contents.bytes)?;
        self.append(&bytes)
    }

    /// Removes letters. Returns how many there were; see also [`DeadLetters::forget_removed`].
    pub fn remove(&mut self, ids: &[LetterId]) -> Result<usize, DlqError> {
        let _lock = self.locked()?;
        let mut contents = self.read()?;
        let mut lines = Vec::new();
        for id in ids {
            if contents.letters.remove(id).is_some() {
                lines.push(Line::Drop { id: *id });
            }
        }
        self.append(&encode(&lines)?)?;
        self.seen = None;
        let kept: u64 = encode(&as_lines(&contents))?.len() as u64;
        if contents.bytes > REWRITE_BYTES_MIN && kept * 2 < contents.bytes {
            self.rewrite(&contents)?;
        }
        Ok(lines.len())
    }

    /// Makes the file forget the letters that were removed: until then their rows still stand in it, which may name
    /// persons.
    pub fn forget_removed(&mut self) -> Result<(), DlqError> {
        let _lock = self.locked()?;
        let contents = self.read()?;
        if encode(&as_lines(&contents))?.len() as u64 != contents.bytes {
            self.rewrite(&contents)?;
            self.seen = None;
        }
        Ok(())
    }

    /// Released when the file is dropped.
    fn locked(&self) -> Result<File, DlqError> {
        let file = open_lock(&self.lock)?;
        file.lock().map_err(StateError::io("lock", &self.lock))?;
        Ok(file)
    }

    /// Learns what another process changed. Returns the length of the file. Under the lock only.
    fn refresh(&mut self) -> Result<u64, DlqError> {
        let stamp = self.stamp()?;
        if self.seen != Some(stamp) {
            let contents = self.read()?;
            let keys = contents.letters.values();
            self.known = keys.map(|letter| (letter.key(), letter.id)).collect();
            self.next_id = contents.next_id;
            self.seen = Some(stamp);
        }
        Ok(stamp.bytes)
    }

    fn stamp(&self) -> Result<Stamp, DlqError> {
        match fs::metadata(&self.path) {
            Ok(meta) => Ok(Stamp {
                inode: meta.ino(),
                bytes: meta.len(),
                changed: (meta.mtime(), meta.mtime_nsec()),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Stamp::default()),
            Err(e) => Err(StateError::io("read", &self.path)(e).into()),
        }
    }

    fn read(&self) -> Result<Contents, DlqError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Contents {
                    next_id: 1,
                    ..Contents::default()
                });
            }
            Err(e) => return Err(StateError::io("read", &self.path)(e).into()),
        };
        let mut contents = Contents {
            next_id: 1,
            ..Contents::default()
        };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        loop {
            line.clear();
            // No line is longer than the file, and the file is bounded.
            let length = reader
                .read_until(b'\n', &mut line)
                .map_err(StateError::io("read", &self.path))?;
            if length == 0 {
                return Ok(contents);
            }
            contents.bytes += length as u64;
            contents.take(&line)?;
        }
    }

    fn append(&self, bytes: &[u8]) -> Result<(), DlqError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(StateError::io("open", &self.path))?;
        let written = append_synced(&mut file, bytes);
        let is_new = written.map_err(StateError::io("write", &self.path))?;
        if is_new && let Some(folder) = self.path.parent() {
            // The entry of a new file in its folder is synced on its own.
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(StateError::io("sync", folder))?;
        }
        Ok(())
    }

    /// Writes only what is still there. Returns the new length.
    fn rewrite(&self, contents: &Contents) -> Result<u64, DlqError> {
        let bytes = encode(&as_lines(contents))?;
        replace_file(&self.path, &bytes, true)?;
        Ok(bytes.len() as u64)
    }
}

impl Contents {
    fn take(&mut self, line: &[u8]) -> Result<(), DlqError> {
        let whole = line.ends_with(b"\n");
        let Some(line) = whole
            .then(|| serde_json::from_slice::<Line>(line).ok())
            .flatten()
        else {
            self.damaged_lines += u64::from(!line.trim_ascii().is_empty());
            return Ok(());
        };
        match line {
            Line::Begin { version, .. } if version > VERSION => {
                return Err(DlqError::Newer(version));
            }
            Line::Begin { next_id, .. } => self.next_id = self.next_id.max(next_id),
            Line::Add(letter) => {
                self.next_id = self.next_id.max(letter.id.0 + 1);
                self.letters.insert(letter.id, letter);
            }
            Line::Tried(tried) => {
                if let Some(letter) = self.letters.get_mut(&tried.id) {
                    letter.tried(tried);
                }
            }
            Line::Drop { id } => {
                self.letters.remove(&id);
            }
        }
        Ok(())
    }
}

fn as_lines(contents: &Contents) -> Vec<Line> {
    let begin = Line::Begin {
        version: VERSION,
        next_id: contents.next_id,
    };
    let letters = contents.letters.values().cloned().map(Line::Add);
    std::iter::once(begin).chain(letters).collect()
}

fn encode(lines: &[Line]) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut bytes, line)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// Was the file empty before?
fn append_synced(file: &mut File, bytes: &[u8]) -> io::Result<bool> {
    let is_new = file.metadata()?.len() == 0;
    if !is_new {
        // What a power failure cut must not swallow the line that comes next.
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != [b'\n'] {
            file.write_all(b"\n")?;
        }
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(is_new)
}
