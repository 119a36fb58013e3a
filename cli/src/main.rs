//! The binary `hutong`.

use clap::Parser;
use hutong_cli::{
    cli::{Cli, Command},
    commands::{
        self,
        check::{Answer, UNKNOWN},
    },
    errors::CliError,
    output::{Format, Screen},
};
use std::process::ExitCode;

/// The demo holds a broker and 32 platforms in one process; the system's allocator fragments under
/// that load.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Who watches takes 2 for "critical": a check that was asked wrongly knows nothing.
fn wrong_usage(error: &clap::Error) -> ! {
    // As far as that can be told of a wrong command line: it is a monitoring system that asks.
    let check = std::env::args().skip(1).any(|argument| argument == "check");
    if check && error.use_stderr() {
        // Either may be closed; the exit code tells.
        let json =
            std::env::args().any(|argument| argument == "json" || argument == "--output=json");
        let format = if json { Format::Json } else { Format::Table };
        drop(Answer::unknown("the command line is wrong").say(format));
        drop(error.print());
        std::process::exit(i32::from(UNKNOWN));
    }
    error.exit()
}

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| wrong_usage(&error));
    let check = matches!(cli.command, Command::Check(_));
    let format = cli.global.output;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("hutong")
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(commands::run(cli)),
        Err(e) => Err(CliError::Broken(format!("cannot start threads: {e}"))),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    // Whatever is wrong before it could ask; what it found is silent.
    if check && !error.is_silent() {
        drop(Answer::unknown(&error).say(format));
        return ExitCode::from(UNKNOWN);
    }
    if !error.is_silent() {
        let screen = Screen::stderr();
        let line = format!("{} {error}", screen.bad("hutong:"));
        // When not even the error can be shown, the exit code still tells.
        if screen.line(line).is_err() {
            return error.exit_code();
        }
    }
    error.exit_code()
}
