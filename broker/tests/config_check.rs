//! `hutong-broker check`, as an operator runs it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn broker(arguments: &[&str], file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hutong-broker"))
        .args(arguments)
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .expect("run")
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/broker.toml")
}

const FIVE: &str = r#"identity = "trail"

[listen]
grpc = "127.0.0.1"

[data]
directory = "/var/lib/hutong"

[retenton]
age = "7d"

[[platforms]]
code = 3400
name = "Anhui"
"#;

fn five(dir: &Path) -> PathBuf {
    let file = dir.join("five.toml");
    // The misspelt key is the one unknown word of its table, so it counts once.
    std::fs::write(&file, FIVE.replace("directory", "dri")).expect("write");
    file
}

/// The report, after checking that it is one of five mistakes.
fn report_of_five(arguments: &[&str]) -> String {
    let dir = tempfile::tempdir().expect("temp dir");
    let file = five(dir.path());
    let output = broker(arguments, &file);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn five_mistakes_are_reported_at_once_with_line_and_caret() {
    let report = report_of_five(&["check"]);
    for (place, line, help) in [
        (
            "five.toml:1:12]",
            "1 | identity = \"trail\"",
            "did you mean \"trial\"?",
        ),
        (
            "five.toml:4:8]",
            "4 | grpc = \"127.0.0.1\"",
            "\"127.0.0.1:7400\"",
        ),
        (
            "five.toml:7:1]",
            "7 | dri = \"/var/lib/hutong\"",
            "did you mean `dir`?",
        ),
        (
            "five.toml:9:2]",
            "9 | [retenton]",
            "did you mean `retention`?",
        ),
        ("five.toml:13:8]", "13 | code = 3400", "GB/T 2260"),
    ] {
        assert!(report.contains(place), "{place}:\n{report}");
        assert!(report.contains(line), "{line}:\n{report}");
        assert!(report.contains(help), "{help}:\n{report}");
    }
    let carets = report.lines().filter(|line| line.trim_end().ends_with('^'));
    assert_eq!(carets.count(), 5, "{report}");
    assert!(report.contains("5 errors in "), "{report}");
    assert!(
        !report.contains('\u{1b}'),
        "colours without a terminal:\n{report}"
    );
}

#[test]
fn running_with_a_wrong_file_ends_with_the_same_report_before_a_port_is_bound() {
    let report = report_of_five(&["run"]);
    assert!(report.contains("5 errors in "), "{report}");
    assert!(
        !report.contains("listening") && !report.contains("starting"),
        "{report}"
    );
}

#[test]
fn the_example_is_right_and_names_32_platforms() {
    let output = broker(&["check"], &example());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.starts_with("OK  "), "{text}");
    assert!(text.contains("32 with 35 shards"), "{text}");
    assert!(output.stderr.is_empty(), "{text}");
}

#[test]
fn the_example_says_the_defaults() {
    use hutong_broker::config::Config;
    let example = Config::load(&example()).expect("right");
    let short = "identity = \"trial\"\ndata.dir = \"/var/lib/hutong\"\n\
                 [[platforms]]\ncode = 110000\nname = \"Beijing\"\nname_zh = \"北京\"\n";
    let mut defaults = Config::parse("short.toml", short).expect("right");
    // Each platform has its own people there.
    defaults.platforms[0].population = example.platforms[0].population;
    assert_eq!(example.platforms[0], defaults.platforms[0]);
    defaults.platforms.clone_from(&example.platforms);
    assert_eq!(example, defaults);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = broker(&["check"], Path::new("no-such-file.toml"));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(
        text.contains("cannot read no-such-file.toml: no such file"),
        "{text}"
    );
}

#[test]
fn the_exit_codes_are_in_the_help() {
    let output = broker(&["run"], Path::new("--help"));
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        text.contains("Exit codes:") && text.contains("SIGTERM"),
        "{text}"
    );
}
