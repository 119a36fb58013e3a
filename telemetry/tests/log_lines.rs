//! What the log looks like, seen from outside: this test runs itself as a child.

use hutong_telemetry::{LogFormat, LogsError, logs};
use std::process::{Command, Stdio};

const FORMAT: &str = "HUTONG_TEST_LOG_FORMAT";

/// In the child: writes lines. In the parent: nothing.
#[test]
fn child() {
    let Ok(word) = std::env::var(FORMAT) else {
        return;
    };
    let (_, format) = LogFormat::WORDS
        .into_iter()
        .find(|(name, _)| *name == word)
        .expect("a format");
    logs::init(format, "info,quiet=off").expect("first");
    assert!(matches!(logs::init(format, "info"), Err(LogsError::Twice)));
    tracing::info!(platform = 340_000, "listening");
    tracing::debug!("not shown");
    tracing::error!(target: "quiet", "not shown");
}

fn lines(format: &str) -> Vec<String> {
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child", "--nocapture"])
        .env(FORMAT, format)
        .stdin(Stdio::null())
        .output()
        .expect("run");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!text.contains("not shown"), "{text}");
    assert!(
        !text.contains('\u{1b}'),
        "colours without a terminal: {text}"
    );
    let lines = text.lines().filter(|line| line.contains("listening"));
    lines.map(str::to_owned).collect()
}

#[test]
fn text_is_one_line_without_colours_when_nobody_looks() {
    let lines = lines("text");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains(" INFO ") && lines[0].contains("platform=340000"),
        "{lines:?}"
    );
}

#[test]
fn json_is_one_object_with_the_fields() {
    let lines = lines("json");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].starts_with('{') && lines[0].ends_with('}'),
        "{lines:?}"
    );
    assert!(lines[0].contains("\"message\":\"listening\""), "{lines:?}");
    assert!(lines[0].contains("\"platform\":340000"), "{lines:?}");
}
