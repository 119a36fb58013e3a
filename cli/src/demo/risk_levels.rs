//! `hutong demo --risk-levels DIR`: the published lists of risk areas, replayed. Every province reads the
//! folder with the snapshot-folder source, publishes what changed on its part of the lists, and after
//! sampled files every platform's view is compared with the file itself, area by area.

use super::{
    fleet::Fleet,
    people::provenance,
    platform::Platform,
    platforms::Place,
    registers::{Register, Registers},
    report::ReplayReport,
    view::ValueMark,
};
use crate::{
    errors::CliError,
    output::{Screen, grouped},
};
use hutong_connectors::{
    source::{Source as _, SourceRow},
    sources::snapshot_folder::{CommittedAt, Format, Settings, SnapshotFolder, parse_risk_levels},
};
use hutong_proto::{
    Delta, EntityId, Issuer, Kind, Lane, Micros, Provenance, Value, area, delta::RiskLevel,
};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Comparisons over a replay, beside the one at its end.
const COMPARISONS: usize = 24;
const BATCH_DELTAS_MAX: usize = 2000;
/// Reading one list takes milliseconds; a source that takes so long waits for something.
const STUCK_AFTER: Duration = Duration::from_secs(120);

/// The lists of a folder, and the areas that stand on any of them.
#[derive(Debug)]
pub struct Lists {
    dir: PathBuf,
    /// Files that can be read as lists, in their order.
    names: Vec<String>,
    /// By path: which platform of the demo publishes it.
    areas: BTreeMap<Vec<String>, usize>,
    /// Files that cannot be read as lists.
    broken: usize,
    /// Areas of provinces without a platform in this demo.
    elsewhere: usize,
}

type Levels = BTreeMap<Vec<String>, RiskLevel>;

/// Looks at all `.json` files of a folder.
pub fn read(dir: &Path, places: &[Place]) -> Result<Lists, CliError> {
    let entries = fs::read_dir(dir).map_err(|source| CliError::File {
        doing: "opening the folder",
        path: dir.to_owned(),
        source,
    })?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.ends_with(".json") && !name.starts_with('.'))
        .collect();
    names.sort();
    let mut lists = Lists {
        dir: dir.to_owned(),
        names: Vec::with_capacity(names.len()),
        areas: BTreeMap::new(),
        broken: 0,
        elsewhere: 0,
    };
    let mut wrong = None;
    for name in names {
        match levels(dir, &name)? {
            Ok(levels) => lists.add(name, levels, places),
            Err(why) => {
                lists.broken += 1;
                wrong.get_or_insert(format!("{name}: {why}"));
            }
        }
    }
    lists.forget_other_provinces();
    if lists.names.is_empty() {
        return Err(CliError::Usage(format!(
            "{} holds no list of risk areas; --risk-levels takes a folder of published lists, as .json files{}",
            dir.display(),
            wrong.map_or_else(String::new, |w| format!(" ({w})"))
        )));
    }
    Ok(lists)
}

/// One file. The inner error says why it is no list.
fn levels(dir: &Path, name: &str) -> Result<Result<Levels, String>, CliError> {
    let path = dir.join(name);
    let bytes = fs::read(&path).map_err(|source| CliError::File {
        doing: "reading",
        path,
        source,
    })?;
    Ok(parse_risk_levels(&bytes).map_err(|e| e.to_string()))
}

/// Marks a province that no platform of the demo publishes.
const NOWHERE: usize = usize::MAX;

impl Lists {
    fn add(&mut self, name: String, levels: Levels, places: &[Place]) {
        for path in levels.into_keys() {
            let province = path.first().map_or("", String::as_str);
            let home = places.iter().position(|p| p.province == province);
            self.areas.insert(path, home.unwrap_or(NOWHERE));
        }
        self.names.push(name);
    }

    fn forget_other_provinces(&mut self) {
        let all = self.areas.len();
        self.areas.retain(|_, home| *home != NOWHERE);
        self.elsewhere = all - self.areas.len();
    }

    /// The directory of all areas.
    pub fn registers(&self, places: &[Place]) -> Registers {
        let mut registers = Registers::default();
        for (path, home) in &self.areas {
            let issuer = Issuer::new(places[*home].code).expect("the table holds valid codes");
            registers.add(issuer, &entity_of(path), *home);
        }
        registers
    }
}

fn entity_of(path: &[String]) -> EntityId {
    area::entity(path.iter().map(String::as_str))
}

/// Publishes list after list and compares.
pub async fn replay(
    lists: &Lists,
    fleet: &Fleet,
    screen: &Screen,
) -> Result<ReplayReport, CliError> {
    introduce(lists, screen)?;
    let every = lists.names.len().div_ceil(COMPARISONS).max(1);
    let mut provinces = Vec::with_capacity(fleet.platforms.len());
    for platform in &fleet.platforms {
        provinces.push(Province::start(platform, &lists.dir).await?);
    }
    let directory = Directory::new(lists, fleet);
    let mut report = ReplayReport {
        files: lists.names.len(),
        files_compared: 0,
        unequal: 0,
    };
    let mut changes = 0;
    screen.line(screen.bold(Line::HEADER))?;
    for (i, name) in lists.names.iter().enumerate() {
        let sent_at = Instant::now();
        let (again, published) = publish_list(provinces, fleet, name).await?;
        provinces = again;
        changes += published;
        if !(i + 1).is_multiple_of(every) && i + 1 != lists.names.len() {
            continue;
        }
        fleet.quiet_down().await;
        let waited = sent_at.elapsed();
        let levels = levels(&lists.dir, name)?.map_err(|why| {
            CliError::Broken(format!("{name} was a list and is none any more: {why}"))
        })?;
        let different = directory.compare(&levels, fleet);
        report.files_compared += 1;
        report.unequal += different.len() as u64;
        let line = Line {
            name,
            listed: levels.len(),
            changes,
            waited,
            platforms: fleet.platforms.len(),
            different,
        };
        screen.line(line.render())?;
        changes = 0;
    }
    Ok(report)
}

fn introduce(lists: &Lists, screen: &Screen) -> Result<(), CliError> {
    screen.heading(&format!(
        "{} published lists of risk areas, {} areas, every province publishing its own",
        grouped(lists.names.len() as u64),
        grouped(lists.areas.len() as u64)
    ))?;
    if lists.broken > 0 {
        screen.paragraph(&format!(
            "{} files cannot be read as lists and clear nothing.",
            lists.broken
        ))?;
    }
    if lists.elsewhere > 0 {
        screen.paragraph(&format!(
            "{} areas are left out: their provinces do not take part in this run.",
            grouped(lists.elsewhere as u64)
        ))?;
    }
    screen.blank()
}

/// One comparison, as it is printed.
struct Line<'a> {
    name: &'a str,
    listed: usize,
    changes: usize,
    waited: Duration,
    platforms: usize,
    different: Vec<&'static str>,
}

impl Line<'_> {
    const HEADER: &'static str =
        "  areas listed  changes since  ms for the last  every view equals the file         list";

    fn render(&self) -> String {
        let equal = match self.different.as_slice() {
            [] => format!("yes, on all {} platforms", self.platforms),
            names => format!("NO: {}", names.join(", ")),
        };
        format!(
            "  {:>12}  {:>13}  {:>15}  {equal:<33}  {}",
            grouped(self.listed as u64),
            grouped(self.changes as u64),
            self.waited.as_millis(),
            self.name
        )
    }
}

/// One province with its own snapshot-folder source.
struct Province {
    platform: Arc<Platform>,
    folder: SnapshotFolder,
    /// By list: all changes of one list have one reason.
    authority: Arc<Provenance>,
}

impl Province {
    async fn start(platform: &Arc<Platform>, dir: &Path) -> Result<Province, CliError> {
        let mut folder = SnapshotFolder::new(Settings {
            provinces: vec![platform.place.province.to_owned()],
            notify: false,
            settle: Duration::ZERO,
            once: true,
            // Latency counts from the moment of publishing, not from 2022.
            committed_at: CommittedAt::Now,
            // Lists did shrink suddenly, and a replay asks nobody whether that was right.
            shrink_max: 1.0,
            ..Settings::new(dir, Format::RiskLevels)
        });
        folder
            .start(None)
            .await
            .map_err(|e| CliError::Broken(format!("{}: {e}", platform.place.name)))?;
        Ok(Province {
            authority: provenance(platform.place, "RISK", "published list of risk areas"),
            platform: Arc::clone(platform),
            folder,
        })
    }

    /// The changes of the next list, which must be this one.
    async fn next(&mut self, name: &str) -> Result<Vec<Delta>, CliError> {
        let wrong = |what: String| {
            CliError::Broken(format!(
                "{}, reading {name}: {what}",
                self.platform.place.name
            ))
        };
        loop {
            let batch = self.folder.next().await.map_err(|e| wrong(e.to_string()))?;
            match batch.barrier {
                // A file that is no list: the source goes past it.
                None => {}
                Some(read) if read == name => {
                    let rows = batch.rows.iter();
                    return rows
                        .map(|row| delta(row, &self.authority))
                        .collect::<Option<_>>()
                        .ok_or_else(|| wrong("a row without level or path".to_owned()));
                }
                Some(other) => return Err(wrong(format!("the source gave {other}"))),
            }
        }
    }
}

fn delta(row: &SourceRow, authority: &Arc<Provenance>) -> Option<Delta> {
    let level = RiskLevel::from_name(row.fields.get("level")?.as_str()?)?;
    let parts = row.fields.get("path")?.as_array()?.iter();
    let path: Vec<String> = parts
        .map(|part| part.as_str().map(str::to_owned))
        .collect::<Option<_>>()?;
    Some(Delta {
        entity: entity_of(&path),
        revision: row.revision,
        committed_at: row.committed_at,
        expires_at: Micros::ZERO,
        evidence: String::new(),
        provenance: Arc::clone(authority),
        value: Value::AreaRisk { level, path },
    })
}

/// Lets every province read and publish one list. Returns the provinces, and how much they published.
async fn publish_list(
    provinces: Vec<Province>,
    fleet: &Fleet,
    name: &str,
) -> Result<(Vec<Province>, usize), CliError> {
    let mut readers = JoinSet::new();
    for mut province in provinces {
        let name = name.to_owned();
        let source = fleet.source(province.platform.index, Lane::Urgent).clone();
        readers.spawn(async move {
            let deltas = province.next(&name).await?;
            for batch in deltas.chunks(BATCH_DELTAS_MAX) {
                source.publish(batch.to_vec()).await?;
            }
            Ok::<_, CliError>((province, deltas.len()))
        });
    }
    let (mut provinces, mut changes) = (Vec::new(), 0);
    loop {
        let next = tokio::time::timeout(STUCK_AFTER, readers.join_next());
        match next.await {
            Err(_) => {
                return Err(CliError::Broken(format!(
                    "some province has been reading or publishing {name} for {} s",
                    STUCK_AFTER.as_secs()
                )));
            }
            Ok(None) => return Ok((provinces, changes)),
            Ok(Some(read)) => {
                let read = read.map_err(|e| CliError::Broken(format!("a reader died: {e}")))?;
                let (province, published) = read?;
                provinces.push(province);
                changes += published;
            }
        }
    }
}

/// Where each area is in a view.
struct Directory {
    registers: HashMap<Vec<String>, Register>,
}

impl Directory {
    fn new(lists: &Lists, fleet: &Fleet) -> Directory {
        let registers = lists.areas.iter().map(|(path, home)| {
            let issuer = fleet.platforms[*home].issuer;
            let found = fleet
                .registers
                .find(issuer, &entity_of(path), Kind::AreaRisk);
            (
                path.clone(),
                found.expect("the directory was made of these areas"),
            )
        });
        Directory {
            registers: registers.collect(),
        }
    }

    /// The platforms whose view is not exactly this file, without what they published themselves.
    fn compare(&self, levels: &Levels, fleet: &Fleet) -> Vec<&'static str> {
        let mut different = Vec::new();
        for platform in &fleet.platforms {
            let received = platform.received();
            let equal = self.registers.iter().all(|(path, register)| {
                let own = fleet.registers.home(register.0 as usize) == platform.index;
                let listed = levels.get(path).filter(|_| !own);
                holds(received.view.value(*register), listed)
            });
            if !equal {
                different.push(platform.place.name);
            }
        }
        different
    }
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
    use hutong_proto::Revision;
    use serde_json::json;

    fn list(areas: &[(&str, &str)]) -> String {
        let entries: Vec<_> = areas
            .iter()
            .map(|(province, community)| {
                json!({"type": "2", "province": province, "city": "c", "county": "d",
                       "area_name": "n", "communitys": [community]})
            })
            .collect();
        json!({"code": 0, "msg": "", "data": {"end_update_time": "2022-04-15 11时",
               "hcount": 0, "mcount": 0, "highlist": entries, "middlelist": []}})
        .to_string()
    }

    #[test]
    fn a_folder_is_read_with_its_untidy_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).expect("a file");
        };
        write(
            "2022041511-a.json",
            &list(&[("安徽省", "x"), ("海南省", "y")]),
        );
        write("2022041512-b.json", "{\"code\": 0, \"data\": {\"highl");
        write(
            "2022041513-c.json",
            &list(&[("安徽省", "x"), ("四川省", "z")]),
        );
        write("notes.txt", "not a list");
        let lists = read(dir.path(), first(4)).expect("two lists");
        assert_eq!(lists.names, ["2022041511-a.json", "2022041513-c.json"]);
        assert_eq!(
            (lists.areas.len(), lists.broken, lists.elsewhere),
            (2, 1, 1)
        );
    }

    #[test]
    fn a_folder_without_lists_is_a_usage_error_that_says_what_is_wrong() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("1.json"), "{").expect("a file");
        let error = read(dir.path(), first(4)).expect_err("no list");
        assert_eq!(error.code(), 2);
        assert!(error.to_string().contains("1.json"), "{error}");
    }

    #[test]
    fn a_row_becomes_a_delta_of_its_area() {
        let row = |fields: serde_json::Value| SourceRow {
            fields: fields.as_object().expect("an object").clone(),
            place: "file 1".to_owned(),
            revision: Revision(7),
            committed_at: Micros(9),
        };
        let authority = provenance(&first(1)[0], "RISK", "list");
        let good = row(json!({"level": "high", "path": ["安徽省", "宿州市"]}));
        let made = delta(&good, &authority).expect("a delta");
        assert_eq!(made.entity, area::entity(["安徽省", "宿州市"]));
        assert_eq!(made.revision, Revision(7));
        assert!(delta(&row(json!({"refused": "why"})), &authority).is_none());
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
