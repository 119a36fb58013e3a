//! The console in a real browser, while one of 32 platforms does not apply and after it healed: clicked through by
//! mouse and keyboard, in both languages, light and dark, wide and narrow, with the rules of axe-core. Pictures of the
//! screens stay in the target folder.

mod scene;

use hutong_cli::demo::embedded::Embedded;
use scene::{Healthy, PATIENCE, Stalled, line, picture, publish, until};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

const ENTITY: &str = "000102030405060708090a0b0c0d0e0f";
const PLATFORMS: usize = 32;
const FIRST_PAINT_MS_MAX: f64 = 1000.0;
const BYTES_MAX: u64 = 300 << 10;

/// The browser, with what it is to look at.
fn browser(broker: &Embedded, phase: &str, sick: u32, issuer: u32) -> Command {
    let modules = std::env::var("HUTONG_TEST_BROWSER").expect(
        "HUTONG_TEST_BROWSER names the folder with playwright-core and axe-core; run the tests with `./dev test`",
    );
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("console");
    std::fs::create_dir_all(&folder).expect("a folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/console.mjs");
    let mut command = Command::new("node");
    command
        .arg(script)
        .args([&modules, broker.console()])
        .arg(&folder)
        .args([phase, &sick.to_string(), ENTITY, &issuer.to_string()])
        .kill_on_drop(true);
    command
}

/// What the browser found.
async fn browse(broker: &Embedded, phase: &str, sick: u32, issuer: u32) -> Value {
    let mut command = browser(broker, phase, sick, issuer);
    let output = command.output().await.expect("node runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for list in ["problems", "violations", "outside", "overflow"] {
        let all = found[list].as_array().expect("a list");
        let all: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
        assert!(all.is_empty(), "{phase}: {list}:\n{}", all.join("\n"));
    }
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

fn seen<'a>(found: &'a Value, what: &str) -> &'a str {
    found["seen"][what].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_shows_the_fault_first_and_all_clear_after_it_healed() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = scene::broker(PLATFORMS).await;
    let codes = scene::codes(PLATFORMS);
    let (issuer, sick) = (codes[0], codes[20]);
    let others: Vec<u32> = codes.iter().copied().filter(|c| *c != sick).collect();
    let _healthy = Healthy::start(&broker, &others).await;
    let mut stalled = Stalled::start(&broker, sick).await;
    let red = line(ENTITY, r#""health_code":{"colour":"red"}"#);
    let unknown = line(&"0".repeat(32), r#""health_code":{"colour":"red"}"#);
    let bulk = line(&"2".repeat(32), r#""test_result":{"outcome":"negative"}"#);
    publish(&broker, dir.path(), issuer, &[red.clone(), unknown, bulk]).await;
    publish(&broker, dir.path(), codes[5], &[red]).await;
    let oldest = stalled.oldest().await;
    until("it is a warning", PATIENCE, async || {
        let picture = picture(&broker).await;
        match picture["severity"].as_str() {
            Some("critical") => Ok(()),
            _ => Err(picture["findings"].to_string()),
        }
    })
    .await;

    let found = browse(&broker, "fault", sick, issuer).await;
    assert!(
        seen(&found, "banner").contains("1 need attention"),
        "{found}"
    );
    assert!(seen(&found, "title").starts_with("(1) "), "{found}");
    let finding = seen(&found, "finding");
    for part in [
        &sick.to_string(),
        "critical",
        "Has not applied",
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
    assert_eq!(found["seen"]["cells"], PLATFORMS * PLATFORMS);

    stalled.heal();
    until("all is clear", PATIENCE, async || {
        let picture = picture(&broker).await;
        match picture["severity"].as_str() {
            Some("critical" | "warning") => Err(picture["findings"].to_string()),
            _ => Ok(()),
        }
    })
    .await;
    let found = browse(&broker, "healed", sick, issuer).await;
    assert!(
        seen(&found, "banner").contains("All 32 subscriptions"),
        "{found}"
    );

    // A picture of a broker that ended: what was good then says nothing of now.
    let mut open = browser(&broker, "gone", sick, issuer)
        .stdout(Stdio::piped())
        .spawn()
        .expect("node runs");
    let mut lines = BufReader::new(open.stdout.take().expect("piped")).lines();
    let first = lines.next_line().await.expect("a line");
    assert_eq!(first.as_deref(), Some("open"));
    broker.stop().await;
    let found = lines
        .next_line()
        .await
        .expect("a line")
        .expect("what it found");
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert!(seen(&found, "before").contains("All 32"), "{found}");
    assert!(seen(&found, "banner").contains("No line"), "{found}");
    assert_eq!(seen(&found, "alert"), "alert");
    assert_eq!(seen(&found, "filter"), "grayscale(1)");
    assert_eq!(found["seen"]["good"], false, "{found}");
}
