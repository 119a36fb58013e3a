//! `connectors`: what connectors say of themselves.

use super::Context;
use crate::{
    errors::CliError,
    output::{Grid, bytes_text, grouped},
    times::utc,
};
use hutong_connectors::client;
use hutong_proto::api;
use serde::Serialize;
use std::collections::BTreeMap;
use tonic::{Code, Status};

/// In a table; JSON has all.
const REASONS_NAMED_MAX: usize = 3;

#[derive(Debug, Serialize)]
pub struct ConnectorShape {
    pub platform: u32,
    pub connector: String,
    /// `source` or `sink`.
    role: String,
    /// As it said last.
    state: String,
    since_us: u64,
    dead_letters: u64,
    dead_letters_bytes: u64,
    /// Since its process began, by reason.
    dead_letters_added: BTreeMap<String, u64>,
    said_at_us: u64,
    /// It should have said something since.
    silent: bool,
}

impl ConnectorShape {
    pub fn from_api(connector: api::Connector) -> ConnectorShape {
        let report = connector.report.unwrap_or_default();
        let word = |name: &str, prefix| name.trim_start_matches(prefix).to_lowercase();
        ConnectorShape {
            platform: connector.platform,
            role: word(report.role().as_str_name(), "CONNECTOR_ROLE_"),
            state: word(report.state().as_str_name(), "CONNECTOR_STATE_"),
            connector: report.connector,
            since_us: report.since_us,
            dead_letters: report.dead_letters,
            dead_letters_bytes: report.dead_letters_bytes,
            dead_letters_added: (report.dead_letters_added.into_iter())
                .map(|added| (added.reason, added.rows))
                .collect(),
            said_at_us: connector.said_at_us,
            silent: connector.silent,
        }
    }

    pub fn has_failed(&self) -> bool {
        self.state == "failed"
    }

    fn state_text(&self) -> String {
        match self.silent {
            true => format!("silent, was {}", self.state),
            false => self.state.clone(),
        }
    }

    /// The most frequent first.
    fn reasons_text(&self) -> String {
        let mut reasons: Vec<(&String, &u64)> = self.dead_letters_added.iter().collect();
        reasons.sort_by(|a, b| b.1.cmp(a.1));
        let named = reasons.iter().take(REASONS_NAMED_MAX);
        let named = named.map(|(reason, rows)| format!("{reason} {rows}"));
        let mut texts: Vec<String> = named.collect();
        if let Some(more @ 1..) = reasons.len().checked_sub(REASONS_NAMED_MAX) {
            texts.push(format!("{more} more"));
        }
        texts.join(", ")
    }
}

/// What all connectors said last.
pub async fn read(context: &Context) -> Result<Vec<ConnectorShape>, CliError> {
    ask(context).await?.map_err(|s| context.refused(&s))
}

/// The same; nobody, of a broker that is older and takes no reports.
pub async fn read_if_known(context: &Context) -> Result<Vec<ConnectorShape>, CliError> {
    match ask(context).await? {
        Err(status) if status.code() == Code::Unimplemented => Ok(Vec::new()),
        asked => asked.map_err(|s| context.refused(&s)),
    }
}

async fn ask(context: &Context) -> Result<Result<Vec<ConnectorShape>, Status>, CliError> {
    let mut client = client::admin(&context.endpoint).map_err(|e| context.failed(&e))?;
    let asked = client.list_connectors(api::ListConnectorsRequest {}).await;
    Ok(asked.map(|answer| {
        let connectors = answer.into_inner().connectors.into_iter();
        connectors.map(ConnectorShape::from_api).collect()
    }))
}

pub async fn run(context: &Context) -> Result<(), CliError> {
    let connectors = read(context).await?;
    context.show(&connectors, "No connector is known.", || {
        let mut grid = Grid::new(&[
            "platform",
            "connector",
            "role",
            "state",
            "since",
            ">dead letters",
            ">in",
            "became dead letters since it started",
            "last said",
        ]);
        for c in &connectors {
            grid.row([
                c.platform.to_string(),
                c.connector.clone(),
                c.role.clone(),
                c.state_text(),
                utc(c.since_us),
                grouped(c.dead_letters),
                bytes_text(c.dead_letters_bytes),
                c.reasons_text(),
                utc(c.said_at_us),
            ]);
        }
        grid
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connector_is_told_in_words() {
        let added = |reason: &str, rows| api::DeadLettersAdded {
            reason: reason.to_owned(),
            rows,
        };
        let shape = ConnectorShape::from_api(api::Connector {
            platform: 340_000,
            report: Some(api::ConnectorReport {
                connector: "anhui".to_owned(),
                role: api::ConnectorRole::Source.into(),
                state: api::ConnectorState::Running.into(),
                dead_letters_added: ["A", "B", "C", "D", "E"]
                    .into_iter()
                    .zip(1..)
                    .map(|(reason, rows)| added(reason, rows))
                    .collect(),
                ..Default::default()
            }),
            said_at_us: 1,
            silent: true,
        });
        assert_eq!(shape.role, "source");
        assert_eq!(shape.state_text(), "silent, was running");
        assert_eq!(shape.reasons_text(), "E 5, D 4, C 3, 2 more");
    }
}
