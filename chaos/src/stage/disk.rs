//! Where the broker's data is: a folder, or a disk of its own (an ext4 image, mounted through a loop
//! device) that can be filled, lose its power, or turn read-only.

use crate::{
    error::ChaosError,
    stage::shell::{run, text, try_run},
};
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// The journal is written every five minutes and not, as usual, every five seconds: what nobody synced
/// does not reach the disk by chance. After an error of its own the file system turns read-only.
/// A file that is written anew is not flushed as a favour either.
const OPTIONS: &str = "loop,commit=300,noauto_da_alloc,errors=remount-ro";

/// FS_IOC_SHUTDOWN with "no flush of the journal": from then on nothing reaches the disk. The program
/// stands ready first, so that hardly any time lies between the word and the cut.
const SHUTDOWN: &str = "import fcntl, os, struct, sys\n\
    disk = os.open(sys.argv[1], os.O_RDONLY)\n\
    print('ready', flush=True)\n\
    sys.stdin.readline()\n\
    fcntl.ioctl(disk, 0x8004587d, struct.pack('I', 2))";

/// In sysfs, for each file system that is mounted: what is written to it is an error of the file system's own.
pub const TRIGGER: &str = "trigger_fs_error";

const SYNCED: &str = "canary-synced";
const UNSYNCED: &str = "canary-unsynced";
const FILLER: &str = "filler";
const CANARY: &[u8] = b"twenty bytes of text";

#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    point: PathBuf,
    mounted: AtomicBool,
    /// Cuts so far: each has canaries of its own.
    cuts: AtomicU32,
}

impl Disk {
    pub async fn make(dir: &Path, bytes: u64) -> Result<Disk, ChaosError> {
        let (image, point) = (dir.join("disk.img"), dir.join("disk"));
        let file =
            std::fs::File::create(&image).map_err(ChaosError::file("cannot create", &image))?;
        file.set_len(bytes)
            .map_err(ChaosError::file("cannot grow", &image))?;
        run("mkfs.ext4", &["-q", "-F", text(&image)?]).await?;
        std::fs::create_dir(&point).map_err(ChaosError::file("cannot create", &point))?;
        let disk = Disk {
            image,
            point,
            mounted: AtomicBool::new(false),
            cuts: AtomicU32::new(0),
        };
        disk.mount().await?;
        Ok(disk)
    }

    pub fn path(&self) -> &Path {
        &self.point
    }

    pub async fn mount(&self) -> Result<(), ChaosError> {
        let args = ["-o", OPTIONS, text(&self.image)?, text(&self.point)?];
        run("mount", &args).await?;
        self.mounted.store(true, Ordering::Release);
        Ok(())
    }

    pub async fn unmount(&self) -> Result<(), ChaosError> {
        run("umount", &[text(&self.point)?]).await?;
        self.mounted.store(false, Ordering::Release);
        Ok(())
    }

    /// Repairs what an error left, as a start of the machine would.
    pub async fn repair(&self) -> Result<(), ChaosError> {
        // 1: it mended something. Anything above is said by the mount that follows.
        let args = ["-p", text(&self.image)?];
        if let Err(error) = run("e2fsck", &args).await {
            eprintln!("hutong-chaos: {error}");
        }
        Ok(())
    }

    /// Stands ready to cut the power.
    pub async fn arm(&self) -> Result<Cut, ChaosError> {
        self.write_canaries()?;
        let mut child = tokio::process::Command::new("python3")
            .args(["-c", SHUTDOWN, text(&self.point)?])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(ChaosError::stage("cannot run python3"))?;
        let missing = || ChaosError::Stage("python3 has no pipes".to_owned());
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let mut ready = String::new();
        BufReader::new(stdout)
            .read_line(&mut ready)
            .await
            .map_err(ChaosError::stage("python3"))?;
        match ready.as_str() {
            "ready\n" => Ok(Cut { child, stdin }),
            other => Err(ChaosError::Stage(format!("python3 said {other:?}"))),
        }
    }

    /// One file is synced and one is not: after a cut they tell what it took.
    fn write_canaries(&self) -> Result<(), ChaosError> {
        self.cuts.fetch_add(1, Ordering::AcqRel);
        for (name, sync) in [(SYNCED, true), (UNSYNCED, false)] {
            let path = self.canary(name);
            let written = std::fs::File::create(&path).and_then(|mut file| {
                file.write_all(CANARY)?;
                if sync {
                    file.sync_all()?;
                    // Its name, too.
                    std::fs::File::open(&self.point)?.sync_all()?;
                }
                Ok(())
            });
            written.map_err(ChaosError::file("cannot write", path))?;
        }
        Ok(())
    }

    fn canary(&self, name: &str) -> PathBuf {
        let cut = self.cuts.load(Ordering::Acquire);
        self.point.join(format!("{name}-{cut}"))
    }

    /// After a cut: is the synced file whole, and has the other one lost what it had?
    pub fn canaries(&self) -> (bool, bool) {
        let has = |name| std::fs::read(self.canary(name)).is_ok_and(|bytes| bytes == CANARY);
        (has(SYNCED), !has(UNSYNCED))
    }

    /// Writes until nothing more fits; the bytes that did, which a second time are those that became free since.
    /// Undone by [`Disk::free`].
    pub async fn fill(&self) -> Result<u64, ChaosError> {
        let path = self.point.join(FILLER);
        // It may take a while, which no thread of the clients can do without.
        let filled = tokio::task::spawn_blocking(move || fill(&path));
        filled
            .await
            .map_err(ChaosError::stage("the disk cannot be filled"))?
    }

    /// What a power cut has taken meanwhile is free as well.
    pub fn free(&self) -> Result<(), ChaosError> {
        let path = self.point.join(FILLER);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ChaosError::file("cannot remove", path)(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    pub fn bytes_free(&self) -> u64 {
        rustix::fs::statvfs(&self.point).map_or(0, |stat| stat.f_bavail * stat.f_frsize)
    }

    /// As after an error on the device: the kernel turns the file system read-only by itself.
    pub async fn break_down(&self) -> Result<(), ChaosError> {
        let source = run("findmnt", &["-n", "-o", "SOURCE", text(&self.point)?]).await?;
        let device = source
            .trim()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let trigger = format!("/sys/fs/ext4/{device}/{TRIGGER}");
        let text = "an error that a drill asked for";
        std::fs::write(&trigger, text).map_err(ChaosError::file("cannot write", trigger))
    }

    /// Can nobody write to it?
    pub fn is_read_only(&self) -> bool {
        let path = self.point.join("canary-write");
        let written = std::fs::write(path, CANARY);
        written.is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted.load(Ordering::Acquire)
            && let Some(point) = self.point.to_str()
        {
            // Something that is just being killed may still use it.
            try_run("umount", &["-l", point]);
        }
    }
}

/// Writes to this file until nothing more fits.
/// Takes all room that there is, without a byte being written: a disk that is busy would take long for that.
fn fill(path: &Path) -> Result<u64, ChaosError> {
    let failed = |error| ChaosError::file("cannot fill", path)(error);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(&failed)?;
    let before = file.metadata().map_err(&failed)?.len();
    let mut filled = 0;
    for chunk in [64 << 20, 1 << 20, 4096] {
        loop {
            let flags = rustix::fs::FallocateFlags::empty();
            match rustix::fs::fallocate(&file, flags, before + filled, chunk) {
                Ok(()) => filled += chunk,
                Err(rustix::io::Errno::NOSPC) => break,
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
    // Space that is only promised is taken by this.
    match file.sync_all() {
        Err(error) if error.kind() != std::io::ErrorKind::StorageFull => Err(failed(error)),
        Ok(()) | Err(_) => Ok(filled),
    }
}

/// The power, about to be cut.
#[derive(Debug)]
pub struct Cut {
    child: tokio::process::Child,
    stdin: tokio::process::ChildStdin,
}

impl Cut {
    pub async fn now(mut self) -> Result<(), ChaosError> {
        let failed = || ChaosError::stage("the power cannot be cut");
        self.stdin.write_all(b"\n").await.map_err(failed())?;
        self.stdin.flush().await.map_err(failed())?;
        let status = self.child.wait().await.map_err(failed())?;
        match status.success() {
            true => Ok(()),
            false => Err(ChaosError::Stage(format!(
                "the power cannot be cut: python3 ended with {status}"
            ))),
        }
    }
}
