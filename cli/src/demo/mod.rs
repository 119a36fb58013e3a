//! `hutong demo`: an embedded broker and the connectors of 32 platforms in one process, over real gRPC.
//! Three stories,
//! a mass-testing surge, and at the end the proof that every platform holds what all others published.

pub mod book;
pub mod connectors;
pub mod embedded;
pub mod fleet;
pub mod machine;
pub mod outbox;
pub mod people;
pub mod platform;
pub mod platforms;
pub mod random;
pub mod registers;
pub mod report;
pub mod risk_levels;
pub mod stories;
pub mod surge;
pub mod view;

use crate::{
    errors::CliError,
    output::{Format, Screen, grouped, json_line},
};
use clap::Args;
use connectors::Connectors;
use embedded::Embedded;
use fleet::{Fleet, Quiet, Verdict};
use hdrhistogram::Histogram;
use platforms::{PLACES, Place};
use registers::Registers;
use report::{Details, Lanes, LatencyMs, MinMax, ReplayReport, StoryReport, Summary};
use risk_levels::Lists;
use std::{path::PathBuf, time::Duration};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug, Args)]
#[command(after_long_help = DEMO_HELP)]
pub struct DemoArgs {
    /// Length of the mass-testing surge.
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 20,
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Deltas a second in the surge, from all platforms together, each delivered to all others.
    #[arg(long, value_name = "N", default_value_t = 20_000,
        value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    pub rate: u32,
    /// How many platforms take part: 2 to 32.
    #[arg(long, value_name = "N", default_value_t = PLACES.len() as u8,
        value_parser = clap::value_parser!(u8).range(2..=32))]
    pub platforms: u8,
    /// Keeps the broker's data and configuration in this folder, which must be empty or new.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Keeps broker, connectors and console up at the end, until it is interrupted.
    #[arg(long)]
    pub hold: bool,
    /// Prints one JSON object on the last line of standard output; what people read goes to standard
    /// error.
    #[arg(long)]
    pub json: bool,
    /// Instead of stories and surge: replays real lists of risk areas from this folder, every province
    /// publishing its own areas.
    #[arg(long, value_name = "DIR")]
    pub risk_levels: Option<PathBuf>,
}

const DEMO_HELP: &str = "\
The object of --json: platforms, published, acknowledged, refused, superseded, held_back,
applied.{min,max}, delivered, lost, doubled, went_back, unknown, views_equal, reconnects,
latency_ms.{urgent,bulk}.{p50,p99,max}, memory_peak_mb, disk_bytes, stories[], risk_levels.
Exits with 1 when something was lost, doubled, refused or unequal.";

/// Runs the demo until its end, or until it is interrupted.
pub async fn run(args: DemoArgs, output: Format) -> Result<(), CliError> {
    let json = args.json || output == Format::Json;
    let screen = if json {
        Screen::stderr()
    } else {
        Screen::stdout()
    };
    let summary = play(&args, &screen).await?;
    if json {
        json_line(&summary)?;
    }
    if summary.is_good() {
        Ok(())
    } else {
        Err(CliError::Finding(
            "the demo found a loss, a double or an inequality".to_owned(),
        ))
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals, CliError> {
        let listen = |kind| {
            signal(kind).map_err(|e| CliError::Broken(format!("cannot listen for signals: {e}")))
        };
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The error of being interrupted, when it comes.
    async fn next(&mut self) -> CliError {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        CliError::Interrupted
    }
}

/// What the parts of the demo have in common.
struct Stage<'a> {
    args: &'a DemoArgs,
    screen: &'a Screen,
    places: &'static [Place],
    broker: &'a Embedded,
}

/// What was played, before the comparison.
struct Played {
    quiet: Quiet,
    verdict: Verdict,
    latency: Lanes<Histogram<u64>>,
    held_back: u64,
    stories: Vec<StoryReport>,
    replay: Option<ReplayReport>,
}

async fn play(args: &DemoArgs, screen: &Screen) -> Result<Summary, CliError> {
    let places = platforms::first(usize::from(args.platforms));
    // What cannot be replayed is said before anything starts.
    let lists = match &args.risk_levels {
        Some(dir) => Some(risk_levels::read(dir, places)?),
        None => None,
    };
    let mut signals = Signals::new()?;
    let broker = tokio::select! {
        interrupted = signals.next() => return Err(interrupted),
        broker = Embedded::start(places, args.keep.as_deref()) => broker?,
    };
    let mut connectors = Connectors::new(&broker)?;
    let stage = Stage {
        args,
        screen,
        places,
        broker: &broker,
    };
    let summary = tokio::select! {
        interrupted = signals.next() => Err(interrupted),
        summary = stage.play(lists.as_ref(), &mut connectors) => summary,
    };
    if args.hold && summary.is_ok() {
        screen.blank()?;
        screen.line(format!(
            "  Still up: {} and {}, until Ctrl-C.",
            broker.console(),
            broker.address()
        ))?;
        // Whoever looked long enough has not broken anything off: it is no error.
        drop(signals.next().await);
    }
    // The connectors first, interrupted or not: what they write must not come into a folder that is
    // being removed. Who interrupts once more does not wait for it.
    let kept = tokio::select! {
        interrupted = signals.next() => return Err(interrupted),
        kept = async { connectors.stop().await; broker.stop().await } => kept,
    };
    if let Some(config) = kept {
        screen.blank()?;
        screen.line(format!(
            "  Kept: hutong-broker run {} opens this data again; then try hutong lag, get, explain.",
            config.display()
        ))?;
    }
    summary
}

impl Stage<'_> {
    async fn play(
        &self,
        lists: Option<&Lists>,
        connectors: &mut Connectors,
    ) -> Result<Summary, CliError> {
        match lists {
            Some(lists) => self.replay(lists, connectors).await,
            None => self.stories_and_surge(connectors).await,
        }
    }

    async fn stories_and_surge(&self, connectors: &mut Connectors) -> Result<Summary, CliError> {
        let pseudonyms = connectors.pseudonyms();
        let shares = platforms::shares(self.places);
        let mut registers = Registers::default();
        let people = people::settle(self.places, &shares, pseudonyms, &mut registers);
        let stories = stories::all(pseudonyms);
        stories::settle(&stories, self.places, &mut registers);
        let (mut fleet, mut seen) = Fleet::start(self.places, registers, connectors);
        fleet.add_people(people, connectors)?;
        let played = async {
            self.announce(&fleet).await?;
            let address = self.broker.address();
            let told = stories::tell(&stories, &fleet, &mut seen, address, self.screen).await?;
            seen.close();
            self.surge(&fleet, told).await
        };
        let played = tokio::select! {
            error = connectors.first_failure() => Err(error),
            played = played => played,
        }?;
        self.conclude(&fleet, played)
    }

    async fn surge(&self, fleet: &Fleet, stories: Vec<StoryReport>) -> Result<Played, CliError> {
        let (rate, seconds) = (self.args.rate, self.args.seconds);
        self.screen.heading(&format!(
            "Mass testing: {} changes a second for {seconds} s, each to {} platforms",
            grouped(u64::from(rate)),
            fleet.platforms.len() - 1
        ))?;
        self.screen.paragraph(
            "97 % negative tests and a few vaccinations in the bulk lane; positives, colours and \
             corrections in the urgent lane, which is served first at every queue. Milliseconds count \
             from the moment a change was due at its source until it was applied at a receiver.",
        )?;
        self.screen.blank()?;
        // What the stories took is told with them.
        let mut ignored = Lanes {
            urgent: platform::latency_histogram(),
            bulk: platform::latency_histogram(),
        };
        fleet.take_latency(&mut ignored);
        let mut surge = surge::run(fleet, self.screen, rate, Duration::from_secs(seconds)).await?;
        let quiet = fleet.quiet_down().await?;
        fleet.take_latency(&mut surge.latency);
        self.screen.blank()?;
        self.screen.line(format!(
            "  The load ended; {} ms later every ack was there and nothing was missing; {} platforms passed the end of the log.",
            quiet.complete_after.as_millis(),
            fleet.platforms.len() - quiet.late.len()
        ))?;
        Ok(Played {
            verdict: fleet.verdict(),
            quiet,
            latency: surge.latency,
            held_back: surge.held_back,
            stories,
            replay: None,
        })
    }

    async fn replay(
        &self,
        lists: &Lists,
        connectors: &mut Connectors,
    ) -> Result<Summary, CliError> {
        let registers = lists.registers(self.places);
        let (mut fleet, _) = Fleet::start(self.places, registers, connectors);
        let provinces = risk_levels::start(lists, &mut fleet, connectors)?;
        let played = async {
            self.announce(&fleet).await?;
            let replay = risk_levels::replay(lists, &provinces, &fleet, self.screen).await?;
            let quiet = fleet.quiet_down().await?;
            let mut latency = Lanes {
                urgent: platform::latency_histogram(),
                bulk: platform::latency_histogram(),
            };
            fleet.take_latency(&mut latency);
            Ok(Played {
                verdict: fleet.verdict(),
                quiet,
                latency,
                held_back: 0,
                stories: Vec::new(),
                replay: Some(replay),
            })
        };
        let played = tokio::select! {
            error = connectors.first_failure() => Err(error),
            played = played => played,
        }?;
        self.conclude(&fleet, played)
    }

    /// Says what runs, when it does.
    async fn announce(&self, fleet: &Fleet) -> Result<(), CliError> {
        fleet.has_begun().await?;
        let screen = self.screen;
        let kept = match &self.args.keep {
            Some(_) => "kept",
            None => "removed at the end",
        };
        screen.line(screen.bold("Hutong demo: provincial platforms kept in sync"))?;
        screen.blank()?;
        screen.line(format!(
            "  broker     {} (metrics {})",
            self.broker.address(),
            self.broker.metrics()
        ))?;
        screen.line(format!("  console    {}", self.broker.console()))?;
        screen.line(format!(
            "  data       {} ({kept})",
            self.broker.data_dir().display()
        ))?;
        screen.line(format!(
            "  platforms  {}, each with {} and a sink connector over gRPC",
            fleet.platforms.len(),
            match self.args.risk_levels {
                Some(_) => "a source connector",
                None => "two source connectors (urgent and bulk)",
            }
        ))?;
        if fleet.people() > 0 {
            screen.line(format!(
                "  people     {}, spread as the population is; three registers each",
                grouped(fleet.people() as u64)
            ))?;
        }
        screen.line(format!(
            "  machine    {} cores; broker and platforms share this one process. An ack means: synced to disk.",
            machine::cores()
        ))
    }

    fn conclude(&self, fleet: &Fleet, played: Played) -> Result<Summary, CliError> {
        let Played {
            quiet,
            verdict,
            latency,
            held_back,
            stories,
            replay,
        } = played;
        let book = &fleet.book;
        let summary = Summary {
            platforms: fleet.platforms.len(),
            published: book.published(),
            acknowledged: book.acknowledged(),
            refused: book.refused(),
            superseded: fleet.superseded(),
            held_back,
            applied: MinMax {
                min: verdict.applied_min,
                max: verdict.applied_max,
            },
            delivered: verdict.delivered,
            lost: verdict.lost,
            doubled: verdict.doubled,
            went_back: verdict.went_back,
            unknown: verdict.unknown,
            views_equal: verdict.unequal.is_empty() && quiet.late.is_empty(),
            reconnects: fleet.reconnects(),
            latency_ms: Lanes {
                urgent: LatencyMs::of(&latency.urgent),
                bulk: LatencyMs::of(&latency.bulk),
            },
            memory_peak_mb: machine::memory_peak_mb(),
            disk_bytes: machine::disk_bytes(self.broker.data_dir()),
            stories,
            risk_levels: replay,
        };
        let details = Details {
            quiet: &quiet,
            verdict: &verdict,
            first_refusal: fleet.first_refusal(),
            cores: machine::cores(),
        };
        summary.print(self.screen, &details)?;
        Ok(summary)
    }
}
