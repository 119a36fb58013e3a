//! The shape of the source tree, held: every file says what it is for, none grows without bound, and
//! imports go one way. `ARCHITECTURE.md` draws the picture that these tables are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const LINES_MAX: usize = 700;
/// Of a function, from its name to its last brace: what fits a screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that may be longer: each wires or lists many things one after the other, and decides nothing.
const LONG_FUNCTIONS: &[(&str, &str)] = &[
    ("bench/src/fleet.rs", "run"),
    ("broker/src/node/mod.rs", "start"),
    ("chaos/src/drill/fault.rs", "label"),
    ("chaos/src/drill/read.rs", "what"),
    ("chaos/src/history/reader.rs", "take"),
];

/// Crates, and what they may use of each other: only what stands above them.
const CRATES: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("config", &[]),
    ("telemetry", &[]),
    ("broker", &["proto", "config", "telemetry"]),
    // The broker only in tests: what they share is the wire.
    ("connectors", &["proto", "config", "telemetry"]),
    ("cli", &["proto", "telemetry", "broker", "connectors"]),
    ("bench", &["proto", "connectors"]),
    (
        "chaos",
        &[
            "proto",
            "config",
            "connectors",
            "plants",
            "planted-broker",
            "planted-connectors",
        ],
    ),
    // The product once more, with places for bugs in it.
    ("chaos/planted/plants", &[]),
    (
        "chaos/planted/broker",
        &["proto", "config", "telemetry", "plants"],
    ),
    (
        "chaos/planted/connectors",
        &["proto", "config", "telemetry", "plants"],
    ),
    // The planted crates stand under other names in it, those that the programs know.
    ("chaos/planted/programs", &["config", "telemetry"]),
];

/// The broker's modules, lowest first: each uses only what stands before it.
const MODULES: &[&str] = &[
    "plants",
    "clock",
    "overload",
    "config",
    "metrics",
    "rocks",
    "log",
    "state",
    "checkpoint",
    "filter",
    "tail",
    "admission",
    "routing",
    "access",
    "history",
    "apply",
    "control",
    "ingress",
    "fanout",
    "lag",
    "resolution",
    "query",
    "reports",
    "admin",
    "reload",
    "console",
    "http",
    "node",
    "backup",
];

/// Modules that deal in domain types alone: the wire was converted before it came to them.
const WITHOUT_WIRE_TYPES: &[&str] = &[
    "clock",
    "config",
    "metrics",
    "rocks",
    "overload",
    "log",
    "state",
    "tail",
    "admission",
    "routing",
    "access",
];

fn root() -> PathBuf {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    cli.parent().expect("the repository").to_owned()
}

/// Files of the repository, as git knows them, that end so.
fn files(suffix: &str) -> Vec<(String, String)> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git");
    assert!(output.status.success(), "{output:?}");
    let names = String::from_utf8(output.stdout).expect("UTF-8");
    let files: Vec<_> = names
        .lines()
        .filter(|name| name.ends_with(suffix) && root().join(name).is_file())
        .map(|name| {
            let text = fs::read_to_string(root().join(name)).expect("UTF-8");
            (name.to_owned(), text)
        })
        .collect();
    assert!(!files.is_empty(), "no file ends with {suffix}");
    files
}

fn none(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let opens = [
        (".rs", "//! "),
        (".proto", "// "),
        (".py", "\"\"\""),
        (".js", "// "),
        (".mjs", "// "),
        (".css", "/* "),
        (".toml", "#"),
    ];
    let mut found = Vec::new();
    for (suffix, opening) in opens {
        for (name, text) in files(suffix) {
            let manifest = name.ends_with("Cargo.toml");
            let body = text
                .strip_prefix("#!/usr/bin/env python3\n")
                .unwrap_or(&text);
            // What others wrote stays as they wrote it.
            let vendored = name.contains("/vendor/");
            if !manifest && !vendored && !body.starts_with(opening) {
                found.push(format!(
                    "{name}: open it with `{opening}` and what it is for"
                ));
            }
        }
    }
    none(&found);
}

#[test]
fn no_file_grows_without_bound() {
    let long = |(name, text): (String, String)| {
        let lines = text.lines().count();
        (lines > LINES_MAX).then(|| format!("{name}: {lines} lines, at most {LINES_MAX}: split it"))
    };
    none(
        &files(".rs")
            .into_iter()
            .filter_map(long)
            .collect::<Vec<_>>(),
    );
}

/// Name, first line and length of each function in a file as rustfmt leaves it: it ends with the first brace
/// that stands as far to the left as its beginning.
fn functions(text: &str) -> Vec<(&str, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut all = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let ends = |line: &&str| {
            line.strip_prefix(indent)
                .is_some_and(|rest| rest.starts_with('}'))
        };
        // Without a body it is one of a trait.
        let head = lines[at..].iter().find(|l| l.ends_with([';', '{', '}']));
        if head.is_some_and(|head| head.ends_with('{'))
            && let Some(length) = lines[at..].iter().position(ends)
        {
            all.push((name, at + 1, length + 1));
        }
    }
    all
}

fn function_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start().split(' ').peekable();
    while words
        .next_if(|w| matches!(*w, "const" | "async" | "unsafe") || w.starts_with("pub"))
        .is_some()
    {}
    (words.next() == Some("fn")).then_some(())?;
    words.next()?.split(['(', '<']).next()
}

#[test]
fn every_function_fits_a_screen() {
    let mut found = Vec::new();
    for (file, text) in files(".rs") {
        // Tests list cases.
        if file.contains("/tests/") || file.ends_with("tests.rs") {
            continue;
        }
        for (name, line, length) in functions(&text) {
            let known = LONG_FUNCTIONS.contains(&(file.as_str(), name));
            if length > FUNCTION_LINES_MAX && !known {
                found.push(format!(
                    "{file}:{line}: {name} has {length} lines, at most {FUNCTION_LINES_MAX}: split it"
                ));
            }
        }
    }
    none(&found);
}

#[test]
fn a_long_function_is_found_wherever_it_stands() {
    let long = format!(
        "impl A {{\n    pub(super) async fn long<T>(\n        t: T,\n    ) {{\n{}    }}\n\n    fn short() {{}}\n}}\n",
        "        f();\n".repeat(FUNCTION_LINES_MAX)
    );
    let text = format!(
        "trait B {{\n    fn none(\n        &self,\n    );\n}}\n\n{long}\nfn g() {{\n    1\n}}\n"
    );
    let expected = [("long", 8, FUNCTION_LINES_MAX + 4), ("g", 86, 3)];
    let found: Vec<_> = functions(&text);
    assert_eq!(found, expected);
}

#[test]
fn what_the_picture_names_is_there() {
    let sources: Vec<String> = files(".rs").into_iter().map(|(_, text)| text).collect();
    let (_, picture) = files("ARCHITECTURE.md").remove(0);
    let mut found = Vec::new();
    for quoted in picture.split('`').skip(1).step_by(2) {
        let Some((_, name)) = quoted.rsplit_once("::") else {
            continue;
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let is_there = ["fn", "struct", "enum", "trait", "mod", "const", "type"]
            .iter()
            .any(|kind| {
                let definition = format!("{kind} {name}");
                sources.iter().any(|text| {
                    let mut places = text.match_indices(&definition);
                    places.any(|(at, _)| !text[at + definition.len()..].starts_with(plain))
                })
            });
        if name.chars().all(plain) && !is_there {
            found.push(format!("ARCHITECTURE.md: {quoted} is not there"));
        }
    }
    none(&found);
}

#[test]
fn nothing_is_left_to_be_done_later() {
    // Put together, so that this file does not find itself.
    let marks = [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["todo", "!("],
        ["dbg", "!("],
        ["#[ig", "nore"],
    ];
    let mut found = Vec::new();
    for (name, text) in files(".rs") {
        for (i, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(&mark.concat())) {
                found.push(format!("{name}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    none(&found);
}

/// What a crate's manifest names under `[dependencies]`.
fn dependencies(manifest: &str) -> Vec<&str> {
    manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter_map(|name| name.strip_prefix("hutong-"))
        .collect()
}

#[test]
fn crates_use_only_what_stands_above_them() {
    let mut found = Vec::new();
    for (krate, allowed) in CRATES {
        let manifest = root().join(krate).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).expect("a manifest");
        for used in dependencies(&manifest) {
            if !allowed.contains(&used) {
                found.push(format!("{krate} uses {used}: it may use {allowed:?}"));
            }
        }
    }
    for (name, _) in files("/Cargo.toml") {
        let krate = name.trim_end_matches("/Cargo.toml");
        if !CRATES.iter().any(|(known, _)| *known == krate) {
            found.push(format!("{name}: give it a place in the table of crates"));
        }
    }
    none(&found);
}

/// The module of the broker that a file belongs to.
fn module(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("broker/src/")?;
    let end = rest.find(['/', '.'])?;
    let module = &rest[..end];
    (module != "lib" && module != "main").then_some(module)
}

/// Modules of this crate that a text names, in `crate::a::b` and in `use crate::{a::b, c}`.
fn named(text: &str) -> Vec<&str> {
    let mut all = Vec::new();
    for (at, start) in text.match_indices("crate::") {
        let rest = &text[at + start.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            all.extend(
                rest.split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next(),
            );
            continue;
        };
        let mut depth = 0;
        let mut item = 0;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    all.push(group[item..i].trim());
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    all.push(group[item..i].trim());
                    item = i + 1;
                }
                _ => {}
            }
        }
    }
    all.into_iter()
        .map(|item| item.split(':').next().unwrap_or_default())
        .filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect()
}

#[test]
fn the_brokers_modules_use_only_what_stands_before_them() {
    let rank = |module: &str| MODULES.iter().position(|m| *m == module);
    let mut found = Vec::new();
    for (name, text) in files(".rs") {
        let Some(module) = module(&name) else {
            continue;
        };
        let Some(own) = rank(module) else {
            found.push(format!("{name}: give it a place in the table of modules"));
            continue;
        };
        for used in named(&text) {
            match rank(used) {
                Some(other) if other <= own => {}
                Some(_) => found.push(format!("{name}: {module} stands below {used}")),
                None => found.push(format!("{name}: what is crate::{used}?")),
            }
        }
        if WITHOUT_WIRE_TYPES.contains(&module) && text.contains("api::") {
            found.push(format!("{name}: generated types stay at the edges"));
        }
    }
    none(&found);
}

#[test]
fn the_table_of_modules_finds_an_import_that_goes_the_wrong_way() {
    let text =
        "use crate::{\n    log::{Log, a},\n    node::Parts,\n};\nfn f() { crate::tail::g() }";
    assert_eq!(named(text), ["log", "node", "tail"]);
    assert_eq!(module("broker/src/log/embedded/mod.rs"), Some("log"));
    assert_eq!(module("broker/src/lag.rs"), Some("lag"));
    assert_eq!(module("broker/src/lib.rs"), None);
    assert_eq!(
        dependencies(
            "[dependencies]\nbytes.workspace = true\nhutong-proto.workspace = true\n[x]\n"
        ),
        ["proto"]
    );
}

/// Where the time of the day may be asked for: at the edges. In the broker it is handed in, so that a
/// test, and one day a simulation, can say what time it is.
const CLOCKS: &[&str] = &[
    "bench/src/load.rs",
    "broker/src/clock.rs",
    "chaos/src/clock.rs",
    "cli/src/times.rs",
    "connectors/src/client/publisher.rs",
    "connectors/src/client/subscriber.rs",
    "connectors/src/sources/snapshot_folder/folder.rs",
    "connectors/src/sources/snapshot_folder/mod.rs",
    "connectors/src/state.rs",
    "telemetry/src/recent.rs",
];

#[test]
fn nobody_else_looks_at_the_clock() {
    let asks = [
        "SystemTime::now",
        "Utc::now",
        "Local::now",
        "Timestamp::now",
    ];
    let mut found = Vec::new();
    for (name, text) in files(".rs") {
        let in_tests = name.contains("/tests/") || name.ends_with("tests.rs");
        for ask in asks {
            if !in_tests && text.contains(ask) && !CLOCKS.contains(&name.as_str()) {
                found.push(format!("{name}: {ask}; take the time that is handed in"));
            }
        }
    }
    none(&found);
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let mut found = Vec::new();
    for (name, text) in files(".md") {
        let dir = root().join(&name);
        let dir = dir.parent().expect("a folder").to_owned();
        for (at, mark) in text.match_indices("](") {
            let rest = &text[at + mark.len()..];
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            let path = target.split('#').next().unwrap_or_default();
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            if !elsewhere && !path.is_empty() && !dir.join(path).exists() {
                found.push(format!("{name}: {target} is not there"));
            }
        }
    }
    none(&found);
}
