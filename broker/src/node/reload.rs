//! What can be changed while the broker runs: how long the log is kept, and which certificates are watched.
//! Everything else needs a restart, and a file that says something else there is refused as a whole: half of a
//! change is worse than none.

use crate::{
    clock::Clock,
    config::{Config, Retention, Telemetry},
    metrics::Reload,
};
use parking_lot::Mutex;
use std::path::PathBuf;
use tokio::sync::watch;

/// The configuration that runs, and whether it is the one in the file.
pub struct Reloads {
    running: Mutex<Config>,
    retention: watch::Sender<Retention>,
    last: Mutex<Reload>,
    clock: Clock,
}

impl std::fmt::Debug for Reloads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloads").finish_non_exhaustive()
    }
}

impl Reloads {
    pub fn new(config: &Config, clock: &Clock) -> Reloads {
        let at = clock();
        Reloads {
            running: Mutex::new(config.clone()),
            retention: watch::Sender::new(config.retention.clone()),
            last: Mutex::new(Reload { ok: true, at }),
            clock: clock.clone(),
        }
    }

    pub fn retention(&self) -> watch::Receiver<Retention> {
        self.retention.subscribe()
    }

    pub fn certificates(&self) -> Vec<PathBuf> {
        self.running.lock().telemetry.certificates.clone()
    }

    pub fn last(&self) -> Reload {
        *self.last.lock()
    }

    /// Takes over what the file says now, or says why not; then everything stays as it is.
    pub fn take(&self, read: Result<Config, String>) -> Result<(), String> {
        let taken = read.and_then(|new| self.take_valid(new));
        let mut last = self.last.lock();
        last.ok = taken.is_ok();
        if last.ok {
            last.at = (self.clock)();
        }
        taken
    }

    fn take_valid(&self, new: Config) -> Result<(), String> {
        let mut running = self.running.lock();
        let fixed = changed(&running, &new);
        if !fixed.is_empty() {
            return Err(format!(
                "{} cannot change while the broker runs; restart it, or set back what the file said",
                fixed.join(", ")
            ));
        }
        self.retention.send_replace(new.retention.clone());
        *running = new;
        Ok(())
    }
}

/// Parts of the file that differ and need a restart.
fn changed(running: &Config, new: &Config) -> Vec<&'static str> {
    let Config {
        identity,
        listen_grpc,
        listen_http,
        data_dir,
        platforms,
        retention: _,
        memory,
        limits,
        overload,
        drain_timeout,
        group_bytes,
        telemetry:
            Telemetry {
                format,
                filter,
                certificates: _,
                otlp,
                slow,
            },
    } = running;
    let all = [
        ("`identity`", *identity != new.identity),
        ("`listen.grpc`", *listen_grpc != new.listen_grpc),
        ("`listen.http`", *listen_http != new.listen_http),
        ("`data.dir`", *data_dir != new.data_dir),
        ("`platforms`", *platforms != new.platforms),
        ("`memory`", *memory != new.memory),
        ("`limits`", *limits != new.limits),
        ("`overload`", *overload != new.overload),
        ("`drain.timeout`", *drain_timeout != new.drain_timeout),
        ("`log.group_bytes`", *group_bytes != new.group_bytes),
        ("`telemetry.format`", *format != new.telemetry.format),
        ("`telemetry.filter`", *filter != new.telemetry.filter),
        ("`telemetry.otlp`", *otlp != new.telemetry.otlp),
        ("`telemetry.slow`", *slow != new.telemetry.slow),
    ];
    let changed = all.into_iter().filter(|(_, changed)| *changed);
    changed.map(|(part, _)| part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::{path::Path, time::Duration};

    #[test]
    fn what_may_change_is_taken_over_and_the_rest_is_refused_as_a_whole() {
        let config = Config::for_tests(Path::new("d"), &[(340_000, "Anhui")]);
        let reloads = Reloads::new(&config, &clock::system());
        let retention = reloads.retention();
        let mut shorter = config.clone();
        shorter.retention.age = Duration::from_secs(3600);
        reloads.take(Ok(shorter.clone())).expect("taken");
        assert_eq!(retention.borrow().age, Duration::from_secs(3600));
        assert!(reloads.last().ok);

        let mut both = config;
        both.group_bytes += 1;
        both.data_dir = "elsewhere".into();
        let why = reloads.take(Ok(both)).expect_err("refused");
        assert!(why.contains("`data.dir`, `log.group_bytes`"), "{why}");
        assert_eq!(retention.borrow().age, Duration::from_secs(3600));
        let at = reloads.last().at;
        assert!(!reloads.last().ok);
        reloads
            .take(Err("no file".to_owned()))
            .expect_err("refused");
        assert_eq!(reloads.last().at, at, "of the last that was taken over");
        reloads.take(Ok(shorter)).expect("taken");
        assert!(reloads.last().ok);
    }
}
