//! What goes to standard output.

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{self, Write};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people; their layout may change.
    #[default]
    Table,
    /// JSON with stable names.
    Json,
}

pub fn line(text: impl AsRef<str>) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", text.as_ref())
}

pub fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// How many are done of all. On standard error, and only when that is a terminal.
pub fn progress_bar(verb: &str, count: u64) -> ProgressBar {
    let template = format!("{verb} {{bar:30}} {{percent:>3}} %  {{pos}} of {{len}}  {{eta}} left");
    let style = ProgressStyle::with_template(&template).expect("the template is valid");
    ProgressBar::new(count).with_style(style)
}

/// Columns without lines around them.
pub fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head);
    for row in rows {
        table.add_row(row);
    }
    for text in table.lines() {
        line(text.trim_end())?;
    }
    Ok(())
}

/// `2022-08-31T13:00:05Z` of microseconds since 1970; a hyphen for 0.
pub fn time(at_us: u64) -> String {
    if at_us == 0 {
        return "-".to_owned();
    }
    let seconds = at_us / 1_000_000;
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| {
        (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
        if year > 9999 {
            return format!("{at_us} us");
        }
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!(
        "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        days + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(time(0), "-");
        assert_eq!(time(1_661_950_805_999_999), "2022-08-31T13:00:05Z");
        assert_eq!(time(1_582_934_400_000_000), "2020-02-29T00:00:00Z");
        assert_eq!(time(1_609_459_199_000_000), "2020-12-31T23:59:59Z");
        assert_eq!(time(4_102_444_800_000_000), "2100-01-01T00:00:00Z");
        assert!(time(u64::MAX).ends_with(" us"));
    }
}
