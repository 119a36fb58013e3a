//! Registers as lines of JSON, appended to a file or written to standard output.
//!
//! Each line is an object with a `type`:
//!
//! | `type` | other keys |
//! |---|---|
//! | `hutong` | `version`, `subscription`; the first line of a file |
//! | `delta` | `issuer`, `kind`, `entity` (hexadecimal), `revision`, `value`, `committed_at_us`, `expires_at_us` (0: never), `authority`, `rule_id`, `rule_version`, `reason`, `evidence`, `offset`, and `durable_at_us` (0 in a snapshot) |
//! | `cursor` | `log_id`, `urgent`, `bulk`: everything before it is complete; `bytes` and `sha256` of the lines since the last such line |
//! | `snapshot_begin` | none |
//! | `snapshot_end` | as `cursor`: registers that were not mentioned since `snapshot_begin` are gone |
//!
//! A reader keeps the highest revision of each register; a snapshot can repeat what it has.
//!
//! **Files** have the effect of every line exactly once: lines and cursor are synced together, and at a start
//! everything after the last `cursor` or `snapshot_end` whose hash is right is taken away. So a line
//! is only final when such a line follows it. The file is locked while it is in use.
//!
//! **Standard output** (`path = "-"`) has no way back: it starts at `from` or at what `cursor_file` holds, which is
//! replaced after every part that was written, so after a crash a part may come twice.

mod journal;
mod lines;

use crate::{
    client::Delivered,
    sink::{Sink, SinkError},
};
use hutong_config::{Table, read};
use hutong_proto::Cursor;
use journal::Journal;
use lines::MarkType;
use std::{
    fmt,
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// A cursor without lines is only written this often: resuming at an older one changes nothing.
const BOOKMARK_EVERY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `-` is standard output.
    pub path: PathBuf,
    /// Standard output only: where to start when there is no cursor file yet.
    pub from: Option<Cursor>,
    /// Standard output only: keeps the cursor.
    pub cursor_file: Option<PathBuf>,
}

/// What is no cursor as it is written in settings, cursor files and messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no cursor; one looks like 00c0ffee00c0ffee:17/42")]
pub struct LineError(String);

/// For [`read::parsed`].
struct CursorText(Cursor);

impl FromStr for CursorText {
    type Err = LineError;

    fn from_str(text: &str) -> Result<CursorText, LineError> {
        lines::parse_cursor(text).map(CursorText)
    }
}

impl Settings {
    pub fn new(path: impl Into<PathBuf>) -> Settings {
        Settings {
            path: path.into(),
            from: None,
            cursor_file: None,
        }
    }

    /// Reads `[sink]`.
    pub fn read(table: &mut Table<'_>) -> Option<Settings> {
        let path: Option<PathBuf> = table.required("path");
        let from = table.optional_as("from", read::parsed::<CursorText>("a cursor"));
        let cursor_file = table.optional("cursor_file");
        let to_file = path.as_ref().is_some_and(|path| path != Path::new("-"));
        for key in ["from", "cursor_file"] {
            if to_file && table.has(key) {
                let message =
                    format!("`{key}` is only for standard output: a file keeps its cursor itself");
                table.fail(key, message, "leave it out, or write path = \"-\"");
            }
        }
        Some(Settings {
            path: path?,
            from: from.map(|text| text.0),
            cursor_file,
        })
    }
}

/// See the module.
pub struct JsonLinesSink {
    settings: Settings,
    subscription: String,
    /// Standard output, or what is in its place; otherwise it is a file.
    stream: Option<Stream>,
    open: Option<Open>,
}

/// A job that writes has it locked until it is done, also when nobody waits for it any more.
type Stream = Arc<Mutex<dyn Write + Send>>;

/// From a start to the first error.
struct Open {
    output: Output,
    in_snapshot: bool,
    stored: Option<Cursor>,
    marked: Instant,
}

enum Output {
    File(Journal),
    Stream {
        to: Stream,
        cursor_file: Option<PathBuf>,
        check: lines::Check,
    },
}

impl fmt::Debug for JsonLinesSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLinesSink")
            .field("settings", &self.settings)
            .field("subscription", &self.subscription)
            .finish_non_exhaustive()
    }
}

impl JsonLinesSink {
    pub fn new(settings: Settings, subscription: impl Into<String>) -> JsonLinesSink {
        let stdout = settings.path == Path::new("-");
        JsonLinesSink {
            settings,
            subscription: subscription.into(),
            stream: stdout.then(|| Arc::new(Mutex::new(std::io::stdout())) as Stream),
            open: None,
        }
    }

    /// Writes to `to` what would go to standard output.
    pub fn to_writer(
        settings: Settings,
        subscription: impl Into<String>,
        to: Arc<Mutex<dyn Write + Send>>,
    ) -> JsonLinesSink {
        JsonLinesSink {
            settings,
            subscription: subscription.into(),
            stream: Some(to),
            open: None,
        }
    }

    fn begin(&mut self) -> Result<Open, SinkError> {
        let message = || format!("{} is not open", self.settings.path.display());
        self.open
            .take()
            .ok_or_else(|| SinkError::passing(message()))
    }

    /// Appends and, with a mark, makes durable. A call that fails or is dropped leaves the sink
    /// closed: what it wrote counts only if its mark is complete.
    async fn write(
        &mut self,
        mut open: Open,
        lines: Vec<u8>,
        mark: Option<(MarkType, Cursor)>,
    ) -> Result<(), SinkError> {
        let (mut open, written) = blocking(move || {
            let written = open.output.write(&lines, mark);
            (open, written)
        })
        .await?;
        written?;
        if let Some((_, cursor)) = mark {
            open.stored = Some(cursor);
            open.marked = Instant::now();
        }
        self.open = Some(open);
        Ok(())
    }
}

impl Output {
    fn write(&mut self, lines: &[u8], mark: Option<(MarkType, Cursor)>) -> Result<(), SinkError> {
        match self {
            Output::File(journal) => {
                let complete = |journal: &mut Journal| {
                    mark.map_or(Ok(()), |(r#type, cursor)| journal.mark(r#type, cursor))
                };
                if planted!(LinesCursorApart) {
                    complete(journal)?;
                    return journal.append(lines);
                }
                journal.append(lines)?;
                complete(journal)
            }
            Output::Stream {
                to,
                cursor_file,
                check,
            } => {
                let failed =
                    |e| SinkError::lasting(format!("standard output cannot be written: {e}"));
                let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                to.write_all(lines).map_err(failed)?;
                check.add(lines);
                let Some((r#type, cursor)) = mark else {
                    return Ok(());
                };
                let mark = lines::Mark::new(r#type, cursor, &std::mem::take(check));
                to.write_all(&mark.to_line())
                    .and_then(|()| to.flush())
                    .map_err(failed)?;
                cursor_file
                    .as_ref()
                    .map_or(Ok(()), |file| keep_cursor(file, cursor))
            }
        }
    }
}

fn keep_cursor(path: &Path, cursor: Cursor) -> Result<(), SinkError> {
    let sync = |place: &Path| std::fs::File::open(place)?.sync_all();
    let message = |e| format!("cursor file {}: cannot be written: {e}", path.display());
    replace(path, &format!("{cursor}\n"), sync).map_err(|e| SinkError::passing(message(e)))
}

/// Either the old or the new one is there after a crash, and once it returned the new one: the name is
/// in the folder, which is synced as well.
fn replace(
    path: &Path,
    text: &str,
    mut sync: impl FnMut(&Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let new = path.with_added_extension("new");
    std::fs::write(&new, text)?;
    sync(&new)?;
    std::fs::rename(&new, path)?;
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty());
    sync(folder.unwrap_or(Path::new(".")))
}

fn kept_cursor(path: &Path) -> Result<Option<Cursor>, SinkError> {
    let place = path.display();
    match std::fs::read_to_string(path) {
        Ok(text) => lines::parse_cursor(&text).map(Some).map_err(|e| {
            SinkError::lasting(format!("cursor file {place}: {e}; correct or remove it"))
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(SinkError::passing(format!(
            "cursor file {place}: cannot be read: {e}"
        ))),
    }
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SinkError> {
    let done = tokio::task::spawn_blocking(job).await;
    done.map_err(|e| SinkError::lasting(format!("writing broke off: {e}")))
}

impl Sink for JsonLinesSink {
    fn name(&self) -> &'static str {
        "json-lines"
    }

    async fn start(&mut self) -> Result<Option<Cursor>, SinkError> {
        self.open = None;
        let (output, stored) = if let Some(to) = &self.stream {
            let cursor_file = self.settings.cursor_file.clone();
            let kept = cursor_file.as_deref().map_or(Ok(None), kept_cursor)?;
            let output = Output::Stream {
                to: Arc::clone(to),
                cursor_file,
                check: lines::Check::default(),
            };
            (output, kept.or(self.settings.from))
        } else {
            let (path, subscription) = (self.settings.path.clone(), self.subscription.clone());
            let (journal, cursor) = blocking(move || Journal::open(&path, &subscription)).await??;
            (Output::File(journal), cursor)
        };
        self.open = Some(Open {
            output,
            in_snapshot: false,
            stored,
            marked: Instant::now(),
        });
        Ok(stored)
    }

    async fn begin_snapshot(&mut self) -> Result<(), SinkError> {
        let mut open = self.begin()?;
        open.in_snapshot = true;
        self.write(open, lines::snapshot_begin(), None).await
    }

    async fn apply(
        &mut self,
        deltas: &[Delivered],
        cursor: Option<Cursor>,
    ) -> Result<(), SinkError> {
        let open = self.begin()?;
        let lines = deltas.iter().flat_map(lines::delta).collect();
        self.write(open, lines, cursor.map(|cursor| (MarkType::Cursor, cursor)))
            .await
    }

    async fn end_snapshot(&mut self, cursor: Cursor) -> Result<(), SinkError> {
        let mut open = self.begin()?;
        if !open.in_snapshot {
            return Err(SinkError::passing("a snapshot ends that was not begun"));
        }
        open.in_snapshot = false;
        self.write(open, Vec::new(), Some((MarkType::SnapshotEnd, cursor)))
            .await
    }

    async fn bookmark(&mut self, cursor: Cursor) -> Result<(), SinkError> {
        let open = self.begin()?;
        let due = open.marked.elapsed() >= BOOKMARK_EVERY && open.stored != Some(cursor);
        if due && !open.in_snapshot {
            return self
                .write(open, Vec::new(), Some((MarkType::Cursor, cursor)))
                .await;
        }
        self.open = Some(open);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_synced_before_it_has_its_name_and_then_the_name_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("cursor");
        std::fs::write(&path, "old").expect("written");
        let mut synced = Vec::new();
        replace(&path, "new", |place| {
            let here = std::fs::read_to_string(&path).expect("there at any moment");
            synced.push((place.to_owned(), here));
            Ok(())
        })
        .expect("replaced");
        let expected = [
            (path.with_added_extension("new"), "old".to_owned()),
            (dir.path().to_owned(), "new".to_owned()),
        ];
        assert_eq!(synced, expected);
        let lost = std::io::Error::other("the disk is gone");
        let mut lost = Some(lost);
        let failed = replace(&path, "newer", |place| match place == dir.path() {
            true => Err(lost.take().expect("once")),
            false => Ok(()),
        });
        assert!(
            failed.is_err(),
            "a name that may be lost is not taken for kept"
        );
    }

    #[test]
    fn a_cursor_is_read_back() {
        let cursor = Cursor {
            log_id: hutong_proto::LogId(7),
            urgent: hutong_proto::Offset(1),
            bulk: hutong_proto::Offset(2),
        };
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("cursor");
        keep_cursor(&path, cursor).expect("kept");
        assert_eq!(kept_cursor(&path).expect("read"), Some(cursor));
    }
}
