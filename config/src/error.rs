//! What is wrong with a file, and how it is shown.

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode,
};
use std::{env, error::Error, fmt, io::IsTerminal, ops::Range, sync::Arc};

/// One mistake.
#[derive(Clone, Debug)]
pub struct ConfigError {
    /// The dotted path of the key, such as `platforms[2].code`; empty for the whole file.
    pub key: String,
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// From 1; 0 when there is no text to point at (the file could not be read).
    pub line: usize,
    /// In characters, from 1; 0 as above.
    pub column: usize,
    span: Range<usize>,
    source: Arc<NamedSource<Arc<str>>>,
}

impl ConfigError {
    pub(crate) fn new(
        source: &Arc<NamedSource<Arc<str>>>,
        span: Range<usize>,
        key: &str,
        message: String,
        help: Option<String>,
    ) -> ConfigError {
        let text: &str = source.inner();
        let start = floor_char_boundary(text, span.start);
        let end = floor_char_boundary(text, span.end).max(start);
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        ConfigError {
            key: key.to_owned(),
            message,
            help,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            // One line is enough to point at: an array over many lines would drown the report.
            span: start..first_line_end(text, start, end),
            source: Arc::clone(source),
        }
    }

    /// The place in the text, in bytes.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

fn first_line_end(text: &str, start: usize, end: usize) -> usize {
    let line = text[start..end].find('\n').map_or(end, |at| start + at);
    if line > start && text[..line].ends_with('\r') {
        line - 1
    } else {
        line
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ConfigError {}

impl Diagnostic for ConfigError {
    fn help(&self) -> Option<Box<dyn fmt::Display + '_>> {
        let help = self.help.as_ref()?;
        Some(Box::new(help))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        (self.line > 0).then_some(&*self.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        if self.line == 0 {
            return None;
        }
        let label = LabeledSpan::new_with_span(None, self.span.clone());
        Some(Box::new(std::iter::once(label)))
    }
}

/// Every mistake of a file, in the order of the file. Never empty.
#[derive(Clone, Debug)]
pub struct ConfigErrors {
    file: String,
    errors: Vec<ConfigError>,
    /// Mistakes beyond the bound, counted but not kept.
    more: usize,
}

impl ConfigErrors {
    pub(crate) fn new(file: &str, mut errors: Vec<ConfigError>, more: usize) -> ConfigErrors {
        errors.sort_by_key(|e| e.span.start);
        ConfigErrors {
            file: file.to_owned(),
            errors,
            more,
        }
    }

    /// A file that could not be read at all.
    pub(crate) fn unreadable(file: &str, message: String, help: &str) -> ConfigErrors {
        let source = Arc::new(NamedSource::new(file, Arc::from("")));
        let mut error = ConfigError::new(&source, 0..0, "", message, Some(help.to_owned()));
        error.line = 0;
        error.column = 0;
        ConfigErrors::new(file, vec![error], 0)
    }

    /// As it was given to [`crate::Document::parse`].
    pub fn file(&self) -> &str {
        &self.file
    }

    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.errors.iter()
    }

    /// How many mistakes there are.
    pub fn count(&self) -> usize {
        self.errors.len() + self.more
    }

    /// The report for people: each mistake with its line of the file, a caret and help.
    pub fn render(&self, look: Look) -> String {
        let handler = GraphicalReportHandler::new_themed(look.theme())
            .with_width(100)
            .with_context_lines(1)
            .with_links(false);
        let mut out = String::new();
        for error in &self.errors {
            if handler.render_report(&mut out, error).is_err() {
                // Formatting into a String fails only on a defect of ours: say it plainly then.
                out.push_str(&self.line_of(error));
            }
            out.push('\n');
        }
        out.push_str(&self.summary());
        out.push('\n');
        out
    }

    fn summary(&self) -> String {
        let kept = match self.more {
            0 => String::new(),
            _ => format!(", the first {} are shown", self.errors.len()),
        };
        let errors = if self.count() == 1 { "error" } else { "errors" };
        format!("{} {errors} in {}{kept}", self.count(), self.file)
    }

    fn line_of(&self, error: &ConfigError) -> String {
        let place = match error.line {
            0 => self.file.clone(),
            line => format!("{}:{line}:{}", self.file, error.column),
        };
        match &error.help {
            Some(help) => format!("{place}: {} ({help})", error.message),
            None => format!("{place}: {}", error.message),
        }
    }
}

/// One line a mistake, without drawing: for logs and for tests.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())?;
        for error in &self.errors {
            write!(f, "\n{}", self.line_of(error))?;
        }
        Ok(())
    }
}

impl Error for ConfigErrors {}

impl Diagnostic for ConfigErrors {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.errors.iter().map(|e| e as &dyn Diagnostic)))
    }
}

impl<'a> IntoIterator for &'a ConfigErrors {
    type Item = &'a ConfigError;
    type IntoIter = std::slice::Iter<'a, ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// How a report is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// ASCII: for files and pipes.
    Plain,
    /// Lines drawn with Unicode, no colours.
    Unicode,
    /// The same with colours.
    Colour,
}

impl Look {
    /// What standard error can show. `NO_COLOR` with any value but the empty one means no colours.
    pub fn of_stderr() -> Look {
        if !std::io::stderr().is_terminal() {
            Look::Plain
        } else if env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
            Look::Unicode
        } else {
            Look::Colour
        }
    }

    fn theme(self) -> GraphicalTheme {
        match self {
            Look::Plain => GraphicalTheme::none(),
            Look::Unicode => GraphicalTheme::unicode_nocolor(),
            Look::Colour => GraphicalTheme::unicode(),
        }
    }
}
