//! Subscribers that open their stream and take nothing, and the proof that they took nothing: what stood first on their
//! line still does when the load is over, and the broker counts them as connected and behind. A run in which
//! that does not hold has not measured what its options say, and fails.

use super::Shared;
use crate::Failure;
use hutong_connectors::client::{Endpoint, Identity, Subscriber, admin};
use hutong_proto::{Issuer, Lane, Offset, RecordView, api, record};
use std::{sync::Arc, time::Duration};

/// Bookmarks come each second, so whatever is on the line has come by then.
const FIRST_WITHIN: Duration = Duration::from_secs(10);

/// First offsets, urgent and bulk.
pub type Firsts = [Option<Offset>; 2];

/// What the line of one of them began with when all was over.
#[derive(Debug)]
pub struct Stalled {
    /// Of its platform.
    pub platform: usize,
    name: String,
    first: Result<Option<(Lane, Offset)>, String>,
}

pub fn name(n: usize) -> String {
    format!("stalled-{n}")
}

/// Takes nothing until all is over; then it looks what is first on its line.
pub async fn stall(
    shared: Arc<Shared>,
    n: usize,
    mut subscriber: Subscriber,
) -> Result<Stalled, Failure> {
    let mut ended = shared.ended.subscribe();
    ended.wait_for(|ended| *ended).await?;
    let first = tokio::time::timeout(FIRST_WITHIN, first(&mut subscriber)).await;
    Ok(Stalled {
        platform: n % shared.issuers.len(),
        name: name(n),
        first: match first {
            Ok(Ok(first)) => Ok(Some(first)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Ok(None),
        },
    })
}

async fn first(subscriber: &mut Subscriber) -> Result<(Lane, Offset), Failure> {
    loop {
        let frame = subscriber.next_frame().await?;
        let records = record::read_delivery(&frame)?;
        if let Some(first) = records.as_ref().and_then(|records| records.first()) {
            let bytes = first.record()?;
            let lane = RecordView::parse(&bytes)?.header.partition.lane;
            return Ok((lane, first.offset));
        }
    }
}

impl Stalled {
    /// `taken`: where the subscriber of the same platform began that took everything.
    pub fn check(&self, taken: Firsts) -> Result<(), String> {
        let Stalled { name, first, .. } = self;
        let (lane, offset) = match first {
            Ok(Some(first)) => *first,
            Ok(None) if taken == [None, None] => return Ok(()),
            Ok(None) => {
                return Err(format!(
                    "{name} was to take nothing, and nothing is left on its line"
                ));
            }
            Err(error) => {
                return Err(format!(
                    "{name} was to be connected and take nothing, but its stream has ended: {error}"
                ));
            }
        };
        let began = taken[crate::measure::place(lane)];
        match began {
            Some(began) if offset > began => Err(format!(
                "{name} was to take nothing, but it took {} deliveries: they began at {began}, and what is \
                 left on its line at {offset}",
                lane.name()
            )),
            _ => Ok(()),
        }
    }
}

/// What the broker says while they still stand: all are connected and have something to take. Records that
/// the one has not applied that is least behind.
pub async fn behind(grpc: &str, issuers: &[Issuer], stalled: usize) -> Result<u64, Failure> {
    let auditor = Identity::Auditor("bench".to_owned());
    let mut admin = admin(&Endpoint::new(grpc, auditor))?;
    let all = api::ListSubscriptionsRequest { platform: 0 };
    let listed = admin.list_subscriptions(all).await?.into_inner();
    let mut least = u64::MAX;
    for n in 0..stalled {
        let (name, platform) = (name(n), issuers[n % issuers.len()]);
        let mut subscriptions = listed.subscriptions.iter();
        let is_it =
            |s: &&api::Subscription| s.platform == platform.code() && s.subscription == name;
        let it = subscriptions.find(is_it).filter(|s| s.connected);
        let it = it.ok_or_else(|| {
            format!("{name} of {platform} was to be connected and take nothing, and the broker has it not connected")
        })?;
        let records = |lag: &Option<api::LaneLag>| lag.as_ref().map_or(0, |lag| lag.records);
        let records = records(&it.urgent) + records(&it.bulk);
        if records == 0 {
            return Err(format!(
                "{name} of {platform} was to take nothing, and the broker has it behind by nothing: either it takes, \
                 or nothing is offered to it; with one of --subscribers there is nobody whose deltas it could get"
            )
            .into());
        }
        least = least.min(records);
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stalled(first: Result<Option<(Lane, u64)>, &str>) -> Stalled {
        Stalled {
            platform: 0,
            name: name(3),
            first: first
                .map(|first| first.map(|(lane, offset)| (lane, Offset(offset))))
                .map_err(str::to_owned),
        }
    }

    #[test]
    fn who_took_something_or_is_away_was_not_stalled() {
        let taken = [Some(Offset(5)), Some(Offset(7))];
        assert!(stalled(Ok(Some((Lane::Bulk, 7)))).check(taken).is_ok());
        assert!(stalled(Ok(Some((Lane::Urgent, 5)))).check(taken).is_ok());
        for (one, said) in [
            (
                stalled(Ok(Some((Lane::Bulk, 8)))),
                "it took bulk deliveries",
            ),
            (stalled(Ok(None)), "nothing is left on its line"),
            (stalled(Err("gone")), "has ended: gone"),
        ] {
            let error = one.check(taken).expect_err("it was not stalled");
            assert!(
                error.contains(said) && error.contains("stalled-3"),
                "{error}"
            );
        }
        assert!(stalled(Ok(None)).check([None, None]).is_ok());
    }
}
