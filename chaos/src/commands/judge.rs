//! `judge`: reads an old history and judges it again.

use crate::{commands::can_be_written, error::ChaosError, history, out, report};
use clap::Args;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    history: PathBuf,
    /// One JSON object on standard output, and nothing else there.
    #[arg(long)]
    json: bool,
    /// A page with everything, for people.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<u8, ChaosError> {
    let file = &arguments.history;
    let page = arguments.report.as_deref();
    can_be_written(page)?;
    let history = history::read(file)?;
    let verdict = crate::judge::judge(&history);
    if let Some(page) = page {
        std::fs::write(page, report::html(&[(&history, &verdict)]))
            .map_err(ChaosError::file("cannot write", page))?;
    }
    match arguments.json {
        true => out::line(report::json(&verdict, Some(file))),
        false => out::text(report::text(&verdict, file, page)),
    }
    Ok(verdict.outcome.exit_code())
}
