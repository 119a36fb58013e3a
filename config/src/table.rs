//! Reading a table key by key.

use crate::{
    Document, Read, Value,
    suggest::{list_of, nearest},
    tree::{Data, Entry, Tree},
};
use std::ops::Range;

/// A table of a file, or the place where it would be: a table that is absent reads as an empty one,
/// so that defaults apply and required keys are reported.
///
/// Keys that nobody asked for are reported when it is dropped.
#[derive(Debug)]
pub struct Table<'d> {
    doc: &'d Document,
    path: String,
    span: Range<usize>,
    tree: Option<&'d Tree>,
    known: Vec<String>,
    /// Required keys that are absent; reported at the end, when it is clear what else is unknown.
    missing: Vec<String>,
}

impl<'d> Table<'d> {
    pub(crate) fn new(
        doc: &'d Document,
        path: String,
        span: Range<usize>,
        tree: Option<&'d Tree>,
    ) -> Table<'d> {
        Table {
            doc,
            path,
            span,
            tree,
            known: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// The dotted path of this table; empty for the whole file.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Does the file have this table at all?
    pub fn is_present(&self) -> bool {
        self.tree.is_some()
    }

    /// Does the table have this key? Asking does not make the key known.
    pub fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// A key that must be there. `None` after a report: missing, or not a `T`.
    pub fn required<T: Read>(&mut self, key: &str) -> Option<T> {
        self.required_as(key, T::read)
    }

    /// A key that may be there. `None` when it is absent, and after a report; the difference does not
    /// matter, as a document with a report has no result.
    pub fn optional<T: Read>(&mut self, key: &str) -> Option<T> {
        self.optional_as(key, T::read)
    }

    /// A key with a default. After a report it is the default as well.
    pub fn with_default<T: Read>(&mut self, key: &str, default: T) -> T {
        self.with_default_as(key, default, T::read)
    }

    /// [`Table::required`] with a reader.
    pub fn required_as<T>(
        &mut self,
        key: &str,
        reader: impl FnOnce(&Value<'d>) -> Option<T>,
    ) -> Option<T> {
        match self.value(key) {
            Some(value) => reader(&value),
            None => {
                self.missing.push(key.to_owned());
                None
            }
        }
    }

    /// [`Table::optional`] with a reader.
    pub fn optional_as<T>(
        &mut self,
        key: &str,
        reader: impl FnOnce(&Value<'d>) -> Option<T>,
    ) -> Option<T> {
        reader(&self.value(key)?)
    }

    /// [`Table::with_default`] with a reader.
    pub fn with_default_as<T>(
        &mut self,
        key: &str,
        default: T,
        reader: impl FnOnce(&Value<'d>) -> Option<T>,
    ) -> T {
        self.optional_as(key, reader).unwrap_or(default)
    }

    /// The value as it is. The key is known from now on.
    pub fn value(&mut self, key: &str) -> Option<Value<'d>> {
        self.know(key);
        let node = &self.entry(key)?.node;
        Some(Value::new(self.doc, self.path_of(key), node))
    }

    /// The table under a key; an absent one reads as empty.
    pub fn table(&mut self, key: &str) -> Table<'d> {
        let path = self.path_of(key);
        match self.optional_table(key) {
            Some(table) => table,
            None => Table::new(self.doc, path, self.doc.end(), None),
        }
    }

    /// The table under a key, if there is one.
    pub fn optional_table(&mut self, key: &str) -> Option<Table<'d>> {
        let value = self.value(key)?;
        match value.as_table() {
            Some(table) => Some(table),
            None => value.fail_expected(
                "a table",
                format!("write [{}] on a line of its own", value.key()),
            ),
        }
    }

    /// The tables of a list written as `[[key]]`, in order; none when the key is absent.
    pub fn list_of_tables(&mut self, key: &str) -> Vec<Table<'d>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let help = || format!("write [[{}]] before each of them", value.key());
        let Some(items) = value.as_list() else {
            let expected = "a list of tables";
            return value.fail_expected(expected, help()).unwrap_or_default();
        };
        let tables = items.iter().filter_map(|item| match item.as_table() {
            Some(table) => Some(table),
            None => item.fail_expected("a table", help()),
        });
        tables.collect()
    }

    /// The tables under this key by name, in the order of the file: `[sources.a]`, `[sources.b]`.
    pub fn named_tables(&mut self, key: &str) -> Vec<(String, Table<'d>)> {
        let mut parent = self.table(key);
        let tables = parent.entries().into_iter();
        let tables = tables.filter_map(|(name, value)| match value.as_table() {
            Some(table) => Some((name, table)),
            None => value.fail_expected("a table", format!("write [{}]", value.key())),
        });
        tables.collect()
    }

    /// Every entry that was not asked for yet, in the order of the file: for tables whose keys are
    /// free. They are all known from now on.
    pub fn entries(&mut self) -> Vec<(String, Value<'d>)> {
        let Some(tree) = self.tree else {
            return Vec::new();
        };
        let mut entries = Vec::new();
        for entry in tree.entries() {
            if !self.known.contains(&entry.key) {
                self.know(&entry.key);
                let value = Value::new(self.doc, self.path_of(&entry.key), &entry.node);
                entries.push((entry.key.clone(), value));
            }
        }
        entries
    }

    /// Reports a mistake at the value of a key, or at the table if the key is absent: for checks that
    /// need more than one value.
    pub fn fail(&self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        let span = match self.entry(key) {
            Some(entry) => entry.node.span.clone(),
            None => self.span.clone(),
        };
        let help = Some(help.into()).filter(|help| !help.is_empty());
        self.doc.report(span, &self.path_of(key), message, help);
    }

    /// Says that everything was asked for. The same as dropping it.
    pub fn finish(self) {}

    fn report_unknown(&mut self) {
        let unknown = self.tree.into_iter().flat_map(|tree| {
            let entries = tree.entries().iter();
            entries.filter(|entry| !self.known.contains(&entry.key))
        });
        for entry in unknown {
            let absent = self.known.iter().filter(|key| !self.has(key));
            let help = match nearest(&entry.key, absent.map(String::as_str)) {
                Some(word) => {
                    // A required key under a wrong name is one mistake, not two.
                    self.missing.retain(|key| key != word);
                    format!("did you mean `{word}`?")
                }
                None => self.known_here(),
            };
            let what = match entry.node.data {
                Data::Table(_) => "table",
                _ => "key",
            };
            let path = self.path_of(&entry.key);
            let message = format!("unknown {what} `{path}`");
            self.doc
                .report(entry.key_span.clone(), &path, message, Some(help));
        }
    }

    fn report_missing(&self) {
        for key in &self.missing {
            let path = self.path_of(key);
            let place = match self.path.as_str() {
                "" => "at the top of the file, before the first [table]".to_owned(),
                table if self.is_present() => format!("to `{table}`"),
                table => format!("under [{table}]"),
            };
            let message = format!("`{path}` is missing");
            let help = Some(format!("add `{key} = ...` {place}"));
            self.doc.report(self.span.clone(), &path, message, help);
        }
    }

    fn known_here(&self) -> String {
        let known: Vec<&str> = self.known.iter().map(String::as_str).collect();
        match known.as_slice() {
            [] => "nothing is expected here".to_owned(),
            known => format!("known here: {}", list_of(known, "and")),
        }
    }

    fn entry(&self, key: &str) -> Option<&'d Entry> {
        self.tree?.get(key)
    }

    fn know(&mut self, key: &str) {
        if !self.known.iter().any(|known| known == key) {
            self.known.push(key.to_owned());
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        self.report_unknown();
        self.report_missing();
    }
}
