//! The snapshot folder: differences rebuild every list, bad files clear nothing.

use hutong_connectors::{
    source::{Source, SourceBatch, SourceError, SourceRow, UNREADABLE},
    sources::snapshot_folder::{CommittedAt, Format, Settings, SnapshotFolder, parse_risk_levels},
};
use hutong_proto::delta::RiskLevel;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

type Table = BTreeMap<Vec<String>, String>;

/// What a receiver has: the newest revision of each area.
#[derive(Default)]
struct View(BTreeMap<Vec<String>, (u64, String)>);

impl View {
    /// Says how many rows were new.
    fn apply(&mut self, rows: &[SourceRow]) -> usize {
        let mut new = 0;
        for row in rows {
            let path: Vec<String> =
                serde_json::from_value(row.fields["path"].clone()).expect("a path");
            let level = row.fields["level"].as_str().expect("a level").to_owned();
            let newest = self.0.entry(path).or_default();
            if newest.0 < row.revision.0 {
                *newest = (row.revision.0, level);
                new += 1;
            }
        }
        new
    }

    fn table(&self) -> Table {
        let listed = self.0.iter().filter(|(_, (_, level))| level != "cleared");
        listed
            .map(|(path, (_, level))| (path.clone(), level.clone()))
            .collect()
    }
}

/// Reads a file in another way than the source does: from the lowest list up, later ones overwrite.
fn table_of(file: &Path, province: Option<&str>) -> Table {
    let file: Value = serde_json::from_slice(&fs::read(file).expect("a file")).expect("JSON");
    let mut table = Table::new();
    for (list, level) in [
        ("lowlist", "low"),
        ("middlelist", "middle"),
        ("highlist", "high"),
    ] {
        for entry in file["data"][list].as_array().into_iter().flatten() {
            let text = |key: &str| entry[key].as_str().expect("a text").to_owned();
            if province.is_some_and(|p| p != text("province")) {
                continue;
            }
            let county = vec![text("province"), text("city"), text("county")];
            for community in entry["communitys"].as_array().expect("a list") {
                let mut path = county.clone();
                path.push(community.as_str().expect("a text").to_owned());
                table.insert(path, level.to_owned());
            }
        }
    }
    table
}

/// The real lists, if they are beside the project.
fn real_files() -> Option<(PathBuf, Vec<String>)> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let data = std::env::var_os("HUTONG_TEST_DATA").map_or(beside, PathBuf::from);
    let dir = data.join("risk-levels");
    let dir = fs::canonicalize(&dir).unwrap_or(dir);
    let Ok(entries) = fs::read_dir(&dir) else {
        println!(
            "no real lists at {}: only made-up ones are tested",
            dir.display()
        );
        return None;
    };
    let name = |e: std::io::Result<fs::DirEntry>| e.ok()?.file_name().into_string().ok();
    let mut files: Vec<String> = entries.filter_map(name).collect();
    files.sort();
    Some((dir, files))
}

fn settings(dir: &Path) -> Settings {
    Settings {
        poll: Duration::from_millis(20),
        settle: Duration::ZERO,
        ..Settings::new(dir, Format::RiskLevels)
    }
}

async fn started(settings: &Settings, checkpoint: Option<Value>) -> SnapshotFolder {
    let mut source = SnapshotFolder::new(settings.clone());
    source.start(checkpoint).await.expect("starts");
    source
}

async fn next(source: &mut SnapshotFolder) -> Result<SourceBatch, SourceError> {
    timeout(SOON, source.next()).await.expect("rows in time")
}

/// A reproducible choice.
fn chance(seed: &mut u64, of: u64) -> bool {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33).is_multiple_of(of)
}

/// Reads `files` with restarts, now and then from an older checkpoint, and compares at each file.
async fn replay(dir: &Path, files: &[String], province: Option<&str>) {
    let mut settings = settings(dir);
    settings.notify = false;
    settings.provinces = province.map(str::to_owned).into_iter().collect();
    let mut source = started(&settings, None).await;
    let (mut view, mut kept, mut seed) = (View::default(), Vec::<Value>::new(), 7);
    let (mut file, mut repeated) = (0, 0);
    while file < files.len() {
        let batch = next(&mut source).await.expect("real lists are good");
        let name = batch.barrier.as_deref().expect("one batch a file");
        let new = view.apply(&batch.rows);
        if name < files[file].as_str() {
            assert_eq!(new, 0, "{name} again gives the same revisions");
            repeated += 1;
        } else {
            assert_eq!(name, files[file]);
            assert_eq!(new, batch.rows.len(), "{name}: each row is new");
            assert!(
                view.table() == table_of(&dir.join(name), province),
                "{name}"
            );
            file += 1;
        }
        kept.push(batch.checkpoint);
        if chance(&mut seed, 9) {
            let older = kept.len() - 1 - kept.len().min(3) * usize::from(chance(&mut seed, 2)) / 2;
            source = started(&settings, Some(kept[older].clone())).await;
        }
    }
    assert!(repeated > 0, "no file was read again");
}

#[tokio::test]
async fn every_real_list_is_rebuilt_also_after_restarts() {
    let Some((dir, files)) = real_files() else {
        return;
    };
    assert!(files.len() >= 561, "{} files", files.len());
    replay(&dir, &files, None).await;
}

#[tokio::test]
async fn every_province_rebuilds_its_part_of_the_real_lists() {
    let Some((dir, files)) = real_files() else {
        return;
    };
    let latest = TempDir::new().expect("a folder");
    let files = &files[files.len() - 120..];
    for file in files {
        let there = latest.path().join(file);
        std::os::unix::fs::symlink(dir.join(file), there).expect("a link");
    }
    for province in ["安徽省", "西藏自治区", "新疆生产建设兵团"] {
        replay(latest.path(), files, Some(province)).await;
    }
}

#[tokio::test]
async fn real_lists_are_parsed_as_the_naive_reading_says() {
    let Some((dir, files)) = real_files() else {
        return;
    };
    for file in &files {
        let bytes = fs::read(dir.join(file)).expect("a file");
        let parsed = parse_risk_levels(&bytes).expect(file);
        let parsed: Table = parsed
            .into_iter()
            .map(|(p, l)| (p, l.name().to_owned()))
            .collect();
        assert!(parsed == table_of(&dir.join(file), None), "{file}");
    }
}

/// A list with these communities at these levels.
fn list(hour: u32, communities: &[(&str, RiskLevel)]) -> String {
    let entries = |level: RiskLevel| -> Vec<Value> {
        let of_level = communities.iter().filter(|(_, l)| *l == level);
        let entry = |(name, _): &(&str, RiskLevel)| {
            json!({"type": "2", "province": "安徽省", "city": "宿州市", "county": "泗县",
                   "area_name": "安徽省 宿州市 泗县", "communitys": [name]})
        };
        of_level.map(entry).collect()
    };
    json!({"code": 0, "msg": "", "data": {
        "end_update_time": format!("2022-07-01 {hour}时"),
        "highlist": entries(RiskLevel::High),
        "middlelist": entries(RiskLevel::Middle),
        "lowlist": entries(RiskLevel::Low)}})
    .to_string()
}

fn put(dir: &TempDir, name: &str, text: &str) {
    // As a careful writer does it.
    let hidden = dir.path().join(format!(".{name}"));
    fs::write(&hidden, text).expect("written");
    fs::rename(hidden, dir.path().join(name)).expect("renamed");
}

/// `level community` of each row.
fn said(batch: &SourceBatch) -> Vec<String> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let row = |r: &SourceRow| {
        format!(
            "{} {}",
            text(&r.fields["level"]),
            text(&r.fields["path"][3])
        )
    };
    batch.rows.iter().map(row).collect()
}

const HIGH: RiskLevel = RiskLevel::High;
const LOW: RiskLevel = RiskLevel::Low;

#[tokio::test]
async fn rows_say_what_changed_and_what_vanished() {
    let dir = TempDir::new().expect("a folder");
    put(&dir, "a.json", &list(8, &[("one", HIGH), ("two", LOW)]));
    put(&dir, "b.json", &list(9, &[("one", LOW), ("three", LOW)]));
    let mut source = started(&settings(dir.path()), None).await;
    assert_eq!(
        said(&next(&mut source).await.expect("a")),
        ["high one", "low two"]
    );
    let b = next(&mut source).await.expect("b");
    assert_eq!(said(&b), ["low one", "low three", "cleared two"]);
    assert_eq!(b.barrier.as_deref(), Some("b.json"));
    let cleared = &b.rows[2];
    assert_eq!(cleared.fields["area_name"], "安徽省 宿州市 泗县");
    assert_eq!(cleared.fields["file"], "b.json");
    assert_eq!(cleared.place, "file b.json, no longer listed");
    assert_eq!(
        cleared.committed_at.0, 1_656_637_200_000_000,
        "9 o'clock in Beijing"
    );
}

#[tokio::test]
async fn revisions_rise_over_files_of_one_hour_and_over_times_that_go_back() {
    let dir = TempDir::new().expect("a folder");
    for (name, hour) in [("a", 9), ("b", 9), ("c", 8), ("d", 10)] {
        let community = format!("only {name}");
        put(
            &dir,
            &format!("{name}.json"),
            &list(hour, &[("one", HIGH), (&community, LOW)]),
        );
    }
    let hours = [9, 9, 8, 10].map(|hour| 1_656_604_800_000_000 + hour * 3_600_000_000);
    let expected = [hours[0], hours[0] + 1, hours[0] + 2, hours[3]];
    let settings = settings(dir.path());
    let mut checkpoint = None;
    for expected in expected {
        // Started anew for every file: nothing but the checkpoint counts.
        let mut source = started(&settings, checkpoint).await;
        let batch = next(&mut source).await.expect("a list");
        assert!(
            batch.rows.iter().all(|row| row.revision.0 == expected),
            "{:?}",
            batch.rows
        );
        checkpoint = Some(batch.checkpoint);
    }
}

#[tokio::test]
async fn a_bad_file_becomes_a_dead_letter_and_clears_nothing() {
    let good = list(8, &[("one", HIGH), ("two", LOW)]);
    let bad = [
        ("truncated", &good[..40], "EOF"),
        ("empty", "", "EOF"),
        (
            "error",
            r#"{"code": 500, "msg": "busy", "data": {"highlist": [], "middlelist": []}}"#,
            "`code` is 500",
        ),
        (
            "shape",
            r#"{"code": 0, "data": {"end_update_time": "2022-07-01 9时", "highlist": []}}"#,
            "middlelist",
        ),
        (
            "timeless",
            r#"{"code": 0, "data": {"highlist": [], "middlelist": []}}"#,
            "no time",
        ),
        (
            "future",
            &list(8, &[]).replace("2022", "2098"),
            "in the future",
        ),
    ];
    for (what, text, why) in bad {
        let dir = TempDir::new().expect("a folder");
        put(&dir, "a.json", &good);
        put(&dir, "b.json", text);
        put(&dir, "c.json", &list(10, &[("one", LOW), ("two", LOW)]));
        let mut source = started(&settings(dir.path()), None).await;
        next(&mut source).await.expect("a");
        let refused = next(&mut source).await.expect("b");
        assert_eq!(refused.rows.len(), 1, "{what}");
        let row = &refused.rows[0];
        assert!(
            row.fields.get("level").is_none() && row.fields.get("path").is_none(),
            "{what}"
        );
        assert!(
            row.fields[UNREADABLE]
                .as_str()
                .expect("a reason")
                .contains(why),
            "{what}: {row:?}"
        );
        let mut source = started(&settings(dir.path()), Some(refused.checkpoint)).await;
        assert_eq!(
            said(&next(&mut source).await.expect("c")),
            ["low one"],
            "{what}"
        );
    }
}

/// 30 communities.
fn long() -> Vec<(&'static str, RiskLevel)> {
    let names =
        "一 二 三 四 五 六 七 八 九 十 甲 乙 丙 丁 戊 己 庚 辛 壬 癸 子 丑 寅 卯 辰 巳 午 未 申 酉";
    names.split(' ').map(|name| (name, HIGH)).collect()
}

#[tokio::test]
async fn a_list_in_which_most_vanishes_is_held_until_someone_looked() {
    let dir = TempDir::new().expect("a folder");
    put(&dir, "a.json", &list(8, &long()));
    put(&dir, "b.json", &list(9, &long()[..14]));
    let mut held = started(&settings(dir.path()), None).await;
    let a = next(&mut held).await.expect("a");
    for _ in 0..2 {
        let error = next(&mut held).await.expect_err("held");
        assert!(
            error.passing && error.message.contains("16 of 30 areas vanish"),
            "{error}"
        );
        assert!(
            error.message.contains("accept_shrink = \"b.json\""),
            "{error}"
        );
        held.start(Some(a.checkpoint.clone()))
            .await
            .expect("starts");
    }
    // Somebody says that it is right.
    let accepts = Settings {
        accept_shrink: vec!["b.json".into()],
        ..settings(dir.path())
    };
    let mut source = started(&accepts, Some(a.checkpoint.clone())).await;
    assert_eq!(next(&mut source).await.expect("b").rows.len(), 16);
    // The file after it is like the one before it: it was a mistake.
    put(&dir, "c.json", &list(10, &long()[..29]));
    let refused = next(&mut held).await.expect("b is refused");
    assert!(
        refused.rows[0].fields[UNREADABLE]
            .as_str()
            .expect("a reason")
            .contains("16 of 30")
    );
    assert_eq!(said(&next(&mut held).await.expect("c")), ["cleared 酉"]);
    // It is taken away.
    let mut source = started(&settings(dir.path()), Some(a.checkpoint)).await;
    fs::remove_file(dir.path().join("b.json")).expect("removed");
    assert_eq!(said(&next(&mut source).await.expect("c")), ["cleared 酉"]);
}

#[tokio::test]
async fn an_empty_list_is_held_however_short_the_last_one_was() {
    let dir = TempDir::new().expect("a folder");
    put(&dir, "a.json", &list(8, &[("one", HIGH)]));
    put(&dir, "b.json", &list(9, &[]));
    let mut source = started(&settings(dir.path()), None).await;
    next(&mut source).await.expect("a");
    let error = next(&mut source).await.expect_err("held");
    assert!(
        error.passing && error.message.contains("1 of 1 areas"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_that_is_being_written_is_waited_for() {
    let dir = TempDir::new().expect("a folder");
    let text = list(8, &[("one", HIGH)]);
    let path = dir.path().join("a.json");
    fs::write(&path, &text.as_bytes()[..text.len() / 2]).expect("half");
    let patient = Settings {
        settle: Duration::from_secs(600),
        ..settings(dir.path())
    };
    let mut source = started(&patient, None).await;
    let early = timeout(Duration::from_millis(300), source.next()).await;
    assert!(early.is_err(), "half a file gives nothing: {early:?}");
    fs::write(&path, &text).expect("all");
    assert_eq!(said(&next(&mut source).await.expect("a")), ["high one"]);
}

#[tokio::test]
async fn a_new_file_is_noticed_without_polling() {
    let dir = TempDir::new().expect("a folder");
    let lazy = Settings {
        poll: Duration::from_secs(3600),
        ..settings(dir.path())
    };
    let mut source = started(&lazy, None).await;
    let early = timeout(Duration::from_millis(100), source.next()).await;
    assert!(early.is_err(), "{early:?}");
    put(&dir, "a.json", &list(8, &[("one", HIGH)]));
    assert_eq!(said(&next(&mut source).await.expect("a")), ["high one"]);
}

#[tokio::test]
async fn without_its_last_list_the_source_says_what_to_do() {
    let dir = TempDir::new().expect("a folder");
    put(&dir, "a.json", &list(8, &[("one", HIGH)]));
    let mut source = started(&settings(dir.path()), None).await;
    let checkpoint = next(&mut source).await.expect("a").checkpoint;
    let check = async |settings: Settings, expected: &str| {
        let mut source = SnapshotFolder::new(settings);
        let error = source
            .start(Some(checkpoint.clone()))
            .await
            .expect_err(expected);
        assert!(
            !error.passing && error.message.contains(expected),
            "{error}"
        );
    };
    let mut other = settings(dir.path());
    other.provinces = vec!["安徽省".into()];
    check(other, "`province` was [] and is [\"安徽省\"]").await;
    put(&dir, "a.json", &list(8, &[("two", HIGH)]));
    check(
        settings(dir.path()),
        "a.json, the last list that was read, was changed",
    )
    .await;
    fs::remove_file(dir.path().join("a.json")).expect("removed");
    check(
        settings(dir.path()),
        "a.json, the last list that was read, is gone",
    )
    .await;
    check(settings(&dir.path().join("nowhere")), "is gone").await;
    let mut source = SnapshotFolder::new(settings(&dir.path().join("nowhere")));
    let error = source.start(None).await.expect_err("no folder");
    assert!(
        !error.passing && error.message.contains("hutong-connect init"),
        "{error}"
    );
    source.init().await.expect("made");
    source.start(None).await.expect("starts");
}

#[tokio::test]
async fn a_replay_ends_where_it_was_told_and_takes_the_time_of_reading() {
    let dir = TempDir::new().expect("a folder");
    for name in ["a", "b", "c"] {
        put(
            &dir,
            &format!("{name}.json"),
            &list(8, &[(name, HIGH), ("one", LOW)]),
        );
    }
    let replay = Settings {
        once: true,
        until: Some("b.json".into()),
        committed_at: CommittedAt::Now,
        ..settings(dir.path())
    };
    let mut source = started(&replay, None).await;
    let a = next(&mut source).await.expect("a");
    assert!(a.rows[0].committed_at.0 > a.rows[0].revision.0);
    next(&mut source).await.expect("b");
    let more = timeout(Duration::from_millis(200), source.next()).await;
    assert!(more.is_err(), "{more:?}");
    let sample = source.sample(1).await.expect("a sample");
    assert_eq!(sample.len(), 1);
    assert_eq!(sample[0].fields["file"], "a.json");
}
