//! `hutong-connect` as a person or a script meets it.

use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// A connector's file in a folder of its own, with its source and its state.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("a folder");
        let place = Place { dir };
        fs::create_dir(place.path("in")).expect("created");
        fs::write(place.path("key"), "ab".repeat(32)).expect("written");
        place.write_config("level = { field = \"level\", canonical = true }");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_config(&self, level: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            r#"name = "anhui-risk"
identity = "platform/340000"
broker.address = "http://127.0.0.1:9"
state.dir = "{dir}/state"
source = {{ type = "snapshot-folder", dir = "{dir}/in", format = "risk-levels" }}
mapping = {{ kind = "area_risk", entity = {{ area = "path" }}, {level} }}
provenance = {{ authority = "a", rule_id = "r", rule_version = 1, reason = "名单" }}
"#
        );
        fs::write(self.path("c.toml"), text).expect("written");
    }

    fn write_list(&self) {
        let area = |province: &str, communitys: &[&str]| {
            json!({"type": "2", "province": province, "city": "宿州市", "county": "泗县",
                "area_name": format!("{province} 宿州市 泗县"), "communitys": communitys})
        };
        let list = json!({"code": 0, "msg": "", "data": {
            "end_update_time": "2022-08-31 21时", "hcount": 2, "mcount": 1, "lcount": 0,
            "highlist": [area("安徽省", &["草沟镇", "大庄镇"])],
            "middlelist": [area("安徽省", &["长沟镇"])], "lowlist": [],
        }});
        fs::write(self.path("in/2022083121-00000000.json"), list.to_string()).expect("written");
    }

    fn run(&self, arguments: &[&str]) -> Output {
        connect(&self.dir, arguments)
    }
}

fn connect(dir: impl AsRef<Path>, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hutong-connect"))
        .args(arguments)
        .current_dir(dir)
        .env("NO_COLOR", "1")
        .output()
        .expect("it starts")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn check_exit(output: &Output, code: i32) {
    let status = output.status.code();
    assert_eq!(status, Some(code), "{}{}", out(output), err(output));
}

#[test]
fn check_says_that_a_file_is_fine() {
    let output = Place::new().run(&["check", "c.toml"]);
    check_exit(&output, 0);
    assert!(out(&output).contains("source `anhui-risk` of platform 340000 is fine"));
}

#[test]
fn check_shows_every_mistake_with_its_line_and_exits_with_2() {
    let place = Place::new();
    let text = "name = \"x\"\nidentity = \"platform/34\"\n[broker]\naddress = 7400\n[state]\ndri = \"s\"\n[sink]\ntype = \"postgre\"\n";
    fs::write(place.path("c.toml"), text).expect("written");
    let output = place.run(&["check", "c.toml"]);
    check_exit(&output, 2);
    let text = err(&output);
    for part in [
        "c.toml:2:",
        "c.toml:4:",
        "c.toml:6:",
        "c.toml:8:",
        "did you mean",
        "4 errors in c.toml",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(out(&output), "");
    let output = place.run(&["check", "absent.toml"]);
    check_exit(&output, 2);
    assert!(err(&output).contains("no such file"), "{}", err(&output));
}

#[test]
fn check_reads_the_key_and_does_not_show_it() {
    let place = Place::new();
    let config = fs::read_to_string(place.path("c.toml")).expect("read");
    let with_key = |file: &str| {
        let key = format!("pseudonym = {{ key_file = \"{file}\", epoch = 1 }}\n{config}");
        fs::write(place.path("c.toml"), key).expect("written");
        place.run(&["check", "c.toml"])
    };
    let output = with_key("nowhere");
    check_exit(&output, 2);
    assert!(
        err(&output).contains("openssl rand -hex 32"),
        "{}",
        err(&output)
    );
    fs::write(place.path("short"), "abcdef").expect("written");
    let output = with_key("short");
    check_exit(&output, 2);
    assert!(!err(&output).contains("abcdef"), "{}", err(&output));
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(place.path("key"), fs::Permissions::from_mode(0o644)).expect("set");
    let output = with_key("key");
    check_exit(&output, 0);
    assert!(out(&output).contains("warning: everyone on this machine may read"));
}

#[test]
fn sample_shows_what_rows_become_and_what_is_refused() {
    let place = Place::new();
    place.write_list();
    let output = place.run(&["sample", "c.toml", "--output", "json"]);
    check_exit(&output, 0);
    let sample: Vec<Value> = serde_json::from_str(&out(&output)).expect("JSON");
    assert_eq!(sample.len(), 3);
    let delta = &sample[0]["delta"];
    assert_eq!(delta["kind"], "area_risk");
    assert_eq!(delta["committed_at_us"], 1_661_950_800_000_000_u64);
    assert_eq!(delta["reason"], "名单");
    assert_eq!(delta["value"]["path"].as_array().map(Vec::len), Some(4));

    place.write_config("level = { field = \"level\", texts = { high = \"high\" } }");
    let output = place.run(&["sample", "c.toml", "--output", "json"]);
    let sample: Vec<Value> = serde_json::from_str(&out(&output)).expect("JSON");
    let refused: Vec<&Value> = sample
        .iter()
        .map(|s| &s["refused"])
        .filter(|r| r.is_object())
        .collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0]["reason"], "VALUE_UNMAPPED");

    let output = place.run(&["sample", "c.toml", "--rows", "2"]);
    check_exit(&output, 0);
    let text = out(&output);
    assert!(
        text.contains("ENTITY") && text.contains("2 rows; nothing was sent"),
        "{text}"
    );
    assert!(
        !place.path("state").exists(),
        "a sample leaves nothing behind"
    );
}

#[test]
fn init_makes_what_is_missing() {
    let place = Place::new();
    let output = place.run(&["init", "c.toml"]);
    check_exit(&output, 0);
    assert!(place.path("state/anhui-risk").is_dir());
    check_exit(&place.run(&["init", "c.toml"]), 0);
}

#[test]
fn status_tells_a_connector_that_never_ran() {
    let place = Place::new();
    let output = place.run(&["status", "c.toml"]);
    check_exit(&output, 1);
    assert!(out(&output).contains("never ran"));
    let output = place.run(&["status", "c.toml", "--output", "json"]);
    check_exit(&output, 1);
    let status: Value = serde_json::from_str(&out(&output)).expect("JSON");
    assert_eq!(status["running"], false);
}

fn letters() -> String {
    let add = |id: u64| {
        json!({"add": {"id": id, "place": format!("file f, highlist[{id}]"), "reason": "VALUE_UNMAPPED",
            "field": "level", "message": "\"extreme\" has no mapping", "attempts": 1, "first_at_us": 1_661_950_800_000_000_u64,
            "last_at_us": 1_661_950_800_000_000_u64, "revision": 5, "committed_at_us": 1_661_950_800_000_000_u64,
            "raw": {"level": "extreme", "secret": "11010519491231002X"}}})
    };
    format!("{}\n{}\n", add(1), add(2))
}

#[test]
fn dead_letters_are_listed_shown_and_dropped() {
    let place = Place::new();
    let output = place.run(&["dlq", "list", "c.toml"]);
    check_exit(&output, 0);
    assert!(out(&output).contains("0 dead letters"));
    let file = place.path("state/anhui-risk/dead-letters.jsonl");
    fs::write(&file, letters()).expect("written");

    for format in ["table", "json"] {
        let output = place.run(&["dlq", "list", "c.toml", "--output", format]);
        check_exit(&output, 0);
        let text = out(&output);
        assert!(
            text.contains("VALUE_UNMAPPED") && text.contains("highlist[2]"),
            "{text}"
        );
        assert!(
            !text.contains("110105") && !text.contains("extreme"),
            "{text}"
        );
    }
    let output = place.run(&["dlq", "show", "c.toml", "2"]);
    check_exit(&output, 0);
    let shown: Value = serde_json::from_str(&out(&output)).expect("JSON");
    assert_eq!(shown["raw"]["secret"], "11010519491231002X");

    check_exit(&place.run(&["dlq", "drop", "c.toml"]), 2);
    let output = place.run(&["dlq", "drop", "c.toml", "3"]);
    check_exit(&output, 1);
    assert!(
        err(&output).contains("there is no dead letter 3"),
        "{}",
        err(&output)
    );
    let output = place.run(&["dlq", "drop", "c.toml", "1"]);
    check_exit(&output, 0);
    assert!(out(&output).contains("1 dropped"));
    check_exit(&place.run(&["dlq", "show", "c.toml", "1"]), 1);
    check_exit(&place.run(&["dlq", "drop", "c.toml", "--all"]), 0);
    let output = place.run(&["dlq", "list", "c.toml"]);
    assert!(out(&output).contains("0 dead letters"));
}

#[test]
fn completions_are_for_this_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = connect(".", &["completions", shell]);
        check_exit(&output, 0);
        assert!(out(&output).contains("hutong-connect"), "{shell}");
    }
}

#[test]
fn help_documents_the_exit_codes() {
    let output = connect(".", &["--help"]);
    check_exit(&output, 0);
    assert!(out(&output).contains("Exit codes: 0 done"));
    check_exit(&connect(".", &["frobnicate"]), 2);
}
