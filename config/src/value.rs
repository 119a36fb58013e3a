//! One value of a file.

use crate::{
    Document, Table,
    tree::{Data, Node},
};
use std::ops::Range;

/// A value, with the place it stands at. What a reader (see [`crate::read`]) gets.
#[derive(Clone, Debug)]
pub struct Value<'d> {
    doc: &'d Document,
    key: String,
    node: &'d Node,
}

impl<'d> Value<'d> {
    pub(crate) fn new(doc: &'d Document, key: String, node: &'d Node) -> Value<'d> {
        Value { doc, key, node }
    }

    /// The dotted path, such as `platforms[2].code`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The place in the text, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.node.span.clone()
    }

    /// As it stands in the file; of a table, its head.
    pub fn source(&self) -> &'d str {
        self.doc.text().get(self.span()).unwrap_or_default()
    }

    /// What it is, for messages: "a text", "an integer"...
    pub fn what(&self) -> &'static str {
        match self.node.data {
            Data::Text(_) => "a text",
            Data::Integer(_) => "an integer",
            Data::Float(_) => "a number with a fraction",
            Data::Boolean(_) => "a boolean",
            Data::Datetime(_) => "a date or time",
            Data::List(_) => "a list",
            Data::Table(_) => "a table",
        }
    }

    pub fn as_str(&self) -> Option<&'d str> {
        match &self.node.data {
            Data::Text(text) => Some(text),
            _ => None,
        }
    }

    /// `None` as well when it has more digits than an `i128` holds.
    pub fn as_integer(&self) -> Option<i128> {
        match self.node.data {
            Data::Integer(n) => n,
            _ => None,
        }
    }

    /// Integers are numbers too.
    pub fn as_number(&self) -> Option<f64> {
        match self.node.data {
            Data::Float(n) => Some(n),
            Data::Integer(n) => n.map(|n| n as f64),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self.node.data {
            Data::Boolean(b) => Some(b),
            _ => None,
        }
    }

    /// As RFC 3339 or a part of it.
    pub fn as_datetime(&self) -> Option<&'d str> {
        match &self.node.data {
            Data::Datetime(time) => Some(time),
            _ => None,
        }
    }

    /// The items of a list.
    pub fn as_list(&self) -> Option<Vec<Value<'d>>> {
        let Data::List(items) = &self.node.data else {
            return None;
        };
        let items = items.iter().enumerate();
        Some(
            items
                .map(|(i, node)| Value::new(self.doc, format!("{}[{i}]", self.key), node))
                .collect(),
        )
    }

    /// A reader of the table. Its keys must all be asked for.
    pub fn as_table(&self) -> Option<Table<'d>> {
        match &self.node.data {
            Data::Table(tree) => Some(Table::new(
                self.doc,
                self.key.clone(),
                self.span(),
                Some(tree),
            )),
            _ => None,
        }
    }

    /// Reports a mistake at this value. Always `None`, to be what a reader returns.
    pub fn fail<T>(&self, message: impl Into<String>, help: impl Into<String>) -> Option<T> {
        let help = Some(help.into()).filter(|help| !help.is_empty());
        self.doc.report(self.span(), &self.key, message, help);
        None
    }

    /// Reports that it is something else than wanted: `expected` such as "a duration", and `help` how
    /// to write one.
    pub fn fail_expected<T>(&self, expected: &str, help: impl Into<String>) -> Option<T> {
        let given = match self.node.data {
            Data::Text(_) | Data::Integer(_) | Data::Float(_) | Data::Boolean(_)
                if self.source().len() <= 40 =>
            {
                format!("`{}`", self.source())
            }
            _ => self.what().to_owned(),
        };
        let message = format!("`{}` must be {expected}, not {given}", self.key);
        self.fail(message, help)
    }
}
