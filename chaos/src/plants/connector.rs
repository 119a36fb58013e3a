//! Checks of a connector's parts: a source's runner with its mapping, its dead letters and its checkpoint,
//! and the sink that writes lines. Real, with real files; the platform's system and the broker are lists.
//!
//! The runner is killed again and again while its batches are under way. Whatever it had done by then, in
//! the end each row is with the broker as the row says, or among the dead letters.

use crate::{interrupt, random::Random};
use hutong_planted_connectors::{
    checkpoint::StateFolder,
    client::Delivered,
    dlq::DeadLetters,
    mapping::{Mapper, MappingSettings},
    runner::{
        Connect, LinkError, Outcome, Outlet, Pauses, Pending, RefusedDelta, SourceRunner,
        SourceState,
    },
    sink::Sink,
    sinks::json_lines::{JsonLinesSink, Settings},
    source::{Source, SourceBatch, SourceError, SourceRow},
    state::Board,
};
use hutong_proto::{
    Cursor, Delta, EntityId, Issuer, Lane, LogId, Micros, Offset, Provenance, Reason, Revision,
    Value, delta::Colour,
};
use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Tries of a hunt.
pub const TRIES_MAX: u64 = 20;
const ROWS: u64 = 120;
/// Few, so that a person has several rows.
const PERSONS: u64 = 40;
const COLOURS: [(&str, Colour); 3] = [
    ("green", Colour::Green),
    ("yellow", Colour::Yellow),
    ("red", Colour::Red),
];
/// No mapping takes it.
const UNKNOWN_COLOUR: &str = "purple";
const LETTERS_BYTES_MAX: u64 = 1 << 20;
const MAPPING: &str = r#"
provenance = { authority = "CDC", rule_id = "R-1", rule_version = 1, reason = "contact" }
[[mapping]]
kind = "health_code"
entity = { pseudonym = "person" }
colour = { field = "colour", canonical = true }
"#;

/// Rows of a platform, with what each says.
fn rows(random: &mut Random) -> Vec<(SourceRow, Option<(EntityId, Value)>)> {
    let mut rows = Vec::new();
    for number in 0..ROWS {
        let person = random.below(PERSONS) + 1;
        let colour = match random.one_in(10) {
            true => None,
            false => Some(*random.pick(&COLOURS)),
        };
        let fields = json!({
            "person": format!("{person:032x}"),
            "colour": colour.map_or(UNKNOWN_COLOUR, |(name, _)| name),
        });
        let entity = EntityId(u128::from(person).to_be_bytes());
        let row = SourceRow {
            fields: serde_json::from_value(fields).expect("an object"),
            place: format!("row {number}"),
            revision: Revision(number + 1),
            // Rows of one transaction have one time.
            committed_at: Micros(1_660_000_000_000_000 + number / 8),
        };
        rows.push((
            row,
            colour.map(|(_, colour)| (entity, Value::HealthCode(colour))),
        ));
    }
    rows
}

/// Gives its rows in small parts; the checkpoint is their number.
struct List {
    rows: Arc<Vec<SourceRow>>,
    at: usize,
    random: Random,
}

impl Source for List {
    fn name(&self) -> &'static str {
        "list"
    }

    async fn start(&mut self, checkpoint: Option<Json>) -> Result<(), SourceError> {
        let at = checkpoint.as_ref().and_then(Json::as_u64).unwrap_or(0);
        self.at = usize::try_from(at).map_err(|e| SourceError::lasting(e.to_string()))?;
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceBatch, SourceError> {
        if self.at == self.rows.len() {
            return std::future::pending().await;
        }
        tokio::time::sleep(Duration::from_millis(self.random.between(1, 10))).await;
        let to = self.at + self.random.between(1, 8) as usize;
        let to = to.min(self.rows.len());
        let rows = self.rows[self.at..to].to_vec();
        self.at = to;
        Ok(SourceBatch {
            rows,
            checkpoint: json!(to),
            barrier: None,
        })
    }

    async fn acknowledged(&mut self, _: &Json) -> Result<(), SourceError> {
        Ok(())
    }

    async fn sample(&mut self, _: usize) -> Result<Vec<SourceRow>, SourceError> {
        Ok(Vec::new())
    }
}

/// What the broker has.
#[derive(Default)]
struct Kept {
    accepted: Vec<Delta>,
    newest: BTreeMap<EntityId, Revision>,
    /// It refuses this one for a reason of its own.
    refuses: Option<Revision>,
}

impl Kept {
    fn take(&mut self, deltas: &[Delta]) -> Outcome {
        let mut outcome = Outcome::default();
        for (index, delta) in deltas.iter().enumerate() {
            let mut refuse = |reason: Reason| {
                outcome.refused.push(RefusedDelta {
                    index,
                    reason: reason.code().to_owned(),
                    field: "revision".to_owned(),
                    message: reason.code().to_owned(),
                });
            };
            if self.refuses == Some(delta.revision) {
                refuse(Reason::TimeInFuture);
                continue;
            }
            let newest = self.newest.entry(delta.entity).or_default();
            if *newest >= delta.revision {
                refuse(Reason::RevisionNotNewer);
                continue;
            }
            *newest = delta.revision;
            self.accepted.push(delta.clone());
            outcome.accepted += 1;
        }
        outcome
    }
}

/// Takes its time. What is under way when the connector dies never arrives.
#[derive(Clone)]
struct Broker {
    kept: Arc<Mutex<Kept>>,
    random: Arc<Mutex<Random>>,
}

impl Connect for Broker {
    type Link = Broker;

    async fn connect(&mut self, _: Option<Cursor>) -> Result<Broker, LinkError> {
        Ok(self.clone())
    }
}

impl Outlet for Broker {
    async fn publish(&mut self, _: Lane, deltas: Vec<Delta>) -> Result<Pending, LinkError> {
        let takes = Duration::from_millis(self.random.lock().between(1, 60));
        let kept = Arc::clone(&self.kept);
        Ok(Box::pin(async move {
            tokio::time::sleep(takes).await;
            Ok(kept.lock().take(&deltas))
        }))
    }

    fn connected(&self) -> Result<(), String> {
        Ok(())
    }

    fn reconnects(&self) -> u64 {
        0
    }

    fn held_back(&self) -> [Duration; 2] {
        [Duration::ZERO; 2]
    }

    fn log_id(&self) -> String {
        "7".to_owned()
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        // Waiting costs nothing; it goes on only when no file is being written.
        .start_paused(true)
        .build()
        .map_err(|e| e.to_string())
}

/// How often, and what was found.
pub type Found = Result<(u64, Option<String>), String>;

fn tries(one: impl Fn(u64) -> Result<Option<String>, String>) -> Found {
    for number in 1..=TRIES_MAX {
        interrupt::check()?;
        if let Some(found) = one(number)? {
            return Ok((number, Some(found)));
        }
    }
    Ok((TRIES_MAX, None))
}

/// Rows to the broker, through deaths of the connector.
pub fn source() -> Found {
    tries(|seed| runtime()?.block_on(source_once(seed)))
}

async fn source_once(seed: u64) -> Result<Option<String>, String> {
    let mut random = Random::new(seed ^ 0x50_7ace);
    let rows = rows(&mut random);
    let source_rows = Arc::new(rows.iter().map(|(row, _)| row.clone()).collect::<Vec<_>>());
    let settings = MappingSettings::parse("mapping.toml", MAPPING);
    let settings = settings.map_err(|e| format!("{e:?}"))?;
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let folder = StateFolder::new(dir.path(), "list");
    let broker = Broker {
        kept: Arc::default(),
        random: Arc::new(Mutex::new(random.fork())),
    };
    let good: Vec<_> = rows.iter().filter(|(_, says)| says.is_some()).collect();
    broker.kept.lock().refuses = Some(random.pick(&good).0.revision);
    let lives = random.between(3, 8);
    for life in 1..=lives {
        let state = SourceState::open(&folder, "list", LETTERS_BYTES_MAX);
        let state = state.map_err(|e| e.to_string())?;
        let list = List {
            rows: Arc::clone(&source_rows),
            at: 0,
            random: random.fork(),
        };
        let runner = SourceRunner::new(
            list,
            broker.clone(),
            Mapper::new(settings.clone(), None),
            state,
            Board::new("list"),
            CancellationToken::new(),
        );
        let pause = Duration::from_millis(5);
        let running = runner.pauses(Pauses::new(pause, pause)).run();
        let running = AbortOnDropHandle::new(tokio::spawn(running));
        let lived = match life == lives {
            true => Duration::from_secs(60),
            false => Duration::from_millis(random.between(1, 150)),
        };
        tokio::time::sleep(lived).await;
        running.abort();
        // What it was writing is written before anybody else looks.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    judge_source(&rows, &broker.kept.lock(), &folder)
}

fn judge_source(
    rows: &[(SourceRow, Option<(EntityId, Value)>)],
    kept: &Kept,
    folder: &StateFolder,
) -> Result<Option<String>, String> {
    let letters = DeadLetters::open(folder, LETTERS_BYTES_MAX).and_then(|l| l.contents());
    let letters = letters.map_err(|e| e.to_string())?.letters;
    let letters: BTreeSet<String> = letters.into_values().map(|letter| letter.place).collect();
    for delta in &kept.accepted {
        let says = |(row, says): &(SourceRow, Option<(EntityId, Value)>)| {
            row.revision == delta.revision
                && says.as_ref() == Some(&(delta.entity, delta.value.clone()))
        };
        if !rows.iter().any(says) {
            let revision = delta.revision;
            return Ok(Some(format!(
                "INV-2: the broker has revision {revision} of a register, as no row says"
            )));
        }
    }
    for (row, says) in rows {
        let refused = says.is_none() || kept.refuses == Some(row.revision);
        let there = kept.accepted.iter().any(|d| d.revision == row.revision);
        let lettered = letters.contains(&row.place);
        let what = match (refused, there, lettered) {
            (true, _, false) => "is refused, and not among the dead letters",
            (false, false, _) => "is passed by the checkpoint, and not with the broker",
            (false, _, true) => "is a dead letter, and nobody refused it",
            _ => continue,
        };
        return Ok(Some(format!("INV-1: {} {what}", row.place)));
    }
    Ok(None)
}

/// Lines with their cursor, through deaths of the sink.
pub fn lines() -> Found {
    tries(|seed| runtime()?.block_on(lines_once(seed)))
}

async fn lines_once(seed: u64) -> Result<Option<String>, String> {
    let mut random = Random::new(seed ^ 0x11_7e5);
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let path = dir.path().join("registers.jsonl");
    let mut next = Offset::FIRST;
    for _ in 0..random.between(2, 6) {
        let mut sink = JsonLinesSink::new(Settings::new(&path), "list");
        let stored = sink.start().await.map_err(|e| e.to_string())?;
        if let Some(found) = judge_lines(&path, stored)? {
            return Ok(Some(found));
        }
        // What it has by its own word is not sent again.
        next = stored.map_or(next, |cursor| cursor.urgent);
        for _ in 0..random.between(1, 4) {
            let deltas: Vec<Delivered> = (0..random.between(1, 5))
                .map(|_| {
                    let delta = delivered(next, &mut random);
                    next = next.next();
                    delta
                })
                .collect();
            let cursor = Cursor::both(LogId(7), next);
            let applied = sink.apply(&deltas, Some(cursor)).await;
            applied.map_err(|e| e.to_string())?;
        }
        // It dies: nothing is closed or written any more.
        drop(sink);
    }
    let mut sink = JsonLinesSink::new(Settings::new(&path), "list");
    let stored = sink.start().await.map_err(|e| e.to_string())?;
    judge_lines(&path, stored)
}

/// Everything below the cursor has its line.
fn judge_lines(path: &Path, stored: Option<Cursor>) -> Result<Option<String>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let lines = text.lines().map(serde_json::from_str::<Json>);
    let lines: Vec<Json> = lines.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let deltas = lines.iter().filter(|line| line["type"] == "delta");
    let there: BTreeSet<u64> = deltas.filter_map(|line| line["offset"].as_u64()).collect();
    let below = stored.map_or(Offset::FIRST, |cursor| cursor.urgent);
    let lost = (Offset::FIRST.0..below.0).find(|offset| !there.contains(offset));
    Ok(lost.map(|offset| {
        format!("INV-6: the cursor is at {below}, and the line of offset {offset} is not there")
    }))
}

fn delivered(offset: Offset, random: &mut Random) -> Delivered {
    Delivered {
        issuer: Issuer::new(340_000).expect("six digits"),
        offset,
        durable_at: Micros(1_660_000_000_000_000),
        trace: None,
        delta: Delta {
            entity: EntityId(u128::from(random.below(PERSONS)).to_be_bytes()),
            revision: Revision(offset.0),
            committed_at: Micros(1_660_000_000_000_000),
            expires_at: Micros::ZERO,
            evidence: String::new(),
            provenance: Arc::new(Provenance {
                authority: "CDC".to_owned(),
                rule_id: "R-1".to_owned(),
                rule_version: 1,
                reason: "contact".to_owned(),
            }),
            value: Value::HealthCode(random.pick(&COLOURS).1),
        },
    }
}
