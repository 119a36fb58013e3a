//! Runs tasks one at a time, in an order that the seed decides.
//!
//! Whoever is woken joins a set, and the seed picks from it. So it makes no difference in which order a
//! library wakes those who wait, which some do at random, and every order that is possible comes once.
//! Time is the runtime's, paused: it moves only when nobody can go on, and then to the next timer; on a busy
//! machine also while somebody could.

use crate::random::Random;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tokio::time::Sleep;

/// Tasks that die together, as those of a process do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(pub u64);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
struct Inner {
    ready: BTreeSet<u64>,
    root: Option<Waker>,
    begun: Vec<(u64, Process, Task)>,
    killed: BTreeSet<Process>,
    tasks: u64,
    processes: u64,
    /// The longest that others keep the processor; 0: never.
    busy_ms_max: u64,
}

/// Where tasks begin and processes die.
#[derive(Clone, Default)]
pub struct Spawner(Arc<Mutex<Inner>>);

impl std::fmt::Debug for Spawner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spawner").finish_non_exhaustive()
    }
}

impl Spawner {
    pub fn process(&self) -> Process {
        let mut inner = self.0.lock();
        inner.processes += 1;
        Process(inner.processes)
    }

    pub fn spawn(&self, process: Process, task: impl Future<Output = ()> + Send + 'static) {
        let mut inner = self.0.lock();
        inner.tasks += 1;
        let id = inner.tasks;
        inner.begun.push((id, process, Box::pin(task)));
        inner.ready.insert(id);
        if let Some(root) = &inner.root {
            root.wake_by_ref();
        }
    }

    /// Whoever is woken may have to wait so long for its turn to run.
    pub fn busy(&self, ms_max: u64) {
        self.0.lock().busy_ms_max = ms_max;
    }

    /// Its tasks never go on.
    pub fn kill(&self, process: Process) {
        let mut inner = self.0.lock();
        inner.killed.insert(process);
        if let Some(root) = &inner.root {
            root.wake_by_ref();
        }
    }
}

struct TaskWaker {
    id: u64,
    inner: Arc<Mutex<Inner>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        inner.ready.insert(self.id);
        if let Some(root) = &inner.root {
            root.wake_by_ref();
        }
    }
}

/// Ends with the main task.
pub struct Executor<F> {
    main: Pin<Box<F>>,
    main_waker: Waker,
    spawner: Spawner,
    random: Random,
    tasks: BTreeMap<u64, (Process, Task, Waker)>,
    polls: u64,
    /// Others have the processor.
    busy: Option<Pin<Box<Sleep>>>,
}

impl<F> std::fmt::Debug for Executor<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").finish_non_exhaustive()
    }
}

/// The main task; no other has this number.
const MAIN: u64 = 0;
/// Beyond this something goes round in circles.
const POLLS_MAX: u64 = 5_000_000;
/// Of the steps on a busy machine.
const BUSY_ONE_IN: u64 = 6;

impl<F: Future> Executor<F> {
    pub fn new(spawner: Spawner, random: Random, main: F) -> Executor<F> {
        let waker = TaskWaker {
            id: MAIN,
            inner: Arc::clone(&spawner.0),
        };
        spawner.0.lock().ready.insert(MAIN);
        Executor {
            main: Box::pin(main),
            main_waker: Arc::new(waker).into(),
            spawner,
            random,
            tasks: BTreeMap::new(),
            polls: 0,
            busy: None,
        }
    }

    fn take_in(&mut self) {
        let (begun, killed) = {
            let mut inner = self.spawner.0.lock();
            (std::mem::take(&mut inner.begun), inner.killed.clone())
        };
        for (id, process, task) in begun {
            let inner = Arc::clone(&self.spawner.0);
            let waker = Arc::new(TaskWaker { id, inner }).into();
            self.tasks.insert(id, (process, task, waker));
        }
        // In order, and outside the lock: what they own may wake others.
        let dead = self
            .tasks
            .iter()
            .filter(|(_, (process, ..))| killed.contains(process));
        let dead: Vec<u64> = dead.map(|(id, _)| *id).collect();
        for id in dead {
            drop(self.tasks.remove(&id));
        }
    }

    /// Once in a while somebody else has the processor.
    fn yield_processor(&mut self) {
        let max = self.spawner.0.lock().busy_ms_max;
        if max > 0 && self.random.one_in(BUSY_ONE_IN) {
            let pause = Duration::from_millis(self.random.between(1, max));
            self.busy = Some(Box::pin(tokio::time::sleep(pause)));
        }
    }

    fn pick(&mut self) -> Option<u64> {
        let mut inner = self.spawner.0.lock();
        let nth = self.random.below(inner.ready.len() as u64) as usize;
        let id = inner.ready.iter().nth(nth).copied()?;
        inner.ready.remove(&id);
        Some(id)
    }
}

impl<F: Future> Future for Executor<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.spawner.0.lock().root = Some(cx.waker().clone());
        loop {
            if let Some(busy) = &mut self.busy {
                if busy.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.busy = None;
            }
            self.take_in();
            let Some(id) = self.pick() else {
                return Poll::Pending;
            };
            self.yield_processor();
            self.polls += 1;
            assert!(self.polls < POLLS_MAX, "tasks go round in circles");
            let this = &mut *self;
            if id == MAIN {
                let mut context = Context::from_waker(&this.main_waker);
                // Without the runtime's budget: who has used it up would be woken for ever.
                let main = std::pin::pin!(tokio::task::unconstrained(this.main.as_mut()));
                if let Poll::Ready(output) = main.poll(&mut context) {
                    return Poll::Ready(output);
                }
                continue;
            }
            let Some((_, task, waker)) = this.tasks.get_mut(&id) else {
                continue;
            };
            let mut context = Context::from_waker(waker);
            let polled = std::pin::pin!(tokio::task::unconstrained(task.as_mut()));
            if polled.poll(&mut context).is_ready() {
                drop(this.tasks.remove(&id));
            }
        }
    }
}
