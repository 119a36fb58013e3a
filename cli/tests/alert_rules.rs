//! The rules of Prometheus: checked and unit-tested by its own tool, complete, with a page for each alert.

mod watch;

use hutong_proto::delta::Colour;
use hutong_telemetry::catalogue;
use std::{collections::BTreeSet, fs, net::SocketAddr, ops::Range, path::Path};
use watch::{
    clients::{Sink, Source, call_with_clock},
    prometheus::program,
    rules,
};

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

/// Lines of a rule's expression, by their numbers in the rule.
fn expression(rule: &[&str]) -> Range<usize> {
    let is = |line: &&str| line.trim_start().starts_with("expr:");
    let begin = rule.iter().position(is).expect("an expression");
    let more = rule[begin + 1..].iter();
    let more = more.take_while(|line| depth(line) > depth(rule[begin]));
    begin..begin + 1 + more.count()
}

fn depth(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// `or` or `and`, if the line is nothing else.
fn operator(line: &str) -> Option<&str> {
    let (word, labels) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    let labels = labels.is_empty() || (labels.starts_with("on (") && labels.ends_with(')'));
    (["or", "and"].contains(&word) && labels).then_some(word)
}

/// What can be taken out of an expression: lines of the rule, and what comes in their place.
struct Operand {
    lines: Range<usize>,
    /// What nothing is for its operator: for `or` no series, for `and` no condition, and no operator either.
    instead: Option<String>,
    shown: String,
}

/// What stands before and after each `or` and `and`, at the same depth.
fn operands(rule: &[&str]) -> Vec<Operand> {
    let mut all: Vec<Operand> = Vec::new();
    for (at, line) in rule.iter().enumerate() {
        let Some(word) = operator(line) else { continue };
        let same = |l: &str| depth(l) == depth(line);
        let inside = |l: &&&str| depth(l) > depth(line) || (same(l) && operator(l).is_none());
        let before = rule[..at].iter().rev().take_while(inside).count();
        let after = rule[at + 1..].iter().take_while(inside).count();
        assert!(before > 0 && after > 0, "nothing beside {line}");
        let next = rule.get(at + 1 + after).copied().unwrap_or_default();
        let next = operator(next).filter(|_| same(rule[at + 1 + after]));
        assert!(next.is_none_or(|n| n == word), "{line}: and and or mixed");
        for operand in [at - before..at, at + 1..at + 1 + after] {
            let shown = rule[operand.clone()].join("\n");
            let (lines, instead) = match (word, operand.start > at) {
                ("or", _) => {
                    let nothing = format!("{}absent(vector(1))", " ".repeat(depth(line)));
                    (operand, Some(nothing))
                }
                // With the operator.
                (_, false) => (operand.start..at + 1, None),
                (_, true) => (at..operand.end, None),
            };
            if !all.iter().any(|o| o.shown == shown) {
                all.push(Operand {
                    lines,
                    instead,
                    shown,
                });
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

/// Each alert, the number of its first line in the file, and its lines.
fn rules_of<'a>(all: &[&'a str]) -> Vec<(String, usize, Vec<&'a str>)> {
    let name = |line: &str| line.trim().strip_prefix("- alert: ").map(str::to_owned);
    let starts = all.iter().enumerate();
    let starts = starts.filter_map(|(at, line)| Some((name(line)?, at)));
    starts
        .map(|(alert, at)| {
            let rest = all[at + 1..].iter();
            let rest = rest.take_while(|line| !line.trim().starts_with("- "));
            let end = at + 1 + rest.count();
            (alert, at, all[at..end].to_vec())
        })
        .collect()
}

#[test]
fn operators_of_sets_stand_on_lines_of_their_own() {
    let text = rules::read("prometheus/alerts.yml");
    let all: Vec<&str> = text.lines().collect();
    for (alert, _, rule) in rules_of(&all) {
        for line in &rule[expression(&rule)] {
            let is = |word: &str| ["or", "and", "unless"].contains(&word);
            let word = line.split(|c: char| !c.is_alphanumeric()).find(|w| is(w));
            assert!(
                word.is_none() || operator(line).is_some(),
                "{alert}: {line}: `or` and `and` need a line of their own to be found by the test of operands, \
                 which does not know `unless`"
            );
        }
    }
}

#[test]
fn each_operand_of_each_alert_has_a_unit_test_that_misses_it() {
    let text = rules::read("prometheus/alerts.yml");
    let all: Vec<&str> = text.lines().collect();
    let mut missed = Vec::new();
    for (alert, at, rule) in rules_of(&all) {
        let operands = operands(&rule);
        // Each stands before one, and the last before one more.
        let operators = rule[expression(&rule)].iter().filter_map(|l| operator(l));
        assert!(operators.clone().count() < operands.len().max(1), "{alert}");
        for Operand {
            lines,
            instead,
            shown,
        } in operands
        {
            let mut without = all.clone();
            without.splice(at + lines.start..at + lines.end, instead.as_deref());
            if pass(&alert, &(without.join("\n") + "\n")) {
                missed.push(format!("no unit test of {alert} misses this:\n{shown}"));
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// Labels that an alert says of itself, as a unit test has them.
fn labels(rule: &str) -> Vec<String> {
    let lines = rule.lines().map(str::trim);
    let lines = lines.skip_while(|line| *line != "labels:").skip(1);
    let lines = lines.take_while(|line| *line != "annotations:");
    let pairs = lines.filter_map(|line| line.split_once(": "));
    pairs.map(|(k, v)| format!("{k}: \"{v}\"")).collect()
}

#[test]
fn each_alert_fires_in_a_unit_test() {
    let tests = UNIT_TESTS.map(|name| rules::read(&format!("prometheus/{name}")));
    let expected = || tests.iter().flat_map(|t| t.split("alertname: ").skip(1));
    for (alert, rule) in alerts() {
        let labels = labels(&rule);
        assert!(!labels.is_empty(), "{alert}");
        let of_it = expected().filter(|e| e.lines().next() == Some(&alert));
        let mut fired = of_it.flat_map(|e| e.split("- exp_labels:").skip(1));
        assert!(
            fired.any(|one| labels.iter().all(|label| one.contains(label))),
            "no unit test of {alert} with {labels:?} expects it to fire"
        );
    }
}

/// Of which a page has nothing while nothing happens, or before something was looked at.
const OF_A_BROKER: [&str; 6] = [
    "hutong_pair_lag_records{",
    "hutong_hop_seconds_bucket{",
    "hutong_deltas_refused_total{",
    "hutong_colours_applied_total{",
    "hutong_clock_skew_seconds{",
    "hutong_store_stall_seconds_total{",
];
const OF_A_CONNECTOR: [&str; 1] = ["hutong_connect_dead_letters_added_total{"];

async fn says(address: SocketAddr, series: &[&str]) {
    watch::until("the page", async || {
        let page = watch::get(address, "/metrics")?;
        let missing = series
            .iter()
            .find(|s| !page.lines().any(|l| l.starts_with(**s)));
        missing.map_or(Ok(()), |series| Err(format!("{series} is not in {page}")))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_wrong_with_what_a_broker_and_a_connector_say() {
    use std::{io::Write as _, process::Stdio};
    let dir = tempfile::tempdir().expect("a folder");
    let broker = watch::Broker::start(dir.path()).await;
    let connector = watch::Connector::start(dir.path(), &broker).await;
    // A series is on the page when there is something to say.
    let _sink = Sink::start(&broker, watch::SICHUAN).await;
    let source = Source::start_as(&broker, watch::SHANGHAI).await;
    source.publish(1, Colour::Red).await;
    source.publish_bulk().await;
    source.publish_wrong().await;
    call_with_clock(&broker, watch::SICHUAN, 120).await;
    connector.poison("2022-12-01.json");
    says(broker.http, &OF_A_BROKER).await;
    says(connector.http, &OF_A_CONNECTOR).await;
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
