//! One file a group of commands; here, what they share.

pub mod check;
pub mod connectors;
pub mod debug;
pub mod entity;
pub mod lag;
pub mod platforms;
pub mod publish;
pub mod tail;
pub mod top;

use crate::{
    cli::{Cli, Command, Global},
    demo,
    errors::CliError,
    output::{Format, Grid, Screen, json_line},
};
use clap::CommandFactory;
use hutong_connectors::client::{self, ClientError, Endpoint, Identity};
use hutong_proto::{Issuer, api, limits};
use serde::Serialize;
use std::io;
use tonic::Status;

/// Runs what was asked for.
pub async fn run(cli: Cli) -> Result<(), CliError> {
    let context = Context::new(&cli.global)?;
    match cli.command {
        Command::Demo(args) => demo::run(args, cli.global.output).await,
        Command::Check(args) => check::run(&context, &args).await,
        Command::Top(args) => top::run(&context, &args).await,
        Command::Debug(debug::DebugCommand::Bundle(args)) => debug::bundle(&context, &args).await,
        Command::Lag(args) => lag::run(&context, &args).await,
        Command::Get(args) => entity::get(&context, &args).await,
        Command::Explain(args) => entity::explain(&context, &args).await,
        Command::Trace(args) => entity::trace(&context, &args).await,
        Command::Tail(args) => tail::run(&context, &args).await,
        Command::Platforms => platforms::platforms(&context).await,
        Command::Connectors => connectors::run(&context).await,
        Command::Subscriptions(args) => platforms::subscriptions(&context, &args).await,
        Command::Partitions => platforms::partitions(&context).await,
        Command::Trim(args) => platforms::trim(&context, &args).await,
        Command::Forget(args) => platforms::forget(&context, &args).await,
        Command::Publish(args) => publish::run(&context, &args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hutong", &mut script);
            Screen::stdout().line(String::from_utf8_lossy(&script).trim_end())
        }
    }
}

/// Where to ask, as whom, and how to answer.
#[derive(Clone, Debug)]
pub struct Context {
    pub screen: Screen,
    pub format: Format,
    pub identity: Identity,
    pub endpoint: Endpoint,
    pub address: String,
}

impl Context {
    fn new(global: &Global) -> Result<Context, CliError> {
        let identity = parse_identity(&global.identity)?;
        Ok(Context {
            screen: Screen::stdout(),
            format: global.output,
            endpoint: Endpoint::new(global.address.clone(), identity.clone()),
            identity,
            address: global.address.clone(),
        })
    }

    pub fn refused(&self, status: &Status) -> CliError {
        CliError::from_status(&self.address, status)
    }

    pub fn failed(&self, error: &ClientError) -> CliError {
        CliError::from_client(&self.address, error)
    }

    /// The platform that this command speaks for; publishing and subscribing need one.
    pub fn platform(&self, command: &str) -> Result<Issuer, CliError> {
        match &self.identity {
            Identity::Platform(code) => Ok(*code),
            _ => Err(CliError::Usage(format!(
                "`hutong {command}` acts for a platform: say which with --identity platform/CODE, such as platform/340000"
            ))),
        }
    }

    /// Whether the broker is there and knows us. Streams connect again and again by themselves; a
    /// person at the prompt wants to know at once.
    pub async fn reach(&self) -> Result<(), CliError> {
        let mut client = client::query(&self.endpoint).map_err(|e| self.failed(&e))?;
        let nobody = api::GetEntityRequest {
            entity: vec![1; limits::ENTITY_BYTES].into(),
        };
        match client.get_entity(nobody).await {
            Ok(_) => Ok(()),
            Err(status) => Err(self.refused(&status)),
        }
    }

    /// The value as JSON, or as the table that `grid` makes of it; `none` is said of an empty table.
    pub fn show<T: Serialize>(
        &self,
        value: &T,
        none: &str,
        grid: impl FnOnce() -> Grid,
    ) -> Result<(), CliError> {
        match self.format {
            Format::Json => json_line(value),
            Format::Table => {
                let grid = grid();
                if grid.is_empty() {
                    self.screen.line(none)
                } else {
                    self.screen.grid(&grid)
                }
            }
        }
    }
}

fn parse_identity(text: &str) -> Result<Identity, CliError> {
    text.parse().map_err(|why: String| {
        // Some reasons are about the form, and say it already.
        let help = match why.contains("platform/CODE") {
            true => "",
            false => "; write platform/CODE, operator/NAME or auditor/NAME",
        };
        CliError::Usage(format!("--identity {text}: {why}{help}"))
    })
}

/// A question before something that cannot be undone. Without a terminal only `--yes` says yes.
fn confirmed(question: &str, yes: bool) -> Result<(), CliError> {
    use io::{BufRead, IsTerminal};
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(CliError::Usage(format!(
            "{question} This cannot be undone; say --yes to do it without being asked"
        )));
    }
    Screen::stderr().line(format!(
        "{question} This cannot be undone. Type yes to go on:"
    ))?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(CliError::Output)?;
    match answer.trim() {
        "yes" => Ok(()),
        _ => Err(CliError::Usage("nothing was done".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_or_explained() {
        assert!(matches!(
            parse_identity("platform/340000"),
            Ok(Identity::Platform(code)) if code.code() == 340_000
        ));
        assert!(matches!(parse_identity("operator/x"), Ok(Identity::Operator(n)) if n == "x"));
        assert!(matches!(parse_identity("auditor/x"), Ok(Identity::Auditor(n)) if n == "x"));
        for wrong in ["platform/34", "operator/", "root/x", "340000"] {
            let error = parse_identity(wrong).expect_err(wrong);
            assert_eq!(error.code(), 2);
            assert!(error.to_string().contains("platform/CODE"), "{error}");
        }
    }
}
