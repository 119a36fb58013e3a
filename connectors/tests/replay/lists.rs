//! The lists that are replayed, and what a receiver must have after each of them: read straight from
//! the JSON, by code that shares nothing with the source that is tested.

use serde::Deserialize;
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// The platforms, by the names that the lists use.
pub use hutong_proto::area::PROVINCES as PLATFORMS;

/// Real lists that the folder of real input must at least have: fewer would be a damaged copy.
const REAL_FILES_MIN: usize = 561;
const GENERATED_FILES: usize = 120;

/// Province, city, county and, as a rule, community.
pub type Path4 = Vec<String>;

/// What a receiver has of one area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub issuer: u32,
    /// `high`, `middle`, `low`, or `cleared` for one that was listed once and is no more.
    pub level: String,
}

pub type View = BTreeMap<Path4, Standing>;

/// One change of one area, as it must arrive exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub level: String,
    /// When the file says that it was made.
    pub at_us: u64,
}

/// Of each area, in order.
pub type History = BTreeMap<Path4, Vec<Change>>;

/// A folder of lists, in the order of their names.
pub struct Lists {
    dir: PathBuf,
    pub names: Vec<String>,
    /// Removed at the end, if they were made for this test.
    _made: Option<TempDir>,
}

impl Lists {
    /// The real ones: `HUTONG_TEST_DATA`, or `../shared/data` beside the project. Without them the
    /// test goes on with made-up ones, and says so.
    pub fn find() -> Lists {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
        let data = std::env::var_os("HUTONG_TEST_DATA").map_or(beside, PathBuf::from);
        let dir = data.join("risk-levels");
        let Some(names) = names(&dir) else {
            println!(
                "\n!!! NO REAL INPUT: {} is not there. Only {GENERATED_FILES} made-up lists are replayed; \
                 set HUTONG_TEST_DATA to the folder that has `risk-levels`.\n",
                dir.display()
            );
            return Lists::generated(GENERATED_FILES);
        };
        assert!(
            names.len() >= REAL_FILES_MIN,
            "{} has {} lists, expected {REAL_FILES_MIN}: it is not the whole input",
            dir.display(),
            names.len()
        );
        println!("replaying {} lists of {}", names.len(), dir.display());
        Lists {
            dir,
            names,
            _made: None,
        }
    }

    /// Made-up lists in the same format and as untidy.
    pub fn generated(count: usize) -> Lists {
        let dir = tempfile::tempdir().expect("a folder");
        let mut random = Random::new(0x5eed);
        let mut levels: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for number in 0..count {
            for _ in 0..30 {
                let area = (random.below(PLATFORMS.len()), random.below(40));
                match random.below(4) {
                    3 => drop(levels.remove(&area)),
                    level => drop(levels.insert(area, level)),
                }
            }
            let (name, text) = generated_list(number, &levels);
            fs::write(dir.path().join(name), text).expect("written");
        }
        Lists {
            names: names(dir.path()).expect("just written"),
            dir: dir.path().to_owned(),
            _made: Some(dir),
        }
    }

    pub fn path(&self, index: usize) -> PathBuf {
        self.dir.join(&self.names[index])
    }
}

fn names(dir: &Path) -> Option<Vec<String>> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("UTF-8")
    };
    let mut names: Vec<String> = fs::read_dir(dir).ok()?.map(name).collect();
    names.retain(|name| name.ends_with(".json"));
    names.sort();
    Some(names)
}

/// Several a day, some with the same hour; early ones without a low list; areas that stand twice, a
/// county without communities, and white space that belongs to the name.
fn generated_list(number: usize, levels: &BTreeMap<(usize, usize), usize>) -> (String, String) {
    let (day, hour) = (1 + number / 8, 8 + number % 8 / 2);
    let entry = |&(platform, area): &(usize, usize)| {
        let province = PLATFORMS[platform].1;
        let (city, county) = (format!("{}市", area % 3), format!("{}县", area % 7));
        let communities = match area {
            0 => vec![],
            5 => vec![format!("{area}社区 "), format!("{area}社区 ")],
            _ => vec![format!("{area}社区")],
        };
        json!({"type": "2", "province": province, "city": city, "county": county,
            "area_name": format!("{province} {city} {county}"), "communitys": communities})
    };
    let list = |wanted: usize| -> Vec<_> {
        let of_level = |l: usize, area: usize| l == wanted || (l < wanted && area == 9);
        levels
            .iter()
            .filter(|((_, area), l)| of_level(**l, *area))
            .map(|(key, _)| entry(key))
            .collect()
    };
    let mut data = json!({"end_update_time": format!("2022-06-{day:02} {hour}时"),
        "highlist": list(0), "middlelist": list(1), "lowlist": list(2)});
    if number < 8 {
        let data = data.as_object_mut().expect("an object");
        // As in the old lists: then those areas are not listed at all.
        data.remove("lowlist");
    }
    let name = format!("202206{day:02}{hour:02}-{number:08x}.json");
    (name, json!({"code": 0, "data": data}).to_string())
}

#[derive(Deserialize)]
struct Published {
    data: Body,
}

#[derive(Deserialize)]
struct Body {
    end_update_time: String,
    highlist: Vec<Region>,
    middlelist: Vec<Region>,
    lowlist: Option<Vec<Region>>,
}

#[derive(Deserialize)]
struct Region {
    province: String,
    city: String,
    county: String,
    communitys: Vec<String>,
}

/// What must be known after some lists; goes on list by list.
#[derive(Default)]
pub struct Expected {
    /// The lists that were read.
    pub lists: usize,
    /// What the last list says, and what is cleared since an earlier one.
    pub view: View,
    pub history: History,
    /// Changes of all areas.
    pub changes: u64,
}

impl Expected {
    /// Reads the next lists, up to and without `end`.
    pub fn read(&mut self, lists: &Lists, end: usize) {
        for index in self.lists..end {
            self.read_one(&lists.path(index));
        }
        self.lists = self.lists.max(end);
    }

    fn read_one(&mut self, file: &Path) {
        let bytes = fs::read(file).expect("a list");
        let published: Published = serde_json::from_slice(&bytes).expect("a list");
        let at_us = micros(&published.data.end_update_time);
        let now = listed(published.data);
        let cleared = self.view.keys().filter(|path| !now.contains_key(*path));
        let cleared: Vec<_> = cleared.map(|path| (path.clone(), "cleared")).collect();
        for (path, level) in cleared.into_iter().chain(now) {
            let issuer = issuer(&path[0]);
            let standing = Standing {
                issuer,
                level: level.to_owned(),
            };
            if self.view.get(&path) == Some(&standing) {
                continue;
            }
            self.changes += 1;
            let changes = self.history.entry(path.clone()).or_default();
            changes.push(Change {
                level: level.to_owned(),
                at_us,
            });
            self.view.insert(path, standing);
        }
    }
}

/// Each area with its highest level: from the lowest list up, later ones overwrite.
fn listed(body: Body) -> BTreeMap<Path4, &'static str> {
    let mut areas = BTreeMap::new();
    for (level, regions) in [
        ("low", body.lowlist.unwrap_or_default()),
        ("middle", body.middlelist),
        ("high", body.highlist),
    ] {
        for region in regions {
            let county = vec![region.province, region.city, region.county];
            for community in &region.communitys {
                let mut path = county.clone();
                path.push(community.clone());
                areas.insert(path, level);
            }
            if region.communitys.is_empty() {
                areas.insert(county, level);
            }
        }
    }
    areas
}

fn issuer(province: &str) -> u32 {
    let known = PLATFORMS.iter().find(|(_, name)| *name == province);
    known
        .unwrap_or_else(|| panic!("no platform is named {province}"))
        .0
}

/// "2022-08-31 21时" in Beijing, eight hours ahead of UTC, as microseconds since 1970.
fn micros(text: &str) -> u64 {
    let numbers: Vec<u64> = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().expect("a number"))
        .collect();
    let &[year, month, day, hour] = numbers.as_slice() else {
        panic!("{text} is no time");
    };
    // The year begins in March, so that the leap day is its last.
    let (year, month) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    // From 0000-03-01 to 1970-01-01.
    ((days - 719_468) * 24 + hour - 8) * 3_600_000_000
}

/// A reproducible choice.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// From 0, below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            all.swap(last, self.below(last + 1));
        }
    }
}
