//! A client in another language that shares no code with us: Python, with stubs made from our .proto
//! files. If it works, the wire is what the files say.

mod support;

use std::{path::Path, process::Command};

/// Where `./dev test` keeps the Python packages.
fn python() -> String {
    let venv = std::env::var("HUTONG_TEST_VENV").expect(
        "HUTONG_TEST_VENV names the folder with the Python packages; run the tests with `./dev test`",
    );
    format!("{venv}/bin/python")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_publishes_subscribes_resumes_and_reads_error_details() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = support::start(&dir.path().join("broker")).await;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = manifest.join("tests/python/client.py");
    let protos = manifest.join("../proto");
    let address = broker.grpc_addr().to_string();
    let stubs = dir.path().join("stubs");
    std::fs::create_dir(&stubs).expect("a folder");
    let output = tokio::task::spawn_blocking(move || {
        Command::new(python())
            .arg(script)
            .args([address.as_str()])
            .arg(protos)
            .arg(stubs)
            .output()
            .expect("python runs")
    })
    .await
    .expect("no panic");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.ends_with("all well\n"), "{out}\n{err}");
    broker.shutdown().await;
}

#[test]
fn the_proto_files_pass_buf_lint() {
    let venv = std::env::var("HUTONG_TEST_VENV").expect("run the tests with `./dev test`");
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let output = Command::new(format!("{venv}/bin/buf"))
        .arg("lint")
        .current_dir(protos)
        .output()
        .expect("buf runs");
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{found}");
}
