//! What can be configured of an outbox.

use crate::postgres::{Server, read_name};
use hutong_config::{Read, Table, Value, read};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// What is appended to it must fit into 63 bytes as well.
const PLAIN_BYTES_MAX: usize = 50;

#[derive(Clone, Debug)]
pub struct Settings {
    pub server: Server,
    /// `hutong_outbox`, or with its schema.
    pub table: String,
    /// How often the table is looked at.
    pub poll: Duration,
    /// Also look when the table's trigger says that there are rows. Takes a lock at every commit of
    /// the application: for few changes that must go at once.
    pub notify: bool,
    /// How long rows are kept that are durable elsewhere; `None` is for ever.
    pub delete_after: Option<Duration>,
    /// The most rows in one batch.
    pub batch_rows: u32,
}

impl Settings {
    /// The defaults.
    pub fn new(server: Server) -> Settings {
        Settings {
            server,
            table: "hutong_outbox".into(),
            poll: Duration::from_millis(200),
            notify: false,
            delete_after: Some(Duration::from_secs(3600)),
            batch_rows: 1000,
        }
    }

    /// Reads `[source]`.
    pub fn read(table: &mut Table<'_>) -> Option<Settings> {
        let polls = read::duration(Duration::from_millis(10)..=Duration::from_secs(60));
        let server = Server::read(table);
        let name = table.with_default_as("table", "hutong_outbox".into(), read_name);
        let poll = table.with_default_as("poll", Duration::from_millis(200), polls);
        let notify = table.with_default("notify", false);
        let hour = Some(Duration::from_secs(3600));
        let delete_after = table.with_default_as("delete_after", hour, duration_or_never);
        let batch_rows = table.with_default_as("batch_rows", 1000, read::integer(1..=20_000));
        Some(Settings {
            server: server?,
            table: name,
            poll,
            notify,
            delete_after,
            batch_rows,
        })
    }

    /// The channel of notifications, and the first part of names that belong to the table.
    pub(super) fn plain_name(&self) -> String {
        let plain = self.table.replace('.', "_");
        if plain.len() <= PLAIN_BYTES_MAX {
            return plain;
        }
        // PostgreSQL would cut names made of it to 63 bytes, and two of them would be one.
        let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(&plain));
        let hash = u32::from_be_bytes([a, b, c, d]);
        format!("{}_{hash:08x}", &plain[..PLAIN_BYTES_MAX - 9])
    }
}

fn duration_or_never(value: &Value<'_>) -> Option<Option<Duration>> {
    match value.as_str() {
        Some("never") => Some(None),
        _ => Duration::read(value).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_config::Document;

    #[test]
    fn everything_can_be_set() {
        let doc = Document::parse(
            "c.toml",
            "url = \"postgres://u@h/d\"\ntable = \"app.outbox\"\npoll = \"1s\"\nnotify = true\n\
             delete_after = \"never\"\nbatch_rows = 7\n",
        );
        let settings = Settings::read(&mut doc.root());
        let settings = doc.finish(settings).expect("valid");
        assert_eq!(settings.plain_name(), "app_outbox");
        assert_eq!(settings.poll, Duration::from_secs(1));
        assert!(settings.notify);
        assert_eq!(settings.delete_after, None);
        assert_eq!(settings.batch_rows, 7);
    }

    #[test]
    fn names_that_belong_to_a_long_table_fit_and_differ() {
        let plain = |table: &str| {
            let url = "url = \"postgres://u@h/d\"";
            let doc = Document::parse("c.toml", format!("{url}\ntable = \"{table}\"\n"));
            let settings = Settings::read(&mut doc.root());
            doc.finish(settings).expect("valid").plain_name()
        };
        let long = "a".repeat(62);
        let names = [plain(&format!("{long}b")), plain(&format!("{long}c"))];
        assert_ne!(names[0], names[1]);
        assert!(names.iter().all(|n| n.len() <= PLAIN_BYTES_MAX));
        assert_eq!(plain(&"a".repeat(50)), "a".repeat(50));
    }

    #[test]
    fn mistakes_are_reported_together() {
        let doc = Document::parse(
            "c.toml",
            "url = \"mysql://x\"\ntable = \"a b\"\ndelete_after = \"soon\"\nbatch_rows = 0\n",
        );
        let settings = Settings::read(&mut doc.root());
        let errors = doc.finish(settings).expect_err("four mistakes");
        assert_eq!(errors.count(), 4, "{errors}");
    }
}
