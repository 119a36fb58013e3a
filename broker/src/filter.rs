//! What a subscription wants. Most records are decided by their partition alone.

use crate::log::EntryHead;
use hutong_proto::{Issuer, Kind, KindSet, Lane, Partition, Reason, Refusal, Shard, api, limits};

/// A checked filter of one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterSpec {
    pub kinds: KindSet,
    /// Sorted; never empty lists that mean "all", and without the platform itself unless it asked.
    issuers: Vec<Issuer>,
    lanes: [bool; 2],
    /// As the client sent it, for listing and for comparing with what is stored.
    pub wire: api::Filter,
}

/// A configured platform and its shards.
pub type Platforms = [(Issuer, u32)];

fn invalid(field: String, what: String) -> Refusal {
    Refusal::new(Reason::FilterInvalid, field).detail(what)
}

/// No kind means all of them.
fn kinds(wanted: &[i32]) -> Result<KindSet, Refusal> {
    if wanted.is_empty() {
        return Ok(KindSet::ALL);
    }
    let mut kinds = KindSet::default();
    for (i, number) in wanted.iter().enumerate() {
        let kind = u64::try_from(*number).ok().and_then(Kind::from_number);
        let unknown = || invalid(format!("filter.kinds[{i}]"), format!("kind {number}"));
        kinds.insert(kind.ok_or_else(unknown)?);
    }
    Ok(kinds)
}

impl FilterSpec {
    pub fn from_api(
        filter: Option<api::Filter>,
        own: Issuer,
        platforms: &Platforms,
    ) -> Result<FilterSpec, Refusal> {
        let mut wire = filter.unwrap_or_default();
        wire.kinds.sort_unstable();
        wire.kinds.dedup();
        wire.issuers.sort_unstable();
        wire.issuers.dedup();
        wire.lanes.sort_unstable();
        wire.lanes.dedup();
        if wire.issuers.len() > limits::FILTER_VALUES_MAX {
            return Err(invalid(
                "filter.issuers".into(),
                format!("{} values", wire.issuers.len()),
            ));
        }
        // A list of an unset value would mean: nothing, or all. Neither is guessed.
        let unset = |values: &[i32], field: &str| match values.contains(&0) {
            true => Err(Refusal::new(Reason::EnumUnspecified, field)),
            false => Ok(()),
        };
        unset(&wire.kinds, "filter.kinds")?;
        unset(&wire.lanes, "filter.lanes")?;
        let kinds = kinds(&wire.kinds)?;
        let mut lanes = [wire.lanes.is_empty(); 2];
        for (i, &lane) in wire.lanes.iter().enumerate() {
            match u64::try_from(lane).ok().and_then(Lane::from_number) {
                Some(lane @ (Lane::Urgent | Lane::Bulk)) => lanes[lane.index()] = true,
                _ => {
                    return Err(invalid(
                        format!("filter.lanes[{i}]"),
                        format!("lane {lane}"),
                    ));
                }
            }
        }
        for (i, code) in wire.issuers.iter().enumerate() {
            if !platforms.iter().any(|(p, _)| p.code() == *code) {
                let what = format!("platform {code} is not configured");
                return Err(invalid(format!("filter.issuers[{i}]"), what));
            }
        }
        let mut issuers: Vec<Issuer> = platforms
            .iter()
            .map(|(p, _)| *p)
            .filter(|p| wire.issuers.is_empty() || wire.issuers.contains(&p.code()))
            .filter(|p| *p != own || wire.include_own || planted!(EchoSent))
            .collect();
        issuers.sort_unstable();
        Ok(FilterSpec {
            kinds,
            issuers,
            lanes,
            wire,
        })
    }

    pub fn wants_lane(&self, lane: Lane) -> bool {
        lane != Lane::Control && self.lanes[lane.index()]
    }

    pub fn wants_issuer(&self, issuer: Issuer) -> bool {
        self.issuers.binary_search(&issuer).is_ok()
    }

    /// Whether something in this record is wanted.
    pub fn passes(&self, head: &EntryHead) -> bool {
        self.kinds.intersects(head.kinds)
            && self.wants_lane(head.partition.lane)
            && self.wants_issuer(head.partition.issuer)
    }

    /// Whether everything in this record is wanted, so that its bytes go out as they are.
    pub fn passes_whole(&self, head: &EntryHead) -> bool {
        head.kinds.is_subset_of(self.kinds)
    }

    /// The partitions of a lane that this filter wants.
    pub fn partitions(&self, lane: Lane, platforms: &Platforms) -> Vec<Partition> {
        if !self.wants_lane(lane) {
            return Vec::new();
        }
        platforms
            .iter()
            .filter(|(issuer, _)| self.wants_issuer(*issuer))
            .flat_map(|(issuer, shards)| {
                (0..*shards).map(|s| Partition {
                    issuer: *issuer,
                    lane,
                    shard: Shard(s),
                })
            })
            .collect()
    }
}
