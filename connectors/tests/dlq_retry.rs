//! `hutong-connect dlq retry` with real programs: what was mended arrives, in both lanes, and a person sees how far
//! it is.

#[path = "replay/processes.rs"]
mod processes;

use hutong_connectors::{
    checkpoint::StateFolder,
    dlq::{DeadLetters, NewLetter},
    source::SourceRow,
};
use hutong_proto::{Micros, Revision};
use processes::Broker;
use serde_json::json;
use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

/// More than one batch of a retry.
const LETTERS: u64 = 1_200;
const AT: Micros = Micros(1_661_950_800_000_000);

/// Tests of as many persons, every third of them positive.
fn letters() -> Vec<NewLetter> {
    let letter = |n: u64| {
        let outcome = if n.is_multiple_of(3) {
            "positive"
        } else {
            "negative"
        };
        let fields = json!({"person": format!("{:032x}", n + 1), "outcome": outcome, "at": AT.0});
        NewLetter {
            row: SourceRow {
                fields: fields.as_object().expect("an object").clone(),
                place: format!("row {n}"),
                revision: Revision(n + 1),
                committed_at: AT,
            },
            reason: "VALUE_UNMAPPED".to_owned(),
            field: "outcome".to_owned(),
            message: "it had no mapping".to_owned(),
        }
    };
    (0..LETTERS).map(letter).collect()
}

fn configure(dir: &Path, broker: &Broker) {
    let state = dir.join("state").display().to_string();
    let text = format!(
        r#"name = "tests"
identity = "platform/340000"
broker.address = "{}"
state.dir = "{state}"
source = {{ type = "snapshot-folder", dir = "{state}", format = "risk-levels" }}
provenance = {{ authority = "a", rule_id = "r", rule_version = 1, reason = "because" }}
[mapping]
kind = "test_result"
entity = {{ pseudonym = "person" }}
outcome = {{ field = "outcome", canonical = true }}
sampled_at = {{ field = "at", format = "unix-us" }}
"#,
        broker.address()
    );
    fs::write(dir.join("c.toml"), text).expect("written");
}

/// Its standard error is a terminal, as a person has it.
fn on_a_terminal(dir: &Path, arguments: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_hutong-connect");
    Command::new("script")
        .args(["--quiet", "--return", "--command"])
        .arg(format!("{program} {arguments}"))
        .arg("/dev/null")
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("script runs")
}

#[test]
fn what_was_mended_arrives_and_a_person_sees_how_far_it_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = Broker::start(dir.path(), "[[platforms]]\ncode = 340000\nname = \"p\"\n");
    configure(dir.path(), &broker);
    let folder = StateFolder::new(&dir.path().join("state"), "tests");
    let mut store = DeadLetters::open(&folder, 64 << 20).expect("opened");
    store.add(letters(), AT).expect("kept");

    let output = on_a_terminal(dir.path(), "dlq retry c.toml");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("retrying"), "{text}");
    assert!(text.contains(&format!(" of {LETTERS}")), "{text}");
    assert!(
        text.contains(&format!("{LETTERS} published, 0 not newer")),
        "{text}"
    );
    assert!(store.contents().expect("read").letters.is_empty());
}
