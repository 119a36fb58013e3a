//! A broker that dies at an edge of a commit, at a place in its own code. Only a broker that was built for drills
//! has such places.

use crate::{
    error::ChaosError,
    faults::{READY_MAX, Undone},
    history::Proof,
    stage::{
        Stage,
        process::{Hold, State},
    },
    text::Text,
};
use hutong_plants::{Failpoint, Order, Reached};
use std::path::PathBuf;

/// What the broker is told, until this is dropped.
struct Told(PathBuf);

impl Drop for Told {
    fn drop(&mut self) {
        // With the folder of the drill it goes in any case.
        std::fs::remove_file(&self.0).ok();
    }
}

/// The broker dies when it comes there, and is held down.
pub struct AtEdge<'a> {
    stage: &'a Stage,
    nth: u32,
    told: Told,
    hold: Hold,
    pid: u32,
}

impl<'a> AtEdge<'a> {
    pub async fn begin(
        stage: &'a Stage,
        edge: Failpoint,
        nth: u32,
    ) -> Result<AtEdge<'a>, ChaosError> {
        stage.broker.ready(READY_MAX).await?;
        let number = stage.serial();
        let order = Order { edge, nth, number };
        let file = stage.edge_file();
        let give = || {
            let given = order.give(&file);
            given.map_err(ChaosError::file("cannot write", &file))
        };
        let told = Told(file.clone());
        let (hold, pid) = if edge.is_of_a_start() {
            // Killed first, so that it comes to the edge of its next start; that one is the last.
            let (down, _) = stage.broker.kill().await?;
            give()?;
            drop(down);
            let pid = stage.broker.started(READY_MAX).await?;
            (stage.broker.hold(), pid)
        } else {
            let pid = stage.broker.pid_or_error()?;
            let hold = stage.broker.hold();
            give()?;
            (hold, pid)
        };
        Ok(AtEdge {
            stage,
            nth,
            told,
            hold,
            pid,
        })
    }

    pub fn heal(self) -> Undone<'a> {
        let file = self.told.0.clone();
        // Nobody may die of it any more when its end is looked at.
        drop(self.told);
        let reached = Reached::of(&file);
        let times = reached.map_or(0, |reached| reached.times);
        let is_it = reached.is_some_and(|reached| reached.pid == self.pid);
        let down = self.stage.broker.state() == State::Down;
        drop(self.hold);
        let (nth, pid) = (self.nth, self.pid);
        let proof = vec![
            Proof::new(
                "times that the process came to the edge since it was told to die there",
                "进程自收到指令起到达该边界的次数",
                Text::new(
                    format!("{times} of {nth}, process {pid}"),
                    format!("{nth} 次中的第 {times} 次，进程 {pid}"),
                ),
                is_it && times == nth,
            ),
            Proof::new(
                "the broker died there",
                "互通在此终止",
                if down {
                    ("it ended", "已终止")
                } else {
                    ("it lives", "仍存活")
                },
                down,
            ),
        ];
        Undone::of_broker(self.stage, proof)
    }
}
