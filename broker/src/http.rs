//! The HTTP port: what watches the broker, not what uses it.

use axum::{Router, routing::get};
use hutong_telemetry::{Exporter, Health, http};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const INDEX: &str = concat!(
    "hutong-broker ",
    env!("CARGO_PKG_VERSION"),
    "\n\n/console/ for people\n/metrics  Prometheus\n/livez    503 with the reason when only a restart helps\n",
    "/readyz   503 with the reason while it must get no traffic\n"
);

/// The console, `/metrics`, `/livez`, `/readyz`, and `/` that lists them.
pub fn router(health: Health, exporter: Exporter, console: Router) -> Router {
    http::router(exporter, health)
        .route("/", get(|| async { INDEX }))
        .merge(console)
}

/// Serves until `stop`; a failure is logged, the broker goes on without these pages.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    if let Err(error) = http::serve(listener, router, stop).await {
        tracing::error!(%error, "the http server ended");
    }
}
