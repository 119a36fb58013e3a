//! Microseconds since the Unix epoch, made readable. Always UTC, so that two operators see the same.

use hutong_proto::Micros;
use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock. The command is an edge: times of deltas and ages on the screen come from here.
pub fn now() -> Micros {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is set after 1970");
    Micros(since.as_micros() as u64)
}

/// `2022-08-31 13:00:05.250`, or a hyphen for zero.
pub fn utc(at_us: u64) -> String {
    if at_us == 0 {
        return "-".to_owned();
    }
    let ms = at_us / 1000;
    let (days, ms_of_day) = ((ms / 86_400_000) as i64, ms % 86_400_000);
    let (year, month, day) = civil(days);
    let s = ms_of_day / 1000;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:03}",
        s / 3600,
        s / 60 % 60,
        s % 60,
        ms_of_day % 1000
    )
}

/// Year, month and day of a count of days since 1970-01-01, in the proleptic Gregorian calendar:
/// 400 years have 146,097 days, and years are counted from March so that the leap day comes last.
fn civil(days: i64) -> (i64, u32, u32) {
    const DAYS_OF_400_YEARS: i64 = 146_097;
    // From 0000-03-01 to 1970-01-01.
    let days = days + 719_468;
    let cycle = days.div_euclid(DAYS_OF_400_YEARS);
    let day_of_cycle = days.rem_euclid(DAYS_OF_400_YEARS);
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524
        - day_of_cycle / (DAYS_OF_400_YEARS - 1))
        / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = cycle * 400 + year_of_cycle + i64::from(month <= 2);
    (year, month as u32, day as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments_are_written_right() {
        for (us, expected) in [
            (0, "-"),
            (1, "1970-01-01 00:00:00.000"),
            (951_782_400_000_000, "2000-02-29 00:00:00.000"),
            (1_641_254_400_123_999, "2022-01-04 00:00:00.123"),
            (1_661_947_205_250_000, "2022-08-31 12:00:05.250"),
            (4_102_444_800_000_000, "2100-01-01 00:00:00.000"),
        ] {
            assert_eq!(utc(us), expected);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = civil(-1);
        for days in 0..60_000 {
            let now = civil(days);
            let next = now == (before.0, before.1, before.2 + 1)
                || (now.2 == 1 && (now.1 == before.1 + 1 && now.0 == before.0))
                || (now == (before.0 + 1, 1, 1) && before.1 == 12 && before.2 == 31);
            assert!(next, "{before:?} then {now:?}");
            before = now;
        }
    }
}
