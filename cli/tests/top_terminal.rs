//! `hutong top` in a real terminal: what stands on the screen, what keys do, and that the terminal is given back.

mod scene;

use hutong_cli::demo::embedded::Embedded;
use scene::{Healthy, PATIENCE, Stalled, line, publish, until};
use std::{path::Path, process::Command};

/// A terminal multiplexer with one window, ended when dropped.
struct Terminal {
    socket: String,
}

impl Terminal {
    /// Runs `hutong` with these arguments after a shell, so that what it leaves behind can be seen.
    fn start(dir: &Path, broker: &Embedded, args: &str) -> Terminal {
        let terminal = Terminal {
            socket: dir.join("tmux").to_str().expect("plain").to_owned(),
        };
        let binary = env!("CARGO_BIN_EXE_hutong");
        let line = format!(
            "{binary} {args} --address {}; echo left with $?; cat",
            broker.address()
        );
        terminal.tmux(&["new-session", "-d", "-x", "120", "-y", "30", &line]);
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(["-S", &self.socket, "-f", "/dev/null"])
            .args(args)
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect("tmux; run the tests with `./dev test`");
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    async fn shows(&self, what: &[&str]) -> String {
        until("the screen", PATIENCE, async || {
            let screen = self.screen();
            match what.iter().all(|text| screen.contains(text)) {
                true => Ok(screen),
                false => Err(format!("{what:?} in\n{screen}")),
            }
        })
        .await
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It is gone when its window ended.
        drop(
            Command::new("tmux")
                .args(["-S", &self.socket, "kill-server"])
                .output(),
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worst_stands_on_top_keys_go_down_and_back_and_q_gives_the_terminal_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = scene::broker(4).await;
    let codes = scene::codes(4);
    let (issuer, sick) = (codes[0], codes[2]);
    let _healthy = Healthy::start(&broker, &[codes[1], codes[3]]).await;
    let mut stalled = Stalled::start(&broker, sick).await;
    let red = line(&"1".repeat(32), r#""health_code":{"colour":"red"}"#);
    assert!(
        publish(&broker, dir.path(), issuer, &[red])
            .await
            .status
            .success()
    );
    let oldest = stalled.oldest().await;

    let terminal = Terminal::start(dir.path(), &broker, "top");
    let offset = format!("(offset {})", oldest.offset);
    let screen = terminal
        .shows(&[
            "3 of 3 subscriptions",
            &offset,
            "platforms by lag",
            "q quit",
        ])
        .await;
    let first = screen.lines().nth(4).expect("a row");
    assert!(first.contains(&sick.to_string()), "{screen}");
    for (key, order) in [
        ("r", "platforms by rate"),
        ("f", "platforms by refused"),
        ("l", "platforms by lag"),
        ("c", "platforms by code"),
    ] {
        terminal.press(key);
        terminal.shows(&[order]).await;
    }
    terminal.press("j");
    terminal.press("k");
    terminal.press("p");
    terminal.shows(&["platforms by code"]).await;
    terminal.press("w");
    let issuer_text = issuer.to_string();
    terminal
        .shows(&["worst pairs", "receives", &issuer_text])
        .await;
    terminal.press("Enter");
    terminal
        .shows(&[&format!("{sick}, what it has not applied")])
        .await;
    terminal.press("Tab");
    terminal.shows(&["urgent lane"]).await;
    stalled.heal();
    terminal.shows(&["nothing urgent is outstanding"]).await;
    terminal.press("Escape");
    terminal.shows(&["platforms by code"]).await;
    terminal.press("q");
    let screen = terminal.shows(&["left with 0"]).await;
    assert!(!screen.contains("q quit"), "{screen}");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_is_said_on_the_screen() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = scene::broker(2).await;
    let _healthy = Healthy::start(&broker, &scene::codes(2)).await;
    let terminal = Terminal::start(dir.path(), &broker, "top");
    terminal.shows(&["2 of 2 subscriptions"]).await;
    broker.stop().await;
    terminal.shows(&["cannot reach a broker"]).await;
    terminal.press("q");
    terminal.shows(&["left with 0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_matrix_is_shown_again_and_again_until_it_is_interrupted() {
    let dir = tempfile::tempdir().expect("a folder");
    let broker = scene::broker(3).await;
    let codes = scene::codes(3);
    let mut stalled = Stalled::start(&broker, codes[1]).await;
    let red = line(&"1".repeat(32), r#""health_code":{"colour":"red"}"#);
    assert!(
        publish(&broker, dir.path(), codes[0], &[red])
            .await
            .status
            .success()
    );
    stalled.oldest().await;
    let terminal = Terminal::start(dir.path(), &broker, "lag --matrix --watch --lane urgent");
    let row = codes[1].to_string();
    terminal.shows(&["rows receive, columns issue", &row]).await;
    let cell = |screen: &str| {
        let line = screen.lines().find(|l| l.contains(&row))?;
        let mut cells = line.split_whitespace().skip(1);
        // Of one who issued something; of the others nothing is outstanding.
        let cell = cells.find(|cell| *cell != ".").unwrap_or(".");
        Some(cell.to_owned())
    };
    let first = cell(&terminal.screen());
    until("the age goes on", PATIENCE, async || {
        let now = cell(&terminal.screen());
        match now.is_some() && now != first {
            true => Ok(()),
            false => Err(format!("{first:?} and {now:?}")),
        }
    })
    .await;
    stalled.heal();
    until("it is clear", PATIENCE, async || {
        match cell(&terminal.screen()).as_deref() {
            Some(".") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    terminal.press("C-c");
    broker.stop().await;
}
