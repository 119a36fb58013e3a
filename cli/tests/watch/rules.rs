//! The rules of `deploy/prometheus`, with times that a test can wait for.

use std::path::{Path, PathBuf};

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

pub fn read(name: &str) -> String {
    let path = folder().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What stands in the rules, and what stands there in a test. Each must be there: a rule that changed changes its
/// test.
const SHORT: &[(&str, &str)] = &[
    ("[5m]", "[6s]"),
    ("[10m]", "[8s]"),
    ("[15m]", "[8s]"),
    ("[1m]", "[4s]"),
    ("offset 10m", "offset 8s"),
    ("{lane=\"urgent\"}) > 5", "{lane=\"urgent\"}) > 2"),
    (
        "hutong_subscription_lag_seconds > 60",
        "hutong_subscription_lag_seconds > 3",
    ),
    ("{lane=\"bulk\"}) > 900", "{lane=\"bulk\"}) > 2"),
    (
        "hutong_bulk_held_seconds) > 30",
        "hutong_bulk_held_seconds) > 0.5",
    ),
    (
        "(hutong_disk_free_bytes[6h], 86400)",
        "(hutong_disk_free_bytes[8s], 32)",
    ),
    (" > 600", " > 3"),
    (" > 7200", " > 6"),
    (
        "hutong_commit_running_seconds) > 2",
        "hutong_commit_running_seconds) > 0.5",
    ),
];

/// Writes them into a folder, and returns their names there.
pub fn write_short(dir: &Path) -> [&'static str; 2] {
    let names = ["recording.yml", "alerts.yml"];
    let texts = names.map(|name| read(&format!("prometheus/{name}")));
    for (long, _) in SHORT {
        assert!(
            texts.iter().any(|text| text.contains(long)),
            "no rule has {long:?}"
        );
    }
    for (name, text) in names.iter().zip(texts) {
        let short = short(&text);
        assert_eq!(
            without_numbers(&short),
            without_numbers(&text),
            "more is different than times and thresholds"
        );
        std::fs::write(dir.join(name), short).expect("written");
    }
    names
}

/// Whether an alert has this in its expression, in a test.
pub fn alerts_have(part: &str) -> bool {
    let lines = short(&read("prometheus/alerts.yml"));
    let words: Vec<&str> = lines.split_whitespace().collect();
    words.join(" ").contains(part)
}

/// Numbers, with the unit of time that follows, as `#`; those within names stay.
fn without_numbers(text: &str) -> String {
    let number = |word: &str| {
        let unit = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        unit.len() < word.len() && ["", "ms", "s", "m", "h", "d", "w"].contains(&unit)
    };
    let in_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        out += if number(word) { "#" } else { word };
        let next = behind.chars().next().map_or(0, char::len_utf8);
        out += &behind[..next];
        rest = &behind[next..];
    }
    out
}

fn short(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let line = match line.trim_start().split_once(": ") {
            Some(("for", _)) => format!("{indent}for: 1s"),
            Some(("interval", _)) => format!("{indent}interval: 500ms"),
            _ => line.to_owned(),
        };
        let line = SHORT
            .iter()
            .fold(line, |line, (long, short)| line.replace(long, short));
        out += &line;
        out.push('\n');
    }
    out
}
