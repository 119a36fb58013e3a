//! `tail`: prints deltas as they are delivered to a platform.

use super::{Context, platforms::lane};
use crate::{
    errors::CliError,
    output::{Format, json_line},
    shapes::DeltaShape,
    times::utc,
};
use clap::Args;
use hutong_connectors::client::{Delivered, Event, Filter, Start, Subscriber, SubscriberOptions};
use hutong_proto::{Cursor, Issuer, Kind, Lane, LogId, Offset};
use std::str::FromStr;

#[derive(Debug, Args)]
pub struct TailArgs {
    /// Only these kinds: health_code, test_result, vaccination, area_risk.
    #[arg(long, value_delimiter = ',')]
    pub kinds: Vec<Kind>,
    /// Only what these platforms issued.
    #[arg(long, value_delimiter = ',', value_name = "CODES")]
    pub issuers: Vec<Issuer>,
    /// Only these lanes: urgent, bulk.
    #[arg(long, value_delimiter = ',', value_parser = lane)]
    pub lanes: Vec<Lane>,
    /// Also what this platform itself issued.
    #[arg(long)]
    pub own: bool,
    /// Where to begin: now, snapshot (all current values first), or a cursor LOG:URGENT/BULK as
    /// `subscriptions` prints it.
    #[arg(long, default_value = "now", value_name = "WHERE")]
    pub from: From,
    /// Stops after this many deltas.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// The subscription's name; the broker remembers it. Two readers need two names.
    #[arg(long, default_value = "cli-tail", value_name = "NAME")]
    pub subscription: String,
}

/// Where `tail` begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Now,
    Snapshot,
    Cursor(Cursor),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<From, String> {
        match text {
            "now" => return Ok(From::Now),
            "snapshot" => return Ok(From::Snapshot),
            _ => {}
        }
        let cursor = || {
            let (log, offsets) = text.split_once(':')?;
            let (urgent, bulk) = offsets.split_once('/')?;
            Some(Cursor {
                log_id: LogId(u64::from_str_radix(log, 16).ok()?),
                urgent: Offset(urgent.parse().ok()?),
                bulk: Offset(bulk.parse().ok()?),
            })
        };
        cursor().map(From::Cursor).ok_or_else(|| {
            format!(
                "{text:?} is none of now, snapshot, or a cursor such as 00a1b2c3d4e5f607:120/3400"
            )
        })
    }
}

pub async fn run(context: &Context, args: &TailArgs) -> Result<(), CliError> {
    context.platform("tail")?;
    context.reach().await?;
    let mut options = SubscriberOptions::new(context.endpoint.clone(), args.subscription.clone());
    options.filter = Filter {
        kinds: args.kinds.clone(),
        issuers: args.issuers.clone(),
        lanes: args.lanes.clone(),
        include_own: args.own,
    };
    options.start = match args.from {
        From::Now => Start::Now,
        From::Snapshot => Start::Snapshot,
        From::Cursor(cursor) => Start::Cursor(cursor),
    };
    let mut subscriber = Subscriber::open(options)
        .await
        .map_err(|e| context.failed(&e))?;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let event = subscriber.next().await.map_err(|e| context.failed(&e))?;
        let (deltas, cursor) = match event {
            Event::Rows(deltas) => (deltas, None),
            Event::Records { deltas, cursor } => (deltas, Some(cursor)),
            Event::SnapshotEnd { cursor, .. } | Event::Bookmark { cursor, .. } => {
                (Vec::new(), Some(cursor))
            }
            Event::SnapshotBegin { .. } => continue,
        };
        for delivered in &deltas {
            if left == 0 {
                break;
            }
            left -= 1;
            print(context, delivered)?;
        }
        if let Some(cursor) = cursor {
            subscriber
                .applied(cursor)
                .await
                .map_err(|e| context.failed(&e))?;
        }
    }
    Ok(())
}

fn print(context: &Context, delivered: &Delivered) -> Result<(), CliError> {
    let mut shape = DeltaShape::from_delta(&delivered.delta);
    if context.format == Format::Json {
        shape.issuer = Some(delivered.issuer.code());
        shape.offset = Some(delivered.offset.0);
        shape.durable_at_us = Some(delivered.durable_at.0);
        return json_line(&shape);
    }
    context.screen.line(text_line(&shape, delivered))
}

/// Columns of fixed width, because a stream has no last row to measure.
fn text_line(shape: &DeltaShape, delivered: &Delivered) -> String {
    let provenance = shape.provenance.as_ref();
    format!(
        "{}  {:06}  {}  {:<11}  r{:<6}  {}  ({}: {})",
        utc(shape.committed_at_us),
        delivered.issuer.code(),
        shape.entity,
        shape.kind_text(),
        shape.revision.unwrap_or(0),
        shape.value_text(),
        provenance.map_or("?", |p| &p.authority),
        provenance.map_or("?", |p| &p.reason),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_cursor_is_taken_back() {
        let cursor = Cursor {
            log_id: LogId(0xa1b2_c3d4_e5f6),
            urgent: Offset(120),
            bulk: Offset(3400),
        };
        let text = crate::shapes::cursor_text(Some(&cursor.to_api()));
        assert_eq!(text.parse(), Ok(From::Cursor(cursor)));
        assert_eq!("now".parse(), Ok(From::Now));
        assert_eq!("snapshot".parse(), Ok(From::Snapshot));
        assert!("12/13".parse::<From>().is_err());
    }
}
