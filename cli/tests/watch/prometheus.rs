//! A real Prometheus, with rules that are short enough for a test.

use super::{Program, free_address, get, until};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

pub struct Prometheus {
    pub address: SocketAddr,
    _program: Program,
}

/// As `/api/v1/alerts` has it.
#[derive(Debug)]
pub struct Alert {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub state: String,
}

impl Alert {
    pub fn name(&self) -> &str {
        &self.labels["alertname"]
    }
}

/// `prometheus` or `promtool`: in `HUTONG_TEST_PROMETHEUS`, or on the path.
pub fn program(name: &str) -> Command {
    let folder = std::env::var_os("HUTONG_TEST_PROMETHEUS").map(PathBuf::from);
    let program = folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
    let found = Command::new(&program).arg("--version").output();
    assert!(
        found.is_ok_and(|output| output.status.success()),
        "{} is not there: install the package prometheus, or set HUTONG_TEST_PROMETHEUS (`./dev test` does both)",
        program.display()
    );
    Command::new(program)
}

impl Prometheus {
    /// `rules` are files in `dir`; `targets` are jobs and where they listen.
    pub async fn start(dir: &Path, rules: &[&str], targets: &[(&str, SocketAddr)]) -> Prometheus {
        let mut config = "global:\n  scrape_interval: 500ms\n  evaluation_interval: 500ms\n  \
                          external_labels:\n    runbooks: https://runbooks.example\nrule_files:\n"
            .to_owned();
        for rules in rules {
            config += &format!("  - {rules}\n");
        }
        config += "scrape_configs:\n";
        for (job, address) in targets {
            config += &format!(
                "  - job_name: {job}\n    static_configs:\n      - targets: [\"{address}\"]\n"
            );
        }
        let file = dir.join("prometheus.yml");
        std::fs::write(&file, config).expect("written");
        let address = free_address();
        let mut command = program("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("tsdb").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn");
        let program = Program::start(dir, "prometheus", &mut command);
        until("Prometheus", async || get(address, "/-/ready").map(drop)).await;
        Prometheus {
            address,
            _program: program,
        }
    }

    fn api(&self, path: &str) -> Result<Value, String> {
        let body = get(self.address, path)?;
        let json: Value = serde_json::from_str(&body).map_err(|e| format!("{e}: {body}"))?;
        match json["status"] == "success" {
            true => Ok(json["data"].clone()),
            false => Err(body),
        }
    }

    /// What an expression says now.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let data = self.api(&format!("/api/v1/query?query={}", encoded(expression)))?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    pub fn alerts(&self) -> Result<Vec<Alert>, String> {
        let data = self.api("/api/v1/alerts")?;
        let map = |value: &Value| {
            let pairs = value.as_object().into_iter().flatten();
            pairs
                .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
                .collect()
        };
        let alerts = data["alerts"].as_array().into_iter().flatten();
        Ok(alerts
            .map(|alert| Alert {
                labels: map(&alert["labels"]),
                annotations: map(&alert["annotations"]),
                state: alert["state"].as_str().unwrap_or_default().to_owned(),
            })
            .collect())
    }

    /// Those that fire, without the one that always does.
    pub fn firing(&self) -> Result<Vec<Alert>, String> {
        let alerts = self.alerts()?.into_iter();
        let firing = alerts.filter(|a| a.state == "firing" && a.name() != "Watchdog");
        Ok(firing.collect())
    }

    /// Waits until an alert fires with these labels among its own, and returns it.
    pub async fn fires(&self, name: &str, labels: &[(&str, &str)]) -> Alert {
        let mut found = None;
        until(&format!("{name} with {labels:?} fires"), async || {
            let alerts = self.alerts()?;
            let is = |alert: &Alert| {
                let has =
                    |(k, v): &(&str, &str)| alert.labels.get(*k).map(String::as_str) == Some(*v);
                alert.name() == name && alert.state == "firing" && labels.iter().all(has)
            };
            found = alerts.into_iter().find(is);
            found
                .as_ref()
                .map(drop)
                .ok_or_else(|| "it does not fire".to_owned())
        })
        .await;
        found.expect("it was found")
    }

    /// Waits until none of these fires any more.
    pub async fn clears(&self, names: &[&str]) {
        until(&format!("{names:?} clear"), async || {
            let firing = self.firing()?;
            let still: Vec<_> = firing
                .iter()
                .filter(|a| names.contains(&a.name()))
                .collect();
            match still.is_empty() {
                true => Ok(()),
                false => Err(format!("{still:?}")),
            }
        })
        .await;
    }

    /// Waits until nothing fires.
    pub async fn is_quiet(&self) {
        until("everything is quiet", async || match self.firing()? {
            firing if firing.is_empty() => Ok(()),
            firing => Err(format!("{firing:?}")),
        })
        .await;
    }
}

fn encoded(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric();
    let byte = |b: u8| match plain(&b) {
        true => char::from(b).to_string(),
        false => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}
