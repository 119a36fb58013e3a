//! The reference of metrics is what the catalogue and the recording rules say.

use hutong_telemetry::catalogue;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A recording rule.
struct Rule {
    name: String,
    /// The comment above it.
    says: String,
}

fn rules(text: &str) -> Vec<Rule> {
    let (mut rules, mut says) = (Vec::new(), String::new());
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("# ") {
            says += if says.is_empty() { "" } else { " " };
            says += comment;
            continue;
        }
        let says = std::mem::take(&mut says);
        if let Some(name) = line.strip_prefix("- record: ") {
            let name = name.to_owned();
            rules.push(Rule { name, says });
        }
    }
    rules
}

/// Not as a part of another name.
fn names(text: &str, rule: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.split(|c| !word(c)).any(|name| name == rule)
}

/// Rules, alerts and dashboards that name the rule, as the page says it.
fn used_by(rule: &str) -> Vec<String> {
    let recording = read(&deploy().join("prometheus/recording.yml"));
    let alerts = read(&deploy().join("prometheus/alerts.yml"));
    let mut users = Vec::new();
    for (text, what, mark) in [
        (&recording, "", "- record: "),
        (&alerts, "alert ", "- alert: "),
    ] {
        for other in text.split(mark).skip(1) {
            let (name, body) = other.split_once('\n').unwrap_or_default();
            if names(body, rule) {
                users.push(format!("{what}`{name}`"));
            }
        }
    }
    let dashboards = fs::read_dir(deploy().join("grafana/dashboards")).expect("a folder");
    let mut dashboards: Vec<PathBuf> = dashboards.flatten().map(|file| file.path()).collect();
    dashboards.sort();
    for file in dashboards.iter().filter(|file| names(&read(file), rule)) {
        let name = file.file_stem().and_then(|s| s.to_str()).expect("plain");
        users.push(format!("dashboard *{name}*"));
    }
    users
}

const HEAD: &str = "
## Recording rules

What Prometheus makes of them, with the expressions in [recording.yml](../deploy/prometheus/recording.yml), and what of ours
uses it.

| rule | what it says | used by |
|---|---|---|
";

fn section() -> String {
    let mut section = HEAD.to_owned();
    for Rule { name, says } in rules(&read(&deploy().join("prometheus/recording.yml"))) {
        let users = used_by(&name).join(", ");
        writeln!(section, "| `{name}` | {says} | {users} |").expect("a string takes all");
    }
    section
}

#[test]
fn the_page_of_metrics_is_current() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let current = catalogue::page() + &section();
    if std::env::var_os("HUTONG_WRITE").is_some() {
        fs::write(&page, &current).expect("written");
    }
    let stands = fs::read_to_string(&page).unwrap_or_default();
    assert!(
        stands == current,
        "docs/metrics.md is not what the catalogue and the recording rules say: run this test with HUTONG_WRITE=1"
    );
}

#[test]
fn each_recording_rule_is_on_the_page_says_what_it_is_and_is_used() {
    let text = read(&deploy().join("prometheus/recording.yml"));
    let page = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md"));
    let all: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split("record:").nth(1))
        .map(str::trim)
        .collect();
    assert!(!all.is_empty());
    let found = rules(&text);
    for name in &all {
        let rule = found.iter().find(|rule| rule.name == *name);
        let rule = rule.unwrap_or_else(|| panic!("{name} was not read"));
        assert!(rule.says.ends_with('.'), "{name}: say above it what it is");
        assert!(page.contains(&format!("\n| `{name}` | ")), "{name}");
        assert!(!used_by(name).is_empty(), "nothing of ours uses {name}");
    }
    assert_eq!(found.len(), all.len());
}
