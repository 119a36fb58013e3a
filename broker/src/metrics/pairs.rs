//! The matrix of pairs: what each receiver has not applied of each issuer. Metrics and console show this one.

use super::LagSample;
use hutong_proto::{Issuer, Lane, Micros, Offset};
use std::collections::BTreeMap;

/// The worst over a receiver's subscriptions: a platform has applied what all of them have.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pair {
    pub records: u64,
    pub seconds: f64,
    pub oldest_at: Option<Micros>,
    pub oldest: Option<Offset>,
}

/// By issuer, lane and receiver. Without what no subscription wants.
pub type Pairs = BTreeMap<(Issuer, Lane, Issuer), Pair>;

pub fn of(lags: &[LagSample]) -> Pairs {
    let mut pairs = Pairs::new();
    for sample in lags {
        let Some(issuer) = sample.issuer else {
            continue;
        };
        let pair = pairs
            .entry((issuer, sample.lane, sample.platform))
            .or_default();
        pair.records = pair.records.max(sample.records);
        pair.seconds = pair.seconds.max(sample.seconds);
        pair.oldest_at = lower(pair.oldest_at, sample.oldest_at);
        pair.oldest = lower(pair.oldest, sample.oldest);
    }
    pairs
}

/// Of two the lower one; one that is not there is none.
pub fn lower<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
