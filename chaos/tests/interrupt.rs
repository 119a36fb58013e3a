//! A drill that is interrupted leaves nothing behind: no process, stopped or not, no mount, no device, no control
//! group, no folder. Nor does a search. One that is killed without a chance to do anything leaves its folder, and
//! of a squeeze the empty control group; no process, no mount, no device.

mod program;

use hutong_chaos::drill::BUILT_IN;
use program::{Chaos, exit_code};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
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

/// Folders of control groups that have one of these names.
fn control_groups(names: &[OsString]) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let parents = ["", "memory", "cpu"].map(|controller| root.join(controller));
    let all = parents
        .iter()
        .flat_map(|parent| names.iter().map(|name| parent.join(name)));
    all.filter(|group| group.exists()).collect()
}

/// What is in the folder where drills make theirs.
fn folders(chaos: &Chaos) -> Vec<OsString> {
    let entries = std::fs::read_dir(chaos.tmp()).expect("a folder");
    entries.flatten().map(|entry| entry.file_name()).collect()
}

/// A drill whose fault is there now.
struct Playing {
    child: Child,
    /// Its control group has the name of its folder.
    names: Vec<OsString>,
}

impl Playing {
    fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    fn end(self) -> (Output, Vec<OsString>) {
        let output = self.child.wait_with_output().expect("its end");
        (output, self.names)
    }
}

fn in_the_middle(chaos: &Chaos, drill: &str) -> Playing {
    let mut command = chaos.command(&["run", drill]);
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
    let names = folders(chaos);
    assert!(!names.is_empty(), "{drill} has no folder");
    Playing { child, names }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(status.expect("kill").success());
}

#[track_caller]
fn left_nothing_but_folders(chaos: &Chaos, names: &[OsString]) {
    let tmp = chaos.tmp();
    until("its processes are gone", || {
        let left = processes(&tmp);
        let alive = left.iter().filter(|(_, p)| !p.contains("Z (zombie)"));
        alive.count() == 0
    });
    assert_eq!(mounts(&tmp), 0);
    until("its devices are free", || loops(&tmp) == 0);
    assert_eq!(control_groups(names), Vec::<PathBuf>::new());
}

#[track_caller]
fn is_undone(what: &str, chaos: &Chaos, output: &Output, names: &[OsString]) {
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(exit_code(output.status), Some(130), "{what}: {log}");
    assert!(log.contains("is undone"), "{what}: {log}");
    left_nothing_but_folders(chaos, names);
    assert_eq!(folders(chaos), Vec::<OsString>::new(), "{what}");
}

/// A drill that is interrupted while others are played: each in namespaces of its own, where there are any.
const AT_ONCE: usize = 4;
const SIGNALS: [&str; 3] = ["INT", "TERM", "HUP"];

/// With version 2 of control groups the first one passes controllers on, and takes them back.
static SQUEEZE: Mutex<()> = Mutex::new(());

fn interrupt_one(drill: &str, name: &str) {
    let chaos = Chaos::new();
    if let Some(why) = chaos.why_not(drill) {
        println!("{drill} is not played here: {why}");
        return;
    }
    let _alone = (drill.ends_with("-squeeze")).then(|| SQUEEZE.lock());
    let playing = in_the_middle(&chaos, drill);
    playing.signal(name);
    let (output, names) = playing.end();
    is_undone(drill, &chaos, &output, &names);
}

#[test]
fn every_drill_that_is_interrupted_undoes_its_fault() {
    let turns = AtomicUsize::new(0);
    let work = || {
        while let Some((drill, _)) = BUILT_IN.get(turns.fetch_add(1, Ordering::SeqCst)) {
            let place = BUILT_IN.iter().position(|(name, _)| name == drill);
            interrupt_one(drill, SIGNALS[place.expect("it is one") % SIGNALS.len()]);
        }
    };
    // Whatever one of them says, all of them are waited for.
    std::thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
}

/// Only where it can have namespaces of its own.
#[test]
fn a_drill_that_is_killed_leaves_no_process_and_no_mount() {
    let chaos = Chaos::new();
    if let Some(why) = chaos.why_not("disk-full") {
        println!("not played here: {why}");
        return;
    }
    let playing = in_the_middle(&chaos, "disk-full");
    playing.signal("KILL");
    let (_, names) = playing.end();
    left_nothing_but_folders(&chaos, &names);
}

#[test]
fn a_sweep_that_is_told_to_end_leaves_no_folder() {
    for name in ["INT", "TERM"] {
        let chaos = Chaos::new();
        let tmp = chaos.tmp();
        let scratch = tmp.to_str().expect("UTF-8");
        let mut command = chaos.command(&["sweep", "--scratch", scratch, "--points", "100000"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("it starts");
        // The first points are looked at when there is a folder that was rebuilt.
        until("it sweeps", || {
            folders(&chaos)
                .iter()
                .any(|f| tmp.join(f).join("rebuilt").exists())
        });
        signal(&child, name);
        let output = child.wait_with_output().expect("its end");
        is_undone("sweep", &chaos, &output, &[]);
        let found = String::from_utf8_lossy(&output.stdout);
        assert!(found.contains("interrupted after"), "{found}");
    }
}

#[test]
fn a_simulation_that_is_told_to_end_tells_what_it_found() {
    for name in ["INT", "TERM"] {
        let chaos = Chaos::new();
        let trace = chaos.dir().join("trace");
        let args = ["sim", "--seeds", "1000000", "--no-keep", "--json"];
        let mut command = chaos.command(&args);
        command.arg("--trace").arg(&trace);
        command.args(["--report", "page.html"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("it starts");
        // It is written when the first seeds were played.
        until("it plays", || trace.exists());
        signal(&child, name);
        let output = child.wait_with_output().expect("its end");
        is_undone("sim", &chaos, &output, &[]);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(found["interrupted"], true, "{found:#}");
        assert!(found["seeds"].as_u64() > Some(0), "{found:#}");
        let page = std::fs::read_to_string(chaos.dir().join("page.html")).expect("a page");
        assert!(page.contains("interrupted after"), "{page}");
    }
}

/// The drill is a process of its own, and would go on without whoever hunts with it.
#[test]
fn a_hunt_with_drills_that_is_told_to_end_ends_its_drill() {
    let chaos = Chaos::new();
    let tmp = chaos.tmp();
    let mut command = chaos.command(&["plants", "--drills", "cursor-off-by-one"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().expect("it starts");
    until("a broker runs", || {
        let all = processes(&tmp);
        all.iter().any(|(_, line)| line.contains("planted-broker"))
    });
    signal(&child, "TERM");
    let output = child.wait_with_output().expect("its end");
    is_undone("plants --drills", &chaos, &output, &[]);
}
