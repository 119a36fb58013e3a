//! The injectors. Each does its harm, says how one can tell that it was done, and undoes it: when it
//! is healed, and also when it is only dropped, as it is when a drill is interrupted.

mod clients;
mod disk;
mod edge;
mod filter;
mod network;
mod process;
mod reload;
mod squeeze;
mod sync;
mod tail;
mod wall_clock;

use crate::{
    drill::{Fault, What},
    error::ChaosError,
    history::{Event, Phase, Proof, Reaction},
    stage::Stage,
    text::Text,
};
use std::time::Duration;
use tokio::sync::watch;

/// For a process to run again, and for one that is just starting before something is done to it.
const READY_MAX: Duration = Duration::from_secs(30);

/// What a fault leaves when it is undone.
#[derive(Default)]
struct Undone<'a> {
    proof: Vec<Proof>,
    /// Waits for those that it hit.
    back: Back<'a>,
}

/// Whom a fault hit, and what they must have done about it.
#[derive(Default)]
enum Back<'a> {
    /// Nobody's process, so nobody has to come back.
    #[default]
    Nobody,
    Broker(&'a Stage),
    Connector(&'a crate::stage::Sink),
    /// The broker, which must also have done this.
    Does(&'a Stage, Box<dyn FnOnce() -> Vec<Reaction> + Send + 'a>),
    /// The clients, on their lines.
    Clients(network::Gone<'a>),
}

impl<'a> Undone<'a> {
    fn proof(proof: Vec<Proof>) -> Undone<'a> {
        Undone {
            proof,
            back: Back::Nobody,
        }
    }

    fn of_broker(stage: &'a Stage, proof: Vec<Proof>) -> Undone<'a> {
        Undone {
            proof,
            back: Back::Broker(stage),
        }
    }

    fn with(
        stage: &'a Stage,
        proof: Vec<Proof>,
        does: impl FnOnce() -> Vec<Reaction> + Send + 'a,
    ) -> Undone<'a> {
        Undone {
            proof,
            back: Back::Does(stage, Box::new(does)),
        }
    }
}

impl Back<'_> {
    /// Waits until whom it hit stands again. Whoever takes too long is the error.
    async fn again(self) -> Result<Vec<Reaction>, ChaosError> {
        match self {
            Back::Nobody => Ok(Vec::new()),
            Back::Broker(stage) => stage.broker_ready().await.map(|()| Vec::new()),
            Back::Connector(sink) => {
                let ready = sink.connector.ready(READY_MAX).await;
                ready.map(|_| Vec::new())
            }
            Back::Does(stage, does) => {
                stage.broker_ready().await?;
                Ok(does())
            }
            Back::Clients(gone) => Ok(gone.back().await),
        }
    }
}

/// A fault that is there.
enum Active<'a> {
    Down(process::Down<'a>),
    KilledThere(process::KilledThere<'a>),
    Paused(process::Paused<'a>),
    ConnectorDown(process::ConnectorDown<'a>),
    PostgresDown(process::PostgresDown<'a>),
    Crash(sync::Crash<'a>),
    AtEdge(edge::AtEdge<'a>),
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
    Poison(clients::Poison<'a>),
    Flood(clients::Flood<'a>),
    Expired(reload::Expired<'a>),
}

async fn inject<'a>(stage: &'a Stage, fault: &Fault) -> Result<Active<'a>, ChaosError> {
    Ok(match &fault.what {
        What::KillBroker => match &stage.trial {
            Some(trial) => Active::KilledThere(process::KilledThere::begin(stage, trial).await?),
            None => Active::Down(process::Down::begin(stage).await?),
        },
        What::PauseBroker => Active::Paused(process::Paused::begin(stage).await?),
        What::KillConnector => {
            Active::ConnectorDown(process::ConnectorDown::begin(sink(stage)?).await?)
        }
        What::CrashPostgres => {
            Active::PostgresDown(process::PostgresDown::begin(sink(stage)?).await?)
        }
        What::CrashAtSync { sync } => Active::Crash(sync::Crash::begin(stage, *sync).await?),
        What::CrashAtEdge { edge, nth } => {
            Active::AtEdge(edge::AtEdge::begin(stage, *edge, *nth).await?)
        }
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
        What::CpuSqueeze { cores } => Active::Squeeze(squeeze::Squeeze::cpu(stage, *cores).await?),
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
        What::ReloadExpired => Active::Expired(reload::Expired::begin(stage).await?),
    })
}

/// So many of all, and how many were asked for.
fn share(some: u64, all: u64, percent: f64) -> Text {
    let reached = 100.0 * some as f64 / all.max(1) as f64;
    Text::new(
        format!("{some} of {all}, {reached:.2} % of the {percent} % asked for"),
        format!("{all} 中的 {some}，{reached:.2} %（要求 {percent} %）"),
    )
}

fn sink(stage: &Stage) -> Result<&crate::stage::Sink, ChaosError> {
    let none = || ChaosError::told("there is no sink", "没有下游");
    stage.sink.as_ref().ok_or_else(none)
}

impl<'a> Active<'a> {
    /// Undone, and how one can tell that it was there. Nobody is waited for.
    async fn heal(self) -> Result<Undone<'a>, ChaosError> {
        match self {
            Active::Down(fault) => Ok(fault.heal()),
            Active::KilledThere(fault) => Ok(fault.heal()),
            Active::Paused(fault) => Ok(fault.heal()),
            Active::ConnectorDown(fault) => Ok(fault.heal()),
            Active::PostgresDown(fault) => fault.heal().await,
            Active::Crash(fault) => fault.heal().await,
            Active::AtEdge(fault) => Ok(fault.heal()),
            Active::Syncs(fault) => fault.heal().await,
            Active::Network(fault) => Ok(fault.heal()),
            Active::Storm(fault) => Ok(fault.heal()),
            Active::Filter(fault) => fault.heal().await,
            Active::Dark(fault) => fault.heal().await,
            Active::Full(fault) => fault.heal().await,
            Active::ReadOnly(fault) => fault.heal().await,
            Active::Torn(fault) => Ok(fault.heal()),
            Active::Flipped(fault) => fault.heal().await,
            Active::Clock(fault) => fault.heal(),
            Active::Squeeze(fault) => Ok(fault.heal()),
            Active::Stalled(fault) => Ok(fault.heal().await),
            Active::ZeroWindow(fault) => fault.heal(),
            Active::Poison(fault) => Ok(fault.heal()),
            Active::Flood(fault) => Ok(fault.heal()),
            Active::Expired(fault) => fault.heal(),
        }
    }
}

/// Plays one fault of a drill, whose load began `from` the start on. When it is told that the drill is over it
/// undoes at once what it did. Dropped on the way, it undoes what can be undone without waiting.
pub async fn play(
    stage: &Stage,
    index: usize,
    fault: &Fault,
    from: Duration,
    mut over: watch::Receiver<bool>,
) {
    let say = |phase| stage.history.record(Event::Fault { index, phase });
    let clock = stage.history.clock();
    tokio::select! {
        () = clock.sleep_until(from + fault.at) => {}
        // A drill that is over needs no more harm.
        _ = over.wait_for(|over| *over) => return,
    }
    say(Phase::Begin);
    let active = match inject(stage, fault).await {
        Ok(active) => active,
        Err(error) => {
            let why = error.text();
            say(match stage.extras.keeps_down() {
                true => Phase::Stuck { why },
                false => Phase::Failed { why },
            });
            return;
        }
    };
    say(Phase::Active);
    // One that was begun late ends in its time all the same: what comes after it needs the rest.
    tokio::select! {
        () = clock.sleep_until(from + fault.at + fault.lasting) => {}
        _ = over.wait_for(|over| *over) => {}
    }
    say(Phase::Healing);
    let undone = match active.heal().await {
        Ok(undone) => undone,
        Err(error) => {
            let why = error.text();
            say(Phase::Stuck { why });
            return;
        }
    };
    // Before anybody is waited for: whoever takes too long cannot take the proof with them.
    say(Phase::Undone {
        proof: undone.proof,
    });
    match undone.back.again().await {
        Ok(reactions) => say(Phase::Ended { reactions }),
        Err(error) => say(Phase::NotBack { why: error.text() }),
    }
}
