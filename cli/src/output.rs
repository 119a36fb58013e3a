//! What goes to the screen: tables for people, JSON for programs, colour only where it is welcome.

use crate::errors::CliError;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::{
    env,
    io::{self, IsTerminal, Write},
};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns for people; their layout may change.
    #[default]
    Table,
    /// JSON with stable names: an array for lists, an object for one thing, a line each for streams.
    Json,
}

/// Where text goes, and whether it may carry colour.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    stderr: bool,
    colour: bool,
}

impl Screen {
    pub fn stdout() -> Screen {
        Screen {
            stderr: false,
            colour: colour_welcome(io::stdout().is_terminal()),
        }
    }

    /// For text beside a machine-readable standard output.
    pub fn stderr() -> Screen {
        Screen {
            stderr: true,
            colour: colour_welcome(io::stderr().is_terminal()),
        }
    }

    /// Prints one line, or several that are joined by newlines.
    pub fn line(&self, text: impl AsRef<str>) -> Result<(), CliError> {
        let text = text.as_ref();
        let written = if self.stderr {
            writeln!(io::stderr().lock(), "{text}")
        } else {
            let mut out = io::stdout().lock();
            writeln!(out, "{text}").and_then(|()| out.flush())
        };
        written.map_err(CliError::Output)
    }

    pub fn blank(&self) -> Result<(), CliError> {
        self.line("")
    }

    pub fn heading(&self, text: &str) -> Result<(), CliError> {
        self.blank()?;
        self.line(self.bold(text))
    }

    /// A paragraph, wrapped and indented like the tables.
    pub fn paragraph(&self, text: &str) -> Result<(), CliError> {
        self.line(wrap(text, PARAGRAPH_COLUMNS, INDENT))
    }

    pub fn grid(&self, grid: &Grid) -> Result<(), CliError> {
        let text = grid.render();
        match text.split_once('\n') {
            Some((header, rows)) => {
                self.line(self.bold(header))?;
                self.line(rows)
            }
            None => self.line(text),
        }
    }

    pub fn bold(&self, text: &str) -> String {
        self.painted("1", text)
    }

    pub fn good(&self, text: &str) -> String {
        self.painted("32", text)
    }

    pub fn bad(&self, text: &str) -> String {
        self.painted("1;31", text)
    }

    pub fn dim(&self, text: &str) -> String {
        self.painted("2", text)
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Colour is welcome on a terminal that has it, unless NO_COLOR says otherwise.
fn colour_welcome(terminal: bool) -> bool {
    let no_color = env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = env::var_os("TERM").is_none_or(|t| t == "dumb");
    terminal && !no_color && !dumb
}

/// Prints a value as one line of JSON on standard output.
pub fn json_line<T: Serialize>(value: &T) -> Result<(), CliError> {
    let text = serde_json::to_string(value).expect("shapes have string keys only");
    Screen::stdout().line(text)
}

/// How far long work is: `verb`, a bar, and `counts` of what indicatif knows. On standard error, and only
/// when that is a terminal.
pub fn progress_bar(verb: &str, length: u64, counts: &str) -> ProgressBar {
    let template = format!("{verb} {{bar:30}} {{percent:>3}} %  {counts}  {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("the template is valid");
    ProgressBar::new(length).with_style(style)
}

const INDENT: &str = "  ";
const PARAGRAPH_COLUMNS: usize = 88;

/// Rows under headers. A header that begins with `>` makes its column right-aligned, for numbers.
#[derive(Clone, Debug)]
pub struct Grid {
    headers: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    pub fn new(headers: &[&'static str]) -> Grid {
        Grid {
            headers: headers.to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        assert_eq!(cells.len(), self.headers.len(), "a cell for each header");
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The header, then the rows; no borders, so that the text can be cut and sorted.
    pub fn render(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(self.headers.iter().map(|h| h.trim_start_matches('>')));
        table.add_rows(self.rows.iter().map(|r| r.iter().map(String::as_str)));
        for (column, header) in table.column_iter_mut().zip(&self.headers) {
            column.set_padding((0, 2));
            if header.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let lines: Vec<String> = table
            .lines()
            .map(|line| format!("{INDENT}{}", line.trim_end()))
            .collect();
        lines.join("\n")
    }
}

/// Breaks text at spaces so that no line is longer than `columns`, unless a word is.
pub fn wrap(text: &str, columns: usize, indent: &str) -> String {
    let mut lines = vec![indent.to_owned()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("one line at least");
        let used = line.chars().count();
        if used > indent.len() && used + 1 + word.chars().count() > columns {
            lines.push(format!("{indent}{word}"));
        } else {
            if used > indent.len() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.join("\n")
}

/// 1234567 as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in the unit that a person would say.
pub fn bytes_text(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{n} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Seconds in the unit that a person would say.
pub fn seconds_text(seconds: f64) -> String {
    match seconds {
        s if s <= 0.0 => "0".to_owned(),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_also_under_chinese_names() {
        let mut grid = Grid::new(&["platform", ">ms"]);
        grid.row(["安徽", "1.5"]);
        grid.row(["Inner Mongolia", "12.0"]);
        let text = grid.render();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "  platform          ms");
        assert_eq!(lines[1], "  安徽             1.5");
        assert_eq!(lines[2], "  Inner Mongolia  12.0");
    }

    #[test]
    fn long_text_is_broken_between_words() {
        let text = wrap("one two three four", 10, "  ");
        assert_eq!(text, "  one two\n  three\n  four");
        assert!(text.lines().all(|l| l.chars().count() <= 10));
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(bytes_text(512), "512 B");
        assert_eq!(bytes_text(3 << 20), "3.0 MiB");
        assert_eq!(seconds_text(0.25), "250 ms");
        assert_eq!(seconds_text(30.0), "30.0 s");
        assert_eq!(seconds_text(39_600.0), "11.0 h");
    }
}
