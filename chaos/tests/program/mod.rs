//! `hutong-chaos` as a program, in a folder of its own.
#![allow(dead_code, reason = "each test file uses its part")]

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
};
use tempfile::TempDir;

pub struct Chaos {
    dir: TempDir,
}

pub fn exit_code(status: ExitStatus) -> Option<i32> {
    status.code()
}

impl Chaos {
    pub fn new() -> Chaos {
        let program = Path::new(env!("CARGO_BIN_EXE_hutong-chaos"));
        let broker = program.with_file_name("hutong-broker");
        assert!(
            broker.exists(),
            "{} is not there: build all programs first, with `./dev build` or `./dev test`",
            broker.display()
        );
        Chaos {
            dir: TempDir::new().expect("a folder"),
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hutong-chaos"));
        command.args(args).current_dir(self.dir());
        // What a drill makes is looked for here when it is over.
        command.env("TMPDIR", self.tmp());
        // Real lists, where they are beside the project and nothing else is said.
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
        if std::env::var_os("HUTONG_TEST_DATA").is_none() && beside.is_dir() {
            command.env("HUTONG_TEST_DATA", beside);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Where drills make their folders.
    pub fn tmp(&self) -> PathBuf {
        let tmp = self.dir().join("tmp");
        std::fs::create_dir_all(&tmp).expect("created");
        // PostgreSQL runs as another user, and its folder is in there.
        let open = Command::new("chmod")
            .arg("0711")
            .args([self.dir(), &tmp])
            .status();
        assert!(open.expect("chmod").success());
        let sticky = Command::new("chmod").arg("1777").arg(&tmp).status();
        assert!(sticky.expect("chmod").success());
        tmp
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("it runs")
    }

    /// Its status, what it says as JSON, and its standard error.
    pub fn play(&self, drill: &str, more: &[&str]) -> (ExitStatus, Value, String) {
        let mut args = vec!["run", drill, "--json"];
        args.extend(more);
        let output = self.run(&args);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status, json, log)
    }

    /// Of a drill that this machine cannot play.
    pub fn why_not(&self, drill: &str) -> Option<String> {
        let output = self.run(&["list", "--json"]);
        let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let list = list.as_array().expect("an array");
        let found = list.iter().find(|listed| listed["name"] == drill);
        let found = found.expect("such a drill");
        found["why_not"].as_str().map(str::to_owned)
    }
}
