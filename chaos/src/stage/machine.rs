//! What this machine can do: which faults are available, and why not.

use crate::{
    drill::{What, Workload},
    stage::{cgroup::Cgroup, shell::has},
};
use std::path::{Path, PathBuf};

/// A folder with real input.
const DATA: &str = "HUTONG_TEST_DATA";

/// What the environment names, or what is beside the source.
fn risk_levels() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let data = std::env::var_os(DATA).map_or(PathBuf::from(beside), PathBuf::from);
    let lists = data.join("risk-levels");
    lists.is_dir().then_some(lists)
}

/// Of root, to mount and to filter; `capability.h` of the kernel numbers them.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Root of a container often has no such power.
fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> number & 1 == 1)
}

#[derive(Clone, Debug)]
pub struct Machine {
    /// With what root can usually do.
    root: bool,
    broker: PathBuf,
    connect: PathBuf,
    ptrace: bool,
    /// The folder of published lists, if there is one.
    risk_levels: Option<PathBuf>,
}

impl Machine {
    /// Looks once; programs that are drilled stand beside this one.
    pub fn look() -> Machine {
        let beside = |name: &str| {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name(name)
        };
        let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
        let root = rustix::process::geteuid().is_root()
            && has_capability(CAP_SYS_ADMIN)
            && has_capability(CAP_NET_ADMIN);
        Machine {
            root,
            broker: beside("hutong-broker"),
            connect: beside("hutong-connect"),
            // From 1 on only a parent may; strace is no parent of the broker.
            ptrace: root || scope.map_or(true, |text| text.trim() == "0"),
            risk_levels: risk_levels(),
        }
    }

    pub fn is_root(&self) -> bool {
        self.root
    }

    pub fn broker(&self) -> &Path {
        &self.broker
    }

    pub fn connect(&self) -> &Path {
        &self.connect
    }

    pub fn risk_levels(&self) -> Result<&Path, String> {
        let none = || {
            format!("no lists of risk areas: set {DATA} to a folder that has risk-levels/*.json")
        };
        self.risk_levels.as_deref().ok_or_else(none)
    }

    /// What the stage itself needs.
    pub fn can_stage(&self, workload: &Workload) -> Result<(), String> {
        let built = |path: &Path| match path.is_file() {
            true => Ok(()),
            false => Err(format!(
                "{} is not there: build all programs first, with ./dev build",
                path.display()
            )),
        };
        built(&self.broker)?;
        if workload.risk_levels {
            self.risk_levels()?;
        }
        if workload.sink {
            built(&self.connect)?;
            let installed = std::env::var_os("HUTONG_TEST_PG_BIN").is_some()
                || std::fs::read_dir("/usr/lib/postgresql")
                    .is_ok_and(|mut dir| dir.next().is_some());
            if !installed {
                return Err("no PostgreSQL: install the package postgresql".to_owned());
            }
        }
        Ok(())
    }

    /// Can this fault be done here?
    pub fn available(&self, what: &What) -> Result<(), String> {
        match what {
            What::PowerLoss => self.disk().and_then(|()| program("python3", "python3")),
            What::DiskFull | What::ReadOnly => self.disk(),
            What::SyncError | What::SlowSync { .. } | What::CrashAtSync { .. } => self.strace(),
            What::DropPackets { .. } => {
                self.root("to filter packets")?;
                program("nft", "nftables")
            }
            What::ClockStep { .. } => program("cc", "gcc"),
            What::MemorySqueeze { .. } | What::CpuSqueeze { .. } => {
                self.root("to make a control group")?;
                Cgroup::available()
            }
            What::KillBroker
            | What::PauseBroker
            | What::KillConnector
            | What::CrashPostgres
            | What::Partition { .. }
            | What::Latency { .. }
            | What::Loss { .. }
            | What::Bandwidth { .. }
            | What::ReconnectStorm
            | What::TornTail
            | What::FlippedByte
            | What::StalledSubscriber { .. }
            | What::ZeroWindow { .. }
            | What::Poison { .. }
            | What::Flood { .. }
            | What::ReloadExpired => Ok(()),
        }
    }

    /// In words, for lists.
    pub fn needs(what: &What) -> Vec<&'static str> {
        match what {
            What::PowerLoss => vec!["root", "loop devices", "e2fsprogs", "python3"],
            What::DiskFull | What::ReadOnly => vec!["root", "loop devices", "e2fsprogs"],
            What::SyncError | What::SlowSync { .. } | What::CrashAtSync { .. } => {
                vec!["strace", "ptrace"]
            }
            What::DropPackets { .. } => vec!["root", "nftables"],
            What::ClockStep { .. } => vec!["a C compiler"],
            What::MemorySqueeze { .. } | What::CpuSqueeze { .. } => vec!["root", "control groups"],
            What::KillConnector | What::CrashPostgres => vec!["postgresql"],
            _ => Vec::new(),
        }
    }

    fn root(&self, why: &str) -> Result<(), String> {
        match self.root {
            true => Ok(()),
            false => Err(format!(
                "needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN, {why}"
            )),
        }
    }

    fn disk(&self) -> Result<(), String> {
        self.root("to mount a disk of its own")?;
        program("mkfs.ext4", "e2fsprogs")?;
        program("mount", "mount")?;
        let systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !systems.lines().any(|line| line.trim() == "ext4") {
            return Err("this kernel has no ext4".to_owned());
        }
        match Path::new("/dev/loop-control").exists() {
            true => Ok(()),
            false => Err("this kernel has no loop devices".to_owned()),
        }
    }

    fn strace(&self) -> Result<(), String> {
        program("strace", "strace")?;
        match self.ptrace {
            true => Ok(()),
            false => Err(
                "the kernel lets only root trace a running process (kernel.yama.ptrace_scope)"
                    .to_owned(),
            ),
        }
    }
}

fn program(name: &str, package: &str) -> Result<(), String> {
    match has(name) {
        true => Ok(()),
        false => Err(format!("no {name}: install the package {package}")),
    }
}
