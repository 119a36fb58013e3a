//! A configuration that is past its day, put in the place of the one that the broker runs with.

use crate::{
    error::ChaosError,
    faults::{READY_MAX, Undone},
    history::{Proof, Reaction},
    stage::Stage,
    text::Text,
};
use rustix::process::Signal;
use std::path::PathBuf;

/// It would also change something, if it were taken.
const EXPIRED: &str = "valid_until = \"2020-01-01\"\nretention.age = \"1m\"\n";
/// What the broker's log says of a file.
const REFUSED: &str = "and that is over";
const TAKEN: &str = "configuration read again";

/// The file of before is there again when this is dropped.
pub struct Expired<'a> {
    stage: &'a Stage,
    file: PathBuf,
    before: String,
    told: u32,
    taken: usize,
    refused: usize,
}

impl<'a> Expired<'a> {
    pub async fn begin(stage: &'a Stage) -> Result<Expired<'a>, ChaosError> {
        stage.broker.ready(READY_MAX).await?;
        let file = stage.configuration();
        let before =
            std::fs::read_to_string(&file).map_err(ChaosError::file("cannot read", &file))?;
        let log = stage.broker.whole_log();
        let mut expired = Expired {
            stage,
            file,
            before,
            told: 0,
            taken: log.matches(TAKEN).count(),
            refused: log.matches(REFUSED).count(),
        };
        expired.write(&format!("{EXPIRED}{}", expired.before))?;
        expired.told = stage.broker.signal(Signal::HUP)?;
        Ok(expired)
    }

    /// As a whole: the broker may read it at any moment.
    fn write(&self, text: &str) -> Result<(), ChaosError> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &self.file))
            .map_err(ChaosError::file("cannot write", &self.file))
    }

    pub fn heal(self) -> Result<Undone<'a>, ChaosError> {
        let found = std::fs::read_to_string(&self.file).unwrap_or_default();
        let there = found.starts_with(EXPIRED);
        let proof = vec![Proof::new(
            "SIGHUP was sent while an expired file was in place, until now",
            "发送 SIGHUP 时及此后，配置文件均为过期文件",
            match there {
                true => Text::new(
                    format!("process {}, in place", self.told),
                    format!("进程 {}，文件在位", self.told),
                ),
                false => Text::new(
                    format!("process {}, not in place", self.told),
                    format!("进程 {}，文件不在位", self.told),
                ),
            },
            there,
        )];
        let log = self.stage.broker.whole_log();
        let refused = log.matches(REFUSED).count() - self.refused;
        let taken = log.matches(TAKEN).count() - self.taken;
        let stage = self.stage;
        drop(self);
        Ok(Undone::with(stage, proof, move || {
            vec![
                Reaction::new(
                    "times that the broker refused it and said why",
                    "互通拒绝该文件并说明原因的次数",
                    ("1 or more", "1 次及以上"),
                    refused,
                    refused > 0,
                ),
                Reaction::new(
                    "times that the broker took it",
                    "互通采用该文件的次数",
                    0,
                    taken,
                    taken == 0,
                ),
            ]
        }))
    }
}

impl Drop for Expired<'_> {
    fn drop(&mut self) {
        drop(self.write(&self.before));
    }
}
