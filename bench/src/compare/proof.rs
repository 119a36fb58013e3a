//! That an ack means synced, counted: in a run that nobody times, `strace` counts how often the system
//! syncs. Between two syncs no more can become durable than was under way, so acks that outnumber that
//! would have gone out without one.

use super::{Options, Row, flat_out, issuers};
use crate::{Failure, systems::Kind};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    sync::Arc,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// Whatever makes written bytes durable. Not `sync_file_range`, which begins to write and promises nothing.
/// Syncs of other files than the log are counted too: they only make a system look more careful than it is.
const CALLS: &str = "trace=fsync,fdatasync,msync";

#[derive(Clone, Copy, Debug)]
pub struct Proof {
    pub syncs: u64,
    pub acknowledged: u64,
    /// Deltas under way at once, at most.
    pub under_way: u64,
}

impl Proof {
    pub fn deltas_per_sync(&self) -> f64 {
        self.acknowledged as f64 / self.syncs as f64
    }
}

/// Fails when the system cannot have synced before each ack: it must not be compared then.
pub async fn of(options: &Options, row: Row, kind: Kind) -> Result<Proof, Failure> {
    let issuers = issuers(options);
    let system = kind.start(&issuers).await?;
    let senders = flat_out::senders(options, row, &*system, &issuers).await?;
    let dir = TempDir::new()?;
    let counted = dir.path().join("strace.txt");
    let processes = system.processes();
    let strace = {
        let counted = counted.clone();
        tokio::task::spawn_blocking(move || attach(&processes, &counted)).await??
    };
    let shared = Arc::new(flat_out::Shared::new(options, row, 0.0, options.proof));
    let mut producers = JoinSet::new();
    for (i, (issuer, sender)) in senders.into_iter().enumerate() {
        let shared = Arc::clone(&shared);
        producers.spawn(flat_out::produce(shared, issuer, i as u64 + 1, sender));
    }
    shared.begin();
    let (mut batches, (batch, in_flight)) = (0, row.shape(options));
    while let Some(produced) = producers.join_next().await {
        batches += produced??.batches;
    }
    tokio::task::spawn_blocking(move || detach(strace)).await??;
    let proof = Proof {
        syncs: calls(&fs::read_to_string(&counted)?),
        acknowledged: batches * u64::from(batch),
        under_way: (options.producers * in_flight) as u64 * u64::from(batch),
    };
    check(&proof)?;
    Ok(proof)
}

fn check(proof: &Proof) -> Result<(), Failure> {
    let Proof {
        syncs,
        acknowledged,
        under_way,
    } = proof;
    // One more than was counted may have been under way when counting began.
    if *acknowledged <= (syncs + 1) * under_way {
        return Ok(());
    }
    Err(format!(
        "{acknowledged} deltas were acknowledged with {syncs} syncs, and at most {under_way} were \
         under way at once: acks went out without a sync, so it cannot be compared"
    )
    .into())
}

/// Follows all threads of the processes, and those that they start.
fn attach(processes: &[u32], counted: &Path) -> Result<(Child, BufReader<ChildStderr>), Failure> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-e", CALLS, "-o"]).arg(counted);
    for process in processes {
        strace.arg("-p").arg(process.to_string());
    }
    let mut strace = strace
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            format!("cannot start strace: {error}; `./dev bench` installs it, or `--proof 0` leaves this out")
        })?;
    let said = strace.stderr.take().ok_or("strace has no error output")?;
    let mut said = BufReader::new(said);
    let (mut attached, mut all) = (0, String::new());
    // It says so of each process, and of each of them once.
    while attached < processes.len() {
        let mut line = String::new();
        if said.read_line(&mut line)? == 0 {
            return Err(format!("strace cannot watch: {all}").into());
        }
        // One that has ended in the meantime need not be watched.
        if line.contains(" attached") || line.contains("No such process") {
            attached += 1;
        }
        all += &line;
    }
    Ok((strace, said))
}

fn detach((mut strace, said): (Child, BufReader<ChildStderr>)) -> Result<(), Failure> {
    let interrupted = Command::new("kill")
        .args(["-INT", &strace.id().to_string()])
        .status()?;
    if !interrupted.success() {
        return Err("strace cannot be stopped".into());
    }
    // Whatever else it says must not keep it waiting.
    for line in said.lines() {
        line?;
    }
    strace.wait()?;
    Ok(())
}

/// The sum of the column `calls` in the table that `strace -c` writes.
fn calls(table: &str) -> u64 {
    let rows = table.lines().filter(|line| {
        let name = line.split_whitespace().last().unwrap_or("");
        CALLS["trace=".len()..].split(',').any(|call| call == name)
    });
    rows.filter_map(|row| row.split_whitespace().nth(3)?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_from_the_table_of_strace() {
        let table = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 99.00    0.123456         100      1234           fdatasync
  1.00    0.001000         100        10         2 fsync
------ ----------- ----------- --------- --------- ----------------
100.00    0.124456         100      1244         2 total
";
        assert_eq!(calls(table), 1244);
        assert_eq!(calls(""), 0);
    }

    #[test]
    fn more_acks_than_were_under_way_between_two_syncs_are_no_proof() {
        let proof = |syncs, acknowledged| Proof {
            syncs,
            acknowledged,
            under_way: 100,
        };
        assert!(check(&proof(9, 1000)).is_ok());
        let error = check(&proof(8, 1000)).expect_err("one sync too few");
        assert!(error.to_string().contains("8 syncs"), "{error}");
    }
}
