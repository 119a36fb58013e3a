//! The rules of Prometheus: checked and unit-tested by its own tool, complete, with a page for each alert.

mod watch;

use hutong_telemetry::catalogue;
use std::{collections::BTreeSet, fs, path::Path};
use watch::{prometheus::program, rules};

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
    text.push_str(&rules::read("prometheus/tests.yml"));
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

fn promtool(arguments: &[&str], folder: &Path) {
    let output = program("promtool")
        .args(arguments)
        .current_dir(folder)
        .output();
    let output = output.expect("promtool");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

#[test]
fn the_rules_are_valid_and_pass_their_unit_tests() {
    let folder = rules::folder().join("prometheus");
    promtool(&["check", "rules", "alerts.yml", "recording.yml"], &folder);
    promtool(&["check", "config", "prometheus.yml"], &folder);
    promtool(&["test", "rules", "tests.yml"], &folder);
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
