//! What this machine can do: which faults are available, and why not.

use crate::{
    drill::What,
    stage::{cgroup::Cgroup, shell::has},
};
use std::path::{Path, PathBuf};

/// Where Debian's package puts it.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

#[derive(Clone, Debug)]
pub struct Machine {
    root: bool,
    broker: PathBuf,
    connect: PathBuf,
    ptrace: bool,
}

impl Machine {
    /// Looks once; programs that are drilled stand beside this one.
    pub fn look() -> Machine {
        let beside = |name: &str| {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name(name)
        };
        let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
        let root = rustix::process::geteuid().is_root();
        Machine {
            root,
            broker: beside("hutong-broker"),
            connect: beside("hutong-connect"),
            // From 1 on only a parent may; strace is no parent of the broker.
            ptrace: root || scope.map_or(true, |text| text.trim() == "0"),
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

    pub fn faketime(&self) -> &'static Path {
        Path::new(FAKETIME)
    }

    /// What the stage itself needs.
    pub fn can_stage(&self, sink: bool) -> Result<(), String> {
        let built = |path: &Path| match path.is_file() {
            true => Ok(()),
            false => Err(format!(
                "{} is not there: build all programs first, with ./dev build",
                path.display()
            )),
        };
        built(&self.broker)?;
        if sink {
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
            What::ClockStep { .. } => match Path::new(FAKETIME).is_file() {
                true => Ok(()),
                false => Err(format!("no {FAKETIME}: install the package libfaketime")),
            },
            What::MemorySqueeze { .. } | What::CpuSqueeze { .. } => {
                self.root("to make a control group")?;
                Cgroup::available()
            }
            What::ReloadExpired => Err(
                "a configuration that is loaded again changes how long the log is kept and which \
                 certificates are watched: there is no reload of one that expires, because none does"
                    .to_owned(),
            ),
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
            | What::Flood { .. } => Ok(()),
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
            What::ClockStep { .. } => vec!["libfaketime"],
            What::MemorySqueeze { .. } | What::CpuSqueeze { .. } => vec!["root", "control groups"],
            What::ReloadExpired => vec!["a broker that loads its configuration again"],
            What::KillConnector | What::CrashPostgres => vec!["postgresql"],
            _ => Vec::new(),
        }
    }

    fn root(&self, why: &str) -> Result<(), String> {
        match self.root {
            true => Ok(()),
            false => Err(format!("needs root, {why}")),
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
