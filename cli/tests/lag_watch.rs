//! `hutong lag --watch` while a broker goes away and comes again.

mod watch;

use std::process::Stdio;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};
use watch::{Broker, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_a_broker_that_is_started_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut broker = Broker::start(dir.path()).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_hutong"));
    command.args(["lag", "--watch", "--output", "json"]);
    command.args(["--identity", "operator/test", "--address"]);
    command.arg(broker.address());
    let mut lag = command
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary starts");
    let mut lines = BufReader::new(lag.stdout.take().expect("piped")).lines();
    let mut until_said = async |what: &str| {
        let said = async {
            loop {
                let line = lines.next_line().await.expect("a line");
                let line = line.expect("it goes on");
                if line.contains(what) {
                    return;
                }
            }
        };
        timeout(PATIENCE, said).await.expect(what);
    };
    until_said("[]").await;
    broker.kill();
    until_said("asking again").await;
    broker.start_again().await;
    until_said("[]").await;
}
