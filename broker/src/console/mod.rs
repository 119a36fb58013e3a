//! The console: a page for people, served by the broker itself. It only reads.
//!
//! Everything that the page shows comes from the JSON under `/console/api/`, which answers with the same
//! services, behind the same access, as gRPC does. A browser says who it is in a cookie, since it cannot put a
//! header on a stream or a link; both are read, the header first. The page itself has nothing to protect.

mod assets;
mod drills;
mod find;
mod judge;
mod picture;
mod samples;
mod shapes;
mod watch;

use crate::{
    access::{Access, Call},
    admin::Admin,
    console::{
        picture::{Sources, pairs_of},
        samples::Sampler,
        watch::Watch,
    },
    query::Query,
    reload::Live,
};
use axum::{
    Router,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use hutong_proto::{Issuer, Reason, Refusal, metadata};
use hutong_telemetry::recent;
use serde::Serialize;
use serde_json::json;
use std::{net::IpAddr, path::PathBuf, sync::Arc};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, metadata::MetadataMap};

/// No script, style or anything else but our own files; nobody may put the page into a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the console needs of the broker.
#[derive(Clone, Debug)]
pub struct Parts {
    pub access: Access,
    pub admin: Admin,
    pub query: Query,
    pub live: Arc<Live>,
    /// Where reports of drills are, if anywhere.
    pub drills: Option<PathBuf>,
    /// Ends streams and the task that looks.
    pub stop: CancellationToken,
}

#[derive(Debug)]
pub struct Console {
    access: Access,
    query: Query,
    live: Arc<Live>,
    drills: Option<PathBuf>,
    watch: Arc<Watch>,
}

type Shared = State<Arc<Console>>;

impl Console {
    pub fn new(parts: Parts) -> Arc<Console> {
        let admin = parts.admin;
        let sampler = Sampler::new(
            Arc::clone(&admin.log),
            Arc::clone(&admin.subscriptions),
            Arc::clone(&admin.metrics),
        );
        let sources = Sources {
            platforms: admin.platforms,
            lags: admin.lags,
            log: admin.log,
            state: admin.state,
            producers: admin.producers,
            metrics: admin.metrics,
            reports: admin.reports,
            started_at: admin.started_at,
        };
        Arc::new(Console {
            access: parts.access,
            query: parts.query,
            live: parts.live,
            drills: parts.drills,
            watch: Arc::new(Watch::new(sources, sampler, parts.stop)),
        })
    }

    /// Until it is told to stop; somebody must run it.
    pub async fn run(self: Arc<Console>) {
        Arc::clone(&self.watch).run().await;
    }

    pub fn router(self: &Arc<Console>) -> Router {
        let api = Router::new()
            .route("/picture", get(picture))
            .route("/live", get(live))
            .route("/history", get(history))
            .route("/platform/{code}", get(platform))
            .route("/refused", get(refused))
            .route("/connectors", get(connectors))
            .route("/errors", get(errors))
            .route("/config", get(config))
            .route("/entity/{entity}", get(find::entity))
            .route("/area/{*path}", get(find::area))
            .route(
                "/trace/{entity}/{issuer}/{kind}/{revision}",
                get(find::trace),
            )
            .route(
                "/record/{issuer}/{lane}/{shard}/{offset}",
                get(find::record),
            )
            .route("/drills", get(drills::list))
            .route("/drills/{name}", get(drills::report))
            .fallback(async || Failed::unknown(StatusCode::NOT_FOUND))
            .method_not_allowed_fallback(async || Failed::unknown(StatusCode::METHOD_NOT_ALLOWED))
            .with_state(Arc::clone(self));
        Router::new()
            .nest("/console/api", api)
            .route(
                "/console",
                get(|| async { Redirect::permanent("/console/") }),
            )
            .route("/console/", get(assets::index))
            .route("/console/{name}", get(assets::asset))
            .layer(middleware::map_response(harden))
    }

    /// Who asks, if that is allowed. The headers are also what the services want to see.
    fn check(&self, headers: &HeaderMap, call: Call) -> Result<MetadataMap, Failed> {
        // A page of another site must not reach us under a name that it made point here.
        if !host_is_plain(headers) {
            return Err(Failed::message(
                StatusCode::MISDIRECTED_REQUEST,
                "open the console by the broker's address or as localhost",
                "请用代理的地址或 localhost 打开控制台",
            ));
        }
        let mut known = MetadataMap::new();
        if let Some(identity) = identity(headers) {
            known.insert(metadata::IDENTITY, identity);
        }
        self.access.check(&known, call)?;
        Ok(known)
    }
}

async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let mut set = |name, value| {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    };
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(header::CACHE_CONTROL, "no-store");
    response
}

/// An address or localhost.
fn host_is_plain(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let Some(host) = host else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// Of the header, or of the cookie of the same name.
fn identity(headers: &HeaderMap) -> Option<tonic::metadata::MetadataValue<tonic::metadata::Ascii>> {
    let header = headers
        .get(metadata::IDENTITY)
        .and_then(|h| h.to_str().ok());
    let cookies = headers.get_all(header::COOKIE).iter();
    let cookie = || {
        cookies
            .filter_map(|cookies| cookies.to_str().ok())
            .flat_map(|cookies| cookies.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .find_map(|(name, value)| (name == metadata::IDENTITY).then_some(value))
    };
    header.or_else(cookie)?.parse().ok()
}

/// An answer that is not what was asked for.
#[derive(Debug)]
struct Failed {
    status: StatusCode,
    reason: String,
    field: String,
    message: String,
    message_zh: String,
}

impl Failed {
    fn message(status: StatusCode, message: &str, message_zh: &str) -> Failed {
        Failed {
            status,
            reason: String::new(),
            field: String::new(),
            message: message.to_owned(),
            message_zh: message_zh.to_owned(),
        }
    }

    fn unknown(status: StatusCode) -> Failed {
        Failed::message(
            status,
            "there is nothing to ask for here",
            "此处没有可查询的内容",
        )
    }

    fn busy() -> Failed {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Failed::message(
            status,
            "as many look at the console as may; try again later",
            "查看控制台的人数已达上限；请稍后再试",
        )
    }
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Failed {
        let entry = refusal.reason.entry();
        Failed {
            status: http_status(entry.grpc),
            reason: entry.code.to_owned(),
            message: refusal.message(),
            message_zh: entry.text_zh.to_owned(),
            field: refusal.field,
        }
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Failed {
        match Refusal::from_status(&status) {
            Some(refusal) => refusal.into(),
            None => Failed::message(
                http_status(status.code()),
                status.message(),
                &format!("代理返回错误：{}", status.message()),
            ),
        }
    }
}

/// A part of an address that should be a number.
impl From<PathRejection> for Failed {
    fn from(rejection: PathRejection) -> Failed {
        Refusal::new(Reason::ValueOutOfRange, "path")
            .detail(rejection.body_text())
            .into()
    }
}

/// A page that is not there is told from one that may not be seen.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
            StatusCode::BAD_REQUEST
        }
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unavailable | Code::ResourceExhausted => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let body = json!({
            "reason": self.reason,
            "field": self.field,
            "message": self.message,
            "message_zh": self.message_zh,
        });
        (self.status, as_json(&body)).into_response()
    }
}

fn as_json<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => raw_json(bytes),
        Err(error) => {
            tracing::error!(%error, "an answer of the console cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn raw_json(bytes: impl Into<Body>) -> Response {
    let content_type = "application/json; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], bytes.into()).into_response()
}

async fn picture(State(console): Shared, headers: HeaderMap) -> Result<Response, Failed> {
    console.check(&headers, Call::GetLagMatrix)?;
    let json = console.watch.once().await.ok_or_else(Failed::busy)?;
    Ok(raw_json(json))
}

/// What runs, defaults included: not what a file says by now.
async fn config(State(console): Shared, headers: HeaderMap) -> Result<Response, Failed> {
    console.check(&headers, Call::ReadConfig)?;
    let content_type = [(header::CONTENT_TYPE, "application/toml; charset=utf-8")];
    Ok((content_type, console.live.running().to_toml()).into_response())
}

async fn live(State(console): Shared, headers: HeaderMap) -> Result<Response, Failed> {
    console.check(&headers, Call::GetLagMatrix)?;
    let stream = console.watch.stream().ok_or_else(Failed::busy)?;
    let content_type = [(header::CONTENT_TYPE, "text/event-stream")];
    Ok((content_type, Body::from_stream(stream)).into_response())
}

async fn history(State(console): Shared, headers: HeaderMap) -> Result<Response, Failed> {
    console.check(&headers, Call::GetStatus)?;
    Ok(as_json(&console.watch.points()))
}

/// What one platform has not applied, by subscription and issuer; what it was refused, what went wrong last, and what
/// its connectors say. The rest of its page is in the picture.
async fn platform(
    State(console): Shared,
    code: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Failed> {
    console.check(&headers, Call::GetLagMatrix)?;
    let Path(code) = code?;
    let sources = console.watch.sources();
    let issuer: Option<Issuer> = code.parse().ok();
    let known = issuer.filter(|i| sources.platforms.iter().any(|p| p.issuer == *i));
    let issuer = known.ok_or_else(|| Refusal::new(Reason::PartitionUnknown, "platform"))?;
    let lags = console.watch.lags().await.ok_or_else(Failed::busy)?;
    let pairs = pairs_of(&lags, issuer);
    let refused = shapes::refusals(&sources.metrics, Some(issuer));
    let last = shapes::faults(&sources.metrics, issuer);
    let connectors = shapes::connectors(&sources.reports, Some(issuer));
    let answer =
        json!({ "pairs": pairs, "refused": refused, "last": last, "connectors": connectors });
    Ok(as_json(&answer))
}

async fn refused(State(console): Shared, headers: HeaderMap) -> Result<Response, Failed> {
    console.check(&headers, Call::ListPlatforms)?;
    let all = shapes::refusals(&console.watch.sources().metrics, None);
    Ok(as_json(&all))
}

async fn connectors(State(console): Shared, headers: HeaderMap) -> Result<Response, Failed> {
    console.check(&headers, Call::ListConnectors)?;
    let all = shapes::connectors(&console.watch.sources().reports, None);
    Ok(as_json(&all))
}

/// The last warnings and errors of the broker's log.
async fn errors(State(console): Shared, headers: HeaderMap) -> Result<Response, Failed> {
    console.check(&headers, Call::GetStatus)?;
    let entries: Vec<_> = recent::entries()
        .iter()
        .map(|e| {
            json!({
                "at_us": e.at_us, "level": if e.error { "error" } else { "warn" },
                "target": e.target, "text": e.text, "times": e.times, "trace_id": e.trace_id,
            })
        })
        .collect();
    Ok(as_json(&entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().expect("ascii"));
        }
        headers
    }

    #[test]
    fn only_addresses_and_localhost_are_hosts() {
        for (host, plain) in [
            ("127.0.0.1:7401", true),
            ("[::1]:7401", true),
            ("localhost:7401", true),
            ("localhost", true),
            ("LOCALHOST:7401", true),
            ("hutong.example:7401", false),
            ("127.0.0.1.example", false),
            ("", false),
        ] {
            assert_eq!(host_is_plain(&headers(&[("host", host)])), plain, "{host}");
        }
        assert!(!host_is_plain(&HeaderMap::new()));
    }

    #[test]
    fn who_asks_stands_in_the_header_or_in_the_cookie() {
        let of = |list: &[(&'static str, &str)]| {
            let identity = identity(&headers(list));
            identity.map(|i| i.to_str().expect("ascii").to_owned())
        };
        let cookie = ("cookie", "a=b; hutong-identity=auditor/console");
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("cookie", "x=y")]), None);
        assert_eq!(of(&[cookie]).as_deref(), Some("auditor/console"));
        let header = ("hutong-identity", "operator/a");
        assert_eq!(of(&[cookie, header]).as_deref(), Some("operator/a"));
    }
}
