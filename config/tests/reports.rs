//! What a person sees of a wrong file: every mistake, at its line, with what to do about it.

use hutong_config::{ByteSize, ConfigErrors, Document, Look, Scalar, Table, read};
use std::{fmt::Debug, net::SocketAddr, path::PathBuf, time::Duration};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Text,
    Json,
}

#[derive(Debug)]
struct Sample {
    format: Format,
    listen: SocketAddr,
    dir: PathBuf,
    retention_age: Duration,
    retention_bytes: u64,
    platforms: Vec<(u32, String)>,
}

fn platform(mut table: Table<'_>) -> Option<(u32, String)> {
    let code = table.required_as("code", read::integer(100_000..=999_999));
    let name = table.required_as("name", read::text(1..=64));
    Some((code?, name?))
}

fn sample(doc: &Document) -> Option<Sample> {
    let mut root = doc.root();
    let formats = [("text", Format::Text), ("json", Format::Json)];
    let format = root.required_as("format", read::one_of(&formats));
    let listen = root.table("listen").required("grpc");
    let dir = root.table("data").required("dir");
    let mut retention = root.table("retention");
    let age = Duration::from_secs(1)..=Duration::from_secs(86_400 * 365);
    let retention_age =
        retention.with_default_as("age", Duration::from_secs(60), read::duration(age));
    let bytes = ByteSize::mib(1)..=ByteSize::gib(1 << 20);
    let retention_bytes = retention.with_default_as("bytes", 1 << 30, read::bytes(bytes));
    let platforms: Vec<_> = root
        .list_of_tables("platforms")
        .into_iter()
        .map(platform)
        .collect();
    Some(Sample {
        format: format?,
        listen: listen?,
        dir: dir?,
        retention_age,
        retention_bytes,
        platforms: platforms.into_iter().collect::<Option<_>>()?,
    })
}

fn load<T: Debug>(text: &str, reader: fn(&Document) -> Option<T>) -> Result<T, ConfigErrors> {
    let doc = Document::parse("sample.toml", text);
    let value = reader(&doc);
    doc.finish(value)
}

/// The reports as `line:column key: message (help)`.
fn reports<T: Debug>(text: &str, reader: fn(&Document) -> Option<T>) -> Vec<String> {
    let errors = load(text, reader).expect_err(text);
    let lines = errors.iter().map(|e| {
        let help = e.help.as_deref().unwrap_or("-");
        format!("{}:{} {} ({help})", e.line, e.column, e.message)
    });
    lines.collect()
}

const GOOD: &str = r#"
format = "json"
[listen]
grpc = "127.0.0.1:7400"
[data]
dir = "/var/lib/hutong"
[retention]
age = "7d"
[[platforms]]
code = 340000
name = "安徽"
[[platforms]]
code = 510000
name = "Sichuan"
"#;

#[test]
fn a_good_file_is_read_with_its_defaults() {
    let sample = load(GOOD, sample).expect("good");
    assert_eq!(sample.format, Format::Json);
    assert_eq!(sample.listen.port(), 7400);
    assert_eq!(sample.dir, PathBuf::from("/var/lib/hutong"));
    assert_eq!(sample.retention_age, Duration::from_secs(7 * 86_400));
    assert_eq!(sample.retention_bytes, 1 << 30);
    let expected = [
        (340_000, "安徽".to_owned()),
        (510_000, "Sichuan".to_owned()),
    ];
    assert_eq!(sample.platforms, expected);
}

const FIVE: &str = r#"# five mistakes
format = "jsno"
[listen]
grpc = "localhost:7400"
[data]
dri = "/var/lib/hutong"
[retention]
age = 7
bytes = "64MiB"
[[platforms]]
code = 340000
name = "Anhui"
[[platforms]]
code = 34
name = "Nowhere"
"#;

#[test]
fn five_mistakes_give_five_reports_at_their_lines() {
    assert_eq!(
        reports(FIVE, sample),
        [
            "2:10 `format` must be one of `text` or `json`, not `\"jsno\"` (did you mean \"json\"?)",
            "4:8 `listen.grpc` must be an address with a port, not `\"localhost:7400\"` (write numbers, such as \"127.0.0.1:7400\" or \"[::1]:7400\"; names are not looked up)",
            "6:1 unknown key `data.dri` (did you mean `dir`?)",
            "8:7 `retention.age` must be a duration, not `7` (write it with its unit in quotes, such as \"20s\")",
            "14:8 `platforms[1].code` must be an integer from 100000 to 999999, not `34` (-)",
        ]
    );
}

#[test]
fn the_report_shows_file_line_caret_and_help_of_each_mistake() {
    let errors = load(FIVE, sample).expect_err("five");
    let report = errors.render(Look::Plain);
    for place in ["2:10", "4:8", "6:1", "8:7", "14:8"] {
        assert!(
            report.contains(&format!("[sample.toml:{place}]")),
            "{report}"
        );
    }
    let carets = report
        .lines()
        .filter(|line| line.trim_end().ends_with('^'))
        .count();
    assert_eq!(carets, 5, "{report}");
    assert!(report.contains("help: did you mean `dir`?"), "{report}");
    assert!(
        report.trim_end().ends_with("5 errors in sample.toml"),
        "{report}"
    );
    assert!(!report.contains('\u{1b}'), "no colours: {report}");
    assert!(errors.render(Look::Colour).contains('\u{1b}'));
    assert!(!errors.render(Look::Unicode).contains('\u{1b}'));
}

#[test]
fn missing_keys_are_reported_with_where_to_add_them() {
    assert_eq!(
        reports("[data]\n[[platforms]]\ncode = 340000\n", sample),
        [
            "1:1 `data.dir` is missing (add `dir = ...` to `data`)",
            "1:1 `format` is missing (add `format = ...` at the top of the file, before the first [table])",
            "2:1 `platforms[0].name` is missing (add `name = ...` to `platforms[0]`)",
            "3:14 `listen.grpc` is missing (add `grpc = ...` under [listen])",
        ]
    );
}

#[test]
fn an_empty_file_misses_what_is_required_and_still_renders() {
    let errors = load("", sample).expect_err("empty");
    assert_eq!(errors.count(), 3);
    assert!(errors.render(Look::Plain).contains("`data.dir` is missing"));
}

#[test]
fn unknown_keys_and_tables_are_reported_with_what_is_known() {
    let text = format!("{GOOD}population = 6100\n[retentoin]\nage = \"1d\"\n[extra]\n");
    assert_eq!(
        reports(&text.replace("[retention]\nage = \"7d\"\n", ""), sample),
        [
            "13:1 unknown key `platforms[1].population` (known here: `code` and `name`)",
            "14:2 unknown table `retentoin` (did you mean `retention`?)",
            "16:2 unknown table `extra` (known here: `format`, `listen`, `data`, `retention` and `platforms`)",
        ]
    );
}

#[test]
fn a_key_that_is_read_later_does_not_hide_a_missing_one_that_looks_like_it() {
    fn both(doc: &Document) -> Option<(String, Option<String>)> {
        let mut root = doc.root();
        let required = root.required("data_dir");
        let other = root.optional("data_dirs");
        Some((required?, other))
    }
    let found = reports("data_dirs = \"x\"\n", both);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("`data_dir` is missing"), "{found:?}");
}

#[test]
fn what_is_not_toml_is_one_report_at_its_place() {
    let text = GOOD.replace("age = \"7d\"", "age = 7d\"");
    let found = reports(&text, sample);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("8:"), "{found:?}");
    assert!(found[0].contains("this is not TOML"), "{found:?}");
}

#[test]
fn every_line_that_is_not_toml_is_reported_and_nothing_else() {
    let text = "format = json\n[listen\ngrpc = \"127.0.0.1:1\"\nx = = 1\n";
    let found = reports(text, sample);
    let lines: Vec<_> = found.iter().map(|r| &r[..2]).collect();
    assert_eq!(lines, ["1:", "2:", "4:"], "{found:#?}");
}

#[test]
fn a_key_given_twice_is_reported_beside_other_mistakes() {
    let text = GOOD.replace("age = \"7d\"", "age = \"7d\"\nage = \"8d\"\nbytes = 3");
    let found = reports(&text, sample);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("duplicate key"), "{found:?}");
    assert!(found[0].starts_with("9:1 "), "{found:?}");
    assert!(
        found[1].starts_with("10:9 `retention.bytes` must be a size from 1MiB"),
        "{found:?}"
    );
}

#[test]
fn columns_count_characters_and_a_mark_at_the_start_counts_none() {
    let text = "\u{feff}\"安徽\" = { code = true }\n";
    fn one(doc: &Document) -> Option<u32> {
        doc.root().table("安徽").required("code")
    }
    assert!(
        reports(text, one)[0].starts_with("1:17 "),
        "{:?}",
        reports(text, one)
    );
}

#[test]
fn every_wrong_item_of_a_list_is_reported() {
    fn ports(doc: &Document) -> Option<Vec<u32>> {
        let ports = read::list(read::integer(1..=65_535), 1..=3);
        doc.root().required_as("ports", ports)
    }
    let found = reports("ports = [\n  1,\n  0,\n  \"2\",\n]\n", ports);
    assert_eq!(
        found,
        [
            "3:3 `ports[1]` must be an integer from 1 to 65535, not `0` (-)",
            "4:3 `ports[2]` must be an integer from 1 to 65535, not `\"2\"` (write it without quotes)",
        ]
    );
    assert_eq!(
        reports("ports = []", ports),
        ["1:9 `ports` has 0 items (write 1 to 3)"]
    );
    assert_eq!(load("ports = [1, 2]", ports).expect("good"), [1, 2]);
}

#[test]
fn free_tables_keep_the_order_of_the_file_and_report_each_wrong_value() {
    fn words(doc: &Document) -> Option<Vec<(String, Scalar)>> {
        let read_scalar = <Scalar as hutong_config::Read>::read;
        doc.root().required_as("words", read::map(read_scalar))
    }
    let text = "words = { \"绿码\" = \"green\", \"00\" = 0, 0 = true }";
    let expected = [
        ("绿码".to_owned(), Scalar::Text("green".into())),
        ("00".to_owned(), Scalar::Integer(0)),
        ("0".to_owned(), Scalar::Boolean(true)),
    ];
    assert_eq!(load(text, words).expect("good"), expected);
    let found = reports("[words]\na = 1.5\nb = \"x\"\nc = []\n", words);
    let lines: Vec<_> = found.iter().map(|r| &r[..2]).collect();
    assert_eq!(lines, ["2:", "4:"], "{found:?}");
}

#[test]
fn named_tables_come_in_the_order_of_the_file() {
    fn sources(doc: &Document) -> Option<Vec<(String, String)>> {
        let mut root = doc.root();
        let sources = root.named_tables("sources").into_iter();
        let sources: Vec<_> = sources
            .map(|(name, mut table)| Some((name, table.required("kind")?)))
            .collect();
        sources.into_iter().collect()
    }
    let read = load(
        "[sources.z]\nkind = \"folder\"\n[sources.a]\nkind = \"outbox\"\n",
        sources,
    );
    let expected = [("z", "folder"), ("a", "outbox")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(read.expect("good"), expected);
    let found = reports(
        "[sources]\nz = 1\n[sources.a]\nkidn = \"outbox\"\n",
        sources,
    );
    assert_eq!(
        found,
        [
            "2:5 `sources.z` must be a table, not `1` (write [sources.z])",
            "4:1 unknown key `sources.a.kidn` (did you mean `kind`?)",
        ]
    );
}

#[test]
fn a_table_in_place_of_a_value_and_the_other_way_round_are_reported() {
    let text = GOOD.replace("[retention]\nage", "[retention.age]\nx");
    let found = reports(&text, sample);
    assert!(
        found[0].contains("`retention.age` must be a duration, not a table"),
        "{found:?}"
    );
    let text = GOOD.replace("[listen]\ngrpc", "listen");
    let found = reports(&text, sample);
    assert!(found[0].contains("`listen` must be a table"), "{found:?}");
    let text = GOOD.replace("[[platforms]]\ncode = 340000\nname = \"安徽\"\n", "");
    let found = reports(&text.replace("[[platforms]]", "[platforms]"), sample);
    assert!(
        found[0].contains("`platforms` must be a list of tables"),
        "{found:?}"
    );
}

#[test]
fn huge_numbers_deep_nesting_and_thousands_of_mistakes_stay_bounded() {
    fn n(doc: &Document) -> Option<i64> {
        doc.root().required("n")
    }
    let digits = "9".repeat(100);
    let found = reports(&format!("n = {digits}"), n);
    assert!(found[0].contains("must be an integer"), "{found:?}");
    let deep = format!("n = {}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(load(&deep, n).is_err());
    let many: String = (0..5_000).map(|i| format!("key{i} = 1\n")).collect();
    let errors = load(&format!("n = 1\n{many}"), n).expect_err("unknown keys");
    assert_eq!(errors.count(), 5_000);
    assert_eq!(errors.iter().count(), 100);
    assert!(errors.to_string().contains("the first 100 are shown"));
}

#[test]
fn checks_over_several_values_point_at_one_of_them() {
    fn range(doc: &Document) -> Option<(u32, u32)> {
        let mut root = doc.root();
        let (low, high) = (root.required("low")?, root.required("high")?);
        if low > high {
            root.fail("high", "`high` is below `low`", "raise it");
        }
        Some((low, high))
    }
    assert_eq!(
        reports("low = 3\nhigh = 2\n", range),
        ["2:8 `high` is below `low` (raise it)"]
    );
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let dir = std::env::temp_dir().join(format!("hutong-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("temp dir");
    let missing = Document::load(&dir.join("missing.toml")).expect_err("missing");
    assert!(missing.to_string().contains("no such file"), "{missing}");
    assert!(missing.render(Look::Plain).contains("missing.toml"));
    let gbk = dir.join("gbk.toml");
    std::fs::write(&gbk, b"name = \"\xb0\xb2\xbb\xd5\"\n").expect("write");
    let gbk = Document::load(&gbk).expect_err("not UTF-8");
    assert!(
        gbk.to_string().contains("byte 8 is not valid UTF-8"),
        "{gbk}"
    );
    assert!(Document::load(&dir).is_err(), "a folder is no file");
    std::fs::remove_dir_all(&dir).expect("clean up");
}
