//! Processes that are killed or stopped.

use crate::{
    error::ChaosError,
    history::Proof,
    stage::{Sink, Stage, Trial, process::Hold, shell::run},
};
use rustix::process::Signal;

/// The state of a process, as one letter of `/proc/PID/stat`; nothing when it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn killed(pid: Option<u32>) -> Proof {
    let gone = pid.is_some_and(|pid| state(pid).is_none_or(|state| state == 'Z'));
    Proof::new(
        "the process that got SIGKILL is gone",
        "收到 SIGKILL 的进程已消失",
        match pid {
            Some(pid) => format!("process {pid}, {}", if gone { "gone" } else { "alive" }),
            None => "there was no process".to_owned(),
        },
        gone,
    )
}

/// A broker that others run, killed by their command.
pub struct KilledThere<'a> {
    stage: &'a Stage,
    trial: &'a Trial,
    started_at: u64,
}

impl<'a> KilledThere<'a> {
    pub async fn begin(stage: &'a Stage, trial: &'a Trial) -> Result<KilledThere<'a>, ChaosError> {
        let started_at = trial.started_at().await?;
        run("sh", &["-c", trial.kill_with.as_deref().unwrap_or("false")]).await?;
        Ok(KilledThere {
            stage,
            trial,
            started_at,
        })
    }

    pub async fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        self.stage.broker_ready().await?;
        let now = self.trial.started_at().await?;
        Ok(vec![Proof::new(
            "the broker says that it was started anew",
            "互通报告其已重新启动",
            format!("at {now} us, before at {} us", self.started_at),
            now != self.started_at,
        )])
    }
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

    pub async fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        drop(self.hold);
        self.stage.broker_ready().await?;
        Ok(vec![self.proof])
    }
}

/// The broker, stopped.
pub struct Paused<'a> {
    stage: &'a Stage,
    pid: u32,
}

impl<'a> Paused<'a> {
    pub fn begin(stage: &'a Stage) -> Result<Paused<'a>, ChaosError> {
        let pid = stage.broker.signal(Signal::STOP)?;
        Ok(Paused { stage, pid })
    }

    pub fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        let state = state(self.pid);
        let proof = Proof::new(
            "state of the process before it was continued",
            "恢复前的进程状态",
            state.map_or("gone".to_owned(), |state| format!("{state} (stopped is T)")),
            state == Some('T'),
        );
        Ok(vec![proof])
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

    pub async fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        drop(self.hold);
        self.sink.connector.ready(super::READY_MAX).await?;
        Ok(vec![self.proof])
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

    pub async fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        self.sink.run_again().await?;
        Ok(vec![Proof::new(
            "PostgreSQL took no session while it was down",
            "停机期间 PostgreSQL 拒绝连接",
            if self.refused {
                "refused"
            } else {
                "it answered"
            },
            self.refused,
        )])
    }
}
