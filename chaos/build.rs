//! Names the commit that this is built from, for histories and their pages.

#[path = "../bench/build.rs"]
#[allow(dead_code, reason = "its own program")]
mod bench;

use bench::{Repository, described};
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../bench/build.rs");
    let folder = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let repository = folder.parent().and_then(Repository::find);
    for file in repository.iter().flat_map(Repository::told_by) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let read = || repository.as_ref().and_then(Repository::commit);
    let commit = described(&folder).or_else(read);
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=HUTONG_CHAOS_COMMIT={commit}");
}
