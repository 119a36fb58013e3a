//! The rules of Prometheus: checked and unit-tested by its own tool, complete, with a page for each alert.

mod watch;

use hutong_telemetry::catalogue;
use std::{collections::BTreeSet, fs, path::Path};
use watch::{prometheus::program, rules};

const UNIT_TESTS: [&str; 2] = ["tests.yml", "tests-of-weeks.yml"];

/// An alert's rule: its name, and the lines of it.
fn alerts() -> Vec<(String, String)> {
    let text = rules::read("prometheus/alerts.yml");
    let rules = text.split("- alert: ").skip(1);
    rules
        .map(|rule| {
            let name = rule.lines().next().unwrap_or_default().to_owned();
            (name, rule.to_owned())
        })
        .collect()
}

fn value<'a>(rule: &'a str, key: &str) -> &'a str {
    let line = rule.lines().find_map(|line| line.trim().strip_prefix(key));
    line.unwrap_or_default().trim().trim_matches('"')
}

#[test]
fn each_alert_says_how_bad_it_is_in_two_languages_and_where_to_read_on() {
    let pages = rules::folder().join("../docs/runbooks/alerts");
    for (name, rule) in alerts() {
        let severity = value(&rule, "severity:");
        assert!(
            ["critical", "warning", "none"].contains(&severity),
            "{name}: {severity}"
        );
        assert!(!value(&rule, "summary:").is_empty(), "{name}");
        let chinese = value(&rule, "summary_zh:");
        assert!(chinese.chars().any(|c| c > '\u{4e00}'), "{name}: {chinese}");
        let url = format!("{{{{ $externalLabels.runbooks }}}}/{name}.md");
        assert_eq!(value(&rule, "runbook_url:"), url, "{name}");
        let page = pages.join(format!("{name}.md"));
        let text = fs::read_to_string(&page).unwrap_or_default();
        for part in [&format!("# {name}"), "**Means.**", "**Look.**", "**Do.**"] {
            assert!(text.contains(part), "{}: no {part}", page.display());
        }
    }
}

#[test]
fn there_is_no_page_without_an_alert_and_none_is_left_out_of_the_list() {
    let folder = rules::folder().join("../docs/runbooks/alerts");
    let names: BTreeSet<String> = alerts().into_iter().map(|(name, _)| name).collect();
    let files = fs::read_dir(&folder).expect("a folder").flatten();
    let pages: BTreeSet<String> = files
        .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".md")?.to_owned()))
        .filter(|name| name != "README")
        .collect();
    assert_eq!(pages, names);
    let list = fs::read_to_string(folder.join("README.md")).expect("a list");
    for name in names {
        assert!(
            list.contains(&format!("[{name}]({name}.md)")),
            "{name} is not in the list"
        );
    }
}

#[test]
fn rules_name_only_metrics_that_there_are() {
    let mut text = rules::read("prometheus/alerts.yml") + &rules::read("prometheus/recording.yml");
    for tests in UNIT_TESTS {
        text.push_str(&rules::read(&format!("prometheus/{tests}")));
    }
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    for name in text
        .split(|c| !word(c))
        .filter(|w| w.starts_with("hutong_"))
    {
        let stem = ["_bucket", "_sum", "_count"]
            .iter()
            .fold(name, |name, end| name.strip_suffix(end).unwrap_or(name));
        assert!(
            catalogue::all().any(|d| d.name == stem || d.name == name),
            "{name}"
        );
    }
}

/// What it said, and whether it is content.
fn run(name: &str, arguments: &[&str], folder: &Path) -> (bool, String) {
    let output = program(name).args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|e| panic!("{name}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

fn succeeds(name: &str, arguments: &[&str]) -> String {
    let (good, text) = run(name, arguments, &rules::folder().join("prometheus"));
    assert!(good, "{name} {arguments:?}: {text}");
    text
}

#[test]
fn the_rules_are_valid_and_pass_their_unit_tests() {
    succeeds(
        "promtool",
        &["check", "rules", "alerts.yml", "recording.yml"],
    );
    succeeds("promtool", &["check", "config", "prometheus.yml"]);
    for tests in UNIT_TESTS {
        succeeds("promtool", &["test", "rules", tests]);
    }
}

#[test]
fn alertmanager_takes_its_file_and_tells_whom_each_severity_is_for() {
    succeeds("amtool", &["check-config", "alertmanager.yml"]);
    for (severity, receiver) in [
        ("critical", "on-call"),
        ("warning", "office-hours"),
        ("none", "dead-mans-switch"),
    ] {
        let severity = format!("severity={severity}");
        let routed = succeeds(
            "amtool",
            &[
                "config",
                "routes",
                "test",
                "--config.file=alertmanager.yml",
                &severity,
            ],
        );
        let to = routed.lines().find(|line| !line.starts_with("Warning"));
        assert_eq!(to.map(str::trim), Some(receiver), "{severity}: {routed}");
    }
}

/// The branches of an alert that has several: each `or`, with what stands before and after it at the same depth. The
/// lines of each, by their numbers in the rule.
fn branches(rule: &[&str]) -> Vec<std::ops::Range<usize>> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let is_or = |line: &str| line.trim() == "or" || line.trim().starts_with("or on (");
    let mut all = Vec::new();
    for (at, or) in rule.iter().enumerate().filter(|(_, line)| is_or(line)) {
        let inside = |line: &&&str| depth(line) >= depth(or) && !is_or(line);
        let before = rule[..at].iter().rev().take_while(inside).count();
        let after = rule[at + 1..].iter().take_while(inside).count();
        for branch in [at - before..at, at + 1..at + 1 + after] {
            if !all.contains(&branch) {
                all.push(branch);
            }
        }
    }
    all
}

/// The unit tests of one alert alone.
fn unit_tests_of(alert: &str) -> String {
    let text = rules::read("prometheus/tests.yml");
    let mut groups = text.split("\n  - name: ");
    let mut out = groups.next().expect("a head").to_owned();
    for group in groups.filter(|g| g.contains(&format!("alertname: {alert}\n"))) {
        out += &format!("\n  - name: {group}");
    }
    out
}

/// Whether the alert's unit tests are content with these rules.
fn pass(alert: &str, alerts: &str) -> bool {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
    write("alerts.yml", alerts);
    write("recording.yml", &rules::read("prometheus/recording.yml"));
    write("tests.yml", &unit_tests_of(alert));
    let (valid, text) = run("promtool", &["check", "rules", "alerts.yml"], dir.path());
    assert!(valid, "{alert}: {text}");
    run("promtool", &["test", "rules", "tests.yml"], dir.path()).0
}

#[test]
fn each_branch_of_each_alert_has_a_unit_test_that_misses_it() {
    let text = rules::read("prometheus/alerts.yml");
    let all: Vec<&str> = text.lines().collect();
    let (mut at, mut seen) = (0, 0);
    for (alert, rule) in alerts() {
        let begin = all[at..].iter().position(|l| l.contains("- alert: "));
        at += begin.expect("its first line");
        let rule: Vec<&str> = all[at..at + rule.lines().count()].to_vec();
        for branch in branches(&rule) {
            let what = rule[branch.clone()].join("\n");
            let first = rule[branch.start];
            let indent = &first[..first.len() - first.trim_start().len()];
            let nothing = format!("{indent}absent(vector(1))");
            let mut lines = all.clone();
            lines.splice(at + branch.start..at + branch.end, [nothing.as_str()]);
            let without = lines.join("\n") + "\n";
            assert!(
                !pass(&alert, &without),
                "no unit test of {alert} misses this:\n{what}"
            );
            seen += 1;
        }
        at += 1;
    }
    // Of WriteStall alone there are five.
    assert!(seen >= 11, "{seen} branches found");
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_wrong_with_what_a_broker_and_a_connector_say() {
    use std::{io::Write as _, process::Stdio};
    let dir = tempfile::tempdir().expect("a folder");
    let broker = watch::Broker::start(dir.path()).await;
    let connector = watch::Connector::start(dir.path(), &broker).await;
    for address in [broker.http, connector.http] {
        let page = watch::get(address, "/metrics").expect("a page");
        let mut check = program("promtool");
        check.args(["check", "metrics"]);
        let mut check = check
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool");
        let mut input = check.stdin.take().expect("piped");
        input.write_all(page.as_bytes()).expect("read");
        drop(input);
        let output = check.wait_with_output().expect("its end");
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && text.is_empty(),
            "{address}: {text}"
        );
    }
}
