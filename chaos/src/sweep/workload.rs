//! The process that is swept: it works on a real store and says what it was promised.

use crate::sweep::{
    plan::{Operation, Plan},
    store::{OnAck, PATIENCE, Store, of_the_machine},
    trace::BROKEN,
};
use hutong_planted_broker::log::{Log, faults::Faults};
use hutong_plants::{Failpoint, Plant};
use hutong_proto::Offset;
use parking_lot::Mutex;
use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

/// Does a workload. For `hutong-chaos sweep` itself.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where the store is.
    #[arg(long)]
    dir: PathBuf,
    /// Where it says what it was promised.
    #[arg(long)]
    said: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    operations: usize,
    /// Only opens what is there, applies it, and closes.
    #[arg(long)]
    recover: bool,
    #[arg(long)]
    plant: Option<String>,
    /// Dies where an edge of a commit is reached.
    #[arg(long)]
    crash_at: Option<String>,
    /// For the how-manieth time.
    #[arg(long, default_value_t = 1)]
    nth: u64,
}

/// A promise as it is written: one line, in one write.
#[derive(Clone, Debug)]
pub struct Voice(Arc<Mutex<File>>);

impl Voice {
    pub fn open(path: &Path) -> std::io::Result<Voice> {
        Ok(Voice(Arc::new(Mutex::new(File::create(path)?))))
    }

    fn say(&self, line: &str) {
        let written = self.0.lock().write_all(format!("{line}\n").as_bytes());
        written.expect("what it says can be written");
    }
}

impl Args {
    /// Says no when a check of its own failed: what it wrote itself does not open, or is not taken.
    pub fn run(&self) -> Result<bool, String> {
        if let Some(name) = &self.plant {
            let plant =
                Plant::from_name(name).ok_or_else(|| format!("no plant is called {name}"))?;
            hutong_plants::plant(Some(plant));
        }
        if let Some(name) = &self.crash_at {
            let edge = Failpoint::from_name(name);
            let edge = edge.ok_or_else(|| format!("no failpoint is called {name}"))?;
            let left = AtomicU64::new(self.nth);
            hutong_plants::watch(move |point| {
                if point == edge && left.fetch_sub(1, Ordering::SeqCst) == 1 {
                    std::process::abort();
                }
            });
        }
        let voice = Voice::open(&self.said).map_err(|e| e.to_string())?;
        let worked = match self.recover {
            true => recover(&self.dir),
            false => work(&self.dir, &Plan::new(self.seed, self.operations), &voice),
        };
        match worked {
            Ok(()) => Ok(true),
            Err(why) if of_the_machine(&why) => Err(why),
            Err(why) => {
                let invariant = if why.starts_with("INV-") {
                    ""
                } else {
                    "INV-3: "
                };
                eprintln!("{BROKEN}{invariant}{why}");
                Ok(false)
            }
        }
    }
}

fn recover(dir: &Path) -> Result<(), String> {
    let mut store = Store::open(dir, Faults::default())?;
    store.apply_up_to(store.last())?;
    store.close()
}

/// Does what the plan says.
pub fn work(dir: &Path, plan: &Plan, voice: &Voice) -> Result<(), String> {
    let acks = voice.clone();
    let on_ack: OnAck =
        Arc::new(move |number, offset| acks.say(&format!("acked {number} {offset}")));
    let open = || Store::open(dir, Faults::default());
    let mut store = open()?;
    // From the beginning, as in the broker: the log waits for apply when it is too far ahead.
    store.apply_up_to(store.last())?;
    let mut waiting = Vec::new();
    for operation in &plan.operations {
        match operation {
            Operation::Append(number) => {
                let (told, outcome) = mpsc::channel();
                store.append(*number, &plan.records[*number], &on_ack, told);
                waiting.push(outcome);
            }
            Operation::Wait => {
                let mut last = Offset::NONE;
                for outcome in waiting.drain(..) {
                    // Whoever applies may have ended, and then the log waits for ever.
                    let told = outcome.recv_timeout(PATIENCE);
                    let told = told.map_err(|e| format!("a record is not answered: {e}"))?;
                    last = last.max(told.map_err(|e| e.to_string())?);
                }
                store.apply_up_to(last)?;
            }
            Operation::Flush => store.state.flush().map_err(|e| e.to_string())?,
            Operation::Trim { partition, percent } => {
                let Some(info) = store.log.partition(*partition) else {
                    continue;
                };
                let span = info.last.next().0 - info.first.0;
                // As retention does: never what a restart would apply again.
                let before =
                    Offset(info.first.0 + span * percent / 100).min(store.state.stored().next);
                let number = partition.to_number();
                voice.say(&format!("trims {number} {before}"));
                store
                    .log
                    .trim(*partition, before)
                    .map_err(|e| e.to_string())?;
                voice.say(&format!("trimmed {number} {before}"));
            }
            Operation::Reopen { clean } => {
                match clean {
                    true => store.close()?,
                    false => drop(store),
                }
                store = open()?;
                store.apply_up_to(store.last())?;
            }
        }
    }
    store.close()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// Merges of one segment beside another are crash points only where there are two.
    #[test]
    fn with_every_other_seed_state_has_several_segments() {
        for (seed, several) in [(2, true), (3, false), (4, true)] {
            let dir = tempfile::tempdir().expect("a folder");
            let voice = Voice::open(&dir.path().join("said")).expect("a file");
            let stores = dir.path().join("stores");
            std::fs::create_dir(&stores).expect("created");
            work(&stores, &Plan::new(seed, 200), &voice).expect("works");
            let store = Store::open(&stores, Faults::default()).expect("opens");
            let segments = || store.state.store().level_files.last().copied();
            // What waits is merged beside everything else, also after it is opened again.
            let begun = Instant::now();
            while several && segments() < Some(2) && begun.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            assert_eq!(
                segments() > Some(1),
                several,
                "seed {seed}: {:?}",
                segments()
            );
        }
    }
}
