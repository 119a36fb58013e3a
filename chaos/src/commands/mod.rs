//! The command line, a file a command.

pub mod all;
mod chance;
pub mod check;
pub mod judge;
pub mod list;
pub mod recovery;
pub mod refusal;
pub mod replay;
pub mod run;
pub mod soak;

use crate::{
    drill::{Drill, Overrides},
    error::ChaosError,
    history,
    judge::Verdict,
    play::{self, Options},
    report,
    stage::machine::Machine,
};
use clap::Args;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub const PASS: u8 = 0;
pub const FAIL: u8 = 1;
pub const USAGE: u8 = 2;
pub const INVALID: u8 = 3;
pub const INTERRUPTED: u8 = 130;

pub const EXIT_CODES: &str = "\
Exit codes:
    0  PASS: the fault happened, and every promise held
    1  FAIL: a promise was broken; the report says which
    2  wrong usage, or mistakes in a drill's file
    3  INVALID: it says nothing, as there is no proof that the fault happened, or nothing could be played
  130  interrupted; everything that was done is undone";

/// What all commands that play have in common.
#[derive(Clone, Debug, Args)]
pub struct Playing {
    /// Makes the deltas and the choices; the same seed, the same ones.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How long the load goes on, such as 30s; all times of the drill move in proportion.
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Deltas a second, over all platforms.
    #[arg(long)]
    pub rate: Option<f64>,
    /// One JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
    /// A page with everything, for people.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Where histories go.
    #[arg(long, value_name = "DIR", default_value = "chaos-results")]
    pub out: PathBuf,
}

/// Before anything is begun: who mistypes a folder would learn of it after hours, and lose what was found.
pub fn can_be_written(page: Option<&Path>) -> Result<(), ChaosError> {
    let Some(page) = page else {
        return Ok(());
    };
    let new = !page.exists();
    let opened = std::fs::File::options()
        .append(true)
        .create(true)
        .open(page);
    opened.map_err(|why| {
        let page = page.display();
        ChaosError::Usage(format!("--report {page}: cannot write it: {why}"))
    })?;
    // As long as there is no page there is no file.
    match new {
        true => std::fs::remove_file(page).map_err(ChaosError::file("cannot remove", page)),
        false => Ok(()),
    }
}

/// Of an option: some time, since none would do nothing and look as if it had gone well.
pub fn duration(text: &str) -> Result<Duration, String> {
    match hutong_config::parse_duration(text)? {
        Duration::ZERO => Err("write more than no time, such as 90s or 2h".to_owned()),
        duration => Ok(duration),
    }
}

impl Playing {
    pub fn options(&self) -> Result<Options, ChaosError> {
        if self.duration.is_some_and(|d| d < Duration::from_secs(5)) {
            return Err(ChaosError::Usage("--duration is at least 5s".to_owned()));
        }
        if self.rate.is_some_and(|rate| !(1.0..=1e6).contains(&rate)) {
            return Err(ChaosError::Usage(
                "--rate is from 1 to 1000000 deltas a second".to_owned(),
            ));
        }
        can_be_written(self.report.as_deref())?;
        Ok(Options {
            seed: self.seed,
            overrides: Overrides {
                duration: self.duration,
                rate: self.rate,
                ..Overrides::default()
            },
            out: self.out.clone(),
            trial: None,
        })
    }
}

/// Signals that end a drill. One for a whole command: from the first listener on, a signal that nobody waits for
/// would be lost, between two drills and while one is judged. It keeps what came meanwhile.
#[derive(Debug)]
pub struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal is gone.
    hang_up: Signal,
}

impl Interrupts {
    pub fn listen() -> Result<Interrupts, ChaosError> {
        let listen = |kind| signal(kind).map_err(ChaosError::stage("cannot listen to signals"));
        Ok(Interrupts {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Cancel-safe, as each of them is.
    pub async fn next(&mut self) -> rustix::process::Signal {
        tokio::select! {
            _ = self.interrupt.recv() => rustix::process::Signal::INT,
            _ = self.terminate.recv() => rustix::process::Signal::TERM,
            _ = self.hang_up.recv() => rustix::process::Signal::HUP,
        }
    }

    /// Whatever `work` holds is dropped when a signal comes, which undoes it.
    async fn unless_told<T>(
        &mut self,
        work: impl Future<Output = Result<T, ChaosError>>,
    ) -> Result<T, ChaosError> {
        tokio::select! {
            // A signal that came before counts first.
            biased;
            _ = self.next() => Err(ChaosError::Interrupted),
            done = work => done,
        }
    }
}

/// Plays a drill and judges it. An interrupt undoes everything and is the error.
pub async fn play_and_judge(
    drill: &Drill,
    machine: &Machine,
    options: &Options,
    page: Option<&Path>,
    interrupts: &mut Interrupts,
) -> Result<(Verdict, PathBuf), ChaosError> {
    let played = play::play(drill, machine, options);
    let file = interrupts.unless_told(played).await?;
    // It takes seconds for a long drill, in which no thread listens.
    let (from, to) = (file.clone(), page.map(Path::to_owned));
    let judged = tokio::task::spawn_blocking(move || {
        let history = history::read(&from)?;
        let verdict = crate::judge::judge(&history);
        if let Some(page) = to {
            let html = report::html(&[(&history, &verdict)]);
            std::fs::write(&page, html).map_err(ChaosError::file("cannot write", page))?;
        }
        Ok(verdict)
    });
    let judged = async { judged.await.map_err(ChaosError::stage("the judge"))? };
    let verdict = interrupts.unless_told(judged).await?;
    Ok((verdict, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal as Sent, getpid, kill_process};

    /// Between two drills, and while one is judged, nobody waits for a signal.
    #[tokio::test]
    async fn a_signal_that_nobody_waited_for_is_not_lost() {
        let mut interrupts = Interrupts::listen().expect("signals");
        interrupts
            .unless_told(async { Ok(()) })
            .await
            .expect("nothing came");
        for sent in [Sent::HUP, Sent::INT, Sent::TERM] {
            kill_process(getpid(), sent).expect("sent");
            // It comes to the runtime by a pipe.
            let told = interrupts.unless_told(async {
                tokio::time::sleep(Duration::from_secs(10)).await;
                Ok(())
            });
            assert!(
                matches!(told.await, Err(ChaosError::Interrupted)),
                "{sent:?}"
            );
        }
    }
}
