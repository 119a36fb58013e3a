//! Readers: from a [`Value`] to a type, or a report at the value and `None`.
//!
//! A reader is any `Fn(&Value) -> Option<T>`; those here take a range, a list of words and the like.

use crate::{
    ByteSize, Value, format_duration, parse_bytes, parse_duration,
    suggest::{list_of, nearest},
};
use std::{fmt, net::SocketAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

/// A type that a value can be without further conditions.
pub trait Read: Sized {
    fn read(value: &Value<'_>) -> Option<Self>;
}

impl Read for String {
    fn read(value: &Value<'_>) -> Option<String> {
        match value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => value.fail_expected("a text", "write it in quotes"),
        }
    }
}

impl Read for bool {
    fn read(value: &Value<'_>) -> Option<bool> {
        match value.as_bool() {
            Some(b) => Some(b),
            None => value.fail_expected("true or false", "write true or false, without quotes"),
        }
    }
}

impl Read for f64 {
    fn read(value: &Value<'_>) -> Option<f64> {
        match value.as_number() {
            Some(n) if n.is_finite() => Some(n),
            _ => value.fail_expected("a number", "write a number such as 0.5, without quotes"),
        }
    }
}

/// Not empty. Relative paths are left as they are.
impl Read for PathBuf {
    fn read(value: &Value<'_>) -> Option<PathBuf> {
        match value.as_str() {
            Some(path) if !path.is_empty() && !path.contains('\0') => Some(path.into()),
            _ => value.fail_expected("a path", "write it in quotes, such as \"/var/lib/hutong\""),
        }
    }
}

impl Read for SocketAddr {
    fn read(value: &Value<'_>) -> Option<SocketAddr> {
        match value.as_str().map(str::parse) {
            Some(Ok(address)) => Some(address),
            _ => value.fail_expected(
                "an address with a port",
                "write numbers, such as \"127.0.0.1:7400\" or \"[::1]:7400\"; names are not looked up",
            ),
        }
    }
}

impl Read for Duration {
    fn read(value: &Value<'_>) -> Option<Duration> {
        let parsed = match value.as_str() {
            Some(text) => parse_duration(text),
            None => Err("write it with its unit in quotes, such as \"20s\"".to_owned()),
        };
        match parsed {
            Ok(duration) => Some(duration),
            Err(help) => value.fail_expected("a duration", help),
        }
    }
}

impl Read for ByteSize {
    fn read(value: &Value<'_>) -> Option<ByteSize> {
        let parsed = match (value.as_str(), value.as_integer()) {
            (Some(text), _) => parse_bytes(text),
            (None, Some(n)) => u64::try_from(n)
                .map(ByteSize)
                .map_err(|_| "a size is 0 or more bytes".to_owned()),
            (None, None) => Err("write it with its unit in quotes, such as \"64MiB\"".to_owned()),
        };
        match parsed {
            Ok(size) => Some(size),
            Err(help) => value.fail_expected("a size in bytes", help),
        }
    }
}

/// Every item is read, so each wrong one is reported.
impl<T: Read> Read for Vec<T> {
    fn read(value: &Value<'_>) -> Option<Vec<T>> {
        list(T::read, 0..=usize::MAX)(value)
    }
}

/// A text, integer or boolean: for values that are compared with what a source sends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scalar {
    Text(String),
    Integer(i128),
    Boolean(bool),
}

/// Without quotes.
impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Text(text) => f.write_str(text),
            Scalar::Integer(n) => write!(f, "{n}"),
            Scalar::Boolean(b) => write!(f, "{b}"),
        }
    }
}

impl Read for Scalar {
    fn read(value: &Value<'_>) -> Option<Scalar> {
        let text = value.as_str().map(|text| Scalar::Text(text.to_owned()));
        let integer = || value.as_integer().map(Scalar::Integer);
        let boolean = || value.as_bool().map(Scalar::Boolean);
        text.or_else(integer).or_else(boolean).or_else(|| {
            value.fail_expected(
                "a text, an integer or a boolean",
                "write one, texts in quotes",
            )
        })
    }
}

/// The integers that can be read.
pub trait Integer: Copy + fmt::Display + Into<i128> + TryFrom<i128> {}

macro_rules! integers {
    ($($t:ty)*) => {$(
        impl Integer for $t {}
        impl Read for $t {
            fn read(value: &Value<'_>) -> Option<$t> {
                integer(<$t>::MIN..=<$t>::MAX)(value)
            }
        }
    )*};
}

integers!(u8 u16 u32 u64 i32 i64);

/// An integer of a range.
pub fn integer<T: Integer>(range: RangeInclusive<T>) -> impl Fn(&Value<'_>) -> Option<T> {
    move |value| {
        let (low, high) = (*range.start(), *range.end());
        let in_range = value
            .as_integer()
            .filter(|n| (low.into()..=high.into()).contains(n))
            .and_then(|n| T::try_from(n).ok());
        in_range.or_else(|| {
            let help = match value.as_str().is_some_and(|s| s.parse::<i128>().is_ok()) {
                true => "write it without quotes",
                false => "",
            };
            value.fail_expected(&format!("an integer from {low} to {high}"), help)
        })
    }
}

/// A text with so many bytes.
pub fn text(bytes: RangeInclusive<usize>) -> impl Fn(&Value<'_>) -> Option<String> {
    move |value| {
        let text = String::read(value)?;
        if bytes.contains(&text.len()) {
            return Some(text);
        }
        let (low, high, key) = (bytes.start(), bytes.end(), value.key());
        if text.is_empty() {
            return value.fail(format!("`{key}` is empty"), "write a text, or leave it out");
        }
        value.fail(
            format!("`{key}` has {} bytes", text.len()),
            format!("write {low} to {high} bytes; a Chinese character takes 3"),
        )
    }
}

/// A duration of a range.
pub fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value<'_>) -> Option<Duration> {
    move |value| {
        let duration = Duration::read(value)?;
        if range.contains(&duration) {
            return Some(duration);
        }
        let (low, high) = (
            format_duration(*range.start()),
            format_duration(*range.end()),
        );
        value.fail_expected(&format!("a duration from {low} to {high}"), "")
    }
}

/// A number of bytes in a range.
pub fn bytes(range: RangeInclusive<ByteSize>) -> impl Fn(&Value<'_>) -> Option<u64> {
    move |value| {
        let size = ByteSize::read(value)?;
        if range.contains(&size) {
            return Some(size.0);
        }
        let expected = format!("a size from {} to {}", range.start(), range.end());
        value.fail_expected(&expected, "")
    }
}

/// One of some words.
pub fn one_of<T: Clone>(words: &[(&str, T)]) -> impl Fn(&Value<'_>) -> Option<T> {
    move |value| {
        let names = || words.iter().map(|(name, _)| *name);
        let given = value.as_str();
        if let Some((_, meant)) = words.iter().find(|(name, _)| given == Some(*name)) {
            return Some(meant.clone());
        }
        let expected = match list_of(&names().collect::<Vec<_>>(), "or") {
            one if words.len() == 1 => one,
            more => format!("one of {more}"),
        };
        let help = match given.and_then(|given| nearest(given, names())) {
            Some(word) => format!("did you mean \"{word}\"?"),
            None => "write one of them in quotes".to_owned(),
        };
        value.fail_expected(&expected, help)
    }
}

/// A text, or an integer, that a type can be parsed from; `what` is the type for people, such as "a
/// six-digit code". The parser's error becomes the help.
pub fn parsed<T>(what: &str) -> impl Fn(&Value<'_>) -> Option<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    move |value| {
        let text = match value.as_integer() {
            Some(n) => Some(n.to_string()),
            None => value.as_str().map(str::to_owned),
        };
        match text.map(|text| text.parse::<T>()) {
            Some(Ok(parsed)) => Some(parsed),
            Some(Err(why)) => value.fail_expected(what, why.to_string()),
            None => value.fail_expected(what, "write it in quotes"),
        }
    }
}

/// A list with so many items, each read by `item`. Every wrong item is reported.
pub fn list<T>(
    item: impl Fn(&Value<'_>) -> Option<T>,
    count: RangeInclusive<usize>,
) -> impl Fn(&Value<'_>) -> Option<Vec<T>> {
    move |value| {
        let Some(items) = value.as_list() else {
            return value.fail_expected("a list", "write it in brackets, such as [\"a\", \"b\"]");
        };
        if !count.contains(&items.len()) {
            let (low, high) = (count.start(), count.end());
            let message = format!("`{}` has {} items", value.key(), items.len());
            let help = match *high {
                usize::MAX => format!("write {low} or more"),
                high => format!("write {low} to {high}"),
            };
            return value.fail(message, help);
        }
        let read: Vec<Option<T>> = items.iter().map(&item).collect();
        read.into_iter().collect()
    }
}

/// A table with free keys, each value read by `item`, in the order of the file. Keys of TOML are
/// texts: `0 = "green"` has the key `"0"`.
pub fn map<T>(
    item: impl Fn(&Value<'_>) -> Option<T>,
) -> impl Fn(&Value<'_>) -> Option<Vec<(String, T)>> {
    move |value| {
        let Some(mut table) = value.as_table() else {
            let help = "write { a = ..., b = ... }, or a table of its own";
            return value.fail_expected("a table", help);
        };
        let entries = table.entries().into_iter();
        let read: Vec<_> = entries.map(|(key, v)| Some((key, item(&v)?))).collect();
        read.into_iter().collect()
    }
}
