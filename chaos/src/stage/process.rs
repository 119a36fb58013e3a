//! A program under a supervisor: started, watched, started again when it ends by itself as `systemd`
//! would with `Restart=always`, and held back while a fault wants it down. Killed when dropped.

use crate::{
    error::ChaosError,
    history::{Event, Life, Writer},
    stage::shell::has,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::OsStr,
    fs::OpenOptions,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

/// Between an end and the next start, as `RestartSec` of a unit.
const RESTART_AFTER: Duration = Duration::from_millis(500);
/// What a killed process takes to be gone, at most.
pub const END_POLL: Duration = Duration::from_millis(10);
pub const END_POLLS: u32 = 500;
/// Of a log, in a message.
const LOG_LINES: usize = 12;

/// A command that the kernel kills when this program dies, also without a chance to do anything. Where there
/// is no `setpriv`, one that is only killed when it is dropped.
///
/// The kernel means the thread that starts it, so it must be one that lives as long as the runtime.
pub fn dies_with_us(program: impl AsRef<OsStr>) -> Command {
    if !has("setpriv") {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

fn does_not_run(name: &str) -> ChaosError {
    ChaosError::told(format!("{name} does not run"), format!("{name} 未在运行"))
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Standard error goes here, of all starts.
    pub log: PathBuf,
    /// Its first line on standard output says that it is ready; otherwise it is as soon as it runs.
    pub says_ready: bool,
    /// Files of control groups that it joins before it runs.
    pub join: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Without a process while it waits to be started.
    Starting {
        pid: Option<u32>,
    },
    Ready {
        pid: u32,
        line: String,
    },
    Down,
}

/// A supervised program; clones are the same.
#[derive(Clone, Debug)]
pub struct Process {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    spec: Spec,
    state: watch::Receiver<State>,
    /// How many want it down.
    holds: watch::Sender<usize>,
    _task: Option<AbortOnDropHandle<()>>,
}

/// It is not started again while this lives.
#[derive(Debug)]
pub struct Hold(Process);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.shared.holds.send_modify(|n| *n -= 1);
    }
}

impl Process {
    pub fn start(spec: Spec, history: Writer) -> Process {
        let (told, state) = watch::channel(State::Starting { pid: None });
        let holds = watch::Sender::new(0);
        let supervisor = Supervisor {
            spec: spec.clone(),
            history,
            told,
            holds: holds.subscribe(),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(supervisor.run()));
        Process {
            shared: Arc::new(Shared {
                spec,
                state,
                holds,
                _task: Some(task),
            }),
        }
    }

    /// One that others run: there is no process here, and so nothing can be done to it.
    pub fn elsewhere(spec: Spec) -> Process {
        let (_, state) = watch::channel(State::Down);
        Process {
            shared: Arc::new(Shared {
                spec,
                state,
                holds: watch::Sender::new(0),
                _task: None,
            }),
        }
    }

    pub fn name(&self) -> &str {
        &self.shared.spec.name
    }

    pub fn state(&self) -> State {
        self.shared.state.borrow().clone()
    }

    /// Of the process that is ready.
    pub fn pid(&self) -> Option<u32> {
        match &*self.shared.state.borrow() {
            State::Ready { pid, .. } => Some(*pid),
            State::Starting { .. } | State::Down => None,
        }
    }

    /// Of the process that there is, whether it is ready or only comes up.
    pub fn any_pid(&self) -> Option<u32> {
        match &*self.shared.state.borrow() {
            State::Ready { pid, .. } => Some(*pid),
            State::Starting { pid } => *pid,
            State::Down => None,
        }
    }

    pub fn pid_or_error(&self) -> Result<u32, ChaosError> {
        let missing = || does_not_run(self.name());
        self.pid().ok_or_else(missing)
    }

    /// Waits until it is ready; what it said.
    pub async fn ready(&self, within: Duration) -> Result<String, ChaosError> {
        let mut state = self.shared.state.clone();
        let ready = state.wait_for(|state| matches!(state, State::Ready { .. }));
        match tokio::time::timeout(within, ready).await {
            Ok(Ok(state)) => match &*state {
                State::Ready { line, .. } => Ok(line.clone()),
                State::Starting { .. } | State::Down => Ok(String::new()),
            },
            Ok(Err(_)) | Err(_) => {
                let (name, s, log) = (self.name(), within.as_secs(), self.log());
                Err(ChaosError::told(
                    format!("{name} was not ready within {s} s; the end of its log:\n{log}"),
                    format!("{name} 在 {s} 秒内未就绪；其日志末尾：\n「{log}」"),
                ))
            }
        }
    }

    /// Waits until there is a process, ready or on its way to it; which one.
    pub async fn started(&self, within: Duration) -> Result<u32, ChaosError> {
        let mut state = self.shared.state.clone();
        let pid = |state: &State| match state {
            State::Starting { pid } => *pid,
            State::Ready { pid, .. } => Some(*pid),
            State::Down => None,
        };
        let started = state.wait_for(|state| pid(state).is_some());
        let started = tokio::time::timeout(within, started).await;
        let seen = started.ok().and_then(Result::ok);
        let seen = seen.and_then(|state| pid(&state));
        seen.ok_or_else(|| does_not_run(self.name()))
    }

    /// Waits until it has ended.
    pub async fn down(&self, within: Duration) -> Result<(), ChaosError> {
        let mut state = self.shared.state.clone();
        let down = state.wait_for(|state| *state == State::Down);
        match tokio::time::timeout(within, down).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let (name, s) = (self.name(), within.as_secs());
                Err(ChaosError::told(
                    format!("{name} did not end within {s} s"),
                    format!("{name} 在 {s} 秒内未终止"),
                ))
            }
        }
    }

    #[must_use]
    pub fn hold(&self) -> Hold {
        self.shared.holds.send_modify(|n| *n += 1);
        Hold(self.clone())
    }

    pub fn signal(&self, signal: Signal) -> Result<u32, ChaosError> {
        let pid = match *self.shared.state.borrow() {
            State::Starting { pid } => pid,
            State::Ready { pid, .. } => Some(pid),
            State::Down => None,
        };
        let missing = || does_not_run(self.name());
        let pid = pid.ok_or_else(missing)?;
        let failed = || does_not_run(self.name());
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        kill_process(raw.ok_or_else(failed)?, signal)
            .map_err(ChaosError::stage(&format!("cannot signal {}", self.name())))?;
        Ok(pid)
    }

    /// SIGKILL, and waits for its end; it is not started again while the hold lives. One that is down
    /// already is as good.
    pub async fn kill(&self) -> Result<(Hold, Option<u32>), ChaosError> {
        let hold = self.hold();
        // It may be down, or end by itself just now.
        let pid = self.signal(Signal::KILL).ok();
        self.down(RESTART_AFTER * 20).await?;
        Ok((hold, pid))
    }

    /// For good, and without waiting for anybody but the kernel: for `Drop`.
    pub fn end(&self) {
        self.shared.holds.send_modify(|n| *n += 1);
        let Ok(pid) = self.signal(Signal::KILL) else {
            return;
        };
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie has closed all that it had.
            stat.rsplit_once(')')
                .is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
        };
        for _ in 0..END_POLLS {
            if gone() {
                return;
            }
            std::thread::sleep(END_POLL);
        }
    }

    /// The last lines of its log.
    pub fn log(&self) -> String {
        last_lines(&self.shared.spec.log)
    }

    pub fn whole_log(&self) -> String {
        whole(&self.shared.spec.log)
    }
}

fn whole(log: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
}

/// Of a log, for a message.
pub fn last_lines(log: &Path) -> String {
    let text = whole(log);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

struct Supervisor {
    spec: Spec,
    history: Writer,
    told: watch::Sender<State>,
    holds: watch::Receiver<usize>,
}

impl Supervisor {
    async fn run(mut self) {
        loop {
            if self.holds.wait_for(|n| *n == 0).await.is_err() {
                return;
            }
            self.told.send_replace(State::Starting { pid: None });
            match self.spawn() {
                Ok(child) => self.watch(child).await,
                Err(error) => self.history.record(Event::ClientEnded {
                    who: self.spec.name.clone(),
                    error: format!("cannot start {}: {error}", self.spec.program.display()),
                }),
            }
            self.told.send_replace(State::Down);
            tokio::time::sleep(RESTART_AFTER).await;
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let spec = &self.spec;
        // A file, because a pipe that nobody reads would stop the program when it is full.
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&spec.log)?;
        let mut command = if spec.join.is_empty() {
            let mut command = dies_with_us(&spec.program);
            command.args(&spec.args);
            command
        } else {
            // It joins before the program begins, so that all of its memory counts.
            let joins: String = (spec.join.iter())
                .map(|file| format!("echo $$ > '{}'; ", file.display()))
                .collect();
            let mut command = dies_with_us("sh");
            command.args(["-c", &format!("{joins}exec \"$0\" \"$@\"")]);
            command.arg(&spec.program).args(&spec.args);
            command
        };
        command
            .envs(spec.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(if spec.says_ready {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stderr(log)
            // What a terminal sends to the drill is not meant for what it runs.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    async fn watch(&self, mut child: Child) {
        let Some(pid) = child.id() else { return };
        let name = &self.spec.name;
        let life = |what: Life| {
            self.history.record(Event::Process {
                name: name.clone(),
                what,
            });
        };
        life(Life::Started { pid });
        self.told.send_replace(State::Starting { pid: Some(pid) });
        let mut line = String::new();
        let mut ready = true;
        if let Some(stdout) = child.stdout.take() {
            // The end of the output, without a line, is the end of the process.
            let read = BufReader::new(stdout).read_line(&mut line).await;
            ready = read.is_ok_and(|bytes| bytes > 0);
        }
        if ready {
            life(Life::Ready);
            let line = line.trim_end().to_owned();
            self.told.send_replace(State::Ready { pid, line });
        }
        // Only fails when somebody else waited for it.
        if let Ok(status) = child.wait().await {
            life(Life::Exited {
                code: status.code(),
                signal: status.signal(),
            });
        }
    }
}
