//! From a configuration file and raw rows to deltas: the vocabularies of real systems, and everything
//! that must be refused.

use hutong_connectors::{
    config::{Config, Work},
    mapping::{Mapped, Mapper, Refused},
    pseudonym::{Algorithm, Pseudonymiser},
    source::SourceRow,
};
use hutong_proto::{
    Kind, Lane, Micros, Revision, Value, area,
    delta::{Colour, RiskLevel, TestOutcome},
};
use serde_json::{Map, json};

const HEAD: &str = r#"
name = "anhui"
identity = "platform/340000"
broker.address = "http://127.0.0.1:7400"
state.dir = "state"
source = { type = "snapshot-folder", dir = "in", format = "risk-levels" }
pseudonym = { key_file = "key", epoch = 1 }
provenance = { authority = "省指挥部", rule_id = "r1", rule_version = 2, reason = "默认" }
"#;

const COMMITTED: Micros = Micros(1_661_950_800_000_000);

fn mapper(mapping: &str) -> Mapper {
    let config = Config::parse("c.toml", &format!("{HEAD}{mapping}"));
    let config = config.unwrap_or_else(|e| panic!("{e}"));
    let Work::Source(work) = config.work else {
        panic!("a source was configured");
    };
    let pseudonyms = Pseudonymiser::new(Algorithm::HmacSm3, &[7; 32], 1);
    Mapper::new(work.mapping, Some(pseudonyms))
}

fn row(fields: serde_json::Value) -> SourceRow {
    let fields: Map<_, _> = serde_json::from_value(fields).expect("an object");
    SourceRow {
        fields,
        place: "table outbox, id 17".to_owned(),
        revision: Revision(17),
        committed_at: COMMITTED,
    }
}

fn map(mapper: &mut Mapper, fields: serde_json::Value) -> Result<Mapped, Refused> {
    mapper.map(&row(fields))
}

const CODES: &str = r#"
[mapping]
kind = "health_code"
entity = { id_number = "holder.zjhm" }
colour = { field = "data.colour", texts = { "00" = "green", "绿码" = "green", "red" = "red" }, numbers = { 0 = "red", 1 = "yellow" }, booleans = { true = "yellow" } }
committed_at = { field = "at", format = "%Y-%m-%d %H时", zone = "Asia/Shanghai" }
expires = { after = "14d" }
evidence = "evidence"
provenance = { rule_id = "rule", reason = "why" }
"#;

#[test]
fn a_colour_is_mapped_with_all_that_belongs_to_it() {
    let mut mapper = mapper(CODES);
    let fields = json!({
        "holder": {"zjhm": "11010519491231002x"},
        "data": {"colour": "绿码"}, "at": "2022-08-31 20时",
        "evidence": 991, "rule": "ah-7", "why": "核酸阴性",
    });
    let mapped = map(&mut mapper, fields).expect("mapped");
    let delta = mapped.delta;
    assert_eq!(delta.value, Value::HealthCode(Colour::Green));
    assert_eq!(delta.revision, Revision(17));
    assert_eq!(delta.committed_at.0, COMMITTED.0 - 3_600_000_000);
    assert_eq!(
        delta.expires_at.0,
        delta.committed_at.0 + 14 * 86_400_000_000
    );
    assert_eq!(delta.evidence, "991");
    assert_eq!(delta.provenance.authority, "省指挥部");
    assert_eq!(delta.provenance.rule_id, "ah-7");
    assert_eq!(delta.provenance.rule_version, 2);
    assert_eq!(delta.provenance.reason, "核酸阴性");
    let holder = Pseudonymiser::new(Algorithm::HmacSm3, &[7; 32], 1).person("11010519491231002X");
    assert_eq!(Ok(delta.entity), holder);
    assert!(mapped.bytes > 45 && mapped.bytes < 60, "{}", mapped.bytes);
}

#[test]
fn every_spelling_of_a_colour_is_its_own_value() {
    let mut mapper = mapper(CODES);
    let mut read = |colour: serde_json::Value| {
        let fields =
            json!({"holder": {"zjhm": "1"}, "data": {"colour": colour}, "at": "2022-08-31 20时"});
        map(&mut mapper, fields).map(|m| m.delta.value)
    };
    let is = |colour| Ok(Value::HealthCode(colour));
    assert_eq!(read(json!("00")), is(Colour::Green));
    assert_eq!(read(json!(0)), is(Colour::Red));
    assert_eq!(read(json!(1)), is(Colour::Yellow));
    assert_eq!(read(json!(true)), is(Colour::Yellow));
    for unmapped in [
        json!("0"),
        json!(2),
        json!("GREEN"),
        json!(false),
        json!(""),
        json!("01"),
    ] {
        let refused = read(unmapped).expect_err("unmapped");
        assert_eq!(refused.reason, "VALUE_UNMAPPED");
        assert_eq!(refused.field, "data.colour");
    }
}

#[test]
fn what_is_wrong_with_a_row_is_said_with_reason_and_field() {
    let mut mapper = mapper(CODES);
    let mut check = |change: fn(&mut serde_json::Value), reason: &str, field: &str| {
        let mut fields = json!({"holder": {"zjhm": "11010519491231002X"}, "data": {"colour": "00"}, "at": "2022-08-31 20时"});
        change(&mut fields);
        let refused = map(&mut mapper, fields).expect_err(reason);
        assert_eq!((refused.reason, refused.field.as_str()), (reason, field));
        assert!(!refused.message.contains("1949"), "{}", refused.message);
    };
    check(
        |f| f["holder"] = json!(null),
        "FIELD_MISSING",
        "holder.zjhm",
    );
    check(
        |f| f["holder"]["zjhm"] = json!("1949 1"),
        "ID_NUMBER_INVALID",
        "holder.zjhm",
    );
    check(
        |f| f["holder"]["zjhm"] = json!(11_010_519_491_231_u64),
        "ID_NUMBER_INVALID",
        "holder.zjhm",
    );
    check(
        |f| f["holder"]["zjhm"] = json!(" "),
        "ID_NUMBER_INVALID",
        "holder.zjhm",
    );
    check(|f| f["data"] = json!({}), "FIELD_MISSING", "data.colour");
    check(|f| f["at"] = json!("2022-08-31"), "TIME_INVALID", "at");
    check(|f| f["at"] = json!("2008-08-31 20时"), "TIME_INVALID", "at");
    check(
        |f| f["evidence"] = json!(["a"]),
        "VALUE_INVALID",
        "evidence",
    );
    check(|f| f["why"] = json!({}), "VALUE_INVALID", "why");
    // What only the wire forbids is found here already, by the wire's own check.
    check(
        |f| f["evidence"] = json!("x".repeat(129)),
        "STRING_TOO_LONG",
        "evidence",
    );
    check(
        |f| f["why"] = json!("x".repeat(257)),
        "STRING_TOO_LONG",
        "provenance.reason",
    );
    check(
        |f| f["rule"] = json!(""),
        "FIELD_MISSING",
        "provenance.rule_id",
    );
}

const RESULTS: &str = r#"
[[mapping]]
kind = "test_result"
when = { field = "type", is = ["hsjc", 7] }
entity = { pseudonym = "person" }
outcome = { field = "result", texts = { "阴性" = "negative", "阳性" = "positive" }, canonical = true }
sampled_at = { field = "sampled", format = "unix-ms" }
expires = { field = "until", format = "rfc3339", or_never = true }

[[mapping]]
kind = "vaccination"
entity = { pseudonym = "person" }
doses = "doses"
product = { constant = "vero" }
vaccinated_at = { field = "day", format = "%Y%m%d", zone = "+08:00" }
"#;

#[test]
fn each_row_goes_to_the_first_mapping_that_is_meant_for_it() {
    let mut mapper = mapper(RESULTS);
    let person = "00112233445566778899aabbccddeeff";
    let fields = json!({"type": "hsjc", "person": person, "result": "阳性", "sampled": 1_661_950_800_000_u64,
        "until": "2022-09-07T21:00:00+08:00"});
    let positive = map(&mut mapper, fields).expect("mapped").delta;
    assert_eq!(positive.entity.to_string(), person);
    assert_eq!(positive.value.lane(), Lane::Urgent);
    assert_eq!(
        positive.value,
        Value::TestResult {
            outcome: TestOutcome::Positive,
            sampled_at: COMMITTED
        }
    );
    assert_eq!(positive.expires_at.0, COMMITTED.0 + 7 * 86_400_000_000);

    let fields =
        json!({"type": 7, "person": person, "result": "negative", "sampled": "1661950800000"});
    let negative = map(&mut mapper, fields).expect("mapped").delta;
    assert_eq!(negative.value.lane(), Lane::Bulk);
    assert_eq!(negative.expires_at, Micros::ZERO);

    let fields = json!({"type": "7", "person": person, "doses": "3", "day": "20220831"});
    let vaccinated = map(&mut mapper, fields).expect("mapped").delta;
    assert_eq!(vaccinated.value.kind(), Kind::Vaccination);

    let refused = map(
        &mut mapper,
        json!({"person": person, "doses": 21, "day": "20220831"}),
    );
    let refused = refused.expect_err("too many doses");
    assert_eq!(
        (refused.reason, refused.field.as_str()),
        ("VALUE_OUT_OF_RANGE", "vaccination.doses")
    );
    let refused = map(
        &mut mapper,
        json!({"person": "abc", "doses": 2, "day": "20220831"}),
    );
    assert_eq!(refused.expect_err("no pseudonym").reason, "VALUE_INVALID");

    let early = json!({"type": "hsjc", "person": person, "result": "阴性", "sampled": 1_661_950_800_000_u64,
        "until": "2022-08-01T00:00:00Z"});
    let refused = map(&mut mapper, early).expect_err("expired before it was committed");
    assert_eq!(refused.reason, "EXPIRY_BEFORE_COMMIT");
}

#[test]
fn a_row_that_no_mapping_is_meant_for_is_refused() {
    let mut mapper = mapper(&RESULTS.replace(
        "kind = \"vaccination\"",
        "kind = \"vaccination\"\nwhen = { field = \"type\", is = \"ymjz\" }",
    ));
    for fields in [json!({"type": "other"}), json!({}), json!({"type": null})] {
        assert_eq!(
            map(&mut mapper, fields).expect_err("refused").reason,
            "KIND_UNMAPPED"
        );
    }
}

#[test]
fn an_area_is_the_hash_of_its_path() {
    let mapping = r#"
[mapping]
kind = "area_risk"
entity = { area = ["province", "rest"] }
level = { field = "level", texts = { "高风险" = "high" }, canonical = true }
"#;
    let mut mapper = mapper(mapping);
    let path = ["安徽省", "宿州市", "泗县", "草沟镇"];
    let fields = json!({"province": path[0], "rest": path[1..], "level": "高风险"});
    let delta = map(&mut mapper, fields).expect("mapped").delta;
    assert_eq!(delta.entity, area::entity(path));
    let path = path.map(str::to_owned).to_vec();
    let level = RiskLevel::High;
    assert_eq!(delta.value, Value::AreaRisk { level, path });
    assert_eq!(delta.committed_at, COMMITTED);

    for (rest, reason) in [
        (json!(["a", 1]), "VALUE_INVALID"),
        (json!(1), "VALUE_INVALID"),
        (json!(["a", ""]), "PATH_INVALID"),
        (json!(["a", "b\nc"]), "PATH_INVALID"),
        (json!(["1", "2", "3", "4", "5", "6"]), "PATH_INVALID"),
    ] {
        let fields = json!({"province": "安徽省", "rest": rest, "level": "cleared"});
        assert_eq!(map(&mut mapper, fields).expect_err(reason).reason, reason);
    }
}

#[test]
fn provenance_that_nobody_says_is_refused() {
    let head = HEAD.replace("reason = \"默认\"", "").replace(", }", " }");
    let text = format!("{head}{CODES}");
    let config = Config::parse("c.toml", &text).unwrap_or_else(|e| panic!("{e}"));
    let Work::Source(work) = config.work else {
        panic!("a source was configured");
    };
    let pseudonyms = Pseudonymiser::new(Algorithm::HmacSm3, &[7; 32], 1);
    let mut mapper = Mapper::new(work.mapping, Some(pseudonyms));
    let fields = json!({"holder": {"zjhm": "1"}, "data": {"colour": 0}, "at": "2022-08-31 20时"});
    let refused = map(&mut mapper, fields).expect_err("no reason");
    assert_eq!(
        (refused.reason, refused.field.as_str()),
        ("FIELD_MISSING", "why")
    );
}

/// Line and key of each mistake.
fn mistakes(text: &str) -> Vec<(usize, String)> {
    let errors = Config::parse("c.toml", text).expect_err("mistakes");
    errors.iter().map(|e| (e.line, e.key.clone())).collect()
}

#[test]
fn every_mistake_of_a_mapping_is_reported_at_once() {
    let text = r#"name = "Anhui"
identity = "operator/me"
broker.address = "127.0.0.1:7400"
state.dir = "state"
source = { type = "snapshot-folder", dir = "in", format = "risk-levels" }
[mapping]
kind = "health_code"
entity = { id_number = "a..b" }
[mapping.colour]
field = "c"
texts = { "00" = "grun" }
numbers = { 00 = "green", x = "green" }
[mapping.committed_at]
field = "t"
format = "%Y-%m-%d"
[mapping.expires]
after = "0s"
[provenance]
authority = "a"
rule_id = "r"
rule_version = 1
raeson = "r"
"#;
    let found = mistakes(text);
    let keys: Vec<&str> = found.iter().map(|(_, key)| key.as_str()).collect();
    let expected = [
        (1, "name"),
        (2, "identity"),
        (3, "broker.address"),
        (8, "mapping.entity.id_number"),
        (11, "mapping.colour.texts.00"),
        (12, "mapping.colour.numbers.00"),
        (12, "mapping.colour.numbers.x"),
        (15, "mapping.committed_at.format"),
        (17, "mapping.expires.after"),
        (22, "provenance.raeson"),
    ];
    for (line, key) in expected {
        assert!(
            found.iter().any(|(l, k)| *l == line && k == key),
            "{line} {key} is not among {found:?}"
        );
    }
    assert!(keys.contains(&"mapping.provenance.reason"), "{keys:?}");
    assert_eq!(found.len(), expected.len() + 1, "{found:?}");
}

#[test]
fn what_cannot_work_together_is_a_mistake() {
    let check = |mapping: &str, expected: &str| {
        let text = format!(
            "{}{mapping}",
            HEAD.replace("pseudonym = { key_file = \"key\", epoch = 1 }", "")
        );
        let errors = Config::parse("c.toml", &text)
            .expect_err(expected)
            .to_string();
        assert!(errors.contains(expected), "{errors}");
    };
    check(CODES, "no key to make a pseudonym");
    check(
        "[mapping]\nkind = \"area_risk\"\nentity = { pseudonym = \"p\" }\nlevel = { constant = \"low\" }\n",
        "area_risk is not about such an entity",
    );
    check(
        "[mapping]\nkind = \"health_code\"\nentity = { area = \"p\", pseudonym = \"p\" }\ncolour = { constant = \"red\" }\n",
        "one of id_number, pseudonym, area",
    );
    check(
        "[mapping]\nkind = \"health_code\"\nentity = { pseudonym = \"p\" }\ncolour = { field = \"c\" }\n",
        "maps nothing",
    );
    check(
        "[mapping]\nkind = \"health_code\"\nentity = { pseudonym = \"p\" }\ncolour = { field = \"c\", canonical = true, texts = { red = \"green\" } }\n",
        "another meaning",
    );
    check(
        "[[mapping]]\nkind = \"health_code\"\nentity = { pseudonym = \"p\" }\ncolour = { constant = \"red\" }\n[[mapping]]\nkind = \"health_code\"\nentity = { pseudonym = \"p\" }\ncolour = { constant = \"red\" }\n",
        "mapping 1 takes every row",
    );
    check("", "`mapping` is missing");
    check(
        "[mapping]\nkind = \"test_result\"\nentity = { pseudonym = \"p\" }\noutcome = { constant = \"negative\" }\n",
        "`mapping.sampled_at` is missing",
    );
}

#[test]
fn the_examples_are_right() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).expect("a name");
        if name.starts_with("connect-") {
            Config::load(&path).unwrap_or_else(|e| panic!("{e}"));
            count += 1;
        }
    }
    assert_eq!(count, 4);
}
