//! What the kernel says about this process, from `/proc`. What it does not say is left out.

use std::{fs, sync::OnceLock};

/// The unit of `/proc/self/stat`, the same on every machine that Linux runs on.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug, Default)]
pub struct Process {
    pub resident_bytes: Option<u64>,
    pub cpu_seconds: Option<f64>,
    pub open_files: Option<u64>,
    pub max_files: Option<u64>,
    /// Since the Unix epoch.
    pub started_seconds: Option<f64>,
}

impl Process {
    pub fn read() -> Process {
        let file = |name: &str| fs::read_to_string(name).unwrap_or_default();
        let (status, stat) = (file("/proc/self/status"), file("/proc/self/stat"));
        // Once: the kernel moves the time of its start when the clock is set, and nothing was restarted then.
        static STARTED: OnceLock<Option<f64>> = OnceLock::new();
        let started = STARTED.get_or_init(|| {
            let boot = number(&file("/proc/stat"), "btime");
            let ticks = stat_ticks(&stat, 22);
            boot.zip(ticks).map(|(boot, ticks)| boot as f64 + ticks)
        });
        Process {
            resident_bytes: number(&status, "VmRSS:").map(|kib| kib * 1024),
            cpu_seconds: stat_ticks(&stat, 14)
                .zip(stat_ticks(&stat, 15))
                .map(|(user, system)| user + system),
            open_files: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|fds| fds.count() as u64),
            max_files: number(&file("/proc/self/limits"), "Max open files"),
            started_seconds: *started,
        }
    }
}

/// The first number of the line that begins so.
fn number(text: &str, begin: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(begin))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A field of `/proc/self/stat`, by its number in proc(5), in seconds. The second one may hold spaces, so it is
/// counted from the end of that.
fn stat_ticks(stat: &str, field: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: f64 = rest.split_whitespace().nth(field - 3)?.parse().ok()?;
    Some(ticks / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_name_with_spaces() {
        let fields: Vec<_> = (4..=22).map(|n| (n * 100).to_string()).collect();
        let stat = format!("7 (a b) c) S {}", fields.join(" "));
        assert_eq!(stat_ticks(&stat, 14), Some(14.0));
        assert_eq!(stat_ticks(&stat, 22), Some(22.0));
        assert_eq!(stat_ticks("", 14), None);
        assert_eq!(number("a 1\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12));
    }
}
