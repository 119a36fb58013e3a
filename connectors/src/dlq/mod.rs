//! Dead letters: rows that could not be mapped, or that the broker refused. They wait for a person,
//! who mends the mapping and tries again, or drops them.
//!
//! One append-only file of JSON, a line an entry: `add`, `tried` or `drop`. Every change is synced
//! before it counts. Adding and dropping happen in different processes, so each change takes a lock,
//! and the file is opened anew under it. When half of the file is about letters that are gone, it is
//! written anew. A line that was cut by a power failure was never counted: its row is read again
//! from the source.
//!
//! Raw rows may hold ID numbers: the file is for its owner only, and nothing of it goes into a log.

mod letter;
mod store;

pub use letter::{DeadLetter, LetterId, NewLetter};
pub use store::{Contents, DeadLetters, DlqError};
