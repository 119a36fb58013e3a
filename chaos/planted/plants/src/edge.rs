//! A process that dies at an edge of a commit when a drill says so. The drill writes a file and the process looks
//! at it whenever it comes to an edge, so that a crash can be ordered while it runs, and taken back.

use crate::Failpoint;
use parking_lot::Mutex;
use rustix::process::{Signal, getpid, kill_process};
use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

/// The environment variable that names the file, for one of the programs of `chaos/planted/programs`.
pub const EDGE_VARIABLE: &str = "HUTONG_CRASH_AT";

/// Die there, when it is reached so often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub edge: Failpoint,
    /// Counted from when the order is there, from 1.
    pub nth: u32,
    /// Of the orders of one drill, so that the same one given again is counted anew.
    pub number: u32,
}

/// How often a process has come to the edge of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    pub pid: u32,
    pub times: u32,
}

impl Order {
    /// Gives the order: it is there as a whole, because it is read at any moment.
    pub fn give(&self, file: &Path) -> io::Result<()> {
        match fs::remove_file(note(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let new = file.with_extension("new");
        let (edge, nth, number) = (self.edge.name(), self.nth, self.number);
        fs::write(&new, format!("{edge} {nth} {number}\n"))?;
        fs::rename(new, file)
    }

    fn parse(text: &str) -> Option<Order> {
        let mut words = text.split_whitespace();
        Some(Order {
            edge: Failpoint::from_name(words.next()?)?,
            nth: words.next()?.parse().ok()?,
            number: words.next()?.parse().ok()?,
        })
    }
}

impl Reached {
    /// What came of the order in this file; nothing, when nobody has come to its edge.
    pub fn of(file: &Path) -> Option<Reached> {
        let text = fs::read_to_string(note(file)).ok()?;
        let mut words = text.split_whitespace();
        Some(Reached {
            pid: words.next()?.parse().ok()?,
            times: words.next()?.parse().ok()?,
        })
    }
}

/// Where a process says that it was there.
fn note(file: &Path) -> PathBuf {
    file.with_extension("reached")
}

/// What a process looks at.
#[derive(Debug)]
pub(crate) struct Asked {
    file: PathBuf,
    counted: Mutex<Option<(Order, u32)>>,
}

impl Asked {
    /// Nothing, where nobody can ask: `file` is what the environment names.
    pub(crate) fn new(file: Option<OsString>, for_drills: bool) -> Option<Asked> {
        Some(Asked {
            file: file.filter(|_| for_drills)?.into(),
            counted: Mutex::new(None),
        })
    }

    /// Does not come back when it is time to die.
    pub(crate) fn reached(&self, point: Failpoint) {
        if self.is_the_last(point) {
            // As abruptly as a kill from outside, and without a core file of gigabytes.
            kill_process(getpid(), Signal::KILL).ok();
            std::process::abort();
        }
    }

    /// Counts, and says how far it is before anything else happens.
    fn is_the_last(&self, point: Failpoint) -> bool {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let Some(order) = Order::parse(&text).filter(|order| order.edge == point) else {
            return false;
        };
        let mut counted = self.counted.lock();
        let before = counted.filter(|(known, _)| *known == order);
        let times = before.map_or(0, |(_, times)| times) + 1;
        *counted = Some((order, times));
        let said = fs::write(
            note(&self.file),
            format!("{} {times}\n", std::process::id()),
        );
        // A death that nobody can be told of proves nothing.
        said.is_ok() && times == order.nth
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn folder() -> (TempDir, PathBuf) {
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("edge");
        (folder, file)
    }

    fn asked(file: &Path) -> Asked {
        Asked::new(Some(file.into()), true).expect("it can be asked")
    }

    fn order(nth: u32, number: u32) -> Order {
        Order {
            edge: Failpoint::CommitSynced,
            nth,
            number,
        }
    }

    fn times(file: &Path) -> Option<u32> {
        Reached::of(file).map(|reached| reached.times)
    }

    #[test]
    fn an_edge_counts_from_the_order_on_and_no_other_edge_does() {
        let (_folder, file) = folder();
        let asked = asked(&file);
        assert!(!asked.is_the_last(Failpoint::CommitSynced), "nobody asked");
        order(2, 1).give(&file).expect("given");
        assert!(!asked.is_the_last(Failpoint::CommitTold));
        assert_eq!(Reached::of(&file), None);
        assert!(!asked.is_the_last(Failpoint::CommitSynced));
        assert_eq!(times(&file), Some(1));
        assert!(asked.is_the_last(Failpoint::CommitSynced));
        let (pid, times) = (std::process::id(), 2);
        assert_eq!(Reached::of(&file), Some(Reached { pid, times }));
    }

    #[test]
    fn an_order_that_is_given_again_is_counted_anew_and_one_that_is_taken_back_is_none() {
        let (_folder, file) = folder();
        let asked = asked(&file);
        order(2, 1).give(&file).expect("given");
        assert!(!asked.is_the_last(Failpoint::CommitSynced));
        order(2, 2).give(&file).expect("given");
        assert_eq!(times(&file), None);
        assert!(!asked.is_the_last(Failpoint::CommitSynced));
        fs::remove_file(&file).expect("taken back");
        assert!(!asked.is_the_last(Failpoint::CommitSynced));
        assert_eq!(times(&file), Some(1));
    }

    /// A variable that was left in a shell must not end what looks for bugs.
    #[test]
    fn nobody_but_a_program_for_drills_can_be_asked() {
        let file = || Some("/tmp/edge".into());
        assert!(Asked::new(file(), false).is_none());
        assert!(Asked::new(file(), true).is_some());
        assert!(Asked::new(None, true).is_none());
    }
}
