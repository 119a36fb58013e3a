//! The console in a real browser, while one of 32 platforms does not apply, after it healed, and in a surge: clicked
//! through by mouse and keyboard, in both languages, light and dark, wide and narrow, with the rules of axe-core.
//! Pictures of the screens are kept, in a folder that it names at its end. And what an open page costs the broker.

mod scene;
mod watch;

use hutong_cli::demo::embedded::Embedded;
use scene::{
    Healthy, PATIENCE, Stalled, drill_report, line, picture, publish,
    surge::{SlowInBulk, Surge},
    until,
};
use serde_json::Value;
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

const ENTITY: &str = "000102030405060708090a0b0c0d0e0f";
const PLATFORMS: usize = 32;
/// What the broker says of a delta of nobody.
const REFUSED: &str = "ENTITY_INVALID";
const FIRST_PAINT_MS_MAX: f64 = 1000.0;
const BYTES_MAX: u64 = 300 << 10;
/// A change in bulk may wait for 30 s before that is worth a look.
const SURGE_PATIENCE: Duration = Duration::from_secs(120);
/// What the platforms publish in the surge, in bulk: 4 x 150 each 200 ms. A machine that has much to do may do half.
const SURGE_BULK_A_SECOND: f64 = 1_500.0;
/// Of a core, more than without a page.
const OPEN_PAGE_SHARE_MAX: f64 = 0.01;
const WINDOW: Duration = Duration::from_secs(10);
/// What a broker does now and then falls into one window or another; what a page costs is in each.
const WINDOWS: usize = 3;
/// The unit of `/proc/PID/stat`, the same on every machine that Linux runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Pictures of nine pages on three screens in two languages, in three phases, and what is printed.
const PICTURES_MIN: usize = 3 * 3 * 2 * 9;
const PICTURES_MAX: usize = 2 * PICTURES_MIN;
const PICTURES_BYTES_MAX: u64 = 128 << 20;

/// Where pictures of the screens are kept: under `HUTONG_TEST_ARTIFACTS`, or else in the target folder.
fn pictures() -> PathBuf {
    let target = || {
        let own = Path::new(env!("CARGO_TARGET_TMPDIR"));
        own.parent().expect("the target folder").to_owned()
    };
    let under = std::env::var_os("HUTONG_TEST_ARTIFACTS").map_or_else(target, PathBuf::from);
    under.join("console-screenshots")
}

/// Those of this run alone; where they are is said at its end, also when it failed.
struct Pictures(PathBuf);

impl Pictures {
    fn fresh() -> Pictures {
        let folder = pictures();
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("{folder:?}: {error}"),
            _ => std::fs::create_dir_all(&folder).expect("a folder"),
        }
        Pictures(folder)
    }

    fn check(&self) {
        let files = std::fs::read_dir(&self.0).expect("a folder");
        let sizes = files.map(|file| file.and_then(|f| f.metadata()).expect("a file").len());
        let sizes: Vec<u64> = sizes.collect();
        let (n, bytes) = (sizes.len(), sizes.iter().sum::<u64>());
        assert!((PICTURES_MIN..=PICTURES_MAX).contains(&n), "{n} pictures");
        assert!(bytes <= PICTURES_BYTES_MAX, "{bytes} bytes of pictures");
    }
}

impl Drop for Pictures {
    fn drop(&mut self) {
        println!("screenshots of the console: {}", self.0.display());
    }
}

/// The browser, with what it is to look at.
fn browser(console: &str, phase: &str, sick: u32, issuer: u32) -> Command {
    let modules = std::env::var("HUTONG_TEST_BROWSER").expect(
        "HUTONG_TEST_BROWSER names the folder with playwright-core and axe-core; run the tests with `./dev test`",
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/console.mjs");
    let mut command = Command::new("node");
    command
        .arg(script)
        .args([&modules, console])
        .arg(pictures())
        .args([phase, &sick.to_string(), ENTITY, &issuer.to_string()])
        .kill_on_drop(true);
    command
}

/// What the browser found.
async fn browse(broker: &Embedded, phase: &str, sick: u32, issuer: u32) -> Value {
    let mut command = browser(broker.console(), phase, sick, issuer);
    let output = command.output().await.expect("node runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut all = String::new();
    for list in ["problems", "violations", "outside", "overflow", "hidden"] {
        for one in found[list].as_array().expect("a list") {
            all += &format!("{list}: {one}\n");
        }
    }
    assert!(all.is_empty(), "{phase}:\n{all}");
    let paint = found["first_paint_ms"].as_f64().expect("a time");
    assert!(
        paint < FIRST_PAINT_MS_MAX,
        "{paint} ms until the first paint"
    );
    assert!(
        found["bytes"].as_u64().expect("a number") < BYTES_MAX,
        "{found}"
    );
    found
}

/// A page that is open, and what the browser says from then on.
async fn open(mut browser: Command) -> (Child, Lines<BufReader<ChildStdout>>) {
    let browser = browser.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut browser = browser.spawn().expect("node runs");
    let mut lines = BufReader::new(browser.stdout.take().expect("piped")).lines();
    let first = lines.next_line().await.expect("a line");
    assert_eq!(first.as_deref(), Some("open"));
    (browser, lines)
}

/// What it found, at its end.
async fn at_last(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = lines.next_line().await.expect("a line");
    let found: Value = serde_json::from_str(&line.expect("what it found")).expect("JSON");
    let problems = found["problems"].as_array().map(Vec::len);
    assert_eq!(problems, Some(0), "{found}");
    found
}

fn seen<'a>(found: &'a Value, what: &str) -> &'a str {
    found["seen"][what].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_shows_what_is_worst_first_and_all_clear_after_it_healed() {
    let pictures = Pictures::fresh();
    let broker = scene::broker(PLATFORMS).await;
    let codes = scene::codes(PLATFORMS);
    let (issuer, sick, slow) = (codes[0], codes[20], codes[30]);
    let others: Vec<u32> = codes.iter().copied().filter(|c| *c != sick).collect();
    let report = drill_report(broker.drills_dir().to_owned()).await;
    {
        let others: Vec<u32> = others.iter().copied().filter(|c| *c != slow).collect();
        let _healthy = Healthy::start(&broker, &others).await;
        let _slow = SlowInBulk::start(&broker, slow).await;
        let mut stalled = Stalled::start(&broker, sick).await;
        a_fault(&broker, &mut stalled, [issuer, codes[5], sick], &report).await;
        healed(&broker, &stalled, [issuer, sick]).await;
        a_surge(&broker, &codes[1..5], [issuer, slow]).await;
    }
    let _healthy = Healthy::start(&broker, &codes).await;
    all_clear(&broker).await;
    gone(broker, [issuer, sick]).await;
    pictures.check();
}

async fn a_fault(
    broker: &Embedded,
    stalled: &mut Stalled,
    [issuer, other, sick]: [u32; 3],
    report: &str,
) {
    let dir = tempfile::tempdir().expect("a folder");
    let red = line(ENTITY, r#""health_code":{"colour":"red"}"#);
    let unknown = line(&"0".repeat(32), r#""health_code":{"colour":"red"}"#);
    let bulk = line(&"2".repeat(32), r#""test_result":{"outcome":"negative"}"#);
    publish(broker, dir.path(), issuer, &[red.clone(), unknown, bulk]).await;
    publish(broker, dir.path(), other, &[red]).await;
    scene::report_letters(broker, issuer).await;
    let oldest = stalled.oldest().await;
    until("it is critical", PATIENCE, async || {
        let picture = picture(broker).await;
        match picture["severity"].as_str() {
            Some("critical") => Ok(()),
            _ => Err(picture["findings"].to_string()),
        }
    })
    .await;
    let found = browse(broker, "fault", sick, issuer).await;
    assert!(
        seen(&found, "banner").contains("Needing attention: 1"),
        "{found}"
    );
    assert!(seen(&found, "title").starts_with("(1) "), "{found}");
    let finding = seen(&found, "finding");
    let (records, since) = not_applied(broker, sick).await;
    let picture = picture(broker).await;
    let first = &picture["findings"][0];
    assert_eq!(
        (first["records"].as_u64(), first["since_us"].as_u64()),
        (Some(records), Some(since)),
        "{first}"
    );
    for part in [
        &sick.to_string(),
        "critical",
        &format!("Has not applied {records} urgent records"),
        &format!("since {}", as_shown(since)),
        "does not apply them",
        "What to do:",
        &oldest.offset.to_string(),
    ] {
        assert!(finding.contains(part), "{part}: {finding}");
    }
    assert!(seen(&found, "record").contains(ENTITY), "{found}");
    assert!(
        seen(&found, "trace").contains("Applied by 30 of 31"),
        "{found}"
    );
    assert!(seen(&found, "entity").contains("R1 v1"), "{found}");
    for part in ["Anhui", REFUSED] {
        assert!(seen(&found, "refused").contains(part), "{part}: {found}");
    }
    for part in [
        "Anhui",
        "registry",
        "degraded",
        "1,312",
        "VALUE_UNMAPPED 1,300, TIME_IN_FUTURE 12",
    ] {
        assert!(seen(&found, "letters").contains(part), "{part}: {found}");
    }
    assert_eq!(found["seen"]["cells"], PLATFORMS * PLATFORMS);
    assert!(seen(&found, "reports").contains(report), "{found}");
    for part in ["The broker is killed under load", "负载下强制终止互通"] {
        assert!(seen(&found, "report").contains(part), "{part}: {found}");
    }
}

/// What `hutong lag --matrix` says of a receiver: urgent records that it has not applied, and since when.
async fn not_applied(broker: &Embedded, receiver: u32) -> (u64, u64) {
    let matrix = scene::json(broker, &["lag", "--matrix"]).await;
    let pairs = matrix.as_array().expect("a list").iter();
    let of_it = pairs.filter(|pair| pair["receiver"] == receiver);
    let lag = of_it.filter_map(|pair| {
        let lag = &pair["urgent"];
        Some((lag["records"].as_u64()?, lag["oldest_at_us"].as_u64()?))
    });
    let behind = lag.filter(|(records, _)| *records > 0);
    let (records, since): (Vec<_>, Vec<_>) = behind.unzip();
    let oldest = since.into_iter().min().expect("it is behind");
    (records.into_iter().sum(), oldest)
}

/// A time as the console shows it, by another program.
fn as_shown(us: u64) -> String {
    let at = format!("@{}.{:06}", us / 1_000_000, us % 1_000_000);
    let date = std::process::Command::new("date")
        .args(["-u", "-d", &at, "+%F %T.%3N UTC"])
        .output()
        .expect("date runs");
    assert!(date.status.success(), "{at}");
    String::from_utf8_lossy(&date.stdout).trim().to_owned()
}

async fn all_clear(broker: &Embedded) {
    until("all is clear", PATIENCE, async || {
        let picture = picture(broker).await;
        match picture["severity"].as_str() {
            Some("critical" | "warning") => Err(picture["findings"].to_string()),
            _ => Ok(()),
        }
    })
    .await;
}

async fn healed(broker: &Embedded, stalled: &Stalled, [issuer, sick]: [u32; 2]) {
    stalled.heal();
    all_clear(broker).await;
    let found = browse(broker, "healed", sick, issuer).await;
    assert!(
        seen(&found, "banner").contains("All 32 subscriptions"),
        "{found}"
    );
}

/// Bulk is behind at one platform, and nothing urgent is anywhere.
async fn a_surge(broker: &Embedded, issuers: &[u32], [issuer, slow]: [u32; 2]) {
    let _surge = Surge::start(broker, issuers).await;
    let surging = until("bulk is behind", SURGE_PATIENCE, async || {
        let picture = picture(broker).await;
        match picture["severity"].as_str() {
            Some("warning") => Ok(picture),
            _ => Err(picture["subscriptions"].to_string()),
        }
    })
    .await;
    let rate = surging["rates"]["accepted"][1].as_f64().expect("a rate");
    assert!(rate > SURGE_BULK_A_SECOND, "{rate} a second");
    let urgent = surging["subscriptions"].as_array().expect("a list").iter();
    let urgent = urgent.filter_map(|s| s["lag"][0]["seconds"].as_f64());
    let urgent = urgent.fold(0.0, f64::max);
    assert!(urgent < 3.0, "what is urgent waits {urgent} s");
    let found = browse(broker, "surge", slow, issuer).await;
    assert!(
        seen(&found, "banner").contains("Needing attention: 1"),
        "{found}"
    );
    let finding = seen(&found, "finding");
    for part in [
        &slow.to_string(),
        "warning",
        "bulk records",
        "more slowly than changes come",
        "If there is a surge, wait",
        "Of what is urgent",
    ] {
        assert!(finding.contains(part), "{part}: {finding}");
    }
    // The page of pairs opens with the lane in which something is wrong.
    assert!(seen(&found, "lane").contains("bulk"), "{found}");
}

/// A picture of a broker that ended: what was good then says nothing of now.
async fn gone(broker: Embedded, [issuer, sick]: [u32; 2]) {
    let browser = browser(broker.console(), "gone", sick, issuer);
    let (_browser, mut lines) = open(browser).await;
    broker.stop().await;
    let found = at_last(&mut lines).await;
    assert!(seen(&found, "before").contains("All 32"), "{found}");
    assert!(seen(&found, "banner").contains("No line"), "{found}");
    assert_eq!(seen(&found, "alert"), "alert");
    assert_eq!(seen(&found, "filter"), "grayscale(1)");
    assert_eq!(found["seen"]["good"], false, "{found}");
}

/// Processor time that a process has used so far, in seconds. The second field may hold spaces, so what is wanted is
/// counted from its end.
fn processor_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // 14 and 15 of proc(5): utime and stime.
    let ticks = [14 - 3, 15 - 3].map(|i| fields[i].parse::<f64>().expect("a number"));
    ticks.iter().sum::<f64>() / TICKS_PER_SECOND
}

/// Of a core, during a window: a machine that has much else to do makes it longer, and not dearer.
async fn core_share(process: u32) -> f64 {
    let (used, begun) = (processor_seconds(process), Instant::now());
    tokio::time::sleep(WINDOW).await;
    (processor_seconds(process) - used) / begun.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_page_costs_the_broker_less_than_a_hundredth_of_a_core_when_nothing_changes() {
    let codes = scene::codes(PLATFORMS);
    let dir = tempfile::tempdir().expect("a folder");
    let setup = watch::Setup {
        platforms: codes.clone(),
        ..Default::default()
    };
    let broker = watch::Broker::start_with(dir.path(), setup).await;
    let mut sinks = Vec::new();
    for code in &codes {
        sinks.push(watch::clients::Sink::start(&broker, *code).await);
    }
    let console = format!("http://{}/console/", broker.http);
    let mut costs = Vec::new();
    while costs.len() < WINDOWS {
        let without = core_share(broker.id()).await;
        let (mut browser, mut lines) = open(browser(&console, "idle", codes[0], codes[1])).await;
        let with = core_share(broker.id()).await;
        // It looked all the time.
        drop(browser.stdin.take());
        let found = at_last(&mut lines).await;
        assert_eq!(found["seen"]["up"], true, "{found}");
        assert_ne!(seen(&found, "before"), seen(&found, "after"), "{found}");
        costs.push(with - without);
        if with - without < OPEN_PAGE_SHARE_MAX {
            return;
        }
    }
    panic!("of a core, more than without a page: {costs:?}");
}
