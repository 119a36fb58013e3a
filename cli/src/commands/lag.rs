//! `lag`: how far behind each subscription is, and each pair of platforms.

use super::{Context, platforms::lane};
use crate::{
    errors::CliError,
    output::{Format, Grid, grouped, json_line, seconds_text},
};
use clap::Args;
use hutong_connectors::client;
use hutong_proto::{Lane, api};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::IsTerminal,
    time::Duration,
};

#[derive(Debug, Args)]
pub struct LagArgs {
    /// By pair: for each issuer and receiver the age of the oldest change not applied.
    #[arg(long)]
    pub matrix: bool,
    /// Shows it again every second until interrupted.
    #[arg(long)]
    pub watch: bool,
    /// Only what is urgent, or only bulk.
    #[arg(long, value_name = "LANE", value_parser = lane)]
    pub lane: Option<Lane>,
    /// Exits with 1 when a subscription's oldest change not applied is older than this.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub over: Option<f64>,
}

/// What counts of the lags of both lanes.
pub fn seconds_of(only: Option<Lane>, urgent: &LaneLagShape, bulk: &LaneLagShape) -> f64 {
    match only {
        Some(Lane::Urgent) => urgent.seconds,
        Some(_) => bulk.seconds,
        None => urgent.seconds.max(bulk.seconds),
    }
}

/// Nothing is over NaN, so that nobody would ever lag.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => Ok(seconds),
        _ => Err("a number of seconds is expected, such as 2.5".to_owned()),
    }
}

const WATCH_EVERY: Duration = Duration::from_secs(1);
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";

pub async fn run(context: &Context, args: &LagArgs) -> Result<(), CliError> {
    let clear = args.watch && context.format == Format::Table && std::io::stdout().is_terminal();
    let mut answered = false;
    loop {
        match look(context, args, clear).await {
            Ok(worst) if !args.watch => return judged(worst, args.over),
            Ok(_) => answered = true,
            // A broker that is started again is looked at again.
            Err(error) if args.watch && answered && error.may_pass() => {
                context.screen.line(format!("{error}; asking again"))?;
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

async fn look(context: &Context, args: &LagArgs, clear: bool) -> Result<f64, CliError> {
    match args.matrix {
        true => matrix(context, clear, args.lane).await,
        false => subscriptions(context, clear, args.lane).await,
    }
}

fn judged(worst_seconds: f64, over: Option<f64>) -> Result<(), CliError> {
    match over {
        Some(limit) if worst_seconds > limit => Err(CliError::Finding(format!(
            "the oldest change not applied is {} old, more than {}",
            seconds_text(worst_seconds),
            seconds_text(limit)
        ))),
        _ => Ok(()),
    }
}

/// One line of `lag`.
#[derive(Clone, Debug, Serialize)]
pub struct LagShape {
    pub platform: u32,
    pub subscription: String,
    /// `live`, `snapshot`, `away` or `compacted`.
    pub state: &'static str,
    pub urgent: LaneLagShape,
    pub bulk: LaneLagShape,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LaneLagShape {
    pub records: u64,
    /// Age of the oldest record not applied.
    pub seconds: f64,
    pub oldest_at_us: u64,
    /// Where that record is, and who issued it; 0 when nothing is outstanding.
    pub oldest_offset: u64,
    pub oldest_issuer: u32,
}

impl LaneLagShape {
    pub fn from_api(lag: Option<&api::LaneLag>) -> LaneLagShape {
        lag.map_or_else(LaneLagShape::default, |l| LaneLagShape {
            records: l.records,
            seconds: l.seconds,
            oldest_at_us: l.oldest_at_us,
            oldest_offset: l.oldest_offset,
            oldest_issuer: l.oldest_issuer,
        })
    }
}

pub fn state_name(s: &api::Subscription) -> &'static str {
    match (s.compacted, s.in_snapshot, s.connected) {
        (true, _, _) => "compacted",
        (_, true, true) => "snapshot",
        (_, _, true) => "live",
        _ => "away",
    }
}

impl LagShape {
    pub fn from_api(s: &api::Subscription) -> LagShape {
        LagShape {
            platform: s.platform,
            subscription: s.subscription.clone(),
            state: state_name(s),
            urgent: LaneLagShape::from_api(s.urgent.as_ref()),
            bulk: LaneLagShape::from_api(s.bulk.as_ref()),
        }
    }
}

/// Every subscription, as it is now.
pub async fn read(context: &Context) -> Result<Vec<LagShape>, CliError> {
    let mut client = client::admin(&context.endpoint).map_err(|e| context.failed(&e))?;
    let answer = client
        .list_subscriptions(api::ListSubscriptionsRequest { platform: 0 })
        .await
        .map_err(|s| context.refused(&s))?;
    let subscriptions = answer.into_inner().subscriptions;
    Ok(subscriptions.iter().map(LagShape::from_api).collect())
}

async fn subscriptions(
    context: &Context,
    clear: bool,
    lane: Option<Lane>,
) -> Result<f64, CliError> {
    let mut lags = read(context).await?;
    let worst_of = |lag: &LagShape| seconds_of(lane, &lag.urgent, &lag.bulk);
    // The worst first: that is what somebody looks for.
    lags.sort_by(|a, b| worst_of(b).total_cmp(&worst_of(a)));
    if clear {
        context.screen.line(CLEAR_SCREEN)?;
    }
    context.show(&lags, "No platform subscribes.", || {
        let mut grid = Grid::new(&[
            "platform",
            "subscription",
            "state",
            ">urgent behind",
            ">urgent records",
            ">bulk behind",
            ">bulk records",
            ">oldest",
            "of",
        ]);
        for l in &lags {
            grid.row([
                l.platform.to_string(),
                l.subscription.clone(),
                l.state.to_owned(),
                seconds_text(l.urgent.seconds),
                grouped(l.urgent.records),
                seconds_text(l.bulk.seconds),
                grouped(l.bulk.records),
                oldest(l).map_or_else(|| "-".to_owned(), |o| o.oldest_offset.to_string()),
                oldest(l).map_or_else(|| "-".to_owned(), |o| o.oldest_issuer.to_string()),
            ]);
        }
        grid
    })?;
    Ok(lags.iter().map(worst_of).fold(0.0, f64::max))
}

/// The lane whose oldest change has waited longest.
fn oldest(lag: &LagShape) -> Option<&LaneLagShape> {
    let lanes = [&lag.urgent, &lag.bulk].into_iter();
    lanes
        .filter(|lane| lane.records > 0)
        .min_by_key(|lane| lane.oldest_offset)
}

/// One pair of `lag --matrix --output json`.
#[derive(Clone, Debug, Serialize)]
pub struct PairShape {
    pub issuer: u32,
    pub receiver: u32,
    pub subscription: String,
    pub urgent: LaneLagShape,
    pub bulk: LaneLagShape,
}

pub fn pairs(answer: &api::GetLagMatrixResponse) -> Vec<PairShape> {
    let pair = |p: &api::LagPair| PairShape {
        issuer: p.issuer,
        receiver: p.receiver,
        subscription: p.subscription.clone(),
        urgent: LaneLagShape::from_api(p.urgent.as_ref()),
        bulk: LaneLagShape::from_api(p.bulk.as_ref()),
    };
    answer.pairs.iter().map(pair).collect()
}

async fn matrix(context: &Context, clear: bool, lane: Option<Lane>) -> Result<f64, CliError> {
    let mut client = client::admin(&context.endpoint).map_err(|e| context.failed(&e))?;
    let answer = client
        .get_lag_matrix(api::GetLagMatrixRequest {})
        .await
        .map_err(|s| context.refused(&s))?;
    let pairs = pairs(&answer.into_inner());
    if clear {
        context.screen.line(CLEAR_SCREEN)?;
    }
    match context.format {
        Format::Json => json_line(&pairs)?,
        Format::Table if pairs.is_empty() => {
            context
                .screen
                .line("No pair: nothing was issued, or nobody subscribes.")?;
        }
        Format::Table => {
            let lanes = lane.map_or_else(|| "both lanes".to_owned(), |lane| format!("{lane} lane"));
            context.screen.line(format!(
                "Age of the oldest change not applied, in seconds, {lanes}; rows receive, columns issue, '.' is nothing \
                 outstanding"
            ))?;
            context.screen.line(matrix_text(&pairs, lane))?;
        }
    }
    Ok(pairs
        .iter()
        .map(|p| seconds_of(lane, &p.urgent, &p.bulk))
        .fold(0.0, f64::max))
}

/// A square of short cells, as on the console's page: rows receive, columns issue. The first two digits of a code name
/// the province, where that says which it is.
fn matrix_text(pairs: &[PairShape], lane: Option<Lane>) -> String {
    let mut cells: BTreeMap<(u32, u32), f64> = BTreeMap::new();
    for p in pairs {
        let cell = cells.entry((p.receiver, p.issuer)).or_default();
        *cell = cell.max(seconds_of(lane, &p.urgent, &p.bulk));
    }
    let issuers: BTreeSet<u32> = pairs.iter().map(|p| p.issuer).collect();
    let receivers: BTreeSet<u32> = pairs.iter().map(|p| p.receiver).collect();
    let provinces: BTreeSet<u32> = issuers.iter().map(|i| i / 10_000).collect();
    let (divisor, width) = match provinces.len() == issuers.len() {
        true => (10_000, 4),
        false => (1, 6),
    };
    let mut text = String::from("        ");
    for i in &issuers {
        text.push_str(&format!(" {:>width$}", i / divisor));
    }
    for r in &receivers {
        text.push_str(&format!("\n  {r:06}"));
        for i in &issuers {
            let cell = match cells.get(&(*r, *i)) {
                None => String::new(),
                Some(s) if *s < 0.0005 => ".".to_owned(),
                Some(s) if *s < 9.95 => format!("{s:.1}"),
                Some(s) if *s < 9_999.0 => format!("{s:.0}"),
                Some(s) => format!("{:.0}h", s / 3600.0),
            };
            text.push_str(&format!(" {cell:>width$}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(issuer: u32, receiver: u32, seconds: f64) -> PairShape {
        PairShape {
            issuer,
            receiver,
            subscription: "main".to_owned(),
            urgent: LaneLagShape {
                records: 1,
                seconds,
                oldest_at_us: 1,
                oldest_offset: 1,
                oldest_issuer: issuer,
            },
            bulk: LaneLagShape::default(),
        }
    }

    #[test]
    fn the_matrix_has_a_row_for_each_receiver_and_a_column_for_each_issuer() {
        let text = matrix_text(
            &[
                pair(340_000, 510_000, 0.0),
                pair(510_000, 340_000, 39_600.0),
                pair(310_000, 340_000, 1.25),
            ],
            None,
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "           31   34   51");
        assert_eq!(lines[1], "  340000  1.2       11h");
        assert_eq!(lines[2], "  510000         .     ");
        let bulk = matrix_text(&[pair(510_000, 340_000, 39_600.0)], Some(Lane::Bulk));
        assert_eq!(bulk.lines().last(), Some("  340000    ."));
        let near = [pair(440_000, 310_000, 1.0), pair(440_300, 310_000, 2.0)];
        let text = matrix_text(&near, None);
        assert_eq!(text.lines().next(), Some("         440000 440300"));
    }

    #[test]
    fn lag_over_the_limit_is_a_finding() {
        assert!(judged(1.0, None).is_ok());
        assert!(judged(1.0, Some(2.0)).is_ok());
        let error = judged(39_600.0, Some(1.0)).expect_err("over");
        assert_eq!(error.code(), 1);
        assert!(error.to_string().contains("11.0 h"), "{error}");
    }
}
