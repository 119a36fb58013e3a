//! The manifest of a RocksDB: which files make up the database, a record a change.
//!
//! A change counts once its records are synced, and what it replaces is removed only then. A power cut may
//! leave what was being written in pieces, which RocksDB refuses as damage although nobody relied on it. So it is
//! cut off before RocksDB looks: what is left is the database as it was before.
//!
//! Several records are written before one sync, so a broken one may have whole ones behind it, and then it cannot
//! be told from damage to what was synced last. Whoever opens the database has to look whether all is there, and
//! to undo this if not; the manifest as it was found is kept beside it.

use crate::rocks::records::{self, End};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Says which manifest is the one.
const CURRENT: &str = "CURRENT";
/// The manifest as it was found; RocksDB takes no file with such a name for its own.
const COPY_EXTENSION: &str = "torn";

/// A manifest that was cut back.
#[derive(Debug)]
#[must_use = "somebody has to look whether the database is whole"]
pub struct Mended {
    manifest: PathBuf,
    copy: PathBuf,
    at: u64,
}

/// Cuts the manifest of the database in `dir` back to the last record before one that is broken; `None` if it is
/// whole, as it is but after a power cut. More than so many bytes from the end it is damage, and refused.
pub fn mend(dir: &Path, one_write_bytes: u64) -> Result<Option<Mended>, String> {
    let current = match fs::read_to_string(dir.join(CURRENT)) {
        Ok(current) => current,
        // Nothing was made here yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", dir.join(CURRENT).display())),
    };
    let manifest = dir.join(current.trim_end());
    let failed = |error: io::Error| format!("{}: {error}", manifest.display());
    let end = File::open(&manifest).and_then(records::end);
    let at = match end.map_err(failed)? {
        End::Whole => return Ok(Mended::unfinished(manifest)),
        // It begins with all that there was, synced before anything names it.
        End::Torn(0) | End::Damaged(0) => return Err(damaged(&manifest, 0)),
        End::Torn(at) => at,
        End::Damaged(at) => match fs::metadata(&manifest).map_err(failed)?.len() - at {
            bytes if bytes > one_write_bytes => return Err(damaged(&manifest, at)),
            _ => at,
        },
    };
    let mended = Mended::new(dir, manifest.clone(), at).map_err(failed)?;
    let cut_bytes = records::cut(&manifest, at).map_err(failed)?;
    tracing::warn!(
        file = %manifest.display(),
        copy = %mended.copy.display(),
        kept_bytes = at,
        cut_bytes,
        "a manifest does not end with a whole change, as after a power cut; the database is opened as it was before it"
    );
    Ok(Some(mended))
}

impl Mended {
    /// It was cut, and the process ended before anybody had looked: an opened database has another manifest.
    fn unfinished(manifest: PathBuf) -> Option<Mended> {
        let copy = manifest.with_extension(COPY_EXTENSION);
        let at = fs::metadata(&manifest).map_or(0, |file| file.len());
        copy.exists().then_some(Mended { manifest, copy, at })
    }

    fn new(dir: &Path, manifest: PathBuf, at: u64) -> io::Result<Mended> {
        // One copy is enough.
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == COPY_EXTENSION) {
                fs::remove_file(path)?;
            }
        }
        let copy = manifest.with_extension(COPY_EXTENSION);
        // By reading and writing, which a crash sweep can follow; it is small.
        fs::write(&copy, fs::read(&manifest)?)?;
        File::open(&copy)?.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(Mended { manifest, copy, at })
    }

    /// Puts back what was found, for somebody to look at, and says what is wrong.
    pub fn undo(self, why: &str) -> String {
        let found = damaged(&self.manifest, self.at);
        match fs::rename(&self.copy, &self.manifest) {
            Ok(()) => format!("{found}; without that record and what follows it: {why}"),
            Err(error) => format!(
                "{found}; without that record and what follows it: {why}; it is kept as {}, since it cannot be put \
                 back: {error}",
                self.copy.display()
            ),
        }
    }
}

fn damaged(manifest: &Path, at: u64) -> String {
    format!(
        "{} is damaged at byte {at}; check the disk, and restore the data folder from a backup",
        manifest.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rocksdb::DB;

    /// The folder of a database, and its manifest.
    fn database() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        drop(DB::open_default(dir.path()).expect("a database"));
        let current = fs::read_to_string(dir.path().join(CURRENT)).expect("named");
        let manifest = dir.path().join(current.trim_end());
        (dir, manifest)
    }

    /// Damages a record behind the first, with others behind it. Where that begins, and how many bytes follow from
    /// there.
    fn damage(manifest: &Path) -> (u64, u64) {
        let mut bytes = fs::read(manifest).expect("read");
        let length = |at: usize| usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        let mut at = 7 + length(0);
        // Some are a header alone.
        while length(at) == 0 {
            at += 7;
        }
        assert!(
            at + 7 + length(at) < bytes.len(),
            "there are records behind it"
        );
        bytes[at + 7] ^= 1;
        fs::write(manifest, &bytes).expect("written");
        (at as u64, (bytes.len() - at) as u64)
    }

    #[test]
    fn what_is_broken_is_cut_as_far_back_as_one_write_goes_and_no_further() {
        let (dir, manifest) = database();
        let (at, behind) = damage(&manifest);
        let whole = fs::read(&manifest).expect("read");
        let refused = mend(dir.path(), behind - 1).expect_err("more than one write");
        assert!(
            refused.contains(&format!("damaged at byte {at}")),
            "{refused}"
        );
        assert_eq!(
            fs::read(&manifest).expect("read"),
            whole,
            "nothing is changed"
        );
        let mended = mend(dir.path(), behind).expect("as much as one write");
        assert_eq!(fs::read(&manifest).expect("read"), whole[..at as usize]);
        let told = mended.expect("cut").undo("a reason");
        assert!(told.contains(&format!("damaged at byte {at}")), "{told}");
        assert_eq!(fs::read(&manifest).expect("read"), whole, "put back");
    }

    #[test]
    fn a_folder_without_a_database_is_new_and_one_that_cannot_be_read_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(mend(dir.path(), 0).expect("nothing there").is_none());
        fs::create_dir(dir.path().join(CURRENT)).expect("created");
        let refused = mend(dir.path(), 0).expect_err("no file");
        assert!(refused.contains(CURRENT), "{refused}");
    }
}
