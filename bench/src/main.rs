//! `hutong-bench`: measures the broker on this machine.

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use hutong_bench::{
    Failure, compare, file,
    report::{Environment, Report, html, table},
    scenarios::Scenario,
    waited,
};
use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures a broker that it starts itself, beside its own load, and says what both took.
#[derive(Debug, Parser)]
#[command(name = "hutong-bench", version, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object instead of a table.
    #[arg(long, global = true)]
    json: bool,
    /// Also write a page with plots.
    #[arg(long, global = true, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Scenario(Scenario),
    /// The same load on this broker and on its peers, in turn.
    Compare(compare::Options),
    /// What a file says: a scenario and its options. Options after it win.
    Run(RunFile),
    /// Every scenario and the comparison; a folder of reports, and the table of a page.
    All(All),
    /// The table of a page anew, from reports that are there.
    Table(PageTable),
    /// Every scenario for a moment: that it runs and reports, not how fast it is.
    Smoke,
}

#[derive(Debug, Args)]
struct PageTable {
    /// The folder with the JSON of each scenario, as `all` leaves it.
    #[arg(long, default_value = "bench-results")]
    from: PathBuf,
    /// The page.
    #[arg(long, value_name = "FILE", default_value = "docs/benchmarks.md")]
    into: PathBuf,
}

#[derive(Debug, Args)]
struct RunFile {
    file: PathBuf,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

#[derive(Debug, Args)]
struct All {
    /// Where the JSON and the pages go.
    #[arg(long, default_value = "bench-results")]
    out: PathBuf,
    /// The page whose table is written anew.
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    /// Only these, by name; `compare` is one of them.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// Each scenario as small as it can be and still go through all of its parts. `surge` is offered more than any machine
/// takes: what fits is not asked here.
const SMOKE: [&str; 8] = [
    "ingest --seconds 0.5 --warmup 0.1 --people 1000",
    "single --seconds 0.5 --warmup 0.1 --people 1000 --in-flight 16",
    "fanout --seconds 0.5 --warmup 0.1 --rate 4000 --subscribers 4 --stalled 5",
    "surge --warmup 0.1 --subscribers 4 --probe-seconds 0.5 --probe-rate 1000000000 --surge-seconds 0.5",
    "catchup --seconds 0.5 --warmup 0.1 --subscribers 4 --behind 20000 --rate 2000",
    "bootstrap --registers 20000",
    "scale --seconds 0.3 --warmup 0.1 --registers 2000,8000 --log 64MiB",
    "idle --seconds 0.3 --warmup 0.1 --subscribers 4",
];

/// A scenario with other options that belongs to the set: its name, and what it is.
const VARIANTS: [(&str, &str); 1] = [("fanout-32-stalled", "fanout --stalled 32")];

fn main() -> ExitCode {
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
    let result = runtime.block_on(run(Cli::parse()));
    result.unwrap_or_else(|error| {
        eprintln!("hutong-bench: {error}");
        ExitCode::from(2)
    })
}

async fn run(mut cli: Cli) -> Result<ExitCode, Failure> {
    if let Command::Run(RunFile { file, options }) = &cli.command {
        let arguments = file::arguments(file, &Cli::command(), &names())?;
        let given = parse(file::joined(arguments, options))?;
        cli = Cli {
            json: cli.json || given.json,
            html: cli.html.or(given.html),
            ..given
        };
    }
    match &cli.command {
        Command::Scenario(scenario) => {
            let report = repeat(scenario).await?;
            if let Some(file) = &cli.html {
                write(file, &html::page(&report))?;
            }
            match cli.json {
                true => println!("{}", report.to_json()),
                false => print!("{}", report.to_text()),
            }
            Ok(verdict(&report))
        }
        Command::Compare(options) => {
            let comparison = compare::run(options).await?;
            if let Some(file) = &cli.html {
                write(file, &comparison.to_html())?;
            }
            match cli.json {
                true => println!("{}", comparison.to_json()),
                false => print!("{}", comparison.to_text()),
            }
            Ok(verdict_of(&comparison))
        }
        Command::Run(_) => Err("a file names a scenario, not another file".into()),
        Command::All(options) => all(options).await,
        Command::Table(PageTable { from, into }) => {
            put_table(from, into)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Smoke => smoke().await,
    }
}

/// What is measured, by name.
fn names() -> Vec<&'static str> {
    let scenarios = SMOKE.iter().filter_map(|s| s.split(' ').next());
    scenarios.chain(["compare"]).collect()
}

fn put_table(from: &Path, page: &Path) -> Result<(), Failure> {
    let commits = table::put(from, page)?;
    if commits.differ() {
        let page = page.display();
        eprintln!("hutong-bench: {page}: its rows were measured at {commits}");
    }
    Ok(())
}

fn parse(arguments: Vec<OsString>) -> Result<Cli, Failure> {
    let mut matches = Cli::command().try_get_matches_from(arguments)?;
    Ok(Cli::from_arg_matches_mut(&mut matches)?)
}

async fn repeat(scenario: &Scenario) -> Result<Report, Failure> {
    let mut report = Report {
        scenario: scenario.name(),
        options: scenario.options(),
        environment: Environment::read(&scenario.common().folder()),
        runs: Vec::new(),
    };
    if report.environment.in_memory() {
        let folder = scenario.common().folder();
        eprintln!(
            "hutong-bench: {} is in memory, where syncs cost nothing: these are no figures of a disk; set --data to a \
             folder on one",
            folder.display()
        );
    }
    let repeats = scenario.common().repeats.max(1);
    for i in 1..=repeats {
        eprintln!("{i} of {repeats}: {}", scenario.name());
        let run = scenario.run().await?;
        let waited = (run.figures.iter()).find(|(name, _)| name == "load_waited_share");
        if let Some(warning) =
            waited.and_then(|(_, share)| waited::warning(report.scenario, *share))
        {
            eprintln!("hutong-bench: {warning}");
        }
        report.runs.push(run);
    }
    Ok(report)
}

fn verdict(report: &Report) -> ExitCode {
    if report.whole() {
        return ExitCode::SUCCESS;
    }
    eprintln!("hutong-bench: something was lost or doubled");
    ExitCode::from(1)
}

/// What a peer gave up is one of its figures; this broker promises that nothing is missing.
fn verdict_of(comparison: &compare::Comparison) -> ExitCode {
    match comparison.missing() {
        0 => ExitCode::SUCCESS,
        missing => {
            eprintln!(
                "hutong-bench: {missing} deliveries of this broker had not come when the row `latency` was given up"
            );
            ExitCode::from(1)
        }
    }
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()).into())
}

/// Measures one, and writes what it found beside `file`. An exit code if something is wrong with it.
async fn one_of_all(file: &Path, line: &str) -> Result<Option<ExitCode>, Failure> {
    // What an earlier run found must not stand in the table as if it were of this one.
    for of_before in ["json", "html"].map(|extension| file.with_extension(extension)) {
        match fs::remove_file(&of_before) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(format!("{}: {e}", of_before.display()).into());
            }
            _ => {}
        }
    }
    let arguments = ["hutong-bench"].into_iter().chain(line.split(' '));
    match parse(arguments.map(Into::into).collect())?.command {
        Command::Scenario(scenario) => {
            let report = repeat(&scenario).await?;
            print!("{}", report.to_text());
            write(&file.with_extension("json"), &report.to_json().to_string())?;
            write(&file.with_extension("html"), &html::page(&report))?;
            Ok((!report.whole()).then(|| verdict(&report)))
        }
        Command::Compare(options) => {
            let comparison = compare::run(&options).await?;
            print!("{}", comparison.to_text());
            let json = comparison.to_json().to_string();
            write(&file.with_extension("json"), &json)?;
            write(&file.with_extension("html"), &comparison.to_html())?;
            Ok((comparison.missing() > 0).then(|| verdict_of(&comparison)))
        }
        _ => unreachable!("only scenarios are named"),
    }
}

async fn all(options: &All) -> Result<ExitCode, Failure> {
    let shown = options.out.display();
    fs::create_dir_all(&options.out).map_err(|e| format!("{shown}: {e}"))?;
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|o| o == name);
    let plain = names().into_iter().map(|name| (name, name));
    let set: Vec<(&str, &str)> = plain.chain(VARIANTS).collect();
    let known = |only: &str| set.iter().any(|(name, _)| *name == only);
    if let Some(unknown) = options.only.iter().find(|o| !known(o)) {
        let names: Vec<&str> = set.iter().map(|(name, _)| *name).collect();
        return Err(format!("--only {unknown}: there are {}", names.join(", ")).into());
    }
    let mut code = ExitCode::SUCCESS;
    for (name, line) in set.iter().filter(|(name, _)| wanted(name)) {
        match one_of_all(&options.out.join(name), line).await {
            Ok(None) => {}
            Ok(Some(_)) if code == ExitCode::from(2) => {}
            Ok(Some(other)) => code = other,
            // Hours of others would be lost with it.
            Err(error) => {
                eprintln!("hutong-bench: {name} could not be measured, the rest goes on: {error}");
                code = ExitCode::from(2);
            }
        }
    }
    if let Some(page) = &options.into {
        put_table(&options.out, page)?;
    }
    Ok(code)
}

/// One JSON object a line, of each scenario.
async fn smoke() -> Result<ExitCode, Failure> {
    for line in SMOKE {
        let mut arguments: Vec<OsString> = vec!["hutong-bench".into()];
        arguments.extend(line.split(' ').map(Into::into));
        arguments.extend(["--repeats".into(), "1".into()]);
        let Command::Scenario(scenario) = parse(arguments)?.command else {
            unreachable!("only scenarios are named");
        };
        let report = repeat(&scenario).await?;
        check(&report)?;
        println!("{}", report.to_json());
        if !report.whole() {
            return Ok(verdict(&report));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Of a report from `smoke`: what its readers rely on is there.
fn check(report: &Report) -> Result<(), Failure> {
    let (name, json, page) = (report.scenario, report.to_json(), html::page(report));
    if !page.ends_with("</html>\n") {
        return Err(format!("{name}: the page is not whole").into());
    }
    let memory = "<figcaption>Memory of the broker";
    if !page.contains(memory) {
        return Err(format!("{name}: the page has no plot of what was sampled").into());
    }
    let figures = &json["figures"];
    let waited = figures["load_waited_share"].as_f64();
    if !waited.is_some_and(|share| (0.0..=1.0).contains(&share)) {
        return Err(
            format!("{name}: nothing says that the load was not the limit: {figures}").into(),
        );
    }
    for figure in [
        "broker_cores",
        "load_cores",
        "state_flushes",
        "state_merges",
    ] {
        if figures[figure].as_f64().is_none() {
            return Err(format!("{name}: there is no {figure}: {figures}").into());
        }
    }
    // How those are told that take after all: `finish` of the fleet fails.
    let stalled = json["configuration"]["stalled"].as_u64().unwrap_or(0);
    let behind = figures["stalled_records_behind"].as_f64();
    if stalled > 0 && !behind.is_some_and(|records| records > 0.0) {
        return Err(format!("{name}: nothing says that {stalled} subscribers took nothing").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options_of(arguments: Vec<OsString>) -> serde_json::Value {
        match parse(arguments).expect("valid").command {
            Command::Scenario(scenario) => scenario.options(),
            Command::Compare(options) => serde_json::json!(options),
            other => panic!("{other:?}"),
        }
    }

    /// The files are where a reader looks for the defaults, so they must be them, and all of them.
    #[test]
    fn the_files_of_scenarios_say_what_holds_without_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        for name in names() {
            let file = folder.join(name).with_extension("toml");
            let arguments = file::arguments(&file, &Cli::command(), &names()).expect("valid");
            let given: Vec<String> = (arguments.iter().skip(2))
                .map(|a| a.to_string_lossy().into_owned())
                .collect();
            let plain = options_of(vec!["hutong-bench".into(), name.into()]);
            for key in plain.as_object().expect("options").keys() {
                let flag = format!("--{}=", key.replace('_', "-"));
                assert!(given.iter().any(|g| g.starts_with(&flag)), "{name}: {key}");
            }
            assert_eq!(options_of(arguments), plain, "{name}");
        }
    }

    #[test]
    fn a_file_with_a_mistake_is_refused_with_its_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("s.toml");
        let refused = |text: &str| {
            fs::write(&file, text).expect("written");
            file::arguments(&file, &Cli::command(), &names())
                .expect_err("a mistake")
                .to_string()
        };
        let fanout = |text: &str| refused(&format!("scenario = \"fanout\"\n\n{text}\n"));
        for (said, parts) in [
            (
                refused("scenario = \"surge\"\n\nsurge_second = 3\n"),
                &["s.toml:3:", "surge_second\"", "surge_seconds"][..],
            ),
            (
                refused("seconds = 3\n"),
                &["s.toml:1:", "scenario", "single"],
            ),
            (
                refused("\nscenario = 3\n"),
                &["s.toml:2:", "scenario 3", "single"],
            ),
            (
                refused("scenario = \"sing\"\n"),
                &["s.toml:1:", "single, fanout"],
            ),
            // Commands, but nothing that is measured.
            (
                refused("scenario = \"run\"\n"),
                &["s.toml:1:", "\"run\"", "compare"],
            ),
            (
                refused("scenario = \"all\"\n"),
                &["s.toml:1:", "\"all\"", "compare"],
            ),
            (refused("scenario =\n"), &["s.toml:1:"]),
            (
                fanout("rate = 1\nrate = 2"),
                &["s.toml:4:", "duplicate key"],
            ),
            (
                fanout("rate = \"many\""),
                &["s.toml:3:", "rate = \"many\"", "invalid digit", "60000"],
            ),
            (fanout("rate = -1"), &["s.toml:3:", "rate = -1"]),
            (fanout("rate = false"), &["s.toml:3:", "rate = false"]),
            (
                fanout("[a]"),
                &["s.toml:3:", "\"a\" is not an option of fanout", "rate"],
            ),
            (
                refused("scenario = \"compare\"\npeers = [\"jetstream\", \"kafka\"]\n"),
                &[
                    "s.toml:2:",
                    "kafka",
                    "it may be hutong, hutong-plain, hutong-watched, jetstream, redis, postgres",
                ],
            ),
            (
                refused("scenario = \"compare\"\nshort = \"yes\"\n"),
                &["s.toml:2:", "short = \"yes\"", "true or false"],
            ),
        ] {
            for part in parts {
                assert!(said.contains(part), "{part} in {said}");
            }
            assert!(!said.contains("Usage"), "{said}");
        }
    }

    #[test]
    fn options_after_a_file_win() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        for (name, options, key, value) in [
            ("fanout", ["--rate", "7"], "rate", serde_json::json!(7)),
            // Lists would grow otherwise.
            (
                "compare",
                ["--peers=redis", "--rows=single"],
                "peers",
                serde_json::json!(["redis"]),
            ),
            (
                "scale",
                ["--registers", "5"],
                "registers",
                serde_json::json!([5]),
            ),
        ] {
            let file = folder.join(name).with_extension("toml");
            let arguments = file::arguments(&file, &Cli::command(), &names()).expect("valid");
            let joined = file::joined(arguments, &options.map(Into::into));
            assert_eq!(options_of(joined)[key], value, "{name}");
        }
    }
}
