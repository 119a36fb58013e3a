//! `hutong-chaos`: breaks the broker on purpose, and judges what it does.

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "hutong-chaos", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Plants(hutong_chaos::plants::Args),
    Sim(hutong_chaos::sim::Args),
    Sweep(hutong_chaos::sweep::Args),
    #[command(hide = true)]
    SweepWorkload(hutong_chaos::sweep::workload::Args),
}

/// 0: nothing was found. 1: something was. 2: it could not be looked for.
fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Plants(args) => args.run(),
        Command::Sim(args) => args.run(),
        Command::Sweep(args) => args.run(),
        Command::SweepWorkload(args) => args.run().map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("hutong-chaos: {why}");
            ExitCode::from(2)
        }
    }
}
