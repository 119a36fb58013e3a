//! Writing a history while a drill runs.

use crate::{
    clock::Clock,
    error::ChaosError,
    history::{Event, Line},
};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

const BUFFER_BYTES: usize = 256 << 10;

/// Clones write to the same file.
#[derive(Clone, Debug)]
pub struct Writer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    path: PathBuf,
    ops: AtomicU64,
    file: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    out: BufWriter<File>,
    /// The first one. A history with a hole must not be judged.
    error: Option<std::io::Error>,
}

impl Writer {
    pub fn create(path: &Path, clock: Clock) -> Result<Writer, ChaosError> {
        let file = File::create(path).map_err(ChaosError::file("cannot create", path))?;
        Ok(Writer {
            shared: Arc::new(Shared {
                clock,
                path: path.to_owned(),
                ops: AtomicU64::new(0),
                file: Mutex::new(Inner {
                    out: BufWriter::with_capacity(BUFFER_BYTES, file),
                    error: None,
                }),
            }),
        })
    }

    pub fn clock(&self) -> Clock {
        self.shared.clock
    }

    /// A number for an operation that nobody else has.
    pub fn next_op(&self) -> u64 {
        self.shared.ops.fetch_add(1, Ordering::AcqRel)
    }

    /// Now. The time is taken under the lock, so that the lines are in the order of their times.
    pub fn record(&self, event: Event) {
        let mut inner = self
            .shared
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let t = self.shared.clock.now_us();
        // Whoever watches a drill from outside sees at once what it does.
        let told = matches!(event, Event::Fault { .. } | Event::Stopped { .. });
        let written = serde_json::to_writer(&mut inner.out, &Line { t, e: event })
            .map_err(std::io::Error::from)
            .and_then(|()| inner.out.write_all(b"\n"))
            .and_then(|()| if told { inner.out.flush() } else { Ok(()) });
        if let Err(error) = written {
            inner.error.get_or_insert(error);
        }
    }

    /// What was recorded so far can be read.
    pub fn flush(&self) -> Result<(), ChaosError> {
        let mut inner = self
            .shared
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let flushed = match inner.error.take() {
            Some(error) => Err(error),
            None => inner.out.flush(),
        };
        flushed.map_err(ChaosError::file("cannot write", &self.shared.path))
    }
}
