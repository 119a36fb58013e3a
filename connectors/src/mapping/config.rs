//! `[mapping]` and `[provenance]` of a connector's file.

use super::{
    EntityRule, Expiry, FieldPath, ProvenanceRule, Rule, TimeRule, ValueRule, When, Word, Words,
    fields::Origin,
    times::{FORMATS, TimeReader},
};
use hutong_config::{ConfigErrors, Document, Read, Scalar, Table, Value, read};
use hutong_proto::{
    Kind,
    delta::{Colour, RiskLevel, TestOutcome},
    limits,
};
use std::{collections::HashMap, time::Duration};

/// All of the mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingSettings {
    pub rules: Vec<Rule>,
    pub defaults: ProvenanceDefaults,
}

/// Of every row that does not say it itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProvenanceDefaults {
    pub authority: Option<String>,
    pub rule_id: Option<String>,
    pub rule_version: Option<u32>,
    pub reason: Option<String>,
}

/// More kinds of rows than one source has.
const RULES_MAX: usize = 64;

/// A code that is valid for ten years is one that never expires.
const EXPIRY_MAX: Duration = Duration::from_secs(3650 * 86_400);

impl MappingSettings {
    /// Of a text that has nothing else, for connectors that are not started from a file.
    pub fn parse(name: &str, text: &str) -> Result<MappingSettings, ConfigErrors> {
        let doc = Document::parse(name, text);
        let settings = MappingSettings::read(&mut doc.root());
        doc.finish(settings)
    }

    /// Reads `[mapping]`, or each `[[mapping]]`, and `[provenance]`.
    pub fn read(root: &mut Table<'_>) -> Option<MappingSettings> {
        let mut provenance = root.table("provenance");
        let defaults = ProvenanceDefaults::read(&mut provenance);
        provenance.finish();
        let rules = root.required_as("mapping", |value| rules(value, &defaults));
        Some(MappingSettings {
            rules: rules?,
            defaults,
        })
    }

    /// Does any rule take ID numbers?
    pub fn takes_id_numbers(&self) -> bool {
        let takes = |rule: &Rule| matches!(rule.entity, EntityRule::IdNumber(_));
        self.rules.iter().any(takes)
    }
}

impl ProvenanceDefaults {
    fn read(table: &mut Table<'_>) -> ProvenanceDefaults {
        ProvenanceDefaults {
            authority: table.optional_as("authority", read::text(1..=limits::AUTHORITY_BYTES_MAX)),
            rule_id: table.optional_as("rule_id", read::text(1..=limits::RULE_ID_BYTES_MAX)),
            rule_version: table.optional_as("rule_version", read::integer(1..=u32::MAX)),
            reason: table.optional_as("reason", read::text(1..=limits::REASON_BYTES_MAX)),
        }
    }
}

fn rules(value: &Value<'_>, defaults: &ProvenanceDefaults) -> Option<Vec<Rule>> {
    if let Some(mut table) = value.as_table() {
        return Some(vec![rule(&mut table, defaults)?]);
    }
    let Some(items) = value.as_list() else {
        return value.fail_expected("a table", "write [mapping], or [[mapping]] for each kind");
    };
    if items.is_empty() || items.len() > RULES_MAX {
        return value.fail(
            "there must be 1 to 64 mappings",
            "write [[mapping]] for each",
        );
    }
    let mut rules = Vec::new();
    let mut open = None;
    for (i, item) in items.iter().enumerate() {
        let Some(mut table) = item.as_table() else {
            let wrong: Option<()> = item.fail_expected("a table", "write [[mapping]]");
            rules.push(wrong.and(None));
            continue;
        };
        if let Some(before) = open {
            table.fail(
                "when",
                format!("mapping {before} takes every row, so this one gets none"),
                "add `when = { field = \"...\", is = \"...\" }` to it",
            );
        }
        open = open.or((!table.has("when")).then_some(i + 1));
        rules.push(rule(&mut table, defaults));
    }
    rules.into_iter().collect()
}

fn rule(table: &mut Table<'_>, defaults: &ProvenanceDefaults) -> Option<Rule> {
    let kinds = Kind::ALL.map(|kind| (kind.name(), kind));
    let kind = table.required_as("kind", read::one_of(&kinds));
    let when = table.optional_table("when").map(|mut t| when(&mut t));
    let entity = entity(&mut table.table("entity"));
    if let (Some(kind), Some(entity)) = (kind, &entity) {
        let is_area = matches!(entity, EntityRule::Area(_));
        if is_area != (kind == Kind::AreaRisk) {
            table.fail(
                "entity",
                format!("{kind} is not about such an entity"),
                "area_risk is about an `area`, every other kind about a person: `id_number` or `pseudonym`",
            );
        }
    }
    let value = kind.and_then(|kind| value_rule(table, kind));
    let committed_at = table.optional_table("committed_at");
    let committed_at = committed_at.map(|mut t| time(&mut t));
    let expires = table.optional_table("expires");
    let expires = expires.map_or(Some(Expiry::Never), |mut t| expiry(&mut t));
    let evidence = table.optional_as(
        "evidence",
        origin(read::text(0..=limits::EVIDENCE_BYTES_MAX)),
    );
    let provenance = provenance(&mut table.table("provenance"), defaults);
    Some(Rule {
        when: transpose(when)?,
        entity: entity?,
        value: value?,
        committed_at: transpose(committed_at)?,
        expires: expires?,
        evidence,
        provenance,
    })
}

/// `Some(None)`: it is absent, and may be.
#[expect(clippy::option_option, reason = "absent and wrong are two things")]
fn transpose<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        None => Some(None),
        Some(read) => read.map(Some),
    }
}

fn field(value: &Value<'_>) -> Option<FieldPath> {
    let text = String::read(value)?;
    match text.parse() {
        Ok(path) => Some(path),
        Err(help) => value.fail(format!("`{}` names no field", value.key()), help),
    }
}

fn when(table: &mut Table<'_>) -> Option<When> {
    let field = table.required_as("field", field);
    let values = table.required_as("is", |value| {
        let one = || Scalar::read(value).map(|one| vec![one]);
        let many = |_| read::list(Scalar::read, 1..=1000)(value);
        value.as_list().map_or_else(one, many)
    });
    Some(When {
        field: field?,
        values: values?,
    })
}

fn entity(table: &mut Table<'_>) -> Option<EntityRule> {
    let given: Vec<&str> = ["id_number", "pseudonym", "area"]
        .into_iter()
        .filter(|key| table.has(key))
        .collect();
    let id_number = table.optional_as("id_number", field);
    let pseudonym = table.optional_as("pseudonym", field);
    let area = table.optional_as("area", |value| match value.as_list() {
        Some(_) => read::list(field, 1..=limits::PATH_PARTS_MAX)(value),
        None => field(value).map(|one| vec![one]),
    });
    if given.len() != 1 {
        let wrong = format!(
            "`{}` must have one of id_number, pseudonym, area",
            table.path()
        );
        let help =
            "write `entity = { id_number = \"FIELD\" }`, or `entity = { area = [\"FIELD\", ...] }`";
        table.fail(given.get(1).copied().unwrap_or("id_number"), wrong, help);
        return None;
    }
    let id_number = id_number.map(EntityRule::IdNumber);
    let pseudonym = pseudonym.map(EntityRule::Pseudonym);
    id_number.or(pseudonym).or(area.map(EntityRule::Area))
}

fn value_rule(table: &mut Table<'_>, kind: Kind) -> Option<ValueRule> {
    Some(match kind {
        Kind::HealthCode => ValueRule::HealthCode {
            colour: word(table, "colour", Colour::ALL, Colour::name)?,
        },
        Kind::TestResult => {
            let outcome = word(table, "outcome", TestOutcome::ALL, TestOutcome::name);
            let sampled_at = required_time(table, "sampled_at");
            ValueRule::TestResult {
                outcome: outcome?,
                sampled_at: sampled_at?,
            }
        }
        Kind::Vaccination => {
            let doses = table.required_as("doses", origin(read::integer(1..=limits::DOSES_MAX)));
            let product = read::text(0..=limits::PRODUCT_BYTES_MAX);
            let product = table.optional_as("product", origin(product));
            let vaccinated_at = required_time(table, "vaccinated_at");
            ValueRule::Vaccination {
                doses: doses?,
                product,
                vaccinated_at: vaccinated_at?,
            }
        }
        Kind::AreaRisk => ValueRule::AreaRisk {
            level: word(table, "level", RiskLevel::ALL, RiskLevel::name)?,
        },
    })
}

/// A text names a field; a table has `field` or `constant`.
fn origin<T>(
    constant: impl Fn(&Value<'_>) -> Option<T>,
) -> impl Fn(&Value<'_>) -> Option<Origin<T>> {
    move |value| {
        if value.as_str().is_some() {
            return field(value).map(Origin::Field);
        }
        let Some(mut table) = value.as_table() else {
            let help = "write \"FIELD\", or { constant = ... }";
            return value.fail_expected("the name of a field, or a constant", help);
        };
        if table.has("constant") {
            return table
                .required_as("constant", &constant)
                .map(Origin::Constant);
        }
        table.required_as("field", field).map(Origin::Field)
    }
}

fn word<T: Copy + PartialEq>(
    parent: &mut Table<'_>,
    key: &str,
    vocabulary: &[T],
    name: fn(T) -> &'static str,
) -> Option<Word<T>> {
    let named: Vec<(&str, T)> = vocabulary.iter().map(|word| (name(*word), *word)).collect();
    let mut table = parent.table(key);
    if table.has("constant") {
        return table
            .required_as("constant", read::one_of(&named))
            .map(Word::Constant);
    }
    let field = table.required_as("field", field);
    let mut words = HashMap::new();
    let (texts, mut complete) = entries(&mut table, "texts", &named, |key| {
        Some(Scalar::Text(key.trim().to_owned()))
    });
    words.extend(texts);
    for (key, scalar) in [
        ("numbers", number_key as fn(&str) -> Option<Scalar>),
        ("booleans", boolean_key),
    ] {
        let (read, all) = entries(&mut table, key, &named, scalar);
        words.extend(read);
        complete &= all;
    }
    if table.with_default("canonical", false) {
        for (text, word) in &named {
            let before = words.insert(Scalar::Text((*text).to_owned()), *word);
            if before.is_some_and(|before| before != *word) {
                let wrong = format!("`texts` gives \"{text}\" another meaning than `canonical`");
                table.fail(
                    "canonical",
                    wrong,
                    "remove `canonical`, and write all texts down",
                );
            }
        }
    }
    if words.is_empty() && complete {
        let message = format!("`{}` maps nothing", table.path());
        let help = "add texts = { \"00\" = \"...\" }, numbers = { 0 = \"...\" }, or canonical = true if the source has the canonical words";
        table.fail("texts", message, help);
        return None;
    }
    complete.then_some(())?;
    Some(Word::Mapped {
        field: field?,
        words: Words(words),
    })
}

fn number_key(key: &str) -> Option<Scalar> {
    // Zero-padded keys would be texts written in the wrong table.
    let number: i128 = key.parse().ok()?;
    (number.to_string() == key).then_some(Scalar::Integer(number))
}

fn boolean_key(key: &str) -> Option<Scalar> {
    key.parse().ok().map(Scalar::Boolean)
}

/// The entries of one table of words, and whether all of them could be read.
fn entries<T: Copy>(
    parent: &mut Table<'_>,
    key: &str,
    named: &[(&str, T)],
    scalar: impl Fn(&str) -> Option<Scalar>,
) -> (Vec<(Scalar, T)>, bool) {
    let Some(mut table) = parent.optional_table(key) else {
        return (Vec::new(), true);
    };
    let mut all = true;
    let mut read = Vec::new();
    for (key, value) in table.entries() {
        let from = scalar(&key).or_else(|| {
            let message = format!("`{key}` cannot stand in `{}`", table.path());
            value.fail(message, "integers stand in `numbers`, true and false in `booleans`, everything else, \"00\" too, in `texts`")
        });
        match (from, read::one_of(named)(&value)) {
            (Some(from), Some(word)) => read.push((from, word)),
            _ => all = false,
        }
    }
    (read, all)
}

fn required_time(parent: &mut Table<'_>, key: &str) -> Option<TimeRule> {
    if !parent.has(key) {
        // Reports that it is missing.
        return parent.required_as(key, |_| None);
    }
    time(&mut parent.table(key))
}

fn time(table: &mut Table<'_>) -> Option<TimeRule> {
    let field = table.required_as("field", field);
    let format = table.required::<String>("format");
    let zone = table.optional::<String>("zone");
    let reader = TimeReader::new(&format?, zone.as_deref());
    match reader {
        Ok(reader) => Some(TimeRule {
            field: field?,
            reader,
        }),
        Err(help) => {
            let about_zone = help.contains("zone");
            let key = if about_zone && table.has("zone") {
                "zone"
            } else {
                "format"
            };
            let help = if help.contains('`') || about_zone || help == FORMATS {
                help
            } else {
                format!("{help}; {FORMATS}")
            };
            table.fail(
                key,
                format!("`{}.{key}` cannot be used", table.path()),
                help,
            );
            None
        }
    }
}

fn expiry(table: &mut Table<'_>) -> Option<Expiry> {
    if table.has("after") {
        let after = read::duration(Duration::from_secs(1)..=EXPIRY_MAX);
        return table.required_as("after", after).map(Expiry::After);
    }
    if !table.has("field") {
        let message = format!("`{}` must have `after` or `field`", table.path());
        table.fail(
            "after",
            message,
            "write { after = \"14d\" }, or field, format and zone",
        );
        return None;
    }
    let or_never = table.with_default("or_never", false);
    let time = time(table)?;
    Some(Expiry::At { time, or_never })
}

fn provenance(table: &mut Table<'_>, defaults: &ProvenanceDefaults) -> ProvenanceRule {
    let rule = ProvenanceRule {
        authority: table.optional_as("authority", field),
        rule_id: table.optional_as("rule_id", field),
        rule_version: table.optional_as("rule_version", field),
        reason: table.optional_as("reason", field),
    };
    let said = [
        ("authority", defaults.authority.is_some()),
        ("rule_id", defaults.rule_id.is_some()),
        ("rule_version", defaults.rule_version.is_some()),
        ("reason", defaults.reason.is_some()),
    ];
    for (key, by_default) in said {
        if !by_default && !table.has(key) {
            let message = format!("nothing says the {key} of a decision");
            let help = format!(
                "add `{key} = ...` under [provenance] for all rows, or `{key} = \"FIELD\"` under [mapping.provenance]"
            );
            table.fail(key, message, help);
        }
    }
    rule
}
