//! Announcements of the operating system that something changed in the folder.

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use std::{path::Path, sync::Arc};
use tokio::sync::Notify;

/// Tells `changed` until it is dropped.
pub(super) fn watch(dir: &Path, changed: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event| {
        if is_change(&event) {
            changed.notify_one();
        }
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Looking at the folder is announced as well, ours too: taken for a change it would make us look again,
/// without end. An error may have hidden a change.
fn is_change(event: &notify::Result<Event>) -> bool {
    let Ok(event) = event else {
        return true;
    };
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => event.need_rescan(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        sync::{Mutex, mpsc},
        time::Duration,
    };

    /// Nothing here takes as long; it ends a test that would hang.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// What the operating system announces from now on until a file named `last` is there.
    fn announced(work: impl FnOnce(&Path)) -> Vec<notify::Result<Event>> {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("a.json"), "{}").expect("written");
        let (to, events) = mpsc::channel();
        let to = Mutex::new(to);
        let mut watcher = notify::recommended_watcher(move |event| {
            let sent = to.lock().expect("sound").send(event);
            sent.expect("the test listens");
        })
        .expect("a watcher");
        let watched = watcher.watch(dir.path(), RecursiveMode::NonRecursive);
        watched.expect("watched");
        work(dir.path());
        fs::create_dir(dir.path().join("last")).expect("created");
        let mut before = Vec::new();
        loop {
            let event = events.recv_timeout(PATIENCE).expect("an announcement");
            let is_last = |e: &Event| e.paths.iter().any(|path| path.ends_with("last"));
            if event.as_ref().is_ok_and(is_last) {
                return before;
            }
            before.push(event);
        }
    }

    #[test]
    fn looking_at_the_folder_and_reading_its_files_is_no_change() {
        let events = announced(|dir| {
            assert_eq!(fs::read_dir(dir).expect("read").count(), 1);
            fs::read(dir.join("a.json")).expect("read");
        });
        assert!(!events.is_empty(), "it is announced");
        let changes: Vec<_> = events.iter().filter(|e| is_change(e)).collect();
        assert!(changes.is_empty(), "{changes:?}");
    }

    #[test]
    fn files_that_come_grow_or_go_are_changes() {
        let check = |work: fn(&Path)| {
            let events = announced(work);
            assert!(events.iter().any(is_change), "{events:?}");
        };
        check(|dir| fs::rename(dir.join("a.json"), dir.join("b.json")).expect("renamed"));
        check(|dir| fs::write(dir.join("b.json"), "{}").expect("written"));
        check(|dir| fs::write(dir.join("a.json"), "[]").expect("written"));
        check(|dir| fs::remove_file(dir.join("a.json")).expect("removed"));
        assert!(is_change(&Err(notify::Error::generic("overflow"))));
    }
}
