//! All platforms at once: publishers, subscribers, and those who look at the sink and at the process.

use crate::{
    clients::{OBSERVER, Producer, Reader, Sampler, Until, open},
    error::ChaosError,
    history::{self, Event, Role, Stream},
    stage::Stage,
};
use hutong_connectors::client::{Publisher, Start};
use hutong_proto::{Cursor, LogId, Offset};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

const SAMPLE_EVERY: Duration = Duration::from_millis(250);
const CONVERGE_POLL: Duration = Duration::from_millis(50);
/// Clock ticks a second in `/proc/PID/stat`; fixed by the kernel's interface on Linux.
const TICK_MS: u64 = 10;
/// Beyond the time that a recovery may take, so that a late one is seen as late and not as lost.
pub const SETTLE_BEYOND: Duration = Duration::from_secs(20);
/// For the whole log or a snapshot, on a busy machine.
const AUDIT_MAX: Duration = Duration::from_secs(60);
/// What the name of the platforms' own subscriptions is.
pub const SUBSCRIPTION: &str = "drill";

/// Everyone who publishes or reads. Stopped when dropped.
#[derive(Debug)]
pub struct Fleet {
    producers: Vec<(Producer, Publisher)>,
    publishing: JoinSet<u64>,
    readers: JoinSet<Reader>,
    _watchers: Vec<AbortOnDropHandle<()>>,
}

impl Fleet {
    /// Everybody is connected when it returns.
    pub async fn connect(stage: &Stage) -> Result<Fleet, ChaosError> {
        let mut fleet = Fleet {
            producers: Vec::new(),
            publishing: JoinSet::new(),
            readers: JoinSet::new(),
            _watchers: Vec::new(),
        };
        for (i, platform) in stage.platforms().iter().enumerate() {
            let (sub, url) = (stage.next_sub(), stage.subscriber_line(i).url());
            let who = (*platform, SUBSCRIPTION, Role::Live);
            let subscriber = open(&stage.history, sub, who, &url, Start::Now, None).await?;
            let reader = Reader {
                sub,
                history: stage.history.clone(),
                deltas: stage.deltas.clone(),
                board: Arc::clone(&stage.board),
                progress: Some(stage.board.reader(*platform, true)),
                subscriber,
                reached: history::Cursor::default(),
                complete: false,
            };
            let until = Until::Told(stage.extras.read_until.subscribe());
            fleet.readers.spawn(reader.run(until));
        }
        for (i, platform) in stage.platforms().iter().enumerate() {
            for stream in [Stream::Urgent, Stream::Bulk] {
                let producer = producer(stage, *platform, i, stream);
                let publisher = producer.connect(&stage.publisher_line(i).url()).await?;
                fleet.producers.push((producer, publisher));
            }
        }
        fleet._watchers.push(sample(stage));
        if let Some(sampler) = sampler(stage) {
            let task = tokio::spawn(async move { sampler.run().await });
            fleet._watchers.push(AbortOnDropHandle::new(task));
        }
        Ok(fleet)
    }

    /// The load begins `from` the start of the drill on.
    pub fn begin(&mut self, stage: &Stage, from: Duration) {
        for (mut producer, publisher) in self.producers.drain(..) {
            let load = &mut producer.load;
            load.from += from;
            load.until += from;
            if let Some(surge) = &mut load.surge {
                surge.at += from;
            }
            let give_up = stage.extras.give_up.subscribe();
            self.publishing.spawn(producer.run(publisher, give_up));
        }
    }

    /// Waits until all that was due is answered, and everybody who counts has it. What is missing after
    /// `within` is the error.
    pub async fn settle(&mut self, stage: &Stage, within: Duration) -> Result<(), String> {
        let mut extra = stage.extras.take_publishing();
        let settled = async {
            while self.publishing.join_next().await.is_some() {}
            while extra.join_next().await.is_some() {}
            while stage.board.converged().is_err() {
                tokio::time::sleep(CONVERGE_POLL).await;
            }
        };
        let done = tokio::time::timeout(within, settled).await.is_ok();
        if done {
            stage.history.record(Event::Converged);
            return Ok(());
        }
        stage.extras.give_up.send_replace(true);
        while self.publishing.join_next().await.is_some() {}
        while extra.join_next().await.is_some() {}
        stage.board.converged()
    }

    /// Everybody stops reading.
    pub async fn stop(&mut self, stage: &Stage) {
        stage.extras.read_until.send_replace(true);
        while self.readers.join_next().await.is_some() {}
        let mut extra = stage.extras.take_readers();
        while extra.join_next().await.is_some() {}
    }

    /// Reads the whole log again from its beginning, and a snapshot of the state: what the broker says
    /// when everything is over. Around the proxy.
    pub async fn audit(stage: &Stage) -> Result<(), ChaosError> {
        let status = stage.status().await?;
        let end = Offset(status.next_offset);
        let begin = Cursor::both(LogId(status.log_id), Offset::FIRST);
        let mut last = history::Cursor::default();
        for (name, role, start) in [
            ("audit-log", Role::Log, Start::Cursor(begin)),
            ("audit-snapshot", Role::Snapshot, Start::Snapshot),
        ] {
            let sub = stage.next_sub();
            let who = (OBSERVER, name, role);
            let subscriber = open(&stage.history, sub, who, &stage.url(), start, None).await?;
            let reader = Reader {
                sub,
                history: stage.history.clone(),
                deltas: stage.deltas.clone(),
                board: Arc::clone(&stage.board),
                progress: None,
                subscriber,
                reached: history::Cursor::default(),
                complete: false,
            };
            let read = reader.run(Until::Reached(end));
            let late = |_| ChaosError::Stage(format!("{name} takes more than {AUDIT_MAX:?}"));
            let read = tokio::time::timeout(AUDIT_MAX, read).await.map_err(late)?;
            if !read.complete {
                return Err(ChaosError::Stage(format!(
                    "{name} ended before the log did"
                )));
            }
            // Only now it is one: what was read in part looks whole in a history.
            stage.history.record(Event::Audited { sub });
            if role == Role::Log {
                last = read.reached;
            }
        }
        if let Some(sampler) = sampler(stage) {
            last_look(&sampler, last, stage.drill.hypothesis.recovery).await?;
        }
        if let Some(areas) = &stage.areas {
            let within = stage.drill.hypothesis.recovery + SETTLE_BEYOND;
            areas.compare(stage, within).await?;
        }
        Ok(())
    }
}

/// The sink has so long, and what every client has beyond, to have everything; its last table is judged
/// either way.
async fn last_look(
    sampler: &Sampler,
    last: history::Cursor,
    within: Duration,
) -> Result<(), ChaosError> {
    let complete = async {
        loop {
            match sampler.look_once().await {
                Ok(Some(cursor)) if cursor.urgent >= last.urgent && cursor.bulk >= last.bulk => {
                    return;
                }
                Ok(_) | Err(_) => tokio::time::sleep(SAMPLE_EVERY * 2).await,
            }
        }
    };
    // Whether it was in time is for the judge, who has the table.
    drop(tokio::time::timeout(within + SETTLE_BEYOND, complete).await);
    sampler.look_once().await.map(|_| ())
}

/// One stream of one platform, as the drill's file says.
pub fn producer(stage: &Stage, platform: u32, i: usize, stream: Stream) -> Producer {
    let workload = &stage.drill.workload;
    Producer {
        issuer: platform,
        stream,
        load: crate::clients::Load::of(workload, stream, stage.drill.duration),
        deltas: stage.deltas.clone(),
        history: stage.history.clone(),
        board: Arc::clone(&stage.board),
        first: 1,
        phase: i as f64 / workload.platforms as f64,
    }
}

fn sampler(stage: &Stage) -> Option<Sampler> {
    stage.sink.as_ref().map(|sink| Sampler {
        url: sink.url.clone(),
        sink: "sink".to_owned(),
        history: stage.history.clone(),
        deltas: stage.deltas.clone(),
    })
}

/// Writes down what the broker's process takes, until it is dropped.
fn sample(stage: &Stage) -> AbortOnDropHandle<()> {
    let (broker, history) = (stage.broker.clone(), stage.history.clone());
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut ticks = tokio::time::interval(SAMPLE_EVERY);
        loop {
            ticks.tick().await;
            history.record(Event::Beat);
            if let Some(pid) = broker.any_pid()
                && let Some((memory, cpu_ms)) = usage(pid)
            {
                history.record(Event::Sample { memory, cpu_ms });
            }
        }
    }))
}

/// Resident bytes, at most since this was asked last, and milliseconds of processor time.
pub fn usage(pid: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    // The mark of the highest begins anew with a 5 (proc(5)); where it does not, it would never fall again.
    let anew = std::fs::write(format!("/proc/{pid}/clear_refs"), "5").is_ok();
    let name = if anew { "VmHWM:" } else { "VmRSS:" };
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some((kib << 10, cpu_ms(pid)?))
}

/// Milliseconds of processor time that a process has had.
pub fn cpu_ms(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // User and system time are fields 14 and 15; after the name in brackets comes field 3.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * TICK_MS)
}
