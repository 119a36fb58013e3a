//! `hutong-connect`: one connector beside a platform's own system.

use clap::Parser;
use hutong_connectors::commands::{self, Cli};
use std::process::ExitCode;

fn main() -> ExitCode {
    commands::main(Cli::parse())
}
