//! The published lists of risk areas, as they came in 2022, replayed while a drill breaks things: lists are
//! dropped into a folder, a connector a province reads its own part and publishes what changed, and in the
//! end the sink's table must be the last list, area by area.

use crate::{
    error::ChaosError,
    history::{AreaDiffers, AreasCompared, Event},
    stage::{
        Stage,
        machine::Machine,
        process::{Process, Spec},
    },
};
use hutong_proto::area::PROVINCES;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_postgres::NoTls;
use tokio_util::task::AbortOnDropHandle;

/// Of the load's time, when the last list comes: what follows is for recoveries.
const SHARE: f64 = 0.9;
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Differences that are told one by one; the rest is counted.
const TOLD_MAX: usize = 10;
/// Paths of a table, each with its level. What is cleared is as if it had never been listed.
const TABLE: &str = "SELECT path, status FROM hutong_registers \
    WHERE kind = 'area_risk' AND status <> 'cleared'";

/// By province, city, county and, where there is one, community.
type Levels = BTreeMap<Vec<String>, String>;

#[derive(Debug)]
pub struct Areas {
    /// In the order in which they were published.
    lists: Vec<PathBuf>,
    folder: PathBuf,
    connectors: Vec<Process>,
    /// What the last list says about the provinces of the drill.
    expected: Levels,
}

impl Areas {
    /// The connectors run when it returns, on an empty folder.
    pub fn build(stage: &Stage, machine: &Machine) -> Result<Areas, ChaosError> {
        let source = machine.risk_levels().map_err(ChaosError::Told)?;
        let lists = published(source)?;
        let platforms = PROVINCES
            .iter()
            .filter(|(code, _)| stage.platforms().contains(code));
        let mut expected = last(&lists)?;
        expected.retain(|path, _| platforms.clone().any(|(_, name)| path[0] == *name));
        let folder = stage.dir().join("lists");
        fs::create_dir(&folder).map_err(ChaosError::file("cannot create", &folder))?;
        let mut areas = Areas {
            lists,
            folder,
            connectors: Vec::new(),
            expected,
        };
        for (code, province) in platforms {
            let spec = areas.connector(stage, machine, *code, province)?;
            areas
                .connectors
                .push(Process::start(spec, stage.history.clone()));
        }
        Ok(areas)
    }

    fn connector(
        &self,
        stage: &Stage,
        machine: &Machine,
        code: u32,
        province: &str,
    ) -> Result<Spec, ChaosError> {
        let place = stage.platforms().iter().position(|p| *p == code);
        let line = stage.publisher_line(place.unwrap_or(0));
        let name = format!("areas-{code}");
        let file = stage.dir().join(format!("{name}.toml"));
        // The lists did shrink suddenly; a replay asks nobody whether that was right.
        let configuration = format!(
            "name = \"{name}\"\nidentity = \"platform/{code}\"\nbroker.address = \"{}\"\n\
             state.dir = \"{}\"\n[source]\ntype = \"snapshot-folder\"\nformat = \"risk-levels\"\n\
             dir = \"{}\"\nprovince = \"{province}\"\nsettle = \"0s\"\nshrink_max = 1.0\n\
             [mapping]\nkind = \"area_risk\"\nentity = {{ area = \"path\" }}\n\
             level = {{ field = \"level\", canonical = true }}\n\
             [provenance]\nauthority = \"{province}\"\nrule_id = \"risk-areas\"\nrule_version = 1\n\
             reason = \"published list of risk areas\"\n",
            line.url(),
            stage.dir().join("state").display(),
            self.folder.display(),
        );
        fs::write(&file, configuration).map_err(ChaosError::file("cannot write", &file))?;
        Ok(Spec {
            log: stage.dir().join(format!("{name}.log")),
            name,
            program: machine.connect().to_owned(),
            args: vec!["run".to_owned(), file.display().to_string()],
            env: machine.env(),
            says_ready: false,
            join: Vec::new(),
        })
    }

    /// Drops list after list into the folder, evenly over the time of the load.
    pub async fn replay(&self, stage: &Stage, from: Duration) -> Result<(), ChaosError> {
        let time = stage.drill.duration.mul_f64(SHARE);
        for (i, list) in self.lists.iter().enumerate() {
            let at = from + time.mul_f64(i as f64 / self.lists.len() as f64);
            stage.history.clock().sleep_until(at).await;
            let name = list.file_name().unwrap_or_default();
            // Under another name first: what is half there is no list.
            let part = self.folder.join(name).with_extension("part");
            fs::copy(list, &part)
                .and_then(|_| fs::rename(&part, self.folder.join(name)))
                .map_err(ChaosError::file("cannot copy", list))?;
        }
        Ok(())
    }

    /// Waits until the sink's table is the last list, at most so long; writes down what is different.
    pub async fn compare(&self, stage: &Stage, within: Duration) -> Result<(), ChaosError> {
        let Some(sink) = &stage.sink else {
            return Ok(());
        };
        let equal = async {
            loop {
                let found = table(&sink.url).await;
                if found.is_ok_and(|found| found == self.expected) {
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        // Whether it was in time is for the judge, who has the difference.
        drop(tokio::time::timeout(within, equal).await);
        let different = differences(&self.expected, &table(&sink.url).await?);
        stage.history.record(Event::Areas(AreasCompared {
            lists: self.lists.len() as u64,
            listed: self.expected.len() as u64,
            different: different.len() as u64,
            told: different.into_iter().take(TOLD_MAX).collect(),
        }));
        Ok(())
    }

    pub fn end(&self) {
        self.connectors.iter().for_each(Process::end);
    }
}

/// The files of a folder, in the order of their names, which begin with the hour.
fn published(dir: &Path) -> Result<Vec<PathBuf>, ChaosError> {
    let mut lists = Vec::new();
    for entry in fs::read_dir(dir).map_err(ChaosError::file("cannot read", dir))? {
        let path = entry.map_err(ChaosError::file("cannot read", dir))?.path();
        if path.extension().is_some_and(|e| e == "json") {
            lists.push(path);
        }
    }
    lists.sort();
    Ok(lists)
}

/// What the last file says that is a list. Not read with the connector's code, which is what is judged.
fn last(lists: &[PathBuf]) -> Result<Levels, ChaosError> {
    for file in lists.iter().rev() {
        let text = fs::read_to_string(file).map_err(ChaosError::file("cannot read", file))?;
        if let Some(levels) = serde_json::from_str(&text).ok().as_ref().and_then(levels) {
            return Ok(levels);
        }
    }
    Err(ChaosError::Stage(
        "none of the files is a list of risk areas".to_owned(),
    ))
}

/// The highest level of an area counts; an entry without communities is its whole county.
fn levels(file: &Value) -> Option<Levels> {
    let mut levels = Levels::new();
    let data = file.get("data")?;
    if file["code"] != 0 && file["code"] != "0" {
        return None;
    }
    for (list, level) in [("highlist", "high"), ("middlelist", "middle")] {
        add(&mut levels, data.get(list)?.as_array()?, level)?;
    }
    if let Some(list) = data.get("lowlist").and_then(Value::as_array) {
        add(&mut levels, list, "low")?;
    }
    Some(levels)
}

fn add(levels: &mut Levels, entries: &[Value], level: &str) -> Option<()> {
    for entry in entries {
        let part = |name: &str| Some(entry.get(name)?.as_str()?.to_owned());
        let county = vec![part("province")?, part("city")?, part("county")?];
        let communities = entry.get("communitys").and_then(Value::as_array);
        let communities = communities.map_or(&[][..], Vec::as_slice);
        if communities.is_empty() {
            levels.entry(county).or_insert_with(|| level.to_owned());
            continue;
        }
        for community in communities {
            let mut path = county.clone();
            path.push(community.as_str()?.to_owned());
            levels.entry(path).or_insert_with(|| level.to_owned());
        }
    }
    Some(())
}

async fn table(url: &str) -> Result<Levels, ChaosError> {
    let failed = || ChaosError::stage("the sink's table cannot be read");
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .map_err(failed())?;
    let _session = AbortOnDropHandle::new(tokio::spawn(connection));
    let rows = client.query(TABLE, &[]).await.map_err(failed())?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn differences(expected: &Levels, found: &Levels) -> Vec<AreaDiffers> {
    let paths: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    paths
        .into_iter()
        .filter(|path| expected.get(*path) != found.get(*path))
        .map(|path| AreaDiffers {
            area: path.join(" "),
            listed: expected.get(path).cloned(),
            found: found.get(path).cloned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn path(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|p| (*p).to_owned()).collect()
    }

    #[test]
    fn the_highest_level_of_an_area_counts() {
        let entry = |communities: Value| json!({ "province": "p", "city": "c", "county": "d", "communitys": communities });
        let list = json!({ "code": 0, "data": {
            "highlist": [entry(json!(["x", "x"]))],
            "middlelist": [entry(json!(["x", "y"])), entry(json!([]))],
        } });
        let expected = Levels::from([
            (path(&["p", "c", "d", "x"]), "high".to_owned()),
            (path(&["p", "c", "d", "y"]), "middle".to_owned()),
            (path(&["p", "c", "d"]), "middle".to_owned()),
        ]);
        assert_eq!(levels(&list), Some(expected));
        assert_eq!(
            levels(&json!({ "code": 0, "data": { "highlist": [] } })),
            None
        );
        assert_eq!(levels(&json!({ "code": 1, "data": null })), None);
    }

    #[test]
    fn a_difference_names_the_area_and_both_levels() {
        let table = Levels::from([(path(&["p"]), "low".to_owned())]);
        let list = Levels::from([
            (path(&["p"]), "high".to_owned()),
            (path(&["q"]), "low".to_owned()),
        ]);
        let differs = |area: &str, listed: &str, found: Option<&str>| AreaDiffers {
            area: area.to_owned(),
            listed: Some(listed.to_owned()),
            found: found.map(str::to_owned),
        };
        assert_eq!(
            differences(&list, &table),
            [differs("p", "high", Some("low")), differs("q", "low", None)]
        );
    }
}
