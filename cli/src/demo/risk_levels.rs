//! `hutong demo --risk-levels DIR`: the published lists of risk areas, replayed. Every province publishes
//! what changed on its part of the list, and after sampled files every platform's view is compared with
//! the file itself, area by area.

use super::{
    fleet::Fleet,
    people::provenance,
    platforms::Place,
    registers::{Register, Registers},
    report::ReplayReport,
    view::ValueMark,
};
use crate::{
    errors::CliError,
    output::{Grid, Screen, grouped},
    times,
};
use hutong_connectors::sources::snapshot_folder::parse_risk_levels;
use hutong_proto::{Delta, EntityId, Issuer, Kind, Lane, Micros, Value, area, delta::RiskLevel};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    time::Instant,
};

/// Comparisons over a replay, beside the one at its end.
const COMPARISONS: usize = 24;
const BATCH_DELTAS_MAX: usize = 2000;

/// An area: the place in the demo that publishes it, and its full path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Area {
    home: usize,
    path: Vec<String>,
}

impl Area {
    fn entity(&self) -> EntityId {
        area::entity(self.path.iter().map(String::as_str))
    }
}

/// One file: every area on it, with its level.
#[derive(Debug)]
struct List {
    name: String,
    levels: HashMap<u32, RiskLevel>,
}

/// All files, with the areas that stand on any of them, numbered.
#[derive(Debug)]
pub struct Lists {
    areas: Vec<Area>,
    entities: Vec<EntityId>,
    lists: Vec<List>,
    /// Entries of provinces without a platform in this demo.
    elsewhere: u64,
}

/// Reads all `.json` files of a folder, in the order of their names.
pub fn read(dir: &Path, places: &[Place]) -> Result<Lists, CliError> {
    let file_error = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| CliError::File {
            doing,
            path,
            source,
        }
    };
    let mut paths: Vec<_> = fs::read_dir(dir)
        .map_err(file_error("opening the folder", dir))?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    paths.sort();
    if paths.is_empty() {
        return Err(CliError::Usage(format!(
            "{} holds no .json files; --risk-levels takes a folder of published lists",
            dir.display()
        )));
    }
    let mut builder = Builder::default();
    for path in &paths {
        let bytes = fs::read(path).map_err(file_error("reading", path))?;
        let areas = parse_risk_levels(&bytes).map_err(|e| {
            CliError::Usage(format!(
                "{} is not a list of risk areas: {e}",
                path.display()
            ))
        })?;
        let name = path
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        builder.list(name, places, areas.into_iter());
    }
    Ok(builder.finish())
}

#[derive(Default)]
struct Builder {
    numbers: BTreeMap<Area, u32>,
    lists: Vec<List>,
    /// Entries of provinces without a platform in this demo.
    elsewhere: u64,
}

impl Builder {
    fn list(
        &mut self,
        name: String,
        places: &[Place],
        entries: impl Iterator<Item = (Vec<String>, RiskLevel)>,
    ) {
        let mut levels = HashMap::new();
        for (path, level) in entries {
            let province = path.first().map_or("", String::as_str);
            let Some(home) = places.iter().position(|p| p.province == province) else {
                self.elsewhere += 1;
                continue;
            };
            let next = self.numbers.len() as u32;
            let number = *self.numbers.entry(Area { home, path }).or_insert(next);
            levels.insert(number, level);
        }
        self.lists.push(List { name, levels });
    }

    fn finish(self) -> Lists {
        let mut areas: Vec<(u32, Area)> = self.numbers.into_iter().map(|(a, n)| (n, a)).collect();
        areas.sort_unstable_by_key(|(number, _)| *number);
        let areas: Vec<Area> = areas.into_iter().map(|(_, area)| area).collect();
        Lists {
            entities: areas.iter().map(Area::entity).collect(),
            areas,
            lists: self.lists,
            elsewhere: self.elsewhere,
        }
    }
}

impl Lists {
    /// The directory of all areas.
    pub fn registers(&self, places: &[Place]) -> Registers {
        let mut registers = Registers::default();
        for (area, entity) in self.areas.iter().zip(&self.entities) {
            let issuer = Issuer::new(places[area.home].code).expect("the table holds valid codes");
            registers.add(issuer, entity, area.home);
        }
        registers
    }
}

/// What changed from one list to the next: new levels, and areas that are no longer listed.
fn changes(before: Option<&List>, now: &List) -> Vec<(u32, RiskLevel)> {
    let mut changes: Vec<(u32, RiskLevel)> = now
        .levels
        .iter()
        .filter(|(n, level)| before.and_then(|b| b.levels.get(n)) != Some(level))
        .map(|(n, level)| (*n, *level))
        .collect();
    if let Some(before) = before {
        let gone = before.levels.keys().filter(|n| !now.levels.contains_key(n));
        changes.extend(gone.map(|n| (*n, RiskLevel::Cleared)));
    }
    // The same order in every run.
    changes.sort_unstable_by_key(|(n, _)| *n);
    changes
}

/// Publishes list after list and compares.
pub async fn replay(
    lists: &Lists,
    fleet: &Fleet,
    screen: &Screen,
) -> Result<ReplayReport, CliError> {
    let every = lists.lists.len().div_ceil(COMPARISONS).max(1);
    screen.heading(&format!(
        "{} published lists, {} areas, every province publishing its own",
        lists.lists.len(),
        grouped(lists.areas.len() as u64)
    ))?;
    if lists.elsewhere > 0 {
        screen.paragraph(&format!(
            "{} entries are left out: their provinces do not take part with so few platforms.",
            grouped(lists.elsewhere)
        ))?;
    }
    let mut grid = Grid::new(&[
        "list",
        ">areas listed",
        ">changes since the last line",
        ">ms until all have it",
        "every view equals the file",
    ]);
    let mut report = ReplayReport {
        files: lists.lists.len(),
        files_compared: 0,
        unequal: 0,
    };
    let mut changes_shown = 0;
    for (i, list) in lists.lists.iter().enumerate() {
        let before = i.checked_sub(1).map(|b| &lists.lists[b]);
        let changes = changes(before, list);
        changes_shown += changes.len();
        let sent_at = Instant::now();
        publish(lists, fleet, &changes, &list.name).await?;
        if (i + 1) % every != 0 && i + 1 != lists.lists.len() {
            continue;
        }
        fleet.quiet_down().await;
        let waited_ms = sent_at.elapsed().as_millis();
        let different = compare(lists, list, fleet);
        report.files_compared += 1;
        report.unequal += different.len() as u64;
        grid.row([
            list.name.clone(),
            grouped(list.levels.len() as u64),
            grouped(changes_shown as u64),
            waited_ms.to_string(),
            match different.as_slice() {
                [] => format!("yes, all {}", fleet.platforms.len()),
                names => format!("NO: {}", names.join(", ")),
            },
        ]);
        changes_shown = 0;
    }
    screen.grid(&grid)?;
    Ok(report)
}

async fn publish(
    lists: &Lists,
    fleet: &Fleet,
    changes: &[(u32, RiskLevel)],
    list: &str,
) -> Result<(), CliError> {
    let now = times::now();
    for platform in &fleet.platforms {
        let reason = provenance(platform.place, "RISK", &format!("list {list}"));
        let deltas: Vec<Delta> = changes
            .iter()
            .filter(|(n, _)| lists.areas[*n as usize].home == platform.index)
            .map(|(n, level)| Delta {
                entity: lists.entities[*n as usize],
                revision: platform.next_revision(),
                committed_at: now,
                expires_at: Micros::ZERO,
                evidence: String::new(),
                provenance: reason.clone(),
                value: Value::AreaRisk {
                    level: *level,
                    path: lists.areas[*n as usize].path.clone(),
                },
            })
            .collect();
        for batch in deltas.chunks(BATCH_DELTAS_MAX) {
            let source = fleet.source(platform.index, Lane::Urgent);
            source.publish(batch.to_vec()).await?;
        }
    }
    Ok(())
}

/// The platforms whose view is not exactly this list, without what they published themselves.
fn compare(lists: &Lists, list: &List, fleet: &Fleet) -> Vec<&'static str> {
    let registers: Vec<Register> = lists
        .areas
        .iter()
        .zip(&lists.entities)
        .map(|(area, entity)| {
            let issuer = fleet.platforms[area.home].issuer;
            let found = fleet.registers.find(issuer, entity, Kind::AreaRisk);
            found.expect("the directory was made of these areas")
        })
        .collect();
    let mut different = Vec::new();
    for platform in &fleet.platforms {
        let received = platform.received();
        let equal = registers.iter().enumerate().all(|(n, register)| {
            let own = lists.areas[n].home == platform.index;
            let listed = list.levels.get(&(n as u32)).filter(|_| !own);
            holds(received.view.value(*register), listed)
        });
        if !equal {
            different.push(platform.place.name);
        }
    }
    different
}

/// Whether a view's value says what the list says; an area that is not listed is unknown or cleared.
fn holds(value: ValueMark, listed: Option<&RiskLevel>) -> bool {
    match listed {
        Some(level) => value == ValueMark::of_level(*level),
        None => value == ValueMark::NONE || value == ValueMark::of_level(RiskLevel::Cleared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::platforms::first;

    fn path(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|p| (*p).to_owned()).collect()
    }

    fn lists() -> Lists {
        let mut builder = Builder::default();
        let (a, b) = (path(&["安徽省", "宿州市"]), path(&["四川省", "成都市"]));
        let elsewhere = path(&["海南省", "三亚市"]);
        builder.list(
            "1".to_owned(),
            first(4),
            [(a.clone(), RiskLevel::High), (elsewhere, RiskLevel::Low)].into_iter(),
        );
        builder.list(
            "2".to_owned(),
            first(4),
            [(a, RiskLevel::Middle), (b, RiskLevel::High)].into_iter(),
        );
        builder.list("3".to_owned(), first(4), std::iter::empty());
        assert_eq!(builder.elsewhere, 1);
        builder.finish()
    }

    #[test]
    fn the_changes_between_lists_are_new_levels_and_what_has_gone() {
        let lists = lists();
        let change = |i: usize| {
            let before = i.checked_sub(1).map(|b| &lists.lists[b]);
            changes(before, &lists.lists[i])
        };
        assert_eq!(change(0), [(0, RiskLevel::High)]);
        assert_eq!(change(1), [(0, RiskLevel::Middle), (1, RiskLevel::High)]);
        assert_eq!(
            change(2),
            [(0, RiskLevel::Cleared), (1, RiskLevel::Cleared)]
        );
    }

    #[test]
    fn an_area_not_listed_is_unknown_or_cleared_and_nothing_else() {
        let mark = ValueMark::of_level;
        assert!(holds(ValueMark::NONE, None));
        assert!(holds(mark(RiskLevel::Cleared), None));
        assert!(!holds(mark(RiskLevel::Low), None));
        assert!(holds(mark(RiskLevel::High), Some(&RiskLevel::High)));
        assert!(!holds(mark(RiskLevel::High), Some(&RiskLevel::Low)));
        assert!(!holds(ValueMark::NONE, Some(&RiskLevel::Low)));
    }
}
