//! What a process did to the files of one folder, in order, as `strace` saw it.

use crate::commands::FAIL;
use std::{
    collections::BTreeMap,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

/// The calls that change a file, a folder, or what of them is on disk.
const CALLS: &str = "openat,creat,write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,fallocate,rename,\
                     renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,close,dup,dup2,dup3,\
                     lseek,sync,syncfs,copy_file_range,sendfile";
/// With what a process begins the line in which it says that a check of its own failed.
pub const BROKEN: &str = "broken: ";
/// Longest content that is recorded of one call.
const CONTENT_BYTES_MAX: usize = 64 << 20;

/// One thing that happened to a disk.
#[derive(Clone, Debug)]
pub enum Step {
    Create {
        path: PathBuf,
        file: FileId,
    },
    Write {
        file: FileId,
        at: u64,
        bytes: Arc<[u8]>,
    },
    SetLen {
        file: FileId,
        len: u64,
    },
    Sync {
        file: FileId,
        begun: usize,
    },
    MakeDir {
        path: PathBuf,
    },
    RemoveDir {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    SyncDir {
        path: PathBuf,
        begun: usize,
    },
    /// A line that the process wrote about itself: a promise, or what it is about to do.
    Said(String),
}

/// A file, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// What is traced.
#[derive(Debug)]
pub struct Traced {
    pub steps: Vec<Step>,
    /// What the files were called that were there before.
    pub before: BTreeMap<PathBuf, FileId>,
}

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("cannot run strace: {0}; install it (Debian: apt-get install strace)")]
    NoStrace(std::io::Error),
    /// A check of its own failed, with the invariant that it is about.
    #[error("{0}")]
    Broken(String),
    #[error("the traced process ended with {status}: {stderr}")]
    Failed { status: String, stderr: String },
    #[error("line {line} of the trace is not understood: {text}")]
    Unreadable { line: usize, text: String },
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// How a process has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Well,
    /// It kills itself on the way.
    Aborted,
}

/// Runs a command under strace and reads what it did below `root`. What it writes into `said` are its
/// own words.
pub fn run(
    command: &[std::ffi::OsString],
    root: &Path,
    (said, output): (&Path, &Path),
    ending: Ending,
) -> Result<Traced, TraceError> {
    let before = files_below(root)?;
    let ran = Command::new("strace")
        .args(["-f", "-xx", "-qq", "-s", &CONTENT_BYTES_MAX.to_string()])
        .args(["-e", &format!("trace={CALLS}"), "-e", "signal=none", "-o"])
        .arg(output)
        .args(command)
        // What a terminal sends is for the sweep, which ends when this is done.
        .process_group(0)
        .output()
        .map_err(TraceError::NoStrace)?;
    let stderr = String::from_utf8_lossy(&ran.stderr);
    let broken = stderr.lines().find_map(|line| line.strip_prefix(BROKEN));
    let as_expected = match ending {
        Ending::Well => ran.status.success(),
        // The tracer ends itself as the traced process did.
        Ending::Aborted => ran.status.signal() == Some(libc::SIGABRT),
    };
    match broken {
        _ if as_expected => {}
        Some(why) if ran.status.code() == Some(FAIL.into()) => {
            return Err(TraceError::Broken(why.to_owned()));
        }
        _ => {
            return Err(TraceError::Failed {
                status: ran.status.to_string(),
                stderr: stderr.into_owned(),
            });
        }
    }
    let text = std::fs::read_to_string(output)?;
    std::fs::remove_file(output)?;
    read(&text, root, said, before)
}

/// Every file that is there.
fn files_below(root: &Path) -> std::io::Result<BTreeMap<PathBuf, FileId>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false if is_nobodys(&entry.path()) => {}
                false => {
                    let id = FileId(found.len() as u32);
                    found.insert(entry.path(), id);
                }
            }
        }
    }
    Ok(found)
}

/// The database's diary for people, which it never reads, and its lock.
pub fn is_nobodys(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name == "LOG" || name.starts_with("LOG.old") || name == "LOCK"
}

/// What a descriptor stands for.
#[derive(Clone, Debug)]
enum Open {
    File { file: FileId, at: u64, append: bool },
    Dir(PathBuf),
    Said(Vec<u8>),
}

struct Reader<'a> {
    root: &'a Path,
    said: &'a Path,
    open: BTreeMap<i64, Open>,
    names: BTreeMap<PathBuf, FileId>,
    files: u32,
    steps: Vec<Step>,
    /// Lengths, for writes at the end.
    lens: BTreeMap<FileId, u64>,
}

fn read(
    text: &str,
    root: &Path,
    said: &Path,
    before: BTreeMap<PathBuf, FileId>,
) -> Result<Traced, TraceError> {
    let mut reader = Reader {
        root,
        said,
        open: BTreeMap::new(),
        names: before.clone(),
        files: before.len() as u32,
        steps: Vec::new(),
        lens: BTreeMap::new(),
    };
    for (path, file) in &before {
        reader
            .lens
            .insert(*file, std::fs::metadata(path).map_or(0, |m| m.len()));
    }
    // A call that another thread interrupted in the trace: its beginning, and how many steps there were.
    let mut begun: BTreeMap<&str, (String, usize)> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let unreadable = || TraceError::Unreadable {
            line: number + 1,
            text: line.chars().take(300).collect(),
        };
        let (thread, call) = line.split_once(' ').ok_or_else(unreadable)?;
        let call = call.trim_start();
        // A call that did not return before the process died promised nothing to anybody.
        let died_in_it = call.ends_with("= ?") || call.ends_with("<detached ...>");
        if call.starts_with("+++") || call.starts_with("---") || died_in_it {
            continue;
        }
        let now = reader.steps.len();
        if let Some(head) = call.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, (head.to_owned(), now));
            continue;
        }
        let (whole, begun_at) = match call.strip_prefix("<... ") {
            None => (call.to_owned(), now),
            Some(rest) => {
                let (_, tail) = rest.split_once(" resumed>").ok_or_else(unreadable)?;
                let (head, at) = begun.remove(thread).ok_or_else(unreadable)?;
                (head + tail, at)
            }
        };
        reader.call(&whole, begun_at).ok_or_else(unreadable)?;
    }
    Ok(Traced {
        steps: reader.steps,
        before,
    })
}

impl Reader<'_> {
    /// One call that ended; `None` if it is not understood.
    fn call(&mut self, call: &str, begun: usize) -> Option<()> {
        let (name, rest) = call.split_once('(')?;
        // The last one that a result follows: why a call failed stands in brackets, too.
        let result = |close: usize| rest[close + 1..].trim_start().strip_prefix("= ");
        let closes = rest.rmatch_indices(')').map(|(at, _)| at);
        let (close, result) = closes.filter_map(|at| Some((at, result(at)?))).next()?;
        let result: i64 = result.split(' ').next()?.parse().ok()?;
        if result < 0 {
            return Some(());
        }
        let args = arguments(&rest[..close]);
        match name {
            "ftruncate" | "fallocate" => self.length(name, &args),
            "rename" | "renameat" | "renameat2" | "link" | "linkat" | "unlink" | "unlinkat"
            | "rmdir" | "mkdir" | "mkdirat" => self.naming(name, &args),
            _ => self.content(name, &args, begun, result),
        }
    }

    /// A call on what is in a file.
    fn content(&mut self, name: &str, args: &[&str], begun: usize, result: i64) -> Option<()> {
        match name {
            "openat" => self.opened(&path(args.get(1)?)?, args.get(2)?, result),
            "creat" => self.opened(&path(args.first()?)?, "O_CREAT|O_TRUNC", result),
            "close" => {
                if let Some(Open::Said(rest)) = self.open.remove(&number(args.first()?)?) {
                    assert!(rest.is_empty(), "a line without an end");
                }
            }
            "write" => self.write(
                number(args.first()?)?,
                None,
                &content(args.get(1)?)?,
                result,
            ),
            "pwrite64" => {
                let at = number(args.get(3)?)? as u64;
                self.write(
                    number(args.first()?)?,
                    Some(at),
                    &content(args.get(1)?)?,
                    result,
                );
            }
            "lseek" => {
                if let Some(Open::File { at, .. }) = self.open.get_mut(&number(args.first()?)?) {
                    *at = result as u64;
                }
            }
            "fsync" | "fdatasync" => match self.open.get(&number(args.first()?)?) {
                Some(Open::File { file, .. }) => self.steps.push(Step::Sync { file: *file, begun }),
                Some(Open::Dir(path)) => {
                    let path = path.clone();
                    self.steps.push(Step::SyncDir { path, begun });
                }
                Some(Open::Said(_)) | None => {}
            },
            "dup" | "dup2" | "dup3" => {
                if let Some(open) = self.open.get(&number(args.first()?)?).cloned() {
                    self.open.insert(result, open);
                }
            }
            // Not used on data: refused, so that a new way to write is not overlooked.
            "writev" | "pwritev" | "sync" | "syncfs" | "copy_file_range" | "sendfile" => {
                let known = args.first().and_then(|fd| number(fd));
                let known = known.and_then(|fd| self.open.get(&fd));
                if known.is_some() {
                    return None;
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// A call that makes a file longer or shorter.
    fn length(&mut self, name: &str, args: &[&str]) -> Option<()> {
        let open = self.open.get(&number(args.first()?)?);
        let len = match name {
            "ftruncate" => number(args.get(1)?)? as u64,
            _ => {
                // Room that is kept for later changes nothing that one can read.
                let mode = args.get(1)?;
                let grows = !mode.contains("KEEP_SIZE") && *mode != "0x1" && *mode != "1";
                let to = (number(args.get(2)?)? + number(args.get(3)?)?) as u64;
                match open {
                    Some(Open::File { file, .. })
                        if grows && self.lens.get(file).copied().unwrap_or(0) < to =>
                    {
                        to
                    }
                    _ => return Some(()),
                }
            }
        };
        if let Some(Open::File { file, .. }) = open {
            let file = *file;
            self.lens.insert(file, len);
            self.steps.push(Step::SetLen { file, len });
        }
        Some(())
    }

    /// A call on names.
    fn naming(&mut self, name: &str, args: &[&str]) -> Option<()> {
        match name {
            "rename" => self.renamed(&path(args.first()?)?, &path(args.get(1)?)?),
            "renameat" | "renameat2" => self.renamed(&path(args.get(1)?)?, &path(args.get(3)?)?),
            "link" => self.linked(&path(args.first()?)?, &path(args.get(1)?)?),
            "linkat" => self.linked(&path(args.get(1)?)?, &path(args.get(3)?)?),
            "unlink" => self.removed(&path(args.first()?)?),
            "unlinkat" if args.get(2)?.contains("REMOVEDIR") => {
                self.removed_dir(&path(args.get(1)?)?);
            }
            "unlinkat" => self.removed(&path(args.get(1)?)?),
            "rmdir" => self.removed_dir(&path(args.first()?)?),
            "mkdir" => self.made_dir(path(args.first()?)?),
            "mkdirat" => self.made_dir(path(args.get(1)?)?),
            _ => return None,
        }
        Some(())
    }

    fn below_root(&self, path: &Path) -> bool {
        path.starts_with(self.root) && !is_nobodys(path)
    }

    fn opened(&mut self, path: &Path, flags: &str, fd: i64) {
        // The number may have been somebody else's before.
        self.open.remove(&fd);
        if path == self.said {
            self.open.insert(fd, Open::Said(Vec::new()));
            return;
        }
        if !self.below_root(path) && path != self.root {
            return;
        }
        if flags.contains("O_DIRECTORY") || path.is_dir() {
            self.open.insert(fd, Open::Dir(path.to_owned()));
            return;
        }
        let append = flags.contains("O_APPEND");
        let known = self.names.get(path).copied();
        let file = match known {
            Some(file) => {
                if flags.contains("O_TRUNC") && self.lens.get(&file).copied().unwrap_or(0) > 0 {
                    self.lens.insert(file, 0);
                    self.steps.push(Step::SetLen { file, len: 0 });
                }
                file
            }
            // A folder, opened without saying so.
            None if !flags.contains("O_CREAT") => {
                self.open.insert(fd, Open::Dir(path.to_owned()));
                return;
            }
            None => {
                let file = FileId(self.files);
                self.files += 1;
                self.names.insert(path.to_owned(), file);
                self.lens.insert(file, 0);
                let path = path.to_owned();
                self.steps.push(Step::Create { path, file });
                file
            }
        };
        self.open.insert(
            fd,
            Open::File {
                file,
                at: 0,
                append,
            },
        );
    }

    fn write(&mut self, fd: i64, offset: Option<u64>, bytes: &[u8], written: i64) {
        let bytes = &bytes[..bytes.len().min(written as usize)];
        match self.open.get_mut(&fd) {
            Some(Open::File { file, at, append }) => {
                let len = self.lens.entry(*file).or_default();
                let start = match offset {
                    Some(offset) => offset,
                    None if *append => *len,
                    None => *at,
                };
                let end = start + bytes.len() as u64;
                if offset.is_none() {
                    *at = end;
                }
                *len = (*len).max(end);
                let (file, at, bytes) = (*file, start, Arc::from(bytes));
                self.steps.push(Step::Write { file, at, bytes });
            }
            Some(Open::Said(line)) => {
                line.extend_from_slice(bytes);
                while let Some(end) = line.iter().position(|b| *b == b'\n') {
                    let said: Vec<u8> = line.drain(..=end).collect();
                    let said = String::from_utf8_lossy(&said[..end]).into_owned();
                    self.steps.push(Step::Said(said));
                }
            }
            Some(Open::Dir(_)) | None => {}
        }
    }

    fn renamed(&mut self, from: &Path, to: &Path) {
        if let Some(file) = self.names.remove(from) {
            self.names.insert(to.to_owned(), file);
            let (from, to) = (from.to_owned(), to.to_owned());
            self.steps.push(Step::Rename { from, to });
        }
    }

    fn linked(&mut self, from: &Path, to: &Path) {
        if let Some(file) = self.names.get(from).copied() {
            self.names.insert(to.to_owned(), file);
            let (from, to) = (from.to_owned(), to.to_owned());
            self.steps.push(Step::Link { from, to });
        }
    }

    fn removed(&mut self, path: &Path) {
        if self.names.remove(path).is_some() {
            let path = path.to_owned();
            self.steps.push(Step::Remove { path });
        }
    }

    fn made_dir(&mut self, path: PathBuf) {
        if self.below_root(&path) {
            self.steps.push(Step::MakeDir { path });
        }
    }

    fn removed_dir(&mut self, path: &Path) {
        if self.below_root(path) {
            let path = path.to_owned();
            self.steps.push(Step::RemoveDir { path });
        }
    }
}

/// Cuts at commas that are not within a text.
fn arguments(args: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut start, mut within) = (0, false);
    for (at, c) in args.bytes().enumerate() {
        match c {
            b'"' => within = !within,
            b',' if !within => {
                found.push(args[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(args[start..].trim());
    found
}

fn number(arg: &str) -> Option<i64> {
    arg.parse().ok()
}

/// A text in hexadecimal, as `-xx` writes it. One that was cut is not understood.
fn content(arg: &str) -> Option<Vec<u8>> {
    let hex = arg.strip_prefix('"')?.strip_suffix('"')?;
    let digit = |b: u8| (b as char).to_digit(16);
    let (chunks, []) = hex.as_bytes().as_chunks::<4>() else {
        return None;
    };
    let mut bytes = Vec::with_capacity(chunks.len());
    for [slash, x, high, low] in chunks {
        if (*slash, *x) != (b'\\', b'x') {
            return None;
        }
        bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
    }
    Some(bytes)
}

fn path(arg: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Some(std::ffi::OsString::from_vec(content(arg)?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> String {
        let bytes: String = text.bytes().map(|b| format!("\\x{b:02x}")).collect();
        format!("\"{bytes}\"")
    }

    fn steps(lines: &[String]) -> Vec<String> {
        let root = Path::new("/data");
        let read = read(&lines.join("\n"), root, Path::new("/said"), BTreeMap::new());
        let steps = read.expect("is understood").steps;
        steps.iter().map(|step| format!("{step:?}")).collect()
    }

    #[test]
    fn calls_of_several_threads_come_out_in_the_order_in_which_they_ended() {
        let (a, said) = (hex("/data/a"), hex("/said"));
        let found = steps(&[
            format!("7 openat(AT_FDCWD, {a}, O_RDWR|O_CREAT, 0644) = 3"),
            format!("7 openat(AT_FDCWD, {said}, O_WRONLY|O_CREAT, 0644) = 4"),
            format!("7 write(3, {}, 2) = 2", hex("ab")),
            "8 fdatasync(3 <unfinished ...>".to_owned(),
            format!("7 write(3, {}, 2) = 2", hex("cd")),
            "8 <... fdatasync resumed>) = 0".to_owned(),
            format!("8 write(4, {}, 4) = 4", hex("ack\n")),
            "7 +++ exited with 0 +++".to_owned(),
        ]);
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found[2].contains("at: 2"), "{found:?}");
        assert!(
            found[3].contains("begun: 2"),
            "what was written while it ran is not known to be on disk: {found:?}"
        );
        assert!(found[4].contains("ack"), "{found:?}");
    }

    #[test]
    fn what_is_elsewhere_and_what_failed_is_left_out() {
        let found = steps(&[
            format!(
                "7 openat(AT_FDCWD, {}, O_RDWR|O_CREAT, 0644) = 3",
                hex("/tmp/x")
            ),
            format!("7 write(3, {}, 2) = 2", hex("ab")),
            format!("7 unlink({}) = -1 ENOENT (No such file)", hex("/data/a")),
            format!(
                "7 openat(AT_FDCWD, {}, O_RDWR|O_CREAT, 0644) = 3",
                hex("/data/LOG")
            ),
        ]);
        assert!(found.is_empty(), "{found:?}");
    }

    /// The tracer may not even have read which call it was.
    #[test]
    fn what_a_thread_was_in_when_the_process_died_is_left_out() {
        let found = steps(&[
            format!(
                "7 openat(AT_FDCWD, {}, O_RDWR|O_CREAT, 0644) = 3",
                hex("/data/a")
            ),
            "8 fdatasync(3 <unfinished ...>".to_owned(),
            format!("7 write(3, {}, 2) = ?", hex("ab")),
            "9 ???( <detached ...>".to_owned(),
            "8 <... fdatasync resumed> <detached ...>".to_owned(),
            format!("10 write(3, {}, 2 <detached ...>", hex("ab")),
            "7 +++ killed by SIGABRT +++".to_owned(),
        ]);
        assert_eq!(found.len(), 1, "only that it was made: {found:?}");
    }
}
