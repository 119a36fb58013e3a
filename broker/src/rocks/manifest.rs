//! The manifest of a RocksDB: which files make up the database, a record a change.
//!
//! A change counts once its record is synced, and what it replaces is removed only then. A power cut may
//! leave the record that was being written in pieces, which RocksDB refuses as damage although nobody
//! relied on it. So it is cut off before RocksDB looks: what is left is the database as it was before.

use crate::rocks::records::{self, End};
use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Says which manifest is the one.
const CURRENT: &str = "CURRENT";

/// What to do if a broken record has whole ones behind it. Several changes may be written before one sync, so a
/// power cut can leave that too; or the disk lost something that was synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// Go back to the change before it. For a database that says itself how far it is, and is brought on from there.
    Drop,
    /// Refuse. For one that would not know what it misses.
    Refuse,
}

/// Cuts off a torn end of the manifest of the database in `dir`, if there is one.
pub fn mend(dir: &Path, behind: Behind) -> Result<(), String> {
    let current = match fs::read_to_string(dir.join(CURRENT)) {
        Ok(current) => current,
        // Nothing was made here yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{}: {error}", dir.join(CURRENT).display())),
    };
    let path = dir.join(current.trim_end());
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let at = match File::open(&path).and_then(records::end).map_err(failed)? {
        End::Whole => return Ok(()),
        End::Damaged(at) if behind == Behind::Refuse => {
            return Err(format!(
                "{} is damaged at byte {at}: the record there is broken, and whole ones follow; check the disk, \
                 and restore the data folder from a backup",
                path.display()
            ));
        }
        End::Torn(at) | End::Damaged(at) => at,
    };
    let cut_bytes = records::cut(&path, at).map_err(failed)?;
    tracing::warn!(
        file = %path.display(),
        kept_bytes = at,
        cut_bytes,
        "the last change to a manifest was torn, as by a power cut; the database is opened as it was before it"
    );
    Ok(())
}
