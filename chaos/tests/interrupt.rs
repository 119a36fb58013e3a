//! A drill that is interrupted, or killed without a chance to do anything, leaves nothing behind: no
//! process, stopped or not, no mount, no folder.

mod program;

use program::{Chaos, exit_code};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

#[track_caller]
fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not in time");
        std::thread::sleep(POLL);
    }
}

/// Processes whose command line names this folder, and their states.
fn processes(dir: &Path) -> Vec<(u32, String)> {
    let dir = dir.display().to_string();
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let state = status.lines().find(|l| l.starts_with("State:"))?;
        line.contains(&dir)
            .then(|| (pid, format!("{state} {line}")))
    })
    .collect()
}

fn mounts(dir: &Path) -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("/proc");
    let dir = dir.display().to_string();
    mounts.lines().filter(|line| line.contains(&dir)).count()
}

fn loops(dir: &Path) -> usize {
    let dir = dir.display().to_string();
    let devices = std::fs::read_dir("/sys/block").expect("/sys").flatten();
    devices
        .filter_map(|d| std::fs::read_to_string(d.path().join("loop/backing_file")).ok())
        .filter(|file| file.contains(&dir))
        .count()
}

/// A drill whose fault is there now.
fn in_the_middle(chaos: &Chaos, drill: &str) -> Child {
    let mut command = chaos.command(&["run", drill, "--duration", "60s"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("it starts");
    // A full disk may have ended it by the time that the fault is there.
    let tmp = chaos.tmp();
    until("a broker runs", || !processes(&tmp).is_empty());
    let history = chaos.dir().join(format!("chaos-results/{drill}-1.jsonl"));
    until("the fault is there", || {
        // What is in the file by now need not end with a whole line.
        let text = std::fs::read_to_string(&history).unwrap_or_default();
        text.contains("\"phase\":\"active\"")
    });
    child
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(status.expect("kill").success());
}

fn left_nothing(chaos: &Chaos) {
    let tmp = chaos.tmp();
    until("its processes are gone", || {
        let left = processes(&tmp);
        let alive = left.iter().filter(|(_, p)| !p.contains("Z (zombie)"));
        alive.count() == 0
    });
    assert_eq!(mounts(&tmp), 0);
    until("its devices are free", || loops(&tmp) == 0);
}

#[test]
fn an_interrupted_drill_undoes_its_fault() {
    for (drill, name) in [
        ("pause-broker", "INT"),
        ("disk-full", "TERM"),
        ("latency", "HUP"),
        ("read-only", "INT"),
        ("slow-sync", "TERM"),
        ("memory-squeeze", "INT"),
        ("drop-packets", "INT"),
        ("clock-step", "INT"),
        ("zero-window", "TERM"),
    ] {
        let chaos = Chaos::new();
        if let Some(why) = chaos.why_not(drill) {
            println!("{drill} is not played here: {why}");
            continue;
        }
        let child = in_the_middle(&chaos, drill);
        signal(&child, name);
        let output = child.wait_with_output().expect("its end");
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(exit_code(output.status), Some(130), "{drill}: {log}");
        assert!(log.contains("is undone"), "{log}");
        left_nothing(&chaos);
        let left: Vec<_> = std::fs::read_dir(chaos.tmp()).expect("a folder").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Only where it can have namespaces of its own.
#[test]
fn a_drill_that_is_killed_leaves_no_process_and_no_mount() {
    let chaos = Chaos::new();
    if let Some(why) = chaos.why_not("disk-full") {
        println!("not played here: {why}");
        return;
    }
    let mut child = in_the_middle(&chaos, "disk-full");
    signal(&child, "KILL");
    child.wait().expect("its end");
    left_nothing(&chaos);
}
