//! A control group for the broker, so that memory and processor can be taken from it. Version 1 as well
//! as version 2; removed when dropped.

use crate::{error::ChaosError, text::Text};
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
/// Of a processor's time that is given out anew, in microseconds.
const PERIOD_US: u64 = 100_000;

#[derive(Debug)]
pub struct Cgroup {
    /// One folder, or with version 1 one a controller.
    memory: PathBuf,
    cpu: PathBuf,
    unified: bool,
    /// Controllers that nobody passed on to children before, and which are taken back.
    passed_on: Vec<&'static str>,
}

const CONTROL: &str = "cgroup.subtree_control";

fn is_unified() -> bool {
    let controllers = std::fs::read_to_string(format!("{ROOT}/cgroup.controllers"));
    controllers.is_ok_and(|text| {
        let mut words = text.split_whitespace();
        words.clone().any(|w| w == "memory") && words.any(|w| w == "cpu")
    })
}

impl Cgroup {
    pub fn available() -> Result<(), Text> {
        let split = ["memory", "cpu"]
            .iter()
            .all(|name| Path::new(ROOT).join(name).join("cgroup.procs").exists());
        match is_unified() || split {
            true => Ok(()),
            false => Err(Text::new(
                format!("no control groups for memory and processor under {ROOT}"),
                format!("{ROOT} 下没有内存与处理器控制组"),
            )),
        }
    }

    pub fn make(name: &str) -> Result<Cgroup, ChaosError> {
        let unified = is_unified();
        let root = Path::new(ROOT);
        let (memory, cpu) = match unified {
            true => (root.join(name), root.join(name)),
            false => (root.join("memory").join(name), root.join("cpu").join(name)),
        };
        let passed_on = match unified {
            true => pass_on(root),
            false => Vec::new(),
        };
        // From here on it is undone, whatever fails.
        let group = Cgroup {
            memory,
            cpu,
            unified,
            passed_on,
        };
        for dir in [&group.memory, &group.cpu] {
            match std::fs::create_dir(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(ChaosError::file("cannot create", dir)(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(group)
    }

    /// Whoever writes its id here is in the group.
    pub fn join(&self) -> Vec<PathBuf> {
        let procs = |dir: &Path| dir.join("cgroup.procs");
        match self.unified {
            true => vec![procs(&self.memory)],
            false => vec![procs(&self.memory), procs(&self.cpu)],
        }
    }

    /// Nothing: no limit.
    pub fn limit_memory(&self, bytes: Option<u64>) -> Result<(), ChaosError> {
        let (file, none) = match self.unified {
            true => ("memory.max", "max"),
            false => ("memory.limit_in_bytes", "-1"),
        };
        let value = bytes.map_or(none.to_owned(), |bytes| bytes.to_string());
        write(&self.memory.join(file), &value)
    }

    /// Takes memory away: down to `most`, and at least a quarter of what is used, or nothing would come of it.
    /// Version 1 refuses a limit for which it cannot free enough; then the lowest that it takes. What is in force,
    /// and what was used before.
    pub fn squeeze_memory(&self, most: u64) -> Result<(u64, u64), ChaosError> {
        let file = self.memory.join(match self.unified {
            true => "memory.current",
            false => "memory.usage_in_bytes",
        });
        let text =
            std::fs::read_to_string(&file).map_err(ChaosError::file("cannot read", &file))?;
        let used: u64 = text
            .trim()
            .parse()
            .map_err(|_| ChaosError::Stage(format!("{} is no number: {text}", file.display())))?;
        let mut limit = most.min(used / 4 * 3);
        loop {
            match self.limit_memory(Some(limit)) {
                Err(_) if limit < used => limit += used / 32 + 4096,
                other => return other.map(|()| (limit, used)),
            }
        }
    }

    pub fn limit_cpu(&self, cores: Option<f64>) -> Result<(), ChaosError> {
        let quota = cores.map(|cores| (cores * PERIOD_US as f64) as u64);
        match self.unified {
            true => {
                let quota = quota.map_or("max".to_owned(), |us| us.to_string());
                write(&self.cpu.join("cpu.max"), &format!("{quota} {PERIOD_US}"))
            }
            false => {
                let quota = quota.map_or("-1".to_owned(), |us| us.to_string());
                write(&self.cpu.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
                write(&self.cpu.join("cpu.cfs_quota_us"), &quota)
            }
        }
    }

    /// How often the limit of memory was reached, and how often somebody was killed for it.
    pub fn memory_events(&self) -> (u64, u64) {
        match self.unified {
            true => {
                let events = self.memory.join("memory.events");
                (field(&events, "max"), field(&events, "oom_kill"))
            }
            false => {
                let failures = std::fs::read_to_string(self.memory.join("memory.failcnt"));
                let failures = failures.ok().and_then(|text| text.trim().parse().ok());
                let control = self.memory.join("memory.oom_control");
                (failures.unwrap_or(0), field(&control, "oom_kill"))
            }
        }
    }

    /// Periods in which the group had to wait for the next one.
    pub fn throttled(&self) -> u64 {
        field(&self.cpu.join("cpu.stat"), "nr_throttled")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for dir in [&self.memory, &self.cpu] {
            // Those in it are being killed; whoever is still there keeps it for a moment. An empty
            // folder is all that could stay.
            for _ in 0..50 {
                match std::fs::remove_dir(dir) {
                    Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                    Ok(()) | Err(_) => break,
                }
            }
        }
        for controller in &self.passed_on {
            // Refused while another group has come to need it.
            let control = Path::new(ROOT).join(CONTROL);
            drop(std::fs::write(control, format!("-{controller}")));
        }
    }
}

/// Children get controllers only when the parent passes them on. Those that it did not pass on before.
fn pass_on(root: &Path) -> Vec<&'static str> {
    let control = root.join(CONTROL);
    let before = std::fs::read_to_string(&control).unwrap_or_default();
    let missing = |name: &&str| before.split_whitespace().all(|word| word != *name);
    let passed = ["memory", "cpu"].into_iter().filter(missing);
    passed
        .filter(|name| std::fs::write(&control, format!("+{name}")).is_ok())
        .collect()
}

fn write(path: &Path, value: &str) -> Result<(), ChaosError> {
    std::fs::write(path, value).map_err(ChaosError::file("cannot write", path))
}

/// Of a file with a name and a number a line.
fn field(path: &Path, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(' ')?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0)
}
