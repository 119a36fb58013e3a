//! `hutong demo --risk-levels DIR`: the published lists of risk areas, replayed. Every province has a source
//! connector that reads the folder and publishes what changed on its part of the lists, and after sampled
//! files every platform's view is compared with the file itself, area by area.

use super::{
    book::{Entry, lock},
    connectors::{Connectors, provenance, wrong_config},
    fleet::Fleet,
    platform::Platform,
    platforms::Place,
    registers::{Register, Registers},
    report::ReplayReport,
    view::ValueMark,
};
use crate::{
    errors::CliError,
    output::{Screen, grouped, progress_bar},
};
use hutong_connectors::{
    config::{Config, SourceSettings, Work},
    source::{Source, SourceBatch, SourceError, SourceRow},
    sources::snapshot_folder::{SnapshotFolder, parse_risk_levels},
};
use hutong_proto::{EntityId, Issuer, Kind, Revision, Value, area, delta::RiskLevel};
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Comparisons over a replay, beside the one at its end.
const COMPARISONS: usize = 24;
/// Reading and publishing one list takes milliseconds; a connector that takes so long waits for something.
const STUCK_AFTER: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(2);

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

/// Starts a source connector a province. They stand before the first list.
pub fn start(
    lists: &Lists,
    fleet: &mut Fleet,
    connectors: &mut Connectors,
) -> Result<Replay, CliError> {
    let turn = watch::Sender::new(0);
    let mut published = Vec::with_capacity(fleet.platforms.len());
    for platform in &fleet.platforms {
        let text = config_text(platform, &lists.dir, connectors);
        let config = Config::parse("demo.toml", &text).map_err(wrong_config)?;
        let Work::Source(work) = config.work else {
            unreachable!("the text has a source");
        };
        let SourceSettings::SnapshotFolder(settings) = work.settings else {
            unreachable!("the text names this source");
        };
        let source = Stepped {
            folder: SnapshotFolder::new(settings),
            turn: turn.subscribe(),
            checkpoints: Vec::new(),
            given: 0,
            published: Arc::default(),
        };
        published.push(Arc::clone(&source.published));
        let connector = connectors.source(platform, &config.name, source, work.mapping)?;
        fleet.sources.push(connector);
    }
    Ok(Replay { turn, published })
}

/// The lists of the demo can be read; nothing is announced, and nothing comes after the last.
/// Latency counts from the moment of publishing, not from 2022. Lists did shrink suddenly, and a replay asks
/// nobody whether that was right.
fn config_text(platform: &Platform, dir: &Path, connectors: &Connectors) -> String {
    let Place { code, province, .. } = platform.place;
    let provenance = provenance(
        platform,
        &format!("rule_id = \"{code}-RISK\"\nreason = \"published list of risk areas\""),
    );
    format!(
        r#"
name = "risk-levels"
identity = "platform/{code}"
broker.address = "{}"
state.dir = {:?}
[source]
type = "snapshot-folder"
format = "risk-levels"
dir = {:?}
province = "{province}"
notify = false
settle = "0s"
once = true
committed_at = "now"
shrink_max = 1.0
[mapping]
kind = "area_risk"
entity = {{ area = "path" }}
level = {{ field = "level", canonical = true }}
{provenance}"#,
        connectors.address(),
        connectors.state_dir().to_string_lossy(),
        dir.to_string_lossy(),
    )
}

/// A folder that is read list by list, when it is each list's turn. Notes what every list says.
struct Stepped {
    folder: SnapshotFolder,
    /// How many lists may be read.
    turn: watch::Receiver<usize>,
    /// After each list that was given.
    checkpoints: Vec<Json>,
    /// How many lists were given since the checkpoint before the first.
    given: usize,
    published: Arc<Mutex<Vec<Row>>>,
}

/// What the last list says that the one before it did not.
#[derive(Debug)]
struct Row {
    entity: EntityId,
    revision: Revision,
    value: Value,
}

impl Source for Stepped {
    fn name(&self) -> &'static str {
        self.folder.name()
    }

    async fn start(&mut self, checkpoint: Option<Json>) -> Result<(), SourceError> {
        let at = self
            .checkpoints
            .iter()
            .position(|c| Some(c) == checkpoint.as_ref());
        self.given = at.map_or(0, |at| at + 1);
        self.folder.start(checkpoint).await
    }

    async fn next(&mut self) -> Result<SourceBatch, SourceError> {
        let given = self.given;
        let turn = self.turn.wait_for(|turn| *turn > given).await;
        drop(turn.map_err(|_| SourceError::lasting("the replay is over"))?);
        let mut batch = self.folder.next().await?;
        if batch.barrier.is_none() {
            // A file that is no list. It was said at the beginning, and is nobody's dead letter here.
            batch.rows.clear();
            return Ok(batch);
        }
        let rows: Option<Vec<Row>> = batch.rows.iter().map(published).collect();
        let rows = rows.ok_or_else(|| SourceError::lasting("a row without level or path"))?;
        *lock(&self.published) = rows;
        self.checkpoints.truncate(self.given);
        self.checkpoints.push(batch.checkpoint.clone());
        self.given += 1;
        Ok(batch)
    }

    async fn acknowledged(&mut self, checkpoint: &Json) -> Result<(), SourceError> {
        self.folder.acknowledged(checkpoint).await
    }

    async fn sample(&mut self, rows: usize) -> Result<Vec<SourceRow>, SourceError> {
        self.folder.sample(rows).await
    }
}

fn published(row: &SourceRow) -> Option<Row> {
    let level = RiskLevel::from_name(row.fields.get("level")?.as_str()?)?;
    let parts = row.fields.get("path")?.as_array()?.iter();
    let path: Vec<String> = parts
        .map(|part| part.as_str().map(str::to_owned))
        .collect::<Option<_>>()?;
    Some(Row {
        entity: entity_of(&path),
        revision: row.revision,
        value: Value::AreaRisk { level, path },
    })
}

/// The provinces that stand before the next list.
#[derive(Debug)]
pub struct Replay {
    turn: watch::Sender<usize>,
    /// By platform.
    published: Vec<Arc<Mutex<Vec<Row>>>>,
}

impl Replay {
    /// Lets every province read and publish its next list, which must be this one. Returns how much they
    /// published.
    async fn publish(&self, name: &str, fleet: &Fleet) -> Result<usize, CliError> {
        self.turn.send_modify(|turn| *turn += 1);
        let mut changes = 0;
        let deadline = Instant::now() + STUCK_AFTER;
        for (source, published) in fleet.sources.iter().zip(&self.published) {
            while source.complete().as_deref() != Some(name) {
                if Instant::now() > deadline {
                    return Err(CliError::Broken(format!(
                        "{} has been reading or publishing {name} for {} s",
                        source.platform().place.name,
                        STUCK_AFTER.as_secs()
                    )));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let rows = std::mem::take(&mut *lock(published));
            changes += rows.len();
            fleet.book.publish(rows.len());
            let entries = rows.iter().map(|row| Entry {
                entity: row.entity,
                revision: row.revision,
                value: &row.value,
            });
            fleet.book.settle(source.platform(), entries);
        }
        Ok(changes)
    }
}

/// Publishes list after list and compares.
pub async fn replay(
    lists: &Lists,
    replay: &Replay,
    fleet: &Fleet,
    screen: &Screen,
) -> Result<ReplayReport, CliError> {
    introduce(lists, screen)?;
    let every = lists.names.len().div_ceil(COMPARISONS).max(1);
    let directory = Directory::new(lists, fleet);
    let mut report = ReplayReport {
        files: lists.names.len(),
        files_compared: 0,
        unequal: 0,
    };
    let mut changes = 0;
    screen.line(screen.bold(Line::HEADER))?;
    let progress = progress_bar(
        "replaying",
        lists.names.len() as u64,
        "{pos} of {len} lists",
    );
    progress.tick();
    for (i, name) in lists.names.iter().enumerate() {
        let sent_at = Instant::now();
        changes += replay.publish(name, fleet).await?;
        progress.inc(1);
        if !(i + 1).is_multiple_of(every) && i + 1 != lists.names.len() {
            continue;
        }
        let waited = sent_at.elapsed() + fleet.quiet_down().await?.complete_after;
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
        progress.suspend(|| screen.line(line.render()))?;
        changes = 0;
    }
    progress.finish_and_clear();
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
    use hutong_proto::Micros;
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
    fn a_row_is_of_its_area() {
        let row = |fields: serde_json::Value| SourceRow {
            fields: fields.as_object().expect("an object").clone(),
            place: "file 1".to_owned(),
            revision: Revision(7),
            committed_at: Micros(9),
        };
        let good = row(json!({"level": "high", "path": ["安徽省", "宿州市"]}));
        let made = published(&good).expect("a row");
        assert_eq!(made.entity, area::entity(["安徽省", "宿州市"]));
        assert_eq!(made.revision, Revision(7));
        assert!(published(&row(json!({"refused": "why"}))).is_none());
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
