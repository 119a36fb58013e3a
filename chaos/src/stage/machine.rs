//! What this machine can do: which faults are available, and why not.

use crate::{
    drill::{Drill, What, Workload},
    stage::{cgroup::Cgroup, disk::TRIGGER, shell::has},
    text::Text,
};
use hutong_plants::{Plant, VARIABLE};
use rustix::fs::StatVfsMountFlags;
use std::path::{Path, PathBuf};

/// Names a folder with real input, which is not part of the project.
const DATA: &str = "HUTONG_TEST_DATA";

fn risk_levels() -> Option<PathBuf> {
    let lists = PathBuf::from(std::env::var_os(DATA)?).join("risk-levels");
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
    plant: Option<Plant>,
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
            plant: None,
        }
    }

    /// The same with this bug in broker and connectors, which are then those that can have one.
    pub fn with_plant(self, plant: Option<Plant>) -> Machine {
        if plant.is_none() {
            return self;
        }
        Machine {
            broker: self.broker_for_drills(),
            connect: self.connect.with_file_name("hutong-planted-connect"),
            plant,
            ..self
        }
    }

    /// The same with what this drill needs: a broker that can die at an edge of a commit is another program.
    pub fn for_drill(&self, drill: &Drill) -> Machine {
        let mut machine = self.clone();
        if drill.faults.iter().any(|f| f.what.needs_failpoints()) {
            machine.broker = self.broker_for_drills();
        }
        machine
    }

    /// The same source as the broker's, with places for crashes and bugs in it.
    fn broker_for_drills(&self) -> PathBuf {
        self.broker.with_file_name("hutong-planted-broker")
    }

    pub fn plant(&self) -> Option<Plant> {
        self.plant
    }

    /// What its programs are started with.
    pub fn env(&self) -> Vec<(String, String)> {
        let plant = self.plant.iter();
        plant
            .map(|plant| (VARIABLE.to_owned(), plant.name().to_owned()))
            .collect()
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

    pub fn risk_levels(&self) -> Result<&Path, Text> {
        let none = || {
            Text::new(
                format!(
                    "no lists of risk areas: set {DATA} to a folder that has risk-levels/*.json"
                ),
                format!("没有风险区域名单：请将 {DATA} 设为含有 risk-levels/*.json 的目录"),
            )
        };
        self.risk_levels.as_deref().ok_or_else(none)
    }

    /// What the stage itself needs.
    pub fn can_stage(&self, workload: &Workload) -> Result<(), Text> {
        let built = |path: &Path| match path.is_file() {
            true => Ok(()),
            false => {
                let path = path.display();
                Err(Text::new(
                    format!("{path} is not there: build all programs first, with ./dev build"),
                    format!("缺少 {path}：请先用 ./dev build 构建全部程序"),
                ))
            }
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
                return Err(Text::new(
                    "no PostgreSQL: install the package postgresql",
                    "没有 PostgreSQL：请安装软件包 postgresql",
                ));
            }
        }
        Ok(())
    }

    /// Can this fault be done here?
    pub fn available(&self, what: &What) -> Result<(), Text> {
        match what {
            What::PowerLoss => self.disk().and_then(|()| program("python3", "python3")),
            What::DiskFull => self.disk(),
            What::ReadOnly => {
                self.disk()?;
                program("findmnt", "util-linux")?;
                program("e2fsck", "e2fsprogs")?;
                can_break_down(Path::new(EXT4))
            }
            What::SyncError | What::SlowSync { .. } | What::CrashAtSync { .. } => self.strace(),
            What::CrashAtEdge { .. } => self.failpoints(),
            What::DropPackets { .. } => {
                self.root("to filter packets", "用于过滤数据包")?;
                program("nft", "nftables")
            }
            What::ClockStep { .. } => program("cc", "gcc"),
            What::MemorySqueeze { .. } | What::CpuSqueeze { .. } => {
                self.root("to make a control group", "用于建立控制组")?;
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
            What::DiskFull => vec!["root", "loop devices", "e2fsprogs"],
            What::ReadOnly => vec!["root", "loop devices", "e2fsprogs", "sysfs"],
            What::SyncError | What::SlowSync { .. } | What::CrashAtSync { .. } => {
                vec!["strace", "ptrace"]
            }
            What::CrashAtEdge { .. } => vec!["a broker built for drills"],
            What::DropPackets { .. } => vec!["root", "nftables"],
            What::ClockStep { .. } => vec!["a C compiler"],
            What::MemorySqueeze { .. } | What::CpuSqueeze { .. } => vec!["root", "control groups"],
            What::KillConnector | What::CrashPostgres => vec!["postgresql"],
            _ => Vec::new(),
        }
    }

    fn root(&self, why: &str, why_zh: &str) -> Result<(), Text> {
        match self.root {
            true => Ok(()),
            false => Err(Text::new(
                format!("needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN, {why}"),
                format!("需要具有 CAP_SYS_ADMIN 和 CAP_NET_ADMIN 的 root，{why_zh}"),
            )),
        }
    }

    fn disk(&self) -> Result<(), Text> {
        self.root("to mount a disk of its own", "用于挂载演练专用磁盘")?;
        program("mkfs.ext4", "e2fsprogs")?;
        program("mount", "mount")?;
        let systems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !systems.lines().any(|line| line.trim() == "ext4") {
            return Err(("this kernel has no ext4", "内核不支持 ext4").into());
        }
        match Path::new("/dev/loop-control").exists() {
            true => Ok(()),
            false => Err(("this kernel has no loop devices", "内核不支持回环设备").into()),
        }
    }

    fn failpoints(&self) -> Result<(), Text> {
        let program = self.broker_for_drills();
        if program.is_file() {
            return Ok(());
        }
        let program = program.display();
        Err(Text::new(
            format!(
                "the broker here was not built for drills, so it has no edge to die at: {program} is not there; \
                 build all programs first, with ./dev build"
            ),
            format!(
                "此处的互通不是为演练构建的，没有可供终止的提交边界：缺少 {program}；请先用 ./dev build 构建全部程序"
            ),
        ))
    }

    fn strace(&self) -> Result<(), Text> {
        program("strace", "strace")?;
        match self.ptrace {
            true => Ok(()),
            false => Err(Text::new(
                "the kernel lets only root trace a running process (kernel.yama.ptrace_scope)",
                "内核只允许 root 跟踪运行中的进程（kernel.yama.ptrace_scope）",
            )),
        }
    }
}

fn program(name: &str, package: &str) -> Result<(), Text> {
    match has(name) {
        true => Ok(()),
        false => Err(Text::new(
            format!("no {name}: install the package {package}"),
            format!("没有 {name}：请安装软件包 {package}"),
        )),
    }
}

/// Where the kernel has a folder for each file system of this kind that is mounted, and one of what it can do.
const EXT4: &str = "/sys/fs/ext4";
const FEATURES: &str = "features";

/// Can a file system be told to break down? What is written to its trigger is an error of its own. A kernel
/// without the trigger is known by those that are mounted; where there is none, the injector says so.
fn can_break_down(dir: &Path) -> Result<(), Text> {
    let (shown, trigger) = (dir.display(), TRIGGER);
    let entries = std::fs::read_dir(dir).map_err(|error| {
        Text::new(
            format!("needs {shown}/DEVICE/{trigger}, and {shown} cannot be read ({error}): mount sysfs at /sys"),
            format!("需要 {shown}/设备/{trigger}，但 {shown} 无法读取（「{error}」）：请将 sysfs 挂载到 /sys"),
        )
    })?;
    let flags = rustix::fs::statvfs(dir).map(|stat| stat.f_flag);
    if flags.is_ok_and(|flags| flags.contains(StatVfsMountFlags::RDONLY)) {
        return Err(Text::new(
            format!(
                "needs to write to {shown}/DEVICE/{trigger}, and sysfs is read-only here, as in most containers"
            ),
            format!("需要写入 {shown}/设备/{trigger}，但此处的 sysfs 为只读，多数容器如此"),
        ));
    }
    let mut mounted = entries.flatten().map(|entry| entry.path());
    let without = mounted.find(|path| !path.ends_with(FEATURES) && !path.join(trigger).exists());
    match without {
        None => Ok(()),
        Some(path) => {
            let path = path.display();
            Err(Text::new(
                format!("this kernel's ext4 cannot be told to break down: no {path}/{trigger}"),
                format!("内核的 ext4 无法按要求出错：没有 {path}/{trigger}"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::find;

    #[test]
    fn a_broker_dies_at_an_edge_only_where_one_was_built_for_drills() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let machine = Machine {
            broker: dir.path().join("hutong-broker"),
            ..Machine::look()
        };
        let drill = find("crash-at-edge").expect("built in");
        let what = &drill.faults[0].what;
        std::fs::write(machine.broker(), "").expect("written");
        let why = machine.available(what).expect_err("a release broker");
        assert!(why.en.contains("not built for drills"), "{why}");
        assert!(why.zh.contains("hutong-planted-broker"), "{}", why.zh);
        let built = dir.path().join("hutong-planted-broker");
        std::fs::write(&built, "").expect("written");
        assert_eq!(machine.available(what), Ok(()));
        assert_eq!(machine.for_drill(&drill).broker(), built);
        // All other drills have the broker that one runs.
        let other = machine.for_drill(&find("kill-broker").expect("built in"));
        assert_eq!(other.broker(), machine.broker());
    }

    #[test]
    fn a_file_system_can_break_down_where_its_trigger_is() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let missing = can_break_down(&dir.path().join("ext4")).expect_err("no folder");
        assert!(missing.en.contains("mount sysfs"), "{missing}");
        std::fs::create_dir(dir.path().join(FEATURES)).expect("created");
        assert_eq!(can_break_down(dir.path()), Ok(()));
        let device = dir.path().join("loop7");
        std::fs::create_dir(&device).expect("created");
        let without = can_break_down(dir.path()).expect_err("no trigger");
        assert!(without.en.contains("loop7/trigger_fs_error"), "{without}");
        assert!(without.zh.contains("loop7/trigger_fs_error"), "{without}");
        std::fs::write(device.join(TRIGGER), "").expect("written");
        assert_eq!(can_break_down(dir.path()), Ok(()));
    }
}
