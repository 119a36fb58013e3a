//! Beside the runner: writes the state down, serves it to machines, and tells it to the broker.

use super::{
    metrics::register,
    report::{self, Role},
};
use crate::{
    client::Endpoint,
    state::{Board, State, StatusFile},
};
use hutong_telemetry::{Exporter, Health, PUSH_EVERY, ScrapeError, Service, catalogue, http};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// The counts of `status.json` are at most this old.
const WRITE_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum HousekeepingError {
    #[error("cannot listen on {address} for [telemetry] http: {error}; choose another port")]
    Listen {
        address: SocketAddr,
        error: io::Error,
    },
    #[error(transparent)]
    Metrics(#[from] ScrapeError),
}

/// Owns the tasks beside a runner.
#[derive(Debug)]
pub struct Housekeeping {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    http: Option<SocketAddr>,
}

impl Housekeeping {
    /// With `http`, serves `/metrics`, `/livez` and `/readyz` there; with `push`, metrics go by OTLP to this address, as
    /// this service.
    pub async fn start(
        board: Board,
        file: StatusFile,
        http: Option<SocketAddr>,
        push: Option<(&str, &Service)>,
    ) -> Result<Housekeeping, HousekeepingError> {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let mut bound = None;
        let health = Health::new();
        let exporter = Exporter::pushing(catalogue::series_max, push)?;
        register(&exporter, &board);
        tasks.spawn(exporter.clone().push(PUSH_EVERY, stop.clone()));
        if let Some(address) = http {
            let listen = |error| HousekeepingError::Listen { address, error };
            let listener = TcpListener::bind(address).await.map_err(listen)?;
            bound = Some(listener.local_addr().map_err(listen)?);
            let router = http::router(exporter, health.clone());
            let stopped = stop.clone();
            tasks.spawn(async move {
                if let Err(error) = http::serve(listener, router, stopped).await {
                    tracing::error!(%error, "the pages for machines are gone");
                }
            });
        }
        tasks.spawn(write_down(board, file, health, stop.clone()));
        Ok(Housekeeping {
            tasks,
            stop,
            http: bound,
        })
    }

    /// Tells the broker there, too.
    pub fn report(&mut self, board: Board, to: Endpoint, role: Role) {
        let reporting = report::run(board, to, role, self.stop.clone());
        self.tasks.spawn(async move {
            // The streams go to the same place, and end with it.
            if let Err(error) = reporting.await {
                tracing::debug!(%error, "no reports");
            }
        });
    }

    /// Where the pages are.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Writes the state, and tells it, a last time.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task beside the connector failed");
            }
        }
    }
}

async fn write_down(board: Board, file: StatusFile, health: Health, stop: CancellationToken) {
    let mut changed = board.watch();
    let mut every = interval(WRITE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopping = false;
    while !stopping {
        // Nothing is lost by dropping any of these.
        tokio::select! {
            () = stop.cancelled() => stopping = true,
            // The board lives as long as this task, so the channel does not close.
            _ = changed.changed() => {}
            _ = every.tick() => {}
        }
        let status = board.status();
        match status.state {
            State::Running | State::Snapshotting => health.set_ready(Ok(())),
            State::Starting | State::Degraded | State::Failed => {
                health.set_ready(Err(format!("{}: {}", status.state, status.reason)));
            }
        }
        let file = file.clone();
        let written = tokio::task::spawn_blocking(move || file.write(&status)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the state could not be written down");
        }
    }
}
