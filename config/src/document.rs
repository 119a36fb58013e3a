//! A file being read, and the mistakes found in it so far.

use crate::{ConfigError, ConfigErrors, Table, tree::Tree};
use miette::NamedSource;
use std::{cell::RefCell, fs, io, io::Read as _, ops::Range, path::Path, sync::Arc};
use toml::de::DeTable;

/// A configuration file is written by hand; more than this is something else.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Reports kept of one file; beyond, mistakes are only counted.
const ERRORS_MAX: usize = 100;

/// A parsed file.
#[derive(Debug)]
pub struct Document {
    name: String,
    source: Arc<NamedSource<Arc<str>>>,
    root: Tree,
    /// The text is not TOML: what could be read of it says nothing about missing or unknown keys.
    broken: bool,
    found: RefCell<Found>,
}

#[derive(Debug, Default)]
struct Found {
    errors: Vec<ConfigError>,
    more: usize,
}

impl Document {
    /// Reads and parses a file. Fails only when there is no text; mistakes in the text come out of
    /// [`Document::finish`].
    pub fn load(path: &Path) -> Result<Document, ConfigErrors> {
        let name = path.display().to_string();
        let unreadable = |message: String, help: &str| {
            ConfigErrors::unreadable(&name, format!("cannot read {name}: {message}"), help)
        };
        let bytes = read_file(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => unreadable("no such file".into(), "check the path"),
            io::ErrorKind::PermissionDenied => {
                unreadable("permission denied".into(), "check its owner and mode")
            }
            _ => unreadable(e.to_string(), "check the path"),
        })?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            unreadable(
                format!("byte {at} is not valid UTF-8"),
                "save the file as UTF-8; a file in GBK needs converting, for instance with iconv",
            )
        })?;
        Ok(Document::parse(name, text))
    }

    /// Parses a text. `name` stands in the reports.
    pub fn parse(name: impl Into<String>, text: impl Into<String>) -> Document {
        let name = name.into();
        // A byte order mark is no mistake of the person who wrote the file.
        let text: String = text.into();
        let text: Arc<str> = text.strip_prefix('\u{feff}').unwrap_or(&text).into();
        let (root, mistakes) = DeTable::parse_recoverable(&text);
        let root = Tree::from_toml(root.get_ref());
        let source = Arc::new(NamedSource::new(&name, Arc::clone(&text)));
        let broken = mistakes.iter().any(|e| !is_duplicate(e));
        let mut doc = Document {
            name,
            source,
            root,
            broken: false,
            found: RefCell::default(),
        };
        doc.report_syntax(&mistakes);
        doc.broken = broken;
        doc
    }

    /// One report a line: what follows a mistake on the same line follows from it.
    fn report_syntax(&self, mistakes: &[toml::de::Error]) {
        let mut lines = Vec::new();
        for mistake in mistakes {
            let span = mistake.span().unwrap_or(0..0);
            let line = self.text()[..span.start.min(self.text().len())]
                .matches('\n')
                .count();
            if lines.contains(&line) {
                continue;
            }
            lines.push(line);
            let message = lower_first(mistake.message());
            let (message, help) = if is_duplicate(mistake) {
                (message, "a key or table may stand only once; remove one")
            } else {
                (
                    format!("this is not TOML: {message}"),
                    "texts stand in quotes, tables in [brackets], lists of tables in [[two]]",
                )
            };
            self.report(span, "", message, Some(help.to_owned()));
        }
    }

    /// The table that the file is. Read each part of a file once: what one reader did not ask for
    /// is an unknown key, whatever another reader asked for.
    pub fn root(&self) -> Table<'_> {
        Table::new(self, String::new(), 0..0, Some(&self.root))
    }

    /// As given to [`Document::parse`].
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn text(&self) -> &str {
        self.source.inner()
    }

    /// Where a table would be added: the end of the last line that has something.
    pub(crate) fn end(&self) -> Range<usize> {
        let end = self.text().trim_end().len();
        end..end
    }

    /// Adds a mistake at a place of the text. [`Table::fail`] and [`crate::Value::fail`] know the
    /// place by themselves.
    pub fn report(
        &self,
        span: Range<usize>,
        key: &str,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        if self.broken {
            return;
        }
        let mut found = self.found.borrow_mut();
        if found.errors.len() == ERRORS_MAX {
            found.more += 1;
            return;
        }
        let error = ConfigError::new(&self.source, span, key, message.into(), help);
        found.errors.push(error);
    }

    /// The value if the file had no mistake, otherwise all of them. `None` says that a required part
    /// was missing, which was reported where it was asked for.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, ConfigErrors> {
        if let Some(value) = value
            && self.found.borrow().errors.is_empty()
        {
            return Ok(value);
        }
        if self.found.borrow().errors.is_empty() {
            self.report(0..0, "", "the file cannot be used", None);
        }
        let found = self.found.into_inner();
        Err(ConfigErrors::new(&self.name, found.errors, found.more))
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "larger than {FILE_BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}

fn is_duplicate(mistake: &toml::de::Error) -> bool {
    mistake.message().starts_with("duplicate key")
}

fn lower_first(message: &str) -> String {
    let mut chars = message.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}
