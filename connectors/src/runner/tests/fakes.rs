//! A source that is a list, a broker that is a list, and a sink that writes down its calls.

use crate::{
    client::Delivered,
    runner::{Connect, Heard, Inlet, LinkError, Outcome, Outlet, Pending, RefusedDelta},
    sink::{Sink, SinkError},
    source::{Source, SourceBatch, SourceError, SourceRow},
};
use hutong_proto::{Cursor, Delta, EntityId, Lane, Micros, Reason, Revision};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::watch;

pub const NOW: Micros = Micros(1_661_950_800_000_000);

/// Row `n` of person `n % persons`; a colour of `purple` has no mapping.
pub fn row(n: u64, colour: &str) -> SourceRow {
    let fields = json!({"person": format!("{:032x}", n + 1), "colour": colour});
    SourceRow {
        fields: serde_json::from_value(fields).expect("an object"),
        place: format!("row {n}"),
        revision: Revision(n + 1),
        committed_at: NOW,
    }
}

/// A test of a person, by number; its revision is `n + 1`.
pub fn test(n: u64, person: u64, outcome: &str) -> SourceRow {
    let fields = json!({"test": true, "person": format!("{:032x}", person + 1), "outcome": outcome, "at": NOW.0});
    SourceRow {
        fields: serde_json::from_value(fields).expect("an object"),
        place: format!("row {n}"),
        revision: Revision(n + 1),
        committed_at: NOW,
    }
}

/// Gives its rows in batches; the checkpoint is the number of rows that were given.
pub struct ListSource {
    pub rows: Vec<SourceRow>,
    pub batch_rows: usize,
    pub at: usize,
    /// What happens instead of a call of `next`, by its number from 0.
    pub errors: HashMap<usize, SourceError>,
    pub calls: usize,
    pub seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
pub struct Seen {
    pub starts: Vec<Option<Value>>,
    pub acknowledged: Vec<Value>,
}

impl ListSource {
    pub fn new(rows: Vec<SourceRow>, batch_rows: usize) -> ListSource {
        ListSource {
            rows,
            batch_rows,
            at: 0,
            errors: HashMap::new(),
            calls: 0,
            seen: Arc::default(),
        }
    }
}

impl Source for ListSource {
    fn name(&self) -> &'static str {
        "list"
    }

    async fn start(&mut self, checkpoint: Option<Value>) -> Result<(), SourceError> {
        let at = checkpoint.as_ref().and_then(Value::as_u64).unwrap_or(0);
        self.at = usize::try_from(at).expect("small");
        self.seen.lock().expect("sound").starts.push(checkpoint);
        Ok(())
    }

    async fn next(&mut self) -> Result<SourceBatch, SourceError> {
        if self.at == self.rows.len() {
            return std::future::pending().await;
        }
        self.calls += 1;
        if let Some(error) = self.errors.remove(&(self.calls - 1)) {
            return Err(error);
        }
        let to = (self.at + self.batch_rows).min(self.rows.len());
        let rows = self.rows[self.at..to].to_vec();
        self.at = to;
        Ok(SourceBatch {
            rows,
            checkpoint: json!(to),
            barrier: Some(format!("up to {to}")),
        })
    }

    async fn acknowledged(&mut self, checkpoint: &Value) -> Result<(), SourceError> {
        self.seen
            .lock()
            .expect("sound")
            .acknowledged
            .push(checkpoint.clone());
        Ok(())
    }

    async fn sample(&mut self, rows: usize) -> Result<Vec<SourceRow>, SourceError> {
        Ok(self.rows.iter().take(rows).cloned().collect())
    }
}

/// Accepts deltas by revision. Clones are the same broker.
#[derive(Clone)]
pub struct FakeBroker(Arc<Mutex<Kept>>, watch::Sender<Gate>);

/// Which acks go.
#[derive(Clone, Copy)]
struct Gate {
    /// Of batches up to this number.
    batches: u64,
    /// None of this lane.
    held: Option<Lane>,
}

#[derive(Default)]
pub struct Kept {
    /// Of each delta that was accepted, in order.
    pub accepted: Vec<Delta>,
    pub batch_sizes: Vec<usize>,
    pub not_newer: u64,
    pub connects: usize,
    /// Refused with KIND_UNKNOWN.
    pub refuse: Vec<Revision>,
    /// Connections end, with their batches undecided, after so many more batches.
    pub break_after: Option<usize>,
    pub log_id: u64,
    pub held_back: [Duration; 2],
    /// The way back: acks of batches with a greater number are withheld.
    batches: u64,
    newest: HashMap<EntityId, Revision>,
}

impl FakeBroker {
    /// Acks at once.
    pub fn new() -> FakeBroker {
        FakeBroker::with_acks(u64::MAX)
    }

    /// Acks as many batches as [`FakeBroker::release`] says.
    pub fn holding() -> FakeBroker {
        FakeBroker::with_acks(0)
    }

    fn with_acks(batches: u64) -> FakeBroker {
        let gate = Gate {
            batches,
            held: None,
        };
        FakeBroker(Arc::default(), watch::Sender::new(gate))
    }

    /// Withholds the acks of a lane, or of none.
    pub fn hold(&self, lane: Option<Lane>) {
        self.1.send_modify(|gate| gate.held = lane);
    }

    /// Lets the acks of the first `batches` go.
    pub fn release(&self, batches: u64) {
        self.1.send_modify(|gate| gate.batches = batches);
    }

    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("sound")
    }
}

pub fn broken() -> LinkError {
    LinkError {
        passing: true,
        reason: None,
        message: "connection reset".to_owned(),
    }
}

/// Of a stream that broke nothing arrives any more; the other lane's goes on.
pub struct FakeOutlet {
    broker: FakeBroker,
    broken: HashSet<Lane>,
}

impl FakeOutlet {
    pub fn new(broker: &FakeBroker) -> FakeOutlet {
        FakeOutlet {
            broker: broker.clone(),
            broken: HashSet::new(),
        }
    }
}

impl Connect for FakeBroker {
    type Link = FakeOutlet;

    async fn connect(&mut self, _: Option<Cursor>) -> Result<FakeOutlet, LinkError> {
        self.kept().connects += 1;
        Ok(FakeOutlet::new(self))
    }
}

impl Outlet for FakeOutlet {
    async fn publish(&mut self, lane: Lane, deltas: Vec<Delta>) -> Result<Pending, LinkError> {
        assert!(deltas.iter().all(|d| d.value.lane() == lane));
        let mut kept = self.broker.kept();
        match &mut kept.break_after {
            Some(0) => {
                kept.break_after = None;
                self.broken.insert(lane);
            }
            Some(left) => *left -= 1,
            None => {}
        }
        if self.broken.contains(&lane) {
            return Ok(Box::pin(async { Err(broken()) }));
        }
        kept.batches += 1;
        kept.batch_sizes.push(deltas.len());
        let number = kept.batches;
        let outcome = kept.take(deltas);
        let mut released = self.broker.1.subscribe();
        Ok(Box::pin(async move {
            let goes = |gate: &Gate| gate.batches >= number && gate.held != Some(lane);
            let waited = released.wait_for(goes).await;
            drop(waited.map_err(|_| broken())?);
            Ok(outcome)
        }))
    }

    fn connected(&self) -> Result<(), String> {
        Ok(())
    }

    fn reconnects(&self) -> u64 {
        0
    }

    fn held_back(&self) -> [Duration; 2] {
        self.broker.kept().held_back
    }

    fn log_id(&self) -> String {
        self.broker.kept().log_id.to_string()
    }
}

impl Kept {
    fn take(&mut self, deltas: Vec<Delta>) -> Outcome {
        let mut outcome = Outcome::default();
        for (index, delta) in deltas.into_iter().enumerate() {
            let refused = |reason: Reason| RefusedDelta {
                index,
                reason: reason.code().to_owned(),
                field: String::new(),
                message: "because".to_owned(),
            };
            let newest = self.newest.entry(delta.entity).or_default();
            let known = *newest >= delta.revision;
            if self.refuse.contains(&delta.revision) {
                outcome.refused.push(refused(Reason::KindUnknown));
            } else if known {
                self.not_newer += 1;
                outcome.refused.push(refused(Reason::RevisionNotNewer));
            } else {
                *newest = delta.revision;
                self.accepted.push(delta);
                outcome.accepted += 1;
            }
        }
        outcome
    }

    pub fn revisions(&self) -> Vec<u64> {
        self.accepted.iter().map(|d| d.revision.0).collect()
    }
}

/// What a fake subscription says, attempt by attempt. Waits for ever after the last event of the
/// last attempt.
#[derive(Clone, Default)]
pub struct Script(Arc<Mutex<ScriptState>>);

#[derive(Default)]
pub struct ScriptState {
    pub attempts: VecDeque<VecDeque<Result<Heard, LinkError>>>,
    /// With what each attempt was opened.
    pub opened: Vec<Option<Cursor>>,
    pub applied: Vec<Cursor>,
}

pub struct ScriptInlet {
    script: Script,
    events: VecDeque<Result<Heard, LinkError>>,
}

impl Script {
    pub fn new(attempts: Vec<Vec<Result<Heard, LinkError>>>) -> Script {
        let attempts = attempts.into_iter().map(VecDeque::from).collect();
        Script(Arc::new(Mutex::new(ScriptState {
            attempts,
            ..ScriptState::default()
        })))
    }

    pub fn state(&self) -> MutexGuard<'_, ScriptState> {
        self.0.lock().expect("sound")
    }
}

impl Connect for Script {
    type Link = ScriptInlet;

    async fn connect(&mut self, cursor: Option<Cursor>) -> Result<ScriptInlet, LinkError> {
        let mut state = self.state();
        state.opened.push(cursor);
        let mut events = state.attempts.pop_front().unwrap_or_default();
        // An attempt that only fails fails at once, as a refused open does.
        if events.len() == 1
            && let Some(Err(error)) = events.pop_front_if(|e| e.is_err())
        {
            return Err(error);
        }
        Ok(ScriptInlet {
            script: self.clone(),
            events,
        })
    }
}

impl Inlet for ScriptInlet {
    async fn next(&mut self) -> Result<Heard, LinkError> {
        match self.events.pop_front() {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    async fn applied(&mut self, cursor: Cursor) -> Result<(), LinkError> {
        self.script.state().applied.push(cursor);
        Ok(())
    }

    fn lag_seconds(&self) -> f64 {
        0.5
    }

    fn reconnects(&self) -> u64 {
        0
    }
}

/// Writes down its calls, and keeps a cursor as a sink does.
#[derive(Clone, Default)]
pub struct FakeSink(Arc<Mutex<Written>>);

#[derive(Default)]
pub struct Written {
    pub calls: Vec<String>,
    pub cursor: Option<Cursor>,
    /// Comes instead of the next apply.
    pub error: Option<SinkError>,
}

impl FakeSink {
    pub fn written(&self) -> MutexGuard<'_, Written> {
        self.0.lock().expect("sound")
    }

    fn note(&self, call: String) {
        self.written().calls.push(call);
    }
}

impl Sink for FakeSink {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn start(&mut self) -> Result<Option<Cursor>, SinkError> {
        self.note("start".to_owned());
        Ok(self.written().cursor)
    }

    async fn begin_snapshot(&mut self) -> Result<(), SinkError> {
        self.note("begin".to_owned());
        Ok(())
    }

    async fn apply(
        &mut self,
        deltas: &[Delivered],
        cursor: Option<Cursor>,
    ) -> Result<(), SinkError> {
        if let Some(error) = self.written().error.take() {
            return Err(error);
        }
        let revisions: Vec<u64> = deltas.iter().map(|d| d.delta.revision.0).collect();
        let at = cursor.map(|c| c.urgent.0);
        self.note(format!("apply {revisions:?} {at:?}"));
        let mut written = self.written();
        written.cursor = cursor.or(written.cursor);
        Ok(())
    }

    async fn end_snapshot(&mut self, cursor: Cursor) -> Result<(), SinkError> {
        self.note(format!("end {}", cursor.urgent));
        self.written().cursor = Some(cursor);
        Ok(())
    }

    async fn bookmark(&mut self, cursor: Cursor) -> Result<(), SinkError> {
        self.note(format!("bookmark {}", cursor.urgent));
        self.written().cursor = Some(cursor);
        Ok(())
    }
}
