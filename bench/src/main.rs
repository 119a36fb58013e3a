//! `hutong-bench`: measures the broker on this machine.

use clap::{Parser, Subcommand};
use hutong_bench::{compare, fanout, ingest, report::Report};
use std::{error::Error, process::ExitCode};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures a broker that it starts itself, beside its own load, and says what both took.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
    /// Print one JSON object instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// As many deltas as are acknowledged, in batches, without subscribers.
    Ingest(ingest::Options),
    /// A fixed rate to many subscribers; latency from source commit to applied.
    Fanout(fanout::Options),
    /// The same load on this broker and on its peers, in turn.
    Compare(compare::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the runtime: {error}");
            return ExitCode::from(2);
        }
    };
    let result = runtime.block_on(run(&cli));
    result.unwrap_or_else(|error| {
        eprintln!("hutong-bench: {error}");
        ExitCode::from(2)
    })
}

async fn run(cli: &Cli) -> Result<ExitCode, Box<dyn Error>> {
    Ok(match &cli.scenario {
        Scenario::Ingest(options) => finish(&ingest::run(options).await?, cli.json),
        Scenario::Fanout(options) => finish(&fanout::run(options).await?, cli.json),
        Scenario::Compare(options) => {
            let comparison = compare::run(options)
                .await
                .map_err(|error| error.to_string())?;
            match cli.json {
                true => println!("{}", comparison.to_json()),
                false => print!("{}", comparison.to_text()),
            }
            ExitCode::SUCCESS
        }
    })
}

fn finish(report: &Report, json: bool) -> ExitCode {
    if json {
        println!("{}", report.to_json());
    } else {
        print!("{}", report.to_text());
    }
    if report.whole() {
        ExitCode::SUCCESS
    } else {
        eprintln!("hutong-bench: something was lost or doubled");
        ExitCode::from(1)
    }
}
