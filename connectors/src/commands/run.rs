//! `hutong-connect run`.

use super::{AnySink, AnySource, CommandError, pseudonymiser, runtime};
use crate::{
    checkpoint::StateFolder,
    client::{Endpoint, Identity},
    config::{Config, SinkWork, SourceWork, TelemetrySettings, Work},
    mapping::Mapper,
    runner::{
        BrokerSource, BrokerTarget, Housekeeping, Role, SinkRunner, SourceRunner, SourceState,
        Trouble,
    },
    source::Source,
    state::{Board, State, StatusFile},
};
use hutong_telemetry::{Service, TraceSettings, Traces, logs};
use std::{path::PathBuf, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// After SIGTERM: what is on its way may arrive, a transaction may end.
const STOP_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The connector's configuration.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Accepts that the broker's log is another one than before: a source sends everything again, a
    /// sink replaces what it has by a snapshot.
    #[arg(long)]
    pub new_log: bool,
}

pub fn run(config: Config, new_log: bool) -> Result<(), CommandError> {
    logs::init(config.telemetry.format, &config.telemetry.filter)?;
    let folder = config.folder();
    let lock = folder.lock()?;
    let result = runtime()?.block_on(work(config, folder, new_log));
    drop(lock);
    result
}

async fn work(config: Config, folder: StateFolder, new_log: bool) -> Result<(), CommandError> {
    let stop = CancellationToken::new();
    let mut signals = JoinSet::new();
    signals.spawn(wait_for_signals(
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        stop.clone(),
    ));
    let board = Board::new(&config.name);
    let file = StatusFile::new(&folder);
    let service = Service {
        name: "hutong-connect",
        instance: format!("{}/{}", config.identity, config.name),
    };
    // Before anything is told to anybody: it may be the end.
    let traces = traces(&config.telemetry, &service)?;
    let telemetry = &config.telemetry;
    let push = telemetry.otlp.as_deref().map(|otlp| (otlp, &service));
    let mut housekeeping = Housekeeping::start(board.clone(), file, telemetry.http, push).await?;
    if let Some(address) = housekeeping.http() {
        tracing::info!(%address, "serving /metrics, /livez and /readyz");
    }
    let role = match config.work {
        Work::Source(_) => Role::Source,
        Work::Sink(_) => Role::Sink,
    };
    let broker = Endpoint::new(&config.address, Identity::Platform(config.identity));
    housekeeping.report(board.clone(), broker, role);
    let running = connect(
        config,
        &folder,
        new_log,
        board.clone(),
        (stop.clone(), traces.clone()),
    );
    let ended = tokio::select! {
        ended = running => ended,
        () = overdue(&stop) => Err(CommandError::Trouble(Trouble {
            passing: true,
            message: format!("it did not stop within {} s; nothing is lost, what was under way comes again", STOP_MAX.as_secs()),
        })),
    };
    if let Err(error) = &ended {
        board.set(State::Failed, error.to_string());
    }
    housekeeping.stop().await;
    // Blocks for a moment, and nothing else is to be done.
    traces.flush();
    signals.shutdown().await;
    ended
}

fn traces(settings: &TelemetrySettings, service: &Service) -> Result<Traces, CommandError> {
    let Some(otlp) = &settings.otlp else {
        return Ok(Traces::off());
    };
    let settings = TraceSettings {
        otlp: otlp.clone(),
        service: service.clone(),
        share: settings.traces,
        slow: Duration::MAX,
    };
    Traces::start(&settings).map_err(|error| {
        CommandError::Trouble(Trouble {
            passing: false,
            message: format!("telemetry: {error}"),
        })
    })
}

/// Ends some time after the stop.
async fn overdue(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(STOP_MAX).await;
}

async fn wait_for_signals(
    mut terminate: tokio::signal::unix::Signal,
    mut interrupt: tokio::signal::unix::Signal,
    stop: CancellationToken,
) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: what is under way may end");
    stop.cancel();
}

async fn connect(
    config: Config,
    folder: &StateFolder,
    new_log: bool,
    board: Board,
    (stop, traces): (CancellationToken, Traces),
) -> Result<(), CommandError> {
    let (name, address, identity) = (config.name, config.address, config.identity);
    tracing::info!(connector = name, address, platform = %identity, "starting");
    match config.work {
        Work::Source(work) => {
            let SourceWork {
                settings,
                mapping,
                pseudonym,
            } = *work;
            let mapper = Mapper::new(mapping, pseudonymiser(pseudonym.as_ref())?);
            let source = AnySource::new(settings);
            let bytes_max = config.state.dead_letters_bytes_max;
            let state = SourceState::open(folder, source.name(), bytes_max)?;
            let target = BrokerTarget::new(address, identity, name, folder).traced(traces);
            SourceRunner::new(source, target, mapper, state, board, stop)
                .accept_new_log(new_log)
                .run()
                .await?;
        }
        Work::Sink(work) => {
            let sink = AnySink::new(&work);
            let SinkWork { subscription, .. } = *work;
            let source = BrokerSource::new(address, identity, subscription).traced(traces);
            SinkRunner::new(sink, source, board, stop)
                .accept_new_log(new_log)
                .run()
                .await?;
        }
    }
    Ok(())
}
