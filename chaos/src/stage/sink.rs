//! A PostgreSQL of its own, kept equal by `hutong-connect`, both to be killed at will.

use crate::{
    clients::OBSERVER,
    drill::Clients,
    error::ChaosError,
    proxy::Line,
    stage::{
        Stage,
        machine::Machine,
        process::{Process, Spec},
        shell::{run, text},
    },
};
use hutong_connectors::testing::PostgresServer;
use std::sync::{Arc, Mutex, PoisonError};

const NAME: &str = "sink";

#[derive(Debug)]
pub struct Sink {
    pub connector: Process,
    pub line: Line,
    pub url: String,
    server: Arc<Mutex<PostgresServer>>,
}

impl Sink {
    pub async fn build(stage: &Stage, machine: &Machine) -> Result<Sink, ChaosError> {
        // It panics when PostgreSQL does not start, and says why.
        let server = tokio::task::spawn_blocking(PostgresServer::start)
            .await
            .map_err(ChaosError::stage("PostgreSQL does not start"))?;
        let url = server.url();
        let line = stage.line(Clients::Sink).await?;
        let file = stage.dir().join("sink.toml");
        let configuration = format!(
            "name = \"{NAME}\"\nidentity = \"platform/{OBSERVER}\"\nbroker.address = \"{}\"\n\
             state.dir = \"{}\"\nsink = {{ type = \"postgres\", url = \"{url}\" }}\n",
            line.url(),
            stage.dir().join("state").display(),
        );
        std::fs::write(&file, configuration).map_err(ChaosError::file("cannot write", &file))?;
        let program = machine.connect().to_owned();
        run(text(&program)?, &["init", text(&file)?]).await?;
        let spec = Spec {
            name: "hutong-connect".to_owned(),
            program,
            args: vec!["run".to_owned(), file.display().to_string()],
            env: machine.env(),
            log: stage.dir().join("connect.log"),
            says_ready: false,
            join: Vec::new(),
        };
        Ok(Sink {
            connector: Process::start(spec, stage.history.clone()),
            line,
            url,
            server: Arc::new(Mutex::new(server)),
        })
    }

    /// As the server's own crash: connections break, nothing is tidied up.
    pub async fn crash(&self) -> Result<(), ChaosError> {
        self.with_server(PostgresServer::crash).await
    }

    pub async fn run_again(&self) -> Result<(), ChaosError> {
        self.with_server(PostgresServer::run).await
    }

    /// Its functions block.
    async fn with_server(&self, what: fn(&mut PostgresServer)) -> Result<(), ChaosError> {
        let server = Arc::clone(&self.server);
        let done = tokio::task::spawn_blocking(move || {
            what(&mut server.lock().unwrap_or_else(PoisonError::into_inner));
        });
        done.await.map_err(ChaosError::stage("PostgreSQL"))
    }
}
