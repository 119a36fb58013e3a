//! Programs of the system, run to their end: `mount`, `nft`, `python3`.

use crate::error::ChaosError;
use std::{path::Path, process::Command, time::Duration};

/// None of them takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Its standard output. An end other than 0 is an error with what it said.
pub async fn run(program: &str, args: &[&str]) -> Result<String, ChaosError> {
    let mut command = tokio::process::Command::new(program);
    command.args(args).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .map_err(|_| ChaosError::Stage(format!("{program} takes more than {PATIENCE:?}")))?
        .map_err(ChaosError::stage(&format!("cannot run {program}")))?;
    if !output.status.success() {
        return Err(ChaosError::Stage(format!(
            "{program} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// For `Drop`, where nobody waits and nobody can be told: tried, and that is all.
pub fn try_run(program: &str, args: &[&str]) {
    let mut command = Command::new(program);
    command.args(args);
    command.stdout(std::process::Stdio::null());
    command.stderr(std::process::Stdio::null());
    drop(command.status());
}

pub fn text(path: &Path) -> Result<&str, ChaosError> {
    let not_utf8 = || ChaosError::Stage(format!("{}: not UTF-8", path.display()));
    path.to_str().ok_or_else(not_utf8)
}

/// Is the program on the path?
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}
