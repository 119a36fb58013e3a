//! Each drill has its runbook, and no runbook is without its drill.

use hutong_chaos::drill::{BUILT_IN, find};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

const INDEX: &str = "README";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks")
}

fn page(name: &str) -> String {
    let path = folder().join(format!("{name}.md"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Of the pages in the folder itself; those of alerts have a folder of their own.
fn pages() -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder()).expect("docs/runbooks");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .map(|path| {
            path.file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name != INDEX)
        .collect()
}

#[test]
fn each_drill_has_its_page_and_each_page_its_drill() {
    let drills: BTreeSet<String> = BUILT_IN
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(pages(), drills);
    let index = page(INDEX);
    for (name, _) in BUILT_IN {
        let drill = find(name).expect("built in");
        let line = format!(
            "- [{name}]({name}.md): {} / {}",
            drill.title, drill.title_zh
        );
        assert!(index.lines().any(|l| l == line), "not in the index: {line}");
    }
    let listed = index.lines().filter(|line| line.starts_with("- [")).count();
    assert_eq!(
        listed,
        BUILT_IN.len(),
        "the index names a drill that is none"
    );
}

#[test]
fn a_page_has_its_drills_titles_its_command_and_what_to_do_when_it_fails() {
    for (name, _) in BUILT_IN {
        let (page, drill) = (page(name), find(name).expect("built in"));
        let holds = |text: &str| assert!(page.contains(text), "{name}.md has no {text:?}");
        assert_eq!(
            page.lines().next(),
            Some(&*format!("# {}", drill.title)),
            "{name}.md"
        );
        holds(&drill.title_zh);
        holds(&format!(
            "    ./dev drill run {name} --report {name}.html\n"
        ));
        for part in [
            "**Why.**",
            "**How.**",
            "**What good looks like.**",
            "**When it fails.**",
        ] {
            holds(part);
        }
        for fault in &drill.faults {
            holds(&format!("`{}`", fault.what.name()));
        }
        let seconds = drill.duration.as_secs_f64();
        holds(&format!("{seconds}s of load"));
    }
}

#[test]
fn every_kind_of_fault_of_a_drill_stands_in_the_table_of_kinds() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/drills.md");
    let page = std::fs::read_to_string(page).expect("the page of drills");
    for (name, _) in BUILT_IN {
        for fault in &find(name).expect("built in").faults {
            let kind = format!("`{}`", fault.what.name());
            let stands = |line: &str| line.starts_with("| `") && line.contains(&kind);
            assert!(page.lines().any(stands), "{kind}, of {name}");
        }
    }
}
