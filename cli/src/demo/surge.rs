//! The mass-testing surge: an open-loop load. Every delta has a moment at which it is due, fixed before;
//! latency counts from that moment, so a slow broker cannot slow the clock that judges it.

use super::{
    fleet::Fleet,
    outbox::{Change, Outbox},
    people::Population,
    platform::{Platform, latency_histogram},
    platforms,
    report::{Lanes, LiveLine},
};
use crate::{errors::CliError, output::Screen, times};
use hdrhistogram::Histogram;
use hutong_proto::{Lane, Micros};
use std::{sync::Arc, time::Duration};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Parts of the load that are urgent: colours, corrections, positive tests.
const URGENT_PART: f64 = 0.015;
/// How often a source sends what is due: at once for what is urgent, gathered for what can wait.
const URGENT_TICK: Duration = Duration::from_millis(10);
const BULK_TICK: Duration = Duration::from_millis(100);
/// A source that fell behind sends batches of this size.
const BATCH_DELTAS_MAX: u64 = 2000;
/// What is due is still sent for this long after the end; then the rest counts as held back.
const GRACE: Duration = Duration::from_secs(1);
/// A source that still waits for credit so long after the end will not get any.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// When each delta of an open-loop load is due.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    start: Instant,
    start_us: u64,
    per_second: f64,
    total: u64,
}

impl Pace {
    pub fn new(start: Instant, start_at: Micros, per_second: f64, length: Duration) -> Pace {
        Pace {
            start,
            start_us: start_at.0,
            per_second,
            total: (per_second * length.as_secs_f64()).round() as u64,
        }
    }

    /// How many are due by `now`.
    pub fn due(&self, now: Instant) -> u64 {
        let seconds = now.saturating_duration_since(self.start).as_secs_f64();
        ((seconds * self.per_second).floor() as u64).min(self.total)
    }

    /// The moment at which number `i`, from 0, is due: the one at which [`Pace::due`] first counts it.
    pub fn at(&self, i: u64) -> Micros {
        Micros(self.start_us + ((i + 1) as f64 * 1e6 / self.per_second) as u64)
    }
}

/// How a surge went.
#[derive(Debug)]
pub struct Surge {
    pub latency: Lanes<Histogram<u64>>,
    /// Due, but not sent in time because the broker gave no credit.
    pub held_back: u64,
}

/// Runs the surge and prints a line each second.
pub async fn run(
    fleet: &Fleet,
    screen: &Screen,
    rate: u32,
    length: Duration,
) -> Result<Surge, CliError> {
    let start = Instant::now() + Duration::from_millis(50);
    let start_at = Micros(times::now().0 + 50_000);
    let shares = platforms::shares(fleet.places);
    let mut loads = JoinSet::new();
    for (platform, share) in fleet.platforms.iter().zip(shares) {
        let part = platform.index as f64 / fleet.platforms.len() as f64;
        for (lane, lane_part, tick) in [
            (Lane::Urgent, URGENT_PART, URGENT_TICK),
            (Lane::Bulk, 1.0 - URGENT_PART, BULK_TICK),
        ] {
            let pace = Pace::new(start, start_at, f64::from(rate) * share * lane_part, length);
            let load = Load {
                outbox: Arc::clone(fleet.outbox(platform.index, lane)),
                people: fleet.population(platform.index, lane),
                pace,
                // The sources do not all tick at the same moment, as 32 platforms would not.
                first_tick: start + tick.mul_f64(part),
                tick,
                end: start + length,
            };
            loads.spawn(load.run());
        }
    }
    let mut latency = [latency_histogram(), latency_histogram()];
    watch(fleet, screen, start, length, &mut latency).await?;
    let held_back = tokio::time::timeout(STUCK_AFTER, finish(loads))
        .await
        .map_err(|_| {
            CliError::Broken(format!(
                "the broker has given some source no credit for {} s after the surge",
                STUCK_AFTER.as_secs()
            ))
        })??;
    let [urgent, bulk] = latency;
    Ok(Surge {
        latency: Lanes { urgent, bulk },
        held_back,
    })
}

/// Waits for the sources; returns how many deltas they held back.
async fn finish(mut loads: JoinSet<u64>) -> Result<u64, CliError> {
    let mut held_back = 0;
    while let Some(load) = loads.join_next().await {
        held_back += load.map_err(|e| CliError::Broken(format!("a load task died: {e}")))?;
    }
    Ok(held_back)
}

/// Prints what happened in each second.
async fn watch(
    fleet: &Fleet,
    screen: &Screen,
    start: Instant,
    length: Duration,
    totals: &mut [Histogram<u64>; 2],
) -> Result<(), CliError> {
    screen.line(screen.bold(LiveLine::HEADER))?;
    let mut before = fleet.totals();
    let seconds = length.as_secs_f64().ceil() as u64;
    for second in 1..=seconds {
        sleep_until(start + Duration::from_secs(second)).await;
        let now = fleet.totals();
        let mut window = [latency_histogram(), latency_histogram()];
        let mut slowest: Option<(u64, &Platform)> = None;
        for platform in &fleet.platforms {
            let p99 = platform.take_latency(&mut window);
            let worst = p99[0].max(p99[1]);
            if slowest.is_none_or(|(us, _)| worst > us) {
                slowest = Some((worst, platform));
            }
        }
        for (total, seen) in totals.iter_mut().zip(&window) {
            total
                .add(seen)
                .expect("all histograms have the same bounds");
        }
        let line = LiveLine {
            second,
            published: now.published - before.published,
            acknowledged: now.acknowledged - before.acknowledged,
            delivered: now.delivered - before.delivered,
            p99_us: Lanes {
                urgent: p99_of(&window[0]),
                bulk: p99_of(&window[1]),
            },
            behind: fleet.behind().await,
            slowest: slowest.map(|(us, p)| (p.place.name, us)),
        };
        screen.line(line.render())?;
        before = now;
    }
    Ok(())
}

fn p99_of(histogram: &Histogram<u64>) -> Option<u64> {
    (!histogram.is_empty()).then(|| histogram.value_at_quantile(0.99))
}

/// The load of one lane of one platform.
struct Load {
    outbox: Arc<Outbox>,
    people: Population,
    pace: Pace,
    first_tick: Instant,
    tick: Duration,
    end: Instant,
}

impl Load {
    /// Sends what is due, tick by tick; returns how many were held back.
    async fn run(mut self) -> u64 {
        let mut made = 0;
        let mut next_tick = self.first_tick;
        while made < self.pace.total {
            sleep_until(next_tick).await;
            // Ticks that were missed are not made up for: the next one sends all that is due.
            next_tick = (next_tick + self.tick).max(Instant::now());
            let due = self.pace.due(Instant::now());
            while made < due {
                if Instant::now() > self.end + GRACE {
                    return self.pace.total - made;
                }
                let count = (due - made).min(BATCH_DELTAS_MAX);
                let changes: Vec<Change> = (made..made + count)
                    .map(|i| self.people.next(self.pace.at(i)))
                    .collect();
                made += count;
                self.outbox.commit(changes).await;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_due_at_the_end_and_nothing_at_the_start() {
        let start = Instant::now();
        let pace = Pace::new(start, Micros(1_000), 300.0, Duration::from_secs(2));
        assert_eq!(pace.due(start), 0);
        assert_eq!(pace.due(start + Duration::from_secs(1)), 300);
        assert_eq!(pace.due(start + Duration::from_secs(2)), 600);
        assert_eq!(pace.due(start + Duration::from_secs(60)), 600);
    }

    #[test]
    fn a_delta_is_due_when_its_moment_has_come_also_at_odd_rates() {
        let start = Instant::now();
        let pace = Pace::new(start, Micros(0), 7.3, Duration::from_secs(30));
        for i in 0..pace.total {
            let at = Duration::from_micros(pace.at(i).0);
            assert!(pace.due(start + at + Duration::from_micros(2)) > i);
            assert!(pace.due(start + at.saturating_sub(Duration::from_micros(2))) <= i);
        }
    }

    #[test]
    fn a_late_sender_does_not_move_the_moments() {
        let pace = Pace::new(Instant::now(), Micros(500), 1000.0, Duration::from_secs(1));
        assert_eq!(pace.at(0), Micros(1_500));
        assert_eq!(pace.at(999), Micros(1_000_500));
    }
}
