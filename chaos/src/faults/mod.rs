//! The injectors. Each does its harm, says how one can tell that it was done, and undoes it: when it
//! is healed, and also when it is only dropped, as it is when a drill is interrupted.

mod clients;
mod disk;
mod filter;
mod network;
mod process;
mod squeeze;
mod sync;
mod tail;
mod wall_clock;

use crate::{
    drill::{Fault, What},
    error::ChaosError,
    history::{Event, Phase, Proof},
    stage::Stage,
};
use std::time::Duration;

/// For a connector to run again.
const READY_MAX: Duration = Duration::from_secs(30);

/// A fault that is there.
enum Active<'a> {
    Down(process::Down<'a>),
    KilledThere(process::KilledThere<'a>),
    Paused(process::Paused<'a>),
    ConnectorDown(process::ConnectorDown<'a>),
    PostgresDown(process::PostgresDown<'a>),
    Crash(sync::Crash<'a>),
    Syncs(sync::Syncs<'a>),
    Network(network::Network<'a>),
    Storm(network::Storm<'a>),
    Filter(filter::Filter),
    Dark(disk::Dark<'a>),
    Full(disk::Full<'a>),
    ReadOnly(disk::ReadOnly<'a>),
    Torn(tail::Torn<'a>),
    Flipped(tail::Flipped<'a>),
    Clock(wall_clock::Stepped<'a>),
    Squeeze(squeeze::Squeeze<'a>),
    Stalled(clients::Stalled<'a>),
    ZeroWindow(clients::ZeroWindow<'a>),
    Poison(clients::Poison),
    Flood(clients::Flood<'a>),
}

async fn inject<'a>(stage: &'a Stage, fault: &Fault) -> Result<Active<'a>, ChaosError> {
    Ok(match &fault.what {
        What::KillBroker => match &stage.trial {
            Some(trial) => Active::KilledThere(process::KilledThere::begin(stage, trial).await?),
            None => Active::Down(process::Down::begin(stage).await?),
        },
        What::PauseBroker => Active::Paused(process::Paused::begin(stage)?),
        What::KillConnector => {
            Active::ConnectorDown(process::ConnectorDown::begin(sink(stage)?).await?)
        }
        What::CrashPostgres => {
            Active::PostgresDown(process::PostgresDown::begin(sink(stage)?).await?)
        }
        What::CrashAtSync { sync } => Active::Crash(sync::Crash::begin(stage, *sync).await?),
        What::SyncError => Active::Syncs(sync::Syncs::fail(stage).await?),
        What::SlowSync { delay } => Active::Syncs(sync::Syncs::slow(stage, *delay).await?),
        What::Partition { .. }
        | What::Latency { .. }
        | What::Loss { .. }
        | What::Bandwidth { .. } => Active::Network(network::Network::begin(stage, &fault.what)),
        What::ReconnectStorm => Active::Storm(network::Storm::begin(stage)),
        What::DropPackets { direction, percent } => {
            Active::Filter(filter::Filter::begin(stage, *direction, *percent).await?)
        }
        What::PowerLoss => Active::Dark(disk::Dark::begin(stage).await?),
        What::DiskFull => Active::Full(disk::Full::begin(stage).await?),
        What::ReadOnly => Active::ReadOnly(disk::ReadOnly::begin(stage).await?),
        What::TornTail => Active::Torn(tail::Torn::begin(stage).await?),
        What::FlippedByte => Active::Flipped(tail::Flipped::begin(stage).await?),
        What::ClockStep { by, back } => {
            Active::Clock(wall_clock::Stepped::begin(stage, *by, *back).await?)
        }
        What::MemorySqueeze { limit } => Active::Squeeze(squeeze::Squeeze::memory(stage, *limit)?),
        What::CpuSqueeze { cores } => Active::Squeeze(squeeze::Squeeze::cpu(stage, *cores)?),
        What::StalledSubscriber { count } => {
            Active::Stalled(clients::Stalled::begin(stage, *count).await?)
        }
        What::ZeroWindow { count } => {
            Active::ZeroWindow(clients::ZeroWindow::begin(stage, *count).await?)
        }
        What::Poison { per_s } => Active::Poison(clients::Poison::begin(stage, *per_s)),
        What::Flood { rate } => {
            Active::Flood(clients::Flood::begin(stage, *rate, fault.lasting).await?)
        }
        What::ReloadExpired => {
            return Err(ChaosError::Stage("the broker has no reload".to_owned()));
        }
    })
}

fn sink(stage: &Stage) -> Result<&crate::stage::Sink, ChaosError> {
    let none = || ChaosError::Stage("there is no sink".to_owned());
    stage.sink.as_ref().ok_or_else(none)
}

impl Active<'_> {
    /// Undone, and how one can tell that it was there.
    async fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        match self {
            Active::Down(fault) => fault.heal().await,
            Active::KilledThere(fault) => fault.heal().await,
            Active::Paused(fault) => fault.heal(),
            Active::ConnectorDown(fault) => fault.heal().await,
            Active::PostgresDown(fault) => fault.heal().await,
            Active::Crash(fault) => fault.heal().await,
            Active::Syncs(fault) => fault.heal().await,
            Active::Network(fault) => Ok(fault.heal()),
            Active::Storm(fault) => fault.heal().await,
            Active::Filter(fault) => fault.heal().await,
            Active::Dark(fault) => fault.heal().await,
            Active::Full(fault) => fault.heal().await,
            Active::ReadOnly(fault) => fault.heal().await,
            Active::Torn(fault) => fault.heal().await,
            Active::Flipped(fault) => fault.heal().await,
            Active::Clock(fault) => fault.heal().await,
            Active::Squeeze(fault) => fault.heal().await,
            Active::Stalled(fault) => fault.heal().await,
            Active::ZeroWindow(fault) => fault.heal(),
            Active::Poison(fault) => Ok(fault.heal()),
            Active::Flood(fault) => Ok(fault.heal()),
        }
    }
}

/// Plays one fault of a drill, whose load began `from` the start on. Dropped on the way, it undoes what it
/// did.
pub async fn play(stage: &Stage, index: usize, fault: &Fault, from: Duration) {
    let say = |phase| stage.history.record(Event::Fault { index, phase });
    let failed = |error: ChaosError| Phase::Failed {
        why: error.to_string(),
    };
    let clock = stage.history.clock();
    clock.sleep_until(from + fault.at).await;
    say(Phase::Begin);
    let active = match inject(stage, fault).await {
        Ok(active) => active,
        Err(error) => {
            say(failed(error));
            return;
        }
    };
    say(Phase::Active);
    clock.sleep_until(from + fault.at + fault.lasting).await;
    say(Phase::Healing);
    // Undoing waits for the broker to be ready again, each step of it for as long as it may.
    match active.heal().await {
        Ok(proof) => say(Phase::Ended { proof }),
        Err(error) => say(failed(error)),
    }
}
