//! The broker under test, as a process, and what the kernel says it used.

use hutong_proto::Issuer;
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Of its metrics, how many runs of state went down.
const FLUSHES: &str = "hutong_state_flush_seconds_count";
/// Of every process from its first answer on.
const STARTED: &str = "process_start_time_seconds";
/// And how often those that waited were merged.
const MERGES: &str = "hutong_state_merges_total";
/// Clock ticks a second in `/proc/PID/stat`; fixed by the kernel's interface on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("cannot start {binary}: {why}; build it first with `./dev build`")]
    Start { binary: PathBuf, why: String },
    #[error("the broker was not ready after {0:?}; its log is {1}")]
    NotReady(Duration, PathBuf),
    #[error(
        "the broker's /metrics does not say `{STARTED}`, so its runs of state cannot be counted: {0}"
    )]
    NotCounted(String),
    #[error("cannot prepare the broker: {0}")]
    Prepare(#[from] std::io::Error),
}

/// A running broker; killed and its data removed when dropped.
#[derive(Debug)]
pub struct BrokerProcess {
    child: Child,
    pub grpc: String,
    pub http: String,
    dir: TempDir,
}

/// CPU seconds and peak memory of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_s: f64,
    pub memory_peak_mb: f64,
    pub memory_mb: f64,
}

/// What was done with state since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct StateWork {
    /// Runs that went down.
    pub flushes: u64,
    /// Merges of them, each into one part of the keys.
    pub merges: u64,
}

impl StateWork {
    /// Runs that went down since then, and merges of them.
    pub fn since(self, before: StateWork) -> [f64; 2] {
        let flushes = self.flushes.saturating_sub(before.flushes);
        [flushes, self.merges.saturating_sub(before.merges)].map(|count| count as f64)
    }
}

impl Usage {
    /// Of several processes together. What they share counts once: the kernel gives each its part.
    pub fn of_all(processes: &[u32]) -> Usage {
        if let [only] = processes {
            return usage_of(&only.to_string());
        }
        let mut all = Usage::default();
        for process in processes {
            // Of those that ended in the meantime, their parent has the sum.
            let process = process.to_string();
            all.cpu_s += usage_of(&process).cpu_s + cpu_s(&process, [16, 17]);
            let file = format!("/proc/{process}/smaps_rollup");
            let rollup = fs::read_to_string(file).unwrap_or_default();
            all.memory_mb += megabytes(&rollup, "Pss:");
        }
        // Nobody keeps the peak of a sum.
        all.memory_peak_mb = all.memory_mb;
        all
    }

    /// The same for who looks each second: an estimate of memory that costs the system nothing. Of what several share,
    /// the largest part counts, once.
    pub fn sampled(processes: &[u32]) -> Usage {
        if let [only] = processes {
            return usage_of(&only.to_string());
        }
        let mut all = Usage::default();
        let (mut of_files, mut shared) = (0.0, 0.0);
        for process in processes {
            let process = process.to_string();
            all.cpu_s += cpu_s(&process, [14, 15]) + cpu_s(&process, [16, 17]);
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            all.memory_mb += megabytes(&status, "RssAnon:");
            of_files = megabytes(&status, "RssFile:").max(of_files);
            shared = megabytes(&status, "RssShmem:").max(shared);
        }
        all.memory_mb += of_files + shared;
        all
    }
}

impl BrokerProcess {
    /// Starts the broker beside this program with these platforms and waits until it is ready.
    pub async fn start(
        platforms: &[Issuer],
        data_parent: Option<&Path>,
        extra: &str,
    ) -> Result<BrokerProcess, BrokerError> {
        let dir = match data_parent {
            Some(parent) => TempDir::new_in(parent)?,
            None => TempDir::new()?,
        };
        let (grpc, http) = (free_port()?, free_port()?);
        let mut text = format!(
            "identity = \"trial\"\n[listen]\ngrpc = \"127.0.0.1:{grpc}\"\nhttp = \"127.0.0.1:{http}\"\n\
             [data]\ndir = \"{}\"\n{extra}\n",
            dir.path().join("data").display()
        );
        for platform in platforms {
            text += &format!(
                "[[platforms]]\ncode = {platform}\nname = \"P{platform}\"\nname_zh = \"P{platform}\"\n"
            );
        }
        let config = dir.path().join("broker.toml");
        fs::write(&config, text)?;
        let log = dir.path().join("broker.log");
        let binary = std::env::current_exe()?.with_file_name("hutong-broker");
        let child = Command::new(&binary)
            .arg("run")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .map_err(|error| BrokerError::Start {
                binary,
                why: error.to_string(),
            })?;
        let broker = BrokerProcess {
            child,
            grpc: format!("http://127.0.0.1:{grpc}"),
            http: format!("127.0.0.1:{http}"),
            dir,
        };
        broker.ready(&log).await?;
        Ok(broker)
    }

    async fn ready(&self, log: &Path) -> Result<(), BrokerError> {
        let started = Instant::now();
        while started.elapsed() < START_TIMEOUT {
            // The listener is bound before data is opened, but answers only when ready.
            if get(&self.http, "/readyz")
                .await
                .is_some_and(|answer| answer.contains(" 200 "))
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let kept = std::env::temp_dir().join("hutong-bench-broker.log");
        fs::copy(log, &kept)?;
        Err(BrokerError::NotReady(START_TIMEOUT, kept))
    }

    pub fn usage(&self) -> Usage {
        usage_of(&self.process())
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its id, for [`usage_of`].
    pub fn process(&self) -> String {
        self.id().to_string()
    }

    pub async fn state_work(&self) -> Result<StateWork, BrokerError> {
        let metrics = get(&self.http, "/metrics").await.unwrap_or_default();
        if counted(&metrics, STARTED).is_none() {
            let head = metrics.lines().next().unwrap_or("no answer").to_owned();
            return Err(BrokerError::NotCounted(head));
        }
        // A histogram has no line before its first value.
        let flushes = counted(&metrics, FLUSHES).unwrap_or(0);
        let merges = counted(&metrics, MERGES).unwrap_or(0);
        Ok(StateWork { flushes, merges })
    }

    pub fn disk_mb(&self) -> f64 {
        folder_bytes(&self.dir.path().join("data")) as f64 / 1e6
    }

    /// Of one of its folders: "state" or "log".
    pub fn disk_mb_of(&self, folder: &str) -> f64 {
        folder_bytes(&self.dir.path().join("data").join(folder)) as f64 / 1e6
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to do about an error here.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A plain HTTP GET, answered as text with its head. 1.0, so that the answer comes in one piece.
pub async fn get(address: &str, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// A count without labels.
fn counted(metrics: &str, name: &str) -> Option<u64> {
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse::<f64>().ok().map(|count| count as u64)
}

/// The sum of these fields of its `stat`, as proc(5) counts them, in seconds.
fn cpu_s(process: &str, fields: [usize; 2]) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // After the name, which may have anything in it; the first one here is field 3.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.map(|i| {
        let field = rest.split_whitespace().nth(i - 3);
        field.and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0)
    });
    ticks.iter().sum::<f64>() / TICKS_PER_SECOND
}

/// Of the process with this id, or "self".
pub fn usage_of(process: &str) -> Usage {
    let mut usage = Usage {
        // utime and stime.
        cpu_s: cpu_s(process, [14, 15]),
        ..Usage::default()
    };
    if let Ok(status) = fs::read_to_string(format!("/proc/{process}/status")) {
        usage.memory_peak_mb = megabytes(&status, "VmHWM:");
        usage.memory_mb = megabytes(&status, "VmRSS:");
    }
    usage
}

/// Of a line of kilobytes, as in `/proc/PID/status`.
fn megabytes(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name));
    let kb = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kb.unwrap_or(0.0) / 1024.0
}

fn folder_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_that_of_its_name_alone() {
        let metrics = "# HELP a_count x\na_count_more 7\na_sum 2.5\na_count 12\n";
        assert_eq!(counted(metrics, "a_count"), Some(12));
        assert_eq!(counted(metrics, "b_count"), None);
    }
}
