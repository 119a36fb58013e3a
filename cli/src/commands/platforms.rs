//! `platforms`, `subscriptions`, `partitions`, `trim` and `forget`: who takes part and what is stored.

use super::{
    Context, confirmed,
    lag::{LaneLagShape, state_name},
};
use crate::{
    errors::CliError,
    output::{Grid, bytes_text, grouped, seconds_text},
    shapes::{cursor_text, kind_name, lane_name},
    times::utc,
};
use clap::Args;
use hutong_connectors::client;
use hutong_proto::{Issuer, Lane, api};
use serde::Serialize;

#[derive(Debug, Args)]
pub struct SubscriptionsArgs {
    /// Only those of this platform.
    #[arg(long, value_name = "CODE")]
    pub platform: Option<Issuer>,
}

#[derive(Debug, Args)]
pub struct TrimArgs {
    /// The partition's issuer.
    #[arg(long, value_name = "CODE")]
    pub issuer: Issuer,
    /// The partition's lane.
    #[arg(long, value_parser = lane)]
    pub lane: Lane,
    /// The partition's shard.
    #[arg(long, default_value_t = 0)]
    pub shard: u32,
    /// Records below this offset are dropped.
    #[arg(long, value_name = "OFFSET")]
    pub before: u64,
    /// Does it without asking.
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// The platform that the subscription belongs to.
    #[arg(long, value_name = "CODE")]
    pub platform: Issuer,
    /// Its name, as `hutong subscriptions` shows it.
    #[arg(long, value_name = "NAME")]
    pub subscription: String,
    /// Does it without asking.
    #[arg(long)]
    pub yes: bool,
}

/// `urgent` or `bulk`.
pub fn lane(text: &str) -> Result<Lane, String> {
    Lane::DELIVERED
        .into_iter()
        .find(|l| l.name() == text)
        .ok_or_else(|| format!("{text:?} is none of urgent, bulk"))
}

#[derive(Clone, Debug, Serialize)]
pub struct PlatformShape {
    pub code: u32,
    pub name: String,
    pub name_zh: String,
    pub shards: u32,
    pub producers_connected: u32,
    pub subscriptions_connected: u32,
    pub last_record_at_us: u64,
    pub deltas_accepted: u64,
    pub deltas_refused: u64,
}

/// All platforms, as they are now.
pub async fn read_platforms(context: &Context) -> Result<Vec<PlatformShape>, CliError> {
    let mut client = client::admin(&context.endpoint).map_err(|e| context.failed(&e))?;
    let answer = client
        .list_platforms(api::ListPlatformsRequest {})
        .await
        .map_err(|s| context.refused(&s))?;
    let platforms = answer.into_inner().platforms.into_iter();
    Ok(platforms
        .map(|p| PlatformShape {
            code: p.code,
            name: p.name,
            name_zh: p.name_zh,
            shards: p.shards,
            producers_connected: p.producers_connected,
            subscriptions_connected: p.subscriptions_connected,
            last_record_at_us: p.last_record_at_us,
            deltas_accepted: p.deltas_accepted,
            deltas_refused: p.deltas_refused,
        })
        .collect())
}

pub async fn platforms(context: &Context) -> Result<(), CliError> {
    let platforms = read_platforms(context).await?;
    context.show(&platforms, "No platform is configured.", || {
        let mut grid = Grid::new(&[
            "code",
            "name",
            "",
            ">shards",
            ">producers",
            ">subscriptions",
            ">accepted",
            ">refused",
            "last record",
        ]);
        for p in &platforms {
            grid.row([
                p.code.to_string(),
                p.name.clone(),
                p.name_zh.clone(),
                p.shards.to_string(),
                p.producers_connected.to_string(),
                p.subscriptions_connected.to_string(),
                grouped(p.deltas_accepted),
                grouped(p.deltas_refused),
                utc(p.last_record_at_us),
            ]);
        }
        grid
    })
}

#[derive(Debug, Serialize)]
struct SubscriptionShape {
    platform: u32,
    subscription: String,
    state: &'static str,
    kinds: Vec<&'static str>,
    issuers: Vec<u32>,
    lanes: Vec<&'static str>,
    include_own: bool,
    applied: String,
    sent: String,
    last_applied_at_us: u64,
    urgent: LaneLagShape,
    bulk: LaneLagShape,
}

impl SubscriptionShape {
    fn from_api(s: &api::Subscription) -> SubscriptionShape {
        let filter = s.filter.clone().unwrap_or_default();
        SubscriptionShape {
            platform: s.platform,
            subscription: s.subscription.clone(),
            state: state_name(s),
            kinds: filter.kinds.iter().map(|k| kind_name(*k)).collect(),
            issuers: filter.issuers,
            lanes: filter.lanes.iter().map(|l| lane_name(*l)).collect(),
            include_own: filter.include_own,
            applied: cursor_text(s.applied.as_ref()),
            sent: cursor_text(s.sent.as_ref()),
            last_applied_at_us: s.last_applied_at_us,
            urgent: LaneLagShape::from_api(s.urgent.as_ref()),
            bulk: LaneLagShape::from_api(s.bulk.as_ref()),
        }
    }

    fn filter_text(&self) -> String {
        let mut parts: Vec<String> = self.kinds.iter().map(|k| (*k).to_owned()).collect();
        parts.extend(self.issuers.iter().map(u32::to_string));
        parts.extend(self.lanes.iter().map(|l| (*l).to_owned()));
        if parts.is_empty() {
            parts.push("all".to_owned());
        }
        if self.include_own {
            parts.push("own too".to_owned());
        }
        parts.join(" ")
    }
}

pub async fn subscriptions(context: &Context, args: &SubscriptionsArgs) -> Result<(), CliError> {
    let mut client = client::admin(&context.endpoint).map_err(|e| context.failed(&e))?;
    let answer = client
        .list_subscriptions(api::ListSubscriptionsRequest {
            platform: args.platform.map_or(0, Issuer::code),
        })
        .await
        .map_err(|s| context.refused(&s))?;
    let subscriptions: Vec<SubscriptionShape> = answer
        .into_inner()
        .subscriptions
        .iter()
        .map(SubscriptionShape::from_api)
        .collect();
    let nobody = match args.platform {
        Some(platform) => format!("Platform {platform} has no subscription."),
        None => "No platform subscribes.".to_owned(),
    };
    context.show(&subscriptions, &nobody, || {
        let mut grid = Grid::new(&[
            "platform",
            "subscription",
            "state",
            "filter",
            "applied cursor",
            "last applied",
            ">behind",
        ]);
        for s in &subscriptions {
            grid.row([
                s.platform.to_string(),
                s.subscription.clone(),
                s.state.to_owned(),
                s.filter_text(),
                s.applied.clone(),
                utc(s.last_applied_at_us),
                seconds_text(s.urgent.seconds.max(s.bulk.seconds)),
            ]);
        }
        grid
    })
}

#[derive(Debug, Serialize)]
pub struct PartitionShape {
    issuer: u32,
    lane: &'static str,
    shard: u32,
    first_offset: u64,
    last_offset: u64,
    trimmed_below: u64,
    records: u64,
    bytes_estimate: u64,
}

/// What is stored of each partition, as it is now.
pub async fn read_partitions(context: &Context) -> Result<Vec<PartitionShape>, CliError> {
    let mut client = client::admin(&context.endpoint).map_err(|e| context.failed(&e))?;
    let answer = client
        .list_partitions(api::ListPartitionsRequest {})
        .await
        .map_err(|s| context.refused(&s))?;
    let partitions = answer.into_inner().partitions;
    Ok(partitions
        .iter()
        .map(|p| PartitionShape {
            issuer: p.issuer,
            lane: lane_name(p.lane),
            shard: p.shard,
            first_offset: p.first_offset,
            last_offset: p.last_offset,
            trimmed_below: p.trimmed_below,
            records: p.records,
            bytes_estimate: p.bytes_estimate,
        })
        .collect())
}

pub async fn partitions(context: &Context) -> Result<(), CliError> {
    let partitions = read_partitions(context).await?;
    context.show(&partitions, "Nothing is stored yet.", || {
        let mut grid = Grid::new(&[
            "issuer",
            "lane",
            ">shard",
            ">first offset",
            ">last offset",
            ">trimmed below",
            ">records",
            ">about",
        ]);
        for p in &partitions {
            grid.row([
                format!("{:06}", p.issuer),
                p.lane.to_owned(),
                p.shard.to_string(),
                p.first_offset.to_string(),
                p.last_offset.to_string(),
                p.trimmed_below.to_string(),
                grouped(p.records),
                bytes_text(p.bytes_estimate),
            ]);
        }
        grid
    })
}

#[derive(Debug, Serialize)]
struct TrimShape {
    trimmed_below: u64,
}

pub async fn trim(context: &Context, args: &TrimArgs) -> Result<(), CliError> {
    let partition = format!("{}/{}/{}", args.issuer, args.lane, args.shard);
    confirmed(
        &format!(
            "Drop all records of {partition} below offset {}?",
            args.before
        ),
        args.yes,
    )?;
    let mut client = client::admin(&context.endpoint).map_err(|e| context.failed(&e))?;
    let answer = client
        .trim_partition(api::TrimPartitionRequest {
            issuer: args.issuer.code(),
            lane: args.lane.to_api().into(),
            shard: args.shard,
            before_offset: args.before,
        })
        .await
        .map_err(|s| context.refused(&s))?;
    let shape = TrimShape {
        trimmed_below: answer.into_inner().trimmed_below,
    };
    context.show(&shape, "", || {
        let mut grid = Grid::new(&["partition", ">trimmed below"]);
        grid.row([partition, shape.trimmed_below.to_string()]);
        grid
    })
}

#[derive(Debug, Serialize)]
struct ForgetShape {
    platform: u32,
    forgotten: String,
}

pub async fn forget(context: &Context, args: &ForgetArgs) -> Result<(), CliError> {
    let name = &args.subscription;
    confirmed(
        &format!(
            "Forget the subscription {name} of platform {}?",
            args.platform
        ),
        args.yes,
    )?;
    let mut client = client::admin(&context.endpoint).map_err(|e| context.failed(&e))?;
    client
        .delete_subscription(api::DeleteSubscriptionRequest {
            platform: args.platform.code(),
            subscription: name.clone(),
        })
        .await
        .map_err(|s| context.refused(&s))?;
    let shape = ForgetShape {
        platform: args.platform.code(),
        forgotten: name.clone(),
    };
    context.show(&shape, "", || {
        let mut grid = Grid::new(&["platform", "forgotten"]);
        grid.row([shape.platform.to_string(), shape.forgotten.clone()]);
        grid
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_filter_means_all() {
        let shape = SubscriptionShape::from_api(&api::Subscription::default());
        assert_eq!(shape.filter_text(), "all");
        assert_eq!(shape.state, "away");
    }

    #[test]
    fn a_filter_is_told_in_words() {
        let shape = SubscriptionShape::from_api(&api::Subscription {
            connected: true,
            filter: Some(api::Filter {
                kinds: vec![api::Kind::HealthCode.into()],
                issuers: vec![340_000],
                lanes: vec![api::Lane::Urgent.into()],
                include_own: true,
            }),
            ..Default::default()
        });
        assert_eq!(shape.filter_text(), "health_code 340000 urgent own too");
        assert_eq!(shape.state, "live");
    }

    #[test]
    fn only_lanes_with_deltas_can_be_named() {
        assert_eq!(lane("bulk"), Ok(Lane::Bulk));
        assert!(lane("control").is_err());
    }
}
