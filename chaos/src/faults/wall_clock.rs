//! The broker's clock is set ahead or back.

use crate::{error::ChaosError, history::Proof, stage::Stage};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(100);
/// The clock is looked up again every second.
const SEEN_MAX: Duration = Duration::from_secs(10);
/// Of an answer that was on its way, and of a step that is only about right.
const TOLERANCE_S: f64 = 3.0;

/// Set right when dropped.
pub struct Stepped<'a> {
    stage: &'a Stage,
    wanted_s: i64,
    seen_s: f64,
}

/// How far the broker's clock is ahead of ours.
async fn ahead_s(stage: &Stage) -> Result<f64, ChaosError> {
    let broker = stage.status().await?.now_us;
    let ours = stage.history.clock().wall_now().0;
    Ok((broker as f64 - ours as f64) / 1e6)
}

async fn wait_for(stage: &Stage, wanted_s: i64) -> Result<f64, ChaosError> {
    let mut seen = ahead_s(stage).await?;
    let moved = async {
        while (seen - wanted_s as f64).abs() > TOLERANCE_S {
            tokio::time::sleep(POLL).await;
            seen = ahead_s(stage).await?;
        }
        Ok::<_, ChaosError>(())
    };
    match tokio::time::timeout(SEEN_MAX, moved).await {
        Ok(moved) => moved.map(|()| seen),
        // The proof says what was seen instead.
        Err(_) => ahead_s(stage).await,
    }
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
            seen_s: 0.0,
        };
        stepped.seen_s = wait_for(stage, wanted_s).await?;
        Ok(stepped)
    }

    pub async fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        self.stage.set_clock(0)?;
        let after = wait_for(self.stage, 0).await?;
        let holds = (self.seen_s - self.wanted_s as f64).abs() <= TOLERANCE_S;
        Ok(vec![
            Proof::new(
                "seconds by which the broker's clock was ahead of ours",
                "互通时钟领先于演练时钟的秒数",
                format!("{:.1}", self.seen_s),
                holds,
            ),
            Proof::new(
                "the same after it was set right",
                "校正之后",
                format!("{after:.1}"),
                after.abs() <= TOLERANCE_S,
            ),
        ])
    }
}

impl Drop for Stepped<'_> {
    fn drop(&mut self) {
        drop(self.stage.set_clock(0));
    }
}
