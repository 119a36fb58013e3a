//! Blast radius. As root a drill runs in a process, mount and network namespace of its own: what it
//! starts, mounts and filters is not there for anybody else, and is gone with it, also when it is
//! killed with SIGKILL and has no chance to undo anything.

use crate::{
    commands::{INTERRUPTED, INVALID, Interrupts},
    error::ChaosError,
    stage::{
        machine::Machine,
        shell::{has, run},
    },
};
use rustix::process::{Pid, kill_process};
use std::process::Stdio;

/// Says to the inner process that it is the inner one.
const INSIDE: &str = "HUTONG_CHAOS_INSIDE";

/// When this process dies, `unshare` dies, and with it all that is inside.
const ENTER: [&str; 11] = [
    "--pdeathsig",
    "KILL",
    "unshare",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--net",
    "--mount",
    "--propagation",
    "private",
];

/// Can it be entered? If not, a drill is played outside, and whoever plays it is told.
async fn is_possible(machine: &Machine) -> bool {
    if !machine.is_root() || !["unshare", "setpriv", "ip"].into_iter().all(has) {
        return false;
    }
    // A container may forbid it to root as well.
    match run("setpriv", &[&ENTER[..], &["true"]].concat()).await {
        Ok(_) => true,
        Err(error) => {
            eprintln!(
                "hutong-chaos: this machine gives no namespaces of its own ({error}); what a drill does is \
                 undone by the drill alone"
            );
            false
        }
    }
}

/// Runs this program again inside, with the same arguments; its exit code. Nothing when it is inside
/// already, or when this machine cannot: then a drill undoes by itself what it did.
pub async fn enter(
    machine: &Machine,
    interrupts: &mut Interrupts,
) -> Result<Option<u8>, ChaosError> {
    if std::env::var_os(INSIDE).is_some() {
        // A network of its own begins with nothing; loopback is all that a drill uses.
        run("ip", &["link", "set", "lo", "up"]).await?;
        return Ok(None);
    }
    if !is_possible(machine).await {
        return Ok(None);
    }
    let own = std::env::current_exe().map_err(ChaosError::stage("this program has no path"))?;
    let mut command = tokio::process::Command::new("setpriv");
    command
        .args(ENTER)
        .arg(own)
        .args(std::env::args_os().skip(1));
    command.env(INSIDE, "1").stdin(Stdio::null());
    // A terminal's Ctrl-C comes to this process, which passes it on: once, not twice.
    let mut child = command
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(ChaosError::stage("cannot run setpriv"))?;
    let mut told = false;
    loop {
        let signal = tokio::select! {
            // Cancel-safe, as they say.
            status = child.wait() => {
                let status = status.map_err(ChaosError::stage("unshare"))?;
                let code = status.code().and_then(|code| u8::try_from(code).ok());
                return Ok(Some(code.unwrap_or_else(|| killed(told))));
            }
            signal = interrupts.next() => signal,
        };
        told = true;
        let Some(outer) = child.id() else { continue };
        for inner in children(outer) {
            // It may be ending just now.
            kill_process(inner, signal).ok();
        }
    }
}

/// The drill has no verdict; only if we were told to end it is it an interrupt.
fn killed(told: bool) -> u8 {
    if told {
        return INTERRUPTED;
    }
    eprintln!("hutong-chaos: the drill was killed by something else, so it says nothing");
    INVALID
}

fn children(pid: u32) -> Vec<Pid> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let list = list.unwrap_or_default();
    list.split_whitespace()
        .filter_map(|word| Pid::from_raw(word.parse().ok()?))
        .collect()
}
