//! Faults that tests plant in a log. Outside tests this is an empty type and every question a
//! constant "no".

#[cfg(any(test, plants))]
pub use planted::Faults;

#[cfg(any(test, plants))]
mod planted {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    /// Shared with the log; each fault happens once.
    #[derive(Clone, Debug, Default)]
    pub struct Faults {
        inner: Arc<Inner>,
    }

    #[derive(Debug, Default)]
    struct Inner {
        fail_write: AtomicBool,
        fail_sync: AtomicBool,
    }

    impl Faults {
        /// The next write fails before anything is written.
        pub fn fail_write(&self) {
            self.inner.fail_write.store(true, Ordering::Release);
        }

        /// The next sync fails; what was written may or may not survive.
        pub fn fail_sync(&self) {
            self.inner.fail_sync.store(true, Ordering::Release);
        }

        pub(crate) fn take_write(&self) -> bool {
            self.inner.fail_write.swap(false, Ordering::AcqRel)
        }

        pub(crate) fn take_sync(&self) -> bool {
            self.inner.fail_sync.swap(false, Ordering::AcqRel)
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
    pub(crate) fn take_write(&self) -> bool {
        false
    }

    pub(crate) fn take_sync(&self) -> bool {
        false
    }
}
