//! What one subscription looks like to somebody who has to act: how bad it is, and why. Pure.

use hutong_proto::{Lane, Offset, api::ConnectorState};
use serde::Serialize;

/// From when on lag is worth a look, and from when on somebody must act, in seconds by lane.
const WARNING: [f64; 2] = [3.0, 30.0];
const CRITICAL: [f64; 2] = [10.0, 300.0];
/// An applied cursor that has not moved for so long, with something to apply, stands still. Longer than a look, and
/// shorter than what makes a warning.
const STILL_SECONDS: f64 = 1.5;

/// The worst is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Good,
    Note,
    Warning,
    Critical,
}

/// Why something is not applied yet. The console has a text and an advice for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Its cursor is older than what the log keeps.
    Compacted,
    /// It is not connected, and never applied anything.
    NeverStarted,
    NotConnected,
    /// It is still being sent the values of the beginning.
    InSnapshot,
    /// The oldest record was not sent: it gives no credit, or its line takes nothing.
    NotTaking,
    /// It was sent, and the applied cursor stands still.
    NotApplying,
    /// It moves, but not fast enough.
    Slow,
    /// No subscription at all.
    NotSubscribed,
    /// Nobody publishes for it.
    NoProducer,
    /// It has ended, and says that somebody has to change something.
    ConnectorFailed,
    /// It reported, and does so no more, and has not said that it ends.
    ConnectorSilent,
    /// The broker itself takes nothing.
    LogPoisoned,
}

/// What is known of a subscription at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub connected: bool,
    pub in_snapshot: bool,
    pub compacted: bool,
    /// It ever said that it applied something.
    pub has_cursor: bool,
    /// By lane.
    pub lanes: [LaneFacts; 2],
}

#[derive(Clone, Copy, Debug, Default)]
pub struct LaneFacts {
    pub records: u64,
    pub seconds: f64,
    /// Since its applied cursor moved, as far as was looked.
    pub still_seconds: f64,
    pub oldest: Option<Offset>,
    /// Everything below was sent, as far as wanted.
    pub position: Offset,
}

/// How bad, why, and in which lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub severity: Severity,
    pub why: Option<Why>,
    pub lane: Lane,
}

pub fn judge(facts: &Facts) -> Verdict {
    let of = |lane: Lane| of_lag(lane, facts.lanes[lane.index()].seconds);
    // Urgent first, also when both are equally bad.
    let lane = match of(Lane::Bulk) > of(Lane::Urgent) || nothing_urgent(facts) {
        true => Lane::Bulk,
        false => Lane::Urgent,
    };
    let why = why(facts, &facts.lanes[lane.index()]);
    let least = match why {
        Some(Why::Compacted) => Severity::Critical,
        Some(Why::NotConnected) => Severity::Warning,
        Some(Why::NeverStarted | Why::InSnapshot) => Severity::Note,
        _ => Severity::Good,
    };
    let severity = of(lane).max(least);
    Verdict {
        severity,
        // A record that is just on its way needs no reason.
        why: why.filter(|_| severity > Severity::Good),
        lane,
    }
}

fn nothing_urgent(facts: &Facts) -> bool {
    let records = |lane: Lane| facts.lanes[lane.index()].records;
    records(Lane::Urgent) == 0 && records(Lane::Bulk) > 0
}

/// How bad it is what a connector says of itself, and why.
pub fn of_connector(state: ConnectorState, silent: bool) -> (Severity, Option<Why>) {
    match state {
        ConnectorState::Failed => (Severity::Warning, Some(Why::ConnectorFailed)),
        _ if silent => (Severity::Note, Some(Why::ConnectorSilent)),
        ConnectorState::Degraded => (Severity::Note, None),
        _ => (Severity::Good, None),
    }
}

/// How bad a lag is.
pub fn of_lag(lane: Lane, seconds: f64) -> Severity {
    match seconds {
        s if s >= CRITICAL[lane.index()] => Severity::Critical,
        s if s >= WARNING[lane.index()] => Severity::Warning,
        _ => Severity::Good,
    }
}

fn why(facts: &Facts, lane: &LaneFacts) -> Option<Why> {
    if facts.compacted {
        return Some(Why::Compacted);
    }
    if !facts.connected {
        return Some(match facts.has_cursor {
            true => Why::NotConnected,
            false => Why::NeverStarted,
        });
    }
    if facts.in_snapshot {
        return Some(Why::InSnapshot);
    }
    let oldest = lane.oldest?;
    if lane.still_seconds < STILL_SECONDS {
        return Some(Why::Slow);
    }
    Some(match lane.position > oldest {
        true => Why::NotApplying,
        false => Why::NotTaking,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: Facts = Facts {
        connected: true,
        in_snapshot: false,
        compacted: false,
        has_cursor: true,
        lanes: [LaneFacts {
            records: 0,
            seconds: 0.0,
            still_seconds: 20.0,
            oldest: None,
            position: Offset(9),
        }; 2],
    };

    fn behind(lane: Lane, seconds: f64, oldest: u64) -> Facts {
        let mut facts = LIVE;
        facts.lanes[lane.index()] = LaneFacts {
            records: 1,
            seconds,
            still_seconds: 20.0,
            oldest: Some(Offset(oldest)),
            position: Offset(9),
        };
        facts
    }

    fn check(facts: Facts, severity: Severity, why: Option<Why>, lane: Lane) {
        let expected = Verdict {
            severity,
            why,
            lane,
        };
        assert_eq!(judge(&facts), expected, "{facts:?}");
    }

    #[test]
    fn a_lag_is_judged_by_its_age_and_explained_by_where_the_change_is() {
        use Lane::{Bulk, Urgent};
        use Severity::{Critical, Good, Warning};
        let urgent = |seconds| behind(Urgent, seconds, 4);
        check(LIVE, Good, None, Urgent);
        check(urgent(0.4), Good, None, Urgent);
        check(urgent(4.0), Warning, Some(Why::NotApplying), Urgent);
        check(urgent(4e4), Critical, Some(Why::NotApplying), Urgent);
        let not_sent = behind(Urgent, 4.0, 9);
        check(not_sent, Warning, Some(Why::NotTaking), Urgent);
        let mut moving = urgent(4.0);
        moving.lanes[0].still_seconds = 0.2;
        // The other lane has nothing to wait for, and moves with the log.
        let mut other = urgent(4.0);
        other.lanes[1].still_seconds = 0.0;
        check(other, Warning, Some(Why::NotApplying), Urgent);
        check(moving, Warning, Some(Why::Slow), Urgent);
        check(behind(Bulk, 4.0, 4), Good, None, Bulk);
        let bulk = behind(Bulk, 400.0, 4);
        check(bulk, Critical, Some(Why::NotApplying), Bulk);
    }

    #[test]
    fn who_is_not_there_is_told_also_when_nothing_is_outstanding() {
        use Severity::{Critical, Note, Warning};
        let mut away = LIVE;
        away.connected = false;
        check(away, Warning, Some(Why::NotConnected), Lane::Urgent);
        away.has_cursor = false;
        check(away, Note, Some(Why::NeverStarted), Lane::Urgent);
        away.compacted = true;
        check(away, Critical, Some(Why::Compacted), Lane::Urgent);
        let mut beginning = behind(Lane::Urgent, 4.0, 4);
        beginning.in_snapshot = true;
        check(beginning, Warning, Some(Why::InSnapshot), Lane::Urgent);
    }

    #[test]
    fn urgent_comes_first_when_both_lanes_are_as_bad() {
        let mut facts = behind(Lane::Urgent, 10.0, 4);
        facts.lanes[1] = behind(Lane::Bulk, 9_000.0, 2).lanes[1];
        assert_eq!(judge(&facts).lane, Lane::Urgent);
        facts.lanes[0].seconds = 3.0;
        assert_eq!(judge(&facts).lane, Lane::Bulk);
    }
}
