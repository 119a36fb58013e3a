//! `hutong-chaos`: breaks things on purpose, and says whether the promises held.

use clap::{Parser, Subcommand};
use hutong_chaos::commands::{self, EXIT_CODES, INTERRUPTED, USAGE};
use std::process::ExitCode;

/// Drills for the broker: what is promised, what is broken, what was seen.
#[derive(Debug, Parser)]
#[command(name = "hutong-chaos", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every drill, and whether this machine can play it
    List(commands::list::Arguments),
    /// Play drills, by name or file
    Run(commands::run::Arguments),
    /// Play every drill that this machine can, and show a table
    All(commands::all::Arguments),
    /// Play random pairs of faults for a long time
    Soak(commands::soak::Arguments),
    /// Explain the mistakes of a drill's file
    Check(commands::check::Arguments),
    /// Judge an old history again
    Judge(commands::judge::Arguments),
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("hutong-chaos: cannot start the runtime: {error}");
            return ExitCode::from(USAGE);
        }
    };
    let done = runtime.block_on(async {
        match command {
            Command::List(arguments) => commands::list::run(&arguments),
            Command::Run(arguments) => commands::run::run(arguments).await,
            Command::All(arguments) => commands::all::run(arguments).await,
            Command::Soak(arguments) => commands::soak::run(arguments).await,
            Command::Check(arguments) => commands::check::run(&arguments),
            Command::Judge(arguments) => commands::judge::run(&arguments),
        }
    });
    // Tasks end here, and with them the processes that they hold.
    drop(runtime);
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("hutong-chaos: {error}");
            if error.exit_code() == INTERRUPTED {
                eprintln!("hutong-chaos: everything that was done is undone");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
