//! Memory or processor taken away, by a control group.

use crate::{
    error::ChaosError,
    faults::Undone,
    history::Proof,
    stage::{Stage, cgroup::Cgroup, cpu_ms},
    text::Text,
};
use std::time::{Duration, Instant};

/// For which the broker is watched before processor is taken from it.
const LOOK: Duration = Duration::from_secs(1);
/// The kernel gives no less than a millisecond of a period.
const CORES_MIN: f64 = 0.02;

enum What {
    Memory {
        reached: u64,
        killed: u64,
        limit: u64,
        used: u64,
    },
    Cpu {
        throttled: u64,
        /// What it gets and what it used before, in processors.
        cores: f64,
        used: f64,
    },
}

/// A limit; lifted when dropped.
pub struct Squeeze<'a> {
    stage: &'a Stage,
    group: &'a Cgroup,
    what: What,
}

/// Of a second before, in processors; nothing of a broker that is down or has just been started.
async fn used_cores(stage: &Stage) -> Option<f64> {
    let pid = stage.broker.pid()?;
    let before = cpu_ms(pid)?;
    let began = Instant::now();
    tokio::time::sleep(LOOK).await;
    let used = cpu_ms(pid)?.saturating_sub(before);
    Some(used as f64 / 1000.0 / began.elapsed().as_secs_f64())
}

fn group(stage: &Stage) -> Result<&Cgroup, ChaosError> {
    let none = || ChaosError::told("the broker is in no control group", "互通不在任何控制组中");
    stage.cgroup.as_ref().ok_or_else(none)
}

impl<'a> Squeeze<'a> {
    pub fn memory(stage: &'a Stage, limit: u64) -> Result<Squeeze<'a>, ChaosError> {
        let group = group(stage)?;
        let (reached, killed) = group.memory_events();
        let mut squeeze = Squeeze {
            stage,
            group,
            what: What::Memory {
                reached,
                killed,
                limit: 0,
                used: 0,
            },
        };
        let (limit, used) = group.squeeze_memory(limit)?;
        squeeze.what = What::Memory {
            reached,
            killed,
            limit,
            used,
        };
        Ok(squeeze)
    }

    /// At most so much, and at most three quarters of what the broker uses: who needs less than the limit is not squeezed.
    pub async fn cpu(stage: &'a Stage, most: f64) -> Result<Squeeze<'a>, ChaosError> {
        let group = group(stage)?;
        let used = used_cores(stage).await;
        let cores = used
            .map_or(most, |used| most.min(used * 0.75))
            .max(CORES_MIN);
        let squeeze = Squeeze {
            stage,
            group,
            what: What::Cpu {
                throttled: group.throttled(),
                cores,
                used: used.unwrap_or_default(),
            },
        };
        group.limit_cpu(Some(cores))?;
        Ok(squeeze)
    }

    pub fn heal(self) -> Undone<'a> {
        let proof = match self.what {
            What::Memory {
                reached,
                killed,
                limit,
                used,
            } => {
                let (now_reached, now_killed) = self.group.memory_events();
                let (reached, killed) = (now_reached - reached, now_killed - killed);
                Proof::new(
                    "times that the limit was reached, and processes killed for it; the limit, of the bytes used before",
                    "触及上限的次数，以及因此被终止的进程数；上限与此前所用字节数",
                    Text::same(format!("{reached}, {killed}; {limit} / {used}")),
                    // At a limit of what is used anyway the page cache would reach it, and nothing be taken away.
                    killed > 0 || (reached > 0 && limit < used / 8 * 7),
                )
            }
            What::Cpu {
                throttled,
                cores,
                used,
            } => {
                let throttled = self.group.throttled() - throttled;
                Proof::new(
                    "periods of 100 ms in which the broker had to wait; the processors that it got, of those it used before",
                    "互通被限流的 100 毫秒周期数；所得处理器数与此前所用处理器数",
                    Text::same(format!("{throttled}; {cores:.2} / {used:.2}")),
                    throttled > 0,
                )
            }
        };
        let stage = self.stage;
        drop(self);
        Undone::of_broker(stage, vec![proof])
    }
}

impl Drop for Squeeze<'_> {
    fn drop(&mut self) {
        let lifted = match self.what {
            What::Memory { .. } => self.group.limit_memory(None),
            What::Cpu { .. } => self.group.limit_cpu(None),
        };
        if let Err(error) = lifted {
            eprintln!("hutong-chaos: {error}");
        }
    }
}
