//! How much of its time the load had nothing to do but wait. Near one, it could have done more, and what was measured
//! is the broker's limit. Near zero, the load itself was the limit, or the machine that it shares with the broker.
//! What the client library does in tasks of its own is not in it.

use std::{
    future::{Future, poll_fn},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Wake, Waker},
    time::{Duration, Instant},
};

/// With a smaller share it is worth a look whether the load was the limit.
const WAITED_MIN: f64 = 0.5;

/// What is to be said of a load that waited for this share of its time; nothing when it could have done more.
pub fn warning(what: &str, share: f64) -> Option<String> {
    (share < WAITED_MIN).then(|| {
        format!(
            "{what}: the load waited for only {share:.2} of its time, so it, or the machine that it shares, may have \
             been the limit"
        )
    })
}

/// Time in which some tasks had something to do, added up: from when one is woken until it waits again. So time
/// in which it only waits for a thread or a processor counts as work.
#[derive(Clone, Debug, Default)]
pub struct Busy(Arc<AtomicU64>);

/// A moment, and what had been worked until then.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    at: Instant,
    worked: Duration,
}

/// Stands between a task and who wakes it.
#[derive(Debug)]
struct Alarm {
    begun: Instant,
    /// Since `begun`; zero when it was not woken since its last turn.
    woken_ns: AtomicU64,
    task: Mutex<Waker>,
}

impl Alarm {
    fn now_ns(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// The one to wake; it is another one when the task has moved.
    fn wakes(&self, waker: &Waker) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        task.clone_from(waker);
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Alarm>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Alarm>) {
        let now = self.now_ns().max(1);
        // The first one counts. Who comes too late has woken a task that is awake.
        let (Ok(_) | Err(_)) =
            (self.woken_ns).compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        task.wake_by_ref();
    }
}

impl Busy {
    /// The same task, counted.
    pub fn watch<F>(&self, task: F) -> impl Future<Output = F::Output> + use<F>
    where
        F: Future,
    {
        let nanos = Arc::clone(&self.0);
        let mut task = Box::pin(task);
        let alarm = Arc::new(Alarm {
            begun: Instant::now(),
            woken_ns: AtomicU64::new(0),
            task: Mutex::new(Waker::noop().clone()),
        });
        let waker = Waker::from(Arc::clone(&alarm));
        let mut turn_ended_ns = 0;
        poll_fn(move |cx| {
            alarm.wakes(cx.waker());
            let woken_ns = match alarm.woken_ns.swap(0, Ordering::AcqRel) {
                0 => alarm.now_ns(),
                woken => woken.max(turn_ended_ns),
            };
            let polled = task
                .as_mut()
                .poll(&mut std::task::Context::from_waker(&waker));
            turn_ended_ns = alarm.now_ns();
            let worked_ns = turn_ended_ns.saturating_sub(woken_ns);
            nanos.fetch_add(worked_ns, Ordering::AcqRel);
            polled
        })
    }

    fn worked(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Acquire))
    }

    pub fn mark(&self) -> Mark {
        Mark {
            at: Instant::now(),
            worked: self.worked(),
        }
    }

    /// Of the time since then, the share in which these `tasks` waited.
    pub fn waited_share(&self, since: Mark, tasks: usize) -> f64 {
        let time = since.at.elapsed().as_secs_f64() * tasks as f64;
        let worked = self.worked().saturating_sub(since.worked).as_secs_f64();
        (1.0 - worked / time.max(1e-9)).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_hardly_waited_is_warned_of() {
        assert_eq!(warning("ingest", 0.5), None);
        let said = warning("ingest", 0.31).expect("a warning");
        assert!(said.contains("ingest") && said.contains("0.31"), "{said}");
    }

    #[tokio::test]
    async fn who_works_does_not_wait_and_who_sleeps_does() {
        let busy = Busy::default();
        let before = busy.mark();
        let work = async {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(40) {}
        };
        busy.watch(work).await;
        let working = busy.waited_share(before, 1);
        assert!(working < 0.5, "{working}");
        let before = busy.mark();
        busy.watch(tokio::time::sleep(Duration::from_millis(40)))
            .await;
        let sleeping = busy.waited_share(before, 1);
        assert!(sleeping > 0.5, "{sleeping}");
    }

    /// Else a load that its own threads do not suffice for would look idle.
    #[tokio::test]
    async fn who_is_woken_and_has_no_thread_does_not_wait() {
        let busy = Busy::default();
        let before = busy.mark();
        let (tell, told) = tokio::sync::oneshot::channel();
        let waiting = tokio::spawn(busy.watch(told));
        tokio::task::yield_now().await;
        tell.send(()).expect("it waits");
        // There is one thread, and this has it.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(40) {}
        waiting.await.expect("it ends").expect("told");
        let share = busy.waited_share(before, 1);
        assert!(share < 0.5, "{share}");
    }
}
