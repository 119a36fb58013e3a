//! Durations and sizes, as people write them.

use std::{fmt, time::Duration};

/// A number of bytes. Written as `"64MiB"`, `"1.5GiB"` is not allowed; a plain integer means bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    pub const fn kib(n: u64) -> ByteSize {
        ByteSize(n << 10)
    }

    pub const fn mib(n: u64) -> ByteSize {
        ByteSize(n << 20)
    }

    pub const fn gib(n: u64) -> ByteSize {
        ByteSize(n << 30)
    }
}

const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

const TIMES: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// In the largest binary unit that is exact.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = SIZES[..4]
            .iter()
            .find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size));
        match exact {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A duration as [`parse_duration`] reads it, in the largest unit that is exact; what is below a
/// microsecond is cut off.
pub fn format_duration(duration: Duration) -> String {
    let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let exact = TIMES
        .iter()
        .find(|(_, t)| us >= *t && us.is_multiple_of(*t));
    match exact {
        Some((unit, t)) => format!("{}{unit}", us / t),
        None => format!("{us}us"),
    }
}

/// Reads a size such as `64MiB`. The error says what to write instead.
pub fn parse_bytes(text: &str) -> Result<ByteSize, String> {
    let help = || {
        "write a whole number and a unit, such as \"64MiB\": B, KiB, MiB, GiB, TiB, or kB, MB, GB, TB"
            .to_owned()
    };
    parse(text, &SIZES, help).map(ByteSize)
}

/// Reads a duration such as `250ms`. The error says what to write instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let help =
        || "write a whole number and a unit, such as \"20s\": us, ms, s, m, h or d".to_owned();
    parse(text, &TIMES, help).map(Duration::from_micros)
}

fn parse(text: &str, units: &[(&str, u64)], help: impl Fn() -> String) -> Result<u64, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(text.len());
    let (digits, unit) = (text[..end].replace('_', ""), text[end..].trim());
    if digits.is_empty() || unit.is_empty() {
        return Err(help());
    }
    let Some((_, size)) = units.iter().find(|(name, _)| *name == unit) else {
        let alike = units
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit));
        return Err(match alike {
            Some((name, _)) => format!("did you mean \"{digits}{name}\"?"),
            None => help(),
        });
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(*size))
        .ok_or_else(|| "this is more than can be counted; write a smaller number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        let check = |text: &str, expected: u64| {
            assert_eq!(parse_bytes(text), Ok(ByteSize(expected)), "{text}");
        };
        check("0B", 0);
        check("512B", 512);
        check("4KiB", 4096);
        check("64MiB", 64 << 20);
        check("50GiB", 50 << 30);
        check("2TiB", 2 << 40);
        check("10MB", 10_000_000);
        check("1_000kB", 1_000_000);
        check("64 MiB", 64 << 20);
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        let check = |text: &str, expected: Duration| {
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
        };
        check("250ms", Duration::from_millis(250));
        check("20s", Duration::from_secs(20));
        check("5m", Duration::from_secs(300));
        check("12h", Duration::from_secs(43_200));
        check("7d", Duration::from_secs(604_800));
        check("9us", Duration::from_micros(9));
    }

    #[test]
    fn what_is_not_a_size_or_duration_is_refused_with_help() {
        for text in ["", "MiB", "1.5GiB", "-1MiB", "64", "64 pages", "６４MiB"] {
            let help = parse_bytes(text).expect_err(text);
            assert!(help.contains("64MiB"), "{text}: {help}");
        }
        for text in ["", "7", "7 weeks", "1h30m", "s"] {
            let help = parse_duration(text).expect_err(text);
            assert!(help.contains("20s"), "{text}: {help}");
        }
        let help = parse_bytes("64mib").expect_err("wrong case");
        assert!(help.contains("64MiB"), "{help}");
        let help = parse_bytes("99999999999TiB").expect_err("too much");
        assert!(help.contains("more than can be counted"), "{help}");
    }

    #[test]
    fn what_is_written_is_read_back() {
        for size in [
            0,
            1,
            1000,
            1024,
            1536,
            64 << 20,
            50 << 30,
            3 << 40,
            u64::MAX,
        ] {
            assert_eq!(
                parse_bytes(&ByteSize(size).to_string()),
                Ok(ByteSize(size)),
                "{size}"
            );
        }
        for us in [0, 1, 999, 1_000, 90_000_000, 86_400_000_000] {
            let duration = Duration::from_micros(us);
            assert_eq!(
                parse_duration(&format_duration(duration)),
                Ok(duration),
                "{us}"
            );
        }
    }
}
