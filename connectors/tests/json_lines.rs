//! JSON lines: whatever is left of the last part after a crash, its effect is all or nothing.

use hutong_connectors::{
    client::Delivered,
    sink::{Sink, SinkError},
    sinks::json_lines::{JsonLinesSink, Settings},
};
use hutong_proto::{
    Cursor, Delta, EntityId, Issuer, LogId, Micros, Offset, Provenance, Revision, Value,
    delta::{Colour, RiskLevel},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tempfile::TempDir;

fn cursor(at: u64) -> Cursor {
    Cursor {
        log_id: LogId(0xfeed),
        urgent: Offset(at),
        bulk: Offset(at + 1),
    }
}

fn delta(entity: u8, revision: u64) -> Delivered {
    let value = match entity % 2 {
        0 => Value::HealthCode(Colour::Red),
        _ => Value::AreaRisk {
            level: RiskLevel::High,
            path: vec!["安徽省".into(), "quoted \"\n".into()],
        },
    };
    Delivered {
        issuer: Issuer::new(340_000).expect("six digits"),
        offset: Offset(revision),
        durable_at: Micros(1_660_000_000_000_000),
        trace: None,
        delta: Delta {
            entity: EntityId([entity; 16]),
            revision: Revision(revision),
            committed_at: Micros(1_659_999_999_999_999),
            expires_at: Micros::ZERO,
            evidence: "e-1".into(),
            provenance: Arc::new(Provenance {
                authority: "安徽省疾控".into(),
                rule_id: "rule".into(),
                rule_version: 3,
                reason: "close contact".into(),
            }),
            value,
        },
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(TempDir::new().expect("a folder"))
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("out.jsonl")
    }

    fn sink(&self) -> JsonLinesSink {
        JsonLinesSink::new(Settings::new(self.file()), "s")
    }

    fn read(&self) -> Vec<u8> {
        fs::read(self.file()).expect("a file")
    }
}

fn lines(bytes: &[u8]) -> Vec<serde_json::Value> {
    let lines = bytes.split_inclusive(|b| *b == b'\n');
    lines
        .map(|line| serde_json::from_slice(line).expect("a line of JSON"))
        .collect()
}

#[tokio::test]
async fn lines_have_the_documented_keys() {
    let folder = Folder::new();
    let mut sink = folder.sink();
    assert_eq!(sink.start().await, Ok(None));
    sink.apply(&[delta(2, 5)], Some(cursor(6)))
        .await
        .expect("applied");
    sink.begin_snapshot().await.expect("begun");
    sink.apply(&[delta(1, 4)], None).await.expect("applied");
    sink.end_snapshot(cursor(9)).await.expect("ended");
    let lines = lines(&folder.read());
    let types: Vec<_> = lines
        .iter()
        .map(|l| l["type"].as_str().expect("a type"))
        .collect();
    assert_eq!(
        types,
        [
            "hutong",
            "delta",
            "cursor",
            "snapshot_begin",
            "delta",
            "snapshot_end"
        ]
    );
    let expected = serde_json::json!({
        "type": "delta", "issuer": 340_000, "kind": "health_code", "entity": "02".repeat(16), "revision": 5,
        "value": {"colour": "red"}, "committed_at_us": 1_659_999_999_999_999_u64, "expires_at_us": 0,
        "authority": "安徽省疾控", "rule_id": "rule", "rule_version": 3, "reason": "close contact",
        "evidence": "e-1", "offset": 5, "durable_at_us": 1_660_000_000_000_000_u64,
    });
    assert_eq!(lines[1], expected);
    assert_eq!(lines[2]["log_id"], "000000000000feed");
    assert_eq!(
        (&lines[2]["urgent"], &lines[2]["bulk"]),
        (&6.into(), &7.into())
    );
    assert_eq!(lines[4]["value"]["path"][1], "quoted \"\n");
}

#[tokio::test]
async fn a_torn_end_is_taken_away_wherever_it_was_torn() {
    let folder = Folder::new();
    let mut sink = folder.sink();
    sink.start().await.expect("starts");
    let header = folder.read().len();
    sink.apply(&[delta(1, 1), delta(2, 2)], Some(cursor(3)))
        .await
        .expect("applied");
    let before = folder.read().len();
    sink.apply(&[delta(1, 3), delta(3, 4)], Some(cursor(5)))
        .await
        .expect("applied");
    drop(sink);
    let whole = folder.read();
    for len in 0..=whole.len() {
        fs::write(folder.file(), &whole[..len]).expect("torn");
        let expected = match len {
            _ if len == whole.len() => (whole.len(), Some(cursor(5))),
            _ if len >= before => (before, Some(cursor(3))),
            _ => (header, None),
        };
        let mut sink = folder.sink();
        let stored = sink.start().await.expect("starts");
        assert_eq!((folder.read().len(), stored), expected, "torn at {len}");
        // What is sent again makes the file what it would have been.
        if stored == Some(cursor(3)) {
            sink.apply(&[delta(1, 3), delta(3, 4)], Some(cursor(5)))
                .await
                .expect("applied");
            assert_eq!(folder.read(), whole, "torn at {len}");
        }
    }
}

#[tokio::test]
async fn a_mark_that_reached_the_disk_before_its_lines_does_not_count() {
    let folder = Folder::new();
    let mut sink = folder.sink();
    sink.start().await.expect("starts");
    sink.apply(&[delta(1, 1)], Some(cursor(2)))
        .await
        .expect("applied");
    let before = folder.read().len();
    sink.apply(&[delta(1, 3), delta(3, 4)], Some(cursor(5)))
        .await
        .expect("applied");
    drop(sink);
    let whole = folder.read();
    let mark = whole[..whole.len() - 1]
        .iter()
        .rposition(|b| *b == b'\n')
        .expect("lines");
    for at in before..mark {
        let mut damaged = whole.clone();
        damaged[at] = 0;
        fs::write(folder.file(), damaged).expect("damaged");
        assert_eq!(
            folder.sink().start().await,
            Ok(Some(cursor(2))),
            "damaged at {at}"
        );
        assert_eq!(folder.read(), whole[..before], "damaged at {at}");
    }
}

#[tokio::test]
async fn an_end_longer_than_any_line_is_taken_away() {
    let folder = Folder::new();
    let mut sink = folder.sink();
    sink.start().await.expect("starts");
    sink.apply(&[delta(1, 1)], Some(cursor(2)))
        .await
        .expect("applied");
    drop(sink);
    let whole = folder.read();
    for filler in [0u8, b'x', b'\n'] {
        let mut longer = whole.clone();
        longer.resize(whole.len() + (3 << 20) + 17, filler);
        fs::write(folder.file(), longer).expect("longer");
        assert_eq!(folder.sink().start().await, Ok(Some(cursor(2))), "{filler}");
        assert_eq!(folder.read(), whole, "{filler}");
    }
}

#[tokio::test]
async fn a_snapshot_that_was_not_ended_leaves_nothing() {
    let folder = Folder::new();
    let mut sink = folder.sink();
    sink.start().await.expect("starts");
    sink.apply(&[delta(1, 1)], Some(cursor(2)))
        .await
        .expect("applied");
    let before = folder.read();
    sink.begin_snapshot().await.expect("begun");
    for n in 0..100 {
        sink.apply(&[delta(n, 7)], None).await.expect("applied");
    }
    // A start while it is open is a start anew as well.
    assert_eq!(sink.start().await, Ok(Some(cursor(2))));
    assert_eq!(folder.read(), before);
    let error = sink.end_snapshot(cursor(9)).await.expect_err("not begun");
    assert!(error.passing, "{error}");
}

#[tokio::test]
async fn a_dropped_call_leaves_all_or_nothing() {
    let folder = Folder::new();
    let mut sink = folder.sink();
    let mut at = sink
        .start()
        .await
        .expect("starts")
        .map_or(0, |c| c.urgent.0);
    let mut written = 0;
    for round in 1..60_u64 {
        let deltas: Vec<_> = (0..50).map(|n| delta(n, round)).collect();
        let cut = std::time::Duration::from_micros(round * 37 % 900);
        let applied = tokio::time::timeout(cut, sink.apply(&deltas, Some(cursor(at + 1)))).await;
        if applied.is_err() {
            let stored = sink
                .start()
                .await
                .expect("starts")
                .map_or(0, |c| c.urgent.0);
            assert!(stored == at || stored == at + 1, "{stored} after {at}");
            written += usize::from(stored > at) * 50;
            at = stored;
        } else {
            written += 50;
            at += 1;
        }
        let lines = lines(&folder.read());
        assert_eq!(
            lines.iter().filter(|l| l["type"] == "delta").count(),
            written
        );
    }
    assert!(written > 0);
}

#[tokio::test]
async fn nothing_counts_as_kept_in_a_file_that_is_cut_or_taken_away() {
    type Deed = fn(&Path);
    let deeds: [(&str, Deed, Option<u64>); 4] = [
        ("cut to nothing", |p| fs::write(p, "").expect("cut"), None),
        (
            "cut in the middle",
            |p| {
                let bytes = fs::read(p).expect("a file");
                fs::write(p, &bytes[..bytes.len() - 10]).expect("cut");
            },
            Some(6),
        ),
        ("removed", |p| fs::remove_file(p).expect("removed"), None),
        (
            "moved away and made anew",
            |p| {
                fs::rename(p, p.with_extension("1")).expect("moved");
                fs::write(p, "").expect("made");
            },
            None,
        ),
    ];
    for (what, deed, stands_at) in deeds {
        let folder = Folder::new();
        let mut sink = folder.sink();
        assert_eq!(sink.start().await, Ok(None));
        for n in [5, 8] {
            let applied = sink.apply(&[delta(2, n)], Some(cursor(n + 1))).await;
            applied.expect("applied");
        }
        deed(&folder.file());
        let error = sink
            .apply(&[delta(2, 12)], Some(cursor(13)))
            .await
            .expect_err(what);
        assert!(error.passing, "{what}: {error}");
        assert!(error.message.contains("another program"), "{what}: {error}");
        // It begins with what is there.
        let stored = sink.start().await.expect("opened again");
        assert_eq!(stored, stands_at.map(cursor), "{what}");
        let applied = sink.apply(&[delta(2, 12)], Some(cursor(13))).await;
        applied.expect("applied");
        assert!(!folder.read().contains(&0), "{what}: no holes");
        lines(&folder.read());
    }
}

#[tokio::test]
async fn a_file_of_somebody_else_is_left_alone() {
    let folder = Folder::new();
    let refused = async |mut sink: JsonLinesSink| -> SinkError {
        let before = folder.read();
        let error = sink.start().await.expect_err("refused");
        assert_eq!(folder.read(), before);
        error
    };
    fs::write(folder.file(), "precious").expect("written");
    let error = refused(folder.sink()).await;
    assert!(
        !error.passing && error.message.contains("does not begin with"),
        "{error}"
    );
    fs::remove_file(folder.file()).expect("removed");
    let mut sink = folder.sink();
    sink.start().await.expect("starts");
    drop(sink);
    let other = JsonLinesSink::new(Settings::new(folder.file()), "other");
    let error = refused(other).await;
    assert!(
        !error.passing && error.message.contains("not of this subscription"),
        "{error}"
    );
}

/// What was written to it, for those who look.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Pipe {
    fn sink(&self, settings: Settings) -> JsonLinesSink {
        JsonLinesSink::to_writer(settings, "s", self.0.clone())
    }
}

#[tokio::test]
async fn standard_output_starts_where_it_is_told_or_at_its_cursor_file() {
    let folder = TempDir::new().expect("a folder");
    let pipe = Pipe::default();
    let cursor_file = folder.path().join("cursor");
    let settings = Settings {
        from: Some(cursor(3)),
        cursor_file: Some(cursor_file.clone()),
        ..Settings::new("-")
    };
    let mut sink = pipe.sink(settings.clone());
    assert_eq!(sink.start().await, Ok(Some(cursor(3))));
    sink.apply(&[delta(1, 1)], Some(cursor(5)))
        .await
        .expect("applied");
    assert_eq!(
        pipe.sink(settings.clone()).start().await,
        Ok(Some(cursor(5)))
    );
    assert_eq!(
        fs::read_to_string(&cursor_file).expect("a file"),
        "000000000000feed:5/6\n"
    );
    let types: Vec<_> = lines(&pipe.0.lock().expect("not poisoned"))
        .iter()
        .map(|l| l["type"].clone())
        .collect();
    assert_eq!(types, ["delta", "cursor"]);
    fs::write(&cursor_file, "feed").expect("written");
    let error = pipe.sink(settings).start().await.expect_err("damaged");
    assert!(
        !error.passing && error.message.contains("is no cursor"),
        "{error}"
    );
}

#[test]
fn settings_are_read_and_mistakes_reported() {
    let read = |text: &str| {
        let doc = hutong_config::Document::parse("c.toml", text);
        let settings = Settings::read(&mut doc.root());
        doc.finish(settings)
    };
    let settings = read("path = \"-\"\nfrom = \"feed:3/4\"\n").expect("valid");
    assert_eq!(
        (settings.path.as_path(), settings.from),
        (Path::new("-"), Some(cursor(3)))
    );
    let errors = read("path = \"f\"\nfrom = \"3\"\ncursor_file = \"c\"\n").expect_err("mistakes");
    assert_eq!(errors.count(), 3, "{errors}");
}
