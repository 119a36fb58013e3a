//! `hutong-connect init`: what the platform's system needs for the connector.

use super::{AnySink, AnySource, CommandError, output::line, runtime};
use crate::{
    config::{Config, Work},
    sink::Sink,
    source::Source,
};

pub fn init(config: Config) -> Result<(), CommandError> {
    config.folder().create()?;
    let path = config.folder().path().display().to_string();
    line(format!("state folder {path} is there"))?;
    let done = runtime()?.block_on(async {
        Ok::<_, CommandError>(match config.work {
            Work::Source(work) => AnySource::new(work.settings).init().await?,
            Work::Sink(work) => AnySink::new(&work).init().await?,
        })
    })?;
    for what in done {
        line(what)?;
    }
    Ok(())
}
