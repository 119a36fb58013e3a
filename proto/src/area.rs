//! An area's entity is the hash of its full administrative path.

use crate::ids::EntityId;
use sha2::{Digest, Sha256};

/// Joins the parts of a path; it cannot stand in a part.
pub const SEPARATOR: u8 = 0x1f;

/// The first 16 bytes of SHA-256 over the parts joined by [`SEPARATOR`].
pub fn entity<'a>(path: impl IntoIterator<Item = &'a str>) -> EntityId {
    let mut hash = Sha256::new();
    for (i, part) in path.into_iter().enumerate() {
        if i > 0 {
            hash.update([SEPARATOR]);
        }
        hash.update(part.as_bytes());
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    EntityId(id)
}
