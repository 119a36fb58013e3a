//! A broker alone, without lines, clients and faults: to be killed and started again, and timed.

use crate::{
    error::ChaosError,
    stage::{
        CALL_MAX, configuration, configuration_file, listens_at, loopback,
        machine::Machine,
        process::{END_POLL, END_POLLS, dies_with_us, last_lines},
    },
};
use hutong_connectors::client::{Endpoint, Identity, admin};
use hutong_proto::api;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::OpenOptions,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};

/// Much longer than any start should take, so that one that takes too long is still measured.
const READY_MAX: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub struct BrokerAlone {
    program: PathBuf,
    dir: PathBuf,
    child: Child,
    grpc: SocketAddr,
}

impl BrokerAlone {
    /// With its data in this folder.
    pub async fn start(
        machine: &Machine,
        dir: &Path,
        platforms: &[u32],
    ) -> Result<BrokerAlone, ChaosError> {
        let (program, file) = (machine.broker().to_owned(), configuration_file(dir));
        let text = configuration(
            platforms,
            &dir.join("data"),
            SocketAddr::new(loopback(), 0),
            None,
        );
        std::fs::write(&file, text).map_err(ChaosError::file("cannot write", &file))?;
        let (child, grpc) = ready(&program, dir).await?;
        Ok(BrokerAlone {
            program,
            dir: dir.to_owned(),
            child,
            grpc,
        })
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    pub async fn status(&self) -> Result<api::GetStatusResponse, ChaosError> {
        let operator = Identity::Operator("chaos".to_owned());
        let mut client = admin(&Endpoint::new(self.url(), operator))
            .map_err(ChaosError::stage("the broker's address"))?;
        let call = client.get_status(api::GetStatusRequest {});
        let answer = tokio::time::timeout(CALL_MAX, call)
            .await
            .map_err(|_| ChaosError::told("the broker does not answer", "互通无应答"))?;
        let answer = answer.map_err(ChaosError::stage("the broker's status"))?;
        Ok(answer.into_inner())
    }

    /// SIGKILL, and waits for its end.
    pub async fn kill(&mut self) -> Result<(), ChaosError> {
        self.child
            .kill()
            .await
            .map_err(ChaosError::stage("the broker cannot be killed"))
    }

    /// SIGTERM, and waits for its end.
    pub async fn stop(&mut self) -> Result<(), ChaosError> {
        let raw = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = raw.and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM)
                .map_err(ChaosError::stage("the broker cannot be stopped"))?;
        }
        let ended = tokio::time::timeout(READY_MAX, self.child.wait()).await;
        let status = ended
            .map_err(|_| ChaosError::told("the broker does not stop", "互通未能停止"))?
            .map_err(ChaosError::stage("the broker cannot be waited for"))?;
        match status.success() {
            true => Ok(()),
            // It has not drained, so what it has to apply again is not what was meant.
            false => Err(ChaosError::Stage(format!(
                "the broker was told to drain and ended with {status}; the end of its log:\n{}",
                last_lines(&log_file(&self.dir))
            ))),
        }
    }

    /// From the start of the process until it says that it is ready.
    pub async fn start_again(&mut self) -> Result<Duration, ChaosError> {
        let began = Instant::now();
        (self.child, self.grpc) = ready(&self.program, &self.dir).await?;
        Ok(began.elapsed())
    }
}

impl Drop for BrokerAlone {
    /// Whoever holds its folder removes it next, and nobody must write there any more.
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        drop(self.child.start_kill());
        for _ in 0..END_POLLS {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(END_POLL);
        }
    }
}

fn log_file(dir: &Path) -> PathBuf {
    dir.join("broker.log")
}

async fn ready(program: &Path, dir: &Path) -> Result<(Child, SocketAddr), ChaosError> {
    let log = log_file(dir);
    let stderr = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(ChaosError::file("cannot append to", &log))?;
    let mut child = dies_with_us(program)
        .arg("run")
        .arg(configuration_file(dir))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .map_err(ChaosError::stage("cannot start the broker"))?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        let read = stdout.read_line(&mut line);
        // What comes after the first line is nothing.
        drop(tokio::time::timeout(READY_MAX, read).await);
    }
    let grpc = listens_at(line.trim_end(), "grpc=")
        .map_err(|error| ChaosError::Stage(format!("{error}; its log is {}", log.display())))?;
    Ok((child, grpc))
}
