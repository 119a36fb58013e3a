//! Every check has failed once: each planted bug is caught by the check that is meant for it. And no
//! binary that anybody runs has a place for one.

use hutong_chaos::plants;
use hutong_plants::Plant;
use std::path::{Path, PathBuf};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hutong-chaos"))
}

/// In one test: a process has one plant at a time.
#[test]
fn each_planted_bug_is_caught_by_the_check_that_is_meant_for_it() {
    let mut missed = Vec::new();
    for plant in Plant::ALL {
        let hunt = plants::hunt(*plant, program()).expect("it can be hunted");
        println!("{hunt}");
        if !hunt.caught {
            missed.push(hunt.to_string());
        }
    }
    assert!(missed.is_empty(), "\n{}", missed.join("\n"));
    assert!(Plant::ALL.len() >= 24);
    // And without a bug it finds none.
    assert_eq!(plants::without_bugs().expect("it runs"), None);
}

fn contains(binary: &Path, name: &str) -> bool {
    let bytes =
        std::fs::read(binary).unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
    let text = name.as_bytes();
    bytes.windows(text.len()).any(|window| window == text)
}

#[test]
fn no_release_binary_has_a_plant_or_a_failpoint_in_it() {
    let folder: PathBuf = program().parent().expect("a folder").to_owned();
    let plants = Plant::ALL.iter().map(|plant| plant.name());
    // Rare enough not to be found by chance.
    let mut names: Vec<&str> = plants.filter(|name| name.len() >= 12).collect();
    // In the symbols of whatever has a place for a plant or a failpoint: a name that is only compared may stand
    // in no binary.
    names.push("hutong_plants");
    assert!(
        names.iter().all(|name| contains(program(), name)),
        "or nothing is looked for"
    );
    for binary in ["hutong", "hutong-broker", "hutong-connect", "hutong-bench"] {
        let path = folder.join(binary);
        assert!(
            path.is_file(),
            "{binary} is not built: `./dev build` builds it"
        );
        for name in &names {
            assert!(!contains(&path, name), "{binary} has {name} in it");
        }
    }
}
