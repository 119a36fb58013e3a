//! Times, marks and languages of a page.

use crate::text::{Text, is_chinese};

/// Of microseconds since the Unix epoch, in UTC.
pub fn date(wall_us: u64) -> String {
    let seconds = wall_us / 1_000_000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Days since 1970-01-01 to a date; "chrono-Compatible Low-Level Date Algorithms" by Howard Hinnant.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Chinese, said to be so: screen readers, fonts and search ask for it. The page itself is in English.
pub fn chinese(text: &str) -> String {
    format!(
        "<span class=\"zh\" lang=\"zh-Hans\">{}</span>",
        escape(text)
    )
}

/// A name in it may be Chinese, as those of areas are.
fn english(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(from) = rest.find(is_chinese) {
        let (before, name) = rest.split_at(from);
        let to = name.find(|c| !is_chinese(c)).unwrap_or(name.len());
        let (name, after) = name.split_at(to);
        out += &escape(before);
        out += &format!("<span lang=\"zh-Hans\">{name}</span>");
        rest = after;
    }
    out + &escape(rest)
}

/// In a line of both languages.
pub fn both(en: &str, zh: &str) -> String {
    format!("{} {}", english(en), chinese(zh))
}

/// A cell in both languages, one below the other; what is the same in both, and what is no more than a quotation,
/// once.
pub fn said(text: &Text) -> String {
    match text.is_same() || *text == Text::quoted(&text.en) {
        true => verbatim(&text.en),
        false => format!("{}<br>{}", english(&text.en), chinese(&text.zh)),
    }
}

/// A name, a command or a file: nothing to translate.
pub fn verbatim(text: &str) -> String {
    format!("<span translate=\"no\">{}</span>", escape(text))
}

/// Of a picture, where no tag of HTML is known.
pub fn both_in_picture(en: &str, zh: &str) -> String {
    format!(
        "{} <tspan lang=\"zh-Hans\">{}</tspan>",
        escape(en),
        escape(zh)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chinese_name_in_an_english_text_is_marked() {
        let cell = said(&Text::new("合肥市: high & low", "合肥市：高"));
        let expected = "<span lang=\"zh-Hans\">合肥市</span>: high &amp; low<br>\
                        <span class=\"zh\" lang=\"zh-Hans\">合肥市：高</span>";
        assert_eq!(cell, expected);
        let quotation = said(&Text::quoted("mount: no such device"));
        assert_eq!(
            quotation,
            "<span translate=\"no\">mount: no such device</span>"
        );
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(1_661_990_399_999_999), "2022-08-31 23:59:59 UTC");
        assert_eq!(date(1_709_164_800_000_000), "2024-02-29 00:00:00 UTC");
    }
}
