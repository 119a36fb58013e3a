//! `hutong-chaos`: breaks things on purpose, and says whether the promises held.

use clap::{Parser, Subcommand};
use hutong_chaos::{
    commands::{self, EXIT_CODES, INTERRUPTED, USAGE},
    error::ChaosError,
    interrupt, plants, sim, sweep,
};
use std::{process::ExitCode, time::Duration};

/// A soak plays for hours, and gives back after each round what that round took.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// For what runs on when a drill is over.
const LAST_TASKS_MAX: Duration = Duration::from_secs(5);

/// What is promised, what is broken, what was seen.
#[derive(Debug, Parser)]
#[command(name = "hutong-chaos", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Drills(Drills),
    #[command(flatten)]
    Searches(Searches),
}

/// Real processes, in real time.
#[derive(Debug, Subcommand)]
enum Drills {
    /// Every drill, and whether this machine can play it
    List(commands::list::Arguments),
    /// Play drills, by name or file
    Run(commands::run::Arguments),
    /// Play every drill that this machine can, and show a table
    All(commands::all::Arguments),
    /// Play random pairs of faults for a long time
    Soak(commands::soak::Arguments),
    /// Replay the published lists of risk areas through random faults, and compare the tables with the files
    Replay(commands::replay::Arguments),
    /// Kill brokers of several sizes, and time how long each takes until it is ready again
    Recovery(commands::recovery::Arguments),
    /// Explain the mistakes of a drill's file
    Check(commands::check::Arguments),
    /// Judge an old history again
    Judge(commands::judge::Arguments),
}

/// The sources themselves, compiled with places for bugs.
#[derive(Debug, Subcommand)]
enum Searches {
    /// Run broker and clients in one thread, seed after seed
    Sim(sim::Args),
    /// Cut the power at every write and every sync of a real store
    Sweep(sweep::Args),
    /// Plant every bug in turn, and show that each is caught
    Plants(plants::Args),
    #[command(hide = true)]
    SweepWorkload(sweep::workload::Args),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return not_understood(&error),
    };
    let done = match arguments.command {
        Command::Drills(drills) => match tokio::runtime::Runtime::new() {
            Ok(runtime) => {
                let done = runtime.block_on(drill(drills));
                // Tasks end with the runtime, and with them the processes that they hold. A judge that was
                // interrupted has nothing to undo.
                runtime.shutdown_timeout(LAST_TASKS_MAX);
                done
            }
            Err(error) => {
                eprintln!("hutong-chaos: cannot start the runtime: {error}");
                return ExitCode::from(USAGE);
            }
        },
        // These have runtimes of their own.
        Command::Searches(searches) => search(searches),
    };
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

/// A mistake, or somebody who asks for help.
fn not_understood(error: &clap::Error) -> ExitCode {
    // Who cannot be told cannot be told that either.
    error.print().ok();
    let command = std::env::args().nth(1);
    if let Some(why) = commands::refusal::why(error, command.as_deref()) {
        eprintln!("\nhutong-chaos: {why}");
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE))
}

async fn drill(drills: Drills) -> Result<u8, ChaosError> {
    match drills {
        Drills::List(arguments) => commands::list::run(&arguments),
        Drills::Run(arguments) => commands::run::run(arguments).await,
        Drills::All(arguments) => commands::all::run(arguments).await,
        Drills::Soak(arguments) => commands::soak::run(arguments).await,
        Drills::Replay(arguments) => commands::replay::run(arguments).await,
        Drills::Recovery(arguments) => commands::recovery::run(arguments).await,
        Drills::Check(arguments) => commands::check::run(&arguments),
        Drills::Judge(arguments) => commands::judge::run(&arguments),
    }
}

fn search(searches: Searches) -> Result<u8, ChaosError> {
    let page = match &searches {
        Searches::Sim(arguments) => arguments.report.as_deref(),
        Searches::Sweep(arguments) => arguments.report.as_deref(),
        Searches::Plants(_) | Searches::SweepWorkload(_) => None,
    };
    commands::can_be_written(page)?;
    // What is swept ends with who sweeps it.
    if !matches!(searches, Searches::SweepWorkload(_)) {
        interrupt::listen()?;
    }
    let clean = match searches {
        Searches::Sim(arguments) => arguments.run(),
        Searches::Sweep(arguments) => arguments.run(),
        Searches::Plants(arguments) => arguments.run(),
        Searches::SweepWorkload(arguments) => arguments.run(),
    };
    if interrupt::told() && clean.is_err() {
        return Err(ChaosError::Interrupted);
    }
    match clean.map_err(ChaosError::Stage)? {
        true => Ok(commands::PASS),
        false => Ok(commands::FAIL),
    }
}
