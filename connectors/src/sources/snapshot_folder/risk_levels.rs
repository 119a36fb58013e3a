//! The format `risk-levels`: the national list of areas at risk, as its official page publishes it.
//!
//! What the lists are like, and what is made of it:
//! - Before July 2022 there is no `lowlist`: absent and null are an empty list. The other two lists must
//!   be there, so that a cut file cannot clear anything.
//! - A community can stand twice in one list, and in two lists: **the highest level wins**.
//! - An entry without communities is its whole county: a path of three parts.
//! - Names are taken as they are, white space included: two spellings are two areas, as at the source.
//! - `code` other than 0 is an answer that says "no data", whatever the lists hold.

use super::list::{Area, List};
use hutong_proto::{Micros, delta::RiskLevel, limits};
use serde::Deserialize;
use std::collections::{BTreeMap, btree_map::Entry as Slot};

/// Why a file is not such a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RiskLevelsError {
    /// Truncated, or of another shape: the place is in the text.
    #[error("not a list of risk levels: {0}")]
    Shape(String),
    #[error("`code` is {0}, not 0: the source had no answer")]
    Code(String),
    #[error(
        "no time: `data.end_update_time` is {0:?} (expected such as \"2022-08-31 21时\"), \
         and the file name does not begin with YYYYMMDDhh"
    )]
    Time(String),
}

#[derive(Deserialize)]
struct File {
    code: serde_json::Value,
    #[serde(default)]
    data: serde_json::Value,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    end_update_time: Option<String>,
    highlist: Vec<Entry>,
    middlelist: Vec<Entry>,
    #[serde(default)]
    lowlist: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default, rename = "type")]
    kind: serde_json::Value,
    province: String,
    city: String,
    county: String,
    #[serde(default)]
    area_name: Option<String>,
    #[serde(default)]
    communitys: Option<Vec<String>>,
}

/// Every area of a file with its level, and nothing else. For comparing what became of a file.
pub fn parse_risk_levels(
    bytes: &[u8],
) -> Result<BTreeMap<Vec<String>, RiskLevel>, RiskLevelsError> {
    let (areas, _) = parse_areas(bytes)?;
    Ok(areas.into_iter().map(|(path, a)| (path, a.level)).collect())
}

/// A file as a list; its name gives the time when it does not say one itself.
pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<List, RiskLevelsError> {
    let (areas, said) = parse_areas(bytes)?;
    let at = said
        .as_deref()
        .and_then(time_of_text)
        .or_else(|| time_of_name(name))
        .ok_or_else(|| RiskLevelsError::Time(said.unwrap_or_default()))?;
    Ok(List { at, areas })
}

type Areas = BTreeMap<Vec<String>, Area>;

fn parse_areas(bytes: &[u8]) -> Result<(Areas, Option<String>), RiskLevelsError> {
    let shape = |e: serde_json::Error| RiskLevelsError::Shape(e.to_string());
    let file: File = serde_json::from_slice(bytes).map_err(shape)?;
    if file.code != 0 && file.code != "0" {
        return Err(RiskLevelsError::Code(file.code.to_string()));
    }
    let data: Data = serde_json::from_value(file.data)
        .map_err(|e| RiskLevelsError::Shape(format!("in `data`: {e}")))?;
    let lists = [
        ("highlist", RiskLevel::High, data.highlist),
        ("middlelist", RiskLevel::Middle, data.middlelist),
        ("lowlist", RiskLevel::Low, data.lowlist.unwrap_or_default()),
    ];
    let mut areas = Areas::new();
    for (name, level, entries) in lists {
        for (index, entry) in entries.into_iter().enumerate() {
            add_entry(&mut areas, entry, level, &format!("{name}[{index}]"));
        }
    }
    Ok((areas, data.end_update_time))
}

/// The lists come from the highest level down, so what is there already wins.
fn add_entry(areas: &mut Areas, entry: Entry, level: RiskLevel, place: &str) {
    let county = [entry.province, entry.city, entry.county];
    let area_name = entry.area_name.unwrap_or_else(|| county.join(" "));
    let mut add = |path: Vec<String>| {
        if let Slot::Vacant(slot) = areas.entry(path) {
            slot.insert(Area {
                level,
                kind: entry.kind.clone(),
                area_name: area_name.clone(),
                place: place.to_owned(),
            });
        }
    };
    match entry.communitys.unwrap_or_default() {
        communities if communities.is_empty() => add(county.to_vec()),
        communities => {
            for community in communities {
                add(county.iter().cloned().chain([community]).collect());
            }
        }
    }
}

/// "2022-08-31 21时" or "2022-08-31 9时", Beijing time.
fn time_of_text(text: &str) -> Option<Micros> {
    let (date, hour) = text.trim().split_once(' ')?;
    let mut date = date.split('-').map(|n| n.parse::<u32>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let hour = hour.trim().strip_suffix('时')?.parse().ok()?;
    date.next().is_none().then_some(())?;
    beijing_time(year, month, day, hour)
}

/// "2022083121-0a1b2c3d.json", Beijing time.
fn time_of_name(name: &str) -> Option<Micros> {
    let digits = name.get(..10)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
    let part = |range: std::ops::Range<usize>| digits[range].parse::<u32>().ok();
    beijing_time(part(0..4)?, part(4..6)?, part(6..8)?, part(8..10)?)
}

/// Eight hours ahead of UTC, all year. 24 o'clock is the next day's midnight.
fn beijing_time(year: u32, month: u32, day: u32, hour: u32) -> Option<Micros> {
    if !(2019..2100).contains(&year) || !(1..=12).contains(&month) || hour > 24 {
        return None;
    }
    if day == 0 || day > days_of_month(year, month) {
        return None;
    }
    let leap_days = |y: u32| y / 4 - y / 100 + y / 400;
    let days_before_year = (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969);
    let days_before_month: u32 = (1..month).map(|m| days_of_month(year, m)).sum();
    let days = u64::from(days_before_year + days_before_month + day - 1);
    let at_us = ((days * 24 + u64::from(hour)) - 8) * 3_600_000_000;
    (at_us >= limits::TIME_US_MIN).then_some(Micros(at_us))
}

fn days_of_month(year: u32, month: u32) -> u32 {
    let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(lists: &str) -> String {
        format!(r#"{{"code":0,"data":{{"end_update_time":"2022-08-31 21时",{lists}}}}}"#)
    }

    fn entry(county: &str, communities: &str) -> String {
        format!(
            r#"{{"type":"2","province":"P","city":"C","county":"{county}","area_name":"P C {county}",
                "communitys":[{communities}]}}"#
        )
    }

    #[test]
    fn the_highest_level_wins_and_repeats_are_one_area() {
        let high = entry("x", r#""a","a""#);
        let middle = entry("x", r#""a","b""#);
        let text = file(&format!(
            r#""highlist":[{high},{high}],"middlelist":[{middle}],"lowlist":[{}]"#,
            entry("y", "")
        ));
        let areas = parse_risk_levels(text.as_bytes()).expect("a list");
        let got: Vec<_> = areas.iter().map(|(p, l)| (p.join("/"), *l)).collect();
        let expected = [
            ("P/C/x/a", RiskLevel::High),
            ("P/C/x/b", RiskLevel::Middle),
            ("P/C/y", RiskLevel::Low),
        ];
        assert_eq!(got, expected.map(|(p, l)| (p.to_owned(), l)));
    }

    #[test]
    fn what_is_no_list_is_refused_with_the_reason() {
        let check = |text: &str, expected: &str| {
            let error = parse_risk_levels(text.as_bytes()).expect_err(text);
            assert!(error.to_string().contains(expected), "{error}");
        };
        check("", "EOF");
        check(r#"{"code":0,"data":{"highlist":["#, "EOF");
        check(r#"{"code":0}"#, "in `data`");
        check(r#"{"code":0,"data":{"highlist":[]}}"#, "middlelist");
        check(
            r#"{"code":0,"data":{"highlist":[],"middlelist":null}}"#,
            "null",
        );
        check(
            r#"{"code":500,"data":{"highlist":[],"middlelist":[]}}"#,
            "`code` is 500",
        );
        check(
            r#"{"code":null,"data":{"highlist":[],"middlelist":[]}}"#,
            "`code` is null",
        );
        check(
            &file(r#""highlist":[{"province":"P"}],"middlelist":[]"#),
            "city",
        );
    }

    #[test]
    fn the_time_is_read_from_the_file_or_else_from_its_name() {
        let micros = |text: &str| time_of_text(text).map(|at| at.0);
        assert_eq!(micros("2022-08-31 21时"), Some(1_661_950_800_000_000));
        assert_eq!(micros("2022-04-15 9时"), Some(1_649_984_400_000_000));
        assert_eq!(micros("2024-02-29 24时"), Some(1_709_222_400_000_000));
        assert_eq!(
            time_of_name("2022083121-x.json"),
            time_of_text("2022-08-31 21时")
        );
        for wrong in [
            "",
            "2022-08-31",
            "2023-02-29 1时",
            "2022-13-01 1时",
            "2022-08-31 25时",
        ] {
            assert_eq!(micros(wrong), None, "{wrong}");
        }
        assert_eq!(time_of_name("latest.json"), None);
        assert_eq!(time_of_name("今天2022083121.json"), None);
    }
}
