//! What the process and its files take from the machine.

use std::{fs, path::Path};

/// The most memory this process ever held, in megabytes; 0 where the system does not tell.
pub fn memory_peak_mb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    peak_kb(&status) / 1000
}

fn peak_kb(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kb| kb.trim().parse().ok())
        .unwrap_or(0)
}

/// Bytes in all files below a folder. Files come and go under a running store: one that has gone is
/// not counted.
pub fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_from_the_status() {
        assert_eq!(
            peak_kb("Name:\thutong\nVmHWM:\t  512000 kB\nVmRSS:\t1 kB\n"),
            512_000
        );
        assert_eq!(peak_kb(""), 0);
    }

    #[test]
    fn all_files_of_a_folder_count() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("a")).expect("a folder");
        fs::write(dir.path().join("a/b"), [0; 100]).expect("a file");
        fs::write(dir.path().join("c"), [0; 11]).expect("a file");
        assert_eq!(disk_bytes(dir.path()), 111);
    }
}
