//! The command line: what can be asked for, with the help that a person reads.

use crate::{
    commands::{check, debug, entity, lag, platforms, publish, tail, top},
    demo,
    errors::EXIT_CODES,
    output::Format,
};
use clap::{Args, Parser, Subcommand};

/// Operates a Hutong broker: who lags, what is known about an entity and why, and a demo.
#[derive(Debug, Parser)]
#[command(name = "hutong", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The broker's gRPC address.
    #[arg(
        long,
        global = true,
        env = "HUTONG_ADDRESS",
        default_value = "http://127.0.0.1:7400",
        value_name = "URL"
    )]
    pub address: String,
    /// Who asks: operator/NAME, auditor/NAME or platform/CODE.
    #[arg(
        long,
        global = true,
        env = "HUTONG_IDENTITY",
        default_value = "operator/cli",
        value_name = "ROLE/NAME"
    )]
    pub identity: String,
    /// Tables for people or JSON for programs.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub output: Format,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Starts a broker and 32 platforms here, plays three stories and a mass-testing surge, and
    /// proves that nothing was lost.
    Demo(demo::DemoArgs),
    /// How far behind each subscription is, in records and seconds.
    Lag(lag::LagArgs),
    /// Says whether every subscription keeps up, as monitoring plugins do: one line with figures, and
    /// exit code 0, 1, 2 or 3.
    Check(check::CheckArgs),
    /// Platforms, lags and rates on the whole terminal, as they change.
    Top(top::TopArgs),
    /// Gathers what is needed to understand a fault.
    #[command(subcommand)]
    Debug(debug::DebugCommand),
    /// The current registers of one entity.
    Get(entity::EntityArgs),
    /// The colour that an entity's codes resolve to, and why.
    Explain(entity::EntityArgs),
    /// One delta's way: when it was sent to and applied by each platform.
    Trace(entity::TraceArgs),
    /// Prints deltas as they are delivered; needs --identity platform/CODE.
    Tail(tail::TailArgs),
    /// The platforms that take part.
    Platforms,
    /// What connectors say of themselves: state, and how many dead letters they keep.
    Connectors,
    /// The subscriptions and where they are.
    Subscriptions(platforms::SubscriptionsArgs),
    /// What is stored, by partition.
    Partitions,
    /// Drops the records of a partition below an offset. Readers behind it must start again with a
    /// snapshot.
    Trim(platforms::TrimArgs),
    /// Forgets a subscription that is not connected, and where it was; one that comes back under the
    /// name starts anew.
    Forget(platforms::ForgetArgs),
    /// Publishes deltas from a file of JSON lines; needs --identity platform/CODE.
    Publish(publish::PublishArgs),
    /// Prints a completion script.
    Completions {
        /// The shell it is for.
        shell: clap_complete::Shell,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        let cli = Cli::parse_from(["hutong", "platforms", "--output", "json"]);
        assert_eq!(cli.global.output, Format::Json);
    }

    #[test]
    fn the_help_names_the_exit_codes() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.contains("3  the broker cannot be reached"));
    }
}
