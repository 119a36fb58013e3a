//! The connectors of the demo: each a runner of `hutong-connect`, with its mapping, its key, its checkpoint
//! and its dead letters, as a task of this process instead of a process of its own.

use super::{embedded::Embedded, outbox::MAPPING, platform::Platform};
use crate::errors::CliError;
use hutong_connectors::{
    checkpoint::StateFolder,
    client::{Endpoint, Identity},
    config::SubscriptionSettings,
    dlq::DeadLetters,
    mapping::{Mapper, MappingSettings},
    pseudonym::{Algorithm, PseudonymSettings, Pseudonymiser},
    runner::{
        BrokerSource, BrokerTarget, Role, SinkRunner, SourceRunner, SourceState, Trouble,
        keep_reporting,
    },
    sink::Sink,
    source::Source,
    state::{Board, Counts, State},
};
use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// The name of every platform's subscription.
const SUBSCRIPTION: &str = "demo";
const DEAD_LETTERS_BYTES_MAX: u64 = 64 << 20;
/// Of people who do not exist. Written to a file as a real one would be, and the same in every run.
const KEY: &str = "6875746f6e672064656d6f3a206b6579656420666f72206e6f626f64792e2e2e";
/// All of the demo's connectors together; on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);
/// What is under way may end within this.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Starts connectors, and ends them.
#[derive(Debug)]
pub struct Connectors {
    address: String,
    state_dir: PathBuf,
    pseudonyms: Pseudonymiser,
    stop: CancellationToken,
    tasks: JoinSet<Result<(), CliError>>,
}

/// A connector that runs.
#[derive(Debug)]
pub struct Connector {
    platform: Arc<Platform>,
    folder: StateFolder,
    board: Board,
}

impl Connectors {
    pub fn new(broker: &Embedded) -> Result<Connectors, CliError> {
        let settings = PseudonymSettings {
            algorithm: Algorithm::HmacSm3,
            key_file: broker.folder().join("pseudonym.key"),
            epoch: 1,
        };
        write_key(&settings.key_file)?;
        let (pseudonyms, _) = settings
            .load()
            .map_err(|e| CliError::Broken(e.to_string()))?;
        Ok(Connectors {
            address: broker.address().to_owned(),
            state_dir: broker.folder().join("state"),
            pseudonyms,
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        })
    }

    pub fn pseudonyms(&self) -> &Pseudonymiser {
        &self.pseudonyms
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Runs a source connector of a platform: `name` tells it from the platform's other ones.
    pub fn source(
        &mut self,
        platform: &Arc<Platform>,
        name: &str,
        source: impl Source + 'static,
        mapping: MappingSettings,
    ) -> Result<Connector, CliError> {
        let connector = self.connector(platform, name);
        let wrong = |trouble: Trouble| broken(platform, name, &trouble);
        let state = SourceState::open(&connector.folder, source.name(), DEAD_LETTERS_BYTES_MAX)
            .map_err(wrong)?;
        let (address, producer) = (self.address.clone(), name.to_owned());
        let target =
            BrokerTarget::one_stream(address, platform.issuer, producer, &connector.folder);
        let runner = SourceRunner::new(
            source,
            target,
            Mapper::new(mapping, Some(self.pseudonyms.clone())),
            state,
            connector.board.clone(),
            self.stop.clone(),
        )
        // Each of these has one lane, and there are many in one process.
        .read_ahead(0);
        self.spawn(&connector, name, Role::Source, runner.run());
        Ok(connector)
    }

    /// Runs the sink connector of a platform.
    pub fn sink(&mut self, platform: &Arc<Platform>, sink: impl Sink + 'static) -> Connector {
        let connector = self.connector(platform, SUBSCRIPTION);
        let subscription = SubscriptionSettings {
            name: SUBSCRIPTION.to_owned(),
            kinds: Vec::new(),
            issuers: Vec::new(),
            lanes: Vec::new(),
            include_own: false,
        };
        let source = BrokerSource::new(self.address.clone(), platform.issuer, subscription);
        let (board, stop) = (connector.board.clone(), self.stop.clone());
        let runner = SinkRunner::new(sink, source, board, stop);
        self.spawn(&connector, SUBSCRIPTION, Role::Sink, runner.run());
        connector
    }

    fn connector(&self, platform: &Arc<Platform>, name: &str) -> Connector {
        let of_platform = self.state_dir.join(platform.place.code.to_string());
        Connector {
            platform: Arc::clone(platform),
            folder: StateFolder::new(&of_platform, name),
            // As it reports itself: a name.
            board: Board::new(&format!("{}.{name}", platform.place.code)),
        }
    }

    fn spawn(
        &mut self,
        connector: &Connector,
        name: &str,
        role: Role,
        run: impl Future<Output = Result<(), Trouble>> + Send + 'static,
    ) {
        let (platform, name) = (Arc::clone(&connector.platform), name.to_owned());
        let broker = Endpoint::new(&self.address, Identity::Platform(platform.issuer));
        let reporting = keep_reporting(connector.board.clone(), broker, role, self.stop.clone());
        self.tasks.spawn(async move {
            // What is still to be reported when the demo is over nobody looks at.
            tokio::select! {
                ended = run => ended.map_err(|trouble| broken(&platform, &name, &trouble)),
                // Whether anybody hears of it makes no difference to what it does.
                never = async { drop(reporting.await); std::future::pending().await } => never,
            }
        });
    }

    /// The error of the first connector that ends; one that ends at all before the demo does is one.
    pub async fn first_failure(&mut self) -> CliError {
        match self.tasks.join_next().await {
            Some(ended) => failure(ended),
            None => std::future::pending().await,
        }
    }

    /// Ends all connectors: what is on its way may arrive, and nothing is written afterwards.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_MAX, ended).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}

impl Connector {
    /// Waits until it is connected and has begun.
    pub async fn has_begun(&self) -> Result<(), CliError> {
        let mut state = self.board.watch();
        let begun = state.wait_for(|s| matches!(s, State::Running | State::Snapshotting));
        match tokio::time::timeout(START_MAX, begun).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                let status = self.board.status();
                Err(CliError::Broken(format!(
                    "the connector {} has not begun after {} s: {} {}",
                    status.connector,
                    START_MAX.as_secs(),
                    status.state,
                    status.reason
                )))
            }
        }
    }

    pub fn platform(&self) -> &Arc<Platform> {
        &self.platform
    }

    pub fn counts(&self) -> Counts {
        self.board.status().counts
    }

    /// What its checkpoint on disk says is complete.
    pub fn complete(&self) -> Option<String> {
        self.board.status().barrier
    }

    /// The first of its dead letters, in words.
    pub fn first_dead_letter(&self) -> Option<String> {
        let letters = DeadLetters::open(&self.folder, DEAD_LETTERS_BYTES_MAX).ok()?;
        let (_, letter) = letters.contents().ok()?.letters.pop_first()?;
        Some(format!(
            "{}: {} at {}: {}",
            letter.place, letter.reason, letter.field, letter.message
        ))
    }
}

/// The mapping of a platform's outboxes.
pub fn outbox_mapping(platform: &Platform) -> Result<MappingSettings, CliError> {
    let text = format!("{}{MAPPING}", provenance(platform, ""));
    MappingSettings::parse("demo.toml", &text).map_err(wrong_config)
}

/// Who decides at a platform; `more` is what all its rows have in common.
pub fn provenance(platform: &Platform, more: &str) -> String {
    format!(
        "[provenance]\nauthority = \"{}卫生健康委员会\"\nrule_version = 1\n{more}\n",
        platform.place.province
    )
}

pub fn wrong_config(errors: impl std::fmt::Display) -> CliError {
    CliError::Broken(format!("the demo's own configuration is wrong: {errors}"))
}

fn write_key(path: &Path) -> Result<(), CliError> {
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(KEY.as_bytes()))
        .map_err(|source| CliError::File {
            doing: "writing",
            path: path.to_owned(),
            source,
        })
}

fn failure(ended: Result<Result<(), CliError>, JoinError>) -> CliError {
    match ended {
        Ok(Err(e)) => e,
        Ok(Ok(())) => CliError::Broken("a connector ended before the demo did".to_owned()),
        Err(e) => CliError::Broken(format!("a connector died: {e}")),
    }
}

fn broken(platform: &Platform, name: &str, trouble: &Trouble) -> CliError {
    CliError::Broken(format!(
        "{} ({}), connector {name}: {trouble}",
        platform.place.name, platform.place.code
    ))
}
