//! Work beside a session: it goes on while the session does something else, and ends with it.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs tasks: the runtime does, unless a simulation decides who runs when.
#[derive(Clone)]
pub struct Beside(Arc<dyn Fn(Task) + Send + Sync>);

impl Default for Beside {
    fn default() -> Beside {
        Beside::new(|task| drop(tokio::spawn(task)))
    }
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").finish_non_exhaustive()
    }
}

impl Beside {
    pub fn new(spawn: impl Fn(Task) + Send + Sync + 'static) -> Beside {
        Beside(Arc::new(spawn))
    }

    /// Begins work that ends with what is returned.
    pub fn begin<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Begun<T> {
        let (told, answer) = oneshot::channel();
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        (self.0)(Box::pin(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                // Whoever began it may be gone.
                done = work => drop(told.send(done)),
            }
        }));
        Begun {
            answer,
            _stop: guard,
        }
    }
}

/// Resolves to what the work gives; `None` if it panicked.
#[derive(Debug)]
pub struct Begun<T> {
    answer: oneshot::Receiver<T>,
    _stop: DropGuard,
}

impl<T> Future for Begun<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        Pin::new(&mut self.answer).poll(cx).map(Result::ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_goes_on_beside_and_ends_with_who_began_it() {
        let beside = Beside::default();
        assert_eq!(beside.begin(async { 7 }).await, Some(7));
        let dropped = CancellationToken::new();
        let held = dropped.clone().drop_guard();
        let begun = beside.begin(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        tokio::task::yield_now().await;
        assert!(!dropped.is_cancelled());
        drop(begun);
        dropped.cancelled().await;
        let broken = beside.begin::<u32>(async { panic!("for this test") });
        assert_eq!(broken.await, None);
    }
}
