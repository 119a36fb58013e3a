//! Processes that are killed or stopped.

use crate::{
    error::ChaosError,
    faults::{Back, Undone},
    history::Proof,
    stage::{Sink, Stage, Trial, process::Hold, shell::run},
    text::Text,
};
use rustix::process::Signal;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// A signal takes effect soon.
const STOP_POLL: Duration = Duration::from_millis(5);
const STOP_POLLS: u32 = 200;
/// Between two questions to a broker that is not ours, and for it to be gone.
const THERE_POLL: Duration = Duration::from_millis(100);
const THERE_MAX: Duration = Duration::from_secs(10);

/// The state of a process, as one letter of `/proc/PID/stat`; nothing when it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Of all its threads, each letter once.
fn states(pid: u32) -> String {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let stats = threads.into_iter().flatten().flatten();
    let mut states: Vec<char> = stats
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok())
        .filter_map(|stat| stat.rsplit_once(')')?.1.trim_start().chars().next())
        .collect();
    states.sort_unstable();
    states.dedup();
    states.into_iter().collect()
}

fn all_stand(states: &str) -> bool {
    states == "T"
}

fn killed(pid: Option<u32>) -> Proof {
    let gone = pid.is_some_and(|pid| state(pid).is_none_or(|state| state == 'Z'));
    Proof::new(
        "the process that got SIGKILL is gone",
        "收到 SIGKILL 的进程已消失",
        match pid {
            Some(pid) if gone => Text::new(
                format!("process {pid}, gone"),
                format!("进程 {pid}，已消失"),
            ),
            Some(pid) => Text::new(
                format!("process {pid}, alive"),
                format!("进程 {pid}，仍存活"),
            ),
            None => ("there was no process", "没有进程").into(),
        },
        gone,
    )
}

/// A broker that others run, killed by their command as often as it comes back while the fault lasts: nobody
/// here can hold it down.
pub struct KilledThere<'a> {
    stage: &'a Stage,
    proof: Proof,
    _again: AbortOnDropHandle<()>,
}

impl<'a> KilledThere<'a> {
    pub async fn begin(stage: &'a Stage, trial: &Trial) -> Result<KilledThere<'a>, ChaosError> {
        let before = trial.started_at().await?;
        kill_there(trial).await?;
        // Gone, or already another one.
        let mut seen = trial.started_at().await.ok();
        let gone = async {
            while seen == Some(before) {
                tokio::time::sleep(THERE_POLL).await;
                seen = trial.started_at().await.ok();
            }
        };
        let gone = tokio::time::timeout(THERE_MAX, gone).await.is_ok();
        let proof = Proof::new(
            "the broker that was there does not answer any more",
            "原有互通进程已不再应答",
            match seen {
                None => Text::new("no answer", "无应答"),
                Some(now) => Text::new(
                    format!("started at {now} us, before at {before} us"),
                    format!("启动于 {now} µs，此前为 {before} µs"),
                ),
            },
            gone,
        );
        let trial = trial.clone();
        let again = tokio::spawn(async move {
            let mut known = before;
            loop {
                tokio::time::sleep(THERE_POLL).await;
                if let Ok(now) = trial.started_at().await
                    && now != known
                {
                    known = now;
                    // It may be gone for another reason by now.
                    drop(kill_there(&trial).await);
                }
            }
        });
        Ok(KilledThere {
            stage,
            proof,
            _again: AbortOnDropHandle::new(again),
        })
    }

    pub fn heal(self) -> Undone<'a> {
        Undone::of_broker(self.stage, vec![self.proof])
    }
}

async fn kill_there(trial: &Trial) -> Result<(), ChaosError> {
    let command = trial.kill_with.as_deref().unwrap_or("false");
    run("sh", &["-c", command]).await.map(|_| ())
}

/// The broker, killed and held down.
pub struct Down<'a> {
    stage: &'a Stage,
    hold: Hold,
    proof: Proof,
}

impl<'a> Down<'a> {
    pub async fn begin(stage: &'a Stage) -> Result<Down<'a>, ChaosError> {
        let (hold, pid) = stage.broker.kill().await?;
        Ok(Down {
            stage,
            hold,
            proof: killed(pid),
        })
    }

    pub fn heal(self) -> Undone<'a> {
        drop(self.hold);
        Undone::of_broker(self.stage, vec![self.proof])
    }
}

/// The broker, stopped.
pub struct Paused<'a> {
    stage: &'a Stage,
    proof: Proof,
}

impl<'a> Paused<'a> {
    pub async fn begin(stage: &'a Stage) -> Result<Paused<'a>, ChaosError> {
        stage.broker.ready(super::READY_MAX).await?;
        let pid = stage.broker.signal(Signal::STOP)?;
        // A thread within a call ends it first; until all stand, the process may still write.
        let mut seen = states(pid);
        for _ in 0..STOP_POLLS {
            if all_stand(&seen) {
                break;
            }
            tokio::time::sleep(STOP_POLL).await;
            seen = states(pid);
        }
        let proof = Proof::new(
            "states of the process's threads after it got SIGSTOP",
            "收到 SIGSTOP 之后的线程状态",
            match seen.is_empty() {
                true => Text::new("gone", "已消失"),
                false => Text::new(
                    format!("{seen} (stopped is T)"),
                    format!("{seen}（T 为已暂停）"),
                ),
            },
            all_stand(&seen),
        );
        Ok(Paused { stage, proof })
    }

    /// Does it stand still, for certain?
    pub fn stands(&self) -> bool {
        self.proof.holds
    }

    pub fn heal(self) -> Undone<'a> {
        let (stage, proof) = (self.stage, self.proof.clone());
        drop(self);
        Undone::of_broker(stage, vec![proof])
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        // A process that is gone needs no word.
        drop(self.stage.broker.signal(Signal::CONT));
    }
}

/// The connector of the sink, killed and held down.
pub struct ConnectorDown<'a> {
    sink: &'a Sink,
    hold: Hold,
    proof: Proof,
}

impl<'a> ConnectorDown<'a> {
    pub async fn begin(sink: &'a Sink) -> Result<ConnectorDown<'a>, ChaosError> {
        let (hold, pid) = sink.connector.kill().await?;
        Ok(ConnectorDown {
            sink,
            hold,
            proof: killed(pid),
        })
    }

    pub fn heal(self) -> Undone<'a> {
        drop(self.hold);
        Undone {
            proof: vec![self.proof],
            back: Back::Connector(self.sink),
        }
    }
}

/// The server of the sink, crashed.
pub struct PostgresDown<'a> {
    sink: &'a Sink,
    refused: bool,
}

impl<'a> PostgresDown<'a> {
    pub async fn begin(sink: &'a Sink) -> Result<PostgresDown<'a>, ChaosError> {
        sink.crash().await?;
        let session = tokio_postgres::connect(&sink.url, tokio_postgres::NoTls).await;
        Ok(PostgresDown {
            sink,
            refused: session.is_err(),
        })
    }

    pub async fn heal(self) -> Result<Undone<'a>, ChaosError> {
        self.sink.run_again().await?;
        Ok(Undone::proof(vec![Proof::new(
            "PostgreSQL took no session while it was down",
            "停机期间 PostgreSQL 拒绝连接",
            match self.refused {
                true => ("refused", "被拒绝"),
                false => ("it answered", "有应答"),
            },
            self.refused,
        )]))
    }
}
