//! What a platform's own system writes, in the words of such systems, and the source that a connector
//! reads it from. Rows wait in a bounded queue and are kept until they are acknowledged, so that the source
//! can go back to any checkpoint, as an outbox table can.

use super::{
    book::{Book, Entry, lock},
    people::Person,
    platform::Platform,
};
use hutong_connectors::source::{Source, SourceBatch, SourceError, SourceRow};
use hutong_proto::{
    Micros, Revision, Value,
    delta::{Colour, TestOutcome},
};
use serde_json::{Map, Value as Json};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};
use tokio::sync::Notify;

/// Rows that the connector has not asked for yet. Whoever writes then waits: what is due meanwhile is
/// late, and counts as late.
const WAITING_MAX: usize = 4000;
const BATCH_ROWS_MAX: usize = 2000;

/// The rule that a change follows from, and why it did.
#[derive(Debug, PartialEq, Eq)]
pub struct Because {
    pub rule_id: String,
    pub reason: String,
}

/// A change in a platform's own system.
#[derive(Clone, Debug)]
pub struct Change {
    pub person: Person,
    pub committed_at: Micros,
    /// Zero: never.
    pub expires_at: Micros,
    pub because: Arc<Because>,
    pub value: Value,
}

/// The mapping that makes deltas of these rows, as the file of a connector has it.
pub const MAPPING: &str = r#"
[[mapping]]
when = { field = "table", is = "health_codes" }
kind = "health_code"
entity = { id_number = "id_number" }
colour = { field = "colour", texts = { "绿码" = "green", "黄码" = "yellow", "红码" = "red" } }
expires = { field = "valid_until", format = "unix-us", or_never = true }
provenance = { rule_id = "rule", reason = "reason" }

[[mapping]]
when = { field = "table", is = "test_results" }
kind = "test_result"
entity = { id_number = "id_number" }
outcome = { field = "result", texts = { "阴性" = "negative", "阳性" = "positive", "可疑" = "inconclusive" } }
sampled_at = { field = "sampled_at", format = "unix-us" }
expires = { field = "valid_until", format = "unix-us", or_never = true }
provenance = { rule_id = "rule", reason = "reason" }

[[mapping]]
when = { field = "table", is = "vaccinations" }
kind = "vaccination"
entity = { id_number = "id_number" }
doses = "doses"
product = "product"
vaccinated_at = { field = "vaccinated_at", format = "unix-us" }
provenance = { rule_id = "rule", reason = "reason" }
"#;

impl Change {
    /// As [`MAPPING`] expects it.
    fn fields(&self) -> Map<String, Json> {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Json| {
            fields.insert(name.to_owned(), value);
        };
        put("id_number", self.person.id_number().into());
        put("rule", self.because.rule_id.as_str().into());
        put("reason", self.because.reason.as_str().into());
        if self.expires_at != Micros::ZERO {
            put("valid_until", self.expires_at.0.into());
        }
        match &self.value {
            Value::HealthCode(colour) => {
                put("table", "health_codes".into());
                put("colour", colour_text(*colour).into());
            }
            Value::TestResult {
                outcome,
                sampled_at,
            } => {
                put("table", "test_results".into());
                put("result", outcome_text(*outcome).into());
                put("sampled_at", sampled_at.0.into());
            }
            Value::Vaccination {
                doses,
                product,
                vaccinated_at,
            } => {
                put("table", "vaccinations".into());
                put("doses", (*doses).into());
                put("product", product.as_str().into());
                put("vaccinated_at", vaccinated_at.0.into());
            }
            // Areas come from published lists. No mapping takes this row, so it would be found.
            Value::AreaRisk { .. } => {}
        }
        fields
    }
}

fn colour_text(colour: Colour) -> &'static str {
    match colour {
        Colour::Green => "绿码",
        Colour::Yellow => "黄码",
        Colour::Red => "红码",
    }
}

fn outcome_text(outcome: TestOutcome) -> &'static str {
    match outcome {
        TestOutcome::Negative => "阴性",
        TestOutcome::Positive => "阳性",
        TestOutcome::Inconclusive => "可疑",
    }
}

#[derive(Debug, Default)]
struct Rows {
    /// In the order of their revisions.
    kept: VecDeque<(Revision, Change)>,
    /// How many of them, from the first, the connector has.
    given: usize,
}

/// The rows of one source of a platform.
#[derive(Debug)]
pub struct Outbox {
    platform: Arc<Platform>,
    book: Arc<Book>,
    rows: Mutex<Rows>,
    arrived: Notify,
    room: Notify,
}

impl Outbox {
    pub fn new(platform: Arc<Platform>, book: Arc<Book>) -> Outbox {
        Outbox {
            platform,
            book,
            rows: Mutex::default(),
            arrived: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Writes changes, in their order; waits while too many are waiting. One writer at a time. Returns
    /// the revision of the last one.
    pub async fn commit(&self, changes: Vec<Change>) -> Revision {
        while self.waiting() >= WAITING_MAX {
            self.room.notified().await;
        }
        self.book.publish(changes.len());
        let mut last = Revision(0);
        let mut rows = lock(&self.rows);
        for change in changes {
            last = self.platform.next_revision();
            rows.kept.push_back((last, change));
        }
        drop(rows);
        self.arrived.notify_one();
        last
    }

    fn waiting(&self) -> usize {
        let rows = lock(&self.rows);
        rows.kept.len() - rows.given
    }

    /// What the connector has not had since it was started.
    fn take(&self) -> Option<SourceBatch> {
        let mut rows = lock(&self.rows);
        let end = rows.kept.len().min(rows.given + BATCH_ROWS_MAX);
        let batch: Vec<SourceRow> = rows
            .kept
            .range(rows.given..end)
            .map(|(revision, change)| self.row(*revision, change))
            .collect();
        rows.given = end;
        drop(rows);
        let last = batch.last()?.revision.0;
        self.room.notify_one();
        Some(SourceBatch {
            rows: batch,
            checkpoint: last.into(),
            // Appears on the connector's board when the checkpoint is on disk.
            barrier: Some(last.to_string()),
        })
    }

    fn row(&self, revision: Revision, change: &Change) -> SourceRow {
        SourceRow {
            fields: change.fields(),
            place: format!("{}, row {revision}", self.platform.place.name),
            revision,
            committed_at: change.committed_at,
        }
    }

    /// Everything up to this revision is durable at the broker, or among the dead letters.
    pub fn acknowledged(&self, up_to: Revision) {
        let mut rows = lock(&self.rows);
        let count = rows
            .kept
            .partition_point(|(revision, _)| *revision <= up_to);
        if count == 0 {
            return;
        }
        rows.given = rows.given.saturating_sub(count);
        let done: Vec<_> = rows.kept.drain(..count).collect();
        drop(rows);
        let entries = done.iter().map(|(revision, change)| Entry {
            entity: change.person.entity,
            revision: *revision,
            value: &change.value,
        });
        self.book.settle(&self.platform, entries);
    }
}

/// Reads an [`Outbox`].
#[derive(Debug)]
pub struct OutboxSource(pub Arc<Outbox>);

impl Source for OutboxSource {
    fn name(&self) -> &'static str {
        "demo-outbox"
    }

    async fn start(&mut self, checkpoint: Option<Json>) -> Result<(), SourceError> {
        if let Some(checkpoint) = checkpoint {
            self.acknowledged(&checkpoint).await?;
        }
        lock(&self.0.rows).given = 0;
        Ok(())
    }

    /// Cancel-safe: nothing changes before the last wait.
    async fn next(&mut self) -> Result<SourceBatch, SourceError> {
        loop {
            if let Some(batch) = self.0.take() {
                return Ok(batch);
            }
            self.0.arrived.notified().await;
        }
    }

    async fn acknowledged(&mut self, checkpoint: &Json) -> Result<(), SourceError> {
        let wrong = || SourceError::lasting(format!("{checkpoint} is no checkpoint of the demo"));
        let up_to = checkpoint.as_u64().ok_or_else(wrong)?;
        self.0.acknowledged(Revision(up_to));
        Ok(())
    }

    async fn sample(&mut self, rows: usize) -> Result<Vec<SourceRow>, SourceError> {
        let kept = lock(&self.0.rows);
        let first = kept.kept.iter().take(rows);
        Ok(first.map(|(r, change)| self.0.row(*r, change)).collect())
    }
}
