//! Plays a drill: builds the stage, offers the load, breaks things at their times, heals, waits until
//! everybody has everything, looks at it all once more, and leaves a history.

use crate::{
    clients::{OBSERVER, PLATFORMS},
    drill::{Drill, Overrides},
    error::ChaosError,
    faults,
    history::Event,
    stage::{Fleet, SETTLE_BEYOND, Stage, Trial, machine::Machine},
    text::Text,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::watch;

/// Between the last client's connection and the load.
const BEFORE_LOAD: Duration = Duration::from_millis(300);
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// What a command line says.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub overrides: Overrides,
    /// Where histories go.
    pub out: PathBuf,
    /// Play it there, and not with a broker of our own.
    pub trial: Option<Trial>,
}

/// The faults that this machine cannot do, each with the reason.
pub fn unavailable(drill: &Drill, machine: &Machine, trial: Option<&Trial>) -> Vec<Text> {
    let faults = drill.faults.iter().filter_map(|fault| {
        let there = trial.map_or(Ok(()), |trial| trial.available(&fault.what));
        let why = machine.available(&fault.what).and(there).err()?;
        let name = fault.what.name();
        Some(Text::new(
            format!("{name}: {}", why.en),
            format!("{name}：{}", why.zh),
        ))
    });
    let stage = machine.can_stage(&drill.workload).err();
    stage.into_iter().chain(faults).collect()
}

/// Where the history is. When this is dropped on the way, everything that was done is undone.
pub async fn play(
    drill: &Drill,
    machine: &Machine,
    options: &Options,
) -> Result<PathBuf, ChaosError> {
    let missing = unavailable(drill, machine, options.trial.as_ref());
    if !missing.is_empty() {
        let (name, why) = (&drill.name, Text::joined(&missing));
        return Err(ChaosError::told(
            format!("{name} cannot be played here; {}", why.en),
            format!("此处无法演练 {name}；{}", why.zh),
        ));
    }
    std::fs::create_dir_all(&options.out)
        .map_err(ChaosError::file("cannot create", &options.out))?;
    let written = drill.clone();
    let drill = drill.clone().with(&options.overrides);
    lasts_long_enough(&drill)?;
    let file = free_name(&options.out, &format!("{}-{}", drill.name, options.seed))?;
    if let Some(trial) = &options.trial {
        let platforms = &PLATFORMS[..drill.workload.platforms];
        trial.check(&[platforms, &[OBSERVER]].concat()).await?;
    }
    let trial = options.trial.clone();
    let stage = Stage::build(&drill, machine, &file, trial, |header| {
        crate::history::Header {
            seed: options.seed,
            drill: written.text.clone(),
            duration_us: options.overrides.duration.map(|d| d.as_micros() as u64),
            rate: options.overrides.rate,
            load: options.overrides.load,
            edge: options.overrides.edge.map(|edge| edge.name().to_owned()),
            nth: options.overrides.nth,
            commit: commit(),
            machine: description(),
            trial: options.trial.as_ref().map(|trial| trial.marker.clone()),
            trial_at: options.trial.as_ref().map(|t| t.address.to_string()),
            kill_with: options.trial.as_ref().and_then(|t| t.kill_with.clone()),
            plant: machine.plant().map(|plant| plant.name().to_owned()),
            ..header
        }
    })
    .await?;
    let played = on_stage(&stage).await;
    stage.history.flush()?;
    played.map(|()| file)
}

/// Another duration must leave as much as the file does: a bound that nothing is due for is none.
fn lasts_long_enough(drill: &Drill) -> Result<(), ChaosError> {
    let needed = drill.duration_min();
    match drill.duration >= needed {
        true => Ok(()),
        false => Err(ChaosError::Usage(format!(
            "{} within {} s leaves nothing to measure after its recovery; it needs {} s",
            drill.name,
            drill.duration.as_secs_f64(),
            needed.as_secs_f64().ceil()
        ))),
    }
}

/// A file of a name that is not taken, which is made: an older history is not written over.
fn free_name(out: &Path, name: &str) -> Result<PathBuf, ChaosError> {
    for turn in 1u32.. {
        let file = match turn {
            1 => out.join(format!("{name}.jsonl")),
            turn => out.join(format!("{name}-{turn}.jsonl")),
        };
        match std::fs::File::create_new(&file) {
            Ok(_) => return Ok(file),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(ChaosError::file("cannot create", file)(error)),
        }
    }
    Err(ChaosError::Usage(format!("{} is full", out.display())))
}

async fn on_stage(stage: &Stage) -> Result<(), ChaosError> {
    let drill = &stage.drill;
    let mut fleet = Fleet::connect(stage).await?;
    let from = Duration::from_micros(stage.history.clock().now_us()) + BEFORE_LOAD;
    fleet.begin(stage, from);
    let (tell, told) = watch::channel(false);
    let mut faults: FuturesUnordered<_> = (drill.faults.iter().enumerate())
        .map(|(index, fault)| faults::play(stage, index, fault, from, told.clone()))
        .collect();
    let load = async {
        stage
            .history
            .clock()
            .sleep_until(from + drill.duration)
            .await;
        stage.history.record(Event::LoadEnded);
    };
    let lists = async {
        if let Some(areas) = &stage.areas
            && let Err(error) = areas.replay(stage, from).await
        {
            stage.history.record(Event::ClientEnded {
                who: "the replay of lists".to_owned(),
                error: error.to_string(),
            });
        }
    };
    let stopped = {
        let all_faults = async { while faults.next().await.is_some() {} };
        // Healing may take longer than the load.
        let over = async {
            tokio::join!(load, lists, all_faults);
        };
        tokio::select! {
            () = over => false,
            why = stop_condition(stage) => {
                stage.history.record(Event::Stopped { why });
                true
            }
        }
    };
    if stopped {
        // Each is undone as it would have been in its time; what hit the disk or a process waits for it.
        tell.send_replace(true);
        while faults.next().await.is_some() {}
    }
    drop(faults);
    stage.history.flush()?;
    let within = drill.hypothesis.recovery + SETTLE_BEYOND;
    if let Err(missing) = fleet.settle(stage, within).await {
        eprintln!("hutong-chaos: {missing}");
    }
    let audited = match stage.broker_ready().await {
        Ok(()) => Fleet::audit(stage).await,
        Err(error) => Err(error),
    };
    // A history without it is judged as one whose broker did not come back.
    if let Err(error) = audited {
        eprintln!("hutong-chaos: {error}");
    }
    fleet.stop(stage).await;
    stage.history.record(Event::Done);
    Ok(())
}

/// Which bound of the drill was broken so far that going on would do harm.
async fn stop_condition(stage: &Stage) -> Text {
    let stop = &stage.drill.stop;
    let mut ticks = tokio::time::interval(WATCH_EVERY);
    loop {
        ticks.tick().await;
        let now = stage.history.clock().now_us();
        let oldest = stage.board.oldest_urgent();
        let lag = Duration::from_micros(now.saturating_sub(oldest.unwrap_or(now)));
        if lag > stop.urgent_lag {
            let s = lag.as_secs_f64();
            return Text::new(
                format!("an urgent delta has waited for {s:.0} s"),
                format!("一条紧急变更已等待 {s:.0} 秒"),
            );
        }
        let memory = stage.broker.pid().and_then(crate::stage::usage);
        if let Some((memory, _)) = memory
            && memory > stop.memory
        {
            let mib = memory >> 20;
            return Text::new(
                format!("the broker takes {mib} MiB"),
                format!("互通占用 {mib} MiB"),
            );
        }
        let free = stage.bytes_free();
        if free < stop.disk_free {
            let mib = free >> 20;
            return Text::new(
                format!("only {mib} MiB are left on the disk"),
                format!("磁盘仅剩 {mib} MiB"),
            );
        }
    }
}

/// Of the source that this program was built from, which a checkout need not have any more. Broker and connectors
/// stand beside it, of the same build.
pub fn commit() -> String {
    format!(
        "{} (version {})",
        env!("HUTONG_CHAOS_COMMIT"),
        env!("CARGO_PKG_VERSION")
    )
}

/// Of this machine, for reports.
pub fn description() -> String {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = read(Path::new("/proc/meminfo"));
    let total = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0);
    let kernel = read(Path::new("/proc/sys/kernel/osrelease"));
    format!(
        "{cores} cores, {} GiB, Linux {}",
        total >> 20,
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::find;

    #[test]
    fn no_history_is_written_over() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let names: Vec<_> = (0..3)
            .map(|_| free_name(dir.path(), "kill-broker-1").expect("a name"))
            .map(|path| path.file_name().expect("a name").to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "kill-broker-1.jsonl",
                "kill-broker-1-2.jsonl",
                "kill-broker-1-3.jsonl"
            ]
        );
    }

    #[test]
    fn a_drill_that_leaves_nothing_to_measure_is_refused() {
        let drill = find("kill-broker").expect("built in");
        lasts_long_enough(&drill).expect("long enough");
        let short = drill.with(&Overrides {
            duration: Some(Duration::from_secs(8)),
            ..Overrides::default()
        });
        let error = lasts_long_enough(&short).expect_err("too short");
        assert!(error.to_string().contains("nothing to measure"), "{error}");
    }
}
