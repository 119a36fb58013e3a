//! `hutong-broker`: reads the configuration, runs the broker, drains it when told to stop.

use clap::{Parser, Subcommand};
use hutong_broker::{
    Broker,
    backup::{self, BackupError, Summary},
    clock,
    config::Config,
    reload,
};
use hutong_config::{ConfigErrors, Look};
use hutong_telemetry::logs;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::{
    future::Future,
    io::{self, Write},
    mem,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

// Freed memory goes back to the system, where glibc's allocator keeps it: the bound on memory is one
// that operators can see.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Stopped as told, everything drained.
const DONE: u8 = 0;
/// It could not start, or not listen.
const CANNOT_START: u8 = 1;
/// The command line or the configuration is wrong.
const USAGE: u8 = 2;
/// It stopped because it could no longer keep its promises.
const FAIL_STOP: u8 = 3;
/// A second signal cut the drain short.
const CUT_SHORT: u8 = 130;

const EXIT_CODES: &str = "\
Exit codes:
  0    stopped as told, after draining; or the file is right; or the backup is whole
  1    could not start, back up or restore: the message says why
  2    the command line or the configuration file is wrong
  3    a write to disk failed or stored data is damaged: it stopped by itself, or while it drained
  130  a second signal arrived while draining

SIGTERM and SIGINT drain: no new batches, commits finish, subscribers take what is applied.
SIGHUP reads the configuration again: what may change does, a file that may not be taken changes nothing.";

/// The broker that keeps provincial health-code platforms in sync.
#[derive(Debug, Parser)]
#[command(name = "hutong-broker", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker until a signal stops it
    #[command(after_help = EXIT_CODES)]
    Run {
        /// The configuration file; deploy/broker.toml is an example
        #[arg(value_name = "FILE")]
        config: PathBuf,
    },
    /// Copy log and state into a new folder, also while the broker runs
    #[command(after_help = EXIT_CODES)]
    Backup {
        /// The broker's configuration file
        #[arg(value_name = "FILE")]
        config: PathBuf,
        /// A folder that is new or empty
        #[arg(long, value_name = "DIR")]
        into: PathBuf,
        /// Where the broker that runs listens for gRPC; `listen.grpc` if left out
        #[arg(long, value_name = "URL")]
        address: Option<String>,
    },
    /// Make a data folder from a backup: every byte is compared, log and state are opened together
    #[command(after_help = EXIT_CODES)]
    Restore {
        /// The configuration file of the new broker; its `data.dir` must be new or empty
        #[arg(value_name = "FILE")]
        config: PathBuf,
        /// The backup
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
    },
    /// Check a configuration file: all mistakes at once, no port is bound
    Check {
        /// The configuration file
        #[arg(value_name = "FILE")]
        config: PathBuf,
    },
}

fn main() {
    let code = match Arguments::parse().command {
        Command::Run { config } => {
            said(Config::load(&config)).map_or(USAGE, |read| run(read, config))
        }
        Command::Backup {
            config,
            into,
            address,
        } => said(Config::load(&config)).map_or(USAGE, |read| {
            let clock = clock::system();
            let made = backup::backup(&read, &into, address.as_deref(), &clock);
            carried("backed up into", &into, made)
        }),
        Command::Restore { config, from } => said(Config::load(&config)).map_or(USAGE, |read| {
            let clock = clock::system();
            let made = backup::restore(&read, &from, &clock);
            carried("restored into", &read.data_dir, made)
        }),
        Command::Check { config } => {
            let now = clock::system()();
            said(reload::check(&config, now)).map_or(USAGE, |read| check(&config, &read))
        }
    };
    // At once, without what else happens at the end of a process: after a failure threads may still
    // stand in the database, whose globals must not go away under them.
    signal_hook::low_level::exit(i32::from(code));
}

/// All mistakes go to standard error.
fn said(read: Result<Config, ConfigErrors>) -> Option<Config> {
    match read {
        Ok(config) => Some(config),
        Err(errors) => {
            eprint!("{}", errors.render(Look::of_stderr()));
            None
        }
    }
}

fn check(path: &Path, config: &Config) -> u8 {
    say(&format!("OK  {}\n\n{}\n", path.display(), config.summary()));
    DONE
}

/// Runs a backup or a restore to its end, and says what came of it.
fn carried(
    what: &str,
    path: &Path,
    work: impl Future<Output = Result<Summary, BackupError>>,
) -> u8 {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("hutong-broker: cannot start the runtime: {error}");
            return CANNOT_START;
        }
    };
    match runtime.block_on(work) {
        Ok(done) => {
            say(&format!(
                "{what} {}\nlog {:016x}, records below {}, state applied below {} or later, {} files, {} bytes{}\n",
                path.display(),
                done.log_id,
                done.next,
                done.stored,
                done.files,
                done.bytes,
                if done.live {
                    ", while the broker ran"
                } else {
                    ""
                },
            ));
            DONE
        }
        Err(error) => {
            eprintln!("hutong-broker: {error}");
            CANNOT_START
        }
    }
}

/// Writes to standard output. Nobody reading it is no reason to fail.
fn say(text: &str) {
    let mut out = io::stdout();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        tracing::debug!("standard output is closed");
    }
}

fn run(config: Config, file: PathBuf) -> u8 {
    if let Err(error) = logs::init(config.telemetry.format, &config.telemetry.filter) {
        eprintln!("hutong-broker: {error}");
        return CANNOT_START;
    }
    raise_open_files();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return CANNOT_START;
        }
    };
    let code = runtime.block_on(serve(config, &file));
    // What still blocks a thread has had its deadline.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

/// Each table of the state is an open file, as each connection is; what a shell gives by default is soon too little.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

async fn serve(config: Config, file: &Path) -> u8 {
    let clock = clock::system();
    // Listened to from the start on: without a listener SIGHUP ends the process.
    let signals = Stop::new().and_then(|stop| Ok((stop, signal(SignalKind::hangup())?)));
    let (mut stop, mut hang_up) = match signals {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "cannot listen to signals");
            return CANNOT_START;
        }
    };
    if let Some(day) = config.valid_until
        && clock() >= day.end()
    {
        // A broker that crashed must come back; only a reload can do without the file.
        tracing::warn!(%day, "the configuration is past its day; a reload would refuse it");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        data = %config.data_dir.display(),
        platforms = config.platforms.len(),
        "starting"
    );
    let started = tokio::select! {
        started = Broker::start(config) => started,
        // What was opened is as after a crash, which the next start handles.
        signal = stop.next() => {
            tracing::warn!(signal, "stopped while starting");
            return DONE;
        }
    };
    let broker = match started {
        Ok(broker) => broker,
        Err(error) => {
            tracing::error!(error = %chain(&error), "cannot start");
            return CANNOT_START;
        }
    };
    // The log says it too; this line is for programs that asked for free ports.
    let (grpc, http) = (broker.grpc_addr(), broker.http_addr());
    say(&format!("listening grpc={grpc} http={http}\n"));
    let signal = loop {
        tokio::select! {
            reason = broker.failed() => {
                tracing::error!(reason, "stopping at once: the broker can no longer keep its promises");
                // Closing would wait for a disk that may never answer.
                mem::forget(broker);
                return FAIL_STOP;
            }
            signal = stop.next() => break signal,
            // What is wrong with it is in the log; the broker goes on either way.
            _ = hang_up.recv() => drop(broker.reload(file, clock())),
        }
    };
    tracing::info!(signal, "draining; a second signal stops at once");
    drain(broker.shutdown(), stop).await
}

async fn drain(shutdown: impl Future<Output = Option<String>>, mut stop: Stop) -> u8 {
    let mut shutdown = Box::pin(shutdown);
    tokio::select! {
        failed = &mut shutdown => match failed {
            None => DONE,
            Some(reason) => {
                tracing::error!(reason, "while it drained it could no longer keep its promises");
                FAIL_STOP
            }
        },
        // Nothing acknowledged is lost by it: acks follow the sync.
        signal = stop.next() => {
            tracing::warn!(signal, "a second signal: stopping at once");
            // Closing would wait.
            mem::forget(shutdown);
            CUT_SHORT
        }
    }
}

/// The signals that mean stop.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> io::Result<Stop> {
        Ok(Stop {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Safe to cancel.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// An error with what is behind it, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
