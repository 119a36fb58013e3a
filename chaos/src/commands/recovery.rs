//! `recovery`: how long a broker takes from its start until it is ready, after SIGKILL, by the size of what it
//! has on disk and of what it has to apply again.

use crate::{
    clients::{Deltas, PLATFORMS, issuer},
    clock::Clock,
    commands::{Interrupts, PASS, USAGE},
    error::ChaosError,
    history::Stream,
    out,
    stage::{BrokerAlone, machine::Machine},
};
use clap::Args;
use hutong_connectors::client::{Endpoint, Identity, Publisher, PublisherOptions};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::task::JoinSet;

const PUBLISHERS: usize = 8;
/// A connector's own bound.
const BATCH_DELTAS: u64 = 2000;
/// So many persons that hardly two deltas are of one: each makes a register.
const PEOPLE: u64 = 1 << 31;

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Registers that the broker has, about; each size is a broker of its own.
    #[arg(long, value_delimiter = ',', default_value = "100000,1000000")]
    registers: Vec<u64>,
    /// Deltas that are published right before the kill, so that state on disk has not all of them.
    #[arg(long, value_delimiter = ',', default_value = "0,1000000")]
    fresh: Vec<u64>,
    /// Kills of each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    kills: u32,
    /// Where the data is: a folder on the disk that is meant. Left out, where temporary files go.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// One JSON array on standard output, and nothing else there.
    #[arg(long)]
    json: bool,
}

/// Of one size.
#[derive(Clone, Debug, Serialize)]
struct Row {
    registers: u64,
    fresh: u64,
    log_mb: f64,
    state_mb: f64,
    /// Records that state on disk did not have at the kill: they are applied again. The most of all kills.
    records_again: u64,
    kills: u32,
    ms_p50: f64,
    ms_max: f64,
}

pub async fn run(arguments: Arguments) -> Result<u8, ChaosError> {
    let machine = Machine::look();
    if !machine.broker().is_file() {
        eprintln!(
            "hutong-chaos: {} is not there: build all programs first, with ./dev build",
            machine.broker().display()
        );
        return Ok(USAGE);
    }
    let mut interrupts = Interrupts::listen()?;
    // The broker and its folder go with the work that is dropped.
    interrupts
        .unless_told(measure_all(&arguments, &machine))
        .await
}

async fn measure_all(arguments: &Arguments, machine: &Machine) -> Result<u8, ChaosError> {
    let mut rows = Vec::new();
    if !arguments.json {
        out::line(format_args!(
            "{:>11} {:>10} {:>8} {:>9} {:>14} {:>6} {:>9} {:>9}",
            "registers",
            "fresh",
            "log MB",
            "state MB",
            "records again",
            "kills",
            "p50 ms",
            "max ms"
        ));
    }
    for registers in &arguments.registers {
        let mut filled = Filled::new(machine, arguments.scratch.as_deref(), *registers).await?;
        for fresh in &arguments.fresh {
            let row = filled.measure(*fresh, arguments.kills).await?;
            if !arguments.json {
                out::line(&row);
            }
            rows.push(row);
        }
    }
    if arguments.json {
        let json = serde_json::to_string_pretty(&rows).map_err(ChaosError::stage("JSON"))?;
        out::line(json);
    }
    Ok(PASS)
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:>11} {:>10} {:>8.0} {:>9.0} {:>14} {:>6} {:>9.0} {:>9.0}",
            self.registers,
            self.fresh,
            self.log_mb,
            self.state_mb,
            self.records_again,
            self.kills,
            self.ms_p50,
            self.ms_max
        )
    }
}

/// A broker that has so many registers.
struct Filled {
    broker: BrokerAlone,
    deltas: Deltas,
    registers: u64,
    /// The next revision of each publisher.
    next: [u64; PUBLISHERS],
    _dir: tempfile::TempDir,
}

impl Filled {
    async fn new(
        machine: &Machine,
        scratch: Option<&Path>,
        registers: u64,
    ) -> Result<Filled, ChaosError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("hutong-recovery-");
        let dir = match scratch {
            Some(folder) => builder.tempdir_in(folder),
            None => builder.tempdir(),
        };
        let dir = dir.map_err(ChaosError::stage("no folder for the broker"))?;
        let broker = BrokerAlone::start(machine, dir.path(), &PLATFORMS[..PUBLISHERS]).await?;
        let mut filled = Filled {
            broker,
            deltas: Deltas {
                seed: registers,
                people: PEOPLE,
                wall_us: Clock::start().wall_us(),
                areas: false,
            },
            registers,
            next: [1; PUBLISHERS],
            _dir: dir,
        };
        filled.publish(registers).await?;
        Ok(filled)
    }

    async fn measure(&mut self, fresh: u64, kills: u32) -> Result<Row, ChaosError> {
        let (mut again, mut took) = (0, Vec::new());
        for _ in 0..kills {
            // Drained, it has all of its state on disk, and then what is fresh is all that it has not.
            self.broker.stop().await?;
            self.broker.start_again().await?;
            self.publish(fresh).await?;
            let status = self.broker.status().await?;
            again = again.max(status.next_offset.saturating_sub(status.stored_offset));
            self.broker.kill().await?;
            took.push(self.broker.start_again().await?);
        }
        took.sort();
        let ms = |took: Duration| took.as_secs_f64() * 1e3;
        let mb = |name: &str| bytes_in(&self.broker.data().join(name)) as f64 / 1e6;
        Ok(Row {
            registers: self.registers,
            fresh,
            log_mb: mb("log"),
            state_mb: mb("state"),
            records_again: again,
            kills,
            ms_p50: ms(took[took.len() / 2]),
            ms_max: ms(took[took.len() - 1]),
        })
    }

    /// As fast as they are taken, until all are acknowledged.
    async fn publish(&mut self, deltas: u64) -> Result<(), ChaosError> {
        let mut tasks = JoinSet::new();
        for (i, next) in self.next.iter_mut().enumerate() {
            let count = deltas / PUBLISHERS as u64;
            let (url, made) = (self.broker.url(), self.deltas.clone());
            tasks.spawn(publish(url, PLATFORMS[i], made, *next, count));
            *next += count;
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(ChaosError::stage("a publisher"))??;
        }
        Ok(())
    }
}

async fn publish(
    url: String,
    platform: u32,
    deltas: Deltas,
    first: u64,
    count: u64,
) -> Result<(), ChaosError> {
    let failed = || ChaosError::stage("a publisher");
    let endpoint = Endpoint::new(url, Identity::Platform(issuer(platform)));
    let options = PublisherOptions::new(endpoint, "recovery");
    let publisher = Publisher::connect(options).await.map_err(failed())?;
    let mut pending = Vec::new();
    let mut from = first;
    while from < first + count {
        let to = (from + BATCH_DELTAS).min(first + count);
        let batch = (from..to).map(|revision| deltas.make(platform, Stream::Bulk, revision, 0));
        let handed = publisher.publish(batch.collect::<Vec<_>>()).await;
        pending.push(handed.map_err(failed())?);
        from = to;
    }
    for one in pending {
        let receipt = one.await.map_err(failed())?;
        if let Some(refused) = receipt.refused.first() {
            let reason = &refused.info.reason;
            return Err(ChaosError::Stage(format!("a delta was refused: {reason}")));
        }
    }
    Ok(())
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_in(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
