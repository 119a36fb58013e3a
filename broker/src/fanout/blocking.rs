//! Where work is done that waits for a disk.

use hutong_proto::{Reason, Refusal};

/// On threads for that; at once, where a simulation wants one order of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blocking {
    #[default]
    Pool,
    #[cfg(plants)]
    Inline,
}

impl Blocking {
    pub async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        match self {
            Blocking::Pool => tokio::task::spawn_blocking(work)
                .await
                .map_err(|_| Reason::Internal.into()),
            #[cfg(plants)]
            Blocking::Inline => Ok(work()),
        }
    }
}
