//! Configuration files in TOML: every mistake of a file is reported at once, each with file, line,
//! caret and what to do about it.
//!
//! A file is read table by table, key by key. Mistakes collect in the [`Document`] while reading
//! goes on, so a reader never stops at the first one. Keys that nobody asked for are mistakes too,
//! found when a [`Table`] is dropped; the borrow checker sees to it that all tables are gone before
//! [`Document::finish`] decides whether there is a result.
//!
//! ```
//! use hutong_config::{ByteSize, Document, read};
//! use std::{net::SocketAddr, time::Duration};
//!
//! #[derive(Debug)]
//! struct Server { listen: SocketAddr, cache: ByteSize, timeout: Duration, peers: Vec<(String, u32)> }
//!
//! fn server(doc: &Document) -> Option<Server> {
//!     let mut root = doc.root();
//!     let listen = root.required("listen");
//!     let cache = root.with_default("cache", ByteSize::mib(64));
//!     let timeout = root.with_default_as(
//!         "timeout",
//!         Duration::from_secs(20),
//!         read::duration(Duration::from_secs(1)..=Duration::from_secs(600)),
//!     );
//!     let mut peers = Vec::new();
//!     for mut peer in root.list_of_tables("peers") {
//!         let name = peer.required_as("name", read::text(1..=64));
//!         let weight = peer.required_as("weight", read::integer(1..=10));
//!         peers.push((name, weight));
//!     }
//!     // Only now: a `?` before would hide the mistakes that come after it.
//!     let peers = peers.into_iter().map(|(name, weight)| Some((name?, weight?)));
//!     Some(Server { listen: listen?, cache, timeout, peers: peers.collect::<Option<_>>()? })
//! }
//!
//! let text = "listen = \"127.0.0.1\"\ntimeout = 20\n[[peers]]\nname = \"a\"\nwieght = 3\n";
//! let doc = Document::parse("server.toml", text);
//! let server_read = server(&doc);
//! let errors = doc.finish(server_read).expect_err("three mistakes");
//! let lines: Vec<_> = errors.iter().map(|e| (e.line, e.key.as_str())).collect();
//! assert_eq!(lines, [(1, "listen"), (2, "timeout"), (5, "peers[0].wieght")]);
//! assert!(errors.to_string().contains("did you mean `weight`?"));
//! ```
//!
//! [`Table::required`] and its sisters read any type that is [`Read`]; the sisters that end in `_as`
//! take a reader from the module [`read`], or a function of your own, for what needs a range or a
//! list of words. To show the mistakes to a person, print [`ConfigErrors::render`].

mod document;
mod error;
pub mod read;
mod suggest;
mod table;
mod tree;
mod units;
mod value;

pub use document::Document;
pub use error::{ConfigError, ConfigErrors, Look};
pub use read::{Read, Scalar};
pub use table::Table;
pub use units::{ByteSize, format_duration, parse_bytes, parse_duration};
pub use value::Value;
