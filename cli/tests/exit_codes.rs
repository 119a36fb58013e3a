//! What a script sees: every kind of failure has its exit code, and the text says what to do.

use std::{
    net::TcpListener,
    process::{Command, Output, Stdio},
};

fn hutong(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hutong"))
        .args(args)
        .env_remove("HUTONG_ADDRESS")
        .env_remove("HUTONG_IDENTITY")
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

fn check(args: &[&str], code: i32, says: &str) {
    let output = hutong(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.contains(says), "{args:?}: {stderr}");
    assert!(
        output.stdout.is_empty(),
        "{args:?} wrote to standard output"
    );
}

/// An address where nobody listens: it was free a moment ago.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

#[test]
fn a_broker_that_is_not_there_is_3_and_its_address_is_named() {
    let address = nobody();
    let entity = "00".repeat(15) + "01";
    for command in [
        vec!["platforms"],
        vec!["connectors"],
        vec!["lag"],
        vec!["lag", "--matrix"],
        vec!["partitions"],
        vec!["get", &entity],
        vec!["explain", "--path", "安徽省/宿州市"],
        vec![
            "trace",
            &entity,
            "--issuer",
            "340000",
            "--kind",
            "health_code",
        ],
        vec!["tail", "--identity", "platform/340000"],
        vec!["publish", "/dev/null", "--identity", "platform/340000"],
    ] {
        let mut args = command;
        args.extend(["--address", &address]);
        check(&args, 3, &address);
    }
}

#[test]
fn an_address_that_is_none_is_a_usage_error() {
    check(
        &["platforms", "--address", "not an address"],
        2,
        "--address",
    );
}

#[test]
fn wrong_usage_is_2() {
    let entity = "00".repeat(15) + "01";
    for (args, says) in [
        (vec!["lag", "--nonsense"], "--nonsense"),
        (vec!["get"], "required"),
        (vec!["get", "xyz"], "32 hexadecimal digits"),
        (
            vec!["trace", &entity, "--issuer", "34", "--kind", "health_code"],
            "GB/T 2260",
        ),
        (
            vec!["trace", &entity, "--issuer", "340000", "--kind", "mood"],
            "health_code",
        ),
        (vec!["platforms", "--identity", "root/x"], "platform/CODE"),
        (vec!["tail"], "--identity platform/CODE"),
        (vec!["publish", "/dev/null"], "--identity platform/CODE"),
        (
            vec![
                "publish",
                "/nowhere/at/all",
                "--identity",
                "platform/340000",
            ],
            "/nowhere/at/all",
        ),
        (
            vec![
                "trim", "--issuer", "340000", "--lane", "bulk", "--before", "7",
            ],
            "--yes",
        ),
        (vec!["demo", "--platforms", "33"], "33"),
        (vec!["demo", "--rate", "0"], "0"),
        (
            vec!["demo", "--risk-levels", "/nowhere/at/all"],
            "/nowhere/at/all",
        ),
    ] {
        check(&args, 2, says);
    }
}

#[test]
fn a_folder_with_something_in_it_is_not_taken_for_keeping() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("precious"), "data").expect("a file");
    let path = dir.path().to_str().expect("a plain path");
    check(&["demo", "--keep", path], 2, "not empty");
    assert!(dir.path().join("precious").exists());
}

#[test]
fn help_and_completions_need_no_broker() {
    let help = hutong(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8_lossy(&help.stdout);
    for command in ["demo", "lag", "explain", "publish", "Exit codes"] {
        assert!(text.contains(command), "{text}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = hutong(&["completions", shell]);
        assert_eq!(script.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&script.stdout).contains("hutong"));
    }
}
