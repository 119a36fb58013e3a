//! The broker inside the demo: on free ports, with its data in a folder that goes away unless it is kept.

use super::platforms::Place;
use crate::errors::CliError;
use hutong_broker::{Broker, config::Config};
use hutong_telemetry::{LogFormat, LogsError, logs};
use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Overrides what the broker inside the demo logs to standard error.
const LOG_FILTER_ENV: &str = "HUTONG_LOG";
const LOG_FILTER_DEFAULT: &str = "warn";
const CONFIG_FILE: &str = "broker.toml";

/// A running broker.
#[derive(Debug)]
pub struct Embedded {
    broker: Broker,
    address: String,
    metrics: String,
    console: String,
    data_dir: PathBuf,
    drills_dir: PathBuf,
    folder: Folder,
}

/// Where everything of this run lies.
#[derive(Debug)]
enum Folder {
    /// Removed when dropped.
    Temporary(TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn new(keep: Option<&Path>) -> Result<Folder, CliError> {
        let Some(path) = keep else {
            return tempfile::Builder::new()
                .prefix("hutong-demo-")
                .tempdir()
                .map(Folder::Temporary)
                .map_err(|source| CliError::File {
                    doing: "making a folder in",
                    path: std::env::temp_dir(),
                    source,
                });
        };
        let failed = |doing| {
            move |source| CliError::File {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        fs::create_dir_all(path).map_err(failed("making the folder"))?;
        let mut entries = fs::read_dir(path).map_err(failed("opening the folder"))?;
        if entries.next().is_some() {
            return Err(CliError::Usage(format!(
                "the folder {} is not empty; --keep takes a new or an empty one",
                path.display()
            )));
        }
        // The configuration that is kept must hold from any working directory.
        let path = path.canonicalize().map_err(failed("opening the folder"))?;
        Ok(Folder::Kept(path))
    }

    fn path(&self) -> &Path {
        match self {
            Folder::Temporary(dir) => dir.path(),
            Folder::Kept(path) => path,
        }
    }
}

impl Embedded {
    /// Starts a broker for these platforms; `keep` is where its data stays.
    pub async fn start(places: &[Place], keep: Option<&Path>) -> Result<Embedded, CliError> {
        init_logs()?;
        let folder = Folder::new(keep)?;
        let data_dir = folder.path().join("data");
        let drills_dir = folder.path().join("drills");
        fs::create_dir(&drills_dir).map_err(|source| CliError::File {
            doing: "making the folder",
            path: drills_dir.clone(),
            source,
        })?;
        let text = config_text(places, &data_dir, &drills_dir);
        let mut config = Config::parse(CONFIG_FILE, &text)
            .map_err(|e| CliError::Broken(format!("the demo's own configuration is wrong: {e}")))?;
        if let Folder::Kept(path) = &folder {
            let path = path.join(CONFIG_FILE);
            fs::write(&path, &text).map_err(|source| CliError::File {
                doing: "writing",
                path,
                source,
            })?;
        }
        let free_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        config.listen_grpc = free_port;
        config.listen_http = free_port;
        let broker = Broker::start(config)
            .await
            .map_err(|e| CliError::Broken(format!("the broker does not start: {e}")))?;
        Ok(Embedded {
            address: format!("http://{}", broker.grpc_addr()),
            metrics: format!("http://{}/metrics", broker.http_addr()),
            console: format!("http://{}/console/", broker.http_addr()),
            data_dir,
            drills_dir,
            broker,
            folder,
        })
    }

    /// For gRPC clients.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// For a browser or Prometheus.
    pub fn metrics(&self) -> &str {
        &self.metrics
    }

    /// For people, in a browser.
    pub fn console(&self) -> &str {
        &self.console
    }

    /// Of everything that this run writes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where the console looks for reports of drills.
    pub fn drills_dir(&self) -> &Path {
        &self.drills_dir
    }

    /// Drains the broker. Returns the configuration that opens its data again, if that was kept.
    pub async fn stop(self) -> Option<PathBuf> {
        self.broker.shutdown().await;
        match self.folder {
            Folder::Temporary(_) => None,
            Folder::Kept(path) => Some(path.join(CONFIG_FILE)),
        }
    }
}

fn init_logs() -> Result<(), CliError> {
    let filter = std::env::var(LOG_FILTER_ENV).unwrap_or_else(|_| LOG_FILTER_DEFAULT.to_owned());
    match logs::init(LogFormat::Text, &filter) {
        // A second broker in one process logs where the first one does.
        Ok(()) | Err(LogsError::Twice) => Ok(()),
        Err(e) => Err(CliError::Usage(format!("{LOG_FILTER_ENV}: {e}"))),
    }
}

/// What a file for the same broker would say. Ports are the usual ones, for whoever opens kept data.
fn config_text(places: &[Place], data_dir: &Path, drills_dir: &Path) -> String {
    let dir = data_dir.to_string_lossy();
    let drills = drills_dir.to_string_lossy();
    let mut text = format!(
        "# The broker of a demo run.\nidentity = \"trial\"\n\n[data]\ndir = {dir:?}\n\n\
         [memory]\ntail_urgent = \"16MiB\"\ntail_bulk = \"32MiB\"\nqueue_urgent = \"8MiB\"\n\
         queue_bulk = \"32MiB\"\ngather = \"64MiB\"\nblock_cache = \"16MiB\"\n\n\
         [telemetry]\nfilter = \"info\"\n\n[console]\ndrills = {drills:?}\n"
    );
    for place in places {
        write!(
            text,
            "\n[[platforms]]\ncode = {}\nname = {:?}\nname_zh = {:?}\n",
            place.code, place.name, place.name_zh
        )
        .expect("writing to a string does not fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::platforms::PLACES;

    #[test]
    fn the_configuration_of_the_demo_is_valid_and_names_every_platform() {
        let (data, drills) = ("/somewhere/data", "/somewhere/drills");
        let text = config_text(&PLACES, Path::new(data), Path::new(drills));
        let config = Config::parse("demo.toml", &text).expect("valid");
        assert_eq!(config.platforms.len(), PLACES.len());
        assert_eq!(config.data_dir, Path::new(data));
        assert_eq!(config.drills.as_deref(), Some(Path::new(drills)));
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(Folder::new(Some(&dir.path().join("new"))).is_ok());
        let error = Folder::new(Some(dir.path())).expect_err("not empty any more");
        assert_eq!(error.code(), 2);
    }
}
