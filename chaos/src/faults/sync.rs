//! Syncs that fail, are slow, or kill: `strace` stands between the broker and the kernel.

use crate::{
    error::ChaosError,
    faults::{READY_MAX, Undone},
    history::Proof,
    stage::{
        Stage,
        process::{Hold, Process, dies_with_us},
    },
};
use rustix::process::{Pid, Signal, kill_process};
use std::{collections::BTreeSet, path::PathBuf, process::Stdio, time::Duration};
use tokio::process::Child;

const SYNCS: &str = "fsync,fdatasync";
const ATTACH_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
/// What strace writes behind a call that it answered itself.
const INJECTED: &str = "(INJECTED)";
const DELAYED: &str = "(DELAYED)";

/// Attached to the broker; lets go when dropped.
struct Tracer {
    child: Child,
    output: PathBuf,
}

impl Tracer {
    /// `inject` is strace's own language.
    async fn attach(stage: &Stage, pid: u32, inject: &str) -> Result<Tracer, ChaosError> {
        let output = stage.dir().join(format!("strace-{}", stage.serial()));
        // Without the drill nobody would stop it from spoiling the broker's syncs.
        let child = dies_with_us("strace")
            .args(["-f", "-q", "-e", &format!("trace={SYNCS}")])
            .args(["-e", &format!("inject={SYNCS}:{inject}")])
            .arg("-o")
            .arg(&output)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(ChaosError::stage("cannot run strace"))?;
        let tracer = Tracer { child, output };
        let own = tracer.child.id();
        let attached = async {
            while !is_traced(pid, own) {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(ATTACH_MAX, attached)
            .await
            .map_err(|_| {
                ChaosError::told(
                    "strace cannot attach to the broker",
                    "strace 无法附着到互通进程",
                )
            })?;
        Ok(tracer)
    }

    /// Lets go; what it saw.
    async fn detach(mut self) -> Result<String, ChaosError> {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
            // It ends by itself with the process that it traces, and then there is nobody to tell.
            kill_process(pid, Signal::INT).ok();
        }
        let ended = tokio::time::timeout(ATTACH_MAX, self.child.wait()).await;
        ended
            .map_err(|_| ChaosError::told("strace does not let go", "strace 未能脱离"))?
            .map_err(ChaosError::stage("strace"))?;
        std::fs::read_to_string(&self.output).map_err(ChaosError::file("cannot read", &self.output))
    }
}

/// Calls that strace answered itself, or held up.
fn touched(text: &str) -> usize {
    let touched = |line: &&str| line.contains(INJECTED) || line.contains(DELAYED);
    text.lines().filter(touched).count()
}

/// Calls that never came back: strace has no word of its own for those that it killed.
fn never_back(text: &str) -> usize {
    let (mut within, mut ended) = (BTreeSet::new(), 0);
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        let is_sync = |call: &str| SYNCS.split(',').any(|name| call.starts_with(name));
        if !is_sync(call.trim_start_matches("<... ")) {
            continue;
        }
        if call.contains("<unfinished") {
            within.insert(thread);
        } else {
            within.remove(thread);
            ended += usize::from(call.ends_with("= ?"));
        }
    }
    ended + within.len()
}

/// Is every thread of the process traced, and by this one?
fn is_traced(pid: u32, by: Option<u32>) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let tracer = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        by.is_some() && tracer.and_then(|tracer| tracer.trim().parse().ok()) == by
    })
}

/// The broker's process, when it is ready: it may be starting again for another reason.
async fn running(stage: &Stage) -> Result<u32, ChaosError> {
    stage.broker.ready(READY_MAX).await?;
    stage.broker.pid_or_error()
}

/// Syncs that answer with an error, or late.
pub struct Syncs<'a> {
    stage: &'a Stage,
    tracer: Tracer,
    fails: bool,
}

impl<'a> Syncs<'a> {
    pub async fn fail(stage: &'a Stage) -> Result<Syncs<'a>, ChaosError> {
        Ok(Syncs {
            stage,
            tracer: Tracer::attach(stage, running(stage).await?, "error=EIO").await?,
            fails: true,
        })
    }

    pub async fn slow(stage: &'a Stage, delay: Duration) -> Result<Syncs<'a>, ChaosError> {
        let inject = format!("delay_enter={}", delay.as_micros());
        Ok(Syncs {
            stage,
            tracer: Tracer::attach(stage, running(stage).await?, &inject).await?,
            fails: false,
        })
    }

    /// What the broker makes of a sync that failed is for the judge, who sees how its process ended.
    pub async fn heal(self) -> Result<Undone<'a>, ChaosError> {
        let touched = touched(&self.tracer.detach().await?);
        let proof = vec![match self.fails {
            true => Proof::new(
                "syncs that failed with EIO",
                "以 EIO 失败的落盘次数",
                touched,
                touched > 0,
            ),
            false => Proof::new(
                "syncs that were delayed",
                "被延迟的落盘次数",
                touched,
                touched > 0,
            ),
        }];
        Ok(Undone::of_broker(self.stage, proof))
    }
}

/// The broker is killed within a sync, and held down.
pub struct Crash<'a> {
    stage: &'a Stage,
    tracer: Tracer,
    hold: Hold,
    broker: Process,
    pid: u32,
}

impl<'a> Crash<'a> {
    pub async fn begin(stage: &'a Stage, sync: u32) -> Result<Crash<'a>, ChaosError> {
        let pid = running(stage).await?;
        let hold = stage.broker.hold();
        // Counted for each thread by itself; the log's writer is the one that syncs at each commit.
        let inject = format!("signal=KILL:when={sync}");
        Ok(Crash {
            stage,
            tracer: Tracer::attach(stage, pid, &inject).await?,
            hold,
            broker: stage.broker.clone(),
            pid,
        })
    }

    pub async fn heal(self) -> Result<Undone<'a>, ChaosError> {
        let down = self.broker.pid() != Some(self.pid);
        let syncs = never_back(&self.tracer.detach().await?);
        drop(self.hold);
        let proof = vec![
            Proof::new(
                "syncs that never came back",
                "未返回的落盘次数",
                syncs,
                syncs > 0,
            ),
            Proof::new(
                "the broker died of it",
                "互通因此终止",
                if down {
                    ("it ended", "已终止")
                } else {
                    ("it lives", "仍存活")
                },
                down,
            ),
        ];
        Ok(Undone::of_broker(self.stage, proof))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_was_killed_is_told_from_one_that_came_back() {
        let lived =
            "7 fdatasync(3)   = 0\n8 fsync(4 <unfinished ...>\n8 <... fsync resumed>) = 0\n";
        assert_eq!(never_back(lived), 0);
        let alone = "7 fdatasync(3) = 0\n7 fdatasync(3) = ?\n7 +++ killed by SIGKILL +++\n";
        assert_eq!(never_back(alone), 1);
        let among = "8 fdatasync(4 <unfinished ...>\n7 fdatasync(3 <unfinished ...>\n\
                     8 <... fdatasync resumed>) = 0\n7 <... fdatasync resumed>) = ?\n\
                     7 +++ killed by SIGKILL +++\n9 +++ killed by SIGKILL +++\n";
        assert_eq!(never_back(among), 1);
        let unfinished = "7 fdatasync(3 <unfinished ...>\n7 +++ killed by SIGKILL +++\n";
        assert_eq!(never_back(unfinished), 1);
        let injected = "7 fdatasync(3) = -1 EIO (Input/output error) (INJECTED)\n";
        assert_eq!((touched(injected), never_back(injected)), (1, 0));
    }
}
