//! Blast radius. As root a drill runs in a process, mount and network namespace of its own: what it
//! starts, mounts and filters is not there for anybody else, and is gone with it, also when it is
//! killed with SIGKILL and has no chance to undo anything.

use crate::{
    commands::{INTERRUPTED, USAGE},
    error::ChaosError,
    stage::{
        machine::Machine,
        shell::{has, run},
    },
};
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Command, Stdio};
use tokio::signal::unix::{SignalKind, signal};

/// Says to the inner process that it is the inner one.
const INSIDE: &str = "HUTONG_CHAOS_INSIDE";

/// Runs this program again inside, with the same arguments; its exit code. Nothing when it is inside
/// already, or when this machine cannot: then a drill undoes by itself what it did.
pub async fn enter(machine: &Machine) -> Result<Option<u8>, ChaosError> {
    if std::env::var_os(INSIDE).is_some() {
        // A network of its own begins with nothing; loopback is all that a drill uses.
        run("ip", &["link", "set", "lo", "up"]).await?;
        return Ok(None);
    }
    let possible = machine.is_root() && ["unshare", "setpriv", "ip"].into_iter().all(has);
    if !possible {
        return Ok(None);
    }
    let own = std::env::current_exe().map_err(ChaosError::stage("this program has no path"))?;
    // When this process dies, `unshare` dies, and with it all that is inside.
    let mut command = tokio::process::Command::from({
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare"]);
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["--net", "--mount", "--propagation", "private"]);
        command.arg(own).args(std::env::args_os().skip(1));
        command.env(INSIDE, "1").stdin(Stdio::null());
        command
    });
    // A terminal's Ctrl-C comes to this process, which passes it on: once, not twice.
    let mut child = command
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(ChaosError::stage("cannot run setpriv"))?;
    let listen = |kind| signal(kind).map_err(ChaosError::stage("cannot listen to signals"));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    loop {
        let told = tokio::select! {
            // Cancel-safe, as they say.
            status = child.wait() => {
                let status = status.map_err(ChaosError::stage("unshare"))?;
                let code = status.code().and_then(|code| u8::try_from(code).ok());
                return Ok(Some(code.unwrap_or(INTERRUPTED)));
            }
            _ = interrupt.recv() => Signal::INT,
            _ = terminate.recv() => Signal::TERM,
        };
        let Some(outer) = child.id() else {
            return Ok(Some(USAGE));
        };
        for inner in children(outer) {
            // It may be ending just now.
            kill_process(inner, told).ok();
        }
    }
}

fn children(pid: u32) -> Vec<Pid> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let list = list.unwrap_or_default();
    list.split_whitespace()
        .filter_map(|word| Pid::from_raw(word.parse().ok()?))
        .collect()
}
