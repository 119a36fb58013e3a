//! Faults that tests plant in a log. Outside tests this is an empty type and every question a
//! constant "no".

/// What a failing write comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// It is certain that nothing was written.
    Nothing,
    /// Nobody knows, and it was not written.
    Lost,
    /// Nobody knows, and it was written: it is there after the next opening.
    Landed,
}

/// What a failing sync comes to: what was written is gone, or is there after the next opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncFault {
    Lost,
    Landed,
}

#[cfg(any(test, plants))]
pub use planted::Faults;

#[cfg(any(test, plants))]
mod planted {
    use super::{SyncFault, WriteFault};
    use parking_lot::Mutex;
    use std::sync::Arc;

    /// Shared with the log; each fault happens once.
    #[derive(Clone, Debug, Default)]
    pub struct Faults {
        inner: Arc<Inner>,
    }

    #[derive(Debug, Default)]
    struct Inner {
        write: Mutex<Option<WriteFault>>,
        sync: Mutex<Option<SyncFault>>,
    }

    impl Faults {
        /// The next write fails.
        pub fn fail_write(&self, fault: WriteFault) {
            *self.inner.write.lock() = Some(fault);
        }

        /// The next sync fails.
        pub fn fail_sync(&self, fault: SyncFault) {
            *self.inner.sync.lock() = Some(fault);
        }

        pub(crate) fn take_write(&self) -> Option<WriteFault> {
            self.inner.write.lock().take()
        }

        pub(crate) fn take_sync(&self) -> Option<SyncFault> {
            self.inner.sync.lock().take()
        }

        /// What is written now, the next sync loses.
        pub(crate) fn loses_write(&self) -> bool {
            *self.inner.sync.lock() == Some(SyncFault::Lost)
        }
    }
}

/// No faults in a release.
#[cfg(not(any(test, plants)))]
#[derive(Clone, Debug, Default)]
pub struct Faults(());

#[cfg(not(any(test, plants)))]
#[allow(clippy::unused_self, reason = "the same calls as with planted faults")]
impl Faults {
    pub(crate) fn take_write(&self) -> Option<WriteFault> {
        None
    }

    pub(crate) fn take_sync(&self) -> Option<SyncFault> {
        None
    }

    pub(crate) fn loses_write(&self) -> bool {
        false
    }
}
