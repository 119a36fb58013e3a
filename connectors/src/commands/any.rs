//! Whatever source or sink a file names, as one type.

use crate::{
    client::Delivered,
    config::{SinkSettings, SinkWork, SourceSettings},
    sink::{Sink, SinkError},
    sinks::{json_lines::JsonLinesSink, postgres::PostgresSink},
    source::{Source, SourceBatch, SourceError, SourceRow},
    sources::{postgres_outbox::PostgresOutbox, snapshot_folder::SnapshotFolder},
};
use hutong_proto::Cursor;
use serde_json::Value;

/// One of the sources.
#[derive(Debug)]
pub enum AnySource {
    SnapshotFolder(Box<SnapshotFolder>),
    PostgresOutbox(Box<PostgresOutbox>),
}

/// One of the sinks.
#[derive(Debug)]
pub enum AnySink {
    Postgres(Box<PostgresSink>),
    JsonLines(Box<JsonLinesSink>),
}

impl AnySource {
    pub fn new(settings: SourceSettings) -> AnySource {
        match settings {
            SourceSettings::SnapshotFolder(s) => {
                AnySource::SnapshotFolder(Box::new(SnapshotFolder::new(s)))
            }
            SourceSettings::PostgresOutbox(s) => {
                AnySource::PostgresOutbox(Box::new(PostgresOutbox::new(*s)))
            }
        }
    }
}

impl AnySink {
    pub fn new(work: &SinkWork) -> AnySink {
        let subscription = work.subscription.name.as_str();
        match work.settings.clone() {
            SinkSettings::Postgres(s) => {
                AnySink::Postgres(Box::new(PostgresSink::new(*s, subscription)))
            }
            SinkSettings::JsonLines(s) => {
                AnySink::JsonLines(Box::new(JsonLinesSink::new(s, subscription)))
            }
        }
    }
}

/// Calls the same of whichever it is.
macro_rules! of_source {
    ($any:ident, $one:ident => $call:expr) => {
        match $any {
            AnySource::SnapshotFolder($one) => $call,
            AnySource::PostgresOutbox($one) => $call,
        }
    };
}

macro_rules! of_sink {
    ($any:ident, $one:ident => $call:expr) => {
        match $any {
            AnySink::Postgres($one) => $call,
            AnySink::JsonLines($one) => $call,
        }
    };
}

impl Source for AnySource {
    fn name(&self) -> &'static str {
        of_source!(self, one => one.name())
    }

    async fn init(&mut self) -> Result<Vec<String>, SourceError> {
        of_source!(self, one => one.init().await)
    }

    async fn start(&mut self, checkpoint: Option<Value>) -> Result<(), SourceError> {
        of_source!(self, one => one.start(checkpoint).await)
    }

    async fn next(&mut self) -> Result<SourceBatch, SourceError> {
        of_source!(self, one => one.next().await)
    }

    async fn acknowledged(&mut self, checkpoint: &Value) -> Result<(), SourceError> {
        of_source!(self, one => one.acknowledged(checkpoint).await)
    }

    async fn sample(&mut self, rows: usize) -> Result<Vec<SourceRow>, SourceError> {
        of_source!(self, one => one.sample(rows).await)
    }
}

impl Sink for AnySink {
    fn name(&self) -> &'static str {
        of_sink!(self, one => one.name())
    }

    async fn init(&mut self) -> Result<Vec<String>, SinkError> {
        of_sink!(self, one => one.init().await)
    }

    async fn start(&mut self) -> Result<Option<Cursor>, SinkError> {
        of_sink!(self, one => one.start().await)
    }

    async fn begin_snapshot(&mut self) -> Result<(), SinkError> {
        of_sink!(self, one => one.begin_snapshot().await)
    }

    async fn apply(
        &mut self,
        deltas: &[Delivered],
        cursor: Option<Cursor>,
    ) -> Result<(), SinkError> {
        of_sink!(self, one => one.apply(deltas, cursor).await)
    }

    async fn end_snapshot(&mut self, cursor: Cursor) -> Result<(), SinkError> {
        of_sink!(self, one => one.end_snapshot(cursor).await)
    }

    async fn bookmark(&mut self, cursor: Cursor) -> Result<(), SinkError> {
        of_sink!(self, one => one.bookmark(cursor).await)
    }
}
