//! Enumerations: what a source writes, and the canonical word it stands for.

use super::{FieldPath, Refused, times::shown};
use hutong_config::Scalar;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Where a word of the vocabulary comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word<T> {
    Constant(T),
    Mapped { field: FieldPath, words: Words<T> },
}

/// The table from a source's values to words. `0`, `"0"` and `"00"` are three values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words<T>(pub HashMap<Scalar, T>);

impl<T: Copy> Word<T> {
    pub fn read(&self, fields: &Map<String, Value>) -> Result<T, Refused> {
        match self {
            Word::Constant(word) => Ok(*word),
            Word::Mapped { field, words } => words.read(field, field.require(fields)?),
        }
    }
}

impl<T: Copy> Words<T> {
    fn read(&self, field: &FieldPath, value: &Value) -> Result<T, Refused> {
        let found = scalar(value).and_then(|value| self.0.get(&value));
        found.copied().ok_or_else(|| Refused {
            reason: "VALUE_UNMAPPED",
            field: field.to_string(),
            message: format!(
                "{} has no mapping; add it to {} of this field, if it is clear what it means",
                shown(value),
                table_for(value)
            ),
        })
    }
}

/// The table of the configuration that such a value would stand in.
fn table_for(value: &Value) -> &'static str {
    match value {
        Value::Number(_) => "`numbers`",
        Value::Bool(_) => "`booleans`",
        _ => "`texts`",
    }
}

/// White space around a text does not count, everything else does.
pub(super) fn scalar(value: &Value) -> Option<Scalar> {
    match value {
        Value::String(text) => Some(Scalar::Text(text.trim().to_owned())),
        Value::Bool(b) => Some(Scalar::Boolean(*b)),
        Value::Number(n) => {
            let integer = n.as_i64().map(i128::from);
            let integer = integer.or_else(|| n.as_u64().map(i128::from));
            integer.map(Scalar::Integer)
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::delta::Colour;
    use serde_json::json;

    #[test]
    fn numbers_and_texts_are_different_values_and_nothing_is_guessed() {
        let words = HashMap::from([
            (Scalar::Text("00".into()), Colour::Green),
            (Scalar::Text("绿码".into()), Colour::Green),
            (Scalar::Integer(0), Colour::Red),
            (Scalar::Boolean(true), Colour::Yellow),
        ]);
        let word = Word::Mapped {
            field: "c".parse().expect("a path"),
            words: Words(words),
        };
        let read = |value: Value| {
            let row = Map::from_iter([("c".to_owned(), value)]);
            word.read(&row)
        };
        assert_eq!(read(json!("00")), Ok(Colour::Green));
        assert_eq!(read(json!(" 绿码 ")), Ok(Colour::Green));
        assert_eq!(read(json!(0)), Ok(Colour::Red));
        assert_eq!(read(json!(true)), Ok(Colour::Yellow));
        for unmapped in [
            json!("0"),
            json!("绿"),
            json!("GREEN"),
            json!(1),
            json!(0.0),
            json!(false),
            json!(["00"]),
        ] {
            let refused = read(unmapped.clone()).expect_err("unmapped");
            assert_eq!(refused.reason, "VALUE_UNMAPPED", "{unmapped}");
            assert!(refused.message.contains(&unmapped.to_string()));
        }
        assert_eq!(read(Value::Null).expect_err("null").reason, "FIELD_MISSING");
    }
}
