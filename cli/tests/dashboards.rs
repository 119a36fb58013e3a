//! Dashboards: each panel is complete and names only what there is, and each expression says something while a broker
//! works.

mod watch;

use hutong_proto::delta::Colour;
use hutong_telemetry::catalogue;
use serde_json::Value;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};
use watch::{
    Broker, Connector, SHANGHAI, SICHUAN,
    clients::{Sink, Source},
    prometheus::{Prometheus, program},
    rules, until,
};

/// Dashboards by file name.
fn dashboards() -> Vec<(String, Value)> {
    let folder = rules::folder().join("grafana/dashboards");
    let files = fs::read_dir(&folder).expect("a folder").flatten();
    let mut all: Vec<_> = files
        .map(|file| {
            let text = fs::read_to_string(file.path()).expect("UTF-8");
            let name = file.file_name().to_string_lossy().into_owned();
            let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
            (name, json)
        })
        .collect();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert!(all.len() >= 6, "{} dashboards", all.len());
    all
}

/// Panels that show something; rows only divide.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let panels = dashboard["panels"].as_array().expect("panels");
    panels.iter().filter(|panel| panel["type"] != "row")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Whatever asks for data: a target of a panel, an annotation or a variable.
struct Query {
    /// Where it stands in the dashboard.
    place: String,
    source: Value,
    expression: String,
    /// Of a variable, the label whose values it takes.
    label: Option<String>,
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().expect(key).iter()
}

/// All that a dashboard asks for.
fn queries(dashboard: &Value) -> Vec<Query> {
    let query = |place: &str, asks: &Value, expression: &str, label| Query {
        place: place.to_owned(),
        source: asks["datasource"]["uid"].clone(),
        expression: expression.to_owned(),
        label,
    };
    let mut all = Vec::new();
    for panel in panels(dashboard) {
        let targets = list(panel, "targets");
        all.extend(targets.map(|t| query(text(panel, "title"), t, text(t, "expr"), None)));
    }
    for annotation in list(&dashboard["annotations"], "list") {
        let place = format!("annotation {}", text(annotation, "name"));
        all.push(query(&place, annotation, text(annotation, "expr"), None));
    }
    for variable in list(&dashboard["templating"], "list").filter(|v| v["type"] == "query") {
        let place = format!("variable {}", text(variable, "name"));
        let asks = text(variable, "query");
        let inner = asks.strip_prefix("label_values(");
        let inner = inner.and_then(|inner| inner.strip_suffix(')')?.rsplit_once(", "));
        let (selector, label) =
            inner.unwrap_or_else(|| panic!("{place}: {asks} is not label_values(selector, label)"));
        let expression = format!("count by ({label}) ({selector})");
        all.push(query(&place, variable, &expression, Some(label.to_owned())));
    }
    all
}

/// Ranges that do not follow the picture, and why.
const FIXED_RANGES: [(&str, &str); 1] = [(
    "1d",
    "the panel counts what is rare over the last day, whatever the picture shows",
)];

/// What stands in brackets, wherever that is not part of a string.
fn ranges(expression: &str) -> Vec<&str> {
    let outside = expression.split('"').step_by(2);
    let brackets = outside.flat_map(|part| part.split('[').skip(1));
    brackets
        .map(|range| range.split(']').next().unwrap_or_default())
        .collect()
}

fn is_allowed(range: &str) -> bool {
    range == "$__rate_interval" || FIXED_RANGES.iter().any(|(fixed, _)| *fixed == range)
}

/// What the recording rules make.
fn recorded() -> BTreeSet<String> {
    let rules = rules::read("prometheus/recording.yml");
    let names = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "));
    names.map(str::to_owned).collect()
}

/// Metrics that an expression names: words that stand before a brace, a bracket or nothing, and begin as ours do.
fn metrics(expression: &str) -> Vec<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = expression.split(|c| !word(c));
    let ours = ["hutong_", "hutong:", "platform:", "process_"];
    words
        .filter(|w| ours.iter().any(|prefix| w.starts_with(prefix)))
        .map(str::to_owned)
        .collect()
}

/// Whether it is in the catalogue, with or without the ending of a histogram, or recorded.
fn is_known(metric: &str, recorded: &BTreeSet<String>) -> bool {
    let stems = ["_bucket", "_sum", "_count"].iter();
    let stem = stems.fold(metric, |name, end| name.strip_suffix(end).unwrap_or(name));
    recorded.contains(metric) || catalogue::all().any(|d| d.name == metric || d.name == stem)
}

#[test]
fn every_panel_says_what_it_shows_in_which_unit_and_from_where() {
    let mut found = Vec::new();
    let mut uids = BTreeSet::new();
    for (file, dashboard) in dashboards() {
        assert!(
            uids.insert(text(&dashboard, "uid").to_owned()),
            "{file}: its uid is taken"
        );
        assert!(!text(&dashboard, "description").is_empty(), "{file}");
        let variables = dashboard["templating"]["list"]
            .as_array()
            .expect("variables");
        let source = variables.iter().find(|v| v["type"] == "datasource");
        assert!(
            source.is_some_and(|v| v["name"] == "datasource"),
            "{file}: no data source to choose"
        );
        let mut ids = BTreeSet::new();
        for panel in panels(&dashboard) {
            let title = text(panel, "title");
            let mut wrong = |what: String| found.push(format!("{file}: {title}: {what}"));
            if title.is_empty() || !text(panel, "description").ends_with('.') {
                wrong("it has no title, or no description that ends with a full stop".to_owned());
            }
            if text(&panel["fieldConfig"]["defaults"], "unit").is_empty() {
                wrong("it has no unit".to_owned());
            }
            if panel["datasource"]["uid"] != "${datasource}" {
                wrong("its data source cannot be chosen".to_owned());
            }
            if !ids.insert(panel["id"].as_u64()) {
                wrong("another panel has its id".to_owned());
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn whatever_asks_names_what_there_is_over_a_range_that_fits_the_picture() {
    let recorded = recorded();
    let mut found = Vec::new();
    let mut fixed = BTreeSet::new();
    for (file, dashboard) in dashboards() {
        for query in queries(&dashboard) {
            let expression = &query.expression;
            let mut wrong = |what: String| found.push(format!("{file}: {}: {what}", query.place));
            if query.source != "${datasource}" {
                wrong(format!("{expression}: its data source cannot be chosen"));
            }
            for range in ranges(expression) {
                match is_allowed(range) {
                    true => fixed.extend(FIXED_RANGES.iter().filter(|(r, _)| *r == range)),
                    false => wrong(format!("{expression}: use $__rate_interval, not {range}")),
                }
            }
            for metric in metrics(expression)
                .iter()
                .filter(|m| !is_known(m, &recorded))
            {
                wrong(format!("{metric} is nowhere in the catalogue"));
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
    assert_eq!(fixed, BTreeSet::from(FIXED_RANGES.each_ref()), "in use");
}

#[test]
fn no_two_panels_overlap() {
    for (file, dashboard) in dashboards() {
        let all = dashboard["panels"].as_array().expect("panels");
        let mut taken = BTreeSet::new();
        for panel in all {
            let at = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
            assert!(at("x") + at("w") <= 24, "{file}: {}", text(panel, "title"));
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(
                        taken.insert((x, y)),
                        "{file}: {} overlaps",
                        text(panel, "title")
                    );
                }
            }
        }
    }
}

#[test]
fn the_files_are_what_the_script_makes() {
    let script = rules::folder().join("../tools/grafana-dashboards");
    let output = Command::new(script)
        .arg("--check")
        .output()
        .expect("python3");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_metric_that_is_not_there_would_be_found() {
    let recorded = recorded();
    assert!(is_known("hutong_hop_seconds_bucket", &recorded));
    assert!(is_known("hutong:surge:ratio_1w", &recorded));
    assert!(!is_known("hutong_hop_secnods_bucket", &recorded));
    let named = metrics("sum by (platform) (rate(hutong_a_total{x=\"y\"}[1m])) / platform:b:c");
    assert_eq!(named, ["hutong_a_total", "platform:b:c"]);
}

#[test]
fn a_range_that_does_not_fit_would_be_found() {
    let two = "rate(a[$__rate_interval]) / max_over_time(b{x=~\"[0-9]\"}[5m]) - delta(c[1h:1m])";
    assert_eq!(ranges(two), ["$__rate_interval", "5m", "1h:1m"]);
    let allowed = ranges(two).into_iter().filter(|range| is_allowed(range));
    assert_eq!(allowed.collect::<Vec<_>>(), ["$__rate_interval"]);
}

/// A week ago, so that there is something to compare with: what Anhui published in that hour, once a minute.
fn last_week() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let week_ago = since.as_secs() - 7 * 86_400;
    let mut text = "# TYPE hutong_deltas_accepted counter\n".to_owned();
    for minute in 0..75 {
        let at = week_ago - 65 * 60 + minute * 60;
        writeln!(
            text,
            "hutong_deltas_accepted_total{{lane=\"bulk\",platform=\"340000\"}} {} {at}",
            minute * 10
        )
        .expect("writing to a string");
    }
    text + "# EOF\n"
}

/// As Grafana would ask: with its variables filled in, and once with each value of the one that has two.
fn filled_in(expression: &str) -> Vec<String> {
    let lanes = match expression.contains("$lane") {
        true => &["urgent", "bulk"][..],
        false => &["urgent"],
    };
    let filled = |lane: &&str| filled_in_with(expression, lane);
    lanes.iter().map(filled).collect()
}

fn filled_in_with(expression: &str, lane: &str) -> String {
    [
        ("$__rate_interval", "5s"),
        ("$job", ".*"),
        ("$instance", ".*"),
        ("$connector", ".*"),
        ("$platform", "340000"),
        ("$lane", lane),
    ]
    .iter()
    .fold(expression.to_owned(), |text, (name, value)| {
        text.replace(name, value)
    })
}

fn says_something(prometheus: &Prometheus, query: &Query) -> bool {
    let expressions = filled_in(&query.expression);
    expressions.iter().all(|e| has_value(prometheus, query, e))
}

/// Whether one series at least has a value, which NaN is not: it is what a panel shows nothing for.
fn has_value(prometheus: &Prometheus, query: &Query, expression: &str) -> bool {
    let series = prometheus.query(expression);
    let has_label = |one: &Value| match &query.label {
        Some(label) => !text(&one["metric"], label).is_empty(),
        None => true,
    };
    let is_finite = |one: &Value| {
        let value = one["value"][1].as_str().and_then(|v| v.parse().ok());
        value.is_some_and(f64::is_finite)
    };
    series.is_ok_and(|all| all.iter().any(|one| has_label(one) && is_finite(one)))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_expression_says_something_while_a_broker_works() {
    let dir = tempfile::tempdir().expect("a folder");
    let history = dir.path().join("last-week.txt");
    fs::write(&history, last_week()).expect("written");
    let made = program("promtool")
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .arg(&history)
        .arg(dir.path().join("tsdb"))
        .output()
        .expect("promtool");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );

    let broker = Broker::start(dir.path()).await;
    let source = Source::start(&broker).await;
    let sichuan = Sink::start(&broker, SICHUAN).await;
    let _shanghai = Sink::start(&broker, SHANGHAI).await;
    // Anhui takes what the others publish, which is nothing.
    let _anhui = Sink::start(&broker, watch::ANHUI).await;
    let connector = Connector::start(dir.path(), &broker).await;
    let targets = [
        ("hutong-broker", broker.http),
        ("hutong-connect", connector.http),
    ];
    let names = rules::write_short(dir.path());
    let prometheus = Prometheus::start(dir.path(), &names, &targets).await;

    // Something of everything: red, a refusal, a dead letter, and a platform that is behind in both lanes.
    source.publish(20, Colour::Red).await;
    source.publish_wrong().await;
    connector.poison("2022-12-01.json");
    sichuan.stall(true);
    source.publish_bulk().await;
    let mut missing = BTreeMap::new();
    for (file, dashboard) in dashboards() {
        for query in queries(&dashboard) {
            let place = format!("{file}: {}: {}", query.place, query.expression);
            missing.insert(place, query);
        }
    }
    let missing = RefCell::new(missing);
    until("every expression has a value", async || {
        let mut missing = missing.borrow_mut();
        missing.retain(|_, query| !says_something(&prometheus, query));
        match missing.is_empty() {
            true => Ok(()),
            false => Err(missing.keys().map(|place| format!("\n{place}")).collect()),
        }
    })
    .await;
}
