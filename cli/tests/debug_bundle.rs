//! What is in the archive that somebody far away is sent, and what is not.

mod scene;

use hutong_broker::config::Config;
use scene::{Healthy, hutong, line, publish};
use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_has_what_is_needed_and_no_secret() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = scene::broker(3).await;
    let codes = scene::codes(3);
    let _healthy = Healthy::start(&broker, &codes[1..]).await;
    let red = line(&"1".repeat(32), r#""health_code":{"colour":"red"}"#);
    assert!(
        publish(&broker, dir.path(), codes[0], &[red])
            .await
            .status
            .success()
    );
    let config = dir.path().join("connect.toml");
    std::fs::write(
        &config,
        "[source]\nurl = \"postgres://app:hunter2@db/x\"\ntype = \"postgres-outbox\"\n",
    )
    .expect("written");
    let archive = dir.path().join("a.tar");
    let url = broker.console();
    let http = url
        .trim_start_matches("http://")
        .split('/')
        .next()
        .expect("an address");
    let path = |p: &std::path::Path| p.to_str().expect("plain").to_owned();
    let args = [
        "debug",
        "bundle",
        "--into",
        &path(&archive),
        "--http",
        http,
        "--config",
        &path(&config),
    ];
    let made = hutong(&broker, "operator/test", &args).await;
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    assert!(
        !String::from_utf8_lossy(&made.stdout).contains("could not be had"),
        "{made:?}"
    );
    let again = hutong(&broker, "operator/test", &args).await;
    assert_eq!(
        again.status.code(),
        Some(2),
        "it does not write over something: {again:?}"
    );

    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&archive).arg("-C").arg(dir.path());
    assert!(tar.status().expect("tar").success());
    let read = |name: &str| {
        let file = dir.path().join("hutong-debug").join(name);
        std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    assert!(read("metrics.txt").contains("hutong_build_info"));
    assert!(read("status.json").contains("next_offset"));
    assert!(read("partitions.json").contains("\"urgent\""));
    assert_eq!(read("connectors.json").trim(), "[]");
    assert!(read("lag.json").contains(scene::SUBSCRIPTION));
    assert!(read("picture.json").contains("\"matrix\""));
    assert!(read("readyz.txt").contains("ok"));
    assert!(read("config-0.toml").contains("postgres-outbox"));
    assert!(!read("about.json").contains("no configuration of a connector"));
    // What runs, with its defaults, and as a file that a broker would take.
    let running = Config::parse("broker.toml", &read("broker.toml")).expect("a configuration");
    assert_eq!(running.platforms.len(), 3);
    assert_eq!(running.platforms[0].issuer.code(), codes[0]);
    for name in ["config-0.toml", "about.json", "errors.json", "status.json"] {
        assert!(!read(name).contains("hunter2"), "{name}");
    }
    // And nobody: neither in text nor as it is in the log.
    for file in std::fs::read_dir(dir.path().join("hutong-debug")).expect("a folder") {
        let file = file.expect("an entry").path();
        let bytes = std::fs::read(&file).expect("it is there");
        let has = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        assert!(!has(&[b'1'; 32]) && !has(&[0x11; 16]), "{}", file.display());
    }
    let bare = dir.path().join("c.tar");
    let args = ["debug", "bundle", "--into", &path(&bare), "--http", http];
    let made = hutong(&broker, "operator/test", &args).await;
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(said.contains("no configuration of a connector"), "{said}");
    let mut tar = Command::new("tar");
    let about = tar.arg("-xOf").arg(&bare).arg("hutong-debug/about.json");
    let about = String::from_utf8(about.output().expect("tar").stdout).expect("text");
    assert!(about.contains("no configuration of a connector"), "{about}");
    // Who may not look is told so: a refusal is not taken for what was asked for.
    let refused = dir.path().join("d.tar");
    let args = ["debug", "bundle", "--into", &path(&refused), "--http", http];
    let made = hutong(&broker, "platform/999999", &args).await;
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(said.contains("3 files"), "{said}");
    let mut tar = Command::new("tar");
    let about = tar.arg("-xOf").arg(&refused).arg("hutong-debug/about.json");
    let about = String::from_utf8(about.output().expect("tar").stdout).expect("text");
    assert!(about.contains("picture.json"), "{about}");
    assert!(about.contains("HTTP 401"), "{about}");
    broker.stop().await;

    let gone = dir.path().join("b.tar");
    let args = [
        "debug",
        "bundle",
        "--into",
        &path(&gone),
        "--http",
        "127.0.0.1:1",
        "--address",
        "http://127.0.0.1:1",
    ];
    let made = tokio::process::Command::new(env!("CARGO_BIN_EXE_hutong"))
        .args(args)
        .output();
    let made = made.await.expect("it starts");
    assert_eq!(made.status.code(), Some(1), "{made:?}");
}
