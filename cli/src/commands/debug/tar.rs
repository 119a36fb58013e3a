//! A tar archive, written front to back: the POSIX ustar format, which every tar reads.

use std::io::{self, Write};

const BLOCK_BYTES: usize = 512;
const NAME_BYTES_MAX: usize = 100;

/// Finish it, or it has no end.
#[derive(Debug)]
pub struct Tar<W> {
    out: W,
    /// Of its files; seconds since the Unix epoch.
    at_s: u64,
}

impl<W: Write> Tar<W> {
    pub fn new(out: W, at_s: u64) -> Tar<W> {
        Tar { out, at_s }
    }

    pub fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        assert!(name.len() < NAME_BYTES_MAX, "names are our own");
        self.out
            .write_all(&header(name, content.len(), self.at_s))?;
        self.out.write_all(content)?;
        let over = content.len() % BLOCK_BYTES;
        if over > 0 {
            self.out.write_all(&vec![0; BLOCK_BYTES - over])?;
        }
        Ok(())
    }

    /// Two empty blocks end an archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK_BYTES])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn header(name: &str, bytes: usize, at_s: u64) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let mut put = |at: usize, text: &str| {
        block[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    // For its owner only.
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{bytes:011o}\0"));
    put(136, &format!("{at_s:011o}\0"));
    // The checksum counts as spaces while it is computed.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_systems_tar_reads_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.tar");
        let mut tar = Tar::new(Vec::new(), 1_650_000_000);
        let long = vec![b'x'; 1500];
        tar.file("bundle/empty.txt", b"").expect("written");
        tar.file("bundle/long.txt", &long).expect("written");
        std::fs::write(&file, tar.finish().expect("written")).expect("written");
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(&file).arg("-C").arg(dir.path());
        let out = tar.output().expect("tar");
        assert!(out.status.success(), "{out:?}");
        let read = |name| std::fs::read(dir.path().join("bundle").join(name)).expect("there");
        assert_eq!((read("empty.txt"), read("long.txt")), (Vec::new(), long));
    }
}
