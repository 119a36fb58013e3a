//! All current values of a moment, and the cursor of that moment: what a new platform starts with.

use crate::{
    clock::Clock,
    fanout::{
        Blocking, Fanout,
        credit::Credit,
        registry::{Begin, Lease},
        session::{Out, response},
    },
    metrics::Recorder,
    overload::{GiveWay, Overload},
    state::{
        State, StateError, keys,
        keys::RegisterKey,
        row::{ProvenanceId, Row},
    },
};
use bytes::Bytes;
use hutong_proto::{
    Cursor, Issuer, KindSet, Reason, Refusal, api, delta::DeltaParts, frame::Frame, wire,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Rows travel in messages of about this size.
const MESSAGE_BYTES: usize = 256 << 10;
/// A message at least this often, so that the receiver knows the line is up.
const MESSAGE_EVERY: Duration = Duration::from_millis(500);
/// Provenance entries that one snapshot remembers.
const PROVENANCE_CACHE_MAX: usize = 65_536;
const ROWS_FIELD: u32 = 3;

/// A session that was taken over needs a moment to give its permit back.
const OWN_PERMIT_WAIT: Duration = Duration::from_secs(2);

/// Who may send a snapshot: each holds files and runs that would be gone without it. So many at one time,
/// and of each platform one, so that none takes them all.
#[derive(Debug)]
pub struct Snapshots {
    max: usize,
    all: Arc<Semaphore>,
    platforms: HashMap<Issuer, Arc<Semaphore>>,
}

impl Snapshots {
    pub fn new(max: usize, platforms: impl IntoIterator<Item = Issuer>) -> Snapshots {
        let one = |platform| (platform, Arc::new(Semaphore::new(1)));
        Snapshots {
            max,
            all: Arc::new(Semaphore::new(max)),
            platforms: platforms.into_iter().map(one).collect(),
        }
    }

    /// How many are being sent.
    pub fn running(&self) -> usize {
        self.max - self.all.available_permits()
    }

    async fn permit(&self, platform: Issuer) -> Result<[OwnedSemaphorePermit; 2], Refusal> {
        let refused = || Refusal::from(Reason::TooManySnapshots);
        let own = self.platforms.get(&platform).ok_or_else(refused)?;
        let own = tokio::time::timeout(OWN_PERMIT_WAIT, Arc::clone(own).acquire_owned()).await;
        let Ok(Ok(own)) = own else {
            return Err(refused().detail("one of this platform is being sent"));
        };
        let one = Arc::clone(&self.all).try_acquire_owned();
        // Given back in this order: whoever waits for the platform's own place finds the other one free too.
        Ok([one.map_err(|_| refused())?, own])
    }
}

/// Sends the snapshot; the subscription then stands where the records go on. Runs on a thread of its own, because it
/// reads the whole state.
pub async fn send(
    shared: &Fanout,
    out: &Out,
    lease: &Lease,
    credit: &Arc<Credit>,
) -> Result<(), Refusal> {
    let permit = shared.snapshots.permit(lease.subscription.key.0).await?;
    lease.begin_snapshot()?;
    // Ends the thread when the session ends for whatever reason: this future is dropped then.
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    let mut sender = Sender {
        state: Arc::clone(&shared.state),
        out: out.clone(),
        credit: Arc::clone(credit),
        stop,
        stall: shared.stall,
        metrics: shared.metrics.recorder(),
        lease: lease.clone(),
        clock: Arc::clone(&shared.clock),
        overload: Arc::clone(&shared.overload),
        provenance: HashMap::new(),
        message: Message::default(),
        sent_at: Instant::now(),
        rows: 0,
        #[cfg(plants)]
        gathered: None,
    };
    let (state, log_id, blocking) = (Arc::clone(&shared.state), shared.log_id, shared.blocking);
    let rows = move |sender: &mut Sender| -> Result<Cursor, Refusal> {
        let read = state.with_snapshot(|rows, applied| -> Result<Cursor, Refusal> {
            let cursor = Cursor::both(log_id, applied.next);
            sender.begin(cursor, state.registers_estimate())?;
            while let Some((key, row)) = rows.next_row().map_err(|e| internal(&e))? {
                sender.row(&key, &row)?;
            }
            if !sender.message.rows.is_empty() {
                sender.flush()?;
            }
            Ok(cursor)
        });
        read.map_err(|e| internal(&e))?
    };
    let ended = match blocking {
        Blocking::Pool => {
            let send = move || {
                let cursor = rows(&mut sender)?;
                let ended = tokio::runtime::Handle::current().block_on(sender.end(cursor));
                drop(permit);
                ended
            };
            blocking.run(send).await?
        }
        #[cfg(plants)]
        Blocking::Inline => {
            sender.gathered = Some(Vec::new());
            let cursor = rows(&mut sender)?;
            for frame in sender.gathered.take().unwrap_or_default() {
                sender.send(frame).await?;
            }
            let ended = sender.end(cursor).await;
            drop(permit);
            ended
        }
    };
    drop(guard);
    ended
}

/// A message in the making.
#[derive(Default)]
struct Message {
    provenance: HashMap<ProvenanceId, u32>,
    table: Vec<u8>,
    rows: Vec<u8>,
    count: usize,
}

struct Sender {
    state: Arc<State>,
    out: Out,
    credit: Arc<Credit>,
    stop: CancellationToken,
    /// Who takes nothing for so long gives its permit to others.
    stall: Duration,
    metrics: Recorder,
    lease: Lease,
    clock: Clock,
    overload: Arc<Overload>,
    provenance: HashMap<ProvenanceId, Bytes>,
    message: Message,
    sent_at: Instant,
    rows: u64,
    /// For simulation: what is to be sent, once all rows are read.
    #[cfg(plants)]
    gathered: Option<Vec<Bytes>>,
}

impl Sender {
    fn begin(&mut self, cursor: Cursor, rows_estimate: u64) -> Result<(), Refusal> {
        self.put(response(api::subscribe_response::Message::Opened(
            api::SubscribeOpened {
                cursor: Some(cursor.to_api()),
                snapshot: true,
                broker_version: env!("CARGO_PKG_VERSION").to_owned(),
            },
        )))?;
        let begin = api::SnapshotBegin { rows_estimate };
        self.put(response(api::subscribe_response::Message::SnapshotBegin(
            begin,
        )))
    }

    fn row(&mut self, key: &RegisterKey, row: &Row<'_>) -> Result<(), Refusal> {
        if self.wanted(key.issuer, key) {
            let index = self.provenance_index(row.provenance)?;
            let mut delta = Vec::with_capacity(96);
            DeltaParts {
                entity: key.entity,
                revision: row.revision,
                committed_at: row.committed_at,
                expires_at: row.expires_at,
                provenance: index,
                evidence: row.evidence,
                trace: None,
                kind: key.kind,
                value: row.value,
            }
            .encode(&mut delta);
            let mut fields = Vec::with_capacity(delta.len() + 24);
            wire::put_number(&mut fields, 1, u64::from(key.issuer.code()));
            wire::put_number(&mut fields, 2, row.offset.0);
            wire::put_bytes(&mut fields, 3, &delta);
            wire::put_bytes(&mut self.message.rows, 2, &fields);
            self.rows += 1;
            self.message.count += 1;
        }
        let full = self.message.rows.len() + self.message.table.len() >= MESSAGE_BYTES;
        if full || self.sent_at.elapsed() >= MESSAGE_EVERY {
            self.flush()?;
        }
        Ok(())
    }

    fn wanted(&self, issuer: Issuer, key: &RegisterKey) -> bool {
        // A value does not say in which lane it came; the lanes of a filter are about records.
        let filter = &self.lease.filter;
        filter.wants_issuer(issuer) && KindSet::from_iter([key.kind]).intersects(filter.kinds)
    }

    /// Index of a provenance entry in the table of this message.
    fn provenance_index(&mut self, id: ProvenanceId) -> Result<u32, Refusal> {
        if let Some(index) = self.message.provenance.get(&id) {
            return Ok(*index);
        }
        if !self.provenance.contains_key(&id) {
            let key = keys::provenance(id);
            let stored = self.state.get(&key).map_err(|e| internal(&e))?;
            let bytes = stored.ok_or_else(|| {
                internal(&StateError::damaged(
                    &key,
                    "a register refers to it, but it is missing",
                ))
            })?;
            if self.provenance.len() >= PROVENANCE_CACHE_MAX {
                self.provenance.clear();
            }
            self.provenance.insert(id, bytes.into());
        }
        wire::put_bytes(&mut self.message.table, 1, &self.provenance[&id]);
        let index = self.message.provenance.len() as u32;
        self.message.provenance.insert(id, index);
        Ok(index)
    }

    fn flush(&mut self) -> Result<(), Refusal> {
        let message = std::mem::take(&mut self.message);
        let len = message.table.len() + message.rows.len();
        let platform = self.lease.subscription.key.0;
        self.metrics.snapshot_rows(platform, message.count);
        let mut frame = Vec::with_capacity(len + 8);
        wire::put_len(&mut frame, ROWS_FIELD, len);
        frame.extend_from_slice(&message.table);
        frame.extend_from_slice(&message.rows);
        self.put(frame.into())
    }

    async fn end(&mut self, cursor: Cursor) -> Result<(), Refusal> {
        let cursor = match planted!(SnapshotCursorLate) {
            true => Cursor::both(cursor.log_id, self.state.applied().next),
            false => cursor,
        };
        // Not before it can be sent: who stops taking rows has not got the snapshot, and keeps what it had.
        self.wait_for_credit().await?;
        // But before it is sent: whoever gets it may say at once that it is applied.
        let now = (self.clock)();
        self.lease.begin(cursor, Begin::AfterSnapshot, now)?;
        let end = api::SnapshotEnd {
            cursor: Some(cursor.to_api()),
            rows: self.rows,
        };
        self.send(response(api::subscribe_response::Message::SnapshotEnd(end)))
            .await
    }

    async fn wait_for_credit(&self) -> Result<(), Refusal> {
        if self.credit.available() {
            return Ok(());
        }
        let credit = async {
            while !self.credit.available() {
                self.credit.changed().await;
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(gone()),
            () = self.out.closed() => Err(gone()),
            () = credit => Ok(()),
            () = tokio::time::sleep(self.stall) => Err(stalled()),
        }
    }

    /// From the thread that reads rows.
    fn put(&mut self, frame: Bytes) -> Result<(), Refusal> {
        #[cfg(plants)]
        if let Some(gathered) = &mut self.gathered {
            gathered.push(frame);
            return Ok(());
        }
        tokio::runtime::Handle::current().block_on(self.send(frame))
    }

    async fn send(&mut self, frame: Bytes) -> Result<(), Refusal> {
        self.wait_for_credit().await?;
        self.credit.spend(frame.len());
        let send = async {
            self.overload.pass(GiveWay::Snapshot, frame.len()).await;
            let send = self.out.send(Ok(Frame::new(frame.clone())));
            let sent = tokio::time::timeout(self.stall, send).await;
            sent.map_err(|_| stalled())?.map_err(|_| gone())
        };
        let sent = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(gone()),
            sent = send => sent,
        };
        self.sent_at = Instant::now();
        sent
    }
}

fn stalled() -> Refusal {
    Refusal::new(Reason::ClientStalled, "snapshot")
}

fn gone() -> Refusal {
    Refusal::from(Reason::SessionTakenOver).detail("the client went away")
}

fn internal(error: &StateError) -> Refusal {
    tracing::error!(%error, "a snapshot failed");
    Reason::Internal.into()
}
