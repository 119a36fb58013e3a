//! Finding an entity, a delta, or what is in a record: the services of gRPC, and one look into the log.

use crate::{
    access::Call,
    console::{Failed, Shared, as_json, shapes},
    log::Log,
};
use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::HeaderMap,
    response::Response,
};
use hutong_proto::{
    EntityId, Issuer, Kind, Lane, Offset, Partition, Reason, RecordView, Refusal, Shard, api,
    api::query_service_server::QueryService, area, limits,
};
use prost::Message;
use serde_json::{Value, json};
use tonic::{Request, metadata::MetadataMap};

/// Deltas of a record that are shown; it may have thousands.
const DELTAS_MAX: usize = 100;

fn request<T>(known: &MetadataMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = known.clone();
    request
}

fn entity_of(text: &str) -> Result<EntityId, Failed> {
    let wrong = |why: String| Refusal::new(Reason::EntityInvalid, "entity").detail(why);
    Ok(text.parse().map_err(wrong)?)
}

/// Its registers, and the colour that they resolve to.
pub async fn entity(
    State(console): Shared,
    text: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Failed> {
    let known = console.check(&headers, Call::GetEntity)?;
    let Path(text) = text?;
    let entity = entity_of(&text)?;
    let bytes = || entity.0.to_vec().into();
    let get = api::GetEntityRequest { entity: bytes() };
    let found = console.query.get_entity(request(&known, get)).await?;
    let explain = api::ExplainRequest { entity: bytes() };
    let explained = console.query.explain(request(&known, explain)).await?;
    let found = found.into_inner();
    let registers: Vec<Value> = found.registers.iter().map(shapes::register).collect();
    Ok(as_json(&json!({
        "entity": entity.to_string(),
        "registers": registers,
        "explain": shapes::explain(explained.get_ref()),
    })))
}

/// The entity of an area's path, widest first.
pub async fn area(
    State(console): Shared,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Failed> {
    console.check(&headers, Call::GetEntity)?;
    let Path(path) = path?;
    let parts: Vec<&str> = path.split('/').collect();
    if parts.len() > limits::PATH_PARTS_MAX || parts.iter().any(|part| part.trim().is_empty()) {
        let what = format!("1 to {} parts, none of them empty", limits::PATH_PARTS_MAX);
        return Err(Refusal::new(Reason::EntityInvalid, "path")
            .detail(what)
            .into());
    }
    let entity = area::entity(parts).to_string();
    Ok(as_json(&json!({ "entity": entity })))
}

/// One delta's way, hop by hop. Revision 0 is the current one.
pub async fn trace(
    State(console): Shared,
    path: Result<Path<(String, u32, String, u64)>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Failed> {
    let known = console.check(&headers, Call::Trace)?;
    let Path((entity, issuer, kind, revision)) = path?;
    let kind: Kind = kind
        .parse()
        .map_err(|why: String| Refusal::new(Reason::EnumUnknown, "kind").detail(why))?;
    let trace = api::TraceRequest {
        entity: entity_of(&entity)?.0.to_vec().into(),
        issuer,
        kind: kind.to_api().into(),
        revision,
    };
    let answer = console.query.trace(request(&known, trace)).await?;
    Ok(as_json(&shapes::trace(answer.get_ref())))
}

/// What is in one record of the log: which changes somebody has not applied.
pub async fn record(
    State(console): Shared,
    path: Result<Path<(u32, String, u32, u64)>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Failed> {
    console.check(&headers, Call::ReadRecord)?;
    let Path((issuer, lane, shard, offset)) = path?;
    let unknown = || Refusal::new(Reason::PartitionUnknown, "record");
    let lane = Lane::DELIVERED.into_iter().find(|l| l.name() == lane);
    let issuer = Issuer::new(issuer).ok_or_else(unknown)?;
    let sources = console.watch.sources();
    let platforms = &sources.platforms;
    let configured = platforms
        .iter()
        .any(|p| p.issuer == issuer && shard < p.shards);
    let partition = Partition {
        issuer,
        lane: lane.filter(|_| configured).ok_or_else(unknown)?,
        shard: Shard(shard),
    };
    let log = std::sync::Arc::clone(&sources.log);
    let read = move || of_record(&*log, partition, Offset(offset));
    let found = tokio::task::spawn_blocking(read)
        .await
        .map_err(|_| Refusal::from(Reason::Internal))??;
    Ok(as_json(&found))
}

fn of_record(log: &dyn Log, partition: Partition, offset: Offset) -> Result<Value, Failed> {
    let not_found = || Refusal::new(Reason::DeltaNotFound, "offset");
    let entries = log.read(partition, offset, 1).map_err(|_| not_found())?;
    let entry = entries.first().filter(|e| e.head.offset == offset);
    let entry = entry.ok_or_else(not_found)?;
    let record = RecordView::parse(&entry.record)?;
    let whole =
        api::Record::decode(&entry.record[..]).map_err(|_| Refusal::from(Reason::Internal))?;
    let deltas: Vec<Value> = whole
        .deltas
        .iter()
        .take(DELTAS_MAX)
        .map(|delta| {
            let provenance = whole.provenance.get(delta.provenance as usize);
            shapes::delta(delta, provenance)
        })
        .collect();
    Ok(json!({
        "issuer": partition.issuer.code(),
        "lane": partition.lane.name(),
        "shard": partition.shard.0,
        "offset": offset.0,
        "durable_at_us": entry.head.durable_at.0,
        "producer": record.header.producer,
        "deltas_in_all": record.deltas.len(),
        "deltas": deltas,
    }))
}
