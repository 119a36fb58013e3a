//! A day of the calendar in a file: the last on which it may be taken.

use hutong_config::Value;
use hutong_proto::Micros;
use std::fmt;

/// A day of the calendar, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Day {
    pub year: u16,
    pub month: u8,
    pub day: u8,
}

impl Day {
    /// `2026-12-31`; nothing for what is no day.
    fn parse(text: &str) -> Option<Day> {
        let mut parts = text.split('-');
        let mut part = |digits: usize| {
            let part = parts.next()?;
            let fits = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit());
            fits.then(|| part.parse::<u16>().ok())?
        };
        let (year, month, day) = (part(4)?, part(2)?, part(2)?);
        if parts.next().is_some() || year < 1970 || !(1..=12).contains(&month) {
            return None;
        }
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            2 => 28 + u16::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        (1..=days).contains(&day).then_some(Day {
            year,
            month: month as u8,
            day: day as u8,
        })
    }

    /// The first moment after it. "chrono-Compatible Low-Level Date Algorithms" by Howard Hinnant.
    pub fn end(self) -> Micros {
        let (month, day) = (u64::from(self.month), u64::from(self.day));
        let year = u64::from(self.year) - u64::from(month <= 2);
        let of_era = year % 400;
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let days = year / 400 * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
        Micros((days - 719_468 + 1) * 86_400_000_000)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// `valid_until`.
pub(super) fn read(value: &Value<'_>) -> Option<Day> {
    value.as_str().and_then(Day::parse).or_else(|| {
        value.fail_expected(
            "a day, as text",
            "write the last day on which this file may be taken, such as \"2026-12-31\"",
        )
    })
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    const SMALLEST: &str = "identity = \"trial\"\n[data]\ndir = \"d\"\n[[platforms]]\ncode = 340000\nname = \"Anhui\"\n";

    #[test]
    fn a_day_is_one_of_the_calendar_and_ends_at_midnight() {
        let with = |day: &str| format!("valid_until = {day}\n{SMALLEST}");
        for (text, end) in [
            ("1970-01-01", 86_400),
            ("2024-02-29", 1_709_251_200),
            ("2026-12-31", 1_798_761_600),
        ] {
            let config = Config::parse("broker.toml", &with(&format!("\"{text}\""))).expect(text);
            let day = config.valid_until.expect(text);
            assert_eq!(
                (day.end().0, day.to_string()),
                (end * 1_000_000, text.to_owned())
            );
        }
        for wrong in [
            "2025-02-29",
            "2026-13-01",
            "26-12-31",
            "2026-1-1",
            "2026-01-01-01",
        ] {
            refused(&with(&format!("\"{wrong}\"")));
        }
        refused(&with("2026"));
    }

    #[track_caller]
    fn refused(text: &str) {
        let errors = Config::parse("broker.toml", text).expect_err(text);
        let first = errors.iter().next().expect("one");
        assert_eq!((errors.count(), first.line), (1, 1), "{first}");
        assert!(first.to_string().contains("a day"), "{first}");
    }
}
