//! One subscriber's stream.

use crate::{
    fanout::{
        Fanout,
        beside::Begun,
        credit::Credit,
        flight::Flight,
        log_reader,
        registry::{Begin, Lease, Subscription},
        snapshot,
        turns::Turns,
    },
    filter::FilterSpec,
    ingress::{check_name, first_frame},
    metrics::{
        Conflict, Direction, Hop, Recorder,
        faults::Side,
        spans::{self, Delivered},
    },
    overload::{GiveWay, Reader, ReadsFrom},
    tail::{Packing, TailEntry, TailRead},
};
use bytes::Bytes;
use hutong_proto::{
    Cursor, Issuer, Lane, Micros, Offset, Reason, RecordView, Refusal, TraceContext, api,
    frame::Frame, limits, record,
};
use prost::Message;
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Status, Streaming};

/// Sampled deltas of one delivery that are remembered.
const SAMPLED_PER_DELIVERY_MAX: usize = 16;
const BOOKMARK_EVERY: Duration = Duration::from_millis(limits::BOOKMARK_EVERY_MS);

pub type Out = mpsc::Sender<Result<Frame, Status>>;

pub struct Session {
    shared: Fanout,
    platform: Issuer,
    out: Out,
}

/// Records for one delivery.
struct Chunk {
    records: usize,
    /// In which they go out, one behind the other.
    pieces: Vec<Bytes>,
    /// Everything in it is below this; of the records, not of what is covered.
    below: Option<Offset>,
    /// Of the oldest delta in it, at its source; or when it became durable, if it was read from the log.
    committed_at: Micros,
    /// Of the first record.
    durable_at: Micros,
    /// How long the first record has waited since it was applied.
    waited: Waited,
    traces: Vec<TraceContext>,
    /// Everything of the lane below this is covered.
    next: Offset,
}

enum Waited {
    /// In the ring, since then.
    Since(std::time::Instant),
    /// In the log, since it became durable.
    SinceDurable(Micros),
}

impl Session {
    pub fn new(shared: Fanout, platform: Issuer, out: Out) -> Session {
        Session {
            shared,
            platform,
            out,
        }
    }

    pub async fn run(self, input: Streaming<Frame>) {
        if let Err(refusal) = self.serve(input).await {
            if let Some(conflict) = conflict(refusal.reason) {
                self.shared.metrics.view_conflict(self.platform, conflict);
            }
            let (metrics, now) = (&self.shared.metrics, (self.shared.clock)());
            metrics.fault(self.platform, Side::Subscribe, &refusal, true, now);
            tracing::info!(
                platform = %self.platform,
                reason = refusal.reason.code(),
                field = refusal.field,
                detail = refusal.detail,
                "subscribe session ended"
            );
            // The client may be gone already.
            let told = self.out.send(Err(refusal.to_status()));
            drop(tokio::time::timeout(self.shared.stall, told).await);
        }
    }

    async fn serve(&self, mut input: Streaming<Frame>) -> Result<(), Refusal> {
        let open = self.open(&mut input).await?;
        let credit_bytes = match open.credit_bytes {
            0 => limits::SUBSCRIBE_CREDIT_BYTES_DEFAULT,
            n @ limits::SUBSCRIBE_CREDIT_BYTES_MIN..=limits::SUBSCRIBE_CREDIT_BYTES_MAX => n,
            n => {
                return Err(Refusal::new(Reason::CreditInvalid, "open.credit_bytes")
                    .detail(format!("{n} bytes")));
            }
        };
        let start = open
            .start
            .ok_or_else(|| Refusal::new(Reason::FieldMissing, "open.start"))?;
        let filter = FilterSpec::from_api(open.filter, self.platform, &self.shared.platforms)?;
        use api::subscribe_open::Start;
        let anew = matches!(start, Start::Snapshot(_) | Start::Now(_));
        let packing = packing(&open.compressions)?;
        let key = (self.platform, open.subscription);
        let mut attached = self.shared.subscriptions.attach(key, filter, anew)?;
        attached.lease.packing = packing;
        let lease = &attached.lease;
        let credit = Arc::new(Credit::new(credit_bytes));
        // Biased, as every choice of a session: a simulation can then repeat a run. Nobody starves: what is
        // ready is looked at again after each step.
        let begun = tokio::select! {
            biased;
            () = attached.end.cancelled() => Err(Reason::SubscriptionTakenOver.into()),
            begun = self.begin(start, lease, &credit) => begun,
            // Credit and acks must be read while a snapshot is sent.
            read = self.control(&mut input, lease, &credit) => read,
        };
        if begun.is_err() {
            self.shared.subscriptions.forget_unbegun(lease);
        }
        begun?;
        tokio::select! {
            biased;
            () = attached.end.cancelled() => Err(Reason::SubscriptionTakenOver.into()),
            () = self.out.closed() => Ok(()),
            read = self.control(&mut input, lease, &credit) => read,
            pumped = self.pump(lease, &credit) => pumped,
        }
    }

    async fn open(&self, input: &mut Streaming<Frame>) -> Result<api::SubscribeOpen, Refusal> {
        let frame = first_frame(input).await?;
        let Some(api::subscribe_request::Message::Open(open)) = parse(&frame)? else {
            return Err(Reason::OpenExpected.into());
        };
        check_name(&open.subscription, "open.subscription")?;
        if self.shared.draining.is_cancelled() {
            return Err(Reason::ShuttingDown.into());
        }
        Ok(open)
    }

    /// Finds where the stream begins, and sends the snapshot if it begins with one.
    async fn begin(
        &self,
        start: api::subscribe_open::Start,
        lease: &Lease,
        credit: &Arc<Credit>,
    ) -> Result<(), Refusal> {
        use api::subscribe_open::Start;
        let subscription = &lease.subscription;
        let log_id = self.shared.log_id;
        if matches!(start, Start::Snapshot(_) | Start::Now(_)) && lease.changes_filter() {
            self.move_on(subscription).await?;
        }
        let now = (self.shared.clock)();
        let (cursor, how) = match start {
            Start::Stored(_) if subscription.has_cursor() => {
                let stored = subscription.cursor(log_id, |lane| subscription.applied(lane));
                (stored, Begin::AtCursor)
            }
            Start::Cursor(cursor) => {
                let cursor = Cursor::from_api(&cursor, log_id, "open.cursor")?;
                (cursor, Begin::AtCursor)
            }
            Start::Now(_) => (Cursor::both(log_id, self.shared.rings.next()), Begin::Now),
            Start::Stored(_) | Start::Snapshot(_) => {
                return snapshot::send(&self.shared, &self.out, lease, credit).await;
            }
        };
        if how == Begin::AtCursor {
            if subscription.has_lost(&cursor) {
                let conflict = Conflict::CursorBack;
                self.shared.metrics.view_conflict(self.platform, conflict);
            }
            subscription.check_filtered(&cursor)?;
        }
        self.check_cursor(&cursor, lease)?;
        lease.begin(cursor, how, now)?;
        self.send(api::subscribe_response::Message::Opened(
            api::SubscribeOpened {
                cursor: Some(cursor.to_api()),
                snapshot: false,
                broker_version: env!("CARGO_PKG_VERSION").to_owned(),
            },
        ))
        .await
    }

    /// Makes the log longer by a record, so that where a stream with another filter begins is after
    /// every cursor that the platform has had so far, and tells them apart.
    async fn move_on(&self, subscription: &Subscription) -> Result<(), Refusal> {
        let stored = subscription.to_stored(self.shared.log_id);
        let stored = api::CursorsStored {
            subscriptions: vec![stored],
        };
        let act = api::control_record::Act::CursorsStored(stored);
        let offset = self.shared.control.write(act).await?;
        let mut applied = self.shared.rings.applied();
        let reached = applied.wait_for(|next| *next > offset).await;
        reached.map(drop).map_err(|_| Reason::ShuttingDown.into())
    }

    /// Everything after the cursor must still be kept, and the cursor must not be of the future.
    fn check_cursor(&self, cursor: &Cursor, lease: &Lease) -> Result<(), Refusal> {
        let next = self.shared.rings.next();
        for lane in Lane::DELIVERED {
            let at = cursor.lane(lane);
            if at > next {
                return Err(
                    Refusal::new(Reason::CursorAhead, format!("open.cursor.{lane}"))
                        .detail(format!("offset {at}, the log ends at {next}")),
                );
            }
            for partition in lease.filter.partitions(lane, &self.shared.platforms) {
                let trimmed = self
                    .shared
                    .log
                    .partition(partition)
                    .map_or(Offset::NONE, |info| info.trimmed_below);
                if at < trimmed {
                    lease
                        .subscription
                        .compacted
                        .store(true, std::sync::atomic::Ordering::Release);
                    return Err(log_reader::compacted(lane, partition, trimmed, at));
                }
            }
        }
        Ok(())
    }

    /// Reads acks and credit until the client is done with them.
    async fn control(
        &self,
        input: &mut Streaming<Frame>,
        lease: &Lease,
        credit: &Credit,
    ) -> Result<(), Refusal> {
        use api::subscribe_request::Message;
        loop {
            match input.message().await {
                Ok(Some(frame)) => match parse(&frame)? {
                    Some(Message::Applied(applied)) => {
                        let cursor = applied
                            .cursor
                            .ok_or_else(|| Refusal::new(Reason::FieldMissing, "applied.cursor"))?;
                        let cursor =
                            Cursor::from_api(&cursor, self.shared.log_id, "applied.cursor")?;
                        let now = (self.shared.clock)();
                        lease.acknowledge(cursor, now)?;
                        self.measure(lease, now);
                    }
                    Some(Message::Credit(more)) => {
                        let metrics = &self.shared.metrics;
                        metrics.credit(self.platform, Direction::FromSubscribers, more.bytes);
                        credit.give(more.bytes);
                    }
                    Some(Message::Open(_)) => return Err(Reason::OpenRepeated.into()),
                    None => {
                        return Err(
                            Refusal::new(Reason::MessageMalformed, "message").detail("empty")
                        );
                    }
                },
                // It sends nothing more, but still receives, as far as its credit goes.
                Ok(None) => std::future::pending::<()>().await,
                Err(_) => {
                    return Err(
                        Refusal::from(Reason::SessionTakenOver).detail("the connection broke")
                    );
                }
            }
        }
    }

    /// The last hops of what the platform has just said to have.
    fn measure(&self, lease: &Lease, now: Micros) {
        let metrics = &self.shared.metrics;
        for lane in Lane::DELIVERED {
            let landed = lease.subscription.landed(lane);
            let delivered = |flight: &Flight| Delivered {
                to: self.platform,
                lane,
                records: flight.records,
                committed_at: flight.committed_at,
                durable_at: flight.durable_at,
                sent_at: flight.sent_at,
                applied_at: now,
            };
            for flight in &landed {
                let sent = now.seconds_since(flight.sent_at);
                metrics.hop(Hop::SentToPlatform, lane, sent);
                let whole = now.seconds_since(flight.committed_at);
                metrics.hop(Hop::SourceToPlatform, lane, whole);
                for trace in &flight.traces {
                    if metrics.traces_delivery(self.platform, trace, now) {
                        let span = spans::deliver(*trace, &delivered(flight));
                        metrics.traces().record(span, None);
                    }
                }
            }
            // The first has waited longest: it speaks for all that this ack is about.
            let Some(mut slowest) = landed.first().map(delivered) else {
                continue;
            };
            if metrics.keeps_delivery(self.platform, slowest.took(), now) {
                slowest.records = landed.iter().map(|flight| flight.records).sum();
                let traces = landed
                    .iter()
                    .flat_map(|flight| flight.traces.iter().copied());
                let span = spans::deliver_slow(&slowest, traces);
                metrics.traces().record(span, None);
            }
        }
    }

    /// Sends what comes, urgent first, and a bookmark twice a second.
    async fn pump(&self, lease: &Lease, credit: &Credit) -> Result<(), Refusal> {
        let mut applied = self.shared.rings.applied();
        let mut bookmark_at = Instant::now();
        let mut bulk = Bulk::new(self.shared.overload.reader(), &lease.filter);
        loop {
            applied.borrow_and_update();
            let mut sent = false;
            let turn = bulk.turns.bulk(credit);
            bulk.counts(credit.available());
            if !credit.available() && !planted!(CreditIgnored) {
                self.shared.metrics.credit_exhausted(self.platform);
            } else if !(planted!(BulkFirst) && self.bulk_waits(lease))
                && self.step_urgent(lease, credit, &mut bulk.turns).await?
            {
                // Look at urgent again before any bulk.
                sent = true;
            } else if let (None, Ok(target)) = (&bulk.reading, turn) {
                sent = self.step_bulk(target, lease, credit, &mut bulk).await?;
            }
            if Instant::now() >= bookmark_at {
                self.bookmark(&lease.subscription).await?;
                bookmark_at = Instant::now() + BOOKMARK_EVERY;
            }
            if sent {
                continue;
            }
            let draining = self.shared.draining.is_cancelled();
            // Who can still take something gets all that is applied first.
            if draining && (bulk.reading.is_none() && turn.is_ok() || !credit.available()) {
                return self.say_goodbye(lease).await;
            }
            let read = async {
                match &mut bulk.reading {
                    Some(read) => read.await,
                    None => std::future::pending().await,
                }
            };
            let wake_at = turn.map_or_else(|again| again.min(bookmark_at), |_| bookmark_at);
            tokio::select! {
                biased;
                changed = applied.changed() => {
                    if changed.is_err() {
                        return Err(Reason::ShuttingDown.into());
                    }
                }
                read = read, if credit.available() && turn.is_ok() => {
                    bulk.reading = None;
                    let chunk = self.whole(read, lease)?;
                    self.deliver(Lane::Bulk, chunk, lease, credit).await?;
                    bulk.turns.bulk_sent();
                }
                () = credit.changed() => {}
                () = tokio::time::sleep_until(wake_at) => {}
                () = self.shared.draining.cancelled(), if !draining => {}
            }
        }
    }

    async fn say_goodbye(&self, lease: &Lease) -> Result<(), Refusal> {
        self.bookmark(&lease.subscription).await?;
        let reason = "the broker is stopping".to_owned();
        let bye = api::Draining { reason };
        self.send(api::subscribe_response::Message::Draining(bye))
            .await
    }

    fn bulk_waits(&self, lease: &Lease) -> bool {
        let waiting = self.read_ring(Lane::Bulk, 1, lease);
        waiting.is_ok_and(|chunk| chunk.is_none_or(|chunk| chunk.records > 0))
    }

    /// Sends one delivery of urgent records, if there is one.
    async fn step_urgent(
        &self,
        lease: &Lease,
        credit: &Credit,
        turns: &mut Turns,
    ) -> Result<bool, Refusal> {
        let target = limits::DELIVERY_BYTES_TARGET;
        let chunk = match self.read_ring(Lane::Urgent, target, lease)? {
            Some(chunk) => chunk,
            None => {
                let read = self.read_log(Lane::Urgent, target, lease).await;
                self.whole(read, lease)?
            }
        };
        let records = chunk.records;
        let on = self.deliver(Lane::Urgent, chunk, lease, credit).await?;
        if records > 0 {
            turns.urgent_sent();
        }
        Ok(on)
    }

    /// Sends one delivery of bulk records, or begins to read it from the log.
    async fn step_bulk(
        &self,
        target: usize,
        lease: &Lease,
        credit: &Credit,
        bulk: &mut Bulk,
    ) -> Result<bool, Refusal> {
        let sent = match self.read_ring(Lane::Bulk, target, lease)? {
            Some(chunk) => {
                bulk.reads(ReadsFrom::Ring);
                self.deliver(Lane::Bulk, chunk, lease, credit).await?
            }
            None => {
                bulk.reading = Some(self.read_log(Lane::Bulk, target, lease));
                bulk.reads(ReadsFrom::Log);
                false
            }
        };
        bulk.turns.bulk_sent();
        Ok(sent)
    }

    /// `None` when the subscription is behind the ring.
    fn read_ring(
        &self,
        lane: Lane,
        target: usize,
        lease: &Lease,
    ) -> Result<Option<Chunk>, Refusal> {
        let from = lease.subscription.position(lane);
        match self.shared.rings.read(lane, from, &lease.filter, target) {
            TailRead::Entries { entries, next } => {
                chunk(entries, next, lease, &self.shared.metrics).map(Some)
            }
            TailRead::Behind => Ok(None),
        }
    }

    /// What was read from the log; `None` if the reading broke off.
    fn whole(&self, read: Option<Read>, lease: &Lease) -> Result<Chunk, Refusal> {
        let (entries, next) = read.ok_or_else(|| Refusal::from(Reason::Internal))??;
        chunk(entries, next, lease, &self.shared.metrics)
    }

    fn read_log(&self, lane: Lane, target: usize, lease: &Lease) -> Reading {
        self.shared.metrics.fell_behind(self.platform);
        let (shared, filter) = (self.shared.clone(), Arc::clone(&lease.filter));
        let from = lease.subscription.position(lane);
        self.shared.beside.begin(async move {
            let read = log_reader::read(&shared, &filter, lane, from, target).await?;
            if lane == Lane::Bulk {
                let bytes = read.0.iter().map(|entry| entry.record.len()).sum();
                shared.overload.pass(GiveWay::CatchUp, bytes).await;
            }
            Ok(read)
        })
    }

    /// Whether there may be more at once.
    async fn deliver(
        &self,
        lane: Lane,
        chunk: Chunk,
        lease: &Lease,
        credit: &Credit,
    ) -> Result<bool, Refusal> {
        let from = lease.subscription.position(lane);
        let now = (self.shared.clock)();
        // Before it is sent, so that an ack cannot overtake it.
        lease.handled(lane, chunk.next, chunk.flight(now), now)?;
        if chunk.records == 0 {
            return Ok(chunk.next > from && chunk.next < self.shared.rings.next());
        }
        let seconds = chunk.waited.seconds(now);
        self.shared.metrics.hop(Hop::AppliedToSent, lane, seconds);
        let frame = record::delivery(chunk.pieces);
        credit.spend(frame.len());
        self.shared
            .metrics
            .delivered(self.platform, chunk.records, frame.len());
        self.send_frame(frame).await?;
        Ok(true)
    }

    async fn bookmark(&self, subscription: &Subscription) -> Result<(), Refusal> {
        let cursor = subscription.cursor(self.shared.log_id, |l| subscription.position(l));
        self.send(api::subscribe_response::Message::Bookmark(api::Bookmark {
            cursor: Some(cursor.to_api()),
            sent_at_us: (self.shared.clock)().0,
        }))
        .await
    }

    async fn send(&self, message: api::subscribe_response::Message) -> Result<(), Refusal> {
        self.send_frame(Frame::new(response(message))).await
    }

    async fn send_frame(&self, frame: Frame) -> Result<(), Refusal> {
        self.out
            .send(Ok(frame))
            .await
            .map_err(|_| Refusal::from(Reason::SessionTakenOver).detail("the client went away"))
    }
}

/// Where bulk stands in one stream.
struct Bulk {
    turns: Turns,
    /// On its way from the log: many may wait for that, and urgent must not. A task of its own, so that it holds
    /// up no other reader while this client takes nothing.
    reading: Option<Reading>,
    wanted: bool,
    from: ReadsFrom,
    reader: Reader,
}

impl Bulk {
    fn new(reader: Reader, filter: &FilterSpec) -> Bulk {
        Bulk {
            turns: Turns::default(),
            reading: None,
            wanted: filter.wants_lane(Lane::Bulk),
            from: ReadsFrom::Ring,
            reader,
        }
    }

    /// Counts at once: what others have read of the log lately is there before anybody looks again.
    fn reads(&mut self, from: ReadsFrom) {
        self.from = from;
        self.counts(true);
    }

    /// Who takes no bulk, or nothing just now, does not count among those who are behind or not.
    fn counts(&mut self, can_take: bool) {
        self.reader.reads(match can_take && self.wanted {
            true => self.from,
            false => ReadsFrom::Nowhere,
        });
    }
}

/// The best of what a client offers that is known here; what is not known may be of a newer client.
fn packing(offered: &[i32]) -> Result<Packing, Refusal> {
    use api::Compression;
    let known = |offered: i32| Compression::try_from(offered).ok();
    if offered
        .iter()
        .any(|o| known(*o) == Some(Compression::Unspecified))
    {
        return Err(Refusal::new(Reason::EnumUnspecified, "open.compressions"));
    }
    match offered.iter().any(|o| known(*o) == Some(Compression::Lz4)) {
        true => Ok(Packing::Lz4),
        false => Ok(Packing::Plain),
    }
}

pub fn response(message: api::subscribe_response::Message) -> Bytes {
    let response = api::SubscribeResponse {
        message: Some(message),
    };
    response.encode_to_vec().into()
}

fn parse(frame: &Frame) -> Result<Option<api::subscribe_request::Message>, Refusal> {
    api::SubscribeRequest::decode(frame.0.as_ref())
        .map(|request| request.message)
        .map_err(|e| Refusal::new(Reason::MessageMalformed, "message").detail(e.to_string()))
}

type Read = Result<(Vec<TailEntry>, Offset), Refusal>;
type Reading = Begun<Read>;

/// Whether a platform is sent away because what it says to have cannot be.
fn conflict(reason: Reason) -> Option<Conflict> {
    match reason {
        Reason::CursorAhead => Some(Conflict::CursorAhead),
        Reason::CursorOfAnotherLog => Some(Conflict::AnotherLog),
        _ => None,
    }
}

impl Chunk {
    fn flight(&self, sent_at: Micros) -> Option<Flight> {
        self.below.map(|below| Flight {
            below,
            committed_at: self.committed_at,
            durable_at: self.durable_at,
            records: self.records,
            sent_at,
            traces: self.traces.clone(),
        })
    }
}

impl Waited {
    fn seconds(&self, now: Micros) -> f64 {
        match self {
            Waited::Since(at) => at.elapsed().as_secs_f64(),
            Waited::SinceDurable(at) => now.seconds_since(*at),
        }
    }
}

/// One that is wanted in part is cut.
fn chunk(
    entries: Vec<TailEntry>,
    next: Offset,
    lease: &Lease,
    metrics: &Recorder,
) -> Result<Chunk, Refusal> {
    let filter = &lease.filter;
    let mut pieces = Vec::with_capacity(entries.len() * 2);
    for entry in &entries {
        if planted!(OtherContent, once in 4) {
            let other = TailEntry::new(entry.head, other_content(&entry.record));
            other.put(Packing::Plain, &mut pieces);
        } else if filter.passes_whole(&entry.head) || planted!(KindsNotCut) {
            entry.put(lease.packing, &mut pieces);
        } else {
            let cut = cut_kinds(&entry.record, filter)?;
            TailEntry::new(entry.head, cut).put(lease.packing, &mut pieces);
        }
    }
    let first = entries.first();
    let oldest = entries
        .iter()
        .map(|e| e.committed_at.unwrap_or(e.head.durable_at));
    let sampled = entries.iter().filter_map(|e| e.traces.as_deref()).flatten();
    Ok(Chunk {
        records: entries.len(),
        pieces,
        traces: metrics.chosen_first(sampled, SAMPLED_PER_DELIVERY_MAX),
        below: entries.last().map(|e| e.head.offset.next()),
        committed_at: oldest.min().unwrap_or_default(),
        durable_at: first.map_or(Micros::ZERO, |e| e.head.durable_at),
        waited: match first.and_then(|e| e.applied_at) {
            Some(at) => Waited::Since(at),
            None => Waited::SinceDurable(first.map_or(Micros::ZERO, |e| e.head.durable_at)),
        },
        next,
    })
}

/// For a plant.
fn other_content(record: &Bytes) -> Bytes {
    let mut bytes = record.to_vec();
    let evidence = bytes.windows(2).position(|pair| pair == b"ee");
    evidence.into_iter().for_each(|at| bytes[at] = b'f');
    bytes.into()
}

/// The record with only the kinds that the filter wants.
pub fn cut_kinds(record: &Bytes, filter: &FilterSpec) -> Result<Bytes, Refusal> {
    let view = RecordView::parse(record)?;
    let mut wanted = Vec::with_capacity(view.deltas.len());
    for i in 0..view.deltas.len() {
        wanted.push(filter.kinds.contains(view.delta_parts(i)?.kind));
    }
    Ok(view.retain(|i| wanted[i]))
}
