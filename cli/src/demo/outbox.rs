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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{
        connectors::outbox_mapping, people::because, platforms::PLACES, registers::Registers,
    };
    use hutong_connectors::{
        mapping::Mapper,
        pseudonym::{Algorithm, Pseudonymiser},
    };
    use hutong_proto::Delta;

    const NOW: Micros = Micros(1_650_000_000_123_456);

    fn pseudonyms() -> Pseudonymiser {
        Pseudonymiser::new(Algorithm::HmacSm3, b"any", 1)
    }

    fn change(number: u32, value: Value) -> Change {
        Change {
            person: Person::new(PLACES[0].code, number, &pseudonyms()),
            committed_at: NOW,
            expires_at: Micros::ZERO,
            because: because(&PLACES[0], "CODE", "corrected on review"),
            value,
        }
    }

    fn outbox() -> Arc<Outbox> {
        let platform = Arc::new(Platform::new(0, &PLACES[0], 0, Revision(100)));
        let book = Arc::new(Book::new(1, Arc::new(Registers::default())));
        Arc::new(Outbox::new(platform, book))
    }

    fn values() -> Vec<Value> {
        let codes = Colour::ALL.iter().map(|c| Value::HealthCode(*c));
        let tests = TestOutcome::ALL.iter().map(|outcome| Value::TestResult {
            outcome: *outcome,
            sampled_at: Micros(NOW.0 - 7),
        });
        let dose = Value::Vaccination {
            doses: 2,
            product: "inactivated".to_owned(),
            vaccinated_at: Micros(NOW.0 - 9),
        };
        codes.chain(tests).chain([dose]).collect()
    }

    #[test]
    fn every_change_becomes_the_delta_that_it_is_by_the_mapping() {
        let outbox = outbox();
        let mapping = outbox_mapping(&outbox.platform).expect("a valid mapping");
        let mut mapper = Mapper::new(mapping, Some(pseudonyms()));
        for (i, value) in values().into_iter().enumerate() {
            let mut change = change(7, value);
            let may_expire = change.value.kind() != hutong_proto::Kind::Vaccination;
            if may_expire && i % 2 == 0 {
                change.expires_at = Micros(NOW.0 + 1);
            }
            let row = outbox.row(Revision(9), &change);
            let delta = mapper.map(&row).expect("mapped").delta;
            let Delta { provenance, .. } = &delta;
            assert_eq!(provenance.rule_id, "340000-CODE");
            assert_eq!(provenance.reason, "corrected on review");
            assert_eq!(provenance.authority, "安徽省卫生健康委员会");
            let expected = Delta {
                entity: change.person.entity,
                revision: Revision(9),
                committed_at: NOW,
                expires_at: change.expires_at,
                evidence: String::new(),
                provenance: Arc::clone(provenance),
                value: change.value,
            };
            assert_eq!(delta, expected);
        }
    }

    #[tokio::test]
    async fn what_was_not_acknowledged_comes_again() {
        let outbox = outbox();
        let mut source = OutboxSource(Arc::clone(&outbox));
        let revisions = |batch: &SourceBatch| -> Vec<u64> {
            batch.rows.iter().map(|row| row.revision.0).collect()
        };
        source.start(None).await.expect("started");
        let green = || change(7, Value::HealthCode(Colour::Green));
        assert_eq!(outbox.commit(vec![green(), green()]).await, Revision(102));
        let first = source.next().await.expect("rows");
        assert_eq!(revisions(&first), [101, 102]);
        outbox.commit(vec![green()]).await;
        let second = source.next().await.expect("rows");
        assert_eq!(revisions(&second), [103]);

        source.start(None).await.expect("from the beginning");
        let again = source.next().await.expect("rows");
        assert_eq!(revisions(&again), [101, 102, 103]);
        let checkpoint = Some(first.checkpoint);
        source.start(checkpoint).await.expect("from a checkpoint");
        let again = source.next().await.expect("rows");
        assert_eq!(revisions(&again), [103]);
        assert_eq!(outbox.book.acknowledged(), 2);
        source.acknowledged(&again.checkpoint).await.expect("kept");
        assert_eq!(outbox.book.acknowledged(), 3);
        assert!(outbox.take().is_none());
    }

    #[tokio::test]
    async fn whoever_writes_too_much_waits() {
        let outbox = outbox();
        let many = vec![change(7, Value::HealthCode(Colour::Green)); WAITING_MAX];
        outbox.commit(many.clone()).await;
        let mut more = std::pin::pin!(outbox.commit(many));
        let waits = std::future::poll_fn(|cx| std::task::Poll::Ready(more.as_mut().poll(cx)));
        assert!(waits.await.is_pending());
        assert_eq!(outbox.take().map(|b| b.rows.len()), Some(BATCH_ROWS_MAX));
        more.await;
    }
}
