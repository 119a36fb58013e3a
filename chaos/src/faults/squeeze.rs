//! Memory or processor taken away, by a control group.

use crate::{
    error::ChaosError,
    faults::Undone,
    history::Proof,
    stage::{Stage, cgroup::Cgroup},
    text::Text,
};

enum What {
    Memory {
        reached: u64,
        killed: u64,
        limit: u64,
        used: u64,
    },
    Cpu {
        throttled: u64,
    },
}

/// A limit; lifted when dropped.
pub struct Squeeze<'a> {
    stage: &'a Stage,
    group: &'a Cgroup,
    what: What,
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

    pub fn cpu(stage: &'a Stage, cores: f64) -> Result<Squeeze<'a>, ChaosError> {
        let group = group(stage)?;
        let squeeze = Squeeze {
            stage,
            group,
            what: What::Cpu {
                throttled: group.throttled(),
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
            What::Cpu { throttled } => {
                let throttled = self.group.throttled() - throttled;
                Proof::new(
                    "periods of 100 ms in which the broker had to wait",
                    "互通被限流的 100 毫秒周期数",
                    throttled,
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
