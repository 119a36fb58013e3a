//! What options may be. A value that cannot be measured with is refused before anything is started.

use crate::load::PLATFORMS;
use clap::{
    builder::{RangedU64ValueParser, TypedValueParser},
    value_parser,
};
use std::ops::RangeInclusive;

/// A day: nobody measures for longer.
const SECONDS_MAX: f64 = 86_400.0;

fn number(text: &str, range: RangeInclusive<f64>) -> Result<f64, String> {
    let allowed = || format!("a number from {} to {}", range.start(), range.end());
    let number: f64 = text.parse().map_err(|_| allowed())?;
    match range.contains(&number) {
        true => Ok(number),
        false => Err(allowed()),
    }
}

/// None is allowed.
pub fn seconds(text: &str) -> Result<f64, String> {
    number(text, 0.0..=SECONDS_MAX)
}

/// In which something is measured.
pub fn measured(text: &str) -> Result<f64, String> {
    number(text, 0.1..=SECONDS_MAX)
}

pub fn share(text: &str) -> Result<f64, String> {
    number(text, 0.0..=1.0)
}

pub fn times(text: &str) -> Result<f64, String> {
    number(text, 0.1..=100.0)
}

fn count(text: &str, range: RangeInclusive<usize>) -> Result<usize, String> {
    let allowed = || format!("a whole number from {} to {}", range.start(), range.end());
    let number: usize = text.parse().map_err(|_| allowed())?;
    match range.contains(&number) {
        true => Ok(number),
        false => Err(allowed()),
    }
}

/// There are 32 of them.
pub fn platforms(text: &str) -> Result<usize, String> {
    count(text, 1..=PLATFORMS.len())
}

pub fn none_or_platforms(text: &str) -> Result<usize, String> {
    count(text, 0..=PLATFORMS.len())
}

pub fn in_flight(text: &str) -> Result<usize, String> {
    count(text, 1..=4096)
}

pub fn repeats() -> impl TypedValueParser<Value = u64> {
    value_parser!(u64).range(1..=100)
}

pub fn batch() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::<u32>::new().range(1..=4096)
}

pub fn millis() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::<u64>::new().range(1..=60_000)
}

pub fn rate() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::<u64>::new().range(1..=1_000_000_000)
}

/// Registers of a platform; a hundred times those of the largest province.
pub fn people() -> RangedU64ValueParser<u64> {
    RangedU64ValueParser::<u64>::new().range(1..=10_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_measured_with_is_refused_and_the_text_says_what_can() {
        assert_eq!(measured("60"), Ok(60.0));
        assert!(measured("-1").is_err_and(|e| e.contains("0.1 to 86400")));
        assert!(measured("NaN").is_err());
        assert!(platforms("33").is_err_and(|e| e.contains("1 to 32")));
        assert!(in_flight("0").is_err());
        assert_eq!(none_or_platforms("0"), Ok(0));
    }
}
