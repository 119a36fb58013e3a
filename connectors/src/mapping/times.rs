//! Times, as sources write them.

use hutong_proto::{Micros, limits};
use serde_json::Value;
use std::iter::Peekable;

const DAY_SECONDS: i64 = 86_400;

/// Days from 0001-01-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_162;

/// Reads the times of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeReader {
    format: Format,
    /// As configured, for messages.
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Format {
    /// A number of units, each so many microseconds, since the Unix epoch.
    Unix { unit_us: u64 },
    Pattern {
        items: Vec<Item>,
        /// Of times that do not say it themselves.
        zone_seconds: i64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Literal(char),
    /// A number of at most so many digits.
    Number(Part, usize),
    /// Digits after the decimal point.
    Fraction,
    /// The same with the point, or nothing.
    PointAndFraction,
    /// `Z`, `+08:00`, `+0800` or `+08`.
    Zone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
}

const RFC_3339: &str = "%Y-%m-%dT%H:%M:%S%.f%z";

/// How to write a format, for help.
pub const FORMATS: &str = "write \"unix-s\", \"unix-ms\", \"unix-us\", \"rfc3339\" or a pattern such as \"%Y-%m-%d %H:%M:%S\"";

/// Zones by name. China has kept one offset since 1991, and times before 2019 are refused anyway, so
/// that a name means its offset.
const ZONES: [(&str, i64); 4] = [
    ("Asia/Shanghai", 8 * 3600),
    ("Asia/Urumqi", 6 * 3600),
    ("UTC", 0),
    ("Z", 0),
];

impl TimeReader {
    /// The error says what to write instead.
    pub fn new(format: &str, zone: Option<&str>) -> Result<TimeReader, String> {
        let unix = |unit_us| match zone {
            None => Ok(Format::Unix { unit_us }),
            Some(_) => Err(format!("{format} has no zone; remove `zone`")),
        };
        let compiled = match format {
            "unix-s" => unix(1_000_000)?,
            "unix-ms" => unix(1_000)?,
            "unix-us" => unix(1)?,
            "rfc3339" => pattern(RFC_3339, zone)?,
            text if text.contains('%') => pattern(text, zone)?,
            _ => return Err(FORMATS.to_owned()),
        };
        Ok(TimeReader {
            format: compiled,
            text: format.to_owned(),
        })
    }

    /// The error says what is wrong with the value, without its field.
    pub fn read(&self, value: &Value) -> Result<Micros, String> {
        let us = match &self.format {
            Format::Unix { unit_us } => unix_number(value)
                .and_then(|n| n.checked_mul(*unit_us))
                .ok_or_else(|| format!("{} is no {} time", shown(value), self.text))?,
            Format::Pattern {
                items,
                zone_seconds,
            } => {
                let text = value.as_str().ok_or_else(|| {
                    let value = shown(value);
                    format!("{value} is no text, the format `{}` wants one", self.text)
                })?;
                read_pattern(items, *zone_seconds, text.trim()).map_err(|why| {
                    let value = shown(value);
                    format!("{value} does not fit the format `{}`: {why}", self.text)
                })?
            }
        };
        if !(limits::TIME_US_MIN..=limits::TIME_US_MAX).contains(&us) {
            let value = shown(value);
            return Err(format!(
                "{value} is before 2019 or after 2100; check the unit of the format `{}`",
                self.text
            ));
        }
        Ok(Micros(us))
    }
}

/// Reads an offset such as `+08:00` or a name; the error says what to write instead.
fn zone_offset(zone: &str) -> Result<i64, String> {
    if let Some((_, seconds)) = ZONES.iter().find(|(name, _)| *name == zone) {
        return Ok(*seconds);
    }
    let mut chars = zone.chars().peekable();
    match read_zone(&mut chars) {
        Some(seconds) if chars.next().is_none() => Ok(seconds),
        _ => Err(
            "write an offset such as \"+08:00\", or one of Asia/Shanghai, Asia/Urumqi, UTC"
                .to_owned(),
        ),
    }
}

fn pattern(text: &str, zone: Option<&str>) -> Result<Format, String> {
    let mut items = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            items.push(Item::Literal(c));
            continue;
        }
        match chars.next() {
            Some('Y') => items.push(Item::Number(Part::Year, 4)),
            Some('m') => items.push(Item::Number(Part::Month, 2)),
            Some('d') => items.push(Item::Number(Part::Day, 2)),
            Some('H') => items.push(Item::Number(Part::Hour, 2)),
            Some('M') => items.push(Item::Number(Part::Minute, 2)),
            Some('S') => items.push(Item::Number(Part::Second, 2)),
            Some('f') => items.push(Item::Fraction),
            Some('.') if chars.next_if_eq(&'f').is_some() => items.push(Item::PointAndFraction),
            Some('z') => items.push(Item::Zone),
            Some('%') => items.push(Item::Literal('%')),
            other => {
                let directive: String = other.into_iter().collect();
                return Err(format!(
                    "`%{directive}` is not known; known are %Y %m %d %H %M %S %f %.f %z %%"
                ));
            }
        }
    }
    for (part, directive) in [(Part::Year, "%Y"), (Part::Month, "%m"), (Part::Day, "%d")] {
        let count = items
            .iter()
            .filter(|item| matches!(item, Item::Number(p, _) if *p == part))
            .count();
        if count != 1 {
            return Err(format!("a pattern has {directive} once"));
        }
    }
    let own_zone = items.contains(&Item::Zone);
    let zone_seconds = match (zone, own_zone) {
        (Some(_), true) => return Err("the times have their own zone; remove `zone`".to_owned()),
        (None, false) => {
            return Err("the times do not say their zone; add zone = \"+08:00\"".to_owned());
        }
        (Some(zone), false) => zone_offset(zone)?,
        (None, true) => 0,
    };
    Ok(Format::Pattern {
        items,
        zone_seconds,
    })
}

fn unix_number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(n) => n.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

type Chars<'a> = Peekable<std::str::Chars<'a>>;

fn read_pattern(items: &[Item], zone_seconds: i64, text: &str) -> Result<u64, String> {
    let mut parts = [0_i64; 6];
    let (mut fraction_us, mut zone_seconds) = (0, zone_seconds);
    let mut chars: Chars<'_> = text.chars().peekable();
    for (i, item) in items.iter().enumerate() {
        match item {
            Item::Literal(c) => {
                if chars.next_if_eq(c).is_none() {
                    return Err(format!("`{c}` is missing"));
                }
            }
            Item::Number(part, digits_max) => {
                // `2022-8-1` is fine; where numbers stand without anything between, all digits must
                // be there.
                let adjacent = matches!(items.get(i + 1), Some(Item::Number(..) | Item::Fraction));
                let digits_min = if adjacent || *part == Part::Year {
                    *digits_max
                } else {
                    1
                };
                let n = read_digits(&mut chars, digits_min, *digits_max)
                    .ok_or_else(|| format!("the {part:?} is missing").to_lowercase())?;
                parts[*part as usize] = n;
            }
            Item::Fraction => {
                fraction_us = read_fraction(&mut chars).ok_or("the fraction is missing")?;
            }
            Item::PointAndFraction => {
                if chars.next_if_eq(&'.').is_some() {
                    fraction_us = read_fraction(&mut chars).ok_or("digits after the point")?;
                }
            }
            Item::Zone => zone_seconds = read_zone(&mut chars).ok_or("the zone is missing")?,
        }
    }
    if chars.next().is_some() {
        return Err("there is more than the format has".to_owned());
    }
    let [year, month, day, hour, minute, second] = parts;
    let days = days_since_epoch(year, month, day).ok_or("there is no such day")?;
    if !(hour < 24 && minute < 60 && second < 60) {
        return Err("there is no such time of day".to_owned());
    }
    let seconds = days * DAY_SECONDS + hour * 3600 + minute * 60 + second - zone_seconds;
    let us = u64::try_from(seconds).map_err(|_| "it is before 1970")? * 1_000_000;
    Ok(us + fraction_us)
}

fn read_digits(chars: &mut Chars<'_>, min: usize, max: usize) -> Option<i64> {
    let mut n = 0;
    for i in 0..max {
        match chars.peek().and_then(|c| c.to_digit(10)) {
            Some(digit) => n = n * 10 + i64::from(digit),
            None if i >= min => break,
            None => return None,
        }
        chars.next();
    }
    Some(n)
}

/// Microseconds; what is finer is cut off.
fn read_fraction(chars: &mut Chars<'_>) -> Option<u64> {
    let (mut us, mut unit_us) = (0, 100_000);
    chars.peek().and_then(|c| c.to_digit(10))?;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        us += u64::from(digit) * unit_us;
        unit_us /= 10;
        chars.next();
    }
    Some(us)
}

/// Seconds east of Greenwich.
fn read_zone(chars: &mut Chars<'_>) -> Option<i64> {
    let sign = match chars.next()? {
        'Z' | 'z' => return Some(0),
        '+' => 1,
        '-' => -1,
        _ => return None,
    };
    let hours = read_digits(chars, 2, 2)?;
    let colon = chars.next_if_eq(&':').is_some();
    let digit_follows = chars.peek().is_some_and(char::is_ascii_digit);
    let minutes = if colon || digit_follows {
        read_digits(chars, 2, 2)?
    } else {
        0
    };
    (hours < 15 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// `None` when the calendar has no such day.
fn days_since_epoch(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let lengths = [
        31,
        28 + i64::from(leap),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let before = usize::try_from(month).ok()?.checked_sub(1)?;
    let length = *lengths.get(before)?;
    if year < 1 || !(1..=length).contains(&day) {
        return None;
    }
    let years = year - 1;
    let days_of_years = years * 365 + years / 4 - years / 100 + years / 400;
    let days_of_months: i64 = lengths[..before].iter().sum();
    Some(days_of_years + days_of_months + day - 1 - EPOCH_DAYS)
}

/// A value for messages, cut short.
pub(super) fn shown(value: &Value) -> String {
    const CHARS_MAX: usize = 40;
    let text = value.to_string();
    if text.chars().count() <= CHARS_MAX {
        return text;
    }
    let cut: String = text.chars().take(CHARS_MAX).collect();
    format!("{cut}...")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(format: &str, zone: Option<&str>, value: impl Into<Value>) -> Result<u64, String> {
        let reader = TimeReader::new(format, zone).expect(format);
        reader.read(&value.into()).map(|us| us.0)
    }

    /// 2022-08-31 21:00 in Beijing.
    const THEN: u64 = 1_661_950_800_000_000;

    #[test]
    fn the_formats_of_real_systems_are_read() {
        let check = |format, zone: &str, value: Value, expected| {
            let zone = Some(zone).filter(|z| !z.is_empty());
            assert_eq!(read(format, zone, value.clone()), Ok(expected), "{value}");
        };
        check("unix-s", "", json!(1_661_950_800), THEN);
        check("unix-s", "", json!("1661950800"), THEN);
        check("unix-ms", "", json!(1_661_950_800_123_u64), THEN + 123_000);
        check("unix-us", "", json!(THEN), THEN);
        check("rfc3339", "", json!("2022-08-31T21:00:00+08:00"), THEN);
        check("rfc3339", "", json!("2022-08-31T13:00:00Z"), THEN);
        check(
            "rfc3339",
            "",
            json!("2022-08-31T13:00:00.1234567Z"),
            THEN + 123_456,
        );
        check(
            "%Y-%m-%d %H:%M:%S",
            "+08:00",
            json!("2022-08-31 21:00:00"),
            THEN,
        );
        check(
            "%Y-%m-%d %H:%M:%S%.f%z",
            "",
            json!("2022-08-31 13:00:00.5+00"),
            THEN + 500_000,
        );
        check(
            "%Y-%m-%d %H时",
            "Asia/Shanghai",
            json!("2022-08-31 21时"),
            THEN,
        );
        check(
            "%Y年%m月%d日%H时",
            "+08:00",
            json!("2022年8月31日21时"),
            THEN,
        );
        check("%Y%m%d%H%M%S", "+0800", json!("20220831210000"), THEN);
        check(
            "%Y%m%d%H%M%S%f",
            "+0800",
            json!("20220831210000042"),
            THEN + 42_000,
        );
        check(
            "%Y/%m/%d",
            "UTC",
            json!("2022/8/31"),
            THEN - 13 * 3_600_000_000,
        );
        check(
            "%Y-%m-%d %H",
            "-05:30",
            json!("2022-08-31 07"),
            THEN - 1_800_000_000,
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason() {
        let check = |format, zone, value: Value, expected: &str| {
            let error = read(format, zone, value).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        };
        let day = "%Y-%m-%d";
        let east = Some("+08:00");
        check(day, east, json!("2022-02-29"), "no such day");
        check(day, east, json!("2022-13-01"), "no such day");
        check(day, east, json!("2022-00-10"), "no such day");
        check(day, east, json!("2022-08-31 21"), "more than the format");
        check(day, east, json!("22-08-31"), "the year is missing");
        check(day, east, json!("2022-08"), "`-` is missing");
        check(day, east, json!(20_220_831), "no text");
        check(day, east, json!("1999-01-01"), "before 2019");
        check(
            "%Y-%m-%d %H:%M",
            east,
            json!("2022-08-31 24:00"),
            "time of day",
        );
        check(
            "rfc3339",
            None,
            json!("2022-08-31T13:00:00"),
            "zone is missing",
        );
        check("unix-ms", None, json!(1_661_950_800), "check the unit");
        check(
            "unix-s",
            None,
            json!(1_661_950_800_000_u64),
            "check the unit",
        );
        check("unix-s", None, json!(u64::MAX), "no unix-s time");
        check("unix-s", None, json!(-5), "no unix-s time");
        check("unix-s", None, json!(1.5), "no unix-s time");
        check("unix-s", None, Value::Null, "no unix-s time");
    }

    #[test]
    fn a_wrong_format_is_refused_with_help() {
        let check = |format, zone, expected: &str| {
            let error = TimeReader::new(format, zone).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        };
        check("unix", None, "unix-ms");
        check("unix-s", Some("UTC"), "remove `zone`");
        check("rfc3339", Some("UTC"), "remove `zone`");
        check("%Y-%m-%d", None, "add zone");
        check("%Y-%m-%d %Q", Some("UTC"), "`%Q` is not known");
        check("%Y-%m", Some("UTC"), "%d once");
        check("%Y-%Y-%m-%d", Some("UTC"), "%Y once");
        check("%Y-%m-%d", Some("Asia/Tokyo"), "+08:00");
        check("%Y-%m-%d", Some("+25:00"), "+08:00");
        check("%Y-%m-%d", Some("+08:00x"), "+08:00");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut expected = days_since_epoch(1899, 12, 31).expect("a day");
        for (year, month) in (1900..2101).flat_map(|y| (1..=12).map(move |m| (y, m))) {
            let days = (1..=31).map_while(|day| days_since_epoch(year, month, day));
            for days in days {
                expected += 1;
                assert_eq!(days, expected, "{year}-{month}");
            }
        }
        assert_eq!(days_since_epoch(1970, 1, 1), Some(0));
        assert_eq!(days_since_epoch(2000, 3, 1), Some(11_017));
        assert_eq!(days_since_epoch(2100, 2, 29), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,30}") {
            for format in ["rfc3339", "%Y%m%d%H%M%S%f%z", "%Y年%m月%d日%z"] {
                let reader = TimeReader::new(format, None).expect("valid");
                if let Ok(us) = reader.read(&Value::String(text.clone())) {
                    prop_assert!(us.0 >= limits::TIME_US_MIN);
                }
            }
        }
    }
}
