//! A disk that loses its power, is full, or takes no writes.

use crate::{
    drill::Clients,
    error::ChaosError,
    history::Proof,
    proxy::{Line, Rule},
    stage::{Stage, disk::Disk, process::Hold},
};
use std::time::Duration;

/// For the broker to notice that its disk has failed.
const NOTICE_MAX: Duration = Duration::from_secs(30);

fn disk(stage: &Stage) -> Result<&Disk, ChaosError> {
    let none = || ChaosError::Stage("there is no disk to do this to".to_owned());
    stage.disk.as_ref().ok_or_else(none)
}

/// Lines on which nothing can be heard from the broker; as before when dropped.
struct Silence<'a>(Vec<&'a Line>);

impl<'a> Silence<'a> {
    /// An ack that was not passed on by now never is: after a power cut none comes.
    fn fall(stage: &'a Stage) -> Silence<'a> {
        let lines = stage.lines_of(Clients::All);
        let held = Rule {
            held: true,
            ..Rule::default()
        };
        for line in &lines {
            line.set(Rule::default(), held.clone());
        }
        for line in &lines {
            line.cut(true);
        }
        Silence(lines)
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        for line in &self.0 {
            line.set(Rule::default(), Rule::default());
            line.open_again();
        }
    }
}

/// No power: the process is gone, and so is what was not synced.
pub struct Dark<'a> {
    stage: &'a Stage,
    silence: Silence<'a>,
    hold: Hold,
    pid: Option<u32>,
}

impl<'a> Dark<'a> {
    pub async fn begin(stage: &'a Stage) -> Result<Dark<'a>, ChaosError> {
        let disk = disk(stage)?;
        let cut = disk.arm().await?;
        let silence = Silence::fall(stage);
        cut.now().await?;
        let (hold, pid) = stage.broker.kill().await?;
        disk.unmount().await?;
        Ok(Dark {
            stage,
            silence,
            hold,
            pid,
        })
    }

    pub async fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        let disk = disk(self.stage)?;
        disk.mount().await?;
        let (kept, lost) = disk.canaries();
        drop(self.silence);
        drop(self.hold);
        self.stage.broker_ready().await?;
        Ok(vec![
            Proof::new(
                "a file that was written and not synced is gone after the cut",
                "断电后，已写入但未落盘的文件已丢失",
                if lost { "gone" } else { "still there" },
                lost,
            ),
            Proof::new(
                "a file that was synced is whole",
                "已落盘的文件完好",
                if kept { "whole" } else { "not whole" },
                kept,
            ),
            Proof::new(
                "the broker's process went with it",
                "互通进程随之终止",
                self.pid
                    .map_or("it had stopped by itself".to_owned(), |pid| {
                        format!("process {pid}")
                    }),
                true,
            ),
        ])
    }
}

/// No room; given back when dropped.
pub struct Full<'a> {
    stage: &'a Stage,
    disk: &'a Disk,
    filled: u64,
    freed: bool,
    /// How often its log had said so before.
    said: usize,
}

/// What the kernel's answer is called.
const NO_SPACE: &str = "No space left on device";

impl<'a> Full<'a> {
    pub async fn begin(stage: &'a Stage) -> Result<Full<'a>, ChaosError> {
        let disk = disk(stage)?;
        let mut full = Full {
            stage,
            disk,
            filled: 0,
            freed: false,
            said: stage.broker.whole_log().matches(NO_SPACE).count(),
        };
        full.filled = disk.fill()?;
        Ok(full)
    }

    pub async fn heal(mut self) -> Result<Vec<Proof>, ChaosError> {
        // What the broker deleted as it stopped is not the point; that nothing could be written is.
        let left = self.disk.bytes_free();
        self.disk.free()?;
        self.freed = true;
        self.stage.broker_ready().await?;
        let said = self.stage.broker.whole_log().matches(NO_SPACE).count() - self.said;
        Ok(vec![
            Proof::new(
                "bytes written until the kernel said that the disk is full, and bytes free at the end",
                "写至内核报告磁盘已满的字节数，以及结束时的剩余字节数",
                format!("{}, {left}", self.filled),
                self.filled > 0,
            ),
            // What it has reserved before keeps it going for a while.
            Proof::new(
                "times that the broker said that there is no space left",
                "互通报告空间不足的次数",
                said,
                said > 0,
            ),
        ])
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        if !self.freed {
            drop(self.disk.free());
        }
    }
}

/// The kernel turned the file system read-only.
pub struct ReadOnly<'a> {
    stage: &'a Stage,
    refuses: bool,
}

impl<'a> ReadOnly<'a> {
    pub async fn begin(stage: &'a Stage) -> Result<ReadOnly<'a>, ChaosError> {
        let disk = disk(stage)?;
        disk.break_down().await?;
        Ok(ReadOnly {
            stage,
            refuses: disk.is_read_only(),
        })
    }

    pub async fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        let disk = disk(self.stage)?;
        // What an administrator does: stop, repair, mount, start.
        let hold = self.stage.broker.hold();
        let by_itself = self.stage.broker.pid().is_none();
        let killed = self.stage.broker.kill().await?;
        self.stage.broker.down(NOTICE_MAX).await?;
        disk.unmount().await?;
        disk.repair().await?;
        disk.mount().await?;
        drop((hold, killed));
        self.stage.broker_ready().await?;
        Ok(vec![
            Proof::new(
                "a write of our own was refused as read-only",
                "演练自身的写入因只读被拒绝",
                if self.refuses { "refused" } else { "taken" },
                self.refuses,
            ),
            Proof::new(
                "the broker was down when the disk came back",
                "磁盘恢复时互通已停止",
                if by_itself { "down" } else { "it still ran" },
                true,
            ),
        ])
    }
}
