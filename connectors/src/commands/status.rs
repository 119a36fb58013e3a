//! `hutong-connect status`: what another process says about itself.

use super::{
    CommandError, Format,
    output::{json, line, time},
};
use crate::{
    config::{Config, Work},
    dlq::DeadLetters,
    state::{State, Status, StatusFile},
};
use serde_json::json;

pub fn status(config: &Config, format: Format) -> Result<(), CommandError> {
    let folder = config.folder();
    let running = folder.is_running();
    let mut status = StatusFile::new(&folder).read()?;
    if let (Some(status), Work::Source(_)) = (&mut status, &config.work) {
        // Letters are dropped and retried beside the connector, which learns of it when it writes one.
        let bytes_max = config.state.dead_letters_bytes_max;
        let (letters, bytes) = DeadLetters::open(&folder, bytes_max)?.size();
        status.counts.dead_letters = letters as u64;
        status.counts.dead_letters_bytes = bytes;
    }
    let works = running
        && status
            .as_ref()
            .is_some_and(|s| !matches!(s.state, State::Degraded | State::Failed));
    match format {
        Format::Json => json(&json!({
            "connector": config.name,
            "running": running,
            "status": status,
        }))?,
        Format::Table => print(&config.name, running, status.as_ref())?,
    }
    if works {
        Ok(())
    } else {
        Err(CommandError::Silent)
    }
}

fn print(name: &str, running: bool, status: Option<&Status>) -> Result<(), CommandError> {
    let Some(status) = status else {
        line(format!("{name} never ran"))?;
        return Ok(());
    };
    let process = if running {
        format!("runs as process {}", status.process_id)
    } else {
        format!("is not running; this is from {}", time(status.updated_us))
    };
    line(format!("{name} {process}"))?;
    line(format!("{} since {}", status.state, time(status.since_us)))?;
    if !status.reason.is_empty() {
        line(format!("because: {}", status.reason))?;
    }
    if let Some(barrier) = &status.barrier {
        line(format!("complete up to {barrier}"))?;
    }
    let counts = serde_json::to_value(&status.counts).unwrap_or_default();
    for (what, count) in counts.as_object().into_iter().flatten() {
        line(format!("  {:<20} {count}", what.replace('_', " ")))?;
    }
    Ok(())
}
