//! The commands of `hutong-connect`.

mod any;
mod check;
mod dlq;
mod init;
mod output;
mod run;
mod sample;
mod status;

pub use any::{AnySink, AnySource};
pub use output::Format;

use crate::{
    checkpoint::StateError,
    config::Config,
    dlq::DlqError,
    pseudonym::{KeyError, Pseudonymiser},
    runner::{HousekeepingError, Trouble},
    sink::SinkError,
    source::SourceError,
};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use hutong_config::{ConfigErrors, Look};
use hutong_telemetry::{LogFormat, logs};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 it failed, or (status) the connector is not working; \
2 the file or the command line is wrong, with every mistake of the file at once.";

/// Connects a platform's own system to Hutong. Each connector has one file: one source or one sink.
#[derive(Debug, Parser)]
#[command(name = "hutong-connect", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// Tables for people or JSON for programs.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the connector until SIGTERM or SIGINT.
    Run(run::RunArgs),
    /// Reads the file and its key, and says everything that is wrong with them.
    Check(File),
    /// Creates what is missing in the platform's system: tables of a sink, the outbox of a source.
    Init(File),
    /// Shows the deltas that the first rows of the source become. Nothing is sent.
    Sample(sample::SampleArgs),
    /// What the connector is doing, since when, and why.
    Status(File),
    /// Rows that could not be mapped, or that the broker refused.
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Prints completions for a shell.
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
}

#[derive(Debug, clap::Args)]
struct File {
    /// The connector's configuration.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("{0}")]
    Config(ConfigErrors),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Dlq(#[from] DlqError),
    #[error(transparent)]
    Housekeeping(#[from] HousekeepingError),
    #[error(transparent)]
    Logs(#[from] logs::LogsError),
    #[error("{0}")]
    Trouble(#[from] Trouble),
    #[error("{0}")]
    Source(#[from] SourceError),
    #[error("{0}")]
    Sink(#[from] SinkError),
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
    /// Everything was said already.
    #[error("")]
    Silent,
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            CommandError::Config(_) | CommandError::Usage(_) | CommandError::Key(_) => 2,
            _ => 1,
        }
    }
}

/// Runs a command to its end, and says what went wrong.
pub fn main(cli: Cli) -> ExitCode {
    let Err(error) = dispatch(cli) else {
        return ExitCode::SUCCESS;
    };
    let text = match &error {
        CommandError::Config(errors) => errors.render(Look::of_stderr()),
        // Whoever reads has closed the pipe: nobody is there to be told.
        CommandError::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => String::new(),
        CommandError::Silent => String::new(),
        error => format!("error: {error}\n"),
    };
    // If not even this can be written, the exit code says it.
    drop(io::stderr().lock().write_all(text.as_bytes()));
    ExitCode::from(error.exit_code())
}

fn dispatch(cli: Cli) -> Result<(), CommandError> {
    let output = cli.output;
    match cli.command {
        Command::Run(args) => run::run(load(&args.file)?, args.new_log),
        Command::Check(args) => check::check(&args.file),
        Command::Init(args) => {
            quiet_logs()?;
            init::init(load(&args.file)?)
        }
        Command::Sample(args) => {
            quiet_logs()?;
            sample::sample(load(&args.file)?, args.rows, output)
        }
        Command::Status(args) => status::status(&load(&args.file)?, output),
        Command::Dlq(command) => {
            quiet_logs()?;
            dlq::dlq(command, output)
        }
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "hutong-connect", &mut io::stdout());
            Ok(())
        }
    }
}

fn load(file: &Path) -> Result<Config, CommandError> {
    Config::load(file).map_err(CommandError::Config)
}

/// Of commands that print a result: only what is wrong.
fn quiet_logs() -> Result<(), CommandError> {
    Ok(logs::init(LogFormat::Text, "warn")?)
}

fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

/// The pseudonymiser that a source's file asks for.
fn pseudonymiser(
    settings: Option<&crate::pseudonym::PseudonymSettings>,
) -> Result<Option<Pseudonymiser>, CommandError> {
    let Some(settings) = settings else {
        return Ok(None);
    };
    let (pseudonyms, warning) = settings.load()?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(Some(pseudonyms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
