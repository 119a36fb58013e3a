//! The broker's clock is set ahead or back.

use crate::{error::ChaosError, faults::Undone, history::Proof, stage::Stage, text::Text};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(100);
/// The broker's clock reads its file every second.
const SEEN_MAX: Duration = Duration::from_secs(10);
/// Of an answer that was on its way, and of a step that is only about right.
const TOLERANCE_S: f64 = 3.0;

/// Set right when dropped.
pub struct Stepped<'a> {
    stage: &'a Stage,
    wanted_s: i64,
    seen_s: Option<f64>,
}

/// How far the broker's clock is ahead of ours.
async fn ahead_s(stage: &Stage) -> Result<f64, ChaosError> {
    let broker = stage.status().await?.now_us;
    let ours = stage.history.clock().wall_now().0;
    Ok((broker as f64 - ours as f64) / 1e6)
}

/// What was seen last; nothing when the broker did not answer.
async fn wait_for(stage: &Stage, wanted_s: i64) -> Option<f64> {
    let mut seen = None;
    let moved = async {
        loop {
            // It may be down for another reason just now.
            seen = ahead_s(stage).await.ok().or(seen);
            if seen.is_some_and(|seen| (seen - wanted_s as f64).abs() <= TOLERANCE_S) {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    // What was seen instead is the answer.
    drop(tokio::time::timeout(SEEN_MAX, moved).await);
    seen
}

impl<'a> Stepped<'a> {
    pub async fn begin(
        stage: &'a Stage,
        by: Duration,
        back: bool,
    ) -> Result<Stepped<'a>, ChaosError> {
        let seconds = i64::try_from(by.as_secs()).unwrap_or(i64::MAX);
        let wanted_s = if back { -seconds } else { seconds };
        stage.set_clock(wanted_s)?;
        let mut stepped = Stepped {
            stage,
            wanted_s,
            seen_s: None,
        };
        stepped.seen_s = wait_for(stage, wanted_s).await;
        Ok(stepped)
    }

    pub fn heal(self) -> Result<Undone<'a>, ChaosError> {
        self.stage.set_clock(0)?;
        let stage = self.stage;
        let (seen, wanted) = (self.seen_s, self.wanted_s as f64);
        let holds = seen.is_some_and(|seen| (seen - wanted).abs() <= TOLERANCE_S);
        let proof = vec![Proof::new(
            "seconds by which the broker's clock was ahead of ours",
            "互通时钟领先于演练时钟的秒数",
            seen.map_or(Text::new("no answer", "无应答"), |seen| {
                Text::same(format!("{seen:.1}"))
            }),
            holds,
        )];
        Ok(Undone::of_broker(stage, proof))
    }
}

impl Drop for Stepped<'_> {
    fn drop(&mut self) {
        drop(self.stage.set_clock(0));
    }
}
