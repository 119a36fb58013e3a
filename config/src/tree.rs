//! What was parsed, with the place of everything, in the order of the file.

use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// The entries of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: String,
    pub key_span: Range<usize>,
    pub node: Node,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub span: Range<usize>,
    pub data: Data,
}

#[derive(Clone, Debug)]
pub(crate) enum Data {
    Text(String),
    /// `None` when it has more digits than anything can hold.
    Integer(Option<i128>),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    List(Vec<Node>),
    Table(Tree),
}

impl Tree {
    pub fn from_toml(table: &DeTable<'_>) -> Tree {
        let mut entries: Vec<Entry> = table
            .iter()
            .map(|(key, value)| Entry {
                key: key.get_ref().to_string(),
                key_span: key.span(),
                node: Node::from_toml(value.span(), value.get_ref()),
            })
            .collect();
        entries.sort_by_key(|entry| entry.key_span.start);
        Tree { entries }
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl Node {
    // The parser bounds how deep values nest.
    fn from_toml(span: Range<usize>, value: &DeValue<'_>) -> Node {
        let data = match value {
            DeValue::String(text) => Data::Text(text.to_string()),
            DeValue::Integer(n) => Data::Integer(i128::from_str_radix(n.as_str(), n.radix()).ok()),
            // A float that the parser took and that does not parse is none that a reader accepts.
            DeValue::Float(n) => Data::Float(n.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(b) => Data::Boolean(*b),
            DeValue::Datetime(time) => Data::Datetime(time.to_string()),
            DeValue::Array(items) => Data::List(
                items
                    .iter()
                    .map(|item| Node::from_toml(item.span(), item.get_ref()))
                    .collect(),
            ),
            DeValue::Table(table) => Data::Table(Tree::from_toml(table)),
        };
        Node { span, data }
    }
}
