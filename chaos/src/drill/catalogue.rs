//! The drills that come with the program, so that they are there wherever it is.

use crate::{drill::Drill, error::ChaosError};
use std::path::Path;

/// Declares the files of `chaos/drills`.
macro_rules! drills {
    ($($name:literal,)*) => {
        /// Name and text.
        pub const BUILT_IN: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../../drills/", $name, ".toml"))),)*
        ];
    };
}

drills! {
    "kill-broker",
    "crash-at-sync",
    "crash-at-edge",
    "crash-at-run",
    "pause-broker",
    "power-loss",
    "power-in-slow-sync",
    "partition",
    "partition-one-way",
    "drop-packets",
    "latency",
    "loss",
    "bandwidth",
    "reconnect-storm",
    "disk-full",
    "sync-error",
    "slow-sync",
    "read-only",
    "torn-tail",
    "flipped-byte",
    "clock-step",
    "clock-step-back",
    "memory-squeeze",
    "cpu-squeeze",
    "stalled-subscriber",
    "zero-window",
    "poison",
    "flood",
    "kill-connector",
    "crash-postgres",
    "partition-sink",
    "surge-and-kill",
    "risk-levels",
    "reload-expired",
}

/// A drill by its name, or by the path of its file.
pub fn find(name: &str) -> Result<Drill, ChaosError> {
    if let Some((name, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
        return Drill::parse(&format!("{name}.toml"), text).map_err(ChaosError::Drill);
    }
    let path = Path::new(name);
    if path.exists() || name.ends_with(".toml") {
        return Drill::load(path).map_err(ChaosError::Drill);
    }
    let known: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
    Err(ChaosError::Usage(format!(
        "there is no drill {name:?} and no such file; drills: {}",
        known.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_built_in_under_its_own_name_and_without_a_mistake() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("drills");
        let mut files: Vec<_> = std::fs::read_dir(dir)
            .expect("the folder of drills")
            .map(|entry| entry.expect("an entry").path())
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        let mut names: Vec<_> = BUILT_IN
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        files.sort();
        names.sort();
        assert_eq!(files, names);
        for name in names {
            let drill = find(&name).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(drill.name, name);
        }
    }

    #[test]
    fn a_name_that_nobody_knows_is_answered_with_those_that_are_known() {
        let error = find("kill-brokr").expect_err("unknown").to_string();
        assert!(error.contains("kill-broker"), "{error}");
    }
}
