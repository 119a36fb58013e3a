//! Finding fields in a row, and reading texts and numbers from them.

use super::{Refused, times::shown};
use serde_json::{Map, Value};
use std::{fmt, str::FromStr};

/// The way to a field: names with dots between; a number is a position in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath {
    parts: Vec<String>,
}

impl FromStr for FieldPath {
    type Err = String;

    fn from_str(text: &str) -> Result<FieldPath, String> {
        let parts: Vec<String> = text.split('.').map(str::to_owned).collect();
        if parts.iter().any(String::is_empty) {
            return Err("write names with dots between, such as \"data.colour\"".to_owned());
        }
        Ok(FieldPath { parts })
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts.join("."))
    }
}

impl FieldPath {
    /// `None` when it is absent or null.
    pub fn find<'a>(&self, fields: &'a Map<String, Value>) -> Option<&'a Value> {
        let (first, rest) = self.parts.split_first()?;
        let found = rest
            .iter()
            .try_fold(fields.get(first)?, |value, part| match value {
                Value::Object(map) => map.get(part),
                Value::Array(items) => items.get(part.parse::<usize>().ok()?),
                _ => None,
            })?;
        (!found.is_null()).then_some(found)
    }

    pub fn require<'a>(&self, fields: &'a Map<String, Value>) -> Result<&'a Value, Refused> {
        self.find(fields).ok_or_else(|| Refused {
            reason: "FIELD_MISSING",
            field: self.to_string(),
            message: format!("the row has no field `{self}`, or it is null"),
        })
    }

    pub(super) fn invalid(&self, message: impl Into<String>) -> Refused {
        Refused {
            reason: "VALUE_INVALID",
            field: self.to_string(),
            message: message.into(),
        }
    }

    /// A text; an integer counts as its digits.
    pub fn text(&self, value: &Value) -> Result<String, Refused> {
        match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(n) if n.is_u64() || n.is_i64() => Ok(n.to_string()),
            _ => Err(self.invalid(format!("{} is no text", shown(value)))),
        }
    }

    /// A whole number; digits in a text count.
    pub fn number(&self, value: &Value) -> Result<u32, Refused> {
        let number = match value {
            Value::Number(n) => n.as_u64().and_then(|n| u32::try_from(n).ok()),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| {
            let value = shown(value);
            self.invalid(format!("{value} is no whole number below {}", u32::MAX))
        })
    }
}

/// Where something comes from: a field of the row, or the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin<T> {
    Field(FieldPath),
    Constant(T),
}

impl Origin<String> {
    pub fn text(&self, fields: &Map<String, Value>) -> Result<String, Refused> {
        match self {
            Origin::Field(path) => path.text(path.require(fields)?),
            Origin::Constant(text) => Ok(text.clone()),
        }
    }

    /// Empty when the field is absent.
    pub fn text_or_empty(&self, fields: &Map<String, Value>) -> Result<String, Refused> {
        match self {
            Origin::Field(path) => path
                .find(fields)
                .map_or(Ok(String::new()), |value| path.text(value)),
            Origin::Constant(text) => Ok(text.clone()),
        }
    }
}

impl Origin<u32> {
    pub fn number(&self, fields: &Map<String, Value>) -> Result<u32, Refused> {
        match self {
            Origin::Field(path) => path.number(path.require(fields)?),
            Origin::Constant(n) => Ok(*n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn dots_go_into_tables_and_lists() {
        let row = fields(json!({"a": {"b": [{"c": 1}, {"c": 2}]}, "n": null, "t": "x"}));
        let check = |path: &str, expected: Option<Value>| {
            let path: FieldPath = path.parse().expect("a path");
            assert_eq!(path.find(&row).cloned(), expected, "{path}");
        };
        check("t", Some(json!("x")));
        check("a.b.1.c", Some(json!(2)));
        check("a.b.2.c", None);
        check("a.b.c", None);
        check("t.x", None);
        check("n", None);
        for wrong in ["", ".", "a.", "a..b"] {
            assert!(wrong.parse::<FieldPath>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn texts_and_numbers_are_not_guessed() {
        let path: FieldPath = "f".parse().expect("a path");
        assert_eq!(path.text(&json!(12)), Ok("12".to_owned()));
        assert_eq!(path.number(&json!("3")), Ok(3));
        for wrong in [json!(true), json!(1.5), json!([]), json!({})] {
            let refused = path.text(&wrong).expect_err("refused");
            assert_eq!(refused.reason, "VALUE_INVALID");
        }
        for wrong in [
            json!(-1),
            json!(1.5),
            json!("three"),
            json!(4_294_967_296_u64),
        ] {
            path.number(&wrong).expect_err("refused");
        }
    }
}
