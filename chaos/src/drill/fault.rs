//! The faults that a drill may ask for, with their parameters and their names in both languages.

use hutong_plants::Failpoint;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Since the load began.
    pub at: Duration,
    pub lasting: Duration,
    pub what: What,
}

/// Whose connections a fault of the network hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    All,
    Publishers,
    Subscribers,
    /// The connector of the sink.
    Sink,
}

impl Clients {
    pub const WORDS: [(&'static str, Clients); 4] = [
        ("all", Clients::All),
        ("publishers", Clients::Publishers),
        ("subscribers", Clients::Subscribers),
        ("sink", Clients::Sink),
    ];

    pub fn name(self) -> &'static str {
        Clients::WORDS
            .iter()
            .find(|(_, c)| *c == self)
            .map_or("all", |(name, _)| name)
    }
}

/// Which way nothing gets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Both,
    ToBroker,
    FromBroker,
}

impl Direction {
    pub const WORDS: [(&'static str, Direction); 3] = [
        ("both", Direction::Both),
        ("to-broker", Direction::ToBroker),
        ("from-broker", Direction::FromBroker),
    ];

    pub fn name(self) -> &'static str {
        let word = Direction::WORDS.iter().find(|(_, d)| *d == self);
        word.map_or("both", |(name, _)| name)
    }
}

/// What only one fault at a time can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A process has one tracer.
    Tracer,
    Disk,
    Clock,
    Memory,
    Processor,
    Edge,
}

impl Claim {
    pub fn words(self) -> &'static str {
        match self {
            Claim::Tracer => "strace on the broker",
            Claim::Disk => "the disk and the files of the log",
            Claim::Clock => "the broker's clock",
            Claim::Memory => "the limit of memory",
            Claim::Processor => "the limit of processors",
            Claim::Edge => "the edge at which the broker dies",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    KillBroker,
    /// The broker dies in its n-th sync from then on.
    CrashAtSync {
        sync: u32,
    },
    /// The broker dies when it comes to this edge of a commit for the n-th time from then on.
    CrashAtEdge {
        edge: Failpoint,
        nth: u32,
    },
    PauseBroker,
    KillConnector,
    CrashPostgres,
    Partition {
        clients: Clients,
        direction: Direction,
    },
    Latency {
        clients: Clients,
        delay: Duration,
        jitter: Duration,
    },
    Loss {
        clients: Clients,
        percent: f64,
    },
    Bandwidth {
        clients: Clients,
        bytes_per_s: u64,
    },
    /// By the kernel's packet filter, and not in our proxy.
    DropPackets {
        direction: Direction,
        percent: u32,
    },
    ReconnectStorm,
    DiskFull,
    SyncError,
    SlowSync {
        delay: Duration,
    },
    PowerLoss,
    TornTail,
    FlippedByte,
    ReadOnly,
    ClockStep {
        by: Duration,
        back: bool,
    },
    MemorySqueeze {
        limit: u64,
    },
    CpuSqueeze {
        cores: f64,
    },
    StalledSubscriber {
        count: usize,
    },
    ZeroWindow {
        count: usize,
    },
    Poison {
        per_s: f64,
    },
    Flood {
        rate: f64,
    },
    ReloadExpired,
}

/// A disk that the drill makes for the broker's data.
pub const DISK_BYTES: u64 = 512 << 20;

impl What {
    pub fn name(&self) -> &'static str {
        match self {
            What::KillBroker => "kill-broker",
            What::CrashAtSync { .. } => "crash-at-sync",
            What::CrashAtEdge { .. } => "crash-at-edge",
            What::PauseBroker => "pause-broker",
            What::KillConnector => "kill-connector",
            What::CrashPostgres => "crash-postgres",
            What::Partition { .. } => "partition",
            What::Latency { .. } => "latency",
            What::Loss { .. } => "loss",
            What::Bandwidth { .. } => "bandwidth",
            What::DropPackets { .. } => "drop-packets",
            What::ReconnectStorm => "reconnect-storm",
            What::DiskFull => "disk-full",
            What::SyncError => "sync-error",
            What::SlowSync { .. } => "slow-sync",
            What::PowerLoss => "power-loss",
            What::TornTail => "torn-tail",
            What::FlippedByte => "flipped-byte",
            What::ReadOnly => "read-only",
            What::ClockStep { .. } => "clock-step",
            What::MemorySqueeze { .. } => "memory-squeeze",
            What::CpuSqueeze { .. } => "cpu-squeeze",
            What::StalledSubscriber { .. } => "stalled-subscriber",
            What::ZeroWindow { .. } => "zero-window",
            What::Poison { .. } => "poison",
            What::Flood { .. } => "flood",
            What::ReloadExpired => "reload-expired",
        }
    }

    /// A short sentence, English and Chinese.
    pub fn label(&self) -> (String, String) {
        let way = |direction: Direction| match direction {
            Direction::Both => ("both ways", "双向"),
            Direction::ToBroker => ("towards the broker", "发往互通方向"),
            Direction::FromBroker => ("from the broker", "来自互通方向"),
        };
        let who = |clients: Clients| match clients {
            Clients::All => ("all clients", "全部客户端"),
            Clients::Publishers => ("publishers", "发布方"),
            Clients::Subscribers => ("subscribers", "订阅方"),
            Clients::Sink => ("the sink's connector", "下游连接器"),
        };
        let ms = |d: Duration| d.as_millis();
        let both = |en: &str, zh: &str| (en.to_owned(), zh.to_owned());
        match self {
            What::KillBroker => both("broker killed (SIGKILL)", "强制终止互通（SIGKILL）"),
            What::CrashAtSync { sync } => (
                format!("broker killed inside sync number {sync}"),
                format!("在第 {sync} 次落盘时终止互通"),
            ),
            What::CrashAtEdge { edge, nth } => (
                format!(
                    "broker dies at {}, time {nth} that it comes there",
                    edge.name()
                ),
                format!("互通第 {nth} 次到达 {} 时终止", edge.name()),
            ),
            What::PauseBroker => both("broker paused (SIGSTOP)", "暂停互通进程（SIGSTOP）"),
            What::KillConnector => both("sink's connector killed", "强制终止下游连接器"),
            What::CrashPostgres => both("PostgreSQL of the sink crashed", "下游 PostgreSQL 崩溃"),
            What::Partition { clients, direction } => (
                format!("line cut {}, {}", way(*direction).0, who(*clients).0),
                format!("{}断网，{}", way(*direction).1, who(*clients).1),
            ),
            What::Latency {
                clients,
                delay,
                jitter,
            } => (
                format!(
                    "{} ms ± {} ms latency, {}",
                    ms(*delay),
                    ms(*jitter),
                    who(*clients).0
                ),
                format!(
                    "延迟 {} ± {} 毫秒，{}",
                    ms(*delay),
                    ms(*jitter),
                    who(*clients).1
                ),
            ),
            What::Loss { clients, percent } => (
                format!(
                    "{percent} % loss, as stalls of a retransmission, {}",
                    who(*clients).0
                ),
                format!("{percent}% 丢包（表现为重传停顿），{}", who(*clients).1),
            ),
            What::Bandwidth {
                clients,
                bytes_per_s,
            } => (
                format!("{} kB/s at most, {}", bytes_per_s / 1000, who(*clients).0),
                format!("带宽限制 {} kB/s，{}", bytes_per_s / 1000, who(*clients).1),
            ),
            What::DropPackets { direction, percent } => (
                format!("kernel drops {percent} % of packets, {}", way(*direction).0),
                format!("内核丢弃 {percent}% 数据包，{}", way(*direction).1),
            ),
            What::ReconnectStorm => both(
                "all connections cut, and all come back at once",
                "全部连接中断后同时重连",
            ),
            What::DiskFull => both("disk full", "磁盘写满"),
            What::SyncError => both("syncs fail (EIO)", "落盘失败（EIO）"),
            What::SlowSync { delay } => (
                format!("each sync takes {} ms longer", ms(*delay)),
                format!("每次落盘延长 {} 毫秒", ms(*delay)),
            ),
            What::PowerLoss => both("power lost", "断电"),
            What::TornTail => both("killed; end of the log torn", "终止后日志尾部残缺"),
            What::FlippedByte => both(
                "killed; one bit of the log flipped",
                "终止后日志一个比特翻转",
            ),
            What::ReadOnly => both("file system turns read-only", "文件系统变为只读"),
            What::ClockStep { by, back } => (
                format!(
                    "broker's clock {} {} s",
                    if *back { "back by" } else { "ahead by" },
                    by.as_secs()
                ),
                format!(
                    "互通时钟{} {} 秒",
                    if *back { "回拨" } else { "拨快" },
                    by.as_secs()
                ),
            ),
            What::MemorySqueeze { limit } => (
                format!("memory limited to {} MiB", limit >> 20),
                format!("内存限制为 {} MiB", limit >> 20),
            ),
            What::CpuSqueeze { cores } => (
                format!("{cores} of a processor"),
                format!("处理器限制为 {cores} 核"),
            ),
            What::StalledSubscriber { count } => (
                format!("{count} more subscribers that read nothing"),
                format!("新增 {count} 个不读取的订阅方"),
            ),
            What::ZeroWindow { count } => (
                format!("{count} more subscribers with a closed TCP window"),
                format!("新增 {count} 个 TCP 窗口关闭的订阅方"),
            ),
            What::Poison { per_s } => (
                format!("{per_s} poison batches a second"),
                format!("每秒 {per_s} 个有毒批次"),
            ),
            What::Flood { rate } => (
                format!("one platform floods with {rate} deltas a second"),
                format!("一个平台以每秒 {rate} 条涌入"),
            ),
            What::ReloadExpired => {
                both("expired configuration is loaded again", "重新加载过期配置")
            }
        }
    }

    /// Its parameters, as a file says them.
    pub fn keys(&self) -> String {
        let clients = |clients: &Clients| format!("clients = \"{}\"\n", clients.name());
        let way = |direction: &Direction| format!("direction = \"{}\"\n", direction.name());
        match self {
            What::CrashAtSync { sync } => format!("sync = {sync}\n"),
            What::CrashAtEdge { edge, nth } => {
                format!("edge = \"{}\"\nnth = {nth}\n", edge.name())
            }
            What::Partition {
                clients: who,
                direction,
            } => clients(who) + &way(direction),
            What::Latency {
                clients: who,
                delay,
                jitter,
            } => {
                let (delay, jitter) = (delay.as_micros(), jitter.as_micros());
                format!(
                    "{}delay = \"{delay}us\"\njitter = \"{jitter}us\"\n",
                    clients(who)
                )
            }
            What::Loss {
                clients: who,
                percent,
            } => format!("{}percent = {percent}\n", clients(who)),
            What::Bandwidth {
                clients: who,
                bytes_per_s,
            } => {
                format!("{}bytes_per_s = {bytes_per_s}\n", clients(who))
            }
            What::DropPackets { direction, percent } => {
                format!("{}percent = {percent}\n", way(direction))
            }
            What::SlowSync { delay } => format!("delay = \"{}us\"\n", delay.as_micros()),
            What::ClockStep { by, back } => {
                format!("by = \"{}us\"\nback = {back}\n", by.as_micros())
            }
            What::MemorySqueeze { limit } => format!("limit = {limit}\n"),
            What::CpuSqueeze { cores } => format!("cores = {cores}\n"),
            What::StalledSubscriber { count } | What::ZeroWindow { count } => {
                format!("count = {count}\n")
            }
            What::Poison { per_s } => format!("per_s = {per_s}\n"),
            What::Flood { rate } => format!("rate = {rate}\n"),
            What::KillBroker
            | What::PauseBroker
            | What::KillConnector
            | What::CrashPostgres
            | What::ReconnectStorm
            | What::DiskFull
            | What::SyncError
            | What::PowerLoss
            | What::TornTail
            | What::FlippedByte
            | What::ReadOnly
            | What::ReloadExpired => String::new(),
        }
    }

    pub fn claim(&self) -> Option<Claim> {
        match self {
            What::CrashAtSync { .. } | What::SyncError | What::SlowSync { .. } => {
                Some(Claim::Tracer)
            }
            What::PowerLoss
            | What::DiskFull
            | What::ReadOnly
            | What::TornTail
            | What::FlippedByte => Some(Claim::Disk),
            What::ClockStep { .. } => Some(Claim::Clock),
            What::MemorySqueeze { .. } => Some(Claim::Memory),
            What::CpuSqueeze { .. } => Some(Claim::Processor),
            What::CrashAtEdge { .. } => Some(Claim::Edge),
            _ => None,
        }
    }

    /// The broker's process is killed by it, or may be.
    pub fn kills(&self) -> bool {
        matches!(
            self,
            What::KillBroker
                | What::CrashAtSync { .. }
                | What::CrashAtEdge { .. }
                | What::PowerLoss
                | What::TornTail
                | What::FlippedByte
                // When the disk is mended it must be down, and is killed if it is not.
                | What::ReadOnly
                // By the kernel, which kills who takes the most.
                | What::MemorySqueeze { .. }
        )
    }

    /// Its process is killed, stopped or traced, so that no second fault of this kind is felt beside it.
    pub fn hits_the_process(&self) -> bool {
        self.kills() || self.claim() == Some(Claim::Tracer) || *self == What::PauseBroker
    }

    /// What is between client and broker: felt only where something is to be said.
    pub fn is_of_a_line(&self) -> bool {
        matches!(
            self,
            What::Partition { .. }
                | What::Latency { .. }
                | What::Loss { .. }
                | What::Bandwidth { .. }
                | What::DropPackets { .. }
                // Its lines must be open to be cut, and theirs must open.
                | What::ReconnectStorm
                | What::StalledSubscriber { .. }
                | What::ZeroWindow { .. }
        )
    }

    /// Nothing comes to the broker, or no answer from it.
    pub fn cuts(&self) -> bool {
        matches!(
            self,
            What::Partition { .. } | What::DropPackets { .. } | What::ReconnectStorm
        )
    }

    /// Nothing happens until the broker writes.
    pub fn waits_for_writes(&self) -> bool {
        self.breaks_the_disk()
            || matches!(self, What::CrashAtSync { .. } | What::CrashAtEdge { .. })
    }

    /// The disk takes no writes, or says that it failed to.
    pub fn breaks_the_disk(&self) -> bool {
        matches!(
            self,
            What::SyncError | What::DiskFull | What::ReadOnly | What::PowerLoss
        )
    }

    /// The data must be on a disk of its own.
    pub fn needs_disk(&self) -> bool {
        matches!(self, What::DiskFull | What::PowerLoss | What::ReadOnly)
    }

    /// The broker must be the one that was built for drills, which has places to die at.
    pub fn needs_failpoints(&self) -> bool {
        matches!(self, What::CrashAtEdge { .. })
    }

    pub fn needs_fake_clock(&self) -> bool {
        matches!(self, What::ClockStep { .. })
    }

    pub fn needs_cgroup(&self) -> bool {
        matches!(self, What::MemorySqueeze { .. } | What::CpuSqueeze { .. })
    }

    pub fn needs_sink(&self) -> bool {
        matches!(
            self,
            What::KillConnector
                | What::CrashPostgres
                | What::Partition {
                    clients: Clients::Sink,
                    ..
                }
                | What::Latency {
                    clients: Clients::Sink,
                    ..
                }
                | What::Loss {
                    clients: Clients::Sink,
                    ..
                }
                | What::Bandwidth {
                    clients: Clients::Sink,
                    ..
                }
        )
    }
}
