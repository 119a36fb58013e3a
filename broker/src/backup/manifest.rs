//! The list of a backup's files, with what they must be. Text, a line each, so that `sha256sum` and a pair of eyes
//! can check it too.

use crate::backup::{BackupError, Summary, io_error};
use hutong_proto::{Micros, Offset};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Write},
    path::{Component, Path},
};

const NAME: &str = "MANIFEST";
const HEADING: &str = "hutong-backup 2";
/// Of a backup whose manifest has no sum of its own yet.
const HEADING_WITHOUT_SUM: &str = "hutong-backup 1";
/// The last line: this, and the SHA-256 of all lines before.
const SUM: &str = "manifest_sha256 ";
/// A data folder has a few thousand files at most.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES: usize = 1 << 20;

/// One file, below the backup's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    name: String,
    bytes: u64,
    sha256: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub made_at: Micros,
    log_id: u64,
    stored: Offset,
    next: Offset,
    files: Vec<Entry>,
}

impl Manifest {
    pub fn new(made_at: Micros, log_id: u64, stored: Offset, next: Offset) -> Manifest {
        Manifest {
            made_at,
            log_id,
            stored,
            next,
            files: Vec::new(),
        }
    }

    pub fn add(&mut self, entry: Entry) {
        self.files.push(entry);
    }

    /// Whether log and state that were restored are those that were backed up.
    pub fn is_of(&self, log_id: u64, stored: Offset, next: Offset) -> Result<(), BackupError> {
        if log_id != self.log_id || stored < self.stored || next < self.next {
            return Err(BackupError::Apart(format!(
                "by the manifest it is log {:016x}, applied below {} and written below {}; what was restored is log \
                 {log_id:016x}, applied below {stored} and written below {next}",
                self.log_id, self.stored, self.next
            )));
        }
        Ok(())
    }

    pub fn summary(&self, live: bool) -> Summary {
        Summary {
            log_id: self.log_id,
            stored: self.stored,
            next: self.next,
            files: self.files.len(),
            bytes: self.files.iter().map(|f| f.bytes).sum(),
            live,
        }
    }

    /// The last file of a backup, on disk when it returns.
    pub fn write(&self, dir: &Path) -> Result<(), BackupError> {
        crate::node::write_durably(dir, NAME, &self.encode()).map_err(io_error(&dir.join(NAME)))
    }

    fn encode(&self) -> String {
        let mut text = format!(
            "{HEADING}\nmade_at_us {}\nlog_id {:016x}\nstored {}\nnext {}\n",
            self.made_at, self.log_id, self.stored, self.next
        );
        for f in &self.files {
            writeln!(text, "{}  {}  {}", f.sha256, f.bytes, f.name).expect("a string takes all");
        }
        let sum = hex(&Sha256::digest(&text));
        text + SUM + &sum + "\n"
    }

    pub fn read(dir: &Path) -> Result<Manifest, BackupError> {
        let none = |why: &str| BackupError::NoBackup {
            dir: dir.to_owned(),
            why: why.to_owned(),
        };
        let file = dir.join(NAME);
        let bytes = fs::metadata(&file).map_err(|_| none("it has no file MANIFEST"))?;
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(none("its MANIFEST is too large"));
        }
        let text = fs::read_to_string(&file).map_err(io_error(&file))?;
        Manifest::decode(&text)
            .ok_or_else(|| none("its MANIFEST is damaged, cut short, or of another version"))
    }

    fn decode(text: &str) -> Option<Manifest> {
        let text = match text.starts_with(HEADING_WITHOUT_SUM) {
            true => text,
            false => with_sum(text)?,
        };
        let mut lines = text.lines();
        if ![HEADING, HEADING_WITHOUT_SUM].contains(&lines.next()?) {
            return None;
        }
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let made_at = Micros(field("made_at_us")?.parse().ok()?);
        let log_id = u64::from_str_radix(field("log_id")?, 16).ok()?;
        let stored = Offset(field("stored")?.parse().ok()?);
        let next = Offset(field("next")?.parse().ok()?);
        let files = lines.map(entry).collect::<Option<Vec<_>>>()?;
        Some(Manifest {
            made_at,
            log_id,
            stored,
            next,
            files,
        })
    }

    /// Copies every file and compares it with its line; `except` is looked at, but not copied.
    pub fn copy_checked(&self, from: &Path, to: &Path, except: &str) -> Result<(), BackupError> {
        for entry in &self.files {
            let path = from.join(&entry.name);
            let damaged = |why: String| BackupError::Damaged {
                file: path.clone(),
                why,
            };
            let found = match entry.name == except {
                true => hashed(from, &entry.name, None),
                false => copy_hashed(from, to, &entry.name),
            };
            let found = found.map_err(|error| damaged(error.to_string()))?;
            if found.bytes != entry.bytes {
                let why = format!("{} bytes, it had {}", found.bytes, entry.bytes);
                return Err(damaged(why));
            }
            if found.sha256 != entry.sha256 {
                return Err(damaged("its content is not what was backed up".to_owned()));
            }
        }
        Ok(())
    }
}

/// The lines before the sum, if they are what it was made of.
fn with_sum(text: &str) -> Option<&str> {
    let (lines, sum) = text.strip_suffix('\n')?.rsplit_once(SUM)?;
    (sum == hex(&Sha256::digest(lines))).then_some(lines)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn entry(line: &str) -> Option<Entry> {
    let (sha256, rest) = line.split_once("  ")?;
    let (bytes, name) = rest.split_once("  ")?;
    // It must not lead out of the folder.
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
    if name.is_empty() || !Path::new(name).components().all(plain) {
        return None;
    }
    Some(Entry {
        name: name.to_owned(),
        bytes: bytes.parse().ok()?,
        sha256: sha256.to_owned(),
    })
}

/// Copies `name` from one folder to another, onto the disk, and says what went through.
pub fn copy_hashed(from: &Path, to: &Path, name: &str) -> Result<Entry, BackupError> {
    let target = to.join(name);
    let mut out = File::create_new(&target).map_err(io_error(&target))?;
    let entry = hashed(from, name, Some(&mut out))?;
    out.sync_all().map_err(io_error(&target))?;
    Ok(entry)
}

fn hashed(from: &Path, name: &str, mut out: Option<&mut File>) -> Result<Entry, BackupError> {
    let source = from.join(name);
    let mut input = File::open(&source).map_err(io_error(&source))?;
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = input.read(&mut chunk).map_err(io_error(&source))?;
        if read == 0 {
            break;
        }
        hash.update(&chunk[..read]);
        bytes += read as u64;
        if let Some(out) = &mut out {
            out.write_all(&chunk[..read]).map_err(io_error(&source))?;
        }
    }
    Ok(Entry {
        name: name.to_owned(),
        bytes,
        sha256: hex(&hash.finalize()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let mut manifest = Manifest::new(Micros(7), 0xab, Offset(3), Offset(9));
        manifest.add(Entry {
            name: "log/000012.sst".to_owned(),
            bytes: 5,
            sha256: "00ff".to_owned(),
        });
        manifest
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let text = manifest().encode();
        assert_eq!(Manifest::decode(&text), Some(manifest()));
        // And one from before there was a sum.
        let (lines, _) = text.rsplit_once(SUM).expect("a sum");
        let first = lines.replace(HEADING, HEADING_WITHOUT_SUM);
        assert_eq!(Manifest::decode(&first), Some(manifest()));
    }

    #[test]
    fn a_line_that_is_gone_or_another_is_found_by_the_sum() {
        let text = manifest().encode();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for gone in 0..lines.len() {
            let rest: String = lines
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != gone)
                .map(|(_, l)| *l)
                .collect();
            assert_eq!(Manifest::decode(&rest), None, "{rest}");
        }
        for end in 0..text.len() {
            assert_eq!(Manifest::decode(&text[..end]), None, "{}", &text[..end]);
        }
        let other = text.replace("00ff", "00fe");
        assert_eq!(Manifest::decode(&other), None);
        let (lines, _) = text.rsplit_once(SUM).expect("a sum");
        let newer = lines.replace(HEADING, "hutong-backup 3");
        let newer = format!("{newer}{SUM}{}\n", hex(&Sha256::digest(&newer)));
        assert_eq!(Manifest::decode(&newer), None);
    }

    #[test]
    fn another_log_or_less_of_it_is_not_what_was_backed_up() {
        let is_of = |id, stored, next| manifest().is_of(id, Offset(stored), Offset(next)).is_ok();
        assert!(is_of(0xab, 3, 9) && is_of(0xab, 4, 10));
        assert!(!is_of(0xac, 3, 9) && !is_of(0xab, 2, 9) && !is_of(0xab, 3, 8));
    }

    #[test]
    fn what_leads_out_of_the_folder_or_is_cut_off_is_no_manifest() {
        // One without a sum: a sum is for accidents.
        let text = manifest().encode().replace(HEADING, HEADING_WITHOUT_SUM);
        let text = text.rsplit_once(SUM).expect("a sum").0;
        assert!(Manifest::decode(text).is_some());
        for wrong in [
            text.replace("log/000012.sst", "../../etc/passwd"),
            text.replace("log/000012.sst", "/etc/passwd"),
            text.replace("next 9\n", ""),
            text.replace("  5  ", "  five  "),
            String::new(),
        ] {
            assert_eq!(Manifest::decode(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn one_changed_byte_is_found() {
        let (from, to) = (tempfile::tempdir(), tempfile::tempdir());
        let (from, to) = (from.expect("a folder"), to.expect("a folder"));
        let file = from.path().join("a");
        fs::write(&file, "abc").expect("written");
        let mut manifest = Manifest::new(Micros(7), 1, Offset(1), Offset(1));
        let all = tempfile::tempdir().expect("a folder");
        manifest.add(copy_hashed(from.path(), all.path(), "a").expect("copied"));
        let check = |to: &Path| manifest.copy_checked(from.path(), to, "");
        check(to.path()).expect("the same");
        fs::write(&file, "abd").expect("written");
        let other = tempfile::tempdir().expect("a folder");
        let error = check(other.path()).expect_err("damaged").to_string();
        assert!(error.contains("/a is damaged"), "{error}");
        fs::write(&file, "ab").expect("written");
        let third = tempfile::tempdir().expect("a folder");
        let error = check(third.path()).expect_err("damaged").to_string();
        assert!(error.contains("2 bytes, it had 3"), "{error}");
    }
}
