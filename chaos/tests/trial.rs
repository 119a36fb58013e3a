//! A deployment that runs already: it is played on only when it says that it may be broken, and only when it is
//! empty.

mod program;

use hutong_chaos::clients::{OBSERVER, PLATFORMS};
use program::{Chaos, exit_code};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

const DRILL: &str = r#"# A line that is a little late, for a second.
name = "late"
title = "late"
title_zh = "延迟"
why = "w"
why_zh = "w"
duration = "9s"

[hypothesis]
urgent_lag = "2s"
recovery = "3s"

[workload]
platforms = 2
rate = 200

[[faults]]
kind = "latency"
delay = "20ms"
at = "3s"
for = "1s"
"#;

/// A broker that somebody else started.
struct Deployment {
    broker: Child,
    address: String,
}

impl Deployment {
    fn start(dir: &Path, marker: Option<&str>) -> Deployment {
        let mut text = format!(
            "identity = \"trial\"\n[listen]\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n[data]\n\
             dir = \"{}\"\n",
            dir.join("data").display()
        );
        if let Some(marker) = marker {
            text += &format!("[trial]\nmarker = \"{marker}\"\n");
        }
        for code in PLATFORMS[..2].iter().chain([&OBSERVER]) {
            text += &format!("[[platforms]]\ncode = {code}\nname = \"P{code}\"\n");
        }
        let file = dir.join("broker.toml");
        std::fs::write(&file, text).expect("written");
        let program = Path::new(env!("CARGO_BIN_EXE_hutong-chaos")).with_file_name("hutong-broker");
        let mut broker = Command::new(program)
            .arg("run")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        let stdout = broker.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let address = line
            .split_whitespace()
            .find_map(|w| w.strip_prefix("grpc="));
        let address = address.expect("an address").to_owned();
        Deployment { broker, address }
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        drop(self.broker.kill());
        drop(self.broker.wait());
    }
}

fn play(chaos: &Chaos, deployment: &Deployment, marker: &str) -> (Output, String) {
    let file = chaos.dir().join("late.toml");
    std::fs::write(&file, DRILL).expect("written");
    let output = chaos.run(&[
        "run",
        "late.toml",
        "--trial",
        &deployment.address,
        "--marker",
        marker,
        "--json",
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn a_broker_that_does_not_say_so_is_not_to_be_broken() {
    let chaos = Chaos::new();
    let deployment = Deployment::start(chaos.dir(), None);
    let (output, said) = play(&chaos, &deployment, "spring");
    assert_eq!(exit_code(output.status), Some(2), "{said}");
    assert!(said.contains("it has no marker"), "{said}");
    let output = chaos.run(&["run", "latency", "--trial", &deployment.address]);
    assert_eq!(exit_code(output.status), Some(2), "without a marker");
}

#[test]
fn a_drill_is_played_on_an_empty_deployment_with_its_marker_and_on_no_other() {
    let chaos = Chaos::new();
    let deployment = Deployment::start(chaos.dir(), Some("spring"));
    let (output, said) = play(&chaos, &deployment, "autumn");
    assert_eq!(exit_code(output.status), Some(2), "{said}");
    assert!(said.contains("its marker is \"spring\""), "{said}");

    let (output, said) = play(&chaos, &deployment, "spring");
    assert_eq!(exit_code(output.status), Some(0), "{output:?} {said}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["outcome"], "PASS");
    for n in (1..=8).filter(|n| *n != 5) {
        let finding = &json["findings"][format!("INV-{n}")];
        assert!(finding["checked"].as_u64() > Some(0), "INV-{n}: {json:#}");
    }

    // What it published stays there.
    let (output, said) = play(&chaos, &deployment, "spring");
    assert_eq!(exit_code(output.status), Some(2), "{said}");
    assert!(said.contains("deltas already"), "{said}");
}
