//! What the sinks have, read from outside as their users would, and how it differs from what they
//! must have.

use crate::lists::{Change, Expected, History, Path4, Standing, View};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fmt::{self, Debug},
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
};
use tokio_postgres::Client;

/// One area of which a sink has something else than it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub area: String,
    pub expected: String,
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            area,
            expected,
            found,
        } = self;
        write!(f, "{area}: expected {expected}, found {found}")
    }
}

/// Every area with another value on the other side, or on one side only.
pub fn differences<T: Debug + PartialEq>(
    expected: &BTreeMap<Path4, T>,
    found: &BTreeMap<Path4, T>,
) -> Vec<Difference> {
    let text = |value: Option<&T>| value.map_or("nothing".to_owned(), |v| format!("{v:?}"));
    let missing = found.keys().filter(|path| !expected.contains_key(*path));
    let paths = expected.keys().chain(missing);
    let differ = paths.filter(|path| expected.get(*path) != found.get(*path));
    differ
        .map(|path| Difference {
            area: path.join("/"),
            expected: text(expected.get(path)),
            found: text(found.get(path)),
        })
        .collect()
}

/// Panics with the first differences, if there is one.
pub fn check_equal<T: Debug + PartialEq>(
    what: &str,
    expected: &BTreeMap<Path4, T>,
    found: &BTreeMap<Path4, T>,
) {
    let all = differences(expected, found);
    let some: Vec<_> = all.iter().take(10).map(Difference::to_string).collect();
    assert!(
        all.is_empty(),
        "{what}: {} of {} areas differ:\n{}",
        all.len(),
        expected.len(),
        some.join("\n")
    );
}

/// The table that the PostgreSQL sink keeps.
pub async fn table(client: &Client) -> View {
    let statement = "SELECT path, issuer, status, kind, value->>'level' FROM hutong_registers";
    let rows = client.query(statement, &[]).await.expect("rows");
    let mut view = View::new();
    for row in rows {
        let (path, level): (Path4, String) = (row.get(0), row.get(2));
        assert_eq!(row.get::<_, &str>(3), "area_risk");
        assert_eq!(row.get::<_, &str>(4), level, "both columns say it");
        let issuer = u32::try_from(row.get::<_, i32>(1)).expect("a code");
        let before = view.insert(path.clone(), Standing { issuer, level });
        assert_eq!(before, None, "two rows for {}", path.join("/"));
    }
    view
}

/// A line of the JSON-lines sink, as its documentation says.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    Hutong {
        version: u32,
    },
    Delta {
        issuer: u32,
        kind: String,
        entity: String,
        revision: u64,
        value: AreaRisk,
        committed_at_us: u64,
    },
    Cursor {},
    SnapshotBegin,
    SnapshotEnd {},
}

#[derive(Deserialize)]
struct AreaRisk {
    level: String,
    path: Path4,
}

/// What a reader of the lines has: it goes on reading where it stopped.
pub struct Lines {
    file: PathBuf,
    read_bytes: u64,
    pub view: View,
    pub history: History,
    /// Of each entity, which a reader uses as the key.
    revisions: BTreeMap<String, u64>,
    pub snapshots: u32,
    /// Everything that was read is final.
    complete: bool,
}

impl Lines {
    pub fn new(file: &Path) -> Lines {
        Lines {
            file: file.to_owned(),
            read_bytes: 0,
            view: View::new(),
            history: History::new(),
            revisions: BTreeMap::new(),
            snapshots: 0,
            complete: true,
        }
    }

    /// Reads what was added. Only when the sink is at rest: lines without a cursor behind them may
    /// be taken away again.
    pub fn read(&mut self) {
        let mut file = File::open(&self.file).expect("the lines");
        let bytes = file.metadata().expect("its size").len();
        assert!(bytes >= self.read_bytes, "final lines were taken away");
        file.seek(SeekFrom::Start(self.read_bytes)).expect("sought");
        for line in BufReader::new(file).split(b'\n') {
            let line = line.expect("read");
            self.take(serde_json::from_slice(&line).unwrap_or_else(|e| {
                panic!("{e} in the line {:?}", String::from_utf8_lossy(&line));
            }));
        }
        self.read_bytes = bytes;
        assert!(self.complete, "the lines end with a cursor");
    }

    fn take(&mut self, line: Line) {
        self.complete = !matches!(line, Line::Delta { .. } | Line::SnapshotBegin);
        match line {
            Line::Hutong { version } => assert_eq!(version, 1),
            Line::SnapshotBegin => self.snapshots += 1,
            Line::Cursor {} | Line::SnapshotEnd {} => {}
            Line::Delta {
                issuer,
                kind,
                entity,
                revision,
                value: AreaRisk { level, path },
                committed_at_us,
            } => {
                assert_eq!(kind, "area_risk");
                let changes = self.history.entry(path.clone()).or_default();
                changes.push(Change {
                    level: level.clone(),
                    at_us: committed_at_us,
                });
                let newest = self.revisions.entry(entity).or_default();
                if *newest < revision {
                    *newest = revision;
                    self.view.insert(path, Standing { issuer, level });
                }
            }
        }
    }

    /// The state, and each change exactly once and in order: nothing lost, nothing doubled.
    pub fn check(&self, when: &str, expected: &Expected) {
        check_equal(
            &format!("{when}: state by lines"),
            &expected.view,
            &self.view,
        );
        let what = format!("{when}: changes by lines");
        check_equal(&what, &expected.history, &self.history);
    }
}

/// Counts lines while they are written.
pub struct Progress {
    file: PathBuf,
}

impl Progress {
    pub fn new(file: &Path) -> Progress {
        Progress {
            file: file.to_owned(),
        }
    }

    /// Deltas in the file now, final or not.
    pub fn deltas(&self) -> u64 {
        let text = std::fs::read(&self.file).expect("the lines");
        let start = b"{\"type\":\"delta\"";
        text.split(|b| *b == b'\n')
            .filter(|line| line.starts_with(start))
            .count() as u64
    }
}
