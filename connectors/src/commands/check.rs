//! `hutong-connect check`: everything that is wrong, before anything runs.

use super::{CommandError, load, output::line};
use crate::config::Work;
use std::path::Path;

pub fn check(file: &Path) -> Result<(), CommandError> {
    let config = load(file)?;
    if let Work::Source(work) = &config.work
        && let Some(pseudonym) = &work.pseudonym
    {
        let (_, warning) = pseudonym.load()?;
        if let Some(warning) = warning {
            line(format!("warning: {warning}"))?;
        }
    }
    let what = match &config.work {
        Work::Source(_) => "source",
        Work::Sink(_) => "sink",
    };
    line(format!(
        "{}: {what} `{}` of platform {} is fine",
        file.display(),
        config.name,
        config.identity
    ))?;
    Ok(())
}
