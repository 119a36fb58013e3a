//! Answers of the services as JSON. Numbers that may be larger than a browser counts exactly (2^53) are texts.

use crate::{
    console::judge::of_connector,
    metrics::{
        Metrics,
        faults::{Fault, Side},
    },
    reports::{Kept, Reports},
};
use hutong_proto::{EntityId, Issuer, Kind, Lane, api, api::delta::Value as ApiValue, delta};
use serde_json::{Value, json};

pub fn delta(delta: &api::Delta, provenance: Option<&api::Provenance>) -> Value {
    json!({
        "entity": entity(&delta.entity),
        "kind": kind_of(delta),
        "value": value(delta),
        "revision": delta.revision.to_string(),
        "committed_at_us": delta.committed_at_us,
        "expires_at_us": delta.expires_at_us,
        "evidence": delta.evidence,
        "provenance": provenance.map(|p| json!({
            "authority": p.authority,
            "rule_id": p.rule_id,
            "rule_version": p.rule_version,
            "reason": p.reason,
        })),
    })
}

fn entity(bytes: &[u8]) -> String {
    EntityId::from_slice(bytes).map_or_else(String::new, |entity| entity.to_string())
}

fn kind_of(delta: &api::Delta) -> &'static str {
    let kind = match &delta.value {
        Some(ApiValue::HealthCode(_)) => Kind::HealthCode,
        Some(ApiValue::TestResult(_)) => Kind::TestResult,
        Some(ApiValue::Vaccination(_)) => Kind::Vaccination,
        Some(ApiValue::AreaRisk(_)) => Kind::AreaRisk,
        None => return "",
    };
    kind.name()
}

/// `word` is one of the vocabulary, `text` what goes with it.
fn value(delta: &api::Delta) -> Value {
    let number = |n: i32| u64::try_from(n).unwrap_or(0);
    let (word, text) = match &delta.value {
        Some(ApiValue::HealthCode(v)) => (
            delta::Colour::from_number(number(v.colour)).map(delta::Colour::name),
            String::new(),
        ),
        Some(ApiValue::TestResult(v)) => (
            delta::TestOutcome::from_number(number(v.outcome)).map(delta::TestOutcome::name),
            String::new(),
        ),
        Some(ApiValue::Vaccination(v)) => (None, format!("{} {}", v.doses, v.product)),
        Some(ApiValue::AreaRisk(v)) => (
            delta::RiskLevel::from_number(number(v.level)).map(delta::RiskLevel::name),
            v.path.join("/"),
        ),
        None => (None, String::new()),
    };
    json!({ "word": word.unwrap_or(""), "text": text.trim_end() })
}

pub fn register(register: &api::Register) -> Value {
    json!({
        "issuer": register.issuer,
        "kind": kind_name(register.kind),
        "expired": register.expired,
        "offset": register.offset,
        "delta": register.delta.as_ref().map(|d| delta(d, register.provenance.as_ref())),
    })
}

pub fn explain(answer: &api::ExplainResponse) -> Value {
    let colour = u64::try_from(answer.colour)
        .ok()
        .and_then(delta::Colour::from_number);
    let contenders: Vec<Value> = answer
        .contenders
        .iter()
        .map(|c| {
            json!({
                "verdict": c.verdict().as_str_name(),
                "issuer": c.register.as_ref().map_or(0, |r| r.issuer),
            })
        })
        .collect();
    json!({
        "colour": colour.map_or("", delta::Colour::name),
        "decided_by": answer.decided_by,
        "decided_by_zh": answer.decided_by_zh,
        "contenders": contenders,
    })
}

pub fn trace(answer: &api::TraceResponse) -> Value {
    let hops: Vec<Value> = answer
        .hops
        .iter()
        .map(|h| {
            json!({
                "platform": h.platform,
                "subscription": h.subscription,
                "state": h.state().as_str_name(),
                "sent_at_us": h.sent_at_us,
                "applied_at_us": h.applied_at_us,
            })
        })
        .collect();
    json!({
        "delta": answer.delta.as_ref().map(|d| delta(d, answer.provenance.as_ref())),
        "lane": lane_name(answer.lane),
        "shard": answer.shard,
        "offset": answer.offset,
        "committed_at_us": answer.committed_at_us,
        "arrived_at_us": answer.arrived_at_us,
        "durable_at_us": answer.durable_at_us,
        "applied_at_us": answer.applied_at_us,
        "superseded": answer.superseded,
        "refused": answer.refused,
        "hops": hops,
    })
}

fn kind_name(number: i32) -> &'static str {
    let kind = u64::try_from(number).ok().and_then(Kind::from_number);
    kind.map_or("", Kind::name)
}

fn lane_name(number: i32) -> &'static str {
    let lane = u64::try_from(number).ok().and_then(Lane::from_number);
    lane.map_or("", Lane::name)
}

/// What was refused since the start, by platform and reason, with what the catalogue says about it.
pub fn refusals(metrics: &Metrics, of: Option<Issuer>) -> Vec<Value> {
    metrics
        .refusals()
        .iter()
        .filter(|(platform, _, _)| of.is_none() || *platform == of)
        .map(|(platform, reason, count)| {
            let entry = reason.entry();
            json!({
                "platform": platform.map_or(0, Issuer::code),
                "reason": entry.code,
                "count": count,
                "text": entry.text,
                "text_zh": entry.text_zh,
                "retryable": reason.retryable(),
            })
        })
        .collect()
}

/// What connectors said of themselves last.
pub fn connectors(reports: &Reports, of: Option<Issuer>) -> Vec<Value> {
    let all = reports.all().into_iter();
    let wanted = all.filter(|(platform, _)| of.is_none_or(|of| of == *platform));
    let shape = |(platform, kept): (Issuer, Kept)| {
        let report = &kept.report;
        let added = report.dead_letters_added.iter();
        let added = added.map(|a| json!({ "reason": a.reason, "rows": a.rows }));
        json!({
            "platform": platform.code(),
            "connector": report.connector,
            "role": report.role().as_str_name(),
            "state": report.state().as_str_name(),
            "since_us": report.since_us,
            "dead_letters": report.dead_letters,
            "dead_letters_bytes": report.dead_letters_bytes,
            "dead_letters_added": added.collect::<Vec<_>>(),
            "said_at_us": kept.said_at.0,
            "silent": kept.is_silent(),
            "severity": of_connector(report.state(), kept.is_silent()).0,
        })
    };
    wanted.map(shape).collect()
}

/// What went wrong last with a platform, newest first: a refusal, or an error that a stream ended with.
pub fn faults(metrics: &Metrics, of: Issuer) -> Vec<Value> {
    let faults = metrics.faults(of);
    let shape = |(side, fault): &(Side, Fault)| {
        let entry = fault.reason.entry();
        json!({
            "side": side.name(),
            "ended": fault.ended,
            "at_us": fault.at.0,
            "reason": entry.code,
            "field": fault.field,
            "text": entry.text,
            "text_zh": entry.text_zh,
        })
    };
    faults.iter().map(shape).collect()
}
