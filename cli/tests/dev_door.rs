//! `./dev`, the one door: what it says to somebody who has nothing yet, or waits for the first build.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn root() -> PathBuf {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    cli.parent().expect("the repository").to_owned()
}

/// Runs `./dev` where no program is found but these.
fn dev(home: &Path, programs: &[&str], arguments: &[&str]) -> Output {
    let path = home.join("programs");
    fs::create_dir(&path).expect("made");
    for program in programs {
        let found = Command::new("sh")
            .args(["-c", "command -v \"$0\"", program])
            .output()
            .expect("sh runs");
        let found = String::from_utf8(found.stdout).expect("UTF-8");
        symlink(found.trim(), path.join(program)).expect("linked");
    }
    let dev = Command::new("bash")
        .arg(root().join("dev"))
        .args(arguments)
        .env_remove("CARGO_HOME")
        .env("HOME", home)
        .env("PATH", &path)
        .output();
    dev.expect("bash runs")
}

#[test]
fn without_cargo_it_says_how_to_get_it_also_without_a_network() {
    let home = tempfile::tempdir().expect("a folder");
    let output = dev(
        home.path(),
        &["bash", "cat", "dirname", "readlink"],
        &["demo"],
    );
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{text}");
    let version = fs::read_to_string(root().join("Cargo.toml")).expect("read");
    let version = version
        .split("rust-version = \"")
        .nth(1)
        .expect("a version");
    let version = version.split('"').next().expect("a version");
    for part in [
        &format!("Rust {version} or newer"),
        "https://sh.rustup.rs",
        "RUSTUP_DIST_SERVER",
        "install.sh --prefix",
        ".cargo/bin",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn a_log_of_the_first_build_counts_its_units_and_keeps_what_went_wrong() {
    let mut progress = Command::new(root().join("tools/cargo-progress"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    let mut cargo = String::from("   Compiling a v1.0.0\n");
    for done in 1..=400 {
        cargo.push_str(&format!(
            "    Building [=====>      ] {done}/400: rocksdb, b\r"
        ));
    }
    cargo.push_str("\nerror: no space left\n  --> src/lib.rs:1\n    Finished `release`\n");
    let mut stdin = progress.stdin.take().expect("a pipe");
    stdin.write_all(cargo.as_bytes()).expect("written");
    drop(stdin);
    let output = progress.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let counts: Vec<&str> = text
        .lines()
        .filter(|l| l.contains(" of 400 units"))
        .collect();
    assert_eq!(counts.len(), 20, "{text}");
    assert!(
        counts[9].starts_with("== 200 of 400 units compiled"),
        "{text}"
    );
    assert!(
        text.ends_with("error: no space left\n  --> src/lib.rs:1\n"),
        "{text}"
    );
}
