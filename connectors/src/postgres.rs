//! A connection to PostgreSQL, shared by sources and sinks.
//!
//! Credentials: in `url`, or better in the file that `password_file` names. They are in no message.

use hutong_config::{Table, read};
use std::{fmt, future::poll_fn, path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::Notify, task::JoinSet};
use tokio_postgres::{
    AsyncMessage, Client, Config, Error, NoTls, config::SslMode, error::SqlState,
};

/// The oldest that has `xid8` and `pg_snapshot`.
const VERSION_MIN: i32 = 130_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PASSWORD_BYTES_MAX: u64 = 4096;

/// For every session: times as the code writes them, and nothing that waits without end. A session whose
/// connector died must not hold its locks for long.
const SESSION: &str = "SET timezone = 'UTC'; SET statement_timeout = '60s'; SET lock_timeout = '10s'; \
    SET idle_in_transaction_session_timeout = '30s'; SET client_min_messages = warning; \
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// For statements that look at a whole table: of 100 million rows, in a transaction of their own.
pub(crate) const LONG_STATEMENTS: &str = "SET LOCAL statement_timeout = '2h'";
/// The same for what `init` does, on a connection of its own.
pub(crate) const LONG_SESSION: &str = "SET statement_timeout = '2h'";

/// Which server, as whom.
#[derive(Clone)]
pub struct Server {
    config: Config,
    password_file: Option<PathBuf>,
}

/// Without the password.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.to_string()).finish()
    }
}

/// For messages: `database D on H`.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match self.config.get_hosts().first() {
            Some(tokio_postgres::config::Host::Tcp(host)) => host.clone(),
            Some(tokio_postgres::config::Host::Unix(path)) => path.display().to_string(),
            None => "no host".into(),
        };
        let port = self.config.get_ports().first().unwrap_or(&5432);
        let name = self.config.get_dbname().unwrap_or("(the user's own)");
        write!(f, "database {name} on {host}:{port}")
    }
}

impl Server {
    /// From a connection string: `postgres://user@host:5432/name` or `host=... user=...`.
    pub fn new(url: &str) -> Result<Server, Error> {
        let mut config: Config = url.parse()?;
        config.application_name("hutong-connect");
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        Ok(Server {
            config,
            password_file: None,
        })
    }

    /// Reads `url` and `password_file`.
    pub(crate) fn read(table: &mut Table<'_>) -> Option<Server> {
        let server = table.required_as("url", |value| {
            let url = read::text(1..=4096)(value)?;
            // The parser's message could repeat a part of the password.
            let server = Server::new(&url).ok().or_else(|| {
                value.fail_expected(
                    "a connection string of PostgreSQL",
                    "write \"postgres://user@host:5432/database\", and the password to `password_file`",
                )
            })?;
            if server.config.get_ssl_mode() == SslMode::Require {
                return value.fail_expected(
                    "a connection string without sslmode=require",
                    "TLS to PostgreSQL is not built in: run beside the database, or reach it through a \
                     tunnel that encrypts",
                );
            }
            Some(server)
        });
        let password_file = table.optional("password_file");
        Some(Server {
            password_file,
            ..server?
        })
    }

    /// A session that is set up as the sources and sinks need it.
    pub(crate) async fn connect(&self) -> Result<Link, Failure> {
        let mut config = self.config.clone();
        if let Some(path) = &self.password_file {
            config.password(read_password(path).await?);
        }
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT * 2, config.connect(NoTls)).await;
        let (client, mut connection) = match connecting {
            Ok(connected) => connected.map_err(|e| self.failed(&e))?,
            Err(_) => return Err(Failure::passing(format!("{self} does not answer"))),
        };
        let notified = Arc::new(Notify::new());
        let notify = Arc::clone(&notified);
        let mut task = JoinSet::new();
        task.spawn(async move {
            // An error of the connection is seen by every later query of the client as well.
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(_) = message {
                    notify.notify_one();
                }
            }
            notify.notify_one();
        });
        let link = Link {
            client,
            notified,
            _task: task,
        };
        self.set_up(&link).await?;
        Ok(link)
    }

    async fn set_up(&self, link: &Link) -> Result<(), Failure> {
        let failed = |e: Error| self.failed(&e);
        link.client.batch_execute(SESSION).await.map_err(failed)?;
        let version = "SELECT current_setting('server_version_num')::int";
        let version: i32 = link
            .client
            .query_one(version, &[])
            .await
            .map_err(failed)?
            .get(0);
        if version < VERSION_MIN {
            return Err(Failure {
                passing: false,
                message: format!(
                    "{self} is PostgreSQL {}, 13 or newer is needed",
                    version / 10_000
                ),
            });
        }
        Ok(())
    }

    /// Whether an error passes by itself, and what it says without any value of a row.
    pub(crate) fn failed(&self, error: &Error) -> Failure {
        let Some(db) = error.as_db_error() else {
            let source = std::error::Error::source(error);
            let why = source.map_or(String::new(), |s| format!(": {s}"));
            // The line, or silence. The rest is a setting or a column's type, and stays as it is.
            let passing = error.is_closed() || source.is_none_or(|s| s.is::<std::io::Error>());
            let help = if passing {
                ""
            } else {
                "; see to `url`, `password_file` and the types of the table's columns"
            };
            return Failure {
                passing,
                message: format!("{self}: {error}{why}{help}"),
            };
        };
        let class = db.code().code().get(..2).unwrap_or_default();
        // Connection, server busy, shutting down or failing over, conflicts between transactions.
        let passing = matches!(class, "08" | "25" | "40" | "53" | "55" | "57" | "58");
        let help = match *db.code() {
            SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_COLUMN => {
                "; run `hutong-connect init` once"
            }
            SqlState::INSUFFICIENT_PRIVILEGE => "; grant it to the user of `url`",
            SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                "; see to `url` and `password_file`"
            }
            _ => "",
        };
        Failure {
            passing,
            // Not the detail: it can hold the values of a row.
            message: format!("{self}: {} ({}){help}", db.message(), db.code().code()),
        }
    }
}

async fn read_password(path: &std::path::Path) -> Result<String, Failure> {
    let lasting = |why: String| Failure {
        passing: false,
        message: format!("password file {}: {why}", path.display()),
    };
    let metadata = tokio::fs::metadata(path)
        .await
        .map_err(|e| lasting(e.to_string()))?;
    if metadata.len() > PASSWORD_BYTES_MAX {
        return Err(lasting(format!("more than {PASSWORD_BYTES_MAX} bytes")));
    }
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|e| lasting(e.to_string()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// One session. It ends when this is dropped.
pub(crate) struct Link {
    pub client: Client,
    /// Told of every notification of a channel that the session listens to, and of the end of the session.
    pub notified: Arc<Notify>,
    _task: JoinSet<()>,
}

/// Becomes the error of a source or of a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub passing: bool,
    pub message: String,
}

impl Failure {
    pub fn passing(message: String) -> Failure {
        Failure {
            passing: true,
            message,
        }
    }
}

impl From<Failure> for crate::source::SourceError {
    fn from(failure: Failure) -> Self {
        let Failure { passing, message } = failure;
        crate::source::SourceError { passing, message }
    }
}

impl From<Failure> for crate::sink::SinkError {
    fn from(failure: Failure) -> Self {
        let Failure { passing, message } = failure;
        crate::sink::SinkError { passing, message }
    }
}

/// A name of a table or schema, as it stands in a statement: `hutong_outbox`, `app.outbox`. Lower case
/// letters, digits and underscores only, so it needs no quotes and allows no injection.
pub(crate) fn read_name(value: &hutong_config::Value<'_>) -> Option<String> {
    let name = read::text(1..=127)(value)?;
    let plain = |part: &str| {
        let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        (1..=63).contains(&part.len())
            && part.bytes().all(letters)
            && !part.as_bytes()[0].is_ascii_digit()
    };
    if name.split('.').count() <= 2 && name.split('.').all(plain) {
        return Some(name);
    }
    value.fail_expected(
        "a name of lower case letters, digits and underscores",
        "such as \"hutong_outbox\" or \"app.outbox\"",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_config::Document;

    #[test]
    fn no_message_holds_the_password() {
        let doc = Document::parse("c.toml", "url = \"postgres://u:secret@h/d\"\n");
        let server = Server::read(&mut doc.root());
        let server = doc.finish(server).expect("valid");
        assert_eq!(format!("{server:?}"), "Server(\"database d on h:5432\")");
    }

    #[test]
    fn names_cannot_hold_statements() {
        let read = |name: &str| {
            let doc = Document::parse("c.toml", format!("table = {name:?}\n"));
            let read = doc.root().required_as("table", read_name);
            doc.finish(read).ok()
        };
        assert_eq!(read("app.outbox_1").as_deref(), Some("app.outbox_1"));
        for wrong in ["", "a b", "a;drop", "A", "1a", "a.b.c", "a.", "\"a\""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
