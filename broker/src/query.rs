//! Questions about one entity or one delta.

use crate::{
    access::{Access, Call},
    apply::{
        exceptions::Dropped,
        ways::{Way, Ways},
    },
    clock::Clock,
    fanout::registry::Subscriptions,
    log::{Entry, Log},
    resolution::{self, Claim},
    state::{
        State, StateError, keys,
        keys::RegisterKey,
        row::{OwnedRow, ProvenanceId},
    },
};
use hutong_proto::{
    EntityId, Issuer, Kind, Lane, Micros, Offset, Partition, Reason, RecordView, Refusal, api,
    api::{TraceState, query_service_server::QueryService},
    batch::ValueView,
    delta::{DeltaParts, value_field},
};
use prost::Message;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use tracing::Span;

/// How much of the log is read for a revision that is no longer current.
const TRACE_READ_BYTES_MAX: usize = 64 << 20;
const TRACE_CHUNK_BYTES: usize = 1 << 20;
/// Offsets looked at first, from the end; what is looked for is nearly always new.
const TRACE_WINDOW_OFFSETS: u64 = 4096;

#[derive(Clone)]
pub struct Query {
    pub access: Access,
    pub state: Arc<State>,
    pub log: Arc<dyn Log>,
    pub ways: Arc<Ways>,
    pub subscriptions: Arc<Subscriptions>,
    pub platforms: Arc<Vec<(Issuer, u32)>>,
    pub clock: Clock,
}

impl std::fmt::Debug for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Query").finish_non_exhaustive()
    }
}

/// A delta found in state or log.
struct Found {
    delta: api::Delta,
    provenance: api::Provenance,
    lane: Lane,
    offset: Offset,
    durable_at: Micros,
    superseded: bool,
    refused: bool,
}

/// What a trace looks for.
struct Sought {
    entity: EntityId,
    kind: Kind,
    revision: u64,
}

impl Query {
    fn registers(&self, entity: &[u8]) -> Result<Vec<(RegisterKey, OwnedRow)>, Refusal> {
        let entity = EntityId::from_slice(entity).ok_or_else(|| {
            Refusal::new(Reason::EntityInvalid, "entity").detail(format!("{} bytes", entity.len()))
        })?;
        self.state.entity(entity).map_err(|e| internal(&e))
    }

    fn provenance(&self, id: ProvenanceId) -> Result<api::Provenance, Refusal> {
        let key = keys::provenance(id);
        let bytes = self.state.get(&key).map_err(|e| internal(&e))?;
        let bytes = bytes.ok_or_else(|| internal(&StateError::damaged(&key, "is missing")))?;
        decode(&bytes)
    }

    fn register(&self, key: &RegisterKey, row: &OwnedRow) -> Result<api::Register, Refusal> {
        let now = (self.clock)();
        Ok(api::Register {
            issuer: key.issuer.code(),
            kind: key.kind.to_api().into(),
            delta: Some(delta_of(key, row)?),
            provenance: Some(self.provenance(row.provenance)?),
            offset: row.offset.0,
            expired: row.expires_at != Micros::ZERO && row.expires_at <= now,
        })
    }

    fn explain(&self, entity: &[u8]) -> Result<api::ExplainResponse, Refusal> {
        let now = (self.clock)();
        let rows = self.registers(entity)?;
        let mut claims = Vec::new();
        for (key, row) in rows.iter().filter(|(key, _)| key.kind == Kind::HealthCode) {
            let ValueView::HealthCode(colour) =
                ValueView::parse(value_field(key.kind), &row.value)?
            else {
                continue;
            };
            claims.push(Claim {
                issuer: key.issuer,
                colour,
                committed_at: row.committed_at,
                expires_at: row.expires_at,
            });
        }
        let mut response = api::ExplainResponse {
            as_of_us: now.0,
            ..Default::default()
        };
        for (claim, verdict) in resolution::resolve(&claims, now) {
            let found = rows
                .iter()
                .find(|(key, _)| key.issuer == claim.issuer && key.kind == Kind::HealthCode);
            let Some((key, row)) = found else { continue };
            let (because, because_zh) = resolution::because(verdict);
            if verdict == api::Verdict::Won {
                response.colour = claim.colour as i32;
                response.decided_by = because.to_owned();
                response.decided_by_zh = because_zh.to_owned();
            }
            response.contenders.push(api::Contender {
                register: Some(self.register(key, row)?),
                verdict: verdict.into(),
                because: because.to_owned(),
            });
        }
        if response.decided_by.is_empty() {
            "no issuer has a code that has not expired".clone_into(&mut response.decided_by);
            "没有任何签发方的有效健康码".clone_into(&mut response.decided_by_zh);
        }
        Ok(response)
    }

    fn trace(&self, request: &api::TraceRequest) -> Result<api::TraceResponse, Refusal> {
        let issuer = Issuer::new(request.issuer)
            .filter(|issuer| self.platforms.iter().any(|(p, _)| p == issuer))
            .ok_or_else(|| Refusal::new(Reason::PartitionUnknown, "issuer"))?;
        if request.kind == 0 {
            return Err(Refusal::new(Reason::EnumUnspecified, "kind"));
        }
        let Some(kind) = u64::try_from(request.kind).ok().and_then(Kind::from_number) else {
            return Err(Refusal::new(Reason::EnumUnknown, "kind"));
        };
        let rows = self.registers(&request.entity)?;
        let current = rows
            .iter()
            .find(|(key, _)| key.issuer == issuer && key.kind == kind);
        let found = match current {
            Some((key, row)) if request.revision == 0 || request.revision == row.revision.0 => {
                self.found_current(key, row)?
            }
            Some(_) => self.found_in_log(request, issuer, kind)?,
            None => return Err(Refusal::new(Reason::DeltaNotFound, "entity")),
        };
        let hops = match found.refused {
            true => Vec::new(),
            false => self.hops(&found, issuer, kind),
        };
        let entity = EntityId::from_slice(&request.entity).unwrap_or(EntityId([0; 16]));
        let partition = Partition {
            issuer,
            lane: found.lane,
            shard: entity.shard(self.shards(issuer)),
        };
        let way = self.way(&found, partition, &hops);
        Ok(api::TraceResponse {
            committed_at_us: found.delta.committed_at_us,
            delta: Some(found.delta),
            provenance: Some(found.provenance),
            lane: found.lane.to_api().into(),
            shard: partition.shard.0,
            offset: found.offset.0,
            durable_at_us: found.durable_at.0,
            superseded: found.superseded,
            hops,
            refused: found.refused,
            arrived_at_us: way.arrived_at.unwrap_or_default().0,
            applied_at_us: way.applied_at.unwrap_or_default().0,
        })
    }

    /// Its way through the broker, as far as that is remembered.
    fn way(&self, found: &Found, partition: Partition, hops: &[api::TraceHop]) -> Way {
        if found.durable_at == Micros::ZERO {
            return Way::default();
        }
        let mut way = self.ways.of(partition, found.offset, found.durable_at);
        if found.refused {
            way.applied_at = None;
        }
        // Nothing is sent before it is applied, and both are known as bounds from above.
        let sent = hops.iter().map(|hop| hop.sent_at_us).filter(|at| *at > 0);
        let bounds = way.applied_at.into_iter().chain(sent.map(Micros));
        way.applied_at = way.applied_at.and(bounds.min());
        way
    }

    fn shards(&self, issuer: Issuer) -> u32 {
        let found = self.platforms.iter().find(|(p, _)| *p == issuer);
        found.map_or(1, |(_, shards)| *shards)
    }

    fn found_current(&self, key: &RegisterKey, row: &OwnedRow) -> Result<Found, Refusal> {
        let lane = ValueView::parse(value_field(key.kind), &row.value)?.lane();
        let partition = Partition {
            issuer: key.issuer,
            lane,
            shard: key.entity.shard(self.shards(key.issuer)),
        };
        let head = self.log.head_at(partition, row.offset).map_err(|e| {
            tracing::error!(error = %e, "a trace cannot be read");
            Refusal::from(Reason::Internal)
        })?;
        let durable_at = head
            .filter(|h| h.offset == row.offset)
            .map(|h| h.durable_at);
        Ok(Found {
            delta: delta_of(key, row)?,
            provenance: self.provenance(row.provenance)?,
            lane,
            offset: row.offset,
            // Trimmed from the log by now: the time is no longer known.
            durable_at: durable_at.unwrap_or(Micros::ZERO),
            superseded: false,
            refused: false,
        })
    }

    /// Looks for another revision in what the log keeps of the entity's partitions, newest first: a log of
    /// days is not read from its beginning for what came a minute ago.
    fn found_in_log(
        &self,
        request: &api::TraceRequest,
        issuer: Issuer,
        kind: Kind,
    ) -> Result<Found, Refusal> {
        let not_found = || Refusal::new(Reason::DeltaNotFound, "revision");
        let entity = EntityId::from_slice(&request.entity).ok_or_else(not_found)?;
        let sought = Sought {
            entity,
            kind,
            revision: request.revision,
        };
        let shard = entity.shard(self.shards(issuer));
        let partitions = Lane::DELIVERED.map(|lane| Partition {
            issuer,
            lane,
            shard,
        });
        let kept = partitions
            .iter()
            .filter_map(|p| self.log.partition(*p))
            .map(|info| info.trimmed_below)
            .max()
            .unwrap_or(Offset::FIRST)
            .max(Offset::FIRST);
        let mut end = self.state.applied().next;
        let (mut window, mut read, mut refused) = (TRACE_WINDOW_OFFSETS, 0, None);
        while kept < end && read < TRACE_READ_BYTES_MAX {
            let begin = Offset(end.0.saturating_sub(window)).max(kept);
            let mut from = begin;
            while from < end {
                let merged = self
                    .log
                    .read_merged(&partitions, from, end, TRACE_CHUNK_BYTES)
                    .map_err(|_| not_found())?;
                for entry in &merged.entries {
                    read += entry.record.len();
                    match self.found_in(entry, &sought)? {
                        Some(found) if found.refused => refused = Some(found),
                        Some(found) => return Ok(found),
                        None => {}
                    }
                }
                from = merged.next;
            }
            (end, window) = (begin, window.saturating_mul(2));
        }
        // It may have been sent twice; only then was it applied before.
        refused.ok_or_else(not_found)
    }

    fn found_in(&self, entry: &Entry, sought: &Sought) -> Result<Option<Found>, Refusal> {
        let record = RecordView::parse(&entry.record)?;
        for i in 0..record.deltas.len() {
            let delta = record.delta(i)?;
            if delta.entity != sought.entity
                || delta.kind() != sought.kind
                || delta.revision.0 != sought.revision
            {
                continue;
            }
            let provenance = record.provenance(delta.provenance as usize)?;
            let mut bytes = Vec::new();
            DeltaParts {
                entity: delta.entity,
                revision: delta.revision,
                committed_at: delta.committed_at,
                expires_at: delta.expires_at,
                provenance: 0,
                evidence: delta.evidence,
                trace: None,
                kind: sought.kind,
                value: delta.value_bytes,
            }
            .encode(&mut bytes);
            let exception = self.state.get(&keys::exception(entry.head.offset));
            let refused = match exception.map_err(|e| internal(&e))? {
                None => false,
                Some(row) => match Dropped::decode(&row) {
                    Dropped::Nothing => false,
                    Dropped::Some(indexes) => indexes.contains(&(i as u32)),
                    Dropped::All => true,
                },
            };
            return Ok(Some(Found {
                delta: decode(&bytes)?,
                provenance: decode(provenance.bytes)?,
                lane: entry.head.partition.lane,
                offset: entry.head.offset,
                durable_at: entry.head.durable_at,
                superseded: !refused,
                refused,
            }));
        }
        Ok(None)
    }

    fn hops(&self, found: &Found, issuer: Issuer, kind: Kind) -> Vec<api::TraceHop> {
        let lane = found.lane;
        let hop = |subscription: &crate::fanout::registry::Subscription| {
            let filter = subscription.filter();
            let sent = subscription.sent_history.when(lane, found.offset);
            let applied = subscription.applied_history.when(lane, found.offset);
            let wanted = filter.wants_issuer(issuer)
                && filter.wants_lane(lane)
                && filter.kinds.contains(kind);
            let state = if !wanted {
                TraceState::NotSubscribed
            } else if subscription.applied(lane) > found.offset {
                match subscription.began_after(lane, found.offset) {
                    true => TraceState::BeforeStart,
                    false => TraceState::Applied,
                }
            } else if subscription.position(lane) > found.offset && subscription.connected() {
                TraceState::Sent
            } else {
                TraceState::Waiting
            };
            let known = wanted && state != TraceState::BeforeStart;
            let time = |at: Option<Micros>| at.filter(|_| known).map_or(0, |at| at.0);
            api::TraceHop {
                platform: subscription.key.0.code(),
                subscription: subscription.key.1.clone(),
                state: state.into(),
                sent_at_us: time(sent),
                applied_at_us: time(applied),
            }
        };
        self.subscriptions.list().iter().map(|s| hop(s)).collect()
    }
}

/// The current value as a delta whose provenance stands beside it.
fn delta_of(key: &RegisterKey, row: &OwnedRow) -> Result<api::Delta, Refusal> {
    let mut bytes = Vec::with_capacity(96);
    DeltaParts {
        entity: key.entity,
        revision: row.revision,
        committed_at: row.committed_at,
        expires_at: row.expires_at,
        provenance: 0,
        evidence: &row.evidence,
        trace: None,
        kind: key.kind,
        value: &row.value,
    }
    .encode(&mut bytes);
    decode(&bytes)
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Refusal> {
    M::decode(bytes).map_err(|error| {
        tracing::error!(%error, "stored bytes do not decode");
        Reason::Internal.into()
    })
}

fn internal(error: &StateError) -> Refusal {
    tracing::error!(%error, "a query failed");
    Reason::Internal.into()
}

/// Answers on a thread where reading from disk may block.
async fn blocking<T: Send + 'static>(
    answer: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<Response<T>, Status> {
    let span = Span::current();
    let answer = tokio::task::spawn_blocking(move || span.in_scope(answer))
        .await
        .map_err(|_| Refusal::from(Reason::Internal))?;
    Ok(Response::new(answer?))
}

#[tonic::async_trait]
impl QueryService for Query {
    async fn get_entity(
        &self,
        request: Request<api::GetEntityRequest>,
    ) -> Result<Response<api::GetEntityResponse>, Status> {
        self.access.check(request.metadata(), Call::GetEntity)?;
        let this = self.clone();
        blocking(move || {
            let rows = this.registers(&request.get_ref().entity)?;
            let registers = rows.iter().map(|(key, row)| this.register(key, row));
            Ok(api::GetEntityResponse {
                registers: registers.collect::<Result<_, _>>()?,
            })
        })
        .await
    }

    async fn explain(
        &self,
        request: Request<api::ExplainRequest>,
    ) -> Result<Response<api::ExplainResponse>, Status> {
        self.access.check(request.metadata(), Call::Explain)?;
        let this = self.clone();
        blocking(move || this.explain(&request.get_ref().entity)).await
    }

    async fn trace(
        &self,
        request: Request<api::TraceRequest>,
    ) -> Result<Response<api::TraceResponse>, Status> {
        self.access.check(request.metadata(), Call::Trace)?;
        let this = self.clone();
        blocking(move || this.trace(request.get_ref())).await
    }
}
