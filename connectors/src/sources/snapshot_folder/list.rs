//! A full list of areas, and what one list says that another did not. No IO.

use crate::source::{SourceRow, UNREADABLE};
use hutong_proto::{Micros, Revision, delta::RiskLevel};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What a list says of one area.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Area {
    pub level: RiskLevel,
    /// The source's `type`, whatever it is.
    pub kind: Value,
    pub area_name: String,
    /// Within its file, for people: `highlist[3]`.
    pub place: String,
}

/// Everything one file says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct List {
    pub at: Micros,
    /// By path: province, city, county, community.
    pub areas: BTreeMap<Vec<String>, Area>,
}

/// What the rows of one file have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp<'a> {
    pub file: &'a str,
    pub revision: Revision,
    pub committed_at: Micros,
    /// Only areas of these provinces; all when empty.
    pub provinces: &'a [String],
}

/// A list with fewer areas can lose any share of them without suspicion, but not all.
const SHRINK_AREAS_MIN: usize = 20;

impl List {
    /// Why so much vanishes from `self` to `next` that someone should look: all areas, or more than the
    /// share `shrink_max` of a list that is not tiny. All provinces count: one of them may well
    /// become clear at once.
    pub fn shrinks(&self, next: &List, shrink_max: f64) -> Option<String> {
        let before = self.areas.len();
        let gone = self
            .areas
            .keys()
            .filter(|p| !next.areas.contains_key(*p))
            .count();
        if gone == 0 || shrink_max >= 1.0 {
            return None;
        }
        let all = next.areas.is_empty();
        let many = before >= SHRINK_AREAS_MIN && gone as f64 > shrink_max * before as f64;
        (all || many).then(|| format!("{gone} of {before} areas vanish at once"))
    }

    /// The rows that turn what `base` says into what `self` says, in the order of the paths; areas that
    /// are only in `base` are cleared. Each area occurs at most once.
    pub fn differences(&self, base: Option<&List>, stamp: Stamp<'_>) -> Vec<SourceRow> {
        let nothing = BTreeMap::new();
        let before = base.map_or(&nothing, |b| &b.areas);
        let ours =
            |path: &[String]| stamp.provinces.is_empty() || stamp.provinces.contains(&path[0]);
        let news = self.areas.iter().filter(|(path, area)| {
            ours(path) && before.get(*path).is_none_or(|b| b.level != area.level)
        });
        let news = news.map(|(path, area)| (path, row(path, area, Some(area.level), stamp)));
        let gone = before
            .iter()
            .filter(|(p, _)| ours(p) && !self.areas.contains_key(*p));
        let gone = gone.map(|(path, area)| (path, row(path, area, None, stamp)));
        let mut rows: Vec<_> = news.chain(gone).collect();
        rows.sort_by_key(|(path, _)| *path);
        rows.into_iter().map(|(_, row)| row).collect()
    }
}

fn row(path: &[String], area: &Area, level: Option<RiskLevel>, stamp: Stamp<'_>) -> SourceRow {
    let place = match level {
        Some(_) => format!("file {}, {}", stamp.file, area.place),
        None => format!("file {}, no longer listed", stamp.file),
    };
    let mut fields = Map::new();
    fields.insert(
        "level".into(),
        level.unwrap_or(RiskLevel::Cleared).name().into(),
    );
    fields.insert("path".into(), json!(path));
    fields.insert("type".into(), area.kind.clone());
    fields.insert("area_name".into(), area.area_name.clone().into());
    fields.insert("file".into(), stamp.file.into());
    SourceRow {
        fields,
        place,
        revision: stamp.revision,
        committed_at: stamp.committed_at,
    }
}

/// A file that cannot be read as a list, as a row that no mapping takes: it ends among the dead letters.
pub(super) fn refused(stamp: Stamp<'_>, why: &str) -> SourceRow {
    let mut fields = Map::new();
    fields.insert("file".into(), stamp.file.into());
    fields.insert(UNREADABLE.into(), why.into());
    SourceRow {
        fields,
        place: format!("file {}", stamp.file),
        revision: stamp.revision,
        committed_at: stamp.committed_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn list(areas: &[(u8, u8)]) -> List {
        let area = |level| Area {
            level,
            kind: Value::Null,
            area_name: String::new(),
            place: String::new(),
        };
        let path = |n: u8| vec![format!("province {}", n % 3), format!("area {n}")];
        let level = |n: u8| RiskLevel::from_number(u64::from(n % 3) + 1).expect("1 to 3");
        List {
            at: Micros(1),
            areas: areas
                .iter()
                .map(|(n, l)| (path(*n), area(level(*l))))
                .collect(),
        }
    }

    const STAMP: Stamp<'static> = Stamp {
        file: "f",
        revision: Revision(7),
        committed_at: Micros(9),
        provinces: &[],
    };

    proptest! {
        #[test]
        fn differences_applied_to_the_base_give_the_list(
            before in proptest::collection::vec(any::<(u8, u8)>(), 0..40),
            after in proptest::collection::vec(any::<(u8, u8)>(), 0..40),
        ) {
            let (before, after) = (list(&before), list(&after));
            let mut view: HashMap<Value, Value> = HashMap::new();
            for row in before.differences(None, STAMP).iter().chain(&after.differences(Some(&before), STAMP)) {
                prop_assert_eq!(row.revision, STAMP.revision);
                match &row.fields["level"] {
                    level if level == "cleared" => prop_assert!(view.remove(&row.fields["path"]).is_some()),
                    level => prop_assert!(view.insert(row.fields["path"].clone(), level.clone()).as_ref() != Some(level)),
                }
            }
            let expected: HashMap<Value, Value> = after.areas.iter()
                .map(|(p, a)| (json!(p), a.level.name().into())).collect();
            prop_assert_eq!(view, expected);
        }
    }

    #[test]
    fn only_the_named_provinces_give_rows() {
        let provinces = ["province 1".to_owned()];
        let stamp = Stamp {
            provinces: &provinces,
            ..STAMP
        };
        let (before, after) = (list(&[(0, 0), (1, 0), (4, 0)]), list(&[(3, 0), (4, 1)]));
        let rows = after.differences(Some(&before), stamp);
        let levels: Vec<_> = rows
            .iter()
            .map(|r| (&r.fields["path"][1], &r.fields["level"]))
            .collect();
        let expected =
            [("area 1", "cleared"), ("area 4", "middle")].map(|(a, l)| (json!(a), json!(l)));
        assert_eq!(levels, expected.each_ref().map(|(a, l)| (a, l)));
    }

    #[test]
    fn only_a_large_loss_is_suspicious() {
        let many: Vec<_> = (0..40).map(|n| (n, 0)).collect();
        let check = |before: &[(u8, u8)], after: &[(u8, u8)], max, expected: bool| {
            assert_eq!(
                list(before).shrinks(&list(after), max).is_some(),
                expected,
                "{after:?}"
            );
        };
        check(&many, &many[20..], 0.5, false);
        check(&many, &many[21..], 0.5, true);
        check(&many, &many[21..], 1.0, false);
        check(&many[..5], &many[4..5], 0.5, false);
        check(&many[..5], &[], 0.5, true);
        check(&[], &[], 0.5, false);
    }
}
