//! The picture that all clients of the console are sent: who has not applied what, worst first; the pair
//! matrix; rates. Made once a moment for all of them.

use crate::{
    config::PlatformConfig,
    console::{
        judge::{Facts, LaneFacts, Severity, Verdict, Why, judge, of_connector, of_lag},
        samples::{Point, Recent},
    },
    ingress::registry::Producers,
    lag::{self, Lag, Lags, SubscriptionLag},
    log::{Log, last_records},
    metrics::{
        Metrics,
        pairs::{self, Pairs},
    },
    reports::{Brief, Reports},
    state::State,
};
use hutong_proto::{Issuer, Lane, Micros};
use serde::Serialize;
use std::sync::{Arc, atomic::Ordering};

/// What a picture is made from.
#[derive(Clone)]
pub struct Sources {
    pub platforms: Arc<Vec<PlatformConfig>>,
    pub lags: Lags,
    pub log: Arc<dyn Log>,
    pub state: Arc<State>,
    pub producers: Arc<Producers>,
    pub metrics: Arc<Metrics>,
    pub reports: Arc<Reports>,
    pub started_at: Micros,
}

#[derive(Debug, Serialize)]
pub struct Picture {
    pub now_us: u64,
    pub started_at_us: u64,
    pub version: &'static str,
    pub log_id: String,
    /// The worst of the findings.
    pub severity: Severity,
    /// Worst first.
    pub findings: Vec<Finding>,
    /// In the order of their codes; rows and columns of the matrix are in this order.
    pub platforms: Vec<PlatformShape>,
    pub subscriptions: Vec<SubscriptionShape>,
    pub matrix: Matrix,
    pub rates: Point,
    pub log: LogShape,
}

/// Something that an operator should know.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub why: Why,
    /// 0 for the broker itself.
    pub platform: u32,
    /// Or the connector that it is about.
    pub subscription: String,
    pub lane: &'static str,
    pub records: u64,
    /// Age of the oldest change not applied.
    pub seconds: f64,
    /// When that change was durable; of a subscription with nothing outstanding, when it was last heard of.
    /// 0 if not known.
    pub since_us: u64,
    /// Where it is; 0 when there is none.
    pub offset: u64,
    pub issuer: u32,
    pub shard: u32,
    /// Of how many issuers something is outstanding.
    pub issuers: usize,
}

#[derive(Debug, Serialize)]
pub struct PlatformShape {
    pub code: u32,
    pub name: String,
    pub name_zh: String,
    pub severity: Severity,
    pub producers: usize,
    pub subscriptions: usize,
    pub subscriptions_connected: usize,
    /// Durable time of the last record that it issued; 0 when there is none.
    pub last_record_at_us: u64,
    pub accepted: u64,
    pub refused: u64,
    /// What its connectors keep, as they say; `None` if none of them is known.
    pub dead_letters: Option<u64>,
    /// Of its subscriptions, the worst, by lane.
    pub lag: [LaneShape; 2],
}

#[derive(Debug, Serialize)]
pub struct SubscriptionShape {
    pub platform: u32,
    pub subscription: String,
    pub state: &'static str,
    pub connected: bool,
    pub severity: Severity,
    pub why: Option<Why>,
    /// When the last ack came; 0 when none ever did.
    pub applied_at_us: u64,
    /// When its applied cursor was last seen to move; 0 if not known.
    pub moved_at_us: u64,
    pub lag: [LaneShape; 2],
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LaneShape {
    pub records: u64,
    pub seconds: f64,
    pub oldest_at_us: u64,
    pub oldest_offset: u64,
    pub oldest_issuer: u32,
    pub oldest_shard: u32,
}

impl LaneShape {
    fn of(lag: &Lag) -> LaneShape {
        LaneShape {
            records: lag.records,
            seconds: lag.seconds,
            oldest_at_us: lag.oldest_at.map_or(0, |at| at.0),
            oldest_offset: lag.oldest.map_or(0, |(offset, _)| offset.0),
            oldest_issuer: lag.oldest.map_or(0, |(_, p)| p.issuer.code()),
            oldest_shard: lag.oldest.map_or(0, |(_, p)| p.shard.0),
        }
    }

    fn worse(&mut self, other: &LaneShape) {
        if other.records > 0 && (self.records == 0 || other.seconds > self.seconds) {
            *self = *other;
        }
    }
}

/// Rows receive, columns issue; both in the order of the platforms.
#[derive(Debug, Default, Serialize)]
pub struct Matrix {
    /// By lane, then by receiver: a character an issuer. `.` nothing outstanding, `!` something, `-` not
    /// subscribed.
    pub grid: [Vec<String>; 2],
    /// By lane: receiver, issuer, records, seconds; only where something is outstanding.
    pub cells: [Vec<(usize, usize, u64, f64)>; 2],
}

#[derive(Debug, Serialize)]
pub struct LogShape {
    pub next_offset: u64,
    pub applied_offset: u64,
    pub stored_offset: u64,
    pub deltas_applied: u64,
    pub registers_estimate: u64,
    pub bytes: u64,
}

impl Picture {
    /// Of `lags` as they are now.
    pub fn take(sources: &Sources, lags: &[SubscriptionLag], recent: Recent) -> Picture {
        let now = (sources.lags.clock)();
        let mut findings = Vec::new();
        let mut subscriptions = Vec::new();
        for lag in lags {
            let (shape, finding) = subscription(lag, &recent, now);
            findings.extend(finding);
            subscriptions.push(shape);
        }
        let platforms = platforms(sources, &subscriptions, &mut findings);
        findings.extend(broker(sources));
        findings.sort_by(worst_first);
        Picture {
            now_us: now.0,
            started_at_us: sources.started_at.0,
            version: env!("CARGO_PKG_VERSION"),
            log_id: sources.log.id().to_string(),
            severity: findings.first().map_or(Severity::Good, |f| f.severity),
            findings,
            matrix: matrix(&sources.platforms, &pairs::of(&lag::samples(lags))),
            platforms,
            subscriptions,
            rates: recent.last,
            log: log_shape(sources),
        }
    }
}

fn worst_first(a: &Finding, b: &Finding) -> std::cmp::Ordering {
    let rank = |f: &Finding| {
        let broker = f.why == Why::LogPoisoned;
        (f.severity, broker, f.lane == Lane::Urgent.name())
    };
    rank(b)
        .cmp(&rank(a))
        .then(b.seconds.total_cmp(&a.seconds))
        .then(a.platform.cmp(&b.platform))
}

fn subscription(
    lag: &SubscriptionLag,
    recent: &Recent,
    now: Micros,
) -> (SubscriptionShape, Option<Finding>) {
    let s = &lag.subscription;
    let moved_at = recent.moved_at(&s.key);
    let totals = Lane::DELIVERED.map(|lane| lag.total(lane));
    let facts = Facts {
        connected: s.connected(),
        in_snapshot: s.in_snapshot.load(Ordering::Acquire),
        compacted: s.compacted.load(Ordering::Acquire),
        has_cursor: s.has_cursor(),
        lanes: Lane::DELIVERED.map(|lane| {
            let total = &totals[lane.index()];
            LaneFacts {
                records: total.records,
                seconds: total.seconds,
                still_seconds: moved_at.map_or(0.0, |at| now.seconds_since(at[lane.index()])),
                oldest: total.oldest.map(|(offset, _)| offset),
                position: s.position(lane),
            }
        }),
    };
    let verdict = judge(&facts);
    let shape = SubscriptionShape {
        platform: s.key.0.code(),
        subscription: s.key.1.clone(),
        state: state_name(&facts),
        connected: facts.connected,
        severity: verdict.severity,
        why: verdict.why,
        applied_at_us: s.applied_at.load(Ordering::Acquire),
        moved_at_us: moved_at.map_or(0, |at| at[0].max(at[1]).0),
        lag: [0, 1].map(|i| LaneShape::of(&totals[i])),
    };
    let finding = finding(&shape, &verdict, lag);
    (shape, finding)
}

fn finding(shape: &SubscriptionShape, verdict: &Verdict, lag: &SubscriptionLag) -> Option<Finding> {
    let why = verdict.why?;
    let lane = &shape.lag[verdict.lane.index()];
    let outstanding = |lags: &&[Lag; 2]| lags[verdict.lane.index()].records > 0;
    Some(Finding {
        severity: verdict.severity,
        why,
        platform: shape.platform,
        subscription: shape.subscription.clone(),
        lane: verdict.lane.name(),
        records: lane.records,
        seconds: lane.seconds,
        since_us: match lane.records {
            0 => shape.applied_at_us,
            _ => lane.oldest_at_us,
        },
        offset: lane.oldest_offset,
        issuer: lane.oldest_issuer,
        shard: lane.oldest_shard,
        issuers: lag.pairs.values().filter(outstanding).count(),
    })
}

fn state_name(facts: &Facts) -> &'static str {
    match (facts.compacted, facts.in_snapshot, facts.connected) {
        (true, _, _) => "compacted",
        (_, true, true) => "snapshot",
        (_, _, true) => "live",
        _ => "away",
    }
}

fn platforms(
    sources: &Sources,
    subscriptions: &[SubscriptionShape],
    findings: &mut Vec<Finding>,
) -> Vec<PlatformShape> {
    let producers = sources.producers.connected();
    let connectors = sources.reports.brief();
    let last = last_records(&sources.log.partitions());
    let shape = |p: &PlatformConfig| {
        let own = || {
            subscriptions
                .iter()
                .filter(|s| s.platform == p.issuer.code())
        };
        let mut lag = [LaneShape::default(); 2];
        for s in own() {
            lag.iter_mut().zip(&s.lag).for_each(|(a, b)| a.worse(b));
        }
        PlatformShape {
            code: p.issuer.code(),
            name: p.name.clone(),
            name_zh: p.name_zh.clone(),
            severity: own()
                .map(|s| s.severity)
                .max()
                .unwrap_or(Severity::Note)
                .max(worst_connector(&connectors, p.issuer)),
            producers: producers.get(&p.issuer).copied().unwrap_or(0),
            subscriptions: own().count(),
            subscriptions_connected: own().filter(|s| s.connected).count(),
            last_record_at_us: last.get(&p.issuer).map_or(0, |at| at.0),
            accepted: sources.metrics.accepted_total(p.issuer),
            refused: sources.metrics.refused_total(p.issuer),
            dead_letters: dead_letters(&connectors, p.issuer),
            lag,
        }
    };
    let mut shapes: Vec<PlatformShape> = sources.platforms.iter().map(shape).collect();
    shapes.sort_by_key(|p| p.code);
    findings.extend(connectors.iter().filter_map(about_connector));
    for p in &shapes {
        if p.subscriptions == 0 {
            findings.push(note(Why::NotSubscribed, p.code, 0));
        }
        if p.producers == 0 {
            findings.push(note(Why::NoProducer, p.code, p.last_record_at_us));
        }
    }
    shapes
}

fn of_platform(connectors: &[Brief], of: Issuer) -> impl Iterator<Item = &Brief> {
    connectors.iter().filter(move |c| c.platform == of)
}

fn dead_letters(connectors: &[Brief], of: Issuer) -> Option<u64> {
    let own = of_platform(connectors, of).map(|c| c.dead_letters);
    own.reduce(u64::saturating_add)
}

/// What is worth a note is among the findings, and makes nobody's state a worse one.
fn worst_connector(connectors: &[Brief], of: Issuer) -> Severity {
    let own = of_platform(connectors, of).map(|c| of_connector(c.state, c.silent).0);
    let worst = own.max().unwrap_or(Severity::Good);
    match worst {
        Severity::Note => Severity::Good,
        worst => worst,
    }
}

fn about_connector(connector: &Brief) -> Option<Finding> {
    let (severity, why) = of_connector(connector.state, connector.silent);
    why.map(|why| Finding {
        severity,
        subscription: connector.connector.clone(),
        ..note(why, connector.platform.code(), connector.since_us)
    })
}

/// About a platform as a whole.
fn note(why: Why, platform: u32, since_us: u64) -> Finding {
    Finding {
        severity: Severity::Note,
        why,
        platform,
        subscription: String::new(),
        lane: "",
        records: 0,
        seconds: 0.0,
        since_us,
        offset: 0,
        issuer: 0,
        shard: 0,
        issuers: 0,
    }
}

fn broker(sources: &Sources) -> Option<Finding> {
    sources.log.poisoned().map(|_| Finding {
        severity: Severity::Critical,
        ..note(Why::LogPoisoned, 0, 0)
    })
}

fn log_shape(sources: &Sources) -> LogShape {
    let applied = sources.state.applied();
    let partitions = sources.log.partitions();
    LogShape {
        next_offset: sources.log.next_offset().0,
        applied_offset: applied.next.0,
        stored_offset: sources.state.stored().next.0,
        deltas_applied: applied.deltas,
        registers_estimate: sources.state.registers_estimate(),
        bytes: partitions.iter().map(|p| p.bytes_estimate).sum(),
    }
}

fn matrix(platforms: &[PlatformConfig], pairs: &Pairs) -> Matrix {
    let mut codes: Vec<Issuer> = platforms.iter().map(|p| p.issuer).collect();
    codes.sort_unstable();
    let mut matrix = Matrix::default();
    for lane in Lane::DELIVERED {
        for (row, receiver) in codes.iter().enumerate() {
            let mut line = String::with_capacity(codes.len());
            for (column, issuer) in codes.iter().enumerate() {
                let pair = pairs.get(&(*issuer, lane, *receiver));
                line.push(match pair {
                    None => '-',
                    Some(pair) if pair.records == 0 => '.',
                    Some(_) => '!',
                });
                if let Some(pair) = pair.filter(|pair| pair.records > 0) {
                    let cell = (row, column, pair.records, pair.seconds);
                    matrix.cells[lane.index()].push(cell);
                }
            }
            matrix.grid[lane.index()].push(line);
        }
    }
    matrix
}

/// The pairs of one receiver, for its own page.
#[derive(Debug, Serialize)]
pub struct PairShape {
    pub subscription: String,
    pub issuer: u32,
    /// By lane: what is late in one says nothing of the other.
    pub severity: [Severity; 2],
    pub lag: [LaneShape; 2],
}

pub fn pairs_of(lags: &[SubscriptionLag], receiver: Issuer) -> Vec<PairShape> {
    let mut pairs = Vec::new();
    for lag in lags.iter().filter(|l| l.subscription.key.0 == receiver) {
        for (issuer, lanes) in &lag.pairs {
            let severity = Lane::DELIVERED.map(|lane| of_lag(lane, lanes[lane.index()].seconds));
            pairs.push(PairShape {
                subscription: lag.subscription.key.1.clone(),
                issuer: issuer.code(),
                severity,
                lag: [0, 1].map(|i| LaneShape::of(&lanes[i])),
            });
        }
    }
    pairs
}
