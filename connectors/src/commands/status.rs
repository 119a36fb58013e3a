//! `hutong-connect status`: what another process says about itself.

use super::{
    CommandError, Format,
    output::{json, line, time},
};
use crate::{
    config::Config,
    state::{State, Status, StatusFile},
};
use serde_json::json;

pub fn status(config: &Config, format: Format) -> Result<(), CommandError> {
    let folder = config.folder();
    let running = folder.is_running();
    let status = StatusFile::new(&folder).read()?;
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
