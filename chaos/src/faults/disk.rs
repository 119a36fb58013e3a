//! A disk that loses its power, is full, or takes no writes.

use crate::{
    drill::Clients,
    error::ChaosError,
    faults::{Undone, process::Paused},
    history::{Proof, Reaction},
    proxy::{Carried, Line, Rule, Ruling},
    stage::{Stage, disk::Disk, process::Hold},
    text::Text,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;

/// For the broker to notice that its disk has failed.
const NOTICE_MAX: Duration = Duration::from_secs(30);
/// Between two looks at how much the log has.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A broker that comes up and goes down again writes less; under load it is a fraction of a second.
const STARTING_BYTES: u64 = 64 << 10;
/// Much more than lines say that are only kept open, and a fraction of a second of the least load.
const HANDED_BYTES: u64 = 4 << 10;
/// A log that stands still for so long under load is one that cannot be written to.
const STILL_MIN: Duration = Duration::from_secs(1);

fn disk(stage: &Stage) -> Result<&Disk, ChaosError> {
    let none = || ChaosError::told("there is no disk to do this to", "没有可供破坏的磁盘");
    stage.disk.as_ref().ok_or_else(none)
}

/// Lines on which nothing can be heard from the broker; as before when dropped.
struct Silence<'a>(Vec<(&'a Line, Ruling)>);

impl<'a> Silence<'a> {
    /// What was not passed on by now never is: after a power cut nothing comes, not even an end.
    fn fall(stage: &'a Stage) -> Silence<'a> {
        let held = Rule {
            held: true,
            ..Rule::default()
        };
        let lines = stage.lines_of(Clients::All).into_iter();
        let silence: Vec<_> = lines
            .map(|line| (line, line.add(Rule::default(), held)))
            .collect();
        for (line, _) in &silence {
            line.close();
        }
        Silence(silence)
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        for (line, ruling) in &self.0 {
            line.take_away(*ruling);
            line.open_again();
        }
    }
}

/// What a process stands on that is not there. Whoever drops it before all is there again keeps the process
/// down: started on an empty folder it would say that everything is lost.
struct Absent<'a> {
    stage: &'a Stage,
    hold: Option<Hold>,
}

impl Absent<'_> {
    fn came_back(mut self) {
        self.hold = None;
    }
}

impl Drop for Absent<'_> {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.stage.extras.keep_down(hold);
        }
    }
}

/// No power: the process is gone, and so is what was not synced.
pub struct Dark<'a> {
    stage: &'a Stage,
    silence: Silence<'a>,
    absent: Absent<'a>,
    pid: Option<u32>,
}

impl<'a> Dark<'a> {
    pub async fn begin(stage: &'a Stage) -> Result<Dark<'a>, ChaosError> {
        let disk = disk(stage)?;
        let cut = disk.arm().await?;
        // A broker that notices by itself must not start again before there is power.
        let absent = Absent {
            stage,
            hold: Some(stage.broker.hold()),
        };
        // The power goes first. An ack that comes after it was given for what is not on the disk, and whoever
        // gives one must be heard.
        cut.now().await?;
        let silence = Silence::fall(stage);
        let (_, pid) = stage.broker.kill().await?;
        disk.unmount().await?;
        Ok(Dark {
            stage,
            silence,
            absent,
            pid,
        })
    }

    pub async fn heal(self) -> Result<Undone<'a>, ChaosError> {
        let disk = disk(self.stage)?;
        disk.mount().await?;
        let (kept, lost) = disk.canaries();
        drop(self.silence);
        self.absent.came_back();
        let proof = vec![
            Proof::new(
                "a file that was written and not synced is gone after the cut",
                "断电后，已写入但未落盘的文件已丢失",
                if lost {
                    ("gone", "已丢失")
                } else {
                    ("still there", "仍在")
                },
                lost,
            ),
            Proof::new(
                "a file that was synced is whole",
                "已落盘的文件完好",
                if kept {
                    ("whole", "完好")
                } else {
                    ("not whole", "不完好")
                },
                kept,
            ),
            Proof::new(
                "the broker's process went with it",
                "互通进程随之终止",
                match self.pid {
                    Some(pid) => Text::new(format!("process {pid}"), format!("进程 {pid}")),
                    None => ("it had stopped by itself", "此前已自行停止").into(),
                },
                true,
            ),
        ];
        Ok(Undone::of_broker(self.stage, proof))
    }
}

/// No room; given back when dropped.
pub struct Full<'a> {
    stage: &'a Stage,
    disk: &'a Disk,
    filled: u64,
    freed: bool,
    /// How often the broker's log had said so before.
    said: usize,
    /// For how long the log does not grow, from when there is no room.
    watch: Option<(watch::Receiver<Duration>, AbortOnDropHandle<()>)>,
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
            watch: None,
        };
        full.filled = disk.fill().await?;
        full.take_reserve().await?;
        // Not before: while it is filled, writes are slow and nothing else.
        let (told, still) = watch::channel(Duration::ZERO);
        let log = watch_log(stage.data.join("log"), Handed::of(stage), told);
        full.watch = Some((still, AbortOnDropHandle::new(tokio::spawn(log))));
        Ok(full)
    }

    /// The broker's log has tens of megabytes set aside, on which it would live for minutes. A file that is cut to
    /// the length that it has gives up what is behind its end. The broker stands still meanwhile: what it
    /// appended between the look and the cut would be gone.
    async fn take_reserve(&mut self) -> Result<(), ChaosError> {
        if self.stage.broker.pid().is_none() {
            return Ok(());
        }
        let still = Paused::begin(self.stage).await?;
        if !still.stands() {
            return Ok(());
        }
        for file in logs_in(&self.stage.data.join("log")) {
            let cut = std::fs::OpenOptions::new()
                .write(true)
                .open(&file)
                .and_then(|log| log.set_len(log.metadata()?.len()));
            cut.map_err(ChaosError::file("cannot cut", file))?;
        }
        self.filled += self.disk.fill().await?;
        Ok(())
    }

    pub async fn heal(mut self) -> Result<Undone<'a>, ChaosError> {
        // What the broker deleted as it stopped is not the point; that nothing could be written is.
        let left = self.disk.bytes_free();
        self.disk.free()?;
        self.freed = true;
        let still = self
            .watch
            .as_ref()
            .map_or(Duration::ZERO, |(still, _)| *still.borrow());
        let proof = vec![
            Proof::new(
                "bytes taken until the kernel said that the disk is full, and bytes free at the end",
                "占用至内核报告磁盘已满的字节数，以及结束时的剩余字节数",
                Text::same(format!("{}, {left}", self.filled)),
                self.filled > 0,
            ),
            Proof::new(
                "seconds for which the broker's log did not grow, although there was load",
                "有负载而互通日志未增长的秒数",
                Text::same(format!("{:.1}", still.as_secs_f64())),
                still >= STILL_MIN,
            ),
        ];
        let (stage, before) = (self.stage, self.said);
        Ok(Undone::with(stage, proof, move || {
            let said = stage.broker.whole_log().matches(NO_SPACE).count() - before;
            vec![Reaction::new(
                "times that the broker said that there is no space left",
                "互通报告空间不足的次数",
                ("1 or more", "1 次及以上"),
                said,
                said > 0,
            )]
        }))
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        if !self.freed {
            drop(self.disk.free());
        }
    }
}

/// What those who publish have handed to the broker. Of packets that the kernel drops on the way it knows nothing.
#[derive(Clone)]
struct Handed(Vec<Carried>);

impl Handed {
    fn of(stage: &Stage) -> Handed {
        let lines = stage.lines_of(Clients::Publishers).into_iter();
        Handed(lines.map(Line::carried).collect())
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(Carried::bytes).sum()
    }
}

/// Tells how long it is since the broker got something to write.
async fn watch_handed(handed: Handed, told: watch::Sender<Duration>) {
    let before = handed.bytes();
    while handed.bytes() < before + HANDED_BYTES {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let since = Instant::now();
    loop {
        told.send_replace(since.elapsed());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Tells the longest time for which the log got no more than what a broker writes that only starts, although it got
/// something to write.
async fn watch_log(dir: PathBuf, handed: Handed, told: watch::Sender<Duration>) {
    let mut files = BTreeMap::new();
    let (mut most, mut before, mut since) = (0, handed.bytes(), None);
    loop {
        let (bytes, came) = (bytes_ever(&dir, &mut files), handed.bytes());
        if bytes > most + STARTING_BYTES {
            (most, before, since) = (bytes, came, None);
        }
        if came >= before + HANDED_BYTES {
            let since = since.get_or_insert_with(Instant::now);
            told.send_modify(|longest| *longest = since.elapsed().max(*longest));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Of its write-ahead log, files that are gone again included.
fn bytes_ever(dir: &Path, files: &mut BTreeMap<PathBuf, u64>) -> u64 {
    for path in logs_in(dir) {
        if let Ok(metadata) = std::fs::metadata(&path) {
            let most = files.entry(path).or_default();
            *most = metadata.len().max(*most);
        }
    }
    files.values().sum()
}

fn logs_in(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "log"))
}

/// The kernel turned the file system read-only.
pub struct ReadOnly<'a> {
    stage: &'a Stage,
    refuses: bool,
    asked: watch::Receiver<Duration>,
    _watch: AbortOnDropHandle<()>,
}

impl<'a> ReadOnly<'a> {
    pub async fn begin(stage: &'a Stage) -> Result<ReadOnly<'a>, ChaosError> {
        let disk = disk(stage)?;
        disk.break_down().await?;
        let (told, asked) = watch::channel(Duration::ZERO);
        Ok(ReadOnly {
            stage,
            refuses: disk.is_read_only(),
            asked,
            _watch: AbortOnDropHandle::new(tokio::spawn(watch_handed(Handed::of(stage), told))),
        })
    }

    pub async fn heal(self) -> Result<Undone<'a>, ChaosError> {
        let stage = self.stage;
        let disk = disk(stage)?;
        // What an administrator does: stop, repair, mount, start.
        let absent = Absent {
            stage,
            hold: Some(stage.broker.hold()),
        };
        let by_itself = stage.broker.pid().is_none();
        let asked = *self.asked.borrow();
        let (_, _) = stage.broker.kill().await?;
        stage.broker.down(NOTICE_MAX).await?;
        disk.unmount().await?;
        disk.repair().await?;
        disk.mount().await?;
        absent.came_back();
        let proof = vec![
            Proof::new(
                "a write of our own was refused as read-only",
                "演练自身的写入因只读被拒绝",
                if self.refuses {
                    ("refused", "被拒绝")
                } else {
                    ("taken", "被接受")
                },
                self.refuses,
            ),
            Proof::new(
                "seconds since the broker got something to write",
                "互通收到待写内容后经过的秒数",
                Text::same(format!("{:.1}", asked.as_secs_f64())),
                asked >= STILL_MIN,
            ),
        ];
        Ok(Undone::with(stage, proof, move || {
            vec![Reaction::new(
                "the broker was down when the disk came back",
                "磁盘恢复时互通已停止",
                ("down", "已停止"),
                if by_itself {
                    ("down", "已停止")
                } else {
                    ("it still ran", "仍在运行")
                },
                by_itself,
            )]
        }))
    }
}
